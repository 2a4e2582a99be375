//! Checks a JSON object that travels as text and is kept digit for digit.
//!
//! Of a key that an object repeats, only the last member is kept, at every level: readers
//! disagree on which one counts, and strict ones refuse the whole record.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use super::json::find_special;

/// Objects and arrays that may stand in one another, the outermost included.
pub const MAX_DEPTH: u32 = 64;

/// A JSON object as text, known to be valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context<'a> {
    text: Cow<'a, str>,
    line_breaks: bool,
}

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// It does not start as an object.
    NotAnObject,
    /// It nests deeper than [`MAX_DEPTH`].
    TooDeep,
    /// It is not JSON from this byte on.
    Invalid(usize),
    /// The escape at this byte is one half of a surrogate pair, which is no character.
    LoneSurrogate(usize),
}

impl<'a> Context<'a> {
    /// Checks that the whole text is one JSON object (RFC 8259) with nothing but
    /// white space around it.
    ///
    /// Escapes of a lone surrogate are refused too: the grammar has them, but
    /// strict readers of the record would fail on it as a whole.
    pub(super) fn check(text: &'a str) -> Result<Self, Problem> {
        let mut scanner = Scanner {
            bytes: text.as_bytes(),
            at: 0,
            line_breaks: false,
            nesting: Nesting {
                objects: 0,
                depth: 0,
                firsts: [0; MAX_DEPTH as usize],
            },
            members: Vec::with_capacity(32),
            marks: Vec::new(),
            repeated: Vec::new(),
        };
        scanner.document()?;
        Ok(Self {
            text: without(text, scanner.repeated),
            line_breaks: scanner.line_breaks,
        })
    }

    /// The length in bytes that it is written with.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// Appends the text as it was given, but for line breaks between tokens, which
    /// become spaces: a record is one line.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if !self.line_breaks {
            out.extend_from_slice(self.text.as_bytes());
            return;
        }
        // A raw line break inside a string is not JSON, so all are between tokens.
        out.extend(self.text.bytes().map(|byte| match byte {
            b'\n' | b'\r' => b' ',
            other => other,
        }));
    }
}

/// The text without these ranges, of which none overlaps another but where it holds it.
fn without(text: &str, mut ranges: Vec<Range<usize>>) -> Cow<'_, str> {
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let (mut kept, mut from) = (String::with_capacity(text.len()), 0);
    for range in ranges {
        if let Some(between) = text.get(from..range.start) {
            kept.push_str(between);
        }
        from = from.max(range.end);
    }
    kept.push_str(&text[from..]);
    Cow::Owned(kept)
}

/// A member of an object that is open.
struct Member {
    /// Equal for equal keys that have no escapes, and seldom for others.
    mark: u64,
    /// Start of its key, quote included.
    start: usize,
    /// End of its key, quote excluded.
    key_end: usize,
}

impl Member {
    /// The key without its escapes.
    fn key<'a>(&self, text: &'a [u8]) -> Cow<'a, str> {
        let quoted = &text[self.start..=self.key_end];
        let read = match self.mark {
            ESCAPED => serde_json::from_slice(quoted).ok().map(Cow::Owned),
            _ => None,
        };
        read.unwrap_or_else(|| String::from_utf8_lossy(&quoted[1..quoted.len() - 1]))
    }
}

/// The mark of a key that has an escape, which may spell any other key.
const ESCAPED: u64 = u64::MAX;

/// The length, and at most the first eight and the last eight bytes.
fn mark(key: &[u8]) -> u64 {
    let eight = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let first = eight(&key[..key.len().min(8)]);
    let last = eight(&key[key.len().saturating_sub(8)..]);
    first ^ last.rotate_left(29) ^ (key.len() as u64) << 56
}

/// Which containers are open: a bit each, set for an object.
struct Nesting {
    objects: u64,
    depth: u32,
    /// Of each open container, how many members were open before it.
    firsts: [u32; MAX_DEPTH as usize],
}

impl Nesting {
    fn open(&mut self, object: bool, members: usize) -> Result<(), Problem> {
        let first = self.firsts.get_mut(self.depth as usize);
        // No text is so long that its members cannot be counted.
        *first.ok_or(Problem::TooDeep)? = members as u32;
        self.objects = self.objects << 1 | u64::from(object);
        self.depth += 1;
        Ok(())
    }

    /// Answers the number of the first member that was opened within.
    fn close(&mut self) -> usize {
        self.objects >>= 1;
        self.depth -= 1;
        self.firsts[self.depth as usize] as usize
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    line_breaks: bool,
    nesting: Nesting,
    /// Those of all open objects, outermost first.
    members: Vec<Member>,
    /// To be used again by each object.
    marks: Vec<u64>,
    /// Members whose key comes again in the same object, each up to the next one.
    repeated: Vec<Range<usize>>,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), Problem> {
        self.skip_space();
        if self.peek() != Some(b'{') {
            return Err(Problem::NotAnObject);
        }
        self.value()?;
        while self.nesting.depth > 0 {
            self.skip_space();
            match (self.next()?, self.nesting.in_object()) {
                (b',', true) => self.member()?,
                (b',', false) => {
                    self.skip_space();
                    self.value()?;
                }
                (b'}', true) => {
                    let first = self.nesting.close();
                    self.end_object(first);
                }
                (b']', false) => {
                    self.nesting.close();
                }
                _ => return Err(Problem::Invalid(self.at - 1)),
            }
        }
        self.skip_space();
        if self.at < self.bytes.len() {
            return Err(Problem::Invalid(self.at));
        }
        Ok(())
    }

