//! How often a role that is denied is asked for.

use tokio::time::advance;

use super::*;

/// Asks for a session again and again, as delivery does with its back-off; tells how
/// often each external ID was tried in the hour after the first minute.
async fn tried(integration: &Arc<Integration>) -> (usize, usize) {
    let aws = Aws::new(denied);
    let sink = aws.sink(Arc::new(Registry::default()));
    let start = tokio::time::Instant::now();
    let minute = start + Duration::from_secs(60);
    for _ in 0..12 {
        sink.put_records(integration, records(1)).await.unwrap_err();
        advance(Duration::from_secs(5)).await;
    }
    for wait in [8, 16, 32, 64, 128].into_iter().chain([240; 13]) {
        sink.put_records(integration, records(1)).await.unwrap_err();
        advance(Duration::from_secs(wait)).await;
    }
    let asked = aws.asked();
    let with = |id: &str| {
        let calls = asked.iter().filter(|(at, _)| *at >= minute);
        let given = calls.filter(|(_, asked)| match asked {
            Asked::AssumeRole { external_id, .. } => external_id.as_deref() == Some(id),
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
async fn whichever_external_id_is_mended_is_found() {
    for (mended, with) in [
        (EXTERNAL_ID, AssumedWith::Current),
        (PREVIOUS_ID, AssumedWith::Previous),
    ] {
        let aws = Aws::new(denied);
        let sink = aws.sink(Arc::new(Registry::default()));
        for _ in 0..30 {
            let answer = sink.put_records(&rotating(1), records(1)).await;
            assert!(answer.is_err());
            advance(Duration::from_secs(10)).await;
        }
        aws.now(move |asked| match asked {
            Asked::AssumeRole { external_id, .. } if external_id.as_deref() != Some(mended) => {
                Said::No("AccessDenied")
            }
            _ => Said::Yes,
        });
        // A test tries both at once.
        let report = sink.test(&rotating(2), records(1).remove(0)).await;
        assert_eq!(report.assume_role, Ok(with));
        let mut attempts = 1;
        while sink.put_records(&rotating(1), records(1)).await.is_err() {
            attempts += 1;
            advance(Duration::from_secs(10)).await;
        }
        assert!(attempts <= 2, "{attempts} attempts");
    }
}

#[tokio::test(start_paused = true)]
async fn a_denial_of_one_version_says_nothing_of_the_next() {
    let aws = Aws::new(denied);
    let sink = aws.sink(Arc::new(Registry::default()));
    sink.put_records(&customer(1), records(1))
        .await
        .unwrap_err();
    aws.now(|_| Said::Yes);
    let next = Arc::new(Integration {
        version: 2,
        ..(*customer(1)).clone()
    });
    let outcomes = sink.put_records(&next, records(1)).await;
    assert_eq!(outcomes, Ok(vec![accepted(0)]));
}

#[tokio::test(start_paused = true)]
async fn a_test_asks_anew_and_what_it_gets_serves_at_once() {
    let aws = Aws::new(denied);
    let sink = aws.sink(Arc::new(Registry::default()));
    sink.put_records(&customer(1), records(1))
        .await
        .unwrap_err();
    aws.now(|_| Said::Yes);
    let report = sink.test(&customer(1), records(1).remove(0)).await;
    assert_eq!(report.assume_role, Ok(AssumedWith::Current));
    let outcomes = sink.put_records(&customer(1), records(1)).await;
    assert_eq!(outcomes, Ok(vec![accepted(0)]));
}
