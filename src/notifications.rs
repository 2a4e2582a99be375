//! Notifications: status changes of integrations, and warnings before events expire, for a
//! webhook of the operator. `docs/notifications.md` describes them.
//!
//! The sender is a subscriber of [`watch`] whose resume token is stored once
//! everything up to it was accepted. So a restart, or another instance, continues where this one
//! stopped, and what waits for a slow receiver are revisions in the store rather than messages in
//! memory. The owner of partition 0 is the sender for all integrations.

mod message;
mod receiver;

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use rand::Rng as _;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

pub use self::receiver::{Receiver, ReceiverError};
use self::{
    message::{Message, Notice},
    receiver::SendError,
};
use crate::{
    domain::{
        error_chain::error_chain,
        integration::{IntegrationId, Snapshot},
        rights::Rights,
        status::Status,
    },
    metrics::{NOTIFICATION_DUE_SINCE, NOTIFICATIONS_FAILED, NOTIFICATIONS_SENT},
    store::{Store, StoreError},
    watch::{self, Update, Watch},
};

/// Requests in flight, each of another integration: 10,000 changes at once take less than 5 s with
/// a receiver that answers within 30 ms.
const IN_FLIGHT: usize = 64;
/// Interval in which the resume token is stored. What was accepted since then is sent again after
/// a kill.
const SAVE: Duration = Duration::from_millis(500);
/// Interval in which an instance looks whether it is the sender.
const POLL: Duration = Duration::from_millis(200);
/// Delay after the first failure; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest delay that is not asked for.
const MAX_DELAY: Duration = Duration::from_secs(60);
/// Longest delay that a receiver can ask for by `Retry-After`.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
/// Time before the expiry of an event at which the receiver is warned: a working day is enough to
/// act. At most half of the retention.
const MAX_NOTICE: Duration = Duration::from_secs(24 * 60 * 60);
/// Integrations that a search for old events reads at once.
const PAGE: usize = 1000;

/// Sends notifications while this instance is the sender, until `stop`. `retention` is the age at
/// which events expire.
pub async fn run(
    store: Store,
    watch: Watch,
    receiver: Receiver,
    retention: Duration,
    stop: CancellationToken,
) {
    let courier = Arc::new(Courier {
        store: store.clone(),
        receiver,
        retention,
        problem: Mutex::default(),
    });
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = until_sender(&store, true) => {}
        }
        tokio::select! {
            () = stop.cancelled() => {}
            // Requests in flight are cancelled.
            () = until_sender(&store, false) => {}
            result = Sender::new(Arc::clone(&courier)).run(&watch) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "the state of the notifications cannot be read");
                }
                // Also after a panic, or a subscription that ends at once.
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(FIRST_DELAY) => {}
                }
            }
        }
        NOTIFICATION_DUE_SINCE.store(0, Ordering::Relaxed);
    }
}

/// Waits until this instance is the sender, or is not.
async fn until_sender(store: &Store, is_sender: bool) {
    let mut poll = interval(POLL);
    while store.sends_notifications() != is_sender {
        poll.tick().await;
    }
}

/// Last state of an integration that the receiver accepted from this sender.
#[derive(Clone, Copy)]
struct Sent {
    revision: u64,
    status: Status,
}

/// Notifications of one integration: the one that is being sent, and the newest after it.
struct Slot {
    place: Option<Place>,
    due_since: Timestamp,
    next: Option<(Place, Notice)>,
}

/// Place of a change in the stream of changes.
struct Place {
    number: u64,
    /// Resume token that repeats the change.
    before: String,
}

struct Ended {
    id: IntegrationId,
    notice: Notice,
    sent: Option<Sent>,
}

struct Sender {
    courier: Arc<Courier>,
    slots: HashMap<IntegrationId, Slot>,
    /// Tasks, since they hold connections to the database: they must go on while this sender
    /// awaits one itself.
    in_flight: JoinSet<Ended>,
    /// Known since this sender started.
    sent: HashMap<IntegrationId, Sent>,
    /// Integrations of whose oldest events the receiver was warned.
    warned: HashSet<IntegrationId>,
    /// Number of changes that were taken.
    taken: u64,
    /// Resume token after the last change that was taken; empty before the first one.
    taken_to: String,
    saved: String,
}

impl Sender {
    fn new(courier: Arc<Courier>) -> Self {
        Self {
            courier,
            slots: HashMap::new(),
            in_flight: JoinSet::new(),
            sent: HashMap::new(),
            warned: HashSet::new(),
            taken: 0,
            taken_to: String::new(),
            saved: String::new(),
        }
    }

