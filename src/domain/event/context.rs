//! Checks a JSON object that travels as text and is kept digit for digit.

use super::json::find_special;

/// Objects and arrays that may stand in one another, the outermost included.
pub const MAX_DEPTH: u32 = 64;

/// A JSON object as text, known to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Context<'a> {
    text: &'a str,
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
            nesting: Nesting::default(),
        };
        scanner.document()?;
        Ok(Self {
            text,
            line_breaks: scanner.line_breaks,
        })
    }

    /// The length in bytes that it is written with.
    pub(super) fn len(self) -> usize {
        self.text.len()
    }

    /// Appends the text as it was given, but for line breaks between tokens, which
    /// become spaces: a record is one line.
    pub(super) fn write(self, out: &mut Vec<u8>) {
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

/// Which containers are open: a bit each, set for an object.
#[derive(Default)]
struct Nesting {
    objects: u64,
    depth: u32,
}

impl Nesting {
    fn open(&mut self, object: bool) -> Result<(), Problem> {
        if self.depth == MAX_DEPTH {
            return Err(Problem::TooDeep);
        }
        self.objects = self.objects << 1 | u64::from(object);
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
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
                (b'}', true) | (b']', false) => self.nesting.close(),
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
                b'"' => return self.string(),
                byte @ (b'-' | b'0'..=b'9') => return self.number(byte),
                b't' => return self.literal(b"rue"),
                b'f' => return self.literal(b"alse"),
                b'n' => return self.literal(b"ull"),
                open @ (b'{' | b'[') => {
                    let object = open == b'{';
                    self.nesting.open(object)?;
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

    fn key(&mut self) -> Result<(), Problem> {
        self.expect(b'"')?;
        self.string()?;
        self.skip_space();
        self.expect(b':')?;
        self.skip_space();
        Ok(())
    }

    /// The rest of a string, after its opening quote.
    fn string(&mut self) -> Result<(), Problem> {
        loop {
            let Some(length) = find_special(&self.bytes[self.at..]) else {
                return Err(Problem::Invalid(self.bytes.len()));
            };
            self.at += length;
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
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
                    self.expect(b'\\')?;
                    self.expect(b'u')?;
                    match self.code_unit()? {
                        0xdc00..=0xdfff => Ok(()),
                        _ => Err(Problem::Invalid(start)),
                    }
                }
                0xdc00..=0xdfff => Err(Problem::Invalid(start)),
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
