use super::*;
use proptest::prelude::*;

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

#[test]
fn each_row_of_the_table() {
    use Meaning::*;
    use Stage::*;
    let rows: &[(Stage, &str, u16, Meaning)] = &[
        (
            AssumeRole,
            "AccessDenied",
            403,
            Refused(Reason::AssumeRoleDenied),
        ),
        (
            AssumeRole,
            "RegionDisabledException",
            403,
            Refused(Reason::InvalidConfiguration),
        ),
        (
            AssumeRole,
            "ValidationError",
            400,
            Refused(Reason::InvalidConfiguration),
        ),
        (AssumeRole, "ExpiredToken", 403, Ours),
        (AssumeRole, "InvalidClientTokenId", 403, Ours),
        (AssumeRole, "SignatureDoesNotMatch", 403, Ours),
        (AssumeRole, "Throttling", 400, Throttled),
        (AssumeRole, "ServiceUnavailable", 503, Unreachable),
        (
            Write,
            "AccessDeniedException",
            400,
            Refused(Reason::WriteDenied),
        ),
        (
            Write,
            "KMSAccessDeniedException",
            400,
            Refused(Reason::KmsDenied),
        ),
        (
            Write,
            "ResourceNotFoundException",
            400,
            Refused(Reason::StreamNotFound),
        ),
        (
            Write,
            "KMSDisabledException",
            400,
            Refused(Reason::KmsUnavailable),
        ),
        (
            Write,
            "KMSInvalidStateException",
            400,
            Refused(Reason::KmsUnavailable),
        ),
        (
            Write,
            "KMSNotFoundException",
            400,
            Refused(Reason::KmsUnavailable),
        ),
        (
            Write,
            "KMSOptInRequired",
            400,
            Refused(Reason::KmsUnavailable),
        ),
        (
            Write,
            "InvalidArgumentException",
            400,
            Refused(Reason::InvalidConfiguration),
        ),
        (
            Write,
            "ProvisionedThroughputExceededException",
            400,
            Throttled,
        ),
        (Write, "KMSThrottlingException", 400, Throttled),
        (Write, "ExpiredTokenException", 400, SessionInvalid),
        (Write, "UnrecognizedClientException", 400, SessionInvalid),
        (Write, "InvalidSignatureException", 400, SessionInvalid),
        (Write, "InternalFailure", 500, Unreachable),
        (Write, "InternalFailure", 0, Unreachable),
        (
            Write,
            "SomethingNew",
            400,
            Refused(Reason::InvalidConfiguration),
        ),
        (Write, "SomethingNew", 403, Refused(Reason::WriteDenied)),
        (Write, "SomethingNew", 503, Unreachable),
    ];
    for (stage, code, http_status, meaning) in rows {
        let fault = service(*stage, code, *http_status);
        assert_eq!(fault.meaning(), *meaning, "{stage:?} {code} {http_status}");
        assert_eq!(fault.code(), *code);
    }
}

#[test]
fn a_refused_role_is_told_in_the_promised_words() {
    assert_eq!(
        Reason::AssumeRoleDenied.message(),
        "Unauthorized - check your Role ARN and External ID"
    );
}

#[test]
fn a_refusal_shows_at_once_and_an_accepted_record_heals() {
    let mut stall = Stall::default();
    let start = StatusDetail::unknown(at(0));
    let denied = Observation::Failed(service(Stage::AssumeRole, "AccessDenied", 403));
    let refused = observe(&start, &mut stall, at(5), &denied);
    assert_eq!(refused.status, Status::Unauthorized);
    assert_eq!(refused.reason, Some(Reason::AssumeRoleDenied));
    assert_eq!(refused.since, at(5));
    assert_eq!(refused.aws_error_code.as_deref(), Some("AccessDenied"));
    assert_eq!(refused.aws_request_id.as_deref(), Some("request-1"));
    let again = observe(&refused, &mut stall, at(10), &denied);
    assert_eq!((again.since, again.last_attempt), (at(5), Some(at(10))));
    let healed = observe(&again, &mut stall, at(15), &Observation::Accepted);
    assert_eq!((healed.status, healed.reason), (Status::Active, None));
    assert_eq!((healed.since, healed.last_delivery), (at(15), Some(at(15))));
    assert_eq!((healed.aws_error_code, healed.aws_request_id), (None, None));
}

#[test]
fn an_outage_shows_after_a_minute_of_nothing() {
    let mut stall = Stall::default();
    let timeout = Observation::Failed(Fault {
        stage: Stage::Write,
        cause: Cause::Timeout,
        request_id: None,
    });
    let mut status = observe(
        &StatusDetail::unknown(at(0)),
        &mut stall,
        at(1),
        &Observation::Accepted,
    );
    for second in [10, 40, 69] {
        status = observe(&status, &mut stall, at(second), &timeout);
        assert_eq!(status.status, Status::Active, "at {second} s");
    }
    status = observe(&status, &mut stall, at(70), &timeout);
    assert_eq!(
        (status.status, status.reason),
        (Status::Failing, Some(Reason::Unreachable))
    );
    assert_eq!(status.since, at(70));
}

#[test]
fn our_own_fault_is_never_blamed_on_the_customer() {
    let mut stall = Stall::default();
    let ours = Observation::Failed(service(Stage::AssumeRole, "InvalidClientTokenId", 403));
    let mut status = StatusDetail::unknown(at(0));
    for second in 0..1000 {
        status = observe(&status, &mut stall, at(second), &ours);
    }
    assert_eq!(status.status, Status::Unknown);
}

proptest! {
    /// Whatever fails, one accepted record in each minute keeps an integration out
    /// of FAILING for throttling or an outage.
    #[test]
    fn something_through_each_minute_is_no_outage(gaps in prop::collection::vec(1i64..60, 1..50), throttled: bool) {
        let fault = match throttled {
            true => service(Stage::Write, "ProvisionedThroughputExceededException", 400),
            false => service(Stage::Write, "InternalFailure", 500),
        };
        let (mut now, mut stall) = (0, Stall::default());
        let mut status = StatusDetail::unknown(at(0));
        for gap in gaps {
            status = observe(&status, &mut stall, at(now), &Observation::Accepted);
            status = observe(&status, &mut stall, at(now), &Observation::Failed(fault.clone()));
            now += gap;
            status = observe(&status, &mut stall, at(now - 1), &Observation::Failed(fault.clone()));
            prop_assert_eq!(status.status, Status::Active);
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
