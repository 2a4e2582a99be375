//! The real worker, store and AWS SDK through hours of simulated time: how often roles
//! are assumed.

mod defect;

use std::{collections::HashMap, path::Path};

use futures_util::future::join_all;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::advance};
use uuid::Uuid;

use super::*;
use crate::{
    domain::{
        arn::{RoleArn, StreamArn},
        audit::Actor,
        event::{Format, testing},
        external_id::ExternalId,
        integration::Integration,
        organization::OrganizationId,
        rights::Rights,
        segment::Segments,
    },
    sink::{
        AwsSink, ExternalIds, Unreadable,
        testing::{Aws, Reply, Request},
    },
    store::{AuditLimits, Configure, Keyring, StoreOptions},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// Number of integrations.
const INTEGRATIONS: usize = 1000;

struct Ids(Store);

impl ExternalIds for Ids {
    fn open(&self, integration: &Integration) -> Result<ExternalId, Unreadable> {
        let opened = self.0.open_external_id(integration);
        opened.map_err(|_| Unreadable)
    }

    fn open_previous(&self, integration: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        let opened = self.0.open_previous_external_id(integration)?;
        Some(opened.map_err(|_| Unreadable))
    }

    fn current_accepted(&self, _: &Integration) {}

    fn is_current(&self, integration: &Integration) -> bool {
        let current = self.0.get(integration.integration_id);
        current.is_some_and(|current| current.integration.version == integration.version)
    }
}

/// A service without its API. Once it runs, only the test advances its clock.
struct Simulation {
    aws: Aws,
    store: Store,
    worker: Worker<AwsSink>,
    _run: JoinHandle<()>,
    _dir: TempDir,
}

impl Simulation {
    /// Integrations with pending events from the start.
    async fn start(integrations: usize, events: u32, aws: Aws) -> Self {
        Self::start_with(Duration::from_millis(1), integrations, events, aws).await
    }

    async fn start_with(
        settle_linger: Duration,
        integrations: usize,
        events: u32,
        aws: Aws,
    ) -> Self {
        let dir = TempDir::new().unwrap();
        let options = options_of_store(dir.path(), settle_linger);
        let key = Keyring::of(&[7; 32]);
        let gate = Gate::default();
        let store = Store::open(options, &key, gate.clone()).await.unwrap();
        join_all((0..integrations).map(|which| configure(&store, which, 0))).await;
        // Every tenth one is changing its external ID.
        join_all(
            (0..integrations)
                .step_by(10)
                .map(|which| configure(&store, which, 1)),
        )
        .await;
        let sink = aws.sink_with(Arc::new(Ids(store.clone())), gate.clone());
        let simulation = Self {
            worker: Worker::new(store.clone(), sink, gate, options_of_worker()),
            store,
            aws,
            _run: tokio::spawn(std::future::pending()),
            _dir: dir,
        };
        tokio::time::pause();
        simulation.append(integrations, events).await;
        let worker = simulation.worker.clone();
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        Self {
            _run: tokio::spawn(async move { worker.run(stop, kill).await }),
            ..simulation
        }
    }

    async fn append(&self, integrations: usize, events: u32) {
        let mut segments = Segments::default();
        for which in 0..integrations {
            let id = self.store.id_of(&organization(which)).unwrap();
            push(&mut segments, id, events);
        }
        let append = async {
            let durable = self.store.append(segments, None).await;
            durable.unwrap().await.unwrap()
        };
        // Not idle meanwhile, or a paused clock would jump ahead.
        let busy = async {
            loop {
                moment().await;
            }
        };
        tokio::select! {
            () = append => {}
            () = busy => {}
        }
    }

    /// Advances the clock in steps, and runs what is due at each.
    async fn pass(&self, time: Duration, step: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.settle_down().await;
            advance(step).await;
        }
    }

    /// Runs until no attempt is in progress.
    async fn settle_down(&self) {
        let (mut count, mut unchanged) = (0, 0);
        while unchanged < 3 {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
            let now = self.aws.count();
            if now == count && self.worker.shared.tasks.is_empty() {
                unchanged += 1;
            } else {
                unchanged = 0;
                moment().await;
            }
            count = now;
        }
    }

    fn is_pending(&self) -> bool {
        let all = self
            .store
            .page("", usize::MAX, &Rights::UNLIMITED, |_| true);
        all.iter().any(|one| one.progress.pending() > 0)
    }

    /// Passes short moments until nothing is pending.
    async fn until_delivered(&self) {
        while self.is_pending() {
            self.pass(Duration::from_millis(10), Duration::from_millis(10))
                .await;
        }
    }

    /// No lane is open, once everything is delivered.
    async fn assert_no_lane_is_left(&self) {
        let lanes = || self.worker.shared.lanes();
        for _ in 0..100 {
            if lanes().is_empty() {
                assert_eq!(lanes().loaded_bytes, 0);
                return;
            }
            self.pass(Duration::from_millis(10), Duration::from_millis(10))
                .await;
        }
        panic!("{:?}", lanes());
    }
}