    /// Sends what has changed, until the subscription ends.
    async fn run(mut self, watch: &Watch) -> Result<(), StoreError> {
        let saved = self.courier.store.notified_to().await?;
        self.saved = saved.unwrap_or_default();
        self.taken_to = self.saved.clone();
        let mut changes = pin!(watch.subscribe(Vec::new(), &self.saved, Rights::UNLIMITED));
        let mut save = interval(SAVE);
        save.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let notice = self.courier.notice();
        let every = (notice / 10).clamp(Duration::from_secs(1), Duration::from_secs(60));
        let mut search = interval(every);
        search.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.next(), if self.slots.len() < IN_FLIGHT => match change {
                    Some(Ok(change)) => self.take(change),
                    Some(Err(_)) | None => return Ok(()),
                },
                Some(ended) = self.in_flight.join_next() => match ended {
                    Ok(ended) => self.end(ended),
                    // It panicked. Another sender starts at the stored place.
                    Err(_) => return Ok(()),
                },
                _ = save.tick() => self.save().await?,
                _ = search.tick() => self.warn_of_expiry().await?,
            }
            self.record_due();
        }
    }

    fn take(&mut self, change: watch::Message) {
        let before = std::mem::replace(&mut self.taken_to, change.resume_token);
        self.taken += 1;
        let place = Place {
            number: self.taken,
            before,
        };
        let (id, notice) = match change.update {
            Update::Current(snapshot) => (snapshot.integration.integration_id, Notice::Changed),
            Update::Deleted(tombstone) => (tombstone.integration_id, Notice::Deleted(tombstone)),
            Update::Reset => {
                tracing::warn!(
                    "the notifications cannot be continued where they ended: every status is sent again, and deletions may be missing"
                );
                return;
            }
            Update::Absent(_) | Update::Synced | Update::Heartbeat => return,
        };
        match self.slots.get_mut(&id) {
            Some(slot) => slot.next = Some((place, notice)),
            None => self.start(id, Some(place), notice, Timestamp::now()),
        }
    }

    fn start(
        &mut self,
        id: IntegrationId,
        place: Option<Place>,
        notice: Notice,
        due_since: Timestamp,
    ) {
        let last = self.sent.get(&id).copied();
        let courier = Arc::clone(&self.courier);
        let sending = async move {
            let sent = courier.deliver(id, &notice, last).await;
            Ended { id, notice, sent }
        };
        self.in_flight.spawn(sending);
        let slot = Slot {
            place,
            due_since,
            next: None,
        };
        self.slots.insert(id, slot);
    }

    fn end(&mut self, ended: Ended) {
        let Ended { id, notice, sent } = ended;
        match notice {
            Notice::Deleted(_) => {
                self.sent.remove(&id);
                self.warned.remove(&id);
            }
            Notice::Changed | Notice::Expiring => {
                if let Some(sent) = sent {
                    self.sent.insert(id, sent);
                }
            }
        }
        if let Some(slot) = self.slots.remove(&id)
            && let Some((place, notice)) = slot.next
        {
            self.start(id, Some(place), notice, slot.due_since);
        }
    }

    /// Stores the resume token up to which everything was accepted.
    async fn save(&mut self) -> Result<(), StoreError> {
        let places = self.slots.values().filter_map(|slot| slot.place.as_ref());
        let oldest = places.min_by_key(|place| place.number);
        let token = oldest.map_or(&self.taken_to, |place| &place.before);
        if *token != self.saved {
            self.courier.store.set_notified_to(token).await?;
            self.saved = token.clone();
        }
        Ok(())
    }

    /// Starts warnings for integrations whose oldest event expires soon. One that is not sent for
    /// lack of a slot is found again.
    async fn warn_of_expiry(&mut self) -> Result<(), StoreError> {
        let courier = Arc::clone(&self.courier);
        let mut after = String::new();
        loop {
            let mut page = courier
                .store
                .page(&after, PAGE, &Rights::UNLIMITED, |_| true);
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.integration.organization_id.as_str().to_owned();
            courier.store.complete(&mut page).await?;
            let id = |snapshot: &Snapshot| snapshot.integration.integration_id;
            let (waiting, idle): (Vec<_>, Vec<_>) = page
                .iter()
                .partition(|snapshot| snapshot.progress.pending() > 0);
            for snapshot in idle {
                self.warned.remove(&id(snapshot));
            }
            let ids: Vec<IntegrationId> = waiting.into_iter().map(id).collect();
            if ids.is_empty() {
                continue;
            }
            let oldest = courier.store.oldest_pending(&ids).await?;
            let now = Timestamp::now();
            for id in ids {
                let expires_soon = oldest
                    .get(&id)
                    .is_some_and(|oldest| courier.expires_soon(*oldest, now));
                if !expires_soon {
                    self.warned.remove(&id);
                } else if self.slots.len() < IN_FLIGHT
                    && !self.slots.contains_key(&id)
                    && self.warned.insert(id)
                {
                    self.start(id, None, Notice::Expiring, now);
                }
            }
        }
    }

    fn record_due(&self) {
        let oldest = self.slots.values().map(|slot| slot.due_since).min();
        let seconds = oldest.map_or(0, Timestamp::as_second);
        NOTIFICATION_DUE_SINCE.store(seconds, Ordering::Relaxed);
    }
}

