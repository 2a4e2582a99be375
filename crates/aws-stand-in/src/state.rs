//! State that is shared by all calls of a stand-in.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Options;
use super::call_log::CallLog;
use super::control::SessionLifetime;
use super::fault::Faults;
use super::identity::Identities;
use super::order_hazards::OrderHazards;
use super::stream::Streams;

pub(super) struct Shared {
    pub(super) identities: Identities,
    pub(super) streams: Streams,
    pub(super) faults: Faults,
    pub(super) order_hazards: OrderHazards,
    pub(super) call_log: CallLog,
    pub(super) verify_signatures: bool,
    settings: Mutex<Settings>,
}

/// Settings that the control handle changes while the stand-in runs.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    pub(super) enforce_shard_limits: bool,
    pub(super) session_lifetime: Option<SessionLifetime>,
    /// Offset of the stand-in's clock from the machine's clock, in seconds.
    pub(super) clock_offset_seconds: i64,
}

impl Shared {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            identities: Identities::default(),
            streams: Streams::new(options.max_retained_records, options.max_retained_bytes),
            faults: Faults::default(),
            order_hazards: OrderHazards::default(),
            call_log: CallLog::default(),
            verify_signatures: options.verify_signatures,
            settings: Mutex::new(Settings {
                enforce_shard_limits: options.enforce_shard_limits,
                session_lifetime: None,
                clock_offset_seconds: 0,
            }),
        }
    }

    /// Milliseconds since 1970 by the clock that callers see: with the configured offset.
    pub(super) fn clock_ms(&self) -> i64 {
        now_ms() + self.settings().clock_offset_seconds * 1000
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970 by the machine's clock.
pub(super) fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_millis()).ok())
        .unwrap_or(0)
}
