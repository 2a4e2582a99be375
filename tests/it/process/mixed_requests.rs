//! Kills while each request has events of many integrations, half of which cannot be delivered:
//! events that are committed together share a row, and later move to rows of their integrations.

use std::collections::HashSet;

use aws_stand_in::Control;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use siem_client::v1;
use uuid::Uuid;

use crate::harness::{Customer, Load, Process, ProcessEnv, check_acked, parameter, read_events};

const CUSTOMERS: usize = 8;
const KILLS: usize = 6;
/// A tail so small that most of the log is not in it.
const TAIL: [&str; 2] = ["--log-tail-bytes", "65536"];

/// A customer with its published and acked events.
struct CustomerLoad {
    customer: Customer,
    load: Load,
    acked: HashSet<Uuid>,
}

impl CustomerLoad {
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

    /// Checks that every acked event arrived, and that no sequence is missing.
    async fn check(&self, aws: &Control, counts: &v1::EventCounts) {
        assert_eq!(counts.accepted, counts.delivered);
        let stream_arn = &self.customer.stream_arn;
        let arrived = read_events(aws, stream_arn, counts.accepted as usize).await;
        check_acked(&arrived, counts.accepted, &self.acked);
    }
}

/// A request with events of each customer, shuffled, and the position in each load where they begin.
fn mixed(all: &mut [CustomerLoad], random: &mut StdRng) -> (Vec<v1::Event>, Vec<usize>) {
    let begins = all.iter().map(|each| each.load.made.len()).collect();
    let mut events: Vec<v1::Event> = all
        .iter_mut()
        .flat_map(|each| each.load.events(random.random_range(0..6)))
        .collect();
    events.shuffle(random);
    (events, begins)
}

fn add_acked(all: &mut [CustomerLoad], begins: &[usize]) {
    for (each, begin) in all.iter_mut().zip(begins) {
        let acked = each.load.made[*begin..].iter().map(|made| made.event_id);
        each.acked.extend(acked);
    }
}

/// Publishes, and kills the process while the last request is in flight.
async fn publish_and_kill(process: Process, all: &mut [CustomerLoad], random: &mut StdRng) {
    let api = process.api.clone();
    for _ in 0..random.random_range(1..25) {
        let (events, begins) = mixed(all, random);
        let answer = api.try_publish(events.clone()).await.unwrap();
        assert_eq!(answer.accepted as usize, events.len());
        add_acked(all, &begins);
    }
    let (events, begins) = mixed(all, random);
    let (answer, ()) = tokio::join!(api.try_publish(events.clone()), process.kill());
    if answer.is_ok_and(|answer| answer.accepted as usize == events.len()) {
        add_acked(all, &begins);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_no_acked_event_of_mixed_requests() {
    let env = ProcessEnv::new().await;
    let mut random = StdRng::seed_from_u64(parameter("SEED", 7));
    let mut all: Vec<CustomerLoad> = (0..CUSTOMERS)
        .map(|n| CustomerLoad::new(n, &env.aws))
        .collect();
    for kill in 0..KILLS {
        let process = env.start_with(&TAIL).await;
        if kill == 0 {
            for each in &all {
                process.api.configure(&each.customer).await;
            }
        }
        publish_and_kill(process, &mut all, &mut random).await;
    }
    for each in &all {
        each.customer.make_role(&env.aws);
    }
    let process = env.start_with(&TAIL).await;
    for each in &all {
        // A Configure ends the backoff of a refused one.
        process.api.configure(&each.customer).await;
        let organization = &each.customer.organization_id;
        let counts = process.api.until_delivered(organization).await;
        each.check(&env.aws, &counts).await;
    }
}
