//! Evidence about refused sessions and open roles, hour by hour on a paused clock.

use tokio::time::{advance, sleep};

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn sink_of(aws: &Aws) -> AwsSink {
    aws.sink(Arc::new(Registry::default()))
}

async fn written(sink: &AwsSink) -> Result<(), Fault> {
    let written = sink.put_records(&customer(1), records(1)).await;
    written.map(|outcomes| assert_eq!(outcomes, [accepted(0)]))
}

/// Writes as delivery does until a renewal in the background has ended.
async fn renewed(aws: &Aws, sink: &AwsSink) {
    let before = aws.assumed()[&role(1)].len();
    let _written = written(sink).await;
    while aws.assumed()[&role(1)].len() == before {
        tokio::task::yield_now().await;
    }
    // It is over once its probes are answered.
    sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_role_that_was_open_stays_refused_until_a_clear_answer() {
    let aws = Aws::new(|_| Said::Yes);
    let sink = sink_of(&aws);
    let refused = Err(Fault::external_id_not_required());
    aws.answer_probes(Said::Yes);
    assert_eq!(written(&sink).await, refused);
    for unclear in [
        Said::No("Throttling"),
        Said::No("InternalFailure"),
        Said::Hang,
    ] {
        aws.answer_probes(unclear);
        advance(MINUTE).await;
        assert_eq!(written(&sink).await, refused);
        let report = sink.test(&customer(1), records(1).remove(0)).await;
        assert_eq!(report.fault(), refused.clone().err());
        assert!(report.write.is_none());
    }
    aws.answer_probes(Said::No("AccessDenied"));
    advance(MINUTE).await;
    assert_eq!(written(&sink).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_test_of_an_open_role_leaves_no_session_to_deliver_with() {
    let aws = Aws::new(|_| Said::Yes);
    let sink = sink_of(&aws);
    aws.answer_probes(Said::Hang);
    let test = tokio::spawn({
        let sink = sink.clone();
        async move { sink.test(&customer(1), records(1).remove(0)).await }
    });
    while aws.hanging() == 0 {
        tokio::task::yield_now().await;
    }
    // Delivery begins while the test has its session, and does not know yet what it is worth.
    aws.answer_probes(Said::Yes);
    let refused = Err(Fault::external_id_not_required());
    assert_eq!(written(&sink).await, refused);
    assert!(test.await.unwrap().fault().is_some());
    assert_eq!(written(&sink).await, refused);
    assert!(
        aws.asked()
            .iter()
            .all(|(_, asked)| !matches!(asked, Asked::PutRecords(_)))
    );
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_proven_is_tried_again_soon_and_what_was_daily() {
    let aws = Aws::new(|_| Said::Yes);
    let sink = sink_of(&aws);
    aws.answer_probes(Said::No("Throttling"));
    assert_eq!(written(&sink).await, Ok(()), "an error proves nothing");
    aws.answer_probes(Said::No("AccessDenied"));
    advance(5 * MINUTE).await;
    renewed(&aws, &sink).await;
    // It is proven now; a policy that changes shows as a session is renewed a day later.
    aws.answer_probes(Said::Yes);
    for _ in 0..23 {
        advance(60 * MINUTE).await;
        assert_eq!(written(&sink).await, Ok(()));
    }
    advance(60 * MINUTE).await;
    let refused = Err(Fault::external_id_not_required());
    assert_eq!(written(&sink).await, refused);
}

/// Refuses the sessions of who writes one record; who writes two meets this.
fn one_is_refused(others: Said, about_us: Said) -> impl Fn(&Asked) -> Said {
    move |asked| match asked {
        Asked::PutRecords(1) => Said::No("UnrecognizedClientException"),
        Asked::PutRecords(_) => others,
        Asked::CallerIdentity => about_us,
        Asked::AssumeRole { .. } => Said::Yes,
    }
}

/// Meaning of a refused session, and of the next after some seconds in which another
/// customer writes.
async fn judged(others: Said, about_us: Said) -> [Meaning; 2] {
    let aws = Aws::new(one_is_refused(others, about_us));
    let sink = sink_of(&aws);
    let first = written(&sink).await.unwrap_err().meaning();
    let _written = sink.put_records(&customer(2), records(2)).await;
    advance(Duration::from_secs(5)).await;
    [first, written(&sink).await.unwrap_err().meaning()]
}

#[tokio::test(start_paused = true)]
async fn only_a_write_that_is_accepted_shows_that_sessions_are_good() {
    let theirs = Meaning::Refused(Reason::InvalidConfiguration);
    let unclear = Said::No("ServiceUnavailable");
    assert_eq!(judged(Said::Yes, unclear).await, [Meaning::Ours, theirs]);
    for outage in [Said::No("InternalFailure"), Said::No("ThrottlingException")] {
        assert_eq!(judged(outage, unclear).await, [Meaning::Ours; 2]);
    }
    // Without others, STS says whether it knows the session.
    let outage = Said::No("InternalFailure");
    assert_eq!(judged(outage, Said::Yes).await, [Meaning::Ours, theirs]);
    let unknown = Said::No("InvalidClientTokenId");
    assert_eq!(judged(outage, unknown).await, [Meaning::Ours; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_rehearsal_and_a_test_say_at_once_whose_fault_a_refused_session_is() {
    let theirs = Meaning::Refused(Reason::InvalidConfiguration);
    let unknown = Said::No("InvalidClientTokenId");
    for (about_us, expected) in [(Said::Yes, theirs), (unknown, Meaning::Ours)] {
        let aws = Aws::new(one_is_refused(Said::Yes, about_us));
        let sink = sink_of(&aws);
        let record = || records(1).remove(0);
        let rehearsed = sink.rehearse(&customer(1), record()).await.write.unwrap();
        assert_eq!(rehearsed.unwrap_err().meaning(), expected);
        let tested = sink.test(&customer(1), record()).await.fault().unwrap();
        assert_eq!(tested.meaning(), expected);
    }
}

/// A proxy that spoils one customer's requests says nothing of all others.
#[tokio::test(start_paused = true)]
async fn one_test_that_is_signed_wrongly_leaves_the_service_well() {
    let aws = Aws::new(|asked| match asked {
        Asked::PutRecords(_) => Said::No("InvalidSignatureException"),
        _ => Said::Yes,
    });
    let sink = sink_of(&aws);
    let report = sink.test(&customer(1), records(1).remove(0)).await;
    assert_eq!(report.fault().unwrap().meaning(), Meaning::Ours);
    assert_eq!(*sink.standing().borrow(), Standing::Good);
}
