//! Ownership of partitions: leases of instances, and epochs of partitions.
//!
//! - An instance renews its lease in one row, by a number that rises with each renewal. Others
//!   take over after they have seen the same number for the lease and [`MARGIN`], counting only
//!   time between two of their own polls that succeeded one after the other, at most [`COUNTED`]
//!   of each: a database that stops, or a reader that was stopped, moves nothing. Clocks of
//!   different machines are never compared.
//! - The lease counts from sending the renewal, so it ends at its owner first.
//! - An owner whose lease has lapsed, and whose partitions nobody took, renews it and keeps its
//!   epochs. It reads the partitions again after such a renewal; who takes over locks the row of
//!   the lease, and finds the same number in it.
//! - A partition belongs to the instance with the highest hash of both (rendezvous hashing) among
//!   those whose lease is fresh by the clock of the database, on which all agree. That decides on
//!   the balance only.
//! - Once another host takes writes on a later timeline, others may have taken over there: the
//!   lease ends at once, unless it can be renewed there.
//! - A poll is one statement on a connection of its own, so that nothing else that waits for the
//!   database costs the lease. Takeovers run beside it.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rustix::system::uname;
use sea_orm::{
    ConnectionTrait, DbErr, QueryResult, Value, Values,
    sqlx::{
        self, AssertSqlSafe, Row,
        postgres::{PgConnection, PgRow},
    },
};
use sea_query_sqlx::SqlxValues;
use serde::de::DeserializeOwned;
use tokio::{sync::Mutex, task::JoinHandle, time::timeout};
use uuid::Uuid;

use super::{connect::SERVER, parse_timeline, pool::Database};
use crate::{
    boot_time::BootTime,
    store::{
        error::StoreError,
        ports::{InstanceKeys, Lease, Membership, Ownership, Partition},
        sql::{rows::unreadable, statement},
    },
};

/// Time by which others wait longer than the lease: until calls have ended that began within it.
pub(super) const MARGIN: Duration = Duration::from_secs(2);
/// Most of the time between two polls that counts for a lapse.
const COUNTED: Duration = Duration::from_secs(2);
/// A lease is renewed after this part of it.
const RENEW_AFTER: u32 = 3;
/// Bound on a poll.
const POLL: Duration = Duration::from_secs(2);
/// Time for which a poll waits for a takeover.
const TAKEOVER: Duration = Duration::from_secs(1);
/// Time after which a takeover is tried again that failed.
const TAKEOVER_RETRY: Duration = Duration::from_secs(1);
/// Age from which lapsed leases are removed, in microseconds.
const DEAD: i64 = 3_600_000_000;
/// Time since its last renewal after which an instance is not waited for when keys are rotated. It
/// is longer than any lease: one that was cut off and comes back ends if it lacks a key.
const RECENT: Duration = Duration::from_secs(60);
/// Longest time for which a transaction of a frozen instance may hold up a takeover.
const FROZEN: &str = "1 second";

/// The present time of the database in microseconds.
pub(super) const NOW: &str = "(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint";

/// Clock of leases.
pub(in crate::store) type Clock = Arc<dyn Fn() -> BootTime + Send + Sync>;

/// Identity of a running instance, new at each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::store) struct InstanceId(Uuid);

