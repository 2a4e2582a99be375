//! When the gate is shut for an integration, no call of the sink's own is under way.

use tokio::time::advance;

use super::*;

/// Goes on until so many calls hang.
async fn until_hanging(aws: &Aws, count: usize) {
    while aws.hanging() < count {
        tokio::task::yield_now().await;
    }
}

/// As a Delete does: it is gone from the registry first.
async fn delete(sink: &AwsSink, registry: &Registry, which: i64) {
    let key = IntegrationKey(which);
    registry.deleted.lock().unwrap().insert(key);
    sink.gate().shut(key).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_ahead_ends_and_none_begins() {
    let (aws, sink, registry) = that_worked(2).await;
    aws.now(|asked| match asked {
        Asked::AssumeRole { .. } => Said::Hang,
        _ => Said::Yes,
    });
    advance(Duration::from_secs(3200)).await;
    for which in [1, 2] {
        let outcomes = sink.put_records(&customer(which), records(1)).await;
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    until_hanging(&aws, 2).await;
    delete(&sink, &registry, 1).await;
    assert_eq!(aws.hanging(), 1, "the other's goes on");
    delete(&sink, &registry, 2).await;
    assert_eq!(aws.hanging(), 0);

    let (aws, sink, registry) = that_worked(1).await;
    advance(Duration::from_secs(3200)).await;
    sink.put_records(&customer(1), records(1)).await.unwrap();
    // It is due and spawned, and has not begun.
    let assumed = aws.assumed();
    delete(&sink, &registry, 1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(aws.assumed(), assumed);
}

#[tokio::test(start_paused = true)]
async fn the_call_of_a_witness_ends_and_none_begins() {
    let (aws, sink, registry) = that_worked(5).await;
    aws.now(|asked| match asked {
        Asked::AssumeRole { role_arn, .. } if *role_arn == role(1) => denied(asked),
        Asked::AssumeRole { .. } => Said::Hang,
        _ => Said::Yes,
    });
    let refused = tokio::spawn({
        let sink = sink.clone();
        async move { refusal(&sink, &customer(1)).await }
    });
    // One is asked at first.
    until_hanging(&aws, 1).await;
    delete(&sink, &registry, 5).await;
    until_hanging(&aws, 3).await;
    delete(&sink, &registry, 3).await;
    assert_eq!(aws.hanging(), 2);
    // The question goes on without them; the calls that hang end by their time limit.
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(refused.await.unwrap(), denial);
    assert_eq!(aws.hanging(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shut_gate_ends_all_and_lets_nobody_in() {
    let (aws, sink, _) = that_worked(3).await;
    aws.now(|asked| match asked {
        Asked::AssumeRole { .. } => Said::Hang,
        _ => Said::Yes,
    });
    advance(Duration::from_secs(3200)).await;
    sink.put_records(&customer(1), records(1)).await.unwrap();
    until_hanging(&aws, 1).await;
    sink.gate().shut_all();
    while aws.hanging() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(sink.gate().enter(IntegrationKey(2), || true).is_none());
}
