//! Limits of callers and organizations. They count in this instance alone.
//!
//! A caller that exceeds a limit is refused with RATE_LIMITED and the time after which it is
//! admitted again. On Publish the limit of an organization refuses its events one by one, since a
//! request may have events of many.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tower::{Layer, Service};

use super::{caller, caller::Caller, errors::ApiError};
use crate::domain::{
    integration::IntegrationId,
    organization::OrganizationId,
    rate::{Levels, Rate},
};

/// Callers, and organizations of each limit, that are remembered while they are busy.
const MAX_KEYS: usize = 100_000;
/// Tests of one organization that are admitted at once, after a pause.
const TEST_BURST: u32 = 5;
/// External IDs of one caller that may be refused: one a second, and this number at once. Each of
/// its organizations has a lower limit, and behind one caller there may be many.
const REFUSED_IDS_OF_CALLER: Rate = Rate::new(Duration::from_secs(1), 60);
/// External IDs that one caller may generate: five a second, and this number at once. A caller with
/// the right to all organizations may invent their names, and each external ID is stored for 30
/// days.
const GENERATED_IDS_OF_CALLER: Rate = Rate::new(Duration::from_millis(200), 100);
/// Failed authentications that are allowed at once, as a multiple of the rate per second.
const FAILURE_BURST: u32 = 10;
/// Tests that call AWS at the same time. Each takes up to four descriptors, so that enough of the
/// usual 1,024 are left for delivery, and for connections.
const TESTS_IN_FLIGHT: usize = 32;
/// Tests that wait for others. They take no descriptors, and end within a minute.
const TESTS_WAITING: usize = 96;
/// Reads of the audit at the same time: each may read many rows.
const AUDIT_READS: usize = 4;
/// Reads of the audit that wait for others.
const AUDIT_READS_WAITING: usize = 60;
/// Delay after which a request is sent again that a full queue refused.
const QUEUE_RETRY: Duration = Duration::from_secs(5);
/// Delay after which a refused stream is opened again.
const STREAM_RETRY: Duration = Duration::from_secs(10);

/// Settings of the limits; 0 stands for no limit.
#[derive(Clone, Copy, Debug)]
pub struct LimitOptions {
    /// Requests per second of one caller, each message of a PublishStream included.
    pub requests_per_second: u32,
    /// Open streams of one caller.
    pub streams: usize,
    /// Published events per second of one organization.
    pub events_per_second: u32,
    /// Interval between SendTests, validations and issued external IDs of one organization.
    pub test_interval: Duration,
    /// Failed authentications per second of one address.
    pub failed_authentications_per_second: u32,
}

/// Identity by which a caller is limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum CallerKey {
    /// An authenticated caller.
    Principal(Arc<str>),
    /// An unauthenticated one: its IPv4 address, or the /64 network of its IPv6 address, in which
    /// a host chooses its address freely.
    Address(IpAddr),
    /// No connection is known.
    #[default]
    Unknown,
}

impl CallerKey {
    pub(super) fn of(caller: &Caller) -> Self {
        match caller.is_authenticated() {
            true => Self::Principal(Arc::clone(&caller.principal)),
            false => Self::of_address(caller.address),
        }
    }

    /// The sender of requests from an address.
    pub(super) fn of_address(address: Option<SocketAddr>) -> Self {
        match address.map(|address| address.ip().to_canonical()) {
            None => Self::Unknown,
            Some(IpAddr::V6(address)) => {
                let network = u128::from(address) >> 64 << 64;
                Self::Address(Ipv6Addr::from(network).into())
            }
            Some(address) => Self::Address(address),
        }
    }
}

/// Requests of an organization that call AWS or reserve something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Trial {
    SendTest,
    ValidateOnly,
    GenerateExternalId,
    /// A Configure that names another external ID than the stored one.
    NewExternalId,
}

impl Trial {
    const ALL: [Self; 4] = [
        Self::SendTest,
        Self::ValidateOnly,
        Self::GenerateExternalId,
        Self::NewExternalId,
    ];

