//! Simulated streams: the throughput reached and the share of records throttled.

use std::collections::VecDeque;

use super::*;
use crate::domain::status::Fault;

fn accepted(shard_id: &str) -> RecordOutcome {
    RecordOutcome::Accepted {
        shard_id: shard_id.into(),
        sequence_number: Box::default(),
    }
}

fn throttled() -> RecordOutcome {
    RecordOutcome::Failed(Fault::of_record(
        "ProvisionedThroughputExceededException",
        None,
    ))
}

const ROUND_TRIP: Duration = Duration::from_millis(24);

/// Way in which a simulated stream enforces its limits.
#[derive(Clone, Copy, Debug)]
enum Enforced {
    /// A token bucket that holds one second's worth.
    Bucket,
    /// A fresh allowance at the start of each second.
    Window,
}

/// A simulated shard. Its capacity is a multiple of the documented limits.
struct Model {
    enforced: Enforced,
    share: f64,
    left: [f64; 2],
    at: f64,
}

impl Model {
    fn new(enforced: Enforced, share: f64) -> Self {
        Self {
            enforced,
            share,
            left: [share; 2],
            at: 0.0,
        }
    }

    fn take(&mut self, now: f64, weight: usize) -> bool {
        let gained = match self.enforced {
            Enforced::Bucket => (now - self.at) * self.share,
            Enforced::Window => (now.floor() - self.at.floor()) * self.share,
        };
        self.at = now;
        self.left = self.left.map(|left| (left + gained).min(self.share));
        let cost = [0.001, weight as f64 / 1_048_576.0];
        let takes = self.left[0] >= cost[0] - 1e-9 && self.left[1] >= cost[1] - 1e-9;
        if takes {
            self.left = [self.left[0] - cost[0], self.left[1] - cost[1]];
        }
        takes
    }
}

struct InFlight {
    answered_at: Instant,
    records: Vec<(PartitionKey, usize, bool)>,
}

struct Simulation {
    start: Instant,
    now: Instant,
    rates: ShardRates,
    /// Shards with equal hash ranges, in order.
    shards: Vec<Model>,
    weights: Vec<usize>,
    sent: usize,
    in_flight: VecDeque<InFlight>,
    requests: usize,
    accepted: Vec<[f64; 2]>,
    refused: usize,
}

impl Simulation {
    fn new(shards: Vec<Model>, weights: &[usize]) -> Self {
        let start = Instant::now();
        Self {
            start,
            now: start,
            rates: ShardRates::default(),
            accepted: shards.iter().map(|_| [0.0; 2]).collect(),
            shards,
            weights: weights.to_vec(),
            sent: 0,
            in_flight: VecDeque::new(),
            requests: 0,
            refused: 0,
        }
    }

    fn shard_of(&self, key: PartitionKey) -> usize {
        let width = u128::MAX / self.shards.len() as u128;
        ((hash(key) / width) as usize).min(self.shards.len() - 1)
    }

