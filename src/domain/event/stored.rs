//! Events as the log holds them: only what tells one detection from another, since more
//! than half of a record's text is the same for all. [`finish`](super::finish) makes the
//! record of it.
//!
//! What is stored waits for as long as its integration does, across restarts and newer
//! versions: nothing that is read here may change. What shall be stored otherwise gets a
//! code of its own.
//!
//! | bytes | what |
//! | --- | --- |
//! | 1 | the code, 1 |
//! | 16 | device, the partition key |
//! | 16 | network |
//! | 4 | length of the body as JSON, were its time written with the shortest exact fraction |
//! | 8, 4 | seconds and nanoseconds of the time |
//! | 4 | which values there are, a bit each: [`OWN_ATTRIBUTES`], [`OWN_ID`], those of fields |
//!
//! Integers are little endian. Then come the values, each with its length before it: one
//! byte, or 255 and four bytes. That of a field is JSON text up to where the next name
//! begins. Before this there were bodies as they are, which start with a quote.

mod names;
mod read;
mod write;

use uuid::Uuid;

pub(super) use self::read::{Parts, Stored};
use super::render::partition_key;

const CODE: u8 = 1;
const HEAD_LENGTH: usize = 53;
/// From here on a length takes four bytes more.
const LONG: usize = 255;
/// Source and type are others than [`USUAL_ATTRIBUTES`]: the first value.
const OWN_ATTRIBUTES: u32 = 1 << 29;
/// The event has an id of the caller's choice: 16 bytes, the value before those of fields.
const OWN_ID: u32 = 1 << 30;
/// The attributes of the settings' first defaults.
const USUAL_ATTRIBUTES: &[u8] =
    br#"","source":"https://meter.com","type":"com.meter.ids.detection","subject":""#;

/// The bytes are not an event as the log holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the log cannot be read")]
pub struct UnreadableEvent;

/// What is known of a stored event without writing it as a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The partition key.
    pub partition_key: Uuid,
    /// Bytes of the body as JSON: what a record has beside its head.
    pub body_length: usize,
}

/// Key and length of a stored event.
///
/// # Errors
///
/// Where it is none, or not all of it can be read.
pub fn outline(stored: &[u8]) -> Result<Outline, UnreadableEvent> {
    match Stored::read(stored)? {
        Stored::Body(body) => {
            let key = partition_key(body).and_then(|key| Uuid::try_parse(key).ok());
            Ok(Outline {
                partition_key: key.ok_or(UnreadableEvent)?,
                body_length: body.len(),
            })
        }
        Stored::Fields(fields) => {
            let parts = fields.parts()?;
            parts.check()?;
            Ok(Outline {
                partition_key: parts.device,
                body_length: parts.body_length,
            })
        }
    }
}

/// Bytes of the body as JSON that a stored event says it has.
///
/// # Errors
///
/// Where it is none.
pub fn body_length(stored: &[u8]) -> Result<usize, UnreadableEvent> {
    match Stored::read(stored)? {
        Stored::Body(body) => Ok(body.len()),
        Stored::Fields(fields) => fields.body_length(),
    }
}

#[cfg(test)]
mod tests;