/// A moment of both times: the simulated, and much more of the real one that the
/// database works in, which passes on the way through another thread.
async fn moment() {
    for _ in 0..10 {
        let elsewhere = tokio::task::spawn_blocking(std::thread::yield_now);
        elsewhere.await.unwrap();
    }
    advance(Duration::from_millis(1)).await;
}

fn organization(which: usize) -> String {
    format!("org-{which}")
}

async fn configure(store: &Store, which: usize, change: u32) {
    let account = 200_000_000_000 + which;
    let role = format!("arn:aws:iam::{account}:role/customer-{which}");
    let stream = format!("arn:aws:kinesis:us-east-1:222222222222:stream/customer-{which}");
    let configure = Configure {
        organization_id: OrganizationId::new(&organization(which)).unwrap(),
        stream_arn: StreamArn::parse(&stream).unwrap(),
        role_arn: RoleArn::parse(&role).unwrap(),
        external_id: Some(ExternalId::parse(format!("external-id-{change}-of-{which}")).unwrap()),
        keep_previous: change > 0,
        issued_only: false,
        etag: None,
        actor: Actor::named("test"),
    };
    store.configure(configure).await.unwrap();
}

fn push(segments: &mut Segments, id: IntegrationId, events: u32) {
    for index in 0..events {
        let device = Uuid::from_u128(u128::from(index));
        let pushed: Result<(), ()> = segments.push(id, |out| {
            testing::store(device, index, out);
            Ok(())
        });
        pushed.unwrap();
    }
}

fn options_of_store(folder: &Path, settle_linger: Duration) -> StoreOptions {
    StoreOptions {
        data_dir: folder.to_owned(),
        disk_reserve_bytes: 64 << 20,
        log_tail_bytes: 64 << 20,
        commit_linger: Duration::ZERO,
        failing_after: Duration::from_secs(60),
        backlog_bytes: u64::MAX,
        settle_linger,
        tombstones: 2,
        audit: AuditLimits {
            max_age: Duration::MAX,
            max_entries: u64::MAX,
        },
    }
}

fn options_of_worker() -> WorkerOptions {
    WorkerOptions {
        requests_in_flight: 64,
        requests_in_flight_per_integration: 4,
        send_linger: Duration::from_millis(20),
        stalled_after: Duration::from_secs(60),
        limits: BatchLimits {
            records: 5,
            bytes: 1 << 20,
            overhead_bytes: 0,
        },
        backoff: BackoffPolicy {
            refused_first: Duration::from_secs(5),
            refused_max: Duration::from_secs(300),
        },
        window_bytes_per_integration: 1 << 20,
        window_bytes: 64 << 20,
        retention: Retention {
            age: 24 * HOUR,
            bytes: 1 << 30,
        },
        format: Format::new("https://example.com", "com.example").unwrap(),
    }
}

fn denied(request: &Request) -> Reply {
    match request {
        Request::AssumeRole { .. } => Reply::Error("AccessDenied"),
        _ => Reply::Ok,
    }
}

/// Number of AssumeRole calls for each role within the hour from `from`.
fn in_the_hour(assumed: &HashMap<String, Vec<Instant>>, from: Instant) -> Vec<usize> {
    let hour = from..from + HOUR;
    assumed
        .values()
        .map(|calls| calls.iter().filter(|at| hour.contains(at)).count())
        .collect()
}

#[tokio::test]
async fn broken_integrations_cost_at_most_20_calls_an_hour_each() {
    // Several per permit; an hour of a thousand would take most of the time of all tests.
    let integrations = 250;
    let simulation = Simulation::start(integrations, 3, Aws::new(denied)).await;
    let start = Instant::now();
    simulation.pass(MINUTE, Duration::from_secs(1)).await;
    let assumed = simulation.aws.assumed();
    assert_eq!(assumed.len(), integrations, "every one was tried");
    let first: Vec<_> = assumed.values().map(Vec::len).collect();
    assert!(first.iter().all(|calls| *calls >= 8), "{first:?}");

    simulation.pass(HOUR, Duration::from_secs(5)).await;
    let counts = in_the_hour(&simulation.aws.assumed(), start + MINUTE);
    assert!(
        counts.iter().all(|calls| (10..=20).contains(calls)),
        "{counts:?}"
    );
    assert_eq!(
        *simulation.worker.identity_state().borrow(),
        IdentityState::Good
    );
}

