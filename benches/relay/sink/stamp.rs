//! The records of a PutRecords body, and when each was sent.

use base64::{Engine, engine::general_purpose::STANDARD};
use memchr::memmem;
use minicbor::{Decoder, data::Type};

/// In front of each record's base64. It cannot stand within base64.
const DATA: &[u8] = b"\"Data\":\"";
const TIME: &[u8] = b"\"time\":\"";
/// The longest time, and up to two bytes before it in its group of three.
const WINDOW: usize = 33;
const WINDOW_BASE64: usize = WINDOW / 3 * 4;
/// How far behind the start of a record its time starts, at the most.
const HEAD: usize = 450;

/// A record as it stands in a body.
#[derive(Clone, Copy)]
pub enum Data<'a> {
    /// From where its base64 starts, to the body's end.
    Base64(&'a [u8]),
    /// All of it.
    Plain(&'a [u8]),
}

impl Data<'_> {
    /// What it begins with: so many bytes where it has them.
    pub fn head<'a>(&'a self, length: usize, decoded: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        match self {
            Self::Plain(data) => Some(&data[..length.min(data.len())]),
            Self::Base64(base64) => {
                let most = length.div_ceil(3) * 4;
                let base64 = &base64[..most.min(base64.len())];
                let end = base64.iter().position(|byte| *byte == b'"');
                let whole = end.unwrap_or(base64.len()) / 4 * 4;
                decoded.clear();
                STANDARD.decode_vec(&base64[..whole], decoded).ok()?;
                Some(decoded)
            }
        }
    }
}

/// Whether a body is in CBOR, or else in JSON.
pub fn is_cbor(body: &[u8]) -> bool {
    body.first() != Some(&b'{')
}

/// Hands over each record of a PutRecords body, and tells how many there are.
pub fn records<'a>(body: &'a [u8], mut each: impl FnMut(Data<'a>)) -> usize {
    if is_cbor(body) {
        return records_of_cbor(body, each).unwrap_or_default();
    }
    let found = memmem::find_iter(body, DATA).map(|at| &body[at + DATA.len()..]);
    found.map(|base64| each(Data::Base64(base64))).count()
}

/// As the service writes them: a map of the stream's ARN and the records, in this order.
fn records_of_cbor<'a>(
    body: &'a [u8],
    mut each: impl FnMut(Data<'a>),
) -> Result<usize, minicbor::decode::Error> {
    let mut read = Decoder::new(body);
    read.map()?;
    for _ in ["name", "ARN", "name"] {
        read.str()?;
    }
    read.array()?;
    let mut records = 0;
    while read.datatype()? != Type::Break {
        read.map()?;
        read.str()?;
        each(Data::Plain(read.bytes()?));
        for _ in ["name", "key"] {
            read.str()?;
        }
        read.skip()?;
        records += 1;
    }
    Ok(records)
}

/// Reads `time` of each record, which stands at the same place in all.
#[derive(Default)]
pub struct Stamps {
    /// Where the time starts in the record.
    at: Option<usize>,
    /// Days are many times the same.
    day: ([u8; 10], u64),
}

impl Stamps {
    /// In nanoseconds since 1970. None where the record has no time of this century.
    pub fn read(&mut self, data: Data<'_>) -> Option<u64> {
        if let Some(at) = self.at
            && let Some(nanos) = self.read_at(data, at)
        {
            return Some(nanos);
        }
        let mut decoded = Vec::new();
        let at = memmem::find(data.head(HEAD, &mut decoded)?, TIME)? + TIME.len();
        self.at = Some(at);
        self.read_at(data, at)
    }

    fn read_at(&mut self, data: Data<'_>, at: usize) -> Option<u64> {
        match data {
            Data::Plain(data) => self.nanos(data.get(at..at + WINDOW)?),
            Data::Base64(base64) => {
                let start = at / 3 * 4;
                let mut window = [0; WINDOW];
                let encoded = base64.get(start..start + WINDOW_BASE64)?;
                STANDARD.decode_slice(encoded, &mut window).ok()?;
                self.nanos(&window[at % 3..])
            }
        }
    }

    fn nanos(&mut self, text: &[u8]) -> Option<u64> {
        if text[10] != b'T' || text[4] != b'-' {
            return None;
        }
        let date: [u8; 10] = text[..10].try_into().ok()?;
        if date != self.day.0 {
            let date_text = str::from_utf8(&date).ok()?;
            let midnight: jiff::Timestamp = format!("{date_text}T00:00:00Z").parse().ok()?;
            self.day = (date, u64::try_from(midnight.as_second()).ok()?);
        }
        let two = |at: usize| Some(digit(text[at])? * 10 + digit(text[at + 1])?);
        let seconds = self.day.1 + two(11)? * 3600 + two(14)? * 60 + two(17)?;
        let (mut nanos, mut unit) = (0, 100_000_000);
        if text[19] == b'.' {
            for &byte in &text[20..] {
                let Some(digit) = digit(byte) else { break };
                nanos += digit * unit;
                unit /= 10;
            }
        }
        Some(seconds * 1_000_000_000 + nanos)
    }
}

fn digit(byte: u8) -> Option<u64> {
    byte.is_ascii_digit().then(|| u64::from(byte - b'0'))
}
