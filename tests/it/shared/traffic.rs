//! Publishing that goes on through faults, and the check of what came of it.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use uuid::Uuid;

use super::cluster::Cluster;
use crate::harness::{
    Api, DeliveredEvent, Load, Process, Published, check_acked, print, read_events, reason,
    run_verify, with_timeout,
};

/// Limit of an answer, whatever hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Wait after a request that failed.
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// Number of requests by their outcome.
#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    acked: u64,
    refused: u64,
}

/// Outcome of one publisher's requests.
#[derive(Default)]
struct Sent {
    /// Acked events, in the order of publishing.
    acked: Vec<Published>,
    slowest: Duration,
}

/// Publishers, each with devices of its own and one request at a time, through any instance.
pub struct Traffic {
    instances: watch::Sender<Vec<Api>>,
    outcomes: watch::Receiver<Outcomes>,
    stop: CancellationToken,
    publishers: JoinSet<Sent>,
}

impl Traffic {
    /// Starts publishing for the cluster's customer.
    pub fn start(cluster: &Cluster, publishers: u64, instances: &[&Process]) -> Self {
        let (instances, used) = watch::channel(apis(instances));
        let (counted, outcomes) = watch::channel(Outcomes::default());
        let stop = CancellationToken::new();
        let organization_id = &cluster.customer.organization_id;
        let publishers = (0..publishers).map(|seed| {
            let load = Load::new(organization_id, 5, seed);
            publish(load, seed, used.clone(), counted.clone(), stop.clone())
        });
        let publishers = publishers.collect();
        Self {
            instances,
            outcomes,
            stop,
            publishers,
        }
    }

    /// Publishes through these instances from now on.
    pub fn use_instances(&self, instances: &[&Process]) {
        self.instances.send_replace(apis(instances));
    }

    /// Waits until this number of further requests are acked.
    pub async fn until_acked(&self, requests: u64) {
        let before = self.outcomes.borrow().acked;
        let mut outcomes = self.outcomes.clone();
        let acked = outcomes.wait_for(|outcomes| outcomes.acked >= before + requests);
        with_timeout("acked requests", acked).await.unwrap();
    }

    /// Waits until this number of further requests are refused, or have an unknown outcome.
    pub async fn until_refused(&self, requests: u64) {
        let before = self.outcomes.borrow().refused;
        let mut outcomes = self.outcomes.clone();
        let refused = outcomes.wait_for(|outcomes| outcomes.refused >= before + requests);
        with_timeout("refused requests", refused).await.unwrap();
    }

    /// Stops publishing, waits until everything that was accepted is delivered, and checks the
    /// customer's stream: no acked event is missing, no sequence either, each device's events are in
    /// order but for repetitions, and the counts are right.
    pub async fn check(self, cluster: &Cluster, api: &Api) {
        self.stop.cancel();
        let outcomes = *self.outcomes.borrow();
        let sent = with_timeout("publishers", self.publishers.join_all()).await;
        let acked = sent.iter().flat_map(|sent| &sent.acked);
        let acked: HashSet<Uuid> = acked.map(|published| published.event_id).collect();
        assert!(!acked.is_empty());
        let slowest = sent.iter().map(|sent| sent.slowest).max().unwrap();

        let customer = &cluster.customer;
        let mut accepted = acked.len() as u64;
        let (counts, arrived) = loop {
            let counts = api.until_counts(&customer.organization_id, |counts| {
                counts.pending == 0 && counts.accepted >= accepted
            });
            let counts = counts.await;
            let count = counts.accepted as usize;
            let arrived = read_events(&cluster.aws, &customer.stream_arn, count).await;
            // Counts lag, and an event of unknown outcome may land late.
            accepted = arrived.iter().map(|event| event.sequence).max().unwrap();
            if accepted == counts.accepted {
                break (counts, arrived);
            }
        };
        print(&format!(
            "{outcomes:?}, slowest {slowest:?}; {} events acked, {accepted} accepted, {} repeated",
            acked.len(),
            arrived.len() as u64 - accepted,
        ));
        assert_eq!(counts.delivered, accepted, "{counts:?}");
        let ordered = check_acked(&arrived, accepted, &acked);
        check_first_in_order(&arrived);
        check_published_order(&ordered, &sent);
        run_verify(
            &cluster.aws,
            &cluster.aws_url(),
            &customer.stream_arn,
            accepted,
        )
        .await;
    }
}

fn apis(instances: &[&Process]) -> Vec<Api> {
    instances
        .iter()
        .map(|instance| instance.api.clone())
        .collect()
}

/// Publishes until it is stopped. No event is published twice.
async fn publish(
    mut load: Load,
    seed: u64,
    instances: watch::Receiver<Vec<Api>>,
    counted: watch::Sender<Outcomes>,
    stop: CancellationToken,
) -> Sent {
    let mut random = StdRng::seed_from_u64(seed);
    let mut sent = Sent::default();
    while !stop.is_cancelled() {
        let api = {
            let instances = instances.borrow();
            instances[random.random_range(0..instances.len())].clone()
        };
        let before = load.made.len();
        let events = load.events(random.random_range(1..60));
        let began = Instant::now();
        let answer = tokio::time::timeout(ANSWER_LIMIT, api.try_publish(events)).await;
        sent.slowest = sent.slowest.max(began.elapsed());
        match answer.expect("an answer within its limit") {
            Ok(answer) => {
                assert_eq!((answer.rejections.len(), answer.unconfigured), (0, 0));
                sent.acked.extend_from_slice(&load.made[before..]);
                counted.send_modify(|outcomes| outcomes.acked += 1);
            }
            Err(status) => {
                check_refusal(&status);
                counted.send_modify(|outcomes| outcomes.refused += 1);
                tokio::time::sleep(RETRY_WAIT).await;
            }
        }
    }
    sent
}

/// Checks that a refusal is temporary and, unless its connection failed, says so with a delay.
fn check_refusal(status: &Status) {
    // The client gives a failed connection any code, and the error behind it.
    if status.source().is_some() {
        return;
    }
    let details = status.get_error_details();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let reason = reason(status);
    let temporary = ["STORAGE_FAILED", "OUTCOME_UNKNOWN", "SHUTTING_DOWN"];
    assert!(temporary.contains(&reason.as_str()), "{status:?}");
    let delay = details.retry_info().and_then(|retry| retry.retry_delay);
    assert!(delay.is_some(), "{status:?}");
}

/// Checks that the first copies of each device's events arrived in the order of their sequences.
fn check_first_in_order(arrived: &[DeliveredEvent]) {
    let mut seen = HashSet::new();
    let first: Vec<DeliveredEvent> = arrived
        .iter()
        .filter(|event| seen.insert(event.sequence))
        .cloned()
        .collect();
    crate::harness::check_in_order(&first);
}

/// Checks that by `sequence` the acked events of each device are in the order of publishing. Others
/// may have landed later.
fn check_published_order(ordered: &[DeliveredEvent], sent: &[Sent]) {
    let mut last: HashMap<Uuid, u32> = HashMap::new();
    let acked = sent.iter().flat_map(|sent| &sent.acked);
    let acked: HashSet<Uuid> = acked.map(|published| published.event_id).collect();
    for event in ordered.iter().filter(|event| acked.contains(&event.id)) {
        let before = last.insert(event.device, event.number).unwrap_or_default();
        assert!(before < event.number, "{} after {before}", event.number);
    }
}
