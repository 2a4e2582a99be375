//! State of this service's own AWS identity, and attribution of refusals by evidence: to this
//! service or to one customer.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    AssumedWith, ExternalIdProof,
    assume_role::{AssumeRole, Tries},
    sessions::Session,
};
use crate::{
    domain::{
        arn::Partition,
        attribution::{
            Attribution, IdentityState, NextCheck, RecentRoles, RefusedSessions, is_service_fault,
        },
        integration::{Integration, IntegrationId},
        status::{Cause, Fault, Meaning, Reason, Stage},
    },
    gate::Gate,
};

/// Minimum interval between two rounds of checks of other roles. Denials that arrive in between
/// wait for the next round and share its result.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between checks of our own credentials that refusals cause.
const STS_INTERVAL: Duration = Duration::from_secs(10);
/// Interval of checks while the state is not good: doubled each time up to the maximum.
const FIRST_INTERVAL: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// Assumes roles, and keeps the state of this service's own identity.
pub(super) struct Identity {
    assume_role: AssumeRole,
    gate: Gate,
    identity: watch::Sender<IdentityState>,
    evidence: Mutex<Evidence>,
    /// Whether [`Evidence::refused_sessions`] is not empty, readable without the lock.
    any_refused_session: AtomicBool,
    /// Last check of our own credentials.
    last_check: AsyncMutex<Option<Check>>,
    /// Start of the last round of checks of other roles, and whether its evidence was against
    /// this service. Rounds are single-flight: callers that wait share the result.
    last_round: AsyncMutex<Option<(Instant, bool)>>,
}

/// An integration, and the external ID with which its role was assumed.
type Role = (Arc<Integration>, AssumedWith);

#[derive(Default)]
struct Evidence {
    roles: RecentRoles<Role>,
    /// Our identity may not assume roles; kept while another fault is reported.
    may_not_assume: bool,
    /// Partition of this service's own credentials, once known.
    partition: Option<Partition>,
    /// Account of this service's own credentials, once known.
    account: Option<Arc<str>>,
    refused_sessions: RefusedSessions,
    /// Sessions are refused because of this service's fault.
    sessions_refused: bool,
    /// The canary role is denied though others can be assumed, which was logged.
    canary_is_broken: bool,
}

/// A check of this service's own credentials.
struct Check {
    start: Instant,
    end: Instant,
    fault: Option<Fault>,
}

impl Evidence {
    fn state_of_roles(&self) -> IdentityState {
        match self.may_not_assume {
            true => IdentityState::MayNotAssume,
            false => IdentityState::Good,
        }
    }

    fn may_assume(&mut self, now: std::time::Instant) {
        if std::mem::take(&mut self.may_not_assume) {
            self.roles.reset(now);
        }
    }
}

impl Identity {
    pub(super) fn new(assume_role: AssumeRole, gate: Gate) -> Self {
        let partition = assume_role.region().and_then(Partition::of_region);
        Self {
            assume_role,
            gate,
            identity: watch::Sender::new(IdentityState::Good),
            evidence: Mutex::new(Evidence {
                partition,
                ..Evidence::default()
            }),
            any_refused_session: AtomicBool::new(false),
            last_check: AsyncMutex::new(None),
            last_round: AsyncMutex::new(None),
        }
    }

