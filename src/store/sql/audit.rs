//! The table of the audit.
//!
//! The ids of changes rise from 1, those of refusals fall from -1. So each has a numbering of its
//! own, by which its number of rows is bounded without counting them: refusals never displace
//! changes. Pages are in the order of time and id.

use std::{cmp::Reverse, time::Duration};

use jiff::{SignedDuration, Timestamp};
use sea_orm::{
    ActiveValue::{NotSet, Set},
    ColumnTrait, Condition, ConnectionTrait, DbBackend, DbErr, EntityTrait, ExprTrait,
    IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};
use serde_json::json;
use uuid::Uuid;

use super::{
    Database, WriteTransaction,
    entities::{integration_id, meta, micros},
    rows::{time, unreadable},
    statement,
};
use crate::{
    domain::{
        audit::{Actor, AuditAction, AuditChange, AuditEntry},
        rights::Pattern,
    },
    store::{
        error::StoreError,
        ports::{AuditLimits, AuditPosition, AuditQuery},
    },
};

/// Rows of one statement: SQLite binds at most 32,766 values, and a row has 17.
const ROWS: usize = 1000;
/// Patterns of organizations in one statement.
const PATTERNS: usize = 500;
/// Most rows of one kind that one transaction removes, so that others' writes wait a few
/// milliseconds for it.
const PRUNED: u64 = 500;
/// Part of the rows that refusals may take.
const REFUSALS: u64 = 10;
/// Bytes of a text from a caller. SPIFFE IDs have at most 2,048.
const MAX_TEXT: usize = 2048;
/// Period in which Configures that change nothing are counted in one row.
const PERIOD: SignedDuration = SignedDuration::from_hours(1);

/// Rows of the audit.
pub(super) mod row {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "audit")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub audit_id: i64,
        pub organization_id: String,
        /// Empty without an integration.
        pub integration_id: String,
        pub at: i64,
        /// The principal. Rows of earlier versions have an address behind it, after a space.
        pub caller: String,
        pub action: String,
        /// Changed fields, as JSON.
        #[sea_orm(column_type = "Text")]
        pub detail: String,
        pub issuer: Option<String>,
        pub peer: Option<String>,
        pub request_id: Option<String>,
        pub client_request_id: Option<String>,
        pub method: Option<String>,
        pub code: String,
        pub reason: Option<String>,
        pub occurrences: i64,
        /// Time of the last occurrence; None for one.
        pub last_at: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// A text from outside as it is stored: PostgreSQL refuses NUL.
fn stored(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].replace('\0', "\u{fffd}")
}

fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| stored(text))
}

fn encode_changes(changes: &[AuditChange]) -> String {
    if changes.is_empty() {
        return json!({}).to_string();
    }
    let changes = changes
        .iter()
        .map(|change| [&change.field, &change.old, &change.new]);
    json!({ "changes": changes.collect::<Vec<_>>() }).to_string()
}

/// Reads changed fields. Earlier versions stored only the names of those that Configure changed,
/// and only the new values of a status.
fn decode_changes(detail: &str) -> Option<Vec<AuditChange>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("").to_owned();
    let change = |field: String, old: String, new: String| AuditChange {
        field: field.into(),
        old: old.into(),
        new: new.into(),
    };
    let detail: serde_json::Map<String, serde_json::Value> = serde_json::from_str(detail).ok()?;
    if let Some(changes) = detail.get("changes") {
        let changes: Vec<[String; 3]> = serde_json::from_value(changes.clone()).ok()?;
        let changes = changes.into_iter();
        return Some(
            changes
                .map(|[field, old, new]| change(field, old, new))
                .collect(),
        );
    }
    if let Some(changed) = detail.get("changed") {
        let changed = changed.as_array()?.iter();
        return Some(
            changed
                .map(|field| change(text(field), String::new(), String::new()))
                .collect(),
        );
    }
    let known = detail.into_iter().filter(|(_, value)| value.is_string());
    Some(
        known
            .map(|(field, value)| change(field, String::new(), text(&value)))
            .collect(),
    )
}

