//! Kills and terminations of the process while it accepts and delivers events.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
};

use aws_stand_in::Operation;
use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1::{self, ErrorReason, PublishStreamRequest, publish_stream_response::Outcome};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{
    Api, DeliveredEvent, Load, ProcessEnv, check_acked, failing_records, fault, parameter, print,
    read_events, with_timeout,
};

/// Answers so far, to all publishers.
#[derive(Default)]
struct Answers {
    count: AtomicUsize,
    more: Notify,
}

impl Answers {
    async fn reach(&self, count: usize) {
        with_timeout("answers", async {
            while self.count.load(Ordering::SeqCst) < count {
                self.more.notified().await;
            }
        })
        .await;
    }
}

/// Requests of a publisher that may be without an answer.
const MAX_UNANSWERED: usize = 8;

/// Publishes without pause until the stream ends, by the server or with it. Returns the ids of acked
/// events, and the status code of the stream.
async fn publish(api: &Api, load: &mut Load, answers: &Answers, seed: u64) -> (Vec<Uuid>, Code) {
    let mut random = StdRng::seed_from_u64(seed);
    let (requests, waiting) = mpsc::channel(8);
    let mut client = api.events();
    let stream = client.publish_stream(ReceiverStream::new(waiting));
    let mut stream = match with_timeout("PublishStream", stream).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (Vec::new(), status.code()),
    };
    let first = load.made.len();
    let window = Semaphore::new(MAX_UNANSWERED);
    let sending = async {
        loop {
            window.acquire().await.unwrap().forget();
            let from = load.made.len();
            let events = load.events(random.random_range(1..80));
            let request = PublishStreamRequest {
                request_id: format!("{from} {}", load.made.len()),
                events,
            };
            if requests.send(request).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut acked: Vec<usize> = Vec::new();
    let reading = async {
        loop {
            let answer = match stream.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            };
            window.add_permits(1);
            let (from, to) = answer.request_id.split_once(' ').unwrap();
            let range: std::ops::Range<usize> = from.parse().unwrap()..to.parse().unwrap();
            let Some(Outcome::Result(result)) = answer.outcome else {
                continue;
            };
            let rejected: HashSet<usize> = result
                .rejections
                .iter()
                .filter(|rejection| rejection.reason() == ErrorReason::Overloaded)
                .map(|rejection| range.start + rejection.index as usize)
                .collect();
            assert_eq!(result.accepted as usize + rejected.len(), range.len());
            acked.extend(range.filter(|index| !rejected.contains(index)));
            answers.count.fetch_add(1, Ordering::SeqCst);
            answers.more.notify_one();
        }
    };
    let code = tokio::select! {
        () = sending => Code::Ok,
        code = reading => code,
    };
    assert!(acked.iter().all(|index| *index >= first));
    let ids = acked.into_iter().map(|index| load.made[index].event_id);
    (ids.collect(), code)
}

/// Four publishers, each for its own devices.
struct Publishers {
    loads: Vec<Load>,
    acked: HashSet<Uuid>,
}

impl Publishers {
    fn new() -> Self {
        Self {
            loads: (0..4).map(|n| Load::new("acme", 6, 100 + n)).collect(),
            acked: HashSet::new(),
        }
    }

    /// Publishes until `end` has ended the server. Returns the status codes of the streams.
    async fn publish_until(
        &mut self,
        api: &Api,
        seed: u64,
        answers: &Answers,
        end: impl Future<Output = ()>,
    ) -> Vec<Code> {
        let [one, two, three, four] = &mut self.loads[..] else {
            unreachable!("there are four");
        };
        let publishing = async {
            tokio::join!(
                publish(api, one, answers, seed),
                publish(api, two, answers, seed + 1),
                publish(api, three, answers, seed + 2),
                publish(api, four, answers, seed + 3),
            )
        };
        let (ended, ()) = with_timeout("the end", async { tokio::join!(publishing, end) }).await;
        let ended = [ended.0, ended.1, ended.2, ended.3];
        ended
            .into_iter()
            .map(|(acked, code)| {
                self.acked.extend(acked);
                code
            })
            .collect()
    }

    /// Checks that the stream has every acked event, and each device's events in order.
    fn check(&self, arrived: &[DeliveredEvent], accepted: u64) {
        let ordered = check_acked(arrived, accepted, &self.acked);
        // Each device belongs to one publisher, and so to one stream of requests.
        let mut last: HashMap<Uuid, u32> = HashMap::new();
        for event in &ordered {
            let before = last.insert(event.device, event.number);
            assert!(
                before < Some(event.number),
                "{before:?} before {}",
                event.number
            );
        }
    }
}

