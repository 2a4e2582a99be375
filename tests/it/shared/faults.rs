//! Faults of everything at once: three brokers, a primary with a synchronous standby, and several
//! instances, under load.

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};
use test_services::{Kafka, KafkaOptions, Postgres, PostgresOptions, require};

use super::{cluster::Cluster, traffic::Traffic};
use crate::harness::{Process, parameter, print};

/// Longest duration of a fault: longer than a lease, and than the time-out of a write to the log.
const LONGEST: Duration = Duration::from_secs(15);

/// A fault, which ends with its recovery.
#[derive(Clone, Copy, Debug)]
enum Fault {
    KillInstance,
    RestartInstance,
    FreezeInstance,
    KillBroker,
    RestartBroker,
    PauseBroker,
    CutBroker,
    HangBroker,
    RestartDatabase,
    KillDatabase,
    PauseDatabase,
    PauseStandby,
    PromoteStandby,
}

const FAULTS: [Fault; 13] = [
    Fault::KillInstance,
    Fault::RestartInstance,
    Fault::FreezeInstance,
    Fault::KillBroker,
    Fault::RestartBroker,
    Fault::PauseBroker,
    Fault::CutBroker,
    Fault::HangBroker,
    Fault::RestartDatabase,
    Fault::KillDatabase,
    Fault::PauseDatabase,
    Fault::PauseStandby,
    Fault::PromoteStandby,
];

/// Everything that can fail.
struct Site {
    kafka: Kafka,
    /// The primary, then its standby.
    servers: [Postgres; 2],
    instances: Vec<Process>,
    cluster: Cluster,
    random: StdRng,
}

impl Site {
    async fn apply(&mut self, fault: Fault, traffic: &Traffic) {
        let node = self.random.random_range(1..=3);
        let index = self.random.random_range(0..self.instances.len());
        let duration = self.random.random_range(Duration::ZERO..LONGEST);
        let [primary, standby] = &self.servers;
        match fault {
            Fault::KillInstance => {
                self.instances.swap_remove(index).kill().await;
                self.replace_instance(duration, traffic).await;
            }
            Fault::RestartInstance => {
                self.instances.swap_remove(index).stop().await;
                self.replace_instance(duration, traffic).await;
            }
            Fault::FreezeInstance => {
                let instance = &self.instances[index];
                instance.signal("STOP").await;
                tokio::time::sleep(duration).await;
                instance.signal("CONT").await;
            }
            Fault::KillBroker => {
                self.kafka.kill(node).await;
                tokio::time::sleep(duration).await;
                self.kafka.start_again(node).await;
            }
            Fault::RestartBroker => {
                self.kafka.stop(node).await;
                tokio::time::sleep(duration).await;
                self.kafka.start_again(node).await;
            }
            Fault::PauseBroker => {
                self.kafka.pause(node);
                tokio::time::sleep(duration).await;
                self.kafka.resume(node);
            }
            Fault::CutBroker => {
                self.kafka.proxy(node).cut().await;
                tokio::time::sleep(duration).await;
                self.kafka.proxy(node).resume().await;
            }
            Fault::HangBroker => {
                self.kafka.proxy(node).hang().await;
                tokio::time::sleep(duration).await;
                self.kafka.proxy(node).resume().await;
            }
            Fault::RestartDatabase => {
                primary.stop().await;
                tokio::time::sleep(duration).await;
                primary.start_again().await;
            }
            Fault::KillDatabase => {
                primary.kill().await;
                tokio::time::sleep(duration).await;
                primary.start_again().await;
            }
            Fault::PauseDatabase => {
                primary.pause();
                tokio::time::sleep(duration).await;
                primary.resume();
            }
            Fault::PauseStandby => {
                standby.pause();
                tokio::time::sleep(duration).await;
                standby.resume();
            }
            Fault::PromoteStandby => {
                primary.kill().await;
                tokio::time::sleep(duration).await;
                standby.promote().await;
                // The former primary follows the new one, on its port.
                primary.follow(standby).await;
                self.servers.swap(0, 1);
            }
        }
    }

    async fn replace_instance(&mut self, after: Duration, traffic: &Traffic) {
        if !self.instances.is_empty() {
            traffic.use_instances(&self.instances.iter().collect::<Vec<_>>());
        }
        tokio::time::sleep(after).await;
        self.instances.push(self.cluster.start().await);
        traffic.use_instances(&self.instances.iter().collect::<Vec<_>>());
    }
}

/// After each fault every instance acks again by itself, and in the end no acked event is missing.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_everything_lose_no_acked_event() {
    let options = KafkaOptions {
        brokers: 3,
        proxied: true,
        settings: Vec::new(),
    };
    let Some(kafka) = require(Kafka::start_with(options).await) else {
        return;
    };
    let Some(primary) = require(Postgres::start_with(PostgresOptions::default()).await) else {
        return;
    };
    let standby = primary.add_standby().await;
    let cluster = Cluster::new(&kafka, &[&primary, &standby], primary.port()).await;
    let mut instances = Vec::new();
    for _ in 0..parameter("INSTANCES", 2) {
        instances.push(cluster.start().await);
    }
    instances[0].api.configure(&cluster.customer).await;
    let traffic = Traffic::start(&cluster, 4, &instances.iter().collect::<Vec<_>>());
    traffic.until_acked(100).await;

    let seed = parameter("SEED", 26);
    let mut site = Site {
        kafka,
        servers: [primary, standby],
        instances,
        cluster,
        random: StdRng::seed_from_u64(seed),
    };
    let mut order = Vec::new();
    for _ in 0..parameter("FAULTS", 10) {
        if order.is_empty() {
            order = FAULTS.to_vec();
            rand::seq::SliceRandom::shuffle(order.as_mut_slice(), &mut site.random);
        }
        let fault = order.pop().unwrap();
        let began = Instant::now();
        site.apply(fault, &traffic).await;
        let ended = began.elapsed();
        for instance in &site.instances {
            traffic.use_instances(&[instance]);
            traffic.until_acked(20).await;
        }
        traffic.use_instances(&site.instances.iter().collect::<Vec<_>>());
        print(&format!(
            "{fault:?}: {ended:?}, all resumed after {:?}",
            began.elapsed() - ended
        ));
    }
    traffic.check(&site.cluster, &site.instances[0].api).await;
}
