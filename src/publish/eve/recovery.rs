//! Finds the intact records of a line, also where a crash, a full disk or a truncation has
//! damaged it.
//!
//! A cut record has the next one glued to it, at any byte: within a string, an escape, a
//! number or a nested object. So after a fault the scan starts again at the braces that may
//! start an object. What is found there counts only where it is no part of another object:
//! nothing follows it that would continue one (`,`, `}` or `]`), and it looks like a record
//! of its own ([`is_record`]). Text inside a string needs no care: there each quote has a
//! backslash before it, and so no brace is followed by a quote.
//!
//! The time is linear in the line. A scan marks the braces that it took for starts of objects:
//! from there another one would fail at the same byte. What is left are braces that a scan saw
//! inside strings, where the next scan takes strings for structure and structure for strings;
//! so no byte is scanned more than a few times.

use std::ops::Range;

use serde_json::value::RawValue;

use super::json::Object;

/// A part of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A whole JSON object.
    Object {
        /// Its bytes in the line.
        object: Range<usize>,
        /// The text before it, where a writer puts some before each record.
        prefix: Option<Range<usize>>,
    },
    /// A part in which there is no intact record, and the byte at which it is no JSON.
    Damaged(Range<usize>, usize),
}

/// Yields the parts of a line.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    text: &'a [u8],
    at: usize,
    /// Comes next, before what is at `at`.
    next: Option<Piece>,
    /// Whether nothing came before, or only records each of which has a prefix.
    may_have_prefix: bool,
    /// Braces that are known to start no intact record; empty until there is damage.
    seen: Vec<bool>,
}

/// A scan that met no object.
#[derive(Debug, Clone, Copy)]
struct Fault {
    at: usize,
    /// The nested object that ends right before, but for white space.
    closed: Option<(usize, usize)>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            next: None,
            may_have_prefix: true,
            seen: Vec::new(),
        }
    }

    /// An object that starts here, or damage up to the next record.
    fn object(&mut self) -> Piece {
        let start = self.at;
        match scan(self.text, start, &mut []) {
            // The start of what it is a part of may be missing.
            Ok(end) if !self.stands_alone(end) && !is_record(&self.text[start..end]) => {
                self.damaged(start, Some(start), end)
            }
            Ok(end) => {
                self.at = end;
                self.may_have_prefix = false;
                Piece::Object {
                    object: start..end,
                    prefix: None,
                }
            }
            Err(fault) => self.damaged(start, Some(start), fault.at),
        }
    }

    /// Text that starts no object.
    fn other(&mut self) -> Piece {
        let start = self.at;
        let Some(brace) = position(self.text, start, b'{') else {
            self.at = self.text.len();
            return Piece::Damaged(start..self.at, start);
        };
        let before = &self.text[start..brace];
        if self.may_have_prefix
            && is_prefix(before)
            && let Ok(end) = scan(self.text, brace, &mut [])
            && self.stands_alone(end)
        {
            self.at = end;
            return Piece::Object {
                object: brace..end,
                prefix: Some(start..brace),
            };
        }
        self.damaged(start, None, start)
    }

    /// Damage from `start` on, with the first intact record after it. `opened` is an object
    /// whose scan failed there.
    fn damaged(&mut self, start: usize, opened: Option<usize>, fault: usize) -> Piece {
        self.may_have_prefix = false;
        if self.seen.is_empty() {
            self.seen = vec![false; self.text.len()];
        }
        let mut from = opened.unwrap_or(start);
        while let Some(brace) = position(self.text, from, b'{') {
            from = brace + 1;
            let may_open = skip_space(self.text, from);
            if self.seen[brace] || self.text.get(may_open) != Some(&b'"') {
                continue;
            }
            let found = match scan(self.text, brace, &mut self.seen) {
                Ok(end) => {
                    from = end;
                    Some((brace, end))
                }
                Err(fault) => fault.closed,
            };
            if let Some((object, end)) = found
                && self.stands_alone(end)
                && is_record(&self.text[object..end])
            {
                self.next = Some(Piece::Object {
                    object: object..end,
                    prefix: None,
                });
                self.at = end;
                return Piece::Damaged(start..object, fault.min(object));
            }
        }
        self.at = self.text.len();
        Piece::Damaged(start..self.at, fault)
    }

    /// Whether what ends here is no part of an object or an array.
    fn stands_alone(&self, end: usize) -> bool {
        let next = self.text.get(skip_space(self.text, end));
        !matches!(next, Some(b',' | b'}' | b']'))
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if let Some(piece) = self.next.take() {
            return Some(piece);
        }
        // A run of NULs stands where something is missing.
        while self
            .text
            .get(self.at)
            .is_some_and(|byte| is_space(*byte) || *byte == 0)
        {
            self.at += 1;
        }
        match self.text.get(self.at)? {
            b'{' => Some(self.object()),
            _ => Some(self.other()),
        }
    }
}

