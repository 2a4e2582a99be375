mod memory;

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;

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
        let (key, turn) = lanes.next_turn().unwrap();
        order.push(key.0);
        end(&mut lanes, key, turn, true);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn one_that_has_not_answered_yet_or_fails_has_one_turn() {
    let mut lanes = lanes(1, false);
    let (one, turn) = lanes.next_turn().unwrap();
    lanes.queue(one);
    assert!(lanes.next_turn().is_none());
    end(&mut lanes, one, turn, true);
    let turns: Vec<_> = std::iter::from_fn(|| {
        let next = lanes.next_turn();
        lanes.queue(one);
        next
    })
    .collect();
    assert_eq!(turns.len(), FIRST_WINDOW);
    for (key, turn) in turns {
        end(&mut lanes, key, turn, false);
    }
    let _turn = lanes.next_turn().unwrap();
    lanes.queue(one);
    assert!(lanes.next_turn().is_none());
}

type Hanging = (IntegrationKey, Turn, oneshot::Receiver<()>);

/// Lets everyone begin, and each call take long; those that are told to end fail.
fn hang_all(lanes: &mut Lanes, hanging: &mut Vec<Hanging>) {
    loop {
        end_cut(lanes, hanging);
        let begun: Vec<_> = std::iter::from_fn(|| lanes.next_turn()).collect();
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
    assert!(lanes.next_turn().is_none());
    (lanes, hanging)
}

#[test]
fn what_hangs_takes_no_place_of_those_that_answer() {
    let (mut lanes, mut hanging) = crowd();
    for number in 100..150 {
        open(&mut lanes, number, number % 2 == 0);
        end_cut(&mut lanes, &mut hanging);
        let (next, mut turn) = lanes.next_turn().unwrap();
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
        let (next, turn) = lanes.next_turn().unwrap();
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
    assert!(lanes.next_turn().is_some_and(|(next, _)| next == key(100)));
}

#[test]
fn a_call_that_hangs_ends_as_its_integration_is_mended_and_says_nothing() {
    let mut lanes = lanes(1, true);
    let (one, mut turn) = lanes.next_turn().unwrap();
    let mut cut = lanes.overdue(one, &mut turn);
    assert_eq!(cut.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    lanes.configured(one);
    assert_eq!(cut.try_recv(), Ok(()));
    assert!(lanes.get(one).unwrap().is_outdated(&turn));
    end(&mut lanes, one, turn, false);
    let (one, turn) = lanes.next_turn().unwrap();
    assert!(!lanes.get(one).unwrap().is_outdated(&turn));
}

#[test]
fn a_call_that_began_before_the_mending_ends_once_it_takes_long() {
    let mut lanes = lanes(1, true);
    let (one, mut turn) = lanes.next_turn().unwrap();
    lanes.configured(one);
    let mut cut = lanes.overdue(one, &mut turn);
    assert_eq!(cut.try_recv(), Ok(()));
    assert_eq!(lanes.get(one).unwrap().class, Class::Probe);
    end(&mut lanes, one, turn, false);
    assert!(lanes.next_turn().is_some());
}

#[test]
fn a_back_off_ends_in_time_or_at_once() {
    let mut lanes = lanes(2, true);
    let (one, two) = (key(0), key(1));
    let now = Instant::now();
    lanes.back_off(one, now + Duration::from_secs(5));
    lanes.back_off(two, now + Duration::from_secs(9));
    assert!(lanes.next_turn().is_none());
    lanes.end_back_off(two);
    assert_eq!(lanes.next_turn().map(|(key, _)| key), Some(two));
    lanes.wake(now + Duration::from_secs(4));
    assert!(lanes.next_turn().is_none());
    assert_eq!(lanes.next_wake(), Some(now + Duration::from_secs(5)));
    lanes.wake(now + Duration::from_secs(5));
    assert_eq!(lanes.next_turn().map(|(key, _)| key), Some(one));
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
    let (_, turn) = lanes.next_turn().unwrap();
    lanes
        .get(one)
        .unwrap()
        .linger
        .looked(start, 1, LIMITS.linger);
    load(lanes.get(one).unwrap(), 1);
    end_without_queue(&mut lanes, one, turn);
    let soon = start + Duration::from_millis(5);
    lanes.queue_what_waits(one, 5, true, soon);
    assert!(lanes.next_turn().is_none());
    assert_eq!(lanes.next_wake(), Some(start + LIMITS.linger));
    lanes.queue_what_waits(one, 11, true, soon);
    assert!(lanes.next_turn().is_some());
    assert_eq!(lanes.next_wake(), None);
    lanes.queue_what_waits(one, 5, true, soon);
    lanes.wake(start + LIMITS.linger);
    assert!(lanes.next_turn().is_some());
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

struct Run {
    lanes: Lanes,
    turns: Vec<Hanging>,
    now: Instant,
}

impl Run {
    fn step(&mut self, step: u8, which: usize) {
        let lanes = &mut self.lanes;
        let one = key(which % 8);
        let at = which % self.turns.len().max(1);
        match step {
            0..=2 => {
                lanes.make_room();
                if let Some((key, turn)) = lanes.next_turn() {
                    self.turns.push((key, turn, oneshot::channel().1));
                }
            }
            3 => lanes.queue(one),
            4 => lanes.configured(one),
            5 => lanes.tested(one),
            6 => lanes.back_off(one, self.now + Duration::from_secs(which as u64)),
            7 => {
                self.now += Duration::from_secs(1);
                lanes.wake(self.now);
            }
            8 if !self.turns.is_empty() => {
                let (key, turn, cut) = &mut self.turns[at];
                if !turn.overdue {
                    *cut = lanes.overdue(*key, turn);
                }
            }
            9..=11 if !self.turns.is_empty() => {
                let (key, turn, _) = self.turns.remove(at);
                end(lanes, key, turn, which.is_multiple_of(3));
            }
            _ => {}
        }
    }

    fn check(&self) {
        let taken = self.lanes.places.taken();
        assert!(taken.iter().zip(ROOMS).all(|(taken, most)| *taken <= most));
        assert_eq!(taken.iter().sum::<usize>(), self.turns.len());
        for number in 0..8 {
            let of_lane = self.turns.iter().filter(|(one, ..)| *one == key(number));
            assert!(of_lane.count() <= EACH);
        }
    }
}

proptest! {
    #[test]
    fn bounds_hold_and_no_place_is_left_empty(
        steps in prop::collection::vec((0..12u8, 0..1000usize), 0..300),
    ) {
        let mut run = Run { lanes: lanes(8, false), turns: Vec::new(), now: Instant::now() };
        for (step, which) in steps {
            run.step(step, which);
            run.check();
        }
        while let Some((key, turn)) = run.lanes.next_turn() {
            run.turns.push((key, turn, oneshot::channel().1));
        }
        run.check();
        prop_assert!(!run.lanes.places.has_idle_place());
    }

    /// Some answer within a tick and some never, which is known after a tick and ends
    /// after ten. However many hang, who answers goes round as if it were alone, once
    /// each has shown what it is.
    #[test]
    fn who_answers_never_starves(
        hangs in prop::collection::vec(any::<bool>(), 1..60),
        proven in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut lanes = Lanes::new(LIMITS);
        for (number, proven) in proven.iter().take(hangs.len()).enumerate() {
            open(&mut lanes, number, *proven);
        }
        let mut served = vec![0; hangs.len()];
        let mut hanging: VecDeque<(usize, Hanging)> = VecDeque::new();
        let warm_up = hangs.len() + 10;
        let healthy = hangs.iter().filter(|hangs| !**hangs).count();
        // Two more: one for a call that is to be cut, one for where the round stands.
        let most_wait = healthy.div_ceil(ROOMS[0]) + 2;
        for tick in 0..warm_up + 4 * most_wait {
            lanes.make_room();
            let begun: Vec<_> = std::iter::from_fn(|| lanes.next_turn()).collect();
            for (one, mut turn) in begun {
                if hangs[one.0 as usize] {
                    let cut = lanes.overdue(one, &mut turn);
                    hanging.push_back((tick, (one, turn, cut)));
                } else {
                    served[one.0 as usize] = tick;
                    end(&mut lanes, one, turn, true);
                }
            }
            lanes.make_room();
            let (over, still): (VecDeque<_>, VecDeque<_>) = hanging
                .into_iter()
                .map(|(since, (one, turn, mut cut))| (cut.try_recv() == Ok(()), since, one, turn, cut))
                .partition(|(is_cut, since, ..)| *is_cut || since + 10 <= tick);
            for (_, _, one, turn, _) in over {
                end(&mut lanes, one, turn, false);
            }
            hanging = still.into_iter().map(|(_, since, one, turn, cut)| (since, (one, turn, cut))).collect();
            prop_assert!(lanes.places.taken().iter().sum::<usize>() <= MOST);
            for number in (0..hangs.len()).filter(|number| !hangs[*number] && tick > warm_up) {
                prop_assert!(served[number] + most_wait >= tick, "{number} waits since {}", served[number]);
            }
        }
    }
}
