//! Failed calls, and the table of what their codes mean.

use super::Reason;

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
    /// may not assume. Or Kinesis does not take the signature of a session that was just
    /// assumed: our clock may be wrong.
    OwnIdentity {
        /// AWS's code.
        code: Box<str>,
    },
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
    /// AWS's own error code, or ours in the same style where AWS gave none.
    pub fn code(&self) -> &str {
        match &self.cause {
            Cause::Service { code, .. } | Cause::OwnIdentity { code } => code,
            Cause::NotAws { .. } => "NotAnAwsAnswer",
            Cause::Timeout => "RequestTimeout",
            Cause::Connection => "ConnectionFailed",
            Cause::NoOwnCredentials => "NoCredentials",
            Cause::SecretUnreadable => "ExternalIdUnreadable",
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

    /// What the fault means.
    pub fn meaning(&self) -> Meaning {
        match &self.cause {
            Cause::Service { code, http_status } => match self.stage {
                Stage::AssumeRole => assume_role_meaning(code, *http_status),
                Stage::Write => write_meaning(code, *http_status),
            },
            Cause::LogUnreadable => Meaning::Refused(Reason::LogUnreadable),
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
