//! The client side of the API: a channel, and a [`Publisher`] that keeps a
//! PublishStream going over disconnects and restarts of the server.
//!
//! ```text
//! EventSender ──▶ batches ──▶ window of unanswered requests ──▶ PublishStream
//!   (waits while too many bytes are unanswered)      ▲               │
//!                                                    └── answers ◀───┘──▶ Updates
//! ```

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

mod batch;
mod publisher;
mod retry;
mod window;

pub use publisher::{
    Ack, EventSender, PublishStopped, Publisher, PublisherError, PublisherOptions, Retrying,
    Update, Updates,
};

/// Where `siem-relay serve` listens by default.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:50051";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings while calls are open, so that a vanished peer is noticed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not a URL with a host.
    #[error("address {0:?} is not of the form http://HOST:PORT")]
    Malformed(String),
    /// The scheme is not `http`.
    #[error("address {0:?} has an unsupported scheme; use http://HOST:PORT")]
    Scheme(String),
}

/// Makes a channel that connects when it is first used, and again whenever the
/// connection is lost. Without a scheme, `http://` is assumed.
///
/// # Errors
///
/// [`AddressError`] where the address is not an `http` URL. Whether somebody
/// listens there shows at the first call.
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
pub(crate) mod testing;
#[cfg(test)]
mod tests;
