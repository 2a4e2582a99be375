//! How connections to AWS are kept and left.

use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Writes twice to a server whose answers of STS end their connection.
async fn write_twice(kinesis: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Server {
    let server = Server::start(move |call| match call.is_sts() {
        true => Answer::Last(Box::new(assumed(call))),
        false => kinesis(call),
    })
    .await;
    let sink = sink(&server).await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..2 {
        let written = sink.put_records(&integration(), records(2)).await;
        assert_eq!(written, Ok(vec![accepted(0), accepted(1)]));
        // Once this connection is there, so is the end of one that was closed before.
        TcpStream::connect(elsewhere.local_addr().unwrap())
            .await
            .unwrap();
    }
    server
}

async fn one_serves_one_request_after_the_other() {
    let server = write_twice(written).await;
    // STS' and Kinesis'.
    assert_eq!(server.connections(), 2);
}

async fn one_that_the_server_has_closed_is_left() {
    let server = write_twice(|call| Answer::Last(Box::new(written(call)))).await;
    assert_eq!(server.connections(), 3);
}

with_either_client!(
    one_serves_one_request_after_the_other,
    one_that_the_server_has_closed_is_left,
);
