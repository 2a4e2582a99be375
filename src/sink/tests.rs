//! Tests of the sink against an HTTP server that answers as STS and Kinesis do.

#[macro_use]
mod support;
mod connections;
mod deletion;
mod denials;
mod environment;
mod evidence;
mod faults;
mod identity;
mod identity_state;
mod read;
pub(super) mod server;
mod sessions;
mod stand_in;
mod validation;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use self::{
    server::{Answer, Call, Server, assumed, kinesis_error, written},
    support::{CLIENT, Log, OneExternalId, Registry, client},
};
use super::{
    testing::{Aws, Reply, Request},
    *,
};
use crate::{
    domain::{
        arn::{RoleArn, StreamArn},
        integration::{self, IntegrationId, PreviousExternalId, testing::testing_id},
        status::{Cause, Meaning, Reason, Stage},
    },
    gate::Gate,
};

const EXTERNAL_ID: &str = "0123456789abcdef-never-to-be-seen";
const PREVIOUS_ID: &str = "fedcba9876543210-never-to-be-seen";
const STREAM: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/detections";
const ROLE: &str = "arn:aws:iam::123456789012:role/siem/writer";

/// Role of one of several customers, each in its own account.
fn role(which: i64) -> String {
    format!(
        "arn:aws:iam::{:012}:role/customer-{which}",
        300_000_000_000 + which
    )
}

fn stream(which: i64) -> String {
    let account = 300_000_000_000 + which;
    format!("arn:aws:kinesis:eu-west-1:{account:012}:stream/detections")
}

/// One of several customers.
fn customer(which: i64) -> Arc<Integration> {
    let base = version(Uuid::from_u128(which as u128), 1);
    Arc::new(Integration {
        stream_arn: StreamArn::parse(&stream(which)).unwrap(),
        role_arn: RoleArn::parse(&role(which)).unwrap(),
        ..(*base).clone()
    })
}

/// A customer whose external ID was just changed, with the previous one kept.
fn rotating(which: i64) -> Arc<Integration> {
    let base = customer(which);
    Arc::new(Integration {
        previous: Some(PreviousExternalId {
            external_id: base.external_id.clone(),
            hint: "seen".into(),
            until: Timestamp::MAX,
        }),
        ..(*base).clone()
    })
}

/// Denies every AssumeRole.
fn denied(request: &Request) -> Reply {
    match request {
        Request::AssumeRole { .. } => Reply::Error("AccessDenied"),
        _ => Reply::Ok,
    }
}

