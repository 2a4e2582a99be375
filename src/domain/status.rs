//! What an integration's status says, and how it follows from what AWS or the network
//! answered.

mod fault;
mod table;

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;

use super::integration::Integration;

pub use self::{
    fault::{Cause, Fault, Meaning, Stage},
    table::status_table_markdown,
};

/// The badge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// No attempt has shown anything yet.
    Unknown,
    /// The last record that was attempted got through.
    Active,
    /// The customer's account refuses.
    Unauthorized,
    /// Nothing gets through for another reason.
    Failing,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 4] = [
        Self::Unknown,
        Self::Active,
        Self::Unauthorized,
        Self::Failing,
    ];

    /// As it is stored and logged.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Active => "ACTIVE",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Failing => "FAILING",
        }
    }
}

/// Why a status is [`Status::Unauthorized`] or [`Status::Failing`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// AssumeRole answered AccessDenied.
    AssumeRoleDenied,
    /// PutRecords answered AccessDenied.
    WriteDenied,
    /// The role may not use the stream's KMS key.
    KmsDenied,
    /// The stream does not exist.
    StreamNotFound,
    /// The stream's KMS key cannot be used by anyone now.
    KmsUnavailable,
    /// AWS refuses the request's values.
    InvalidConfiguration,
    /// Nothing got through for a while, for throttling.
    Throttled,
    /// Nothing got through for a while, for an outage.
    Unreachable,
    /// The service cannot read its own log of this integration.
    LogUnreadable,
    /// The role can be assumed by someone who does not know the external ID.
    ExternalIdNotRequired,
    /// Nothing got through for a while, and the cause is on this service's side.
    ServiceUnavailable,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::AssumeRoleDenied,
        Self::WriteDenied,
        Self::KmsDenied,
        Self::StreamNotFound,
        Self::KmsUnavailable,
        Self::InvalidConfiguration,
        Self::Throttled,
        Self::Unreachable,
        Self::LogUnreadable,
        Self::ExternalIdNotRequired,
        Self::ServiceUnavailable,
    ];

    /// As it is stored and logged.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AssumeRoleDenied => "ASSUME_ROLE_DENIED",
            Self::WriteDenied => "WRITE_DENIED",
            Self::KmsDenied => "KMS_DENIED",
            Self::StreamNotFound => "STREAM_NOT_FOUND",
            Self::KmsUnavailable => "KMS_UNAVAILABLE",
            Self::InvalidConfiguration => "INVALID_CONFIGURATION",
            Self::Throttled => "THROTTLED",
            Self::Unreachable => "UNREACHABLE",
            Self::LogUnreadable => "LOG_UNREADABLE",
            Self::ExternalIdNotRequired => "EXTERNAL_ID_NOT_REQUIRED",
            Self::ServiceUnavailable => "SERVICE_UNAVAILABLE",
        }
    }

    /// The status that goes with it.
    pub fn status(self) -> Status {
        match self {
            Self::AssumeRoleDenied
            | Self::WriteDenied
            | Self::KmsDenied
            | Self::ExternalIdNotRequired => Status::Unauthorized,
            Self::StreamNotFound
            | Self::KmsUnavailable
            | Self::InvalidConfiguration
            | Self::Throttled
            | Self::Unreachable
            | Self::LogUnreadable
            | Self::ServiceUnavailable => Status::Failing,
        }
    }

    /// What is wrong, for a person.
    pub fn message(self) -> &'static str {
        match self {
            Self::AssumeRoleDenied => "Unauthorized - check your Role ARN and External ID",
            Self::WriteDenied => "Unauthorized - the role may not write to the stream",
            Self::KmsDenied => "Unauthorized - the role may not use the stream's KMS key",
            Self::StreamNotFound => "Failing - the Kinesis stream does not exist",
            Self::KmsUnavailable => "Failing - the stream's KMS key cannot be used",
            Self::InvalidConfiguration => "Failing - AWS refuses the configuration",
            Self::Throttled => "Failing - the stream has been throttling every write",
            Self::Unreachable => {
                "Failing - AWS could not be reached, or has been answering with errors of its own"
            }
            Self::LogUnreadable => "Failing - the service cannot read what it has accepted",
            Self::ExternalIdNotRequired => {
                "Unauthorized - the role can be assumed without the External ID"
            }
            Self::ServiceUnavailable => "Failing - this service cannot deliver at the moment",
        }
    }

    /// The remedy, for a person, with the names of the integration's own resources. `code` is
    /// the error code of the last attempt.
    pub fn remedy_for(self, integration: &Integration, code: &str) -> Cow<'static, str> {
        match self {
            Self::InvalidConfiguration if code == fault::OTHER_PARTITION => format!(
                "The ARNs are of partition {}, and this service's own credentials are of another one: configure a stream and a role of the partition that the service runs in.",
                integration.stream_arn.partition()
            )
            .into(),
            Self::InvalidConfiguration => {
                let stream = &integration.stream_arn;
                format!(
                    "Check that region {} is enabled in account {}, and that the stream ARN and the Role ARN are right; the AWS error code says what AWS refuses.",
                    stream.region(),
                    stream.account(),
                )
                .into()
            }
            other => other.remedy().into(),
        }
    }

    /// The remedy, for a person, whichever the integration.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::AssumeRoleDenied => {
                "Check that the role exists and that its trust policy allows sts:AssumeRole to our account with exactly the External ID that is configured."
            }
            Self::WriteDenied => {
                "Allow kinesis:PutRecord and kinesis:PutRecords on the stream in the role's permission policy, and in the stream's resource policy where the accounts differ."
            }
            Self::KmsDenied => {
                "Allow kms:GenerateDataKey to the role in the policy of the stream's KMS key and in the role's permission policy."
            }
            Self::StreamNotFound => {
                "Create the stream, or configure the ARN of a stream that exists in that account and region."
            }
            Self::KmsUnavailable => {
                "Enable or restore the stream's KMS key, or choose another one for the stream."
            }
            Self::InvalidConfiguration => {
                "Check that the stream's region is enabled in its account, and that the stream ARN and the Role ARN are right; the AWS error code says what AWS refuses."
            }
            Self::Throttled => {
                "Add shards to the stream or switch it to on-demand capacity; events wait meanwhile."
            }
            Self::LogUnreadable => {
                "Nothing to change in your account: the operator of this service has to repair its storage."
            }
            Self::ExternalIdNotRequired => {
                "Add the condition StringEquals sts:ExternalId with exactly the External ID that is configured to the role's trust policy; without it another customer could have us write to your account."
            }
            Self::ServiceUnavailable => {
                "Nothing to change in your account: the operator of this service has to act; events wait and are delivered afterwards."
            }
            Self::Unreachable => {
                "Nothing to do unless it lasts: events wait and are delivered once AWS takes them again."
            }
        }
    }
}

