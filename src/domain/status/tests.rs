use super::*;
use proptest::prelude::*;

const FAILING_AFTER: Duration = Duration::from_secs(60);

fn service(stage: Stage, code: &str, http_status: u16) -> Fault {
    Fault {
        stage,
        cause: Cause::Service {
            code: code.into(),
            http_status,
        },
        request_id: Some("request-1".into()),
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

/// Row of the table: failed call, meaning, and error codes with their HTTP statuses.
type Row = (Stage, Meaning, &'static [(&'static str, u16)]);

/// All known codes with the HTTP status that AWS documents for each. The status 0 stands for
/// a single record that failed within an answer of HTTP 200.
#[rustfmt::skip]
const TABLE: &[Row] = {
    use Meaning::*;
    use Reason::{AssumeRoleDenied, InvalidConfiguration, KmsDenied, KmsUnavailable, StreamNotFound, WriteDenied};
    use Stage::*;
    &[
        (AssumeRole, Refused(AssumeRoleDenied), &[
            ("AccessDenied", 403), ("AccessDeniedException", 403), ("NotAuthorized", 401), ("SomethingNew", 403),
        ]),
        (AssumeRole, Refused(InvalidConfiguration), &[
            ("RegionDisabledException", 403), ("ValidationError", 400), ("MalformedPolicyDocument", 400),
            ("PackedPolicyTooLarge", 400), ("SomethingNew", 400),
        ]),
        (AssumeRole, Ours, &[
            ("ExpiredToken", 403), ("ExpiredTokenException", 400), ("InvalidClientTokenId", 403),
            ("UnrecognizedClientException", 403), ("SignatureDoesNotMatch", 403), ("IncompleteSignature", 400),
            ("MissingAuthenticationToken", 403), ("RequestExpired", 400), ("OptInRequired", 403),
        ]),
        (AssumeRole, Throttled, &[("Throttling", 400), ("ThrottlingException", 400), ("SomethingNew", 429)]),
        (AssumeRole, Unreachable, &[
            ("InternalFailure", 500), ("ServiceUnavailable", 503), ("RequestTimeoutException", 408), ("SomethingNew", 500),
        ]),
        (Write, Refused(WriteDenied), &[
            ("AccessDeniedException", 400), ("AccessDeniedException", 403), ("NotAuthorized", 400), ("SomethingNew", 403),
        ]),
        (Write, Refused(KmsDenied), &[("KMSAccessDeniedException", 400)]),
        (Write, Refused(StreamNotFound), &[("ResourceNotFoundException", 400)]),
        (Write, Refused(KmsUnavailable), &[
            ("KMSDisabledException", 400), ("KMSInvalidStateException", 400), ("KMSNotFoundException", 400),
            ("KMSOptInRequired", 400),
        ]),
        (Write, Refused(InvalidConfiguration), &[
            ("InvalidArgumentException", 400), ("ValidationException", 400), ("ValidationError", 400),
            ("OptInRequired", 403), ("UnknownOperationException", 404), ("RequestEntityTooLargeException", 413),
            ("SomethingNew", 400),
        ]),
        (Write, Throttled, &[
            ("ProvisionedThroughputExceededException", 400), ("ProvisionedThroughputExceededException", 0),
            ("KMSThrottlingException", 400), ("ThrottlingException", 400), ("LimitExceededException", 400),
            ("SlowDown", 503), ("SomethingNew", 429),
        ]),
        (Write, SessionInvalid, &[
            ("ExpiredTokenException", 400), ("UnrecognizedClientException", 400), ("InvalidSignatureException", 400),
            ("IncompleteSignature", 400), ("InvalidClientTokenId", 403), ("MissingAuthenticationToken", 403),
            ("RequestExpired", 400),
        ]),
        (Write, Unreachable, &[
            ("InternalFailure", 500), ("InternalFailure", 0), ("InternalFailureException", 500), ("ServiceUnavailable", 503),
            ("ResourceInUseException", 400), ("RequestAbortedException", 400), ("RequestTimeoutException", 408),
            ("SomethingNew", 503), ("SomethingNew", 408), ("SomethingNew", 0),
            ("SerializationException", 400),
        ]),
    ]
};

#[test]
fn each_code_has_its_meaning() {
    for (stage, meaning, codes) in TABLE {
        for (code, http_status) in *codes {
            let fault = service(*stage, code, *http_status);
            assert_eq!(fault.meaning(), *meaning, "{stage:?} {code} {http_status}");
            assert_eq!(fault.code(), *code);
        }
    }
}

