//! Status streams: a snapshot of the current statuses, then the changes. A subscription is a
//! cursor into the store's changes and buffers one batch of them: its memory is bounded, and a
//! slow subscriber skips intermediate statuses, never the last one.

use std::{collections::VecDeque, time::Duration};

use futures_util::stream::{self, Stream};
use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        integration::Snapshot,
        organization::OrganizationId,
        rights::Rights,
        status::{Reason, Status},
    },
    store::{Change, Changes, Store, Tombstone},
};

/// Time without contact with the database after which subscriptions end.
const MAX_LAPSE: Duration = Duration::from_secs(60);
/// Changes that are read from the store at once.
const BATCH: usize = 64;

/// Source of subscriptions. Cheap to clone.
#[derive(Clone)]
pub struct Watch {
    store: Store,
    heartbeat: Duration,
    stop: CancellationToken,
}

/// Content of a message to a subscriber.
#[derive(Clone, Debug)]
pub enum Update {
    /// The current status of one integration.
    Current(Snapshot),
    /// An integration was deleted.
    Deleted(Tombstone),
    /// A named organization has no integration.
    Absent(OrganizationId),
    /// The snapshot is complete; changes follow.
    Synced,
    /// The resume token cannot be continued; a new snapshot follows.
    Reset,
    /// Nothing has changed since the previous message.
    Heartbeat,
}

/// Update with the token that resumes after it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Argument of [`Watch::subscribe`]: `<history>.<revision>`, opaque to subscribers.
    pub resume_token: String,
    /// Content.
    pub update: Update,
}

/// End of a subscription because the service is shutting down, or has lost contact with its
/// database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

impl Watch {
    /// Creates a source of subscriptions that send a heartbeat when idle and end at `stop`.
    pub fn new(store: Store, heartbeat: Duration, stop: CancellationToken) -> Self {
        Self {
            store,
            heartbeat,
            stop,
        }
    }

    /// Subscribes to the named organizations, or to all if none is named. With a token of an
    /// earlier subscription, the stream begins with the changes since then. Organizations that
    /// the rights do not cover look as if they had no integration.
    pub fn subscribe(
        &self,
        organizations: Vec<OrganizationId>,
        resume_token: &str,
        rights: Rights,
    ) -> impl Stream<Item = Result<Message, Ended>> + Send + use<> {
        let revision = self.store.revision();
        let named = sorted(organizations);
        let wanted = Wanted {
            named: Some(named).filter(|named| !named.is_empty()),
            rights,
        };
        let subscriber = Subscriber::new(self.clone(), wanted, resume_token, revision);
        stream::unfold(Some(subscriber), |subscriber| async {
            let mut subscriber = subscriber?;
            match subscriber.next().await {
                Ok(message) => Some((Ok(message), Some(subscriber))),
                Err(ended) => Some((Err(ended), None)),
            }
        })
    }
}

/// Organizations of a subscription.
struct Wanted {
    /// Sorted; None means all.
    named: Option<Box<[OrganizationId]>>,
    rights: Rights,
}

impl Wanted {
    fn has(&self, organization_id: &OrganizationId) -> bool {
        let is_named = self.named.as_ref();
        is_named.is_none_or(|named| named.binary_search(organization_id).is_ok())
            && self.rights.cover(organization_id.as_str())
    }
}

struct Subscriber {
    watch: Watch,
    wanted: Wanted,
    /// Number of organizations that were searched for the snapshot. Their ids are not queued all
    /// at once, because a subscriber may name many that have no integration.
    searched: usize,
    revision: watch::Receiver<u64>,
    /// History that the revisions belong to.
    history: String,
    /// Revision up to which everything was queued.
    cursor: u64,
    /// Newest revision at the start of the snapshot.
    target: u64,
    /// The stream began with a snapshot rather than a resume token: the subscriber knows of
    /// no integration that was deleted up to `target`.
    from_snapshot: bool,
    synced: bool,
    queue: VecDeque<Message>,
    next_heartbeat: Instant,
}

impl Subscriber {
    fn new(
        watch: Watch,
        wanted: Wanted,
        resume_token: &str,
        mut revision: watch::Receiver<u64>,
    ) -> Self {
        let target = *revision.borrow_and_update();
        let next_heartbeat = Instant::now() + watch.heartbeat;
        let mut subscriber = Self {
            history: watch.store.history(),
            watch,
            wanted,
            searched: 0,
            revision,
            cursor: 0,
            target,
            from_snapshot: false,
            synced: false,
            queue: VecDeque::new(),
            next_heartbeat,
        };
        match subscriber.parse_token(resume_token) {
            // The token of Reset and Absent, which precede the snapshot.
            Some(0) => subscriber.start_snapshot(),
            Some(revision) => subscriber.cursor = revision,
            None if resume_token.is_empty() => subscriber.start_snapshot(),
            None => subscriber.reset(),
        }
        subscriber
    }

    /// Returns the revision of a token, if it is of this database and not in the future.
    fn parse_token(&self, token: &str) -> Option<u64> {
        let (database, revision) = token.split_once('.')?;
        let revision = revision.parse().ok()?;
        (database == self.history && revision <= self.target).then_some(revision)
    }

    fn push(&mut self, revision: u64, update: Update) {
        let resume_token = format!("{}.{revision}", self.history);
        self.queue.push_back(Message {
            resume_token,
            update,
        });
    }

    fn reset(&mut self) {
        self.push(0, Update::Reset);
        self.start_snapshot();
    }

    fn start_snapshot(&mut self) {
        self.target = *self.revision.borrow_and_update();
        self.cursor = 0;
        self.from_snapshot = true;
        self.synced = false;
        self.searched = 0;
    }

