//! One organization that meets one trouble while it has one status.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use aws_stand_in::{Control, FaultId, Operation};
use siem_client::v1::{self, Status, StatusReason};
use tokio::time::{Instant, sleep};

use super::trouble::Trouble;
use crate::harness::{
    Api, AuditRow, Customer, DeliveredEvent, FeedEvent, Load, StatusFeed, check_complete,
    read_events, with_timeout,
};

/// Events published before the trouble, and during it.
const BEFORE: usize = 5;
const DURING: usize = 25;

/// Status before the trouble.
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
    /// Events of a stream that was deleted.
    deleted: Vec<DeliveredEvent>,
    /// Status of each change, as pushed.
    changes: Vec<v1::IntegrationStatus>,
}

/// Measured times, for information.
pub struct Figures {
    name: String,
    shown: Duration,
    active: Duration,
    drained: Duration,
}

impl Figures {
    /// Writes a table into the build's temporary directory.
    pub fn write(figures: &[Self]) {
        let mut table = String::from(
            "| row | shown after ms | active after repair ms | drained after repair ms |\n| --- | --- | --- | --- |\n",
        );
        for each in figures {
            let [shown, active, drained] =
                [each.shown, each.active, each.drained].map(|time| time.as_millis());
            let name = &each.name;
            writeln!(table, "| {name} | {shown} | {active} | {drained} |").unwrap();
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
            deleted: Vec::new(),
            changes: Vec::new(),
        }
    }

    fn organization_id(&self) -> &str {
        &self.customer.organization_id
    }

