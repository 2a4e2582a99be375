//! Keys of external IDs in a database: one row of `meta` says under which keys external IDs are
//! stored.
//!
//! # Uniqueness while keys are rotated
//!
//! Two organizations never have the same external ID, although its hash differs by key:
//!
//! 1. Every external ID is stored under a key that the row names, because whoever stores one reads
//!    the row under a shared lock and holds it until the commit, and whoever changes the row has
//!    it exclusively. A key leaves the row only after a search, under that lock, has found nothing
//!    under it.
//! 2. Whoever stores one has every key that the row names (`Sealer::under`), and looks for its
//!    hashes under all of them, in statements that each see one state of the database.
//! 3. Re-sealing replaces a hash by another one of the same external ID in one commit, so each
//!    statement finds one of the two.
//! 4. Two that are stored at the same time: the second one looks after the first one's commit,
//!    because both have taken a revision before (see [`registry`](super::registry)).
//!
//! # Order of locks
//!
//! Rows of integrations, then the keys, then the revision, then rows of issued external IDs.
//!
//! PostgreSQL's row locks are not fair: new shared locks join those that are held, so whoever waits
//! for the exclusive one would wait for as long as writers overlap. Therefore an advisory lock, for
//! which they queue, comes before that of the row.
//!
//! Leases and the order of starts have no part in this. They only keep a key from becoming active
//! that an instance cannot read, so that no instance is stopped.

use std::collections::BTreeMap;

use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, IntoActiveModel, QueryFilter,
    QueryOrder, QuerySelect,
    sea_query::{LockBehavior, LockType},
};

use super::{
    WriteTransaction,
    entities::{integration, issued_external_id, meta},
    external_ids::{move_issued, name_key},
    registry::{find_all, update},
    save_meta, statement,
};
use crate::store::{
    error::StoreError,
    ports::{Claim, Keys, Ready, Reseal, ResealPass},
};

/// Rows that one step re-seals: their integrations are locked for a few milliseconds.
pub(super) const STEP: u64 = 100;
/// Key of the advisory lock: "siek" in ASCII.
const FAIR_LOCK: i64 = 0x7369_656b;
/// Tables with external IDs, each with the column `external_id_key_id`.
const TABLES: [&str; 2] = ["integration", "issued_external_id"];
/// Mark of the pending key.
const PENDING: char = '+';

/// Writes keys as text: the active one first. Each id is in hexadecimal digits of its characters,
/// as the versions with a single key stored it, which refuse any other text.
fn to_text(keys: &Keys) -> String {
    let stored = keys.stored().map(hex::encode);
    let pending = keys
        .pending
        .as_deref()
        .map(|id| format!("{PENDING}{}", hex::encode(id)));
    stored.chain(pending).collect::<Vec<_>>().join(" ")
}

fn from_text(text: &str) -> Result<Keys, DbErr> {
    let id = |word: &str| {
        let id = hex::decode(word)
            .ok()
            .and_then(|id| String::from_utf8(id).ok());
        let id = id.ok_or_else(|| DbErr::Type("the stored keys cannot be read".to_owned()))?;
        Ok::<_, DbErr>(Box::<str>::from(id))
    };
    let mut keys = Keys::default();
    for (word, number) in text.split(' ').zip(0..) {
        match word.strip_prefix(PENDING) {
            Some(word) => keys.pending = Some(id(word)?),
            None if number == 0 => keys.active = id(word)?,
            None => keys.retiring.push(id(word)?),
        }
    }
    Ok(keys)
}

/// Reads the keys and locks them: shared for those who store external IDs, exclusively for those
/// who change the keys. None in a database that has no keys yet.
pub(super) async fn lock(tx: &WriteTransaction<'_>, lock: LockType) -> Result<Option<Keys>, DbErr> {
    if tx.get_database_backend() == DbBackend::Postgres {
        let shared = match lock {
            LockType::Update => "",
            _ => "_shared",
        };
        let sql = format!("SELECT pg_advisory_xact_lock{shared}({FAIR_LOCK})");
        tx.execute_unprepared(&sql).await?;
    }
    let row = meta::Entity::find_by_id(meta::KEYS)
        .lock(lock)
        .one(tx)
        .await?;
    row.map(|row| from_text(&row.value)).transpose()
}

/// Reads the keys.
pub(in crate::store) async fn load(db: &impl ConnectionTrait) -> Result<Keys, DbErr> {
    let text = super::load_meta(db, meta::KEYS).await?;
    text.map_or(Ok(Keys::default()), |text| from_text(&text))
}

