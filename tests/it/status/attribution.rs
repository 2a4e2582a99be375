//! Attribution of refusals: to the customer, or to this service.

use aws_stand_in::{Operation, RoleSpec, StandIn, vendor_credentials};
use serde_json::json;
use siem_client::v1::{CheckName, CheckResult, Status, StatusReason};
use tempfile::TempDir;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{
    Api, Customer, Load, Process, StatusFeed, Told, arrive, reason, refusal, stand_in, violated,
};

/// The built binary with waits that do not keep a test waiting, and customers in several
/// accounts and regions.
struct Ground {
    stand_in: StandIn,
    _dir: TempDir,
    process: Process,
}

const SETTINGS: [&str; 4] = ["--retry-first-ms", "500", "--retry-most-ms", "1000"];

impl Ground {
    async fn start(settings: &[&str]) -> Self {
        let stand_in = stand_in().await;
        Self::start_with(stand_in, settings).await
    }

    async fn start_with(stand_in: StandIn, settings: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let settings = [&SETTINGS, settings].concat();
        let process = Process::start(dir.path(), &stand_in.url(), &settings).await;
        Self {
            stand_in,
            _dir: dir,
            process,
        }
    }

    fn api(&self) -> &Api {
        &self.process.api
    }

    /// A customer whose role and stream are there.
    async fn customer(&self, organization_id: &str, account: u64, region: &str) -> Customer {
        let customer = Customer::in_account(organization_id, account, region);
        let aws = self.stand_in.control();
        customer.make_role(&aws);
        customer.make_stream(&aws, 1);
        self.api().configure(&customer).await;
        customer
    }

    /// Calls of an operation on a stream or a role are refused.
    fn refuse(&self, operation: Operation, target: Option<&str>, code: &str, status: u16) {
        let fault = refusal(operation, target, code, status);
        self.stand_in.control().add_fault(fault).unwrap();
    }

    async fn publish(&self, load: &mut Load, count: usize) {
        let events = load.events(count);
        self.api().publish(&events).await;
    }

    async fn feed(&self, organization_id: &str) -> StatusFeed {
        let mut feed = self.api().watch(&[organization_id], "").await;
        feed.until_synced().await;
        feed
    }

    /// Health has not said that delivery fails, and the log has not blamed this service.
    async fn is_serving(&self) {
        let mut health = self.api().health("delivery").await;
        health.until(ServingStatus::Serving).await;
        let log = self.process.log();
        assert!(!log.contains("AWS refuses this service's own"), "{log}");
        assert!(!log.contains("may sts:AssumeRole"), "{log}");
    }
}

fn invalid_configuration(organization_id: &str) -> Told {
    let reason = StatusReason::InvalidConfiguration;
    Told::because(organization_id, Status::Failing, reason)
}

fn active(organization_id: &str) -> Told {
    Told::because(organization_id, Status::Active, StatusReason::Unspecified)
}

/// A region that is not enabled in one customer's account refuses sessions that are good
/// elsewhere, whether others deliver meanwhile or nobody does.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_refuses_sessions_is_its_customers_to_enable() {
    for others_deliver in [true, false] {
        let ground = Ground::start(&[]).await;
        let far = ground.customer("far", 333_333_333_333, "me-south-1").await;
        let near = ground.customer("near", 444_444_444_444, "eu-west-1").await;
        let mut feed = ground.feed("far").await;
        let code = "UnrecognizedClientException";
        ground.refuse(Operation::PutRecords, Some(&far.stream_arn), code, 400);
        let (mut of_far, mut of_near) = (Load::new("far", 2, 1), Load::new("near", 2, 2));
        ground.publish(&mut of_far, 5).await;
        let others = async {
            if !others_deliver {
                std::future::pending::<()>().await;
            }
            loop {
                ground.publish(&mut of_near, 5).await;
                let all = of_near.made.len();
                arrive(&ground.stand_in.control(), &near.stream_arn, all).await;
            }
        };
        let shown = tokio::select! {
            shown = feed.next() => shown,
            () = others => unreachable!("it does not end"),
        };
        let told = feed.last.clone().unwrap();
        assert_eq!(shown, invalid_configuration("far"));
        assert_eq!(told.aws_error_code, code);
        for named in ["me-south-1", "333333333333"] {
            assert!(told.message.contains(named), "{}", told.message);
        }
        let test = ground.api().send_test("far").await;
        let write = test
            .checks
            .iter()
            .find(|check| check.name() == CheckName::WriteRecord);
        let write = write.unwrap();
        assert_eq!(write.result(), CheckResult::Failed);
        assert!(write.remedy.contains("me-south-1"), "{write:?}");
        assert_eq!(test.status.unwrap().status(), Status::Failing);
        ground.is_serving().await;

        ground.stand_in.control().clear_faults();
        assert_eq!(feed.next().await, active("far"));
        arrive(&ground.stand_in.control(), &far.stream_arn, 5).await;
    }
}