#[tokio::test]
async fn a_thousand_healthy_integrations_assume_their_role_once_each() {
    let simulation = Simulation::start(INTEGRATIONS, 30, Aws::new(|_| Reply::Ok)).await;
    simulation.until_delivered().await;
    let assumed = simulation.aws.assumed();
    assert_eq!(assumed.len(), INTEGRATIONS);
    assert!(assumed.values().all(|calls| calls.len() == 1));
    simulation.assert_no_lane_is_left().await;
}

#[tokio::test]
async fn roles_are_seldom_tried_while_our_identity_is_refused() {
    let simulation = Simulation::start(20, 1, Aws::new(|_| Reply::Ok)).await;
    simulation.until_delivered().await;
    simulation.aws.set_script(denied);
    advance(HOUR - MINUTE).await;
    // Half of them have pending events.
    simulation.append(10, 1).await;
    let start = Instant::now();
    simulation.pass(HOUR + MINUTE, Duration::from_secs(1)).await;
    assert_eq!(
        *simulation.worker.identity_state().borrow(),
        IdentityState::MayNotAssume
    );
    let counts = in_the_hour(&simulation.aws.assumed(), start + MINUTE);
    assert!(counts.iter().all(|calls| *calls <= 20), "{counts:?}");
    for which in 0..20 {
        let status = simulation.store.find(&organization(which)).unwrap().status;
        let expected = match which {
            0..10 => (
                Status::Failing,
                Some(crate::domain::status::Reason::ServiceUnavailable),
            ),
            _ => (Status::Active, None),
        };
        assert_eq!(
            (status.status, status.reason),
            expected,
            "{which} {status:?}"
        );
    }
    assert!(simulation.is_pending());
    simulation.aws.set_script(|_| Reply::Ok);
    let since = Instant::now();
    // This is noticed within a minute, and ends every backoff.
    simulation.pass(MINUTE + 10 * SECOND, SECOND).await;
    // The last results may be on their way to the storage, whose thread has its own time.
    simulation.until_delivered().await;
    assert!(since.elapsed() < 2 * MINUTE);
}

/// A call that hangs gives its place up after a second, so that each is tried again only after
/// the others.
#[tokio::test]
async fn a_thousand_integrations_of_which_nothing_is_delivered_look_active_no_longer() {
    let simulation = Simulation::start(INTEGRATIONS, 3, Aws::new(|_| Reply::Ok)).await;
    simulation.until_delivered().await;
    let statuses = || {
        let all = simulation
            .store
            .page("", usize::MAX, &Rights::UNLIMITED, |_| true);
        all.into_iter().map(|one| one.status.status)
    };
    assert!(statuses().all(|status| status == Status::Active));
    simulation.aws.set_script(|_| Reply::Hang);
    simulation.append(INTEGRATIONS, 3).await;
    let wait = async |seconds: u64| {
        for _ in 0..seconds * 10 {
            moment().await;
            advance(SECOND / 10).await;
        }
    };
    wait(40).await;
    assert!(statuses().all(|status| status == Status::Active));
    wait(40).await;
    // The database takes its own time to record them.
    for _ in 0..10_000 {
        if statuses().all(|status| status == Status::Failing) {
            return;
        }
        moment().await;
    }
    let active = statuses().filter(|status| *status != Status::Failing);
    panic!("{} look well", active.count());
}

#[tokio::test]
async fn refused_events_are_unloaded_before_the_refusal_is_recorded() {
    let (integrations, aws) = (20, Aws::new(denied));
    let simulation = Simulation::start_with(HOUR, integrations, 3, aws).await;
    let shared = &simulation.worker.shared;
    let is_backing_off = |which: usize| {
        let id = simulation.store.id_of(&organization(which)).unwrap();
        let mut lanes = shared.lanes();
        let lane = lanes.get(id);
        lane.is_some_and(|lane| lane.permits == 0 && lane.backoff.is_failing())
    };
    while !(0..integrations).all(is_backing_off) {
        moment().await;
        advance(Duration::from_millis(100)).await;
    }
    assert_eq!(shared.lanes().loaded_bytes, 0);
}
