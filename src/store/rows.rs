//! Rows to values and back.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Statement, StreamTrait, TryGetable,
    Value,
};
use uuid::Uuid;

use super::catalog::{Slot, Tombstone};
use crate::domain::{
    arn::{RoleArn, StreamArn},
    integration::{
        Integration, IntegrationKey, PreviousExternalId, Progress, SealedExternalId, Snapshot,
    },
    organization::OrganizationId,
    status::{Reason, Stall, Status, StatusDetail},
};

/// Builds a statement for whichever database it is.
pub(super) fn statement(
    db: &impl ConnectionTrait,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), sql, values)
}

pub(super) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// The time as it can be stored: what is told now is told after a restart as well.
pub(super) fn now() -> Timestamp {
    whole_micros(Timestamp::now())
}

pub(super) fn whole_micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

pub(super) fn time(micros: i64) -> Result<Timestamp, DbErr> {
    Timestamp::from_microsecond(micros).map_err(|_| damaged("a time is out of range"))
}

pub(super) fn damaged(what: &str) -> DbErr {
    DbErr::Custom(format!(
        "the database holds what this version cannot read: {what}"
    ))
}

fn named<T: Copy>(all: &[T], name: fn(T) -> &'static str, text: &str) -> Result<T, DbErr> {
    let found = all.iter().copied().find(|value| name(*value) == text);
    found.ok_or_else(|| damaged(text))
}

/// The columns of `integration` from `revision` to `aws_request_id`, without the times of
/// attempts.
pub(super) fn status_columns(slot: &Slot) -> Vec<Value> {
    let Snapshot {
        status, revision, ..
    } = &slot.snapshot;
    vec![
        (*revision as i64).into(),
        status.status.as_str().into(),
        status
            .reason
            .map(|reason| reason.as_str().to_owned())
            .into(),
        micros(status.since).into(),
        status.next_retry.map(micros).into(),
        status.aws_error_code.as_deref().map(str::to_owned).into(),
        status.aws_request_id.as_deref().map(str::to_owned).into(),
    ]
}

fn get<T: TryGetable>(row: &QueryResult, column: &str) -> Result<T, DbErr> {
    row.try_get("", column)
}

fn get_u64(row: &QueryResult, column: &str) -> Result<u64, DbErr> {
    u64::try_from(get::<i64>(row, column)?).map_err(|_| damaged(column))
}

fn get_time(row: &QueryResult, column: &str) -> Result<Option<Timestamp>, DbErr> {
    get::<Option<i64>>(row, column)?.map(time).transpose()
}

fn get_boxed(row: &QueryResult, column: &str) -> Result<Option<Box<str>>, DbErr> {
    Ok(get::<Option<String>>(row, column)?.map(Into::into))
}

fn get_uuid(row: &QueryResult, column: &str) -> Result<Uuid, DbErr> {
    Uuid::parse_str(&get::<String>(row, column)?).map_err(|_| damaged(column))
}

fn get_organization(row: &QueryResult) -> Result<OrganizationId, DbErr> {
    OrganizationId::new(&get::<String>(row, "organization_id")?)
        .map_err(|_| damaged("organization_id"))
}

/// Since when something of an integration is in the log.
pub(super) type Backlog = Option<Timestamp>;

/// Every integration, with what its chunks add to its rows. Of the chunks it asks only what
/// their index holds.
pub(super) async fn load_slots(db: &DatabaseConnection) -> Result<Vec<(Slot, Backlog)>, DbErr> {
    // What nobody asks for costs as well: each value of each row is copied.
    let sql = "SELECT i.integration_key, i.organization_id, i.integration_id, i.stream_arn, \
        i.role_arn, i.external_id_sealed, i.external_id_key_id, i.external_id_hint, \
        i.external_id_set_at, i.previous_external_id_sealed, i.previous_external_id_hint, \
        i.previous_external_id_until, i.version, i.created_at, i.updated_at, i.revision, \
        i.status, i.reason, i.status_since, i.next_retry_at, i.aws_error_code, \
        i.aws_request_id, p.next_sequence, p.delivered, p.expired, p.discarded, \
        p.last_attempt_at, p.last_delivery_at, c.log_end, c.log_bytes, c.log_since \
        FROM integration i \
        LEFT JOIN progress p ON p.integration_key = i.integration_key LEFT JOIN \
        (SELECT integration_key, MAX(first_sequence + event_count) AS log_end, \
        CAST(SUM(pending_bytes) AS BIGINT) AS log_bytes, MIN(accepted_at) AS log_since \
        FROM chunk GROUP BY integration_key) c \
        ON c.integration_key = i.integration_key";
    // One by one: all rows at once would take much more memory than what is made of them.
    let rows = db.stream_raw(statement(db, sql, [])).await?;
    rows.map(|row| row.and_then(|row| Ok((slot(&row)?, get_time(&row, "log_since")?))))
        .try_collect()
        .await
}

