//! Attribution of refusals to the customer or to this service.

use aws_stand_in::{Control, Operation, RoleSpec, vendor_credentials};
use serde_json::json;
use siem_client::v1::{CheckName, CheckResult, Status, StatusReason};
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{
    Api, Customer, FeedEvent, Load, Process, ProcessEnv, StatusFeed, error, fault,
    own_credentials_without_assume_role, read_events, reason, violated,
};

/// A process with short waits, and customers in several accounts and regions.
struct Fixture {
    env: ProcessEnv,
    process: Process,
}

const SETTINGS: [&str; 4] = ["--retry-first-ms", "500", "--retry-most-ms", "1000"];

impl Fixture {
    async fn start(settings: &[&str]) -> Self {
        Self::start_on(ProcessEnv::new().await, settings).await
    }

    async fn start_on(env: ProcessEnv, settings: &[&str]) -> Self {
        let process = env.start_with(&[&SETTINGS, settings].concat()).await;
        Self { env, process }
    }

    fn api(&self) -> &Api {
        &self.process.api
    }

    fn aws(&self) -> &Control {
        &self.env.aws
    }

    /// A configured customer, whose role and stream exist.
    async fn customer(&self, organization_id: &str, account: u64, region: &str) -> Customer {
        let customer = Customer::in_account(organization_id, account, region);
        customer.make_role(self.aws());
        customer.make_stream(self.aws(), 1);
        self.api().configure(&customer).await;
        customer
    }

    /// Makes AWS refuse calls of an operation on a stream or a role, or all of them.
    fn refuse(&self, operation: Operation, target: Option<&str>, code: &str, status: u16) {
        let refusal = fault(operation, target, error(code, status));
        self.aws().add_fault(refusal).unwrap();
    }

    async fn publish(&self, load: &mut Load, count: usize) {
        let events = load.events(count);
        self.api().publish(&events).await;
    }

    async fn feed(&self, organization_id: &str) -> StatusFeed {
        self.api().watch_changes(organization_id).await
    }

    /// Checks that health says SERVING, and that the log has not blamed this service.
    async fn check_serving(&self) {
        let mut health = self.api().health("delivery").await;
        health.until(ServingStatus::Serving).await;
        let log = self.process.log();
        assert!(!log.contains("AWS refuses this service's own"), "{log}");
        assert!(
            !log.contains("roles of several AWS accounts are denied"),
            "{log}"
        );
    }
}

fn invalid_configuration(organization_id: &str) -> FeedEvent {
    let reason = StatusReason::InvalidConfiguration;
    FeedEvent::with_reason(organization_id, Status::Failing, reason)
}

fn active(organization_id: &str) -> FeedEvent {
    FeedEvent::with_reason(organization_id, Status::Active, StatusReason::Unspecified)
}

/// A region that is not enabled in the customer's account refuses sessions that are valid in other
/// regions. It is the customer's fault whether or not other integrations deliver meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_refuses_sessions_is_the_customers_fault() {
    for others_deliver in [true, false] {
        let fixture = Fixture::start(&[]).await;
        let far = fixture.customer("far", 333_333_333_333, "me-south-1").await;
        let near = fixture.customer("near", 444_444_444_444, "eu-west-1").await;
        let mut feed = fixture.feed("far").await;
        let code = "UnrecognizedClientException";
        fixture.refuse(Operation::PutRecords, Some(&far.stream_arn), code, 400);
        let (mut of_far, mut of_near) = (Load::new("far", 2, 1), Load::new("near", 2, 2));
        fixture.publish(&mut of_far, 5).await;
        let others = async {
            if !others_deliver {
                std::future::pending::<()>().await;
            }
            loop {
                fixture.publish(&mut of_near, 5).await;
                let all = of_near.made.len();
                read_events(fixture.aws(), &near.stream_arn, all).await;
            }
        };
        let shown = tokio::select! {
            shown = feed.next() => shown,
            () = others => unreachable!("an endless loop"),
        };
        let status = feed.last.clone().unwrap();
        assert_eq!(shown, invalid_configuration("far"));
        assert_eq!(status.aws_error_code, code);
        for named in ["me-south-1", "333333333333"] {
            assert!(status.message.contains(named), "{}", status.message);
        }
        let test = fixture.api().send_test("far").await;
        let write = test
            .checks
            .iter()
            .find(|check| check.name() == CheckName::WriteRecord);
        let write = write.unwrap();
        assert_eq!(write.result(), CheckResult::Failed);
        assert!(write.remedy.contains("me-south-1"), "{write:?}");
        assert_eq!(test.status.unwrap().status(), Status::Failing);
        fixture.check_serving().await;

        fixture.aws().clear_faults();
        assert_eq!(feed.next().await, active("far"));
        read_events(fixture.aws(), &far.stream_arn, 5).await;
    }
}

