//! Reuse of connections to AWS.

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::*;

/// Writes twice to a server that closes the connections of STS after each answer.
async fn write_twice(kinesis: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Server {
    let server = Server::start(move |call| match call.is_sts() {
        true => Answer::Last(Box::new(assumed(call))),
        false => kinesis(call),
    })
    .await;
    let sink = sink(&server).await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for _ in 0..2 {
        let written = sink.put_records(&integration(), records(2), &[]).await;
        assert_eq!(written, Ok(vec![accepted(0), accepted(1)]));
        // Once this connection is made, an earlier close has arrived too.
        TcpStream::connect(elsewhere.local_addr().unwrap())
            .await
            .unwrap();
    }
    server
}

async fn a_connection_serves_successive_requests() {
    let server = write_twice(written).await;
    // One of STS, two of the probes, and one of Kinesis.
    assert_eq!(server.connections(), 4);
}

async fn a_closed_connection_is_not_reused() {
    let server = write_twice(|call| Answer::Last(Box::new(written(call)))).await;
    assert_eq!(server.connections(), 5);
}

/// A late answer would be taken for that to another request.
async fn a_connection_with_a_timeout_is_not_reused() {
    let late = Arc::new(Notify::new());
    let notify = late.clone();
    let server = Server::start(move |call| match (call.is_sts(), call.number) {
        (true, _) => Answer::Last(Box::new(assumed(call))),
        (false, 1) => {
            let refused = kinesis_error(400, "ResourceNotFoundException");
            Answer::Held(notify.clone(), Box::new(refused))
        }
        _ => written(call),
    })
    .await;
    let mut options = options(&server);
    options.attempt_timeout = Duration::from_millis(300);
    let sink = AwsSink::new(options, Arc::new(OneExternalId), Gate::default()).await;
    let failed = sink.put_records(&integration(), records(2), &[]).await;
    assert_eq!(failed.unwrap_err().cause, Cause::Timeout);
    let before = server.connections();
    late.notify_one();
    let written = sink.put_records(&integration(), records(2), &[]).await;
    assert_eq!(written, Ok(vec![accepted(0), accepted(1)]));
    assert_eq!(server.connections(), before + 1);
}

with_either_client!(
    a_connection_serves_successive_requests,
    a_closed_connection_is_not_reused,
    a_connection_with_a_timeout_is_not_reused,
);