fn slot(row: &QueryResult) -> Result<Slot, DbErr> {
    let log_end = get::<Option<i64>>(row, "log_end")?.unwrap_or(0) as u64;
    // Where the table has lost a row, numbers would be given twice.
    if get::<Option<i64>>(row, "next_sequence")?.is_none() {
        return Err(damaged("an integration without its progress"));
    }
    let progress = Progress {
        next_sequence: get_u64(row, "next_sequence")?.max(log_end),
        delivered: get_u64(row, "delivered")?,
        expired: get_u64(row, "expired")?,
        discarded: get_u64(row, "discarded")?,
        pending_bytes: get::<Option<i64>>(row, "log_bytes")?.unwrap_or(0) as u64,
    };
    let snapshot = Snapshot {
        integration: Arc::new(integration(row)?),
        status: Arc::new(status(row)?),
        progress,
        revision: get_u64(row, "revision")?,
    };
    Ok(Slot {
        snapshot,
        stall: Stall::default(),
    })
}

fn integration(row: &QueryResult) -> Result<Integration, DbErr> {
    let stream_arn: String = get(row, "stream_arn")?;
    let role_arn: String = get(row, "role_arn")?;
    Ok(Integration {
        key: IntegrationKey(get(row, "integration_key")?),
        organization_id: get_organization(row)?,
        integration_id: get_uuid(row, "integration_id")?,
        stream_arn: StreamArn::parse(&stream_arn).map_err(|_| damaged("stream_arn"))?,
        role_arn: RoleArn::parse(&role_arn).map_err(|_| damaged("role_arn"))?,
        external_id: SealedExternalId {
            key_id: get::<String>(row, "external_id_key_id")?.into(),
            bytes: get::<Vec<u8>>(row, "external_id_sealed")?.into(),
        },
        external_id_hint: get::<String>(row, "external_id_hint")?.into(),
        external_id_set_at: time(get(row, "external_id_set_at")?)?,
        previous: previous(row)?,
        version: get_u64(row, "version")?,
        created_at: time(get(row, "created_at")?)?,
        updated_at: time(get(row, "updated_at")?)?,
    })
}

fn previous(row: &QueryResult) -> Result<Option<PreviousExternalId>, DbErr> {
    let sealed: Option<Vec<u8>> = get(row, "previous_external_id_sealed")?;
    let (Some(sealed), Some(until)) = (sealed, get_time(row, "previous_external_id_until")?) else {
        return Ok(None);
    };
    Ok(Some(PreviousExternalId {
        external_id: SealedExternalId {
            key_id: get::<String>(row, "external_id_key_id")?.into(),
            bytes: sealed.into(),
        },
        hint: get_boxed(row, "previous_external_id_hint")?.unwrap_or_default(),
        until,
    }))
}

fn status(row: &QueryResult) -> Result<StatusDetail, DbErr> {
    let reason: Option<String> = get(row, "reason")?;
    Ok(StatusDetail {
        status: named(&Status::ALL, Status::as_str, &get::<String>(row, "status")?)?,
        reason: reason
            .map(|text| named(&Reason::ALL, Reason::as_str, &text))
            .transpose()?,
        since: time(get(row, "status_since")?)?,
        last_attempt: get_time(row, "last_attempt_at")?,
        last_delivery: get_time(row, "last_delivery_at")?,
        next_retry: get_time(row, "next_retry_at")?,
        aws_error_code: get_boxed(row, "aws_error_code")?,
        aws_request_id: get_boxed(row, "aws_request_id")?,
    })
}

/// Every deletion that is remembered, oldest first.
pub(super) async fn load_tombstones(db: &DatabaseConnection) -> Result<Vec<Tombstone>, DbErr> {
    let sql = "SELECT * FROM tombstone ORDER BY revision";
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    rows.iter()
        .map(|row| {
            Ok(Tombstone {
                revision: get_u64(row, "revision")?,
                organization_id: get_organization(row)?,
                integration_id: get_uuid(row, "integration_id")?,
                deleted_at: time(get(row, "deleted_at")?)?,
            })
        })
        .collect()
}

/// A fact about the database.
pub(super) async fn load_meta(
    db: &impl ConnectionTrait,
    name: &str,
) -> Result<Option<String>, DbErr> {
    let sql = "SELECT value FROM meta WHERE name = $1";
    let row = db.query_one_raw(statement(db, sql, [name.into()])).await?;
    row.map(|row| get(&row, "value")).transpose()
}

/// Sets a fact about the database.
pub(super) async fn save_meta(
    db: &impl ConnectionTrait,
    name: &str,
    value: &str,
) -> Result<(), DbErr> {
    let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) \
        ON CONFLICT (name) DO UPDATE SET value = excluded.value";
    db.execute_raw(statement(db, sql, [name.into(), value.into()]))
        .await?;
    Ok(())
}
