//! Faults of failed calls.

use tokio::net::TcpStream;

use super::{server::sts_error, *};

/// Result of a write with this answer of Kinesis.
async fn write(answer: Answer) -> Result<Vec<RecordOutcome>, Fault> {
    let server = Server::start(move |call| match call.is_sts() {
        true => assumed(call),
        false => answer.clone(),
    })
    .await;
    let sink = sink(&server).await;
    sink.put_records(&integration(), records(2), &[]).await
}

/// Fault of a write with this answer of STS.
async fn assume(answer: Answer) -> Fault {
    let server = Server::start(move |call| match call.is_sts() {
        true => answer.clone(),
        false => written(call),
    })
    .await;
    let sink = sink(&server).await;
    let fault = sink.put_records(&integration(), records(2), &[]).await;
    assert!(server.keys_that_wrote().is_empty());
    fault.unwrap_err()
}

fn fault(stage: Stage, cause: Cause, request_id: Option<&str>) -> Fault {
    Fault {
        stage,
        cause,
        request_id: request_id.map(Into::into),
    }
}

fn service(code: &str, http_status: u16) -> Cause {
    Cause::Service {
        code: code.into(),
        http_status,
    }
}

async fn keeps_the_codes_of_sts() {
    for (status, code) in [
        (403, "AccessDenied"),
        (403, "RegionDisabledException"),
        (400, "ValidationError"),
        (400, "PackedPolicyTooLarge"),
        (403, "InvalidClientTokenId"),
        (403, "SignatureDoesNotMatch"),
        (400, "Throttling"),
        (503, "ServiceUnavailable"),
        (400, "SomethingNew"),
    ] {
        let refused = assume(sts_error(status, code, "a message")).await;
        let cause = match refused.meaning() {
            // A check of our own credentials failed too.
            Meaning::Ours => Cause::OwnIdentity { code: code.into() },
            _ => service(code, status),
        };
        assert_eq!(refused, fault(Stage::AssumeRole, cause, Some("request-1")));
    }
}

async fn keeps_the_codes_of_kinesis() {
    for (status, code) in [
        (400, "AccessDeniedException"),
        (400, "ResourceNotFoundException"),
        (400, "KMSAccessDeniedException"),
        (400, "KMSDisabledException"),
        (400, "KMSInvalidStateException"),
        (400, "KMSNotFoundException"),
        (400, "KMSOptInRequired"),
        (400, "KMSThrottlingException"),
        (400, "InvalidArgumentException"),
        (400, "ValidationException"),
        (400, "ProvisionedThroughputExceededException"),
        (400, "LimitExceededException"),
        (500, "InternalFailure"),
        (503, "ServiceUnavailable"),
        (400, "SomethingNew"),
    ] {
        assert_eq!(
            write(kinesis_error(status, code)).await,
            Err(fault(
                Stage::Write,
                service(code, status),
                Some("request-1")
            ))
        );
    }
    // A name space is not part of the code.
    assert_eq!(
        write(kinesis_error(
            400,
            "com.amazonaws.kinesis.v20131202#AccessDeniedException"
        ))
        .await,
        Err(fault(
            Stage::Write,
            service("AccessDeniedException", 400),
            Some("request-1")
        ))
    );
}