/// STS refuses our credentials for one role only, as it does for another partition's.
#[tokio::test(flavor = "multi_thread")]
async fn sts_that_refuses_for_one_role_only_is_its_customers() {
    let ground = Ground::start(&[]).await;
    let far = ground.customer("far", 333_333_333_333, "me-south-1").await;
    let mut feed = ground.feed("far").await;
    let code = "InvalidClientTokenId";
    ground.refuse(Operation::AssumeRole, Some(&far.role_arn), code, 403);
    let test = ground.api().send_test("far").await;
    assert!(!test.delivered);
    let check = &test.checks[0];
    assert_eq!(
        (&*check.aws_error_code, check.result()),
        (code, CheckResult::Failed)
    );
    assert!(check.remedy.contains("me-south-1"), "{check:?}");
    assert_eq!(feed.next().await, invalid_configuration("far"));
    ground.is_serving().await;
    ground.stand_in.control().clear_faults();
    let mut load = Load::new("far", 2, 1);
    ground.publish(&mut load, 5).await;
    assert_eq!(feed.next().await, active("far"));
}

/// Others go on for as long as their sessions last, which does not make it the customer's
/// fault that no new one can be assumed.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_end_while_others_still_deliver_are_ours() {
    let ground = Ground::start(&["--failing-after-seconds", "8"]).await;
    let aws = ground.stand_in.control();
    let near = ground.customer("near", 444_444_444_444, "eu-west-1").await;
    let mut of_near = Load::new("near", 2, 2);
    ground.publish(&mut of_near, 5).await;
    arrive(&aws, &near.stream_arn, 5).await;
    let code = "ExpiredToken";
    ground.refuse(Operation::AssumeRole, None, code, 403);
    ground.refuse(Operation::GetCallerIdentity, None, code, 403);
    ground.customer("far", 333_333_333_333, "eu-west-1").await;
    let mut feed = ground.feed("far").await;
    let mut health = ground.api().health("delivery").await;
    let mut of_far = Load::new("far", 2, 1);
    ground.publish(&mut of_far, 5).await;
    let others = async {
        loop {
            ground.publish(&mut of_near, 5).await;
            let all = of_near.made.len();
            arrive(&aws, &near.stream_arn, all).await;
        }
    };
    let told = async {
        health.until(ServingStatus::NotServing).await;
        feed.next().await
    };
    let told = tokio::select! {
        told = told => told,
        () = others => unreachable!("it does not end"),
    };
    let unavailable = StatusReason::ServiceUnavailable;
    assert_eq!(told, Told::because("far", Status::Failing, unavailable));
    aws.clear_faults();
    assert_eq!(feed.next().await, active("far"));
    health.until(ServingStatus::Serving).await;
}

/// Refusals by one account are no evidence against this service, however many roles it has.
#[tokio::test(flavor = "multi_thread")]
async fn six_organizations_of_one_account_that_drop_their_trust_are_refused() {
    let ground = Ground::start(&[]).await;
    let aws = ground.stand_in.control();
    let organizations = ["a", "b", "c", "d", "e", "f"];
    let mut feeds = Vec::new();
    for organization in organizations {
        let customer = ground
            .customer(organization, 333_333_333_333, "eu-west-1")
            .await;
        assert!(ground.api().send_test(organization).await.delivered);
        feeds.push((ground.feed(organization).await, customer));
    }
    for (_, customer) in &feeds {
        let other = json!({ "StringEquals": { "sts:ExternalId": "another" } });
        customer.make_role_with_trust(&aws, other);
    }
    aws.expire_sessions();
    for (number, organization) in organizations.into_iter().enumerate() {
        let mut load = Load::new(organization, 2, number as u64);
        ground.publish(&mut load, 5).await;
    }
    for (organization, (feed, _)) in organizations.into_iter().zip(&mut feeds) {
        let denied = StatusReason::AssumeRoleDenied;
        let denied = Told::because(organization, Status::Unauthorized, denied);
        assert_eq!(feed.next().await, denied);
    }
    ground.is_serving().await;
}

