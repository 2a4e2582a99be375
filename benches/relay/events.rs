//! Events that are published: detections, and Publish requests that are encoded before the
//! measurement. Only the time of sending is inserted later; the sink reads it back as the
//! CloudEvents attribute `time` and so measures how long an event took.

use std::{fs, path::Path};

use bytes::Bytes;
use prost::Message;
use rand::{
    Rng, SeedableRng,
    distr::{Distribution, weighted::WeightedIndex},
    rngs::StdRng,
};
use siem_client::v1::{self, event::Payload};
use siem_relay::{
    api::event_decoder::decode_event,
    domain::event::{Format, RecordHead, render_record},
    publish::eve::{Origin, Record, parse},
};
use uuid::Uuid;

use super::{
    Failure,
    workload::{Mix, Rpc, Workload},
};

/// Length of the encoded field `observed_time`, which is constant here, so that the time of
/// sending can be inserted later.
const TIME_LENGTH: usize = 14;
/// Limits of the distinct events of a workload, by number and in all.
const MAX_EVENTS: usize = 100_000;
const MAX_BYTES: usize = 64 << 20;
/// Events of the requests that precede the measurement.
const WARMUP_BATCH: usize = 100;
/// Constant, so that every run publishes the same events.
const SEED: u64 = 7;

const SIGNATURES: [(&str, &str); 6] = [
    ("ET SCAN Potential SSH Scan", "Attempted Information Leak"),
    (
        "ET POLICY Outbound TLS connection to a rare destination",
        "Potential Corporate Privacy Violation",
    ),
    (
        "ET MALWARE Beacon over HTTP with a fixed interval",
        "A Network Trojan was detected",
    ),
    ("GPL ICMP_INFO PING BSDtype", "Misc activity"),
    (
        "ET WEB_SERVER Possible SQL Injection Attempt SELECT FROM",
        "Web Application Attack",
    ),
    (
        "ET DNS Query to a domain of a dynamic DNS provider",
        "Potentially Bad Traffic",
    ),
];

/// Origin of detections.
pub enum EventSource {
    /// Random detections, with which an event is of about this size as published, or as
    /// short as a detection can be.
    Generated { bytes: usize },
    /// Alerts of an EVE file, drawn at random.
    File(Vec<v1::IdsDetection>),
}

impl EventSource {
    pub fn from_file(path: &Path) -> Result<Self, Failure> {
        let origin = Origin::new("any", Uuid::nil(), Uuid::nil());
        let text = fs::read_to_string(path)?;
        let detections: Vec<_> = text
            .lines()
            .filter_map(|line| match parse(line, &origin) {
                Ok(Record::Alert(event)) => event.payload,
                Ok(Record::Other(_)) | Err(_) => None,
            })
            .map(|Payload::IdsDetection(detection)| detection)
            .collect();
        match detections.is_empty() {
            true => Err(format!("{} has no alert", path.display()).into()),
            false => Ok(Self::File(detections)),
        }
    }

    /// Returns an encoded event. Its last [`TIME_LENGTH`] bytes are `observed_time`.
    pub fn event(&self, rng: &mut StdRng, organization_id: &str, device: u128) -> Vec<u8> {
        let mut event = v1::Event {
            organization_id: organization_id.to_owned(),
            network_id: Uuid::from_u128(0x6f96_19ff_8b86_4d01_b42d_00cf_4fc9_64ff).to_string(),
            device_id: Uuid::from_u128(0x7d44_4840_9dc0_41d1_b245_0000_0000_0000 | device)
                .to_string(),
            observed_time: None,
            event_id: None,
            payload: None,
        };
        let detection = match self {
            Self::File(all) => all[rng.random_range(0..all.len())].clone(),
            Self::Generated { bytes } => generate(rng, &mut event, *bytes),
        };
        event.payload = Some(Payload::IdsDetection(detection));
        let mut encoded = event.encode_to_vec();
        let length = encoded.len() + TIME_LENGTH;
        encoded.resize(length, 0);
        write_time(&mut encoded[length - TIME_LENGTH..], 0);
        encoded
    }
}