    /// Limit that an error names.
    fn limit(self) -> &'static str {
        match self {
            Self::SendTest => "the organization sends too many tests",
            Self::ValidateOnly => "the organization validates too many configurations",
            Self::GenerateExternalId => "the organization generates too many external IDs",
            Self::NewExternalId => "too many new external IDs were configured or refused",
        }
    }
}

/// See the module. Cheap to clone; clones are the same limits.
#[derive(Clone)]
pub(super) struct Limits(Arc<State>);

struct State {
    requests: Option<Mutex<Levels<CallerKey>>>,
    events: Option<Mutex<Levels<IntegrationId>>>,
    trials: Option<Mutex<Trials>>,
    failed_authentications: Option<Mutex<Levels<CallerKey>>>,
    streams: Arc<Counts>,
    tests: Queue,
    audit_reads: Queue,
}

/// Levels of each kind for themselves, so that requests of one kind displace none of another.
struct Trials {
    of_organizations: HashMap<Trial, Levels<OrganizationId>>,
    refused_ids: Levels<CallerKey>,
    generated_ids: Levels<CallerKey>,
}

impl Trials {
    fn of(&mut self, trial: Trial) -> Option<&mut Levels<OrganizationId>> {
        self.of_organizations.get_mut(&trial)
    }
}

/// Numbers of what callers have open.
#[derive(Debug)]
struct Counts {
    max: usize,
    by_caller: Mutex<HashMap<CallerKey, usize>>,
}

impl Counts {
    fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            by_caller: Mutex::default(),
        })
    }

    /// Counts one more of a caller until it is dropped. None beyond the limit.
    fn open(self: &Arc<Self>, caller: &CallerKey) -> Option<Counted> {
        let mut by_caller = lock(&self.by_caller);
        let open = by_caller.entry(caller.clone()).or_default();
        if *open >= self.max {
            return None;
        }
        *open += 1;
        Some(Counted {
            counts: Arc::clone(self),
            caller: caller.clone(),
        })
    }
}

/// One of [`Counts`].
#[derive(Debug)]
struct Counted {
    counts: Arc<Counts>,
    caller: CallerKey,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut by_caller = lock(&self.counts.by_caller);
        if let Some(open) = by_caller.get_mut(&self.caller) {
            *open -= 1;
            if *open == 0 {
                by_caller.remove(&self.caller);
            }
        }
    }
}

/// Costly requests, of which few are in progress and others wait. One caller has at most half of
/// the permits and half of the queue, so that another one waits for it but is not shut out.
struct Queue {
    name: &'static str,
    in_flight: Arc<Semaphore>,
    /// Permits of requests that are in progress or wait.
    waiting: Arc<Semaphore>,
    of_callers: Arc<Counts>,
    /// Semaphores of the callers with requests.
    shares: Mutex<HashMap<CallerKey, Weak<Semaphore>>>,
    share: usize,
}

impl Queue {
    /// `name` is the error of a full queue.
    fn new(name: &'static str, in_flight: usize, waiting: usize) -> Self {
        let all = in_flight + waiting;
        Self {
            name,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            waiting: Arc::new(Semaphore::new(all)),
            of_callers: Counts::new(all / 2),
            shares: Mutex::default(),
            share: in_flight / 2,
        }
    }

    /// Waits until a request of a caller may begin.
    async fn admit(&self, caller: &CallerKey) -> Result<QueuePermit, ApiError> {
        let full = || ApiError::RateLimited {
            limit: self.name,
            retry_after: QUEUE_RETRY,
        };
        let counted = self.of_callers.open(caller).ok_or_else(full)?;
        let waiting = Arc::clone(&self.waiting).try_acquire_owned();
        let waiting = waiting.map_err(|_| full())?;
        let of_caller = self.share_of(caller).acquire_owned().await;
        let in_flight = Arc::clone(&self.in_flight).acquire_owned().await;
        Ok(QueuePermit {
            _in_flight: in_flight.map_err(|_| ApiError::ShuttingDown)?,
            _of_caller: of_caller.map_err(|_| ApiError::ShuttingDown)?,
            _waiting: waiting,
            _counted: counted,
        })
    }

