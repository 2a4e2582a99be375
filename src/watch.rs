//! Status changes to subscribers: what is, then what changes. A subscriber is a
//! cursor into the store's changes; it holds no memory that grows with them.

use std::{collections::HashSet, collections::VecDeque, time::Duration};

use futures_util::stream::{self, Stream};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        integration::Snapshot,
        organization::OrganizationId,
        status::{Reason, Status},
    },
    store::{Change, Changes, Store, Tombstone},
};

/// Changes that one look at the store takes.
const LOOK: usize = 64;

/// Where subscriptions are made. Cheap to clone.
#[derive(Clone)]
pub struct Watch {
    store: Store,
    heartbeat: Duration,
    stop: CancellationToken,
}

/// What a subscriber is told.
#[derive(Clone, Debug)]
pub enum Update {
    /// The current status of one integration.
    Current(Snapshot),
    /// An integration was deleted.
    Deleted(Tombstone),
    /// A named organization has no integration.
    Absent(OrganizationId),
    /// All that was asked for is told.
    Synced,
    /// Forget what was known.
    Reset,
    /// The subscription is alive.
    Heartbeat,
}

/// An update and the token that continues after it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Opaque; for [`Watch::subscribe`].
    pub resume_token: String,
    /// What is told.
    pub update: Update,
}

/// The service is shutting down; subscribe again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

impl Watch {
    /// Subscriptions to a store's changes, with a heartbeat, until `stop`.
    pub fn new(store: Store, heartbeat: Duration, stop: CancellationToken) -> Self {
        Self {
            store,
            heartbeat,
            stop,
        }
    }

    /// Tells the status of the named integrations, or of all where none is named;
    /// with a token of an earlier subscription, what changed since.
    pub fn subscribe(
        &self,
        organizations: Vec<OrganizationId>,
        resume_token: &str,
    ) -> impl Stream<Item = Result<Message, Ended>> + Send + use<> {
        let revision = self.store.revision();
        let subscriber = Subscriber::new(self.clone(), organizations, resume_token, revision);
        stream::unfold(Some(subscriber), |subscriber| async {
            let mut subscriber = subscriber?;
            match subscriber.next().await {
                Ok(message) => Some((Ok(message), Some(subscriber))),
                Err(ended) => Some((Err(ended), None)),
            }
        })
    }
}

struct Subscriber {
    watch: Watch,
    /// Empty means all.
    organizations: HashSet<OrganizationId>,
    revision: watch::Receiver<u64>,
    /// All changes up to here are told.
    cursor: u64,
    /// The newest revision at the start.
    target: u64,
    /// Nothing was told before `target`, so that deletions up to it do not matter.
    fresh: bool,
    synced: bool,
    waiting: VecDeque<Message>,
    next_heartbeat: Instant,
}

impl Subscriber {
    fn new(
        watch: Watch,
        organizations: Vec<OrganizationId>,
        resume_token: &str,
        mut revision: watch::Receiver<u64>,
    ) -> Self {
        let target = *revision.borrow_and_update();
        let next_heartbeat = Instant::now() + watch.heartbeat;
        let mut subscriber = Self {
            watch,
            organizations: organizations.into_iter().collect(),
            revision,
            cursor: 0,
            target,
            fresh: false,
            synced: false,
            waiting: VecDeque::new(),
            next_heartbeat,
        };
        match subscriber.read_token(resume_token) {
            // Given before anything was told but who is absent, perhaps not all of it.
            Some(0) => subscriber.start_over(),
            Some(revision) => subscriber.cursor = revision,
            None if resume_token.is_empty() => subscriber.start_over(),
            None => subscriber.reset(),
        }
        subscriber
    }

    /// A revision of this database that is not in the future.
    fn read_token(&self, token: &str) -> Option<u64> {
        let (database, revision) = token.split_once('.')?;
        let revision = revision.parse().ok()?;
        (database == self.watch.store.database_id() && revision <= self.target).then_some(revision)
    }

    fn tell(&mut self, revision: u64, update: Update) {
        let resume_token = format!("{}.{revision}", self.watch.store.database_id());
        self.waiting.push_back(Message {
            resume_token,
            update,
        });
    }

    fn reset(&mut self) {
        self.tell(0, Update::Reset);
        self.start_over();
    }

    fn start_over(&mut self) {
        self.target = *self.revision.borrow_and_update();
        self.cursor = 0;
        self.fresh = true;
        self.synced = false;
        let mut absent: Vec<OrganizationId> = self
            .organizations
            .iter()
            .filter(|organization| self.watch.store.key_of(organization.as_str()).is_none())
            .cloned()
            .collect();
        absent.sort();
        for organization in absent {
            self.tell(0, Update::Absent(organization));
        }
    }

    async fn next(&mut self) -> Result<Message, Ended> {
        loop {
            if let Some(message) = self.waiting.pop_front() {
                self.next_heartbeat = Instant::now() + self.watch.heartbeat;
                return Ok(message);
            }
            if self.watch.stop.is_cancelled() {
                return Err(Ended);
            }
            if self.look() {
                continue;
            }
            let stop = self.watch.stop.clone();
            tokio::select! {
                () = stop.cancelled() => return Err(Ended),
                changed = self.revision.changed() => {
                    // The store outlives its subscribers.
                    if changed.is_err() {
                        return Err(Ended);
                    }
                }
                () = sleep_until(self.next_heartbeat) => {
                    self.tell(self.cursor, Update::Heartbeat);
                }
            }
        }
    }

    /// Takes in what the store has after the cursor. False where there is nothing.
    fn look(&mut self) -> bool {
        if self.fresh && self.cursor < self.target && !self.organizations.is_empty() {
            self.look_up();
            return true;
        }
        let organizations = &self.organizations;
        let keep = |organization: &OrganizationId| {
            organizations.is_empty() || organizations.contains(organization)
        };
        let Changes {
            forgotten_to,
            seen_to,
            changes,
        } = self.watch.store.changes_after(self.cursor, LOOK, keep);
        let known_to = match self.fresh {
            true => self.cursor.max(self.target),
            false => self.cursor,
        };
        if known_to < forgotten_to {
            self.reset();
            return true;
        }
        let more = seen_to > self.cursor;
        for (revision, change) in changes {
            match change {
                Change::Current(snapshot) => self.tell(revision, Update::Current(snapshot)),
                Change::Deleted(_) if self.fresh && revision <= self.target => {}
                Change::Deleted(tombstone) => self.tell(revision, Update::Deleted(tombstone)),
            }
        }
        self.cursor = seen_to;
        // Not before: what changed meanwhile has moved behind what was asked for.
        if !more && !self.synced {
            self.synced = true;
            self.cursor = self.cursor.max(self.target);
            self.tell(self.cursor, Update::Synced);
        }
        more || !self.waiting.is_empty()
    }

    /// Takes in what the named integrations were at the start, without a look at all others.
    fn look_up(&mut self) {
        let wanted = self.cursor + 1..=self.target;
        let store = &self.watch.store;
        let current = store.current_of(&self.organizations, wanted, LOOK);
        self.cursor = match current.last() {
            Some(last) if current.len() == LOOK => last.revision,
            _ => self.target,
        };
        for snapshot in current {
            self.tell(snapshot.revision, Update::Current(snapshot));
        }
    }
}

/// Logs each change of status, for whoever is woken at night.
pub async fn log_changes(watch: Watch) {
    use futures_util::StreamExt;
    let newest = format!(
        "{}.{}",
        watch.store.database_id(),
        *watch.store.revision().borrow()
    );
    let mut updates = Box::pin(watch.subscribe(Vec::new(), &newest));
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