impl InstanceId {
    /// Makes a new one.
    pub(in crate::store) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    fn parse(text: &str) -> Result<Self, DbErr> {
        let id = Uuid::parse_str(text).map_err(|_| unreadable("an instance's id"))?;
        Ok(Self(id))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Settings of the ownership.
#[derive(Clone)]
pub(in crate::store) struct OwnershipOptions {
    /// Number of partitions of the log.
    pub(in crate::store) partitions: u32,
    /// Time for which a renewal holds. It is the same for all instances.
    pub(in crate::store) lease: Duration,
    /// Clock of leases.
    pub(in crate::store) clock: Clock,
    /// Ids of the keys of external IDs that this instance can read.
    pub(in crate::store) keys: Vec<String>,
}

/// The ownership.
pub(in crate::store) struct PostgresOwnership {
    shared: Arc<Shared>,
    /// Connection of the polls. None after an error.
    line: Mutex<Option<PgConnection>>,
    state: Mutex<State>,
}

struct Shared {
    database: Database,
    instance_id: InstanceId,
    options: OwnershipOptions,
}

#[derive(Default)]
struct State {
    /// Number of the last renewal that was sent.
    renewal: u64,
    /// Time of sending the last renewal that succeeded.
    renewed_at: Option<BootTime>,
    /// Revision that it confirmed.
    confirmed: u64,
    /// Leases of others.
    seen: HashMap<InstanceId, Seen>,
    /// Receipt of the last poll, if it succeeded.
    seen_at: Option<BootTime>,
    timeline: u32,
    /// Timeline for which the lease was ended.
    ended_for: u32,
    takeover: Option<JoinHandle<Result<Takeover, StoreError>>>,
    /// Earliest begin of the next takeover.
    takeover_at: Option<BootTime>,
    removed_at: Option<BootTime>,
    has_left: bool,
}

/// Lease of another instance, as this one sees it.
#[derive(Clone, Copy)]
struct Seen {
    /// Number of its last renewal; None if the owner of a partition has no lease.
    renewal: Option<u64>,
    /// Time for which it was seen unchanged.
    unchanged: Duration,
}

/// Content of the tables at a poll.
struct View {
    instances: HashMap<InstanceId, Instance>,
    partitions: Vec<Owned>,
    revision: u64,
    timeline: u32,
}

struct Instance {
    renewal: u64,
    confirmed: u64,
    /// Microseconds since its renewal, by the clock of the database.
    age: i64,
}

struct Owned {
    partition: Partition,
    epoch: u64,
    owner: Option<InstanceId>,
}

/// A partition to take over, from an owner with the number of its last renewal.
struct Claim {
    partition: Partition,
    from: Option<(InstanceId, Option<u64>)>,
}

/// Result of a takeover.
struct Takeover {
    leases: Vec<Lease>,
    is_complete: bool,
}

impl PostgresOwnership {
    /// Opens the ownership of an instance, which has no lease yet.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the database knows more partitions than the log has.
    pub(in crate::store) async fn open(
        database: Database,
        instance_id: InstanceId,
        options: OwnershipOptions,
    ) -> Result<Self, StoreError> {
        let tx = database.begin().await?;
        let sql = "INSERT INTO partition (partition) SELECT generate_series(0, $1 - 1) \
            ON CONFLICT (partition) DO NOTHING";
        let last = "SELECT COUNT(*) AS partitions FROM partition WHERE partition >= $1";
        let partitions = [Value::from(options.partitions as i32)];
        let more = async {
            tx.execute_raw(statement(&*tx, sql, partitions.clone()))
                .await?;
            let row = tx.query_one_raw(statement(&*tx, last, partitions)).await?;
            row.map_or(Ok(0), |row| row.try_get::<i64>("", "partitions"))
        };
        let more = more.await.map_err(|error| database.map(error))?;
        if more > 0 {
            return Err(StoreError::Corrupt(format!(
                "the log has {} partitions, and the database {more} more",
                options.partitions
            )));
        }
        tx.commit().await?;
        Ok(Self {
            shared: Arc::new(Shared {
                database,
                instance_id,
                options,
            }),
            line: Mutex::default(),
            state: Mutex::default(),
        })
    }

    fn now(&self) -> BootTime {
        (self.shared.options.clock)()
    }

    /// Runs a statement on the connection of the polls, within a bound.
    async fn call(&self, sql: &str, values: Vec<Value>) -> Result<PgRow, StoreError> {
        let mut line = self.line.lock().await;
        let called = async {
            let hosts = self.shared.database.hosts();
            let mut connection = match line.take() {
                Some(connection) => connection,
                None => hosts.connect().await?,
            };
            let values = SqlxValues(Values(values));
            let query = sqlx::query_with(AssertSqlSafe(sql), values);
            let row = query.fetch_one(&mut connection).await;
            let row = row.map_err(|error| error.to_string())?;
            hosts.admit(&row)?;
            Ok((row, connection))
        };
        // After an error, or if the caller is dropped, the connection is dropped as well.
        let called: Result<_, String> = match timeout(POLL, called).await {
            Ok(called) => called,
            Err(_) => Err("the database does not answer".to_owned()),
        };
        let (row, connection) = called.map_err(StoreError::Failed)?;
        *line = Some(connection);
        Ok(row)
    }

    /// Reads the tables, and renews the lease if a revision is given to confirm.
    async fn look(&self, state: &mut State, confirm: Option<u64>) -> Result<View, StoreError> {
        let renewed = match confirm {
            Some(_) => format!(
                "INSERT INTO instance (instance_id, renewal, confirmed, renewed_at, host, keys) \
                SELECT $2, $3, $4, {NOW}, $5, $6 FROM settings WHERE settings.done IS NOT NULL \
                ON CONFLICT (instance_id) DO UPDATE SET renewal = excluded.renewal, \
                confirmed = GREATEST(instance.confirmed, excluded.confirmed), \
                renewed_at = excluded.renewed_at WHERE instance.renewal < excluded.renewal \
                RETURNING 1"
            ),
            None => "SELECT 1".to_owned(),
        };
        let sql = format!(
            "WITH settings AS MATERIALIZED \
                (SELECT set_config('synchronous_commit', 'local', true) AS done), \
            renewed AS ({renewed}) \
            SELECT (SELECT COUNT(*) FROM renewed) AS renewed, \
            (SELECT json_agg(json_build_array(instance_id, renewal, confirmed, \
                {NOW} - renewed_at))::text FROM instance) AS instances, \
            (SELECT json_agg(json_build_array(partition, epoch, owner) ORDER BY partition)::text \
                FROM partition WHERE partition < $1) AS partitions, \
            (SELECT value FROM meta WHERE name = 'revision') AS revision, {SERVER}"
        );
        let sent_at = self.now();
        let mut values = vec![Value::from(self.shared.options.partitions as i32)];
        if let Some(confirmed) = confirm {
            state.renewal += 1;
            values.push(self.shared.instance_id.to_string().into());
            values.push((state.renewal as i64).into());
            values.push((confirmed as i64).into());
            let host = uname();
            values.push(host.nodename().to_string_lossy().into_owned().into());
            values.push(self.shared.options.keys.join(" ").into());
        }
        let row = self.call(&sql, values).await?;
        let corrupt = |error: DbErr| StoreError::Corrupt(error.to_string());
        let (renewed, view) = View::read(&row).map_err(corrupt)?;
        if let Some(confirmed) = confirm {
            if renewed == 0 {
                let text = "the lease was renewed by a later renewal";
                return Err(StoreError::Failed(text.to_owned()));
            }
            state.renewed_at = Some(sent_at);
            state.confirmed = confirmed;
        }
        Ok(view)
    }

    /// Renews the lease if that is due, and reads the tables.
    async fn renew(&self, state: &mut State, confirmed: u64) -> Result<View, StoreError> {
        let lease = self.shared.options.lease;
        let age = state.renewed_at.map(|at| self.now().since(at));
        let is_due =
            age.is_none_or(|age| age >= lease / RENEW_AFTER) || confirmed > state.confirmed;
        let view = self.look(state, is_due.then_some(confirmed)).await?;
        // A renewal on a former server that went on does not count.
        let is_promoted = state.timeline != 0 && view.timeline != state.timeline;
        if is_promoted && !is_due {
            self.look(state, Some(confirmed)).await?;
        }
        // The rows may have been read before the renewal, with a takeover between the two.
        match is_promoted || age.is_some_and(|age| age >= lease) {
            true => self.look(state, None).await,
            false => Ok(view),
        }
    }

    /// Whether a server was promoted to a later timeline than that of the last poll, and the lease
    /// was not ended for that yet.
    fn is_superseded(&self, state: &State) -> bool {
        let latest = self.shared.database.hosts().latest_timeline();
        state.timeline != 0 && latest > state.timeline.max(state.ended_for)
    }

    /// Ends the lease, as the server that keeps it was replaced.
    fn end(&self, state: &mut State) -> Membership {
        let timeline = self.shared.database.hosts().latest_timeline();
        tracing::error!(
            timeline,
            "another server of the database was promoted, and does not answer: the lease ends"
        );
        state.ended_for = timeline;
        Membership {
            leases: Vec::new(),
            to_release: Vec::new(),
            until: Some(self.now()),
            revision: 0,
            confirmed: 0,
            instances: 1,
            timeline: state.timeline,
        }
    }

    async fn poll_in(&self, state: &mut State, confirmed: u64) -> Result<Membership, StoreError> {
        let seen_at = state.seen_at.take();
        let sent_at = self.now();
        let view = self.renew(state, confirmed).await?;
        let me = self.shared.instance_id;
        let gap = seen_at.map_or(Duration::ZERO, |at| sent_at.since(at).min(COUNTED));
        state.observe(&view, me, gap);
        state.seen_at = Some(self.now());

        let lapse = self.shared.options.lease + MARGIN;
        let is_lapsed =
            |id: &InstanceId| state.seen.get(id).is_some_and(|one| one.unchanged >= lapse);
        let others = view.instances.iter().filter(|(id, _)| **id != me);
        let living: Vec<_> = others.filter(|(id, _)| !is_lapsed(id)).collect();
        let fresh = living
            .iter()
            .filter(|(_, one)| one.age < lapse.as_micros() as i64)
            .map(|(id, _)| **id);
        let candidates: Vec<InstanceId> = fresh.chain([me]).collect();
        let is_mine = |partition| preferred(partition, &candidates) == Some(me);
        let mut leases = Vec::new();
        let (mut to_release, mut claims) = (Vec::new(), Vec::new());
        for one in &view.partitions {
            let partition = one.partition;
            match (one.owner, is_mine(partition)) {
                (Some(owner), is_mine) if owner == me => {
                    let epoch = one.epoch;
                    leases.push(Lease { partition, epoch });
                    if !is_mine {
                        to_release.push(partition);
                    }
                }
                (owner, true) if owner.is_none_or(|owner| is_lapsed(&owner)) => {
                    let from = owner.map(|owner| {
                        let seen = state.seen.get(&owner);
                        (owner, seen.and_then(|seen| seen.renewal))
                    });
                    claims.push(Claim { partition, from });
                }
                _ => {}
            }
        }
        let dead = view
            .instances
            .iter()
            .filter(|(id, one)| one.age > DEAD && is_lapsed(id));
        let dead: Vec<_> = dead.map(|(id, one)| (*id, one.renewal)).collect();
        let confirmed_by_others = living.iter().map(|(_, one)| one.confirmed);
        let membership = Membership {
            to_release,
            until: state.renewed_at.map(|at| at + self.shared.options.lease),
            revision: view.revision,
            confirmed: confirmed_by_others.fold(confirmed, u64::min),
            instances: 1 + living.len() as u32,
            timeline: view.timeline,
            leases: Vec::new(),
        };
        leases.extend(self.take_over(state, claims).await);
        self.remove_dead(state, dead);
        Ok(Membership {
            leases,
            ..membership
        })
    }

    /// Takes partitions over. A takeover that does not end soon goes on beside the polls, of which
    /// a later one finds its result in the database.
    async fn take_over(&self, state: &mut State, claims: Vec<Claim>) -> Vec<Lease> {
        let now = self.now();
        let is_early = state.takeover_at.is_some_and(|at| now < at);
        let is_running = state
            .takeover
            .as_ref()
            .is_some_and(|one| !one.is_finished());
        if claims.is_empty() || is_early || is_running {
            return Vec::new();
        }
        let shared = Arc::clone(&self.shared);
        let mut running = tokio::spawn(async move { shared.take_over(claims).await });
        let ended = timeout(TAKEOVER, &mut running).await;
        state.takeover_at = Some(now + TAKEOVER_RETRY);
        match ended {
            Ok(Ok(Ok(takeover))) => {
                if takeover.is_complete {
                    state.takeover_at = None;
                }
                return takeover.leases;
            }
            Ok(Ok(Err(error))) => tracing::warn!(%error, "partitions cannot be taken over"),
            Ok(Err(error)) => tracing::error!(%error, "a takeover has ended by itself"),
            Err(_) => state.takeover = Some(running),
        }
        Vec::new()
    }

    /// Removes leases that lapsed long ago, once a minute.
    fn remove_dead(&self, state: &mut State, dead: Vec<(InstanceId, u64)>) {
        let now = self.now();
        let is_early = |at: BootTime| now.since(at) < Duration::from_secs(60);
        if dead.is_empty() || state.removed_at.is_some_and(is_early) {
            return;
        }
        state.removed_at = Some(now);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let sql = "DELETE FROM instance i \
                USING unnest($1::text[], $2::bigint[]) AS d (instance_id, renewal) \
                WHERE i.instance_id = d.instance_id AND i.renewal = d.renewal";
            let ids: Vec<String> = dead.iter().map(|(id, _)| id.to_string()).collect();
            let renewals: Vec<i64> = dead.iter().map(|(_, renewal)| *renewal as i64).collect();
            if let Err(error) = shared.write(sql, [ids.into(), renewals.into()]).await {
                tracing::warn!(%error, "lapsed leases cannot be removed");
            }
        });
    }
}

