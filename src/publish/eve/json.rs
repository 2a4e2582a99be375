//! Reading and writing of JSON objects whose members keep their order and values their text.

use std::{
    borrow::Cow,
    collections::{HashMap, hash_map::Entry},
    fmt, vec,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::domain::event::MAX_CONTEXT_DEPTH;

/// Maximum nesting of a value. A value is nested in up to three containers of ours: the context,
/// its `alert`, and the `metadata` of that.
const MAX_DEPTH: u32 = MAX_CONTEXT_DEPTH - 3;

/// An object that was read. A repeated key keeps its first position and its last value.
#[derive(Debug)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

#[derive(Deserialize, PartialEq, Eq, Hash, Clone)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Object<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a RawValue> {
        let (_, raw) = self.0.iter().find(|(name, _)| name == key)?;
        Some(raw)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for Object<'a> {
    type Item = (Cow<'a, str>, &'a RawValue);
    type IntoIter = vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(24);
        // A linear search would take quadratic time for a line of a million keys.
        let mut indexes: HashMap<Key<'de>, usize> = HashMap::with_capacity(24);
        while let Some((key, raw)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            match indexes.entry(key) {
                Entry::Occupied(index) => entries[*index.get()].1 = raw,
                Entry::Vacant(index) => {
                    entries.push((index.key().0.clone(), raw));
                    index.insert(entries.len() - 1);
                }
            }
        }
        Ok(Object(entries))
    }
}

/// Text of an object that is being written, without its last brace; empty before the first member.
#[derive(Debug, Default)]
pub(super) struct Context(String);

impl Context {
    /// Appends a value, given as JSON text; one that nests too deep is written as a string.
    pub(super) fn push_value(&mut self, key: &str, json: &str) {
        match is_too_deep(json) {
            true => self.push(key, &serde_json::Value::from(json).to_string()),
            false => self.push(key, json),
        }
    }

    fn push(&mut self, key: &str, json: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        // Printing a `Value` that is a string cannot fail.
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

    /// Returns the text; empty if nothing was appended.
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