/// The row of an entry, without its id.
fn row(entry: &AuditEntry) -> row::Model {
    let actor = &entry.actor;
    let integration_id = entry.integration_id.map(|id| id.to_string());
    row::Model {
        audit_id: 0,
        organization_id: entry.organization_id.clone().into(),
        integration_id: integration_id.unwrap_or_default(),
        at: micros(entry.at),
        caller: stored(&actor.principal),
        action: entry.action.map_or("", AuditAction::as_str).to_owned(),
        detail: encode_changes(&entry.changes),
        issuer: actor.issuer.as_deref().map(stored),
        peer: actor.peer.map(|peer| peer.to_string()),
        request_id: actor.request_id.map(|id| id.to_string()),
        client_request_id: actor.client_request_id.as_deref().map(stored),
        method: optional(&entry.method),
        code: stored(&entry.code),
        reason: optional(&entry.reason),
        occurrences: i64::try_from(entry.count).unwrap_or(i64::MAX),
        last_at: (entry.last_at != entry.at).then(|| micros(entry.last_at)),
    }
}

/// The row of an entry with an id; None for the next one of changes.
fn new_row(entry: &AuditEntry, id: Option<i64>) -> row::ActiveModel {
    let mut row = row(entry).into_active_model();
    row.audit_id = id.map_or(NotSet, Set);
    row
}

impl TryFrom<row::Model> for AuditEntry {
    type Error = StoreError;

    fn try_from(row: row::Model) -> Result<Self, StoreError> {
        let time = |micros| time(micros).map_err(|error| StoreError::Corrupt(error.to_string()));
        let at = time(row.at)?;
        let action = AuditAction::ALL.into_iter();
        let mut action = action.filter(|action| action.as_str() == row.action);
        let unknown = || StoreError::Corrupt(unreadable("the detail of an audit").to_string());
        Ok(Self {
            id: row.audit_id,
            at,
            last_at: row.last_at.map_or(Ok(at), time)?,
            count: u64::try_from(row.occurrences).unwrap_or(1),
            action: action.next(),
            actor: Actor {
                principal: row.caller.into(),
                issuer: row.issuer.map(Into::into),
                peer: row.peer.and_then(|peer| peer.parse().ok()),
                request_id: row.request_id.and_then(|id| Uuid::parse_str(&id).ok()),
                client_request_id: row.client_request_id.map(Into::into),
            },
            method: row.method.unwrap_or_default().into(),
            organization_id: row.organization_id.into(),
            integration_id: match row.integration_id.as_str() {
                "" => None,
                id => Some(integration_id(id)?),
            },
            code: row.code.into(),
            reason: row.reason.unwrap_or_default().into(),
            changes: decode_changes(&row.detail).ok_or_else(unknown)?,
        })
    }
}

/// Stores entries. Refusals get ids of their own.
pub(super) async fn save(tx: &WriteTransaction<'_>, entries: &[AuditEntry]) -> Result<(), DbErr> {
    let is_refusal = |entry: &&AuditEntry| entry.action == Some(AuditAction::Refuse);
    let refusals: Vec<&AuditEntry> = entries.iter().filter(is_refusal).collect();
    let others = entries.iter().filter(|entry| !is_refusal(entry));
    let rows = others.map(|entry| new_row(entry, None));
    insert(tx, &rows.collect::<Vec<_>>()).await?;
    if refusals.is_empty() {
        return Ok(());
    }
    let count = refusals.len() as i64;
    let used = take_refusal_ids(tx, count).await?;
    let ids = (used - count + 1..=used).map(|number| Some(-number));
    let rows = refusals
        .iter()
        .zip(ids)
        .map(|(entry, id)| new_row(entry, id));
    insert(tx, &rows.collect::<Vec<_>>()).await
}

async fn insert(tx: &WriteTransaction<'_>, rows: &[row::ActiveModel]) -> Result<(), DbErr> {
    for rows in rows.chunks(ROWS) {
        row::Entity::insert_many(rows.to_vec())
            .exec_without_returning(tx)
            .await?;
    }
    Ok(())
}

