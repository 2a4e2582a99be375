//! A stand-in for AWS STS, IAM role trust and Kinesis Data Streams, on loopback.
//!
//! It speaks AWS' wire protocols, so that an untouched AWS SDK talks to it through
//! `AWS_ENDPOINT_URL_STS` and `AWS_ENDPOINT_URL_KINESIS`, and enforces what decides over
//! delivery: trust policies with external ID, permission and session policies, signatures,
//! credential expiry, stream existence, record, request and shard limits. Faults are set on
//! demand. `docs/stand-in.md` tells what it enforces and what it does not.
//!
//! # The code map
//!
//! A call goes through [`server`]: faults ([`fault`]), authentication ([`sigv4`],
//! [`identity`]), then the service ([`sts`], [`kinesis`]), which asks [`policy`] and works on
//! [`stream`]. [`control`] is the handle for tests, [`control_http`] the same over HTTP.

mod call_log;
pub mod cbor;
mod control;
mod control_http;
mod error;
mod fault;
mod form;
mod identity;
mod kinesis;
mod order_hazards;
mod policy;
mod server;
mod sigv4;
mod state;
mod stream;
mod sts;
mod token;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use control::{
    AnsweredCall, CallCount, Control, ControlError, HazardCounts, LongTermCredentials, Operation,
    Record, RecordStream, RoleSpec, SessionLifetime, StreamSpec, StreamStats,
};
pub use fault::{Effect, Fault, FaultId, When};
pub use policy::PolicyError;

use state::Shared;

/// How long shutdown waits for calls in flight.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// How a stand-in starts.
#[derive(Clone)]
pub struct Options {
    /// Where to listen: a loopback address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Long-term credentials that are valid from the start: the vendor's own.
    pub credentials: Vec<LongTermCredentials>,
    /// Whether a shard takes only 1,000 records and 1 MiB a second.
    pub enforce_shard_limits: bool,
    /// Whether signatures are verified. Keys and tokens always are.
    pub verify_signatures: bool,
    /// Records kept in memory over all streams; beyond, the oldest are dropped.
    pub max_retained_records: u64,
    /// Bytes of data and keys kept in memory over all streams.
    pub max_retained_bytes: u64,
}

impl Default for Options {
    /// A free port, [`vendor_credentials`], everything enforced, a million records or 1 GiB.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            credentials: vec![vendor_credentials()],
            enforce_shard_limits: true,
            verify_signatures: true,
            max_retained_records: 1_000_000,
            max_retained_bytes: 1 << 30,
        }
    }
}

/// Well-known credentials of the user `relay` in the vendor's account 111111111111. They
/// open nothing but stand-ins.
pub fn vendor_credentials() -> LongTermCredentials {
    LongTermCredentials {
        access_key_id: "AKIASANDBOXVENDOR000".to_owned(),
        secret_access_key: "sandbox/vendor/secret/access/key/0000000".to_owned(),
        principal_arn: "arn:aws:iam::111111111111:user/relay".to_owned(),
        policy: None,
    }
}

/// A running stand-in. Dropping it stops it at once; [`StandIn::shutdown`] is gentler.
pub struct StandIn {
    address: SocketAddr,
    control: Control,
    stop: CancellationToken,
    server: JoinHandle<io::Result<()>>,
}

impl StandIn {
    /// Starts to listen and serve on the current Tokio runtime.
    ///
    /// # Errors
    /// The address is not loopback or is taken, or credentials are invalid.
    pub async fn start(options: Options) -> io::Result<Self> {
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidInput, error);
        if !options.listen.ip().is_loopback() {
            let address = options.listen;
            return Err(invalid(format!(
                "listen {address} is not a loopback address: use 127.0.0.1"
            )));
        }
        let shared = Arc::new(Shared::new(&options));
        let control = Control {
            shared: Arc::clone(&shared),
        };
        for credentials in options.credentials {
            control
                .put_credentials(credentials)
                .map_err(|error| invalid(error.to_string()))?;
        }
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let server = tokio::spawn(server::serve(
            listener,
            shared,
            stop.clone().cancelled_owned(),
        ));
        Ok(Self {
            address,
            control,
            stop,
            server,
        })
    }

    /// The endpoint URL of both services.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The control handle.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Stops taking calls, lets those that hang go on, and waits up to five seconds for calls
    /// in flight to be answered.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        self.control.clear_faults();
        // What is not answered by then stays with its connection's task; nobody waits for it.
        let _ = tokio::time::timeout(SHUTDOWN_DEADLINE, &mut self.server).await;
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.stop.cancel();
        self.control.clear_faults();
        self.server.abort();
    }
}

#[cfg(test)]
mod tests;
