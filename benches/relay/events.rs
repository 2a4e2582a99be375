//! The detections that are published.

use std::{fs, path::Path};

use prost::Message;
use rand::{Rng, rngs::StdRng};
use siem_client::v1::{self, event::Payload};
use siem_relay::{
    api::event_decoder::decode_event,
    domain::event::{Format, RecordHead, render_record},
    publish::eve::{Origin, Record, parse},
};
use uuid::Uuid;

use super::Failure;

/// Bytes of the field `observed_time` as it is laid out here: always the same, so
/// that the time of sending can be put in later.
pub const TIME_LENGTH: usize = 14;

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

/// Where events come from.
pub enum Source {
    /// Of so many bytes as published, or the least that a detection takes.
    Made { bytes: usize },
    /// The alerts of an EVE file.
    Real(Vec<v1::IdsDetection>),
}

impl Source {
    pub fn real(path: &Path) -> Result<Self, Failure> {
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
            true => Err(format!("{} holds no alert", path.display()).into()),
            false => Ok(Self::Real(detections)),
        }
    }

    /// An encoded event without its time, which is the last [`TIME_LENGTH`] bytes.
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
            Self::Real(all) => all[rng.random_range(0..all.len())].clone(),
            Self::Made { bytes } => made(rng, &mut event, *bytes),
        };
        event.payload = Some(Payload::IdsDetection(detection));
        let mut encoded = event.encode_to_vec();
        let length = encoded.len() + TIME_LENGTH;
        encoded.resize(length, 0);
        write_time(&mut encoded[length - TIME_LENGTH..], 0);
        encoded
    }
}

/// A detection with which the event is about so long.
fn made(rng: &mut StdRng, event: &mut v1::Event, bytes: usize) -> v1::IdsDetection {
    let mut detection = detection(rng);
    event.payload = Some(Payload::IdsDetection(detection.clone()));
    let bare = event.encoded_len() + TIME_LENGTH;
    // Tag and length of the text, and the longer lengths of what holds it.
    if let Some(missing) = bytes.checked_sub(bare + 8) {
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

/// A JSON object of exactly so many bytes, or nothing where that is too few for one.
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

/// Field 4, a `google.protobuf.Timestamp` of two varints of five bytes each.
pub fn write_time(out: &mut [u8], nanos: u64) {
    out[..3].copy_from_slice(&[0x22, 12, 0x08]);
    write_varint(&mut out[3..8], nanos / 1_000_000_000);
    out[8] = 0x10;
    write_varint(&mut out[9..14], nanos % 1_000_000_000);
}

/// Five bytes whatever the value, which the wire format allows.
fn write_varint(out: &mut [u8], mut value: u64) {
    for byte in &mut out[..4] {
        *byte = value as u8 | 0x80;
        value >>= 7;
    }
    out[4] = value as u8 & 0x7f;
}

/// The record that the service makes of an event.
pub fn record(event: &[u8], sequence: u64) -> Result<Vec<u8>, Failure> {
    let event = decode_event(event)?;
    let valid = event
        .validate()
        .map_err(|rejection| format!("the service rejects its event: {rejection:?}"))?;
    let format = Format::new("https://meter.com", "com.meter")?;
    let mut stored = Vec::new();
    valid
        .store(&format, &mut stored)
        .map_err(|rejection| format!("the service rejects its event: {rejection:?}"))?;
    let mut record = Vec::new();
    render_record(
        &RecordHead::new(Uuid::nil()),
        sequence,
        &stored,
        &mut record,
    )?;
    Ok(record)
}
