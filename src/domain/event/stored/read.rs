//! A stored event becomes the body of a record.

use uuid::Uuid;

use super::{
    CODE, HEAD_LENGTH, LONG, OWN_ATTRIBUTES, OWN_ID, USUAL_ATTRIBUTES, UnreadableEvent,
    names::{FIELDS, NAMES, Name},
};
use crate::domain::event::{
    MAX_BODY_LENGTH, Time,
    render::{KEY, fixed_length},
    time::{DIGITS, rfc3339_length},
};

/// A value that is no longer is copied in one piece of this size where there is one.
const PIECE: usize = 32;

/// An event as the log holds it, to be read.
pub(in crate::domain::event) enum Stored<'a> {
    /// As it was stored before: a body as it is.
    Body(&'a [u8]),
    /// By its fields.
    Fields(Fields<'a>),
}

pub(in crate::domain::event) struct Fields<'a> {
    head: &'a [u8; HEAD_LENGTH],
    values: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Looks at no more than the code.
    pub(in crate::domain::event) fn read(bytes: &'a [u8]) -> Result<Self, UnreadableEvent> {
        match bytes.split_first_chunk() {
            Some((head, values)) if head[0] == CODE => Ok(Self::Fields(Fields { head, values })),
            _ if bytes.starts_with(KEY) => Ok(Self::Body(bytes)),
            _ => Err(UnreadableEvent),
        }
    }
}

/// What a stored event says.
pub(in crate::domain::event) struct Parts<'a> {
    pub(in crate::domain::event) device: Uuid,
    pub(in crate::domain::event) network: Uuid,
    pub(in crate::domain::event) time: Time,
    /// Fractional digits of the time in the record.
    pub(in crate::domain::event) time_digits: usize,
    /// Source and type.
    pub(in crate::domain::event) attributes: &'a [u8],
    pub(in crate::domain::event) id: Option<Uuid>,
    /// Bytes of the body as JSON.
    pub(in crate::domain::event) body_length: usize,
    fields: u32,
    /// Of the fields.
    values: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Looks at all but the fields.
    pub(in crate::domain::event) fn parts(&self) -> Result<Parts<'a>, UnreadableEvent> {
        let present = u32::from_le_bytes(self.part(49));
        if present & !(FIELDS | OWN_ATTRIBUTES | OWN_ID) != 0 {
            return Err(UnreadableEvent);
        }
        let mut values = self.values;
        let mut attributes = USUAL_ATTRIBUTES;
        if present & OWN_ATTRIBUTES != 0 {
            (attributes, values) = split_value(values)?;
        }
        let mut id = None;
        if present & OWN_ID != 0 {
            let bytes;
            (bytes, values) = split_value(values)?;
            id = Some(Uuid::from_slice(bytes).map_err(|_| UnreadableEvent)?);
        }
        let time = self.time()?;
        let (body_length, time_digits) = self.body(time)?;
        Ok(Parts {
            device: Uuid::from_bytes(self.part(1)),
            network: Uuid::from_bytes(self.part(17)),
            time,
            time_digits,
            attributes,
            id,
            body_length,
            fields: present & FIELDS,
            values,
        })
    }

    /// Never more than a body may have, whatever is there.
    pub(super) fn body_length(&self) -> Result<usize, UnreadableEvent> {
        Ok(self.body(self.time()?)?.0)
    }

    fn time(&self) -> Result<Time, UnreadableEvent> {
        let seconds = i64::from_le_bytes(self.part(37));
        Time::new(seconds, i32::from_le_bytes(self.part(45))).ok_or(UnreadableEvent)
    }

    /// The body's length, and the fractional digits of its time.
    ///
    /// The length that is stored is the one with the shortest exact fraction. An event that
    /// an earlier version took at the very limit of a record has no space for six digits, and
    /// keeps that fraction.
    fn body(&self, time: Time) -> Result<(usize, usize), UnreadableEvent> {
        let stored = u32::from_le_bytes(self.part(33)) as usize;
        let exact = time.exact_digits();
        let length = (stored + rfc3339_length(DIGITS)).checked_sub(rfc3339_length(exact));
        match length.ok_or(UnreadableEvent)? {
            length if length <= MAX_BODY_LENGTH => Ok((length, DIGITS)),
            _ if stored <= MAX_BODY_LENGTH => Ok((stored, exact)),
            _ => Err(UnreadableEvent),
        }
    }

    fn part<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut part = [0; N];
        part.copy_from_slice(&self.head[at..at + N]);
        part
    }
}

