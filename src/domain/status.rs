//! What an integration's status says, and the table that derives it from what AWS
//! or the network answered.

use std::time::Duration;

use jiff::Timestamp;

/// How long nothing may get through before throttling or an outage becomes the status.
pub const PATIENCE: Duration = Duration::from_secs(60);

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
    /// Throttled for [`PATIENCE`].
    Throttled,
    /// Unreachable for [`PATIENCE`].
    Unreachable,
}

impl Reason {
    /// The status that goes with it.
    pub fn status(self) -> Status {
        match self {
            Self::AssumeRoleDenied | Self::WriteDenied | Self::KmsDenied => Status::Unauthorized,
            Self::StreamNotFound
            | Self::KmsUnavailable
            | Self::InvalidConfiguration
            | Self::Throttled
            | Self::Unreachable => Status::Failing,
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
            Self::Unreachable => "Failing - AWS could not be reached",
        }
    }

    /// What to do about it, for a person.
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
                "Check the stream's region and the Role ARN; the AWS error code says which value AWS refuses."
            }
            Self::Throttled => {
                "Add shards to the stream or switch it to on-demand capacity; events wait meanwhile."
            }
            Self::Unreachable => {
                "Nothing to do unless it lasts: events wait and are delivered once AWS can be reached."
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
}

/// The call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// STS AssumeRole.
    AssumeRole,
    /// Kinesis PutRecord or PutRecords.
    Write,
}

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// AWS answered with an error code of its own.
    Service {
        /// Such as `AccessDeniedException`.
        code: Box<str>,
        /// The HTTP status of the answer; 0 where the code came for one record.
        http_status: u16,
    },
    /// Something answered that is not AWS's protocol, such as a proxy's error page.
    NotAws {
        /// The HTTP status of the answer.
        http_status: u16,
    },
    /// No answer within the attempt's time.
    Timeout,
    /// The connection was refused, reset or could not be made.
    Connection,
    /// This service has no credentials of its own to sign AssumeRole with.
    NoOwnCredentials,
    /// The external ID cannot be decrypted with the key that this service has.
    SecretUnreadable,
    /// AWS denied the role, as it did most others that worked lately: our own identity
    /// may not assume.
    OwnIdentity {
        /// AWS's code.
        code: Box<str>,
    },
}

/// A failed call, as facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which call.
    pub stage: Stage,
    /// How.
    pub cause: Cause,
    /// AWS's request id, where there was an answer.
    pub request_id: Option<Box<str>>,
}

impl Fault {
    /// AWS's own error code, or ours in the same style where AWS gave none.
    pub fn code(&self) -> &str {
        match &self.cause {
            Cause::Service { code, .. } | Cause::OwnIdentity { code } => code,
            Cause::NotAws { .. } => "NotAnAwsAnswer",
            Cause::Timeout => "RequestTimeout",
            Cause::Connection => "ConnectionFailed",
            Cause::NoOwnCredentials => "NoCredentials",
            Cause::SecretUnreadable => "ExternalIdUnreadable",
        }
    }

    /// What the fault means.
    pub fn meaning(&self) -> Meaning {
        match &self.cause {
            Cause::Service { code, http_status } => match self.stage {
                Stage::AssumeRole => assume_role_meaning(code, *http_status),
                Stage::Write => write_meaning(code, *http_status),
            },
            Cause::NotAws { .. } | Cause::Timeout | Cause::Connection => Meaning::Unreachable,
            Cause::NoOwnCredentials | Cause::SecretUnreadable | Cause::OwnIdentity { .. } => {
                Meaning::Ours
            }
        }
    }
}

/// What a fault means for the integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The customer's account refuses, and will until someone changes something.
    Refused(Reason),
    /// Slow down.
    Throttled,
    /// Try again later.
    Unreachable,
    /// The assumed credentials are no longer good: assume the role anew.
    SessionInvalid,
    /// This service's own credentials or keys are at fault; never the customer's.
    Ours,
}