/// STS refuses our credentials for one role only, as it does for a role of another partition.
#[tokio::test(flavor = "multi_thread")]
async fn sts_refusing_one_role_is_the_customers_fault() {
    let fixture = Fixture::start(&[]).await;
    let far = fixture.customer("far", 333_333_333_333, "me-south-1").await;
    let mut feed = fixture.feed("far").await;
    let code = "InvalidClientTokenId";
    fixture.refuse(Operation::AssumeRole, Some(&far.role_arn), code, 403);
    let test = fixture.api().send_test("far").await;
    assert!(!test.delivered);
    let check = &test.checks[0];
    assert_eq!(
        (&*check.aws_error_code, check.result()),
        (code, CheckResult::Failed)
    );
    assert!(check.remedy.contains("me-south-1"), "{check:?}");
    assert_eq!(feed.next().await, invalid_configuration("far"));
    fixture.check_serving().await;
    fixture.aws().clear_faults();
    let mut load = Load::new("far", 2, 1);
    fixture.publish(&mut load, 5).await;
    assert_eq!(feed.next().await, active("far"));
}

/// Other integrations deliver until their sessions expire. That is no evidence against a customer
/// whose role cannot be assumed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn expired_own_credentials_are_our_fault_while_sessions_last() {
    let fixture = Fixture::start(&["--failing-after-seconds", "8"]).await;
    let aws = fixture.aws();
    let near = fixture.customer("near", 444_444_444_444, "eu-west-1").await;
    let mut of_near = Load::new("near", 2, 2);
    fixture.publish(&mut of_near, 5).await;
    read_events(aws, &near.stream_arn, 5).await;
    let code = "ExpiredToken";
    fixture.refuse(Operation::AssumeRole, None, code, 403);
    fixture.refuse(Operation::GetCallerIdentity, None, code, 403);
    fixture.customer("far", 333_333_333_333, "eu-west-1").await;
    let mut feed = fixture.feed("far").await;
    let mut health = fixture.api().health("delivery").await;
    let mut of_far = Load::new("far", 2, 1);
    fixture.publish(&mut of_far, 5).await;
    let others = async {
        loop {
            fixture.publish(&mut of_near, 5).await;
            let all = of_near.made.len();
            read_events(aws, &near.stream_arn, all).await;
        }
    };
    let change = async {
        health.until(ServingStatus::NotServing).await;
        feed.next().await
    };
    let change = tokio::select! {
        change = change => change,
        () = others => unreachable!("an endless loop"),
    };
    let unavailable = StatusReason::ServiceUnavailable;
    let unavailable = FeedEvent::with_reason("far", Status::Failing, unavailable);
    assert_eq!(change, unavailable);
    aws.clear_faults();
    assert_eq!(feed.next().await, active("far"));
    health.until(ServingStatus::Serving).await;
}

/// Refusals by one account are no evidence against this service, whatever their number.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_by_one_account_are_its_own_fault() {
    let fixture = Fixture::start(&[]).await;
    let aws = fixture.aws();
    let organizations = ["a", "b", "c", "d", "e", "f"];
    let mut feeds = Vec::new();
    for organization in organizations {
        let customer = fixture
            .customer(organization, 333_333_333_333, "eu-west-1")
            .await;
        assert!(fixture.api().send_test(organization).await.delivered);
        feeds.push((fixture.feed(organization).await, customer));
    }
    for (_, customer) in &feeds {
        let other = json!({ "StringEquals": { "sts:ExternalId": "another" } });
        customer.make_role_with_trust(aws, other);
    }
    aws.expire_sessions();
    for (number, organization) in organizations.into_iter().enumerate() {
        let mut load = Load::new(organization, 2, number as u64);
        fixture.publish(&mut load, 5).await;
    }
    for (organization, (feed, _)) in organizations.into_iter().zip(&mut feeds) {
        let denied = StatusReason::AssumeRoleDenied;
        let denied = FeedEvent::with_reason(organization, Status::Unauthorized, denied);
        assert_eq!(feed.next().await, denied);
    }
    fixture.check_serving().await;
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