/// Status and stall of an integration, with a clock in seconds.
struct Watched {
    status: StatusDetail,
    stall: Stall,
}

impl Watched {
    fn new() -> Self {
        Self {
            status: StatusDetail::unknown(at(0)),
            stall: Stall::default(),
        }
    }

    /// Applies an attempt that ended at `second`. A failed one is retried a second later.
    fn see(&mut self, second: i64, observation: &Observation) -> (Status, Option<Reason>) {
        self.status = observe(
            &self.status,
            &mut self.stall,
            FAILING_AFTER,
            at(second),
            observation,
        );
        let failed = matches!(observation, Observation::Failed(_));
        self.status.next_retry = failed.then(|| at(second + 1));
        (self.status.status, self.status.reason)
    }
}

fn failed(stage: Stage, code: &str, http_status: u16) -> Observation {
    Observation::Failed(service(stage, code, http_status))
}

/// Throttling and each kind of outage, with the reason that they lead to.
fn lasting() -> [(Observation, Reason); 7] {
    let fault = |cause| {
        Observation::Failed(Fault {
            stage: Stage::Write,
            cause,
            request_id: None,
        })
    };
    let throughput = "ProvisionedThroughputExceededException";
    [
        (failed(Stage::Write, throughput, 0), Reason::Throttled),
        (
            failed(Stage::AssumeRole, "Throttling", 400),
            Reason::Throttled,
        ),
        (
            failed(Stage::Write, "InternalFailure", 500),
            Reason::Unreachable,
        ),
        (fault(Cause::NotBuilt), Reason::ServiceUnavailable),
        (fault(Cause::Timeout), Reason::Unreachable),
        (fault(Cause::Connection), Reason::Unreachable),
        (
            fault(Cause::NotAws { http_status: 403 }),
            Reason::Unreachable,
        ),
    ]
}

#[test]
fn the_message_for_a_refused_role_is_the_promised_one() {
    assert_eq!(
        Reason::AssumeRoleDenied.message(),
        "Unauthorized - check your Role ARN and External ID"
    );
}

#[test]
fn a_refusal_shows_at_once_and_an_accepted_record_clears_it() {
    let mut watched = Watched::new();
    let denied = failed(Stage::AssumeRole, "AccessDenied", 403);
    let unauthorized = (Status::Unauthorized, Some(Reason::AssumeRoleDenied));
    assert_eq!(watched.see(5, &denied), unauthorized);
    let refused = watched.status.clone();
    assert_eq!(refused.since, at(5));
    assert_eq!(refused.aws_error_code.as_deref(), Some("AccessDenied"));
    assert_eq!(refused.aws_request_id.as_deref(), Some("request-1"));
    watched.see(10, &denied);
    let again = &watched.status;
    assert_eq!((again.since, again.last_attempt), (at(5), Some(at(10))));
    assert_eq!(
        watched.see(15, &Observation::Accepted),
        (Status::Active, None)
    );
    let healed = &watched.status;
    assert_eq!((healed.since, healed.last_delivery), (at(15), Some(at(15))));
    assert_eq!(
        (&healed.aws_error_code, &healed.aws_request_id),
        (&None, &None)
    );
}

#[test]
fn throttling_or_an_outage_shows_after_a_minute_without_delivery() {
    for (observation, reason) in lasting() {
        let mut watched = Watched::new();
        watched.see(1, &Observation::Accepted);
        for second in [10, 40, 69] {
            assert_eq!(watched.see(second, &observation), (Status::Active, None));
        }
        assert!(watched.status.aws_error_code.is_some());
        let failing = (Status::Failing, Some(reason));
        assert_eq!(watched.see(70, &observation), failing);
        assert_eq!(watched.status.since, at(70));
        assert_eq!(
            watched.see(71, &Observation::Accepted),
            (Status::Active, None)
        );
        // The minute starts again.
        assert_eq!(watched.see(72, &observation), (Status::Active, None));
    }
}

#[test]
fn one_failed_call_between_successes_changes_nothing() {
    for (observation, _) in lasting() {
        let mut watched = Watched::new();
        watched.see(0, &Observation::Accepted);
        let since = watched.status.since;
        for second in (0..10_000).step_by(70) {
            assert_eq!(watched.see(second + 69, &observation).0, Status::Active);
            assert_eq!(
                watched.see(second + 70, &Observation::Accepted).0,
                Status::Active
            );
            assert_eq!(watched.status.since, since);
            assert_eq!(watched.status.aws_error_code, None);
        }
    }
}

