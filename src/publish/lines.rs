//! Splitting of chunks into lines, with bounded memory. Pure.

use bytes::Bytes;

use super::LineError;

/// A line without its line break.
#[derive(Debug)]
pub(super) struct RawLine {
    /// Line number, from 1.
    pub(super) number: u64,
    /// Offset in the input after the line break.
    pub(super) end: u64,
    /// The text without NULs at its start, and with one NUL for each run of them elsewhere.
    pub(super) text: Result<Bytes, LineError>,
    /// Number of NULs in the input.
    pub(super) nuls: u64,
}

/// Splitter of chunks of any size. `\n`, `\r\n` and the end of the input end a line. A byte
/// order mark at the start is dropped. A crash or a truncation may leave gigabytes of NULs
/// where nothing was written; they take no memory and do not count towards the length of a
/// line.
#[derive(Debug)]
pub(super) struct Lines {
    max_line_bytes: usize,
    chunk: Bytes,
    /// Start of a line whose end has not been received.
    partial: Vec<u8>,
    /// Whether the line is too long, so that the rest of it is dropped.
    dropping: bool,
    /// Number of NULs in the line so far.
    nuls: u64,
    number: u64,
    /// Offset in the input up to which lines were split.
    offset: u64,
    ended: bool,
}

impl Lines {
    pub(super) fn new(max_line_bytes: usize) -> Self {
        Self::after(max_line_bytes, 0, 0)
    }

    /// Creates a splitter for the rest of an input, after `bytes` bytes and `lines` lines.
    pub(super) fn after(max_line_bytes: usize, bytes: u64, lines: u64) -> Self {
        Self {
            max_line_bytes,
            chunk: Bytes::new(),
            partial: Vec::new(),
            dropping: false,
            nuls: 0,
            number: lines,
            offset: bytes,
            ended: false,
        }
    }

