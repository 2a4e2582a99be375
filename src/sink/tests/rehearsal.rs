//! A rehearsal tells what it finds, and changes nothing that delivery relies on.

use super::*;

/// The same integration with another role, as it might be configured.
fn with_role(base: &Integration, which: i64) -> Arc<Integration> {
    Arc::new(Integration {
        role_arn: RoleArn::parse(&role(which)).unwrap(),
        version: base.version + 1,
        ..base.clone()
    })
}

async fn rehearse(sink: &AwsSink, integration: &Arc<Integration>) -> ValidationReport {
    sink.rehearse(integration, records(1).remove(0)).await
}

#[tokio::test(start_paused = true)]
async fn a_refused_one_leaves_the_integration_a_witness() {
    let (aws, sink, _) = that_worked(4).await;
    aws.now(denied);
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    for which in 2..=4 {
        let report = rehearse(&sink, &with_role(&customer(which), 99)).await;
        assert_eq!(report.assume_role.unwrap_err().meaning(), denial);
    }
    assert_eq!(*sink.standing().borrow(), Standing::Good);
    assert_eq!(refusal(&sink, &customer(1)).await, Meaning::Ours);
}

#[tokio::test(start_paused = true)]
async fn one_that_works_makes_no_witness() {
    let (aws, sink, _) = that_worked(1).await;
    for which in 2..=5 {
        let report = rehearse(&sink, &customer(which)).await;
        assert_eq!(report.assume_role, Ok(AssumedWith::Current));
    }
    aws.now(denied);
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(refusal(&sink, &customer(1)).await, denial);
}

#[tokio::test(start_paused = true)]
async fn only_delivery_and_a_test_let_an_external_id_take_over() {
    let aws = Aws::new(|_| Said::Yes);
    let registry = Arc::new(Registry::default());
    let sink = aws.sink(registry.clone());
    let took_over = || registry.took_over.load(Ordering::SeqCst);
    rehearse(&sink, &rotating(1)).await;
    assert_eq!(took_over(), 0);
    sink.test(&rotating(1), records(1).remove(0)).await;
    assert_eq!(took_over(), 1);
    sink.put_records(&rotating(2), records(1)).await.unwrap();
    assert_eq!(took_over(), 2);
}

#[tokio::test(start_paused = true)]
async fn it_blames_no_customer_while_our_identity_is_refused() {
    let (aws, sink, _) = that_worked(4).await;
    aws.now(denied);
    assert_eq!(refusal(&sink, &customer(1)).await, Meaning::Ours);
    let report = rehearse(&sink, &customer(9)).await;
    assert_eq!(report.assume_role.unwrap_err().meaning(), Meaning::Ours);
    // One role that works is what delivery has to find.
    aws.now(|_| Said::Yes);
    rehearse(&sink, &customer(9)).await;
    assert_eq!(*sink.standing().borrow(), Standing::MayNotAssume);
}

#[tokio::test(start_paused = true)]
async fn own_credentials_that_are_refused_are_told() {
    let (aws, sink, _) = that_worked(1).await;
    aws.now(|_| Said::No("ExpiredToken"));
    rehearse(&sink, &customer(1)).await;
    let refused = Standing::CredentialsRefused {
        code: "ExpiredToken".into(),
    };
    assert_eq!(*sink.standing().borrow(), refused);
}
