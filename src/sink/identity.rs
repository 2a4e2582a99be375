//! This service's own identity: told apart from what customers refuse.

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
    AssumedWith, ExternalIdProof, Gate,
    assume_role::{AssumeRole, Tries},
    sessions::Session,
};
use crate::domain::{
    arn::Partition,
    attribution::{Blame, Doubts, Probe, Standing, Witnesses, is_ours},
    integration::{Integration, IntegrationKey},
    status::{Cause, Fault, Meaning, Reason, Stage},
};

/// Minimum interval between two rounds of asking other roles. Denials that arrive in between
/// wait for the next round and share its result.
const ASK_ROLES: Duration = Duration::from_secs(1);
/// Between one question to STS in doubt and the next.
const ASK_STS: Duration = Duration::from_secs(10);
/// Between one look at what is wrong and the next: doubled each time.
const LOOK_FIRST: Duration = Duration::from_secs(10);
const LOOK_MOST: Duration = Duration::from_secs(60);

/// Assumes roles, and watches how this service itself fares at it.
pub(super) struct Identity {
    assume_role: AssumeRole,
    gate: Gate,
    standing: watch::Sender<Standing>,
    state: Mutex<State>,
    /// Whether [`State::doubts`] has any, for those who only look.
    is_in_doubt: AtomicBool,
    /// Last answer about our own credentials.
    checked: AsyncMutex<Option<Checked>>,
    /// One asks other roles at a time; those who wait share its answer. Holds when the last
    /// question was asked, and whether it spoke against this service.
    asked: AsyncMutex<Option<(Instant, bool)>>,
}

/// An integration, and the external ID with which its role was assumed.
type Role = (Arc<Integration>, AssumedWith);

#[derive(Default)]
struct State {
    witnesses: Witnesses<Role>,
    /// Most roles are refused together, whatever else is wrong.
    may_not_assume: bool,
    /// Partition of this service's own credentials, once it is known.
    partition: Option<Partition>,
    /// Refused sessions of which nobody knows yet, or which are nobody else's.
    doubts: Doubts,
    /// Sessions are refused for a fault of ours.
    sessions_refused: bool,
    /// The canary role is refused though others work, as was logged.
    canary_is_broken: bool,
}

/// Last answer of STS about this service's own credentials.
struct Checked {
    asked: Instant,
    answered: Instant,
    fault: Option<Fault>,
}

impl State {
    fn may_assume(&mut self, now: std::time::Instant) {
        if std::mem::take(&mut self.may_not_assume) {
            self.witnesses.pardon(now);
        }
    }
}

impl Identity {
    pub(super) fn new(assume_role: AssumeRole, gate: Gate) -> Self {
        let partition = assume_role.region().and_then(Partition::of_region);
        Self {
            assume_role,
            gate,
            standing: watch::Sender::new(Standing::Good),
            state: Mutex::new(State {
                partition,
                ..State::default()
            }),
            is_in_doubt: AtomicBool::new(false),
            checked: AsyncMutex::new(None),
            asked: AsyncMutex::new(None),
        }
    }

