//! A local stand-in for AWS STS, IAM role trust and Kinesis Data Streams.
//!
//! It serves AWS' wire protocols on one loopback port, so that an unmodified AWS SDK uses it
//! through `AWS_ENDPOINT_URL_STS` and `AWS_ENDPOINT_URL_KINESIS`. It enforces the rules that
//! decide whether a delivery succeeds: trust policies with external ID, permission and session
//! policies, signatures, expiry of credentials, existence of streams, and the limits of records,
//! requests and shards. Faults are injected on demand. `docs/stand-in.md` lists what is enforced
//! and what is not.
//!
//! # In a test
//!
//! Start a stand-in, create a role and a stream in it, point the SDK at [`StandIn::url`] with
//! [`vendor_credentials`], and inspect or disturb it through [`Control`]:
//!
//! ```
//! use aws_stand_in::{Effect, Fault, Operation, Options, RoleSpec, StandIn, StreamSpec, When};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stand_in = StandIn::start(Options::default()).await?;
//! let control = stand_in.control();
//!
//! let role = "arn:aws:iam::222222222222:role/siem";
//! let stream = "arn:aws:kinesis:us-east-1:222222222222:stream/detections";
//! let trust_policy = r#"{"Statement": {
//!     "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "111111111111"},
//!     "Condition": {"StringEquals": {"sts:ExternalId": "secret"}}}}"#;
//! let permission_policy = r#"{"Statement": {
//!     "Effect": "Allow", "Action": "kinesis:PutRecords", "Resource": "*"}}"#;
//! control.put_role(RoleSpec::new(role, trust_policy, permission_policy))?;
//! control.create_stream(StreamSpec::new(stream, 1))?;
//!
//! // The next three PutRecords to this stream fail.
//! control.add_fault(Fault {
//!     operation: Some(Operation::PutRecords),
//!     target: Some(stream.to_owned()),
//!     calls: Some(3),
//!     when: When::Before,
//!     effect: Effect::Error {
//!         code: "KMSDisabledException".to_owned(),
//!         status: 400,
//!         message: String::new(),
//!     },
//! })?;
//!
//! // Run the code under test with AWS_ENDPOINT_URL_STS and AWS_ENDPOINT_URL_KINESIS set to this.
//! println!("{}", stand_in.url());
//!
//! let records = control.records(stream, 0, 100)?;
//! assert!(records.is_empty());
//! stand_in.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Code map
//!
//! | module | subject |
//! | --- | --- |
//! | `server` | path of one call: faults, authentication, the operation, its response |
//! | `fault` | injected faults |
//! | `sigv4`, `identity` | signatures; credentials, roles and sessions |
//! | `sts`, `kinesis` | the operations |
//! | `policy` | IAM policy documents |
//! | `stream` | shards, records and retention in memory |
//! | `call_log`, `order_hazards` | calls counted for assertions in tests |
//! | `control`, `control_http` | the control interface from Rust and over HTTP |

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

/// Longest wait of a shutdown for calls in flight.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// Start options of a stand-in.
#[derive(Clone)]
pub struct Options {
    /// Listen address: loopback only; port 0 selects a free port.
    pub listen: SocketAddr,
    /// Long-term credentials that are valid from the start: those of the vendor.
    pub credentials: Vec<LongTermCredentials>,
    /// Whether a shard is limited to 1,000 records and 1 MiB per second.
    pub enforce_shard_limits: bool,
    /// Whether signatures are verified. Access keys and session tokens are always checked.
    pub verify_signatures: bool,
    /// Limit of the records kept in memory over all streams; the oldest are dropped first.
    pub max_retained_records: u64,
    /// Limit of the bytes of data and keys kept in memory over all streams.
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

/// Well-known credentials of the user `relay` in the vendor's account 111111111111. They are
/// valid for stand-ins only.
pub fn vendor_credentials() -> LongTermCredentials {
    LongTermCredentials {
        access_key_id: "AKIASANDBOXVENDOR000".to_owned(),
        secret_access_key: "sandbox/vendor/secret/access/key/0000000".to_owned(),
        principal_arn: "arn:aws:iam::111111111111:user/relay".to_owned(),
        policy: None,
    }
}

/// A running stand-in. Dropping it stops it at once; [`StandIn::shutdown`] waits for calls in
/// flight.
pub struct StandIn {
    address: SocketAddr,
    control: Control,
    stop: CancellationToken,
    server: JoinHandle<io::Result<()>>,
}

impl StandIn {
    /// Starts listening and serving on the current Tokio runtime.
    ///
    /// # Errors
    /// The address is not loopback or is in use, or credentials are invalid.
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

    /// Endpoint URL of both services and of the control endpoint.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Listen address, with the port that was selected.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Control handle.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Stops accepting calls, clears all faults so that hanging calls continue, and waits up to
    /// five seconds for the calls in flight.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        self.control.clear_faults();
        // After the deadline, calls in flight are left to the tasks of their connections.
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
