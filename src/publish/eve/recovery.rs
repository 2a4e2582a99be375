//! Recovery of records from lines that a crash, a full disk or a truncation has damaged.
//!
//! If a record was cut off, the next one follows at any byte: within a string, an escape, a
//! number or a nested object. So after a scan has failed, it is repeated from each brace that
//! may start an object. An object found there is a record only if it is not part of another
//! object: it is not followed by `,`, `}` or `]`, and it has the members of a record
//! ([`is_record`]). JSON inside a string is never mistaken for a record: there each quote is
//! escaped, so that no brace is followed by a quote.
//!
//! The time is linear in the length of the line. A scan marks the braces at which it saw an object
//! start; another scan from there would fail at the same byte. Only braces inside strings remain; a
//! scan from one reads strings as structure and vice versa, so each byte is scanned at most a few
//! times.

use std::{borrow::Cow, ops::Range};

use serde_json::value::RawValue;

use super::{Repair, json::Object};

/// Number of bytes of a prefix that are reported.
const MAX_PREFIX_BYTES: usize = 100;

/// A part of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    /// A whole JSON object.
    Object {
        /// Its bytes in the line.
        object: Range<usize>,
        /// The text that a writer such as syslog put before it.
        prefix: Option<Range<usize>>,
    },
    /// A part without an intact record.
    Damaged {
        /// Its bytes in the line.
        range: Range<usize>,
        /// Index of the first byte that is not valid JSON.
        error_at: usize,
    },
}

/// Iterator over the fragments of a line.
#[derive(Debug)]
pub(super) struct Fragments<'a> {
    text: &'a [u8],
    at: usize,
    /// The fragment to yield before those from `at` on.
    next: Option<Fragment>,
    /// Whether all fragments so far were records with a prefix.
    may_have_prefix: bool,
    /// Per byte, whether it is a brace known to start no intact record; empty before any damage.
    ruled_out: Vec<bool>,
}

/// Failure of a scan.
#[derive(Debug, Clone, Copy)]
struct ScanError {
    at: usize,
    /// The nested object that ends at `at`, apart from white space.
    closed: Option<(usize, usize)>,
}

impl<'a> Fragments<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self {
            text,
            at: 0,
            next: None,
            may_have_prefix: true,
            ruled_out: Vec::new(),
        }
    }

    /// Reads an object that starts here, or damage up to the next record.
    fn object(&mut self) -> Fragment {
        let start = self.at;
        match scan(self.text, start, &mut []) {
            // It may be part of an object whose start is missing.
            Ok(end) if !self.stands_alone(end) && !is_record(&self.text[start..end]) => {
                self.damaged(start, Some(start), end)
            }
            Ok(end) => {
                self.at = end;
                self.may_have_prefix = false;
                Fragment::Object {
                    object: start..end,
                    prefix: None,
                }
            }
            Err(error) => self.damaged(start, Some(start), error.at),
        }
    }

    /// Reads text that is not the start of an object: a prefix or damage.
    fn other(&mut self) -> Fragment {
        let start = self.at;
        let Some(brace) = position(self.text, start, b'{') else {
            self.at = self.text.len();
            return Fragment::Damaged {
                range: start..self.at,
                error_at: start,
            };
        };
        let before = &self.text[start..brace];
        if self.may_have_prefix
            && is_prefix(before)
            && let Ok(end) = scan(self.text, brace, &mut [])
            && self.stands_alone(end)
        {
            self.at = end;
            return Fragment::Object {
                object: brace..end,
                prefix: Some(start..brace),
            };
        }
        self.damaged(start, None, start)
    }

    /// Returns the damage from `start` to the first intact record, and keeps that as the next
    /// fragment. `opened` is the start of an object whose scan failed.
    fn damaged(&mut self, start: usize, opened: Option<usize>, error_at: usize) -> Fragment {
        self.may_have_prefix = false;
        if self.ruled_out.is_empty() {
            self.ruled_out = vec![false; self.text.len()];
        }
        let mut from = opened.unwrap_or(start);
        while let Some(brace) = position(self.text, from, b'{') {
            from = brace + 1;
            let may_open = skip_space(self.text, from);
            if self.ruled_out[brace] || self.text.get(may_open) != Some(&b'"') {
                continue;
            }
            let found = match scan(self.text, brace, &mut self.ruled_out) {
                Ok(end) => {
                    from = end;
                    Some((brace, end))
                }
                Err(error) => error.closed,
            };
            if let Some((object, end)) = found
                && self.stands_alone(end)
                && is_record(&self.text[object..end])
            {
                self.next = Some(Fragment::Object {
                    object: object..end,
                    prefix: None,
                });
                self.at = end;
                return Fragment::Damaged {
                    range: start..object,
                    error_at: error_at.min(object),
                };
            }
        }
        self.at = self.text.len();
        Fragment::Damaged {
            range: start..self.at,
            error_at,
        }
    }

    /// Whether an object that ends here is not part of another object or an array.
    fn stands_alone(&self, end: usize) -> bool {
        let next = self.text.get(skip_space(self.text, end));
        !matches!(next, Some(b',' | b'}' | b']'))
    }
}

