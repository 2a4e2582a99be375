//! Failed calls to AWS. This module alone decides the meaning of an AWS error code.

use super::Reason;

/// Code of [`Cause::OtherPartition`].
pub(super) const OTHER_PARTITION: &str = "OtherPartition";

/// Codes of [`Fault::code`] that AWS does not have; `RequestTimeout` is one of AWS too.
const OF_THIS_SERVICE: [&str; 9] = [
    "NotAnAwsAnswer",
    "ConnectionFailed",
    "TooManyOpenFiles",
    "NoCredentials",
    "ExternalIdUnreadable",
    "ExternalIdNotRequired",
    "RequestNotBuilt",
    "LogUnreadable",
    OTHER_PARTITION,
];

/// Number of [`codes`].
pub const CODE_COUNT: usize =
    OF_ALL.len() + OF_ASSUME_ROLE.len() + OF_WRITE.len() + OF_THIS_SERVICE.len();

/// Every code that [`Fault::code`] returns, as long as AWS answers what it documents.
pub fn codes() -> impl Iterator<Item = &'static str> {
    let of_aws = OF_ALL.iter().chain(&OF_ASSUME_ROLE).chain(&OF_WRITE);
    of_aws.map(|(code, _)| *code).chain(OF_THIS_SERVICE)
}

/// Length limit of a code or request id that is kept; those of AWS have below 70 characters.
const MAX_TOKEN_LENGTH: usize = 128;

/// The call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// STS AssumeRole.
    AssumeRole,
    /// Kinesis PutRecord or PutRecords.
    Write,
}

/// Cause of a failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// AWS answered with an error code.
    Service {
        /// Such as `AccessDeniedException`.
        code: Box<str>,
        /// HTTP status of the answer; 0 if the code is that of a single record.
        http_status: u16,
    },
    /// The answer does not follow AWS's protocol, such as a proxy's error page.
    NotAws {
        /// HTTP status of the answer.
        http_status: u16,
    },
    /// No answer within the attempt's timeout.
    Timeout,
    /// The connection was refused, reset or could not be made.
    Connection,
    /// The process or the system has no file descriptor left for a connection.
    TooManyOpenFiles,
    /// This service has no credentials to sign AssumeRole with.
    NoOwnCredentials,
    /// The external ID cannot be decrypted with this service's key.
    SecretUnreadable,
    /// AWS refused this service's own identity, clock or settings, according to the evidence;
    /// or there is not enough evidence yet to attribute a refused session.
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
    /// The request could not be built; nothing was sent.
    NotBuilt,
    /// The service's log of this integration cannot be read back.
    LogUnreadable,
}

/// A failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The call that failed.
    pub stage: Stage,
    /// Cause of the failure.
    pub cause: Cause,
    /// AWS's request id, if there was an answer.
    pub request_id: Option<Box<str>>,
}

impl Fault {
    /// A call without an answer from AWS.
    pub fn unanswered(stage: Stage, cause: Cause) -> Self {
        Self {
            stage,
            cause,
            request_id: None,
        }
    }

    /// A call that was answered with an error. Without a code that looks like one of AWS, the
    /// answer came from something else.
    pub fn answered(
        stage: Stage,
        code: Option<&str>,
        http_status: u16,
        request_id: Option<&str>,
    ) -> Self {
        let cause = match code.filter(|code| is_token(code)) {
            Some(code) => Cause::Service {
                code: code.into(),
                http_status,
            },
            None => Cause::NotAws { http_status },
        };
        Self {
            stage,
            cause,
            request_id: token(request_id),
        }
    }

    /// An answer that does not follow AWS's protocol.
    pub fn not_aws(stage: Stage, http_status: u16, request_id: Option<&str>) -> Self {
        Self::answered(stage, None, http_status, request_id)
    }

    /// A record that failed in a request that succeeded.
    pub fn of_record(code: &str, request_id: Option<&str>) -> Self {
        match is_token(code) {
            true => Self::answered(Stage::Write, Some(code), 0, request_id),
            false => Self::not_aws(Stage::Write, 200, request_id),
        }
    }

    /// The role can be assumed without knowing the external ID.
    pub fn external_id_not_required() -> Self {
        Self::unanswered(Stage::AssumeRole, Cause::ExternalIdNotRequired)
    }

