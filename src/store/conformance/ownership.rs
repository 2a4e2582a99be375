//! Guarantees of [`Ownership`] with several instances on one database. Their clock is that of the
//! test, so that leases lapse without waiting.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::ConnectionTrait;
use test_services::{Postgres, PostgresOptions, require};
use tokio::time::{sleep, timeout};

use super::{Checked, HANGING, call, ensure};
use crate::{
    boot_time::BootTime,
    store::{
        error::StoreError,
        ports::{Anchor, Lease, Ledger, Membership, Ownership, Partition, Position},
        postgres::{
            Database, InstanceId, OwnershipOptions, PostgresLedger, PostgresOwnership, testing,
        },
    },
};

const PARTITIONS: Partition = 12;
const LEASE: Duration = Duration::from_secs(10);
/// Time after which others take over.
const LAPSE: Duration = Duration::from_secs(12);
/// Time between polls.
const STEP: Duration = Duration::from_millis(500);

/// A database, and the clock of its instances.
struct Cluster {
    url: String,
    /// Milliseconds since `begun_at`.
    elapsed: Arc<AtomicU64>,
    begun_at: BootTime,
}

struct Instance {
    database: Database,
    ownership: PostgresOwnership,
    ledger: PostgresLedger,
    confirmed: u64,
}

impl Cluster {
    fn new(url: String) -> Self {
        Self {
            url,
            elapsed: Arc::default(),
            begun_at: BootTime::now(),
        }
    }

    fn now(&self) -> BootTime {
        let elapsed = self.elapsed.load(Ordering::Relaxed);
        self.begun_at + Duration::from_millis(elapsed)
    }

    fn advance(&self, duration: Duration) {
        let millis = duration.as_millis() as u64;
        self.elapsed.fetch_add(millis, Ordering::Relaxed);
    }

    async fn start(&self) -> Checked<Instance> {
        self.start_with(PARTITIONS).await
    }

    async fn start_with(&self, partitions: Partition) -> Checked<Instance> {
        let (database, id) = (testing::open(&self.url).await, InstanceId::random());
        let (elapsed, begun_at) = (Arc::clone(&self.elapsed), self.begun_at);
        let clock =
            Arc::new(move || begun_at + Duration::from_millis(elapsed.load(Ordering::Relaxed)));
        let options = OwnershipOptions {
            partitions,
            lease: LEASE,
            clock,
            keys: Vec::new(),
        };
        let ownership = PostgresOwnership::open(database.clone(), id, options);
        Ok(Instance {
            ownership: call("open", ownership).await?,
            ledger: PostgresLedger::new(database.clone(), id, Duration::ZERO),
            database,
            confirmed: 0,
        })
    }

    /// Polls instances as time passes, giving back what others are to own. Returns their last
    /// memberships.
    async fn run(&self, instances: &[&Instance], duration: Duration) -> Checked<Vec<Membership>> {
        let until = self.now() + duration;
        loop {
            let mut memberships = Vec::new();
            for instance in instances {
                memberships.push(instance.poll_and_release().await?);
            }
            if self.now() >= until {
                return Ok(memberships);
            }
            self.advance(STEP);
        }
    }
}

impl Instance {
    async fn poll(&self) -> Checked<Membership> {
        call("poll", self.ownership.poll(self.confirmed)).await
    }

    async fn poll_and_release(&self) -> Checked<Membership> {
        let mut membership = self.poll().await?;
        let is_released = |lease: &Lease| membership.to_release.contains(&lease.partition);
        let (released, kept): (Vec<Lease>, Vec<Lease>) = membership
            .leases
            .iter()
            .partition(|lease| is_released(lease));
        call("release", self.ownership.release(&released)).await?;
        membership.leases = kept;
        Ok(membership)
    }

    /// Writes an anchor.
    async fn settle(&self, lease: Lease) -> Result<(), StoreError> {
        let anchor = Anchor {
            position: Position(7),
            entry_id: [7; 16],
        };
        self.ledger.settle(lease, Vec::new(), Some(anchor)).await
    }
}