/// Takes `count` ids of refusals, and returns the number of all that were taken so far.
async fn take_refusal_ids(db: &impl ConnectionTrait, count: i64) -> Result<i64, DbErr> {
    let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE \
        SET value = CAST(CAST(meta.value AS BIGINT) + CAST(excluded.value AS BIGINT) AS TEXT) \
        RETURNING value";
    let values = [meta::AUDIT_REFUSALS.into(), count.to_string().into()];
    let row = db.query_one_raw(statement(db, sql, values)).await?;
    let value: String = row.ok_or(DbErr::RecordNotUpdated)?.try_get("", "value")?;
    value.parse().map_err(|_| unreadable(meta::AUDIT_REFUSALS))
}

/// Stores the entry of a Configure. One that changes nothing is counted in the row of the one
/// before, if that is of the same caller and hour.
pub(super) async fn save_configure(
    tx: &WriteTransaction<'_>,
    entry: AuditEntry,
) -> Result<(), DbErr> {
    let is_noop = entry.action == Some(AuditAction::Replace) && entry.changes.is_empty();
    if is_noop && repeat(tx, &entry).await? {
        return Ok(());
    }
    save(tx, &[entry]).await
}

/// Returns whether an entry was counted in an earlier row.
async fn repeat(tx: &WriteTransaction<'_>, entry: &AuditEntry) -> Result<bool, DbErr> {
    let at = micros(entry.at);
    let period = PERIOD.as_micros() as i64;
    let from = at.div_euclid(period) * period;
    let new = row(entry);
    let is_same_issuer = match new.issuer {
        Some(issuer) => row::Column::Issuer.eq(issuer),
        None => row::Column::Issuer.is_null(),
    };
    let found: Option<i64> = row::Entity::find()
        .select_only()
        .column(row::Column::AuditId)
        .filter(row::Column::OrganizationId.eq(new.organization_id))
        .filter(row::Column::At.gte(from))
        .filter(row::Column::IntegrationId.eq(new.integration_id))
        .filter(row::Column::Action.eq(new.action))
        .filter(row::Column::Detail.eq(new.detail))
        .filter(row::Column::Caller.eq(new.caller))
        .filter(is_same_issuer)
        .order_by_desc(row::Column::At)
        .limit(1)
        .into_tuple()
        .one(tx)
        .await?;
    let Some(id) = found else {
        return Ok(false);
    };
    let sql = "UPDATE audit SET occurrences = occurrences + 1, last_at = $1 WHERE audit_id = $2";
    let update = statement(tx, sql, [at.into(), id.into()]);
    Ok(tx.execute_raw(update).await?.rows_affected() > 0)
}

/// Returns entries, newest first.
pub(super) async fn list(db: &Database, query: &AuditQuery) -> Result<Vec<AuditEntry>, StoreError> {
    let Some(patterns) = &query.organizations else {
        return list_some(db, query, None).await;
    };
    // Each statement has the newest ones of its organizations, so all together have those of all.
    let mut entries = Vec::new();
    for patterns in patterns.chunks(PATTERNS) {
        entries.extend(list_some(db, query, Some(patterns)).await?);
        entries.sort_by_key(|entry| Reverse(AuditPosition::from(entry)));
        entries.truncate(query.limit);
    }
    Ok(entries)
}

async fn list_some(
    db: &Database,
    query: &AuditQuery,
    patterns: Option<&[Pattern]>,
) -> Result<Vec<AuditEntry>, StoreError> {
    use row::Column::{At, AuditId};
    let rows = row::Entity::find()
        .apply_if(patterns, |rows, patterns| {
            rows.filter(of_organizations(patterns))
        })
        .apply_if(query.start, |rows, start| {
            rows.filter(At.gte(micros(start)))
        })
        .apply_if(query.end, |rows, end| rows.filter(At.lt(micros(end))))
        .apply_if(query.before, |rows, before| {
            let at = micros(before.at);
            // The first one for the index.
            rows.filter(At.lte(at))
                .filter(At.lt(at).or(AuditId.lt(before.id)))
        })
        .order_by_desc(At)
        .order_by_desc(AuditId)
        .limit(query.limit as u64);
    let rows = rows.all(&db.reader()).await;
    let rows = rows.map_err(|error| db.map(error))?;
    rows.into_iter().map(AuditEntry::try_from).collect()
}

