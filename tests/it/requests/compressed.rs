//! Requests compressed by gzip.

use prost::Message as _;
use siem_client::v1::{self, publish_stream_response::Outcome};
use tonic::Code;

use super::{CONFIGURE, GET, HEALTH, LIST, MIB, PUBLISH, PUBLISH_STREAM, STREAM_STATUS};
use crate::harness::{
    Customer, Load, ProcessEnv, TestEnv, check_complete, framed, gzip, read_events, reason,
    without_time,
};

fn compressed(message: &impl prost::Message) -> Vec<u8> {
    framed(1, &gzip(&message.encode_to_vec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rpc_accepts_gzip() {
    let env = TestEnv::start().await;
    let customer = Customer::new("acme");
    customer.make_role(&env.aws);
    customer.make_stream(&env.aws, 1);
    let api = &env.api;
    let answer = api
        .raw(CONFIGURE, Some("gzip"), compressed(&customer.request()))
        .await;
    let configured: v1::ConfigureResponse = answer.message();
    let get = v1::GetRequest {
        organization_id: "acme".to_owned(),
    };
    let got: v1::GetResponse = api.raw(GET, Some("gzip"), compressed(&get)).await.message();
    assert_eq!(
        got.integration.map(without_time),
        configured.integration.clone().map(without_time)
    );

    let mut load = Load::new("acme", 3, 22);
    let publish = |events: &[v1::Event]| v1::PublishRequest {
        events: events.to_vec(),
    };
    let request = compressed(&publish(&load.events(500)));
    let answer: v1::PublishResponse = api.raw(PUBLISH, Some("gzip"), request).await.message();
    assert_eq!((answer.accepted, answer.rejections.len()), (500, 0));
    // A gzip file may have several members, none of which may be lost.
    let whole = publish(&load.events(300)).encode_to_vec();
    let members = whole
        .chunks(whole.len() / 3 + 1)
        .flat_map(gzip)
        .collect::<Vec<u8>>();
    let answer = api.raw(PUBLISH, Some("gzip"), framed(1, &members)).await;
    assert_eq!(answer.message::<v1::PublishResponse>().accepted, 300);
    // A message without the flag is not compressed, even among compressed ones.
    let stream = |load: &mut Load, count: usize| v1::PublishStreamRequest {
        request_id: count.to_string(),
        events: load.events(count),
    };
    let body = [
        compressed(&stream(&mut load, 100)),
        framed(0, &stream(&mut load, 50).encode_to_vec()),
        compressed(&stream(&mut load, 20)),
    ];
    let answer = api.raw(PUBLISH_STREAM, Some("gzip"), body.concat()).await;
    let accepted: Vec<(String, u32)> = answer
        .messages::<v1::PublishStreamResponse>()
        .into_iter()
        .map(|message| match message.outcome {
            Some(Outcome::Result(result)) => (message.request_id, result.accepted),
            other => panic!("{other:?}"),
        })
        .collect();
    let wanted = [("100", 100), ("50", 50), ("20", 20)];
    assert_eq!(accepted, wanted.map(|(id, count)| (id.to_owned(), count)));
    let integration_id = configured.integration.unwrap().integration_id;
    let arrived = read_events(&env.aws, &customer.stream_arn, load.made.len()).await;
    check_complete(&arrived, &integration_id, &load.made);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decompressed_size_counts_against_the_limits() {
    let env = TestEnv::start().await;
    env.customer("acme").await;
    let api = &env.api;
    let zeros = |bytes: usize| framed(1, &gzip(&vec![0; bytes]));
    for (method, limit) in [
        (GET, 256 << 10),
        (LIST, 256 << 10),
        (STREAM_STATUS, 256 << 10),
        (HEALTH, 256 << 10),
        (PUBLISH, 8 * MIB),
        (PUBLISH_STREAM, 8 * MIB),
    ] {
        let answer = api.raw(method, Some("gzip"), zeros(limit + 1)).await;
        let status = answer.refusal();
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
        assert_eq!(reason(&status), "REQUEST_TOO_LARGE", "{method}");
        assert!(status.message().contains(&limit.to_string()));
    }
    let mut event = Load::new("acme", 1, 1).events(1).remove(0);
    let Some(v1::event::Payload::IdsDetection(detection)) = &mut event.payload else {
        panic!("no detection");
    };
    detection.signature = Some("x".repeat(900_000));
    let request = v1::PublishRequest {
        events: vec![event; 5],
    };
    let answer = api.raw(PUBLISH, Some("gzip"), compressed(&request)).await;
    assert_eq!(reason(&answer.refusal()), "REQUEST_TOO_LARGE");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusing_a_gzip_bomb_takes_little_memory() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let before = process.peak_bytes();
    let bomb = gzip(&vec![0; 128 * MIB]);
    for method in [PUBLISH, PUBLISH_STREAM, GET, HEALTH] {
        let answer = process.api.raw(method, Some("gzip"), framed(1, &bomb));
        let status = answer.await.refusal();
        assert_eq!(status.code(), Code::InvalidArgument, "{method}");
        assert_eq!(reason(&status), "REQUEST_TOO_LARGE", "{method}");
    }
    let growth = process.peak_bytes() - before;
    assert!(growth < 24 << 20, "{growth} bytes for refusals");
    process.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_gzip_is_invalid_argument() {
    let env = TestEnv::start().await;
    let good = gzip(&v1::PublishRequest::default().encode_to_vec());
    let mut damaged = gzip(&[7; 1000]);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    let cut = good[..good.len() - 1].to_vec();
    let mut wrong_sum = good.clone();
    let sum = wrong_sum.len() - 8;
    wrong_sum[sum] ^= 1;
    for method in [GET, STREAM_STATUS, PUBLISH, PUBLISH_STREAM, HEALTH] {
        for (what, bytes) in [
            ("nothing", &[][..]),
            ("not gzip", &b"plain"[..]),
            ("damaged", &damaged[..]),
            ("cut off", &cut[..]),
            ("a wrong checksum", &wrong_sum[..]),
            ("garbage at the end", &[&good[..], b"garbage"].concat()[..]),
            ("a member cut off", &[&good[..], &cut[..]].concat()[..]),
        ] {
            let answer = env.api.raw(method, Some("gzip"), framed(1, bytes)).await;
            let status = answer.refusal();
            assert_eq!(status.code(), Code::InvalidArgument, "{method}, {what}");
            assert_eq!(reason(&status), "MALFORMED_REQUEST", "{method}, {what}");
        }
    }
}

/// <https://github.com/grpc/grpc/blob/master/doc/compression.md>
#[tokio::test(flavor = "multi_thread")]
async fn other_encodings_are_refused_with_the_accepted_ones() {
    let env = TestEnv::start().await;
    for method in [GET, STREAM_STATUS, PUBLISH, PUBLISH_STREAM, HEALTH] {
        for encoding in ["deflate", "zstd", "gzip,identity", &"x".repeat(5_000)] {
            let answer = env.api.raw(method, Some(encoding), framed(1, b"?")).await;
            let status = answer.refusal();
            assert_eq!(status.code(), Code::Unimplemented, "{method}, {encoding}");
            assert_eq!(reason(&status), "UNSUPPORTED_ENCODING");
            assert!(status.message().len() < 300);
            let accepted = answer.headers.get("grpc-accept-encoding").unwrap();
            assert_eq!(accepted, "identity,gzip");
        }
        for encoding in [None, Some("identity")] {
            let answer = env.api.raw(method, encoding, framed(1, &gzip(b""))).await;
            let status = answer.refusal();
            assert_eq!(
                status.code(),
                Code::Internal,
                "the code that gRPC specifies"
            );
            assert_eq!(reason(&status), "MALFORMED_REQUEST");
        }
    }
}
