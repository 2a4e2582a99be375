mod memory;
mod random;

use std::time::Duration;

use super::{state::FIRST_WINDOW, *};
use crate::domain::delivery::{Entry, LoadedChunk};

const MOST: usize = 16;
const EACH: usize = 4;
const LIMITS: LaneLimits = LaneLimits {
    turns: MOST,
    turns_each: EACH,
    records: 10,
    linger: Duration::from_millis(20),
};
/// Places of the quick, the probing, the slow and the hanging.
const ROOMS: [usize; 4] = [10, 2, 2, 2];

fn key(number: usize) -> IntegrationKey {
    IntegrationKey(number as i64)
}

fn open(lanes: &mut Lanes, number: usize, proven: bool) {
    let id = Uuid::from_u128(number as u128);
    lanes.open(key(number), id, 1, proven);
    lanes.queue(key(number));
}

fn lanes(count: usize, proven: bool) -> Lanes {
    let mut lanes = Lanes::new(LIMITS);
    for number in 0..count {
        open(&mut lanes, number, proven);
    }
    lanes
}

fn next_turn(lanes: &mut Lanes) -> Option<(IntegrationKey, Turn)> {
    lanes.next_turn().map(|begun| (begun.key, begun.turn))
}

/// Ends a turn as its answer was.
fn end(lanes: &mut Lanes, key: IntegrationKey, turn: Turn, accepted: bool) {
    if accepted || !lanes.get(key).unwrap().is_outdated(&turn) {
        lanes.expect(key, Class::after(accepted, turn.overdue));
    }
    assert!(lanes.end_turn(key, turn));
    lanes.queue(key);
}

