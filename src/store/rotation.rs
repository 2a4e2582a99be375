//! Rotation of the keys of external IDs.
//!
//! 1. A key is *proposed*: from then on an instance that starts must have it. A key is *activated*
//!    when a look at the instances, after the proposal, finds that each one can read it. An
//!    instance registers its keys with its lease, and reads the proposal after that, so either the
//!    look finds it or it finds the proposal. The look is under the lock that activation takes.
//! 2. Everything that is stored from then on is encrypted with the new key.
//! 3. What is stored under earlier keys is re-sealed in steps of one short transaction.
//! 4. A key under which nothing is stored any more is *retired*: it can be removed from the
//!    keyrings.
//!
//! The database alone has the state, so any instance continues with the next step after a kill.
//! Several may do so at once, and do a part of the work twice.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::{
    StoreError,
    catalog::Catalog,
    now,
    ports::{InstanceKeys, Keys, Ownership, ResealPass, Unreadable},
    secret::{Resealer, Sealer},
};

/// Time between two looks at the keys, which other instances may have changed.
const LOOK: Duration = Duration::from_secs(5);
/// Time between two passes over what is left after one.
const PASS_AGAIN: Duration = Duration::from_secs(60);
/// Time between two steps, which requests use.
const PAUSE: Duration = Duration::from_millis(20);

/// Keys of external IDs, for an operator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeysReport {
    /// Keys that the database or this instance knows: the active one first.
    pub keys: Vec<KeyReport>,
    /// Key that `rotate` makes the active one: the first of this instance's keyring.
    pub first: Box<str>,
    /// Instances that share the database, and cannot read the pending key.
    pub waiting_for: Vec<InstanceKeys>,
    /// Instances that share the database; none if it is not shared.
    pub instances: Vec<InstanceKeys>,
    /// Organizations with external IDs that cannot be decrypted, as the last pass of this instance
    /// found; only the first ones.
    pub unreadable: Vec<Box<str>>,
}

/// A key of external IDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyReport {
    /// Its id.
    pub id: Box<str>,
    /// Its part in the database.
    pub state: KeyState,
    /// Number of external IDs that are stored under it: those of integrations, and those that
    /// were issued.
    pub rows: u64,
    /// Whether this instance has it.
    pub is_readable: bool,
}

/// Part of a key in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// Everything that changes is stored under it.
    Active,
    /// It becomes the active one once every instance can read it.
    Pending,
    /// External IDs under it are being re-sealed.
    Retiring,
    /// The database does not need it.
    Unused,
}

impl KeysReport {
    /// Whether nothing is left to do.
    pub fn is_settled(&self) -> bool {
        let is_settled = |key: &KeyReport| matches!(key.state, KeyState::Active | KeyState::Unused);
        self.keys.iter().all(is_settled)
    }
}

/// See the module.
pub(super) struct Rotation {
    sealer: Arc<Sealer>,
    catalog: Arc<Catalog>,
    ownership: Arc<dyn Ownership>,
    /// Whether other instances may change the keys.
    is_shared: bool,
    wake: Notify,
    /// Result of the last pass.
    unreadable: Mutex<Unreadable>,
}

impl Rotation {
    /// Starts the task that continues rotations.
    pub(super) fn start(
        sealer: Arc<Sealer>,
        catalog: Arc<Catalog>,
        ownership: Arc<dyn Ownership>,
        is_shared: bool,
    ) -> Arc<Self> {
        let rotation = Arc::new(Self {
            sealer,
            catalog: Arc::clone(&catalog),
            ownership,
            is_shared,
            wake: Notify::new(),
            unreadable: Mutex::default(),
        });
        catalog.spawn(Arc::clone(&rotation).run());
        rotation
    }

    /// Makes the first key of this instance the active one, as soon as every instance can read it.
    /// Stored external IDs are re-sealed in the background.
    pub(super) async fn rotate(&self) -> Result<KeysReport, StoreError> {
        let keys = self.catalog.registry().propose_key(self.sealer.first());
        let keys = keys.await?;
        self.activate(keys).await?;
        *self.unreadable() = Unreadable::default();
        self.wake.notify_one();
        self.report().await
    }

