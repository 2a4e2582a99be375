//! Whatever happens in whatever order.

use std::{collections::VecDeque, time::Duration};

use proptest::prelude::*;

use super::*;

struct Run {
    lanes: Lanes,
    turns: Vec<Hanging>,
    now: Instant,
    /// When turns were started last.
    seen: Option<Seen>,
}

impl Run {
    fn step(&mut self, step: u8, which: usize) {
        let lanes = &mut self.lanes;
        let one = key(which % 8);
        let at = which % self.turns.len().max(1);
        match step {
            0..=1 => {
                lanes.make_room();
                while let Some((key, turn)) = next_turn(lanes) {
                    self.turns.push((key, turn, oneshot::channel().1));
                }
                self.seen = Some(lanes.see());
            }
            2..=3 => lanes.queue(one),
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

    /// Whoever starts turns has to be told of all that it could start, make room for, or
    /// wake for.
    fn check_told(&mut self) {
        let Some(seen) = self.seen else { return };
        if self.lanes.is_due() {
            return;
        }
        assert!(!self.lanes.places.has_idle_place());
        assert_eq!(self.lanes.some_wait(), seen.some_wait);
        let next_wake = self.lanes.next_wake();
        let earliest = [seen.next_wake, next_wake].into_iter().flatten().min();
        assert!(next_wake.is_none() || seen.next_wake == earliest);
        let taken = self.lanes.places.taken();
        assert!(self.lanes.places.make_room().is_empty());
        assert_eq!(self.lanes.places.taken(), taken);
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
        let mut run = Run { lanes: lanes(8, false), turns: Vec::new(), now: Instant::now(), seen: None };
        for (step, which) in steps {
            run.step(step, which);
            run.check();
            run.check_told();
        }
        while let Some((key, turn)) = next_turn(&mut run.lanes) {
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
            let begun: Vec<_> = std::iter::from_fn(|| next_turn(&mut lanes)).collect();
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
