//! What delivery promises.

use crate::harness::{Load, World, arrive, check_in_order, check_whole};

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
    assert_eq!(world.aws.hazards(), Default::default());
    world.relay.stop().await;
}