    /// Returns the keys as they are.
    pub(super) async fn report(&self) -> Result<KeysReport, StoreError> {
        let registry = self.catalog.registry();
        let keys = registry.keys().await?;
        let usage = registry.key_usage().await?;
        let instances = self.ownership.instances().await?;
        let mut ids: Vec<&str> = keys.all().collect();
        for id in self.sealer.key_ids() {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let state = |id: &str| {
            if *keys.active == *id {
                KeyState::Active
            } else if keys.pending.as_deref() == Some(id) {
                KeyState::Pending
            } else if keys.retiring.iter().any(|one| **one == *id) {
                KeyState::Retiring
            } else {
                KeyState::Unused
            }
        };
        let report = ids.into_iter().map(|id| KeyReport {
            id: id.into(),
            state: state(id),
            rows: usage.get(id).copied().unwrap_or(0),
            is_readable: self.sealer.has(id),
        });
        Ok(KeysReport {
            keys: report.collect(),
            first: self.sealer.first().into(),
            waiting_for: match &keys.pending {
                Some(pending) => lacking(pending, &instances),
                None => Vec::new(),
            },
            instances,
            unreadable: self.unreadable().organizations.iter().cloned().collect(),
        })
    }

    fn unreadable(&self) -> MutexGuard<'_, Unreadable> {
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>) {
        let mut last_error = None;
        loop {
            let pause = match self.step().await {
                Ok(pause) => {
                    last_error = None;
                    pause
                }
                Err(StoreError::Closed) => return,
                Err(error) => {
                    let text = error.to_string();
                    if last_error.as_ref() != Some(&text) {
                        tracing::warn!(%error, "cannot rotate the keys of external IDs");
                        last_error = Some(text);
                    }
                    Some(LOOK)
                }
            };
            let waiting = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = waiting => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Does what is to do. Returns the time until the next look; None if only a command changes
    /// anything.
    async fn step(&self) -> Result<Option<Duration>, StoreError> {
        let registry = self.catalog.registry();
        let keys = registry.keys().await?;
        if let Some(lacking) = keys.stored().find(|id| !self.sealer.has(id)) {
            // It was cut off, while the others did not wait for it.
            let text = format!("this instance lacks the external ID key {lacking}");
            self.catalog.fail(&StoreError::Failed(text));
            return Err(StoreError::Closed);
        }
        let keys = self.activate(keys).await?;
        let idle = self.is_shared.then_some(LOOK);
        if keys.retiring.is_empty() {
            return Ok(idle);
        }
        let resealer = Resealer {
            from: &self.sealer,
            to: self.sealer.under(&keys)?,
        };
        let mut pass = ResealPass::default();
        while !pass.is_complete {
            registry.reseal(&mut pass, &resealer).await?;
            tokio::time::sleep(PAUSE).await;
        }
        let left = registry.retire_keys(now()).await?;
        let ResealPass {
            resealed,
            unreadable,
            is_outdated,
            ..
        } = pass;
        if resealed > 0 {
            tracing::info!(resealed, active = %left.active, "external IDs were re-sealed");
        }
        if is_outdated {
            return Ok(Some(PAUSE));
        }
        let before = std::mem::replace(&mut *self.unreadable(), unreadable.clone());
        if unreadable.rows > 0 && unreadable != before {
            let organizations: Vec<&str> =
                unreadable.organizations.iter().map(|id| &**id).collect();
            tracing::error!(
                rows = unreadable.rows,
                organizations = organizations.join(" "),
                "external IDs cannot be decrypted and keep their key; configure them again"
            );
        }
        for retired in keys
            .retiring
            .iter()
            .filter(|id| !left.retiring.contains(id))
        {
            tracing::info!(
                key = %retired,
                "no external ID needs the key any more; it can be removed from the key file"
            );
        }
        Ok(match left.retiring.is_empty() {
            true => idle,
            false => Some(PASS_AGAIN),
        })
    }

    /// Activates the pending key, if every instance can read it.
    async fn activate(&self, keys: Keys) -> Result<Keys, StoreError> {
        let Some(pending) = keys.pending.clone() else {
            return Ok(keys);
        };
        if !self.sealer.has(&pending) || !self.is_ready(&pending).await? {
            return Ok(keys);
        }
        let ready = || self.is_ready(&pending).boxed();
        let activated = self
            .catalog
            .registry()
            .activate_key(&pending, &ready)
            .await?;
        if activated.active == pending {
            tracing::info!(key = %pending, "the external ID key is active");
        }
        Ok(activated)
    }

    /// Whether every instance can read a key.
    async fn is_ready(&self, key: &str) -> Result<bool, StoreError> {
        Ok(lacking(key, &self.ownership.instances().await?).is_empty())
    }
}

/// Instances that cannot read a key.
fn lacking(key: &str, instances: &[InstanceKeys]) -> Vec<InstanceKeys> {
    let lacks = |one: &&InstanceKeys| one.keys.iter().all(|readable| **readable != *key);
    instances.iter().filter(lacks).cloned().collect()
}
