//! Errors of the sandbox.

use std::{io, path::PathBuf, time::Duration};

use siem_client::Status;

use super::tally::Defect;
use crate::{
    app::AppError, config::ConfigError, dev_credentials::DevCredentialsError, publish::PublishError,
};
use aws_stand_in::ControlError;
use siem_client::{ChannelError, PublisherError};

/// Reason for which a sandbox did not start, or a run that ends by itself failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The port of the API is taken.
    #[error("port {port} is taken: choose another with --port, or --port 0 for a free one")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The stand-in cannot listen.
    #[error(
        "the stand-in cannot listen on port {port}: {source}; choose another, or 0 for a free one"
    )]
    StandIn {
        /// The port.
        port: u16,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The customer's account cannot be set up in the stand-in.
    #[error("the stand-in refuses the account: {0}")]
    Account(#[from] ControlError),
    /// The directory for the database cannot be created.
    #[error("cannot create a temporary directory for the database: {0}")]
    Directory(#[source] io::Error),
    /// The path of the temporary directory is not UTF-8.
    #[error("the temporary directory {} is not UTF-8; set TMPDIR to another", .0.display())]
    DirectoryName(PathBuf),
    /// The temporary directory cannot be removed.
    #[error("cannot remove the temporary directory: {0}")]
    LeftBehind(#[source] io::Error),
    /// Invalid settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The service does not start, or failed.
    #[error(transparent)]
    App(#[from] AppError),
    /// The service ended without being stopped.
    #[error("the service ended by itself")]
    Ended,
    /// The service cannot be reached with these credentials.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The development credentials cannot be made.
    #[error(transparent)]
    Credentials(#[from] DevCredentialsError),
    /// The printing thread does not start.
    #[error("cannot start the printing thread: {0}")]
    Screen(#[source] io::Error),
    /// Not everything was written.
    #[error("not everything could be printed: {0}")]
    Print(#[source] io::Error),
    /// A call of the API failed.
    #[error("{call} failed: {} ({:?})", .status.message(), .status.code())]
    Call {
        /// Name of the call.
        call: &'static str,
        /// The answer.
        status: Box<Status>,
    },
    /// Nothing was read back for too long.
    #[error(
        "nothing was read back for {} s: {read_back} of {goal} events arrived; the status is {status}",
        stall_timeout.as_secs()
    )]
    Stalled {
        /// Time that was waited.
        stall_timeout: Duration,
        /// Events that were read back before the first missing one.
        read_back: u64,
        /// Events that were expected.
        goal: u64,
        /// The integration's status.
        status: String,
    },
    /// Everything was read back, but the service has not recorded it.
    #[error(
        "all events were read back, but after {} s the service has not settled them; the status is {status}",
        stall_timeout.as_secs()
    )]
    Unsettled {
        /// Time that was waited.
        stall_timeout: Duration,
        /// The integration's status.
        status: String,
    },
    /// The integration was deleted, and its pending events with it.
    #[error("the integration was deleted: {read_back} events had arrived")]
    Deleted {
        /// Events that were read back before the first missing one.
        read_back: u64,
    },
    /// Events of an organization without an integration.
    #[error("{count} events were not kept: organization {organization} has no integration")]
    Unconfigured {
        /// Number of events.
        count: u64,
        /// The organization.
        organization: String,
    },
    /// The service refused events.
    #[error("{count} events were rejected; the first: {first}")]
    Rejected {
        /// Number of rejections in one answer.
        count: usize,
        /// The first rejection.
        first: String,
    },
    /// A record violates the event format.
    #[error("a record violates the event format: {0}")]
    Defect(#[from] Defect),
    /// A gap event stands for events that were not delivered.
    #[error("{count} events were not delivered: a gap event stands in their place")]
    Gap {
        /// Number of events.
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
    /// The reader of stdout closed it.
    #[error("the output was closed before all events were shown: {read_back} had arrived")]
    Closed {
        /// Events that were read back before the first missing one.
        read_back: u64,
    },
    /// A signal was received before the end.
    #[error("interrupted: {read_back} events had arrived")]
    Interrupted {
        /// Events that were read back before the first missing one.
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