/// Delivers single notifications.
struct Courier {
    store: Store,
    receiver: Receiver,
    retention: Duration,
    /// Problem of the last attempt, if it failed, so that each is logged once.
    problem: Mutex<Option<String>>,
}

impl Courier {
    fn notice(&self) -> Duration {
        MAX_NOTICE.min(self.retention / 2)
    }

    fn expires_soon(&self, oldest: Timestamp, now: Timestamp) -> bool {
        let age = Duration::try_from(now.duration_since(oldest)).unwrap_or_default();
        age >= self.retention - self.notice()
    }

    /// Sends a notification until it is accepted. Returns the state that was sent; None if there
    /// is none to send any more.
    async fn deliver(
        &self,
        id: IntegrationId,
        notice: &Notice,
        last: Option<Sent>,
    ) -> Option<Sent> {
        let mut failures = 0;
        loop {
            let error = match self.attempt(id, notice, last).await {
                Ok(sent) => return sent,
                Err(error) => error,
            };
            NOTIFICATIONS_FAILED.add(1);
            self.log(Some(error_chain(&error)));
            let delay = delay(failures, error.retry_after(), rand::rng().random());
            failures += 1;
            sleep(delay).await;
        }
    }

    async fn attempt(
        &self,
        id: IntegrationId,
        notice: &Notice,
        last: Option<Sent>,
    ) -> Result<Option<Sent>, SendError> {
        // Read for each attempt: a state that was read before may be older than the one that an
        // earlier notification of this integration had.
        let Some((message, sent)) = self.compose(id, notice, last).await? else {
            return Ok(None);
        };
        self.receiver.send(&message, Timestamp::now()).await?;
        NOTIFICATIONS_SENT.add(1);
        self.log(None);
        Ok(sent)
    }

    async fn compose(
        &self,
        id: IntegrationId,
        notice: &Notice,
        last: Option<Sent>,
    ) -> Result<Option<(Message, Option<Sent>)>, StoreError> {
        let previous = last.map(|last| last.status);
        if let Notice::Deleted(tombstone) = notice {
            return Ok(Some((Message::deleted(tombstone, previous), None)));
        }
        // One that is gone is followed by its deletion.
        let Some(snapshot) = self.store.get(id) else {
            return Ok(None);
        };
        let is_expiry = matches!(notice, Notice::Expiring);
        if !is_expiry && last.is_some_and(|last| last.revision == snapshot.revision) {
            return Ok(None);
        }
        let mut snapshots = [snapshot];
        self.store.complete(&mut snapshots).await?;
        let [snapshot] = snapshots;
        let oldest = match snapshot.progress.pending() {
            0 => None,
            _ => self.store.oldest_pending(&[id]).await?.remove(&id),
        };
        let expires_at = oldest.and_then(|oldest| oldest.checked_add(self.retention).ok());
        if is_expiry && oldest.is_none() {
            return Ok(None);
        }
        let sent = Sent {
            revision: snapshot.revision,
            status: snapshot.status.status,
        };
        let message = match is_expiry {
            // The change of the status itself may still be due.
            true => Message::expiring(&snapshot, previous, oldest, expires_at),
            false => Message::changed(&snapshot, previous, oldest, expires_at),
        };
        Ok(Some((message, (!is_expiry).then_some(sent))))
    }

    /// Logs a problem of the receiver, or its end, once.
    fn log(&self, problem: Option<String>) {
        let mut last = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == problem {
            return;
        }
        match &problem {
            Some(problem) => tracing::warn!(problem, "notifications are not accepted"),
            None => tracing::info!("notifications are accepted again"),
        }
        *last = problem;
    }
}

/// Delay after a failure that follows `failures` others; `jitter` is in 0..1.
fn delay(failures: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
    let doubled = FIRST_DELAY.saturating_mul(2_u32.saturating_pow(failures));
    let own = doubled.min(MAX_DELAY).mul_f64(0.5 + jitter / 2.0);
    retry_after.map_or(own, |asked| asked.min(MAX_RETRY_AFTER).max(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_a_limit_and_honour_the_receiver() {
        let seconds = Duration::from_secs;
        assert_eq!(delay(0, None, 0.0), Duration::from_millis(500));
        assert_eq!(delay(3, None, 1.0), seconds(8));
        assert_eq!(delay(u32::MAX, None, 1.0), MAX_DELAY);
        assert_eq!(delay(0, Some(seconds(30)), 0.5), seconds(30));
        assert_eq!(delay(0, Some(seconds(86_400)), 0.5), MAX_RETRY_AFTER);
        assert_eq!(delay(9, Some(seconds(0)), 1.0), MAX_DELAY);
    }
}