const CANARY: &str = "arn:aws:iam::111111111111:role/canary";

fn canary() -> RoleSpec {
    let trust = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": { "AWS": "111111111111" },
            "Action": "sts:AssumeRole",
        }],
    });
    let nothing = json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Deny", "Action": "*", "Resource": "*" }],
    });
    RoleSpec::new(CANARY, trust.to_string(), nothing.to_string())
}

/// With a canary role one customer is enough to tell a lost right of ours from a refusal.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_role_tells_our_own_right_from_a_customers_refusal() {
    let settings = ["--canary-role-arn", CANARY, "--failing-after-seconds", "1"];
    let ground = Ground::start(&settings).await;
    let aws = ground.stand_in.control();
    aws.put_role(canary()).unwrap();
    let customer = ground.customer("acme", 333_333_333_333, "eu-west-1").await;
    let mut feed = ground.feed("acme").await;
    let mut health = ground.api().health("delivery").await;
    let mut load = Load::new("acme", 2, 1);

    aws.delete_role(&customer.role_arn);
    ground.publish(&mut load, 5).await;
    let denied = StatusReason::AssumeRoleDenied;
    let denied = Told::because("acme", Status::Unauthorized, denied);
    assert_eq!(feed.next().await, denied);
    ground.is_serving().await;
    customer.make_role(&aws);
    assert_eq!(feed.next().await, active("acme"));

    let mut own = vendor_credentials();
    let deny = json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Deny", "Action": "sts:AssumeRole", "Resource": "*" }],
    });
    own.policy = Some(deny.to_string());
    aws.put_credentials(own).unwrap();
    aws.expire_sessions();
    ground.publish(&mut load, 5).await;
    let unavailable = StatusReason::ServiceUnavailable;
    let unavailable = Told::because("acme", Status::Failing, unavailable);
    assert_eq!(feed.next().await, unavailable);
    health.until(ServingStatus::NotServing).await;

    aws.put_credentials(vendor_credentials()).unwrap();
    health.until(ServingStatus::Serving).await;
    assert_eq!(feed.next().await, active("acme"));
}

/// The setting is ours: a role that grants no such session is assumed for an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_a_role_finds_too_long_is_made_shorter() {
    let ground = Ground::start(&["--assume-role-duration-seconds", "7200"]).await;
    let customer = ground.customer("acme", 333_333_333_333, "eu-west-1").await;
    let mut feed = ground.feed("acme").await;
    let mut load = Load::new("acme", 2, 1);
    ground.publish(&mut load, 5).await;
    assert_eq!(feed.next().await, active("acme"));
    let aws = ground.stand_in.control();
    let refused = || aws.call_count(Operation::AssumeRole, Some("ValidationError"));
    assert_eq!(refused(), 1);
    let log = ground.process.log();
    assert!(log.contains("grants no session as long"), "{log}");
    // It is kept for that role.
    aws.expire_sessions();
    ground.publish(&mut load, 5).await;
    arrive(&aws, &customer.stream_arn, 10).await;
    assert_eq!(refused(), 1);
}

/// AWS refuses what is signed by a clock that is more than five minutes off.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_delivers_and_is_named() {
    for client in ["direct", "sdk"] {
        for (offset, words) in [(600, "600 s behind"), (-3000, "3000 s ahead of")] {
            let ahead = stand_in().await;
            ahead.control().set_clock_offset(offset);
            let settings = [
                "--put-records-client",
                client,
                "--failing-after-seconds",
                "5",
            ];
            let ground = Ground::start_with(ahead, &settings).await;
            let customer = ground.customer("acme", 333_333_333_333, "eu-west-1").await;
            let mut feed = ground.feed("acme").await;
            let test = ground.api().send_test("acme").await;
            assert!(test.delivered, "{client} {offset}: {test:?}");
            assert_eq!(feed.next().await, active("acme"));
            let mut load = Load::new("acme", 2, 1);
            ground.publish(&mut load, 50).await;
            arrive(&ground.stand_in.control(), &customer.stream_arn, 50).await;
            let log = ground.process.log();
            let words = words.split(' ').next().unwrap();
            let near = [0, 1].map(|less| words.parse::<i64>().unwrap() - less);
            let named = near
                .iter()
                .any(|seconds| log.contains(&format!("the clock of this machine is {seconds} s ")));
            assert!(named, "{log}");
            ground.is_serving().await;

            // A clock that goes wrong later is the same.
            ground.stand_in.control().set_clock_offset(0);
            ground.publish(&mut load, 50).await;
            arrive(&ground.stand_in.control(), &customer.stream_arn, 100).await;
            ground
                .process
                .until_logged("agrees with AWS's again", 0)
                .await;
        }
    }
}