    /// AWS's own error code, or one of ours in the same style if AWS gave none.
    pub fn code(&self) -> &str {
        match &self.cause {
            Cause::Service { code, .. }
            | Cause::OwnIdentity { code }
            | Cause::SessionRefused { code } => code,
            Cause::NotAws { .. } => "NotAnAwsAnswer",
            Cause::Timeout => "RequestTimeout",
            Cause::Connection => "ConnectionFailed",
            Cause::TooManyOpenFiles => "TooManyOpenFiles",
            Cause::NoOwnCredentials => "NoCredentials",
            Cause::SecretUnreadable => "ExternalIdUnreadable",
            Cause::OtherPartition => OTHER_PARTITION,
            Cause::ExternalIdNotRequired => "ExternalIdNotRequired",
            Cause::NotBuilt => "RequestNotBuilt",
            Cause::LogUnreadable => "LogUnreadable",
        }
    }

    /// Meaning of the fault for the integration.
    pub fn meaning(&self) -> Meaning {
        match &self.cause {
            Cause::Service { code, http_status } => {
                service_meaning(self.stage, CodeClass::of(self.stage, code), *http_status)
            }
            Cause::SessionRefused { .. } | Cause::OtherPartition => {
                Meaning::Refused(Reason::InvalidConfiguration)
            }
            Cause::ExternalIdNotRequired => Meaning::Refused(Reason::ExternalIdNotRequired),
            Cause::LogUnreadable => Meaning::Refused(Reason::LogUnreadable),
            Cause::NotAws { .. } | Cause::Timeout | Cause::Connection => Meaning::Unreachable,
            Cause::TooManyOpenFiles
            | Cause::NoOwnCredentials
            | Cause::SecretUnreadable
            | Cause::OwnIdentity { .. }
            | Cause::NotBuilt => Meaning::Ours,
        }
    }

    /// Reason of the status once the fault has lasted long enough; None for a refusal, which
    /// becomes the status at once.
    pub fn obstacle(&self) -> Option<Reason> {
        match self.meaning() {
            Meaning::Throttled => Some(Reason::Throttled),
            Meaning::Unreachable => Some(Reason::Unreachable),
            Meaning::SessionInvalid | Meaning::Ours => Some(Reason::ServiceUnavailable),
            Meaning::Refused(_) => None,
        }
    }

    /// Whether it shows that AWS refuses this service's own identity, or would. A fault of one
    /// secret or of this host shows nothing of the kind.
    pub fn is_service_refused(&self) -> bool {
        let is_local = matches!(
            self.cause,
            Cause::SecretUnreadable | Cause::TooManyOpenFiles
        );
        self.meaning() == Meaning::Ours && !is_local
    }

    /// Whether STS denies AssumeRole.
    pub fn is_role_denied(&self) -> bool {
        self.meaning() == Meaning::Refused(Reason::AssumeRoleDenied)
    }

    /// Whether Kinesis refuses a value of the request, which may be that of a single record.
    pub fn refuses_values(&self) -> bool {
        self.stage == Stage::Write && self.class() == CodeClass::InvalidValue
    }

    /// Whether STS refuses a value of AssumeRole, which may be one that this service chose.
    pub fn refuses_role_values(&self) -> bool {
        self.stage == Stage::AssumeRole && self.class() == CodeClass::InvalidValue
    }

    /// Whether AWS does not know the credentials that a request was signed with. A region
    /// that is not enabled in an account answers so to [sessions of the account].
    ///
    /// [sessions of the account]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_temp_enable-regions.html
    pub fn is_unknown_session(&self) -> bool {
        self.class() == CodeClass::UnknownCredentials
    }

    /// Whether the endpoint could not parse the request.
    pub fn is_unparsed_request(&self) -> bool {
        self.class() == CodeClass::UnparsedRequest
    }

    /// Whether the fault reports that a request with [`DryRun`] would have succeeded.
    ///
    /// [`DryRun`]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
    pub fn is_dry_run_success(&self) -> bool {
        self.class() == CodeClass::DryRunSucceeded
    }

