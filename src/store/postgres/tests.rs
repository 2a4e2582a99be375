//! PostgreSQL in trouble.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sea_orm::ConnectionTrait;
use test_services::{Postgres, Proxy, require, shared_postgres};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{Database, OpenError, PostgresOptions, schema, testing};
use crate::store::{
    error::StoreError,
    sql::{load_meta, save_meta, statement},
};

/// Time within which the database answers again after a fault.
const SOON: Duration = Duration::from_secs(10);
/// Longest time of a call with its bounds, on a machine that is shared.
const BOUNDED: Duration = Duration::from_secs(9);

/// Writes a fact and reads it back.
async fn write(database: &Database, value: &str) -> Result<(), StoreError> {
    let tx = database.begin().await?;
    let saved = save_meta(&*tx, "test", value).await;
    saved.map_err(|error| database.map(error))?;
    tx.commit().await
}

async fn read(database: &Database) -> Result<Option<String>, StoreError> {
    let value = load_meta(database.reader(), "test").await;
    value.map_err(|error| database.map(error))
}

/// Tries until a write succeeds.
async fn recovers(database: &Database) {
    let recovered = timeout(SOON, async {
        while let Err(error) = write(database, "recovered").await {
            assert!(is_temporary(&error), "{error:?}");
        }
    });
    recovered.await.expect("writes do not resume");
    assert_eq!(read(database).await.unwrap().unwrap(), "recovered");
}

fn is_temporary(error: &StoreError) -> bool {
    matches!(error, StoreError::Failed(_) | StoreError::Unavailable(_))
}

fn is_failed<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Failed(_)))
}

async fn own_server() -> Option<(Postgres, String)> {
    let server = require(Postgres::start().await)?;
    let url = testing::empty(&server).await;
    Some((server, url))
}

/// The URL with other hosts.
fn at(url: &str, hosts: &str) -> String {
    let (_, name) = url.rsplit_once('/').unwrap();
    format!("postgres://postgres@{hosts}/{name}")
}

#[tokio::test]
async fn instances_that_start_at_once_migrate_once() {
    let Some(server) = require(shared_postgres().await) else {
        return;
    };
    let url = testing::empty(server).await;
    let mut starts = JoinSet::new();
    for _ in 0..4 {
        let url = url.clone();
        starts.spawn(async move { testing::open(&url).await.database_id().to_owned() });
    }
    let mut ids = starts.join_all().await;
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[tokio::test]
async fn an_instance_that_dies_while_it_migrates_changes_nothing() {
    let Some(server) = require(shared_postgres().await) else {
        return;
    };
    for statements in [1, 5, 12] {
        let url = testing::empty(server).await;
        let pool = super::Pool::new(testing::options(&url));
        let session = pool.begin(super::pool::Mode::Migration).await.unwrap();
        schema::begin_to_migrate(&session, statements).await;
        let other = tokio::spawn({
            let url = url.clone();
            async move { testing::open(&url).await }
        });
        let name = url.rsplit('/').next().unwrap();
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event = 'advisory'"
        );
        server.until(&waits).await;
        drop(session);
        write(&other.await.unwrap(), "migrated").await.unwrap();
    }
}

#[tokio::test]
async fn a_schema_that_needs_a_newer_version_is_refused() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let database = testing::open(&url).await;
    let newer = schema::VERSION + 1;
    let set = async |name: &str, value: u32| {
        let tx = database.begin().await.unwrap();
        save_meta(&*tx, name, &value.to_string()).await.unwrap();
        tx.commit().await.unwrap();
    };
    // A migration that only adds leaves this version working.
    set("schema", newer).await;
    write(&testing::open(&url).await, "beside").await.unwrap();
    set("schema_minimum", newer).await;
    let refused = super::open(testing::options(&url)).await;
    let is_newer =
        |error: &_| matches!(error, OpenError::Newer { minimum, .. } if *minimum == newer);
    assert!(refused.as_ref().err().is_some_and(is_newer));
}

