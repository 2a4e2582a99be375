//! Starts on a database of an earlier version: `tests/fixtures/earlier-database`, whose README
//! describes what it contains.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    ops::RangeInclusive,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::Duration,
};

use aws_stand_in::{Effect, Operation};
use flate2::read::GzDecoder;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use serde_json::{Value, json};
use siem_client::v1::{self, Status};
use tempfile::TempDir;
use tonic::Code;
use uuid::Uuid;

use crate::harness::{
    AuditRow, Customer, Process, ProcessEnv, SyncFaults, audit_rows, check_in_order, database,
    detection, event, fault, parameter, print, read_events, violated, with_timeout,
};

const FOLDER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/earlier-database"
);
/// Organizations with an integration.
const CONFIGURED: [&str; 3] = ["packed", "refused", "whole"];
/// Events that are published for each of them after the migration.
const NEW_EVENTS: u64 = 12;
/// Time by which each kill may come later than the one before it, in microseconds.
const LATER_MICROS: u64 = 4_000;

/// Id of the event with a number of an organization, in the fixture and after it.
fn event_id(organization_id: &str, number: u64) -> Uuid {
    Uuid::new_v5(
        &Uuid::NAMESPACE_OID,
        format!("{organization_id} {number}").as_bytes(),
    )
}

/// Device of the event with a number: one of three.
fn device(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(1 + number % 3))
}

/// Events with these numbers, each with the sequence that it has or will have.
fn events(organization_id: &str, numbers: RangeInclusive<u64>) -> Vec<v1::Event> {
    let event = |number: u64| v1::Event {
        event_id: Some(event_id(organization_id, number).to_string()),
        device_id: device(number).to_string(),
        payload: Some(v1::event::Payload::IdsDetection(detection(number as u32))),
        ..event(organization_id)
    };
    numbers.map(event).collect()
}

/// Fields of an integration that a migration keeps, as `expected.json` has them.
fn described(integration: &v1::Integration) -> Value {
    let micros = |time: &Option<prost_types::Timestamp>| {
        time.map(|time| time.seconds * 1_000_000 + i64::from(time.nanos) / 1000)
    };
    let (status, counts) = (
        integration.status.as_ref().unwrap(),
        integration.counts.unwrap(),
    );
    json!({
        "organization_id": integration.organization_id,
        "integration_id": integration.integration_id,
        "kinesis_stream_arn": integration.kinesis_stream_arn,
        "role_arn": integration.role_arn,
        "external_id_hint": integration.external_id_hint,
        "external_id_set_time": micros(&integration.external_id_set_time),
        "create_time": micros(&integration.create_time),
        "update_time": micros(&integration.update_time),
        "etag": integration.etag,
        "status": status.status().as_str_name(),
        "reason": status.reason().as_str_name(),
        "since_time": micros(&status.since_time),
        "last_attempt_time": micros(&status.last_attempt_time),
        "last_delivery_time": micros(&status.last_delivery_time),
        "aws_error_code": status.aws_error_code,
        "accepted": counts.accepted,
        "delivered": counts.delivered,
        "expired": counts.expired,
        "discarded": counts.discarded,
        "pending": counts.pending,
        "pending_bytes": counts.pending_bytes,
    })
}

/// State of the fixture, as the earlier version reported it.
struct Earlier {
    integrations: Vec<Value>,
    issued_external_id: String,
    audit: Vec<AuditRow>,
}

/// Copies the fixture, as a kill left it, into a data directory. Its events become as old as if it
/// had been made now, so that retention expires none of them.
async fn copy_fixture(data_dir: &Path) -> Earlier {
    let staging = TempDir::new().unwrap();
    let files = ["siem-relay.sqlite", "siem-relay.sqlite-wal"];
    for name in files {
        let mut bytes = Vec::new();
        let packed = File::open(format!("{FOLDER}/{name}.gz")).unwrap();
        GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
        fs::write(staging.path().join(name), bytes).unwrap();
    }
    // The last connection that closes writes the WAL back, so this one outlives the copy.
    let db = database(staging.path()).await;
    let audit = audit_rows(staging.path()).await;
    for table in ["chunk", "pack"] {
        let sql = format!(
            "UPDATE {table} SET accepted_at = accepted_at + unixepoch() * 1000000 \
            - (SELECT MAX(accepted_at) FROM pack)"
        );
        db.execute_unprepared(&sql).await.unwrap();
    }
    for name in files {
        fs::copy(staging.path().join(name), data_dir.join(name)).unwrap();
    }
    db.close().await.unwrap();
    fs::copy(
        format!("{FOLDER}/external-id.key"),
        data_dir.join("external-id.key"),
    )
    .unwrap();
    // A checkout has no such mode.
    let for_owner = fs::Permissions::from_mode(0o600);
    fs::set_permissions(data_dir.join("external-id.key"), for_owner).unwrap();
    let expected = fs::read(format!("{FOLDER}/expected.json")).unwrap();
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    Earlier {
        integrations: expected["integrations"].as_array().unwrap().clone(),
        issued_external_id: text(&expected, "issued_external_id"),
        audit,
    }
}

