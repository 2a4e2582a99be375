//! The external ID goes in and never comes out: not in an answer, a log line or a file.

use std::{fs, path::Path};

use aws_stand_in::{Effect, Fault, Operation, When};
use siem_client::v1;
use tempfile::TempDir;

use crate::harness::{Api, Customer, Process, Told, stand_in};

const SECRET: &str = "Zq7:secret-external/id.of=acme,9Yw2";

/// The ways in which the secret might be written.
fn spellings() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = SECRET.as_bytes();
    let each = |format: fn(&u8) -> String, between: &str| {
        let parts: Vec<String> = bytes.iter().map(format).collect();
        parts.join(between).into_bytes()
    };
    let percent: String = bytes
        .iter()
        .map(|byte| match byte {
            b if b.is_ascii_alphanumeric() || b"-_.~".contains(b) => (*b as char).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect();
    vec![
        ("text", bytes.to_vec()),
        ("percent", percent.into_bytes()),
        ("decimal", each(|byte| byte.to_string(), ", ")),
        ("dense decimal", each(|byte| byte.to_string(), ",")),
        ("hex", hex::encode(bytes).into_bytes()),
        ("HEX", hex::encode_upper(bytes).into_bytes()),
        ("its middle", b"secret-external".to_vec()),
    ]
}

#[track_caller]
fn check_absent(place: &str, bytes: &[u8]) {
    for (spelling, secret) in spellings() {
        let found = bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!found, "the external ID stands in {place} as {spelling}");
    }
}

fn check_files(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += check_files(&path);
        } else {
            check_absent(&path.display().to_string(), &fs::read(&path).unwrap());
            files += 1;
        }
    }
    files
}

/// Does everything that could make a service tell: good and bad requests, refusals of
/// STS that repeat what was sent, tests, lists, streams. Checks each answer.
async fn provoke(api: &Api, customer: &Customer, aws: &aws_stand_in::Control) {
    let answer = |what: &str, answer: &dyn std::fmt::Debug| {
        check_absent(what, format!("{answer:?}").as_bytes());
    };
    answer("Configure", &api.configure(customer).await);
    let mut statuses = api.watch(&[], "").await;
    statuses.until_synced().await;

    answer("SendTest", &api.send_test("acme").await);
    aws.expire_sessions();
    // AWS repeats a value that it refuses in its message, and so does the stand-in.
    let echo = Fault {
        operation: Some(Operation::AssumeRole),
        target: None,
        calls: Some(2),
        when: When::Before,
        effect: Effect::Error {
            code: "ValidationError".to_owned(),
            status: 400,
            message: format!("Value '{SECRET}' at 'externalId' failed to satisfy constraint"),
        },
    };
    aws.add_fault(echo).unwrap();
    answer("a refused SendTest", &api.send_test("acme").await);
    let code = format!("Bad{SECRET}");
    let odd = Fault {
        operation: Some(Operation::AssumeRole),
        target: None,
        calls: Some(1),
        when: When::Before,
        effect: Effect::Error {
            code: "AccessDenied".to_owned(),
            status: 403,
            message: code,
        },
    };
    aws.add_fault(odd).unwrap();
    answer("a denied SendTest", &api.send_test("acme").await);
    answer("a healed SendTest", &api.send_test("acme").await);

    let other = v1::ConfigureRequest {
        organization_id: "other".to_owned(),
        ..customer.request()
    };
    answer("a conflict", &api.try_configure(other).await.unwrap_err());
    let stale = v1::ConfigureRequest {
        etag: "stale".to_owned(),
        ..customer.request()
    };
    answer("a stale etag", &api.try_configure(stale).await.unwrap_err());
    let mistaken = v1::ConfigureRequest {
        kinesis_stream_arn: SECRET.to_owned(),
        role_arn: SECRET.to_owned(),
        external_id: format!("{SECRET} "),
        etag: SECRET.to_owned(),
        ..customer.request()
    };
    let refused = api.try_configure(mistaken).await.unwrap_err();
    answer("a refusal", &refused);
    check_absent("the details of a refusal", refused.details());
    let rehearsal = v1::ConfigureRequest {
        validate_only: true,
        ..customer.request()
    };
    answer("a rehearsal", &api.try_configure(rehearsal).await);

    answer("Get", &api.get("acme").await);
    answer("List", &api.list(v1::ListRequest::default()).await);
    statuses.next().await;
    answer("StreamStatus", &statuses.last);
    answer("Delete", &api.delete("acme", false).await);
    statuses.until(&Told::Deleted("acme".to_owned())).await;
    answer("Configure", &api.configure(customer).await);
    answer("SendTest", &api.send_test("acme").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_external_id_never_comes_out() {
    let stand_in = stand_in().await;
    let aws = stand_in.control();
    let dir = TempDir::new().unwrap();
    let customer = Customer {
        external_id: SECRET.to_owned(),
        ..Customer::new("acme")
    };
    customer.make_role(&aws);
    customer.make_stream(&aws, 1);
    let everything = [
        "--log-level",
        "trace,aws_sdk_sts=trace,aws_smithy_runtime=trace",
    ];
    let process = Process::start(dir.path(), &stand_in.url(), &everything).await;
    provoke(&process.api, &customer, &aws).await;
    // While it runs there is a write-ahead log beside the database.
    assert!(check_files(dir.path()) >= 3);
    process.terminate().await;
    let (status, log) = process.ended().await;
    assert!(status.success());
    assert!(log.contains("ValidationError"), "{log}");
    check_absent("the log", log.as_bytes());
    assert!(check_files(dir.path()) >= 3);
}

#[test]
fn the_search_finds_a_secret() {
    let planted = [
        format!("x{SECRET}y"),
        format!("{:?}", SECRET.as_bytes()),
        "ExternalId=Zq7%3Asecret-external%2Fid.of%3Dacme%2C9Yw2".to_owned(),
    ];
    for text in planted {
        let found = spellings().iter().any(|(_, secret)| {
            text.as_bytes()
                .windows(secret.len())
                .any(|window| window == secret)
        });
        assert!(found, "{text}");
    }
}
