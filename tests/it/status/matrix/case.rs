//! One organization that meets one trouble, from one status.

use std::{
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use aws_stand_in::{Control, FaultId, Operation};
use serde_json::json;
use siem_client::v1::{self, Status, StatusReason};
use tokio::time::{Instant, sleep};

use super::trouble::Trouble;
use crate::harness::{
    Api, Arrived, Audited, Customer, Load, StatusFeed, Told, arrive, check_whole, within,
};

/// Events before the trouble and while it lasts.
const BEFORE: usize = 5;
const WHILE: usize = 25;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Active,
    Unknown,
}

pub struct Case {
    api: Api,
    aws: Control,
    trouble: Trouble,
    from: From,
    customer: Customer,
    load: Load,
    fault: Option<FaultId>,
    feed: Option<StatusFeed>,
    integration_id: String,
    /// What left the stream when it was deleted.
    gone: Vec<Arrived>,
    /// Status, reason, code and request id of each change, as pushed.
    told: Vec<v1::IntegrationStatus>,
}

/// How long it took, for people.
pub struct Figures {
    name: String,
    told: Duration,
    active: Duration,
    drained: Duration,
}

impl Figures {
    /// Leaves them as a table among the build's files.
    pub fn write(figures: &[Self]) {
        let mut table = String::from(
            "| row | told after ms | active after mending ms | drained after mending ms |\n| --- | --- | --- | --- |\n",
        );
        for one in figures {
            let [told, active, drained] =
                [one.told, one.active, one.drained].map(|time| time.as_millis());
            writeln!(table, "| {} | {told} | {active} | {drained} |", one.name).unwrap();
        }
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("status-matrix.md");
        fs::write(file, table).unwrap();
    }
}

impl Case {
    pub fn new(api: Api, aws: Control, at: usize, trouble: Trouble, from: From) -> Self {
        let organization_id = format!("row-{at:02}-{from:?}").to_lowercase();
        Self {
            load: Load::new(&organization_id, 5, at as u64),
            customer: Customer::new(&organization_id),
            api,
            aws,
            trouble,
            from,
            fault: None,
            feed: None,
            integration_id: String::new(),
            gone: Vec::new(),
            told: Vec::new(),
        }
    }

    fn organization_id(&self) -> &str {
        &self.customer.organization_id
    }

    /// Configures it, and brings it to the status that it starts from.
    pub async fn establish(&mut self) {
        self.trouble.make_account(&self.customer, &self.aws);
        let integration = self.api.configure(&self.customer).await;
        self.integration_id = integration.integration_id;
        let mut feed = self.api.watch(&[self.organization_id()], "").await;
        let unknown = Told::current(self.organization_id(), Status::Unknown);
        assert_eq!(feed.until_synced().await, [unknown]);
        self.feed = Some(feed);
        if self.from == From::Active {
            let events = self.load.events(BEFORE);
            self.api.publish(&events).await;
            self.next_is(Status::Active, StatusReason::Unspecified)
                .await;
            self.api.until_delivered(self.organization_id()).await;
        }
    }

    /// The next change that is pushed, which must be this one.
    async fn next_is(&mut self, status: Status, reason: StatusReason) -> v1::IntegrationStatus {
        let wanted = Told::because(self.organization_id(), status, reason);
        let feed = self.feed.as_mut().unwrap();
        assert_eq!(feed.next().await, wanted, "{:?}", self.trouble);
        let told = feed.last.clone().unwrap();
        self.told.push(told.clone());
        told
    }

    /// It goes wrong, and the status tells. Answers after how long.
    pub async fn shows(&mut self, reason: StatusReason, code: &str) -> Duration {
        if matches!(self.trouble, Trouble::NoStream) {
            self.gone = self.arrived(self.load.made.len()).await;
        }
        self.fault = self.trouble.begin(&self.customer, &self.aws, None);
        let (begun, begun_at) = (Instant::now(), SystemTime::now());
        self.publish(WHILE).await;
        let status = match reason {
            StatusReason::AssumeRoleDenied
            | StatusReason::WriteDenied
            | StatusReason::KmsDenied => Status::Unauthorized,
            _ => Status::Failing,
        };
        let told = self.next_is(status, reason).await;
        let told_after = begun.elapsed();
        self.check_told(&told, code, begun_at);
        let last = self.attempted_again(&told).await;
        self.check_same(&told, &last);
        told_after
    }

    /// It is mended, and all is well without anyone's help. Answers after how long it is
    /// active, and all is delivered.
    pub async fn heals(&mut self) -> (Duration, Duration) {
        let mended = Instant::now();
        self.trouble.mend(&self.customer, &self.aws, self.fault);
        self.turns_active().await;
        let active = mended.elapsed();
        self.is_delivered().await;
        (active, mended.elapsed())
    }

