//! A database that is not what was written.

use std::fs;

use super::Ground;
use crate::harness::{Load, Process};

/// Starts on a database whose bytes were changed; it must be refused, in words that
/// help, and left as it is.
async fn assert_refused(ground: &Ground, damage: impl FnOnce(&mut Vec<u8>)) {
    let path = ground.dir.path().join("siem-relay.sqlite");
    let sound = fs::read(&path).unwrap();
    let mut damaged = sound.clone();
    damage(&mut damaged);
    fs::write(&path, &damaged).unwrap();
    let url = ground.stand_in.url();
    let refused = Process::try_start(ground.dir.path(), &url, &[]).await;
    let refused = refused.err().expect("the database is damaged");
    assert_eq!(refused.code, Some(1));
    for words in ["siem-relay.sqlite is damaged", "docs/operations.md"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert!(fs::read(&path).unwrap() == damaged, "it was written to");
    fs::write(&path, &sound).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_database_is_refused_and_named() {
    let ground = Ground::new().await;
    ground
        .customer
        .make_role_that_may(&ground.aws, "s3:GetObject");
    let process = ground.start().await;
    process.api.configure(&ground.customer).await;
    let mut load = Load::new("acme", 3, 80);
    for _ in 0..5 {
        process.api.publish(&load.events(100)).await;
    }
    process.terminate().await;
    process.ended().await;

    assert_refused(&ground, |bytes| bytes[..100].fill(0x5a)).await;
    assert_refused(&ground, |bytes| bytes.truncate(3 * 16384)).await;
    for page in 1..4 {
        assert_refused(&ground, |bytes| bytes[page * 16384..][..16].fill(0xff)).await;
    }
    ground.customer.make_role(&ground.aws);
    let process = ground.start().await;
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, 500);
}
