//! Workloads: the events, their distribution over organizations, and how they are published.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Failure, events::EventSource};

/// Method by which events are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rpc {
    Publish,
    PublishStream,
}

/// Distribution of events over organizations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Each event belongs to a random organization, all equally likely.
    Even,
    /// All events of a request belong to one random organization, all equally likely.
    Grouped,
    /// Each event belongs to a random organization, the n-th with a weight of 1/n.
    Zipf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub about: String,
    pub organizations: usize,
    pub mix: Mix,
    /// Sensors of each organization, which is the number of its partition keys.
    pub devices: u128,
    /// Published size of an event; None takes the events of `eve`.
    pub event_bytes: Option<usize>,
    pub eve: Option<PathBuf>,
    /// Events per request of a saturated run.
    pub batch: usize,
    /// Events per request of a run at a fixed rate.
    pub rate_batch: usize,
    pub rpc: Rpc,
    /// Connections of the loader.
    pub connections: usize,
    /// Unanswered requests on each connection.
    pub window: usize,
    /// Events of a saturated run, in tenths of the option `--events`; fewer where each event
    /// is expensive.
    pub tenths: u64,
}

impl Workload {
    fn named(name: &str, about: &str) -> Self {
        Self {
            name: name.to_owned(),
            about: about.to_owned(),
            organizations: 1,
            mix: Mix::Even,
            devices: 64,
            event_bytes: Some(400),
            eve: None,
            batch: 500,
            rate_batch: 100,
            rpc: Rpc::PublishStream,
            connections: 4,
            window: 8,
            tenths: 10,
        }
    }

    /// Returns the workload of `--growth` and `--backlog`.
    pub fn of_organizations(organizations: usize) -> Self {
        let name = format!("even-{organizations}");
        let about = format!("{organizations} integrations, even load, mixed in each request");
        Self {
            organizations,
            devices: if organizations == 1 { 64 } else { 4 },
            ..Self::named(&name, &about)
        }
    }

    pub fn event_source(&self) -> Result<EventSource, Failure> {
        match (self.event_bytes, &self.eve) {
            (Some(bytes), _) => Ok(EventSource::Generated { bytes }),
            (None, Some(path)) => EventSource::from_file(path),
            (None, None) => Err("the workload has neither an event size nor an EVE file".into()),
        }
    }

    /// Returns the id of an organization.
    pub fn organization(number: usize) -> String {
        format!("org-{number:06}")
    }
}

/// Returns all workloads in the order of the report.
pub fn all(eve: Option<PathBuf>) -> Vec<Workload> {
    let sized = |name: &str, bytes: usize, batch: usize, tenths: u64| Workload {
        event_bytes: Some(bytes),
        batch,
        tenths,
        rate_batch: batch.min(100),
        ..Workload::named(name, &format!("one integration, events of {bytes} B"))
    };
    let spread = |name: &str, about: &str, organizations: usize, mix: Mix| Workload {
        organizations,
        mix,
        devices: 4,
        ..Workload::named(name, about)
    };
    let single = |name: &str, about: &str, rpc: Rpc| Workload {
        rpc,
        window: 64,
        batch: 1,
        rate_batch: 1,
        tenths: 2,
        ..spread(name, about, 1000, Mix::Even)
    };
    let mut all = vec![
        Workload::named("one", "one integration, full batches"),
        spread(
            "even",
            "1,000 integrations, even load, mixed in each request",
            1000,
            Mix::Even,
        ),
        Workload {
            batch: 100,
            window: 16,
            ..spread(
                "even-grouped",
                "1,000 integrations, even load, each request with 100 events of one integration",
                1000,
                Mix::Grouped,
            )
        },
        spread(
            "zipf",
            "10,000 integrations, Zipf load, mixed in each request",
            10_000,
            Mix::Zipf,
        ),
        single(
            "single",
            "one event per Publish, 1,000 integrations",
            Rpc::Publish,
        ),
        single(
            "single-stream",
            "one event per request of PublishStream, 1,000 integrations",
            Rpc::PublishStream,
        ),
        sized("300b", 300, 500, 10),
        sized("700b", 700, 500, 10),
        sized("8kb", 8192, 250, 1),
    ];
    if eve.is_some() {
        all.push(Workload {
            event_bytes: None,
            eve,
            ..Workload::named("eve", "one integration, alerts of a real EVE file")
        });
    }
    all
}
