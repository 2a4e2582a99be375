//! Makes text of a record's bytes.

use std::borrow::Cow;

use super::Repair;

/// Bytes of a prefix that are told.
const MAX_PREFIX_BYTES: usize = 100;

/// White space and NULs only.
pub(super) fn is_blank(line: &[u8]) -> bool {
    line.iter()
        .all(|byte| byte.is_ascii_whitespace() || *byte == 0)
}

/// Whether a line is UTF-16: it starts with its byte order mark, or every other of its first
/// bytes is a NUL. NULs before and after may be gone.
pub(super) fn is_utf16(line: &[u8]) -> bool {
    let pairs = |line: &[u8]| matches!(line, [a, 0, b, 0, ..] if *a > 0 && *b > 0);
    line.starts_with(&[0xff, 0xfe])
        || line.starts_with(&[0xfe, 0xff])
        || pairs(line)
        || line
            .split_first()
            .is_some_and(|(first, rest)| *first == 0 && pairs(rest))
}

/// The text of a record, with U+FFFD for what is no text.
pub(super) fn mend<'a>(object: &'a [u8], prefix: Option<&[u8]>) -> (Cow<'a, str>, Vec<Repair>) {
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

/// The length of an escape of a code unit.
const ESCAPE: usize = "\\u0000".len();

/// Finds escapes of one half of a surrogate pair without the other half.
fn lone_surrogates(text: &str) -> Vec<usize> {
    let (bytes, mut lone, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some(offset) = text[at..].find('\\') {
        at += offset;
        match unit(bytes, at) {
            Some(0xd800..=0xdbff) if matches!(unit(bytes, at + ESCAPE), Some(0xdc00..=0xdfff)) => {
                at += 2 * ESCAPE;
            }
            Some(0xd800..=0xdfff) => {
                lone.push(at);
                at += ESCAPE;
            }
            // The character after it may be another backslash, but is one byte at least.
            _ => at = text.ceil_char_boundary(at + 2),
        }
    }
    lone
}

/// The code unit of the escape that starts here.
fn unit(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + ESCAPE)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}