/// Error codes of [AssumeRole] and of every Query API ([common errors]).
///
/// [AssumeRole]: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
/// [common errors]: https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
fn assume_role_meaning(code: &str, http_status: u16) -> Meaning {
    match code {
        "AccessDenied" | "AccessDeniedException" => Meaning::Refused(Reason::AssumeRoleDenied),
        "RegionDisabledException"
        | "ValidationError"
        | "ValidationException"
        | "MalformedPolicyDocument"
        | "PackedPolicyTooLarge" => Meaning::Refused(Reason::InvalidConfiguration),
        code if is_credential_problem(code) => Meaning::Ours,
        code => other_meaning(code, http_status, Reason::AssumeRoleDenied),
    }
}

/// Error codes of [PutRecords], whole or record by record.
///
/// [PutRecords]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
fn write_meaning(code: &str, http_status: u16) -> Meaning {
    match code {
        "AccessDenied" | "AccessDeniedException" => Meaning::Refused(Reason::WriteDenied),
        "KMSAccessDeniedException" => Meaning::Refused(Reason::KmsDenied),
        "ResourceNotFoundException" => Meaning::Refused(Reason::StreamNotFound),
        "KMSDisabledException"
        | "KMSInvalidStateException"
        | "KMSNotFoundException"
        | "KMSOptInRequired" => Meaning::Refused(Reason::KmsUnavailable),
        "InvalidArgumentException"
        | "ValidationException"
        | "ValidationError"
        | "OptInRequired"
        | "SubscriptionRequiredException" => Meaning::Refused(Reason::InvalidConfiguration),
        "ProvisionedThroughputExceededException"
        | "KMSThrottlingException"
        | "LimitExceededException" => Meaning::Throttled,
        // The stream is being created, changed or deleted.
        "ResourceInUseException" => Meaning::Unreachable,
        code if is_credential_problem(code) => Meaning::SessionInvalid,
        code => other_meaning(code, http_status, Reason::WriteDenied),
    }
}

fn is_credential_problem(code: &str) -> bool {
    matches!(
        code,
        "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidToken"
            | "InvalidAccessKeyId"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "NotAuthorized"
            | "RequestExpired"
            | "RequestTimeTooSkewed"
    )
}

/// Codes that no table names: by the kind of answer that HTTP gives.
fn other_meaning(code: &str, http_status: u16, denied: Reason) -> Meaning {
    match code {
        "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "BandwidthLimitExceeded" => return Meaning::Throttled,
        "InternalFailure"
        | "InternalFailureException"
        | "InternalError"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestTimeout" => return Meaning::Unreachable,
        _ => {}
    }
    match http_status {
        401 | 403 => Meaning::Refused(denied),
        429 => Meaning::Throttled,
        400..=499 => Meaning::Refused(Reason::InvalidConfiguration),
        _ => Meaning::Unreachable,
    }
}

/// What one attempt showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// At least one record was accepted.
    Accepted,
    /// Nothing was accepted.
    Failed(Fault),
}

/// What a status needs to remember between attempts: since when nothing gets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    since: Option<Timestamp>,
}

/// The status after an attempt that ended at `now`.
pub fn observe(
    current: &StatusDetail,
    stall: &mut Stall,
    now: Timestamp,
    observation: &Observation,
) -> StatusDetail {
    let mut next = current.clone();
    next.last_attempt = Some(now);
    match observation {
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
            let stalled_since = *stall.since.get_or_insert(now);
            next.aws_error_code = Some(fault.code().into());
            next.aws_request_id = fault.request_id.clone();
            let lasting = now.duration_since(stalled_since).unsigned_abs() >= PATIENCE;
            let reason = match fault.meaning() {
                Meaning::Refused(reason) => Some(reason),
                Meaning::Throttled if lasting => Some(Reason::Throttled),
                Meaning::Unreachable if lasting => Some(Reason::Unreachable),
                Meaning::Throttled
                | Meaning::Unreachable
                | Meaning::SessionInvalid
                | Meaning::Ours => None,
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