/// Whether an object has what every EVE record has: a time, and a type or an alert.
fn is_record(object: &[u8]) -> bool {
    let text = String::from_utf8_lossy(object);
    let Ok(record) = Object::parse(&text) else {
        return false;
    };
    let has_text = |key| {
        record
            .get(key)
            .is_some_and(|raw| raw.get().starts_with('"'))
    };
    has_text("timestamp") && (has_text("event_type") || record.get("alert").is_some_and(is_object))
}

pub(super) fn is_object(raw: &RawValue) -> bool {
    raw.get().starts_with('{')
}

/// Whether a text before a record may be what a writer puts before each, such as `@cee: ` or
/// a syslog header, and not the end of a record whose start is missing. Structured data of
/// syslog (RFC 5424) has quotes, but starts with a priority.
fn is_prefix(text: &[u8]) -> bool {
    !text.contains(&b'}') && !text.contains(&0) && (!text.contains(&b'"') || text[0] == b'<')
}

fn position(text: &[u8], from: usize, byte: u8) -> Option<usize> {
    let rest = text.get(from..)?;
    rest.iter()
        .position(|each| *each == byte)
        .map(|at| from + at)
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(|byte| is_space(*byte)) {
        at += 1;
    }
    at
}

/// The tokens that may come next.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Value,
    /// A value or the end of an array.
    Element,
    Key,
    /// A key or the end of an object.
    Member,
    /// A comma or the end of the container.
    More,
}

/// Scans the object whose brace is at `start`, and answers where it ends. Marks in `seen`, unless
/// it is empty, every brace that it took for the start of an object. Numbers are not checked
/// to the letter, nor is UTF-8.
fn scan(text: &[u8], start: usize, seen: &mut [bool]) -> Result<usize, Fault> {
    // Start of each open container. A line's length fits.
    let mut open: Vec<u32> = Vec::new();
    let mut closed: Option<(usize, usize)> = None;
    let mut expect = Expect::Value;
    let mut at = start;
    loop {
        at = skip_space(text, at);
        let fault = || Fault {
            at,
            closed: closed.filter(|(_, end)| skip_space(text, *end) == at),
        };
        let Some(byte) = text.get(at).copied() else {
            return Err(fault());
        };
        let in_object = open.last().is_some_and(|open| text[*open as usize] == b'{');
        expect = match (byte, expect) {
            (b'{' | b'[', Expect::Value | Expect::Element) => {
                open.push(at as u32);
                match byte {
                    b'{' => {
                        if let Some(seen) = seen.get_mut(at) {
                            *seen = true;
                        }
                        Expect::Member
                    }
                    _ => Expect::Element,
                }
            }
            (b'}', Expect::Member | Expect::More) if in_object => {
                let from = open.pop().unwrap_or_default() as usize;
                if open.is_empty() {
                    return Ok(at + 1);
                }
                closed = Some((from, at + 1));
                Expect::More
            }
            (b']', Expect::Element | Expect::More) if !in_object => {
                open.pop();
                Expect::More
            }
            (b',', Expect::More) if in_object => Expect::Key,
            (b',', Expect::More) => Expect::Value,
            (b'"', Expect::Key | Expect::Member) => {
                let end = string(text, at).map_err(|at| Fault { at, closed: None })?;
                at = skip_space(text, end);
                if text.get(at) != Some(&b':') {
                    return Err(Fault { at, closed: None });
                }
                Expect::Value
            }
            (b'"', Expect::Value | Expect::Element) => {
                at = string(text, at).map_err(|at| Fault { at, closed: None })? - 1;
                Expect::More
            }
            (_, Expect::Value | Expect::Element) => match scalar(&text[at..]) {
                Some(length) => {
                    at += length - 1;
                    Expect::More
                }
                None => return Err(fault()),
            },
            _ => return Err(fault()),
        };
        at += 1;
    }
}

/// The length of a literal or a number.
fn scalar(text: &[u8]) -> Option<usize> {
    for literal in [&b"true"[..], b"false", b"null"] {
        if text.starts_with(literal) {
            return Some(literal.len());
        }
    }
    let is_number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
    let length = text.iter().take_while(|byte| is_number(byte)).count();
    (length > 0).then_some(length)
}

/// Returns the end of the string whose quote is at `at`, or the byte at which it is none.
fn string(text: &[u8], mut at: usize) -> Result<usize, usize> {
    loop {
        at += 1;
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => {
                let digits = match text.get(at + 1) {
                    Some(b'u') => 4,
                    Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 0,
                    _ => return Err(at + 1),
                };
                let is_hex = |digit| text.get(at + 2 + digit).is_some_and(u8::is_ascii_hexdigit);
                if let Some(wrong) = (0..digits).find(|digit| !is_hex(*digit)) {
                    return Err(at + 2 + wrong);
                }
                at += 1 + digits;
            }
            Some(0x20..) => {}
            _ => return Err(at),
        }
    }
}

#[cfg(test)]
mod tests;
