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
    time::{Instant, sleep},
};

use super::{
    AssumedWith, ExternalIdProof, Gate,
    assume_role::{AssumeRole, Tries},
    sessions::Session,
};
use crate::domain::{
    integration::Integration,
    standing::{Probe, Standing, Witnesses, is_ours},
    status::{Cause, Fault, Meaning, Reason},
};

/// How long the witnesses' word counts that a denial is the customer's.
const THEIRS_FOR: Duration = Duration::from_secs(5);
/// Between one look at what is wrong and the next: doubled each time.
const LOOK_FIRST: Duration = Duration::from_secs(10);
const LOOK_MOST: Duration = Duration::from_secs(60);

/// Assumes roles, and watches how this service itself fares at it.
pub(super) struct Identity {
    assume_role: AssumeRole,
    gate: Gate,
    standing: watch::Sender<Standing>,
    state: Mutex<State>,
    /// Whether [`State::signature_refused`] is set, for those who only look.
    is_signature_refused: AtomicBool,
    /// One asks the witnesses at a time; the others take its word.
    asking: AsyncMutex<()>,
}

/// An integration, and the external ID with which its role was assumed.
type Role = (Arc<Integration>, AssumedWith);

#[derive(Default)]
struct State {
    witnesses: Witnesses<Role>,
    /// Most roles are refused together, whatever else is wrong.
    may_not_assume: bool,
    /// Whose write was refused with a session that had just been assumed.
    signature_refused: Option<Arc<Integration>>,
    /// The witnesses have said that a denial is the customer's.
    theirs_until: Option<Instant>,
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
        Self {
            assume_role,
            gate,
            standing: watch::Sender::new(Standing::Good),
            state: Mutex::default(),
            is_signature_refused: AtomicBool::new(false),
            asking: AsyncMutex::new(()),
        }
    }

    /// Takes in roles that worked before this process began, the newest last. Time since
    /// the newest does not count: nothing worked then, whoever was to blame.
    pub(super) fn recall(&self, worked: Vec<(Arc<Integration>, Duration)>) {
        let now = Instant::now().into_std();
        let idle = worked.last().map_or(Duration::ZERO, |(_, ago)| *ago);
        let mut state = self.state();
        for (integration, ago) in worked {
            let at = now.checked_sub(ago.saturating_sub(idle));
            // Which of two external IDs worked is not known.
            if let (None, Some(at)) = (&integration.previous, at) {
                let role = (Arc::clone(&integration), AssumedWith::Current);
                state.witnesses.worked(integration.key, at, role);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
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

    /// Assumes the integration's role. A denial that speaks against this service, not
    /// against the customer, comes back as [`Cause::OwnIdentity`].
    pub(super) async fn assume(
        &self,
        integration: &Arc<Integration>,
        tries: Tries,
    ) -> Result<Arc<Session>, Fault> {
        let fault = match self.assume_role.assume(integration, tries).await {
            Ok(session) => {
                self.worked(integration, &session);
                return Ok(session);
            }
            Err(fault) => fault,
        };
        match fault.meaning() {
            Meaning::Refused(Reason::AssumeRoleDenied) => {
                Err(self.attribute(integration, fault).await)
            }
            _ => {
                self.tell_refused_credentials(&fault);
                Err(fault)
            }
        }
    }

    /// Assumes the role of an integration as it might be configured. It says nothing of
    /// the one that is, and so nothing but refused credentials of our own is remembered.
    pub(super) async fn rehearse(&self, integration: &Integration) -> Result<Arc<Session>, Fault> {
        let answer = self.assume_role.assume(integration, Tries::Both).await;
        answer.map_err(|fault| match fault.meaning() {
            Meaning::Refused(Reason::AssumeRoleDenied) if self.state().may_not_assume => {
                as_ours(fault)
            }
            _ => {
                self.tell_refused_credentials(&fault);
                fault
            }
        })
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

    /// Asks AWS who we are, which [needs no permission]: whether the credentials are
    /// any good.
    ///
    /// [needs no permission]: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    async fn check_credentials(&self) {
        match self.assume_role.who_are_we().await {
            Ok(()) => {
                let refused =
                    matches!(*self.standing.borrow(), Standing::CredentialsRefused { .. });
                self.forget_refused_signature_of_the_gone();
                if refused && !self.is_signature_refused.load(Ordering::Relaxed) {
                    self.set(self.standing_of_roles());
                }
            }
            // That AWS cannot be reached shows elsewhere.
            Err(fault) => self.tell_refused_credentials(&fault),
        }
    }

    /// Asks one witness whether we may assume roles again.
    async fn probe(&self) {
        let current = |(witness, _): &Role| self.is_current(witness);
        let next = self
            .state()
            .witnesses
            .probe(Instant::now().into_std(), current);
        match next {
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

    fn tell_refused_credentials(&self, fault: &Fault) {
        if fault.meaning() == Meaning::Ours && fault.cause != Cause::SecretUnreadable {
            let code = fault.code().into();
            self.set(Standing::CredentialsRefused { code });
        }
    }

    /// What Kinesis says of a session that was just assumed: that its signature is not
    /// good. It may be our clock; it is not the customer's fault.
    pub(super) fn signature_refused(&self, integration: &Arc<Integration>, fault: Fault) -> Fault {
        self.state().signature_refused = Some(Arc::clone(integration));
        self.is_signature_refused.store(true, Ordering::Relaxed);
        let code = fault.code().into();
        self.set(Standing::CredentialsRefused { code });
        as_ours(fault)
    }

    /// Kinesis took a signature for good.
    pub(super) fn signature_passed(&self) {
        if self.is_signature_refused.load(Ordering::Relaxed) {
            self.forget_refused_signature();
            self.set(self.standing_of_roles());
        }
    }

    /// Where it was deleted or configured anew, no write of it will tell.
    fn forget_refused_signature_of_the_gone(&self) {
        let refused = self.state().signature_refused.clone();
        if refused.is_some_and(|integration| !self.is_current(&integration)) {
            self.forget_refused_signature();
        }
    }

    fn forget_refused_signature(&self) {
        self.state().signature_refused = None;
        self.is_signature_refused.store(false, Ordering::Relaxed);
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
            let witness = (role, session.with());
            state.witnesses.worked(integration.key, now, witness);
        }
        if integration.previous.is_some() && session.with() == AssumedWith::Current {
            self.assume_role.took_over(integration);
        }
        if !self.is_signature_refused.load(Ordering::Relaxed) {
            self.set(Standing::Good);
        }
    }

    /// Whose fault a denial is. Only that of a role that worked lately, or in a time
    /// when our identity is refused, raises the question.
    async fn attribute(&self, integration: &Arc<Integration>, fault: Fault) -> Fault {
        let (worked_lately, refused) = {
            let state = self.state();
            let worked_lately = state.witnesses.knows(integration.key);
            (worked_lately, state.may_not_assume)
        };
        let is_ours = refused || (worked_lately && self.ask(integration).await);
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

    /// Has others that worked lately assumed anew: whether most of them are refused too.
    async fn ask(&self, integration: &Integration) -> bool {
        let _one = self.asking.lock().await;
        let asked = {
            let mut state = self.state();
            let now = Instant::now();
            if state.may_not_assume || state.theirs_until.is_some_and(|until| until > now) {
                return state.may_not_assume;
            }
            let current = |(witness, _): &Role| self.is_current(witness);
            let witnesses = &mut state.witnesses;
            witnesses.to_ask(integration.key, now.into_std(), current)
        };
        let Some(asked) = asked else {
            return false;
        };
        let answers = join_all(asked.roles.iter().map(|witness| self.ask_one(witness))).await;
        let clear: Vec<bool> = answers.into_iter().flatten().collect();
        let refused = clear.iter().filter(|worked| !**worked).count();
        let already = asked.refused_already;
        let ours = is_ours(clear.len() + already, refused + already);
        if !ours {
            self.state().theirs_until = Some(Instant::now() + THEIRS_FOR);
        }
        ours
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
                self.tell_refused_credentials(&fault);
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
                "this service's own AWS credentials are missing or refused: nothing can be delivered until they are mended"
            ),
            Standing::MayNotAssume => tracing::error!(
                "most roles that worked lately are refused together: check that this service's own identity may sts:AssumeRole"
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

/// A denial that speaks against this service.
fn as_ours(fault: Fault) -> Fault {
    let code = fault.code().into();
    Fault {
        cause: Cause::OwnIdentity { code },
        ..fault
    }
}
