//! Notifications: a receiver of the test's own sees status changes of the built binary.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_lc_rs::hmac;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::harness::{Customer, Load, Process, ProcessEnv, backdate_log, parameter, with_timeout};

const KEYS: [&[u8]; 2] = [
    b"a key of 32 bytes for the tests.",
    b"another key, as in a rotation...",
];
const ACCEPTED: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";

/// Request that the receiver got.
#[derive(Clone, Debug)]
struct Received {
    head: String,
    headers: HashMap<String, String>,
    text: String,
    body: Value,
}

impl Received {
    fn data(&self, field: &str) -> &str {
        self.body["data"][field].as_str().unwrap_or_default()
    }

    fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap()
    }

    /// Checks both signatures by the definition: HMAC-SHA256 of id, time and body, joined by dots.
    fn check_signatures(&self) {
        let header = |name: &str| self.headers[name].as_str();
        let signed = format!(
            "{}.{}.{}",
            header("webhook-id"),
            header("webhook-timestamp"),
            self.text
        );
        let given: Vec<&str> = header("webhook-signature").split(' ').collect();
        assert_eq!(given.len(), KEYS.len());
        for (given, key) in given.into_iter().zip(KEYS) {
            let signature = BASE64_STANDARD
                .decode(given.strip_prefix("v1,").unwrap())
                .unwrap();
            let key = hmac::Key::new(hmac::HMAC_SHA256, key);
            hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
        }
    }
}

type Answer = dyn FnMut(&Received) -> String + Send;

/// Receiver that records every request and answers as the test says. An answer that ends within
/// a body leaves its connection open.
struct Hook {
    address: std::net::SocketAddr,
    answer: Arc<Mutex<Box<Answer>>>,
    received: watch::Receiver<Vec<Received>>,
}

impl Hook {
    async fn start(answer: impl FnMut(&Received) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer: Arc<Mutex<Box<Answer>>> = Arc::new(Mutex::new(Box::new(answer)));
        let (sender, received) = watch::channel(Vec::new());
        let (sender, answers) = (Arc::new(sender), Arc::clone(&answer));
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (sender, answers) = (Arc::clone(&sender), Arc::clone(&answers));
                tokio::spawn(async move {
                    let mut connection = BufReader::new(connection);
                    // A killed client leaves a part of a request.
                    let Some(request) = read_request(&mut connection).await else {
                        return;
                    };
                    let answer = answers.lock().unwrap()(&request);
                    sender.send_modify(|received| received.push(request));
                    let _gone = connection.write_all(answer.as_bytes()).await;
                    if !answer.contains("connection: close") {
                        let _gone = connection.read_u8().await;
                    }
                });
            }
        });
        Self {
            address,
            answer,
            received,
        }
    }

    fn answer_with(&self, answer: impl FnMut(&Received) -> String + Send + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    fn all(&self) -> Vec<Received> {
        self.received.borrow().clone()
    }

    /// Waits for a request, and returns the first.
    async fn until(&self, what: &str, good: impl Fn(&Received) -> bool) -> Received {
        let mut received = self.received.clone();
        let found = received.wait_for(|all| all.iter().any(&good));
        let all = with_timeout(what, found).await.unwrap().clone();
        all.into_iter().find(good).unwrap()
    }

    fn arguments(&self, dir: &Path) -> Vec<String> {
        vec![
            "--notification-url".to_owned(),
            format!("http://{}/hook?token=1", self.address),
            "--notification-secret-file".to_owned(),
            secret_file(dir).to_str().unwrap().to_owned(),
        ]
    }
}

async fn read_request(connection: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: HashMap<String, String> = lines[1..]
        .iter()
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    connection.read_exact(&mut body).await.ok()?;
    let text = String::from_utf8(body).unwrap();
    Some(Received {
        head: lines[0].clone(),
        headers,
        body: serde_json::from_str(&text).unwrap(),
        text,
    })
}

