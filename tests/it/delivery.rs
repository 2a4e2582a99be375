//! Delivery: completeness, order, recovery, isolation of integrations, and retention.

mod isolation;
mod recovery;
mod refused;
mod retention;

use aws_stand_in::{Fault, HazardCounts, Operation};

use crate::harness::{
    Customer, DeliveredEvent, Load, Published, TestEnv, check_complete, check_in_order,
    failing_records, fault, read_events,
};

/// Checks that no partition key was in two requests at once, and that no record was sent before an
/// earlier one of its key that had failed.
#[track_caller]
fn check_hazards(env: &TestEnv) {
    assert_eq!(env.aws.hazards(), HazardCounts::default());
}

/// Random failures of single records of a stream.
fn fail_records(stream_arn: &str, probability: f64, seed: u64) -> Fault {
    let effect = failing_records(probability, seed);
    fault(Operation::PutRecords, Some(stream_arn), effect)
}

/// Checks that a customer's stream has every published event, and that the counts say so.
async fn check_delivered(
    env: &TestEnv,
    customer: &Customer,
    integration_id: &str,
    published: &[Published],
) {
    let arrived = read_events(&env.aws, &customer.stream_arn, published.len()).await;
    check_complete(&arrived, integration_id, published);
    let counts = env.api.until_delivered(&customer.organization_id).await;
    let all = published.len() as u64;
    assert_eq!((counts.accepted, counts.delivered), (all, all));
    assert_eq!(counts.pending_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_once_and_in_order() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    let mut load = Load::new("acme", 20, 1);
    env.api.publish(&load.events(3000)).await;
    let arrived = read_events(&env.aws, &customer.stream_arn, 3000).await;
    assert_eq!(arrived.len(), 3000);
    check_in_order(&arrived);
    check_complete(&arrived, &integration.integration_id, &load.made);
    let counts = env.api.until_delivered("acme").await;
    assert_eq!((counts.accepted, counts.delivered), (3000, 3000));
    let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 3000, "sent once");
    check_hazards(&env);
    env.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_has_every_cloudevents_attribute() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    let mut load = Load::new("acme", 1, 2);
    env.api.publish(&load.events(1)).await;
    let arrived = read_events(&env.aws, &customer.stream_arn, 1).await;
    let (event, made) = (&arrived[0], &load.made[0]);
    let attributes = [
        ("specversion", "1.0"),
        ("id", &made.event_id.to_string()),
        ("source", "https://meter.com"),
        ("type", "com.meter.ids.detection"),
        ("subject", "0d6f3c52-6f0c-4f0b-8a4c-27a1f4dd0c11"),
        ("time", "2026-01-01T00:00:00.123456Z"),
        ("datacontenttype", "application/json"),
        ("partitionkey", &made.device.to_string()),
        ("integrationid", &integration.integration_id),
        ("sequence", "00000000000000000001"),
    ];
    for (name, value) in attributes {
        assert_eq!(event.json[name], value, "{name}");
    }
    let fields = event.json.as_object().unwrap();
    assert_eq!(fields.len(), attributes.len() + 1);
    let data = &event.json["data"];
    assert_eq!(data["type"], "TYPE_DETECTION");
    assert_eq!(data["src_ip"], "192.0.2.7");
    assert_eq!(data["dest_ip"], "2001:db8::17");
    assert_eq!(data["signature"], "ET TEST Größe \"quoted\" 試験");
    let text = std::str::from_utf8(&event.record.data).unwrap();
    assert!(text.contains("12345678901234567890.10"), "digit for digit");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_organization_gets_only_its_own_events() {
    let env = TestEnv::start().await;
    let mut customers = Vec::new();
    for name in ["one", "two", "three", "four", "five"] {
        let (customer, integration) = env.customer(name).await;
        customers.push((customer, integration, Load::new(name, 7, 3)));
    }
    for _ in 0..10 {
        let mut mixed = Vec::new();
        for _ in 0..20 {
            for (_, _, load) in &mut customers {
                mixed.extend(load.events(10));
            }
        }
        env.api.publish(&mixed).await;
    }
    for (customer, integration, load) in &customers {
        check_delivered(&env, customer, &integration.integration_id, &load.made).await;
        let stored = env.aws.stream(&customer.stream_arn).unwrap().accepted;
        assert_eq!(stored, 2000, "sent once");
    }
    check_hazards(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_fail_at_random_keep_their_order() {
    let env = TestEnv::start().await;
    for seed in 1..=3 {
        let name = format!("seed-{seed}");
        let (customer, integration) = env.customer(&name).await;
        env.aws
            .add_fault(fail_records(&customer.stream_arn, 0.3, seed))
            .unwrap();
        let mut load = Load::new(&name, 12, seed);
        for _ in 0..4 {
            env.api.publish(&load.events(500)).await;
        }
        check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    }
    check_hazards(&env);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttling_shard_gets_everything_in_order() {
    let env = TestEnv::start().await;
    let (customer, integration) = env.customer("acme").await;
    env.aws.set_enforce_shard_limits(true);
    let mut load = Load::new("acme", 50, 4);
    env.api.publish(&load.events(5000)).await;
    check_delivered(&env, &customer, &integration.integration_id, &load.made).await;
    check_hazards(&env);
}

/// Inside a request AWS promises no order. A later request may have no record of a key before the
/// failed records of that key are accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_record_is_overtaken_only_within_its_request() {
    let env = TestEnv::with(&[("max-records-per-request", "10")]).await;
    let (customer, integration) = env.customer("acme").await;
    env.aws
        .add_fault(fail_records(&customer.stream_arn, 0.5, 16))
        .unwrap();
    let mut load = Load::new("acme", 2, 16);
    env.api.publish(&load.events(150)).await;
    let arrived = read_events(&env.aws, &customer.stream_arn, 150).await;
    let ordered = check_complete(&arrived, &integration.integration_id, &load.made);
    let mut furthest = 0;
    for device in ordered.iter().map(|event| event.device) {
        let of_device = |event: &&DeliveredEvent| event.device == device;
        let order: Vec<u64> = ordered
            .iter()
            .filter(of_device)
            .map(|event| event.sequence)
            .collect();
        let positions = arrived
            .iter()
            .filter(of_device)
            .map(|event| order.binary_search(&event.sequence).unwrap());
        let mut last = 0;
        for position in positions {
            furthest = furthest.max(last - position.min(last));
            last = last.max(position);
        }
    }
    assert!(
        furthest > 0,
        "no record was overtaken: the faults had no effect"
    );
    assert!(
        furthest < 10,
        "a record was overtaken by the one {furthest} later"
    );
}
