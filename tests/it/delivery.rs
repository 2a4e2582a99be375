//! What delivery promises.

mod isolation;
mod recovery;
mod refused;
mod retention;

use aws_stand_in::{Effect, Fault, HazardCounts, Operation, When};

use crate::harness::{
    Arrived, Customer, Load, Published, World, arrive, check_in_order, check_whole,
};

/// Whatever fails, no key is ever in two requests, and none overtakes its own failure.
#[track_caller]
fn check_hazards(world: &World) {
    assert_eq!(world.aws.hazards(), HazardCounts::default());
}

/// Records fail at random, which does not come of the rate.
fn fail_records(stream_arn: &str, probability: f64, seed: u64) -> Fault {
    Fault {
        operation: Some(Operation::PutRecords),
        target: Some(stream_arn.to_owned()),
        calls: None,
        when: When::Before,
        effect: Effect::FailRecords {
            probability,
            seed,
            code: "InternalFailure".to_owned(),
        },
    }
}

/// The whole log of a customer has arrived as it was published, and is counted so.
async fn check_delivered(
    world: &World,
    customer: &Customer,
    integration_id: &str,
    published: &[Published],
) {
    let arrived = arrive(&world.aws, &customer.stream_arn, published.len()).await;
    check_whole(&arrived, integration_id, published);
    let counts = world.api.until_delivered(&customer.organization_id).await;
    let all = published.len() as u64;
    assert_eq!((counts.accepted, counts.delivered), (all, all));
    assert_eq!(counts.pending_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_once_and_in_order() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    let mut load = Load::new("acme", 20, 1);
    world.api.publish(&load.events(3000)).await;
    let arrived = arrive(&world.aws, &customer.stream_arn, 3000).await;
    assert_eq!(arrived.len(), 3000);
    check_in_order(&arrived);
    check_whole(&arrived, &integration.integration_id, &load.made);
    let counts = world.api.until_delivered("acme").await;
    assert_eq!((counts.accepted, counts.delivered), (3000, 3000));
    let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
    assert_eq!(stored, 3000, "sent once");
    check_hazards(&world);
    world.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_carries_every_attribute() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    let mut load = Load::new("acme", 1, 2);
    world.api.publish(&load.events(1)).await;
    let arrived = arrive(&world.aws, &customer.stream_arn, 1).await;
    let (one, made) = (&arrived[0], &load.made[0]);
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
        assert_eq!(one.json[name], value, "{name}");
    }
    let fields = one.json.as_object().unwrap();
    assert_eq!(fields.len(), attributes.len() + 1);
    let data = &one.json["data"];
    assert_eq!(data["type"], "TYPE_DETECTION");
    assert_eq!(data["src_ip"], "192.0.2.7");
    assert_eq!(data["dest_ip"], "2001:db8::17");
    assert_eq!(data["signature"], "ET TEST Größe \"quoted\" 試験");
    let text = std::str::from_utf8(&one.record.data).unwrap();
    assert!(text.contains("12345678901234567890.10"), "digit for digit");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_organization_gets_its_own() {
    let world = World::start().await;
    let mut customers = Vec::new();
    for name in ["one", "two", "three", "four", "five"] {
        let (customer, integration) = world.customer(name).await;
        customers.push((customer, integration, Load::new(name, 7, 3)));
    }
    for _ in 0..10 {
        let mut mixed = Vec::new();
        for _ in 0..20 {
            for (_, _, load) in &mut customers {
                mixed.extend(load.events(10));
            }
        }
        world.api.publish(&mixed).await;
    }
    for (customer, integration, load) in &customers {
        check_delivered(&world, customer, &integration.integration_id, &load.made).await;
        let stored = world.aws.stream(&customer.stream_arn).unwrap().accepted;
        assert_eq!(stored, 2000, "sent once");
    }
    check_hazards(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_fail_at_random_keep_their_order() {
    let world = World::start().await;
    for seed in 1..=3 {
        let name = format!("seed-{seed}");
        let (customer, integration) = world.customer(&name).await;
        world
            .aws
            .add_fault(fail_records(&customer.stream_arn, 0.3, seed))
            .unwrap();
        let mut load = Load::new(&name, 12, seed);
        for _ in 0..4 {
            world.api.publish(&load.events(500)).await;
        }
        check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    }
    check_hazards(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_takes_too_little_gets_everything_in_order() {
    let world = World::start().await;
    let (customer, integration) = world.customer("acme").await;
    world.aws.set_enforce_shard_limits(true);
    let mut load = Load::new("acme", 50, 4);
    world.api.publish(&load.events(5000)).await;
    check_delivered(&world, &customer, &integration.integration_id, &load.made).await;
    check_hazards(&world);
}

/// Inside one request AWS promises no order. Beyond it, nothing of a key that was not
/// sent yet may go before what failed of it has been accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_record_is_overtaken_only_out_of_its_own_request() {
    let world = World::with(&[("max-records-per-request", "10")]).await;
    let (customer, integration) = world.customer("acme").await;
    world
        .aws
        .add_fault(fail_records(&customer.stream_arn, 0.5, 16))
        .unwrap();
    let mut load = Load::new("acme", 2, 16);
    world.api.publish(&load.events(150)).await;
    let arrived = arrive(&world.aws, &customer.stream_arn, 150).await;
    let whole = check_whole(&arrived, &integration.integration_id, &load.made);
    let mut furthest = 0;
    for device in whole.iter().map(|one| one.device) {
        let of_device = |one: &&Arrived| one.device == device;
        let order: Vec<u64> = whole
            .iter()
            .filter(of_device)
            .map(|one| one.sequence)
            .collect();
        let places = arrived.iter().filter(of_device).map(|one| {
            let place = order.binary_search(&one.sequence);
            place.unwrap()
        });
        let mut last = 0;
        for place in places {
            furthest = furthest.max(last - place.min(last));
            last = last.max(place);
        }
    }
    assert!(furthest > 0, "none was overtaken: the faults did nothing");
    assert!(
        furthest < 10,
        "one was overtaken by what came {furthest} later"
    );
}
