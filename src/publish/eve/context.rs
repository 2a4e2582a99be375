//! Writes a JSON object out of raw values.

use crate::domain::event::MAX_CONTEXT_DEPTH;

/// The most levels of a value. It stands in the context, and there perhaps in the metadata of
/// the alert.
const MAX_DEPTH: u32 = MAX_CONTEXT_DEPTH - 3;

/// Grows as values come; empty until the first.
#[derive(Debug, Default)]
pub(super) struct Context(String);

impl Context {
    /// Appends one value, which is JSON text; as a string where it nests too deep.
    pub(super) fn push_value(&mut self, key: &str, json: &str) {
        match is_too_deep(json) {
            true => self.push(key, &serde_json::Value::from(json).to_string()),
            false => self.push(key, json),
        }
    }

    fn push(&mut self, key: &str, json: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        // `Value` of a string prints as JSON and cannot fail.
        self.0.push_str(&serde_json::Value::from(key).to_string());
        self.0.push(':');
        self.0.push_str(json);
    }

    /// Appends an object, unless it is empty.
    pub(super) fn push_object(&mut self, key: &str, object: &Self) {
        if !object.0.is_empty() {
            self.push(key, &format!("{}}}", object.0));
        }
    }

    /// The object's text; empty where nothing was pushed.
    pub(super) fn finish(mut self) -> String {
        if !self.0.is_empty() {
            self.0.push('}');
        }
        self.0
    }
}

fn is_too_deep(json: &str) -> bool {
    let (mut depth, mut bytes) = (0, json.bytes());
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' if depth == MAX_DEPTH => return true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
    }
    false
}

fn skip_string(bytes: &mut std::str::Bytes<'_>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
}