impl Iterator for Fragments<'_> {
    type Item = Fragment;

    fn next(&mut self) -> Option<Fragment> {
        if let Some(fragment) = self.next.take() {
            return Some(fragment);
        }
        // A crash or a truncation leaves NULs in place of what is missing.
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

/// Whether an object has the members of every EVE record: a time, and a type or an alert.
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

/// Whether the text before a record may be a prefix that a writer puts before each, such as
/// `@cee: ` or a syslog header, rather than the end of a record whose start is missing. A syslog
/// header with structured data (RFC 5424) contains quotes, but starts with a priority.
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

/// Tokens that may follow.
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

/// Scans the object whose brace is at `start`, and returns its end. Marks in `opened`, unless
/// it is empty, every brace that it took for the start of an object. The syntax of numbers and
/// UTF-8 are not checked.
fn scan(text: &[u8], start: usize, opened: &mut [bool]) -> Result<usize, ScanError> {
    // Start of each open container; an index into a line of at most 16 MiB fits into u32.
    let mut open: Vec<u32> = Vec::new();
    let mut closed: Option<(usize, usize)> = None;
    let mut expect = Expect::Value;
    let mut at = start;
    loop {
        at = skip_space(text, at);
        let error = || ScanError {
            at,
            closed: closed.filter(|(_, end)| skip_space(text, *end) == at),
        };
        let Some(byte) = text.get(at).copied() else {
            return Err(error());
        };
        let in_object = open.last().is_some_and(|open| text[*open as usize] == b'{');
        expect = match (byte, expect) {
            (b'{' | b'[', Expect::Value | Expect::Element) => {
                open.push(at as u32);
                match byte {
                    b'{' => {
                        if let Some(mark) = opened.get_mut(at) {
                            *mark = true;
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
                let end = string(text, at).map_err(|at| ScanError { at, closed: None })?;
                at = skip_space(text, end);
                if text.get(at) != Some(&b':') {
                    return Err(ScanError { at, closed: None });
                }
                Expect::Value
            }
            (b'"', Expect::Value | Expect::Element) => {
                at = string(text, at).map_err(|at| ScanError { at, closed: None })? - 1;
                Expect::More
            }
            (_, Expect::Value | Expect::Element) => match scalar(&text[at..]) {
                Some(length) => {
                    at += length - 1;
                    Expect::More
                }
                None => return Err(error()),
            },
            _ => return Err(error()),
        };
        at += 1;
    }
}

/// Returns the length of a literal or a number.
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

/// Returns the end of the string whose quote is at `at`, or the index of the first invalid byte.
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

/// Whether a line consists of white space and NULs.
pub(super) fn is_blank(line: &[u8]) -> bool {
    line.iter()
        .all(|byte| byte.is_ascii_whitespace() || *byte == 0)
}

/// Whether a line is UTF-16: it starts with a byte order mark, or every other of its first
/// bytes is a NUL. The line reader may have removed NULs at its start.
pub(super) fn is_utf16(line: &[u8]) -> bool {
    let pairs = |line: &[u8]| matches!(line, [a, 0, b, 0, ..] if *a > 0 && *b > 0);
    line.starts_with(&[0xff, 0xfe])
        || line.starts_with(&[0xfe, 0xff])
        || pairs(line)
        || line
            .split_first()
            .is_some_and(|(first, rest)| *first == 0 && pairs(rest))
}

/// Returns the text of a record, with U+FFFD in place of invalid characters, and the repairs.
pub(super) fn repair<'a>(object: &'a [u8], prefix: Option<&[u8]>) -> (Cow<'a, str>, Vec<Repair>) {
    let mut repairs = Vec::new();
    if let Some(prefix) = prefix {
        let shown = &prefix[..prefix.len().min(MAX_PREFIX_BYTES)];
        repairs.push(Repair::Prefix(String::from_utf8_lossy(shown).into_owned()));
    }
    let text = String::from_utf8_lossy(object);
    if let Cow::Owned(_) = text {
        let invalid = object
            .utf8_chunks()
            .filter(|chunk| !chunk.invalid().is_empty());
        repairs.push(Repair::Utf8(invalid.count()));
    }
    let lone = lone_surrogates(&text);
    if lone.is_empty() {
        return (text, repairs);
    }
    repairs.push(Repair::Surrogates(lone.len()));
    let mut text = text.into_owned();
    for at in lone {
        text.replace_range(at..at + ESCAPE, "\\ufffd");
    }
    (Cow::Owned(text), repairs)
}

/// Length of the escape of a UTF-16 code unit.
const ESCAPE: usize = "\\u0000".len();

/// Returns the positions of escapes of one half of a surrogate pair without the other half.
fn lone_surrogates(text: &str) -> Vec<usize> {
    let (bytes, mut lone, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(offset) = text[at..].find('\\') {
        at += offset;
        match code_unit(bytes, at) {
            Some(0xd800..=0xdbff)
                if matches!(code_unit(bytes, at + ESCAPE), Some(0xdc00..=0xdfff)) =>
            {
                at += 2 * ESCAPE;
            }
            Some(0xd800..=0xdfff) => {
                lone.push(at);
                at += ESCAPE;
            }
            // Skips the escaped character, which may be a backslash and may be of several bytes.
            _ => at = text.ceil_char_boundary(at + 2),
        }
    }
    lone
}

/// Returns the code unit of the escape that starts at `at`.
fn code_unit(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + ESCAPE)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests;