#[tokio::test]
async fn a_failed_statement_is_not_committed() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let database = testing::open(&url).await;
    let tx = database.begin().await.unwrap();
    save_meta(&*tx, "test", "lost").await.unwrap();
    let failed = tx.execute_unprepared("SELECT 1 / 0").await;
    assert!(failed.is_err());
    assert!(save_meta(&*tx, "test", "after").await.is_err());
    assert!(is_failed(&tx.commit().await));
    assert_eq!(read(&database).await.unwrap(), None);
    write(&database, "kept").await.unwrap();
    assert_eq!(read(&database).await.unwrap().unwrap(), "kept");
}

#[tokio::test]
async fn cancelled_calls_leave_no_transaction_open() {
    let Some(server) = require(shared_postgres().await) else {
        return;
    };
    let url = testing::migrated().await.unwrap();
    let database = testing::open(&format!("{url}?max-connections=2")).await;
    for polls in 0..60 {
        let call = async {
            let tx = database.begin().await.unwrap();
            save_meta(&*tx, "cancelled", "value").await.unwrap();
            tx.commit().await.unwrap();
        };
        crate::store::conformance::interrupt(polls, call).await;
    }
    write(&database, "kept").await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    server
        .until(&format!(
            "SELECT CAST(count(*) = 0 AS INTEGER) FROM pg_stat_activity \
            WHERE datname = '{name}' AND state LIKE 'idle in%'"
        ))
        .await;
}