#[test]
fn turns_go_round() {
    let mut lanes = lanes(3, true);
    let mut order = Vec::new();
    for _ in 0..9 {
        let (key, turn) = next_turn(&mut lanes).unwrap();
        order.push(key.0);
        end(&mut lanes, key, turn, true);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn one_that_has_not_answered_yet_or_fails_has_one_turn() {
    let mut lanes = lanes(1, false);
    let (one, turn) = next_turn(&mut lanes).unwrap();
    lanes.queue(one);
    assert!(next_turn(&mut lanes).is_none());
    end(&mut lanes, one, turn, true);
    let turns: Vec<_> = std::iter::from_fn(|| {
        let next = next_turn(&mut lanes);
        lanes.queue(one);
        next
    })
    .collect();
    assert_eq!(turns.len(), FIRST_WINDOW);
    for (key, turn) in turns {
        end(&mut lanes, key, turn, false);
    }
    let _turn = next_turn(&mut lanes).unwrap();
    lanes.queue(one);
    assert!(next_turn(&mut lanes).is_none());
}

type Hanging = (IntegrationKey, Turn, oneshot::Receiver<()>);

/// Lets everyone begin, and each call take long; those that are told to end fail.
fn hang_all(lanes: &mut Lanes, hanging: &mut Vec<Hanging>) {
    loop {
        end_cut(lanes, hanging);
        let begun: Vec<_> = std::iter::from_fn(|| next_turn(lanes)).collect();
        if begun.is_empty() {
            return;
        }
        for (key, mut turn) in begun {
            let cut = lanes.overdue(key, &mut turn);
            hanging.push((key, turn, cut));
        }
    }
}

/// Makes room, and ends the calls that are told to.
fn end_cut(lanes: &mut Lanes, hanging: &mut Vec<Hanging>) {
    lanes.make_room();
    for (key, turn, mut cut) in std::mem::take(hanging) {
        match cut.try_recv() {
            Ok(()) => end(lanes, key, turn, false),
            Err(_) => hanging.push((key, turn, cut)),
        }
    }
}

/// Fifty hang: with a place each where there are enough, else waiting for one.
fn crowd() -> (Lanes, Vec<Hanging>) {
    let mut lanes = lanes(50, true);
    let mut hanging = Vec::new();
    hang_all(&mut lanes, &mut hanging);
    let in_all: usize = lanes.places.taken().iter().sum();
    assert_eq!(in_all, hanging.len());
    assert!(in_all <= MOST && !lanes.places.has_idle_place());
    assert!(next_turn(&mut lanes).is_none());
    (lanes, hanging)
}

#[test]
fn what_hangs_takes_no_place_of_those_that_answer() {
    let (mut lanes, mut hanging) = crowd();
    for number in 100..150 {
        open(&mut lanes, number, number % 2 == 0);
        end_cut(&mut lanes, &mut hanging);
        let (next, mut turn) = next_turn(&mut lanes).unwrap();
        assert_eq!(next, key(number));
        // Every third hangs, too.
        if number % 3 > 0 {
            end(&mut lanes, next, turn, true);
            lanes.remove(next);
        } else {
            let cut = lanes.overdue(next, &mut turn);
            hanging.push((next, turn, cut));
        }
    }
}

#[test]
fn what_is_mended_does_not_wait_behind_those_that_hang() {
    let (mut lanes, mut hanging) = crowd();
    let in_place = |number| hanging.iter().any(|(one, ..)| *one == key(number));
    let waiting: Vec<usize> = (0..50).filter(|number| !in_place(*number)).collect();
    let far = Instant::now() + Duration::from_secs(300);
    for (position, number) in waiting.into_iter().rev().enumerate() {
        let one = key(number);
        assert_eq!(lanes.get(one).unwrap().class, Class::Hanging);
        if position % 3 == 0 {
            lanes.back_off(one, far);
        }
        match position % 2 {
            0 => lanes.configured(one),
            _ => lanes.tested(one),
        }
        end_cut(&mut lanes, &mut hanging);
        let (next, turn) = next_turn(&mut lanes).unwrap();
        assert_eq!(next, one);
        end(&mut lanes, one, turn, true);
        lanes.remove(one);
    }
}

#[test]
fn what_is_slow_does_not_wait_behind_those_that_hang() {
    let (mut lanes, _hanging) = crowd();
    open(&mut lanes, 100, true);
    lanes.expect(key(100), Class::Slow);
    assert!(next_turn(&mut lanes).is_some_and(|(next, _)| next == key(100)));
}

#[test]
fn a_call_that_hangs_ends_as_its_integration_is_mended_and_says_nothing() {
    let mut lanes = lanes(1, true);
    let (one, mut turn) = next_turn(&mut lanes).unwrap();
    let mut cut = lanes.overdue(one, &mut turn);
    assert_eq!(cut.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    lanes.configured(one);
    assert_eq!(cut.try_recv(), Ok(()));
    assert!(lanes.get(one).unwrap().is_outdated(&turn));
    end(&mut lanes, one, turn, false);
    let (one, turn) = next_turn(&mut lanes).unwrap();
    assert!(!lanes.get(one).unwrap().is_outdated(&turn));
}

#[test]
fn a_call_that_began_before_the_mending_ends_once_it_takes_long() {
    let mut lanes = lanes(1, true);
    let (one, mut turn) = next_turn(&mut lanes).unwrap();
    lanes.configured(one);
    let mut cut = lanes.overdue(one, &mut turn);
    assert_eq!(cut.try_recv(), Ok(()));
    assert_eq!(lanes.get(one).unwrap().class, Class::Probe);
    end(&mut lanes, one, turn, false);
    assert!(next_turn(&mut lanes).is_some());
}

#[test]
fn a_back_off_ends_in_time_or_at_once() {
    let mut lanes = lanes(2, true);
    let (one, two) = (key(0), key(1));
    let now = Instant::now();
    lanes.back_off(one, now + Duration::from_secs(5));
    lanes.back_off(two, now + Duration::from_secs(9));
    assert!(next_turn(&mut lanes).is_none());
    lanes.end_back_off(two);
    assert_eq!(next_turn(&mut lanes).map(|(key, _)| key), Some(two));
    lanes.wake(now + Duration::from_secs(4));
    assert!(next_turn(&mut lanes).is_none());
    assert_eq!(lanes.next_wake(), Some(now + Duration::from_secs(5)));
    lanes.wake(now + Duration::from_secs(5));
    assert_eq!(next_turn(&mut lanes).map(|(key, _)| key), Some(one));
    assert_eq!(lanes.next_wake(), None);
}

fn load(lane: &mut Lane, events: u32) {
    let first_sequence = lane.cursor;
    lane.cursor += u64::from(events);
    let entries = (0..events).map(|at| Entry {
        key: u128::from(at),
        stored: at..at + 1,
        body_length: 1,
    });
    let loaded = lane.delivery.load(LoadedChunk {
        id: first_sequence as i64,
        first_sequence,
        entries: entries.collect(),
        bytes: vec![b'x'; events as usize].into(),
        settled: Vec::new(),
        gaps: Vec::new(),
    });
    assert_eq!(loaded, None);
}

#[test]
fn a_request_waits_for_company_unless_it_is_full_or_the_first() {
    let mut lanes = Lanes::new(LIMITS);
    let (one, start) = (key(0), Instant::now());
    lanes.open(one, Uuid::nil(), 1, true);
    lanes.queue_what_waits(one, 2, true, start);
    let (_, turn) = next_turn(&mut lanes).unwrap();
    lanes.get(one).unwrap().looked_at = Some(start);
    load(lanes.get(one).unwrap(), 1);
    end_without_queue(&mut lanes, one, turn);
    let soon = start + Duration::from_millis(5);
    lanes.queue_what_waits(one, 5, true, soon);
    assert!(next_turn(&mut lanes).is_none());
    assert_eq!(lanes.next_wake(), Some(start + LIMITS.linger));
    lanes.queue_what_waits(one, 11, true, soon);
    assert!(next_turn(&mut lanes).is_some());
    assert_eq!(lanes.next_wake(), None);
    lanes.queue_what_waits(one, 5, true, soon);
    lanes.wake(start + LIMITS.linger);
    assert!(next_turn(&mut lanes).is_some());
}

fn end_without_queue(lanes: &mut Lanes, key: IntegrationKey, turn: Turn) {
    assert!(lanes.end_turn(key, turn));
}

#[test]
fn more_go_side_by_side_as_they_get_through() {
    let mut lanes = lanes(1, true);
    let one = key(0);
    lanes.widen(one, true);
    assert_eq!(lanes.get(one).unwrap().window, FIRST_WINDOW);
    load(lanes.get(one).unwrap(), 100);
    for _ in 0..10 {
        lanes.widen(one, true);
    }
    assert_eq!(lanes.get(one).unwrap().window, EACH);
    for _ in 0..10 {
        lanes.widen(one, false);
    }
    assert_eq!(lanes.get(one).unwrap().window, 1);
}