    fn send(&mut self) {
        let now = self.now.duration_since(self.start).as_secs_f64();
        self.rates.start_round(self.now);
        let mut request = Vec::new();
        // Refused records stay for later; records of other keys are available.
        for _ in 0..700 {
            let weight = self.weights[self.sent % self.weights.len()];
            let key = PartitionKey::from(self.sent as u64 % 701) << 64 | 7;
            self.sent += 1;
            if request.len() < 500 && self.rates.admit(key, weight) {
                let shard = self.shard_of(key);
                let taken = self.shards[shard].take(now, weight);
                let accepted = &mut self.accepted[shard];
                if taken {
                    accepted[0] += 0.001;
                    accepted[1] += weight as f64 / 1_048_576.0;
                }
                self.refused += usize::from(!taken);
                request.push((key, weight, taken));
            }
        }
        if !request.is_empty() {
            self.requests += 1;
            self.in_flight.push_back(InFlight {
                answered_at: self.now + ROUND_TRIP,
                records: request,
            });
        }
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.now += Duration::from_millis(1);
            while let Some(next) = self.in_flight.front()
                && next.answered_at <= self.now
                && let Some(InFlight { records, .. }) = self.in_flight.pop_front()
            {
                // As in the worker, rates are kept only from the first refusal on.
                if self.rates.shards.is_empty() && records.iter().all(|(.., taken)| *taken) {
                    continue;
                }
                let request = records;
                let outcomes: Vec<RecordOutcome> = request
                    .iter()
                    .map(|(key, _, taken)| match taken {
                        true => {
                            let shard = self.shard_of(*key);
                            accepted(&format!("{}-{shard}", self.shards.len()))
                        }
                        false => throttled(),
                    })
                    .collect();
                let records = request.iter().zip(&outcomes);
                let records = records.map(|((key, bytes, _), outcome)| (*key, *bytes, outcome));
                self.rates.record_answer(self.now, records);
            }
            let waits = self.rates.next_admission().is_some_and(|at| at > self.now);
            let max_in_flight = match self.rates.shards.is_empty() {
                true => 2,
                false => 4,
            };
            if self.in_flight.len() < max_in_flight && !waits {
                self.send();
            }
        }
    }

    /// Runs for some seconds, and returns the share of the shards' capacity that was used and
    /// the share of the sent records that was throttled.
    fn measure(&mut self, seconds: u64) -> (f64, f64) {
        self.accepted.fill([0.0; 2]);
        self.refused = 0;
        self.run(seconds);
        let took: f64 = self.accepted.iter().map(|two| two[0].max(two[1])).sum();
        let takes: f64 = self.shards.iter().map(|shard| shard.share).sum();
        let records: f64 = self.accepted.iter().map(|two| two[0] * 1000.0).sum();
        let refused = self.refused as f64 / (records + self.refused as f64);
        (took / (takes * seconds as f64), refused)
    }
}

#[track_caller]
fn check(what: &str, min: f64, (goodput, refused): (f64, f64)) {
    assert!(goodput >= min, "{what}: goodput {goodput:.3}");
    assert!(refused <= 0.02, "{what}: refused {refused:.4}");
}

#[test]
fn a_shard_is_used_to_its_limit_and_refuses_little() {
    for (enforced, share, weights, min) in [
        (Enforced::Bucket, 1.0, &[400][..], 0.98),
        (Enforced::Bucket, 1.0, &[3000], 0.98),
        (Enforced::Bucket, 1.0, &[300, 8000, 700], 0.98),
        (Enforced::Bucket, 0.1, &[400], 0.98),
        (Enforced::Bucket, 0.7, &[3000], 0.98),
        (Enforced::Bucket, 2.5, &[700], 0.98),
        (Enforced::Window, 1.0, &[400], 0.95),
        (Enforced::Window, 1.0, &[3000], 0.95),
        (Enforced::Window, 0.5, &[700], 0.92),
    ] {
        let mut simulation = Simulation::new(vec![Model::new(enforced, share)], weights);
        simulation.run(20);
        let what = format!("{enforced:?} {share} {weights:?}");
        check(&what, min, simulation.measure(40));
    }
}

#[test]
fn the_limit_is_found_at_once_with_few_requests() {
    let model = Model::new(Enforced::Bucket, 1.0);
    let mut simulation = Simulation::new(vec![model], &[700]);
    let (goodput, refused) = simulation.measure(30);
    assert!(goodput >= 0.98, "{goodput}");
    assert!(refused <= 0.04, "{refused}");
    assert!(simulation.requests <= 12 * 30, "{}", simulation.requests);
}

#[test]
fn a_shard_that_accepts_nothing_slows_no_other() {
    let shares = [1.0, 0.0, 1.0, 0.2];
    let models = shares.map(|share| Model::new(Enforced::Bucket, share));
    let mut simulation = Simulation::new(models.into(), &[700]);
    simulation.run(20);
    let (goodput, refused) = simulation.measure(20);
    assert!(goodput >= 0.95, "{goodput}");
    assert!(refused <= 0.02, "{refused}");
}

