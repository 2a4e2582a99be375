//! Cache of assumed sessions: one per integration and version, assumed single-flight, and renewed
//! before its end while it is in use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use moka::{future::Cache, ops::compute::Op, policy::EvictionPolicy};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    AssumedWith, AwsOptions, ExternalIdProof,
    assume_role::Tries,
    identity::{Identity, Urgency},
    signer::Signer,
};
use crate::domain::{
    integration::{Integration, IntegrationId},
    status::{Fault, Meaning},
};

/// Age at which the proof that a role requires the external ID is renewed along with its session:
/// the trust policy may have changed.
const PROVEN_FOR: Duration = Duration::from_secs(24 * 3600);
/// Interval before a role whose probes gave no clear answer is probed again.
const PROVE_AGAIN: Duration = Duration::from_secs(300);

/// Remaining lifetime below which a session is not used.
const MARGIN: Duration = Duration::from_secs(60);

type Key = (IntegrationId, u64);

/// A clear answer of the probes of a role.
#[derive(Clone, Copy)]
struct Proof {
    at: Instant,
    /// The role can be assumed without knowing the external ID, which was logged.
    is_open: bool,
    /// The role can be assumed by others, and nothing is delivered to such a role.
    is_refused: bool,
}

/// Credentials of an assumed role and their lifetime.
pub(super) struct Session {
    signer: Signer,
    lifetime: Lifetime,
    with: AssumedWith,
}

impl Session {
    pub(super) fn new(credentials: Credentials, lifetime: Lifetime, with: AssumedWith) -> Self {
        Self {
            signer: Signer::new(credentials),
            lifetime,
            with,
        }
    }

    /// The external ID with which the role was assumed.
    pub(super) fn with(&self) -> AssumedWith {
        self.with
    }

    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The credentials, for a client of the SDK.
    pub(super) fn credentials(&self) -> SharedCredentialsProvider {
        SharedCredentialsProvider::new(self.signer.credentials().clone())
    }
}

/// Times at which a session is renewed, and is no longer used.
pub(super) struct Lifetime {
    start: Instant,
    usable_until: Instant,
    /// Time of the next renewal, in ms after the start.
    renewal_due: AtomicU64,
    /// Interval between renewals that fail, in ms.
    renewal_interval: u64,
}

impl Lifetime {
    /// Renewal is due at 80% of `duration`, moved by up to 8% in either direction by `jitter`,
    /// any random number, so that sessions assumed together are not renewed together.
    pub(super) fn new(start: Instant, duration: Duration, jitter: u32) -> Self {
        let margin = MARGIN.min(duration / 10);
        let jitter = f64::from(jitter) / f64::from(u32::MAX);
        let due = duration.mul_f64(0.72 + 0.16 * jitter);
        Self {
            start,
            usable_until: start + (duration - margin),
            renewal_due: AtomicU64::new(millis(due)),
            renewal_interval: millis(duration / 20).max(1),
        }
    }

    fn is_usable(&self, now: Instant) -> bool {
        now < self.usable_until
    }

    /// Makes the renewal due at this age at the latest.
    fn renew_within(&self, age: Duration) {
        self.renewal_due.fetch_min(millis(age), Ordering::Relaxed);
    }