fn text(object: &Value, name: &str) -> String {
    object[name].as_str().unwrap().to_owned()
}

fn number(object: &Value, name: &str) -> u64 {
    object[name].as_u64().unwrap()
}

fn numbers(object: &Value, name: &str) -> Vec<u64> {
    let list = object[name].as_array().unwrap();
    list.iter().map(|value| value.as_u64().unwrap()).collect()
}

/// Customer of the fixture, with the external ID that it configured.
fn customer(earlier: &Value) -> Customer {
    Customer::new(&text(earlier, "organization_id")).with_external_id(&text(earlier, "external_id"))
}

/// Checks integrations and external IDs before anything is delivered.
async fn check_registry(process: &Process, earlier: &Earlier) {
    let mut expected = earlier.integrations.clone();
    for integration in &mut expected {
        for only_here in ["external_id", "pending_sequences", "gap_sequences"] {
            integration.as_object_mut().unwrap().remove(only_here);
        }
    }
    let api = &process.api;
    let listed = api.list(v1::ListRequest::default()).await.unwrap();
    let listed: Vec<Value> = listed.integrations.iter().map(described).collect();
    assert_eq!(listed, expected);
    for (organization_id, expected) in CONFIGURED.iter().zip(&expected) {
        assert_eq!(described(&api.get(organization_id).await), *expected);
    }
    let deleted = api.try_get("deleted").await.unwrap_err();
    assert_eq!(deleted.code(), Code::NotFound);

    let external_id = &earlier.issued_external_id;
    let other = Customer::new("other").with_external_id(external_id);
    let refused = api.try_configure(other.request()).await.unwrap_err();
    assert_eq!(violated(&refused), ["external_id"]);
    api.configure(&Customer::new("issued").with_external_id(external_id))
        .await;
    // The etag of the earlier version is that of the integration.
    let earlier = &earlier.integrations[0];
    let same = v1::ConfigureRequest {
        etag: text(earlier, "etag"),
        ..customer(earlier).request()
    };
    let same = api.try_configure(same).await.unwrap();
    assert_eq!(same.integration_id, text(earlier, "integration_id"));
}

/// Checks that exactly the pending events and the new ones arrived, each once and under the
/// sequence that is its number, and each gap.
async fn check_delivered(env: &ProcessEnv, process: &Process, earlier: &Value) {
    let organization_id = text(earlier, "organization_id");
    let accepted = number(earlier, "accepted");
    let mut expected = numbers(earlier, "pending_sequences");
    expected.extend(accepted + 1..=accepted + NEW_EVENTS);
    let gaps = numbers(earlier, "gap_sequences");

    let counts = process.api.until_delivered(&organization_id).await;
    assert_eq!(counts.accepted, accepted + NEW_EVENTS);
    assert_eq!(counts.expired, gaps.len() as u64);
    assert_eq!((counts.discarded, counts.pending_bytes), (0, 0));

    let stream_arn = text(earlier, "kinesis_stream_arn");
    let count = expected.len() + gaps.len();
    let arrived = read_events(&env.aws, &stream_arn, count).await;
    let stored = env.aws.stream(&stream_arn).unwrap().accepted;
    assert_eq!(stored, count as u64, "more arrived than was pending");
    check_in_order(&arrived);
    let (gap_events, events): (Vec<_>, Vec<_>) =
        arrived.into_iter().partition(|event| event.gap.is_some());
    let mut by_sequence = BTreeMap::new();
    for event in &events {
        assert_eq!(event.json["integrationid"], earlier["integration_id"]);
        assert_eq!(u64::from(event.number), event.sequence);
        assert_eq!(event.id, event_id(&organization_id, event.sequence));
        assert_eq!(event.device, device(event.sequence));
        by_sequence.insert(event.sequence, event);
    }
    assert!(by_sequence.keys().eq(&expected), "{by_sequence:?}");
    let mut arrived_gaps: Vec<u64> = Vec::new();
    for event in gap_events {
        let gap = event.gap.unwrap();
        assert_eq!(
            (gap.first, gap.last, gap.count, gap.reason.as_str()),
            (event.sequence, event.sequence, 1, "RECORD_REFUSED")
        );
        arrived_gaps.push(event.sequence);
    }
    arrived_gaps.sort_unstable();
    assert_eq!(arrived_gaps, gaps);
}

async fn rows(db: &DatabaseConnection, sql: &str) -> i64 {
    let query = Statement::from_string(DbBackend::Sqlite, sql);
    let row = db.query_one_raw(query).await.unwrap().unwrap();
    row.try_get("", "rows").unwrap()
}

