//! Reads back what was delivered: checks, counts and prints it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};

use aws_stand_in::{Record, RecordStream};

use super::{
    Feed, SandboxError,
    screen::{Permit, Screen},
    session::Session,
    statuses::IntegrationState,
    tally::{Kind, Tally},
};

/// Reads the stream. Dropping one of its futures loses no record.
pub(super) struct Reader<'a> {
    records: RecordStream,
    tally: Tally,
    next_index: u64,
    screen: &'a Screen,
    integration_id: &'a str,
    state: watch::Receiver<IntegrationState>,
    window: Arc<Semaphore>,
    has_end: bool,
    stall_timeout: Duration,
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        session: &'a Session<'_>,
        records: RecordStream,
        state: watch::Receiver<IntegrationState>,
    ) -> Self {
        let feed = &session.options.feed;
        Self {
            records,
            tally: Tally::new(matches!(feed, Feed::Count(_))),
            next_index: 0,
            screen: session.screen,
            integration_id: &session.integration_id,
            state,
            window: Arc::clone(&session.window),
            has_end: feed.has_end(),
            stall_timeout: session.options.stall_timeout,
        }
    }

    /// Returns whether anything was read.
    pub(super) fn has_read(&self) -> bool {
        self.next_index > 0
    }

    pub(super) fn into_tally(self) -> Tally {
        self.tally
    }

    /// Reads until every sequence up to the goal was read; without a goal, until the stream is
    /// deleted.
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
            let permit = self.screen.permit().await;
            tokio::select! {
                record = self.records.next() => match record {
                    Some(record) => self.take(record, permit)?,
                    None => return Ok(()),
                },
                Ok(()) = goal.changed() => {}
                () = sleep(self.stall_timeout), if due.is_some() => {
                    return Err(self.stalled(due.unwrap_or_default()));
                }
            }
        }
    }

    /// Reads the rest of a stream that was deleted.
    pub(super) async fn rest(&mut self) -> Result<(), SandboxError> {
        loop {
            let permit = self.screen.permit().await;
            match self.records.next().await {
                Some(record) => self.take(record, permit)?,
                None => return Ok(()),
            }
        }
    }

    fn take(&mut self, record: Record, permit: Permit) -> Result<(), SandboxError> {
        let overrun = record.index != self.next_index;
        self.next_index = record.index + 1;
        match self.tally.take(&record) {
            Ok(Kind::Repeat) => return Ok(()),
            Ok(Kind::New) => self.window.add_permits(1),
            Ok(Kind::Test | Kind::Gap) => {}
            Err(defect) if self.has_end => return Err(defect.into()),
            Err(defect) => self.screen.note(&defect.to_string()),
        }
        self.screen.event(record, permit);
        match overrun {
            true if self.has_end => Err(SandboxError::Overrun),
            _ => Ok(()),
        }
    }

    fn without_gaps(&self) -> Result<(), SandboxError> {
        match self.tally.run(self.integration_id) {
            Some(run) if run.in_gaps > 0 => Err(SandboxError::Gap { count: run.in_gaps }),
            _ => Ok(()),
        }
    }

    fn stalled(&self, goal: u64) -> SandboxError {
        SandboxError::Stalled {
            stall_timeout: self.stall_timeout,
            read_back: self.tally.complete_to(self.integration_id),
            goal,
            status: self.state.borrow().describe(),
        }
    }
}
