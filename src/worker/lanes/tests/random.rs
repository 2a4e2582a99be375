//! Random steps in random order.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

struct Run {
    lanes: Lanes,
    attempts: Vec<Hanging>,
    now: Instant,
    /// Time at which the run loop wakes, after it has run.
    planned: Option<Option<Instant>>,
}

impl Run {
    fn step(&mut self, step: u8, which: usize) {
        let lanes = &mut self.lanes;
        let one = id(which % 8);
        let at = which % self.attempts.len().max(1);
        match step {
            0..=1 => {
                lanes.reclaim();
                while let Some((id, permit)) = dispatch(lanes) {
                    self.attempts.push((id, permit, oneshot::channel().1));
                }
                self.planned = Some(lanes.plan_wake());
            }
            2..=3 => lanes.queue(one),
            4 => lanes.configured(one),
            5 => lanes.tested(one),
            6 => lanes.back_off(one, self.now + Duration::from_secs(which as u64)),
            7 => {
                self.now += Duration::from_secs(1);
                lanes.wake(self.now);
            }
            8 if !self.attempts.is_empty() => {
                let (id, permit, cancelled) = &mut self.attempts[at];
                if !permit.overdue {
                    *cancelled = lanes.set_overdue(*id, permit);
                }
            }
            9..=11 if !self.attempts.is_empty() => {
                let (id, permit, _) = self.attempts.remove(at);
                end(lanes, id, permit, which.is_multiple_of(3));
            }
            _ => {}
        }
    }

    /// The run loop is notified of all that it could dispatch, reclaim or wake for.
    fn check_notified(&mut self) {
        let Some(planned) = self.planned else { return };
        if self.lanes.needs_run() {
            return;
        }
        assert!(!self.lanes.permits.wastes_permit());
        let next_wake = self.lanes.next_wake();
        let earliest = [planned, next_wake].into_iter().flatten().min();
        assert!(next_wake.is_none() || planned == earliest);
        let used = self.lanes.permits.used();
        assert!(self.lanes.permits.reclaim().is_empty());
        assert_eq!(self.lanes.permits.used(), used);
    }

    fn check(&self) {
        let used = self.lanes.permits.used();
        assert!(used.iter().zip(POOLS).all(|(used, size)| *used <= size));
        assert_eq!(used.iter().sum::<usize>(), self.attempts.len());
        for number in 0..8 {
            let of_lane = self.attempts.iter().filter(|(one, ..)| *one == id(number));
            assert!(of_lane.count() <= PER_LANE);
        }
    }
}

proptest! {
    #[test]
    fn limits_hold_and_no_permit_is_wasted(
        steps in prop::collection::vec((0..12u8, 0..1000usize), 0..300),
    ) {
        let mut run = Run { lanes: lanes(8, false), attempts: Vec::new(), now: Instant::now(), planned: None };
        for (step, which) in steps {
            run.step(step, which);
            run.check();
            run.check_notified();
        }
        while let Some((id, permit)) = dispatch(&mut run.lanes) {
            run.attempts.push((id, permit, oneshot::channel().1));
        }
        run.check();
        prop_assert!(!run.lanes.permits.wastes_permit());
    }

    /// Some lanes answer within a tick and the others never, which is known after a tick and
    /// ends after ten. However many hang, the lanes that answer are dispatched as if they were
    /// alone, once each has shown which it is.
    #[test]
    fn a_lane_that_answers_never_starves(
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
        // Two more: one until a call is cancelled, one for the position in the queue.
        let max_wait = healthy.div_ceil(POOLS[0]) + 2;
        for tick in 0..warm_up + 4 * max_wait {
            lanes.reclaim();
            let dispatched: Vec<_> = std::iter::from_fn(|| dispatch(&mut lanes)).collect();
            for (one, mut permit) in dispatched {
                if hangs[number(one)] {
                    let cancelled = lanes.set_overdue(one, &mut permit);
                    hanging.push_back((tick, (one, permit, cancelled)));
                } else {
                    served[number(one)] = tick;
                    end(&mut lanes, one, permit, true);
                }
            }
            lanes.reclaim();
            for (since, (one, permit, mut cancelled)) in std::mem::take(&mut hanging) {
                if cancelled.try_recv() == Ok(()) || since + 10 <= tick {
                    end(&mut lanes, one, permit, false);
                } else {
                    hanging.push_back((since, (one, permit, cancelled)));
                }
            }
            prop_assert!(lanes.permits.used().iter().sum::<usize>() <= REQUESTS);
            for number in (0..hangs.len()).filter(|number| !hangs[*number] && tick > warm_up) {
                prop_assert!(served[number] + max_wait >= tick, "{number} waits since {}", served[number]);
            }
        }
    }
}
