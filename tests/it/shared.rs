//! The service on real Kafka and PostgreSQL, which `tests/services/install` provides, and their
//! faults.

mod cluster;
mod faults;
mod moving;
mod secrets;
mod traffic;

use test_services::{Kafka, KafkaOptions, Postgres, Proxy, require, shared_kafka, shared_postgres};
use tonic::Code;

use crate::harness::{
    FeedEvent, Load, check_complete, check_in_order, read_events, reason, with_timeout,
};
use cluster::Cluster;
use traffic::Traffic;

/// A cluster on the Kafka and the PostgreSQL that the tests of this process share.
async fn cluster() -> Option<Cluster> {
    let kafka = require(shared_kafka().await)?;
    let postgres = require(shared_postgres().await)?;
    Some(Cluster::new(kafka, &[postgres], postgres.port()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_continues_the_sequence_without_duplicates() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let mut load = Load::new("acme", 5, 1);
    let instance = cluster.start().await;
    let integration = instance.api.configure(&cluster.customer).await;
    instance.api.publish(&load.events(1500)).await;
    instance.api.until_delivered("acme").await;
    instance.stop().await;

    let instance = cluster.start().await;
    assert_eq!(
        instance.api.get("acme").await.integration_id,
        integration.integration_id
    );
    instance.api.publish(&load.events(500)).await;
    let counts = instance
        .api
        .until_counts("acme", |counts| counts.delivered == 2000);
    assert_eq!(counts.await.accepted, 2000);
    assert!(instance.api.send_test("acme").await.delivered);

    let stream_arn = &cluster.customer.stream_arn;
    let arrived = read_events(&cluster.aws, stream_arn, 2000).await;
    check_complete(&arrived, &integration.integration_id, &load.made);
    check_in_order(&arrived);
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_only_instance_lose_no_acked_event() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let instance = cluster.start().await;
    instance.api.configure(&cluster.customer).await;
    let traffic = Traffic::start(&cluster, 3, &[&instance]);
    let mut instance = instance;
    for _ in 0..2 {
        traffic.until_acked(200).await;
        instance.kill().await;
        instance = cluster.start().await;
        traffic.use_instances(&[&instance]);
    }
    traffic.until_acked(200).await;
    traffic.check(&cluster, &instance.api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_refused() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let instance = cluster.start().await;
    instance.api.configure(&cluster.customer).await;
    let refused = cluster.try_start(&"cd".repeat(32)).await.err();
    let stderr = refused.expect("the start must fail").stderr;
    assert!(stderr.contains("key"), "{stderr}");
    assert!(instance.api.send_test("acme").await.delivered);
}

/// Events that were read are delivered until the lease ends; nothing is acked after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_or_is_cut_off_delays_and_loses_nothing() {
    let (Some(kafka), Some(postgres)) = (
        require(shared_kafka().await),
        require(shared_postgres().await),
    ) else {
        return;
    };
    let proxy = Proxy::start(postgres.port());
    let cluster = Cluster::new(kafka, &[postgres], proxy.port()).await;
    let instance = cluster.start().await;
    instance.api.configure(&cluster.customer).await;
    let traffic = Traffic::start(&cluster, 2, &[&instance]);
    traffic.until_acked(100).await;

    proxy.hang().await;
    traffic.until_refused(10).await;
    let refused = instance.api.try_configure(cluster.customer.request()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    proxy.resume().await;
    traffic.until_acked(100).await;

    proxy.cut().await;
    traffic.until_refused(10).await;
    let refused = instance.api.try_configure(cluster.customer.request()).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    proxy.resume().await;
    traffic.until_acked(100).await;
    traffic.check(&cluster, &instance.api).await;
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restarts_of_the_database_lose_nothing() {
    let Some(kafka) = require(shared_kafka().await) else {
        return;
    };
    let Some(postgres) = require(Postgres::start().await) else {
        return;
    };
    let cluster = Cluster::new(kafka, &[&postgres], postgres.port()).await;
    let instance = cluster.start().await;
    instance.api.configure(&cluster.customer).await;
    let mut statuses = instance.api.watch_changes("acme").await;
    let traffic = Traffic::start(&cluster, 2, &[&instance]);
    traffic.until_acked(100).await;
    postgres.stop().await;
    postgres.start_again().await;
    traffic.until_acked(100).await;
    postgres.kill().await;
    postgres.start_again().await;
    traffic.until_acked(100).await;
    traffic.check(&cluster, &instance.api).await;

    instance.api.delete("acme", false).await.unwrap();
    let deleted = FeedEvent::Deleted("acme".to_owned());
    with_timeout("the deletion", async {
        while statuses.next().await != deleted {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_hang_or_are_gone_delay_and_lose_nothing() {
    let Some(postgres) = require(shared_postgres().await) else {
        return;
    };
    let options = KafkaOptions {
        proxied: true,
        settings: vec![("broker.session.timeout.ms".to_owned(), "2000".to_owned())],
        ..KafkaOptions::default()
    };
    let Some(kafka) = require(Kafka::start_with(options).await) else {
        return;
    };
    let cluster = Cluster::new(&kafka, &[postgres], postgres.port()).await;
    let instance = cluster.start().await;
    instance.api.configure(&cluster.customer).await;
    let traffic = Traffic::start(&cluster, 2, &[&instance]);
    traffic.until_acked(100).await;

    kafka.proxy(1).hang().await;
    traffic.until_refused(10).await;
    let mut probe = Load::new("acme", 1, 9);
    let refused = instance.api.try_publish(probe.events(1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let reason = reason(&refused);
    assert!(
        ["STORAGE_FAILED", "OUTCOME_UNKNOWN"].contains(&reason.as_str()),
        "{reason}"
    );
    kafka.proxy(1).resume().await;
    traffic.until_acked(100).await;

    kafka.proxy(1).cut().await;
    traffic.until_refused(10).await;
    kafka.proxy(1).resume().await;
    traffic.until_acked(100).await;

    kafka.kill(1).await;
    traffic.until_refused(10).await;
    kafka.start_again(1).await;
    traffic.until_acked(100).await;
    traffic.check(&cluster, &instance.api).await;
}
