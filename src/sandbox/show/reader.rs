//! Reads back what was delivered: checks, counts and shows it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};

use aws_stand_in::{Record, RecordStream};

use super::Show;
use crate::sandbox::{
    Feed, SandboxError,
    screen::{Room, Screen},
    statuses::Standing,
    tally::{Seen, Tally},
};

/// Follows the stream. Its futures may be dropped at any time; no record is lost.
pub(super) struct Reader<'a> {
    records: RecordStream,
    tally: Tally,
    next_index: u64,
    screen: &'a Screen,
    integration_id: &'a str,
    standing: watch::Receiver<Standing>,
    window: Arc<Semaphore>,
    has_end: bool,
    patience: Duration,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        show: &'a Show<'_>,
        records: RecordStream,
        standing: watch::Receiver<Standing>,
    ) -> Self {
        let feed = &show.options.feed;
        Self {
            records,
            tally: Tally::new(matches!(feed, Feed::Count(_))),
            next_index: 0,
            screen: show.screen,
            integration_id: &show.integration_id,
            standing,
            window: Arc::clone(&show.window),
            has_end: feed.has_end(),
            patience: show.options.patience,
        }
    }

    /// Whether anything came.
    pub(super) fn has_read(&self) -> bool {
        self.next_index > 0
    }

    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }

    /// Reads until every sequence up to the goal is there; without a goal, until the
    /// stream is deleted.
    pub(super) async fn until(
        &mut self,
        goal: &mut watch::Receiver<Option<u64>>,
    ) -> Result<(), SandboxError> {
        loop {
            let due = *goal.borrow_and_update();
            if let Some(goal) = due
                && self.tally.complete_to(self.integration_id) >= goal
            {
                return self.without_gaps();
            }
            let room = self.screen.room().await;
            tokio::select! {
                record = self.records.next() => match record {
                    Some(record) => self.take(record, room)?,
                    None => return Ok(()),
                },
                Ok(()) = goal.changed() => {}
                () = sleep(self.patience), if due.is_some() => {
                    return Err(self.stalled(due.unwrap_or_default()));
                }
            }
        }
    }

    /// Reads what is left of a stream that was deleted.
    pub(super) async fn rest(&mut self) -> Result<(), SandboxError> {
        loop {
            let room = self.screen.room().await;
            match self.records.next().await {
                Some(record) => self.take(record, room)?,
                None => return Ok(()),
            }
        }
    }

    fn take(&mut self, record: Record, room: Room) -> Result<(), SandboxError> {
        let overrun = record.index != self.next_index;
        self.next_index = record.index + 1;
        let seen = self.tally.take(&record);
        match seen {
            Ok(Seen::Repeat) => return Ok(()),
            Ok(Seen::New) => self.window.add_permits(1),
            Ok(Seen::Test | Seen::Gap) => {}
            Err(defect) if self.has_end => return Err(defect.into()),
            Err(defect) => self.screen.say(&defect.to_string()),
        }
        self.screen.event(record, room);
        match overrun {
            true if self.has_end => Err(SandboxError::Overrun),
            _ => Ok(()),
        }
    }

    fn without_gaps(&self) -> Result<(), SandboxError> {
        match self.tally.run(self.integration_id) {
            Some(run) if run.missed > 0 => Err(SandboxError::Gap { count: run.missed }),
            _ => Ok(()),
        }
    }

    fn stalled(&self, goal: u64) -> SandboxError {
        SandboxError::Stalled {
            patience: self.patience,
            read_back: self.tally.complete_to(self.integration_id),
            goal,
            status: self.standing.borrow().describe(),
        }
    }
}
