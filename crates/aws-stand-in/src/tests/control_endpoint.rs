//! The control endpoint, and malformed HTTP requests.

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// Sends raw bytes on a new connection. Returns status and body of the response.
async fn exchange(world: &World, request: &[u8]) -> (u16, String) {
    let mut connection = TcpStream::connect(world.stand_in.address()).await.unwrap();
    connection.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let status = answer
        .get(9..12)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}

async fn send(world: &World, method_and_path: &str, headers: &str, body: &str) -> (u16, String) {
    let request = format!(
        "{method_and_path} HTTP/1.1\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(world, request.as_bytes()).await
}

async fn control(world: &World, method_and_path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (status, answer) = send(world, method_and_path, "host: localhost\r\n", &body).await;
    (
        status,
        serde_json::from_str(&answer).unwrap_or(Value::String(answer)),
    )
}

#[tokio::test]
async fn the_whole_control_interface_works_over_http() {
    let world = World::start().await;
    let none = Value::Null;
    let role = json!({
        "role_arn": "arn:aws:iam::333333333333:role/b",
        "trust_policy": trust_policy("by-http"),
        "permission_policy": permissions("*"),
    });
    assert_eq!(control(&world, "PUT /_control/roles", &role).await.0, 200);
    let arn = "arn:aws:kinesis:eu-west-1:333333333333:stream/b";
    let stream = json!({ "stream_arn": arn, "shards": 2 });
    assert_eq!(
        control(&world, "PUT /_control/streams", &stream).await.0,
        200
    );
    assert_eq!(
        control(&world, "PUT /_control/streams", &stream).await.0,
        409
    );
    let user = json!({
        "access_key_id": "AKIAREADER", "secret_access_key": "s",
        "principal_arn": "arn:aws:iam::333333333333:user/reader",
    });
    assert_eq!(
        control(&world, "PUT /_control/credentials", &user).await.0,
        200
    );
    let kinesis = world.kinesis_as(Credentials::new("AKIAREADER", "s", None, None, "test"));

    let effect = json!({ "type": "error", "code": "InternalFailure", "status": 500 });
    let fault = json!({ "operation": "PutRecord", "calls": 1, "effect": effect });
    let (status, answer) = control(&world, "POST /_control/faults", &fault).await;
    assert_eq!((status, &answer["id"]), (200, &json!(1)));
    let put = || {
        let call = kinesis.put_record().stream_name("b").partition_key("k");
        call.data(Blob::new("detection")).send()
    };
    assert_eq!(refused!(put()), code("InternalFailure", 500));
    put().await.unwrap();
    let (_, answer) = control(&world, "GET /_control/faults", &none).await;
    assert_eq!(answer["faults"][0]["fault"]["calls"], 0);
    assert_eq!(
        control(&world, "DELETE /_control/faults?id=1", &none)
            .await
            .0,
        200
    );
    assert_eq!(
        control(&world, "DELETE /_control/faults?id=1", &none)
            .await
            .0,
        404
    );

    let path = format!("GET /_control/records?arn={arn}");
    let (status, answer) = control(&world, &path, &none).await;
    assert_eq!(status, 200);
    // The response is chunked: the line follows the size of its chunk.
    let text = answer.to_string();
    assert!(
        text.contains("partition_key") && text.contains("detection"),
        "{text}"
    );
    let (_, answer) = control(&world, "GET /_control/calls", &none).await;
    let calls = answer["calls"].as_array().unwrap();
    let ok = json!({ "operation": "PutRecord", "target": "b", "outcome": "OK", "count": 1 });
    assert!(calls.contains(&ok), "{calls:?}");

    let unknown = "GET /_control/call?request_id=nobody";
    assert_eq!(control(&world, unknown, &none).await.0, 404);

    let settings = json!({ "session_lifetime": { "seconds": 0 }, "enforce_shard_limits": false });
    assert_eq!(
        control(&world, "PUT /_control/settings", &settings).await.0,
        200
    );
    let put = world
        .kinesis()
        .await
        .put_records()
        .stream_arn(STREAM)
        .records(entry("k", "d"));
    assert_eq!(refused!(put.send()), code("ExpiredTokenException", 400));
    let (_, answer) = control(&world, "DELETE /_control/sessions", &none).await;
    assert_eq!(answer["expired"], 1);
    let path = format!("DELETE /_control/streams?arn={arn}");
    assert_eq!(control(&world, &path, &none).await.0, 200);
    assert_eq!(control(&world, "GET /_control/nothing", &none).await.0, 404);
    assert_eq!(
        control(&world, "PUT /_control/roles", &json!({ "role_arn": 1 }))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn control_requests_must_be_local() {
    let world = World::start().await;
    let get = "GET /_control/calls";
    for host in ["localhost:1", "127.0.0.1", "[::1]:80"] {
        assert_eq!(
            send(&world, get, &format!("host: {host}\r\n"), "").await.0,
            200,
            "{host}"
        );
    }
    for headers in [
        "host: rebound.example.com\r\n",
        "host: 192.0.2.1\r\n",
        "host: localhost\r\norigin: https://example.com\r\n",
    ] {
        assert_eq!(send(&world, get, headers, "").await.0, 403, "{headers}");
    }
    let options = Options {
        listen: "0.0.0.0:0".parse().unwrap(),
        ..Options::default()
    };
    assert!(StandIn::start(options).await.is_err());
}

#[tokio::test]
async fn malformed_requests_are_refused_without_side_effects() {
    let world = World::start().await;
    let kinesis = "host: localhost\r\nx-amz-target: Kinesis_20131202.";
    let cases = [
        (
            String::from("host: localhost\r\n"),
            "",
            400,
            "InvalidAction",
        ),
        (
            String::from("host: localhost\r\n"),
            "Action=AssumeRole",
            403,
            "MissingAuthenticationToken",
        ),
        (
            format!("{kinesis}Nonsense\r\n"),
            "{}",
            400,
            "UnknownOperationException",
        ),
        (
            format!("{kinesis}PutRecords\r\n"),
            "\u{0}",
            400,
            "MissingAuthenticationTokenException",
        ),
        (
            format!("{kinesis}PutRecords\r\nauthorization: x\r\n"),
            "[",
            400,
            "IncompleteSignatureException",
        ),
    ];
    for (headers, body, status, code) in cases {
        let (got, answer) = send(&world, "POST /", &headers, body).await;
        assert_eq!(got, status, "{headers} {answer}");
        assert!(answer.contains(code), "{answer}");
    }
    exchange(&world, b"\x16\x03\x01 not http\r\n\r\n").await;
    // Correctly signed, but invalid for the operation.
    let client = world.kinesis().await;
    let put = client
        .put_records()
        .stream_arn("arn:aws:s3:::bucket")
        .records(entry("k", "d"));
    assert_eq!(refused!(put.send()), code("ValidationException", 400));
    client
        .put_records()
        .stream_arn(STREAM)
        .records(entry("k", "d"))
        .send()
        .await
        .unwrap();
}
