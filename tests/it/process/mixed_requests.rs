//! Kills while each request holds events of many integrations, some of which take nothing:
//! what is committed together lies together, and leaves memory for rows of its own.

use std::collections::{BTreeMap, HashSet};

use aws_stand_in::Control;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use siem_client::v1;
use uuid::Uuid;

use super::Ground;
use crate::harness::{Customer, Load, Process, arrive, knob};

const CUSTOMERS: usize = 8;
const KILLS: usize = 6;
/// So little that most of the log leaves it.
const TAIL: [&str; 2] = ["--log-tail-bytes", "65536"];

/// One customer, what was published for it, and what was acked of that.
struct One {
    customer: Customer,
    load: Load,
    acked: HashSet<Uuid>,
}

impl One {
    fn new(number: usize, aws: &Control) -> Self {
        let customer = Customer::new(&format!("org-{number}"));
        customer.make_stream(aws, 1);
        match number % 2 {
            0 => customer.make_role(aws),
            _ => customer.make_role_that_may(aws, "s3:GetObject"),
        }
        Self {
            load: Load::new(&customer.organization_id, 3, number as u64),
            customer,
            acked: HashSet::new(),
        }
    }

    /// Everything that was acked arrived, and no sequence is missing.
    async fn check(&self, aws: &Control, counts: &v1::EventCounts) {
        assert_eq!(counts.accepted, counts.delivered);
        let stream_arn = &self.customer.stream_arn;
        let arrived = arrive(aws, stream_arn, counts.accepted as usize).await;
        let mut by_sequence = BTreeMap::new();
        for one in &arrived {
            let first = by_sequence.entry(one.sequence).or_insert(one);
            assert_eq!(
                first.record.data, one.record.data,
                "one sequence, one event"
            );
        }
        assert!(
            by_sequence.keys().copied().eq(1..=counts.accepted),
            "a hole"
        );
        let ids: HashSet<Uuid> = by_sequence.values().map(|one| one.id).collect();
        let lost = self.acked.difference(&ids).count();
        assert_eq!(lost, 0, "of {} acked events", self.acked.len());
    }
}

/// A request of some events of each, mixed, and where those of each begin.
fn mixed(all: &mut [One], chance: &mut StdRng) -> (Vec<v1::Event>, Vec<usize>) {
    let begins = all.iter().map(|one| one.load.made.len()).collect();
    let mut events: Vec<v1::Event> = all
        .iter_mut()
        .flat_map(|one| one.load.events(chance.random_range(0..6)))
        .collect();
    events.shuffle(chance);
    (events, begins)
}

fn note_acked(all: &mut [One], begins: &[usize]) {
    for (one, begin) in all.iter_mut().zip(begins) {
        let acked = one.load.made[*begin..].iter().map(|made| made.event_id);
        one.acked.extend(acked);
    }
}

/// Publishes, and kills the process while the last request is under way.
async fn publish_and_kill(process: Process, all: &mut [One], chance: &mut StdRng) {
    let api = process.api.clone();
    for _ in 0..chance.random_range(1..25) {
        let (events, begins) = mixed(all, chance);
        let answer = api.try_publish(events.clone()).await.unwrap();
        assert_eq!(answer.accepted as usize, events.len());
        note_acked(all, &begins);
    }
    let (events, begins) = mixed(all, chance);
    let (answer, ()) = tokio::join!(api.try_publish(events.clone()), process.kill());
    if answer.is_ok_and(|answer| answer.accepted as usize == events.len()) {
        note_acked(all, &begins);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_of_requests_of_many_integrations() {
    let ground = Ground::new().await;
    let mut chance = StdRng::seed_from_u64(knob("SEED", 7));
    let mut all: Vec<One> = (0..CUSTOMERS).map(|n| One::new(n, &ground.aws)).collect();
    for kill in 0..KILLS {
        let process = ground.start_with(&TAIL).await;
        if kill == 0 {
            for one in &all {
                process.api.configure(&one.customer).await;
            }
        }
        publish_and_kill(process, &mut all, &mut chance).await;
    }
    for one in &all {
        one.customer.make_role(&ground.aws);
    }
    let process = ground.start_with(&TAIL).await;
    for one in &all {
        // What was refused is tried again at once.
        process.api.configure(&one.customer).await;
        let organization = &one.customer.organization_id;
        let counts = process.api.until_delivered(organization).await;
        one.check(&ground.aws, &counts).await;
    }
}