impl View {
    /// Reads the row of a poll. Returns also the number of renewals.
    fn read(row: &PgRow) -> Result<(i64, Self), DbErr> {
        fn column<'a, T>(row: &'a PgRow, name: &'static str) -> Result<T, DbErr>
        where
            T: sqlx::Decode<'a, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
        {
            row.try_get(name).map_err(|_| unreadable(name))
        }
        fn list<T: DeserializeOwned>(row: &PgRow, name: &'static str) -> Result<Vec<T>, DbErr> {
            let text: Option<&str> = column(row, name)?;
            let list = text.map(serde_json::from_str).transpose();
            Ok(list.map_err(|_| unreadable(name))?.unwrap_or_default())
        }
        let mut instances = HashMap::new();
        for (id, renewal, confirmed, age) in list::<(String, u64, u64, i64)>(row, "instances")? {
            let instance = Instance {
                renewal,
                confirmed,
                age,
            };
            instances.insert(InstanceId::parse(&id)?, instance);
        }
        let mut partitions = Vec::new();
        for (partition, epoch, owner) in list::<(u32, u64, Option<String>)>(row, "partitions")? {
            partitions.push(Owned {
                partition,
                epoch,
                owner: owner.as_deref().map(InstanceId::parse).transpose()?,
            });
        }
        let revision: Option<&str> = column(row, "revision")?;
        let revision = revision.map(str::parse).transpose();
        let view = Self {
            instances,
            partitions,
            revision: revision.map_err(|_| unreadable("revision"))?.unwrap_or(0),
            timeline: parse_timeline(column(row, "timeline")?)?,
        };
        Ok((column(row, "renewed")?, view))
    }
}

