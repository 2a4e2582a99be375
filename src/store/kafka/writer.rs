//! Appends to a partition, and the reports of their delivery.

use std::sync::{
    Arc, Mutex, Weak,
    atomic::{AtomicU64, Ordering},
};

use rdkafka::{error::KafkaError as ClientError, producer::BaseRecord, types::RDKafkaErrorCode};
use tokio::sync::{Notify, oneshot, watch};

use super::{
    client::{Clients, MESSAGE_BYTES, Producer},
    end_of, lock,
};
use crate::store::{
    codec::StoredEntry,
    error::StoreError,
    ports::{EntryId, NewEntry, Partition, Position},
};

/// Bytes that Kafka and the library add to an entry, with a margin: a batch has a header of
/// 61 bytes, and its record one of at most 30.
const MARGIN_BYTES: usize = 1 << 10;
/// Most bytes of a stored entry.
const ENTRY_BYTES: usize = MESSAGE_BYTES - MARGIN_BYTES;
/// Bytes of the entry's identity, before the header in the key of a message.
const ID_BYTES: usize = size_of::<EntryId>();

/// Key of an entry's message: identity and header. Its value is the payload.
fn key(entry: &StoredEntry) -> Vec<u8> {
    [&entry.id[..], &entry.header].concat()
}

/// Identity and header of an entry, from the key of its message. None if it is no entry.
pub(super) fn parse_key(key: Option<&[u8]>) -> Option<(EntryId, &[u8])> {
    let (id, header) = key?.split_first_chunk::<ID_BYTES>()?;
    Some((*id, header))
}

/// Encodes the entries of an append.
///
/// # Errors
///
/// `Failed` if the topic cannot hold one of them.
pub(super) fn encode(entries: &[NewEntry]) -> Result<Vec<StoredEntry>, StoreError> {
    let stored = entries.iter().map(|entry| {
        let stored = StoredEntry::encode(entry);
        let bytes = ID_BYTES + stored.header.len() + stored.payload.len();
        match bytes <= ENTRY_BYTES {
            true => Ok(stored),
            false => Err(StoreError::Failed(format!(
                "an entry of {bytes} bytes is larger than {ENTRY_BYTES}, which the messages of the topic hold"
            ))),
        }
    });
    stored.collect()
}

/// Whether a partition takes entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It does.
    Open,
    /// It is not known to work: an entry was not confirmed, or there is no leader.
    Doubt(String),
    /// It is not the log that it was.
    Corrupt(String),
}

/// One partition of the topic, as this instance writes it.
pub(super) struct PartitionLog {
    pub(super) number: Partition,
    inner: Mutex<Inner>,
    known_end: AtomicU64,
    /// Position below which it may be trimmed.
    trim: AtomicU64,
    /// Number of times that it was found not to be the log that it was.
    cuts: watch::Sender<u64>,
    /// Is notified when the partition is in doubt or corrupt.
    trouble: Arc<Notify>,
}

struct Inner {
    state: State,
    /// Broker that leads the partition.
    leader: Option<i32>,
    /// Changes only while nothing is in flight, so that entries of two producers cannot
    /// interleave. Reports own their partition, and the thread that takes them must not end its
    /// own producer, so the partition owns none.
    producer: Weak<Producer>,
    /// Entries that were handed over and have no report.
    in_flight: usize,
    /// Offset of the last entry that was acked.
    acked: Option<u64>,
}

impl PartitionLog {
    pub(super) fn new(number: Partition, trouble: Arc<Notify>) -> Self {
        Self {
            number,
            inner: Mutex::new(Inner {
                state: State::Doubt("its leader is not known yet".to_owned()),
                leader: None,
                producer: Weak::new(),
                in_flight: 0,
                acked: None,
            }),
            known_end: AtomicU64::new(end_of(0).0),
            trim: AtomicU64::new(0),
            cuts: watch::Sender::new(0),
            trouble,
        }
    }

    pub(super) fn known_end(&self) -> Position {
        Position(self.known_end.load(Ordering::Acquire))
    }

    pub(super) fn learn_end(&self, end: Position) {
        self.known_end.fetch_max(end.0, Ordering::AcqRel);
    }

    /// Position below which it may be trimmed.
    pub(super) fn trimmed_below(&self) -> Position {
        Position(self.trim.load(Ordering::Acquire))
    }

