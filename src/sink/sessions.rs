//! The sessions at hand: one an integration's version, assumed once for all who need
//! it, and renewed ahead of its end while it is in use.

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
use uuid::Uuid;

use super::{
    AssumedWith, AwsOptions, ExternalIdProof,
    assume_role::Tries,
    denials::Denial,
    identity::{Identity, Patience},
    signer::Signer,
};
use crate::domain::{
    integration::Integration,
    status::{Fault, Meaning},
};

/// A role that was proven to require the external ID is tried again after this, as sessions
/// are renewed: its trust policy may have been changed.
const PROVEN_FOR: Duration = Duration::from_secs(24 * 3600);
/// Interval after which a role whose probes gave no clear answer is probed again.
const PROVE_AGAIN: Duration = Duration::from_secs(300);

/// Nothing is started with credentials that end within this.
const MARGIN: Duration = Duration::from_secs(60);

type Key = (Uuid, u64);

/// Clear answer of the probes of a role.
#[derive(Clone, Copy)]
struct Proof {
    at: Instant,
    /// The role is open, and nothing is delivered to such a role.
    is_refused: bool,
}

/// Credentials of an assumed role, and how long they are good.
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

    /// With which external ID the role was assumed.
    pub(super) fn with(&self) -> AssumedWith {
        self.with
    }

    /// What signs with the credentials.
    pub(super) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// The credentials, for a client of the SDK.
    pub(super) fn credentials(&self) -> SharedCredentialsProvider {
        SharedCredentialsProvider::new(self.signer.credentials().clone())
    }
}

/// When a session is renewed, and when it is no longer used.
pub(super) struct Lifetime {
    start: Instant,
    usable_until: Instant,
    /// When the next renewal is due, in ms after the start.
    renewal_due: AtomicU64,
    /// Between one failed renewal and the next, in ms.
    renewal_interval: u64,
}

impl Lifetime {
    /// Renewed at 80% of what it lasts; `jitter`, from any number, moves that by up to
    /// 8% to either side, so that sessions of one moment do not all end at one moment.
    pub(super) fn new(start: Instant, lasts: Duration, jitter: u32) -> Self {
        let margin = MARGIN.min(lasts / 10);
        let jitter = f64::from(jitter) / f64::from(u32::MAX);
        let due = lasts.mul_f64(0.72 + 0.16 * jitter);
        Self {
            start,
            usable_until: start + (lasts - margin),
            renewal_due: AtomicU64::new(millis(due)),
            renewal_interval: millis(lasts / 20).max(1),
        }
    }

    fn is_usable(&self, now: Instant) -> bool {
        now < self.usable_until
    }

    /// Makes the renewal due at the latest this long after the start.
    fn renew_within(&self, age: Duration) {
        self.renewal_due.fetch_min(millis(age), Ordering::Relaxed);
    }

    /// Whether the caller is to renew; the next is told so an interval later.
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

/// The sessions. Cheap to clone.
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

