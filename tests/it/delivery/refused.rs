//! Records that AWS refuses while it accepts others, and streams that accept none.

use aws_stand_in::{Effect, Fault, Operation};
use siem_client::v1::{Status, StatusReason};

use super::check_hazards;
use crate::harness::{FeedEvent, Gap, Load, TestEnv, check_with_gaps, error, fault, read_events};

/// Refusal of one event, by itself or with its whole request.
fn refuse(number: u32, whole: bool) -> Fault {
    let effect = Effect::RefuseRecords {
        containing: format!("\"signature_id\":{number},"),
        code: "InvalidArgumentException".to_owned(),
        whole,
    };
    fault(Operation::PutRecords, None, effect)
}

fn refused(sequence: u64) -> Gap {
    Gap {
        first: sequence,
        last: sequence,
        count: 1,
        reason: "RECORD_REFUSED".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_refused_while_others_pass_becomes_a_gap() {
    for (whole, devices) in [(true, 7), (true, 1), (false, 7)] {
        let env = TestEnv::start().await;
        let (customer, integration) = env.customer("acme").await;
        let mut statuses = env.api.watch_changes("acme").await;
        for number in [1, 40, 41, 333] {
            env.aws.add_fault(refuse(number, whole)).unwrap();
        }
        let mut load = Load::new("acme", devices, 21);
        env.api.publish(&load.events(700)).await;
        let arrived = read_events(&env.aws, &customer.stream_arn, 700).await;
        let counts = env.api.until_delivered("acme").await;
        assert_eq!((counts.delivered, counts.expired), (696, 4));
        assert_eq!(counts.pending_bytes, 0);
        // Adjacent gaps may have been merged.
        let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
        let (first, last) = (gaps.first().unwrap(), gaps.last().unwrap());
        assert_eq!((first, last), (&refused(1), &refused(333)));
        // No refusal was attributed to the configuration, except where no other record passed.
        let active = FeedEvent::current("acme", Status::Active);
        let changes_before = statuses.until(&active).await;
        assert!(changes_before == 0 || devices == 1);
        assert_eq!(
            env.api.get("acme").await.status.unwrap().status(),
            Status::Active
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_refuses_everything_loses_nothing() {
    let env = TestEnv::with(&[("retry-first-ms", "100")]).await;
    let (customer, integration) = env.customer("acme").await;
    let refusal = error("InvalidArgumentException", 400);
    let refusal = fault(Operation::PutRecords, None, refusal);
    env.aws.add_fault(refusal).unwrap();
    let mut statuses = env.api.watch(&["acme"], "").await;
    let mut load = Load::new("acme", 9, 22);
    env.api.publish(&load.events(600)).await;
    let refused =
        FeedEvent::with_reason("acme", Status::Failing, StatusReason::InvalidConfiguration);
    statuses.until(&refused).await;
    let status = statuses.last.clone().unwrap();
    assert_eq!(status.aws_error_code, "InvalidArgumentException");
    let before = env.aws.call_count(Operation::PutRecords, None);
    env.api
        .until_counts("acme", |_| {
            env.aws.call_count(Operation::PutRecords, None) > before + 12
        })
        .await;
    let env = env.restart().await;
    env.aws.clear_faults();
    let arrived = read_events(&env.aws, &customer.stream_arn, 600).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, []);
    let counts = env.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (600, 0));
    check_hazards(&env);
}