fn fail_records(env: &ProcessEnv, seed: u64) {
    let failing = fault(Operation::PutRecords, None, failing_records(0.2, seed));
    env.aws.add_fault(failing).unwrap();
}

/// Records in flight that the settings allow for one integration.
const IN_FLIGHT: u64 = 4 * 100;

/// Settings of one to three threads of each kind.
fn threads(round: u64) -> [String; 2] {
    let count = 1 + round % 3;
    ["intake", "delivery"].map(|kind| format!("--{kind}-threads={count}"))
}

/// State at the kill of a process.
struct Killed {
    /// Records in the stream.
    stored: u64,
    /// Events that were counted as delivered shortly before.
    settled: u64,
}

/// Checks that each process sends again no more than the one before it had not recorded, which is
/// what was delivered and not settled, and what was in flight.
fn check_repeats(arrived: &[DeliveredEvent], kills: &[Killed]) {
    let mut seen = HashSet::new();
    let mut kills = kills.iter().peekable();
    let (mut repeats, mut limit) = (0, 0);
    for event in arrived {
        while let Some(killed) = kills.next_if(|killed| killed.stored <= event.record.index) {
            (repeats, limit) = (0, seen.len() as u64 - killed.settled + IN_FLIGHT);
        }
        if !seen.insert(event.sequence) {
            repeats += 1;
            assert!(repeats <= limit, "{repeats} repeats, of {limit} allowed");
        }
    }
}

/// `SIEM_RELAY_TEST_KILLS` sets the number of kills, `SIEM_RELAY_TEST_SEED` the seed.
#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_lose_no_acked_event() {
    let (rounds, seed) = (parameter("KILLS", 100), parameter("SEED", 51));
    let env = ProcessEnv::new().await;
    fail_records(&env, seed);
    let mut random = StdRng::seed_from_u64(seed);
    let mut publishers = Publishers::new();
    let mut kills: Vec<Killed> = Vec::new();
    for round in 0..rounds {
        let threads = threads(round);
        let limit = ["--max-records-per-request", "100"];
        let process = env
            .start_with(&[&limit, &threads.each_ref().map(String::as_str)[..]].concat())
            .await;
        let api = process.api.clone();
        if round == 0 {
            api.configure(&env.customer).await;
        } else if kills.last().is_some_and(|killed| killed.settled > 0) {
            let status = api.get("acme").await.status.unwrap();
            assert_eq!(status.status(), v1::Status::Active);
        }
        let answers = Answers::default();
        let (some, more) = (random.random_range(0..20), random.random_range(0..3));
        let kill = async {
            answers.reach(some).await;
            let settled = api.get("acme").await.counts.unwrap().delivered;
            answers.reach(some + more).await;
            process.kill().await;
            let stored = env.stored();
            kills.push(Killed { stored, settled });
        };
        publishers
            .publish_until(&api, seed + 1000 * round, &answers, kill)
            .await;
    }
    env.aws.clear_faults();
    let process = env.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, counts.accepted);
    let status = process.api.get("acme").await.status.unwrap();
    assert_eq!(status.status(), v1::Status::Active);
    let enough = counts.accepted as usize;
    let arrived = read_events(&env.aws, &env.customer.stream_arn, enough).await;
    publishers.check(&arrived, counts.accepted);
    check_repeats(&arrived, &kills);
    let repeats = arrived.len() - enough;
    print(&format!(
        "seed {seed}: {rounds} kills, {} events acked, {repeats} sent again",
        publishers.acked.len()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_sends_nothing_twice() {
    let env = ProcessEnv::new().await;
    fail_records(&env, 60);
    let mut publishers = Publishers::new();
    for round in 0..3 {
        let threads = threads(round);
        let process = env
            .start_with(&threads.each_ref().map(String::as_str))
            .await;
        if round == 0 {
            process.api.configure(&env.customer).await;
        }
        let api = process.api.clone();
        let answers = Answers::default();
        let terminate = async {
            answers.reach(40).await;
            process.stop().await;
        };
        let ends = publishers
            .publish_until(&api, 5000 + 1000 * round, &answers, terminate)
            .await;
        assert_eq!(ends, [Code::Unavailable; 4]);
    }
    env.aws.clear_faults();
    let process = env.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(env.stored(), counts.accepted, "nothing was sent twice");
    let enough = counts.accepted as usize;
    let arrived = read_events(&env.aws, &env.customer.stream_arn, enough).await;
    publishers.check(&arrived, counts.accepted);
}