    /// Allows to trim it, unless it is corrupt.
    pub(super) fn trim(&self, below: Position) {
        let inner = lock(&self.inner);
        if !matches!(inner.state, State::Corrupt(_)) {
            let below = below.min(self.known_end());
            self.trim.fetch_max(below.0, Ordering::AcqRel);
        }
    }

    /// Number of times that it was found not to be the log that it was, which ends its readers.
    pub(super) fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    pub(super) fn state(&self) -> State {
        lock(&self.inner).state.clone()
    }

    pub(super) fn set_leader(&self, leader: Option<i32>) {
        lock(&self.inner).leader = leader;
    }

    /// Whether it is in doubt and a probe may decide.
    pub(super) fn awaits_probe(&self) -> bool {
        let inner = lock(&self.inner);
        matches!(inner.state, State::Doubt(_)) && inner.in_flight == 0
    }

    /// Takes entries again after a doubt, given the offset after the last entry.
    pub(super) fn resume(&self, high: u64) -> State {
        let mut inner = lock(&self.inner);
        if matches!(inner.state, State::Doubt(_)) && inner.in_flight == 0 {
            match inner.acked {
                Some(acked) if high <= acked => {
                    self.corrupt(&mut inner, cut(self.number, acked, high));
                }
                _ => inner.state = State::Open,
            }
        }
        inner.state.clone()
    }

    /// Stops a partition that ends before an entry which this instance knew.
    pub(super) fn cut(&self, known: Position, end: Position) -> StoreError {
        let reason = cut(
            self.number,
            known.0.saturating_sub(2),
            end.0.saturating_sub(1),
        );
        let mut inner = lock(&self.inner);
        // Unless it began anew meanwhile.
        if self.known_end() >= known {
            self.corrupt(&mut inner, reason.clone());
        }
        StoreError::Corrupt(reason)
    }

    fn corrupt(&self, inner: &mut Inner, reason: String) {
        inner.state = State::Corrupt(reason);
        // It names entries of the log that there was.
        self.trim.store(0, Ordering::Release);
        self.cuts.send_modify(|cuts| *cuts += 1);
        self.trouble.notify_one();
    }

    /// Forgets a corrupt log for the one that there is, given the offset after its last entry.
    /// A probe opens it.
    ///
    /// # Errors
    ///
    /// `Failed` while entries for the former log are in flight.
    pub(super) fn begin_anew(&self, high: u64) -> Result<(), StoreError> {
        let mut inner = lock(&self.inner);
        if !matches!(inner.state, State::Corrupt(_)) {
            return Ok(());
        }
        if inner.in_flight > 0 {
            return Err(unavailable(self.number, "entries are in flight"));
        }
        inner.acked = None;
        inner.state = State::Doubt("its log is another one than before".to_owned());
        self.known_end.store(end_of(high).0, Ordering::Release);
        self.trouble.notify_one();
        Ok(())
    }

    /// Hands entries over to the library, in order.
    ///
    /// # Errors
    ///
    /// `Failed`: nothing was handed over.
    pub(super) fn hand_over(
        self: &Arc<Self>,
        clients: &Clients,
        topic: &str,
        entries: &[StoredEntry],
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        // Is dropped after the lock: a producer ends only after its reports, which take the lock.
        let producer;
        let mut inner = lock(&self.inner);
        match &inner.state {
            State::Open => {}
            State::Doubt(reason) => return Err(unavailable(self.number, reason)),
            State::Corrupt(reason) => return Err(StoreError::Failed(reason.clone())),
        }
        producer = match (inner.in_flight, inner.leader) {
            (0, leader) => leader.and_then(|leader| clients.producer(leader)),
            _ => inner.producer.upgrade(),
        };
        inner.producer = producer.as_ref().map_or_else(Weak::new, Arc::downgrade);
        let Some(producer) = &producer else {
            self.doubt(&mut inner, "no producer for its leader".to_owned());
            return Err(unavailable(self.number, "it has no leader"));
        };
        let (reply, answer) = oneshot::channel();
        let append = Arc::new(Mutex::new(Append {
            left: entries.len(),
            kept: false,
            failure: None,
            reply: Some(reply),
        }));
        for (at, entry) in entries.iter().enumerate() {
            let key = key(entry);
            let handed = Box::new(Handed {
                partition: Arc::clone(self),
                append: Arc::clone(&append),
            });
            let record = BaseRecord::with_opaque_to(topic, handed)
                .partition(self.number as i32)
                .key(&key)
                .payload(&entry.payload);
            match producer.client.send(record) {
                Ok(()) => inner.in_flight += 1,
                Err((error, _)) => {
                    let is_busy = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                    if !is_busy {
                        self.doubt(&mut inner, error.to_string());
                    }
                    if at == 0 {
                        return Err(unavailable(self.number, &error.to_string()));
                    }
                    let failure = in_doubt(self.number, &error.to_string());
                    drop(inner);
                    lock(&append).end(entries.len() - at, Err(failure));
                    break;
                }
            }
        }
        Ok(answer)
    }

