//! The process of the floor.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use futures_util::future::try_join_all;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{Consumer as _, StreamConsumer},
    producer::{FutureProducer, FutureRecord},
};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Answer, Command, Config};
use crate::{
    Failure,
    process::Controller,
    stats::{Samples, now_nanos},
};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Time without a message after which the floor fails.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Limit of the entries in memory.
const MAX_BYTES: usize = 1 << 30;

/// Offset of each partition.
type Offsets = BTreeMap<i32, i64>;

struct Message {
    partition: i32,
    /// Milliseconds since 1970 at which the service's entry was appended.
    appended: i64,
    payload: Vec<u8>,
}

pub async fn run(config: Config) -> Result<(), Failure> {
    let (mut mark, mut messages) = (Offsets::new(), Vec::new());
    let mut controller = Controller::new();
    controller.answer(&Answer::default()).await?;
    while let Some(command) = controller.next().await? {
        let mut answer = match command {
            Command::Mark => {
                mark = ends(&consumer(&config)?, &config.topic)?;
                Answer::default()
            }
            Command::Load => {
                messages = load(&config, &mark).await?;
                Answer::default()
            }
            Command::Send { paced } => send(&config, &messages, paced).await?,
        };
        answer.messages = messages.len();
        answer.bytes = messages.iter().map(|message| message.payload.len()).sum();
        controller.answer(&answer).await?;
    }
    Ok(())
}

fn client(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.brokers);
    client
}

fn consumer(config: &Config) -> Result<StreamConsumer, Failure> {
    let mut client = client(config);
    client
        .set("group.id", "floor")
        .set("enable.auto.commit", "false");
    client.set("auto.offset.reset", "error");
    Ok(client.create()?)
}

fn ends(consumer: &StreamConsumer, topic: &str) -> Result<Offsets, Failure> {
    let metadata = consumer.fetch_metadata(Some(topic), TIMEOUT)?;
    let partitions = metadata
        .topics()
        .iter()
        .flat_map(|topic| topic.partitions());
    let ids = partitions.map(|partition| partition.id());
    ids.map(|id| {
        let (_, end) = consumer.fetch_watermarks(topic, id, TIMEOUT)?;
        Ok((id, end))
    })
    .collect()
}

fn assign(consumer: &StreamConsumer, topic: &str, from: &Offsets) -> Result<(), Failure> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in from {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(consumer.assign(&list)?)
}

/// Reads from the mark to the end, in the order of appending.
async fn load(config: &Config, mark: &Offsets) -> Result<Vec<Message>, Failure> {
    let consumer = consumer(config)?;
    let ends = ends(&consumer, &config.topic)?;
    let new = |(id, end): (&i32, &i64)| end - mark.get(id).unwrap_or(&0);
    let count: i64 = ends.iter().map(new).sum();
    assign(&consumer, &config.topic, mark)?;
    let (mut messages, mut bytes) = (Vec::new(), 0);
    while (messages.len() as i64) < count {
        let message = timeout(READ_TIMEOUT, consumer.recv()).await??;
        let payload = message.payload().unwrap_or_default().to_vec();
        bytes += payload.len();
        if bytes > MAX_BYTES {
            return Err("the run wrote more than 1 GiB: give fewer --events".into());
        }
        messages.push(Message {
            partition: message.partition(),
            appended: message.timestamp().to_millis().unwrap_or_default(),
            payload,
        });
    }
    messages.sort_by_key(|message| message.appended);
    Ok(messages)
}

async fn send(config: &Config, messages: &[Message], paced: bool) -> Result<Answer, Failure> {
    let consumer = consumer(config)?;
    assign(
        &consumer,
        &config.floor_topic,
        &ends(&consumer, &config.floor_topic)?,
    )?;
    let producer: FutureProducer = client(config)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("compression.type", "none")
        .set("message.max.bytes", (4 << 20).to_string())
        .create()?;
    let mut partitions: BTreeMap<i32, Vec<&Message>> = BTreeMap::new();
    for message in messages {
        partitions
            .entry(message.partition)
            .or_default()
            .push(message);
    }
    let sent: BTreeMap<i32, Mutex<VecDeque<u64>>> = partitions
        .keys()
        .map(|id| (*id, Mutex::default()))
        .collect();
    let first = messages.first().map_or(0, |message| message.appended);
    let (start, start_nanos) = (Instant::now(), now_nanos());
    let sending = try_join_all(partitions.iter().map(async |(id, messages)| {
        for message in messages {
            if paced {
                let after = (message.appended - first).unsigned_abs();
                sleep_until(start + Duration::from_millis(after)).await;
            }
            if let Ok(mut sent) = sent[id].lock() {
                sent.push_back(now_nanos());
            }
            let record: FutureRecord<'_, (), _> = FutureRecord::to(&config.floor_topic)
                .partition(*id)
                .payload(&message.payload);
            let delivered = producer.send(record, READ_TIMEOUT).await;
            delivered.map_err(|(error, _)| error)?;
        }
        Ok::<(), Failure>(())
    }));
    let reading = async {
        let mut samples = Samples::default();
        for _ in messages {
            let message = timeout(READ_TIMEOUT, consumer.recv()).await??;
            let at = sent
                .get(&message.partition())
                .and_then(|sent| sent.lock().ok()?.pop_front());
            samples.add(
                at.ok_or("a message was read that was not sent")?,
                now_nanos(),
            );
        }
        Ok::<_, Failure>((samples.take(), now_nanos()))
    };
    let (_, (latency, end_nanos)) = tokio::try_join!(sending, reading)?;
    Ok(Answer {
        seconds: end_nanos.saturating_sub(start_nanos) as f64 / 1e9,
        latency,
        ..Answer::default()
    })
}