    /// Whether the caller must renew the session. Returns true once per interval.
    fn claim_renewal(&self, now: Instant) -> bool {
        let age = millis(now.duration_since(self.start));
        let due = self.renewal_due.load(Ordering::Relaxed);
        age >= due
            && self
                .renewal_due
                .compare_exchange(
                    due,
                    age + self.renewal_interval,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The session cache. Cheap to clone; clones share the cache.
#[derive(Clone)]
pub(super) struct Sessions {
    cache: Cache<Key, Arc<Session>>,
    denials: Cache<Key, Arc<Denial>>,
    /// Last clear answer of the probes of each integration's role.
    proofs: Cache<Key, Proof>,
    require_external_id: bool,
    identity: Arc<Identity>,
}

impl Sessions {
    pub(super) fn new(identity: Arc<Identity>, options: &AwsOptions) -> Self {
        Self {
            cache: cache(options.max_sessions, options.assume_role_duration),
            denials: cache(options.max_sessions, options.assume_role_duration),
            proofs: cache(options.max_sessions, PROVEN_FOR),
            require_external_id: options.require_external_id,
            identity,
        }
    }

    /// The cached session, or a new one. Concurrent callers share the call and its fault; a
    /// denial is cached for [`DENIAL_CACHED`].
    pub(super) async fn get(&self, integration: &Arc<Integration>) -> Result<Arc<Session>, Fault> {
        let key = key(integration);
        let now = Instant::now();
        if let Some(session) = self.cache.get(&key).await {
            if session.lifetime.is_usable(now) {
                if session.lifetime.claim_renewal(now) {
                    self.renew_in_background(integration);
                }
                return Ok(session);
            }
            self.discard(integration, &session).await;
        }
        // Boxed because it is rare and large, to keep the future of a write small.
        Box::pin(self.get_new(integration, now)).await
    }

    async fn get_new(
        &self,
        integration: &Arc<Integration>,
        now: Instant,
    ) -> Result<Arc<Session>, Fault> {
        let key = key(integration);
        let denial = self.denials.get(&key).await;
        if let Some(fault) = denial.as_ref().and_then(|denial| denial.cached(now)) {
            return Err(fault);
        }
        self.cache
            .try_get_with(key, self.assume(integration, denial))
            .await
            .map_err(|fault| Fault::clone(&fault))
    }

    async fn assume(
        &self,
        integration: &Arc<Integration>,
        before: Option<Arc<Denial>>,
    ) -> Result<Arc<Session>, Fault> {
        let tries = match &before {
            Some(denial) => denial.next_tries(Instant::now()),
            None => Tries::Both,
        };
        let answer = self.assume_proven(integration, tries).await;
        let key = key(integration);
        match &answer {
            Ok(_) => self.denials.invalidate(&key).await,
            Err(fault) if matches!(fault.meaning(), Meaning::Refused(_) | Meaning::Ours) => {
                let now = Instant::now();
                let denial = Denial::new(before.as_deref(), tries, fault.clone(), now);
                self.denials.insert(key, Arc::new(denial)).await;
            }
            Err(_) => {}
        }
        answer
    }

    /// Assumes the role, and proves that it requires the external ID unless that was proven
    /// recently.
    async fn assume_proven(
        &self,
        integration: &Arc<Integration>,
        tries: Tries,
    ) -> Result<Arc<Session>, Fault> {
        let identity = &self.identity;
        let session = identity
            .assume(integration, tries, Urgency::CanWait)
            .await?;
        let proof = self.proofs.get(&key(integration)).await;
        if proof.is_none_or(|proof| proof.is_refused || proof.at.elapsed() >= PROVEN_FOR) {
            let (_, is_refused) = self.prove(integration, &session).await;
            if is_refused {
                return Err(Fault::external_id_not_required());
            }
        }
        Ok(session)
    }

    /// Probes the role: tries to assume it without knowing the external ID. Returns the result
    /// and whether the role is refused, so that nothing is delivered to it. Only a session that
    /// AWS grants proves anything: after an error or a timeout the last clear answer remains
    /// valid, and the role is probed again soon.
    async fn prove(
        &self,
        integration: &Arc<Integration>,
        session: &Session,
    ) -> (ExternalIdProof, bool) {
        let key = key(integration);
        let organization_id = integration.organization_id.as_str();
        let proof = self.identity.prove_external_id(integration).await;
        let is_open = match &proof {
            ExternalIdProof::Required => false,
            ExternalIdProof::NotRequired | ExternalIdProof::AnyAccepted => {
                // Once: it is probed again at every attempt.
                let before = self.proofs.get(&key).await;
                if before.is_none_or(|before| !before.is_open) {
                    warn!(
                        organization_id,
                        role_arn = integration.role_arn.as_str(),
                        "the role can be assumed without knowing the external ID: its trust policy lacks the condition sts:ExternalId"
                    );
                }
                true
            }
            ExternalIdProof::Unclear(fault) => {
                session.lifetime.renew_within(PROVE_AGAIN);
                info!(
                    organization_id,
                    code = fault.code(),
                    "could not prove yet that the role requires the external ID; its probes are repeated within 5 minutes"
                );
                let before = self.proofs.get(&key).await;
                return (proof, before.is_some_and(|before| before.is_refused));
            }
        };
        let is_refused = is_open && self.require_external_id;
        let at = Instant::now();
        self.proofs
            .insert(
                key,
                Proof {
                    at,
                    is_open,
                    is_refused,
                },
            )
            .await;
        if is_refused {
            self.cache.invalidate(&key).await;
        }
        (proof, is_refused)
    }

    /// Assumes a new session for a test, whatever is cached. Returns it with the result of the
    /// probes and whether the role is refused. Unless it is, the session replaces the cached
    /// one.
    pub(super) async fn renew(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<(Arc<Session>, ExternalIdProof, bool), Fault> {
        let identity = &self.identity;
        let session = identity
            .assume(integration, Tries::Both, Urgency::Immediate)
            .await?;
        let (proof, is_refused) = self.prove(integration, &session).await;
        if !is_refused {
            self.cache.insert(key(integration), session.clone()).await;
            self.denials.invalidate(&key(integration)).await;
        }
        Ok((session, proof, is_refused))
    }

    /// Removes a session that is no longer valid, but not one that has replaced it.
    pub(super) async fn discard(&self, integration: &Integration, session: &Arc<Session>) {
        self.cache
            .entry(key(integration))
            .and_compute_with(async |entry| match entry {
                Some(entry) if Arc::ptr_eq(entry.value(), session) => Op::Remove,
                _ => Op::Nop,
            })
            .await;
    }

    /// Removes everything cached for an integration, of every version.
    pub(super) fn forget(&self, integration_id: IntegrationId) {
        forget(&self.cache, integration_id);
        forget(&self.denials, integration_id);
        forget(&self.proofs, integration_id);
    }

    /// Renews a session that is valid meanwhile, so that a failure is logged only.
    fn renew_in_background(&self, integration: &Arc<Integration>) {
        let sessions = self.clone();
        let integration = integration.clone();
        tokio::spawn(async move {
            let identity = &sessions.identity;
            let may_call = || identity.may_call(&integration);
            let renewal = sessions.renew_ahead(&integration);
            // None if the integration was deleted or replaced, or this instance's lease has ended, so
            // that the session is not needed.
            let _ended = identity
                .gate()
                .call(integration.integration_id, may_call, renewal)
                .await;
        });
    }

    async fn renew_ahead(&self, integration: &Arc<Integration>) {
        let tries = Tries::Both;
        match self.assume_proven(integration, tries).await {
            // Unless the integration was forgotten meanwhile.
            Ok(session) if self.cache.contains_key(&key(integration)) => {
                self.cache.insert(key(integration), session).await;
            }
            Ok(_) => {}
            Err(fault) => info!(
                organization_id = integration.organization_id.as_str(),
                code = fault.code(),
                "could not renew a session ahead of its end; it is retried"
            ),
        }
    }
}

fn cache<V: Clone + Send + Sync + 'static>(max: u64, time_to_live: Duration) -> Cache<Key, V> {
    Cache::builder()
        .max_capacity(max)
        // A new entry must be admitted, or its role would be assumed at each call.
        .eviction_policy(EvictionPolicy::lru())
        .time_to_live(time_to_live)
        .support_invalidation_closures()
        .build()
}

fn forget<V: Clone + Send + Sync + 'static>(cache: &Cache<Key, V>, integration_id: IntegrationId) {
    let forgotten = cache.invalidate_entries_if(move |key, _| key.0 == integration_id);
    // It fails only if the cache was built without invalidation closures.
    debug_assert!(forgotten.is_ok());
}

fn key(integration: &Integration) -> Key {
    (integration.integration_id, integration.version)
}

/// Interval in which a denial is returned again without a call, for callers that arrive just
/// after it. Shorter than the shortest backoff.
const DENIAL_CACHED: Duration = Duration::from_secs(1);
/// Period in which both external IDs are tried each time. After it they alternate, so that two
/// cost no more calls than one.
const TRY_BOTH: Duration = Duration::from_secs(60);
/// Period without a denial after which the next one counts as the first.
const DENIALS_FORGOTTEN: Duration = Duration::from_secs(900);

/// Consecutive denials of a role.
struct Denial {
    fault: Fault,
    first: Instant,
    last: Instant,
    next: AssumedWith,
}

impl Denial {
    /// Another denial, after the denial `before`, with the external IDs that were tried.
    fn new(before: Option<&Self>, tried: Tries, fault: Fault, now: Instant) -> Self {
        let first = match before {
            Some(before) if now.duration_since(before.last) < DENIALS_FORGOTTEN => before.first,
            _ => now,
        };
        let next = match tried {
            Tries::One(AssumedWith::Current) => AssumedWith::Previous,
            Tries::Both | Tries::One(AssumedWith::Previous) => AssumedWith::Current,
        };
        Self {
            fault,
            first,
            last: now,
            next,
        }
    }

    /// The fault of the denial, while it is cached.
    fn cached(&self, now: Instant) -> Option<Fault> {
        (now.duration_since(self.last) < DENIAL_CACHED).then(|| self.fault.clone())
    }

    /// External IDs to try next.
    fn next_tries(&self, now: Instant) -> Tries {
        let fresh = now.duration_since(self.first) < TRY_BOTH;
        let forgotten = now.duration_since(self.last) >= DENIALS_FORGOTTEN;
        match fresh || forgotten {
            true => Tries::Both,
            false => Tries::One(self.next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::status::{Cause, Stage};

    #[test]
    fn renewal_is_claimed_once_per_interval() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for jitter in [0, u32::MAX / 2, u32::MAX] {
            let lifetime = Lifetime::new(start, Duration::from_secs(3600), jitter);
            assert!(!lifetime.claim_renewal(at(2591)));
            assert!(lifetime.claim_renewal(at(3168)));
            assert!(!lifetime.claim_renewal(at(3168)));
            assert!(!lifetime.claim_renewal(at(3347)));
            assert!(lifetime.claim_renewal(at(3348)));
        }
    }

    #[test]
    fn a_session_is_not_used_just_before_its_end() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let hour = Lifetime::new(start, Duration::from_secs(3600), 0);
        assert!(hour.is_usable(at(3_539_999)));
        assert!(!hour.is_usable(at(3_540_000)));
        let short = Lifetime::new(start, Duration::from_secs(2), 0);
        assert!(short.is_usable(at(1_799)));
        assert!(!short.is_usable(at(1_800)));
        assert!(!Lifetime::new(start, Duration::ZERO, 0).is_usable(start));
    }

    fn fault() -> Fault {
        Fault::unanswered(Stage::AssumeRole, Cause::Timeout)
    }

    #[test]
    fn a_denial_is_cached_for_a_moment() {
        let now = Instant::now();
        let denial = Denial::new(None, Tries::Both, fault(), now);
        assert_eq!(denial.cached(now), Some(fault()));
        assert_eq!(denial.cached(now + DENIAL_CACHED), None);
    }

    #[test]
    fn after_the_first_minute_one_external_id_is_tried_at_a_time() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut denial = Denial::new(None, Tries::Both, fault(), at(0));
        let mut tried = Vec::new();
        for second in [5, 55, 65, 75, 300, 600, 2000] {
            let tries = denial.next_tries(at(second));
            tried.push(tries);
            denial = Denial::new(Some(&denial), tries, fault(), at(second));
        }
        let [current, previous] = [AssumedWith::Current, AssumedWith::Previous].map(Tries::One);
        let both = Tries::Both;
        assert_eq!(
            tried,
            [both, both, current, previous, current, previous, both]
        );
    }
}