    fn class(&self) -> CodeClass {
        match &self.cause {
            Cause::Service { code, .. } => CodeClass::of(self.stage, code),
            _ => CodeClass::Other,
        }
    }
}

/// Checks that a code or id looks like one of AWS: it reaches statuses and logs, and the answer
/// may be anything.
fn is_token(text: &str) -> bool {
    (1..=MAX_TOKEN_LENGTH).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:=+/".contains(&byte))
}

fn token(text: Option<&str>) -> Option<Box<str>> {
    text.filter(|text| is_token(text)).map(Into::into)
}

/// Meaning of a fault for the integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The customer's account refuses, and will until its configuration changes.
    Refused(Reason),
    /// Too many requests: slow down.
    Throttled,
    /// Temporary: try again later.
    Unreachable,
    /// The session's credentials are no longer valid: assume the role again.
    SessionInvalid,
    /// This service's own credentials, keys or settings are at fault, never the customer's.
    Ours,
}

/// Class of an AWS error code. Everything that is decided by a code is decided by its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CodeClass {
    Denied,
    /// The account of the access key is not subscribed to the AWS service.
    NotSubscribed,
    /// A value of the request is invalid.
    InvalidValue,
    /// The configuration cannot work, whatever the values of this request.
    InvalidConfiguration,
    /// AWS does not know the access key or the token.
    UnknownCredentials,
    /// Credentials have expired, or the signature is wrong.
    InvalidCredentials,
    KmsDenied,
    KmsUnavailable,
    StreamNotFound,
    Throttled,
    Unavailable,
    UnparsedRequest,
    DryRunSucceeded,
    /// A code that is not in the table.
    Other,
}

/// Codes of every operation ([STS], [Kinesis]) with their meaning.
///
/// [STS]: https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html
/// [Kinesis]: https://docs.aws.amazon.com/kinesis/latest/APIReference/CommonErrors.html
const OF_ALL: [(&str, CodeClass); 40] = [
    ("AccessDenied", CodeClass::Denied),
    ("AccessDeniedException", CodeClass::Denied),
    ("NotAuthorized", CodeClass::Denied),
    ("OptInRequired", CodeClass::NotSubscribed),
    ("SubscriptionRequiredException", CodeClass::NotSubscribed),
    ("ValidationError", CodeClass::InvalidValue),
    ("ValidationException", CodeClass::InvalidValue),
    ("UnrecognizedClientException", CodeClass::UnknownCredentials),
    ("InvalidClientTokenId", CodeClass::UnknownCredentials),
    ("InvalidAccessKeyId", CodeClass::UnknownCredentials),
    ("InvalidToken", CodeClass::UnknownCredentials),
    ("ExpiredToken", CodeClass::InvalidCredentials),
    ("ExpiredTokenException", CodeClass::InvalidCredentials),
    ("InvalidSignatureException", CodeClass::InvalidCredentials),
    ("SignatureDoesNotMatch", CodeClass::InvalidCredentials),
    ("IncompleteSignature", CodeClass::InvalidCredentials),
    (
        "IncompleteSignatureException",
        CodeClass::InvalidCredentials,
    ),
    ("MissingAuthenticationToken", CodeClass::InvalidCredentials),
    (
        "MissingAuthenticationTokenException",
        CodeClass::InvalidCredentials,
    ),
    ("RequestExpired", CodeClass::InvalidCredentials),
    ("RequestTimeTooSkewed", CodeClass::InvalidCredentials),
    ("Throttling", CodeClass::Throttled),
    ("ThrottlingException", CodeClass::Throttled),
    ("ThrottledException", CodeClass::Throttled),
    ("RequestThrottled", CodeClass::Throttled),
    ("RequestThrottledException", CodeClass::Throttled),
    ("TooManyRequestsException", CodeClass::Throttled),
    ("RequestLimitExceeded", CodeClass::Throttled),
    ("SlowDown", CodeClass::Throttled),
    ("PriorRequestNotComplete", CodeClass::Throttled),
    ("BandwidthLimitExceeded", CodeClass::Throttled),
    ("InternalFailure", CodeClass::Unavailable),
    ("InternalFailureException", CodeClass::Unavailable),
    ("InternalError", CodeClass::Unavailable),
    ("InternalServerError", CodeClass::Unavailable),
    ("ServiceUnavailable", CodeClass::Unavailable),
    ("ServiceUnavailableException", CodeClass::Unavailable),
    ("RequestAbortedException", CodeClass::Unavailable),
    ("RequestTimeout", CodeClass::Unavailable),
    ("RequestTimeoutException", CodeClass::Unavailable),
];

