//! Cuts what was captured into JSON objects, however they are put together. Pure.
//!
//! Objects stand one a line, end to end, in arrays, or over several lines. What is cut
//! off or damaged costs its own lines, and the rest is read.

use std::collections::VecDeque;

/// A longer object or line is taken apart. A GetRecords answers up to 10 MiB, which
/// base64 makes a third longer.
const MAX_BYTES: usize = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A part of the input, and the line on which it starts, from 1.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) line: u64,
    pub(super) content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Has the brackets of an object; whether it is JSON shows when it is parsed.
    Object(Vec<u8>),
    /// A line, or the rest of one, that is no object.
    Text(Vec<u8>),
}

/// Takes chunks of any size.
#[derive(Debug)]
pub(super) struct Framer {
    buffer: Vec<u8>,
    /// Where what is not told yet begins.
    start: usize,
    /// Where to read on.
    at: usize,
    /// The line of `start`.
    line: u64,
    scan: Scan,
    queue: VecDeque<Piece>,
    ended: bool,
    begun: bool,
}

/// Where in an object the reading is.
#[derive(Debug, Default)]
struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last byte that is no space.
    last: u8,
    line_begins: bool,
    newlines: u64,
}

impl Framer {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            at: 0,
            line: 1,
            scan: Scan::default(),
            queue: VecDeque::new(),
            ended: false,
            begun: false,
        }
    }

    /// More of the input, once [`Self::next_piece`] has answered `None`.
    pub(super) fn feed(&mut self, chunk: &[u8]) {
        self.buffer.drain(..self.start);
        self.at -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(chunk);
    }

    /// There is no more input.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// The next part that is complete.
    pub(super) fn next_piece(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.queue.pop_front() {
                return Some(piece);
            }
            let more = match self.scan.depth {
                0 => self.between(),
                _ => self.inside(),
            };
            if !more {
                return None;
            }
        }
    }

    /// Reads up to where an object begins; false where more input is needed.
    fn between(&mut self) -> bool {
        if !self.begun {
            let here = &self.buffer[self.at..];
            if here.len() < BYTE_ORDER_MARK.len() && !self.ended {
                return false;
            }
            self.at += match here.starts_with(BYTE_ORDER_MARK) {
                true => BYTE_ORDER_MARK.len(),
                false => 0,
            };
            self.begun = true;
        }
        while let Some(byte) = self.buffer.get(self.at) {
            match byte {
                b'\n' => self.line += 1,
                b' ' | b'\t' | b'\r' | b',' | b'[' | b']' => {}
                b'{' => {
                    self.start = self.at;
                    self.at += 1;
                    self.scan = Scan {
                        depth: 1,
                        last: b'{',
                        ..Scan::default()
                    };
                    return true;
                }
                _ => return self.text(),
            }
            self.at += 1;
            self.start = self.at;
        }
        false
    }

    fn text(&mut self) -> bool {
        self.start = self.at;
        let rest = &self.buffer[self.at..];
        let end = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => end,
            None if self.ended || rest.len() > MAX_BYTES => rest.len(),
            None => return false,
        };
        self.queue.push_back(Piece {
            line: self.line,
            content: Content::Text(rest[..end].to_vec()),
        });
        self.at += end;
        self.start = self.at;
        true
    }

    /// Reads an object to its end; false where more input is needed.
    fn inside(&mut self) -> bool {
        while let Some(byte) = self.buffer.get(self.at) {
            match self.scan.take(*byte) {
                Step::On => self.at += 1,
                Step::Complete => {
                    self.at += 1;
                    let object = self.buffer[self.start..self.at].to_vec();
                    self.tell(Content::Object(object));
                    return true;
                }
                Step::CutOff => {
                    self.take_apart();
                    return true;
                }
            }
        }
        let waits = !self.ended && self.at - self.start <= MAX_BYTES;
        if !waits {
            self.take_apart();
        }
        !waits
    }

    fn tell(&mut self, content: Content) {
        let line = self.line;
        self.queue.push_back(Piece { line, content });
        self.line += self.scan.newlines;
        self.scan = Scan::default();
        self.start = self.at;
    }

    /// What was read of an object that does not end is not one.
    fn take_apart(&mut self) {
        let object = &self.buffer[self.start..self.at];
        self.queue.extend(lines(object, self.line));
        self.line += self.scan.newlines;
        self.scan = Scan::default();
        self.start = self.at;
    }
}

enum Step {
    On,
    Complete,
    /// The byte does not belong to the object, which has no end.
    CutOff,
}

impl Scan {
    fn take(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                // JSON has no line breaks in its strings.
                b'\n' => return Step::CutOff,
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    self.last = byte;
                }
                _ => {}
            }
            return Step::On;
        }
        match byte {
            b'\n' => {
                self.newlines += 1;
                self.line_begins = true;
                return Step::On;
            }
            b' ' | b'\t' | b'\r' => {}
            // Where no value can stand, it begins another record.
            b'{' if self.line_begins && !matches!(self.last, b'[' | b',' | b':') => {
                return Step::CutOff;
            }
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            b'"' => self.in_string = true,
            _ => {}
        }
        self.line_begins = false;
        if !byte.is_ascii_whitespace() {
            self.last = byte;
        }
        match self.depth {
            0 => Step::Complete,
            _ => Step::On,
        }
    }
}

