//! Injected faults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::control::{ControlError, Operation};
use super::error::AwsError;

/// A failure that calls run into on purpose.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Operation that is affected; every operation if unset.
    #[serde(default)]
    pub operation: Option<Operation>,
    /// Stream or role that is affected, by ARN or name; all if unset.
    #[serde(default)]
    pub target: Option<String>,
    /// Number of calls that are affected; unlimited if unset.
    #[serde(default)]
    pub calls: Option<u64>,
    /// Whether the call takes effect: with `after`, records are stored and credentials issued,
    /// and only the response is replaced.
    #[serde(default)]
    pub when: When,
    /// Effect on the call.
    pub effect: Effect,
}

/// Position of a fault relative to the execution of the call.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Before the call is executed: an effect that ends the call prevents its execution.
    #[default]
    Before,
    /// After the call was executed: an effect that ends the call loses its response.
    After,
}

/// Effect of a fault on a call.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// Responds with this error in AWS' format.
    Error {
        /// Error code, such as `KMSAccessDeniedException`.
        code: String,
        /// HTTP status, 400 to 599.
        #[serde(default = "bad_request")]
        status: u16,
        /// Message.
        #[serde(default)]
        message: String,
    },
    /// Responds with an HTML body, as a proxy between client and AWS would.
    Garbage {
        /// HTTP status, 200 or 400 to 599.
        #[serde(default = "bad_gateway")]
        status: u16,
    },
    /// Delays the call, at most until the fault is cleared.
    Delay {
        /// Delay in milliseconds, up to an hour.
        milliseconds: u64,
    },
    /// Holds the call up until the fault is cleared.
    Hang,
    /// Resets the TCP connection without a response.
    Reset,
    /// Fails each record of PutRecords, or the one of PutRecord, at random.
    FailRecords {
        /// Probability of failure for each record, 0 to 1.
        probability: f64,
        /// Seed of the random numbers: the same seed fails the same records.
        #[serde(default)]
        seed: u64,
        /// `ProvisionedThroughputExceededException` or `InternalFailure`.
        #[serde(default = "throughput_exceeded")]
        code: String,
    },
    /// Refuses records whose data contains a text.
    RefuseRecords {
        /// Text to search for.
        containing: String,
        /// Error code, such as `InvalidArgumentException`.
        code: String,
        /// Whether the whole request is refused, instead of the records alone.
        whole: bool,
    },
}

fn bad_request() -> u16 {
    400
}

fn bad_gateway() -> u16 {
    502
}

fn throughput_exceeded() -> String {
    "ProvisionedThroughputExceededException".to_owned()
}

/// Id of a fault, by which it is cleared.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(transparent)]
pub struct FaultId(pub u64);

/// Outcome that a fault or an error forces on a call.
#[derive(Debug)]
pub(super) enum Interruption {
    Error(AwsError),
    Garbage(StatusCode),
    Reset,
}

/// Faults that are set, in the order added.
#[derive(Default)]
pub(super) struct Faults {
    /// Length of `active`, to skip the lock in the usual case of no faults.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last_id: u64,
    active: Vec<ActiveFault>,
}

struct ActiveFault {
    id: FaultId,
    fault: Fault,
    cleared: CancellationToken,
    rng: StdRng,
}

