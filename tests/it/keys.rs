//! Keys of external IDs, the socket for commands, and permissions of files, of the built binary.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use serde_json::Value;
use siem_client::v1;
use tokio::process::Command;

use crate::harness::{
    Customer, Process, ProcessEnv, StartError, ToolOutput, reason, run, serve, tool, with_timeout,
};

const ORGANIZATIONS: usize = 250;

async fn keys(data_dir: &Path, arguments: &[&str]) -> ToolOutput {
    let mut command = tool(&["keys"]);
    command.args(arguments).arg("--data-dir").arg(data_dir);
    run(command).await
}

/// The keys as the service reports them.
async fn report(data_dir: &Path) -> Value {
    let listed = keys(data_dir, &["list", "--json"]).await;
    assert_eq!(listed.code, Some(0), "{listed:?}");
    listed.json()
}

/// Ids of the keys in a state.
fn ids(report: &Value, state: &str) -> Vec<String> {
    let keys = report["keys"].as_array().unwrap().iter();
    keys.filter(|key| key["state"] == state)
        .map(|key| key["id"].as_str().unwrap().to_owned())
        .collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Another organization may not use an external ID.
async fn must_be_taken(process: &Process, external_id: &str) {
    let mut request = Customer::sharing("acme", "thief").request();
    request.external_id = external_id.to_owned();
    let refused = process.api.try_configure(request).await.unwrap_err();
    assert_ne!(reason(&refused), "", "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_through_kills_and_the_old_one_is_removed() {
    let env = ProcessEnv::new().await;
    let dir = env.dir.path();
    let key_file = dir.join("external-id.key");
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    for number in 0..ORGANIZATIONS {
        let customer = Customer::sharing("acme", &format!("o{number}"));
        process.api.configure(&customer).await;
    }
    let issued = process.api.generate_external_id("later").await;
    let old = ids(&report(dir).await, "active");
    let text = keys(dir, &["list"]).await.stdout;
    assert!(text.contains(&old[0]) && text.contains("active"), "{text}");
    let unchanged = keys(dir, &["rotate"]).await;
    assert_eq!(unchanged.code, Some(0), "{unchanged:?}");
    assert_eq!(ids(&report(dir).await, "active"), old);
    process.stop().await;

    // The new key first, and the old one, which is needed, after it.
    let old_key = fs::read_to_string(&key_file).unwrap();
    let new_key = "5e".repeat(32);
    fs::write(&key_file, format!("# new\n{new_key}\n# old\n{old_key}")).unwrap();
    let process = env.start().await;
    let listed = keys(dir, &["list"]).await.stdout;
    assert!(listed.contains("run `siem-relay keys rotate`"), "{listed}");
    let rotated = keys(dir, &["rotate", "--json"]).await;
    assert_eq!(rotated.code, Some(0), "{rotated:?}");
    let new = ids(&rotated.json(), "active");
    assert_ne!(new, old);
    // Kills meet different steps; each start goes on by itself.
    process.kill().await;
    for _ in 0..3 {
        let process = env.start().await;
        must_be_taken(&process, "external:id/of=o7").await;
        must_be_taken(&process, &issued).await;
        process.kill().await;
    }
    let process = env.start().await;
    let waited = keys(dir, &["rotate", "--wait", "--json"]).await;
    assert_eq!(waited.code, Some(0), "{waited:?}");
    let waited = waited.json();
    assert_eq!(ids(&waited, "active"), new);
    assert_eq!(ids(&waited, "unused"), old);
    assert_eq!(waited["keys"][0]["rows"], ORGANIZATIONS + 2);
    process.stop().await;

    fs::write(&key_file, &new_key).unwrap();
    let process = env.start().await;
    assert!(process.api.send_test("acme").await.delivered);
    must_be_taken(&process, "external:id/of=o7").await;
    must_be_taken(&process, &issued).await;
    let mut later = Customer::sharing("acme", "later").request();
    later.external_id = issued;
    process.api.try_configure(later).await.unwrap();
    // An external ID that is not given is kept, under its new key.
    let kept = v1::ConfigureRequest {
        external_id: String::new(),
        ..env.customer.request()
    };
    process.api.try_configure(kept).await.unwrap();
    assert!(process.api.send_test("acme").await.delivered);
    process.stop().await;

    fs::write(&key_file, &old_key).unwrap();
    let refused = env.start_refused().await.stderr;
    assert!(refused.contains(&new[0]), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_needed_cannot_be_removed_during_a_rotation() {
    let env = ProcessEnv::new().await;
    let key_file = env.dir.path().join("external-id.key");
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    let old = ids(&report(env.dir.path()).await, "active");
    process.stop().await;
    fs::write(&key_file, "5e".repeat(32)).unwrap();
    let refused = env.start_refused().await.stderr;
    assert!(refused.contains(&old[0]), "{refused}");
    assert!(refused.contains("another key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_encrypts_nothing_can_be_replaced() {
    let env = ProcessEnv::new().await;
    env.start().await.stop().await;
    fs::write(env.dir.path().join("external-id.key"), "5e".repeat(32)).unwrap();
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    assert!(process.api.send_test("acme").await.delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_file_that_others_can_use_is_refused() {
    let env = ProcessEnv::new().await;
    let key_file = env.dir.path().join("external-id.key");
    env.start().await.stop().await;
    for refused_mode in [0o644, 0o666, 0o601, 0o660] {
        chmod(&key_file, refused_mode);
        let refused = env.start_refused().await.stderr;
        let expected = format!("mode {refused_mode:04o}");
        assert!(refused.contains(&expected), "{refused}");
        assert!(refused.contains("chmod 600"), "{refused}");
    }
    chmod(&key_file, 0o400);
    env.start().await.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_for_their_owner_alone() {
    let env = ProcessEnv::new().await;
    let dir = env.dir.path().join("deep/data");
    let process = Process::start(&dir, &env.stand_in.url(), &[]).await;
    process.api.configure(&env.customer).await;
    assert_eq!(mode(&dir), 0o700);
    let names = || {
        let entries = fs::read_dir(&dir).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    assert!(names().len() >= 4, "{:?}", names());
    for path in names() {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    process.kill().await;

    // As an earlier version left them.
    chmod(&dir, 0o755);
    let is_key = |path: &Path| path.ends_with("external-id.key");
    let database: Vec<_> = names().into_iter().filter(|path| !is_key(path)).collect();
    database.iter().for_each(|path| chmod(path, 0o644));
    let process = Process::start(&dir, &env.stand_in.url(), &[]).await;
    for path in names() {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    let log = process.stop().await;
    assert!(
        log.contains("others than its owner can use the data directory"),
        "{log}"
    );
    assert!(log.contains("others could use the file"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_goes_into_no_core_dump() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", process.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let words: Vec<&str> = core.unwrap().split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{limits}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_for_commands_is_private_and_replaced_after_a_kill() {
    let env = ProcessEnv::new().await;
    let dir = env.dir.path();
    let socket = dir.join("admin.sock");
    let process = env.start().await;
    assert_eq!(mode(&socket), 0o600);
    report(dir).await;
    // A living process keeps its socket.
    let (other, path) = (dir.join("other"), socket.to_str().unwrap());
    let url = env.stand_in.url();
    let refused = Process::try_start_under(&[], &other, &url, &["--admin-socket", path]).await;
    let refused = refused.err().unwrap().stderr;
    assert!(refused.contains(path), "{refused}");
    report(dir).await;
    process.kill().await;
    assert!(socket.exists());
    let absent = keys(dir, &["list"]).await;
    assert_eq!(absent.code, Some(1), "{absent:?}");
    assert!(absent.stderr.contains("no service answers"), "{absent:?}");
    let process = env.start().await;
    report(dir).await;
    process.stop().await;
    assert!(!socket.exists(), "the socket stays");

    let long = format!("/tmp/{}", "x".repeat(107));
    let process = Process::try_start_under(&[], dir, &url, &["--admin-socket", &long]).await;
    let StartError { code, stderr } = process.err().unwrap();
    assert_eq!(code, Some(64), "{stderr}");
    assert!(stderr.contains("at most 107"), "{stderr}");
    let nested = dir.join("y".repeat(107));
    let process = Process::start(&nested, &url, &[]).await;
    process.stop().await;
    let unreachable = keys(&nested, &["list"]).await;
    assert!(unreachable.stderr.contains("107 bytes"), "{unreachable:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_for_credentials_does_not_inherit_the_key() {
    let env = ProcessEnv::new().await;
    let config = env.dir.path().join("aws-config");
    let profiles = "[profile tool]\ncredential_process = /bin/false\n\
        [profile role]\nrole_arn = arn:aws:iam::111111111111:role/r\nsource_profile = tool\n";
    fs::write(&config, profiles).unwrap();
    let key = "5e".repeat(32);
    let start = async |profile: &str, key: Option<&str>| {
        let mut command: Command = serve(&[], &env.stand_in.url());
        command.args(["--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(env.dir.path().join(format!("data-{}", key.is_some())));
        command
            .env("AWS_CONFIG_FILE", &config)
            .env("AWS_PROFILE", profile);
        command.envs(key.map(|key| ("SIEM_RELAY_EXTERNAL_ID_KEY", key)));
        with_timeout("a start", Process::run(command)).await
    };
    for profile in ["tool", "role"] {
        let refused = start(profile, Some(&key)).await.err().unwrap();
        assert_eq!(refused.code, Some(64), "{}", refused.stderr);
        for words in ["external-id-key-file", "credential_process", "profile tool"] {
            assert!(refused.stderr.contains(words), "{}", refused.stderr);
        }
        assert!(!refused.stderr.contains(&key));
        start(profile, None).await.unwrap().stop().await;
    }
    start("other", Some(&key)).await.unwrap().stop().await;
}
