//! Evidence about refused sessions and open roles, hour by hour on a paused clock.

use tokio::time::{advance, sleep};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn sink_of(aws: &Aws) -> AwsSink {
    aws.sink(Arc::new(Registry::default()))
}

async fn written(sink: &AwsSink) -> Result<(), Fault> {
    let written = sink.put_records(&customer(1), records(1), &[]).await;
    written.map(|outcomes| assert_eq!(outcomes, [accepted(0)]))
}

/// Writes until a renewal in the background has ended.
async fn renewed(aws: &Aws, sink: &AwsSink) {
    let before = aws.assumed()[&role(1)].len();
    let _written = written(sink).await;
    while aws.assumed()[&role(1)].len() == before {
        tokio::task::yield_now().await;
    }
    // It ends once its probes are answered.
    sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn an_open_role_stays_refused_until_a_clear_answer() {
    let aws = Aws::new(|_| Reply::Ok);
    let sink = sink_of(&aws);
    let refused = Err(Fault::external_id_not_required());
    aws.answer_probes(Reply::Ok);
    assert_eq!(written(&sink).await, refused);
    for unclear in [
        Reply::Error("Throttling"),
        Reply::Error("InternalFailure"),
        Reply::Hang,
    ] {
        aws.answer_probes(unclear);
        advance(MINUTE).await;
        assert_eq!(written(&sink).await, refused);
        let report = sink.test(&customer(1), records(1).remove(0)).await;
        assert_eq!(report.fault(), refused.clone().err());
        assert!(report.write.is_none());
    }
    aws.answer_probes(Reply::Error("AccessDenied"));
    advance(MINUTE).await;
    assert_eq!(written(&sink).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_test_of_an_open_role_leaves_no_session_to_deliver_with() {
    let aws = Aws::new(|_| Reply::Ok);
    let sink = sink_of(&aws);
    aws.answer_probes(Reply::Hang);
    let test = tokio::spawn({
        let sink = sink.clone();
        async move { sink.test(&customer(1), records(1).remove(0)).await }
    });
    while aws.hanging() == 0 {
        tokio::task::yield_now().await;
    }
    // Delivery starts while the test has a session that is not proven yet.
    aws.answer_probes(Reply::Ok);
    let refused = Err(Fault::external_id_not_required());
    assert_eq!(written(&sink).await, refused);
    assert!(test.await.unwrap().fault().is_some());
    assert_eq!(written(&sink).await, refused);
    assert!(
        aws.requests()
            .iter()
            .all(|(_, request)| !matches!(request, Request::PutRecords(_)))
    );
}

#[tokio::test(start_paused = true)]
async fn probes_are_repeated_soon_without_a_proof_and_daily_after_one() {
    let aws = Aws::new(|_| Reply::Ok);
    let sink = sink_of(&aws);
    aws.answer_probes(Reply::Error("Throttling"));
    assert_eq!(written(&sink).await, Ok(()), "an error proves nothing");
    aws.answer_probes(Reply::Error("AccessDenied"));
    advance(5 * MINUTE).await;
    renewed(&aws, &sink).await;
    // Proven now; a changed trust policy shows when a session is renewed a day later.
    aws.answer_probes(Reply::Ok);
    for _ in 0..23 {
        advance(60 * MINUTE).await;
        assert_eq!(written(&sink).await, Ok(()));
    }
    advance(60 * MINUTE).await;
    let refused = Err(Fault::external_id_not_required());
    assert_eq!(written(&sink).await, refused);
}

/// Refuses the sessions of requests with one record; replies with `others` to larger requests.
fn one_is_refused(others: Reply, about_own: Reply) -> impl Fn(&Request) -> Reply {
    move |request| match request {
        Request::PutRecords(1) => Reply::Error("UnrecognizedClientException"),
        Request::PutRecords(_) => others,
        Request::CallerIdentity => about_own,
        Request::AssumeRole { .. } => Reply::Ok,
    }
}

/// Meaning of a refused session, and of the next refusal after another customer has written.
async fn judged(others: Reply, about_own: Reply) -> [Meaning; 2] {
    let aws = Aws::new(one_is_refused(others, about_own));
    let sink = sink_of(&aws);
    let first = written(&sink).await.unwrap_err().meaning();
    let _written = sink.put_records(&customer(2), records(2), &[]).await;
    advance(Duration::from_secs(5)).await;
    [first, written(&sink).await.unwrap_err().meaning()]
}

#[tokio::test(start_paused = true)]
async fn only_an_accepted_write_proves_that_sessions_are_valid() {
    let theirs = Meaning::Refused(Reason::InvalidConfiguration);
    let unclear = Reply::Error("ServiceUnavailable");
    assert_eq!(judged(Reply::Ok, unclear).await, [Meaning::Ours, theirs]);
    for outage in [
        Reply::Error("InternalFailure"),
        Reply::Error("ThrottlingException"),
    ] {
        assert_eq!(judged(outage, unclear).await, [Meaning::Ours; 2]);
    }
    // Without other customers, a check of the session by STS decides.
    let outage = Reply::Error("InternalFailure");
    assert_eq!(judged(outage, Reply::Ok).await, [Meaning::Ours, theirs]);
    let unknown = Reply::Error("InvalidClientTokenId");
    assert_eq!(judged(outage, unknown).await, [Meaning::Ours; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_validation_and_a_test_attribute_a_refused_session_at_once() {
    let theirs = Meaning::Refused(Reason::InvalidConfiguration);
    let unknown = Reply::Error("InvalidClientTokenId");
    for (about_own, expected) in [(Reply::Ok, theirs), (unknown, Meaning::Ours)] {
        let aws = Aws::new(one_is_refused(Reply::Ok, about_own));
        let sink = sink_of(&aws);
        let record = || records(1).remove(0);
        let validated = sink
            .validate_only(&customer(1), record())
            .await
            .write
            .unwrap();
        assert_eq!(validated.unwrap_err().meaning(), expected);
        let tested = sink.test(&customer(1), record()).await.fault().unwrap();
        assert_eq!(tested.meaning(), expected);
    }
}

/// A proxy that corrupts one customer's requests does not concern the others.
#[tokio::test(start_paused = true)]
async fn one_wrongly_signed_test_does_not_change_the_identity_state() {
    let aws = Aws::new(|request| match request {
        Request::PutRecords(_) => Reply::Error("InvalidSignatureException"),
        _ => Reply::Ok,
    });
    let sink = sink_of(&aws);
    let report = sink.test(&customer(1), records(1).remove(0)).await;
    assert_eq!(report.fault().unwrap().meaning(), Meaning::Ours);
    assert_eq!(*sink.identity_state().borrow(), IdentityState::Good);
}
