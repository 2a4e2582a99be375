//! What can go wrong in a sandbox.

use std::{io, path::PathBuf, time::Duration};

use siem_client::Status;

use super::tally::Defect;
use crate::{app::AppError, config::ConfigError, publish::PublishError};
use aws_stand_in::ControlError;
use siem_client::{AddressError, PublisherError};

/// Why a sandbox did not start, or a run that has an end failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The port of the API is taken.
    #[error("port {port} is taken: choose another with --port, or --port 0 for a free one")]
    PortTaken {
        /// Which.
        port: u16,
    },
    /// The stand-in cannot listen.
    #[error(
        "the stand-in cannot listen on port {port}: {source}; choose another, or 0 for a free one"
    )]
    StandIn {
        /// Which.
        port: u16,
        /// What the system says.
        source: io::Error,
    },
    /// The customer's account cannot be set up in the stand-in.
    #[error("the stand-in refuses the account: {0}")]
    Account(#[from] ControlError),
    /// The directory for the database.
    #[error("cannot make a temporary directory for the database: {0}")]
    Directory(#[source] io::Error),
    /// The temporary directory has a name that cannot be a setting.
    #[error("the temporary directory {} is not UTF-8; set TMPDIR to another", .0.display())]
    DirectoryName(PathBuf),
    /// The temporary directory is left behind.
    #[error("cannot remove the temporary directory: {0}")]
    LeftBehind(#[source] io::Error),
    /// The service's settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service.
    #[error(transparent)]
    App(#[from] AppError),
    /// The service ended and nobody asked it to.
    #[error("the service ended by itself")]
    Ended,
    /// The service's address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The screen cannot be written.
    #[error("cannot start to print: {0}")]
    Screen(#[source] io::Error),
    /// Not everything was written.
    #[error("not everything could be printed: {0}")]
    Print(#[source] io::Error),
    /// A call of the API failed.
    #[error("{call} failed: {} ({:?})", .status.message(), .status.code())]
    Call {
        /// Which.
        call: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// Nothing came back any more.
    #[error(
        "nothing was read back for {} s: {read_back} of {goal} events arrived; the status is {status}",
        patience.as_secs()
    )]
    Stalled {
        /// How long was waited.
        patience: Duration,
        /// Events that were read back without a hole.
        read_back: u64,
        /// Events that should have been.
        goal: u64,
        /// The integration's status.
        status: String,
    },
    /// All came back, and the service does not say so.
    #[error(
        "all events were read back, but after {} s the service has not settled them; the status is {status}",
        patience.as_secs()
    )]
    Unsettled {
        /// How long was waited.
        patience: Duration,
        /// The integration's status.
        status: String,
    },
    /// The integration is gone, and its events with it.
    #[error("the integration was deleted: {read_back} events had arrived")]
    Deleted {
        /// Events that were read back without a hole.
        read_back: u64,
    },
    /// Events were accepted that nobody asked to keep.
    #[error("{count} events were not kept: organization {organization} has no integration")]
    Unconfigured {
        /// How many.
        count: u64,
        /// Whose.
        organization: String,
    },
    /// The service refused events.
    #[error("{count} events were rejected; the first: {first}")]
    Rejected {
        /// How many of a request.
        count: usize,
        /// Why.
        first: String,
    },
    /// A record in the stream is not as promised.
    #[error("a record of the stream is not as promised: {0}")]
    Defect(#[from] Defect),
    /// Events became a gap.
    #[error("{count} events were not delivered: a gap event stands in their place")]
    Gap {
        /// How many.
        count: u64,
    },
    /// Records were dropped by the stand-in before they were read.
    #[error("records were dropped before they were read back: read the output faster")]
    Overrun,
    /// Publishing ended early.
    #[error(transparent)]
    Publisher(#[from] PublisherError),
    /// The EVE file could not be published at all.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Not every line of the EVE file was published.
    #[error("not every alert of the file was accepted: {0}")]
    Eve(String),
    /// Whoever reads stdout is gone.
    #[error("the output was closed before all events were shown: {read_back} had arrived")]
    Closed {
        /// Events that were read back without a hole.
        read_back: u64,
    },
    /// A signal came before the end.
    #[error("interrupted: {read_back} events had arrived")]
    Interrupted {
        /// Events that were read back without a hole.
        read_back: u64,
    },
}

impl SandboxError {
    pub(super) fn call(call: &'static str, status: Status) -> Self {
        Self::Call {
            call,
            status: Box::new(status),
        }
    }
}