/// Effect of one fault on one call. The tokens are cancelled when the fault is cleared.
enum Step {
    Delay(Duration, CancellationToken),
    Hang(CancellationToken),
    End(Interruption),
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, fault: Fault) -> Result<FaultId, ControlError> {
        validate(&fault)?;
        let seed = match fault.effect {
            Effect::FailRecords { seed, .. } => seed,
            _ => 0,
        };
        let mut inner = self.lock();
        inner.last_id += 1;
        let id = FaultId(inner.last_id);
        inner.active.push(ActiveFault {
            id,
            fault,
            cleared: CancellationToken::new(),
            rng: StdRng::seed_from_u64(seed),
        });
        self.count.store(inner.active.len(), Ordering::Release);
        Ok(id)
    }

    /// Faults that are set; `calls` is the number of calls left.
    pub(super) fn list(&self) -> Vec<(FaultId, Fault)> {
        let inner = self.lock();
        inner
            .active
            .iter()
            .map(|active| (active.id, active.fault.clone()))
            .collect()
    }

    /// Clears one fault, or all. Returns the number cleared. Calls that they hold up continue.
    pub(super) fn clear(&self, id: Option<FaultId>) -> usize {
        let mut inner = self.lock();
        let before = inner.active.len();
        inner.active.retain(|active| {
            let clear = id.is_none_or(|id| id == active.id);
            if clear {
                active.cleared.cancel();
            }
            !clear
        });
        self.count.store(inner.active.len(), Ordering::Release);
        before - inner.active.len()
    }

    /// Applies the faults that affect this call as a whole, waiting where they delay it.
    pub(super) async fn apply(
        &self,
        when: When,
        operation: Operation,
        target: &str,
    ) -> Result<(), Interruption> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        for step in self.steps(when, operation, target) {
            match step {
                Step::Delay(delay, cleared) => {
                    // The call continues after the delay, or earlier if the fault is cleared.
                    let _ = tokio::time::timeout(delay, cleared.cancelled()).await;
                }
                Step::Hang(cleared) => cleared.cancelled().await,
                Step::End(interruption) => return Err(interruption),
            }
        }
        Ok(())
    }

    fn steps(&self, when: When, operation: Operation, target: &str) -> Vec<Step> {
        let mut inner = self.lock();
        let mut steps = Vec::new();
        for active in &mut inner.active {
            if active.fault.when != when || !active.fault.affects(operation, target) {
                continue;
            }
            let step = match &active.fault.effect {
                Effect::Delay { milliseconds } => {
                    Step::Delay(Duration::from_millis(*milliseconds), active.cleared.clone())
                }
                Effect::Hang => Step::Hang(active.cleared.clone()),
                Effect::Error {
                    code,
                    status,
                    message,
                } => Step::End(Interruption::Error(AwsError {
                    code: code.clone().into(),
                    status: http_status(*status),
                    message: message.clone(),
                })),
                Effect::Garbage { status } => {
                    Step::End(Interruption::Garbage(http_status(*status)))
                }
                Effect::Reset => Step::End(Interruption::Reset),
                Effect::FailRecords { .. } | Effect::RefuseRecords { .. } => continue,
            };
            if !active.take_call() {
                continue;
            }
            let ends = matches!(step, Step::End(_));
            steps.push(step);
            if ends {
                break;
            }
        }
        steps
    }

    /// Returns the error code of each record that fails at random. An empty list means none.
    pub(super) fn fail_records(
        &self,
        operation: Operation,
        target: &str,
        records: usize,
    ) -> Vec<Option<String>> {
        let mut failures = Vec::new();
        if self.count.load(Ordering::Acquire) == 0 {
            return failures;
        }
        let mut inner = self.lock();
        for active in &mut inner.active {
            let Effect::FailRecords {
                probability, code, ..
            } = &active.fault.effect
            else {
                continue;
            };
            let (probability, code) = (*probability, code.clone());
            if !active.fault.affects(operation, target) || !active.take_call() {
                continue;
            }
            failures.resize(records, None);
            for failure in &mut failures {
                // Drawn even for a record that fails already, so that a seed selects the same
                // records whatever other faults are set.
                if active.rng.random_bool(probability) {
                    failure.get_or_insert_with(|| code.clone());
                }
            }
        }
        failures
    }

    /// Returns the error code of each record that is refused for its data. An empty list means
    /// none.
    ///
    /// # Errors
    /// The whole request is refused.
    pub(super) fn refuse_records<'a>(
        &self,
        operation: Operation,
        target: &str,
        records: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Result<Vec<Option<String>>, AwsError> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(Vec::new());
        }
        let mut refused: Vec<Option<String>> = vec![None; records.clone().count()];
        for active in &mut self.lock().active {
            let Effect::RefuseRecords {
                containing,
                code,
                whole,
            } = &active.fault.effect
            else {
                continue;
            };
            if !active.fault.affects(operation, target) {
                continue;
            }
            let (code, whole) = (code.clone(), *whole);
            let contains = |data: &[u8]| {
                let mut windows = data.windows(containing.len());
                windows.any(|window| window == containing.as_bytes())
            };
            let matching: Vec<bool> = records.clone().map(contains).collect();
            if !matching.contains(&true) || !active.take_call() {
                continue;
            }
            if whole {
                let message = "A record is not acceptable.".to_owned();
                return Err(AwsError {
                    code: code.into(),
                    status: StatusCode::BAD_REQUEST,
                    message,
                });
            }
            for (refused, _) in refused
                .iter_mut()
                .zip(matching)
                .filter(|(_, matching)| *matching)
            {
                refused.get_or_insert_with(|| code.clone());
            }
        }
        Ok(refused)
    }
}

impl Fault {
    fn affects(&self, operation: Operation, target: &str) -> bool {
        self.calls != Some(0)
            && self.operation.is_none_or(|this| this == operation)
            && self
                .target
                .as_ref()
                .is_none_or(|this| same_target(this, target))
    }
}

impl ActiveFault {
    /// Uses up one of the calls that the fault is limited to. Returns whether one was left.
    fn take_call(&mut self) -> bool {
        match &mut self.fault.calls {
            None => true,
            Some(0) => false,
            Some(calls) => {
                *calls -= 1;
                true
            }
        }
    }
}

/// Whether two targets are the same. A name is the part of an ARN after its last slash.
fn same_target(a: &str, b: &str) -> bool {
    let named = |arn: &str, name: &str| arn.rsplit_once('/').is_some_and(|(_, last)| last == name);
    a == b || named(a, b) || named(b, a)
}

/// Converts a status whose range `validate` has checked.
fn http_status(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn validate(fault: &Fault) -> Result<(), ControlError> {
    let invalid = |what: &str| Err(ControlError::InvalidFault(what.to_owned()));
    match &fault.effect {
        Effect::Error { status, .. } if !(400..600).contains(status) => {
            invalid("status must be from 400 to 599")
        }
        Effect::Garbage { status } if *status != 200 && !(400..600).contains(status) => {
            invalid("status must be 200 or from 400 to 599")
        }
        Effect::Error { code, .. }
        | Effect::FailRecords { code, .. }
        | Effect::RefuseRecords { code, .. }
            if code.is_empty() || !code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.') =>
        {
            invalid("code must consist of letters, digits and dots")
        }
        Effect::Delay { milliseconds } if *milliseconds > 3_600_000 => {
            invalid("milliseconds must be at most 3600000")
        }
        Effect::FailRecords { probability, .. } if !(0.0..=1.0).contains(probability) => {
            invalid("probability must be from 0 to 1")
        }
        Effect::RefuseRecords { containing, .. } if containing.is_empty() => {
            invalid("containing must not be empty")
        }
        Effect::FailRecords { .. } | Effect::RefuseRecords { .. } if fault.when == When::After => {
            invalid("when must be before for an effect on single records")
        }
        _ => Ok(()),
    }
}