    fn share_of(&self, caller: &CallerKey) -> Arc<Semaphore> {
        let mut shares = lock(&self.shares);
        if let Some(share) = shares.get(caller).and_then(Weak::upgrade) {
            return share;
        }
        // At most as many are in use as requests wait.
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.share));
        shares.insert(caller.clone(), Arc::downgrade(&share));
        share
    }
}

/// Permit of a request that has passed a [`Queue`].
#[derive(Debug)]
pub(super) struct QueuePermit {
    _in_flight: OwnedSemaphorePermit,
    _of_caller: OwnedSemaphorePermit,
    _waiting: OwnedSemaphorePermit,
    _counted: Counted,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rate_limited(limit: &'static str) -> impl Fn(Duration) -> ApiError {
    move |retry_after| ApiError::RateLimited { limit, retry_after }
}

impl Limits {
    pub(super) fn new(options: LimitOptions) -> Self {
        fn levels<K: Eq + std::hash::Hash>(per_second: u32) -> Option<Mutex<Levels<K>>> {
            let rate = (per_second > 0).then(|| Rate::per_second(per_second));
            rate.map(|rate| Mutex::new(Levels::new(rate, MAX_KEYS)))
        }
        let trials = || {
            let rate = Rate::new(options.test_interval, TEST_BURST);
            let of_organizations = Trial::ALL.map(|trial| (trial, Levels::new(rate, MAX_KEYS)));
            Mutex::new(Trials {
                of_organizations: of_organizations.into(),
                refused_ids: Levels::new(REFUSED_IDS_OF_CALLER, MAX_KEYS),
                generated_ids: Levels::new(GENERATED_IDS_OF_CALLER, MAX_KEYS),
            })
        };
        let failures = |per_second: u32| {
            let interval = Duration::from_secs(1) / per_second;
            let burst = per_second.saturating_mul(FAILURE_BURST);
            Mutex::new(Levels::new(Rate::new(interval, burst), MAX_KEYS))
        };
        let failures_per_second = options.failed_authentications_per_second;
        Self(Arc::new(State {
            requests: levels(options.requests_per_second),
            events: levels(options.events_per_second),
            trials: (!options.test_interval.is_zero()).then(trials),
            failed_authentications: (failures_per_second > 0)
                .then(|| failures(failures_per_second)),
            streams: Counts::new(match options.streams {
                0 => usize::MAX,
                streams => streams,
            }),
            tests: Queue::new(
                "too many tests are in progress",
                TESTS_IN_FLIGHT,
                TESTS_WAITING,
            ),
            audit_reads: Queue::new(
                "too many reads of the audit are in progress",
                AUDIT_READS,
                AUDIT_READS_WAITING,
            ),
        }))
    }

    /// Counts an authentication from an address as failed, before its signature is checked: a check
    /// takes about 0.1 ms, and a flood of forged tokens would otherwise take it for each.
    ///
    /// # Errors
    ///
    /// [`ApiError::RateLimited`] if too many have failed. Only the check could distinguish a new
    /// token of a good caller at the same address, for instance behind the same proxy, so that
    /// one waits as well. A token that was verified before needs no check and passes.
    pub(super) fn admit_authentication(&self, address: &CallerKey) -> Result<(), ApiError> {
        let Some(failed) = &self.0.failed_authentications else {
            return Ok(());
        };
        lock(failed)
            .admit(address.clone(), Instant::now())
            .map_err(rate_limited("too many authentications have failed"))
    }

    /// Takes back a failure that was counted, because the authentication has succeeded.
    pub(super) fn authenticated(&self, address: &CallerKey) {
        if let Some(failed) = &self.0.failed_authentications {
            lock(failed).give_back(address);
        }
    }

    /// Counts a request of a caller.
    pub(super) fn admit_request(&self, caller: &CallerKey) -> Result<(), ApiError> {
        let Some(requests) = &self.0.requests else {
            return Ok(());
        };
        lock(requests)
            .admit(caller.clone(), Instant::now())
            .map_err(rate_limited("the caller sends too many requests"))
    }

