//! Levels of the service at one moment.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use crate::domain::status::{Reason, Status};

static LATEST: LazyLock<Mutex<Arc<Sample>>> = LazyLock::new(Mutex::default);

/// Replaces the sample that is served and exported.
pub fn publish(sample: Sample) {
    *LATEST.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(sample);
}

/// The sample that was published last.
pub fn latest() -> Arc<Sample> {
    Arc::clone(&LATEST.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Levels of the service at one moment, of the partitions that this instance delivers for.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Pending events.
    pub pending_events: u64,
    /// Their bytes, before compression.
    pub pending_bytes: u64,
    /// Age of the oldest of them; zero if there are none.
    pub oldest_pending: Duration,
    /// Pending events that have left memory for the backlog.
    pub backlog_events: u64,
    /// Their bytes, before compression.
    pub backlog_bytes: u64,
    /// Bytes of accepted events in memory.
    pub tail_bytes: u64,
    /// Budget of `tail_bytes`.
    pub tail_limit_bytes: u64,
    /// Bytes of the backlogs of all instances as they are stored, and the limit on them; None if
    /// nothing is shared.
    pub stored_backlogs: Option<(u64, u64)>,
    /// Number of integrations with each status and reason that occurs.
    pub integrations: Vec<(Status, Option<Reason>, u64)>,
    /// Organizations whose events wait too long, the longest first.
    pub worst: Vec<Organization>,
    /// Bytes of the entries of the log that are not settled.
    pub log_bytes: u64,
    /// Entries of each partition of this instance that its owner has not read.
    pub partition_lag: Vec<(u32, u64)>,
    /// Time since the oldest change that the ledger does not have.
    pub flush_age: Duration,
    /// Partitions of the log.
    pub partitions: u64,
    /// Partitions that this instance delivers for.
    pub partitions_owned: u64,
    /// Partitions of this instance that nobody delivers, because their log is corrupt.
    pub partitions_given_up: u64,
    /// Time until the lease of this instance ends; None if nothing is shared.
    pub lease_left: Option<Duration>,
    /// Conditions of `/readyz`.
    pub checks: Vec<Check>,
    /// Health of `delivery` and `publish`, as gRPC's health service has it.
    pub serving: Vec<Check>,
    /// The embedded database; None with shared storage.
    pub files: Option<Files>,
    /// This process.
    pub process: Process,
}

/// A condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name, of a closed set.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: bool,
}

/// An organization whose events wait.
#[derive(Clone, Debug)]
pub struct Organization {
    /// Its name.
    pub organization_id: Arc<str>,
    /// Status of its integration.
    pub status: Status,
    /// Reason of the status.
    pub reason: Option<Reason>,
    /// Time since which it has the status.
    pub since: Timestamp,
    /// Its pending events.
    pub pending_events: u64,
    /// Their bytes, before compression.
    pub pending_bytes: u64,
    /// Age of the oldest of them.
    pub oldest: Duration,
}

/// Files of the embedded database.
#[derive(Clone, Copy, Debug)]
pub struct Files {
    /// Bytes of the database and its write-ahead log.
    pub database_bytes: u64,
    /// Bytes that the file system has left for this user.
    pub free_bytes: u64,
    /// Bytes of the file system.
    pub disk_bytes: u64,
}

/// This process, as the kernel has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Open file descriptors.
    pub open_files: u64,
    /// Limit on open file descriptors.
    pub max_files: u64,
    /// Bytes of memory in use.
    pub resident_bytes: u64,
    /// CPU time, of user and system.
    pub cpu: Duration,
}