/// Returns a detection with which the encoded event has about this length.
fn generate(rng: &mut StdRng, event: &mut v1::Event, bytes: usize) -> v1::IdsDetection {
    let mut detection = detection(rng);
    event.payload = Some(Payload::IdsDetection(detection.clone()));
    let minimum = event.encoded_len() + TIME_LENGTH;
    // Tag and length of `context_json`, and the longer lengths of the enclosing messages.
    if let Some(missing) = bytes.checked_sub(minimum + 8) {
        detection.context_json = context(rng, missing);
    }
    detection
}

fn detection(rng: &mut StdRng) -> v1::IdsDetection {
    let (signature, category) = SIGNATURES[rng.random_range(0..SIGNATURES.len())];
    v1::IdsDetection {
        src_ip: format!("192.0.2.{}", rng.random_range(1..255)),
        src_port: Some(rng.random_range(1024..65535)),
        dest_ip: format!("198.51.100.{}", rng.random_range(1..255)),
        dest_port: Some(443),
        proto: "TCP".to_owned(),
        app_proto: "tls".to_owned(),
        flow_id: Some(rng.random_range(1 << 49..1 << 51)),
        direction: "to_server".to_owned(),
        action: "allowed".to_owned(),
        gid: Some(1),
        signature_id: Some(rng.random_range(2_000_000..2_060_000)),
        rev: Some(rng.random_range(1..20)),
        signature: Some(signature.to_owned()),
        category: Some(category.to_owned()),
        severity: Some(rng.random_range(1..4)),
        ..Default::default()
    }
}

