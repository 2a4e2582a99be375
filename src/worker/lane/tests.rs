use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::domain::{
    backoff::BackoffPolicy,
    status::{Cause, Fault, Stage},
};

const LIMITS: TurnLimits = TurnLimits {
    quick: 6,
    slow: 2,
    each: 4,
};

fn lanes(count: i64) -> Lanes {
    let mut lanes = Lanes::default();
    for key in 0..count {
        lanes.open(IntegrationKey(key), Uuid::from_u128(key as u128), 1);
    }
    lanes
}

fn fail(lane: &mut Lane) {
    let policy = BackoffPolicy {
        refused_first: Duration::from_secs(5),
        refused_most: Duration::from_secs(300),
    };
    let fault = Fault {
        stage: Stage::Write,
        cause: Cause::Timeout,
        request_id: None,
    };
    let _wait = lane
        .backoff
        .fail(&policy, std::time::Instant::now(), &fault, 0.5);
}

#[test]
fn turns_go_round() {
    let mut lanes = lanes(3);
    let mut order = Vec::new();
    for _ in 0..9 {
        let (key, allowance) = lanes.next_ready(LIMITS).unwrap();
        order.push(key.0);
        lanes.end_turn(key, allowance);
        lanes.queue(key);
    }
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[test]
fn many_that_hang_do_not_keep_the_others_waiting() {
    let mut lanes = lanes(50);
    // All of them begin, hang, and are found out.
    let mut hanging = Vec::new();
    while let Some((key, mut allowance)) = lanes.next_ready(LIMITS) {
        lanes.slow_down(key, &mut allowance);
        hanging.push((key, allowance));
    }
    assert!(hanging.len() >= 50);
    let healthy = IntegrationKey(1000);
    lanes.open(healthy, Uuid::from_u128(1000), 1);
    assert_eq!(lanes.next_ready(LIMITS), Some((healthy, Allowance::Quick)));
    // Those that are known to hang wait for their own allowance.
    for (key, _) in &hanging {
        lanes.queue(*key);
    }
    assert_eq!(lanes.next_ready(LIMITS), None);
}

#[test]
fn a_failing_lane_tries_with_one_request() {
    let mut lanes = lanes(1);
    let key = IntegrationKey(0);
    fail(lanes.get(key).unwrap());
    assert_eq!(lanes.next_ready(LIMITS), Some((key, Allowance::Slow)));
    lanes.queue(key);
    assert_eq!(lanes.next_ready(LIMITS), None);
}

#[test]
fn a_back_off_ends_in_time_or_at_once() {
    let mut lanes = lanes(2);
    let (one, two) = (IntegrationKey(0), IntegrationKey(1));
    let now = Instant::now();
    lanes.back_off(one, now + Duration::from_secs(5));
    lanes.back_off(two, now + Duration::from_secs(9));
    assert_eq!(lanes.next_ready(LIMITS), None);
    lanes.end_back_off(two);
    assert_eq!(lanes.next_ready(LIMITS).map(|(key, _)| key), Some(two));
    lanes.wake(now + Duration::from_secs(4));
    assert_eq!(lanes.next_ready(LIMITS), None);
    assert_eq!(lanes.next_retry(), Some(now + Duration::from_secs(5)));
    lanes.wake(now + Duration::from_secs(5));
    assert_eq!(lanes.next_ready(LIMITS).map(|(key, _)| key), Some(one));
    assert_eq!(lanes.next_retry(), None);
}

proptest! {
    /// Whatever happens, the allowances hold, but for turns that were found slow.
    #[test]
    fn allowances_hold(steps in prop::collection::vec((0..4u8, 0..8i64), 0..300)) {
        let mut lanes = lanes(8);
        let mut turns: Vec<(IntegrationKey, Allowance, bool)> = Vec::new();
        for (step, which) in steps {
            let key = IntegrationKey(which);
            match step {
                0 => {
                    if let Some((key, allowance)) = lanes.next_ready(LIMITS) {
                        turns.push((key, allowance, false));
                    }
                }
                1 => lanes.queue(key),
                2 if !turns.is_empty() => {
                    let at = which as usize % turns.len();
                    let (key, allowance, _) = turns.remove(at);
                    prop_assert!(lanes.end_turn(key, allowance));
                }
                3 if !turns.is_empty() => {
                    let at = which as usize % turns.len();
                    let (key, allowance, found_slow) = &mut turns[at];
                    lanes.slow_down(*key, allowance);
                    *found_slow = true;
                }
                _ => {}
            }
            let quick = turns.iter().filter(|turn| turn.1 == Allowance::Quick).count();
            let slow = turns.iter().filter(|turn| turn.1 == Allowance::Slow && !turn.2).count();
            prop_assert!(quick <= LIMITS.quick && slow <= LIMITS.slow);
            prop_assert_eq!((quick, lanes.slow_turns), (lanes.quick_turns, turns.len() - quick));
            for key in 0..8 {
                let under_way = turns.iter().filter(|turn| turn.0.0 == key).count();
                prop_assert!(under_way <= LIMITS.each);
            }
        }
    }
}
