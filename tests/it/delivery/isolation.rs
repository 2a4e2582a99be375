//! Refused, throttled, hanging and flooding integrations do not affect the others.

use aws_stand_in::{Effect, Fault, Operation};

use super::{check_delivered, check_hazards};
use crate::harness::{
    Load, TestEnv, check_complete, check_in_order, error, fault, read_events, throttled_records,
};

/// Integrations of each kind.
const EACH: usize = 6;

fn on_stream(stream_arn: &str, effect: Effect) -> Fault {
    fault(Operation::PutRecords, Some(stream_arn), effect)
}

/// All events of working integrations are delivered while failing ones deliver nothing: more calls
/// hang than there are permits in all, each for longer than the test.
#[tokio::test(flavor = "multi_thread")]
async fn healthy_integrations_are_delivered_while_others_are_stuck() {
    let env = TestEnv::with(&[
        ("requests-in-flight", "16"),
        ("requests-in-flight-per-integration", "4"),
        ("aws-attempt-timeout-ms", "60000"),
    ])
    .await;
    let kinds = [
        ("hangs", Effect::Hang),
        ("hangs-too", Effect::Hang),
        ("hangs-as-well", Effect::Hang),
        ("denied", error("AccessDeniedException", 400)),
        ("throttled", throttled_records()),
        ("over-limit", error("LimitExceededException", 400)),
    ];
    let (mut good, mut bad, mut faults) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..EACH {
        for (kind, effect) in &kinds {
            let name = format!("{kind}-{number}");
            let (customer, integration) = env.customer(&name).await;
            // Half of them have delivered before.
            let mut load = Load::new(&name, 3, number as u64);
            if number % 2 == 0 {
                env.api.publish(&load.events(2)).await;
                env.api.until_delivered(&name).await;
            }
            let fault = on_stream(&customer.stream_arn, effect.clone());
            faults.push(env.aws.add_fault(fault).unwrap());
            bad.push((customer, integration, load));
        }
        let name = format!("good-{number}");
        let (customer, integration) = env.customer(&name).await;
        good.push((customer, integration, Load::new(&name, 3, number as u64)));
    }
    let (flooding, flood) = env.customer("flood").await;
    let mut flooded = Load::new("flood", 100, 7);
    let mut delivered_before = 0;
    for round in 0..8 {
        env.api.publish(&flooded.events(800)).await;
        let mut mixed = Vec::new();
        for (_, _, load) in bad.iter_mut().chain(&mut good) {
            mixed.extend(load.events(8));
        }
        env.api.publish(&mixed).await;
        if round == 0 {
            delivered_before = stored(&env, &bad);
        }
    }
    for (customer, integration, load) in &good {
        let arrived = read_events(&env.aws, &customer.stream_arn, load.made.len()).await;
        check_in_order(&arrived);
        check_complete(&arrived, &integration.integration_id, &load.made);
    }
    check_delivered(&env, &flooding, &flood.integration_id, &flooded.made).await;
    assert_eq!(stored(&env, &bad), delivered_before, "the others are stuck");

    // Without the faults they are delivered; a Configure does not wait for calls that hang.
    for fault in faults {
        env.aws.clear_fault(fault);
    }
    for (customer, integration, load) in &bad {
        env.api.configure(customer).await;
        check_delivered(&env, customer, &integration.integration_id, &load.made).await;
    }
    check_hazards(&env);
    env.relay.stop().await;
}

fn stored<I>(env: &TestEnv, customers: &[(crate::harness::Customer, I, Load)]) -> u64 {
    let of = |arn: &str| env.aws.stream(arn).unwrap().accepted;
    customers
        .iter()
        .map(|(customer, ..)| of(&customer.stream_arn))
        .sum()
}

/// A repaired integration is delivered although the hanging ones have taken all the permits that
/// they may have, and wait for more.
#[tokio::test(flavor = "multi_thread")]
async fn a_repaired_integration_does_not_wait_for_stuck_ones() {
    let env = TestEnv::with(&[
        ("requests-in-flight", "8"),
        ("aws-attempt-timeout-ms", "60000"),
    ])
    .await;
    let mut stuck = Vec::new();
    for number in 0..6 {
        let name = format!("hangs-{number}");
        let (customer, integration) = env.customer(&name).await;
        let fault = env
            .aws
            .add_fault(on_stream(&customer.stream_arn, Effect::Hang))
            .unwrap();
        let mut load = Load::new(&name, 3, number);
        env.api.publish(&load.events(5)).await;
        stuck.push((customer, integration, load, fault));
    }
    for (customer, integration, load, _) in &stuck {
        // The new stream works; the streams of the others hang.
        let moved = customer.with_stream(&format!("{}-new", customer.organization_id));
        moved.make_stream(&env.aws, 1);
        env.api.configure(&moved).await;
        check_delivered(&env, &moved, &integration.integration_id, &load.made).await;
    }
    check_hazards(&env);
}