/// With a canary role the refusal of one customer's role is enough to find out whether our own right
/// to assume roles was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_role_distinguishes_our_fault_from_a_customers() {
    let settings = ["--canary-role-arn", CANARY, "--failing-after-seconds", "1"];
    let fixture = Fixture::start(&settings).await;
    let aws = fixture.aws();
    aws.put_role(canary()).unwrap();
    let customer = fixture.customer("acme", 333_333_333_333, "eu-west-1").await;
    let mut feed = fixture.feed("acme").await;
    let mut health = fixture.api().health("delivery").await;
    let mut load = Load::new("acme", 2, 1);

    aws.delete_role(&customer.role_arn);
    fixture.publish(&mut load, 5).await;
    let denied = StatusReason::AssumeRoleDenied;
    let denied = FeedEvent::with_reason("acme", Status::Unauthorized, denied);
    assert_eq!(feed.next().await, denied);
    fixture.check_serving().await;
    customer.make_role(aws);
    assert_eq!(feed.next().await, active("acme"));

    aws.put_credentials(own_credentials_without_assume_role())
        .unwrap();
    aws.expire_sessions();
    fixture.publish(&mut load, 5).await;
    let unavailable = StatusReason::ServiceUnavailable;
    let unavailable = FeedEvent::with_reason("acme", Status::Failing, unavailable);
    assert_eq!(feed.next().await, unavailable);
    health.until(ServingStatus::NotServing).await;

    aws.put_credentials(vendor_credentials()).unwrap();
    health.until(ServingStatus::Serving).await;
    assert_eq!(feed.next().await, active("acme"));
}

/// The duration is our setting: a role that does not grant it is assumed for an hour.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_duration_over_the_roles_maximum_is_shortened() {
    let fixture = Fixture::start(&["--assume-role-duration-seconds", "7200"]).await;
    let customer = fixture.customer("acme", 333_333_333_333, "eu-west-1").await;
    let mut feed = fixture.feed("acme").await;
    let mut load = Load::new("acme", 2, 1);
    fixture.publish(&mut load, 5).await;
    assert_eq!(feed.next().await, active("acme"));
    let aws = fixture.aws();
    let refused = || aws.call_count(Operation::AssumeRole, Some("ValidationError"));
    assert_eq!(refused(), 1);
    let log = fixture.process.log();
    assert!(
        log.contains("grants no session of assume-role-duration-seconds"),
        "{log}"
    );
    // The shorter duration is remembered for the role.
    aws.expire_sessions();
    fixture.publish(&mut load, 5).await;
    read_events(aws, &customer.stream_arn, 10).await;
    assert_eq!(refused(), 1);
}

/// AWS refuses signatures by a clock that is more than five minutes wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_is_corrected_and_logged() {
    for client in ["direct", "sdk"] {
        for offset in [600_i64, -3000] {
            let env = ProcessEnv::new().await;
            env.aws.set_clock_offset(offset);
            let settings = [
                "--put-records-client",
                client,
                "--failing-after-seconds",
                "5",
            ];
            let fixture = Fixture::start_on(env, &settings).await;
            let customer = fixture.customer("acme", 333_333_333_333, "eu-west-1").await;
            let mut feed = fixture.feed("acme").await;
            let test = fixture.api().send_test("acme").await;
            assert!(test.delivered, "{client} {offset}: {test:?}");
            assert_eq!(feed.next().await, active("acme"));
            let mut load = Load::new("acme", 2, 1);
            fixture.publish(&mut load, 50).await;
            read_events(fixture.aws(), &customer.stream_arn, 50).await;
            let log = fixture.process.log();
            // A call may take the rest of a second.
            let logged = [offset.abs(), offset.abs() - 1]
                .iter()
                .any(|seconds| log.contains(&format!("the clock of this machine is {seconds} s ")));
            assert!(logged, "{log}");
            fixture.check_serving().await;

            // A clock that changes later is corrected as well.
            fixture.aws().set_clock_offset(0);
            fixture.publish(&mut load, 50).await;
            read_events(fixture.aws(), &customer.stream_arn, 100).await;
            fixture
                .process
                .until_logged("agrees with AWS's again", 0)
                .await;
        }
    }
}

