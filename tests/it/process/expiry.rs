//! Kills while events expire.

use std::{collections::HashMap, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1;
use uuid::Uuid;

use super::Ground;
use crate::harness::{Api, Load, Published, age_log, arrive, knob, verified, within};

/// Publishes without pause until the server is gone; tells what was acked.
async fn pour(api: &Api, load: &mut Load, most: usize) -> Vec<Published> {
    let mut acked = Vec::new();
    for _ in 0..most {
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

/// `SIEM_RELAY_TEST_KILLS` and `SIEM_RELAY_TEST_SEED` make it longer, and another one.
#[tokio::test(flavor = "multi_thread")]
async fn kills_while_events_expire_keep_the_counts_and_lose_no_gap() {
    let mut ground = Ground::new().await;
    let mut chance = StdRng::seed_from_u64(knob("SEED", 71));
    let mut load = Load::new("acme", 5, 72);
    let mut acked = Vec::new();
    // The stream is there or not, so that gaps wait, go out, and become wider.
    let streams = [ground.customer.clone(), ground.customer.with_stream("none")];
    let limits = [
        "--retention-seconds",
        "86400",
        "--retention-bytes",
        "1048576",
        "--max-records-per-request",
        "90",
    ];
    let mut expired = 0;
    for round in 0..knob("KILLS", 24) as usize {
        let process = ground.start_with(&limits).await;
        let api = process.api.clone();
        ground.customer = streams[usize::from(chance.random_bool(0.7))].clone();
        api.configure(&ground.customer).await;
        let counts = api.get("acme").await.counts.unwrap();
        assert!(counts.expired >= expired, "what expired stays so");
        expired = counts.expired;
        let moment = Duration::from_micros(chance.random_range(0..150_000));
        let most = if round % 4 == 0 { 2 } else { usize::MAX };
        let kill = async {
            tokio::time::sleep(moment).await;
            process.kill().await;
        };
        let poured = within("the kill", async {
            tokio::join!(pour(&api, &mut load, most), kill).0
        });
        acked.extend(poured.await);
        if chance.random_bool(0.3) {
            age_log(ground.dir.path(), Duration::from_secs(25 * 3600)).await;
        }
    }
    let process = ground.start_with(&limits[..2]).await;
    process.api.configure(&streams[0]).await;
    let counts = process.api.until_delivered("acme").await;
    assert!(counts.expired > 0);
    check(&ground, &counts, &acked).await;
    // No more is missing than the gaps count.
    let url = ground.stand_in.url();
    let report = verified(&ground.aws, &url, &streams[0].stream_arn, counts.accepted).await;
    assert!(
        report["gaps"]["sequences"].as_u64().unwrap() <= counts.expired,
        "{report}"
    );
}

/// Each sequence is there or told of, and all that was acked is there but what expired.
async fn check(ground: &Ground, counts: &v1::EventCounts, acked: &[Published]) {
    let stream_arn = &ground.customer.with_stream("acme").stream_arn;
    let arrived = arrive(&ground.aws, stream_arn, counts.accepted as usize).await;
    let mut told = vec![false; counts.accepted as usize + 1];
    let mut there: HashMap<Uuid, u64> = HashMap::new();
    for one in &arrived {
        let Some(gap) = &one.gap else {
            let before = there.insert(one.id, one.sequence);
            assert!(before.is_none_or(|before| before == one.sequence));
            continue;
        };
        assert_eq!(one.sequence, gap.last);
        assert!(gap.count <= gap.last - gap.first + 1);
        told[gap.first as usize..=gap.last as usize].fill(true);
    }
    let sequences: std::collections::HashSet<u64> = there.values().copied().collect();
    assert_eq!(sequences.len(), there.len(), "a sequence is one event");
    let silent = (1..=counts.accepted).filter(|one| !sequences.contains(one));
    let silent: Vec<u64> = silent.filter(|one| !told[*one as usize]).collect();
    assert_eq!(silent, Vec::<u64>::new(), "lost in silence");
    // What was delivered, and expired before that was known, is in the stream as well.
    assert!(sequences.len() as u64 >= counts.delivered);
    let lost = acked
        .iter()
        .filter(|one| !there.contains_key(&one.event_id));
    assert!(lost.count() as u64 <= counts.expired);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_tells_an_operator_and_does_not_drown_them() {
    let ground = Ground::new().await;
    let process = ground.start_with(&["--retention-bytes", "1048576"]).await;
    let nowhere = ground.customer.with_stream("none");
    let integration = process.api.configure(&nowhere).await;
    let mut load = Load::new("acme", 3, 73);
    let mut expiries = std::collections::HashSet::new();
    while expiries.len() < 6 {
        process.api.publish(&load.events(200)).await;
        expiries.insert(process.api.get("acme").await.counts.unwrap().expired);
    }
    process.terminate().await;
    let (_, log) = process.ended().await;
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("events expired before"))
        .collect();
    assert!((1..=2).contains(&told.len()), "{log}");
    for what in ["WARN", "RETENTION_SIZE", &integration.integration_id] {
        assert!(told[0].contains(what), "{}", told[0]);
    }
}
