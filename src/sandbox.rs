//! The sandbox: the service and a stand-in for the AWS services that it talks to, in
//! one process, and a show of detections that arrive.
//!
//! ```text
//! feed ──PublishStream──▶ service ──PutRecords──▶ stand-in ──records──▶ tally ──▶ screen
//!                          ▲   │                                                    ▲
//!               Configure ─┘   └──────────────── StreamStatus ──────────────────────┘
//! ```
//!
//! What is shown is what was read back from the stream. The service is spoken to only
//! through its public API, as any caller would.

mod account;
mod ending;
mod error;
mod feed;
mod hints;
mod samples;
mod screen;
mod show;
mod statuses;
mod tally;
mod world;

use std::{net::SocketAddr, time::Duration};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{domain::organization::OrganizationId, publish::Input};
use account::Account;
use screen::Screen;
use world::World;

pub use account::REGION;
pub use error::SandboxError;
pub use samples::{DEFAULT_DEVICE, DEFAULT_NETWORK};

/// The port of the gRPC API where none is asked for.
pub const DEFAULT_PORT: u16 = 50_051;

/// What the sandbox shows.
#[derive(Clone, Debug)]
pub struct Options {
    /// The port of the gRPC API.
    pub port: Port,
    /// The port of the stand-in; 0 takes a free one.
    pub aws_port: u16,
    /// The organization that gets an integration.
    pub organization: OrganizationId,
    /// What is published to it.
    pub feed: Feed,
    /// A run that has an end gives up when nothing arrived for so long.
    pub patience: Duration,
}

/// A port on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// This one; 0 takes a free one.
    Exactly(u16),
    /// This one, or a free one where it is taken.
    Preferably(u16),
}

/// What is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Samples at a pace that a person can follow, until a signal.
    Samples,
    /// So many samples as fast as they are taken.
    Count(u64),
    /// The alerts of a Suricata EVE file.
    Eve {
        /// EVE JSON, one object a line.
        input: Input,
        /// The network that the sensor watches.
        network_id: Uuid,
        /// The sensor.
        device_id: Uuid,
    },
}

impl Feed {
    /// Whether the run ends by itself.
    pub fn has_end(&self) -> bool {
        !matches!(self, Self::Samples)
    }
}

/// Runs the sandbox until what it feeds was read back, or until `shutdown`.
///
/// Writes to stdout and stderr: on a terminal all to stdout, for a person; otherwise
/// each CloudEvent as it was delivered to stdout, and all else to stderr.
///
/// # Errors
///
/// [`SandboxError`] where it cannot start, or where a run that has an end did not
/// bring everything back.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), SandboxError> {
    let account = Account::new();
    let mut world = World::start(&options, &account).await?;
    let (screen, printer) = match Screen::start() {
        Ok(started) => started,
        Err(error) => {
            world.shutdown().await?;
            return Err(SandboxError::Screen(error));
        }
    };
    let shown = show::run(&options, &account, &mut world, &screen, &shutdown).await;
    let closed = world.shutdown().await;
    drop(screen);
    let printed = printer.finish(&shutdown).await;
    shown.and(closed)?;
    match printed {
        Err(error) if options.feed.has_end() => Err(SandboxError::Print(error)),
        _ => Ok(()),
    }
}

/// Runs only the stand-in until `shutdown`; `started` is told its address.
///
/// # Errors
///
/// [`SandboxError`] where the port is taken.
pub async fn run_aws_only(
    port: u16,
    shutdown: CancellationToken,
    started: impl FnOnce(SocketAddr),
) -> Result<(), SandboxError> {
    let stand_in = world::start_stand_in(port).await?;
    started(stand_in.address());
    shutdown.cancelled().await;
    stand_in.shutdown().await;
    Ok(())
}