    /// Queues named organizations that have no integration, or look so to the caller. Returns
    /// false once all were searched.
    fn search_absent(&mut self) -> bool {
        while self.queue.len() < BATCH {
            let named = self.wanted.named.as_deref().unwrap_or_default();
            let Some(organization) = named.get(self.searched).cloned() else {
                break;
            };
            self.searched += 1;
            let id = self.watch.store.id_of(organization.as_str());
            if id.is_none() || !self.wanted.has(&organization) {
                self.push(0, Update::Absent(organization));
            }
        }
        !self.queue.is_empty()
    }

    async fn next(&mut self) -> Result<Message, Ended> {
        loop {
            if let Some(message) = self.queue.pop_front() {
                self.next_heartbeat = Instant::now() + self.watch.heartbeat;
                return Ok(message);
            }
            if self.watch.stop.is_cancelled() {
                return Err(Ended);
            }
            if self.read_store() {
                if self.queue.is_empty() {
                    // A long run of changes may be of other organizations.
                    yield_now().await;
                }
                continue;
            }
            let Watch { store, stop, .. } = self.watch.clone();
            tokio::select! {
                () = stop.cancelled() => return Err(Ended),
                // Another instance knows what has changed.
                () = store.lapsed_for(MAX_LAPSE) => return Err(Ended),
                changed = self.revision.changed() => {
                    // The store outlives its subscribers.
                    if changed.is_err() {
                        return Err(Ended);
                    }
                }
                () = sleep_until(self.next_heartbeat) => {
                    self.push(self.cursor, Update::Heartbeat);
                }
            }
        }
    }

    /// Queues what the store has after the cursor. Returns false if there is nothing.
    fn read_store(&mut self) -> bool {
        let history = self.watch.store.history();
        if history != self.history {
            // Changes that the subscriber knows may have been taken back.
            self.history = history;
            self.reset();
            return true;
        }
        if self.from_snapshot && self.search_absent() {
            return true;
        }
        if self.from_snapshot && self.cursor < self.target && self.wanted.named.is_some() {
            self.read_named();
            return true;
        }
        let keep = |organization: &OrganizationId| self.wanted.has(organization);
        let Changes {
            forgotten_to,
            seen_to,
            changes,
        } = self.watch.store.changes_after(self.cursor, BATCH, keep);
        // A snapshot covers all deletions up to `target`.
        let covered_to = match self.from_snapshot {
            true => self.cursor.max(self.target),
            false => self.cursor,
        };
        if covered_to < forgotten_to {
            self.reset();
            return true;
        }
        let more = seen_to > self.cursor;
        for (revision, change) in changes {
            match change {
                Change::Current(snapshot) => self.push(revision, Update::Current(snapshot)),
                Change::Deleted(_) if self.from_snapshot && revision <= self.target => {}
                Change::Deleted(tombstone) => self.push(revision, Update::Deleted(tombstone)),
            }
        }
        self.cursor = seen_to;
        // Only once the store has nothing more: an integration that changed during the snapshot
        // has a revision above `target`.
        if !more && !self.synced {
            self.synced = true;
            self.cursor = self.cursor.max(self.target);
            self.push(self.cursor, Update::Synced);
        }
        more || !self.queue.is_empty()
    }

    /// Queues the named integrations of the snapshot, without iterating over all others.
    fn read_named(&mut self) {
        let wanted = self.cursor + 1..=self.target;
        let store = &self.watch.store;
        let named = self.wanted.named.iter().flatten();
        let visible = named.filter(|organization| self.wanted.has(organization));
        let current = store.current_of(visible, wanted, BATCH);
        self.cursor = match current.last() {
            Some(last) if current.len() == BATCH => last.revision,
            _ => self.target,
        };
        for snapshot in current {
            self.push(snapshot.revision, Update::Current(snapshot));
        }
    }
}

/// Organizations in order, each once, in one allocation of their number.
fn sorted(mut organizations: Vec<OrganizationId>) -> Box<[OrganizationId]> {
    organizations.sort_unstable();
    organizations.dedup();
    organizations.into_boxed_slice()
}

/// Logs each change of status, for operators.
pub async fn log_changes(watch: Watch) {
    use futures_util::StreamExt;
    let newest = format!(
        "{}.{}",
        watch.store.history(),
        *watch.store.revision().borrow()
    );
    let mut updates = Box::pin(watch.subscribe(Vec::new(), &newest, Rights::UNLIMITED));
    while let Some(Ok(message)) = updates.next().await {
        match message.update {
            Update::Current(snapshot) => log_status(&snapshot),
            Update::Deleted(tombstone) => tracing::info!(
                organization_id = tombstone.organization_id.as_str(),
                integration_id = %tombstone.integration_id,
                "integration deleted"
            ),
            Update::Absent(_) | Update::Synced | Update::Reset | Update::Heartbeat => {}
        }
    }
}

fn log_status(snapshot: &Snapshot) {
    let organization_id = snapshot.integration.organization_id.as_str();
    let integration_id = snapshot.integration.integration_id;
    let status = &snapshot.status;
    match (status.status, status.reason.map(Reason::message)) {
        (Status::Unauthorized | Status::Failing, reason) => tracing::warn!(
            organization_id,
            %integration_id,
            status = status.status.as_str(),
            reason = status.reason.map(Reason::as_str),
            aws_error_code = status.aws_error_code.as_deref(),
            aws_request_id = status.aws_request_id.as_deref(),
            "integration status: {}",
            reason.unwrap_or_default()
        ),
        (Status::Unknown | Status::Active, _) => tracing::info!(
            organization_id,
            %integration_id,
            status = status.status.as_str(),
            "integration status"
        ),
    }
}