/// Codes of [AssumeRole] alone.
///
/// [AssumeRole]: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
const OF_ASSUME_ROLE: [(&str, CodeClass); 3] = [
    ("RegionDisabledException", CodeClass::InvalidConfiguration),
    ("MalformedPolicyDocument", CodeClass::InvalidConfiguration),
    ("PackedPolicyTooLarge", CodeClass::InvalidConfiguration),
];

/// Codes of [PutRecords] alone, of a request or of a record.
///
/// [PutRecords]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
const OF_WRITE: [(&str, CodeClass); 13] = [
    ("InvalidArgumentException", CodeClass::InvalidValue),
    ("ResourceNotFoundException", CodeClass::StreamNotFound),
    ("KMSAccessDeniedException", CodeClass::KmsDenied),
    ("KMSDisabledException", CodeClass::KmsUnavailable),
    ("KMSInvalidStateException", CodeClass::KmsUnavailable),
    ("KMSNotFoundException", CodeClass::KmsUnavailable),
    ("KMSOptInRequired", CodeClass::KmsUnavailable),
    (
        "ProvisionedThroughputExceededException",
        CodeClass::Throttled,
    ),
    ("KMSThrottlingException", CodeClass::Throttled),
    ("LimitExceededException", CodeClass::Throttled),
    // The stream is being created, changed or deleted.
    ("ResourceInUseException", CodeClass::Unavailable),
    ("SerializationException", CodeClass::UnparsedRequest),
    ("DryRunOperationException", CodeClass::DryRunSucceeded),
];

impl CodeClass {
    /// Class of a code of a call.
    fn of(stage: Stage, code: &str) -> Self {
        let of_stage: &[(&str, Self)] = match stage {
            Stage::AssumeRole => &OF_ASSUME_ROLE,
            Stage::Write => &OF_WRITE,
        };
        let mut known = OF_ALL.iter().chain(of_stage);
        let found = known.find(|(known, _)| *known == code);
        found.map_or(Self::Other, |(_, class)| *class)
    }
}

fn service_meaning(stage: Stage, class: CodeClass, http_status: u16) -> Meaning {
    let denied = match stage {
        Stage::AssumeRole => Reason::AssumeRoleDenied,
        Stage::Write => Reason::WriteDenied,
    };
    match class {
        CodeClass::Denied => Meaning::Refused(denied),
        CodeClass::KmsDenied => Meaning::Refused(Reason::KmsDenied),
        CodeClass::KmsUnavailable => Meaning::Refused(Reason::KmsUnavailable),
        CodeClass::StreamNotFound => Meaning::Refused(Reason::StreamNotFound),
        CodeClass::InvalidValue | CodeClass::InvalidConfiguration => {
            Meaning::Refused(Reason::InvalidConfiguration)
        }
        // AssumeRole is signed with our credentials, a write with those of the session.
        CodeClass::NotSubscribed => match stage {
            Stage::AssumeRole => Meaning::Ours,
            Stage::Write => Meaning::Refused(Reason::InvalidConfiguration),
        },
        CodeClass::UnknownCredentials | CodeClass::InvalidCredentials => match stage {
            Stage::AssumeRole => Meaning::Ours,
            Stage::Write => Meaning::SessionInvalid,
        },
        CodeClass::Throttled => Meaning::Throttled,
        // An endpoint that cannot parse the request is not AWS, or not all of it: nothing that
        // the customer could repair.
        CodeClass::Unavailable | CodeClass::UnparsedRequest => Meaning::Unreachable,
        CodeClass::DryRunSucceeded | CodeClass::Other => match http_status {
            401 | 403 => Meaning::Refused(denied),
            408 => Meaning::Unreachable,
            429 => Meaning::Throttled,
            400..=499 => Meaning::Refused(Reason::InvalidConfiguration),
            _ => Meaning::Unreachable,
        },
    }
}
