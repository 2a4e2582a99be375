//! Answers that a transaction owes, given once it is durable or has failed.

use sea_orm::DbErr;

use super::{
    StoreError,
    catalog::Catalog,
    command::{Command, ConfigureError, Deleted, Held, Reply},
    gaps::GivenUp,
    tail::Tail,
};
use crate::domain::integration::{IntegrationKey, Snapshot};

/// An append that is answered once it is durable.
pub(super) struct AppendAnswer {
    pub(super) reply: Reply<u32>,
    pub(super) accepted: u32,
    pub(super) _held: Held,
}

/// Answers that are given once the transaction is durable.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) appends: Vec<AppendAnswer>,
    /// Each with what it stored, which a later command of the transaction may have changed.
    pub(super) configures: Vec<(Reply<Snapshot, ConfigureError>, Snapshot)>,
    pub(super) deletes: Vec<(Reply<Option<Deleted>>, Option<Deleted>)>,
    pub(super) issues: Vec<Reply<()>>,
    pub(super) given_up: Vec<(Reply<GivenUp>, IntegrationKey, GivenUp)>,
}

impl Answers {
    pub(super) fn deleted(&self) -> impl Iterator<Item = IntegrationKey> {
        self.deletes
            .iter()
            .filter_map(|(_, deleted)| deleted.map(|deleted| deleted.key))
    }

    /// A caller that is gone does not need its answer.
    pub(super) fn give(self, catalog: &Catalog, tail: &Tail) {
        for key in self.deleted() {
            tail.forget(key);
        }
        for (reply, key, given_up) in self.given_up {
            for chunk in &given_up.chunks {
                tail.give_up(key, chunk);
            }
            let _gone = reply.send(Ok(given_up));
        }
        for append in self.appends {
            let _gone = append.reply.send(Ok(append.accepted));
        }
        for (reply, stored) in self.configures {
            // The newest counts, but another version is none of this caller's.
            let version = |of: &Snapshot| of.integration.version;
            let current = catalog.slot(stored.integration.key);
            let current = current.map(|slot| slot.snapshot);
            let current = current.filter(|current| version(current) == version(&stored));
            let _gone = reply.send(Ok(current.unwrap_or(stored)));
        }
        for (reply, deleted) in self.deletes {
            let _gone = reply.send(Ok(deleted));
        }
        for reply in self.issues {
            let _gone = reply.send(Ok(()));
        }
    }

    pub(super) fn fail(self, error: &DbErr) {
        let failed = || StoreError::Database(error.clone());
        for append in self.appends {
            let _gone = append.reply.send(Err(failed()));
        }
        for (reply, _) in self.configures {
            let _gone = reply.send(Err(failed().into()));
        }
        for (reply, _) in self.deletes {
            let _gone = reply.send(Err(failed()));
        }
        for reply in self.issues {
            let _gone = reply.send(Err(failed()));
        }
        for (reply, ..) in self.given_up {
            let _gone = reply.send(Err(failed()));
        }
    }

    pub(super) fn refuse(&mut self, commands: Vec<Command>, error: &DbErr) {
        let failed = || StoreError::Database(error.clone());
        for command in commands {
            match command {
                Command::Configure { reply, .. } => {
                    let _gone = reply.send(Err(failed().into()));
                }
                Command::Delete { reply, .. } => {
                    let _gone = reply.send(Err(failed()));
                }
                Command::GiveUp { reply, .. } => {
                    let _gone = reply.send(Err(failed()));
                }
                Command::Issue { reply, .. } => {
                    let _gone = reply.send(Err(failed()));
                }
                // It is asked for again at the next AssumeRole.
                Command::RetirePrevious { .. } => {}
                Command::Append { .. } | Command::Close { .. } => {}
            }
        }
    }
}
