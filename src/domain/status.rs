//! The status of an integration, and its derivation from the outcomes of AWS calls.

mod fault;
mod table;

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;

use super::integration::Integration;

pub use self::{
    fault::{CODE_COUNT, Cause, Fault, Meaning, Stage, codes},
    table::status_table_markdown,
};

named_enum! {
    /// Status of an integration, as a dashboard shows it.
    pub enum Status {
        /// No attempt has been made, or none has given a clear result.
        Unknown = "UNKNOWN",
        /// The last record that was sent was accepted.
        Active = "ACTIVE",
        /// The customer's account refuses access.
        Unauthorized = "UNAUTHORIZED",
        /// Nothing is delivered for another reason.
        Failing = "FAILING",
    }
}

named_enum! {
    /// Reason of [`Status::Unauthorized`] or [`Status::Failing`].
    pub enum Reason {
        /// AssumeRole answered AccessDenied.
        AssumeRoleDenied = "ASSUME_ROLE_DENIED",
        /// PutRecords answered AccessDenied.
        WriteDenied = "WRITE_DENIED",
        /// The role may not use the stream's KMS key.
        KmsDenied = "KMS_DENIED",
        /// The stream does not exist.
        StreamNotFound = "STREAM_NOT_FOUND",
        /// The stream's KMS key is disabled, deleted or otherwise unusable for everyone.
        KmsUnavailable = "KMS_UNAVAILABLE",
        /// AWS refuses values of the request, or sessions in the stream's region.
        InvalidConfiguration = "INVALID_CONFIGURATION",
        /// Nothing was delivered for a time because of throttling.
        Throttled = "THROTTLED",
        /// Nothing was delivered for a time because AWS did not answer or answered with errors.
        Unreachable = "UNREACHABLE",
        /// The service cannot read the events that it has stored for this integration.
        LogUnreadable = "LOG_UNREADABLE",
        /// The role can be assumed without the external ID, or with any.
        ExternalIdNotRequired = "EXTERNAL_ID_NOT_REQUIRED",
        /// Nothing was delivered for a time because of a fault of this service.
        ServiceUnavailable = "SERVICE_UNAVAILABLE",
    }
}

named_enum! {
    /// Operation of AWS that delivery uses.
    pub enum Operation {
        /// STS AssumeRole, also of probes and of the canary.
        AssumeRole = "AssumeRole",
        /// STS GetCallerIdentity.
        GetCallerIdentity = "GetCallerIdentity",
        /// Kinesis PutRecords and PutRecord.
        PutRecords = "PutRecords",
    }
}

impl Reason {
    /// Status of an integration with this reason.
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

    /// Description of the problem for the customer.
    pub fn message(self) -> &'static str {
        match self {
            Self::AssumeRoleDenied => "Unauthorized - check your Role ARN and External ID",
            Self::WriteDenied => "Unauthorized - the role may not write to the stream",
            Self::KmsDenied => "Unauthorized - the role may not use the stream's KMS key",
            Self::StreamNotFound => "Failing - the Kinesis stream does not exist",
            Self::KmsUnavailable => "Failing - the stream's KMS key cannot be used",
            Self::InvalidConfiguration => "Failing - AWS refuses the configured values",
            Self::Throttled => "Failing - the stream throttles every write",
            Self::Unreachable => {
                "Failing - AWS could not be reached or answered with internal errors"
            }
            Self::LogUnreadable => {
                "Failing - this service cannot read the events that it has stored"
            }
            Self::ExternalIdNotRequired => {
                "Unauthorized - the role can be assumed without the External ID"
            }
            Self::ServiceUnavailable => "Failing - this service has a fault and cannot deliver",
        }
    }

    /// Remedy for the customer, with the names of the integration's resources. `code` is the
    /// error code of the last attempt.
    pub fn remedy_for(self, integration: &Integration, code: &str) -> Cow<'static, str> {
        match self {
            Self::InvalidConfiguration if code == fault::OTHER_PARTITION => format!(
                "Configure a stream and a role in the AWS partition that this service runs in: the configured ARNs are in partition {}, which this service cannot reach.",
                integration.stream_arn.partition()
            )
            .into(),
            Self::InvalidConfiguration => {
                let stream = &integration.stream_arn;
                format!(
                    "Check that region {} is enabled in account {}, and that the stream ARN and the Role ARN are correct; the AWS error code shows what AWS refuses.",
                    stream.region(),
                    stream.account(),
                )
                .into()
            }
            other => other.remedy().into(),
        }
    }

    /// Remedy for the customer, without the names of resources.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::AssumeRoleDenied => {
                "Check that the role exists and that its trust policy allows sts:AssumeRole to our account with exactly the configured External ID."
            }
            Self::WriteDenied => {
                "Allow kinesis:PutRecord and kinesis:PutRecords on the stream in the role's permission policy; if role and stream are in different accounts, allow them in the stream's resource policy too."
            }
            Self::KmsDenied => {
                "Allow kms:GenerateDataKey to the role, both in the key policy of the stream's KMS key and in the role's permission policy."
            }
            Self::StreamNotFound => {
                "Create the stream in the account and region of the configured ARN, or configure the ARN of an existing stream."
            }
            Self::KmsUnavailable => {
                "Enable or restore the stream's KMS key, or select another KMS key for the stream."
            }
            Self::InvalidConfiguration => {
                "Check that the stream's region is enabled in its account, and that the stream ARN and the Role ARN are correct; the AWS error code shows what AWS refuses."
            }
            Self::Throttled => {
                "Add shards to the stream or switch it to on-demand capacity mode; until then events wait."
            }
            Self::LogUnreadable => {
                "Nothing to change in your account: the operator of this service has to repair its storage; until then events wait."
            }
            Self::ExternalIdNotRequired => {
                "Add the condition StringEquals sts:ExternalId, with exactly the configured External ID, to the role's trust policy; without it another customer could have us write to your account."
            }
            Self::ServiceUnavailable => {
                "Nothing to change in your account: the operator of this service has to repair it; until then events wait."
            }
            Self::Unreachable => {
                "Nothing to do unless it lasts: events wait and are delivered once AWS accepts them again. If it lasts, check the AWS Health Dashboard for the stream's region; if that shows no incident, contact the operator of this service."
            }
        }
    }
}

