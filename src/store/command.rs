//! What the writer is asked to do.

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use super::{
    StoreError,
    draft::Observed,
    gaps::{GiveUp, GivenUp},
    tail::Coming,
    work::Settled,
};
use crate::domain::{
    arn::{RoleArn, StreamArn},
    bitmap,
    delivery::Settlement,
    external_id::ExternalId,
    integration::{IntegrationKey, Progress, Snapshot},
    map::Map,
    organization::OrganizationId,
    segment::Segments,
};

pub(super) type Reply<T, E = StoreError> = oneshot::Sender<Result<T, E>>;

pub(super) enum Command {
    Append {
        segments: Segments,
        /// Held until the answer is given.
        held: Held,
        reply: Reply<u32>,
    },
    Configure {
        configure: Box<Configure>,
        reply: Reply<Snapshot, ConfigureError>,
    },
    Delete {
        organization_id: OrganizationId,
        caller: Box<str>,
        reply: Reply<Option<Deleted>>,
    },
    /// The new external ID works: the one before is no longer needed.
    RetirePrevious {
        key: IntegrationKey,
        version: u64,
    },
    GiveUp {
        ask: GiveUp,
        reply: Reply<GivenUp>,
    },
    Issue {
        organization_id: OrganizationId,
        external_id: ExternalId,
        reply: Reply<()>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Command {
    /// Whether it is for an integration as it is by then, not for the log alone.
    pub(super) fn is_change(&self) -> bool {
        !matches!(self, Self::Append { .. })
    }
}

/// What events take before they are durable.
pub(super) struct Held {
    pub(super) _memory: Option<OwnedSemaphorePermit>,
    pub(super) _coming: Coming,
}

/// What an attempt achieved.
#[derive(Debug)]
pub struct Settle {
    /// The integration.
    pub key: IntegrationKey,
    /// What of its log is accepted.
    pub settlement: Settlement,
    /// What the attempt says about its status.
    pub observed: Option<Observed>,
    /// Who is told once it is durable.
    pub tells: Tells,
}

/// Who is told of a settlement once it is durable.
#[derive(Debug)]
pub enum Tells {
    /// Nobody.
    Nobody,
    /// The worker, by [`Attention::settled`](super::Attention::settled).
    Worker,
    /// Whoever waits for this. It fails where the store has closed before.
    Waiting(oneshot::Sender<()>),
}

/// What to configure.
#[derive(Debug)]
pub struct Configure {
    /// Whose.
    pub organization_id: OrganizationId,
    /// Where the events go.
    pub stream_arn: StreamArn,
    /// The role to assume.
    pub role_arn: RoleArn,
    /// None keeps the stored one.
    pub external_id: Option<ExternalId>,
    /// The stored one serves until an AssumeRole with the new one works.
    pub keep_previous: bool,
    /// Only external IDs that were issued to the organization will do.
    pub issued_only: bool,
    /// Where set, the current etag.
    pub etag: Option<String>,
    /// Who asked, for the audit.
    pub caller: Box<str>,
}

/// Why a Configure changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The etag is not the current one.
    #[error("the etag is not the current one: get the integration and decide anew")]
    EtagMismatch,
    /// There is no integration yet, and so no stored external ID.
    #[error("an external ID is required to create an integration")]
    ExternalIdRequired,
    /// It was not issued to the organization, and only issued ones will do.
    #[error("the external ID was not issued to this organization")]
    ExternalIdNotIssued,
    /// Another organization has it.
    #[error("another organization uses this external ID: choose a new one")]
    ExternalIdInUse,
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was deleted.
#[derive(Clone, Copy, Debug)]
pub struct Deleted {
    /// The store's number.
    pub key: IntegrationKey,
    /// The integration.
    pub integration_id: Uuid,
    /// The final counts; nothing is pending.
    pub progress: Progress,
}

/// Settlements that are not durable yet, merged an integration.
#[derive(Default)]
pub(super) struct Unsettled {
    pub(super) by_key: Map<IntegrationKey, UnsettledOne>,
    pub(super) count: usize,
    /// Integrations with observations that nobody has looked at.
    pub(super) unseen: Vec<IntegrationKey>,
    /// Some of them change a status.
    pub(super) is_news: bool,
}

#[derive(Default)]
pub(super) struct UnsettledOne {
    pub(super) finished: Vec<i64>,
    pub(super) partial: Map<i64, (Vec<u8>, u64)>,
    pub(super) delivered: u64,
    pub(super) delivered_bytes: u64,
    pub(super) observed: Vec<Observed>,
    /// Settlements of which the worker is told, and those of them that change the log.
    pub(super) told: usize,
    pub(super) saved: usize,
    pub(super) waiting: Vec<oneshot::Sender<()>>,
}

impl Unsettled {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn add(&mut self, settle: Settle) {
        self.count += 1;
        let one = self.by_key.entry(settle.key).or_default();
        match settle.tells {
            Tells::Nobody => {}
            Tells::Worker => {
                one.told += 1;
                one.saved += usize::from(settle.settlement.changes_the_log());
            }
            Tells::Waiting(done) => one.waiting.push(done),
        }
        one.delivered += settle.settlement.accepted;
        one.delivered_bytes += settle.settlement.accepted_bytes;
        for id in settle.settlement.finished {
            one.partial.remove(&id);
            one.finished.push(id);
        }
        for (id, bitmap, pending_bytes) in settle.settlement.partial {
            let (known, bytes) = one.partial.entry(id).or_insert((Vec::new(), pending_bytes));
            *known = bitmap::union(known, &bitmap);
            *bytes = pending_bytes.min(*bytes);
        }
        if settle.observed.is_some() {
            self.unseen.push(settle.key);
        }
        if let Some(observed) = settle.observed {
            observed.put_behind(&mut one.observed);
        }
    }

    /// Forgets what has become durable, and tells who waits for it. Returns what the worker
    /// is to be told.
    pub(super) fn settled(&mut self) -> impl Iterator<Item = Settled> {
        self.count = 0;
        self.unseen.clear();
        self.is_news = false;
        self.by_key.drain().map(|(key, one)| {
            for done in one.waiting {
                // Who no longer waits does not need to know.
                let _gone = done.send(());
            }
            Settled {
                key,
                count: one.told,
                saved: one.saved,
            }
        })
    }
}
