//! Memory of publishes. There are two budgets:
//!
//! - *receiving*: bytes of messages that are not complete, charged as they are received, and of
//!   complete ones that wait for the other budget;
//! - *messages*: complete messages, after decompression, until they are durable.
//!
//! Nobody waits for ever. Who waits for *messages* waits for complete messages only, which leave
//! as the log is written. Several incomplete messages could wait for each other, each with a part
//! of *receiving*. Therefore one of those that wait, the *favoured* one, receives the rest of its
//! message without being charged, beside the budget, until it has a permit of *messages*; then the
//! next one is favoured. It waits for its client, which must send at a minimum rate, and then for
//! *messages* alone.
//!
//! Invariant: the bytes that are charged or favoured are at most the *receiving* budget plus one
//! message, and the favoured message waits for no other incomplete one.
//!
//! A caller has a share of each budget, so that the rest is left to others.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::api::limits::CallerKey;

/// Callers from which on those without requests are forgotten.
const MIN_FORGET: usize = 64;

/// Permits of one caller and of the budget for the same bytes.
#[derive(Debug)]
pub(crate) struct MemoryPermit {
    of_caller: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
}

impl MemoryPermit {
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.of_all.num_permits()
    }
}

/// One budget, or the share of a caller in both.
#[derive(Debug)]
struct Permits {
    receiving: Arc<Semaphore>,
    messages: Arc<Semaphore>,
}

impl Permits {
    fn new(receiving: usize, messages: usize) -> Arc<Self> {
        Arc::new(Self {
            receiving: Arc::new(Semaphore::new(receiving)),
            messages: Arc::new(Semaphore::new(messages)),
        })
    }
}

/// See the module. Cheap to clone; clones are the same budget.
#[derive(Clone, Debug)]
pub(super) struct MemoryBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    all: Arc<Permits>,
    /// Bytes in `all.messages`.
    message_bytes: usize,
    max_message: usize,
    /// The permit of the favoured message.
    favoured: Arc<Semaphore>,
    /// Number of messages that wait for *receiving*.
    waiting: Arc<AtomicUsize>,
    callers: Mutex<HashMap<CallerKey, Weak<Permits>>>,
}

impl MemoryBudget {
    /// `message_bytes` is raised to `max_message`, so that the longest message fits.
    pub(super) fn new(message_bytes: usize, max_message: usize) -> Self {
        let message_bytes = message_bytes.clamp(max_message, Semaphore::MAX_PERMITS);
        Self(Arc::new(Budget {
            all: Permits::new(max_message, message_bytes),
            message_bytes,
            max_message,
            favoured: Arc::new(Semaphore::new(1)),
            waiting: Arc::default(),
            callers: Mutex::default(),
        }))
    }

    /// The budget for the messages of one caller, who has half of *receiving* and three quarters
    /// of *messages*, or one message if that is more.
    pub(super) fn of(&self, caller: CallerKey) -> CallerBudget {
        let budget = &self.0;
        let mut callers = budget
            .callers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = callers.get(&caller).and_then(Weak::upgrade);
        let share = known.unwrap_or_else(|| {
            if callers.len() >= MIN_FORGET && callers.len() == callers.capacity() {
                callers.retain(|_, share| share.strong_count() > 0);
            }
            let messages = (budget.message_bytes / 4 * 3).max(budget.max_message);
            let share = Permits::new(budget.max_message.div_ceil(2), messages);
            callers.insert(caller, Arc::downgrade(&share));
            share
        });
        CallerBudget {
            all: Arc::clone(&budget.all),
            favoured: Arc::clone(&budget.favoured),
            waiting: Arc::clone(&budget.waiting),
            share,
        }
    }

    #[cfg(test)]
    pub(super) fn available(&self) -> (usize, usize) {
        let all = &self.0.all;
        (
            all.receiving.available_permits(),
            all.messages.available_permits(),
        )
    }
}

/// The budget as one caller may use it.
#[derive(Clone, Debug)]
pub(super) struct CallerBudget {
    all: Arc<Permits>,
    favoured: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    share: Arc<Permits>,
}

/// A message that waits, until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Memory of a message while it is received, and until it has a [`MemoryPermit`].
#[derive(Debug, Default)]
pub(super) struct Receiving {
    charged: Option<MemoryPermit>,
    favoured: Option<OwnedSemaphorePermit>,
}

/// Grant for some bytes of a message that is received.
pub(super) enum Grant {
    Charged(MemoryPermit),
    Favoured(OwnedSemaphorePermit),
}

impl Receiving {
    pub(super) fn add(&mut self, grant: Grant) {
        match (grant, &mut self.charged) {
            (Grant::Favoured(permit), _) => self.favoured = Some(permit),
            (Grant::Charged(more), Some(charged)) => {
                charged.of_caller.merge(more.of_caller);
                charged.of_all.merge(more.of_all);
            }
            (Grant::Charged(first), charged) => *charged = Some(first),
        }
    }

    /// Whether the rest of the message needs no further grant.
    pub(super) fn is_favoured(&self) -> bool {
        self.favoured.is_some()
    }
}

/// A grant that is waited for.
pub(super) type Granted<T> = Pin<Box<dyn Future<Output = Result<T, AcquireError>> + Send>>;

impl CallerBudget {
    /// Charges received bytes of an incomplete message at once, if there is memory for them.
    pub(super) fn try_charge(&self, bytes: usize) -> Option<Grant> {
        try_both(&self.share.receiving, &self.all.receiving, bytes).map(Grant::Charged)
    }

    /// Waits until the bytes can be charged, or the message is the favoured one.
    pub(super) fn charge(&self, bytes: usize) -> Granted<Grant> {
        let favoured = Arc::clone(&self.favoured);
        let charge = both(&self.share.receiving, &self.all.receiving, bytes);
        let counted = Counted::new(&self.waiting);
        Box::pin(async move {
            let _counted = counted;
            tokio::select! {
                biased;
                permit = charge => permit.map(Grant::Charged),
                permit = favoured.acquire_owned() => permit.map(Grant::Favoured),
            }
        })
    }

    /// Takes the permit for a complete message at once, if there is memory for it.
    pub(super) fn try_message(&self, bytes: usize) -> Option<MemoryPermit> {
        try_both(&self.share.messages, &self.all.messages, bytes)
    }

    /// Waits for the permit of a complete message.
    pub(super) fn message(&self, bytes: usize) -> Granted<MemoryPermit> {
        Box::pin(both(&self.share.messages, &self.all.messages, bytes))
    }

    /// Whether messages wait for *receiving*, so that slow ones should not keep it.
    pub(super) fn is_contended(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

fn try_both(share: &Arc<Semaphore>, all: &Arc<Semaphore>, bytes: usize) -> Option<MemoryPermit> {
    let bytes = permits(bytes);
    Some(MemoryPermit {
        of_caller: Arc::clone(share).try_acquire_many_owned(bytes).ok()?,
        of_all: Arc::clone(all).try_acquire_many_owned(bytes).ok()?,
    })
}

/// Waits for the caller's share first, so that one caller's messages never queue before those of
/// others with more than its share.
fn both(
    share: &Arc<Semaphore>,
    all: &Arc<Semaphore>,
    bytes: usize,
) -> impl Future<Output = Result<MemoryPermit, AcquireError>> + Send + use<> {
    let (share, all, bytes) = (Arc::clone(share), Arc::clone(all), permits(bytes));
    async move {
        Ok(MemoryPermit {
            of_caller: share.acquire_many_owned(bytes).await?,
            of_all: all.acquire_many_owned(bytes).await?,
        })
    }
}

/// Messages have at most 8 MiB.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
