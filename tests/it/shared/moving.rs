//! The move of an embedded service to shared storage.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use aws_stand_in::Control;
use sea_orm::{
    ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend, Statement,
    TransactionTrait,
};
use siem_client::v1::{self, Status};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{cluster, cluster::Cluster};
use crate::harness::{
    AuditRow, Customer, Load, Process, StatusFeed, audit_rows, check_complete, check_with_gaps,
    database, read_events, run, with_timeout,
};

const INCOMPLETE: &str = "run `siem-relay move` again";
const MOVED: &str = "was moved to shared storage";

/// A customer with a stream, whose role does not exist.
fn refused_customer(aws: &Control, organization_id: &str) -> Customer {
    let customer = Customer::new(organization_id);
    customer.make_stream(aws, 1);
    customer
}

/// Lets the role exist, and delivers what is pending.
async fn admit(cluster: &Cluster, instance: &Process, customer: &Customer) -> v1::EventCounts {
    customer.make_role(&cluster.aws);
    let organization_id = &customer.organization_id;
    assert!(instance.api.send_test(organization_id).await.delivered);
    instance.api.until_delivered(organization_id).await
}

/// Answer of Get without the backoff, which begins anew with each start.
async fn shown(instance: &Process, organization_id: &str) -> v1::Integration {
    let mut shown = instance.api.get(organization_id).await;
    let status = shown.status.as_mut().unwrap();
    status.next_retry_time = None;
    status.last_attempt_time = None;
    status.aws_request_id.clear();
    shown
}

async fn must_move(command: Command) -> String {
    let moved = run(command).await;
    assert_eq!(moved.code, Some(0), "{moved:?}");
    moved.stdout
}

async fn must_refuse(command: Command, words: &str) {
    let refused = run(command).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains(words), "{refused:?}");
}

