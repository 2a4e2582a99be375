//! Commands that are written together.

use tokio::sync::oneshot;

use super::command::Command;

/// Commands that share a transaction at the most.
const BATCH_COMMANDS: usize = 1024;

/// What is written together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) commands: Vec<Command>,
    bytes: usize,
    most_bytes: usize,
    pub(super) close: Option<oneshot::Sender<()>>,
}

impl Batch {
    /// A batch that takes no further command once it holds `most_bytes` of events.
    pub(super) fn new(most_bytes: usize) -> Self {
        Self {
            most_bytes,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, command: Option<Command>) {
        match command {
            Some(Command::Close { reply }) => self.close = Some(reply),
            Some(command) => {
                if let Command::Append { segments, .. } = &command {
                    self.bytes += segments.bytes();
                }
                self.commands.push(command);
            }
            // Every handle is gone: nobody waits for this answer.
            None => self.close = Some(oneshot::channel().0),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.commands.len() < BATCH_COMMANDS && self.bytes < self.most_bytes && self.close.is_none()
    }
}