    /// Reads a scalar, or the openings of a container down to its first scalar.
    fn value(&mut self) -> Result<(), Problem> {
        loop {
            match self.next()? {
                b'"' => return self.string().map(|_| ()),
                byte @ (b'-' | b'0'..=b'9') => return self.number(byte),
                b't' => return self.literal(b"rue"),
                b'f' => return self.literal(b"alse"),
                b'n' => return self.literal(b"ull"),
                open @ (b'{' | b'[') => {
                    let object = open == b'{';
                    self.nesting.open(object, self.members.len())?;
                    self.skip_space();
                    if self.peek() == Some(if object { b'}' } else { b']' }) {
                        self.at += 1;
                        self.nesting.close();
                        return Ok(());
                    }
                    if object {
                        self.key()?;
                    }
                }
                _ => return Err(Problem::Invalid(self.at - 1)),
            }
        }
    }

    fn member(&mut self) -> Result<(), Problem> {
        self.skip_space();
        self.key()?;
        self.value()
    }

    /// Notes which members of an object that ends here are repeated by a later one.
    fn end_object(&mut self, first: usize) {
        let members = &self.members[first..];
        self.marks.clear();
        self.marks.extend(members.iter().map(|member| member.mark));
        self.marks.sort_unstable();
        let suspect = self.marks.last() == Some(&ESCAPED)
            || self.marks.windows(2).any(|pair| pair[0] == pair[1]);
        if suspect && members.len() > 1 {
            self.find_repeated(first);
        }
        self.members.truncate(first);
    }

    #[cold]
    fn find_repeated(&mut self, first: usize) {
        let members = &self.members[first..];
        let mut last_of_key: HashMap<Cow<'_, str>, usize> = HashMap::with_capacity(members.len());
        for (number, member) in members.iter().enumerate() {
            let before = last_of_key.insert(member.key(self.bytes), number);
            if let Some(before) = before {
                self.repeated
                    .push(members[before].start..members[before + 1].start);
            }
        }
    }

    fn key(&mut self) -> Result<(), Problem> {
        let start = self.at;
        self.expect(b'"')?;
        let escapes = self.string()?;
        let key_end = self.at - 1;
        let mark = match escapes {
            true => ESCAPED,
            // The highest mark is that of escaped keys.
            false => mark(&self.bytes[start + 1..key_end]).min(ESCAPED - 1),
        };
        self.members.push(Member {
            mark,
            start,
            key_end,
        });
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        Ok(())
    }

    /// The rest of a string, after its opening quote. Answers whether it has escapes.
    fn string(&mut self) -> Result<bool, Problem> {
        let mut escapes = false;
        loop {
            let Some(length) = find_special(&self.bytes[self.at..]) else {
                return Err(Problem::Invalid(self.bytes.len()));
            };
            self.at += length;
            match self.next()? {
                b'"' => return Ok(escapes),
                b'\\' => {
                    escapes = true;
                    self.escape()?;
                }
                _ => return Err(Problem::Invalid(self.at - 1)),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Problem> {
        let start = self.at - 1;
        match self.next()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Ok(()),
            b'u' => match self.code_unit()? {
                0xd800..=0xdbff => {
                    if !self.bytes[self.at..].starts_with(b"\\u") {
                        return Err(Problem::LoneSurrogate(start));
                    }
                    self.at += 2;
                    match self.code_unit()? {
                        0xdc00..=0xdfff => Ok(()),
                        _ => Err(Problem::LoneSurrogate(start)),
                    }
                }
                0xdc00..=0xdfff => Err(Problem::LoneSurrogate(start)),
                _ => Ok(()),
            },
            _ => Err(Problem::Invalid(start)),
        }
    }

    fn code_unit(&mut self) -> Result<u32, Problem> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = char::from(self.next()?).to_digit(16);
            unit = unit << 4 | digit.ok_or(Problem::Invalid(self.at - 1))?;
        }
        Ok(unit)
    }

    /// The rest of a number, after its first byte.
    fn number(&mut self, first: u8) -> Result<(), Problem> {
        let lead = if first == b'-' { self.next()? } else { first };
        match lead {
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return Err(Problem::Invalid(self.at - 1)),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Problem> {
        let start = self.at;
        self.skip_digits();
        if self.at == start {
            return Err(Problem::Invalid(self.at));
        }
        Ok(())
    }

    fn skip_digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }

    fn literal(&mut self, rest: &[u8]) -> Result<(), Problem> {
        rest.iter().try_for_each(|&byte| self.expect(byte))
    }

    fn skip_space(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\n' | b'\r')) = self.peek() {
            self.line_breaks |= byte == b'\n' || byte == b'\r';
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, Problem> {
        let byte = self.peek().ok_or(Problem::Invalid(self.at))?;
        self.at += 1;
        Ok(byte)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Problem> {
        if self.next()? == byte {
            Ok(())
        } else {
            Err(Problem::Invalid(self.at - 1))
        }
    }
}

#[cfg(test)]
mod tests;