    /// Counts a SendTest, a validation or an issued external ID of an organization.
    pub(super) fn admit_trial(
        &self,
        trial: Trial,
        organization_id: &OrganizationId,
    ) -> Result<(), ApiError> {
        let Some(trials) = &self.0.trials else {
            return Ok(());
        };
        let key = organization_id.clone();
        let admitted = lock(trials)
            .of(trial)
            .map_or(Ok(()), |levels| levels.admit(key, Instant::now()));
        admitted.map_err(rate_limited(trial.limit()))
    }

    /// Checks that [`Limits::admit_trial`] would admit a request now, and counts nothing.
    pub(super) fn check_trial(
        &self,
        trial: Trial,
        organization_id: &OrganizationId,
    ) -> Result<(), ApiError> {
        let Some(trials) = &self.0.trials else {
            return Ok(());
        };
        let admitted = lock(trials).of(trial).map_or(Ok(()), |levels| {
            levels.check(organization_id, Instant::now())
        });
        admitted.map_err(rate_limited(trial.limit()))
    }

    /// Counts an external ID that a caller generates for any of its organizations.
    pub(super) fn admit_generated_id(&self, caller: &CallerKey) -> Result<(), ApiError> {
        let Some(trials) = &self.0.trials else {
            return Ok(());
        };
        let limited = rate_limited("the caller generates too many external IDs");
        let mut trials = lock(trials);
        trials
            .generated_ids
            .admit(caller.clone(), Instant::now())
            .map_err(limited)
    }

    /// Counts a Configure that names another external ID than the stored one, before its answer is
    /// known: guesses of those of others are limited, also those that are not refused.
    pub(super) fn admit_external_id(
        &self,
        caller: &CallerKey,
        organization_id: &OrganizationId,
    ) -> Result<(), ApiError> {
        let Some(trials) = &self.0.trials else {
            return Ok(());
        };
        let (mut trials, now) = (lock(trials), Instant::now());
        let checked = trials.refused_ids.check(caller, now);
        checked
            .and_then(|()| match trials.of(Trial::NewExternalId) {
                Some(levels) => levels.admit(organization_id.clone(), now),
                None => Ok(()),
            })
            .map_err(rate_limited(Trial::NewExternalId.limit()))
    }

    /// Counts an external ID that was refused to a caller.
    pub(super) fn external_id_refused(&self, caller: &CallerKey) {
        if let Some(trials) = &self.0.trials {
            let (mut trials, now) = (lock(trials), Instant::now());
            // Requests at the same time may exceed the limit, each once.
            let _ = trials.refused_ids.take(caller.clone(), 1, now);
        }
    }

    /// Counts events of an integration. Returns the number of those that are admitted.
    pub(super) fn admit_events(&self, id: IntegrationId, events: u32) -> u32 {
        match &self.0.events {
            None => events,
            Some(levels) => lock(levels).take(id, events, Instant::now()),
        }
    }

    /// Waits until a test may call AWS.
    pub(super) async fn admit_test(&self, caller: &CallerKey) -> Result<QueuePermit, ApiError> {
        self.0.tests.admit(caller).await
    }

    /// Waits until the audit may be read.
    pub(super) async fn admit_audit_read(
        &self,
        caller: &CallerKey,
    ) -> Result<QueuePermit, ApiError> {
        self.0.audit_reads.admit(caller).await
    }

    fn open_stream(&self, caller: &CallerKey) -> Result<Counted, ApiError> {
        let limited = || rate_limited("the caller has too many open streams")(STREAM_RETRY);
        self.0.streams.open(caller).ok_or_else(limited)
    }

    #[cfg(test)]
    fn open_streams(&self) -> usize {
        lock(&self.0.streams.by_caller).values().sum()
    }
}

/// Layer that refuses requests and streams beyond the limits of their caller.
#[derive(Clone)]
pub(super) struct LimitsLayer(pub(super) Limits);

impl<S> Layer<S> for LimitsLayer {
    type Service = LimitsService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        LimitsService {
            limits: self.0.clone(),
            inner,
        }
    }
}

