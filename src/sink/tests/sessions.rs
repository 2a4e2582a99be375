//! Lifetime and sharing of sessions.

use std::time::SystemTime;

use futures_util::future::join_all;
use tokio::{sync::Notify, time::timeout};

use super::{server::assumed_until, *};

/// Writes until `seen`; every write must succeed.
async fn write_until(sink: &AwsSink, seen: impl Fn() -> bool) {
    let integration = integration();
    timeout(Duration::from_secs(20), async {
        loop {
            let outcomes = sink.put_records(&integration, records(1), &[]).await;
            assert_eq!(outcomes, Ok(vec![accepted(0)]));
            if seen() {
                return;
            }
        }
    })
    .await
    .expect("timed out");
}

async fn concurrent_first_writes_assume_the_role_once() {
    let server = Server::start(Call::granted).await;
    let sink = sink(&server).await;
    let integration = integration();
    let writes = (0..50).map(|_| sink.put_records(&integration, records(1), &[]));
    for outcomes in join_all(writes).await {
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    assert_eq!(server.assumed(), 1);
    assert_eq!(server.keys_that_wrote(), vec!["ASIA1"; 50]);
}

async fn concurrent_writes_share_a_denial_that_is_cached_for_a_moment() {
    let server = Server::start(|call| match (call.is_sts(), call.number) {
        (true, 1) => server::access_denied(),
        _ => call.granted(),
    })
    .await;
    let sink = sink(&server).await;
    let integration = integration();
    let writes = (0..50).map(|_| sink.put_records(&integration, records(1), &[]));
    for outcomes in join_all(writes).await {
        assert_eq!(outcomes.unwrap_err().code(), "AccessDenied");
    }
    assert_eq!(server.assumed(), 1);
    jump(Duration::from_secs(1)).await;
    let outcomes = sink.put_records(&integration, records(1), &[]).await;
    assert_eq!(outcomes, Ok(vec![accepted(0)]));
}

async fn a_cancelled_write_does_not_cancel_the_others() {
    let server = Server::start(|call| match (call.is_sts(), call.number) {
        (true, 1) => Answer::Hang,
        _ => call.granted(),
    })
    .await;
    let sink = sink(&server).await;
    let integration = integration();
    let leaving = tokio::spawn({
        let (sink, integration) = (sink.clone(), integration.clone());
        async move { sink.put_records(&integration, records(1), &[]).await }
    });
    while server.assumed() == 0 {
        tokio::task::yield_now().await;
    }
    let mut staying = Box::pin(sink.put_records(&integration, records(1), &[]));
    assert!(futures_util::poll!(&mut staying).is_pending());
    leaving.abort();
    assert_eq!(staying.await, Ok(vec![accepted(0)]));
    assert_eq!(server.assumed(), 2);
}

async fn an_expired_session_is_assumed_anew_once() {
    let server = Server::start(|call| match (call.is_sts(), call.credential().0) {
        (false, "ASIA1") => kinesis_error(400, "ExpiredTokenException"),
        _ => call.granted(),
    })
    .await;
    let sink = sink(&server).await;
    let integration = integration();
    for _ in 0..2 {
        let outcomes = sink.put_records(&integration, records(1), &[]).await;
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    assert_eq!(server.assumed(), 2);
    assert_eq!(server.keys_that_wrote(), ["ASIA1", "ASIA2", "ASIA2"]);
}

async fn concurrent_writes_with_an_expired_session_assume_the_role_once() {
    let server = Server::start(|call| match (call.is_sts(), call.credential().0) {
        (false, "ASIA1") if call.number > 1 => kinesis_error(400, "ExpiredTokenException"),
        _ => call.granted(),
    })
    .await;
    let sink = sink(&server).await;
    let integration = integration();
    sink.put_records(&integration, records(1), &[])
        .await
        .unwrap();
    let writes = (0..50).map(|_| sink.put_records(&integration, records(1), &[]));
    for outcomes in join_all(writes).await {
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    assert_eq!(server.assumed(), 2);
}

async fn a_session_that_stays_expired_is_our_fault() {
    let server = Server::start(|call| match call.is_sts() {
        true => assumed(call),
        false => kinesis_error(400, "ExpiredTokenException"),
    })
    .await;
    let sink = sink(&server).await;
    let refused = IdentityState::CredentialsRefused {
        code: "ExpiredTokenException".into(),
    };
    for state in [IdentityState::Good, refused] {
        let fault = sink
            .put_records(&integration(), records(1), &[])
            .await
            .unwrap_err();
        assert_eq!(fault.code(), "ExpiredTokenException");
        assert_eq!(fault.meaning(), Meaning::Ours);
        // The first refusal may concern this customer alone; the second is attributed.
        assert_eq!(*sink.identity_state().borrow(), state);
        jump(Duration::from_secs(3)).await;
    }
    assert_eq!(server.assumed(), 3);
    assert_eq!(
        server.keys_that_wrote(),
        ["ASIA1", "ASIA2", "ASIA2", "ASIA3"]
    );
}

async fn a_role_that_is_denied_meanwhile_is_reported() {
    let server = Server::start(|call| match (call.is_sts(), call.number) {
        (true, 1) => assumed(call),
        (true, _) => server::access_denied(),
        (false, _) => kinesis_error(400, "ExpiredTokenException"),
    })
    .await;
    let sink = sink(&server).await;
    let fault = sink
        .put_records(&integration(), records(1), &[])
        .await
        .unwrap_err();
    assert_eq!(fault.stage, Stage::AssumeRole);
    assert_eq!(fault.code(), "AccessDenied");
}

async fn is_renewed_ahead_of_its_end_while_writes_continue() {
    let granted = Arc::new(Notify::new());
    let held = granted.clone();
    let server = Server::start(move |call| match (call.is_sts(), call.number) {
        (true, 2) => Answer::Held(held.clone(), Box::new(assumed(call))),
        _ => call.granted(),
    })
    .await;
    let sink = sink(&server).await;
    write_until(&sink, || server.assumed() == 1).await;
    jump(Duration::from_secs(3200)).await;
    write_until(&sink, || server.assumed() == 2).await;
    // No write waits for the new session.
    let writes = server.keys_that_wrote().len();
    write_until(&sink, || server.keys_that_wrote().len() == writes + 3).await;
    assert!(server.keys_that_wrote().iter().all(|key| key == "ASIA1"));
    granted.notify_one();
    write_until(&sink, || {
        server.keys_that_wrote().ends_with(&["ASIA2".into()])
    })
    .await;
    assert_eq!(server.assumed(), 2);
}

async fn a_failed_renewal_is_no_fault_until_the_session_ends() {
    let server = Server::start(|call| match (call.is_sts(), call.number) {
        (true, 1) => assumed(call),
        (true, _) => server::access_denied(),
        (false, _) => written(call),
    })
    .await;
    let sink = sink(&server).await;
    write_until(&sink, || server.assumed() == 1).await;
    jump(Duration::from_secs(3200)).await;
    write_until(&sink, || server.assumed() == 2).await;
    write_until(&sink, || server.keys_that_wrote().len() >= 5).await;
    jump(Duration::from_secs(180)).await;
    write_until(&sink, || server.assumed() == 3).await;
    jump(Duration::from_secs(180)).await;
    let fault = sink.put_records(&integration(), records(1), &[]).await;
    assert_eq!(fault.unwrap_err().code(), "AccessDenied");
}

async fn lasts_no_longer_than_sts_grants() {
    let server = Server::start(|call| match call.is_sts() {
        true => assumed_until(call, SystemTime::now() + Duration::from_secs(900)),
        false => written(call),
    })
    .await;
    let sink = sink(&server).await;
    write_until(&sink, || server.assumed() == 1).await;
    jump(Duration::from_secs(870)).await;
    sink.put_records(&integration(), records(1), &[])
        .await
        .unwrap();
    assert_eq!(server.keys_that_wrote(), ["ASIA1", "ASIA2"]);
}

async fn a_wrong_clock_does_not_end_a_session() {
    let server = Server::start(|call| match call.is_sts() {
        true => assumed_until(call, SystemTime::now() - Duration::from_secs(86_400)),
        false => written(call),
    })
    .await;
    let sink = sink(&server).await;
    write_until(&sink, || server.keys_that_wrote().len() == 3).await;
    assert_eq!(server.assumed(), 1);
}

async fn is_cached_by_integration_and_version_until_forgotten() {
    let server = Server::start(Call::granted).await;
    let sink = sink(&server).await;
    let [one, other] = [Uuid::from_u128(1), Uuid::from_u128(2)];
    let write = async |id, number| {
        sink.put_records(&version(id, number), records(1), &[])
            .await
            .unwrap();
        server.assumed()
    };
    assert_eq!(write(one, 1).await, 1);
    assert_eq!(write(one, 1).await, 1);
    assert_eq!(write(one, 2).await, 2);
    assert_eq!(write(other, 1).await, 3);
    sink.forget(IntegrationId(one));
    assert_eq!(write(other, 1).await, 3);
    assert_eq!(write(one, 1).await, 4);
    assert_eq!(write(one, 2).await, 5);
    assert_eq!(write(one, 1).await, 5);
}

#[tokio::test(start_paused = true)]
async fn renewals_of_simultaneous_sessions_are_spread() {
    const STEP: Duration = Duration::from_secs(36);
    let (aws, sink, _) = with_assumed_roles(200).await;
    let start = tokio::time::Instant::now();
    tokio::time::advance(Duration::from_secs(2500)).await;
    for _ in 0..20 {
        for which in 1..=200 {
            let outcomes = sink.put_records(&customer(which), records(1), &[]).await;
            assert_eq!(outcomes, Ok(vec![accepted(0)]));
        }
        tokio::time::advance(STEP).await;
    }
    let mut renewals = [0; 100];
    for assumed in aws.assumed().values() {
        assert_eq!(assumed.len(), 2, "once, and once anew");
        let after = assumed[1].duration_since(start);
        renewals[(after.as_secs() / STEP.as_secs()) as usize] += 1;
    }
    let busy = renewals.iter().filter(|count| **count > 0).count();
    let most = renewals.iter().max();
    // Even over 16 steps would be 12 or 13 in each.
    assert!(busy >= 12 && most <= Some(&40), "{renewals:?}");
}

with_either_client!(
    concurrent_first_writes_assume_the_role_once,
    concurrent_writes_share_a_denial_that_is_cached_for_a_moment,
    a_cancelled_write_does_not_cancel_the_others,
    an_expired_session_is_assumed_anew_once,
    concurrent_writes_with_an_expired_session_assume_the_role_once,
    a_session_that_stays_expired_is_our_fault,
    a_role_that_is_denied_meanwhile_is_reported,
    is_renewed_ahead_of_its_end_while_writes_continue,
    a_failed_renewal_is_no_fault_until_the_session_ends,
    lasts_no_longer_than_sts_grants,
    a_wrong_clock_does_not_end_a_session,
    is_cached_by_integration_and_version_until_forgotten,
);
