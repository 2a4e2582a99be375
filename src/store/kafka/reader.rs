//! Reader of one partition.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use rdkafka::{Message, error::KafkaError as ClientError, types::RDKafkaErrorCode};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Shared, blocking,
    client::Source,
    end_of, offset_of,
    writer::{PartitionLog, parse_key},
};
use crate::store::{
    codec,
    error::StoreError,
    ports::{Entry, EntryId, LogReader, Position},
};

/// Time after a failure until the partition is read again.
const BACKOFF: Duration = Duration::from_millis(500);

pub(super) struct Reader {
    shared: Arc<Shared>,
    partition: Arc<PartitionLog>,
    cuts: watch::Receiver<u64>,
    /// Cuts of the partition when it was opened.
    cuts_before: u64,
    /// Position of the next entry; entries below it are passed over.
    next: Position,
    /// Offset and identity of the last entry that was returned. The ones after it must follow.
    last: Option<(u64, EntryId)>,
    /// Offset of the message that is due.
    offset: u64,
    source: Option<Source>,
    /// The bounds of the partition are to be looked at before reading goes on.
    look: bool,
    /// Offset that could not be read although it is within the bounds.
    unreadable: Option<u64>,
    /// Start of the next attempt, after a failure.
    retry_at: Option<Instant>,
    /// A failure was logged, and nothing was read since.
    is_failing: bool,
}

/// Result of a look into the queue.
enum Arrival {
    Entry(Arc<Entry>),
    /// Nothing that matters.
    Passed,
    /// The offset is not there, or what is there cannot be read.
    Unreadable,
    Failed(String),
    Nothing,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, partition: Arc<PartitionLog>, from: Position) -> Self {
        let cuts = partition.cuts();
        let cuts_before = *cuts.borrow();
        Self {
            shared,
            cuts,
            cuts_before,
            partition,
            next: from.max(Position(1)),
            last: None,
            offset: offset_of(from),
            source: None,
            look: false,
            unreadable: None,
            retry_at: None,
            is_failing: false,
        }
    }

    fn corrupt(&self, problem: &str) -> StoreError {
        StoreError::Corrupt(format!(
            "partition {} of the event log: {problem}",
            self.partition.number
        ))
    }

    fn poll(&mut self, source: &Source) -> Result<Arrival, StoreError> {
        let Some(queue) = &source.queue else {
            return Ok(Arrival::Failed("it is not known".to_owned()));
        };
        let message = match queue.poll(Duration::ZERO) {
            None => return Ok(Arrival::Nothing),
            Some(Err(error)) => return Ok(Self::classify(&error)),
            Some(Ok(message)) => message,
        };
        let offset = message.offset() as u64;
        if offset < self.offset {
            return Ok(Arrival::Passed);
        }
        if offset > self.offset {
            return Ok(Arrival::Unreadable);
        }
        let position = Position(offset + 1);
        let key = parse_key(message.key());
        if position < self.next {
            // Reading goes on after a failure: the log must be the one that was read before.
            if let Some((last, id)) = self.last
                && last == offset
                && key.is_none_or(|(found, _)| found != id)
            {
                let problem = format!("another entry is at offset {offset} than was read there");
                return Err(self.corrupt(&problem));
            }
            self.pass(offset);
            return Ok(Arrival::Passed);
        }
        let Some((id, header)) = key else {
            let problem = format!("the message at offset {offset} is no entry");
            return Err(self.corrupt(&problem));
        };
        let accepted_at = message.timestamp().to_millis();
        let accepted_at = accepted_at.and_then(|at| Timestamp::from_millisecond(at).ok());
        let Some(accepted_at) = accepted_at else {
            let problem = format!("the message at offset {offset} has no time");
            return Err(self.corrupt(&problem));
        };
        let payload = message.payload().unwrap_or_default();
        let entry =
            codec::decode(id, header, payload, position, accepted_at).map_err(
                |error| match error {
                    StoreError::Corrupt(reason) => self.corrupt(&reason),
                    error => error,
                },
            )?;
        self.pass(offset);
        self.partition.learn_end(position.next());
        self.next = position.next();
        self.last = Some((offset, id));
        Ok(Arrival::Entry(Arc::new(entry)))
    }

    fn pass(&mut self, offset: u64) {
        self.offset = offset + 1;
        self.unreadable = None;
    }

    fn classify(error: &ClientError) -> Arrival {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation
                | RDKafkaErrorCode::BadMessage
                | RDKafkaErrorCode::InvalidMessage
                | RDKafkaErrorCode::BadCompression,
            ) => Arrival::Unreadable,
            Some(code) => Arrival::Failed(code.to_string()),
            None => Arrival::Failed(error.to_string()),
        }
    }

    fn fail(&mut self, reason: &str) {
        self.source = None;
        self.retry_at = Some(Instant::now() + BACKOFF);
        if !self.is_failing {
            self.is_failing = true;
            tracing::warn!(
                partition = self.partition.number,
                reason,
                "the event log cannot be read: trying again until it can"
            );
        }
    }

    /// Decides whether the entry at the current offset was trimmed, is not there yet, or is lost.
    async fn look(&mut self) -> Result<(), StoreError> {
        let (clients, number) = (self.shared.clients(), self.partition.number);
        let known = self.partition.known_end();
        let offsets = blocking(move || clients.offsets(number)).await;
        let (low, high) = match offsets {
            Ok(offsets) => offsets,
            Err(reason) => {
                self.fail(&reason);
                return Ok(());
            }
        };
        let (low, high) = match end_of(high) < known {
            false => (low, high),
            true => match self.shared.look_again(number).await {
                Ok((_, high)) if end_of(high) < known => {
                    return Err(self.partition.cut(known, end_of(high)));
                }
                Ok(offsets) => offsets,
                Err(reason) => {
                    self.fail(&reason);
                    return Ok(());
                }
            },
        };
        let offset = self.offset;
        if offset < low {
            let due = offset.max(offset_of(self.next));
            let is_trimmed = low <= offset_of(self.partition.trimmed_below());
            if self.last.is_some() && due < low && !is_trimmed {
                let last = low - 1;
                let problem = format!("the entries at offsets {due} to {last} are missing");
                return Err(self.corrupt(&problem));
            }
            self.offset = low;
        } else if offset > high {
            if self.last.is_some() {
                let problem = format!("it ends at offset {high}, and {offset} was read before");
                return Err(self.corrupt(&problem));
            }
            self.offset = high;
        } else {
            if offset < high && self.unreadable.replace(offset) == Some(offset) {
                return Err(self.corrupt(&format!(
                    "the entry at offset {offset} is missing or damaged"
                )));
            }
            self.retry_at = Some(Instant::now() + BACKOFF);
        }
        self.look = false;
        Ok(())
    }
}

