//! PostgreSQL in the suites. A crash goes on with new connections.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use sea_orm::ConnectionTrait;
use test_services::{Postgres, require, shared_postgres};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::registry::{self, OPTIONS, Wish, configure};
use crate::{
    domain::{audit::Actor, organization::OrganizationId},
    store::{
        ConfigureError, StoreError,
        ports::{Keys, Registry},
        postgres::testing,
        replica::Replica,
        sql::{Database, SqlRegistry},
    },
};

async fn open(url: &str) -> Arc<dyn Registry> {
    let database = Database::Postgres(testing::open(url).await);
    Arc::new(SqlRegistry::open(database, OPTIONS).await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_conforms() {
    let Some(server) = require(shared_postgres().await) else {
        return;
    };
    let create = async || testing::migrated().await.unwrap();
    let open = async |url: &String| open(url).await;
    registry::suite(create, open).await.unwrap();
    let deadlocks = "SELECT sum(deadlocks) FROM pg_stat_database";
    assert_eq!(server.sql("postgres", deadlocks).await, "0");
}

/// A Configure whose audit is held up cannot be overtaken by others with its external ID.
#[tokio::test]
async fn an_external_id_is_given_once() {
    let Some(server) = require(shared_postgres().await) else {
        return;
    };
    let url = testing::migrated().await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    let hold = "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS \
        'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END'; \
        CREATE TRIGGER hold BEFORE INSERT ON audit FOR EACH ROW \
        WHEN (NEW.organization_id = 'slow') EXECUTE FUNCTION hold()";
    server.sql(name, hold).await;
    let database = testing::open(&url).await;
    let first = open(&url).await;
    let second = open(&url).await;
    let holder = database.begin().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(7)";
    holder.execute_unprepared(lock).await.unwrap();
    let slow = tokio::spawn(async move { configure(&first, "slow", Wish::of(1)).await });
    let waiting = |least: u32| {
        format!(
            "SELECT CAST(count(*) >= {least} AS INTEGER) FROM pg_stat_activity \
            WHERE datname = '{name}' AND wait_event_type = 'Lock'"
        )
    };
    server.until(&waiting(1)).await;
    let quick = tokio::spawn(async move {
        configure(&second, "quick", Wish::of(1)).await?;
        let mut rotated = Wish::of(2);
        rotated.keep_previous = true;
        configure(&second, "quick", rotated).await
    });
    // Two wait for locks, unless the second one has overtaken.
    let both = waiting(2);
    let waits = server.until(&both);
    let ends = async {
        while !quick.is_finished() {
            tokio::task::yield_now().await
        }
    };
    tokio::select! {
        () = waits => {}
        () = ends => {}
    }
    drop(holder);
    let in_use = |result: &Result<u64, ConfigureError>| {
        matches!(result, Err(ConfigureError::ExternalIdInUse))
    };
    let (slow, quick) = (slow.await.unwrap(), quick.await.unwrap());
    assert!(slow.is_ok() && in_use(&quick), "{slow:?} and {quick:?}");
}

#[tokio::test]
async fn a_promotion_starts_higher_revisions() {
    let Some(server) = require(Postgres::start().await) else {
        return;
    };
    let url = testing::empty(&server).await;
    let before = open(&url).await;
    let standby = server.add_standby().await;
    let first = configure(&before, "acme", Wish::of(1)).await.unwrap();
    assert_eq!(first >> 40, 1, "the first timeline");
    let replica = Replica::default();
    replica.apply(before.changes_after(0, 10).await.unwrap());
    // Visible, and lost with the primary: the standby does not have it.
    standby.kill().await;
    server.set("synchronous_standby_names", "").await;
    let lost = timeout(Duration::from_secs(30), async {
        loop {
            match configure(&before, "lost", Wish::of(2)).await {
                Ok(revision) => return revision,
                Err(ConfigureError::Store(_)) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    let lost = lost.await.unwrap();
    assert!(lost > first);
    replica.apply(before.changes_after(replica.cursor(), 10).await.unwrap());
    assert!(replica.id_of("lost").is_some());
    server.kill().await;
    standby.start_again().await;
    standby.promote().await;
    let after = open(&standby.database_url(url.rsplit('/').next().unwrap())).await;
    let promoted = configure(&after, "acme", Wish::of(3)).await.unwrap();
    assert_eq!(promoted >> 40, 2, "the second timeline");
    // Whoever saw the lost change reads everything anew.
    while !replica
        .apply(after.changes_after(replica.cursor(), 10).await.unwrap())
        .is_complete
    {}
    assert!(replica.id_of("lost").is_none() && replica.id_of("acme").is_some());
    let further = configure(&after, "acme", Wish::of(4)).await.unwrap();
    assert_eq!(further, promoted + 1);
}

#[tokio::test]
async fn a_database_is_sealed_with_one_key() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let database = Database::Postgres(testing::open(&url).await);
    let registry = SqlRegistry::open(database, OPTIONS).await.unwrap();
    let (registry, now) = (&registry, Timestamp::now());
    let (one, other) = tokio::join!(
        registry.start_keys("one", now),
        registry.start_keys("other", now)
    );
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one, other, "two keys are active");
    assert_eq!(one.all().count(), 1);
    assert_eq!(registry.start_keys("third", now).await.unwrap(), one);
}

/// Writers that hold the keys at every time, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_writers_do_not_keep_the_keys_from_changing() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let database = Database::Postgres(testing::open(&url).await);
    let registry = Arc::new(SqlRegistry::open(database, OPTIONS).await.unwrap());
    registry.start_keys("one", Timestamp::now()).await.unwrap();
    let (writes, mut written) = watch::channel(0_u64);
    let writers: Vec<_> = (0..6)
        .map(|_| {
            let (registry, writes) = (Arc::clone(&registry), writes.clone());
            AbortOnDropHandle::new(tokio::spawn(async move {
                let organization_id = OrganizationId::new("acme").unwrap();
                let refuse = |_: &Keys| Err(StoreError::Sealing);
                let actor = Actor::named("writer");
                loop {
                    let now = Timestamp::now();
                    let issued = registry.issue_external_id(&organization_id, &refuse, &actor, now);
                    issued.await.unwrap_err();
                    writes.send_modify(|writes| *writes += 1);
                }
            }))
        })
        .collect();
    for round in 0..5 {
        let before = *written.borrow_and_update();
        let all = written.wait_for(|writes| *writes >= before + 20).await;
        drop(all.unwrap());
        let key = ["two", "three"][round % 2];
        let keys = registry.propose_key(key).await.unwrap();
        assert_eq!(keys.pending.as_deref(), Some(key));
    }
    drop(writers);
}
