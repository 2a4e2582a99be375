//! `siem-relay ctl`, against the built binary.

use std::{ffi::OsStr, fs, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::harness::{Customer, ProcessEnv, ToolOutput, run, run_with_input, tool, with_timeout};

/// `ctl` for a service at an address.
fn ctl(address: &str, arguments: &[impl AsRef<OsStr>]) -> Command {
    let mut command = tool(&["ctl"]);
    // Flags may be before and after the command.
    command.args(arguments).args(["--address", address]);
    command
}

async fn succeeds(address: &str, arguments: &[impl AsRef<OsStr>]) -> ToolOutput {
    let ended = run(ctl(address, arguments)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "", "{ended:?}");
    ended
}

/// Runs a command that must fail with this code. Standard error must have these words.
async fn fails(address: &str, arguments: &[&str], code: i32, words: &[&str]) -> ToolOutput {
    let ended = run(ctl(address, arguments)).await;
    assert_eq!(ended.code, Some(code), "{arguments:?}: {ended:?}");
    for words in words {
        assert!(ended.stderr.contains(words), "{words}: {ended:?}");
    }
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn an_integration_is_configured_tested_shown_and_deleted() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let address = process.address.to_string();
    let Customer {
        stream_arn,
        role_arn,
        external_id,
        ..
    } = &env.customer;
    let file = env.dir.path().join("external-id.txt");
    fs::write(&file, format!("{external_id}\n")).unwrap();
    let file = file.to_str().unwrap();
    let arns = ["--stream", stream_arn, "--role", role_arn];
    let configure = |further: &[&str]| -> Vec<String> {
        let all = [&["configure", "acme"], &arns[..], further].concat();
        all.into_iter().map(str::to_owned).collect()
    };

    let checked = configure(&["--external-id-file", file, "--validate-only"]);
    let checked = succeeds(&address, &checked).await;
    assert!(
        checked.stdout.contains("ASSUME_ROLE             PASSED"),
        "{checked:?}"
    );
    fails(&address, &["get", "acme"], 1, &["NOT_FOUND", "ctl list"]).await;

    let made = configure(&["--external-id-file", file]);
    let made = succeeds(&address, &made).await;
    // The stored external ID is kept, and standard input is a file too.
    succeeds(&address, &configure(&[])).await;
    let piped = ctl(&address, &configure(&["--external-id-file", "-"]));
    let piped = run_with_input(piped, external_id.as_bytes()).await;
    assert_eq!(piped.code, Some(0), "{piped:?}");

    let tested = succeeds(&address, &["test", "acme"]).await;
    assert!(tested.stdout.starts_with("delivered"), "{tested:?}");
    assert!(tested.stdout.contains("status: ACTIVE"), "{tested:?}");
    let tested = succeeds(&address, &["--output", "json", "test", "acme"]).await;
    let verdict = tested.json();
    assert_eq!(verdict["delivered"], true);
    assert!(verdict["receipt"]["latency_seconds"].as_f64().unwrap() > 0.0);

    let shown = succeeds(&address, &["get", "acme"]).await;
    for words in ["ACTIVE", "since", stream_arn, role_arn, "pending", "etag"] {
        assert!(shown.stdout.contains(words), "{words}: {shown:?}");
    }
    let shown = succeeds(&address, &["get", "acme", "--output=json"]).await;
    let integration = shown.json();
    assert_eq!(integration["status"]["status"], "STATUS_ACTIVE");
    assert_eq!(integration["counts"]["pending"], 0);
    assert_eq!(
        integration["external_id_hint"],
        external_id[external_id.len() - 4..]
    );

    for number in 0..3 {
        process
            .api
            .configure(&Customer::new(&format!("other-{number}")))
            .await;
    }
    let listed = succeeds(&address, &["list"]).await;
    let lines: Vec<&str> = listed.stdout.lines().collect();
    assert_eq!(lines.len(), 5, "{listed:?}");
    assert!(lines[0].starts_with("ORGANIZATION"), "{listed:?}");
    assert!(lines[1].starts_with("acme") && lines[1].contains("ACTIVE"));
    let unknown = ["list", "--status", "unknown", "--output", "json"];
    let unknown = succeeds(&address, &unknown).await;
    let unknown: Vec<Value> = unknown
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(unknown.len(), 3);
    assert_eq!(unknown[2]["organization_id"], "other-2");

    // A deletion is confirmed.
    for answer in ["no\n", "", "maybe\n"] {
        let refused = ctl(&address, &["delete", "acme"]);
        let refused = run_with_input(refused, answer.as_bytes()).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        let question = "Are you sure you want to delete this SIEM integration?";
        assert!(refused.stderr.contains(question), "{refused:?}");
        assert!(
            refused.stderr.contains("nothing was deleted"),
            "{refused:?}"
        );
        process.api.get("acme").await;
    }
    let stale = ["delete", "acme", "--yes", "--etag", "x"];
    fails(
        &address,
        &stale,
        1,
        &["ETAG_MISMATCH", "etag that it shows"],
    )
    .await;
    let deleted = ctl(&address, &["delete", "acme"]);
    let deleted = run_with_input(deleted, b"yes\n").await;
    assert_eq!(deleted.code, Some(0), "{deleted:?}");
    assert!(deleted.stdout.contains("acme was deleted"), "{deleted:?}");
    fails(&address, &["delete", "acme", "--yes"], 1, &["NOT_FOUND"]).await;
    succeeds(&address, &["delete", "acme", "--yes", "--allow-missing"]).await;
    succeeds(&address, &["delete", "acme", "--allow-missing"]).await;
    succeeds(&address, &["delete", "other-0", "--yes"]).await;
    for output in [made, shown, tested] {
        assert!(!output.stdout.contains(external_id.as_str()), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_name_the_fault_and_the_way_out() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let address = process.address.to_string();
    let bad = ["configure", "acme", "--stream", "x", "--role", "y"];
    let words = [
        "INVALID_ARGUMENT (INVALID_FIELD)",
        "\n  kinesis_stream_arn: ",
        "\n  role_arn: ",
        "\n  external_id: ",
        "\n  to do: correct",
    ];
    fails(&address, &bad, 1, &words).await;
    let json = [&bad[..], &["--output", "json"]].concat();
    let failed = fails(&address, &json, 1, &[]).await;
    let error: Value = serde_json::from_str(&failed.stderr).unwrap();
    assert_eq!(error["error"]["reason"], "INVALID_FIELD");
    assert_eq!(error["error"]["violations"].as_array().unwrap().len(), 3);
    assert_eq!(failed.stdout, "");

    for (arguments, words) in [
        (&["get"][..], "ORGANIZATION"),
        (&["get", "a b"], "character 2 is U+0020"),
        (&["delete"], "ORGANIZATION"),
        (&["configure", "acme"], "--stream"),
        (&["list", "--status", "no"], "possible values"),
        (&["list", "--timeout", "0"], "--timeout"),
        (&["list", "--token-file", "/absent"], "/absent"),
        (&["list", "--ca", "/absent"], "without TLS"),
        (
            &[
                "configure",
                "acme",
                "--stream",
                "x",
                "--role",
                "y",
                "--external-id-file",
                "/absent",
            ],
            "/absent cannot be read",
        ),
        (
            &[
                "configure",
                "acme",
                "--stream",
                "x",
                "--role",
                "y",
                "--external-id-file",
                "-",
            ],
            "is empty",
        ),
        (
            &[
                "configure",
                "acme",
                "--stream",
                "x",
                "--role",
                "y",
                "--external-id",
                "secret",
            ],
            "--external-id",
        ),
    ] {
        fails(&address, arguments, 64, &[words]).await;
    }

    // A refused test is a result, and the exit code says so.
    let wrong = "another-external-id-0123456789abcdef";
    let customer = env.customer.with_external_id(wrong);
    process.api.configure(&customer).await;
    let ended = run(ctl(&address, &["test", "acme"])).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let verdict = "failed: Unauthorized - check your Role ARN and External ID";
    assert!(ended.stdout.starts_with(verdict), "{ended:?}");
    assert!(
        ended.stdout.contains("ASSUME_ROLE             FAILED"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("to do: "), "{ended:?}");
    assert!(
        ended.stdout.contains("UNAUTHORIZED (ASSUME_ROLE_DENIED)"),
        "{ended:?}"
    );

    process.kill().await;
    let gone = ["UNAVAILABLE", "to do: compare --address"];
    fails(&address, &["get", "acme"], 1, &gone).await;
}

/// A running `watch` with JSON output.
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(address: &str, arguments: &[&str]) -> Self {
        let arguments = [&["watch", "--output", "json"], arguments].concat();
        let mut command = ctl(address, &arguments);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn next(&mut self) -> Value {
        let line = with_timeout("a line", self.lines.next_line()).await;
        serde_json::from_str(&line.unwrap().expect("a line")).unwrap()
    }

    /// The next line, which must be of this kind.
    async fn expect(&mut self, event: &str) -> Value {
        let next = self.next().await;
        assert_eq!(next["event"], event, "{next}");
        next
    }

    async fn stop(mut self) {
        let id = self.child.id().unwrap().to_string();
        let kill = Command::new("kill").args(["-s", "TERM", &id]).status();
        assert!(kill.await.unwrap().success());
        let ended = with_timeout("the end of the watch", self.child.wait()).await;
        assert_eq!(ended.unwrap().code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_continues_over_a_restart_and_marks_it() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let address = process.address.to_string();
    let mut watch = Watch::start(&address, &["acme"]);
    watch.expect("absent").await;
    let synced = watch.expect("synced").await;
    process.api.configure(&env.customer).await;
    let current = watch.expect("current").await;
    assert_eq!(current["status"]["status"], "STATUS_UNKNOWN");
    process.kill().await;
    let lost = watch.expect("disconnected").await;
    assert_eq!(lost["code"], "UNAVAILABLE");

    let process = env.start_with(&["--listen", &address]).await;
    // Nothing is sent again: the changes follow.
    watch.expect("reconnected").await;
    assert!(process.api.send_test("acme").await.delivered);
    let current = watch.expect("current").await;
    assert_eq!(current["status"]["status"], "STATUS_ACTIVE");
    watch.stop().await;

    // Another watch continues where the first one was.
    let token = synced["resume_token"].as_str().unwrap();
    let mut watch = Watch::start(&address, &["acme", "--resume-after", token]);
    let current = watch.expect("current").await;
    assert_eq!(current["status"]["status"], "STATUS_ACTIVE");
    watch.stop().await;

    let refused = ["watch", "--resume-after", "x", "acme"];
    let mut text = ctl(&address, &refused);
    let mut child = text.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = with_timeout("a line", lines.next_line()).await.unwrap();
    let first = first.unwrap();
    assert!(first.starts_with("-- forget the above"), "{first}");
    let second = with_timeout("a line", lines.next_line()).await.unwrap();
    let second = second.unwrap();
    assert!(second.starts_with("acme  ACTIVE, since "), "{second}");
    // A reader that has seen enough ends it.
    drop(lines);
    process.api.delete("acme", false).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
}
