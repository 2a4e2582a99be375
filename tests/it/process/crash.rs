//! Ends of the process in the middle of publishing and delivering.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
};

use aws_stand_in::{Effect, Fault, Operation, When};
use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1::{self, PublishStreamRequest, publish_stream_response::Outcome};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use uuid::Uuid;

use super::Ground;
use crate::harness::{Api, Arrived, Load, arrive, knob, say, within};

/// Answers so far, over all who publish.
#[derive(Default)]
struct Answers {
    count: AtomicUsize,
    more: Notify,
}

impl Answers {
    async fn reach(&self, count: usize) {
        within("answers", async {
            while self.count.load(Ordering::SeqCst) < count {
                self.more.notified().await;
            }
        })
        .await;
    }
}

/// Requests that one who publishes waits for, at the most.
const MOST_UNANSWERED: usize = 8;

/// Publishes without pause until the server ends the stream, or is gone. Tells the ids
/// that were acked, and how the stream ended.
async fn pour(api: &Api, load: &mut Load, answers: &Answers, seed: u64) -> (Vec<Uuid>, Code) {
    let mut chance = StdRng::seed_from_u64(seed);
    let (requests, waiting) = mpsc::channel(8);
    let mut client = api.events();
    let stream = client.publish_stream(ReceiverStream::new(waiting));
    let mut stream = match within("PublishStream", stream).await {
        Ok(stream) => stream.into_inner(),
        Err(status) => return (Vec::new(), status.code()),
    };
    let first = load.made.len();
    let window = Semaphore::new(MOST_UNANSWERED);
    let sending = async {
        loop {
            window.acquire().await.unwrap().forget();
            let from = load.made.len();
            let events = load.events(chance.random_range(1..80));
            let request = PublishStreamRequest {
                request_id: format!("{from} {}", load.made.len()),
                events,
            };
            if requests.send(request).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let mut acked: Vec<std::ops::Range<usize>> = Vec::new();
    let reading = async {
        loop {
            let answer = match stream.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            };
            window.add_permits(1);
            let (from, to) = answer.request_id.split_once(' ').unwrap();
            let range = from.parse().unwrap()..to.parse().unwrap();
            let Some(Outcome::Result(result)) = answer.outcome else {
                continue;
            };
            assert_eq!(result.accepted as usize, range.len());
            acked.push(range);
            answers.count.fetch_add(1, Ordering::SeqCst);
            answers.more.notify_one();
        }
    };
    let code = tokio::select! {
        () = sending => Code::Ok,
        code = reading => code,
    };
    assert!(acked.iter().all(|range| range.start >= first));
    let ids = acked
        .into_iter()
        .flat_map(|range| &load.made[range])
        .map(|made| made.event_id);
    (ids.collect(), code)
}

/// Four who publish, each for devices of its own.
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

    /// All publish until `end` has ended the server; tells how their streams ended.
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
        let pouring = async {
            tokio::join!(
                pour(api, one, answers, seed),
                pour(api, two, answers, seed + 1),
                pour(api, three, answers, seed + 2),
                pour(api, four, answers, seed + 3),
            )
        };
        let (ended, ()) = within("the end", async { tokio::join!(pouring, end) }).await;
        let ended = [ended.0, ended.1, ended.2, ended.3];
        ended
            .into_iter()
            .map(|(acked, code)| {
                self.acked.extend(acked);
                code
            })
            .collect()
    }

    /// What arrived is whole, in order, and holds all that was acked.
    fn check(&self, arrived: &[Arrived], accepted: u64) {
        let mut by_sequence: BTreeMap<u64, &Arrived> = BTreeMap::new();
        for one in arrived {
            let first = by_sequence.entry(one.sequence).or_insert(one);
            assert_eq!(
                first.record.data, one.record.data,
                "a sequence is one event"
            );
        }
        assert!(by_sequence.keys().copied().eq(1..=accepted), "a hole");
        let ids: HashSet<Uuid> = by_sequence.values().map(|one| one.id).collect();
        assert_eq!(ids.len() as u64, accepted, "an event has one sequence");
        let lost = self.acked.difference(&ids).count();
        assert_eq!(lost, 0, "of {} acked events", self.acked.len());
        // A device's events come from one stream of requests.
        let mut last: HashMap<Uuid, u32> = HashMap::new();
        for one in by_sequence.values() {
            let before = last.insert(one.device, one.number);
            assert!(
                before < Some(one.number),
                "{before:?} before {}",
                one.number
            );
        }
    }
}