/// A sink that has assumed the roles of `count` customers.
async fn with_assumed_roles(count: i64) -> (Aws, AwsSink, Arc<Registry>) {
    let aws = Aws::new(|_| Reply::Ok);
    let registry = Arc::new(Registry::default());
    let sink = aws.sink_with(registry.clone(), registry.gate.clone());
    for which in 1..=count {
        let outcomes = sink.put_records(&customer(which), records(1), &[]).await;
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    (aws, sink, registry)
}

/// Meaning of the refusal that delivery gets without its session.
async fn refusal(sink: &AwsSink, customer: &Arc<Integration>) -> Meaning {
    sink.forget(customer.integration_id);
    let answer = sink.put_records(customer, records(1), &[]).await;
    answer.unwrap_err().meaning()
}

/// Advances the clock of the sessions while no call is in flight.
async fn jump(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

fn options(server: &Server) -> AwsOptions {
    AwsOptions {
        put_records_client: client(),
        attempt_timeout: Duration::from_secs(5),
        stand_in: Some(StandInAccess {
            url: server.url(),
            region: "us-east-1".to_owned(),
            access_key_id: "AKIAOWN".to_owned(),
            secret_access_key: "own-secret".to_owned().into(),
        }),
        ..AwsOptions::default()
    }
}

async fn sink(server: &Server) -> AwsSink {
    AwsSink::new(options(server), Arc::new(OneExternalId), Gate::default()).await
}

fn integration() -> Arc<Integration> {
    version(Uuid::from_u128(7), 1)
}

fn version(integration_id: Uuid, version: u64) -> Arc<Integration> {
    Arc::new(Integration {
        integration_id: IntegrationId(integration_id),
        stream_arn: StreamArn::parse(STREAM).unwrap(),
        role_arn: RoleArn::parse(ROLE).unwrap(),
        version,
        ..integration::testing::integration(1, 123_456_789_012)
    })
}

fn records(count: usize) -> Vec<Record> {
    (0..count)
        .map(|index| Record {
            partition_key: Uuid::from_u128(index as u128),
            content: Content::Event {
                sequence: index as u64 + 1,
                stored: format!("\"partitionkey\":\"x\",\"event\":{index}}}").into(),
            },
        })
        .collect()
}

fn head() -> RecordHead {
    RecordHead::new(integration().integration_id.0)
}

fn accepted(number: usize) -> RecordOutcome {
    RecordOutcome::Accepted {
        shard_id: "shardId-000000000000".into(),
        sequence_number: number.to_string().into(),
    }
}

async fn writes_the_records_with_a_narrow_session() {
    let server = Server::start(Call::granted).await;
    let outcomes = sink(&server)
        .await
        .put_records(&integration(), records(3), &[])
        .await;
    assert_eq!(outcomes, Ok((0..3).map(accepted).collect()));

    let calls = server.calls();
    assert_eq!(calls.len(), 2);
    let form = calls[0].form();
    assert_eq!(form["Action"], "AssumeRole");
    assert_eq!(form["RoleArn"], ROLE);
    assert_eq!(form["RoleSessionName"], "siem-relay-acme");
    assert_eq!(form["ExternalId"], EXTERNAL_ID);
    assert_eq!(form["DurationSeconds"], "3600");
    let policy: Value = serde_json::from_str(&form["Policy"]).unwrap();
    assert_eq!(policy["Statement"][0]["Resource"], STREAM);
    assert_eq!(calls[0].credential(), ("AKIAOWN", "us-east-1", "sts"));

    assert_eq!(
        calls[1].header("x-amz-target"),
        "Kinesis_20131202.PutRecords"
    );
    assert_eq!(calls[1].header("x-amz-security-token"), "token-1");
    let content_type = match client() {
        PutRecordsClient::Sdk => "application/x-amz-json-1.1",
        PutRecordsClient::Direct => "application/x-amz-cbor-1.1",
    };
    assert_eq!(calls[1].header("content-type"), content_type);
    assert_eq!(calls[1].credential(), ("ASIA1", "eu-west-1", "kinesis"));
    let expected: Vec<_> = records(3)
        .iter()
        .map(|record| {
            json!({
                "Data": BASE64_STANDARD.encode(record.data(&head()).unwrap()),
                "PartitionKey": record.partition_key.to_string(),
            })
        })
        .collect();
    assert_eq!(
        calls[1].json(),
        json!({"StreamARN": STREAM, "Records": expected})
    );
}

async fn no_records_cause_no_call() {
    let server = Server::start(Call::granted).await;
    let sink = sink(&server).await;
    assert_eq!(
        sink.put_records(&integration(), Vec::new(), &[]).await,
        Ok(vec![])
    );
    assert!(server.calls().is_empty());
}

async fn reports_each_record() {
    let server = Server::start(|call| {
        if call.is_sts() {
            return assumed(call);
        }
        Answer::json(
            200,
            &json!({
                "FailedRecordCount": 2,
                "EncryptionType": "KMS",
                "Records": [
                    {"SequenceNumber": "0", "ShardId": "shardId-000000000000"},
                    {"ErrorCode": "ProvisionedThroughputExceededException",
                     "ErrorMessage": "Rate exceeded for shard shardId-000000000001"},
                    {"ErrorCode": "InternalFailure", "ErrorMessage": "Internal Service Failure"},
                ],
            }),
        )
    })
    .await;
    let outcomes = sink(&server)
        .await
        .put_records(&integration(), records(3), &[])
        .await;
    let failed = |code: &str| {
        RecordOutcome::Failed(Fault {
            stage: Stage::Write,
            cause: Cause::Service {
                code: code.into(),
                http_status: 0,
            },
            request_id: Some("request-1".into()),
        })
    };
    assert_eq!(
        outcomes,
        Ok(vec![
            accepted(0),
            failed("ProvisionedThroughputExceededException"),
            failed("InternalFailure"),
        ])
    );
}

async fn an_unclear_record_is_not_accepted() {
    let unclear = json!([
        {},
        {"ShardId": "shardId-000000000000"},
        {"SequenceNumber": "1"},
        {"ShardId": "", "SequenceNumber": ""},
        {"ShardId": "shardId-000000000000", "SequenceNumber": "1", "ErrorCode": "InternalFailure"},
        {"ShardId": null, "SequenceNumber": null, "ErrorCode": null},
    ]);
    let body = json!({"FailedRecordCount": 0, "Records": unclear});
    let server = Server::start(move |call| match call.is_sts() {
        true => assumed(call),
        false => Answer::json(200, &body),
    })
    .await;
    let outcomes = sink(&server)
        .await
        .put_records(&integration(), records(6), &[])
        .await
        .unwrap();
    assert_eq!(outcomes.len(), 6);
    for outcome in outcomes {
        assert!(matches!(outcome, RecordOutcome::Failed(_)), "{outcome:?}");
    }
}

async fn a_test_assumes_a_new_session() {
    let server = Server::start(Call::granted).await;
    let sink = sink(&server).await;
    let integration = integration();
    sink.put_records(&integration, records(1), &[])
        .await
        .unwrap();
    let report = sink.test(&integration, records(1).remove(0)).await;
    assert_eq!(report.assume_role, Ok(AssumedWith::Current));
    assert_eq!(
        report.write,
        Some(Ok(Receipt {
            shard_id: "shardId-000000000000".into(),
            sequence_number: "0".into(),
        }))
    );
    assert!(report.latency > Duration::ZERO);
    // Delivery continues with the session of the test.
    sink.put_records(&integration, records(1), &[])
        .await
        .unwrap();
    assert_eq!(server.keys_that_wrote(), ["ASIA1", "ASIA2", "ASIA2"]);
}

async fn a_test_reports_the_failed_stage() {
    let server = Server::start(|call| match call.is_sts() {
        true => server::access_denied(),
        false => written(call),
    })
    .await;
    let report = sink(&server)
        .await
        .test(&integration(), records(1).remove(0))
        .await;
    assert_eq!(report.assume_role.unwrap_err().code(), "AccessDenied");
    assert_eq!(report.write, None);

    let server = Server::start(|call| match call.is_sts() {
        true => assumed(call),
        false => kinesis_error(400, "AccessDeniedException"),
    })
    .await;
    let report = sink(&server)
        .await
        .test(&integration(), records(1).remove(0))
        .await;
    assert_eq!(report.assume_role, Ok(AssumedWith::Current));
    let fault = report.write.unwrap().unwrap_err();
    assert_eq!(fault.code(), "AccessDeniedException");
}

with_either_client!(
    writes_the_records_with_a_narrow_session,
    no_records_cause_no_call,
    reports_each_record,
    an_unclear_record_is_not_accepted,
    a_test_assumes_a_new_session,
    a_test_reports_the_failed_stage,
);
