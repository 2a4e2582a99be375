//! What an event must be to be accepted.

use std::{borrow::Cow, fmt, net::IpAddr};

use uuid::Uuid;

use super::{
    Detection, Event, MAX_CONTEXT_DEPTH, MAX_VLANS, Payload, Time, Vlans,
    context::{Context, Problem},
};
use crate::domain::organization;

/// The highest VLAN identifier (IEEE 802.1Q has 12 bits).
pub const MAX_VLAN_ID: u32 = 4_095;

const UUID_FORM: &str = "is not a UUID in its hyphenated form, such as \
     0198c0de-7a11-7000-8000-00000000002a";

/// Why one event is refused: its first problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Rejection {
    /// The kind of problem.
    pub reason: RejectionReason,
    /// The path of the field, such as `ids_detection.src_ip`; empty where it is the
    /// whole event.
    pub field: Cow<'static, str>,
    /// What is wrong and what to do. It never repeats what was given.
    pub message: Cow<'static, str>,
}

/// The kind of problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectionReason {
    /// A required field was not given.
    MissingField,
    /// A field holds what it may not.
    InvalidField,
    /// The record would exceed what Kinesis takes.
    RecordTooLarge,
    /// The bytes are not an event.
    MalformedEvent,
}

impl Rejection {
    /// Puts a rejection together.
    pub fn new(
        reason: RejectionReason,
        field: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            reason,
            field: field.into(),
            message: message.into(),
        }
    }

    #[cold]
    fn missing(field: &'static str, message: &'static str) -> Self {
        Self::new(RejectionReason::MissingField, field, message)
    }

    #[cold]
    fn invalid(field: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(RejectionReason::InvalidField, field, message)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.field {
            "" => write!(f, "the event {}", self.message),
            field => write!(f, "{field} {}", self.message),
        }
    }
}

/// An event that may be stored.
#[derive(Debug, Clone)]
pub struct ValidEvent<'a> {
    pub(super) organization_id: &'a str,
    pub(super) network: Uuid,
    pub(super) device: Uuid,
    pub(super) time: Time,
    pub(super) event_id: Option<Uuid>,
    pub(super) detection: &'a Detection<'a>,
    pub(super) context: Option<Context<'a>>,
}

impl<'a> ValidEvent<'a> {
    /// The organization it belongs to: a valid organization id.
    pub fn organization_id(&self) -> &'a str {
        self.organization_id
    }

    /// The network in which it happened; the CloudEvent's subject.
    pub fn network(&self) -> Uuid {
        self.network
    }

    /// The sensor that saw it; the record's partition key.
    pub fn device(&self) -> Uuid {
        self.device
    }

    /// When the sensor saw it.
    pub fn time(&self) -> Time {
        self.time
    }
}

impl<'a> Event<'a> {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first problem, in the order of the fields.
    pub fn validate(&'a self) -> Result<ValidEvent<'a>, Rejection> {
        check_organization(self.organization_id)?;
        let network = required_uuid("network_id", self.network_id)?;
        let device = required_uuid("device_id", self.device_id)?;
        let time = self.check_time()?;
        let event_id = match self.event_id {
            None => None,
            Some(text) => Some(parse_uuid(text).ok_or_else(|| {
                Rejection::invalid("event_id", format!("{UUID_FORM}; or leave it unset"))
            })?),
        };
        let Some(Payload::Detection(detection)) = &self.payload else {
            return Err(Rejection::missing(
                "payload",
                "is required: set ids_detection",
            ));
        };
        Ok(ValidEvent {
            organization_id: self.organization_id,
            network,
            device,
            time,
            event_id,
            context: check_detection(detection)?,
            detection,
        })
    }

    fn check_time(&self) -> Result<Time, Rejection> {
        let given = self.observed_time.ok_or_else(|| {
            Rejection::missing(
                "observed_time",
                "is required: give when the sensor saw the event",
            )
        })?;
        Time::new(given.seconds, given.nanos).ok_or_else(|| {
            Rejection::invalid(
                "observed_time",
                "is not within the years 0001 to 9999 with nanos of 0 to 999999999",
            )
        })
    }
}

fn check_organization(id: &str) -> Result<(), Rejection> {
    use organization::OrganizationIdError as Error;
    organization::check(id).map_err(|error| match error {
        Error::Empty => Rejection::new(
            RejectionReason::MissingField,
            "organization_id",
            error.to_string(),
        ),
        Error::TooLong | Error::Character(_) => {
            Rejection::invalid("organization_id", error.to_string())
        }
    })
}

fn required_uuid(field: &'static str, text: &str) -> Result<Uuid, Rejection> {
    if text.is_empty() {
        return Err(Rejection::missing(field, "is required: give a UUID"));
    }
    parse_uuid(text).ok_or_else(|| Rejection::invalid(field, UUID_FORM))
}

/// Of the forms that the parser takes only the hyphenated one has this length.
fn parse_uuid(text: &str) -> Option<Uuid> {
    (text.len() == 36)
        .then(|| Uuid::try_parse(text).ok())
        .flatten()
}

fn check_detection<'a>(detection: &Detection<'a>) -> Result<Option<Context<'a>>, Rejection> {
    check_ip("ids_detection.src_ip", detection.src_ip)?;
    check_port("ids_detection.src_port", detection.src_port)?;
    check_ip("ids_detection.dest_ip", detection.dest_ip)?;
    check_port("ids_detection.dest_port", detection.dest_port)?;
    check_vlans(&detection.vlan)?;
    if detection.context_json.is_empty() {
        return Ok(None);
    }
    Context::check(detection.context_json)
        .map(Some)
        .map_err(context_rejection)
}

fn check_ip(field: &'static str, text: &str) -> Result<(), Rejection> {
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(Rejection::invalid(
        field,
        "is not an IPv4 or IPv6 address, such as 192.0.2.1 or 2001:db8::1; or leave it empty",
    ))
}

fn check_port(field: &'static str, port: Option<u32>) -> Result<(), Rejection> {
    match port {
        Some(65_536..) => Err(Rejection::invalid(
            field,
            "is above 65535; leave it unset where the protocol has no ports",
        )),
        _ => Ok(()),
    }
}

fn check_vlans(vlans: &Vlans) -> Result<(), Rejection> {
    if vlans.count() > MAX_VLANS {
        return Err(Rejection::invalid(
            "ids_detection.vlan",
            format!("has more than {MAX_VLANS} identifiers; give the outermost ones"),
        ));
    }
    match vlans.ids().iter().position(|&id| id > MAX_VLAN_ID) {
        Some(at) => Err(Rejection::invalid(
            format!("ids_detection.vlan[{at}]"),
            format!("is above {MAX_VLAN_ID}"),
        )),
        None => Ok(()),
    }
}

#[cold]
fn context_rejection(problem: Problem) -> Rejection {
    let message = match problem {
        Problem::NotAnObject => Cow::Borrowed(
            "is not a JSON object: give text that starts with { and ends with }, or leave it empty",
        ),
        Problem::TooDeep => Cow::Owned(format!(
            "nests objects and arrays deeper than {MAX_CONTEXT_DEPTH} levels; flatten it"
        )),
        Problem::Invalid(at) => {
            Cow::Owned(format!("is not valid JSON at byte {at}; give one object"))
        }
        Problem::LoneSurrogate(at) => Cow::Owned(format!(
            "has an escape of a lone surrogate (\\ud800 to \\udfff without its other half) at byte \
             {at}, which is no character; give \\ufffd in its place"
        )),
    };
    Rejection::invalid("ids_detection.context_json", message)
}

#[cfg(test)]
mod tests;