    pub async fn shows_and_heals(&mut self, reason: StatusReason, code: &str) -> Figures {
        let told = self.shows(reason, code).await;
        let (active, drained) = self.heals().await;
        Figures {
            name: format!("{:?} from {:?}", self.trouble, self.from),
            told,
            active,
            drained,
        }
    }

    /// Nothing gets through for a fault of the service, and the status says so.
    pub async fn is_unavailable(&mut self, code: &str) {
        self.publish(WHILE).await;
        let told = self
            .next_is(Status::Failing, StatusReason::ServiceUnavailable)
            .await;
        assert_eq!(told.aws_error_code, code);
        let (message, remedy) = words(told.reason());
        assert!(told.message.starts_with(message), "{told:?}");
        assert!(told.message.contains(remedy), "{told:?}");
    }

    /// The same customer in an AWS account of its own.
    pub fn in_account(mut self, account: u64) -> Self {
        self.customer = Customer::in_account(self.organization_id(), account, "eu-west-1");
        self
    }

    pub async fn turns_active(&mut self) {
        self.next_is(Status::Active, StatusReason::Unspecified)
            .await;
    }

    async fn publish(&mut self, count: usize) {
        let events = self.load.events(count);
        self.api.publish(&events).await;
    }

    /// It goes wrong for one call: no change of status tells of it.
    pub async fn passes(&mut self) {
        let fault = self.trouble.begin(&self.customer, &self.aws, Some(1));
        self.publish(WHILE).await;
        if self.from == From::Unknown {
            self.turns_active().await;
        }
        self.is_delivered().await;
        let met = self.aws.faults().into_iter();
        let met = met.filter(|(id, fault_left)| Some(*id) == fault && fault_left.calls == Some(0));
        assert_eq!(met.count(), 1, "{:?} was not met", self.trouble);
        let last = self.api.get(self.organization_id()).await.status.unwrap();
        assert_eq!(last.status(), Status::Active);
        assert_eq!(last.aws_error_code, "");
    }

    /// Everything that a status tells beside itself.
    fn check_told(&self, told: &v1::IntegrationStatus, code: &str, begun_at: SystemTime) {
        let who = format!("{:?} {told:?}", self.trouble);
        assert_eq!(told.aws_error_code, code, "{who}");
        let (message, remedy) = words(told.reason());
        assert!(told.message.starts_with(message), "{who}");
        assert!(told.message.contains(remedy), "{who}");
        assert_eq!(told.since_time, told.last_attempt_time, "{who}");
        let delivered_before = told.last_delivery_time.is_some();
        assert_eq!(delivered_before, self.from == From::Active, "{who}");
        let since = SystemTime::try_from(told.since_time.unwrap()).unwrap();
        let next = SystemTime::try_from(told.next_retry_time.unwrap()).unwrap();
        assert!(next > since, "{who}");
        let lasting = matches!(
            told.reason(),
            StatusReason::Throttled | StatusReason::Unreachable
        );
        if lasting {
            assert!(
                since.duration_since(begun_at).unwrap() >= Duration::from_secs(1),
                "{who}"
            );
        }
        let call = self.aws.call_by_request_id(&told.aws_request_id);
        let Some(outcome) = self.trouble.outcome(code) else {
            assert_eq!(told.aws_request_id, "", "{who}");
            return;
        };
        let call = call.unwrap_or_else(|| panic!("{who} has a request id of its own"));
        assert_eq!(
            (call.operation, &*call.outcome),
            (self.trouble.operation(), outcome),
            "{who}"
        );
        let target = match call.operation {
            Operation::AssumeRole => &self.customer.role_arn,
            _ => &self.customer.stream_arn,
        };
        assert_eq!(call.target, *target, "{who}");
        // What stays at the first answer is told by it; a request that Kinesis finds
        // invalid is halved first.
        if !lasting && code != "InvalidArgumentException" {
            // While it was active, the role was tried twice without its external ID.
            let is_denied = call.operation == Operation::AssumeRole && code == "AccessDenied";
            let probes = match is_denied && self.from == From::Active {
                true => 2,
                false => 0,
            };
            assert_eq!(call.nth, 1 + probes, "{who}");
        }
    }

    /// Asks until another attempt has failed.
    async fn attempted_again(&self, told: &v1::IntegrationStatus) -> v1::IntegrationStatus {
        self.asked_until(|status| status.last_attempt_time != told.last_attempt_time)
            .await
    }