    /// The session at hand, or a new one. Those who wait for the same one share the
    /// call and its fault; a denial is told again for a moment.
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
        // It is rare and large: whoever waits for a write is not to hold room for it.
        Box::pin(self.get_new(integration, now)).await
    }

    async fn get_new(
        &self,
        integration: &Arc<Integration>,
        now: Instant,
    ) -> Result<Arc<Session>, Fault> {
        let key = key(integration);
        let denial = self.denials.get(&key).await;
        if let Some(fault) = denial.as_ref().and_then(|denial| denial.standing(now)) {
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

    /// Assumes the role, and proves that it requires the external ID where that has not been
    /// proven lately.
    async fn assume_proven(
        &self,
        integration: &Arc<Integration>,
        tries: Tries,
    ) -> Result<Arc<Session>, Fault> {
        let identity = &self.identity;
        let session = identity.assume(integration, tries, Patience::Waits).await?;
        let proof = self.proofs.get(&key(integration)).await;
        if proof.is_none_or(|proof| proof.is_refused || proof.at.elapsed() >= PROVEN_FOR) {
            let (_, is_refused) = self.prove(integration, &session).await;
            if is_refused {
                return Err(Fault::external_id_not_required());
            }
        }
        Ok(session)
    }

    /// Probes the role: tries to assume it as someone would who does not know the external ID.
    /// Answers what that showed, and whether nothing is delivered to the role. Only a session
    /// that AWS grants proves anything: after an error or a time-out the last clear answer
    /// stands, and the role is probed again soon.
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
                warn!(
                    organization_id,
                    role_arn = integration.role_arn.as_str(),
                    "the role can be assumed without knowing the external ID: its trust policy lacks the condition sts:ExternalId"
                );
                true
            }
            ExternalIdProof::Unclear(fault) => {
                session.lifetime.renew_within(PROVE_AGAIN);
                info!(
                    organization_id,
                    code = fault.code(),
                    "could not prove yet that the role requires the external ID"
                );
                let before = self.proofs.get(&key).await;
                return (proof, before.is_some_and(|before| before.is_refused));
            }
        };
        let is_refused = is_open && self.require_external_id;
        let at = Instant::now();
        self.proofs.insert(key, Proof { at, is_refused }).await;
        if is_refused {
            self.cache.invalidate(&key).await;
        }
        (proof, is_refused)
    }

    /// A new session for a test, whatever is at hand, with what the probes of its role showed,
    /// and whether the role is refused. Unless it is, delivery uses the session from now on.
    pub(super) async fn renew(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<(Arc<Session>, ExternalIdProof, bool), Fault> {
        let identity = &self.identity;
        let session = identity
            .assume(integration, Tries::Both, Patience::AtOnce)
            .await?;
        let (proof, is_refused) = self.prove(integration, &session).await;
        if !is_refused {
            self.cache.insert(key(integration), session.clone()).await;
            self.denials.invalidate(&key(integration)).await;
        }
        Ok((session, proof, is_refused))
    }

    /// Drops a session that is no longer good, but not one that took its place.
    pub(super) async fn discard(&self, integration: &Integration, session: &Arc<Session>) {
        self.cache
            .entry(key(integration))
            .and_compute_with(async |entry| match entry {
                Some(entry) if Arc::ptr_eq(entry.value(), session) => Op::Remove,
                _ => Op::Nop,
            })
            .await;
    }

    /// Drops whatever is kept for an integration, of every version.
    pub(super) fn forget(&self, integration_id: Uuid) {
        // It fails only for a cache that was built without support for it.
        let of_it = move |key: &Key| key.0 == integration_id;
        let forgotten = self.cache.invalidate_entries_if(move |key, _| of_it(key));
        debug_assert!(forgotten.is_ok());
        let forgotten = self.denials.invalidate_entries_if(move |key, _| of_it(key));
        debug_assert!(forgotten.is_ok());
        let forgotten = self.proofs.invalidate_entries_if(move |key, _| of_it(key));
        debug_assert!(forgotten.is_ok());
    }

    /// While a session is good, a renewal that fails is nobody's fault but a line in
    /// the log.
    fn renew_in_background(&self, integration: &Arc<Integration>) {
        let sessions = self.clone();
        let integration = integration.clone();
        tokio::spawn(async move {
            let identity = &sessions.identity;
            let current = || identity.is_current(&integration);
            let renewal = sessions.renew_ahead(&integration);
            // None where it was deleted or configured anew: then nobody needs it.
            let _ended = identity
                .gate()
                .call(integration.key, current, renewal)
                .await;
        });
    }

    async fn renew_ahead(&self, integration: &Arc<Integration>) {
        let tries = Tries::Both;
        match self.assume_proven(integration, tries).await {
            // Not where it was forgotten meanwhile.
            Ok(session) if self.cache.contains_key(&key(integration)) => {
                self.cache.insert(key(integration), session).await;
            }
            Ok(_) => {}
            Err(fault) => info!(
                organization_id = integration.organization_id.as_str(),
                code = fault.code(),
                "could not renew a session ahead of its end"
            ),
        }
    }
}

fn cache<V: Clone + Send + Sync + 'static>(most: u64, time_to_live: Duration) -> Cache<Key, V> {
    Cache::builder()
        .max_capacity(most)
        // What is new must get its place, or it would be assumed at each call.
        .eviction_policy(EvictionPolicy::lru())
        .time_to_live(time_to_live)
        .support_invalidation_closures()
        .build()
}

fn key(integration: &Integration) -> Key {
    (integration.integration_id, integration.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renews_ahead_once_at_a_time() {
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
    fn stops_using_it_ahead_of_its_end() {
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
}