    /// Restores roles that were assumed before this process started, the newest last. Ages are
    /// measured from the newest, because the process may have been down since.
    pub(super) fn recall(&self, roles: Vec<(Arc<Integration>, Duration)>) {
        let now = Instant::now().into_std();
        let idle = roles.last().map_or(Duration::ZERO, |(_, ago)| *ago);
        let mut evidence = self.evidence();
        for (integration, ago) in roles {
            let at = now.checked_sub(ago.saturating_sub(idle));
            // With a previous external ID it is not known which one was accepted.
            if let (None, Some(at)) = (&integration.previous, at) {
                let account = integration.role_arn.account();
                let role = (Arc::clone(&integration), AssumedWith::Current);
                evidence
                    .roles
                    .assumed(integration.integration_id, account, at, role);
            }
        }
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state_changes(&self) -> watch::Receiver<IdentityState> {
        self.identity.subscribe()
    }

    pub(super) fn partition(&self) -> Option<Partition> {
        self.evidence().partition
    }

    pub(super) fn account(&self) -> Option<Arc<str>> {
        self.evidence().account.clone()
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether the integration exists in this version.
    pub(super) fn is_current(&self, integration: &Integration) -> bool {
        self.assume_role.is_current(integration)
    }

    /// Whether a call of the sink's own may be made for the integration.
    pub(super) fn may_call(&self, integration: &Integration) -> bool {
        self.assume_role.may_call(integration)
    }

    pub(super) async fn prove_external_id(&self, integration: &Integration) -> ExternalIdProof {
        self.assume_role.prove_external_id(integration).await
    }

    /// Assumes the integration's role. A refusal that is attributed to this service is returned
    /// as [`Cause::OwnIdentity`], one attributed to the customer's region or partition as
    /// [`Cause::SessionRefused`].
    pub(super) async fn assume(
        &self,
        integration: &Arc<Integration>,
        tries: Tries,
        urgency: Urgency,
    ) -> Result<Arc<Session>, Fault> {
        self.check_partition(integration)?;
        let fault = match self.assume_role.assume(integration, tries).await {
            Ok(session) => {
                self.assumed(integration, &session);
                return Ok(session);
            }
            Err(fault) => fault,
        };
        Err(match fault.meaning() {
            Meaning::Refused(Reason::AssumeRoleDenied) => self.attribute(integration, fault).await,
            Meaning::Ours => self.judge_credentials(integration, fault, urgency).await,
            _ => fault,
        })
    }

    /// Assumes the role of a configuration that is not saved. The answer is no evidence about the
    /// saved one, so that only a refusal of our own credentials is noted.
    pub(super) async fn validate_only(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<Arc<Session>, Fault> {
        self.check_partition(integration)?;
        let start = Instant::now();
        let answer = self.assume_role.assume(integration, Tries::Both).await;
        let Err(fault) = answer else { return answer };
        Err(match fault.meaning() {
            Meaning::Refused(Reason::AssumeRoleDenied) if self.may_not_assume().await => {
                as_ours(fault)
            }
            Meaning::Ours => self.judge_by_sts(fault, start, false).await,
            _ => fault,
        })
    }

    /// Fails for another partition: credentials are valid in one partition only.
    fn check_partition(&self, integration: &Integration) -> Result<(), Fault> {
        match self.partition() {
            Some(own) if own != integration.stream_arn.partition() => {
                Err(Fault::unanswered(Stage::AssumeRole, Cause::OtherPartition))
            }
            _ => Ok(()),
        }
    }

    /// Keeps the state up to date: one check at first, and then checks while it is not good.
    pub(super) async fn watch(&self) {
        let mut changes = self.identity.subscribe();
        self.check_credentials().await;
        let mut interval = FIRST_INTERVAL;
        loop {
            let state = changes.borrow_and_update().clone();
            let within = (state != IdentityState::Good).then_some(interval);
            if changed(&mut changes, within).await {
                interval = FIRST_INTERVAL;
                continue;
            }
            interval = (interval * 2).min(MAX_INTERVAL);
            match state {
                IdentityState::Good => {}
                IdentityState::CredentialsRefused { .. } => self.check_credentials().await,
                IdentityState::MayNotAssume => self.check_role().await,
            }
        }
    }

    /// Updates the state by a check of our own credentials.
    async fn check_credentials(&self) {
        match self.own_credentials_fault().await {
            None => {
                let refused = matches!(
                    *self.identity.borrow(),
                    IdentityState::CredentialsRefused { .. }
                );
                self.forget_replaced_integrations();
                if refused && !self.evidence().sessions_refused {
                    let state = self.evidence().state_of_roles();
                    self.set(state);
                }
            }
            // If AWS cannot be reached, deliveries report it.
            Some(fault) => self.note_refused_credentials(&fault),
        }
    }

    /// Checks our own credentials. Returns the fault if AWS refuses them or does not answer.
    async fn own_credentials_fault(&self) -> Option<Fault> {
        match self.assume_role.own_identity().await {
            Ok((partition, account)) => {
                let mut evidence = self.evidence();
                evidence.partition = partition.or(evidence.partition);
                evidence.account = account.map(Into::into).or(evidence.account.take());
                None
            }
            Err(fault) => Some(fault),
        }
    }

    /// Result of a check of our own credentials that started after `since`. Checks at most once in
    /// [`STS_INTERVAL`]; None if the last check is older than `since` and none is due.
    async fn own_identity_since(&self, since: Instant) -> Option<Result<(), Fault>> {
        let mut last = self.last_check.lock().await;
        let is_due = |last: &Check| last.end.elapsed() >= STS_INTERVAL;
        if last.as_ref().is_none_or(is_due) {
            let start = Instant::now();
            let fault = self.own_credentials_fault().await;
            *last = Some(Check {
                start,
                end: Instant::now(),
                fault,
            });
        }
        let last = last.as_ref().filter(|last| last.start >= since)?;
        Some(match &last.fault {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        })
    }

    /// Checks by one role whether our identity may assume roles again.
    async fn check_role(&self) {
        let current = |(integration, _): &Role| self.is_current(integration);
        let next = self
            .evidence()
            .roles
            .next_check(Instant::now().into_std(), current);
        match next {
            // The canary decides without any customer's role.
            _ if self.assume_role.canary().is_some() => {
                if self.assume_role.assume_canary().await == Some(true) {
                    self.evidence().may_assume(Instant::now().into_std());
                    self.set(IdentityState::Good);
                }
            }
            NextCheck::Wait => {}
            NextCheck::TooFewAccounts => {
                self.evidence().may_assume(Instant::now().into_std());
                self.set(IdentityState::Good);
            }
            NextCheck::Assume(role) => {
                // `assume_again` notes the result.
                let _result = self.assume_again(&role).await;
            }
        }
    }

    fn note_refused_credentials(&self, fault: &Fault) {
        if fault.is_service_refused() {
            self.set_refused(fault);
        }
    }

    fn set_refused(&self, fault: &Fault) {
        let code = fault.code().into();
        self.set(IdentityState::CredentialsRefused { code });
    }

    /// Attributes a refusal by STS of our own credentials in AssumeRole; one region or partition
    /// may refuse credentials that others accept. Deliveries of others are no evidence: their
    /// sessions may be older.
    async fn judge_credentials(
        &self,
        integration: &Arc<Integration>,
        fault: Fault,
        urgency: Urgency,
    ) -> Fault {
        match fault.cause {
            Cause::Service { .. } => {}
            Cause::NotBuilt => return self.judge_not_built(integration, fault),
            Cause::SecretUnreadable => return fault,
            _ => {
                self.note_refused_credentials(&fault);
                return fault;
            }
        }
        match self.note_refusal(integration, urgency) {
            (Attribution::Service, _) => self.as_sessions_refused(fault),
            (attribution, first) => {
                let is_early = attribution == Attribution::Undecided;
                self.judge_by_sts(fault, first, is_early).await
            }
        }
    }

    /// Attributes refused credentials by a check that started after `since`. With `is_early` they
    /// are not attributed to the customer yet.
    async fn judge_by_sts(&self, fault: Fault, since: Instant, is_early: bool) -> Fault {
        match self.own_identity_since(since).await {
            Some(Err(own)) if own.is_service_refused() => self.as_credentials_refused(fault),
            Some(Ok(())) if fault.is_unknown_session() && !is_early => as_customers(fault),
            _ => as_ours(fault),
        }
    }

    /// Attributes a refusal by Kinesis of a session that was just assumed: to this service if all
    /// are refused, to the customer if only its region refuses.
    pub(super) async fn judge_session(
        &self,
        integration: &Arc<Integration>,
        session: &Session,
        fault: Fault,
        urgency: Urgency,
    ) -> Fault {
        match self.note_refusal(integration, urgency).0 {
            Attribution::Customer => as_customers(fault),
            Attribution::Service => self.as_sessions_refused(fault),
            Attribution::Undecided => as_ours(fault),
            // A wrong signature or clock is this service's own fault, but a single test does not
            // prove yet that the sessions of all integrations are refused.
            Attribution::AskSts if !fault.is_unknown_session() => match urgency {
                Urgency::CanWait => self.as_sessions_refused(fault),
                Urgency::Immediate => as_ours(fault),
            },
            Attribution::AskSts => match self.assume_role.check_session(session).await {
                Ok(()) => as_customers(fault),
                Err(own) if own.is_service_refused() => self.as_sessions_refused(fault),
                Err(_) => as_ours(fault),
            },
        }
    }

    /// Same as [`Identity::judge_session`] for a configuration that is not saved: by a check of the
    /// session alone.
    pub(super) async fn judge_dry_run(&self, session: &Session, fault: Fault) -> Fault {
        if !fault.is_unknown_session() {
            return as_ours(fault);
        }
        match self.assume_role.check_session(session).await {
            Ok(()) => as_customers(fault),
            Err(_) => as_ours(fault),
        }
    }

    /// Notes a request that could not be built: a fault of this service, which shows in its health
    /// unless others deliver.
    pub(super) fn judge_not_built(&self, integration: &Arc<Integration>, fault: Fault) -> Fault {
        match self.note_refusal(integration, Urgency::CanWait).0 {
            Attribution::Service | Attribution::AskSts => {
                self.as_sessions_refused(fault.clone());
            }
            Attribution::Customer | Attribution::Undecided => {}
        }
        fault
    }

    /// Adds a refusal to the evidence. Returns its attribution and the time of the first one.
    fn note_refusal(
        &self,
        integration: &Arc<Integration>,
        urgency: Urgency,
    ) -> (Attribution, Instant) {
        let now = Instant::now().into_std();
        let mut evidence = self.evidence();
        let (attribution, first) =
            evidence
                .refused_sessions
                .refused(integration, now, urgency == Urgency::CanWait);
        self.any_refused_session.store(true, Ordering::Relaxed);
        (attribution, Instant::from_std(first))
    }

    fn as_credentials_refused(&self, fault: Fault) -> Fault {
        self.set_refused(&fault);
        as_ours(fault)
    }

    /// Marks sessions as refused until AWS accepts one, or until every refused integration
    /// is deleted or configured again.
    fn as_sessions_refused(&self, fault: Fault) -> Fault {
        self.evidence().sessions_refused = true;
        self.as_credentials_refused(fault)
    }

    /// Notes that Kinesis accepted the session of an integration.
    pub(super) fn session_accepted(&self, id: IntegrationId) {
        if self.any_refused_session.load(Ordering::Relaxed) {
            self.clear_refusal(id);
        }
    }

    fn clear_refusal(&self, id: IntegrationId) {
        let mut evidence = self.evidence();
        evidence.refused_sessions.delivered(id);
        self.any_refused_session
            .store(!evidence.refused_sessions.is_empty(), Ordering::Relaxed);
        if std::mem::take(&mut evidence.sessions_refused) {
            self.set(evidence.state_of_roles());
        }
    }

    /// Clears the state if every refused integration was deleted or replaced, because no later
    /// write can do it.
    fn forget_replaced_integrations(&self) {
        let mut evidence = self.evidence();
        let refused = &mut evidence.refused_sessions;
        refused.retain(|integration| self.is_current(integration));
        if refused.is_empty() {
            evidence.sessions_refused = false;
            self.any_refused_session.store(false, Ordering::Relaxed);
        }
    }

    fn assumed(&self, integration: &Arc<Integration>, session: &Session) {
        {
            let mut evidence = self.evidence();
            let now = Instant::now().into_std();
            evidence.may_assume(now);
            let account = integration.role_arn.account();
            let role = (Arc::clone(integration), session.with());
            evidence
                .roles
                .assumed(integration.integration_id, account, now, role);
        }
        if integration.previous.is_some() && session.with() == AssumedWith::Current {
            self.assume_role.current_accepted(integration);
        }
        if !self.evidence().sessions_refused {
            self.set(IdentityState::Good);
        }
    }

    /// Whether our identity is known to be refused, or the canary is denied now.
    async fn may_not_assume(&self) -> bool {
        self.evidence().may_not_assume || self.assume_role.assume_canary().await == Some(false)
    }

    /// Attributes a denial to the customer or to this service.
    async fn attribute(&self, integration: &Arc<Integration>, fault: Fault) -> Fault {
        let is_ours = self.evidence().may_not_assume || self.check_roles(integration).await;
        let mut evidence = self.evidence();
        if !is_ours {
            evidence.roles.forget(integration.integration_id);
            return fault;
        }
        evidence.may_not_assume = true;
        let now = Instant::now().into_std();
        evidence
            .roles
            .denied_to_delivery(integration.integration_id, now);
        drop(evidence);
        self.set(IdentityState::MayNotAssume);
        as_ours(fault)
    }

    /// Whether our identity is refused: checks the canary or other recent roles. Only a round that
    /// started after the denial counts.
    async fn check_roles(&self, integration: &Integration) -> bool {
        let denied = Instant::now();
        let mut last = self.last_round.lock().await;
        if let Some((start, is_ours)) = *last {
            if start >= denied {
                return is_ours;
            }
            sleep_until(start + ROUND_INTERVAL).await;
        }
        let start = Instant::now();
        let is_ours = self.check_roles_now(integration).await;
        *last = Some((start, is_ours));
        is_ours
    }

    async fn check_roles_now(&self, integration: &Integration) -> bool {
        let checks = {
            let mut evidence = self.evidence();
            if evidence.may_not_assume {
                return true;
            }
            let current = |(integration, _): &Role| self.is_current(integration);
            let account = integration.role_arn.account();
            let now = Instant::now().into_std();
            evidence.roles.checks(account, now, current)
        };
        let canary = self.assume_role.assume_canary().await;
        match (canary, checks) {
            (Some(true), _) | (None, None) => false,
            // Without other roles the canary decides.
            (Some(false), None) => true,
            (canary, Some(checks)) => {
                let (denied, assumed) = self.assume_all_again(&checks.roles).await;
                if canary == Some(false) {
                    self.note_canary(assumed > 0);
                    assumed == 0
                } else {
                    is_service_fault(1 + denied + checks.refused_already, assumed)
                }
            }
        }
    }

    /// Assumes roles again, one at first and the others if that one is denied. Returns the numbers
    /// of denied and of assumed roles.
    async fn assume_all_again(&self, roles: &[Role]) -> (usize, usize) {
        let Some((first, others)) = roles.split_first() else {
            return (0, 0);
        };
        let first = self.assume_again(first).await;
        if first == Some(true) {
            return (0, 1);
        }
        let others = join_all(others.iter().map(|role| self.assume_again(role))).await;
        let clear = others.into_iter().chain([first]).flatten();
        clear.fold((0, 0), |(denied, assumed), is_assumed| match is_assumed {
            true => (denied, assumed + 1),
            false => (denied + 1, assumed),
        })
    }

    /// Warns of a canary that is denied though a customer's role can be assumed, so that it is no
    /// evidence.
    fn note_canary(&self, is_broken: bool) {
        let before = std::mem::replace(&mut self.evidence().canary_is_broken, is_broken);
        if is_broken
            && !before
            && let Some(canary) = self.assume_role.canary()
        {
            tracing::warn!(
                canary_role_arn = canary.as_str(),
                "the canary role is refused though customers' roles can be assumed: check its trust policy"
            );
        }
    }

    /// Assumes a recent role again. Returns whether it could be assumed; None without a clear
    /// answer.
    async fn assume_again(&self, (integration, with): &Role) -> Option<bool> {
        let may_call = || self.may_call(integration);
        let assume = self.assume_role.assume_again(integration, *with);
        let answer = self
            .gate
            .call(integration.integration_id, may_call, assume)
            .await?;
        let (key, now) = (integration.integration_id, Instant::now().into_std());
        match answer {
            Ok(session) => {
                self.assumed(integration, &session);
                Some(true)
            }
            Err(fault) => {
                let denied = fault.is_role_denied();
                let roles = &mut self.evidence().roles;
                match denied {
                    true => roles.denied(key, now),
                    false => roles.unclear(key, now),
                }
                denied.then_some(false)
            }
        }
    }

    fn set(&self, state: IdentityState) {
        let changed = self.identity.send_if_modified(|current| {
            let changed = *current != state;
            current.clone_from(&state);
            changed
        });
        if !changed {
            return;
        }
        match state {
            IdentityState::Good => tracing::info!("AWS accepts this service's own identity again"),
            IdentityState::CredentialsRefused { code } => tracing::error!(
                aws_error_code = &*code,
                "AWS refuses this service's own credentials or requests: nothing is delivered until that is repaired; see aws_error_code"
            ),
            IdentityState::MayNotAssume => tracing::error!(
                "roles of several AWS accounts are denied together: check that the policy of this service's own identity allows sts:AssumeRole"
            ),
        }
    }
}

/// Waits for a change of the state, at most for the time that is given. Returns whether it changed.
async fn changed(state: &mut watch::Receiver<IdentityState>, within: Option<Duration>) -> bool {
    tokio::select! {
        // The sender lives as long as the receiver.
        changed = state.changed() => changed.is_ok(),
        () = async {
            match within {
                Some(within) => sleep(within).await,
                None => pending().await,
            }
        } => false,
    }
}

/// Whether an attribution may wait for the evidence of other integrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Delivery retries, and the status need not change yet.
    CanWait,
    /// A test needs its verdict now.
    Immediate,
}

/// A refusal that is attributed to this service, or not attributed yet.
fn as_ours(fault: Fault) -> Fault {
    let code = fault.code().into();
    Fault {
        cause: Cause::OwnIdentity { code },
        ..fault
    }
}

/// A refusal by the customer's region or partition alone.
fn as_customers(fault: Fault) -> Fault {
    let code = fault.code().into();
    Fault {
        cause: Cause::SessionRefused { code },
        ..fault
    }
}
