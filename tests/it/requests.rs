//! Requests that no generated client sends, and error answers within the limits of every client.

mod compressed;

use prost::Message as _;
use siem_client::v1::{self, ListRequest, StreamStatusRequest};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::harness::{ProcessEnv, TestEnv, framed, reason, run, tool, violated};

const GET: &str = "siem.v1.SiemIntegrationService/Get";
const LIST: &str = "siem.v1.SiemIntegrationService/List";
const CONFIGURE: &str = "siem.v1.SiemIntegrationService/Configure";
const STREAM_STATUS: &str = "siem.v1.SiemIntegrationService/StreamStatus";
const PUBLISH: &str = "siem.v1.EventService/Publish";
const PUBLISH_STREAM: &str = "siem.v1.EventService/PublishStream";
const HEALTH: &str = "grpc.health.v1.Health/Check";
const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn violations_beyond_20_are_counted() {
    let env = TestEnv::start().await;
    for (name, at) in [
        ("no space", "character 3 is U+0020"),
        ("zero\u{200b}width", "character 5 is U+200B"),
        ("検出", "character 1 is U+691C"),
    ] {
        let request = StreamStatusRequest {
            organization_ids: vec![name.to_owned(); 1000],
            ..StreamStatusRequest::default()
        };
        let request = framed(0, &request.encode_to_vec());
        let status = env.api.raw(STREAM_STATUS, None, request).await.refusal();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason(&status), "INVALID_FIELD");
        let named: Vec<String> = (0..20).map(|n| format!("organization_ids[{n}]")).collect();
        assert_eq!(violated(&status), named);
        let message = status.message();
        assert!(message.contains(at), "{message}");
        assert!(message.ends_with("; and 995 more"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusing_4_million_statuses_takes_little_memory() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let before = process.peak_bytes();
    for (statuses, code) in [(4_000_000, "REQUEST_TOO_LARGE"), (200_000, "INVALID_FIELD")] {
        let request = ListRequest {
            statuses: vec![77; statuses],
            ..ListRequest::default()
        };
        let request = framed(0, &request.encode_to_vec());
        let answer = process.api.raw(LIST, None, request).await;
        let status = answer.refusal();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(reason(&status), code);
    }
    // 8 MiB of empty events, two bytes each.
    let answer = process
        .api
        .raw(PUBLISH, None, framed(0, &[0x0a, 0x00].repeat(4 * MIB)))
        .await;
    assert_eq!(reason(&answer.refusal()), "MALFORMED_REQUEST");
    let growth = process.peak_bytes() - before;
    assert!(growth < 48 << 20, "{growth} bytes for refusals");
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_unknown_status_is_reported_once() {
    let env = TestEnv::start().await;
    let request = ListRequest {
        statuses: vec![77, 2, 77, -3, 0, 77, -3],
        ..ListRequest::default()
    };
    let status = env.api.list(request).await.unwrap_err();
    assert_eq!(
        violated(&status),
        ["statuses[0]", "statuses[3]", "statuses[4]"]
    );
    assert!(status.message().contains("is -3"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_protobuf_is_invalid_argument() {
    let env = TestEnv::start().await;
    let bytes: [(&str, &[u8]); 6] = [
        ("text that is not UTF-8", b"\x0a\x02\xc3\x28"),
        ("another wire type", b"\x08\x01"),
        ("a length beyond the end", b"\x0a\x05ab"),
        ("garbage at the end", b"\x0a\x00\xff\xff"),
        ("a field without number", b"\x00\x00"),
        ("a group that does not end", b"\xfb\x3f"),
    ];
    for method in [GET, CONFIGURE, STREAM_STATUS, HEALTH] {
        for (what, bytes) in bytes {
            let answer = env.api.raw(method, None, framed(0, bytes)).await;
            let status = answer.refusal();
            assert_eq!(status.code(), Code::InvalidArgument, "{method}, {what}");
            assert_eq!(reason(&status), "MALFORMED_REQUEST");
            assert!(status.message().starts_with("the request cannot be read: "));
        }
    }
    // A fault inside an event is reported for that event.
    for method in [PUBLISH, PUBLISH_STREAM] {
        for (what, bytes) in bytes.into_iter().skip(2) {
            let answer = env.api.raw(method, None, framed(0, bytes)).await;
            let status = answer.refusal();
            assert_eq!(status.code(), Code::InvalidArgument, "{method}, {what}");
            assert_eq!(reason(&status), "MALFORMED_REQUEST");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_framing_is_invalid_argument() {
    let env = TestEnv::start().await;
    let get = v1::GetRequest {
        organization_id: "acme".to_owned(),
    };
    let good = framed(0, &get.encode_to_vec());
    let mut cut = good.clone();
    cut.pop();
    for method in [GET, STREAM_STATUS, PUBLISH] {
        for (what, body) in [
            ("no message", Vec::new()),
            ("half a prefix", vec![0, 0, 0]),
            ("half a message", cut.clone()),
            ("two messages", [&good[..], &good[..]].concat()),
            ("unknown flags", framed(2, &[])),
        ] {
            let status = env.api.raw(method, None, body).await.refusal();
            assert_eq!(status.code(), Code::InvalidArgument, "{method}, {what}");
            assert_eq!(reason(&status), "MALFORMED_REQUEST", "{method}, {what}");
        }
    }
    let good = framed(0, &v1::PublishStreamRequest::default().encode_to_vec());
    let answer = env.api.raw(PUBLISH_STREAM, None, good.clone()).await;
    assert_eq!(answer.messages::<v1::PublishStreamResponse>().len(), 1);
    let answer = env.api.raw(PUBLISH_STREAM, None, Vec::new()).await;
    assert_eq!(answer.status().code(), Code::Ok, "ending is no error");
    let answer = env
        .api
        .raw(PUBLISH_STREAM, None, [&good[..], &[0, 0]].concat())
        .await;
    assert_eq!(answer.messages::<v1::PublishStreamResponse>().len(), 1);
    assert_eq!(reason(&answer.refusal()), "MALFORMED_REQUEST");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_with_the_limit() {
    let env = TestEnv::start().await;
    for (method, limit) in [
        (GET, 256 << 10),
        (CONFIGURE, 256 << 10),
        (STREAM_STATUS, 256 << 10),
        (HEALTH, 256 << 10),
        (PUBLISH, 8 * MIB),
        (PUBLISH_STREAM, 8 * MIB),
    ] {
        let message = framed(0, &vec![0; limit + 1]);
        let status = env.api.raw(method, None, message).await.refusal();
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
        assert_eq!(reason(&status), "REQUEST_TOO_LARGE");
        let message = status.message();
        assert!(message.contains(&limit.to_string()), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_character_is_reported_with_its_position() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let good = customer.request();
    for (character, code) in [
        ('\u{200b}', "U+200B"),
        ('\u{200f}', "U+200F"),
        ('\u{2060}', "U+2060"),
        ('\u{2064}', "U+2064"),
        ('\u{202e}', "U+202E"),
        ('\u{2066}', "U+2066"),
        ('\u{feff}', "U+FEFF"),
        ('\u{ad}', "U+00AD"),
        ('\u{a0}', "U+00A0"),
        ('\u{3000}', "U+3000"),
        (' ', "U+0020"),
        ('\t', "U+0009"),
        ('\r', "U+000D"),
        ('\n', "U+000A"),
        ('\u{7}', "U+0007"),
        ('\u{430}', "U+0430"),
    ] {
        for position in ["first", "tenth", "last"] {
            let with = |text: &str| {
                let at = match position {
                    "first" => 0,
                    "tenth" => 9,
                    _ => text.len(),
                };
                let description = format!("character {} is {code}", at + 1);
                let bad = format!("{}{character}{}", &text[..at], &text[at..]);
                (bad, description)
            };
            let (stream_arn, in_stream_arn) = with(&good.kinesis_stream_arn);
            let (role_arn, in_role_arn) = with(&good.role_arn);
            let (external_id, in_external_id) = with(&good.external_id);
            let (organization_id, in_organization_id) = with("an-organization");
            let request = v1::ConfigureRequest {
                organization_id,
                kinesis_stream_arn: stream_arn,
                role_arn,
                external_id: external_id.clone(),
                ..v1::ConfigureRequest::default()
            };
            let status = env.api.try_configure(request).await.unwrap_err();
            let details = status.get_details_bad_request().unwrap();
            let descriptions: Vec<_> = details
                .field_violations
                .iter()
                .map(|violation| violation.description.as_str())
                .collect();
            let expected = [
                in_organization_id,
                in_stream_arn,
                in_role_arn,
                in_external_id,
            ];
            assert_eq!(descriptions.len(), expected.len(), "{descriptions:?}");
            for (found, expected) in descriptions.iter().zip(expected) {
                assert!(found.contains(&expected), "{found}, not {expected}");
            }
            assert!(!format!("{status:?}").contains(&good.external_id[..9]));
        }
    }
}

#[tokio::test]
async fn the_tools_report_a_bad_character_with_its_position() {
    let stream = "arn:aws:kinesis:us-east-1:222222222222:stream/de\u{200b}t";
    let verified = run(tool(&["verify", "--stream", stream])).await;
    assert_eq!(verified.code, Some(64));
    let words = "character 49 is U+200B";
    assert!(verified.stderr.contains(words), "{}", verified.stderr);
    let arguments = [
        ("--stream", " detections", "character 1 is U+0020"),
        ("--region", "us-east-1", ""),
        ("--account", "222222222222", ""),
        ("--role-name", "si\u{feff}em", "character 3 is U+FEFF"),
        ("--principal", "111111111111\t", "character 13 is U+0009"),
        (
            "--kms-key-arn",
            "arn:aws:kms:us-east-1:222222222222:key/a\u{a0}",
            "character 41 is U+00A0",
        ),
        ("--external-id", "sesame\u{2060}x", "character 7 is U+2060"),
    ];
    let mut all = vec!["onboarding"];
    all.extend(
        arguments
            .iter()
            .flat_map(|(flag, value, _)| [*flag, *value]),
    );
    let refused = run(tool(&all)).await;
    assert_eq!(refused.code, Some(64));
    for (flag, _, words) in arguments {
        let mut lines = refused.stderr.lines();
        let line = lines.find(|line| line.contains(&format!("{flag}:")));
        assert!(
            line.unwrap_or_default().contains(words),
            "{}",
            refused.stderr
        );
    }
    assert!(!refused.stderr.contains("sesame"), "{}", refused.stderr);
}