    /// Configures the integration and brings it to its first status.
    pub async fn establish(&mut self) {
        self.trouble.make_account(&self.customer, &self.aws);
        let integration = self.api.configure(&self.customer).await;
        self.integration_id = integration.integration_id;
        let mut feed = self.api.watch(&[self.organization_id()], "").await;
        let unknown = FeedEvent::current(self.organization_id(), Status::Unknown);
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

    /// Waits for the next change, which must be this one.
    async fn next_is(&mut self, status: Status, reason: StatusReason) -> v1::IntegrationStatus {
        let wanted = FeedEvent::with_reason(self.organization_id(), status, reason);
        let feed = self.feed.as_mut().unwrap();
        assert_eq!(feed.next().await, wanted, "{:?}", self.trouble);
        let status = feed.last.clone().unwrap();
        self.changes.push(status.clone());
        status
    }

    /// Begins the trouble, and checks the status that it leads to. Returns the time until then.
    pub async fn shows(&mut self, reason: StatusReason, code: &str) -> Duration {
        if matches!(self.trouble, Trouble::NoStream) {
            self.deleted = self.arrived(self.load.made.len()).await;
        }
        self.fault = self.trouble.begin(&self.customer, &self.aws, None);
        let (start, start_time) = (Instant::now(), SystemTime::now());
        self.publish(DURING).await;
        let status = match reason {
            StatusReason::AssumeRoleDenied
            | StatusReason::WriteDenied
            | StatusReason::KmsDenied => Status::Unauthorized,
            _ => Status::Failing,
        };
        let shown = self.next_is(status, reason).await;
        let shown_after = start.elapsed();
        self.check_details(&shown, code, start_time);
        let last = self.next_attempt(&shown).await;
        self.check_same(&shown, &last);
        shown_after
    }

    /// Repairs the trouble, after which everything recovers by itself. Returns the times until the
    /// status is ACTIVE and until everything is delivered.
    pub async fn recovers(&mut self) -> (Duration, Duration) {
        let repaired = Instant::now();
        self.trouble.repair(&self.customer, &self.aws, self.fault);
        self.becomes_active().await;
        let active = repaired.elapsed();
        self.check_delivered().await;
        (active, repaired.elapsed())
    }

    pub async fn shows_and_recovers(&mut self, reason: StatusReason, code: &str) -> Figures {
        let shown = self.shows(reason, code).await;
        let (active, drained) = self.recovers().await;
        Figures {
            name: format!("{:?} from {:?}", self.trouble, self.from),
            shown,
            active,
            drained,
        }
    }

    /// Publishes while no delivery is possible by a fault of this service, which the status must
    /// report.
    pub async fn becomes_unavailable(&mut self, code: &str) {
        self.publish(DURING).await;
        let shown = self
            .next_is(Status::Failing, StatusReason::ServiceUnavailable)
            .await;
        assert_eq!(shown.aws_error_code, code);
        let (message, remedy) = message_and_remedy(shown.reason());
        assert!(shown.message.starts_with(message), "{shown:?}");
        assert!(shown.message.contains(remedy), "{shown:?}");
    }

    /// The same case with the customer in another AWS account.
    pub fn in_account(mut self, account: u64) -> Self {
        self.customer = Customer::in_account(self.organization_id(), account, "eu-west-1");
        self
    }

    pub async fn becomes_active(&mut self) {
        self.next_is(Status::Active, StatusReason::Unspecified)
            .await;
    }

    async fn publish(&mut self, count: usize) {
        let events = self.load.events(count);
        self.api.publish(&events).await;
    }

    /// Begins the trouble for one call, which must change no status.
    pub async fn passes_unnoticed(&mut self) {
        let fault = self.trouble.begin(&self.customer, &self.aws, Some(1));
        self.publish(DURING).await;
        if self.from == From::Unknown {
            self.becomes_active().await;
        }
        self.check_delivered().await;
        let mut faults = self.aws.faults().into_iter();
        let used_up = faults.any(|(id, left)| Some(id) == fault && left.calls == Some(0));
        assert!(used_up, "{:?} did not happen", self.trouble);
        let last = self.api.get(self.organization_id()).await.status.unwrap();
        assert_eq!(last.status(), Status::Active);
        assert_eq!(last.aws_error_code, "");
    }

    /// Checks message, error code, request id and times of a status.
    fn check_details(&self, shown: &v1::IntegrationStatus, code: &str, start_time: SystemTime) {
        let case = format!("{:?} {shown:?}", self.trouble);
        assert_eq!(shown.aws_error_code, code, "{case}");
        let (message, remedy) = message_and_remedy(shown.reason());
        assert!(shown.message.starts_with(message), "{case}");
        assert!(shown.message.contains(remedy), "{case}");
        let delivered_before = shown.last_delivery_time.is_some();
        assert_eq!(delivered_before, self.from == From::Active, "{case}");
        let since = SystemTime::try_from(shown.since_time.unwrap()).unwrap();
        let last_attempt = SystemTime::try_from(shown.last_attempt_time.unwrap()).unwrap();
        let next = SystemTime::try_from(shown.next_retry_time.unwrap()).unwrap();
        // A further attempt may have begun since the time of the next one was set.
        assert!(next + Duration::from_secs(1) > last_attempt, "{case}");
        let lasting = matches!(
            shown.reason(),
            StatusReason::Throttled | StatusReason::Unreachable
        );
        if lasting {
            assert!(
                since.duration_since(start_time).unwrap() >= Duration::from_secs(1),
                "{case}"
            );
        } else {
            // A further attempt may have ended before the change was pushed. Lasting trouble is
            // also found between attempts.
            assert!(since <= last_attempt, "{case}");
        }
        let call = self.aws.call_by_request_id(&shown.aws_request_id);
        let Some(outcome) = self.trouble.outcome(code) else {
            assert_eq!(shown.aws_request_id, "", "{case}");
            return;
        };
        let call = call.unwrap_or_else(|| panic!("no call has the request id of {case}"));
        assert_eq!(
            (call.operation, &*call.outcome),
            (self.trouble.operation(), outcome),
            "{case}"
        );
        let target = match call.operation {
            Operation::AssumeRole => &self.customer.role_arn,
            _ => &self.customer.stream_arn,
        };
        assert_eq!(call.target, *target, "{case}");
        // The first answer changes the status, except that a batch which Kinesis finds invalid is
        // halved first.
        if !lasting && code != "InvalidArgumentException" {
            // An active integration's role was tried twice without the right external ID.
            let is_denied = call.operation == Operation::AssumeRole && code == "AccessDenied";
            let probes = match is_denied && self.from == From::Active {
                true => 2,
                false => 0,
            };
            assert_eq!(call.nth, 1 + probes, "{case}");
        }
    }

    /// Polls until another attempt has failed.
    async fn next_attempt(&self, shown: &v1::IntegrationStatus) -> v1::IntegrationStatus {
        self.poll_until(|status| status.last_attempt_time != shown.last_attempt_time)
            .await
    }

    /// Polls with pauses, since many cases poll at once.
    async fn poll_until(
        &self,
        good: impl Fn(&v1::IntegrationStatus) -> bool,
    ) -> v1::IntegrationStatus {
        with_timeout("a status", async {
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

    /// Checks that Get returns what was pushed, except for times and ids of later attempts.
    fn check_same(&self, shown: &v1::IntegrationStatus, last: &v1::IntegrationStatus) {
        let mut last = last.clone();
        last.last_attempt_time = shown.last_attempt_time;
        last.next_retry_time = shown.next_retry_time;
        last.aws_request_id.clone_from(&shown.aws_request_id);
        assert_eq!(last, *shown, "{:?}", self.trouble);
    }

    /// Deletes the integration. The deletion must be the next change: no change was pushed twice.
    pub async fn delete(&mut self) {
        self.api
            .delete(self.organization_id(), false)
            .await
            .unwrap();
        let deleted = FeedEvent::Deleted(self.organization_id().to_owned());
        assert_eq!(self.feed.as_mut().unwrap().next().await, deleted);
    }

    async fn arrived(&self, count: usize) -> Vec<DeliveredEvent> {
        read_events(&self.aws, &self.customer.stream_arn, count).await
    }

    /// Checks that every event arrived, at most those in flight twice, and that the counts say so.
    pub async fn check_delivered(&mut self) {
        let all = self.load.made.len();
        let mut arrived = self.arrived(all - self.deleted.len()).await;
        let counts = self.api.until_delivered(self.organization_id()).await;
        assert_eq!(
            (counts.accepted, counts.delivered),
            (all as u64, all as u64)
        );
        let stored = self.aws.stream(&self.customer.stream_arn).unwrap().accepted as usize;
        let duplicates = stored + self.deleted.len() - all;
        let in_flight = if self.trouble.may_repeat() { DURING } else { 0 };
        assert!(
            duplicates <= in_flight,
            "{:?}: {duplicates} duplicates",
            self.trouble
        );
        arrived.append(&mut self.deleted.clone());
        check_complete(&arrived, &self.integration_id, &self.load.made);
    }

    /// Checks that the audit has each pushed change once, and no other one.
    pub fn check_audit(&self, rows: &[AuditRow]) {
        let own = |row: &&AuditRow| {
            row.organization_id == self.organization_id() && row.action != "send_test"
        };
        let found: Vec<_> = rows.iter().filter(own).collect();
        let actions: Vec<_> = found.iter().map(|row| row.action.as_str()).collect();
        let changes = found.len() - 2;
        let expected = ["create"].into_iter().chain(vec!["status"; changes]);
        assert!(
            actions.iter().copied().eq(expected.chain(["delete"])),
            "{actions:?}"
        );
        let changes: Vec<_> = found[1..=changes]
            .iter()
            .map(|row| new_values(&row.detail))
            .collect();
        let pushed: Vec<_> = self.changes.iter().map(detail).collect();
        assert_eq!(changes, pushed, "{:?} {:?}", self.trouble, self.from);
    }
}

/// Fields of a status change, as the audit has them, that are not empty afterwards.
fn new_values(detail: &serde_json::Value) -> BTreeMap<String, String> {
    let changes: Vec<[String; 3]> = serde_json::from_value(detail["changes"].clone()).unwrap();
    let new = changes.into_iter().map(|[field, _, new]| (field, new));
    new.filter(|(_, new)| !new.is_empty()).collect()
}

/// The audit's form of a status change.
fn detail(status: &v1::IntegrationStatus) -> BTreeMap<String, String> {
    let short = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_owned();
    let reason = match status.reason() {
        StatusReason::Unspecified => String::new(),
        reason => short(reason.as_str_name(), "STATUS_REASON_"),
    };
    let fields = [
        ("status", short(status.status().as_str_name(), "STATUS_")),
        ("reason", reason),
        ("aws_error_code", status.aws_error_code.clone()),
        ("aws_request_id", status.aws_request_id.clone()),
    ];
    let given = fields.into_iter().filter(|(_, value)| !value.is_empty());
    given
        .map(|(field, value)| (field.to_owned(), value))
        .collect()
}

/// Start of a reason's message, and words of its remedy.
fn message_and_remedy(reason: StatusReason) -> (&'static str, &'static str) {
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