/// An integration's status with all that explains it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusDetail {
    /// The badge.
    pub status: Status,
    /// Why, where it is neither Unknown nor Active.
    pub reason: Option<Reason>,
    /// Since when status and reason are what they are.
    pub since: Timestamp,
    /// The last AWS call.
    pub last_attempt: Option<Timestamp>,
    /// The last record that the stream accepted.
    pub last_delivery: Option<Timestamp>,
    /// When the next attempt is due, while backing off.
    pub next_retry: Option<Timestamp>,
    /// AWS's error code of the last failed attempt, until one succeeds.
    pub aws_error_code: Option<Box<str>>,
    /// AWS's request id of the last failed attempt, until one succeeds.
    pub aws_request_id: Option<Box<str>>,
}

impl StatusDetail {
    /// The status of an integration that no attempt has been made for.
    pub fn unknown(since: Timestamp) -> Self {
        Self {
            status: Status::Unknown,
            reason: None,
            since,
            last_attempt: None,
            last_delivery: None,
            next_retry: None,
            aws_error_code: None,
            aws_request_id: None,
        }
    }

    /// Whether `other` says something else than mere times and ids.
    pub fn is_change(&self, other: &Self) -> bool {
        (self.status, self.reason) != (other.status, other.reason)
    }

    /// Whether `other` differs at the most in when the last attempt and delivery were.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let Self {
            status,
            reason,
            since,
            last_attempt: _,
            last_delivery: _,
            next_retry,
            aws_error_code,
            aws_request_id,
        } = other;
        (self.status, self.reason, self.since, self.next_retry)
            == (*status, *reason, *since, *next_retry)
            && (&self.aws_error_code, &self.aws_request_id) == (aws_error_code, aws_request_id)
    }
}

/// What one attempt showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// At least one record was accepted.
    Accepted,
    /// Nothing was accepted.
    Failed(Fault),
    /// No attempt was made. Events have waited longer than the patience with nothing
    /// accepted; the reason is the last known obstacle.
    Stalled(Reason),
}

/// Period in which nothing has got through, kept between attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// First and last failure that is no refusal by the customer's account.
    span: Option<(Timestamp, Timestamp)>,
}

impl Stall {
    /// Another such failure. Returns whether nothing has got through for `patience`.
    /// `backing_off` says that events have been waiting since the last attempt.
    fn lasts(&mut self, patience: Duration, now: Timestamp, backing_off: bool) -> bool {
        let long = |from: Timestamp| now.duration_since(from).unsigned_abs() >= patience;
        let since = match self.span {
            // Otherwise there was nothing to send for long.
            Some((since, last)) if backing_off || !long(last) => since,
            _ => now,
        };
        self.span = Some((since, now));
        long(since)
    }
}

/// The status after an attempt that ended at `now`. Throttling, an outage or a fault of this
/// service becomes the status once nothing has got through for `patience`.
pub fn observe(
    current: &StatusDetail,
    stall: &mut Stall,
    patience: Duration,
    now: Timestamp,
    observation: &Observation,
) -> StatusDetail {
    let mut next = current.clone();
    if !matches!(observation, Observation::Stalled(_)) {
        next.last_attempt = Some(now);
    }
    match observation {
        // A status that names a reason already tells more.
        Observation::Stalled(reason) if current.reason.is_none() => {
            next.status = reason.status();
            next.reason = Some(*reason);
        }
        Observation::Stalled(_) => {}
        Observation::Accepted => {
            *stall = Stall::default();
            next.status = Status::Active;
            next.reason = None;
            next.last_delivery = Some(now);
            next.next_retry = None;
            next.aws_error_code = None;
            next.aws_request_id = None;
        }
        Observation::Failed(fault) => {
            next.aws_error_code = Some(fault.code().into());
            next.aws_request_id = fault.request_id.clone();
            let backing_off = current.next_retry.is_some();
            let reason = match (fault.meaning(), fault.obstacle()) {
                // The customer's account answers, so that nothing stalls.
                (Meaning::Refused(reason), _) => {
                    *stall = Stall::default();
                    Some(reason)
                }
                (_, obstacle) => obstacle.filter(|_| stall.lasts(patience, now, backing_off)),
            };
            if let Some(reason) = reason {
                next.status = reason.status();
                next.reason = Some(reason);
            }
        }
    }
    if current.is_change(&next) {
        next.since = now;
    }
    next
}

#[cfg(test)]
mod tests;
