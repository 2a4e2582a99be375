//! Client of the `siem.v1` API of siem-relay: the messages and generated clients ([`v1`]), a
//! [`channel`], a [`Publisher`] that publishes events over disconnects and restarts of the
//! server, and a [`StatusWatch`] that follows statuses likewise.
//!
//! ```no_run
//! use siem_client::{
//!     Publisher, PublisherOptions, StatusEvent, StatusWatch, Update, channel,
//!     v1::{Event, GetRequest, siem_integration_service_client::SiemIntegrationServiceClient},
//! };
//! use std::time::Duration;
//!
//! # async fn example(event: Event) -> Result<(), Box<dyn std::error::Error>> {
//! let channel = channel("http://127.0.0.1:50051")?;
//!
//! // One call.
//! let mut integrations = SiemIntegrationServiceClient::new(channel.clone());
//! let organization_id = "acme".to_owned();
//! let integration = integrations.get(GetRequest { organization_id }).await?;
//! println!("{:?}", integration.into_inner().integration);
//!
//! // Events, each answered once it is durable.
//! let (sender, mut updates, publisher) =
//!     Publisher::new(channel.clone(), PublisherOptions::default());
//! let running = tokio::spawn(publisher.run());
//! sender.send(&event, 1).await?;
//! drop(sender);
//! while let Some(update) = updates.recv().await {
//!     if let Update::Ack(ack) = update {
//!         println!("events {:?}: {:?}", ack.tags, ack.outcome);
//!     }
//! }
//! running.await??;
//!
//! // Statuses of all organizations.
//! let mut statuses = StatusWatch::new(channel, vec![], Duration::from_secs(90));
//! loop {
//!     if let StatusEvent::Current(current) = statuses.next().await? {
//!         println!("{}: {:?}", current.organization_id, current.status);
//!     }
//! }
//! # }
//! ```

use std::time::Duration;

use tonic::transport::Endpoint;

mod batch;
mod deferred;
mod publisher;
mod retry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod v1;
mod watch;
mod window;

/// Types of other crates that this crate's interface is made of: time stamps of messages, the
/// code and status of a gRPC error, and the connection.
pub use prost_types::Timestamp;
pub use publisher::{
    Ack, Deferral, EventSender, PublishStopped, Publisher, PublisherError, PublisherOptions,
    Retrying, Update, Updates,
};
pub use tonic::{Code, Status, transport::Channel};
pub use watch::{StatusEvent, StatusWatch};

/// Address at which `siem-relay serve` listens by default.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:50051";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings while a call is open; they detect a peer that vanished.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason for which an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not a URL with a host.
    #[error("address {0:?} is not of the form http://HOST:PORT")]
    Malformed(String),
    /// The scheme is not `http`.
    #[error("address {0:?} has an unsupported scheme; use http://HOST:PORT")]
    Scheme(String),
}

/// Returns a channel that connects at its first use, and again whenever the connection was
/// lost. An address without a scheme counts as `http://`.
///
/// # Errors
///
/// [`AddressError`] if the address is not an `http` URL. An address at which nothing listens
/// fails at the first call.
pub fn channel(address: &str) -> Result<Channel, AddressError> {
    let malformed = || AddressError::Malformed(address.to_owned());
    let url = match address.split_once("://") {
        None => format!("http://{address}"),
        Some(("http", _)) => address.to_owned(),
        Some(_) => return Err(AddressError::Scheme(address.to_owned())),
    };
    let endpoint = Endpoint::from_shared(url).map_err(|_| malformed())?;
    if endpoint.uri().host().is_none_or(str::is_empty) {
        return Err(malformed());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .connect_lazy())
}

#[cfg(test)]
mod tests;
