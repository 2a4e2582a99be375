//! The loads that are measured.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Failure, events::Source};

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rpc {
    Publish,
    PublishStream,
}

/// Whose events a request holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// Each event is of any organization, all alike.
    Even,
    /// All events of a request are of one organization, all alike.
    Grouped,
    /// Each event is of any organization, the n-th with a chance of 1/n.
    Zipf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub about: String,
    pub organizations: usize,
    pub mix: Mix,
    /// Sensors of each organization: so many partition keys.
    pub devices: u128,
    /// Bytes of an event as published; None means those of a real EVE file.
    pub event_bytes: Option<usize>,
    pub eve: Option<PathBuf>,
    /// Events of one request at the maximum rate, and far from it.
    pub batch: usize,
    pub rate_batch: usize,
    pub rpc: Rpc,
    /// Connections of the loader, and unanswered requests on each.
    pub connections: usize,
    pub window: usize,
    /// Tenths of what other workloads publish, where events are dear.
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

    pub fn source(&self) -> Result<Source, Failure> {
        match (self.event_bytes, &self.eve) {
            (Some(bytes), _) => Ok(Source::Made { bytes }),
            (None, Some(path)) => Source::real(path),
            (None, None) => Err("there is no EVE file".into()),
        }
    }

    pub fn organization(number: usize) -> String {
        format!("org-{number:06}")
    }

    /// Even load of so many organizations.
    pub fn of_organizations(organizations: usize) -> Self {
        let name = format!("even-{organizations}");
        let about = format!("{organizations} integrations, even load, mixed in each request");
        Self {
            organizations,
            devices: if organizations == 1 { 64 } else { 4 },
            ..Self::named(&name, &about)
        }
    }
}

/// All of them, in the order of the table.
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
    let single = |name: &str, about: &str, rpc: Rpc, connections: usize, window: usize| Workload {
        rpc,
        connections,
        window,
        batch: 1,
        rate_batch: 1,
        tenths: 2,
        ..Workload::named(name, about)
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
                "1,000 integrations, even load, 100 events of one in each request",
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
            "one event a Publish, 1,000 integrations",
            Rpc::Publish,
            4,
            64,
        ),
        single(
            "single-stream",
            "one event a request of PublishStream, 1,000 integrations",
            Rpc::PublishStream,
            4,
            64,
        ),
        sized("300b", 300, 500, 10),
        sized("700b", 700, 500, 10),
        sized("8kb", 8192, 250, 1),
    ];
    for workload in &mut all {
        if workload.name.starts_with("single") {
            workload.organizations = 1000;
            workload.devices = 4;
        }
    }
    if eve.is_some() {
        all.push(Workload {
            event_bytes: None,
            eve,
            ..Workload::named("eve", "one integration, the alerts of a real EVE file")
        });
    }
    all
}
