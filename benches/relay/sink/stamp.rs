//! The records of a PutRecords body, and when each was sent.

use base64::{Engine, engine::general_purpose::STANDARD};
use memchr::memmem;

/// In front of each record's base64. It cannot stand within base64.
const DATA: &[u8] = b"\"Data\":\"";
const TIME: &[u8] = b"\"time\":\"";
/// The longest time, and up to two bytes before it in its group of three.
const WINDOW: usize = 33;
const WINDOW_BASE64: usize = WINDOW / 3 * 4;

/// From where the base64 of each record starts, to the body's end.
pub fn records(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    memmem::find_iter(body, DATA).map(|at| &body[at + DATA.len()..])
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
    pub fn read(&mut self, base64: &[u8]) -> Option<u64> {
        if let Some(at) = self.at
            && let Some(nanos) = self.read_at(base64, at)
        {
            return Some(nanos);
        }
        let mut head = [0; 450];
        let length = base64.len().min(600) / 4 * 4;
        let end = base64[..length].iter().position(|byte| *byte == b'"');
        let encoded = &base64[..end.unwrap_or(length) / 4 * 4];
        let decoded = STANDARD.decode_slice(encoded, &mut head).ok()?;
        let at = memmem::find(&head[..decoded], TIME)? + TIME.len();
        self.at = Some(at);
        self.read_at(base64, at)
    }

    fn read_at(&mut self, base64: &[u8], at: usize) -> Option<u64> {
        let start = at / 3 * 4;
        let mut window = [0; WINDOW];
        let encoded = base64.get(start..start + WINDOW_BASE64)?;
        STANDARD.decode_slice(encoded, &mut window).ok()?;
        self.nanos(&window[at % 3..])
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
