//! Tests against the stand-in, which verifies signatures and enforces policies and limits.

use super::*;
use aws_stand_in::{
    Control, Effect, Fault as SetFault, Operation, Options, RoleSpec, StandIn, StreamSpec, When,
    vendor_credentials,
};

const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/0b5ecb46-9d1f-4b4c-8a3c-1d9d3d4b8a11";

pub(super) fn policy(statement: &Value) -> String {
    json!({"Version": "2012-10-17", "Statement": statement}).to_string()
}

pub(super) fn trust(external_id: &str) -> String {
    policy(&json!({
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111111111111:root"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
    }))
}

/// A customer's account and a sink.
pub(super) struct World {
    _stand_in: StandIn,
    pub(super) control: Control,
    pub(super) sink: AwsSink,
}

impl World {
    /// A role that trusts this service and is allowed everything; no stream.
    pub(super) async fn start() -> Self {
        let stand_in = StandIn::start(Options::default()).await.unwrap();
        let own = vendor_credentials();
        let options = AwsOptions {
            attempt_timeout: Duration::from_secs(5),
            put_records_client: client(),
            stand_in: Some(StandInAccess {
                url: stand_in.url(),
                region: "us-east-1".to_owned(),
                access_key_id: own.access_key_id,
                secret_access_key: own.secret_access_key.into(),
            }),
            ..AwsOptions::default()
        };
        let world = Self {
            control: stand_in.control(),
            _stand_in: stand_in,
            sink: AwsSink::new(options, Arc::new(OneExternalId), Gate::default()).await,
        };
        let everything = json!({"Effect": "Allow", "Action": "*", "Resource": "*"});
        world.role(&trust(EXTERNAL_ID), &policy(&everything));
        world
    }

    fn role(&self, trust: &str, permissions: &str) {
        self.control
            .put_role(RoleSpec::new(ROLE, trust, permissions))
            .unwrap();
    }

    pub(super) fn stream(&self, kms_key_arn: Option<&str>) {
        let stream = StreamSpec {
            kms_key_arn: kms_key_arn.map(Into::into),
            ..StreamSpec::new(STREAM, 1)
        };
        self.control.create_stream(stream).unwrap();
    }

    async fn write(&self, records: Vec<Record>) -> Result<Vec<RecordOutcome>, Fault> {
        self.sink.put_records(&integration(), records, &[]).await
    }

    async fn refusal(&self) -> (Stage, String) {
        let fault = self.write(records(1)).await.unwrap_err();
        assert!(fault.request_id.is_some());
        (fault.stage, fault.code().to_owned())
    }

    fn fail(&self, operation: Operation, calls: u64, effect: Effect) {
        let fault = SetFault {
            operation: Some(operation),
            target: None,
            calls: Some(calls),
            when: When::Before,
            effect,
        };
        self.control.add_fault(fault).unwrap();
    }
}

async fn records_arrive_as_they_were_sent() {
    let world = World::start().await;
    world.stream(None);
    let sent = records(500);
    let outcomes = world.write(sent.clone()).await.unwrap();
    let arrived = world.control.records(STREAM, 0, 1000).unwrap();
    assert_eq!(arrived.len(), 500);
    for ((sent, arrived), outcome) in sent.iter().zip(arrived).zip(outcomes) {
        assert_eq!(sent.partition_key.to_string(), arrived.partition_key);
        assert_eq!(sent.data(&head()).unwrap(), arrived.data);
        let accepted = RecordOutcome::Accepted {
            shard_id: arrived.shard_id.into(),
            sequence_number: arrived.sequence_number.into(),
        };
        assert_eq!(outcome, accepted);
    }
}

async fn a_shard_throttles_beyond_its_limit() {
    let world = World::start().await;
    world.stream(None);
    let mut outcomes = Vec::new();
    for _ in 0..6 {
        outcomes.extend(world.write(records(500)).await.unwrap());
    }
    let took = |outcome: &&RecordOutcome| matches!(outcome, RecordOutcome::Accepted { .. });
    let accepted = outcomes.iter().filter(took).count();
    let arrived = world.control.stream(STREAM).unwrap().accepted;
    assert_eq!(u64::try_from(accepted).unwrap(), arrived);
    let throttled = outcomes.iter().any(|outcome| match outcome {
        RecordOutcome::Failed(fault) => fault.code() == "ProvisionedThroughputExceededException",
        RecordOutcome::Accepted { .. } => false,
    });
    assert!(throttled);
}

async fn refusals_of_the_customer_end_once_it_allows_again() {
    let world = World::start().await;
    let not_found = "ResourceNotFoundException".to_owned();
    assert_eq!(world.refusal().await, (Stage::Write, not_found));
    world.stream(None);
    assert!(world.write(records(1)).await.is_ok());

    let nothing = json!({"Effect": "Deny", "Action": "*", "Resource": "*"});
    world.role(&trust(EXTERNAL_ID), &policy(&nothing));
    let denied = "AccessDeniedException".to_owned();
    assert_eq!(world.refusal().await, (Stage::Write, denied));

    // A trust policy applies to the next session.
    world.role(&trust("another-one"), &policy(&nothing));
    world.sink.forget(integration().integration_id);
    let denied = "AccessDenied".to_owned();
    assert_eq!(world.refusal().await, (Stage::AssumeRole, denied));
    jump(Duration::from_secs(1)).await;

    let everything = json!({"Effect": "Allow", "Action": "*", "Resource": "*"});
    world.role(&trust(EXTERNAL_ID), &policy(&everything));
    assert!(world.write(records(1)).await.is_ok());
}

async fn a_stream_under_the_customers_key_can_be_written() {
    let world = World::start().await;
    world.stream(Some(KEY));
    assert_eq!(world.write(records(1)).await.unwrap().len(), 1);
    let no_key = json!({"Effect": "Allow", "Action": "kinesis:*", "Resource": "*"});
    world.role(&trust(EXTERNAL_ID), &policy(&no_key));
    let denied = "KMSAccessDeniedException".to_owned();
    assert_eq!(world.refusal().await, (Stage::Write, denied));
}

async fn sessions_that_end_early_are_assumed_anew() {
    let world = World::start().await;
    world.stream(None);
    for round in 1..=3 {
        assert!(world.write(records(1)).await.is_ok());
        let assumed = world.control.call_count(Operation::AssumeRole, Some("OK"));
        assert_eq!(assumed, round);
        assert_eq!(world.control.expire_sessions(), 1);
    }
    assert_eq!(world.control.stream(STREAM).unwrap().accepted, 3);
}

async fn a_reset_connection_is_reported_and_the_next_call_works() {
    let world = World::start().await;
    world.stream(None);
    assert!(world.write(records(1)).await.is_ok());
    world.fail(Operation::PutRecords, 1, Effect::Reset);
    let fault = world.write(records(1)).await.unwrap_err();
    assert_eq!(
        (fault.stage, fault.cause),
        (Stage::Write, Cause::Connection)
    );
    assert!(world.write(records(1)).await.is_ok());
}

with_either_client!(
    records_arrive_as_they_were_sent,
    a_shard_throttles_beyond_its_limit,
    refusals_of_the_customer_end_once_it_allows_again,
    a_stream_under_the_customers_key_can_be_written,
    sessions_that_end_early_are_assumed_anew,
    a_reset_connection_is_reported_and_the_next_call_works,
);