fn secret_file(dir: &Path) -> PathBuf {
    let path = dir.join("hook.secret");
    let secrets = KEYS.map(|key| format!("whsec_{}\n", BASE64_STANDARD.encode(key)));
    fs::write(&path, secrets.concat()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

async fn start(env: &ProcessEnv, hook: &Hook, further: &[&str]) -> Process {
    let arguments = hook.arguments(env.dir.path());
    let arguments = arguments.iter().map(String::as_str);
    let arguments: Vec<&str> = arguments.chain(further.iter().copied()).collect();
    env.start_with(&arguments).await
}

/// Checks that no integration's revision falls in what was accepted.
fn check_order(received: &[Received]) {
    let mut last: HashMap<&str, &str> = HashMap::new();
    for request in received {
        let (id, revision) = (request.data("integration_id"), request.data("revision"));
        let before = last.insert(id, revision).unwrap_or_default();
        assert!(before <= revision, "{id}: {revision} after {before}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_sent_with_valid_signatures() {
    let env = ProcessEnv::new().await;
    let hook = Hook::start(|_| ACCEPTED.to_owned()).await;
    let process = start(&env, &hook, &[]).await;
    env.aws.delete_role(&env.customer.role_arn);
    let integration = process.api.configure(&env.customer).await;
    let with_status = |status: &'static str| move |got: &Received| got.data("status") == status;
    let unknown = hook.until("UNKNOWN", with_status("UNKNOWN")).await;
    assert_eq!(unknown.body["data"]["previous_status"], Value::Null);

    process
        .api
        .publish(&Load::new("acme", 1, 1).events(3))
        .await;
    let refused = hook
        .until("UNAUTHORIZED", with_status("UNAUTHORIZED"))
        .await;
    assert_eq!(refused.kind(), "integration.status_changed");
    assert_eq!(refused.data("previous_status"), "UNKNOWN");
    assert_eq!(refused.data("reason"), "ASSUME_ROLE_DENIED");
    assert_eq!(
        refused.data("message"),
        "Unauthorized - check your Role ARN and External ID"
    );
    assert_eq!(refused.body["data"]["pending_events"], 3);
    assert!(!refused.data("oldest_pending_at").is_empty());
    assert!(refused.data("oldest_expires_at") > refused.data("oldest_pending_at"));

    env.customer.make_role(&env.aws);
    let recovered = hook.until("ACTIVE", with_status("ACTIVE")).await;
    assert_eq!(recovered.data("previous_status"), "UNAUTHORIZED");
    process.api.delete("acme", false).await.unwrap();
    let is_deletion = |got: &Received| got.kind() == "integration.deleted";
    let deleted = hook.until("the deletion", is_deletion).await;
    assert_eq!(deleted.body["data"]["status"], Value::Null);
    assert_eq!(deleted.data("previous_status"), "ACTIVE");

    let all = hook.all();
    check_order(&all);
    for got in &all {
        assert_eq!(got.head, "POST /hook?token=1 HTTP/1.1");
        assert_eq!(got.headers["content-type"], "application/json");
        assert_eq!(got.data("organization_id"), "acme");
        assert_eq!(got.data("integration_id"), integration.integration_id);
        assert!(!got.text.contains(&env.customer.external_id), "{got:?}");
        got.check_signatures();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_attempts_are_repeated_signed_anew_and_redirects_are_not_followed() {
    let env = ProcessEnv::new().await;
    let mut answers = vec![
        // The status counts, and a body that never ends holds nothing up for long.
        "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nslow".to_owned(),
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            .to_owned(),
        "HTTP/1.1 410 Gone\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            .to_owned(),
    ];
    let hook = Hook::start(move |_| answers.pop().unwrap_or_else(|| ACCEPTED.to_owned())).await;
    let process = start(&env, &hook, &[]).await;
    process.api.configure(&env.customer).await;
    process
        .until_logged("notifications are accepted again", 0)
        .await;
    let all = hook.all();
    assert_eq!(all.len(), 4, "{all:?}");
    for got in &all {
        assert_eq!(got.head, "POST /hook?token=1 HTTP/1.1");
        assert_eq!(got.headers["webhook-id"], all[0].headers["webhook-id"]);
        got.check_signatures();
    }
    let times: Vec<i64> = all
        .iter()
        .map(|got| got.headers["webhook-timestamp"].parse().unwrap())
        .collect();
    assert!(times.is_sorted() && times[0] < times[3], "{times:?}");
    let log = process.log();
    for status in [307, 410, 429] {
        let line = format!("answered HTTP status {status}");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
    assert!(!log.contains("token=1"), "{log}");
}

/// `SIEM_RELAY_TEST_KILLS` sets the number of kills, `SIEM_RELAY_TEST_SEED` the seed.
#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_no_last_state_and_no_older_one_follows_a_newer() {
    let env = ProcessEnv::new().await;
    let mut random = StdRng::seed_from_u64(parameter("SEED", 31));
    let mut failing = StdRng::seed_from_u64(parameter("SEED", 32));
    let hook = Hook::start(move |_| match failing.random_bool(0.1) {
        true => {
            "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                .to_owned()
        }
        false => ACCEPTED.to_owned(),
    })
    .await;
    let customers: Vec<Customer> = (0..8).map(|n| Customer::new(&format!("org-{n}"))).collect();
    let mut loads: Vec<Load> = (0..8)
        .map(|n| Load::new(&format!("org-{n}"), 1, n))
        .collect();
    for round in 0..parameter("KILLS", 5) {
        let process = start(&env, &hook, &[]).await;
        for (customer, load) in customers.iter().zip(&mut loads) {
            // No role exists: each Configure makes it UNKNOWN, and an attempt UNAUTHORIZED.
            process
                .api
                .configure(&customer.with_stream(&format!("round-{round}")))
                .await;
            process.api.publish(&load.events(1)).await;
        }
        if round % 2 == 1 {
            process.api.delete("org-0", true).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..700))).await;
        process.kill().await;
    }
    hook.answer_with(|_| ACCEPTED.to_owned());
    let process = start(&env, &hook, &[]).await;
    process.api.delete("org-1", true).await.unwrap();
    for customer in &customers[2..] {
        let organization = &customer.organization_id;
        let integration = process.api.get(organization).await;
        let refused = |status: &siem_client::v1::IntegrationStatus| {
            status.status() == siem_client::v1::Status::Unauthorized
        };
        process.api.until_status(organization, refused).await;
        let id = integration.integration_id;
        let mut received = hook.received.clone();
        let is_last = |all: &Vec<Received>| {
            let mut of_it = all.iter().filter(|got| got.data("integration_id") == id);
            of_it
                .next_back()
                .is_some_and(|got| got.data("status") == "UNAUTHORIZED")
        };
        let last = received.wait_for(is_last);
        with_timeout("the last state", last).await.unwrap();
    }
    let is_deletion = |got: &Received| {
        got.kind() == "integration.deleted" && got.data("organization_id") == "org-1"
    };
    hook.until("the deletion", is_deletion).await;
    check_order(&hook.all());
    hook.all().iter().for_each(Received::check_signatures);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warning_precedes_the_expiry_of_events() {
    let env = ProcessEnv::new().await;
    let hook = Hook::start(|_| ACCEPTED.to_owned()).await;
    let retention = ["--retention-seconds", "86400"];
    env.aws.delete_role(&env.customer.role_arn);
    let process = start(&env, &hook, &retention).await;
    process.api.configure(&env.customer).await;
    process
        .api
        .publish(&Load::new("acme", 1, 1).events(2))
        .await;
    let is_refused = |got: &Received| got.data("status") == "UNAUTHORIZED";
    hook.until("UNAUTHORIZED", is_refused).await;
    process.stop().await;
    assert!(
        hook.all()
            .iter()
            .all(|got| got.kind() == "integration.status_changed")
    );
    backdate_log(env.dir.path(), Duration::from_secs(13 * 3600)).await;
    let _process = start(&env, &hook, &retention).await;
    let is_warning = |got: &Received| got.kind() == "integration.events_expiring";
    let warning = hook.until("the warning", is_warning).await;
    assert_eq!(warning.body["data"]["pending_events"], 2);
    assert_eq!(warning.data("status"), "UNAUTHORIZED");
    assert!(warning.data("oldest_expires_at") > warning.data("oldest_pending_at"));
    warning.check_signatures();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_settings_are_refused_at_the_start() {
    let env = ProcessEnv::new().await;
    let secret = secret_file(env.dir.path());
    let secret = secret.to_str().unwrap();
    for (url, problem) in [
        ("http://example.com/hook", "is not encrypted"),
        ("https://user:secret@example.com/", "contains a user"),
        ("ftp://example.com/", "another scheme"),
    ] {
        let arguments = [
            "--notification-url",
            url,
            "--notification-secret-file",
            secret,
        ];
        let refused = env.start_refused_with(&arguments).await;
        assert!(refused.stderr.contains(problem), "{}", refused.stderr);
    }
    let refused = env
        .start_refused_with(&["--notification-url", "https://example.com/"])
        .await;
    let problem = "is set without notification-secret-file";
    assert!(refused.stderr.contains(problem), "{}", refused.stderr);
    fs::write(secret, "whsec_short").unwrap();
    let arguments = [
        "--notification-url",
        "https://example.com/",
        "--notification-secret-file",
        secret,
    ];
    let refused = env.start_refused_with(&arguments).await;
    assert!(
        refused.stderr.contains("line 1 is not a secret"),
        "{}",
        refused.stderr
    );
}
