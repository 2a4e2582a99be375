//! Splitting of captured bytes into JSON objects. Pure.
//!
//! Objects may be one per line, end to end, in arrays, or over several lines. Damage affects
//! its own lines only; the rest is read.

use std::collections::VecDeque;

/// Maximum length of an object or a line; a longer one is split into its lines. A response of
/// GetRecords has up to 10 MiB, and a third more in base64.
const MAX_BYTES: usize = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// An object or a text of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Number of its first line, from 1.
    pub(super) line: u64,
    pub(super) content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Text with the matching brackets of an object, which may not be valid JSON.
    Object(Vec<u8>),
    /// A line, or the rest of one, that is not an object.
    Text(Vec<u8>),
}

/// Splitter of chunks of any size.
#[derive(Debug)]
pub(super) struct Framer {
    buffer: Vec<u8>,
    /// Index of the first byte that is not part of a frame yet.
    start: usize,
    /// Index of the next byte to scan.
    at: usize,
    /// Line number at `start`.
    line: u64,
    scan: Scan,
    queue: VecDeque<Frame>,
    /// Whether the input has ended.
    ended: bool,
    /// Whether a byte order mark was looked for.
    begun: bool,
}

/// State of the scan within an object.
#[derive(Debug, Default)]
struct Scan {
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The last byte that is not white space.
    last: u8,
    /// Whether only white space was read since the last line break.
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

    /// Adds more of the input. Requires that [`Self::next_frame`] has returned none.
    pub(super) fn feed(&mut self, chunk: &[u8]) {
        self.buffer.drain(..self.start);
        self.at -= self.start;
        self.start = 0;
        self.buffer.extend_from_slice(chunk);
    }

    /// Marks the end of the input.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Returns the next complete frame.
    pub(super) fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.queue.pop_front() {
                return Some(frame);
            }
            let has_progress = match self.scan.depth {
                0 => self.between_objects(),
                _ => self.in_object(),
            };
            if !has_progress {
                return None;
            }
        }
    }

    /// Scans up to the start of an object; false if more input is needed.
    fn between_objects(&mut self) -> bool {
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
        self.queue.push_back(Frame {
            line: self.line,
            content: Content::Text(rest[..end].to_vec()),
        });
        self.at += end;
        self.start = self.at;
        true
    }

    /// Scans an object to its end; false if more input is needed.
    fn in_object(&mut self) -> bool {
        while let Some(byte) = self.buffer.get(self.at) {
            match self.scan.take(*byte) {
                Step::Continue => self.at += 1,
                Step::Complete => {
                    self.at += 1;
                    let object = self.buffer[self.start..self.at].to_vec();
                    let line = self.line;
                    let content = Content::Object(object);
                    self.queue.push_back(Frame { line, content });
                    self.end_object();
                    return true;
                }
                Step::CutOff => {
                    self.split_lines();
                    return true;
                }
            }
        }
        let waits = !self.ended && self.at - self.start <= MAX_BYTES;
        if !waits {
            self.split_lines();
        }
        !waits
    }

    /// Splits the text of an object without an end into its lines.
    fn split_lines(&mut self) {
        let object = &self.buffer[self.start..self.at];
        self.queue.extend(lines(object, self.line));
        self.end_object();
    }

    fn end_object(&mut self) {
        self.line += self.scan.newlines;
        self.scan = Scan::default();
        self.start = self.at;
    }
}

enum Step {
    Continue,
    Complete,
    /// The byte is not part of the object, whose end is missing.
    CutOff,
}

impl Scan {
    fn take(&mut self, byte: u8) -> Step {
        if self.in_string {
            match byte {
                // A JSON string contains no line break.
                b'\n' => return Step::CutOff,
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.in_string = false;
                    self.last = byte;
                }
                _ => {}
            }
            return Step::Continue;
        }
        match byte {
            b'\n' => {
                self.newlines += 1;
                self.line_begins = true;
                return Step::Continue;
            }
            b' ' | b'\t' | b'\r' => {}
            // No value is valid here, so it starts another record.
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
            _ => Step::Continue,
        }
    }
}

/// Splits each line separately; a single line becomes text.
pub(super) fn lines(bytes: &[u8], first_line: u64) -> Vec<Frame> {
    let text = |line, bytes: &[u8]| Frame {
        line,
        content: Content::Text(bytes.to_vec()),
    };
    if !bytes.contains(&b'\n') {
        return vec![text(first_line, bytes)];
    }
    let mut frames = Vec::new();
    for (line, bytes) in (first_line..).zip(bytes.split(|byte| *byte == b'\n')) {
        let mut framer = Framer::new();
        framer.line = line;
        framer.feed(bytes);
        framer.end();
        while let Some(frame) = framer.next_frame() {
            frames.push(frame);
        }
    }
    frames
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(chunks: &[&[u8]]) -> Vec<(u64, bool, String)> {
        let mut framer = Framer::new();
        let mut found = Vec::new();
        let mut take = |framer: &mut Framer| {
            while let Some(frame) = framer.next_frame() {
                let (is_object, bytes) = match frame.content {
                    Content::Object(bytes) => (true, bytes),
                    Content::Text(bytes) => (false, bytes),
                };
                let text = String::from_utf8_lossy(&bytes).into_owned();
                found.push((frame.line, is_object, text));
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

    /// Checks the frames; a tilde precedes a text.
    #[track_caller]
    fn check(input: &str, expected: &[(u64, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(line, text)| match text.strip_prefix('~') {
                Some(text) => (*line, false, text.to_owned()),
                None => (*line, true, (*text).to_owned()),
            })
            .collect();
        assert_eq!(frames(&[input.as_bytes()]), expected, "{input}");
    }

    #[test]
    fn objects_are_found_in_every_arrangement() {
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
    fn damage_affects_its_own_line_only() {
        check("x\n{}", &[(1, "~x"), (2, "{}")]);
        check("{}x\n{}", &[(1, "{}"), (1, "~x"), (2, "{}")]);
        check("{\"a\":\"b\n{}", &[(1, "~{\"a\":\"b"), (2, "{}")]);
        check(
            "{\"a\":{\n{}{\"b\":1}\n{}",
            &[(1, "~{\"a\":{"), (2, "{}"), (2, "{\"b\":1}"), (3, "{}")],
        );
        // A value may follow a comma; only the line after shows that none did.
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
        fn chunk_borders_do_not_matter(
            text in "([{}\\[\\],:\"\\\\ x\n]|\\{\"a\":\\{\\}\\}\n){0,40}",
            mut cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            cuts.retain(|cut| *cut <= text.len());
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> =
                cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(frames(&chunks), frames(&[text.as_bytes()]));
        }

        #[test]
        fn whole_lines_between_damaged_ones_are_read(
            damage in prop::collection::vec(prop::option::of("[{}\\[\\],:\"\\\\ x]{0,12}"), 0..12),
        ) {
            // A comma or an opening bracket at the end of a line may join it with the next one.
            let mut input = String::new();
            for (number, damage) in damage.iter().enumerate() {
                if let Some(damage) = damage {
                    input += &format!("{damage}\n");
                }
                input += &format!("{{\"whole\":{number}}}\n");
            }
            let found = frames(&[input.as_bytes()]);
            for number in 0..damage.len() {
                let whole = format!("{{\"whole\":{number}}}");
                prop_assert!(
                    found.iter().any(|frame| frame.2.contains(&whole)),
                    "{} of {}", whole, input
                );
            }
        }
    }
}
