//! Publish requests, encoded before anything is measured. Only the time of sending
//! is put in later, so that the sink can tell how long an event took.

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Failure,
    events::{TIME_LENGTH, write_time},
    workload::{Mix, Rpc, Workload},
};

/// Events that differ, at the most, and bytes of them.
const EVENTS: usize = 100_000;
const BYTES: usize = 64 << 20;
/// Every run of every process publishes the same.
const SEED: u64 = 7;

/// One encoded request.
pub struct Frame {
    bytes: Vec<u8>,
    times: Vec<usize>,
}

impl Frame {
    fn new(rpc: Rpc, events: &[Vec<u8>]) -> Self {
        let tag = match rpc {
            Rpc::Publish => 0x0a,
            Rpc::PublishStream => 0x12,
        };
        let (mut bytes, mut times) = (Vec::new(), Vec::new());
        for event in events {
            bytes.push(tag);
            prost::encode_length_delimiter(event.len(), &mut bytes).unwrap_or_default();
            bytes.extend_from_slice(event);
            times.push(bytes.len() - TIME_LENGTH);
        }
        Self { bytes, times }
    }

    pub fn events(&self) -> u64 {
        self.times.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The request as sent at a time, in nanoseconds since 1970.
    pub fn sent_at(&self, nanos: u64) -> Bytes {
        let mut bytes = self.bytes.clone();
        for &at in &self.times {
            write_time(&mut bytes[at..at + TIME_LENGTH], nanos);
        }
        bytes.into()
    }
}

/// The requests of a workload, to be sent in turn, again and again.
pub fn frames(workload: &Workload, batch: usize) -> Result<Vec<Frame>, Failure> {
    let source = workload.source()?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let shares = Shares::new(workload);
    let (mut frames, mut events, mut bytes) = (Vec::new(), 0, 0);
    while events < EVENTS && bytes < BYTES {
        let group = shares.draw(&mut rng);
        let encoded: Vec<Vec<u8>> = (0..batch)
            .map(|_| {
                let organization = match workload.mix {
                    Mix::Grouped => group,
                    Mix::Even | Mix::Zipf => shares.draw(&mut rng),
                };
                let device = rng.random_range(0..workload.devices);
                source.event(&mut rng, &Workload::organization(organization), device)
            })
            .collect();
        let frame = Frame::new(workload.rpc, &encoded);
        events += batch;
        bytes += frame.bytes.len();
        frames.push(frame);
    }
    Ok(frames)
}

/// One event of each organization.
pub fn greetings(workload: &Workload) -> Result<Vec<Frame>, Failure> {
    let source = workload.source()?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let events: Vec<Vec<u8>> = (0..workload.organizations)
        .map(|number| source.event(&mut rng, &Workload::organization(number), 0))
        .collect();
    let frame = |events: &[Vec<u8>]| Frame::new(workload.rpc, events);
    Ok(events.chunks(100).map(frame).collect())
}

/// Whose turn it is.
struct Shares {
    /// Of each organization, its own weight and that of all before it.
    sums: Vec<f64>,
}

impl Shares {
    fn new(workload: &Workload) -> Self {
        let weight = |number: usize| match workload.mix {
            Mix::Even | Mix::Grouped => 1.0,
            Mix::Zipf => 1.0 / (number + 1) as f64,
        };
        let sums = (0..workload.organizations).scan(0.0, |sum, number| {
            *sum += weight(number);
            Some(*sum)
        });
        Self {
            sums: sums.collect(),
        }
    }

    fn draw(&self, rng: &mut StdRng) -> usize {
        let all = self.sums.last().copied().unwrap_or_default();
        let point = rng.random::<f64>() * all;
        let found = self.sums.partition_point(|sum| *sum <= point);
        found.min(self.sums.len().saturating_sub(1))
    }
}