impl State {
    /// Notes which leases of others have changed since the last poll, `gap` ago.
    fn observe(&mut self, view: &View, me: InstanceId, gap: Duration) {
        if self.timeline != view.timeline {
            self.timeline = view.timeline;
            self.seen.clear();
        }
        let leases = view
            .instances
            .iter()
            .map(|(id, one)| (*id, Some(one.renewal)));
        let owners = view.partitions.iter().filter_map(|one| one.owner);
        let without = owners.filter(|owner| !view.instances.contains_key(owner));
        let all: HashMap<_, _> = without.map(|owner| (owner, None)).chain(leases).collect();
        let before = std::mem::take(&mut self.seen);
        for (id, renewal) in all.into_iter().filter(|(id, _)| *id != me) {
            let unchanged = before.get(&id).filter(|before| before.renewal == renewal);
            let unchanged = unchanged.map_or(Duration::ZERO, |before| before.unchanged + gap);
            self.seen.insert(id, Seen { renewal, unchanged });
        }
    }
}

impl Shared {
    /// Runs a statement in a transaction of its own, which does not wait for standbys.
    async fn write(
        &self,
        sql: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<(), StoreError> {
        let tx = self.database.begin_local().await?;
        let done = tx.execute_raw(statement(&*tx, sql, values)).await;
        done.map_err(|error| self.database.map(error))?;
        tx.commit().await
    }

    /// Takes over those of the claimed partitions that are free, in one transaction.
    async fn take_over(&self, claims: Vec<Claim>) -> Result<Takeover, StoreError> {
        let tx = self.database.begin().await?;
        let failed = |error: DbErr| self.database.map(error);
        // Renewals wait for the end of the transaction, or have changed the number. Nothing that
        // is locked is waited for: one that hangs would hold up the others.
        let sql = "SELECT c.instance_id FROM unnest($1::text[], $2::bigint[]) \
                AS c (instance_id, renewal) \
                JOIN instance i ON i.instance_id = c.instance_id AND i.renewal = c.renewal \
                ORDER BY c.instance_id FOR SHARE OF i SKIP LOCKED";
        let gone = "SELECT c.instance_id FROM unnest($1::text[]) AS c (instance_id) \
                WHERE NOT EXISTS (SELECT FROM instance i WHERE i.instance_id = c.instance_id)";
        let owners: HashMap<_, _> = claims.iter().filter_map(|claim| claim.from).collect();
        let mut lapsed = HashSet::new();
        if !owners.is_empty() {
            let with = owners
                .iter()
                .filter_map(|(id, renewal)| Some((id, (*renewal)?)));
            let (ids, renewals): (Vec<_>, Vec<_>) = with
                .map(|(id, renewal)| (id.to_string(), renewal as i64))
                .unzip();
            let without = owners.iter().filter(|(_, renewal)| renewal.is_none());
            let without: Vec<String> = without.map(|(id, _)| id.to_string()).collect();
            for statement in [
                statement(&*tx, sql, [ids.into(), renewals.into()]),
                statement(&*tx, gone, [without.into()]),
            ] {
                for row in tx.query_all_raw(statement).await.map_err(failed)? {
                    lapsed.insert(instance_id(&row).map_err(failed)?);
                }
            }
        }
        let free = claims.iter().filter(|claim| match claim.from {
            Some((owner, _)) => lapsed.contains(&owner),
            None => true,
        });
        let (partitions, owners): (Vec<i32>, Vec<String>) = free
            .map(|claim| {
                let owner = claim.from.map(|(owner, _)| owner.to_string());
                (claim.partition as i32, owner.unwrap_or_default())
            })
            .unzip();
        let sql = "WITH free AS MATERIALIZED (SELECT p.partition FROM partition p \
                JOIN unnest($2::int[], $3::text[]) AS c (partition, owner) \
                ON c.partition = p.partition AND c.owner = COALESCE(p.owner, '') \
                ORDER BY p.partition FOR UPDATE OF p SKIP LOCKED) \
            UPDATE partition p SET epoch = p.epoch + 1, owner = $1 FROM free \
            WHERE p.partition = free.partition RETURNING p.partition, p.epoch";
        let values = [
            self.instance_id.to_string().into(),
            partitions.into(),
            owners.into(),
        ];
        let rows = tx.query_all_raw(statement(&*tx, sql, values)).await;
        let rows = rows.map_err(failed)?;
        let leases: Result<Vec<Lease>, DbErr> = rows.iter().map(lease).collect();
        let leases = leases.map_err(failed)?;
        tx.commit().await?;
        let taken: HashSet<Partition> = leases.iter().map(|lease| lease.partition).collect();
        let claimed = claims.iter().map(|claim| claim.partition);
        let left: Vec<i32> = claimed
            .filter(|partition| !taken.contains(partition))
            .map(|partition| partition as i32)
            .collect();
        if !left.is_empty() {
            self.end_frozen(&left).await;
        }
        Ok(Takeover {
            leases,
            is_complete: left.is_empty(),
        })
    }

    /// Ends sessions that keep partitions locked while they wait for their instance: it is frozen,
    /// or cut off.
    async fn end_frozen(&self, partitions: &[i32]) {
        let sql = format!(
            "SELECT pg_terminate_backend(a.pid) FROM partition p \
            JOIN pg_stat_activity a ON a.backend_xid = p.xmax \
            WHERE p.partition = ANY($1) AND a.state = 'idle in transaction' \
            AND a.wait_event = 'ClientRead' \
            AND a.state_change < clock_timestamp() - interval '{FROZEN}'"
        );
        let db = self.database.reader();
        let values = [partitions.to_vec().into()];
        match db.query_all_raw(statement(db, &sql, values)).await {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => tracing::warn!(
                sessions = ended.len(),
                "ended sessions of the database that kept partitions locked"
            ),
            Err(error) => {
                tracing::warn!(%error, "a session that keeps partitions locked cannot be ended")
            }
        }
    }
}

fn instance_id(row: &QueryResult) -> Result<InstanceId, DbErr> {
    InstanceId::parse(&row.try_get::<String>("", "instance_id")?)
}

fn lease(row: &QueryResult) -> Result<Lease, DbErr> {
    Ok(Lease {
        partition: row.try_get::<i32>("", "partition")? as Partition,
        epoch: row.try_get::<i64>("", "epoch")? as u64,
    })
}

/// The instance that is to own a partition.
fn preferred(partition: Partition, candidates: &[InstanceId]) -> Option<InstanceId> {
    let candidates = candidates.iter().copied();
    candidates.max_by_key(|candidate| (score(partition, *candidate), *candidate))
}

/// Hash of an instance and a partition, the same in all versions: MurmurHash3's finalizer.
fn score(partition: Partition, candidate: InstanceId) -> u64 {
    let mix = |mut hash: u64| {
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    };
    let (high, low) = candidate.0.as_u64_pair();
    mix(mix(high ^ mix(low)) ^ mix(u64::from(partition) + 1))
}

#[async_trait]
impl Ownership for PostgresOwnership {
    async fn poll(&self, confirmed: u64) -> Result<Membership, StoreError> {
        self.shared.database.check()?;
        let mut state = self.state.lock().await;
        if state.has_left {
            return Err(StoreError::Closed);
        }
        let polled = self.poll_in(&mut state, confirmed).await;
        if polled.is_ok() || !self.is_superseded(&state) {
            return polled;
        }
        // The connection to the former server is closed.
        match self.poll_in(&mut state, confirmed).await {
            Ok(membership) => Ok(membership),
            Err(_) => Ok(self.end(&mut state)),
        }
    }

