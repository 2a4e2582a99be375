//! Failed calls, and the table of what their codes mean.

use super::Reason;

/// Code of [`Cause::OtherPartition`].
pub(super) const OTHER_PARTITION: &str = "OtherPartition";

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
    /// AWS refused this service's own identity, clock or settings, as the evidence says; or
    /// the evidence does not say yet whose fault a refused session is.
    OwnIdentity {
        /// AWS's code.
        code: Box<str>,
    },
    /// AWS refuses sessions for this integration alone: its region is not enabled in the
    /// customer's account, or its partition is another one.
    SessionRefused {
        /// AWS's code.
        code: Box<str>,
    },
    /// The integration's ARNs are of another partition than this service's credentials.
    OtherPartition,
    /// The role can be assumed without the external ID, or with any.
    ExternalIdNotRequired,
    /// No request could be made of what there is; nothing was sent.
    NotBuilt,
    /// The service's log of this integration cannot be read back.
    LogUnreadable,
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
    /// The role can be assumed by someone who does not know the external ID.
    pub fn external_id_not_required() -> Self {
        Self {
            stage: Stage::AssumeRole,
            cause: Cause::ExternalIdNotRequired,
            request_id: None,
        }
    }

    /// AWS's own error code, or ours in the same style where AWS gave none.
    pub fn code(&self) -> &str {
        match &self.cause {
            Cause::Service { code, .. }
            | Cause::OwnIdentity { code }
            | Cause::SessionRefused { code } => code,
            Cause::NotAws { .. } => "NotAnAwsAnswer",
            Cause::Timeout => "RequestTimeout",
            Cause::Connection => "ConnectionFailed",
            Cause::NoOwnCredentials => "NoCredentials",
            Cause::SecretUnreadable => "ExternalIdUnreadable",
            Cause::OtherPartition => OTHER_PARTITION,
            Cause::ExternalIdNotRequired => "ExternalIdNotRequired",
            Cause::NotBuilt => "RequestNotBuilt",
            Cause::LogUnreadable => "LogUnreadable",
        }
    }

    /// Whether Kinesis refuses the values of the request, which may be those of a
    /// single record.
    pub fn refuses_values(&self) -> bool {
        self.stage == Stage::Write
            && matches!(
                self.code(),
                "InvalidArgumentException" | "ValidationException" | "ValidationError"
            )
    }

    /// Whether STS refuses a value of AssumeRole, which may be one that this service chose.
    pub fn refuses_role_values(&self) -> bool {
        self.stage == Stage::AssumeRole
            && matches!(self.code(), "ValidationError" | "ValidationException")
    }

    /// Whether AWS does not know the credentials that a request was signed with. A region
    /// that is not enabled in an account answers so to [sessions of the account].
    ///
    /// [sessions of the account]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_temp_enable-regions.html
    pub fn is_unknown_session(&self) -> bool {
        matches!(
            self.code(),
            "UnrecognizedClientException"
                | "InvalidClientTokenId"
                | "InvalidAccessKeyId"
                | "InvalidToken"
        )
    }

    /// What the fault means.
    pub fn meaning(&self) -> Meaning {
        match &self.cause {
            Cause::Service { code, http_status } => match self.stage {
                Stage::AssumeRole => assume_role_meaning(code, *http_status),
                Stage::Write => write_meaning(code, *http_status),
            },
            Cause::SessionRefused { .. } | Cause::OtherPartition => {
                Meaning::Refused(Reason::InvalidConfiguration)
            }
            Cause::ExternalIdNotRequired => Meaning::Refused(Reason::ExternalIdNotRequired),
            Cause::LogUnreadable => Meaning::Refused(Reason::LogUnreadable),
            Cause::NotAws { .. } | Cause::Timeout | Cause::Connection => Meaning::Unreachable,
            Cause::NoOwnCredentials
            | Cause::SecretUnreadable
            | Cause::OwnIdentity { .. }
            | Cause::NotBuilt => Meaning::Ours,
        }
    }
}

impl Fault {
    /// Reason of a status that has lasted long enough; None for a refusal, which is one at once.
    pub fn obstacle(&self) -> Option<Reason> {
        match self.meaning() {
            Meaning::Throttled => Some(Reason::Throttled),
            Meaning::Unreachable => Some(Reason::Unreachable),
            Meaning::SessionInvalid | Meaning::Ours => Some(Reason::ServiceUnavailable),
            Meaning::Refused(_) => None,
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
        "AccessDenied" | "AccessDeniedException" | "NotAuthorized" => {
            Meaning::Refused(Reason::AssumeRoleDenied)
        }
        // The access key, which is ours, lacks a subscription.
        "OptInRequired" | "SubscriptionRequiredException" => Meaning::Ours,
        "RegionDisabledException"
        | "ValidationError"
        | "ValidationException"
        | "MalformedPolicyDocument"
        | "PackedPolicyTooLarge" => Meaning::Refused(Reason::InvalidConfiguration),
        code if is_credential_problem(code) => Meaning::Ours,
        code => other_meaning(code, http_status, Reason::AssumeRoleDenied),
    }
}

/// Error codes of [PutRecords], whole or record by record, and [common errors].
///
/// [PutRecords]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
/// [common errors]: https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html
fn write_meaning(code: &str, http_status: u16) -> Meaning {
    match code {
        "AccessDenied" | "AccessDeniedException" | "NotAuthorized" => {
            Meaning::Refused(Reason::WriteDenied)
        }
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
        // What stands there is not AWS, or not all of it: nothing that the customer could mend.
        "SerializationException" => Meaning::Unreachable,
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
        | "RequestThrottled"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "SlowDown"
        | "PriorRequestNotComplete"
        | "BandwidthLimitExceeded" => return Meaning::Throttled,
        "InternalFailure"
        | "InternalFailureException"
        | "InternalError"
        | "InternalServerError"
        | "ServiceUnavailable"
        | "ServiceUnavailableException"
        | "RequestAbortedException"
        | "RequestTimeout"
        | "RequestTimeoutException" => return Meaning::Unreachable,
        _ => {}
    }
    match http_status {
        401 | 403 => Meaning::Refused(denied),
        408 => Meaning::Unreachable,
        429 => Meaning::Throttled,
        400..=499 => Meaning::Refused(Reason::InvalidConfiguration),
        _ => Meaning::Unreachable,
    }
}