/// No credentials reach another partition.
#[tokio::test(flavor = "multi_thread")]
async fn another_partition_than_our_own_is_refused() {
    let ground = Ground::start(&[]).await;
    let china = |arn: String| arn.replace("arn:aws:", "arn:aws-cn:");
    let customer = Customer::in_account("acme", 333_333_333_333, "cn-north-1");
    let customer = Customer {
        stream_arn: china(customer.stream_arn),
        role_arn: china(customer.role_arn),
        ..customer
    };
    let refused = ground
        .api()
        .try_configure(customer.request())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(violated(&refused), ["kinesis_stream_arn"]);
    assert_eq!(reason(&refused), "INVALID_FIELD");
}

/// Without a condition on the external ID another customer could have us write there.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_does_not_require_the_external_id_gets_nothing() {
    for open in [
        json!({}),
        json!({ "StringLike": { "sts:ExternalId": "*" } }),
        json!({ "StringEqualsIfExists": { "sts:ExternalId": "external:id/of=acme" } }),
    ] {
        let ground = Ground::start(&[]).await;
        let aws = ground.stand_in.control();
        let customer = ground.customer("acme", 333_333_333_333, "eu-west-1").await;
        customer.make_role_with_trust(&aws, open.clone());
        let mut feed = ground.feed("acme").await;
        let mut load = Load::new("acme", 2, 1);
        ground.publish(&mut load, 5).await;
        let refused = StatusReason::ExternalIdNotRequired;
        let refused = Told::because("acme", Status::Unauthorized, refused);
        assert_eq!(feed.next().await, refused, "{open}");
        let told = feed.last.clone().unwrap();
        assert!(
            told.message.contains("StringEquals sts:ExternalId"),
            "{}",
            told.message
        );
        let test = ground.api().send_test("acme").await;
        assert!(!test.delivered);
        let check = |name| {
            test.checks
                .iter()
                .find(|check| check.name() == name)
                .unwrap()
        };
        assert_eq!(
            check(CheckName::ExternalIdRequired).result(),
            CheckResult::Failed
        );
        assert_eq!(check(CheckName::WriteRecord).result(), CheckResult::Skipped);
        assert_eq!(aws.stream(&customer.stream_arn).unwrap().accepted, 0);

        customer.make_role(&aws);
        assert_eq!(feed.next().await, active("acme"));
        arrive(&aws, &customer.stream_arn, 5).await;
        ground.is_serving().await;
    }
}

/// Roles are tried once for each configuration, not for each session; what is unclear proves
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_tried_without_the_external_id_once_a_configuration() {
    let ground = Ground::start(&["--external-id-proof", "warn"]).await;
    let aws = ground.stand_in.control();
    let customer = ground.customer("acme", 333_333_333_333, "eu-west-1").await;
    let mut load = Load::new("acme", 2, 1);
    for sessions in 1..4 {
        ground.publish(&mut load, 5).await;
        arrive(&aws, &customer.stream_arn, load.made.len()).await;
        let assumed = aws.call_count(Operation::AssumeRole, Some("OK"));
        let denied = aws.call_count(Operation::AssumeRole, Some("AccessDenied"));
        assert_eq!((assumed, denied), (sessions, 2));
        aws.expire_sessions();
    }
    ground.api().configure(&customer).await;
    ground.publish(&mut load, 5).await;
    arrive(&aws, &customer.stream_arn, load.made.len()).await;
    assert_eq!(
        aws.call_count(Operation::AssumeRole, Some("AccessDenied")),
        4
    );

    // With `warn` an open role gets its events, and the log says what it lacks.
    customer.make_role_with_trust(&aws, json!({}));
    ground.api().configure(&customer).await;
    ground.publish(&mut load, 5).await;
    arrive(&aws, &customer.stream_arn, load.made.len()).await;
    ground
        .process
        .until_logged("lacks the condition sts:ExternalId", 0)
        .await;
    let status = ground.api().get("acme").await.status.unwrap();
    assert_eq!(status.status(), Status::Active);
}