    async fn seize(&self, partition: Partition) -> Result<Lease, StoreError> {
        let database = &self.shared.database;
        let failed = |error: DbErr| database.map(error);
        let tx = database.begin().await?;
        let sql = "UPDATE partition SET epoch = epoch + 1, owner = $2 WHERE partition = $1 \
            RETURNING partition, epoch";
        let me = self.shared.instance_id.to_string();
        let values = [Value::from(partition as i32), me.into()];
        let row = tx.query_one_raw(statement(&*tx, sql, values)).await;
        let row = row.map_err(failed)?;
        let none = || StoreError::Failed(format!("there is no partition {partition}"));
        let seized = lease(&row.ok_or_else(none)?).map_err(failed)?;
        tx.commit().await?;
        Ok(seized)
    }

    async fn release(&self, leases: &[Lease]) -> Result<(), StoreError> {
        if leases.is_empty() {
            return Ok(());
        }
        let sql = "UPDATE partition p SET owner = NULL \
            FROM unnest($2::int[], $3::bigint[]) AS u (partition, epoch) \
            WHERE p.partition = u.partition AND p.epoch = u.epoch AND p.owner = $1";
        let partitions: Vec<i32> = leases.iter().map(|one| one.partition as i32).collect();
        let epochs: Vec<i64> = leases.iter().map(|one| one.epoch as i64).collect();
        let me = self.shared.instance_id.to_string();
        self.shared
            .write(sql, [me.into(), partitions.into(), epochs.into()])
            .await
    }

