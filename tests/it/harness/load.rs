//! Events to publish.

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1::{self, event::Payload};
use uuid::Uuid;

/// An event of a [`Load`], by the attributes that identify it in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub event_id: Uuid,
    pub device: Uuid,
    /// Position among all events of its load, from 1.
    pub number: u32,
}

/// A generator of events of one organization's devices, each event with its own id and number.
pub struct Load {
    organization_id: String,
    devices: Vec<Uuid>,
    random: StdRng,
    /// Every event so far, in order.
    pub made: Vec<Published>,
}

impl Load {
    pub fn new(organization_id: &str, devices: usize, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        Self {
            organization_id: organization_id.to_owned(),
            devices: (0..devices).map(|_| random_uuid(&mut random)).collect(),
            random,
            made: Vec::new(),
        }
    }

    pub fn events(&mut self, count: usize) -> Vec<v1::Event> {
        (0..count).map(|_| self.event()).collect()
    }

    fn event(&mut self) -> v1::Event {
        let published = Published {
            event_id: random_uuid(&mut self.random),
            device: self.devices[self.random.random_range(0..self.devices.len())],
            number: self.made.len() as u32 + 1,
        };
        let event = v1::Event {
            event_id: Some(published.event_id.to_string()),
            device_id: published.device.to_string(),
            payload: Some(Payload::IdsDetection(detection(published.number))),
            ..event(&self.organization_id)
        };
        self.made.push(published);
        event
    }
}

fn random_uuid(random: &mut StdRng) -> Uuid {
    uuid::Builder::from_random_bytes(random.random()).into_uuid()
}

/// An event with every required field.
pub fn event(organization_id: &str) -> v1::Event {
    v1::Event {
        organization_id: organization_id.to_owned(),
        network_id: "0d6f3c52-6f0c-4f0b-8a4c-27a1f4dd0c11".to_owned(),
        device_id: "9a1e7a3e-53c1-4a57-9a54-1b6d1d6e2f22".to_owned(),
        observed_time: Some(prost_types::Timestamp {
            seconds: 1_767_225_600,
            nanos: 123_456_000,
        }),
        event_id: None,
        payload: Some(Payload::IdsDetection(detection(1))),
    }
}

/// A detection by the rule with this signature id.
pub fn detection(number: u32) -> v1::IdsDetection {
    v1::IdsDetection {
        src_ip: "192.0.2.7".to_owned(),
        src_port: Some(51_344),
        dest_ip: "2001:db8::17".to_owned(),
        dest_port: Some(443),
        proto: "TCP".to_owned(),
        app_proto: "tls".to_owned(),
        flow_id: Some(1_234_567_890_123_456_789),
        action: "allowed".to_owned(),
        gid: Some(1),
        signature_id: Some(number),
        rev: Some(3),
        signature: Some("ET TEST Größe \"quoted\" 試験".to_owned()),
        category: Some("Misc activity".to_owned()),
        severity: Some(3),
        context_json: r#"{"tls":{"sni":"www.example.com","big":12345678901234567890.10}}"#
            .to_owned(),
        ..v1::IdsDetection::default()
    }
}
