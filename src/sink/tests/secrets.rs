//! The external ID stays out of logs and faults, whatever is asked of the log.

use super::{log::Log, server::sts_error, *};

async fn the_external_id_is_not_logged_at_any_level() {
    let (log, _guard) = Log::listen();

    let told = format!("1 validation error detected: Value '{EXTERNAL_ID}' at 'externalId'");
    let server = Server::start(move |call| match (call.is_sts(), call.number) {
        (true, 1) => sts_error(400, "ValidationError", &told),
        _ => call.granted(),
    })
    .await;
    let sink = sink(&server).await;
    let integration = integration();
    let fault = sink.put_records(&integration, records(1)).await;
    let fault = fault.unwrap_err();
    assert_eq!(fault.code(), "ValidationError");
    assert!(!format!("{fault:?}").contains(EXTERNAL_ID));
    jump(Duration::from_secs(1)).await;
    sink.put_records(&integration, records(1)).await.unwrap();
    let report = sink.test(&integration, records(1).remove(0)).await;
    assert_eq!(report.assume_role, Ok(AssumedWith::Current));

    let log = log.text();
    assert!(!log.contains(EXTERNAL_ID), "{log}");
    for secret in ["secret-1", "secret-2", "own-secret"] {
        assert!(!log.contains(secret), "{secret}");
    }
    // It was listened to: our spans, and the SDK's of a call that carries no secret.
    assert!(log.contains("put_records"));
    assert!(log.contains("ValidationError"));
    if client() == PutRecordsClient::Sdk {
        assert!(log.contains("Kinesis.PutRecords"));
    }
}

with_either_client!(the_external_id_is_not_logged_at_any_level);
