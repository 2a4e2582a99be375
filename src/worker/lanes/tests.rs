mod random;

use uuid::Uuid;

use super::*;
use crate::domain::{
    chunk::Chunk, event::testing, integration::testing::testing_id, segment::Segments,
    sequences::Sequences,
};

const REQUESTS: usize = 16;
const PER_LANE: usize = 4;
const LIMITS: LaneLimits = LaneLimits {
    requests: REQUESTS,
    requests_per_lane: PER_LANE,
    records: 10,
    linger: Duration::from_millis(20),
};
/// Permits of each class.
const POOLS: [usize; 4] = [10, 2, 2, 2];

fn id(number: usize) -> IntegrationId {
    testing_id(number as i64)
}

fn number(id: IntegrationId) -> usize {
    id.0.as_u128() as usize
}

fn open(lanes: &mut Lanes, number: usize, proven: bool) {
    lanes.open(id(number), 1, proven);
    lanes.queue(id(number));
}

fn lanes(count: usize, proven: bool) -> Lanes {
    let mut lanes = Lanes::new(LIMITS);
    for number in 0..count {
        open(&mut lanes, number, proven);
    }
    lanes
}

fn dispatch(lanes: &mut Lanes) -> Option<(IntegrationId, Permit)> {
    let dispatch = lanes.next_dispatch();
    dispatch.map(|dispatch| (dispatch.id, dispatch.permit))
}

/// Ends an attempt with this answer.
fn end(lanes: &mut Lanes, id: IntegrationId, permit: Permit, accepted: bool) {
    if accepted || !lanes.get(id).unwrap().is_outdated(&permit) {
        lanes.expect(id, Class::after(accepted, permit.overdue));
    }
    assert!(lanes.release(id, permit));
    lanes.queue(id);
}