/// Service of [`LimitsLayer`].
#[derive(Clone)]
pub(super) struct LimitsService<S> {
    limits: Limits,
    inner: S,
}

type Answer = Response<tonic::body::Body>;
type Answering<E> = Pin<Box<dyn Future<Output = Result<Answer, E>> + Send>>;

impl<S, B> Service<Request<B>> for LimitsService<S>
where
    S: Service<Request<B>, Response = Answer>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Either<Either<Ready<Result<Answer, S::Error>>, S::Future>, Answering<S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let key = request.extensions().get::<Caller>();
        let key = key.map(CallerKey::of).unwrap_or_default();
        let admitted = self.limits.admit_request(&key);
        let stream = admitted.and_then(|()| match caller::is_stream(request.uri().path()) {
            true => self.limits.open_stream(&key).map(Some),
            false => Ok(None),
        });
        request.extensions_mut().insert(key);
        match stream {
            Err(error) => {
                let refusal = Status::from(error).into_http();
                Either::Left(Either::Left(ready(Ok(refusal))))
            }
            Ok(None) => Either::Left(Either::Right(self.inner.call(request))),
            Ok(Some(stream)) => {
                let answer = self.inner.call(request);
                Either::Right(Box::pin(async move {
                    let count = |body| StreamBody {
                        body,
                        _stream: stream,
                    };
                    Ok(answer.await?.map(count).map(tonic::body::Body::new))
                }))
            }
        }
    }
}

/// Answer of a stream that counts.
struct StreamBody {
    body: tonic::body::Body,
    _stream: Counted,
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::rights::Rights;

    fn limits(streams: usize) -> Limits {
        Limits::new(LimitOptions {
            requests_per_second: 2,
            streams,
            events_per_second: 10,
            test_interval: Duration::from_secs(10),
            failed_authentications_per_second: 2,
        })
    }

    #[test]
    fn a_stream_counts_until_it_is_dropped() {
        let (limits, other) = (limits(2), CallerKey::Address([10, 0, 0, 2].into()));
        let first = limits.open_stream(&CallerKey::Unknown).unwrap();
        let _second = limits.open_stream(&CallerKey::Unknown).unwrap();
        assert!(limits.open_stream(&CallerKey::Unknown).is_err());
        let third = limits.open_stream(&other).unwrap();
        drop(first);
        let _fourth = limits.open_stream(&CallerKey::Unknown).unwrap();
        drop(third);
        assert_eq!(limits.open_streams(), 2);
        assert_eq!(lock(&limits.0.streams.by_caller).len(), 1);
    }

    #[test]
    fn limits_are_those_of_a_caller_or_of_an_organization() {
        let limits = limits(0);
        let other = CallerKey::Address([10, 0, 0, 2].into());
        for _ in 0..2 {
            assert!(limits.admit_request(&CallerKey::Unknown).is_ok());
        }
        assert!(limits.admit_request(&CallerKey::Unknown).is_err());
        assert!(limits.admit_request(&other).is_ok());
        let id = IntegrationId(uuid::Uuid::from_u128(1));
        assert_eq!(limits.admit_events(id, 7), 7);
        assert_eq!(limits.admit_events(id, 7), 3);

        let [acme, globex] = ["acme", "globex"].map(|name| OrganizationId::new(name).unwrap());
        for _ in 0..5 {
            assert!(limits.admit_trial(Trial::SendTest, &acme).is_ok());
            assert!(limits.admit_external_id(&other, &acme).is_ok());
            limits.external_id_refused(&other);
        }
        let refused = limits.admit_trial(Trial::SendTest, &acme).unwrap_err();
        let ApiError::RateLimited { retry_after, .. } = refused else {
            panic!("{refused:?}");
        };
        assert!((Duration::from_secs(9)..=Duration::from_secs(10)).contains(&retry_after));
        assert!(limits.admit_trial(Trial::ValidateOnly, &acme).is_ok());
        assert!(limits.admit_trial(Trial::SendTest, &globex).is_ok());
        assert!(limits.admit_external_id(&other, &acme).is_err());
        assert!(limits.admit_external_id(&other, &globex).is_ok());
    }

