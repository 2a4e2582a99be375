//! Errors of the storage contract. Engines translate their own errors into these.

/// Reason that a request to the store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No capacity is left for events. Nothing of the request was kept.
    #[error("the storage is full")]
    Full,
    /// The storage does not work at the moment. Nothing of the request was kept.
    #[error("the storage failed: {0}")]
    Failed(String),
    /// The storage did not confirm the request. Parts of it may be kept.
    #[error("the storage did not confirm the request: {0}")]
    Unavailable(String),
    /// The stored data contradict themselves, and the storage cannot be used.
    #[error("the storage is corrupt: {0}")]
    Corrupt(String),
    /// The stored events of one chunk of an integration's backlog cannot be read. Others can.
    #[error("the stored events from sequence {first_sequence} are damaged")]
    DamagedChunk {
        /// Sequence of the first event of the chunk.
        first_sequence: u64,
    },
    /// Another instance owns the partition. Nothing of the request was kept.
    #[error("another instance has taken over the partition")]
    Fenced,
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
    /// An external ID cannot be encrypted, or a stored one cannot be decrypted.
    #[error("the external ID cannot be encrypted or decrypted with this service's key")]
    Sealing,
}

/// Reason that a Configure or a Delete changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The etag is not the current one.
    #[error("the etag is not the current one: get the integration and decide anew")]
    EtagMismatch,
    /// There is no integration yet, and so no stored external ID.
    #[error("an external ID is required to create an integration")]
    ExternalIdRequired,
    /// The external ID was not issued to the organization, and only issued ones are allowed.
    #[error("the external ID was not issued to this organization")]
    ExternalIdNotIssued,
    /// Another organization uses the external ID, or it was issued to it.
    #[error("another organization uses this external ID: choose a new one")]
    ExternalIdInUse,
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reason that no external ID was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The organization has as many as may be issued and not used.
    #[error("the organization has too many external IDs that are not used")]
    TooMany,
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reason that the store ended by itself. Requests that were not acknowledged before may or may
/// not be on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// A sync failed. After that, the operating system may show data that never reached the disk,
    /// so no later success proves anything: only a new start reads what is on the disk.
    #[error(
        "the disk does not keep what is written ({0}): see that it is sound, and start again; what was acked before is kept"
    )]
    NotSynced(String),
    /// The storage does not serve this instance any more.
    #[error("the storage cannot be used any more ({0}): start again")]
    Lost(String),
    /// The stored data contradict themselves.
    #[error("the database is damaged ({0}): docs/operations.md says how to restore or recover it")]
    Damaged(String),
}