async fn answers_that_are_not_from_aws_are_recognised() {
    let whole = |status, body: &str| Answer::Whole {
        status,
        content_type: "application/json",
        body: body.to_owned(),
    };
    for (status, answer) in [
        (503, Answer::html(503)),
        (403, Answer::html(403)),
        (200, Answer::html(200)),
        (302, Answer::html(302)),
        (200, whole(200, "")),
        (200, whole(200, "null")),
        (200, whole(200, "{}")),
        (200, whole(200, "{\"Records\":[")),
        (200, whole(200, "{\"Records\":[],\"FailedRecordCount\":0}")),
        (
            200,
            whole(
                200,
                "{\"Records\":[{\"ShardId\":\"s\",\"SequenceNumber\":\"1\"}]}",
            ),
        ),
        (
            200,
            Answer::Truncated("{\"Records\":[{\"ShardId\":\"s\",\"Seq".to_owned()),
        ),
        (403, whole(403, "{\"message\":\"Forbidden\"}")),
        (400, whole(400, "{\"__type\":\"<b>not a code</b>\"}")),
        (500, whole(500, "")),
    ] {
        let shown = format!("{answer:?}");
        let found = write(answer).await.unwrap_err();
        assert_eq!(
            (found.stage, &found.cause),
            (
                Stage::Write,
                &Cause::NotAws {
                    http_status: status
                }
            ),
            "{shown}"
        );
        assert_eq!(found.meaning(), Meaning::Unreachable);
    }
    for (status, answer) in [
        (503, Answer::html(503)),
        (200, Answer::html(200)),
        (
            200,
            Answer::xml(200, "<AssumeRoleResponse></AssumeRoleResponse>".to_owned()),
        ),
        (403, Answer::xml(403, "<Error>".to_owned())),
    ] {
        let found = assume(answer).await;
        assert_eq!(found.stage, Stage::AssumeRole);
        assert_eq!(
            found.cause,
            Cause::NotAws {
                http_status: status
            }
        );
    }
}

async fn reports_a_broken_connection() {
    let broken = |stage| fault(stage, Cause::Connection, None);
    assert_eq!(write(Answer::Closed).await, Err(broken(Stage::Write)));
    assert_eq!(assume(Answer::Closed).await, broken(Stage::AssumeRole));
    // The server is gone.
    let gone = {
        let server = Server::start(Call::granted).await;
        sink(&server).await
    };
    assert_eq!(
        gone.put_records(&integration(), records(1), &[]).await,
        Err(broken(Stage::AssumeRole))
    );
}

async fn the_log_says_why_kinesis_is_not_reached() {
    let server = Server::start(|call| Answer::Last(Box::new(call.granted()))).await;
    let (sink, address) = (sink(&server).await, server.address());
    sink.put_records(&integration(), records(1), &[])
        .await
        .unwrap();
    drop(server);
    while TcpStream::connect(address).await.is_ok() {}
    let (log, _guard) = Log::capture();
    let written = sink.put_records(&integration(), records(1), &[]).await;
    assert_eq!(written, Err(fault(Stage::Write, Cause::Connection, None)));
    let log = log.text();
    let line = log
        .lines()
        .find(|line| line.contains("the connection to AWS failed"));
    let line = line.unwrap();
    assert!(
        line.contains("WARN") && line.contains("Connection refused"),
        "{line}"
    );
    if client() == PutRecordsClient::Direct {
        assert!(line.contains(&address.to_string()), "{line}");
    }
}

