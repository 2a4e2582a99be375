//! `siem-relay publish --follow`: every line of a rotated log is in the stream, after restarts of
//! either side as well.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
};

use aws_stand_in::RecordStream;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

use super::{DEVICE, NETWORK};
use crate::harness::{ProcessEnv, TestEnv, run, tool, with_timeout};

/// An EVE log, as a sensor writes and rotates it.
struct Log {
    dir: TempDir,
    file: File,
    written: u64,
}

impl Log {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let file = append(dir.path().join("eve.json"));
        Self {
            dir,
            file,
            written: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("eve.json")
    }

    /// Writes alerts, with other records between them.
    fn write(&mut self, count: u64) {
        let mut text = String::new();
        for number in self.written..self.written + count {
            text += &format!(
                "{{\"timestamp\":\"2026-01-02T03:04:05.{:06}+0000\",\"event_type\":\"alert\",\"src_ip\":\"192.0.2.1\",\"flow_id\":{number},\"alert\":{{\"signature_id\":9000001}}}}\n{{\"event_type\":\"flow\",\"flow_id\":{number}}}\n",
                number % 1_000_000
            );
        }
        self.written += count;
        self.file.write_all(text.as_bytes()).unwrap();
    }

    /// Renames each rotated file to the next number.
    fn shift(&self) {
        for number in (1..9).rev() {
            let from = self.dir.path().join(format!("eve.json.{number}"));
            if from.exists() {
                let to = self.dir.path().join(format!("eve.json.{}", number + 1));
                fs::rename(from, to).unwrap();
            }
        }
    }

    /// Rotates by renaming: the writer opens a new file.
    fn rotate(&mut self) {
        self.shift();
        fs::rename(self.path(), self.dir.path().join("eve.json.1")).unwrap();
        self.file = append(self.path());
    }

    /// Rotates by copying: the writer keeps its file.
    fn copy_truncate(&mut self) {
        self.shift();
        fs::copy(self.path(), self.dir.path().join("eve.json.1")).unwrap();
        self.file.set_len(0).unwrap();
    }

    fn command(&self, address: &str) -> Command {
        let path = self.path();
        let mut command = tool(&["publish", "--follow", "--organization", "acme"]);
        command.args(["--network", NETWORK, "--device", DEVICE]);
        command.args(["--batch-events", "20", "--address", address, "--eve"]);
        command.arg(path);
        command
    }

    fn publish(&self, address: &str) -> Child {
        self.command(address).spawn().unwrap()
    }

    /// Lets any user write into the directory, which has the state file.
    fn open_directory(&self) {
        fs::set_permissions(self.dir.path(), Permissions::from_mode(0o777)).unwrap();
    }
}

/// Makes a file unreadable, except for root.
fn make_unreadable(path: PathBuf) {
    fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
}

/// Runs the command as another user if this one is root, who may read everything.
fn as_other_than_root(mut command: Command) -> Command {
    let own = TempDir::new().unwrap();
    if fs::metadata(own.path()).unwrap().uid() == 0 {
        command.uid(65_534).gid(65_534);
    }
    command
}

/// Standard error of a publisher, line by line.
struct Warnings(Lines<BufReader<ChildStderr>>);

impl Warnings {
    fn of(child: &mut Child) -> Self {
        Self(BufReader::new(child.stderr.take().unwrap()).lines())
    }

    /// Waits for a line with these words.
    async fn until(&mut self, words: &str) -> String {
        with_timeout(words, async {
            loop {
                let line = self.0.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("the log ended without: {words}"));
                if line.contains(words) {
                    return line;
                }
            }
        })
        .await
    }
}

fn append(path: PathBuf) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

/// Alerts in the stream, by their number.
struct Seen {
    records: RecordStream,
    numbers: HashSet<u64>,
    ids: HashSet<String>,
}

impl Seen {
    fn new(records: RecordStream) -> Self {
        Self {
            records,
            numbers: HashSet::new(),
            ids: HashSet::new(),
        }
    }

    /// Waits until this number of different alerts have arrived.
    async fn until(&mut self, count: u64) {
        with_timeout("alerts in the stream", async {
            while (self.numbers.len() as u64) < count {
                let record = self.records.next().await.expect("the stream is there");
                let event: Value = serde_json::from_slice(&record.data).unwrap();
                self.numbers
                    .insert(event["data"]["flow_id"].as_u64().unwrap());
                self.ids.insert(event["id"].as_str().unwrap().to_owned());
            }
        })
        .await;
    }

