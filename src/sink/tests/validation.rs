//! A validation reports its result, and changes nothing that delivery relies on.

use super::*;

/// The same integration with another role.
fn with_role(base: &Integration, which: i64) -> Arc<Integration> {
    Arc::new(Integration {
        role_arn: RoleArn::parse(&role(which)).unwrap(),
        version: base.version + 1,
        ..base.clone()
    })
}

async fn validate_only(sink: &AwsSink, integration: &Arc<Integration>) -> ValidationReport {
    sink.validate_only(integration, records(1).remove(0)).await
}

#[tokio::test(start_paused = true)]
async fn a_denied_validation_does_not_remove_the_evidence() {
    let (aws, sink, _) = with_assumed_roles(4).await;
    aws.set_script(denied);
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    for which in 2..=4 {
        let report = validate_only(&sink, &with_role(&customer(which), 99)).await;
        assert_eq!(report.assume_role.unwrap_err().meaning(), denial);
    }
    assert_eq!(*sink.identity_state().borrow(), IdentityState::Good);
    assert_eq!(refusal(&sink, &customer(1)).await, Meaning::Ours);
}

#[tokio::test(start_paused = true)]
async fn a_successful_validation_adds_no_evidence() {
    let (aws, sink, _) = with_assumed_roles(1).await;
    for which in 2..=5 {
        let report = validate_only(&sink, &customer(which)).await;
        assert_eq!(report.assume_role, Ok(AssumedWith::Current));
    }
    aws.set_script(denied);
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(refusal(&sink, &customer(1)).await, denial);
}

#[tokio::test(start_paused = true)]
async fn only_delivery_and_a_test_end_the_previous_external_id() {
    let aws = Aws::new(|_| Reply::Ok);
    let registry = Arc::new(Registry::default());
    let sink = aws.sink(registry.clone());
    let accepted = || registry.accepted.load(Ordering::SeqCst);
    validate_only(&sink, &rotating(1)).await;
    assert_eq!(accepted(), 0);
    sink.test(&rotating(1), records(1).remove(0)).await;
    assert_eq!(accepted(), 1);
    sink.put_records(&rotating(2), records(1), &[])
        .await
        .unwrap();
    assert_eq!(accepted(), 2);
}

#[tokio::test(start_paused = true)]
async fn it_is_our_fault_while_our_identity_is_refused() {
    let (aws, sink, _) = with_assumed_roles(4).await;
    aws.set_script(denied);
    assert_eq!(refusal(&sink, &customer(1)).await, Meaning::Ours);
    let report = validate_only(&sink, &customer(9)).await;
    assert_eq!(report.assume_role.unwrap_err().meaning(), Meaning::Ours);
    // Only delivery changes the state.
    aws.set_script(|_| Reply::Ok);
    validate_only(&sink, &customer(9)).await;
    assert_eq!(*sink.identity_state().borrow(), IdentityState::MayNotAssume);
}

#[tokio::test(start_paused = true)]
async fn refused_own_credentials_become_the_state() {
    let (aws, sink, _) = with_assumed_roles(1).await;
    aws.set_script(|_| Reply::Error("ExpiredToken"));
    validate_only(&sink, &customer(1)).await;
    let refused = IdentityState::CredentialsRefused {
        code: "ExpiredToken".into(),
    };
    assert_eq!(*sink.identity_state().borrow(), refused);
}