#[async_trait]
impl LogReader for Reader {
    async fn next(&mut self) -> Result<Arc<Entry>, StoreError> {
        loop {
            self.shared.check_open()?;
            let cuts_before = self.cuts_before;
            if *self.cuts.borrow() != cuts_before {
                return Err(self.corrupt("it was cut or made anew while it was read"));
            }
            if let Some(at) = self.retry_at {
                tokio::select! {
                    () = sleep_until(at) => self.retry_at = None,
                    () = self.shared.closed() => {}
                    _ = self.cuts.wait_for(|cuts| *cuts != cuts_before) => {}
                }
                continue;
            }
            if self.look {
                self.look().await?;
                continue;
            }
            let Some(source) = self.source.take() else {
                if let Some((last, _)) = self.last
                    && last + 1 == self.offset
                {
                    self.offset = last;
                }
                match self
                    .shared
                    .clients()
                    .read(self.partition.number, self.offset)
                {
                    Ok(source) => self.source = Some(source),
                    Err(error) => self.fail(&error.to_string()),
                }
                continue;
            };
            match self.poll(&source)? {
                Arrival::Entry(entry) => {
                    self.source = Some(source);
                    if std::mem::take(&mut self.is_failing) {
                        let partition = self.partition.number;
                        tracing::info!(partition, "the event log can be read again");
                    }
                    return Ok(entry);
                }
                Arrival::Passed => self.source = Some(source),
                Arrival::Unreadable => self.look = true,
                Arrival::Failed(reason) => self.fail(&reason),
                Arrival::Nothing => {
                    let mut clients = self.shared.watch_clients();
                    if !source.is_of(&clients.borrow_and_update()) {
                        // New credentials: go on with the new clients.
                        continue;
                    }
                    let arrived = Arc::clone(&source.arrived);
                    self.source = Some(source);
                    tokio::select! {
                        () = arrived.notified() => {}
                        () = self.shared.closed() => {}
                        _ = clients.changed() => {}
                        _ = self.cuts.wait_for(|cuts| *cuts != cuts_before) => {}
                    }
                }
            }
        }
    }
}
