//! Expiry: kills while events expire, and its log lines.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1;
use uuid::Uuid;

use crate::harness::{
    Api, Load, ProcessEnv, Published, backdate_log, parameter, read_events, run_verify,
    with_timeout,
};

/// Publishes up to a number of requests, or until the server is gone. Returns the acked events.
async fn publish(api: &Api, load: &mut Load, requests: usize) -> Vec<Published> {
    let mut acked = Vec::new();
    for _ in 0..requests {
        let before = load.made.len();
        let events = load.events(50);
        match api.try_publish(events).await {
            Ok(answer) => assert_eq!(answer.accepted, 50),
            Err(_gone) => break,
        }
        acked.extend_from_slice(&load.made[before..]);
    }
    acked
}

/// `SIEM_RELAY_TEST_KILLS` sets the number of kills, `SIEM_RELAY_TEST_SEED` the seed.
#[tokio::test(flavor = "multi_thread")]
async fn kills_while_events_expire_keep_the_counts_and_lose_no_gap() {
    let mut env = ProcessEnv::new().await;
    let mut random = StdRng::seed_from_u64(parameter("SEED", 71));
    let mut load = Load::new("acme", 5, 72);
    let mut acked = Vec::new();
    // The stream exists in some rounds only, so that gaps wait, are sent and grow.
    let streams = [env.customer.clone(), env.customer.with_stream("none")];
    let limits = [
        "--retention-seconds",
        "86400",
        "--retention-bytes",
        "1048576",
        "--max-records-per-request",
        "90",
    ];
    let mut expired = 0;
    for round in 0..parameter("KILLS", 24) as usize {
        let process = env.start_with(&limits).await;
        let api = process.api.clone();
        env.customer = streams[usize::from(random.random_bool(0.7))].clone();
        api.configure(&env.customer).await;
        let counts = api.get("acme").await.counts.unwrap();
        assert!(counts.expired >= expired, "expired events remain expired");
        expired = counts.expired;
        let time = Duration::from_micros(random.random_range(0..150_000));
        let requests = if round % 4 == 0 { 2 } else { usize::MAX };
        let kill = async {
            tokio::time::sleep(time).await;
            process.kill().await;
        };
        let published = with_timeout("the kill", async {
            tokio::join!(publish(&api, &mut load, requests), kill).0
        });
        acked.extend(published.await);
        if random.random_bool(0.3) {
            backdate_log(env.dir.path(), Duration::from_secs(25 * 3600)).await;
        }
    }
    let process = env.start_with(&limits[..2]).await;
    process.api.configure(&streams[0]).await;
    let counts = process.api.until_delivered("acme").await;
    assert!(counts.expired > 0);
    check(&env, &counts, &acked).await;
    // Gaps may cover events that were delivered, but no more sequences than expired.
    let url = env.stand_in.url();
    let report = run_verify(&env.aws, &url, &streams[0].stream_arn, counts.accepted).await;
    assert!(
        report["gaps"]["sequences"].as_u64().unwrap() <= counts.expired,
        "{report}"
    );
}

/// Checks that each sequence is in the stream or in a gap, and that no more acked events are missing
/// than have expired.
async fn check(env: &ProcessEnv, counts: &v1::EventCounts, acked: &[Published]) {
    let stream_arn = &env.customer.with_stream("acme").stream_arn;
    let arrived = read_events(&env.aws, stream_arn, counts.accepted as usize).await;
    let mut in_gap = vec![false; counts.accepted as usize + 1];
    let mut delivered: HashMap<Uuid, u64> = HashMap::new();
    for event in &arrived {
        let Some(gap) = &event.gap else {
            let before = delivered.insert(event.id, event.sequence);
            assert!(before.is_none_or(|before| before == event.sequence));
            continue;
        };
        assert_eq!(event.sequence, gap.last);
        assert!(gap.count <= gap.last - gap.first + 1);
        in_gap[gap.first as usize..=gap.last as usize].fill(true);
    }
    let sequences: HashSet<u64> = delivered.values().copied().collect();
    assert_eq!(sequences.len(), delivered.len(), "a sequence is one event");
    let missing = (1..=counts.accepted).filter(|sequence| !sequences.contains(sequence));
    let silent: Vec<u64> = missing.filter(|each| !in_gap[*each as usize]).collect();
    assert_eq!(silent, Vec::<u64>::new(), "lost in silence");
    // Events that expired after delivery, before it was settled, are in the stream as well.
    assert!(sequences.len() as u64 >= counts.delivered);
    let lost = acked
        .iter()
        .filter(|event| !delivered.contains_key(&event.event_id));
    assert!(lost.count() as u64 <= counts.expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn expiry_is_logged_and_rate_limited() {
    let env = ProcessEnv::new().await;
    let process = env.start_with(&["--retention-bytes", "1048576"]).await;
    let nowhere = env.customer.with_stream("none");
    let integration = process.api.configure(&nowhere).await;
    let mut load = Load::new("acme", 3, 73);
    let mut expiries = HashSet::new();
    while expiries.len() < 6 {
        process.api.publish(&load.events(200)).await;
        expiries.insert(process.api.get("acme").await.counts.unwrap().expired);
    }
    let log = process.stop().await;
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("events expired before"))
        .collect();
    assert!((1..=2).contains(&lines.len()), "{log}");
    for what in ["WARN", "RETENTION_SIZE", &integration.integration_id] {
        assert!(lines[0].contains(what), "{}", lines[0]);
    }
}