    #[tokio::test]
    async fn the_number_of_tests_is_bounded_and_one_caller_leaves_half_to_others() {
        let limits = limits(0);
        let [one, other, third] = [1, 2, 3].map(|last| CallerKey::Address([10, 0, 0, last].into()));
        let share = TESTS_IN_FLIGHT / 2;
        let mut tests = Vec::new();
        for _ in 0..share {
            tests.push(limits.admit_test(&one).await.unwrap());
        }
        let queued = (TESTS_IN_FLIGHT + TESTS_WAITING) / 2 - share;
        let mut waiting: Vec<_> = (0..queued)
            .map(|_| Box::pin(limits.admit_test(&one)))
            .collect();
        for test in &mut waiting {
            assert!(futures_util::poll!(test).is_pending());
        }
        assert!(limits.admit_test(&one).await.is_err());
        for _ in 0..share {
            tests.push(limits.admit_test(&other).await.unwrap());
        }
        // All permits are taken; whoever comes next waits for the first one that is free.
        let mut last = Box::pin(limits.admit_test(&third));
        assert!(futures_util::poll!(&mut last).is_pending());
        drop(tests.pop());
        drop(last.await.unwrap());
        drop(tests.remove(0));
        waiting.remove(0).await.unwrap();
        drop(waiting);
        drop(tests);
        limits.admit_test(&one).await.unwrap();
        assert_eq!(lock(&limits.0.tests.of_callers.by_caller).len(), 0);
        assert_eq!(lock(&limits.0.tests.shares).len(), 1);
    }

    #[test]
    fn failed_authentications_of_an_address_are_limited_and_good_ones_are_not() {
        let limits = limits(0);
        let [one, other] = [1, 2].map(|last| CallerKey::Address([10, 0, 0, last].into()));
        for _ in 0..1_000 {
            limits.admit_authentication(&one).unwrap();
            limits.authenticated(&one);
        }
        for _ in 0..20 {
            limits.admit_authentication(&one).unwrap();
        }
        let Err(ApiError::RateLimited { retry_after, .. }) = limits.admit_authentication(&one)
        else {
            panic!("admitted");
        };
        assert!(retry_after <= Duration::from_millis(500) && !retry_after.is_zero());
        limits.admit_authentication(&other).unwrap();
    }

    #[test]
    fn a_caller_that_invents_organizations_is_limited_and_forgets_no_limit_of_others() {
        let limits = limits(0);
        let (caller, acme) = (CallerKey::Unknown, OrganizationId::new("acme").unwrap());
        for _ in 0..5 {
            limits.admit_trial(Trial::SendTest, &acme).unwrap();
            limits
                .admit_trial(Trial::GenerateExternalId, &acme)
                .unwrap();
        }
        for number in 0..2 * MAX_KEYS {
            let invented = OrganizationId::new(&format!("o{number}")).unwrap();
            let trial = Trial::GenerateExternalId;
            limits.admit_trial(trial, &invented).unwrap();
        }
        for trial in [Trial::SendTest, Trial::GenerateExternalId] {
            assert!(limits.check_trial(trial, &acme).is_err(), "{trial:?}");
            assert!(limits.admit_trial(trial, &acme).is_err(), "{trial:?}");
        }
        for _ in 0..100 {
            limits.admit_generated_id(&caller).unwrap();
        }
        assert!(limits.admit_generated_id(&caller).is_err());
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_caller() {
        let key = |address: &str| {
            let mut caller = Caller::for_test("unauthenticated", Rights::UNLIMITED);
            caller.address = Some(address.parse().unwrap());
            CallerKey::of(&caller)
        };
        assert_eq!(key("[2001:db8::1]:1"), key("[2001:db8::ffff:2]:2"));
        assert_ne!(key("[2001:db8::1]:1"), key("[2001:db8:0:1::1]:1"));
        assert_eq!(key("[::ffff:192.0.2.1]:1"), key("192.0.2.1:2"));
        assert_ne!(key("192.0.2.1:1"), key("192.0.2.2:1"));
    }
}
