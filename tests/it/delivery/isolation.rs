//! Who is refused, throttled, hangs or floods changes nothing for the rest.

use aws_stand_in::{Effect, Fault, Operation, When};

use super::{check_delivered, check_hazards};
use crate::harness::{Load, World, arrive, check_in_order, check_whole};

const EACH: usize = 6;

fn on_stream(stream_arn: &str, effect: Effect) -> Fault {
    Fault {
        operation: Some(Operation::PutRecords),
        target: Some(stream_arn.to_owned()),
        calls: None,
        when: When::Before,
        effect,
    }
}

fn error(code: &str) -> Effect {
    Effect::Error {
        code: code.to_owned(),
        status: 400,
        message: String::new(),
    }
}

/// Nothing of the bad ones has got through when all of the good ones has: more of them
/// hang than there are places in all, and each call hangs for longer than the test.
#[tokio::test(flavor = "multi_thread")]
async fn the_healthy_are_delivered_while_the_others_are_stuck() {
    let world = World::with(&[
        ("requests-in-flight", "16"),
        ("requests-in-flight-per-integration", "4"),
        ("aws-attempt-timeout-ms", "60000"),
    ])
    .await;
    let throttled = Effect::FailRecords {
        probability: 1.0,
        seed: 1,
        code: "ProvisionedThroughputExceededException".to_owned(),
    };
    let kinds = [
        ("hangs", Effect::Hang),
        ("hangs-too", Effect::Hang),
        ("hangs-as-well", Effect::Hang),
        ("denied", error("AccessDeniedException")),
        ("throttled", throttled),
        ("over-limit", error("LimitExceededException")),
    ];
    let (mut good, mut bad, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..EACH {
        for (kind, effect) in &kinds {
            let name = format!("{kind}-{number}");
            let (customer, integration) = world.customer(&name).await;
            // Half of them have worked before.
            let mut load = Load::new(&name, 3, number as u64);
            if number % 2 == 0 {
                world.api.publish(&load.events(2)).await;
                world.api.until_delivered(&name).await;
            }
            let fault = on_stream(&customer.stream_arn, effect.clone());
            faults.push(world.aws.add_fault(fault).unwrap());
            bad.push((customer, integration, load));
        }
        let name = format!("good-{number}");
        let (customer, integration) = world.customer(&name).await;
        good.push((customer, integration, Load::new(&name, 3, number as u64)));
    }
    let (flooding, flood) = world.customer("flood").await;
    let mut flooded = Load::new("flood", 100, 7);
    let mut delivered_before = 0;
    for round in 0..8 {
        world.api.publish(&flooded.events(800)).await;
        let mut mixed = Vec::new();
        for (_, _, load) in bad.iter_mut().chain(&mut good) {
            mixed.extend(load.events(8));
        }
        world.api.publish(&mixed).await;
        if round == 0 {
            delivered_before = stored(&world, &bad);
        }
    }
    for (customer, integration, load) in &good {
        let arrived = arrive(&world.aws, &customer.stream_arn, load.made.len()).await;
        check_in_order(&arrived);
        check_whole(&arrived, &integration.integration_id, &load.made);
    }
    check_delivered(&world, &flooding, &flood.integration_id, &flooded.made).await;
    assert_eq!(
        stored(&world, &bad),
        delivered_before,
        "the others are stuck"
    );

    // Once mended they are delivered, those that hang without waiting for their calls.
    for fault in faults {
        world.aws.clear_fault(fault);
    }
    for (customer, integration, load) in &bad {
        world.api.configure(customer).await;
        check_delivered(&world, customer, &integration.integration_id, &load.made).await;
    }
    check_hazards(&world);
    world.relay.stop().await;
}

fn stored<I>(world: &World, customers: &[(crate::harness::Customer, I, Load)]) -> u64 {
    let of = |arn: &str| world.aws.stream(arn).unwrap().accepted;
    customers
        .iter()
        .map(|(customer, ..)| of(&customer.stream_arn))
        .sum()
}

/// A customer that is mended is delivered though all places of those that hang are taken
/// and many of them wait.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_mended_waits_behind_nobody() {
    let world = World::with(&[
        ("requests-in-flight", "8"),
        ("aws-attempt-timeout-ms", "60000"),
    ])
    .await;
    let mut stuck = Vec::new();
    for number in 0..6 {
        let name = format!("hangs-{number}");
        let (customer, integration) = world.customer(&name).await;
        let fault = world
            .aws
            .add_fault(on_stream(&customer.stream_arn, Effect::Hang))
            .unwrap();
        let mut load = Load::new(&name, 3, number);
        world.api.publish(&load.events(5)).await;
        stuck.push((customer, integration, load, fault));
    }
    for (customer, integration, load, _) in &stuck {
        // The stream that it moves to works; all others still hang.
        let moved = customer.with_stream(&format!("{}-new", customer.organization_id));
        moved.make_stream(&world.aws, 1);
        world.api.configure(&moved).await;
        check_delivered(&world, &moved, &integration.integration_id, &load.made).await;
    }
    check_hazards(&world);
}