async fn audit_of(db: &DatabaseConnection) -> Vec<AuditRow> {
    let sql = "SELECT organization_id, caller, action, detail FROM audit \
        ORDER BY audit_id < 0, audit_id";
    let rows = db.query_all_raw(Statement::from_string(DbBackend::Postgres, sql));
    let rows = rows.await.unwrap();
    let row = |row: &sea_orm::QueryResult| {
        let text = |column: &str| row.try_get::<String>("", column).unwrap();
        AuditRow {
            organization_id: text("organization_id"),
            caller: text("caller"),
            action: text("action"),
            detail: serde_json::from_str(&text("detail")).unwrap(),
        }
    };
    rows.iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_moves_and_continues() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let aws = &cluster.aws;
    let refused = refused_customer(aws, "refused");
    let expiring = refused_customer(aws, "expiring");
    let gone = refused_customer(aws, "gone");
    let (mut healthy_load, mut refused_load) =
        (Load::new("acme", 5, 1), Load::new("refused", 5, 2));
    let mut expiring_load = Load::new("expiring", 3, 3);

    // Events expire, and their gap waits with newer events.
    let service = cluster
        .start_embedded(dir.path(), &["--retention-seconds", "1"])
        .await;
    service.api.configure(&expiring).await;
    service.api.publish(&expiring_load.events(700)).await;
    let expired = service
        .api
        .until_counts("expiring", |counts| counts.expired == 700);
    expired.await;
    service.stop().await;

    let service = cluster.start_embedded(dir.path(), &[]).await;
    service.api.publish(&expiring_load.events(300)).await;
    let healthy_id = service
        .api
        .configure(&cluster.customer)
        .await
        .integration_id;
    let refused_id = service.api.configure(&refused).await.integration_id;
    service.api.configure(&gone).await;
    service.api.publish(&healthy_load.events(500)).await;
    service.api.until_delivered("acme").await;
    service.api.publish(&refused_load.events(2500)).await;
    // Its role does not know the new external ID yet.
    let rotation = v1::ConfigureRequest {
        keep_previous_external_id: true,
        ..cluster
            .customer
            .with_external_id("rotated-external-id")
            .request()
    };
    service.api.try_configure(rotation).await.unwrap();
    assert!(service.api.send_test("acme").await.delivered);
    let issued = service.api.generate_external_id("later").await;
    let unauthorized = |status: &v1::IntegrationStatus| status.status() == Status::Unauthorized;
    for organization_id in ["refused", "expiring"] {
        service
            .api
            .until_status(organization_id, unauthorized)
            .await;
    }
    service.api.delete("gone", false).await.unwrap();
    let mut before = Vec::new();
    for organization_id in ["acme", "refused", "expiring"] {
        before.push(shown(&service, organization_id).await);
    }
    let mut feed: StatusFeed = service.api.watch(&[], "").await;
    feed.until_synced().await;
    let old_token = feed.token.clone();
    drop(feed);
    service.stop().await;

    let key = "cd".repeat(32);
    let message = must_move(cluster.move_under(&key, dir.path())).await;
    assert!(
        message.contains("moved 3 integrations with 28"),
        "{message}"
    );
    assert!(cluster.refused_embedded(dir.path()).await.contains(MOVED));
    let again = must_move(cluster.move_under(&key, dir.path())).await;
    assert!(again.contains("is moved already"), "{again}");

    let db = Database::connect(cluster.database_url()).await.unwrap();
    assert_eq!(audit_of(&db).await, audit_rows(dir.path()).await);
    let instance = cluster.try_start(&key).await.unwrap();
    for before in before {
        let after = shown(&instance, &before.organization_id).await;
        assert_eq!(after, before);
    }
    let mut taken = gone.with_external_id(&issued).request();
    taken.organization_id = "another".to_owned();
    assert!(instance.api.try_configure(taken.clone()).await.is_err());
    taken.organization_id = "later".to_owned();
    instance.api.try_configure(taken).await.unwrap();

    healthy_load_continues(&cluster, &instance, &mut healthy_load, &healthy_id).await;
    instance.api.publish(&refused_load.events(100)).await;
    let counts = admit(&cluster, &instance, &refused).await;
    assert_eq!((counts.accepted, counts.delivered), (2600, 2600));
    let arrived = read_events(aws, &refused.stream_arn, 2600).await;
    check_complete(&arrived, &refused_id, &refused_load.made);
    let counts = admit(&cluster, &instance, &expiring).await;
    assert_eq!((counts.delivered, counts.expired), (300, 700));
    let arrived = read_events(aws, &expiring.stream_arn, 1000).await;
    let expiring_id = instance.api.get("expiring").await.integration_id;
    let gaps = check_with_gaps(&arrived, &expiring_id, &expiring_load.made);
    assert_eq!(gaps.iter().map(|gap| gap.count).sum::<u64>(), 700);

    // The token is of another database.
    let mut feed = instance.api.watch(&[], &old_token).await;
    assert_eq!(feed.next().await, crate::harness::FeedEvent::Reset);
    instance.stop().await;
}

/// The previous external ID works, and sequences continue.
async fn healthy_load_continues(
    cluster: &Cluster,
    instance: &Process,
    load: &mut Load,
    integration_id: &str,
) {
    assert!(instance.api.send_test("acme").await.delivered);
    instance.api.publish(&load.events(200)).await;
    instance.api.until_delivered("acme").await;
    let arrived = read_events(&cluster.aws, &cluster.customer.stream_arn, 700).await;
    check_complete(&arrived, integration_id, &load.made);
}

