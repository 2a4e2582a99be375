//! Floor of shared storage (`log floor`): rdkafka alone. It reads the entries that the service
//! wrote in a run, and then produces them to another topic and reads them there once, with the
//! service's guarantees: acks=all, idempotence, one message of a partition in flight. Nothing is
//! compressed again.

#[cfg(feature = "kafka")]
mod kafka;

use serde::{Deserialize, Serialize};

#[cfg(feature = "kafka")]
pub use self::kafka::run;
use super::{
    Failure,
    process::{Child, Role},
    stats::Latency,
};

#[cfg(not(feature = "kafka"))]
pub async fn run(_config: Config) -> Result<(), Failure> {
    Err("shared storage needs `cargo bench --features kafka`".into())
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    brokers: String,
    topic: String,
    floor_topic: String,
}

/// Command; each is answered with an [`Answer`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    /// Notes the end of the service's topic.
    Mark,
    /// Reads the service's topic from the mark.
    Load,
    /// Produces and reads what was loaded, as fast as possible or at the rate at which the
    /// service wrote it.
    Send { paced: bool },
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    pub messages: usize,
    pub bytes: usize,
    pub seconds: f64,
    pub latency: Latency,
}

/// The floor, as seen from the measuring process.
pub struct LogFloor(Child);

impl LogFloor {
    pub async fn start(log_url: &str, floor_url: &str) -> Result<Self, Failure> {
        let parts = |url: &str| -> Result<(String, String), Failure> {
            let rest = url.strip_prefix("kafka://").ok_or("not kafka://")?;
            let (brokers, topic) = rest.split_once('/').ok_or("no topic")?;
            Ok((brokers.to_owned(), topic.to_owned()))
        };
        let (brokers, topic) = parts(log_url)?;
        let (_, floor_topic) = parts(floor_url)?;
        let role = Role::LogFloor(Config {
            brokers,
            topic,
            floor_topic,
        });
        let (child, Answer { .. }) = Child::start(role).await?;
        Ok(Self(child))
    }

    pub async fn mark(&mut self) -> Result<(), Failure> {
        self.0.call(&Command::Mark).await.map(|Answer { .. }| ())
    }

    pub async fn load(&mut self) -> Result<Answer, Failure> {
        self.0.call(&Command::Load).await
    }

    /// Returns also the CPU seconds of the floor.
    pub async fn send(&mut self, paced: bool) -> Result<(Answer, f64), Failure> {
        let before = self.0.usage()?;
        let answer = self.0.call(&Command::Send { paced }).await?;
        Ok((answer, self.0.usage()?.cpu_seconds - before.cpu_seconds))
    }
}