    fn doubt(&self, inner: &mut Inner, reason: String) {
        if inner.state == State::Open {
            tracing::warn!(
                partition = self.number,
                reason,
                "the event log does not confirm entries: the partition takes none until it answers"
            );
            inner.state = State::Doubt(reason);
            self.trouble.notify_one();
        }
    }

    /// Records the report of one entry.
    fn report(&self, result: Result<i64, &ClientError>) -> Result<(), StoreError> {
        let mut inner = lock(&self.inner);
        inner.in_flight -= 1;
        match result.map(u64::try_from) {
            Ok(Ok(offset)) => match inner.acked {
                Some(acked) if offset <= acked => {
                    let reason = cut(self.number, acked, offset);
                    self.corrupt(&mut inner, reason.clone());
                    Err(StoreError::Unavailable(reason))
                }
                _ => {
                    inner.acked = Some(offset);
                    self.learn_end(end_of(offset + 1));
                    Ok(())
                }
            },
            // A repetition that the broker recognised, and whose offset it has forgotten.
            Ok(Err(_)) => {
                let reason = "a broker does not name the offset of an entry";
                self.doubt(&mut inner, reason.to_owned());
                Err(in_doubt(self.number, reason))
            }
            Err(error) if error.rdkafka_error_code() == Some(TOO_LARGE) => {
                Err(StoreError::Failed(format!(
                    "Kafka refuses an entry for its size: set max.message.bytes of the topic to at least {MESSAGE_BYTES}"
                )))
            }
            Err(error) => {
                let reason = match error.rdkafka_error_code() {
                    Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                        "the right to write to it (Write) is missing".to_owned()
                    }
                    Some(code) => code.to_string(),
                    None => error.to_string(),
                };
                self.doubt(&mut inner, reason.clone());
                Err(in_doubt(self.number, &reason))
            }
        }
    }
}

const TOO_LARGE: RDKafkaErrorCode = RDKafkaErrorCode::MessageSizeTooLarge;

pub(super) fn unavailable(partition: Partition, reason: &str) -> StoreError {
    StoreError::Failed(format!(
        "partition {partition} of the event log is unavailable ({reason})"
    ))
}

fn in_doubt(partition: Partition, reason: &str) -> StoreError {
    StoreError::Unavailable(format!(
        "partition {partition} of the event log did not confirm an entry ({reason})"
    ))
}

fn cut(partition: Partition, acked: u64, found: u64) -> String {
    format!(
        "partition {partition} of the event log was cut or made anew: offset {acked} was confirmed, and now it goes on at {found}"
    )
}

/// An append in progress.
struct Append {
    /// Entries without a report.
    left: usize,
    /// Whether an entry was confirmed, or may be kept.
    kept: bool,
    failure: Option<StoreError>,
    reply: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Append {
    /// Counts entries as reported, and answers after the last one.
    fn end(&mut self, entries: usize, result: Result<(), StoreError>) {
        self.left -= entries;
        self.kept |= !matches!(result, Err(StoreError::Failed(_)));
        self.failure = result.err().or(self.failure.take());
        if self.left > 0 {
            return;
        }
        let result = match self.failure.take() {
            None => Ok(()),
            Some(StoreError::Failed(reason)) if self.kept => Err(StoreError::Unavailable(reason)),
            Some(failure) => Err(failure),
        };
        if let Some(reply) = self.reply.take() {
            // A caller that is gone does not need the answer.
            let _gone = reply.send(result);
        }
    }
}

/// An entry that was handed over to the library.
pub(super) struct Handed {
    partition: Arc<PartitionLog>,
    append: Arc<Mutex<Append>>,
}

/// Takes the report of an entry: its offset, or the error.
pub(super) fn delivered(handed: &Handed, result: Result<i64, &ClientError>) {
    let result = handed.partition.report(result);
    lock(&handed.append).end(1, result);
}