/// Credentials are valid in one partition only.
#[tokio::test(flavor = "multi_thread")]
async fn an_arn_of_another_partition_is_refused() {
    let fixture = Fixture::start(&[]).await;
    let china = |arn: String| arn.replace("arn:aws:", "arn:aws-cn:");
    let customer = Customer::in_account("acme", 333_333_333_333, "cn-north-1");
    let customer = Customer {
        stream_arn: china(customer.stream_arn),
        role_arn: china(customer.role_arn),
        ..customer
    };
    let refused = fixture
        .api()
        .try_configure(customer.request())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(violated(&refused), ["kinesis_stream_arn"]);
    assert_eq!(reason(&refused), "INVALID_FIELD");
}

/// Without a condition on the external ID another customer could have us write into this one's
/// stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_does_not_require_its_external_id_gets_no_events() {
    for open in [
        json!({}),
        json!({ "StringLike": { "sts:ExternalId": "*" } }),
        json!({ "StringEqualsIfExists": { "sts:ExternalId": "external:id/of=acme" } }),
    ] {
        let fixture = Fixture::start(&[]).await;
        let aws = fixture.aws();
        let customer = fixture.customer("acme", 333_333_333_333, "eu-west-1").await;
        customer.make_role_with_trust(aws, open.clone());
        let mut feed = fixture.feed("acme").await;
        let mut load = Load::new("acme", 2, 1);
        fixture.publish(&mut load, 5).await;
        let refused = StatusReason::ExternalIdNotRequired;
        let refused = FeedEvent::with_reason("acme", Status::Unauthorized, refused);
        assert_eq!(feed.next().await, refused, "{open}");
        let status = feed.last.clone().unwrap();
        assert!(
            status.message.contains("StringEquals sts:ExternalId"),
            "{}",
            status.message
        );
        let test = fixture.api().send_test("acme").await;
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

        customer.make_role(aws);
        assert_eq!(feed.next().await, active("acme"));
        read_events(aws, &customer.stream_arn, 5).await;
        fixture.check_serving().await;
    }
}

/// A role is tried without its external ID once per configuration, not per session.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_probed_once_per_configuration() {
    let fixture = Fixture::start(&["--external-id-proof", "warn"]).await;
    let aws = fixture.aws();
    let customer = fixture.customer("acme", 333_333_333_333, "eu-west-1").await;
    let mut load = Load::new("acme", 2, 1);
    for sessions in 1..4 {
        fixture.publish(&mut load, 5).await;
        read_events(aws, &customer.stream_arn, load.made.len()).await;
        let assumed = aws.call_count(Operation::AssumeRole, Some("OK"));
        let denied = aws.call_count(Operation::AssumeRole, Some("AccessDenied"));
        assert_eq!((assumed, denied), (sessions, 2));
        aws.expire_sessions();
    }
    fixture.api().configure(&customer).await;
    fixture.publish(&mut load, 5).await;
    read_events(aws, &customer.stream_arn, load.made.len()).await;
    assert_eq!(
        aws.call_count(Operation::AssumeRole, Some("AccessDenied")),
        4
    );

    // With `warn` an open role gets its events, and the log names the missing condition.
    customer.make_role_with_trust(aws, json!({}));
    fixture.api().configure(&customer).await;
    fixture.publish(&mut load, 5).await;
    read_events(aws, &customer.stream_arn, load.made.len()).await;
    fixture
        .process
        .until_logged("lacks the condition sts:ExternalId", 0)
        .await;
    let status = fixture.api().get("acme").await.status.unwrap();
    assert_eq!(status.status(), Status::Active);
}