#[test]
fn lanes_are_dispatched_round_robin() {
    let mut lanes = lanes(3, true);
    let mut order = Vec::new();
    for _ in 0..9 {
        let (id, permit) = dispatch(&mut lanes).unwrap();
        order.push(number(id));
        end(&mut lanes, id, permit, true);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_lane_that_has_not_succeeded_yet_or_fails_has_one_permit() {
    let mut lanes = lanes(1, false);
    let (one, permit) = dispatch(&mut lanes).unwrap();
    lanes.queue(one);
    assert!(dispatch(&mut lanes).is_none());
    end(&mut lanes, one, permit, true);
    let permits: Vec<_> = std::iter::from_fn(|| {
        let next = dispatch(&mut lanes);
        lanes.queue(one);
        next
    })
    .collect();
    assert_eq!(permits.len(), FIRST_WINDOW);
    for (id, permit) in permits {
        end(&mut lanes, id, permit, false);
    }
    let _turn = dispatch(&mut lanes).unwrap();
    lanes.queue(one);
    assert!(dispatch(&mut lanes).is_none());
}

type Hanging = (IntegrationId, Permit, oneshot::Receiver<()>);

/// Dispatches every lane, with calls that become overdue; cancelled ones fail.
fn hang_all(lanes: &mut Lanes, hanging: &mut Vec<Hanging>) {
    loop {
        end_cancelled(lanes, hanging);
        let dispatched: Vec<_> = std::iter::from_fn(|| dispatch(lanes)).collect();
        if dispatched.is_empty() {
            return;
        }
        for (id, mut permit) in dispatched {
            let cancelled = lanes.set_overdue(id, &mut permit);
            hanging.push((id, permit, cancelled));
        }
    }
}

/// Reclaims permits, and ends the calls that are cancelled.
fn end_cancelled(lanes: &mut Lanes, hanging: &mut Vec<Hanging>) {
    lanes.reclaim();
    for (id, permit, mut cancelled) in std::mem::take(hanging) {
        match cancelled.try_recv() {
            Ok(()) => end(lanes, id, permit, false),
            Err(_) => hanging.push((id, permit, cancelled)),
        }
    }
}

/// Fifty lanes that hang, of which some have a permit and the others wait for one.
fn crowd() -> (Lanes, Vec<Hanging>) {
    let mut lanes = lanes(50, true);
    let mut hanging = Vec::new();
    hang_all(&mut lanes, &mut hanging);
    let in_all: usize = lanes.permits.used().iter().sum();
    assert_eq!(in_all, hanging.len());
    assert!(in_all <= REQUESTS && !lanes.permits.wastes_permit());
    assert!(dispatch(&mut lanes).is_none());
    (lanes, hanging)
}

#[test]
fn calls_that_hang_take_no_permit_of_lanes_that_answer() {
    let (mut lanes, mut hanging) = crowd();
    for number in 100..150 {
        open(&mut lanes, number, number % 2 == 0);
        end_cancelled(&mut lanes, &mut hanging);
        let (next, mut permit) = dispatch(&mut lanes).unwrap();
        assert_eq!(next, id(number));
        // Every third hangs, too.
        if number % 3 > 0 {
            end(&mut lanes, next, permit, true);
            lanes.remove(next);
        } else {
            let cancelled = lanes.set_overdue(next, &mut permit);
            hanging.push((next, permit, cancelled));
        }
    }
}

#[test]
fn a_configured_or_tested_lane_does_not_wait_behind_those_that_hang() {
    let (mut lanes, mut hanging) = crowd();
    let has_permit = |number| hanging.iter().any(|(one, ..)| *one == id(number));
    let waiting: Vec<usize> = (0..50).filter(|number| !has_permit(*number)).collect();
    let far = Instant::now() + Duration::from_secs(300);
    for (position, number) in waiting.into_iter().rev().enumerate() {
        let one = id(number);
        assert_eq!(lanes.get(one).unwrap().class, Class::Hanging);
        if position % 3 == 0 {
            lanes.back_off(one, far);
        }
        match position % 2 {
            0 => lanes.configured(one),
            _ => lanes.tested(one),
        }
        end_cancelled(&mut lanes, &mut hanging);
        let (next, permit) = dispatch(&mut lanes).unwrap();
        assert_eq!(next, one);
        end(&mut lanes, one, permit, true);
        lanes.remove(one);
    }
}

#[test]
fn a_slow_lane_does_not_wait_behind_those_that_hang() {
    let (mut lanes, _hanging) = crowd();
    open(&mut lanes, 100, true);
    lanes.expect(id(100), Class::Slow);
    assert!(dispatch(&mut lanes).is_some_and(|(next, _)| next == id(100)));
}

#[test]
fn a_call_that_hangs_is_cancelled_by_a_new_configuration_and_changes_nothing() {
    let mut lanes = lanes(1, true);
    let (one, mut permit) = dispatch(&mut lanes).unwrap();
    let mut cancelled = lanes.set_overdue(one, &mut permit);
    assert_eq!(
        cancelled.try_recv(),
        Err(oneshot::error::TryRecvError::Empty)
    );
    lanes.configured(one);
    assert_eq!(cancelled.try_recv(), Ok(()));
    assert!(lanes.get(one).unwrap().is_outdated(&permit));
    end(&mut lanes, one, permit, false);
    let (one, permit) = dispatch(&mut lanes).unwrap();
    assert!(!lanes.get(one).unwrap().is_outdated(&permit));
}

#[test]
fn a_call_from_before_a_new_configuration_is_cancelled_once_overdue() {
    let mut lanes = lanes(1, true);
    let (one, mut permit) = dispatch(&mut lanes).unwrap();
    lanes.configured(one);
    let mut cancelled = lanes.set_overdue(one, &mut permit);
    assert_eq!(cancelled.try_recv(), Ok(()));
    assert_eq!(lanes.get(one).unwrap().class, Class::Probe);
    end(&mut lanes, one, permit, false);
    assert!(dispatch(&mut lanes).is_some());
}

#[test]
fn a_backoff_ends_at_its_time_or_when_ended() {
    let mut lanes = lanes(2, true);
    let (one, two) = (id(0), id(1));
    let now = Instant::now();
    lanes.back_off(one, now + Duration::from_secs(5));
    lanes.back_off(two, now + Duration::from_secs(9));
    assert!(dispatch(&mut lanes).is_none());
    lanes.end_backoff(two);
    assert_eq!(dispatch(&mut lanes).map(|(id, _)| id), Some(two));
    lanes.wake(now + Duration::from_secs(4));
    assert!(dispatch(&mut lanes).is_none());
    assert_eq!(lanes.next_wake(), Some(now + Duration::from_secs(5)));
    lanes.wake(now + Duration::from_secs(5));
    assert_eq!(dispatch(&mut lanes).map(|(id, _)| id), Some(one));
    assert_eq!(lanes.next_wake(), None);
}

fn load(lane: &mut Lane, events: u32) {
    let mut segments = Segments::default();
    for at in 0..events {
        let stored: Result<(), ()> = segments.push(id(1), |out| {
            testing::store(Uuid::from_u128(u128::from(at)), 1, out);
            Ok(())
        });
        stored.unwrap();
    }
    let chunk = Chunk {
        first_sequence: lane.cursor,
        count: events,
        accepted_at: jiff::Timestamp::UNIX_EPOCH,
        segment: segments.into_parts().0.into(),
        settled: Sequences::default(),
        gaps: Vec::new(),
        pending_bytes: 0,
        traces: Vec::new(),
    };
    lane.cursor = chunk.end_sequence();
    lane.delivery.load(chunk).unwrap();
}

#[test]
fn a_request_lingers_unless_it_is_full_or_the_first() {
    let mut lanes = Lanes::new(LIMITS);
    let (one, start) = (id(0), Instant::now());
    lanes.open(one, 1, true);
    lanes.queue_pending(one, 2, true, start);
    let (_, permit) = dispatch(&mut lanes).unwrap();
    lanes.get(one).unwrap().selected_at = Some(start);
    load(lanes.get(one).unwrap(), 1);
    assert!(lanes.release(one, permit));
    let soon = start + Duration::from_millis(5);
    lanes.queue_pending(one, 5, true, soon);
    assert!(dispatch(&mut lanes).is_none());
    assert_eq!(lanes.next_wake(), Some(start + LIMITS.linger));
    lanes.queue_pending(one, 11, true, soon);
    assert!(dispatch(&mut lanes).is_some());
    assert_eq!(lanes.next_wake(), None);
    lanes.queue_pending(one, 5, true, soon);
    lanes.wake(start + LIMITS.linger);
    assert!(dispatch(&mut lanes).is_some());
}

#[test]
fn the_window_follows_success() {
    let mut lanes = lanes(1, true);
    let one = id(0);
    lanes.adapt_window(one, true);
    assert_eq!(lanes.get(one).unwrap().window, FIRST_WINDOW);
    load(lanes.get(one).unwrap(), 100);
    for _ in 0..10 {
        lanes.adapt_window(one, true);
    }
    assert_eq!(lanes.get(one).unwrap().window, PER_LANE);
    for _ in 0..10 {
        lanes.adapt_window(one, false);
    }
    assert_eq!(lanes.get(one).unwrap().window, 1);
}