/// Waits until nothing is left of what the earlier version had stored, chunks of the deleted
/// integration included.
async fn until_nothing_is_left(data_dir: &Path) {
    let db = database(data_dir).await;
    let tables = "SELECT COUNT(*) AS rows FROM sqlite_schema \
        WHERE name IN ('chunk', 'pack', 'pack_done')";
    assert_eq!(rows(&db, tables).await, 0);
    with_timeout("an empty backlog", async {
        while rows(&db, "SELECT COUNT(*) AS rows FROM backlog").await > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for table in ["damaged_chunk", "damaged_pack"] {
        let count = format!("SELECT COUNT(*) AS rows FROM {table}");
        assert_eq!(rows(&db, &count).await, 0);
    }
    db.close().await.unwrap();
}

/// Stand-in and data directory with the fixture. Until the faults are cleared, no call to AWS ends
/// and changes a status.
async fn earlier_env() -> (ProcessEnv, Earlier) {
    let env = ProcessEnv::new().await;
    let earlier = copy_fixture(env.dir.path()).await;
    let hang = fault(Operation::AssumeRole, None, Effect::Hang);
    env.aws.add_fault(hang).unwrap();
    (env, earlier)
}

/// Starts, compares with the earlier version, and delivers what is pending and new events.
async fn check_migration(env: &ProcessEnv, earlier: &Earlier) {
    let settings = [
        "--external-id-policy=issued",
        "--aws-attempt-timeout-ms=60000",
    ];
    let process = env.start_with(&settings).await;
    check_registry(&process, earlier).await;

    for integration in &earlier.integrations {
        let accepted = number(integration, "accepted");
        let new = accepted + 1..=accepted + NEW_EVENTS;
        let new = events(&text(integration, "organization_id"), new);
        process.api.publish(&new).await;
        let customer = customer(integration);
        customer.make_role(&env.aws);
        customer.make_stream(&env.aws, 2);
    }
    env.aws.clear_faults();
    for integration in &earlier.integrations {
        check_delivered(env, &process, integration).await;
        let is_active = |status: &v1::IntegrationStatus| status.status() == Status::Active;
        let organization_id = text(integration, "organization_id");
        process.api.until_status(&organization_id, is_active).await;
    }
    check_audit(&process, &earlier.audit).await;
    let data_dir = env.dir.path();
    until_nothing_is_left(data_dir).await;
    process.stop().await;
    let audit = audit_rows(data_dir).await;
    assert!(audit.starts_with(&earlier.audit), "{audit:?}");
    assert!(audit.len() > earlier.audit.len());
}

/// Checks that rows of an earlier version are listed.
async fn check_audit(process: &Process, rows: &[AuditRow]) {
    let request = v1::ListAuditEntriesRequest {
        page_size: 1000,
        ..v1::ListAuditEntriesRequest::default()
    };
    let page = process.api.try_audit(request).await.unwrap();
    for row in rows {
        let listed = page.entries.iter().any(|entry| {
            let status = row.detail["status"].as_str();
            let mut changes = entry.changes.iter();
            entry.organization_id == row.organization_id
                && entry.principal == row.caller
                && (entry.code.as_str(), entry.count) == ("OK", 1)
                && status.is_none_or(|status| changes.any(|change| change.new_value == status))
        });
        assert!(listed, "{row:?} is not in {page:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_an_earlier_version_is_migrated_and_delivered() {
    let (env, earlier) = earlier_env().await;
    check_migration(&env, &earlier).await;
}

/// `SIEM_RELAY_TEST_KILLS` sets the number of kills, `SIEM_RELAY_TEST_SEED` the seed.
#[tokio::test(flavor = "multi_thread")]
async fn kills_during_a_migration_change_nothing() {
    let mut random = StdRng::seed_from_u64(parameter("SEED", 97));
    let (env, earlier) = earlier_env().await;
    for kill in 1..=parameter("KILLS", 12) {
        let after = Duration::from_micros(random.random_range(0..kill * LATER_MICROS));
        Process::start_and_kill(env.dir.path(), &env.stand_in.url(), after).await;
    }
    check_migration(&env, &earlier).await;
}

/// A kill after each transaction, and within each checkpoint of the WAL: all steps at which the
/// migration can be interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_sync_of_a_migration_changes_nothing() {
    let syncs = SyncFaults::new().await;
    for sync in 1.. {
        let (env, earlier) = earlier_env().await;
        let launcher = syncs.launcher_with_kill_at(sync);
        let (data_dir, url) = (env.dir.path(), env.stand_in.url());
        let started = Process::try_start_under(&launcher, data_dir, &url, &[]).await;
        let is_whole = match started {
            // The start needs fewer syncs.
            Ok(process) => {
                process.kill().await;
                true
            }
            Err(killed) => {
                assert_eq!(killed.code, None, "{}", killed.stderr);
                false
            }
        };
        check_migration(&env, &earlier).await;
        if is_whole {
            print(&format!("killed at {} syncs", sync - 1));
            assert!(sync > 2, "the migration is more than a transaction");
            return;
        }
    }
}