#[test]
fn failures_of_an_idle_integration_are_no_outage() {
    for (observation, _) in lasting() {
        let mut watched = Watched::new();
        watched.see(0, &Observation::Accepted);
        for second in [1000, 2000, 3000] {
            assert_eq!(watched.see(second, &observation).0, Status::Active);
            // No events wait: the failed record was a test event.
            watched.status.next_retry = None;
        }
    }
}

#[test]
fn an_outage_replaces_a_refusal_only_after_a_minute() {
    let mut watched = Watched::new();
    let missing = failed(Stage::Write, "ResourceNotFoundException", 400);
    let outage = failed(Stage::Write, "InternalFailure", 500);
    let refused = watched.see(0, &missing);
    assert_eq!(watched.see(1, &outage), refused);
    assert_eq!(watched.see(60, &outage), refused);
    let unreachable = (Status::Failing, Some(Reason::Unreachable));
    assert_eq!(watched.see(61, &outage), unreachable);
    assert_eq!(watched.see(62, &missing), refused);
}

#[test]
fn a_fault_of_this_service_never_shows_as_the_customers() {
    for before in [None, Some(Observation::Accepted)] {
        for ours in [
            failed(Stage::AssumeRole, "InvalidClientTokenId", 403),
            failed(Stage::Write, "ExpiredTokenException", 400),
            failed(Stage::Write, "InvalidSignatureException", 400),
        ] {
            let mut watched = Watched::new();
            before.iter().for_each(|seen| {
                watched.see(0, seen);
            });
            let first = watched.see(1, &ours);
            assert_ne!(first.0, Status::Failing);
            for second in 2..61 {
                assert_eq!(watched.see(second, &ours), first);
            }
            let failing = (Status::Failing, Some(Reason::ServiceUnavailable));
            assert_eq!(watched.see(61, &ours), failing);
            let remedy = Reason::ServiceUnavailable.remedy();
            assert!(remedy.starts_with("Nothing to change in your account"));
            assert_eq!(
                watched.see(62, &Observation::Accepted),
                (Status::Active, None)
            );
        }
    }
}

#[test]
fn waiting_events_without_an_attempt_make_a_status_failing() {
    for before in [None, Some(Observation::Accepted)] {
        let mut watched = Watched::new();
        before.iter().for_each(|seen| {
            watched.see(0, seen);
        });
        let last_attempt = watched.status.last_attempt;
        let stalled = Observation::Stalled(Reason::Unreachable);
        let failing = (Status::Failing, Some(Reason::Unreachable));
        assert_eq!(watched.see(60, &stalled), failing);
        assert_eq!(watched.status.last_attempt, last_attempt);
        assert_eq!(watched.status.since, at(60));
    }
    let mut watched = Watched::new();
    let denied = watched.see(0, &failed(Stage::AssumeRole, "AccessDenied", 403));
    let stalled = Observation::Stalled(Reason::ServiceUnavailable);
    assert_eq!(watched.see(60, &stalled), denied);
}

#[test]
fn an_outage_with_changing_causes_counts_as_one() {
    let mut watched = Watched::new();
    watched.see(0, &Observation::Accepted);
    let causes = [
        failed(Stage::Write, "InternalFailure", 500),
        failed(Stage::AssumeRole, "ExpiredToken", 403),
        failed(Stage::Write, "ThrottlingException", 400),
    ];
    for (second, cause) in (1..61).zip(causes.iter().cycle()) {
        assert_eq!(watched.see(second, cause).0, Status::Active, "{second}");
    }
    assert_eq!(watched.see(61, &causes[1]).0, Status::Failing);
}

proptest! {
    /// One accepted record in each minute prevents FAILING because of throttling or an outage,
    /// whatever fails otherwise.
    #[test]
    fn one_accepted_record_a_minute_is_no_outage(gaps in prop::collection::vec(1i64..60, 1..50), throttled: bool) {
        let fault = match throttled {
            true => service(Stage::Write, "ProvisionedThroughputExceededException", 400),
            false => service(Stage::Write, "InternalFailure", 500),
        };
        let fault = Observation::Failed(fault);
        let (mut now, mut watched) = (0, Watched::new());
        for gap in gaps {
            watched.see(now, &Observation::Accepted);
            watched.see(now, &fault);
            now += gap;
            prop_assert_eq!(watched.see(now - 1, &fault), (Status::Active, None));
        }
    }

    #[test]
    fn any_code_and_status_has_a_meaning(code in ".{0,40}", http_status: u16, write: bool) {
        let stage = if write { Stage::Write } else { Stage::AssumeRole };
        let fault = service(stage, &code, http_status);
        let _ = fault.meaning();
        prop_assert_eq!(fault.code(), code);
    }
}