/// More integrations, and more bytes of one, than are copied at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_integrations_and_a_large_damaged_backlog_move() {
    const SHARING: usize = 600;
    let Some(cluster) = cluster().await else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let refused = refused_customer(&cluster.aws, "refused");
    let mut load = Load::new("refused", 5, 1);
    // Everything is in the backlog, in chunks of up to 500 events.
    let service = cluster
        .start_embedded(dir.path(), &["--log-tail-bytes", "0"])
        .await;
    let id = service.api.configure(&refused).await.integration_id;
    let sharing = |index| Customer::sharing("refused", &format!("sharing-{index}"));
    for index in 0..SHARING {
        service.api.configure(&sharing(index)).await;
    }
    let one_each = (0..SHARING).map(|index| crate::harness::event(&format!("sharing-{index}")));
    service.api.publish(&one_each.collect::<Vec<_>>()).await;
    service.api.publish(&load.events(20_000)).await;
    service.stop().await;
    let sqlite = database(dir.path()).await;
    let of_refused = "integration_key = (SELECT integration_key FROM integration \
        WHERE organization_id = 'refused')";
    let damage = format!(
        "UPDATE backlog SET payload = zeroblob(length(payload)) WHERE {of_refused} \
        AND first_sequence <= 15000 AND first_sequence + event_count > 15000"
    );
    let damaged = sqlite.execute_unprepared(&damage).await.unwrap();
    assert_eq!(damaged.rows_affected(), 1);
    sqlite.close().await.unwrap();

    must_move(cluster.move_from(dir.path())).await;
    refused.make_shared_role(&cluster.aws);
    let instance = cluster.start().await;
    let counts = instance.api.until_delivered("refused").await;
    assert_eq!(counts.accepted, 20_000);
    assert!(0 < counts.expired && counts.expired <= 500, "{counts:?}");
    for index in 0..SHARING {
        let organization_id = format!("sharing-{index}");
        let counts = instance.api.until_delivered(&organization_id).await;
        assert_eq!(counts.delivered, 1);
    }
    let arrived = read_events(&cluster.aws, &refused.stream_arn, 20_000).await;
    let of_load = arrived
        .into_iter()
        .filter(|event| event.json["integrationid"] == id.as_str());
    let gaps = check_with_gaps(&of_load.collect::<Vec<_>>(), &id, &load.made);
    assert_eq!((gaps.len(), gaps[0].reason.as_str()), (1, "LOG_DAMAGED"));
    instance.stop().await;
}

/// Makes a stopped embedded service with 1,500 pending events of one organization.
async fn pending(cluster: &Cluster, dir: &Path, load: &mut Load) -> Customer {
    let refused = refused_customer(&cluster.aws, "refused");
    let service = cluster.start_embedded(dir, &[]).await;
    service.api.configure(&refused).await;
    service.api.publish(&load.events(1500)).await;
    service.stop().await;
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_seals_external_ids_anew() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let mut load = Load::new("acme", 5, 1);
    let service = cluster.start_embedded(dir.path(), &[]).await;
    let issued = service.api.generate_external_id("acme").await;
    service.api.generate_external_id("later").await;
    let customer = cluster.customer.with_external_id(&issued);
    customer.make_role(&cluster.aws);
    let id = service.api.configure(&customer).await.integration_id;
    service.api.publish(&load.events(10)).await;
    service.api.until_delivered("acme").await;
    service.stop().await;

    // As an earlier version has issued them.
    let sqlite = database(dir.path()).await;
    let hashes_alone = "UPDATE issued_external_id \
        SET external_id_sealed = NULL, external_id_key_id = NULL";
    sqlite.execute_unprepared(hashes_alone).await.unwrap();
    sqlite.close().await.unwrap();
    must_refuse(cluster.move_from(dir.path()), "--drop-issued").await;
    let mut moved = cluster.move_from(dir.path());
    moved.arg("--drop-issued");
    let message = must_move(moved).await;
    assert!(message.contains("1 issued external IDs"), "{message}");
    let instance = cluster.start().await;
    // The one that is used belongs to its organization.
    let mut taken = customer.request();
    taken.organization_id = "another".to_owned();
    assert!(instance.api.try_configure(taken).await.is_err());
    instance.api.publish(&load.events(10)).await;
    instance.api.until_delivered("acme").await;
    let arrived = read_events(&cluster.aws, &customer.stream_arn, 20).await;
    check_complete(&arrived, &id, &load.made);
    instance.stop().await;
}