fn fail_records(seed: u64) -> Fault {
    Fault {
        operation: Some(Operation::PutRecords),
        target: None,
        calls: None,
        when: When::Before,
        effect: Effect::FailRecords {
            probability: 0.2,
            seed,
            code: "InternalFailure".to_owned(),
        },
    }
}

/// Records that a process may have under way for one integration, by its settings.
const IN_FLIGHT: u64 = 4 * 100;

/// From one thread of each kind to three, whatever processors there are.
fn threads(round: u64) -> [String; 2] {
    let count = 1 + round % 3;
    ["intake", "delivery"].map(|kind| format!("--{kind}-threads={count}"))
}

/// How things stood when a process was killed.
struct Killed {
    /// Records that the stream had.
    stored: u64,
    /// Events that were known to be recorded as delivered.
    settled: u64,
}

/// What a new process sends again is what the one before had not recorded.
fn check_repeats(arrived: &[Arrived], kills: &[Killed]) {
    let mut seen = HashSet::new();
    let mut lives = kills.iter().peekable();
    let (mut repeats, mut most) = (0, 0);
    for one in arrived {
        while let Some(killed) = lives.next_if(|killed| killed.stored <= one.record.index) {
            (repeats, most) = (0, seen.len() as u64 - killed.settled + IN_FLIGHT);
        }
        if !seen.insert(one.sequence) {
            repeats += 1;
            assert!(repeats <= most, "{repeats} repeats, where {most} were open");
        }
    }
}

/// `SIEM_RELAY_TEST_KILLS` and `SIEM_RELAY_TEST_SEED` make it longer, and another one.
#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_lose_nothing_that_was_acked() {
    let (rounds, seed) = (knob("KILLS", 100), knob("SEED", 51));
    let ground = Ground::new().await;
    ground.aws.add_fault(fail_records(seed)).unwrap();
    let mut chance = StdRng::seed_from_u64(seed);
    let mut publishers = Publishers::new();
    let mut kills: Vec<Killed> = Vec::new();
    for round in 0..rounds {
        let threads = threads(round);
        let limit = ["--max-records-per-request", "100"];
        let process = ground
            .start_with(&[&limit, &threads.each_ref().map(String::as_str)[..]].concat())
            .await;
        let api = process.api.clone();
        if round == 0 {
            api.configure(&ground.customer).await;
        } else if kills.last().is_some_and(|killed| killed.settled > 0) {
            let status = api.get("acme").await.status.unwrap();
            assert_eq!(status.status(), v1::Status::Active);
        }
        let answers = Answers::default();
        let (some, more) = (chance.random_range(0..20), chance.random_range(0..3));
        let kill = async {
            answers.reach(some).await;
            let settled = api.get("acme").await.counts.unwrap().delivered;
            answers.reach(some + more).await;
            process.kill().await;
            let stored = ground.stored();
            kills.push(Killed { stored, settled });
        };
        publishers
            .publish_until(&api, seed + 1000 * round, &answers, kill)
            .await;
    }
    ground.aws.clear_faults();
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, counts.accepted);
    let status = process.api.get("acme").await.status.unwrap();
    assert_eq!(status.status(), v1::Status::Active);
    let enough = counts.accepted as usize;
    let arrived = arrive(&ground.aws, &ground.customer.stream_arn, enough).await;
    publishers.check(&arrived, counts.accepted);
    check_repeats(&arrived, &kills);
    let repeats = arrived.len() - enough;
    say(&format!(
        "seed {seed}: {rounds} kills, {} events acked, {repeats} sent again",
        publishers.acked.len()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn terminations_under_load_answer_settle_and_send_nothing_twice() {
    let ground = Ground::new().await;
    ground.aws.add_fault(fail_records(60)).unwrap();
    let mut publishers = Publishers::new();
    for round in 0..3 {
        let threads = threads(round);
        let process = ground
            .start_with(&threads.each_ref().map(String::as_str))
            .await;
        if round == 0 {
            process.api.configure(&ground.customer).await;
        }
        let api = process.api.clone();
        let answers = Answers::default();
        let terminate = async {
            answers.reach(40).await;
            process.terminate().await;
            let (status, log) = process.ended().await;
            assert!(status.success(), "{status}: {log}");
        };
        let ends = publishers
            .publish_until(&api, 5000 + 1000 * round, &answers, terminate)
            .await;
        assert_eq!(ends, [Code::Unavailable; 4]);
    }
    ground.aws.clear_faults();
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(ground.stored(), counts.accepted, "nothing was sent twice");
    let enough = counts.accepted as usize;
    let arrived = arrive(&ground.aws, &ground.customer.stream_arn, enough).await;
    publishers.check(&arrived, counts.accepted);
}
