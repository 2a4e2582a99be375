//! Validation of published events.

use std::{borrow::Cow, fmt, net::IpAddr};

use uuid::Uuid;

use super::{
    Detection, Event, MAX_CONTEXT_DEPTH, MAX_VLANS, Payload, Time, Vlans,
    context::{Context, Problem},
};
use crate::domain::organization;

/// The highest VLAN identifier (IEEE 802.1Q has 12 bits).
pub const MAX_VLAN_ID: u32 = 4_095;

const UUID_FORM: &str = "is not a UUID in hyphenated form, such as \
     0198c0de-7a11-7000-8000-00000000002a";

/// Rejection of one event, for its first problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Rejection {
    /// Kind of problem.
    pub reason: RejectionReason,
    /// Path of the field, such as `ids_detection.src_ip`; empty if the problem concerns the
    /// whole event.
    pub field: Cow<'static, str>,
    /// Description and remedy. It never contains the value that was given.
    pub message: Cow<'static, str>,
}

named_enum! {
    /// Kind of problem of a rejected event.
    pub enum RejectionReason {
        /// A required field was not given.
        MissingField = "MISSING_FIELD",
        /// A field has an invalid value.
        InvalidField = "INVALID_FIELD",
        /// The record would exceed the limit of Kinesis.
        RecordTooLarge = "RECORD_TOO_LARGE",
        /// The bytes are not a valid `Event` message.
        MalformedEvent = "MALFORMED_EVENT",
        /// The event's integration has more events waiting than it may. Temporary.
        Overloaded = "OVERLOADED",
        /// The caller has no right to the event's organization.
        PermissionDenied = "PERMISSION_DENIED",
        /// The event's organization publishes more events per second than it may. Temporary.
        RateLimited = "RATE_LIMITED",
    }
}

impl Rejection {
    /// Makes a rejection.
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

/// A validated event, which may be stored.
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
    /// Organization that it belongs to, a valid organization id.
    pub fn organization_id(&self) -> &'a str {
        self.organization_id
    }

    /// Network in which it was observed, the CloudEvent's `subject`.
    pub fn network(&self) -> Uuid {
        self.network
    }

    /// Sensor that observed it, the record's partition key.
    pub fn device(&self) -> Uuid {
        self.device
    }

    /// Time of the observation.
    pub fn time(&self) -> Time {
        self.time
    }
}

impl<'a> Event<'a> {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// [`Rejection`] for the first problem, in the order of the fields.
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
                "is required: give the time when the sensor observed the event",
            )
        })?;
        Time::new(given.seconds, given.nanos).ok_or_else(|| {
            Rejection::invalid(
                "observed_time",
                "is out of range: give a time in the years 0001 to 9999, with nanos from 0 to 999999999",
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

/// Accepts only the hyphenated form, the only one of the parser's forms with this length.
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
        "is not an IP address: give an IPv4 or IPv6 address, such as 192.0.2.1 or 2001:db8::1, or leave it empty",
    ))
}

fn check_port(field: &'static str, port: Option<u32>) -> Result<(), Rejection> {
    match port {
        Some(65_536..) => Err(Rejection::invalid(
            field,
            "is above 65535: give a port, or leave it unset if the protocol has no ports",
        )),
        _ => Ok(()),
    }
}

fn check_vlans(vlans: &Vlans) -> Result<(), Rejection> {
    if vlans.count() > MAX_VLANS {
        return Err(Rejection::invalid(
            "ids_detection.vlan",
            format!("has more than {MAX_VLANS} identifiers: give the outermost ones"),
        ));
    }
    match vlans.ids().iter().position(|&id| id > MAX_VLAN_ID) {
        Some(at) => Err(Rejection::invalid(
            format!("ids_detection.vlan[{at}]"),
            format!("is above {MAX_VLAN_ID}: give a 12-bit VLAN identifier"),
        )),
        None => Ok(()),
    }
}

#[cold]
fn context_rejection(problem: Problem) -> Rejection {
    let message = match problem {
        Problem::NotAnObject => {
            Cow::Borrowed("is not a JSON object: give an object in { and }, or leave it empty")
        }
        Problem::TooDeep => Cow::Owned(format!(
            "nests objects and arrays deeper than {MAX_CONTEXT_DEPTH} levels: flatten it"
        )),
        Problem::Invalid(at) => Cow::Owned(format!(
            "is not valid JSON at byte {at}: give exactly one object"
        )),
        Problem::LoneSurrogate(at) => Cow::Owned(format!(
            "has a lone surrogate (an escape \\ud800 to \\udfff without its other half) at byte {at}, \
             which is not a character: replace it by \\ufffd"
        )),
    };
    Rejection::invalid("ids_detection.context_json", message)
}

#[cfg(test)]
mod tests;