/// Condition for rows of the organizations that patterns have. An index finds them: organizations
/// are in the order of their bytes.
fn of_organizations(patterns: &[Pattern]) -> Condition {
    use row::Column::OrganizationId;
    let (prefixes, ids): (Vec<&Pattern>, Vec<&Pattern>) =
        patterns.iter().partition(|pattern| pattern.is_prefix());
    let ids = ids.into_iter().map(Pattern::text);
    let mut condition = Condition::any().add(OrganizationId.is_in(ids));
    for prefix in prefixes.into_iter().map(Pattern::text) {
        // Ids have no character above `~`.
        let range = OrganizationId
            .gte(prefix)
            .and(OrganizationId.lt(format!("{prefix}~")));
        condition = condition.add(range);
    }
    condition
}

/// Removes some of the rows beyond the limits, oldest first. Returns whether none is left.
pub(super) async fn prune(
    db: &Database,
    now: Timestamp,
    limits: AuditLimits,
) -> Result<bool, StoreError> {
    let conditions = async {
        let reader = &db.reader();
        let edge = async |sql| {
            let row = reader.query_one_raw(statement(reader, sql, [])).await?;
            row.map_or(Ok(None), |row| row.try_get::<Option<i64>>("", "edge"))
        };
        let oldest = edge("SELECT MIN(at) AS edge FROM audit").await?;
        let last_change = edge("SELECT MAX(audit_id) AS edge FROM audit").await?;
        let last_refusal = edge("SELECT MIN(audit_id) AS edge FROM audit").await?;
        let first_change = "SELECT MIN(audit_id) AS edge FROM audit WHERE audit_id > 0";
        let first_change = edge(first_change).await?;
        let first_refusal = "SELECT MAX(audit_id) AS edge FROM audit WHERE audit_id < 0";
        let first_refusal = edge(first_refusal).await?;
        let refusals = i64::try_from(limits.max_entries / REFUSALS).unwrap_or(i64::MAX);
        let changes = i64::try_from(limits.max_entries).unwrap_or(i64::MAX) - refusals;
        let too_old = micros(now).saturating_sub(micros_of(limits.max_age));
        let mut conditions = Vec::new();
        if oldest < Some(too_old) && oldest.is_some() {
            conditions.push(("at < $1 ORDER BY at, audit_id", too_old));
        }
        let too_many = last_change.map(|last| last.saturating_sub(changes));
        if let (Some(first), Some(too_many)) = (first_change, too_many)
            && first <= too_many
        {
            let condition = "audit_id > 0 AND audit_id <= $1 ORDER BY audit_id";
            conditions.push((condition, too_many));
        }
        let too_many = last_refusal.map(|last| last.saturating_add(refusals));
        if let (Some(first), Some(too_many)) = (first_refusal, too_many)
            && first >= too_many
        {
            let condition = "audit_id < 0 AND audit_id >= $1 ORDER BY audit_id DESC";
            conditions.push((condition, too_many));
        }
        Ok::<_, DbErr>(conditions)
    };
    let conditions = conditions.await.map_err(|error| db.map(error))?;
    let mut is_complete = true;
    for (condition, bound) in conditions {
        let tx = db.begin().await?;
        // Several instances may prune at the same time.
        let lock = match tx.get_database_backend() {
            DbBackend::Postgres => "FOR UPDATE SKIP LOCKED",
            _ => "",
        };
        let sql = format!(
            "DELETE FROM audit WHERE audit_id IN \
            (SELECT audit_id FROM audit WHERE {condition} LIMIT {PRUNED} {lock})"
        );
        let pruned = tx.execute_raw(statement(&tx, &sql, [bound.into()])).await;
        let pruned = pruned.map_err(|error| db.map(error))?.rows_affected();
        tx.commit().await?;
        is_complete &= pruned < PRUNED;
    }
    Ok(is_complete)
}

fn micros_of(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}
