//! How connections to AWS are kept and left.

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

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
    // STS', those of the two probes, and Kinesis'.
    assert_eq!(server.connections(), 4);
}

async fn one_that_the_server_has_closed_is_left() {
    let server = write_twice(|call| Answer::Last(Box::new(written(call)))).await;
    assert_eq!(server.connections(), 5);
}

/// What answers later would answer another request.
async fn one_whose_answer_did_not_come_in_time_is_left() {
    let late = Arc::new(Notify::new());
    let told = late.clone();
    let server = Server::start(move |call| match (call.is_sts(), call.number) {
        (true, _) => Answer::Last(Box::new(assumed(call))),
        (false, 1) => {
            let refused = kinesis_error(400, "ResourceNotFoundException");
            Answer::Held(told.clone(), Box::new(refused))
        }
        _ => written(call),
    })
    .await;
    let mut options = options(&server);
    options.attempt_timeout = Duration::from_millis(300);
    let sink = AwsSink::new(options, Arc::new(OneExternalId)).await;
    let in_vain = sink.put_records(&integration(), records(2)).await;
    assert_eq!(in_vain.unwrap_err().cause, Cause::Timeout);
    let before = server.connections();
    late.notify_one();
    let written = sink.put_records(&integration(), records(2)).await;
    assert_eq!(written, Ok(vec![accepted(0), accepted(1)]));
    assert_eq!(server.connections(), before + 1);
}

with_either_client!(
    one_serves_one_request_after_the_other,
    one_that_the_server_has_closed_is_left,
    one_whose_answer_did_not_come_in_time_is_left,
);