async fn save(tx: &WriteTransaction<'_>, keys: &Keys) -> Result<(), DbErr> {
    save_meta(tx, meta::KEYS, &to_text(keys)).await
}

/// Makes sure that the keys are those of the stored external IDs.
pub(super) async fn start(tx: &WriteTransaction<'_>, first: &str) -> Result<Keys, DbErr> {
    let used = used(tx).await?;
    if lock(tx, LockType::Update).await?.is_none() {
        let active = used.first().cloned().unwrap_or_else(|| first.into());
        let keys = Keys {
            active,
            ..Keys::default()
        };
        let row = meta::Model {
            name: meta::KEYS.to_owned(),
            value: to_text(&keys),
        };
        // Another instance may store another one meanwhile.
        let insert = meta::Entity::insert(row.into_active_model()).on_conflict_do_nothing();
        insert.exec_without_returning(tx).await?;
    }
    let keys = lock(tx, LockType::Update).await?;
    let mut keys = keys.ok_or(DbErr::RecordNotInserted)?;
    let before = keys.clone();
    // A rotation may have ended since the first look.
    for id in self::used(tx).await? {
        if keys.stored().all(|stored| *stored != *id) {
            keys.retiring.push(id);
        }
    }
    if keys != before {
        save(tx, &keys).await?;
    }
    Ok(keys)
}

/// Keys under which external IDs are stored, in ascending order, without looking at every row.
async fn used(db: &impl ConnectionTrait) -> Result<Vec<Box<str>>, DbErr> {
    let mut used = Vec::new();
    for table in TABLES {
        let next = format!("(SELECT MIN(external_id_key_id) FROM {table} ");
        let sql = format!(
            "WITH RECURSIVE used (key_id) AS (SELECT {next}) \
            UNION ALL SELECT {next} WHERE external_id_key_id > used.key_id) \
            FROM used WHERE used.key_id IS NOT NULL) \
            SELECT key_id FROM used WHERE key_id IS NOT NULL"
        );
        for row in db.query_all_raw(statement(db, &sql, [])).await? {
            used.push(row.try_get::<String>("", "key_id")?.into());
        }
    }
    used.sort_unstable();
    used.dedup();
    Ok(used)
}

