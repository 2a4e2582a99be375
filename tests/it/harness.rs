//! The service as it is, on a free port, with the stand-in for AWS behind it.

mod age;
mod api;
mod audit;
mod auditor;
mod customer;
mod database;
mod disk;
mod env;
mod feeds;
mod gateway;
mod health;
mod load;
mod process;
mod raw;
mod stream;
mod syncs;
mod tool;

use std::{future::Future, time::Duration};

use aws_stand_in::{
    Control, Effect, Fault, FaultId, Operation, Options, StandIn, When, vendor_credentials,
};
use siem_client::v1;
use siem_relay::sink::StandInAccess;
use tempfile::TempDir;

pub use age::{age_deliveries, age_log};
pub use api::{Api, reason, violated};
pub use audit::{Audited, audit};
pub use auditor::{auditor, verified};
pub use customer::Customer;
pub use database::database;
pub use disk::Disk;
pub use env::Relay;
pub use feeds::{StatusFeed, Told};
pub use gateway::Gateway;
pub use load::{Load, Published, detection, event};
pub use process::Process;
pub use raw::{framed, gzip};
pub use stream::{Arrived, GapTold, arrive, check_in_order, check_whole, check_with_gaps};
pub use syncs::Syncs;
pub use tool::{Ended, run, run_with_input, tool, with_aws};

/// How long anything that is waited for may take, on a disk of which a sync may take most of
/// it. It only fails a test: nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits for what must come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("waited in vain for {what}"),
    }
}

/// Tells who runs the tests, as far as `--nocapture` or a failure shows it.
#[expect(
    clippy::print_stderr,
    reason = "what a test did is told beside its verdict"
)]
pub fn say(what: &str) {
    eprintln!("{what}");
}

/// A number from the environment, where it has `SIEM_RELAY_TEST_` and this name.
pub fn knob(name: &str, otherwise: u64) -> u64 {
    let given = std::env::var(format!("SIEM_RELAY_TEST_{name}"));
    given.map_or(otherwise, |text| text.parse().unwrap())
}

/// Calls that hang.
pub struct Hanging {
    pub id: FaultId,
    calls: u64,
}

/// A running service, the AWS behind it, and its data directory.
pub struct World {
    pub aws: Control,
    pub relay: Relay,
    pub api: Api,
    stand_in: StandIn,
    dir: TempDir,
    settings: Vec<(String, String)>,
}

impl World {
    /// With retries that do not keep a test waiting, and shards that take everything.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With some settings of its own.
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
            api: relay.api(),
            relay,
            stand_in,
            dir,
            settings,
        }
    }

    /// Stops in order and starts on the same data.
    pub async fn restart(self) -> Self {
        self.relay.stop().await;
        let relay = Relay::start(self.dir.path(), &self.settings, access(&self.stand_in)).await;
        Self {
            api: relay.api(),
            relay,
            ..self
        }
    }

    /// As [`World::restart`], so much later.
    pub async fn restart_after(self, time: Duration) -> Self {
        self.relay.stop().await;
        age_log(self.dir.path(), time).await;
        let relay = Relay::start(self.dir.path(), &self.settings, access(&self.stand_in)).await;
        Self {
            api: relay.api(),
            relay,
            ..self
        }
    }

    /// Lets calls of an operation hang until the fault is cleared: so many, or all.
    pub fn hang(&self, operation: Operation, calls: Option<u64>) -> Hanging {
        let calls = calls.unwrap_or(1_000_000);
        let fault = Fault {
            operation: Some(operation),
            target: None,
            calls: Some(calls),
            when: When::Before,
            effect: Effect::Hang,
        };
        Hanging {
            id: self.aws.add_fault(fault).unwrap(),
            calls,
        }
    }

    /// How many calls have come to hang.
    fn hung(&self, hanging: &Hanging) -> u64 {
        let faults = self.aws.faults();
        let mut of_id = faults.iter().filter(|(id, _)| *id == hanging.id);
        let left = of_id.find_map(|(_, fault)| fault.calls);
        hanging.calls - left.expect("the fault is there")
    }

    /// Waits until so many calls have come to hang.
    pub async fn until_hanging(&self, hanging: &Hanging, calls: u64) {
        within("calls that hang", async {
            while self.hung(hanging) < calls {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Waits until AWS has seen that who made the calls that hang has hung up: those that
    /// are still there would go on where the fault is cleared.
    pub async fn until_hung_up(&self, hanging: &Hanging, operation: Operation) {
        let hung = self.hung(hanging);
        within("the end of calls that hang", async {
            while self.aws.call_count(operation, Some("Cancelled")) < hung {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Where the AWS is.
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

/// A stand-in whose shards take everything, until a test says otherwise.
pub async fn stand_in() -> StandIn {
    let options = Options {
        enforce_shard_limits: false,
        ..Options::default()
    };
    StandIn::start(options).await.unwrap()
}

/// Refusal of each call of an operation, on everything or on one stream or role.
pub fn refusal(operation: Operation, target: Option<&str>, code: &str, status: u16) -> Fault {
    Fault {
        operation: Some(operation),
        target: target.map(str::to_owned),
        calls: None,
        when: When::Before,
        effect: Effect::Error {
            code: code.to_owned(),
            status,
            message: String::new(),
        },
    }
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