#[test]
fn new_shards_are_used_within_seconds() {
    let model = || Model::new(Enforced::Bucket, 1.0);
    let mut simulation = Simulation::new(vec![model()], &[700]);
    simulation.run(20);
    for shards in [2, 4, 1] {
        simulation.shards = std::iter::repeat_with(model).take(shards).collect();
        for model in &mut simulation.shards {
            let elapsed = simulation.now.duration_since(simulation.start);
            model.at = elapsed.as_secs_f64();
        }
        simulation.accepted = vec![[0.0; 2]; shards];
        simulation.run(3);
        let (goodput, refused) = simulation.measure(10);
        assert!(goodput >= 0.95, "{shards} shards: {goodput}");
        assert!(refused <= 0.03, "{shards} shards: {refused}");
    }
}

#[test]
fn capacity_that_others_free_is_used_again() {
    let model = Model::new(Enforced::Bucket, 0.3);
    let mut simulation = Simulation::new(vec![model], &[700]);
    simulation.run(20);
    simulation.shards[0].share = 1.0;
    simulation.run(20);
    check("alone again", 0.95, simulation.measure(20));
}

/// Throttling that does not depend on the rate must not reduce it further and further.
#[test]
fn random_throttling_does_not_stop_the_stream() {
    let mut rates = ShardRates::default();
    let (start, mut taken, mut number) = (Instant::now(), 0, 0_u64);
    for tick in 0..60_000 {
        let now = start + Duration::from_millis(tick);
        rates.start_round(now);
        let mut request = Vec::new();
        for key in 0..100 {
            if rates.admit(key, 500) {
                number = number
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let outcome = match number >> 63 {
                    0 => accepted("0"),
                    _ => throttled(),
                };
                request.push((key, 500, outcome));
            }
        }
        if !request.is_empty() {
            taken += request
                .iter()
                .filter(|(.., outcome)| *outcome != throttled())
                .count();
            let records = request.iter();
            let records = records.map(|(key, bytes, outcome)| (*key, *bytes, outcome));
            rates.record_answer(now, records);
        }
    }
    assert!(taken >= 60 * 300, "{taken} in a minute");
}

#[test]
fn a_stream_that_accepts_nothing_is_tried_ever_less_often() {
    let model = Model::new(Enforced::Bucket, 0.0);
    let mut simulation = Simulation::new(vec![model], &[700]);
    simulation.run(30);
    assert!(simulation.rates.stalled_for() >= Some(Duration::from_secs(5)));
    let before = simulation.requests;
    simulation.run(60);
    assert!(simulation.requests <= before + 13);
    simulation.shards[0].share = 1.0;
    simulation.run(6);
    assert_eq!(simulation.rates.stalled_for(), None);
}

#[test]
fn a_shard_that_accepted_nothing_for_long_is_soon_used_again() {
    for weight in [700, 50_000, 250_000] {
        let model = Model::new(Enforced::Bucket, 1.0);
        let mut simulation = Simulation::new(vec![model], &[weight]);
        simulation.run(10);
        simulation.shards[0].share = 0.0;
        simulation.run(60);
        simulation.shards[0].share = 1.0;
        let elapsed = simulation.now.duration_since(simulation.start);
        simulation.shards[0].at = elapsed.as_secs_f64();
        // The longest pause and some time to recover.
        let (goodput, _) = simulation.measure(7);
        assert!(goodput > 0.0, "{weight}: nothing in 7 s");
        let (goodput, refused) = simulation.measure(20);
        assert!(goodput >= 0.9, "{weight}: goodput {goodput:.3}");
        assert!(refused <= 0.1, "{weight}: refused {refused:.4}");
    }
}
