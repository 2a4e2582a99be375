//! The sandbox: the service and a stand-in for AWS in one process, with sample detections that
//! are published, delivered, read back and printed.
//!
//! ```text
//! feed ──PublishStream──▶ service ──PutRecords──▶ stand-in ──records──▶ tally ──▶ screen
//!                          ▲   │                                                    ▲
//!               Configure ─┘   └──────────────── StreamStatus ──────────────────────┘
//! ```
//!
//! Printed events are those that were read back from the stream. The service is called through
//! its public API only.

mod account;
mod color;
mod environment;
mod error;
mod event_view;
mod feed;
mod hints;
mod reader;
mod samples;
mod screen;
mod session;
mod statuses;
mod summary;
mod tally;

use std::{net::SocketAddr, time::Duration};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{domain::organization::OrganizationId, publish::Input};
use account::Account;
use environment::Environment;
use screen::Screen;

pub use account::REGION;
pub use error::SandboxError;
pub use samples::{DEFAULT_DEVICE, DEFAULT_NETWORK};

/// Default port of the gRPC API.
pub const DEFAULT_PORT: u16 = 50_051;

/// Options of the sandbox.
#[derive(Clone, Debug)]
pub struct Options {
    /// The port of the gRPC API.
    pub port: Port,
    /// The port of the stand-in; 0 takes a free one.
    pub aws_port: u16,
    /// The organization that gets an integration.
    pub organization: OrganizationId,
    /// TLS, client certificates and tokens, from development credentials.
    pub is_secure: bool,
    /// Events that are published to it.
    pub feed: Feed,
    /// Time without a delivery after which a run that ends by itself gives up.
    pub stall_timeout: Duration,
}

/// A port on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// This one; 0 takes a free one.
    Exactly(u16),
    /// This one, or a free one if it is taken.
    Preferably(u16),
}

/// Source of the events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Two samples a second, until a signal.
    Samples,
    /// This number of samples, as fast as they are accepted.
    Count(u64),
    /// The alerts of a Suricata EVE file.
    Eve {
        /// EVE JSON, one object per line.
        input: Input,
        /// The network that the sensor monitors.
        network_id: Uuid,
        /// The sensor.
        device_id: Uuid,
    },
}

impl Feed {
    /// Returns whether the run ends by itself.
    pub fn has_end(&self) -> bool {
        !matches!(self, Self::Samples)
    }
}

/// Runs the sandbox until everything published was read back, or until `shutdown`.
///
/// On a terminal everything is written to stdout. Otherwise each CloudEvent goes to stdout as it
/// was delivered, and all other text to stderr.
///
/// # Errors
///
/// [`SandboxError`] if it does not start, or if a run that ends by itself did not read everything
/// back.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), SandboxError> {
    let account = Account::new();
    let mut environment = Environment::start(&options, &account).await?;
    let (screen, printer) = match Screen::start() {
        Ok(started) => started,
        Err(error) => {
            environment.shutdown().await?;
            return Err(SandboxError::Screen(error));
        }
    };
    let result = session::run(&options, &account, &mut environment, &screen, &shutdown).await;
    let closed = environment.shutdown().await;
    drop(screen);
    let printed = printer.finish(&shutdown).await;
    result.and(closed)?;
    match printed {
        Err(error) if options.feed.has_end() => Err(SandboxError::Print(error)),
        _ => Ok(()),
    }
}

/// Runs the stand-in alone until `shutdown`. Calls `started` with its address.
///
/// # Errors
///
/// [`SandboxError`] if the port is taken.
pub async fn run_aws_only(
    port: u16,
    shutdown: CancellationToken,
    started: impl FnOnce(SocketAddr),
) -> Result<(), SandboxError> {
    let stand_in = environment::start_stand_in(port).await?;
    started(stand_in.address());
    shutdown.cancelled().await;
    stand_in.shutdown().await;
    Ok(())
}