    /// Takes in roles that worked before this process began, the newest last. Ages are
    /// measured from the newest, because the process may have been down since.
    pub(super) fn recall(&self, worked: Vec<(Arc<Integration>, Duration)>) {
        let now = Instant::now().into_std();
        let idle = worked.last().map_or(Duration::ZERO, |(_, ago)| *ago);
        let mut state = self.state();
        for (integration, ago) in worked {
            let at = now.checked_sub(ago.saturating_sub(idle));
            // Which of two external IDs worked is not known.
            if let (None, Some(at)) = (&integration.previous, at) {
                let account = integration.role_arn.account();
                let role = (Arc::clone(&integration), AssumedWith::Current);
                state.witnesses.worked(integration.key, account, at, role);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(super) fn partition(&self) -> Option<Partition> {
        self.state().partition
    }

    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether the integration still exists and is still configured so.
    pub(super) fn is_current(&self, integration: &Integration) -> bool {
        self.assume_role.is_current(integration)
    }

    pub(super) async fn prove_external_id(&self, integration: &Integration) -> ExternalIdProof {
        self.assume_role.prove_external_id(integration).await
    }

    /// Assumes the integration's role. A refusal that speaks against this service, not
    /// against the customer, comes back as [`Cause::OwnIdentity`]; one that speaks against
    /// the customer's region or partition as [`Cause::SessionRefused`].
    pub(super) async fn assume(
        &self,
        integration: &Arc<Integration>,
        tries: Tries,
        patience: Patience,
    ) -> Result<Arc<Session>, Fault> {
        self.check_partition(integration)?;
        let fault = match self.assume_role.assume(integration, tries).await {
            Ok(session) => {
                self.worked(integration, &session);
                return Ok(session);
            }
            Err(fault) => fault,
        };
        Err(match fault.meaning() {
            Meaning::Refused(Reason::AssumeRoleDenied) => self.attribute(integration, fault).await,
            Meaning::Ours => self.judge_credentials(integration, fault, patience).await,
            _ => fault,
        })
    }

    /// Assumes the role of an integration as it might be configured. It says nothing of
    /// the one that is, and so nothing but refused credentials of our own is remembered.
    pub(super) async fn rehearse(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<Arc<Session>, Fault> {
        self.check_partition(integration)?;
        let began = Instant::now();
        let answer = self.assume_role.assume(integration, Tries::Both).await;
        let Err(fault) = answer else { return answer };
        Err(match fault.meaning() {
            Meaning::Refused(Reason::AssumeRoleDenied) if self.may_not_assume().await => {
                as_ours(fault)
            }
            Meaning::Ours => self.judge_by_sts(fault, began, false).await,
            _ => fault,
        })
    }

    /// Credentials are good in one partition only.
    fn check_partition(&self, integration: &Integration) -> Result<(), Fault> {
        match self.partition() {
            Some(own) if own != integration.stream_arn.partition() => Err(Fault {
                stage: Stage::AssumeRole,
                cause: Cause::OtherPartition,
                request_id: None,
            }),
            _ => Ok(()),
        }
    }

    /// Looks after the standing: once at first, and then while something is wrong.
    pub(super) async fn watch(&self) {
        let mut standing = self.standing.subscribe();
        self.check_credentials().await;
        let mut wait = LOOK_FIRST;
        loop {
            let now = standing.borrow_and_update().clone();
            let within = (now != Standing::Good).then_some(wait);
            if changed(&mut standing, within).await {
                wait = LOOK_FIRST;
                continue;
            }
            wait = (wait * 2).min(LOOK_MOST);
            match now {
                Standing::Good => {}
                Standing::CredentialsRefused { .. } => self.check_credentials().await,
                Standing::MayNotAssume => self.probe().await,
            }
        }
    }

    /// Asks AWS whether our own credentials are any good.
    async fn check_credentials(&self) {
        let fault = self.ask_own_identity().await;
        match fault {
            None => {
                let refused =
                    matches!(*self.standing.borrow(), Standing::CredentialsRefused { .. });
                self.forget_doubts_of_the_gone();
                if refused && !self.state().sessions_refused {
                    self.set(self.standing_of_roles());
                }
            }
            // That AWS cannot be reached shows elsewhere.
            Some(fault) => self.note_refused_credentials(&fault),
        }
    }

    /// Why AWS does not take our own credentials, or does not answer.
    async fn ask_own_identity(&self) -> Option<Fault> {
        match self.assume_role.own_identity().await {
            Ok(partition) => {
                let mut state = self.state();
                state.partition = partition.or(state.partition);
                None
            }
            Err(fault) => Some(fault),
        }
    }

    /// As [`Identity::ask_own_identity`], at most once in [`ASK_STS`]. Returns None if the last
    /// answer is older than `since` and may not be refreshed yet.
    async fn own_identity_since(&self, since: Instant) -> Option<Result<(), Fault>> {
        let mut checked = self.checked.lock().await;
        let is_due = |last: &Checked| last.answered.elapsed() >= ASK_STS;
        if checked.as_ref().is_none_or(is_due) {
            let asked = Instant::now();
            let fault = self.ask_own_identity().await;
            *checked = Some(Checked {
                asked,
                answered: Instant::now(),
                fault,
            });
        }
        let last = checked.as_ref().filter(|last| last.asked >= since)?;
        Some(match &last.fault {
            None => Ok(()),
            Some(fault) => Err(fault.clone()),
        })
    }

    /// Asks one witness whether we may assume roles again.
    async fn probe(&self) {
        let current = |(witness, _): &Role| self.is_current(witness);
        let next = self
            .state()
            .witnesses
            .probe(Instant::now().into_std(), current);
        match next {
            // The canary says it without any customer's role.
            _ if self.assume_role.canary().is_some() => {
                if self.assume_role.assume_canary().await == Some(true) {
                    self.state().may_assume(Instant::now().into_std());
                    self.set(Standing::Good);
                }
            }
            Probe::Wait => {}
            Probe::TooFew => {
                self.state().may_assume(Instant::now().into_std());
                self.set(Standing::Good);
            }
            Probe::Ask(witness) => {
                // What it says is taken in by `ask_one`.
                let _answer = self.ask_one(&witness).await;
            }
        }
    }

    fn note_refused_credentials(&self, fault: &Fault) {
        if fault.meaning() == Meaning::Ours && fault.cause != Cause::SecretUnreadable {
            self.set_refused(fault);
        }
    }

    fn set_refused(&self, fault: &Fault) {
        let code = fault.code().into();
        self.set(Standing::CredentialsRefused { code });
    }

    /// Attributes a refusal by STS of the credentials that a role was to be assumed with.
    /// They are our own; one region or partition may refuse what others take. That others
    /// deliver says nothing: they may do so with sessions of before.
    async fn judge_credentials(
        &self,
        integration: &Arc<Integration>,
        fault: Fault,
        patience: Patience,
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
        match self.doubt(integration, patience) {
            (Blame::Service, _) => self.as_sessions_refused(fault),
            (blame, first) => {
                let patient = blame == Blame::Undecided;
                self.judge_by_sts(fault, first, patient).await
            }
        }
    }

    /// Judges refused credentials by what STS says of them when it is asked after `since`.
    /// `is_early` leaves it open whether the customer is to blame.
    async fn judge_by_sts(&self, fault: Fault, since: Instant, is_early: bool) -> Fault {
        match self.own_identity_since(since).await {
            Some(Err(own)) if own.meaning() == Meaning::Ours => self.as_refused(fault),
            Some(Ok(())) if fault.is_unknown_session() && !is_early => self.as_theirs(fault),
            _ => as_ours(fault),
        }
    }

    /// Attributes a refusal by Kinesis of a session that was just assumed: ours where all
    /// are refused, the customer's where only its region refuses.
    pub(super) async fn judge_session(
        &self,
        integration: &Arc<Integration>,
        session: &Session,
        fault: Fault,
        patience: Patience,
    ) -> Fault {
        match self.doubt(integration, patience).0 {
            Blame::Customer => self.as_theirs(fault),
            Blame::Service => self.as_sessions_refused(fault),
            Blame::Undecided => as_ours(fault),
            // A wrong signature or clock is this service's own fault. One test does not
            // show yet that nobody's is taken.
            Blame::AskSts if !fault.is_unknown_session() => match patience {
                Patience::Waits => self.as_sessions_refused(fault),
                Patience::AtOnce => as_ours(fault),
            },
            Blame::AskSts => match self.assume_role.check_session(session).await {
                Ok(()) => self.as_theirs(fault),
                Err(own) if own.meaning() == Meaning::Ours => self.as_sessions_refused(fault),
                Err(_) => as_ours(fault),
            },
        }
    }

    /// As [`Identity::judge_session`] for an integration that is not configured yet: by what
    /// STS says alone.
    pub(super) async fn judge_rehearsed(&self, session: &Session, fault: Fault) -> Fault {
        if !fault.is_unknown_session() {
            return as_ours(fault);
        }
        match self.assume_role.check_session(session).await {
            Ok(()) => self.as_theirs(fault),
            Err(_) => as_ours(fault),
        }
    }

    /// No request could be made of what there is: a fault of this service, which shows in its
    /// health unless others deliver.
    pub(super) fn judge_not_built(&self, integration: &Arc<Integration>, fault: Fault) -> Fault {
        match self.doubt(integration, Patience::Waits).0 {
            Blame::Service | Blame::AskSts => {
                self.as_sessions_refused(fault.clone());
            }
            Blame::Customer | Blame::Undecided => {}
        }
        fault
    }

    fn doubt(&self, integration: &Arc<Integration>, patience: Patience) -> (Blame, Instant) {
        let now = Instant::now().into_std();
        let mut state = self.state();
        let (blame, first) = state
            .doubts
            .refused(integration, now, patience == Patience::Waits);
        self.is_in_doubt.store(true, Ordering::Relaxed);
        (blame, Instant::from_std(first))
    }

    /// Only this customer's region or partition refuses.
    fn as_theirs(&self, fault: Fault) -> Fault {
        let code = fault.code().into();
        Fault {
            cause: Cause::SessionRefused { code },
            ..fault
        }
    }

    fn as_refused(&self, fault: Fault) -> Fault {
        self.set_refused(&fault);
        as_ours(fault)
    }

    /// Marks sessions as refused until AWS accepts one, or until every refused integration
    /// is deleted or configured anew.
    fn as_sessions_refused(&self, fault: Fault) -> Fault {
        self.state().sessions_refused = true;
        self.as_refused(fault)
    }

    /// Kinesis took the session of an integration for good.
    pub(super) fn session_passed(&self, key: IntegrationKey) {
        if self.is_in_doubt.load(Ordering::Relaxed) {
            self.end_doubt(key);
        }
    }

    fn end_doubt(&self, key: IntegrationKey) {
        let mut state = self.state();
        state.doubts.delivered(key);
        self.is_in_doubt
            .store(!state.doubts.is_empty(), Ordering::Relaxed);
        if std::mem::take(&mut state.sessions_refused) {
            self.set(match state.may_not_assume {
                true => Standing::MayNotAssume,
                false => Standing::Good,
            });
        }
    }

    /// If every refused integration was deleted or configured anew, no later write can clear
    /// the state.
    fn forget_doubts_of_the_gone(&self) {
        let mut state = self.state();
        let doubts = &mut state.doubts;
        doubts.retain(|integration| self.is_current(integration));
        if doubts.is_empty() {
            state.sessions_refused = false;
            self.is_in_doubt.store(false, Ordering::Relaxed);
        }
    }

    fn standing_of_roles(&self) -> Standing {
        match self.state().may_not_assume {
            true => Standing::MayNotAssume,
            false => Standing::Good,
        }
    }

    fn worked(&self, integration: &Arc<Integration>, session: &Session) {
        {
            let mut state = self.state();
            let (now, role) = (Instant::now().into_std(), Arc::clone(integration));
            state.may_assume(now);
            let account = integration.role_arn.account();
            let witness = (role, session.with());
            state
                .witnesses
                .worked(integration.key, account, now, witness);
        }
        if integration.previous.is_some() && session.with() == AssumedWith::Current {
            self.assume_role.took_over(integration);
        }
        if !self.state().sessions_refused {
            self.set(Standing::Good);
        }
    }

    /// Whether our identity is known to be refused, or the canary says so now.
    async fn may_not_assume(&self) -> bool {
        self.state().may_not_assume || self.assume_role.assume_canary().await == Some(false)
    }

    /// Attributes a denial to the customer or to this service.
    async fn attribute(&self, integration: &Arc<Integration>, fault: Fault) -> Fault {
        let is_ours = self.state().may_not_assume || self.ask(integration).await;
        let mut state = self.state();
        if !is_ours {
            state.witnesses.forget(integration.key);
            return fault;
        }
        state.may_not_assume = true;
        let now = Instant::now().into_std();
        state.witnesses.tried(integration.key, now);
        drop(state);
        self.set(Standing::MayNotAssume);
        as_ours(fault)
    }

    /// Asks the canary, or else others that worked lately, whether they can still be assumed:
    /// whether our identity is refused. Only an answer to a question that was asked after the
    /// denial counts.
    async fn ask(&self, integration: &Integration) -> bool {
        let denied = Instant::now();
        let mut last = self.asked.lock().await;
        if let Some((asked, is_ours)) = *last {
            if asked >= denied {
                return is_ours;
            }
            sleep_until(asked + ASK_ROLES).await;
        }
        let asked = Instant::now();
        let is_ours = self.ask_now(integration).await;
        *last = Some((asked, is_ours));
        is_ours
    }

    async fn ask_now(&self, integration: &Integration) -> bool {
        let asked = {
            let mut state = self.state();
            if state.may_not_assume {
                return true;
            }
            let current = |(witness, _): &Role| self.is_current(witness);
            let account = integration.role_arn.account();
            let now = Instant::now().into_std();
            state.witnesses.to_ask(account, now, current)
        };
        let canary = self.assume_role.assume_canary().await;
        match (canary, asked) {
            (Some(true), _) | (None, None) => false,
            // Without anyone else, the canary's word counts.
            (Some(false), None) => true,
            (canary, Some(asked)) => {
                let (refused, worked) = self.ask_witnesses(&asked.roles).await;
                if canary == Some(false) {
                    self.note_canary(worked > 0);
                    worked == 0
                } else {
                    is_ours(1 + refused + asked.refused_already, worked)
                }
            }
        }
    }

    /// Has roles assumed anew, one at first and the others where that one is refused: how many
    /// are refused, and how many work.
    async fn ask_witnesses(&self, roles: &[Role]) -> (usize, usize) {
        let Some((first, others)) = roles.split_first() else {
            return (0, 0);
        };
        let first = self.ask_one(first).await;
        if first == Some(true) {
            return (0, 1);
        }
        let others = join_all(others.iter().map(|witness| self.ask_one(witness))).await;
        let clear = others.into_iter().chain([first]).flatten();
        clear.fold((0, 0), |(refused, worked), works| match works {
            true => (refused, worked + 1),
            false => (refused + 1, worked),
        })
    }

    /// A canary that is refused while a customer's role works says nothing of this service.
    fn note_canary(&self, is_broken: bool) {
        let before = std::mem::replace(&mut self.state().canary_is_broken, is_broken);
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

    /// Has one that worked lately assumed anew: whether it works, where that is clear.
    async fn ask_one(&self, (witness, with): &Role) -> Option<bool> {
        let current = || self.is_current(witness);
        let assume = self.assume_role.assume(witness, Tries::One(*with));
        let answer = self.gate.call(witness.key, current, assume).await?;
        let (key, now) = (witness.key, Instant::now().into_std());
        match answer {
            Ok(session) => {
                self.worked(witness, &session);
                Some(true)
            }
            Err(fault) => {
                let denied = fault.meaning() == Meaning::Refused(Reason::AssumeRoleDenied);
                let witnesses = &mut self.state().witnesses;
                match denied {
                    true => witnesses.refused(key, now),
                    false => witnesses.unclear(key, now),
                }
                denied.then_some(false)
            }
        }
    }

    fn set(&self, standing: Standing) {
        let changed = self.standing.send_if_modified(|current| {
            let changed = *current != standing;
            current.clone_from(&standing);
            changed
        });
        if !changed {
            return;
        }
        match standing {
            Standing::Good => tracing::info!("this service's own AWS identity is good again"),
            Standing::CredentialsRefused { code } => tracing::error!(
                aws_error_code = &*code,
                "AWS refuses this service's own credentials or requests: nothing can be delivered until that is mended"
            ),
            Standing::MayNotAssume => tracing::error!(
                "all roles that are asked are refused together, of several AWS accounts: check that this service's own identity may sts:AssumeRole"
            ),
        }
    }
}

/// Whether the standing changes, within a time where one is given.
async fn changed(standing: &mut watch::Receiver<Standing>, within: Option<Duration>) -> bool {
    tokio::select! {
        // The sender is this service's own, and stays.
        changed = standing.changed() => changed.is_ok(),
        () = async {
            match within {
                Some(within) => sleep(within).await,
                None => pending().await,
            }
        } => false,
    }
}

/// Whether a judgment may wait for what others meet, or has to be made at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Delivery tries again, and a status need not change yet.
    Waits,
    /// Someone waits for the verdict of a test.
    AtOnce,
}

/// A refusal that speaks against this service, or against nobody yet.
fn as_ours(fault: Fault) -> Fault {
    let code = fault.code().into();
    Fault {
        cause: Cause::OwnIdentity { code },
        ..fault
    }
}
