//! Records that AWS refuses while it takes others, and streams that take none.

use aws_stand_in::{Effect, Fault, Operation, When};
use siem_client::v1::{Status, StatusReason};

use super::check_hazards;
use crate::harness::{GapTold, Load, Told, World, arrive, check_with_gaps};

fn put_records(effect: Effect) -> Fault {
    Fault {
        operation: Some(Operation::PutRecords),
        target: None,
        calls: None,
        when: When::Before,
        effect,
    }
}

fn refuse(number: u32, whole: bool) -> Fault {
    put_records(Effect::RefuseRecords {
        containing: format!("\"signature_id\":{number},"),
        code: "InvalidArgumentException".to_owned(),
        whole,
    })
}

fn refused(sequence: u64) -> GapTold {
    GapTold {
        first: sequence,
        last: sequence,
        count: 1,
        reason: "RECORD_REFUSED".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_refused_while_others_pass_becomes_a_gap() {
    for (whole, devices) in [(true, 7), (true, 1), (false, 7)] {
        let world = World::start().await;
        let (customer, integration) = world.customer("acme").await;
        let mut statuses = world.api.watch(&["acme"], "").await;
        statuses.until_synced().await;
        for number in [1, 40, 41, 333] {
            world.aws.add_fault(refuse(number, whole)).unwrap();
        }
        let mut load = Load::new("acme", devices, 21);
        world.api.publish(&load.events(700)).await;
        let arrived = arrive(&world.aws, &customer.stream_arn, 700).await;
        let counts = world.api.until_delivered("acme").await;
        assert_eq!((counts.delivered, counts.expired), (696, 4));
        assert_eq!(counts.pending_bytes, 0);
        // Those side by side may have become one.
        let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
        let (first, last) = (gaps.first().unwrap(), gaps.last().unwrap());
        assert_eq!((first, last), (&refused(1), &refused(333)));
        // No refusal was taken for one of the configuration, but where nothing else is
        // there to tell.
        let active = Told::current("acme", Status::Active);
        let told_before = statuses.until(&active).await;
        assert!(told_before == 0 || devices == 1);
        assert_eq!(
            world.api.get("acme").await.status.unwrap().status(),
            Status::Active
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_refuses_everything_loses_nothing() {
    let world = World::with(&[("retry-first-ms", "100")]).await;
    let (customer, integration) = world.customer("acme").await;
    world
        .aws
        .add_fault(put_records(Effect::Error {
            code: "InvalidArgumentException".to_owned(),
            status: 400,
            message: String::new(),
        }))
        .unwrap();
    let mut statuses = world.api.watch(&["acme"], "").await;
    let mut load = Load::new("acme", 9, 22);
    world.api.publish(&load.events(600)).await;
    let refused = Told::because("acme", Status::Failing, StatusReason::InvalidConfiguration);
    statuses.until(&refused).await;
    let told = statuses.last.clone().unwrap();
    assert_eq!(told.aws_error_code, "InvalidArgumentException");
    let before = world.aws.call_count(Operation::PutRecords, None);
    world
        .api
        .until_counts("acme", |_| {
            world.aws.call_count(Operation::PutRecords, None) > before + 12
        })
        .await;
    let world = world.restart().await;
    world.aws.clear_faults();
    let arrived = arrive(&world.aws, &customer.stream_arn, 600).await;
    let gaps = check_with_gaps(&arrived, &integration.integration_id, &load.made);
    assert_eq!(gaps, []);
    let counts = world.api.until_delivered("acme").await;
    assert_eq!((counts.delivered, counts.expired), (600, 0));
    check_hazards(&world);
}
