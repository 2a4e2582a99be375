//! The log while brokers are killed, stopped and replaced. Each test has a cluster of its own.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use test_services::Kafka;
use tokio::{task::JoinHandle, time::timeout};
use uuid::Uuid;

use super::*;
use crate::{
    domain::integration::testing::testing_id,
    store::{
        accept_loss::readable_from,
        ports::{EntryId, NewChunk},
    },
};

const PARTITIONS: u32 = 3;
/// Longest time until everything works again, on a machine that is shared.
const RECOVERY: Duration = Duration::from_secs(90);

/// Limit of the test of quotas, in bytes per second.
const QUOTA: u32 = 100_000;
/// Time of an answer that a limit delayed: the same append takes milliseconds without one.
const THROTTLED: Duration = Duration::from_millis(500);

fn options(kafka: &Kafka) -> KafkaOptions {
    KafkaOptions {
        brokers: kafka.bootstrap().split(',').map(str::to_owned).collect(),
        topic: format!("test-{}", Uuid::now_v7().simple()),
        security: KafkaSecurity::Plaintext,
        allow_single_replica: kafka.nodes().count() == 1,
    }
}

async fn create(options: &KafkaOptions, partitions: u32) {
    let replication = options.allow_single_replica.then_some(1);
    timeout(RECOVERY, async {
        while let Err(error) = create_topic(options, partitions, replication).await {
            tracing::info!(%error, "creating again");
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap();
}

/// Deletes the topic of options without TLS.
pub(super) async fn delete_topic(options: &KafkaOptions) -> Result<(), String> {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", options.brokers.join(","));
    let admin: AdminClient<DefaultClientContext> = settings.create().unwrap();
    let deleted = admin.delete_topics(&[&options.topic], &AdminOptions::new());
    deleted.await.map(drop).map_err(|error| error.to_string())
}

async fn open(options: &KafkaOptions) -> Arc<KafkaLog> {
    let opening = async {
        loop {
            match KafkaLog::open(options).await {
                Ok(log) => break Arc::new(log),
                // A new topic is not known to every broker at once.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(RECOVERY, opening).await.unwrap()
}

fn entry() -> NewEntry {
    NewEntry {
        id: rand::random(),
        revision: 1,
        chunks: vec![NewChunk {
            integration_id: testing_id(1),
            count: 1,
            segment: Bytes::from_static(&[1, 0, 0, 0, 7]),
            traces: Vec::new(),
        }],
    }
}

/// An entry of about this size.
fn sized(bytes: usize) -> NewEntry {
    let mut entry = entry();
    let mut segment = vec![0; bytes];
    rand::fill(&mut segment[..]);
    entry.chunks[0].segment = segment.into();
    entry
}

fn look(log: &KafkaLog) -> View {
    match view(&log.shared.clients(), &log.shared.options) {
        Ok(view) => view,
        Err(_) => panic!("the topic cannot be looked at"),
    }
}

/// Appends to a partition as long as it may.
struct Load {
    stop: Arc<AtomicBool>,
    acks: Arc<AtomicU64>,
    task: JoinHandle<Appended>,
}

#[derive(Default)]
struct Appended {
    /// Each append that was acked.
    acked: Vec<EntryId>,
    /// Longest time until an answer.
    slowest: Duration,
    /// Answers that left the outcome open.
    in_doubt: usize,
}

impl Load {
    fn start(log: &Arc<KafkaLog>, partition: Partition) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acks = Arc::new(AtomicU64::new(0));
        let (log, stopped, acked) = (Arc::clone(log), Arc::clone(&stop), Arc::clone(&acks));
        let task = tokio::spawn(async move {
            let mut appended = Appended::default();
            while !stopped.load(Ordering::Acquire) {
                let entries: Vec<NewEntry> = (0..3).map(|_| entry()).collect();
                let ids: Vec<EntryId> = entries.iter().map(|entry| entry.id).collect();
                let start = Instant::now();
                let answer = log.append(partition, entries).await;
                appended.slowest = appended.slowest.max(start.elapsed());
                match answer {
                    Ok(()) => {
                        appended.acked.extend(ids);
                        acked.fetch_add(1, Ordering::AcqRel);
                    }
                    Err(StoreError::Unavailable(_)) => appended.in_doubt += 1,
                    Err(StoreError::Failed(_)) => sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error}"),
                }
            }
            appended
        });
        Self { stop, acks, task }
    }

    /// Waits for further acks.
    async fn goes_on(&self) {
        let due = self.acks.load(Ordering::Acquire) + 3;
        let waiting = async {
            while self.acks.load(Ordering::Acquire) < due {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(RECOVERY, waiting).await.unwrap();
    }

    async fn stop(self) -> Appended {
        self.stop.store(true, Ordering::Release);
        self.task.await.unwrap()
    }
}

/// Everything that was acked is there, once, and in order.
async fn check(log: &KafkaLog, partition: Partition, appended: &Appended) {
    let end = log.bounds(partition).await.unwrap().end;
    let mut reader = log.reader(partition, Position(1)).await.unwrap();
    let mut read = Vec::new();
    while Position(read.len() as u64 + 1) < end {
        let entry = timeout(RECOVERY, reader.next()).await.unwrap().unwrap();
        read.push(entry.id);
    }
    let all: BTreeSet<&EntryId> = read.iter().collect();
    assert_eq!(all.len(), read.len(), "an entry is there twice");
    let mut rest = read.iter();
    let missing = appended
        .acked
        .iter()
        .filter(|id| !rest.any(|one| one == *id));
    assert_eq!(
        missing.count(),
        0,
        "acked entries are missing, or in another order"
    );
}

async fn until_open(log: &KafkaLog) {
    let mut availability = log.availability();
    let open = availability.wait_for(|now| *now == Availability::Open);
    timeout(RECOVERY, open).await.unwrap().unwrap();
}

enum Fault {
    Kill,
    Pause,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_a_leader_fails() {
    let Some(kafka) = test_services::require(Kafka::start(3).await) else {
        return;
    };
    for fault in [Fault::Kill, Fault::Pause] {
        let options = options(&kafka);
        create(&options, PARTITIONS).await;
        let log = open(&options).await;
        let mut reader = log.reader(0, Position(1)).await.unwrap();
        let loads: Vec<Load> = (0..PARTITIONS).map(|one| Load::start(&log, one)).collect();
        for load in &loads {
            load.goes_on().await;
        }
        let leader = look(&log).partitions[0].leader.unwrap();
        let node = leader as u16;
        match fault {
            Fault::Kill => kafka.kill(node).await,
            Fault::Pause => kafka.pause(node),
        }
        let start = Instant::now();
        loads[0].goes_on().await;
        tracing::info!(elapsed = ?start.elapsed(), "a partition has another leader");
        match fault {
            Fault::Kill => kafka.start_again(node).await,
            Fault::Pause => kafka.resume(node),
        }
        for load in &loads {
            load.goes_on().await;
        }
        // A reader that was waiting goes on too.
        let end = log.bounds(0).await.unwrap().end;
        while timeout(RECOVERY, reader.next())
            .await
            .unwrap()
            .unwrap()
            .position
            .next()
            < end
        {}
        for (partition, load) in (0..).zip(loads) {
            let appended = load.stop().await;
            // One message.timeout.ms, with a margin.
            assert!(
                appended.slowest < Duration::from_secs(30),
                "{:?}",
                appended.slowest
            );
            tracing::info!(partition, appended.in_doubt, ?appended.slowest);
            check(&log, partition, &appended).await;
        }
    }
}

/// A broker throttles: it has written the entry, and answers late. Written once, and in order; when
/// the limit is lifted all goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_entry_is_written_once() {
    let Some(kafka) = test_services::require(Kafka::start(1).await) else {
        return;
    };
    let options = options(&kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    kafka.limit_producers(Some(QUOTA)).await;
    let mut appended = Appended::default();
    // Until an answer shows that the limit holds: brokers learn it with a delay.
    let throttled = async {
        while appended.slowest < THROTTLED {
            let entry = sized(QUOTA as usize);
            let id = entry.id;
            let start = Instant::now();
            match log.append(0, vec![entry]).await {
                Ok(()) => appended.acked.push(id),
                Err(StoreError::Unavailable(_)) => appended.in_doubt += 1,
                Err(StoreError::Failed(_)) => sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
            appended.slowest = appended.slowest.max(start.elapsed());
        }
    };
    timeout(RECOVERY, throttled).await.unwrap();
    let load = Load::start(&log, 0);
    load.goes_on().await;
    kafka.limit_producers(None).await;
    load.goes_on().await;
    let later = load.stop().await;
    appended.acked.extend(later.acked);
    check(&log, 0, &appended).await;
}

/// The right to write is taken away while entries are written, and given back.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_right_is_named_and_stops_nothing_for_good() {
    let authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer";
    let settings = [
        ("authorizer.class.name", authorizer),
        ("allow.everyone.if.no.acl.found", "true"),
    ];
    let kafka = Kafka::start_with(test_services::KafkaOptions {
        settings: settings.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
        ..test_services::KafkaOptions::default()
    });
    let Some(kafka) = test_services::require(kafka.await) else {
        return;
    };
    let options = options(&kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    log.append(0, vec![entry()]).await.unwrap();
    let topic = options.topic.as_str();
    let all = ["--allow-principal", "User:ANONYMOUS", "--operation", "All"];
    kafka
        .change_rights(&[&["--add", "--topic", topic], &all[..]].concat())
        .await;
    let write = ["--deny-principal", "User:ANONYMOUS", "--operation", "Write"];
    kafka
        .change_rights(&[&["--add", "--topic", topic], &write[..]].concat())
        .await;
    let refused = async {
        loop {
            match log.append(0, vec![entry()]).await {
                Ok(()) => {}
                Err(StoreError::Unavailable(reason) | StoreError::Failed(reason)) => break reason,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let reason = timeout(RECOVERY, refused).await.unwrap();
    assert!(reason.contains("the right to write to it"), "{reason}");
    kafka
        .change_rights(&[&["--remove", "--force", "--topic", topic], &write[..]].concat())
        .await;
    let load = Load::start(&log, 0);
    load.goes_on().await;
    let appended = load.stop().await;
    check(&log, 0, &appended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_are_refused_at_once_until_they_are_back() {
    let Some(kafka) = test_services::require(Kafka::start(3).await) else {
        return;
    };
    let options = options(&kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    log.append(0, vec![entry()]).await.unwrap();
    let leader = look(&log).partitions[0].leader.unwrap() as u16;
    let others: Vec<u16> = kafka.nodes().filter(|node| *node != leader).collect();
    for node in &others {
        kafka.kill(*node).await;
    }
    let mut in_doubt = entry();
    let answer = timeout(RECOVERY, log.append(0, vec![in_doubt.clone()]))
        .await
        .unwrap();
    assert!(
        matches!(answer, Err(StoreError::Unavailable(_))),
        "{answer:?}"
    );
    let start = Instant::now();
    let answer = log.append(0, vec![entry()]).await;
    assert!(matches!(answer, Err(StoreError::Failed(_))), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(1));
    let mut availability = log.availability();
    let closed = availability.wait_for(|now| *now == Availability::Unavailable);
    timeout(RECOVERY, closed).await.unwrap().unwrap();
    for node in others {
        kafka.start_again(node).await;
    }
    until_open(&log).await;
    in_doubt.revision += 1;
    log.append(0, vec![in_doubt]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_is_noticed() {
    let Some(kafka) = test_services::require(Kafka::start(1).await) else {
        return;
    };
    let options = options(&kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    for _ in 0..3 {
        log.append(0, vec![entry()]).await.unwrap();
    }
    let mut reader = log.reader(0, Position(1)).await.unwrap();
    for _ in 0..3 {
        reader.next().await.unwrap();
    }
    log.trim(0, Position(3)).await.unwrap();
    log.delete_topic().await.unwrap();
    create(&options, 1).await;
    let corrupt = async {
        loop {
            match log.append(0, vec![entry()]).await {
                Err(StoreError::Failed(reason)) if reason.contains("made anew") => break,
                Ok(()) => panic!("an append to another topic was acked"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    timeout(RECOVERY, corrupt).await.unwrap();
    let read = timeout(RECOVERY, reader.next()).await.unwrap();
    assert!(matches!(read, Err(StoreError::Corrupt(_))), "{read:?}");
    let partition = &log.shared.partitions[0];
    assert_eq!(partition.trimmed_below(), Position(0));

    // A new owner reads what there is, if it has what the owner needs.
    let bounds = log.bounds(0).await.unwrap();
    log.reader(0, bounds.end.next()).await.unwrap();
    assert!(matches!(partition.state(), State::Corrupt(_)));
    let mut reader = log.reader(0, bounds.start).await.unwrap();
    until_open(&log).await;
    let new = entry();
    log.append(0, vec![new.clone()]).await.unwrap();
    let read = async {
        loop {
            let read = reader.next().await.unwrap();
            if read.id == new.id {
                break read;
            }
        }
    };
    let read = timeout(RECOVERY, read).await.unwrap();
    assert_eq!(log.bounds(0).await.unwrap().end, read.position.next());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_removed() {
    let Some(kafka) = test_services::require(test_services::shared_kafka().await) else {
        return;
    };
    let options = options(kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    log.append(0, vec![entry(), entry()]).await.unwrap();
    let brokers = options.brokers.join(",");
    let topic = options.topic.clone();
    blocking(move || {
        let mut settings = ClientConfig::new();
        let settings = settings.set("bootstrap.servers", brokers);
        let other: BaseProducer = settings.create().unwrap();
        let record = BaseRecord::to(&topic).partition(0).key("").payload("");
        other.send(record).unwrap();
        other.flush(RECOVERY).unwrap();
    })
    .await;
    let last = entry();
    log.append(0, vec![last.clone()]).await.unwrap();
    let from = readable_from(&*log, 0).await.unwrap();
    assert_eq!(from, Position(4));
    log.remove(0, from).await.unwrap();
    let bounds = log.bounds(0).await.unwrap();
    assert_eq!((bounds.start, bounds.end), (from, from.next()));
    let mut reader = log.reader(0, bounds.start).await.unwrap();
    assert_eq!(reader.next().await.unwrap().id, last.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_below_a_known_one_is_looked_at_again() {
    let Some(kafka) = test_services::require(test_services::shared_kafka().await) else {
        return;
    };
    let options = options(kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    log.append(0, vec![entry()]).await.unwrap();
    let partition = &log.shared.partitions[0];
    // As if the broker that answers had not caught up.
    partition.learn_end(Position(4));
    let catches_up = async {
        sleep(LOOK_AGAIN / 3).await;
        log.append(0, vec![entry(), entry()]).await.unwrap();
    };
    let (bounds, ()) = tokio::join!(log.bounds(0), catches_up);
    assert_eq!(bounds.unwrap().end, Position(4));
    assert_eq!(partition.state(), State::Open);
    partition.learn_end(Position(5));
    let bounds = log.bounds(0).await;
    assert!(matches!(bounds, Err(StoreError::Corrupt(_))), "{bounds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_deleted_by_others_are_missed() {
    let Some(kafka) = test_services::require(test_services::shared_kafka().await) else {
        return;
    };
    let options = options(kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    // Far more than is read ahead.
    let count = 32;
    for _ in 0..count {
        log.append(0, vec![sized(512 << 10)]).await.unwrap();
    }
    let mut reader = log.reader(0, Position(1)).await.unwrap();
    reader.next().await.unwrap();
    assert_eq!(log.shared.delete(&[(0, count - 1)]).await, [0]);
    let reading = async {
        loop {
            match reader.next().await {
                Ok(entry) => assert!(entry.position < Position(count)),
                Err(error) => break error,
            }
        }
    };
    let error = timeout(RECOVERY, reading).await.unwrap();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    // A new reader passes over them.
    let mut reader = log.reader(0, Position(1)).await.unwrap();
    assert_eq!(reader.next().await.unwrap().position, Position(count));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_loses_events_is_refused() {
    let Some(kafka) = test_services::require(test_services::shared_kafka().await) else {
        return;
    };
    let mut options = options(kafka);
    let missing = KafkaLog::open(&options).await.err().unwrap();
    assert!(matches!(missing, KafkaError::NoTopic(_)), "{missing}");
    create(&options, 2).await;
    open(&options).await;
    options.allow_single_replica = false;
    let refused = KafkaLog::open(&options).await.err().unwrap().to_string();
    for part in [
        "min.insync.replicas is 1 and must be at least 2",
        "partition 0 has 1 replica and must have 3 (1 more partitions likewise)",
    ] {
        assert!(refused.contains(part), "{refused}");
    }
    let exists = create_topic(&options, 2, Some(1)).await.unwrap_err();
    assert!(exists.to_string().contains("exists already"), "{exists}");
    options.topic.push_str("-3");
    let few = create_topic(&options, 2, None).await.unwrap_err();
    assert!(few.to_string().contains("fewer than 3 brokers"), "{few}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_above_the_limit_is_refused_by_name() {
    let Some(kafka) = test_services::require(test_services::shared_kafka().await) else {
        return;
    };
    let options = options(kafka);
    create(&options, 1).await;
    let log = open(&options).await;
    // Stored without compression it takes its own length and a little more.
    let largest = (client::MESSAGE_BYTES - 20_000) * 255 / 256;
    log.append(0, vec![sized(largest)]).await.unwrap();
    let refused = log.append(0, vec![sized(client::MESSAGE_BYTES)]).await;
    assert!(matches!(&refused, Err(StoreError::Failed(reason)) if reason.contains("is larger")));
    log.append(0, vec![entry()]).await.unwrap();
    let mut reader = log.reader(0, Position(1)).await.unwrap();
    for position in [1, 2] {
        assert_eq!(reader.next().await.unwrap().position, Position(position));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_names_what_does_not_answer() {
    let kafka = Kafka::start_with(test_services::KafkaOptions {
        brokers: 2,
        proxied: true,
        ..test_services::KafkaOptions::default()
    });
    let Some(kafka) = test_services::require(kafka.await) else {
        return;
    };
    let mut options = options(&kafka);
    create_topic(&options, 1, Some(2)).await.unwrap();
    let log = open(&options).await;
    let leader = look(&log).partitions[0].leader.unwrap() as u16;
    drop(log);
    let address = options.brokers.remove(usize::from(leader) - 1);
    kafka.proxy(leader).cut().await;
    let error = KafkaLog::open(&options).await.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, KafkaError::Advertised { .. }), "{text}");
    for part in [
        &format!("broker {leader} names {address}"),
        &options.brokers[0],
    ] {
        assert!(text.contains(part), "{text}");
    }
    options.brokers = vec!["127.0.0.1:9".to_owned()];
    for error in [
        KafkaLog::open(&options).await.err().unwrap(),
        create_topic(&options, 1, Some(2)).await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, KafkaError::Unreachable { .. }), "{text}");
        for part in ["127.0.0.1:9", "refused"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

/// A certificate for loopback addresses, and its key, signed by an authority.
fn certificate(authority: &rcgen::Issuer<'_, rcgen::KeyPair>, name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.pem(), key.serialize_pem())
}

/// Writes a file for its owner alone.
fn write_secret(path: &Path, content: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Makes an authority, with its certificate in `ca.pem`, and a certificate of a broker.
fn make_authority(dir: &Path) -> rcgen::Issuer<'static, rcgen::KeyPair> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    let authority = rcgen::Issuer::new(params, key);
    let (cert, key) = certificate(&authority, "broker");
    std::fs::write(dir.join("broker.pem"), format!("{key}{cert}")).unwrap();
    authority
}

/// Starts a broker that clients reach by SASL over TLS, with the files of [`make_authority`].
async fn start_with_sasl(dir: &Path, settings: &[(&str, &str)]) -> Option<Kafka> {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let map = "CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT";
    let mut all = vec![
        ("listener.security.protocol.map", map.to_owned()),
        ("ssl.keystore.type", "PEM".to_owned()),
        ("ssl.keystore.location", path("broker.pem")),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.location", path("ca.pem")),
    ];
    all.extend(
        settings
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned())),
    );
    let all = all.into_iter();
    let kafka = Kafka::start_with(test_services::KafkaOptions {
        settings: all.map(|(name, value)| (name.to_owned(), value)).collect(),
        ..test_services::KafkaOptions::default()
    });
    test_services::require(kafka.await)
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_read_again_when_their_files_change() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let authority = make_authority(dir.path());
    let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required \
        user_relay=\"secret one\" user_other=\"x\";";
    let settings = [
        ("ssl.client.auth", "required"),
        ("listener.name.client.ssl.client.auth", "required"),
        ("sasl.enabled.mechanisms", "PLAIN"),
        ("listener.name.client.plain.sasl.jaas.config", jaas),
    ];
    let Some(kafka) = start_with_sasl(dir.path(), &settings).await else {
        return;
    };
    let show = |name: &str| {
        let (cert, key) = certificate(&authority, name);
        std::fs::write(file("cert.pem"), cert).unwrap();
        write_secret(&file("key.pem"), &key);
    };
    show("one");
    write_secret(&file("password"), "secret one\n");
    let options = KafkaOptions {
        security: KafkaSecurity::Sasl {
            mechanism: Mechanism::Plain,
            user: "relay".to_owned(),
            password: Password::File(file("password")),
            tls: Tls {
                ca_file: Some(file("ca.pem")),
                certificate: Some(Certificate {
                    cert_file: file("cert.pem"),
                    key_file: file("key.pem"),
                }),
            },
        },
        ..options(&kafka)
    };
    create(&options, 1).await;
    let log = open(&options).await;
    let mut reader = log.reader(0, Position(1)).await.unwrap();
    let load = Load::start(&log, 0);
    load.goes_on().await;
    reader.next().await.unwrap();
    let first = log.shared.clients();
    // A certificate without its key, and a wrong password, displace nothing.
    std::fs::write(file("cert.pem"), certificate(&authority, "two").0).unwrap();
    log.shared.refresh().await;
    assert!(Arc::ptr_eq(&first, &log.shared.clients()));
    show("two");
    std::fs::write(file("password"), "wrong").unwrap();
    log.shared.refresh().await;
    assert!(Arc::ptr_eq(&first, &log.shared.clients()));
    load.goes_on().await;
    std::fs::write(file("password"), "secret one").unwrap();
    log.shared.refresh().await;
    assert!(!Arc::ptr_eq(&first, &log.shared.clients()));
    drop(first);
    load.goes_on().await;
    let appended = load.stop().await;
    assert_eq!(appended.in_doubt, 0);
    check(&log, 0, &appended).await;
    let end = log.bounds(0).await.unwrap().end;
    while timeout(RECOVERY, reader.next())
        .await
        .unwrap()
        .unwrap()
        .position
        .next()
        < end
    {}
    // At the start the reason is named.
    std::fs::write(file("password"), "wrong").unwrap();
    let text = KafkaLog::open(&options).await.err().unwrap().to_string();
    assert!(text.contains("uthentication failed"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
}

/// A token without a signature, as Kafka's own validator for development takes it.
fn unsecured_token(expires_at: u64) -> String {
    let part = |json: String| URL_SAFE_NO_PAD.encode(json);
    let claims = format!(
        r#"{{"sub":"relay","iat":{},"exp":{expires_at}}}"#,
        expires_at - 3600
    );
    format!("{}.{}.", part(r#"{"alg":"none"}"#.to_owned()), part(claims))
}

fn seconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_while_entries_are_written_and_read() {
    /// Life of a token in seconds.
    const LIFE: u64 = 20;
    let dir = tempfile::tempdir().unwrap();
    make_authority(dir.path());
    let jaas = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
        unsecuredLoginStringClaim_sub=\"broker\";";
    let settings = [
        ("sasl.enabled.mechanisms", "OAUTHBEARER"),
        ("listener.name.client.oauthbearer.sasl.jaas.config", jaas),
        // Connections end with their token, unless they show a new one.
        (
            "listener.name.client.oauthbearer.connections.max.reauth.ms",
            "3600000",
        ),
    ];
    let Some(kafka) = start_with_sasl(dir.path(), &settings).await else {
        return;
    };
    let file = dir.path().join("token");
    let write = {
        let file = file.clone();
        move || {
            let new = file.with_extension("new");
            write_secret(&new, &unsecured_token(seconds_since_1970() + LIFE));
            std::fs::rename(new, &file).unwrap();
        }
    };
    write_secret(&file, &unsecured_token(seconds_since_1970() - 1));
    let security = || KafkaSecurity::Token {
        tokens: Tokens::from_file(file.clone()),
        tls: Tls {
            ca_file: Some(dir.path().join("ca.pem")),
            certificate: None,
        },
    };
    let options = KafkaOptions {
        security: security(),
        ..options(&kafka)
    };
    let expired = KafkaLog::open(&options).await.err().unwrap().to_string();
    assert!(expired.contains("expired"), "{expired}");
    write();
    let renewing = tokio::spawn(async move {
        loop {
            sleep(Duration::from_secs(2)).await;
            write();
        }
    });
    create(&options, 2).await;
    let exists = create_topic(&options, 2, Some(1)).await.unwrap_err();
    assert!(exists.to_string().contains("exists already"), "{exists}");
    let log = open(&options).await;
    let begun = seconds_since_1970();
    let load = Load::start(&log, 0);
    let mut reader = log.reader(0, Position(1)).await.unwrap();
    while seconds_since_1970() < begun + 2 * LIFE + LIFE / 2 {
        load.goes_on().await;
        timeout(RECOVERY, reader.next()).await.unwrap().unwrap();
    }
    let appended = load.stop().await;
    assert_eq!(appended.in_doubt, 0);
    check(&log, 0, &appended).await;

    let settings = topic::settings(&log.shared.clients(), &options.topic)
        .await
        .unwrap();
    assert_eq!(check_settings(&settings, true), [""; 0]);
    assert_eq!(log.shared.delete(&[(0, 2)]).await, [0]);
    assert_eq!(log.bounds(0).await.unwrap().start, Position(3));

    // Text of the broker about a token that it refuses.
    renewing.abort();
    std::fs::write(&file, "no-jwt").unwrap();
    let refused = KafkaOptions {
        security: security(),
        ..options.clone()
    };
    let refused = KafkaLog::open(&refused).await.err().unwrap().to_string();
    assert!(refused.contains("uthentication"), "{refused}");
    assert!(!refused.contains("no-jwt"), "{refused}");
}