/// Reads each line for itself; a single line is text.
pub(super) fn lines(bytes: &[u8], first_line: u64) -> Vec<Piece> {
    let text = |line, bytes: &[u8]| Piece {
        line,
        content: Content::Text(bytes.to_vec()),
    };
    if !bytes.contains(&b'\n') {
        return vec![text(first_line, bytes)];
    }
    let mut pieces = Vec::new();
    for (line, bytes) in (first_line..).zip(bytes.split(|byte| *byte == b'\n')) {
        let mut framer = Framer::new();
        framer.line = line;
        framer.feed(bytes);
        framer.end();
        while let Some(piece) = framer.next_piece() {
            pieces.push(piece);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(chunks: &[&[u8]]) -> Vec<(u64, bool, String)> {
        let mut framer = Framer::new();
        let mut found = Vec::new();
        let mut take = |framer: &mut Framer| {
            while let Some(piece) = framer.next_piece() {
                let (is_object, bytes) = match piece.content {
                    Content::Object(bytes) => (true, bytes),
                    Content::Text(bytes) => (false, bytes),
                };
                let text = String::from_utf8_lossy(&bytes).into_owned();
                found.push((piece.line, is_object, text));
            }
        };
        for chunk in chunks {
            framer.feed(chunk);
            take(&mut framer);
        }
        framer.end();
        take(&mut framer);
        found
    }

    /// Objects are given as they are, text with a tilde before it.
    #[track_caller]
    fn check(input: &str, expected: &[(u64, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(line, text)| match text.strip_prefix('~') {
                Some(text) => (*line, false, text.to_owned()),
                None => (*line, true, (*text).to_owned()),
            })
            .collect();
        assert_eq!(pieces(&[input.as_bytes()]), expected, "{input}");
    }

    #[test]
    fn objects_are_found_however_they_are_put_together() {
        check("", &[]);
        check(" \n\r\n", &[]);
        check(
            "{\"a\":1}\n{\"b\":2}",
            &[(1, "{\"a\":1}"), (2, "{\"b\":2}")],
        );
        check(
            "{}{\"b\":{}}\n\n{}",
            &[(1, "{}"), (1, "{\"b\":{}}"), (3, "{}")],
        );
        check("[\n{\"a\":1},\n{}\n]", &[(2, "{\"a\":1}"), (3, "{}")]);
        check("\u{feff}{}\n", &[(1, "{}")]);
        check(r#"{"}":"\"{"}{}"#, &[(1, r#"{"}":"\"{"}"#), (1, "{}")]);
        let pretty = "{\n  \"a\": [\n    {\n      \"b\": 1\n    }\n  ]\n}";
        check(&format!("{pretty}\n{pretty}"), &[(1, pretty), (8, pretty)]);
        let flat = "{\"Records\":[\n{\"a\":1},\n{\"b\":1}\n]}";
        check(flat, &[(1, flat)]);
    }

    #[test]
    fn what_is_damaged_costs_its_own_line() {
        check("x\n{}", &[(1, "~x"), (2, "{}")]);
        check("{}x\n{}", &[(1, "{}"), (1, "~x"), (2, "{}")]);
        check("{\"a\":\"b\n{}", &[(1, "~{\"a\":\"b"), (2, "{}")]);
        check(
            "{\"a\":{\n{}{\"b\":1}\n{}",
            &[(1, "~{\"a\":{"), (2, "{}"), (2, "{\"b\":1}"), (3, "{}")],
        );
        // A value may follow a comma: only the next line shows that none did.
        check(
            "{\"a\":1,\n{}{}\n{}\n{}",
            &[
                (1, "~{\"a\":1,"),
                (2, "{}"),
                (2, "{}"),
                (3, "{}"),
                (4, "{}"),
            ],
        );
        check("{}\n{\"a\":{}", &[(1, "{}"), (2, "~{\"a\":{}")]);
    }

    proptest! {
        #[test]
        fn where_chunks_are_cut_does_not_matter(
            text in "([{}\\[\\],:\"\\\\ x\n]|\\{\"a\":\\{\\}\\}\n){0,40}",
            mut cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            cuts.retain(|cut| *cut <= text.len());
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> =
                cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(pieces(&chunks), pieces(&[text.as_bytes()]));
        }

        #[test]
        fn whole_lines_are_read_whatever_stands_between_them(
            damage in prop::collection::vec(prop::option::of("[{}\\[\\],:\"\\\\ x]{0,12}"), 0..12),
        ) {
            // A comma or an opening bracket at the end of a line reaches for the next one.
            let mut input = String::new();
            for (number, damage) in damage.iter().enumerate() {
                if let Some(damage) = damage {
                    input += &format!("{damage}\n");
                }
                input += &format!("{{\"whole\":{number}}}\n");
            }
            let found = pieces(&[input.as_bytes()]);
            for number in 0..damage.len() {
                let whole = format!("{{\"whole\":{number}}}");
                prop_assert!(
                    found.iter().any(|piece| piece.2.contains(&whole)),
                    "{} of {}", whole, input
                );
            }
        }
    }
}