/// Partitions with their epochs.
fn epochs(membership: &Membership) -> BTreeMap<Partition, u64> {
    let leases = membership.leases.iter();
    leases.map(|lease| (lease.partition, lease.epoch)).collect()
}

/// Checks that the memberships are apart, and are of all partitions.
fn check_whole(memberships: &[Membership], partitions: Partition) -> Checked {
    let mut all: Vec<Partition> = memberships
        .iter()
        .flat_map(|one| one.leases.iter().map(|lease| lease.partition))
        .collect();
    all.sort_unstable();
    ensure!(
        all.iter().copied().eq(0..partitions),
        "the owned partitions are {all:?}"
    );
    Ok(())
}

/// Runs a check on an empty database, if there is a PostgreSQL.
async fn on_cluster(check: impl AsyncFn(Cluster) -> Checked) {
    let Some(url) = testing::migrated().await else {
        return;
    };
    assert_eq!(check(Cluster::new(url)).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_balanced_over_instances() {
    on_cluster(async |cluster| {
        let (a, b) = (cluster.start_with(64).await?, cluster.start_with(64).await?);
        // Both start at once.
        let (first, second) = tokio::join!(a.poll(), b.poll());
        let at_once = [first?, second?];
        let owned = epochs(&at_once[0]);
        ensure!(
            at_once[1]
                .leases
                .iter()
                .all(|lease| !owned.contains_key(&lease.partition)),
            "two instances that start at once own {at_once:?}"
        );
        let c = cluster.start_with(64).await?;
        let memberships = cluster.run(&[&a, &b, &c], Duration::from_secs(5)).await?;
        check_whole(&memberships, 64)?;
        for membership in &memberships {
            ensure!(
                membership.instances == 3 && membership.to_release.is_empty(),
                "after a while {membership:?}"
            );
            // Four standard deviations of a fair distribution.
            ensure!(
                (6..=37).contains(&membership.leases.len()),
                "one of three owns {} of 64",
                membership.leases.len()
            );
        }
        let before: Vec<_> = memberships.iter().map(epochs).collect();
        let later = cluster.run(&[&a, &b, &c], Duration::from_secs(60)).await?;
        ensure!(
            later.iter().map(epochs).eq(before),
            "partitions move while nothing happens"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_instance_loses_its_partitions_after_its_lease() {
    on_cluster(async |cluster| {
        let (a, b) = (cluster.start().await?, cluster.start().await?);
        let memberships = cluster.run(&[&a, &b], Duration::from_secs(5)).await?;
        check_whole(&memberships, PARTITIONS)?;
        let [of_a, of_b] = &memberships[..] else {
            return Err("two polls".to_owned());
        };
        let until = of_a.until.ok_or("no end of the lease")?;
        let owned = epochs(of_a);
        ensure!(!owned.is_empty(), "one of two instances owns nothing");
        // The first begins to be stopped here.
        let stopped_at = cluster.now();
        let taken = loop {
            cluster.advance(STEP);
            let membership = b.poll().await?;
            if membership.leases.len() > of_b.leases.len() {
                break membership;
            }
            ensure!(
                cluster.now().since(stopped_at) < LAPSE + LEASE / 3,
                "nothing was taken over"
            );
        };
        ensure!(
            cluster.now().since(until) >= Duration::from_secs(2),
            "a takeover {:?} after the end of the lease",
            cluster.now().since(until)
        );
        check_whole(std::slice::from_ref(&taken), PARTITIONS)?;
        ensure!(taken.instances == 1, "{} instances", taken.instances);
        for (partition, epoch) in epochs(&taken) {
            let before = owned.get(&partition);
            ensure!(
                before.is_none_or(|before| epoch == before + 1),
                "epoch {epoch} of partition {partition} follows {before:?}"
            );
        }
        // It goes on.
        for lease in &of_a.leases {
            let answer = a.settle(*lease).await;
            ensure!(
                matches!(answer, Err(StoreError::Fenced)),
                "a write of the former owner is answered by {answer:?}"
            );
            let answer = call("load", a.ledger.load(*lease)).await;
            ensure!(answer.is_err(), "the former owner loads {answer:?}");
        }
        for lease in &taken.leases {
            call("settle", b.settle(*lease)).await?;
        }
        let membership = a.poll().await?;
        ensure!(
            membership.leases.is_empty() && membership.until > Some(cluster.now()),
            "the former owner polls {membership:?}"
        );
        let memberships = cluster.run(&[&a, &b], Duration::from_secs(5)).await?;
        check_whole(&memberships, PARTITIONS)?;
        ensure!(
            memberships.iter().all(|one| !one.leases.is_empty()),
            "one of two instances owns nothing"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_database_moves_nothing() {
    on_cluster(async |cluster| {
        let (a, b) = (cluster.start().await?, cluster.start().await?);
        let before = cluster.run(&[&a, &b], Duration::from_secs(5)).await?;
        let tx = call("begin", a.database.begin()).await?;
        let lock = "LOCK TABLE instance IN ACCESS EXCLUSIVE MODE";
        call("lock", tx.execute_unprepared(lock)).await?;
        for _ in 0..2 {
            cluster.advance(LAPSE);
            let (of_a, of_b) = tokio::join!(a.ownership.poll(0), b.ownership.poll(0));
            ensure!(
                of_a.is_err() && of_b.is_err(),
                "polls of a stalled database are answered by {of_a:?} and {of_b:?}"
            );
        }
        drop(tx);
        cluster.run(&[&b, &a], STEP).await?;
        // Neither polls for a long time.
        cluster.advance(10 * LAPSE);
        let memberships = [
            b.poll().await?,
            b.poll().await?,
            a.poll().await?,
            b.poll().await?,
        ];
        ensure!(
            memberships.iter().all(|one| one.to_release.is_empty()),
            "after a stall partitions are to move: {memberships:?}"
        );
        let after = cluster.run(&[&a, &b], Duration::from_secs(5)).await?;
        ensure!(
            before.iter().map(epochs).eq(after.iter().map(epochs)),
            "a stall moved partitions from {before:?}\nto {after:?}"
        );
        ensure!(
            after.iter().all(|one| one.until > Some(cluster.now())),
            "the lease is not renewed"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poll_that_failed_does_not_extend_the_lease() {
    on_cluster(async |cluster| {
        let a = cluster.start().await?;
        let first = a.poll().await?;
        ensure!(
            first.until == Some(cluster.now() + LEASE),
            "a new lease ends at {:?}",
            first.until
        );
        cluster.advance(LEASE / 5);
        let second = a.poll().await?;
        ensure!(
            second.until == first.until,
            "the lease is renewed too early"
        );
        let sent_at = cluster.now() + LEASE / 5;
        cluster.advance(LEASE / 5);
        let third = a.poll().await?;
        ensure!(
            third.until == Some(sent_at + LEASE),
            "a renewal is answered by {:?}",
            third.until
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_handed_over_at_once() {
    on_cluster(async |cluster| {
        let a = cluster.start().await?;
        let alone = a.poll().await?;
        check_whole(std::slice::from_ref(&alone), PARTITIONS)?;
        let b = cluster.start().await?;
        let of_b = b.poll().await?;
        ensure!(of_b.leases.is_empty(), "a new instance owns {of_b:?}");
        let of_a = a.poll().await?;
        ensure!(!of_a.to_release.is_empty(), "nothing is to move");
        let released: Vec<Lease> = of_a
            .leases
            .iter()
            .filter(|lease| of_a.to_release.contains(&lease.partition))
            .copied()
            .collect();
        // Under another epoch nothing is released.
        let lapsed: Vec<Lease> = released
            .iter()
            .map(|lease| Lease {
                epoch: lease.epoch - 1,
                ..*lease
            })
            .collect();
        call("release", a.ownership.release(&lapsed)).await?;
        ensure!(
            b.poll().await?.leases.is_empty(),
            "a lapsed lease is released"
        );
        for lease in &released {
            call("settle", a.settle(*lease)).await?;
        }
        call("release", a.ownership.release(&released)).await?;
        let answer = a.settle(released[0]).await;
        ensure!(
            matches!(answer, Err(StoreError::Fenced)),
            "a write after the release is answered by {answer:?}"
        );
        let memberships = [a.poll().await?, b.poll().await?];
        check_whole(&memberships, PARTITIONS)?;
        for lease in &memberships[1].leases {
            let loaded = call("load", b.ledger.load(*lease)).await?;
            let position = loaded.anchor.map(|anchor| anchor.position);
            ensure!(
                position == Some(Position(7)),
                "the new owner loads the anchor {position:?}"
            );
        }
        call("leave", a.ownership.leave()).await?;
        check_whole(&[b.poll().await?], PARTITIONS)?;
        let answer = a.ownership.poll(0).await;
        ensure!(
            matches!(answer, Err(StoreError::Closed)),
            "a poll after leaving is answered by {answer:?}"
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_instance_waits_for_the_lease_of_the_killed_one() {
    on_cluster(async |cluster| {
        let a = cluster.start().await?;
        a.poll().await?;
        drop(a);
        let a = cluster.start().await?;
        let before = cluster.run(&[&a], LAPSE - 2 * STEP).await?;
        ensure!(
            before[0].leases.is_empty() && before[0].instances == 2,
            "before the lease of the killed instance has lapsed {before:?}"
        );
        let after = cluster.run(&[&a], 3 * STEP).await?;
        check_whole(&after, PARTITIONS)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_living_instance_confirms() {
    on_cluster(async |cluster| {
        let (mut a, mut b) = (cluster.start().await?, cluster.start().await?);
        (a.confirmed, b.confirmed) = (5, 3);
        cluster.run(&[&a, &b], STEP).await?;
        let confirmed = a.poll().await?.confirmed;
        ensure!(confirmed == 3, "of 5 and 3 {confirmed} is confirmed");
        b.confirmed = 7;
        b.poll().await?;
        let confirmed = a.poll().await?.confirmed;
        ensure!(confirmed == 5, "of 5 and 7 {confirmed} is confirmed");
        a.confirmed = 9;
        let c = cluster.start().await?;
        c.poll().await?;
        let confirmed = a.poll().await?.confirmed;
        ensure!(confirmed == 0, "a new instance confirmed {confirmed}");
        // Those that stopped do not count after their lease.
        let last = cluster.run(&[&a], LAPSE - LEASE / 2).await?;
        ensure!(
            last[0].confirmed == 0,
            "{} is confirmed early",
            last[0].confirmed
        );
        let last = cluster.run(&[&a], LAPSE).await?;
        ensure!(
            last[0].confirmed == 9 && last[0].instances == 1,
            "of one instance with 9 {} is confirmed",
            last[0].confirmed
        );
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_transaction_does_not_hold_up_a_takeover() {
    on_cluster(async |cluster| {
        let (a, b) = (cluster.start().await?, cluster.start().await?);
        let before = cluster.run(&[&a, &b], Duration::from_secs(5)).await?;
        let frozen = before[0].leases.first().ok_or("nothing owned")?.partition;
        let tx = call("begin", a.database.begin()).await?;
        let lock = format!("SELECT FROM partition WHERE partition = {frozen} FOR NO KEY UPDATE");
        call("lock", tx.execute_unprepared(&lock)).await?;
        let after = cluster.run(&[&b], LAPSE + 2 * STEP).await?;
        ensure!(
            after[0].leases.len() == PARTITIONS as usize - 1,
            "with one partition locked {after:?}"
        );
        // The session of the transaction is ended earlier than it ends by itself.
        let ended = async {
            loop {
                sleep(Duration::from_millis(200)).await;
                cluster.advance(STEP);
                let membership = b.poll().await?;
                if membership.leases.len() == PARTITIONS as usize {
                    return Ok::<_, String>(membership);
                }
            }
        };
        let ended = timeout(Duration::from_secs(8), ended).await;
        let membership = ended.map_err(|_| "the transaction holds up a takeover")??;
        check_whole(&[membership], PARTITIONS)?;
        ensure!(
            tx.commit().await.is_err(),
            "the frozen transaction committed"
        );
        Ok(())
    })
    .await;
}

/// A server of its own, as its settings are changed.
async fn server() -> Option<Postgres> {
    let options = PostgresOptions {
        fast: true,
        ..PostgresOptions::default()
    };
    require(Postgres::start_with(options).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_standby_does_not_end_leases() {
    let Some(server) = server().await else {
        return;
    };
    let cluster = Cluster::new(testing::empty(&server).await);
    let check = async {
        let (a, b) = (cluster.start().await?, cluster.start().await?);
        let before = cluster.run(&[&a, &b], Duration::from_secs(5)).await?;
        let of_a = epochs(&before[0]);
        server.set("synchronous_standby_names", "lost").await;
        server
            .until("SELECT (current_setting('synchronous_standby_names') = 'lost')::int")
            .await;
        // Renewals and settlements do not wait for it; takeovers do, and are in doubt.
        cluster.run(&[&a, &b], 2 * LEASE).await?;
        call("settle", b.settle(before[1].leases[0])).await?;
        call("leave", a.ownership.leave()).await?;
        let later = cluster.run(&[&b], 2 * LEASE).await?;
        ensure!(
            epochs(&later[0]) == epochs(&before[1]) && later[0].until > Some(cluster.now()),
            "without the standby {later:?}"
        );
        server.set("synchronous_standby_names", "").await;
        let whole = async {
            loop {
                let membership = cluster.run(&[&b], STEP).await?.remove(0);
                if membership.leases.len() == PARTITIONS as usize {
                    return Ok::<_, String>(membership);
                }
            }
        };
        let after = timeout(HANGING, whole).await;
        let after = epochs(&after.map_err(|_| "nothing is taken over afterwards")??);
        for (partition, epoch) in of_a {
            ensure!(
                after.get(&partition) == Some(&(epoch + 1)),
                "epoch {:?} of partition {partition} follows {epoch}",
                after.get(&partition)
            );
        }
        Ok(())
    };
    assert_eq!(check.await, Ok::<(), String>(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_fences_what_was_loaded_before() {
    let Some(primary) = server().await else {
        return;
    };
    let standby = primary.add_standby().await;
    let name = "promoted";
    primary.create_database(name).await;
    let hosts = [primary.port(), standby.port()].map(|port| format!("127.0.0.1:{port}"));
    let cluster = Cluster::new(format!("postgres://postgres@{}/{name}", hosts.join(",")));
    let check = async {
        let a = cluster.start().await?;
        let before = a.poll().await?;
        let lease = before.leases[0];
        call("load", a.ledger.load(lease)).await?;
        call("settle", a.settle(lease)).await?;
        primary.kill().await;
        standby.promote().await;
        let after = async {
            loop {
                cluster.advance(STEP);
                if let Ok(membership) = a.ownership.poll(0).await {
                    return membership;
                }
            }
        };
        let after = timeout(HANGING, after).await;
        let after = after.map_err(|_| "no poll after a promotion succeeds")?;
        ensure!(
            after.timeline > before.timeline && epochs(&after) == epochs(&before),
            "after a promotion {after:?}"
        );
        let answer = a.settle(lease).await;
        ensure!(
            matches!(answer, Err(StoreError::Fenced)),
            "a write with what was loaded before a promotion is answered by {answer:?}"
        );
        call("load", a.ledger.load(lease)).await?;
        call("settle", a.settle(lease)).await
    };
    assert_eq!(check.await, Ok::<(), String>(()));
}