/// Returns a JSON object of exactly this length, or an empty string if the length is too
/// small for one.
fn context(rng: &mut StdRng, length: usize) -> String {
    const LAST: &str = r#""note":""}"#;
    let mut text = "{".to_owned();
    let parts = [
        ("flow", "pkts_toserver", "bytes_toserver"),
        ("tls", "version_code", "notbefore_days"),
        ("http", "status", "length"),
        ("stats", "decoder_pkts", "decoder_bytes"),
    ];
    for number in 0.. {
        let (name, first, second) = parts[number % parts.len()];
        let part = format!(
            r#""{name}_{number}":{{"{first}":{},"{second}":{},"hostname":"host-{}.example.com"}},"#,
            rng.random_range(1..900),
            rng.random_range(60..90_000),
            rng.random_range(0..100_000),
        );
        if text.len() + part.len() + LAST.len() > length {
            break;
        }
        text += &part;
    }
    let Some(missing) = length.checked_sub(text.len() + LAST.len()) else {
        return String::new();
    };
    let note: String = (0..missing)
        .map(|_| char::from(b'a' + rng.random_range(0..26)))
        .collect();
    text + &LAST.replace(r#""}"#, &format!(r#"{note}"}}"#))
}

/// Writes field 4, a `google.protobuf.Timestamp` of two varints of five bytes each.
fn write_time(out: &mut [u8], nanos: u64) {
    out[..3].copy_from_slice(&[0x22, 12, 0x08]);
    write_varint(&mut out[3..8], nanos / 1_000_000_000);
    out[8] = 0x10;
    write_varint(&mut out[9..14], nanos % 1_000_000_000);
}

/// Writes five bytes for any value, padded as the wire format allows.
fn write_varint(out: &mut [u8], mut value: u64) {
    for byte in &mut out[..4] {
        *byte = value as u8 | 0x80;
        value >>= 7;
    }
    out[4] = value as u8 & 0x7f;
}

/// Returns the record that the service writes to Kinesis for an encoded event.
pub fn record(event: &[u8], sequence: u64) -> Result<Vec<u8>, Failure> {
    let event = decode_event(event)?;
    let valid = event.validate().map_err(|rejection| {
        format!("the service rejects an event of the benchmark: {rejection:?}")
    })?;
    let format = Format::new("https://meter.com", "com.meter")?;
    let mut stored = Vec::new();
    valid.store(&format, &mut stored).map_err(|rejection| {
        format!("the service rejects an event of the benchmark: {rejection:?}")
    })?;
    let mut record = Vec::new();
    render_record(
        &RecordHead::new(Uuid::nil()),
        sequence,
        &stored,
        &mut record,
    )?;
    Ok(record)
}

/// Encoded request without its times.
pub struct EncodedRequest {
    bytes: Vec<u8>,
    /// Offset of each event's time.
    times: Vec<usize>,
}

impl EncodedRequest {
    fn new(rpc: Rpc, events: &[Vec<u8>]) -> Self {
        // Tag of the repeated field `events`: number 1 in PublishRequest, 2 in
        // PublishStreamRequest.
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

    /// Returns the request with a time of sending in nanoseconds since 1970.
    pub fn sent_at(&self, nanos: u64) -> Bytes {
        let mut bytes = self.bytes.clone();
        for &at in &self.times {
            write_time(&mut bytes[at..at + TIME_LENGTH], nanos);
        }
        bytes.into()
    }
}

/// Returns a request with only the events of these indices, which rise. The events keep their
/// times.
pub fn select_events(request: &Bytes, indices: &[u32]) -> Result<Bytes, Failure> {
    let (mut rest, mut selected) = (request.clone(), Vec::new());
    let mut index = 0;
    while !rest.is_empty() {
        let mut event = rest.slice(1..);
        let length = prost::decode_length_delimiter(&mut event)?;
        let field = rest.split_to(rest.len() - event.len() + length);
        if indices.binary_search(&index).is_ok() {
            selected.extend_from_slice(&field);
        }
        index += 1;
    }
    Ok(selected.into())
}

/// Returns the requests of a workload, which the loader sends over and over.
pub fn requests(workload: &Workload, batch: usize) -> Result<Vec<EncodedRequest>, Failure> {
    let source = workload.event_source()?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let organizations = organization_weights(workload)?;
    let (mut requests, mut events, mut bytes) = (Vec::new(), 0, 0);
    while events < MAX_EVENTS && bytes < MAX_BYTES {
        let only = organizations.sample(&mut rng);
        let encoded: Vec<Vec<u8>> = (0..batch)
            .map(|_| {
                let organization = match workload.mix {
                    Mix::Grouped => only,
                    Mix::Even | Mix::Zipf => organizations.sample(&mut rng),
                };
                let device = rng.random_range(0..workload.devices);
                source.event(&mut rng, &Workload::organization(organization), device)
            })
            .collect();
        let request = EncodedRequest::new(workload.rpc, &encoded);
        events += batch;
        bytes += request.bytes.len();
        requests.push(request);
    }
    Ok(requests)
}

/// Returns requests with one event of each organization.
pub fn warmup_requests(workload: &Workload) -> Result<Vec<EncodedRequest>, Failure> {
    let source = workload.event_source()?;
    let mut rng = StdRng::seed_from_u64(SEED);
    let events: Vec<Vec<u8>> = (0..workload.organizations)
        .map(|number| source.event(&mut rng, &Workload::organization(number), 0))
        .collect();
    let request = |events: &[Vec<u8>]| EncodedRequest::new(workload.rpc, events);
    Ok(events.chunks(WARMUP_BATCH).map(request).collect())
}

fn organization_weights(workload: &Workload) -> Result<WeightedIndex<f64>, Failure> {
    let weights = (0..workload.organizations).map(|number| match workload.mix {
        Mix::Even | Mix::Grouped => 1.0,
        Mix::Zipf => 1.0 / (number + 1) as f64,
    });
    Ok(WeightedIndex::new(weights)?)
}
