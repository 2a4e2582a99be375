//! Validation of a JSON object in text form, which is stored with its numbers unchanged.
//!
//! Of members with the same name in one object only the last is kept, at every level: JSON
//! parsers disagree on which one counts, and strict ones refuse the whole record.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use super::json::find_special;

/// Most levels of nested objects and arrays, including the outermost.
pub const MAX_DEPTH: u32 = 64;

/// Valid text of a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context<'a> {
    text: Cow<'a, str>,
    line_breaks: bool,
}

/// Reason why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    /// It does not start with an object.
    NotAnObject,
    /// It nests deeper than [`MAX_DEPTH`].
    TooDeep,
    /// It is not valid JSON at this byte.
    Invalid(usize),
    /// The escape at this byte is half of a surrogate pair, which is not a character.
    LoneSurrogate(usize),
}

impl<'a> Context<'a> {
    /// Checks that the text is one JSON object (RFC 8259), with only white space around it.
    ///
    /// Escapes of a lone surrogate are refused too: the grammar allows them, but strict
    /// parsers would refuse the whole record.
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
            fingerprints: Vec::new(),
            repeated: Vec::new(),
        };
        scanner.document()?;
        Ok(Self {
            text: without(text, scanner.repeated),
            line_breaks: scanner.line_breaks,
        })
    }

    /// Bytes that [`Context::write`] appends.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// Appends the text, with line breaks replaced by spaces, because a record is one line.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        if !self.line_breaks {
            out.extend_from_slice(self.text.as_bytes());
            return;
        }
        // JSON strings have no raw line breaks, so all of them are between tokens.
        out.extend(self.text.bytes().map(|byte| match byte {
            b'\n' | b'\r' => b' ',
            other => other,
        }));
    }
}

/// Removes ranges from a text. Two ranges may be nested, but not overlap otherwise.
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

/// A member of an open object.
struct Member {
    fingerprint: u64,
    /// Position of the opening quote of its name.
    start: usize,
    /// Position of the closing quote of its name.
    name_end: usize,
}

impl Member {
    /// The name with its escapes decoded.
    fn name<'a>(&self, text: &'a [u8]) -> Cow<'a, str> {
        let quoted = &text[self.start..=self.name_end];
        let decoded = match self.fingerprint {
            ESCAPED => serde_json::from_slice(quoted).ok().map(Cow::Owned),
            _ => None,
        };
        decoded.unwrap_or_else(|| String::from_utf8_lossy(&quoted[1..quoted.len() - 1]))
    }
}

/// Fingerprint of every name with an escape, since such a name may equal any other.
const ESCAPED: u64 = u64::MAX;

/// Combines the length, the first eight and the last eight bytes of a name without escapes.
/// Equal for equal names, and seldom for others.
fn fingerprint(name: &[u8]) -> u64 {
    let eight = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let first = eight(&name[..name.len().min(8)]);
    let last = eight(&name[name.len().saturating_sub(8)..]);
    first ^ last.rotate_left(29) ^ (name.len() as u64) << 56
}

/// Stack of the open objects and arrays.
struct Nesting {
    /// One bit per container, the innermost lowest; set for an object.
    objects: u64,
    depth: u32,
    /// For each open container, the number of open members when it was opened.
    firsts: [u32; MAX_DEPTH as usize],
}

impl Nesting {
    fn open(&mut self, object: bool, members: usize) -> Result<(), Problem> {
        let first = self.firsts.get_mut(self.depth as usize);
        // A request is too short to have more than `u32::MAX` members.
        *first.ok_or(Problem::TooDeep)? = members as u32;
        self.objects = self.objects << 1 | u64::from(object);
        self.depth += 1;
        Ok(())
    }

    /// Returns the index of the first member within the container.
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
    /// Members of all open objects, outermost first.
    members: Vec<Member>,
    /// Buffer that each object reuses.
    fingerprints: Vec<u64>,
    /// Members whose name is repeated later in the same object, each up to the next member.
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

    /// Reads a scalar, or the start of a container up to its first scalar.
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
                        self.name()?;
                    }
                }
                _ => return Err(Problem::Invalid(self.at - 1)),
            }
        }
    }

    fn member(&mut self) -> Result<(), Problem> {
        self.skip_space();
        self.name()?;
        self.value()
    }

    /// Records the repeated members of an object that ends here.
    fn end_object(&mut self, first: usize) {
        let members = &self.members[first..];
        self.fingerprints.clear();
        self.fingerprints
            .extend(members.iter().map(|member| member.fingerprint));
        self.fingerprints.sort_unstable();
        let may_repeat = self.fingerprints.last() == Some(&ESCAPED)
            || self.fingerprints.windows(2).any(|pair| pair[0] == pair[1]);
        if may_repeat && members.len() > 1 {
            self.find_repeated(first);
        }
        self.members.truncate(first);
    }

    #[cold]
    fn find_repeated(&mut self, first: usize) {
        let members = &self.members[first..];
        let mut last_of_name: HashMap<Cow<'_, str>, usize> = HashMap::with_capacity(members.len());
        for (number, member) in members.iter().enumerate() {
            let before = last_of_name.insert(member.name(self.bytes), number);
            if let Some(before) = before {
                self.repeated
                    .push(members[before].start..members[before + 1].start);
            }
        }
    }

    /// Reads the name of a member and the colon after it.
    fn name(&mut self) -> Result<(), Problem> {
        let start = self.at;
        self.expect(b'"')?;
        let escapes = self.string()?;
        let name_end = self.at - 1;
        let fingerprint = match escapes {
            true => ESCAPED,
            false => fingerprint(&self.bytes[start + 1..name_end]).min(ESCAPED - 1),
        };
        self.members.push(Member {
            fingerprint,
            start,
            name_end,
        });
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        Ok(())
    }

    /// Reads the rest of a string after its opening quote. Returns whether it has escapes.
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

    /// Reads the rest of a number after its first byte.
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