    /// Adds more of the input. Requires that [`Self::next_line`] has returned none.
    pub(super) fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "the last chunk still has lines");
        self.chunk = chunk;
    }

    /// Marks the end of the input.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Returns the next complete line.
    pub(super) fn next_line(&mut self) -> Option<RawLine> {
        match self.chunk.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                let rest = self.chunk.split_off(at + 1);
                let mut part = std::mem::replace(&mut self.chunk, rest);
                self.offset += part.len() as u64;
                part.truncate(at);
                Some(self.complete(part))
            }
            None => {
                let part = std::mem::take(&mut self.chunk);
                self.offset += part.len() as u64;
                self.keep(&part);
                let left = self.dropping || !self.partial.is_empty() || self.nuls > 0;
                (self.ended && left).then(|| self.complete(Bytes::new()))
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        for (number, run) in part.split(|byte| *byte == 0).enumerate() {
            if number > 0 {
                self.nuls += 1;
                if !self.partial.is_empty() && !self.partial.ends_with(&[0]) {
                    self.partial.push(0);
                }
            }
            self.dropping |= self.partial.len() + run.len() > self.max_line_bytes;
            if self.dropping {
                self.partial = Vec::new();
            } else {
                self.partial.extend_from_slice(run);
            }
        }
    }

    fn complete(&mut self, part: Bytes) -> RawLine {
        self.number += 1;
        let (number, end) = (self.number, self.offset);
        let is_whole = self.partial.is_empty() && !self.dropping && !part.contains(&0);
        let mut text = if is_whole && part.len() <= self.max_line_bytes {
            part
        } else {
            self.keep(&part);
            Bytes::from(std::mem::take(&mut self.partial))
        };
        let nuls = std::mem::take(&mut self.nuls);
        if std::mem::take(&mut self.dropping) {
            return RawLine {
                number,
                end,
                text: Err(LineError::TooLong),
                nuls,
            };
        }
        if text.ends_with(b"\r") {
            text.truncate(text.len() - 1);
        }
        if number == 1 && text.starts_with("\u{feff}".as_bytes()) {
            text = text.slice(3..);
        }
        RawLine {
            number,
            end,
            text: Ok(text),
            nuls,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 8;

    /// Returns each line's number, and its text unless it is too long.
    fn split(chunks: &[&[u8]]) -> Vec<(u64, Option<String>)> {
        let mut lines = Lines::new(MAX);
        let mut found = vec![];
        let mut take = |lines: &mut Lines| {
            while let Some(line) = lines.next_line() {
                let text = line.text.ok();
                let text = text.map(|text| String::from_utf8(text.to_vec()).unwrap());
                found.push((line.number, text));
                assert!(lines.partial.capacity() <= 4 * MAX);
            }
        };
        for chunk in chunks {
            lines.feed(Bytes::copy_from_slice(chunk));
            take(&mut lines);
        }
        lines.end();
        take(&mut lines);
        found
    }

    fn check(chunks: &[&str], expect: &[Option<&str>]) {
        let chunks: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
        let expect: Vec<_> = (1..)
            .zip(expect.iter().map(|text| text.map(str::to_owned)))
            .collect();
        assert_eq!(split(&chunks), expect, "{chunks:?}");
    }

    #[test]
    fn line_breaks_and_the_end_of_input_end_lines() {
        check(&[], &[]);
        check(&[""], &[]);
        check(&["a\nb\n"], &[Some("a"), Some("b")]);
        check(&["a\nb"], &[Some("a"), Some("b")]);
        check(&["a\r\n\r\nb\r"], &[Some("a"), Some(""), Some("b")]);
        check(
            &["a", "b\n", "", "c\r", "\nd"],
            &[Some("ab"), Some("c"), Some("d")],
        );
        check(&["\u{feff}a\n\u{feff}b"], &[Some("a"), Some("\u{feff}b")]);
    }

    #[test]
    fn lines_have_numbers_and_end_offsets() {
        let mut lines = Lines::after(MAX, 100, 7);
        let mut ends = vec![];
        for chunk in ["a\r", "\nbc\n0123456789", "\n\nd"] {
            lines.feed(Bytes::from_static(chunk.as_bytes()));
            while let Some(line) = lines.next_line() {
                ends.push((line.number, line.end));
            }
        }
        lines.end();
        ends.extend(lines.next_line().map(|line| (line.number, line.end)));
        assert_eq!(ends, [(8, 103), (9, 106), (10, 117), (11, 118), (12, 119)]);
    }

    #[test]
    fn a_line_that_is_too_long_is_one_broken_line() {
        check(
            &["12345678\n123456789\nb"],
            &[Some("12345678"), None, Some("b")],
        );
        check(&["12345", "6789", "0123456789\nb"], &[None, Some("b")]);
        check(&["b\n12345", "6789"], &[Some("b"), None]);
        check(&["123456789", "\n", "b"], &[None, Some("b")]);
    }

    #[test]
    fn nuls_are_counted_and_take_no_memory() {
        check(
            &["\0\0a\nb\0\0\0c\n\0\n\0"],
            &[Some("a"), Some("b\0c"), Some(""), Some("")],
        );
        check(
            &[
                "\0\0\0\0\0\0\0\0\0\0",
                "\0\x0012345678\n1234\0",
                "\0\x00567\n",
            ],
            &[Some("12345678"), Some("1234\x00567")],
        );
        check(&["12345678\x009\nb"], &[None, Some("b")]);
        let mut lines = Lines::new(MAX);
        for _ in 0..1_000 {
            lines.feed(Bytes::from_static(&[0; 10_000]));
            assert!(lines.next_line().is_none());
        }
        lines.feed(Bytes::from_static(b"a\0b\r\nc\n"));
        let line = lines.next_line().unwrap();
        assert_eq!((line.nuls, line.end), (10_000_001, 10_000_005));
        assert_eq!(line.text.unwrap(), "a\0b");
        assert_eq!(lines.next_line().unwrap().nuls, 0);
    }

    proptest! {
        #[test]
        fn chunk_borders_do_not_matter(
            text in "[ab\r\n\0]{0,60}",
            mut cuts in prop::collection::vec(0usize..60, 0..8),
        ) {
            cuts.retain(|cut| *cut <= text.len());
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> =
                cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(split(&pieces), split(&[text.as_bytes()]));
        }
    }
}
