//! The built binary over TLS, with callers that it knows, all by development credentials.

use std::{
    fs,
    path::{Path, PathBuf},
};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use prost::Message as _;
use siem_client::{ChannelOptions, Code, v1};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::{
    Request, Response,
    transport::{Server, server::TcpIncoming},
};

use crate::harness::{
    Api, FeedEvent, Load, Process, ProcessEnv, ToolOutput, read_events, run, run_with_input, tool,
    with_timeout,
};

const NETWORK: &str = "4e740000-0000-4000-8000-00000000000a";
const DEVICE: &str = "5e250000-0000-4000-8000-00000000000b";

/// A service with TLS and callers.
struct Secure {
    env: ProcessEnv,
    relay: Process,
    /// Output of `dev-credentials`.
    made: ToolOutput,
}

impl Secure {
    async fn start() -> Self {
        Self::start_under(&[], &[]).await
    }

    async fn start_under(launcher: &[String], arguments: &[&str]) -> Self {
        let env = ProcessEnv::new().await;
        let directory = env.dir.path().join("credentials");
        let made = run(tool(&["dev-credentials", directory.to_str().unwrap()])).await;
        assert_eq!(made.code, Some(0), "{made:?}");
        let file = |name| directory.join(name).to_str().unwrap().to_owned();
        let files = [
            ("--tls-cert", file("server.pem")),
            ("--tls-key", file("server.key")),
            ("--tls-client-ca", file("ca.pem")),
            ("--callers", file("callers.toml")),
        ];
        let files = files.iter().flat_map(|(flag, path)| [*flag, path.as_str()]);
        let arguments: Vec<&str> = files.chain(arguments.iter().copied()).collect();
        let relay = env.start_under_with(launcher, &arguments).await;
        Self { env, relay, made }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.env.dir.path().join("credentials").join(name)
    }

    fn options(&self) -> ChannelOptions {
        ChannelOptions::new(format!("https://{}", self.relay.address)).ca_file(self.file("ca.pem"))
    }

    /// A client with a token.
    fn api(&self, token: &str) -> Api {
        let options = self.options().token_file(self.file(token));
        Api::over(self.relay.address, options.connect().unwrap())
    }

    /// Publishes two alerts with these flags, whose values are files of the credentials.
    async fn publish(&self, address: &str, flags: &[(&str, &str)]) -> ToolOutput {
        let mut command = tool(&["publish", "--organization", "acme", "--network", NETWORK]);
        command.args(["--device", DEVICE, "--eve", "-", "--address", address]);
        for (flag, name) in flags {
            command.arg(flag).arg(self.file(name));
        }
        run_with_input(command, eve().as_bytes()).await
    }
}