async fn a_call_ends_at_its_timeout() {
    for stage in [Stage::AssumeRole, Stage::Write] {
        let server =
            Server::start(
                move |call| match call.is_sts() == (stage == Stage::AssumeRole) {
                    true => Answer::Hang,
                    false => call.granted(),
                },
            )
            .await;
        let mut options = options(&server);
        options.attempt_timeout = Duration::from_millis(300);
        let sink = AwsSink::new(options, Arc::new(OneExternalId), Gate::default()).await;
        let start = tokio::time::Instant::now();
        assert_eq!(
            sink.put_records(&integration(), records(1), &[]).await,
            Err(fault(stage, Cause::Timeout, None))
        );
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

async fn unreadable_secrets_and_missing_credentials_are_our_fault() {
    struct Unopened;
    impl ExternalIds for Unopened {
        fn open(&self, _: &Integration) -> Result<ExternalId, Unreadable> {
            Err(Unreadable)
        }

        fn open_previous(&self, _: &Integration) -> Option<Result<ExternalId, Unreadable>> {
            None
        }

        fn current_accepted(&self, _: &Integration) {}

        fn is_current(&self, _: &Integration) -> bool {
            true
        }
    }
    let server = Server::start(Call::granted).await;
    let sink = AwsSink::new(options(&server), Arc::new(Unopened), Gate::default()).await;
    let found = sink.put_records(&integration(), records(1), &[]).await;
    assert_eq!(
        found,
        Err(fault(Stage::AssumeRole, Cause::SecretUnreadable, None))
    );

    #[derive(Debug)]
    struct Missing(AtomicUsize);
    impl aws_credential_types::provider::ProvideCredentials for Missing {
        fn provide_credentials<'a>(
            &'a self,
        ) -> aws_credential_types::provider::future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            use aws_credential_types::provider::error::CredentialsError;
            // One kind of failure after another.
            let error = match self.0.fetch_add(1, Ordering::Relaxed) {
                0 => CredentialsError::not_loaded("nothing configured"),
                1 => CredentialsError::provider_timed_out(Duration::from_secs(1)),
                2 => CredentialsError::provider_error("no token"),
                _ => CredentialsError::invalid_configuration("half a key"),
            };
            aws_credential_types::provider::future::ProvideCredentials::ready(Err(error))
        }
    }
    let options = options(&server);
    let sdk = config::load(&options)
        .await
        .into_builder()
        .credentials_provider(
            aws_credential_types::provider::SharedCredentialsProvider::new(Missing(
                AtomicUsize::new(0),
            )),
        )
        .build();
    let sink = AwsSink::with_config(&sdk, &options, Arc::new(OneExternalId), Gate::default());
    for _ in 0..4 {
        let found = sink.put_records(&integration(), records(1), &[]).await;
        assert_eq!(
            found,
            Err(fault(Stage::AssumeRole, Cause::NoOwnCredentials, None))
        );
    }
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn the_log_says_once_why_sts_is_not_reached() {
    let server = Server::start(Call::granted).await;
    let mut options = options(&server);
    // It knows no TLS.
    let stand_in = options.stand_in.as_mut().unwrap();
    stand_in.url = server.url().replace("http:", "https:");
    let sink = AwsSink::new(options, Arc::new(OneExternalId), Gate::default()).await;
    let (log, _guard) = Log::capture();
    for _ in 0..2 {
        let written = sink.put_records(&integration(), records(1), &[]).await;
        let broken = fault(Stage::AssumeRole, Cause::Connection, None);
        assert_eq!(written, Err(broken));
    }
    let log = log.text();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("the connection to AWS failed"))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("STS") && lines[0].contains("tls handshake"),
        "{lines:?}"
    );
    assert!(!log.contains(EXTERNAL_ID));
}

async fn the_external_id_is_not_logged_at_any_level() {
    let (log, _guard) = Log::capture();

    let message = format!("1 validation error detected: Value '{EXTERNAL_ID}' at 'externalId'");
    let server = Server::start(move |call| match (call.is_sts(), call.number) {
        (true, 1) => sts_error(400, "ValidationError", &message),
        _ => call.granted(),
    })
    .await;
    let sink = sink(&server).await;
    let integration = integration();
    let fault = sink.put_records(&integration, records(1), &[]).await;
    let fault = fault.unwrap_err();
    assert_eq!(fault.code(), "ValidationError");
    assert!(!format!("{fault:?}").contains(EXTERNAL_ID));
    jump(Duration::from_secs(1)).await;
    sink.put_records(&integration, records(1), &[])
        .await
        .unwrap();
    let report = sink.test(&integration, records(1).remove(0)).await;
    assert_eq!(report.assume_role, Ok(AssumedWith::Current));

    let log = log.text();
    assert!(!log.contains(EXTERNAL_ID), "{log}");
    for secret in ["secret-1", "secret-2", "own-secret"] {
        assert!(!log.contains(secret), "{secret}");
    }
    // The capture works: our spans, and those of the SDK for a call without a secret.
    assert!(log.contains("put_records"));
    assert!(log.contains("ValidationError"));
    if client() == PutRecordsClient::Sdk {
        assert!(log.contains("Kinesis.PutRecords"));
    }
}

with_either_client!(
    the_external_id_is_not_logged_at_any_level,
    keeps_the_codes_of_sts,
    keeps_the_codes_of_kinesis,
    answers_that_are_not_from_aws_are_recognised,
    reports_a_broken_connection,
    the_log_says_why_kinesis_is_not_reached,
    a_call_ends_at_its_timeout,
    unreadable_secrets_and_missing_credentials_are_our_fault,
);
