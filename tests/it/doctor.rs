//! `siem-relay doctor` of the built binary, beside a running service and without one.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use aws_stand_in::vendor_credentials;
use tokio::process::Command;

use crate::harness::{
    ProcessEnv, ToolOutput, own_credentials_without_assume_role, run, tool, with_aws,
};

fn doctor(env: &ProcessEnv, arguments: &[&str]) -> Command {
    doctor_of(env, env.dir.path(), arguments)
}

fn doctor_of(env: &ProcessEnv, data_dir: &Path, arguments: &[&str]) -> Command {
    let url = env.stand_in.url();
    let mut command = with_aws(tool(&["doctor", "--json"]), &url, &vendor_credentials());
    command
        .env("AWS_ENDPOINT_URL_STS", url)
        .arg("--data-dir")
        .arg(data_dir)
        .args(arguments);
    command
}

/// Result and finding of each check.
fn results(output: &ToolOutput) -> BTreeMap<String, (String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let json = output.json();
    let checks = json.as_array().unwrap().iter();
    checks
        .map(|check| {
            let result = (text(&check["result"]), text(&check["finding"]));
            (text(&check["name"]), result)
        })
        .collect()
}

#[track_caller]
fn check_only_failure(output: &ToolOutput, name: &str, words: &str) {
    assert_eq!(output.code, Some(1), "{output:?}");
    let results = results(output);
    let failed = results.iter().filter(|(_, (result, _))| result == "fail");
    let failed: Vec<_> = failed.map(|(name, _)| name.as_str()).collect();
    assert_eq!(failed, [name], "{results:?}");
    assert!(results[name].1.contains(words), "{results:?}");
}

/// Names and content of the files of a directory, without sockets.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_runs_or_is_stopped_is_well_and_stays_as_it_is() {
    let env = ProcessEnv::new().await;
    let empty = run(doctor(&env, &[])).await;
    assert_eq!(empty.code, Some(0), "{empty:?}");
    assert!(files(env.dir.path()).is_empty());
    // The first start makes the directory.
    let absent = env.dir.path().join("absent");
    let none = run(doctor_of(&env, &absent, &[])).await;
    assert_eq!(none.code, Some(0), "{none:?}");
    assert!(!absent.exists());

    let process = env.start().await;
    process.api.configure(&env.customer).await;
    let running = run(doctor(&env, &[])).await;
    assert_eq!(running.code, Some(0), "{running:?}");
    assert_eq!(results(&running)["database"].0, "ok");
    process.stop().await;

    let before = files(env.dir.path());
    let stopped = run(doctor(&env, &[])).await;
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    let key = &results(&stopped)["key"].1;
    assert!(key.contains("opens the stored external IDs"), "{key}");
    assert!(before == files(env.dir.path()), "a file has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_files_are_found_one_by_one() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    process.stop().await;
    let file = |name: &str| env.dir.path().join(name);

    let key = file("external-id.key");
    let right = fs::read(&key).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    check_only_failure(&run(doctor(&env, &[])).await, "key", "external-id.key");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "7".repeat(64)).unwrap();
    check_only_failure(&run(doctor(&env, &[])).await, "key", "need the keys");
    fs::remove_file(&key).unwrap();
    check_only_failure(&run(doctor(&env, &[])).await, "key", "is missing");
    fs::write(&key, right).unwrap();
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    let callers = file("callers.toml");
    fs::write(&callers, "wrong = ").unwrap();
    fs::set_permissions(&callers, Permissions::from_mode(0o600)).unwrap();
    let arguments = ["--callers", callers.to_str().unwrap()];
    let found = run(doctor(&env, &arguments)).await;
    check_only_failure(&found, "callers", "callers.toml");

    let database = file("siem-relay.sqlite");
    fs::write(&database, "no database ".repeat(1000)).unwrap();
    check_only_failure(
        &run(doctor(&env, &[])).await,
        "database",
        "siem-relay.sqlite",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_aws_are_found() {
    let env = ProcessEnv::new().await;
    let canary = env.customer.role_arn.clone();
    let own = own_credentials_without_assume_role();
    env.aws.put_credentials(own).unwrap();
    let denied = run(doctor(&env, &["--canary-role-arn", &canary])).await;
    check_only_failure(&denied, "canary", "denied");

    let mut own = vendor_credentials();
    own.secret_access_key = "another-secret".to_owned();
    env.aws.put_credentials(own).unwrap();
    let refused = run(doctor(&env, &[])).await;
    check_only_failure(&refused, "identity", "SignatureDoesNotMatch");
    env.aws.put_credentials(vendor_credentials()).unwrap();

    // A port on which nothing listens.
    let mut command = doctor(&env, &[]);
    command.env("AWS_ENDPOINT_URL_KINESIS", "http://127.0.0.1:1");
    check_only_failure(&run(command).await, "kinesis", "ConnectionFailed");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_named_all_at_once() {
    let env = ProcessEnv::new().await;
    let arguments = ["--retry-first-ms", "x", "--listen", "nowhere"];
    let found = run(doctor(&env, &arguments)).await;
    assert_eq!(found.code, Some(64), "{found:?}");
    assert!(found.stderr.contains("retry-first-ms"), "{found:?}");
    assert!(found.stderr.contains("listen"), "{found:?}");
}