    /// Asks, with pauses, since many ask at once.
    async fn asked_until(
        &self,
        good: impl Fn(&v1::IntegrationStatus) -> bool,
    ) -> v1::IntegrationStatus {
        within("a status", async {
            loop {
                let got = self.api.get(self.organization_id()).await.status.unwrap();
                if good(&got) {
                    return got;
                }
                sleep(Duration::from_millis(100)).await;
            }
        })
        .await
    }

    /// What Get tells later is what was pushed, but for mere times and ids.
    fn check_same(&self, told: &v1::IntegrationStatus, last: &v1::IntegrationStatus) {
        let mut last = last.clone();
        last.last_attempt_time = told.last_attempt_time;
        last.next_retry_time = told.next_retry_time;
        last.aws_request_id.clone_from(&told.aws_request_id);
        assert_eq!(last, *told, "{:?}", self.trouble);
    }

    /// Deletes it: that nothing else is told before shows that each change was told once.
    pub async fn end(&mut self) {
        self.api
            .delete(self.organization_id(), false)
            .await
            .unwrap();
        let deleted = Told::Deleted(self.organization_id().to_owned());
        assert_eq!(self.feed.as_mut().unwrap().next().await, deleted);
    }

    async fn arrived(&self, enough: usize) -> Vec<Arrived> {
        arrive(&self.aws, &self.customer.stream_arn, enough).await
    }

    /// All has arrived, each event once, and is counted so.
    pub async fn is_delivered(&mut self) {
        let all = self.load.made.len();
        let mut arrived = self.arrived(all - self.gone.len()).await;
        let counts = self.api.until_delivered(self.organization_id()).await;
        assert_eq!(
            (counts.accepted, counts.delivered),
            (all as u64, all as u64)
        );
        let stored = self.aws.stream(&self.customer.stream_arn).unwrap().accepted as usize;
        let twice = stored + self.gone.len() - all;
        let in_flight = if self.trouble.may_repeat() { WHILE } else { 0 };
        assert!(twice <= in_flight, "{:?}: {twice} came twice", self.trouble);
        arrived.append(&mut self.gone.clone());
        check_whole(&arrived, &self.integration_id, &self.load.made);
    }

    /// Each change that was pushed is audited once, and nothing else is.
    pub fn check_audit(&self, audited: &[Audited]) {
        let own = |one: &&Audited| one.organization_id == self.organization_id();
        let found: Vec<_> = audited.iter().filter(own).collect();
        let actions: Vec<_> = found.iter().map(|one| one.action.as_str()).collect();
        let changes = found.len() - 2;
        let expected = ["create"].into_iter().chain(vec!["status"; changes]);
        assert!(
            actions.iter().copied().eq(expected.chain(["delete"])),
            "{actions:?}"
        );
        let changes: Vec<_> = found[1..=changes]
            .iter()
            .map(|one| one.detail.clone())
            .collect();
        let told: Vec<_> = self.told.iter().map(detail).collect();
        assert_eq!(changes, told, "{:?} {:?}", self.trouble, self.from);
    }
}

/// A change of status as the audit has it.
fn detail(told: &v1::IntegrationStatus) -> serde_json::Value {
    let short = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_owned();
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let reason = match told.reason() {
        StatusReason::Unspecified => None,
        reason => Some(short(reason.as_str_name(), "STATUS_REASON_")),
    };
    json!({
        "status": short(told.status().as_str_name(), "STATUS_"),
        "reason": reason,
        "aws_error_code": given(&told.aws_error_code),
        "aws_request_id": given(&told.aws_request_id),
    })
}

/// How a message begins, and what its remedy speaks of.
fn words(reason: StatusReason) -> (&'static str, &'static str) {
    match reason {
        StatusReason::AssumeRoleDenied => (
            "Unauthorized - check your Role ARN and External ID. ",
            "trust policy",
        ),
        StatusReason::WriteDenied => ("Unauthorized - ", "kinesis:PutRecords"),
        StatusReason::KmsDenied => ("Unauthorized - ", "kms:GenerateDataKey"),
        StatusReason::StreamNotFound => ("Failing - ", "Create the stream"),
        StatusReason::KmsUnavailable => ("Failing - ", "KMS key"),
        StatusReason::InvalidConfiguration => ("Failing - ", "error code"),
        StatusReason::Throttled => ("Failing - ", "shards"),
        StatusReason::Unreachable => ("Failing - ", "events wait"),
        StatusReason::ServiceUnavailable => ("Failing - ", "Nothing to change in your account"),
        reason => panic!("{reason:?} is no row"),
    }
}