    async fn leave(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock().await;
        state.has_left = true;
        if let Some(takeover) = state.takeover.take() {
            // Its partitions would have an owner without a lease, which lapses slowly.
            let _ended = timeout(TAKEOVER, takeover).await;
        }
        // No poll follows.
        *self.line.lock().await = None;
        let sql = "WITH gone AS (DELETE FROM instance WHERE instance_id = $1) \
            UPDATE partition SET owner = NULL WHERE owner = $1";
        let me = self.shared.instance_id.to_string();
        self.shared.write(sql, [me.into()]).await
    }

    async fn instances(&self) -> Result<Vec<InstanceKeys>, StoreError> {
        let sql = format!(
            "SELECT instance_id, host, keys FROM instance WHERE renewed_at > {NOW} - $1 \
            ORDER BY host, instance_id"
        );
        let db = self.shared.database.reader();
        let recent = RECENT.as_micros() as i64;
        let rows = db.query_all_raw(statement(db, &sql, [recent.into()])).await;
        let instances = rows.and_then(|rows| {
            let read = |row: &QueryResult| {
                let keys: String = row.try_get("", "keys")?;
                Ok(InstanceKeys {
                    id: row.try_get("", "instance_id")?,
                    host: row.try_get("", "host")?,
                    keys: keys.split_whitespace().map(Into::into).collect(),
                })
            };
            rows.iter().map(read).collect()
        });
        instances.map_err(|error| self.shared.database.map(error))
    }
}

#[cfg(test)]
mod tests {
    use test_services::{Postgres, Proxy, require};