/// The database was made under the key of the directory, and the move is given a newer key before
/// it: as the active one is the same, what is only known by its hash moves too.
#[tokio::test(flavor = "multi_thread")]
async fn the_active_key_of_the_database_decides_and_not_the_first_one() {
    let Some(cluster) = cluster().await else {
        return;
    };
    cluster.start().await.stop().await;
    let dir = TempDir::new().unwrap();
    let key_file = dir.path().join("external-id.key");
    fs::write(&key_file, cluster::KEY).unwrap();
    fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
    let service = cluster.start_embedded(dir.path(), &[]).await;
    let issued = service.api.generate_external_id("later").await;
    service.stop().await;
    let sqlite = database(dir.path()).await;
    let hashes_alone = "UPDATE issued_external_id \
        SET external_id_sealed = NULL, external_id_key_id = NULL";
    sqlite.execute_unprepared(hashes_alone).await.unwrap();
    sqlite.close().await.unwrap();

    let newer = "cd".repeat(32);
    let keys = format!("{newer} {}", cluster::KEY);
    must_move(cluster.move_under(&keys, dir.path())).await;
    let started = cluster.try_start(&keys).await;
    let instance = started.unwrap_or_else(|refused| panic!("did not start: {refused:?}"));
    // It still belongs to its organization.
    let mut thief = Customer::new("thief").request();
    thief.external_id = issued;
    assert!(instance.api.try_configure(thief).await.is_err());
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_in_use_is_refused() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let mut load = Load::new("refused", 5, 1);
    pending(&cluster, dir.path(), &mut load).await;
    let nothing = TempDir::new().unwrap();
    let none = run(cluster.move_from(nothing.path())).await;
    assert_eq!(none.code, Some(64), "{none:?}");

    let instance = cluster.start().await;
    must_refuse(cluster.move_from(dir.path()), "stop every instance").await;
    instance.api.configure(&cluster.customer).await;
    instance.stop().await;
    must_refuse(cluster.move_from(dir.path()), "is not empty").await;
    let instance = cluster.start().await;
    instance
        .api
        .publish(&Load::new("acme", 1, 1).events(1))
        .await;
    instance.api.until_delivered("acme").await;
    instance.stop().await;
    must_refuse(cluster.move_from(dir.path()), "of the log is not empty").await;

    // The directory is as it was.
    let service = cluster.start_embedded(dir.path(), &[]).await;
    assert_eq!(
        service.api.get("refused").await.counts.unwrap().pending,
        1500
    );
    must_refuse(cluster.move_from(dir.path()), "another siem-relay uses").await;
    service.stop().await;
}

