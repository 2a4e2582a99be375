//! After the gate was shut for an integration, no call of the sink's own is in flight.

use tokio::time::advance;

use super::*;

/// Waits until `count` calls hang.
async fn until_hanging(aws: &Aws, count: usize) {
    while aws.hanging() < count {
        tokio::task::yield_now().await;
    }
}

/// Deletes an integration as the service does: from the registry first.
async fn delete(registry: &Registry, which: i64) {
    let id = testing_id(which);
    registry.deleted.lock().unwrap().insert(id);
    registry.gate.shut(id).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_ends_and_none_starts() {
    let (aws, sink, registry) = with_assumed_roles(2).await;
    aws.set_script(|request| match request {
        Request::AssumeRole { .. } => Reply::Hang,
        _ => Reply::Ok,
    });
    advance(Duration::from_secs(3200)).await;
    for which in [1, 2] {
        let outcomes = sink.put_records(&customer(which), records(1), &[]).await;
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    until_hanging(&aws, 2).await;
    delete(&registry, 1).await;
    assert_eq!(aws.hanging(), 1, "the other renewal continues");
    delete(&registry, 2).await;
    assert_eq!(aws.hanging(), 0);

    let (aws, sink, registry) = with_assumed_roles(1).await;
    advance(Duration::from_secs(3200)).await;
    sink.put_records(&customer(1), records(1), &[])
        .await
        .unwrap();
    // The renewal is spawned but has not started.
    let assumed = aws.assumed();
    delete(&registry, 1).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(aws.assumed(), assumed);
}

#[tokio::test(start_paused = true)]
async fn no_renewal_starts_after_the_end_of_the_lease() {
    let (aws, sink, registry) = with_assumed_roles(2).await;
    let assumed = aws.assumed();
    registry.lapsed.store(true, Ordering::SeqCst);
    advance(Duration::from_secs(3200)).await;
    sink.put_records(&customer(1), records(1), &[])
        .await
        .unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(aws.assumed(), assumed);
    registry.lapsed.store(false, Ordering::SeqCst);
    sink.put_records(&customer(2), records(1), &[])
        .await
        .unwrap();
    while aws.assumed() == assumed {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_check_of_a_role_ends_and_none_starts() {
    let (aws, sink, registry) = with_assumed_roles(5).await;
    aws.set_script(|request| match request {
        Request::AssumeRole { role_arn, .. } if *role_arn == role(1) => denied(request),
        Request::AssumeRole { .. } => Reply::Hang,
        _ => Reply::Ok,
    });
    let refused = tokio::spawn({
        let sink = sink.clone();
        async move { refusal(&sink, &customer(1)).await }
    });
    // One role is checked at first.
    until_hanging(&aws, 1).await;
    delete(&registry, 5).await;
    until_hanging(&aws, 3).await;
    delete(&registry, 3).await;
    assert_eq!(aws.hanging(), 2);
    // The round continues without them; the calls that hang end by their timeout.
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(refused.await.unwrap(), denial);
    assert_eq!(aws.hanging(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_shut_gate_ends_all_calls_and_admits_none() {
    let (aws, sink, registry) = with_assumed_roles(3).await;
    aws.set_script(|request| match request {
        Request::AssumeRole { .. } => Reply::Hang,
        _ => Reply::Ok,
    });
    advance(Duration::from_secs(3200)).await;
    sink.put_records(&customer(1), records(1), &[])
        .await
        .unwrap();
    until_hanging(&aws, 1).await;
    registry.gate.shut_all();
    while aws.hanging() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(registry.gate.enter(testing_id(2), || true).is_none());
}