    use super::{super::testing, *};

    async fn start(url: &str) -> PostgresOwnership {
        let options = OwnershipOptions {
            partitions: 3,
            lease: Duration::from_secs(10),
            clock: Arc::new(BootTime::now),
            keys: Vec::new(),
        };
        let database = testing::open(url).await;
        let opened = PostgresOwnership::open(database, InstanceId::random(), options).await;
        opened.unwrap()
    }

    #[tokio::test]
    async fn a_lease_that_was_renewed_is_not_taken_over() {
        let Some(url) = testing::migrated().await else {
            return;
        };
        let (owner, other) = (start(&url).await, start(&url).await);
        assert_eq!(owner.poll(0).await.unwrap().leases.len(), 3);
        // Confirming renews.
        owner.poll(1).await.unwrap();
        let take_over = async |renewal| {
            let from = Some((owner.shared.instance_id, renewal));
            let claim = |partition| Claim { partition, from };
            let takeover = other.shared.take_over((0..3).map(claim).collect()).await;
            takeover.unwrap().leases.len()
        };
        assert_eq!(take_over(Some(1)).await, 0);
        assert_eq!(take_over(None).await, 0);
        assert_eq!(take_over(Some(2)).await, 3);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_promotion_beside_the_former_primary_ends_the_lease() {
        let Some(server) = require(Postgres::start().await) else {
            return;
        };
        let url = testing::empty(&server).await;
        testing::open(&url).await.close().await;
        let standby = server.add_standby().await;
        let proxy = Proxy::start(standby.port());
        let name = url.rsplit('/').next().unwrap();
        let (first, second) = (server.port(), proxy.port());
        let hosts = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/{name}");
        let ownership = start(&hosts).await;
        let before = ownership.poll(0).await.unwrap();
        assert_eq!((before.leases.len(), before.timeline), (3, 1));
        server.set("synchronous_standby_names", "").await;
        standby.promote().await;
        let found = timeout(Duration::from_secs(20), async {
            while ownership.shared.database.hosts().latest_timeline() < 2 {
                tokio::task::yield_now().await;
            }
        });
        found.await.expect("the promotion is not noticed");

        // The former primary would renew it.
        proxy.hang().await;
        let ended = ownership.poll(0).await.unwrap();
        assert!(ended.leases.is_empty(), "{ended:?}");
        assert!(ended.until.unwrap() <= BootTime::now(), "{ended:?}");
        assert!(ownership.poll(0).await.is_err());
        let renewals = format!(
            "SELECT renewal FROM instance WHERE instance_id = '{}'",
            ownership.shared.instance_id
        );
        let before = standby.sql(name, &renewals).await;
        proxy.resume().await;
        let after = timeout(Duration::from_secs(20), async {
            loop {
                if let Ok(membership) = ownership.poll(0).await {
                    return membership;
                }
            }
        });
        let after = after.await.expect("the promoted server is not used");
        assert_eq!((after.leases.len(), after.timeline), (3, 2));
        assert!(after.until.unwrap() > BootTime::now());
        assert_ne!(standby.sql(name, &renewals).await, before, "no renewal");
    }

    #[tokio::test]
    async fn a_log_with_fewer_partitions_is_refused() {
        let Some(url) = testing::migrated().await else {
            return;
        };
        let ownership = start(&url).await;
        let Shared {
            database,
            instance_id,
            options,
        } = &*ownership.shared;
        let fewer = OwnershipOptions {
            partitions: 2,
            ..options.clone()
        };
        let opened = PostgresOwnership::open(database.clone(), *instance_id, fewer).await;
        assert!(matches!(opened, Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn hashes_are_those_of_all_versions() {
        let id = InstanceId(Uuid::from_u128(0x0123_4567_89ab_cdef_0f1e_2d3c_4b5a_6978));
        let scores = [0, 1, 63].map(|partition| score(partition, id));
        let expected = [
            7_028_795_654_075_975_658,
            14_205_682_162_434_395_560,
            10_386_805_768_399_768_987,
        ];
        assert_eq!(scores, expected);
    }
}
