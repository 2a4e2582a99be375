//! External IDs never appear in an answer, a log line or a file.

use std::{fs, path::Path};

use aws_stand_in::{Control, Effect, Fault, Operation};
use siem_client::v1;

use crate::harness::{Api, Customer, FeedEvent, ProcessEnv, fault};

const SECRET: &str = "Zq7:secret-external/id.of=acme,9Yw2";

/// Spellings in which the secret might be written.
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
        assert!(!found, "the external ID is in {place} as {spelling}");
    }
}

fn check_files(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += check_files(&path);
        } else if path.is_file() {
            check_absent(&path.display().to_string(), &fs::read(&path).unwrap());
            files += 1;
        }
    }
    files
}

/// Makes every call that could disclose the secret, good and bad ones, and refusals by STS that
/// repeat the request. Checks each answer.
async fn call_everything(api: &Api, customer: &Customer, aws: &Control) {
    let check = |what: &str, answer: &dyn std::fmt::Debug| {
        check_absent(what, format!("{answer:?}").as_bytes());
    };
    let refuse = |calls, code: &str, status, message| {
        let effect = Effect::Error {
            code: code.to_owned(),
            status,
            message,
        };
        let fault = Fault {
            calls: Some(calls),
            ..fault(Operation::AssumeRole, None, effect)
        };
        aws.add_fault(fault).unwrap();
    };
    check("Configure", &api.configure(customer).await);
    let mut statuses = api.watch(&[], "").await;
    statuses.until_synced().await;

    check("SendTest", &api.send_test("acme").await);
    aws.expire_sessions();
    // AWS repeats a value that it refuses in its message.
    let echo = format!("Value '{SECRET}' at 'externalId' failed to satisfy constraint");
    refuse(2, "ValidationError", 400, echo);
    check("a refused SendTest", &api.send_test("acme").await);
    refuse(1, "AccessDenied", 403, format!("Bad{SECRET}"));
    check("a denied SendTest", &api.send_test("acme").await);
    check("a passed SendTest", &api.send_test("acme").await);

    let other = v1::ConfigureRequest {
        organization_id: "other".to_owned(),
        ..customer.request()
    };
    check("a conflict", &api.try_configure(other).await.unwrap_err());
    let stale = v1::ConfigureRequest {
        etag: "stale".to_owned(),
        ..customer.request()
    };
    check("a stale etag", &api.try_configure(stale).await.unwrap_err());
    let mistaken = v1::ConfigureRequest {
        kinesis_stream_arn: SECRET.to_owned(),
        role_arn: SECRET.to_owned(),
        external_id: format!("{SECRET} "),
        etag: SECRET.to_owned(),
        ..customer.request()
    };
    let refused = api.try_configure(mistaken).await.unwrap_err();
    check("a refusal", &refused);
    check_absent("the details of a refusal", refused.details());
    let validate_only = v1::ConfigureRequest {
        validate_only: true,
        ..customer.request()
    };
    check("validate_only", &api.try_configure(validate_only).await);

    check("Get", &api.get("acme").await);
    check("List", &api.list(v1::ListRequest::default()).await);
    statuses.next().await;
    check("StreamStatus", &statuses.last);
    check("Delete", &api.delete("acme", false).await);
    statuses.until(&FeedEvent::Deleted("acme".to_owned())).await;
    check("Configure", &api.configure(customer).await);
    check("SendTest", &api.send_test("acme").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_external_id_appears_in_no_answer_log_or_file() {
    let env = ProcessEnv::new().await;
    let customer = env.customer.with_external_id(SECRET);
    customer.make_role(&env.aws);
    let everything = [
        "--log-level",
        "trace,aws_sdk_sts=trace,aws_smithy_runtime=trace",
    ];
    let process = env.start_with(&everything).await;
    call_everything(&process.api, &customer, &env.aws).await;
    // A running process has a write-ahead log beside the database.
    assert!(check_files(env.dir.path()) >= 3);
    let log = process.stop().await;
    assert!(log.contains("ValidationError"), "{log}");
    check_absent("the log", log.as_bytes());
    assert!(check_files(env.dir.path()) >= 3);
}

#[test]
fn the_search_finds_each_spelling_of_the_secret() {
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
