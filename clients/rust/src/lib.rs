//! Client of the `siem.v1` API of siem-relay: a [`Client`] with deadlines, retries and typed errors,
//! over TLS and with tokens where [`ChannelOptions`] name them; a [`Publisher`] that publishes events
//! over disconnects and restarts of the server, and a [`StatusWatch`] that follows statuses likewise.
//! The messages are in [`v1`].
//!
//! ```no_run
//! use siem_client::{ChannelOptions, Client, StatusEvent, v1::{Event, GetRequest}};
//! use std::time::Duration;
//!
//! # async fn example(event: Event) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(&ChannelOptions::new("http://127.0.0.1:50051"))?;
//!
//! // One call.
//! let organization_id = "acme".to_owned();
//! let answer = client.get(GetRequest { organization_id }).await?;
//! println!("{:?}", answer.integration);
//!
//! // Events, each answered once it is durable.
//! let publisher = client.publisher(Default::default());
//! let receipt = publisher.send(&event).await?;
//! println!("{:?}", receipt.await?.outcome);
//! publisher.close(Duration::from_secs(30)).await?;
//!
//! // Statuses of all organizations: a snapshot, then each change.
//! let mut statuses = client.watch_status(vec![]);
//! loop {
//!     match statuses.next().await? {
//!         StatusEvent::Snapshot(snapshot) => println!("{:?}", snapshot.statuses),
//!         change => println!("{change:?}"),
//!     }
//! }
//! # }
//! ```

mod batch;
mod channel;
mod client;
mod connector;
mod deferred;
mod error;
mod publish_loop;
mod publisher;
mod replay;
mod retry;
#[cfg(feature = "testing")]
pub mod testing;
mod token;
pub mod v1;
mod watch;
mod window;

pub use channel::{Channel, ChannelError, ChannelOptions};
pub use client::Client;
pub use error::{SiemError, Violation};
/// Types of other crates that this crate's interface is made of: time stamps of messages, and the
/// code and status of a gRPC error.
pub use prost_types::Timestamp;
pub use publish_loop::{
    Ack, Deferral, EventSender, PublishLoop, PublishStopped, PublisherError, PublisherOptions,
    Retrying, Update, Updates,
};
pub use publisher::{
    Outcome, PublishReceipt, PublishResult, Publisher, PublisherStats, UnacknowledgedError,
};
pub use token::Token;
pub use tonic::{Code, Status};
pub use watch::{StatusEvent, StatusSnapshot, StatusWatch, status_of};

/// Address at which `siem-relay serve` listens by default.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:50051";

/// Returns a channel to an address without a token, over TLS if it begins with `https://`:
/// [`ChannelOptions`] without options.
///
/// # Errors
///
/// Those of [`ChannelOptions::connect`].
pub fn channel(address: &str) -> Result<Channel, ChannelError> {
    ChannelOptions::new(address).connect()
}

#[cfg(test)]
mod tests;
