//! This service's own identity: told apart from what customers refuse.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    time::Instant,
};

use super::{ExternalIdProof, assume_role::AssumeRole, sessions::Session};
use crate::domain::{
    integration::Integration,
    standing::{Standing, Witnesses, is_ours},
    status::{Cause, Fault, Meaning, Reason},
};

/// How long the witnesses' word counts: short where it blames a customer.
const THEIRS_FOR: Duration = Duration::from_secs(5);
const OURS_FOR: Duration = Duration::from_secs(60);

/// Assumes roles, and watches how this service itself fares at it.
pub(super) struct Identity {
    assume_role: AssumeRole,
    standing: watch::Sender<Standing>,
    state: Mutex<State>,
    /// One asks the witnesses at a time; the others take its word.
    asking: AsyncMutex<()>,
}

#[derive(Default)]
struct State {
    witnesses: Witnesses<Arc<Integration>>,
    /// While our identity is refused, the hour of the witnesses stands still.
    refused_since: Option<Timestamp>,
    word: Option<Word>,
}

#[derive(Clone, Copy)]
struct Word {
    ours: bool,
    until: Instant,
}

impl Identity {
    pub(super) fn new(assume_role: AssumeRole) -> Self {
        Self {
            assume_role,
            standing: watch::Sender::new(Standing::Good),
            state: Mutex::default(),
            asking: AsyncMutex::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    pub(super) async fn prove_external_id(&self, integration: &Integration) -> ExternalIdProof {
        self.assume_role.prove_external_id(integration).await
    }

    /// Assumes the integration's role. A denial that speaks against this service, not
    /// against the customer, comes back as [`Cause::OwnIdentity`].
    pub(super) async fn assume(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<Arc<Session>, Fault> {
        let fault = match self.assume_role.assume(integration).await {
            Ok(session) => {
                self.worked(integration);
                return Ok(session);
            }
            Err(fault) => fault,
        };
        match fault.meaning() {
            Meaning::Ours if fault.cause != Cause::SecretUnreadable => {
                let code = fault.code().into();
                self.set(Standing::CredentialsRefused { code });
                Err(fault)
            }
            Meaning::Refused(Reason::AssumeRoleDenied) => {
                Err(self.attribute(integration, fault).await)
            }
            _ => Err(fault),
        }
    }

    /// Asks AWS who we are, which [needs no permission]: whether the credentials are
    /// any good.
    ///
    /// [needs no permission]: https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html
    pub(super) async fn check_credentials(&self) {
        match self.assume_role.who_are_we().await {
            Ok(()) => {
                let refused =
                    matches!(*self.standing.borrow(), Standing::CredentialsRefused { .. });
                if refused {
                    self.set(Standing::Good);
                }
            }
            Err(fault) if fault.meaning() == Meaning::Ours => {
                let code = fault.code().into();
                self.set(Standing::CredentialsRefused { code });
            }
            // That AWS cannot be reached shows elsewhere.
            Err(_) => {}
        }
    }

    fn worked(&self, integration: &Arc<Integration>) {
        {
            let mut state = self.state();
            let now = Timestamp::now();
            if state.refused_since.take().is_some() {
                state.word = None;
            }
            state
                .witnesses
                .worked(integration.key, now, Arc::clone(integration));
        }
        self.set(Standing::Good);
    }

    /// Whose fault a denial is. Only that of a role that worked lately, or in a time
    /// when our identity is refused, raises the question.
    async fn attribute(&self, integration: &Arc<Integration>, fault: Fault) -> Fault {
        let refused = *self.standing.borrow() == Standing::MayNotAssume;
        let worked_lately = self.state().witnesses.knows(integration.key);
        if (worked_lately || refused) && self.ask(integration).await {
            self.state()
                .refused_since
                .get_or_insert_with(Timestamp::now);
            self.set(Standing::MayNotAssume);
            let code = fault.code().into();
            return Fault {
                cause: Cause::OwnIdentity { code },
                ..fault
            };
        }
        self.state().witnesses.forget(integration.key);
        fault
    }

    /// Has others that worked lately assumed anew: whether most of them are refused too.
    async fn ask(&self, integration: &Integration) -> bool {
        let _one = self.asking.lock().await;
        let witnesses: Vec<_> = {
            let mut state = self.state();
            if let Some(word) = state.word
                && word.until > Instant::now()
            {
                return word.ours;
            }
            let now = state.refused_since.unwrap_or_else(Timestamp::now);
            let current = |witness: &Arc<Integration>| self.assume_role.is_current(witness);
            state.witnesses.to_ask(integration.key, now, current)
        };
        let answers = join_all(
            witnesses
                .iter()
                .map(|witness| self.assume_role.assume(witness)),
        )
        .await;
        let denied = |answer: &Result<_, Fault>| match answer {
            Ok(_) => Some(false),
            Err(fault) => match fault.meaning() {
                Meaning::Refused(Reason::AssumeRoleDenied) => Some(true),
                // Says nothing either way.
                _ => None,
            },
        };
        for (witness, answer) in witnesses.iter().zip(&answers) {
            if answer.is_ok() {
                self.worked(witness);
            }
        }
        let clear: Vec<bool> = answers.iter().filter_map(denied).collect();
        let refused = clear.iter().filter(|denied| **denied).count();
        let ours = is_ours(clear.len(), refused);
        let lasts = if ours { OURS_FOR } else { THEIRS_FOR };
        self.state().word = Some(Word {
            ours,
            until: Instant::now() + lasts,
        });
        ours
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