/// Status of an integration with its reason, times and AWS error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusDetail {
    /// The status.
    pub status: Status,
    /// Reason; None if the status is Unknown or Active.
    pub reason: Option<Reason>,
    /// Time of the last change of status or reason.
    pub since: Timestamp,
    /// Time of the last AWS call.
    pub last_attempt: Option<Timestamp>,
    /// Time of the last record that the stream accepted.
    pub last_delivery: Option<Timestamp>,
    /// Time of the next attempt, during a backoff.
    pub next_retry: Option<Timestamp>,
    /// AWS's error code of the last failed attempt, until one succeeds.
    pub aws_error_code: Option<Box<str>>,
    /// AWS's request id of the last failed attempt, until one succeeds.
    pub aws_request_id: Option<Box<str>>,
}

impl StatusDetail {
    /// Status of an integration before its first attempt.
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

    /// Whether `other` differs in status or reason, rather than only in times and ids.
    pub fn is_change(&self, other: &Self) -> bool {
        (self.status, self.reason) != (other.status, other.reason)
    }

    /// Whether `other` differs at most in the times of the last attempt and the last delivery.
    pub fn is_same_except_last_times(&self, other: &Self) -> bool {
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

/// Outcome of one attempt, or of a check for attempts that do not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// At least one record was accepted.
    Accepted,
    /// No record was accepted.
    Failed(Fault),
    /// No attempt was made. Events have waited longer than the setting
    /// `failing-after-seconds` with nothing accepted; the reason is the last known obstacle.
    Stalled(Reason),
}

/// Period without an accepted record or a refusal by the customer's account, kept between
/// attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    /// Times of the first and the last failure.
    span: Option<(Timestamp, Timestamp)>,
}

impl Stall {
    /// A period given by the times of its first and its last failure.
    pub fn new(span: Option<(Timestamp, Timestamp)>) -> Self {
        Self { span }
    }

    /// Times of the first and the last failure.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        self.span
    }

    /// Records a failure at `now`. Returns whether the period has lasted for `failing_after`.
    /// `backing_off` means that events have been waiting since the last attempt.
    fn extend(&mut self, failing_after: Duration, now: Timestamp, backing_off: bool) -> bool {
        let is_long = |from: Timestamp| now.duration_since(from).unsigned_abs() >= failing_after;
        let since = match self.span {
            Some((since, last)) if backing_off || !is_long(last) => since,
            // The first failure, or the first one after a long time with nothing to send.
            _ => now,
        };
        self.span = Some((since, now));
        is_long(since)
    }
}

/// Returns the status after an attempt that ended at `now`. Throttling, an outage or a fault
/// of this service becomes the status once nothing was accepted for `failing_after`.
pub fn observe(
    current: &StatusDetail,
    stall: &mut Stall,
    failing_after: Duration,
    now: Timestamp,
    observation: &Observation,
) -> StatusDetail {
    let mut next = current.clone();
    if !matches!(observation, Observation::Stalled(_)) {
        next.last_attempt = Some(now);
    }
    match observation {
        // A reason that is set already is more specific.
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
                // The customer's account answers, so this is no outage.
                (Meaning::Refused(reason), _) => {
                    *stall = Stall::default();
                    Some(reason)
                }
                (_, obstacle) => obstacle.filter(|_| stall.extend(failing_after, now, backing_off)),
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