impl Parts<'_> {
    /// Bytes of names and values of the fields, by the length of the body.
    fn data_length(&self) -> Result<usize, UnreadableEvent> {
        let fixed = fixed_length(self.attributes, self.time_digits);
        self.body_length.checked_sub(fixed).ok_or(UnreadableEvent)
    }

    /// Whether the fields can be read, and the body is as long as it says.
    pub(super) fn check(&self) -> Result<(), UnreadableEvent> {
        let (mut length, mut rest) = (0, self.values);
        for name in names(self.fields) {
            let value;
            (value, rest) = split_value(rest)?;
            length += name.length + value.len();
        }
        match rest.is_empty() && self.data_length() == Ok(length) {
            true => Ok(()),
            false => Err(UnreadableEvent),
        }
    }

    /// Appends names and values of the fields.
    ///
    /// # Errors
    ///
    /// Where they cannot be read, or are not as long as the body says.
    pub(in crate::domain::event) fn write_data(
        &self,
        out: &mut Vec<u8>,
    ) -> Result<(), UnreadableEvent> {
        let (start, length) = (out.len(), self.data_length()?);
        // Pieces of a fixed size may reach further than what is copied.
        out.resize(start + length + PIECE, 0);
        let (mut to, mut rest) = (&mut out[start..], self.values);
        for name in names(self.fields) {
            to = copy_padded(to, &name.padded, name.length)?;
            let (value, after) = split_value(rest)?;
            // The value and what is behind it.
            let from = &rest[rest.len() - after.len() - value.len()..];
            to = match from.first_chunk::<PIECE>() {
                Some(piece) if value.len() <= PIECE => copy_padded(to, piece, value.len())?,
                _ => copy(to, value)?,
            };
            rest = after;
        }
        let is_whole = to.len() == PIECE && rest.is_empty();
        out.truncate(start + length);
        match is_whole {
            true => Ok(()),
            false => Err(UnreadableEvent),
        }
    }
}

/// Copies the first `length` bytes of `from`. Returns what is behind them.
#[inline]
fn copy_padded<'a, const N: usize>(
    to: &'a mut [u8],
    from: &[u8; N],
    length: usize,
) -> Result<&'a mut [u8], UnreadableEvent> {
    *to.first_chunk_mut().ok_or(UnreadableEvent)? = *from;
    to.get_mut(length..).ok_or(UnreadableEvent)
}

#[inline]
fn copy<'a>(to: &'a mut [u8], from: &[u8]) -> Result<&'a mut [u8], UnreadableEvent> {
    let (start, rest) = to.split_at_mut_checked(from.len()).ok_or(UnreadableEvent)?;
    start.copy_from_slice(from);
    Ok(rest)
}

/// The names of the fields whose bits are set.
#[inline]
fn names(mut fields: u32) -> impl Iterator<Item = &'static Name> {
    std::iter::from_fn(move || {
        let name = NAMES.get(fields.trailing_zeros() as usize)?;
        fields &= fields - 1;
        Some(name)
    })
}

#[inline]
fn split_value(bytes: &[u8]) -> Result<(&[u8], &[u8]), UnreadableEvent> {
    let (&length, rest) = bytes.split_first().ok_or(UnreadableEvent)?;
    let (length, rest) = match usize::from(length) {
        LONG => {
            let (length, rest) = rest.split_first_chunk().ok_or(UnreadableEvent)?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        length => (length, rest),
    };
    rest.split_at_checked(length).ok_or(UnreadableEvent)
}
