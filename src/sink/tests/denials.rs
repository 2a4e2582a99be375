//! Frequency of calls for a role that is denied.

use tokio::time::advance;

use super::*;

/// Retries with delivery's backoff. Returns the number of calls with each external ID in the hour
/// after the first minute.
async fn tried(integration: &Arc<Integration>) -> (usize, usize) {
    let aws = Aws::new(denied);
    let sink = aws.sink(Arc::new(Registry::default()));
    let start = tokio::time::Instant::now();
    let minute = start + Duration::from_secs(60);
    for _ in 0..12 {
        sink.put_records(integration, records(1), &[])
            .await
            .unwrap_err();
        advance(Duration::from_secs(5)).await;
    }
    for wait in [8, 16, 32, 64, 128].into_iter().chain([240; 13]) {
        sink.put_records(integration, records(1), &[])
            .await
            .unwrap_err();
        advance(Duration::from_secs(wait)).await;
    }
    let requests = aws.requests();
    let with = |id: &str| {
        let calls = requests.iter().filter(|(at, _)| *at >= minute);
        let given = calls.filter(|(_, request)| match request {
            Request::AssumeRole { external_id, .. } => external_id.as_deref() == Some(id),
            _ => false,
        });
        given.count()
    };
    (with(EXTERNAL_ID), with(PREVIOUS_ID))
}

#[tokio::test(start_paused = true)]
async fn two_external_ids_cost_no_more_calls_than_one() {
    assert_eq!(tried(&customer(1)).await, (18, 0));
    assert_eq!(tried(&rotating(1)).await, (9, 9));
}

#[tokio::test(start_paused = true)]
async fn the_external_id_that_is_repaired_is_found() {
    for (repaired, with) in [
        (EXTERNAL_ID, AssumedWith::Current),
        (PREVIOUS_ID, AssumedWith::Previous),
    ] {
        let aws = Aws::new(denied);
        let sink = aws.sink(Arc::new(Registry::default()));
        for _ in 0..30 {
            let answer = sink.put_records(&rotating(1), records(1), &[]).await;
            assert!(answer.is_err());
            advance(Duration::from_secs(10)).await;
        }
        aws.set_script(move |request| match request {
            Request::AssumeRole { external_id, .. } if external_id.as_deref() != Some(repaired) => {
                Reply::Error("AccessDenied")
            }
            _ => Reply::Ok,
        });
        // A test tries both at once.
        let report = sink.test(&rotating(2), records(1).remove(0)).await;
        assert_eq!(report.assume_role, Ok(with));
        let mut attempts = 1;
        while sink
            .put_records(&rotating(1), records(1), &[])
            .await
            .is_err()
        {
            attempts += 1;
            advance(Duration::from_secs(10)).await;
        }
        assert!(attempts <= 2, "{attempts} attempts");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_does_not_apply_to_the_next_version() {
    let aws = Aws::new(denied);
    let sink = aws.sink(Arc::new(Registry::default()));
    sink.put_records(&customer(1), records(1), &[])
        .await
        .unwrap_err();
    aws.set_script(|_| Reply::Ok);
    let next = Arc::new(Integration {
        version: 2,
        ..(*customer(1)).clone()
    });
    let outcomes = sink.put_records(&next, records(1), &[]).await;
    assert_eq!(outcomes, Ok(vec![accepted(0)]));
}

#[tokio::test(start_paused = true)]
async fn a_test_ignores_the_cached_denial_and_its_session_is_used() {
    let aws = Aws::new(denied);
    let sink = aws.sink(Arc::new(Registry::default()));
    sink.put_records(&customer(1), records(1), &[])
        .await
        .unwrap_err();
    aws.set_script(|_| Reply::Ok);
    let report = sink.test(&customer(1), records(1).remove(0)).await;
    assert_eq!(report.assume_role, Ok(AssumedWith::Current));
    let outcomes = sink.put_records(&customer(1), records(1), &[]).await;
    assert_eq!(outcomes, Ok(vec![accepted(0)]));
}