/// Whether an external ID is stored under a key.
async fn is_used(db: &impl ConnectionTrait, key: &str) -> Result<bool, DbErr> {
    for table in TABLES {
        let sql = format!("SELECT 1 FROM {table} WHERE external_id_key_id = $1 LIMIT 1");
        let found = db.query_one_raw(statement(db, &sql, [key.into()])).await?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Number of external IDs under each key; None is the key of versions without a rotation.
async fn count(db: &impl ConnectionTrait) -> Result<BTreeMap<Option<Box<str>>, u64>, DbErr> {
    let sql = "SELECT key_id, CAST(SUM(found) AS BIGINT) AS found FROM (\
            SELECT external_id_key_id AS key_id, COUNT(*) AS found FROM integration \
            GROUP BY external_id_key_id \
            UNION ALL SELECT external_id_key_id AS key_id, COUNT(*) AS found \
            FROM issued_external_id GROUP BY external_id_key_id) AS all_ids GROUP BY key_id";
    let rows = db.query_all_raw(statement(db, sql, [])).await?;
    rows.iter()
        .map(|row| {
            let id: Option<String> = row.try_get("", "key_id")?;
            let found: i64 = row.try_get("", "found")?;
            Ok((id.map(Into::into), found.unsigned_abs()))
        })
        .collect()
}

/// Number of external IDs under each key.
pub(super) async fn usage(db: &impl ConnectionTrait) -> Result<BTreeMap<Box<str>, u64>, DbErr> {
    let keys = load(db).await?;
    let mut usage = BTreeMap::new();
    for (id, found) in count(db).await? {
        // Before the first rotation the only key is the active one; that rotation names it.
        *usage
            .entry(id.unwrap_or_else(|| keys.active.clone()))
            .or_default() += found;
    }
    Ok(usage)
}

/// Makes a key the pending one; none if it is the active one.
pub(super) async fn propose(tx: &WriteTransaction<'_>, key: &str) -> Result<Keys, DbErr> {
    let keys = lock(tx, LockType::Update).await?;
    let mut keys = keys.ok_or(DbErr::RecordNotUpdated)?;
    keys.pending = (*keys.active != *key).then(|| key.into());
    save(tx, &keys).await?;
    Ok(keys)
}

/// Makes a key no longer the pending one.
pub(super) async fn withdraw(tx: &WriteTransaction<'_>, key: &str) -> Result<Keys, DbErr> {
    let keys = lock(tx, LockType::Update).await?;
    let mut keys = keys.ok_or(DbErr::RecordNotUpdated)?;
    if keys.pending.as_deref() == Some(key) {
        keys.pending = None;
        save(tx, &keys).await?;
    }
    Ok(keys)
}

/// Names the active key in some of the rows that name none, which is that of all of them until
/// another one becomes active. Returns whether none is left.
pub(super) async fn name_active(tx: &WriteTransaction<'_>) -> Result<bool, DbErr> {
    let keys = lock(tx, LockType::Share).await?;
    let keys = keys.ok_or(DbErr::RecordNotUpdated)?;
    Ok(name_key(tx, &keys.active, STEP).await? < STEP)
}

/// Makes the pending key the active one, if that is `key` and `ready` allows it. None if rows are
/// left for [`name_active`].
pub(super) async fn activate(
    tx: &WriteTransaction<'_>,
    key: &str,
    ready: &Ready<'_>,
) -> Result<Option<Keys>, Failed> {
    let keys = lock(tx, LockType::Update).await?;
    let mut keys = keys.ok_or(DbErr::RecordNotUpdated)?;
    if keys.pending.as_deref() != Some(key) || !ready().await? {
        return Ok(Some(keys));
    }
    if name_key(tx, &keys.active, STEP).await? == STEP {
        return Ok(None);
    }
    keys.pending = None;
    keys.retiring.retain(|id| **id != *key);
    let before = std::mem::replace(&mut keys.active, key.into());
    keys.retiring.push(before);
    save(tx, &keys).await?;
    Ok(Some(keys))
}

/// Forgets keys under which nothing is stored.
pub(super) async fn retire(tx: &WriteTransaction<'_>) -> Result<Keys, DbErr> {
    let keys = lock(tx, LockType::Update).await?;
    let mut keys = keys.ok_or(DbErr::RecordNotUpdated)?;
    let before = keys.retiring.len();
    for id in std::mem::take(&mut keys.retiring) {
        if is_used(tx, &id).await? {
            keys.retiring.push(id);
        }
    }
    if keys.retiring.len() < before {
        save(tx, &keys).await?;
    }
    Ok(keys)
}

/// Does one step of a pass.
pub(super) async fn reseal(
    tx: &WriteTransaction<'_>,
    pass: &mut ResealPass,
    reseal: &dyn Reseal,
) -> Result<(), Failed> {
    match pass.issued {
        None => {
            if reseal_integrations(tx, pass, reseal).await? < STEP {
                pass.issued = Some(Vec::new());
            }
        }
        Some(_) => {
            if reseal_issued(tx, pass, reseal).await? < STEP {
                pass.is_complete = true;
            }
        }
    }
    Ok(())
}

/// Locks the keys until the end of a step. Returns whether the key under which it stores is the
/// active one; any other may be retired already.
async fn begin_step(
    tx: &WriteTransaction<'_>,
    pass: &mut ResealPass,
    reseal: &dyn Reseal,
) -> Result<bool, DbErr> {
    let keys = lock(tx, LockType::Share).await?;
    let is_active = keys.is_some_and(|keys| *keys.active == *reseal.target());
    if !is_active {
        (pass.is_complete, pass.is_outdated) = (true, true);
    }
    Ok(is_active)
}

/// Error of a step.
pub(super) enum Failed {
    /// Of the database.
    Db(DbErr),
    /// Of the content.
    Store(StoreError),
}

impl From<DbErr> for Failed {
    fn from(error: DbErr) -> Self {
        Self::Db(error)
    }
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn reseal_integrations(
    tx: &WriteTransaction<'_>,
    pass: &mut ResealPass,
    reseal: &dyn Reseal,
) -> Result<u64, Failed> {
    use integration::{Column, Entity};
    let target = reseal.target();
    let found: Vec<(String, String)> = Entity::find()
        .select_only()
        .column(Column::IntegrationId)
        .column(Column::OrganizationId)
        .filter(Column::IntegrationId.gt(&*pass.integration))
        .filter(Column::ExternalIdKeyId.ne(target))
        .order_by_asc(Column::IntegrationId)
        .limit(STEP)
        .into_tuple()
        .all(tx)
        .await?;
    let Some((last, _)) = found.last().cloned() else {
        return Ok(0);
    };
    let mut ids = Vec::with_capacity(found.len());
    for (id, organization_id) in &found {
        match super::entities::integration_id(id) {
            Ok(id) => ids.push(id),
            Err(_) => pass.unreadable.add(organization_id),
        }
    }
    let rows = find_all(tx, &ids).await?;
    if !begin_step(tx, pass, reseal).await? {
        return Ok(0);
    }
    for mut row in rows {
        // It may have been configured since.
        if row.external_id_key_id == target {
            continue;
        }
        match row.reseal(reseal) {
            Ok(claims) => {
                update(tx, row).await?;
                for claim in &claims {
                    move_issued(tx, claim).await?;
                }
                pass.resealed += 1;
            }
            Err(_) => pass.unreadable.add(&row.organization_id),
        }
    }
    pass.integration = last;
    Ok(found.len() as u64)
}

async fn reseal_issued(
    tx: &WriteTransaction<'_>,
    pass: &mut ResealPass,
    reseal: &dyn Reseal,
) -> Result<u64, Failed> {
    use issued_external_id::{Column, Entity, Model};
    if !begin_step(tx, pass, reseal).await? {
        return Ok(0);
    }
    let after = pass.issued.clone().unwrap_or_default();
    // Those that another transaction holds are left to a later pass: this one holds several, and
    // waits for none.
    let rows: Vec<Model> = Entity::find()
        .filter(Column::ExternalIdHmac.gt(after))
        .filter(Column::ExternalIdKeyId.ne(reseal.target()))
        .filter(Column::ExternalIdSealed.is_not_null())
        .order_by_asc(Column::ExternalIdHmac)
        .limit(STEP)
        .lock_with_behavior(LockType::Update, LockBehavior::SkipLocked)
        .all(tx)
        .await?;
    let found = rows.len() as u64;
    for row in rows {
        match row.reseal(reseal) {
            Ok(Some(claim)) => {
                let claim = Claim {
                    others: vec![row.external_id_hmac.clone()],
                    ..claim
                };
                move_issued(tx, &claim).await?;
                pass.resealed += 1;
            }
            Ok(None) => {}
            Err(_) => pass.unreadable.add(&row.organization_id),
        }
        pass.issued = Some(row.external_id_hmac);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_without_a_key_get_that_of_before_in_steps() {
        use futures_util::FutureExt as _;

        let db = crate::store::sql::testing::database().await;
        let tx = db.begin().await.unwrap_or_else(|error| panic!("{error}"));
        start(&tx, "one").await.unwrap();
        for number in 0..STEP + 30 {
            let sql = "INSERT INTO issued_external_id (external_id_hmac, organization_id, issued_at) \
                VALUES ($1, 'acme', 0)";
            let hash = number.to_be_bytes().to_vec();
            tx.execute_raw(statement(&tx, sql, [hash.into()]))
                .await
                .unwrap();
        }
        propose(&tx, "two").await.unwrap();
        let ready = || std::future::ready(Ok(true)).boxed();
        let activated = activate(&tx, "two", &ready).await;
        assert!(matches!(activated, Ok(None)), "more than one step is left");
        assert!(name_active(&tx).await.unwrap());
        let Ok(Some(keys)) = activate(&tx, "two", &ready).await else {
            panic!("not activated");
        };
        assert!(keys.stored().eq(["two", "one"]));
        assert_eq!(used(&tx).await.unwrap(), [Box::from("one")]);
        assert!(is_used(&tx, "one").await.unwrap() && !is_used(&tx, "two").await.unwrap());
        assert_eq!(retire(&tx).await.unwrap(), keys);
    }

    #[test]
    fn keys_are_text_that_a_single_key_matches() {
        let keys = |active: &str, retiring: &[&str], pending: Option<&str>| Keys {
            active: active.into(),
            retiring: retiring.iter().map(|id| Box::from(*id)).collect(),
            pending: pending.map(Into::into),
        };
        for (keys, text) in [
            (keys("ab", &[], None), "6162"),
            (keys("ab", &["c"], None), "6162 63"),
            (keys("ab", &["c", "d"], Some("e")), "6162 63 64 +65"),
        ] {
            assert_eq!(to_text(&keys), text);
            assert_eq!(from_text(text).unwrap(), keys);
        }
        assert!(from_text("6162 x").is_err());
    }
}