fn eve() -> String {
    let alert = |number: u32| {
        format!(
            r#"{{"timestamp":"2026-02-03T04:05:0{number}.123456+0000","event_type":"alert","alert":{{"signature_id":{number},"severity":2}}}}"#
        )
    };
    format!("{}\n{}\n", alert(1), alert(2))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_names_itself_by_a_token_or_a_certificate() {
    let secure = Secure::start().await;
    secure
        .api("write.token")
        .configure(&secure.env.customer)
        .await;
    let address = format!("https://{}", secure.relay.address);
    let ca = ("--ca", "ca.pem");
    let token = ("--token-file", "publish.token");
    let certificate = [("--cert", "client.pem"), ("--key", "client.key")];
    for flags in [
        vec![ca, token],
        vec![ca, certificate[0], certificate[1]],
        vec![ca, certificate[0], certificate[1], token],
    ] {
        let ended = secure.publish(&address, &flags).await;
        assert_eq!(ended.code, Some(0), "{flags:?}: {ended:?}");
        assert!(ended.stdout.contains("accepted      2\n"), "{ended:?}");
    }
    // Variables instead of flags.
    let mut command = tool(&["publish", "--organization", "acme", "--network", NETWORK]);
    command
        .args(["--device", DEVICE, "--eve", "-"])
        .env("SIEM_RELAY_ADDRESS", &address)
        .env("SIEM_RELAY_CA", secure.file("ca.pem"))
        .env("SIEM_RELAY_TOKEN_FILE", secure.file("publish.token"));
    let ended = run_with_input(command, eve().as_bytes()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let stream = &secure.env.customer.stream_arn;
    let arrived = read_events(&secure.env.aws, stream, 8).await;
    assert!(arrived.len() >= 8);
    let log = secure.relay.stop().await;
    let key = fs::read_to_string(secure.env.dir.path().join("credentials/publish.token"));
    assert!(!log.contains(key.unwrap().trim()), "a token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_publisher_says_what_to_do() {
    let secure = Secure::start().await;
    secure
        .api("write.token")
        .configure(&secure.env.customer)
        .await;
    let address = format!("https://{}", secure.relay.address);
    let ca = ("--ca", "ca.pem");
    for (flags, reason) in [
        (vec![ca], "the service does not know the caller"),
        (
            vec![ca, ("--token-file", "read.token")],
            "the caller may not publish",
        ),
    ] {
        let ended = secure.publish(&address, &flags).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains(reason), "{reason}: {ended:?}");
        assert!(
            ended.stdout.contains("resume with --from-line 1"),
            "{ended:?}"
        );
    }
    for (address, flags, reason) in [
        (
            "http://192.0.2.1:50051",
            vec![("--token-file", "publish.token")],
            "not sent in clear",
        ),
        ("http://127.0.0.1:50051", vec![ca], "without TLS"),
        (
            &address,
            vec![ca, ("--token-file", "absent.token")],
            "absent.token",
        ),
        (&address, vec![("--ca", "jwks.json")], "no certificate"),
        (
            &address,
            vec![ca, ("--cert", "client.pem"), ("--key", "server.key")],
            "it is not the key of",
        ),
    ] {
        let ended = secure.publish(address, &flags).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.stderr.contains(reason), "{reason}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_names_itself_by_a_token_or_a_certificate() {
    let secure = Secure::start().await;
    secure
        .api("write.token")
        .configure(&secure.env.customer)
        .await;
    let address = format!("https://{}", secure.relay.address);
    let ctl = async |arguments: &[&str], files: &[(&str, &str)]| {
        let mut command = tool(&["ctl", "--address", &address]);
        command.args(arguments);
        for (flag, name) in files {
            command.arg(flag).arg(secure.file(name));
        }
        run(command).await
    };
    let ca = ("--ca", "ca.pem");
    let certificate = [("--cert", "client.pem"), ("--key", "client.key")];
    for files in [
        vec![ca, ("--token-file", "read.token")],
        vec![ca, certificate[0], certificate[1]],
    ] {
        let ended = ctl(&["get", "acme"], &files).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.stdout.contains("UNKNOWN"), "{ended:?}");
    }
    for (files, words) in [
        (vec![ca], ["UNAUTHENTICATED", "--token-file, or --cert"]),
        (
            vec![ca, ("--token-file", "read.token")],
            ["PERMISSION_DENIED", "the scope siem.write"],
        ),
    ] {
        let ended = ctl(&["delete", "acme", "--yes"], &files).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        for words in words {
            assert!(ended.stderr.contains(words), "{words}: {ended:?}");
        }
    }
    // The system does not know the authority.
    let ended = ctl(&["list"], &[("--token-file", "read.token")]).await;
    assert!(matches!(ended.code, Some(1 | 64)), "{ended:?}");
    secure.api("read.token").get("acme").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_has_its_scopes() {
    let secure = Secure::start().await;
    let configured = |token: &str| {
        let api = secure.api(token);
        let request = secure.env.customer.request();
        async move { with_timeout("Configure", api.integrations().configure(request)).await }
    };
    for token in ["read.token", "publish.token"] {
        let refused = configured(token).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{token}");
    }
    configured("write.token").await.unwrap();
    configured("admin.token").await.unwrap();
    let read = secure
        .api("read.token")
        .list(v1::ListRequest::default())
        .await;
    assert_eq!(read.unwrap().integrations.len(), 1);
    let certificate = secure
        .options()
        .identity_files(secure.file("client.pem"), secure.file("client.key"));
    let api = Api::over(secure.relay.address, certificate.connect().unwrap());
    api.get("acme").await;

    let anonymous = Api::over(secure.relay.address, secure.options().connect().unwrap());
    let refused = anonymous.try_get("acme").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_commands_are_complete_and_nothing_is_overwritten() {
    let secure = Secure::start().await;
    let Secure { made, .. } = &secure;
    for part in [
        "For development only",
        "siem-relay serve --tls-cert ",
        "grpcurl -cacert ",
        "authorization: Bearer $(cat ",
        "siem-relay publish --address https://localhost:50051 --ca ",
    ] {
        assert!(made.stdout.contains(part), "{part}: {made:?}");
    }
    assert!(made.stderr.is_empty(), "{made:?}");
    let directory = secure.file("");
    let before = fs::read(secure.file("server.key")).unwrap();
    let again = run(tool(&["dev-credentials", directory.to_str().unwrap()])).await;
    assert_eq!(again.code, Some(64), "{again:?}");
    assert!(again.stderr.contains("is not overwritten"), "{again:?}");
    assert_eq!(fs::read(secure.file("server.key")).unwrap(), before);

    let other = secure.env.dir.path().join("other");
    let other = other.to_str().unwrap();
    for (arguments, reason) in [
        (["--host", "a b"], "neither a DNS name nor an IP address"),
        (["--organization", "a b"], "--organization"),
    ] {
        let ended = run(tool(&[
            "dev-credentials",
            other,
            arguments[0],
            arguments[1],
        ]))
        .await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.stderr.contains(reason), "{ended:?}");
    }
    assert!(!fs::exists(other).unwrap());
}

/// Collector of everything that is exported, as it was sent.
struct Collector(mpsc::UnboundedSender<Vec<u8>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, tonic::Status> {
        let _ended = self.0.send(request.into_inner().encode_to_vec());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Files below a directory, with their contents.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found
}

/// All RPCs with every kind of secret, the logs at their finest level, and exported traces: no
/// secret is found anywhere but in the files that the operator made for it.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_a_trace_or_a_file() {
    const EXTERNAL_ID: &str = "Mk9:marker-of-external-id/of=acme,4471";
    let (exported, mut traces) = mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let collector = format!(
        "OTEL_EXPORTER_OTLP_ENDPOINT=http://{}",
        listener.local_addr().unwrap()
    );
    let serving = Server::builder()
        .add_service(TraceServiceServer::new(Collector(exported)))
        .serve_with_incoming(TcpIncoming::from(listener));
    let _collector = AbortOnDropHandle::new(tokio::spawn(serving));
    let key = "7d".repeat(32);
    let launcher = [
        "/usr/bin/env".to_owned(),
        collector,
        format!("SIEM_RELAY_EXTERNAL_ID_KEY={key}"),
    ];
    let finest = ["--log-level", "trace"];
    let secure = Secure::start_under(&launcher, &finest).await;
    let customer = secure.env.customer.with_external_id(EXTERNAL_ID);
    customer.make_role(&secure.env.aws);
    let api = secure.api("admin.token");
    api.configure(&customer).await;
    let issued = api.generate_external_id("acme").await;
    assert!(api.send_test("acme").await.delivered);
    let validate_only = v1::ConfigureRequest {
        validate_only: true,
        ..customer.request()
    };
    api.try_configure(validate_only).await.unwrap();
    let thief = v1::ConfigureRequest {
        organization_id: "thief".to_owned(),
        ..customer.request()
    };
    api.try_configure(thief).await.unwrap_err();
    let mut statuses = api.watch(&[], "").await;
    statuses.until_synced().await;
    api.get("acme").await;
    api.list(v1::ListRequest::default()).await.unwrap();
    api.try_audit(v1::ListAuditEntriesRequest::default())
        .await
        .unwrap();
    let onboarding = v1::GetOnboardingRequest {
        stream: "detections".to_owned(),
        region: "us-east-1".to_owned(),
        account: "222222222222".to_owned(),
        role_name: "delivery".to_owned(),
        principal: "111111111111".to_owned(),
        external_id: EXTERNAL_ID.to_owned(),
    };
    api.integrations().get_onboarding(onboarding).await.unwrap();
    let address = format!("https://{}", secure.relay.address);
    let flags = [("--ca", "ca.pem"), ("--token-file", "publish.token")];
    let published = secure.publish(&address, &flags).await;
    assert_eq!(published.code, Some(0), "{published:?}");
    let mut load = Load::new("acme", 1, 1);
    api.publish(&load.events(3)).await;
    api.until_delivered("acme").await;
    // A token that is refused, and one in the wrong form.
    let forged = "Bearer forged-marker.of-a.token";
    for authorization in [forged, "Basic bWFya2VyOmJhc2lj"] {
        let anonymous = Api::over(secure.relay.address, secure.options().connect().unwrap());
        let mut request = Request::new(v1::ListRequest::default());
        let value = authorization.parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        anonymous.integrations().list(request).await.unwrap_err();
    }
    api.delete("acme", false).await.unwrap();
    statuses.until(&FeedEvent::Deleted("acme".to_owned())).await;
    drop((api, statuses));

    let read = |name: &str| fs::read_to_string(secure.file(name)).unwrap();
    let mut secrets = vec![
        EXTERNAL_ID.to_owned(),
        hex::encode(EXTERNAL_ID),
        "marker-of-external-id".to_owned(),
        issued,
        key,
        // The beginning of every session token.
        "IQoJb3JpZ2luX2Vj".to_owned(),
        "forged-marker".to_owned(),
        "bWFya2VyOmJhc2lj".to_owned(),
        aws_stand_in::vendor_credentials().secret_access_key,
    ];
    for name in ["admin", "read", "write", "publish"] {
        secrets.push(read(&format!("{name}.token")).trim().to_owned());
    }
    // Lines of keys; those of the frame are no secrets.
    let keys = read("server.key");
    secrets.extend(
        keys.lines()
            .filter(|line| !line.starts_with('-'))
            .map(str::to_owned),
    );
    let Secure { env, relay, made } = secure;
    let running = contents(env.dir.path());
    let log = relay.stop().await;
    drop(made);
    assert!(log.contains("DEBUG"), "{log}");
    let mut searched = vec![(PathBuf::from("the log"), log.into_bytes())];
    let mut spans = 0;
    while let Ok(export) = traces.try_recv() {
        searched.push((PathBuf::from("a trace"), export));
        spans += 1;
    }
    assert!(spans > 0, "nothing was exported");
    searched.extend(running.into_iter().chain(contents(env.dir.path())));
    let credentials = env.dir.path().join("credentials");
    searched.retain(|(path, _)| !path.starts_with(&credentials));
    assert!(searched.len() > 5);
    for (path, content) in &searched {
        for secret in &secrets {
            let found = memchr::memmem::find(content, secret.as_bytes());
            assert!(found.is_none(), "{secret} is in {}", path.display());
        }
    }
}