/// Waits until a query on the database returns true. A table that is not there yet is waited for.
async fn until(db: &DatabaseConnection, query: &str) {
    with_timeout(query, async {
        let query = Statement::from_string(DbBackend::Postgres, query);
        loop {
            if let Ok(Some(row)) = db.query_one_raw(query.clone()).await
                && row.try_get_by_index::<bool>(0).unwrap()
            {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Whether a session of the database waits for a lock.
const WAITS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity \
    WHERE datname = current_database() AND wait_event_type = 'Lock')";

/// Lets insertions into two tables wait while [`shut_gate`] holds their locks.
async fn delay_inserts(db: &DatabaseConnection) {
    for (number, table) in [(1, "audit"), (2, "backlog")] {
        let sql = format!(
            "CREATE FUNCTION wait_{table}() RETURNS trigger LANGUAGE plpgsql AS \
            'BEGIN PERFORM pg_advisory_xact_lock({number}); RETURN NEW; END'; \
            CREATE TRIGGER wait BEFORE INSERT ON {table} \
            FOR EACH ROW EXECUTE FUNCTION wait_{table}()"
        );
        db.execute_unprepared(&sql).await.unwrap();
    }
}

async fn shut_gate(db: &DatabaseConnection, table: u32) -> DatabaseTransaction {
    let gate = db.begin().await.unwrap();
    let sql = format!("SELECT pg_advisory_xact_lock({table})");
    gate.execute_unprepared(&sql).await.unwrap();
    gate
}

/// Lets a move go on until everything is copied and it waits for the directory's database, of
/// which this returns the lock.
async fn until_copied(
    postgres: &DatabaseConnection,
    sqlite: &DatabaseConnection,
    start: impl Fn() -> Child,
) -> (Child, DatabaseTransaction) {
    // It does not write to the directory's database any more once it copies.
    let gate = shut_gate(postgres, 2).await;
    let moving = start();
    until(postgres, WAITS).await;
    let lock = sqlite.begin().await.unwrap();
    let write = "UPDATE meta SET value = value";
    lock.execute_unprepared(write).await.unwrap();
    gate.rollback().await.unwrap();
    let copied = "SELECT EXISTS (SELECT FROM meta WHERE value LIKE 'copied %')";
    until(postgres, copied).await;
    (moving, lock)
}

/// Waits until the database gives up to wait for a lock.
async fn must_fail(moving: Child) {
    let ended = with_timeout("the end of the move", moving.wait_with_output());
    let ended = ended.await.unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("run the move again"), "{stderr}");
}

async fn kill(mut moving: Child) {
    with_timeout("the end of the move", moving.kill())
        .await
        .unwrap();
}

/// Kills moves at each step, and lets one complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_is_killed_leaves_one_side_whole() {
    let Some(cluster) = cluster().await else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let mut load = Load::new("refused", 5, 1);
    let refused = pending(&cluster, dir.path(), &mut load).await;
    let postgres = Database::connect(cluster.database_url()).await.unwrap();
    let start = || cluster.move_from(dir.path()).spawn().unwrap();

    // The database is marked.
    let moving = start();
    until(
        &postgres,
        "SELECT EXISTS (SELECT FROM meta WHERE name = 'move')",
    )
    .await;
    kill(moving).await;
    let log = cluster.refused().await;
    assert!(log.contains(INCOMPLETE), "{log}");

    // A part is copied. Then the directory is used again.
    delay_inserts(&postgres).await;
    for table in 1..=2 {
        let gate = shut_gate(&postgres, table).await;
        let moving = start();
        until(&postgres, WAITS).await;
        match table {
            1 => kill(moving).await,
            _ => must_fail(moving).await,
        }
        gate.rollback().await.unwrap();
        let log = cluster.refused().await;
        assert!(log.contains(INCOMPLETE), "{log}");
        let service = cluster.start_embedded(dir.path(), &[]).await;
        service.api.publish(&load.events(100)).await;
        service.stop().await;
    }

    // Everything is copied, and the directory is not marked.
    let sqlite = database(dir.path()).await;
    let (moving, lock) = until_copied(&postgres, &sqlite, start).await;
    kill(moving).await;
    lock.rollback().await.unwrap();
    let log = cluster.refused().await;
    assert!(log.contains(INCOMPLETE), "{log}");
    let service = cluster.start_embedded(dir.path(), &[]).await;
    service.api.publish(&load.events(100)).await;
    service.stop().await;

    // Both are marked.
    let (moving, lock) = until_copied(&postgres, &sqlite, start).await;
    let held = postgres.begin().await.unwrap();
    let hold = "SELECT FROM meta WHERE name = 'move' FOR UPDATE";
    held.execute_unprepared(hold).await.unwrap();
    lock.rollback().await.unwrap();
    until(&postgres, WAITS).await;
    kill(moving).await;
    held.rollback().await.unwrap();
    sqlite.close().await.unwrap();
    let log = cluster.refused().await;
    assert!(log.contains(INCOMPLETE), "{log}");
    assert!(cluster.refused_embedded(dir.path()).await.contains(MOVED));

    let again = must_move(cluster.move_from(dir.path())).await;
    assert!(again.contains("is moved already"), "{again}");
    assert!(cluster.refused_embedded(dir.path()).await.contains(MOVED));
    let instance = cluster.start().await;
    let counts = admit(&cluster, &instance, &refused).await;
    assert_eq!((counts.accepted, counts.delivered), (1800, 1800));
    let id = instance.api.get("refused").await.integration_id;
    let arrived = read_events(&cluster.aws, &refused.stream_arn, 1800).await;
    check_complete(&arrived, &id, &load.made);
    instance.stop().await;
}