#[tokio::test]
async fn an_exhausted_pool_refuses_and_recovers() {
    let Some(url) = testing::migrated().await else {
        return;
    };
    let database = testing::open(&format!("{url}?max-connections=2")).await;
    let held = [
        database.begin().await.unwrap(),
        database.begin().await.unwrap(),
    ];
    let begun = Instant::now();
    let refused = write(&database, "refused").await;
    assert!(is_failed(&refused), "{refused:?}");
    assert!(begun.elapsed() < BOUNDED);
    drop(held);
    write(&database, "kept").await.unwrap();
    database.close().await;
    assert!(matches!(read(&database).await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_schema_change_closes_connections_that_know_the_old_one() {
    let Some(server) = require(shared_postgres().await) else {
        return;
    };
    let url = testing::migrated().await.unwrap();
    let database = testing::open(&format!("{url}?max-connections=2")).await;
    let all = async || {
        let select = statement(
            database.reader(),
            "SELECT * FROM meta WHERE name = $1",
            ["x".into()],
        );
        database.reader().query_all_raw(select).await
    };
    all().await.unwrap();
    let name = url.rsplit('/').next().unwrap();
    server
        .sql(name, "ALTER TABLE meta ADD COLUMN further TEXT")
        .await;
    // The connection that fails is not used again.
    let _failed = all().await;
    all().await.unwrap();
    all().await.unwrap();
}

#[tokio::test]
async fn a_stopped_server_is_a_bounded_failure() {
    let Some((server, url)) = own_server().await else {
        return;
    };
    let database = testing::open(&url).await;
    write(&database, "before").await.unwrap();
    let open = database.begin().await.unwrap();
    save_meta(&*open, "test", "doubtful").await.unwrap();
    server.pause();
    let begun = Instant::now();
    let (commit, write, read) = tokio::join!(
        open.commit(),
        write(&database, "while it is stopped"),
        read(&database),
    );
    assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
    assert!(
        matches!(commit, Err(StoreError::Unavailable(_))),
        "{commit:?}"
    );
    assert!(is_failed(&write), "{write:?}");
    assert!(is_failed(&read), "{read:?}");
    server.resume();
    recovers(&database).await;
}

#[tokio::test]
async fn a_restart_of_the_server_is_bridged() {
    let Some((server, url)) = own_server().await else {
        return;
    };
    let database = testing::open(&url).await;
    write(&database, "before").await.unwrap();
    server.stop().await;
    let refused = write(&database, "while it is down").await;
    assert!(is_failed(&refused), "{refused:?}");
    server.start_again().await;
    // Connections from before do not make a call fail.
    write(&database, "after").await.unwrap();
    server.kill().await;
    server.start_again().await;
    assert_eq!(read(&database).await.unwrap().unwrap(), "after");
}

#[tokio::test]
async fn a_cut_connection_fails_a_statement_and_leaves_a_commit_in_doubt() {
    let Some(server) = require(shared_postgres().await) else {
        return;
    };
    let url = testing::migrated().await.unwrap();
    let proxy = Proxy::start(server.port());
    let database = testing::open(&at(&url, &format!("127.0.0.1:{}", proxy.port()))).await;
    for is_silent in [false, true] {
        write(&database, "before").await.unwrap();
        let [statement, commit] = [
            database.begin().await.unwrap(),
            database.begin().await.unwrap(),
        ];
        save_meta(&*commit, "test", "doubtful").await.unwrap();
        match is_silent {
            true => proxy.hang().await,
            false => proxy.cut().await,
        }
        let begun = Instant::now();
        let (failed, doubtful) = tokio::join!(load_meta(&*statement, "test"), commit.commit());
        assert!(failed.is_err());
        let in_doubt = matches!(doubtful, Err(StoreError::Unavailable(_)));
        assert!(in_doubt, "{doubtful:?}");
        assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
        drop(statement);
        // Idle connections are dead as well.
        assert!(is_failed(&read(&database).await));
        proxy.resume().await;
        recovers(&database).await;
    }
}

#[tokio::test]
async fn a_host_that_only_reads_is_not_used() {
    let Some((server, url)) = own_server().await else {
        return;
    };
    testing::open(&url).await.close().await;
    let standby = server.add_standby().await;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", standby.port(), server.port());
    let database = testing::open(&at(&url, &hosts)).await;
    write(&database, "primary").await.unwrap();
    let alone = at(&url, &format!("127.0.0.1:{}", standby.port()));
    assert!(super::open(testing::options(&alone)).await.is_err());

    server.kill().await;
    assert!(is_failed(&write(&database, "no primary").await));
    standby.promote().await;
    recovers(&database).await;

    standby.set("default_transaction_read_only", "on").await;
    let refused = timeout(SOON, async { while write(&database, "x").await.is_ok() {} }).await;
    refused.expect("a session that only reads is used");
    standby.set("default_transaction_read_only", "off").await;
    recovers(&database).await;
}

#[tokio::test]
async fn a_lost_standby_stops_replicated_commits_only() {
    let Some((server, url)) = own_server().await else {
        return;
    };
    let database = testing::open(&url).await;
    write(&database, "before").await.unwrap();
    let standby = server.add_standby().await;
    standby.pause();
    let mut writes = JoinSet::new();
    let database = Arc::new(database);
    let begun = Instant::now();
    for number in 0..4 {
        let database = Arc::clone(&database);
        writes.spawn(async move {
            let tx = database.begin().await?;
            let saved = save_meta(&*tx, &format!("test {number}"), "doubtful").await;
            saved.map_err(|error| database.map(error))?;
            tx.commit().await
        });
    }
    // Commits that the server has made, and that wait for the standby.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let mut awaited = 0;
    let mut ended = 0;
    while ended < 4 {
        tokio::select! {
            write = writes.join_next() => {
                let doubtful = write.unwrap().unwrap();
                let in_doubt = matches!(doubtful, Err(StoreError::Unavailable(_)));
                assert!(in_doubt, "{doubtful:?}");
                ended += 1;
            }
            number = server.sql("postgres", waiting) => {
                awaited = awaited.max(number.parse::<i64>().unwrap());
            }
        }
    }
    assert!(awaited > 0, "no commit was seen to wait");
    assert!(begun.elapsed() < BOUNDED, "{:?}", begun.elapsed());
    // One transaction tries; all others are refused at once.
    let probe = database.begin().await.unwrap();
    let begun = Instant::now();
    assert!(is_failed(&database.begin().await.map(drop)));
    assert!(begun.elapsed() < Duration::from_secs(1));
    drop(probe);
    // Not visible, and not in the way of others.
    assert_eq!(read(&database).await.unwrap().unwrap(), "before");
    let local = database.begin_local().await.unwrap();
    save_meta(&*local, "test", "local").await.unwrap();
    local.commit().await.unwrap();
    assert_eq!(read(&database).await.unwrap().unwrap(), "local");
    standby.resume();
    recovers(&database).await;
    let number = "SELECT count(*) AS number FROM meta WHERE name LIKE 'test %'";
    let row = database
        .reader()
        .query_one_raw(statement(database.reader(), number, []))
        .await;
    let number: i64 = row.unwrap().unwrap().try_get("", "number").unwrap();
    // On a busy machine one may be given up before the server took its commit.
    assert!(
        number >= awaited,
        "{number} of {awaited} commits that were awaited are kept"
    );
}

/// Writes a file that belongs to the server.
fn write_for(server: &Postgres, name: &str, content: &str) {
    let data = server.data();
    let owner = fs::metadata(&data).unwrap();
    let path = data.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

fn authority(name: &str) -> (Certificate, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate, Issuer::new(params, key))
}

#[tokio::test]
async fn servers_are_verified_and_passwords_are_rotated() {
    let Some((server, url)) = own_server().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (certificate, issuer) = authority("ours");
    let (other, _) = authority("other");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let signed = params.signed_by(&key, &issuer).unwrap();
    write_for(&server, "server.crt", &signed.pem());
    write_for(&server, "server.key", &key.serialize_pem());
    let hba = "hostssl all relay all scram-sha-256\nhost all postgres all trust\n";
    write_for(&server, "pg_hba.conf", hba);
    server.set("ssl", "on").await;
    let name = url.rsplit('/').next().unwrap();
    let role =
        format!("CREATE ROLE relay LOGIN PASSWORD 'first'; ALTER DATABASE {name} OWNER TO relay");
    server.sql("postgres", &role).await;

    let password = folder.path().join("password");
    let open = async |certificate: &Certificate, content: &str| {
        let authority = folder.path().join("authority.pem");
        fs::write(&authority, certificate.pem()).unwrap();
        fs::write(&password, content).unwrap();
        fs::set_permissions(&password, Permissions::from_mode(0o600)).unwrap();
        let url = format!(
            "postgres://relay@127.0.0.1:{}/{name}?sslmode=verify-full&sslrootcert={}",
            server.port(),
            authority.display()
        );
        let options = PostgresOptions::parse(&url, None, Some(password.clone())).unwrap();
        super::open(options).await
    };
    for refused in [
        open(&other, "first\n").await,
        open(&certificate, "hunter2").await,
    ] {
        let text = refused.err().unwrap().to_string();
        assert!(!text.contains("hunter2"), "{text}");
    }
    let database = open(&certificate, "first\n").await.unwrap();
    write(&database, "first").await.unwrap();
    fs::write(&password, "second\n").unwrap();
    server
        .sql("postgres", "ALTER ROLE relay PASSWORD 'second'")
        .await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'relay'";
    server.sql("postgres", end).await;
    write(&database, "second").await.unwrap();
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
        WHERE usename = 'relay' AND ssl";
    assert_ne!(server.sql("postgres", encrypted).await, "0");
}

#[tokio::test]
async fn a_former_primary_that_goes_on_is_found_out() {
    let Some((server, url)) = own_server().await else {
        return;
    };
    let standby = server.add_standby().await;
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", server.port(), standby.port());
    let database = testing::open(&at(&url, &hosts)).await;
    write(&database, "before").await.unwrap();
    server.set("synchronous_standby_names", "").await;
    standby.promote().await;
    // Both take writes.
    let name = url.rsplit('/').next().unwrap();
    let value = "SELECT value FROM meta WHERE name = 'test'";
    let moved = timeout(SOON, async {
        loop {
            write(&database, "after").await.unwrap();
            if standby.sql(name, value).await == "after" {
                return;
            }
        }
    });
    moved.await.expect("the former primary is used");
}

#[tokio::test]
async fn a_commit_in_doubt_leaves_no_session_behind() {
    let Some((server, url)) = own_server().await else {
        return;
    };
    let database = testing::open(&url).await;
    let standby = server.add_standby().await;
    standby.pause();
    let doubtful = write(&database, "doubtful").await;
    let in_doubt = matches!(doubtful, Err(StoreError::Unavailable(_)));
    assert!(in_doubt, "{doubtful:?}");
    let waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    assert_eq!(
        server
            .sql("postgres", &format!("SELECT count(*) {waiting}"))
            .await,
        "1"
    );
    server
        .until(&format!("SELECT CAST(count(*) = 0 AS INTEGER) {waiting}"))
        .await;
    standby.resume();
    recovers(&database).await;
}
