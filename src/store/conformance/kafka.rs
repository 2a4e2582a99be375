//! The log on Kafka with the model of a ledger, in the suites. Every engine has a topic of its
//! own; a crash drops the clients and connects anew.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    Checked, Content, Damage, Engine, Harness, Ports, call, ids, ledger, log,
    oracle::{Model, Oracle},
    owner,
};
use crate::{
    domain::integration::IntegrationId,
    store::{
        kafka::{KafkaLog, KafkaOptions, KafkaSecurity, Pace, create_topic},
        ports::{EventLog, Partition},
    },
};

/// Trimmed entries are deleted while a test runs, and readers follow at once.
const PACE: Pace = Pace {
    trim_interval: Duration::from_millis(20),
    fetch_wait: Duration::from_millis(20),
};
/// A new topic is not known to every part of a broker at once.
const TOPIC_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_millis(20);

/// Makes engines with new topics.
struct Kafka {
    broker: String,
    partitions: Partition,
}

struct KafkaEngine {
    options: KafkaOptions,
    partitions: Partition,
    model: Arc<Mutex<Model>>,
    log: Arc<KafkaLog>,
}

/// Whether to call once more after a failure.
async fn again(start: Instant) -> bool {
    sleep(RETRY).await;
    start.elapsed() < TOPIC_TIMEOUT
}

async fn open(options: &KafkaOptions) -> Checked<Arc<KafkaLog>> {
    let start = Instant::now();
    loop {
        match KafkaLog::open_with(options, PACE).await {
            Ok(log) => return Ok(Arc::new(log)),
            Err(_) if again(start).await => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[async_trait]
impl Harness for Kafka {
    async fn create(&self) -> Checked<Box<dyn Engine>> {
        let options = KafkaOptions {
            brokers: vec![self.broker.clone()],
            topic: format!("test-{}", Uuid::now_v7().simple()),
            security: KafkaSecurity::Plaintext,
            allow_single_replica: true,
        };
        call("create", create_topic(&options, self.partitions, Some(1))).await?;
        Ok(Box::new(KafkaEngine {
            log: open(&options).await?,
            options,
            partitions: self.partitions,
            model: Arc::default(),
        }))
    }
}

impl KafkaEngine {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the topic anew, with other entries.
    async fn recreate(&mut self, partition: Partition) -> Checked {
        let end = call("bounds", self.log.bounds(partition)).await?.end;
        self.log.close().await;
        call("delete", self.log.delete_topic()).await?;
        let start = Instant::now();
        while let Err(error) = create_topic(&self.options, self.partitions, Some(1)).await {
            if !again(start).await {
                return Err(error.to_string());
            }
        }
        let log = open(&self.options).await?;
        let mut content = Content::new(0x616e_6577);
        let entries = (1..end.0).map(|_| content.entry(&ids(1))).collect();
        call("append", log.append(partition, entries)).await?;
        log.close().await;
        Ok(())
    }
}

#[async_trait]
impl Engine for KafkaEngine {
    fn ports(&self) -> Ports {
        let oracle = Arc::new(Oracle::open(self.model.clone(), self.partitions));
        Ports {
            log: self.log.clone(),
            ledger: oracle.clone(),
            acquire: oracle,
        }
    }

    async fn crash(&mut self) -> Checked {
        self.log = open(&self.options).await?;
        Ok(())
    }

    async fn add_integration(&self, id: IntegrationId, partition: Partition) -> Checked {
        self.model().integrations.insert(id, partition);
        Ok(())
    }

    async fn delete_integration(&self, id: IntegrationId) -> Checked {
        self.model().integrations.remove(&id);
        Ok(())
    }

    async fn damage(&mut self, damage: Damage) -> Checked<bool> {
        match damage {
            Damage::Recreated(partition) => {
                self.recreate(partition).await?;
                Ok(true)
            }
            Damage::Backlog(id, first_sequence) => {
                self.model().damaged.insert((id, first_sequence));
                Ok(true)
            }
            Damage::Payload(..)
            | Damage::Header(..)
            | Damage::Lost(..)
            | Damage::PositionsForgotten => Ok(false),
        }
    }
}

/// Harnesses with one partition and with several; none without Kafka.
async fn harnesses() -> impl Iterator<Item = Kafka> {
    let kafka = test_services::require(test_services::shared_kafka().await);
    let broker = kafka.map(test_services::Kafka::bootstrap);
    broker.into_iter().flat_map(|broker| {
        [1, 3].map(|partitions| Kafka {
            broker: broker.clone(),
            partitions,
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_conforms() {
    for kafka in harnesses().await {
        assert_eq!(log::suite(&kafka, 3).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_conforms() {
    for kafka in harnesses().await {
        assert_eq!(ledger::suite(&kafka, 3).await, Ok(()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_loses_nothing() {
    for kafka in harnesses().await {
        assert_eq!(owner::suite(&kafka, 3).await, Ok(()));
    }
}
