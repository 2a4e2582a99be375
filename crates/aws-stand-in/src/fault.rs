//! Faults on demand.

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

/// Something that goes wrong on purpose.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The operation that fails; none is every operation.
    #[serde(default)]
    pub operation: Option<Operation>,
    /// The stream or role that fails, by ARN or name; none is all of them.
    #[serde(default)]
    pub target: Option<String>,
    /// How many calls fail; none is all until the fault is cleared.
    #[serde(default)]
    pub calls: Option<u64>,
    /// Whether the call still takes effect: with `after`, records are stored and credentials
    /// issued, but the answer is the fault's.
    #[serde(default)]
    pub when: When,
    /// What happens.
    pub effect: Effect,
}

/// On which side of the call's own work a fault stands.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Instead of the work.
    #[default]
    Before,
    /// Once the work is done.
    After,
}

/// What a fault does.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// Answers this error in AWS' own shape.
    Error {
        /// The error code, such as `KMSAccessDeniedException`.
        code: String,
        /// The HTTP status, 400 to 599.
        #[serde(default = "bad_request")]
        status: u16,
        /// The message.
        #[serde(default)]
        message: String,
    },
    /// Answers a body that is neither JSON nor XML, as a proxy in between would.
    Garbage {
        /// The HTTP status, 200 or 400 to 599.
        #[serde(default = "bad_gateway")]
        status: u16,
    },
    /// Waits this long, or until the fault is cleared, then goes on.
    Delay {
        /// How long, in milliseconds, up to an hour.
        milliseconds: u64,
    },
    /// Waits until the fault is cleared, then goes on.
    Hang,
    /// Resets the connection without an answer.
    Reset,
    /// Refuses each record of PutRecords, or the one of PutRecord, at random.
    FailRecords {
        /// The chance of each record, 0 to 1.
        probability: f64,
        /// The same seed refuses the same records.
        #[serde(default)]
        seed: u64,
        /// `ProvisionedThroughputExceededException` or `InternalFailure`.
        #[serde(default = "throughput_exceeded")]
        code: String,
    },
    /// Refuses records that hold a text.
    RefuseRecords {
        /// The text, in a record's data.
        containing: String,
        /// The code, such as `InvalidArgumentException`.
        code: String,
        /// Whether the request is refused for it, and not only the record.
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

/// Names a fault, to clear it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(transparent)]
pub struct FaultId(pub u64);

/// What ends a call early.
#[derive(Debug)]
pub(super) enum Interruption {
    Error(AwsError),
    Garbage(StatusCode),
    Reset,
}

/// All faults that are set.
#[derive(Default)]
pub(super) struct Faults {
    /// So that the usual call, with no fault set, takes no lock.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last_id: u64,
    set: Vec<Set>,
}

struct Set {
    id: FaultId,
    fault: Fault,
    cleared: CancellationToken,
    rng: StdRng,
}

enum Step {
    Wait(Duration, CancellationToken),
    WaitFor(CancellationToken),
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
        inner.set.push(Set {
            id,
            fault,
            cleared: CancellationToken::new(),
            rng: StdRng::seed_from_u64(seed),
        });
        self.count.store(inner.set.len(), Ordering::Release);
        Ok(id)
    }

    /// The faults that are set, with the calls they still have.
    pub(super) fn list(&self) -> Vec<(FaultId, Fault)> {
        let inner = self.lock();
        inner
            .set
            .iter()
            .map(|set| (set.id, set.fault.clone()))
            .collect()
    }

    /// Clears one fault, or all; answers how many. Calls that hang go on.
    pub(super) fn clear(&self, id: Option<FaultId>) -> usize {
        let mut inner = self.lock();
        let before = inner.set.len();
        inner.set.retain(|set| {
            let goes = id.is_none_or(|id| id == set.id);
            if goes {
                set.cleared.cancel();
            }
            !goes
        });
        self.count.store(inner.set.len(), Ordering::Release);
        before - inner.set.len()
    }

    /// Goes through the faults for this call, waiting as they say.
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
                Step::Wait(time, cleared) => {
                    // Whether the time is over or the fault is cleared, the call goes on.
                    let _ = tokio::time::timeout(time, cleared.cancelled()).await;
                }
                Step::WaitFor(cleared) => cleared.cancelled().await,
                Step::End(interruption) => return Err(interruption),
            }
        }
        Ok(())
    }

    fn steps(&self, when: When, operation: Operation, target: &str) -> Vec<Step> {
        let mut inner = self.lock();
        let mut steps = Vec::new();
        for set in &mut inner.set {
            if set.fault.when != when || !set.fault.concerns(operation, target) {
                continue;
            }
            let step = match &set.fault.effect {
                Effect::Delay { milliseconds } => {
                    Step::Wait(Duration::from_millis(*milliseconds), set.cleared.clone())
                }
                Effect::Hang => Step::WaitFor(set.cleared.clone()),
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
            if !set.take_call() {
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

    /// For each of so many records, the code with which it fails, if it does.
    pub(super) fn fail_records(
        &self,
        operation: Operation,
        target: &str,
        records: usize,
    ) -> Vec<Option<String>> {
        let mut fails = Vec::new();
        if self.count.load(Ordering::Acquire) == 0 {
            return fails;
        }
        let mut inner = self.lock();
        for set in &mut inner.set {
            let Effect::FailRecords {
                probability, code, ..
            } = &set.fault.effect
            else {
                continue;
            };
            let (probability, code) = (*probability, code.clone());
            if !set.fault.concerns(operation, target) || !set.take_call() {
                continue;
            }
            fails.resize(records, None);
            for fail in &mut fails {
                // Drawn for every record, so that a seed means the same whatever else is set.
                if set.rng.random_bool(probability) {
                    fail.get_or_insert_with(|| code.clone());
                }
            }
        }
        fails
    }

    /// For each of the records, the code with which it is refused, if it is; an error
    /// where the request is.
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
        for set in &mut self.lock().set {
            let Effect::RefuseRecords {
                containing,
                code,
                whole,
            } = &set.fault.effect
            else {
                continue;
            };
            if !set.fault.concerns(operation, target) {
                continue;
            }
            let (code, whole) = (code.clone(), *whole);
            let holds = |data: &[u8]| {
                let mut windows = data.windows(containing.len());
                windows.any(|window| window == containing.as_bytes())
            };
            let held: Vec<bool> = records.clone().map(holds).collect();
            if !held.contains(&true) || !set.take_call() {
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
            for (refused, _) in refused.iter_mut().zip(held).filter(|(_, held)| *held) {
                refused.get_or_insert_with(|| code.clone());
            }
        }
        Ok(refused)
    }
}

impl Fault {
    fn concerns(&self, operation: Operation, target: &str) -> bool {
        self.calls != Some(0)
            && self.operation.is_none_or(|this| this == operation)
            && self
                .target
                .as_ref()
                .is_none_or(|this| same_target(this, target))
    }
}

impl Set {
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

/// An ARN also goes by what follows its last slash.
fn same_target(a: &str, b: &str) -> bool {
    let named = |arn: &str, name: &str| arn.rsplit_once('/').is_some_and(|(_, last)| last == name);
    a == b || named(a, b) || named(b, a)
}

/// `validate` has seen to the range.
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
            invalid("code must be letters and digits")
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
            invalid("what concerns single records has no when")
        }
        _ => Ok(()),
    }
}
