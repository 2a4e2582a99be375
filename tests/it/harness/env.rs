//! The service inside this process, with the stand-in for AWS behind it.

use std::{net::SocketAddr, path::Path, time::Duration};

use aws_stand_in::{Control, Fault, FaultId, Operation, StandIn, vendor_credentials};
use siem_client::v1;
use siem_relay::{
    app::{App, AppError},
    config::Config,
    sink::StandInAccess,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Api, Customer, backdate_log, fault, stand_in, with_timeout};

/// A running service.
pub struct Relay {
    pub address: SocketAddr,
    stop: CancellationToken,
    run: JoinHandle<Result<(), AppError>>,
}

impl Relay {
    /// Starts on a free port, with a first retry that does not keep a test waiting, and tests
    /// without a limit.
    async fn start(data_dir: &Path, settings: &[(String, String)], aws: StandInAccess) -> Self {
        let defaults = [
            ("listen", "127.0.0.1:0".to_owned()),
            ("data-dir", data_dir.to_str().unwrap().to_owned()),
            ("retry-first-ms", "20".to_owned()),
            ("test-interval-seconds", "0".to_owned()),
        ];
        let given = settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        let defaults = defaults
            .into_iter()
            .filter(|(name, _)| settings.iter().all(|(given, _)| given != name));
        let config = Config::from_pairs(defaults.chain(given)).unwrap();
        let app = with_timeout("the start", App::start(&config, Some(aws)))
            .await
            .unwrap();
        let address = app.address();
        let stop = CancellationToken::new();
        let run = tokio::spawn(app.run(stop.clone()));
        Self { address, stop, run }
    }

    /// Begins an orderly shutdown, without waiting for its end.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Shuts down in order.
    pub async fn stop(self) {
        self.stop.cancel();
        with_timeout("the stop", self.run).await.unwrap().unwrap();
    }
}

/// A running service, the AWS behind it, and its data directory.
pub struct TestEnv {
    pub aws: Control,
    pub relay: Relay,
    pub api: Api,
    stand_in: StandIn,
    dir: TempDir,
    settings: Vec<(String, String)>,
}

impl TestEnv {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts with settings other than the default.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let stand_in = stand_in().await;
        let dir = TempDir::new().unwrap();
        let settings: Vec<(String, String)> = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let relay = Relay::start(dir.path(), &settings, access(&stand_in)).await;
        Self {
            aws: stand_in.control(),
            api: Api::new(relay.address),
            relay,
            stand_in,
            dir,
            settings,
        }
    }

    /// Shuts down in order and starts again on the same data.
    pub async fn restart(self) -> Self {
        self.restart_after(Duration::ZERO).await
    }

    /// Restarts as [`TestEnv::restart`] does, with all log entries made older by `time`.
    pub async fn restart_after(self, time: Duration) -> Self {
        self.relay.stop().await;
        backdate_log(self.dir.path(), time).await;
        let relay = Relay::start(self.dir.path(), &self.settings, access(&self.stand_in)).await;
        Self {
            api: Api::new(relay.address),
            relay,
            ..self
        }
    }

    /// Lets calls of an operation hang until the fault is cleared: this number of them, or all.
    pub fn hang(&self, operation: Operation, calls: Option<u64>) -> HangingCalls {
        let limit = calls.unwrap_or(1_000_000);
        let fault = Fault {
            calls: Some(limit),
            ..fault(operation, None, aws_stand_in::Effect::Hang)
        };
        HangingCalls {
            id: self.aws.add_fault(fault).unwrap(),
            limit,
        }
    }

    /// Number of calls that hang or have hung.
    fn hung(&self, hanging: &HangingCalls) -> u64 {
        let faults = self.aws.faults();
        let mut of_id = faults.iter().filter(|(id, _)| *id == hanging.id);
        let left = of_id.find_map(|(_, fault)| fault.calls);
        hanging.limit - left.expect("the fault is there")
    }

    /// Waits until this number of calls hang.
    pub async fn until_hanging(&self, hanging: &HangingCalls, calls: u64) {
        with_timeout("calls that hang", async {
            while self.hung(hanging) < calls {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until the stand-in has seen the caller of each hanging call close its connection.
    /// Calls that remain would continue once the fault is cleared.
    pub async fn until_cancelled(&self, hanging: &HangingCalls, operation: Operation) {
        let hung = self.hung(hanging);
        with_timeout("the end of calls that hang", async {
            while self.aws.call_count(operation, Some("Cancelled")) < hung {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// URL of the stand-in for AWS.
    pub fn aws_url(&self) -> String {
        self.stand_in.url()
    }

    /// A customer whose role trusts us and may write to its stream, and its integration.
    pub async fn customer(&self, organization_id: &str) -> (Customer, v1::Integration) {
        let customer = Customer::new(organization_id);
        customer.make_role(&self.aws);
        customer.make_stream(&self.aws, 1);
        let integration = self.api.configure(&customer).await;
        (customer, integration)
    }
}

/// Calls that hang, by a fault of the stand-in.
pub struct HangingCalls {
    pub id: FaultId,
    limit: u64,
}

fn access(stand_in: &StandIn) -> StandInAccess {
    let own = vendor_credentials();
    StandInAccess {
        url: stand_in.url(),
        region: "us-east-1".to_owned(),
        access_key_id: own.access_key_id,
        secret_access_key: own.secret_access_key.into(),
    }
}