    /// Waits for all alerts, and checks that each has one id, duplicates included.
    async fn check(&mut self, count: u64) {
        self.until(count).await;
        assert!(self.numbers.iter().all(|number| *number < count));
        assert_eq!(self.numbers.len(), self.ids.len());
    }
}

async fn terminate(child: Child) -> std::process::Output {
    let id = child.id().expect("it runs").to_string();
    let mut kill = Command::new("kill");
    let sent = with_timeout("kill", kill.args(["-TERM", &id]).status()).await;
    assert!(sent.unwrap().success());
    with_timeout("the end of the publisher", child.wait_with_output())
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_across_rotations_until_sigterm() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut seen = Seen::new(env.aws.subscribe(&customer.stream_arn).unwrap());
    let mut log = Log::new();
    let address = env.relay.address.to_string();
    log.write(50);
    let publisher = log.publish(&address);
    seen.until(50).await;
    log.write(10);
    seen.until(60).await;
    log.rotate();
    log.write(30);
    seen.until(90).await;
    log.copy_truncate();
    log.write(30);
    seen.until(120).await;
    let second = run(log.command(&address)).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(
        second.stderr.contains("in use by another process"),
        "{}",
        second.stderr
    );
    let ended = terminate(publisher).await;
    let summary = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(summary.contains("accepted      120\n"), "{summary}");
    assert!(summary.contains("the next run resumes from"), "{summary}");
    // After an orderly end nothing is published twice.
    log.write(5);
    let publisher = log.publish(&address);
    seen.check(125).await;
    terminate(publisher).await;
    env.api.until_delivered("acme").await;
    let stored = env.aws.stream(&customer.stream_arn).unwrap();
    assert_eq!(stored.accepted, 125);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_while_the_publisher_is_down_lose_nothing() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut seen = Seen::new(env.aws.subscribe(&customer.stream_arn).unwrap());
    let mut log = Log::new();
    let address = env.relay.address.to_string();
    log.write(40);
    let publisher = log.publish(&address);
    seen.until(40).await;
    terminate(publisher).await;
    log.write(15);
    log.rotate();
    log.write(15);
    log.rotate();
    log.write(15);
    let publisher = log.publish(&address);
    seen.until(85).await;
    terminate(publisher).await;
    log.write(15);
    log.copy_truncate();
    log.write(15);
    let publisher = log.publish(&address);
    seen.check(115).await;
    terminate(publisher).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_files_that_were_at_the_path_are_published() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut seen = Seen::new(env.aws.subscribe(&customer.stream_arn).unwrap());
    let mut log = Log::new();
    let address = env.relay.address.to_string();
    // Other logs and an old rotated file, written later than the log.
    let foreign = |log: &Log, name: &str| {
        let text = fs::read_to_string(log.path()).unwrap();
        let text = text.replace("\"flow_id\":", "\"flow_id\":99");
        fs::write(log.dir.path().join(name), text).unwrap();
    };
    log.write(10);
    for name in ["eve.json.1", "eve-2.json", "eve.json-20260102"] {
        foreign(&log, name);
    }
    let publisher = log.publish(&address);
    seen.until(10).await;
    log.rotate();
    log.write(10);
    seen.until(20).await;
    foreign(&log, "eve-2.json");
    terminate(publisher).await;
    log.write(10);
    log.rotate();
    log.write(10);
    foreign(&log, "eve-3.json");
    let publisher = log.publish(&address);
    seen.until(40).await;
    // The writer continues in the old file for a while.
    let mut late = append(log.dir.path().join("eve.json.1"));
    std::mem::swap(&mut log.file, &mut late);
    log.write(5);
    std::mem::swap(&mut log.file, &mut late);
    seen.until(45).await;
    log.write(5);
    seen.check(50).await;
    assert_eq!(terminate(publisher).await.status.code(), Some(0));
    env.api.until_delivered("acme").await;
    let stored = env.aws.stream(&customer.stream_arn).unwrap();
    assert_eq!(stored.accepted, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_file_is_skipped_or_waited_for() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut seen = Seen::new(env.aws.subscribe(&customer.stream_arn).unwrap());
    let mut log = Log::new();
    log.open_directory();
    let address = env.relay.address.to_string();
    let start = |log: &Log| {
        let mut child = as_other_than_root(log.command(&address)).spawn().unwrap();
        let warnings = Warnings::of(&mut child);
        (child, warnings)
    };
    // The path is unreadable at the start.
    make_unreadable(log.path());
    let (publisher, mut warnings) = start(&log);
    warnings.until("eve.json, which cannot be opened").await;
    log.write(10);
    fs::set_permissions(log.path(), Permissions::from_mode(0o644)).unwrap();
    seen.until(10).await;
    assert_eq!(terminate(publisher).await.status.code(), Some(0));
    // A rotated file is unreadable, and the next one is not.
    log.rotate();
    fs::set_permissions(log.path(), Permissions::from_mode(0o644)).unwrap();
    log.write(5);
    let unread = log.written;
    log.rotate();
    make_unreadable(log.dir.path().join("eve.json.1"));
    fs::set_permissions(log.path(), Permissions::from_mode(0o644)).unwrap();
    log.write(5);
    let (publisher, mut warnings) = start(&log);
    warnings
        .until("eve.json.1 is skipped because it cannot be opened")
        .await;
    seen.until(15).await;
    assert!(!seen.numbers.contains(&(unread - 1)));
    // The path is unreadable after a rotation.
    log.rotate();
    make_unreadable(log.path());
    log.write(5);
    warnings.until("eve.json, which cannot be opened").await;
    fs::set_permissions(log.path(), Permissions::from_mode(0o644)).unwrap();
    seen.until(20).await;
    let ended = terminate(publisher).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let summary = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(
        summary.contains("some content of the log was not read"),
        "{summary}"
    );
    // Once everything is readable, nothing is missing.
    for number in 1..9 {
        let rotated = log.dir.path().join(format!("eve.json.{number}"));
        if rotated.exists() {
            fs::set_permissions(rotated, Permissions::from_mode(0o644)).unwrap();
        }
    }
    let (publisher, _warnings) = start(&log);
    seen.check(25).await;
    assert_eq!(terminate(publisher).await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_path_is_reported() {
    let env = TestEnv::start().await;
    env.customer("acme").await;
    let address = env.relay.address.to_string();
    let log = Log::new();
    fs::rename(log.path(), log.dir.path().join("eve-20260102.json")).unwrap();
    let ended = run(log.command(&address)).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let output = ended.stdout + &ended.stderr;
    for words in [
        "eve-20260102.json",
        "`filename: eve.json`",
        "`threaded: no`",
    ] {
        assert!(output.contains(words), "{output}");
    }
    let mut command = tool(&["publish", "--follow", "--organization", "acme"]);
    command.args([
        "--network",
        NETWORK,
        "--device",
        DEVICE,
        "--address",
        &address,
        "--eve",
    ]);
    command.arg(log.dir.path().join("eve-%Y%m%d.json"));
    let ended = run(command).await;
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(ended.stderr.contains("is a pattern"), "{ended:?}");
    assert!(ended.stderr.contains("threaded: no"), "{ended:?}");
    // Another sensor's log in the directory does not suggest that this path is a pattern.
    let log = Log::new();
    fs::rename(log.path(), log.dir.path().join("eve-2.json")).unwrap();
    let mut publisher = log.publish(&address);
    let mut warnings = Warnings::of(&mut publisher);
    warnings.until("eve.json, which does not exist").await;
    let ended = terminate(publisher).await;
    assert_eq!(ended.status.code(), Some(1), "nothing was read: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_line_of_a_followed_log_exits_with_1() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let mut seen = Seen::new(env.aws.subscribe(&customer.stream_arn).unwrap());
    let mut log = Log::new();
    log.write(3);
    log.file.write_all(b"{\"timestamp\":\"2026\n").unwrap();
    log.write(3);
    let publisher = log.publish(&env.relay.address.to_string());
    seen.until(6).await;
    assert_eq!(terminate(publisher).await.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_publisher_or_service_lose_no_line() {
    let env = ProcessEnv::new().await;
    let mut seen = Seen::new(env.aws.subscribe(&env.customer.stream_arn).unwrap());
    let mut random = StdRng::seed_from_u64(4_711);
    let mut log = Log::new();
    let mut service = env.start().await;
    service.api.configure(&env.customer).await;
    let address = service.address;
    let mut publisher = log.publish(&address.to_string());
    for round in 0..12 {
        log.write(random.random_range(50..400));
        // Some of it has arrived, and the rest is in flight.
        seen.until(log.written - random.random_range(1..50)).await;
        match round % 4 {
            0 => log.rotate(),
            2 => log.copy_truncate(),
            _ => {}
        }
        match random.random_range(0..3) {
            0 => {
                service.kill().await;
                let listen = address.to_string();
                service = env.start_with(&["--listen", &listen]).await;
            }
            _ => {
                publisher.kill().await.unwrap();
                log.write(random.random_range(0..50));
                publisher = log.publish(&address.to_string());
            }
        }
    }
    seen.check(log.written).await;
    assert_eq!(terminate(publisher).await.status.code(), Some(0));
}
