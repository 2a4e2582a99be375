//! Writes a JSON object out of raw values.

/// Grows as values come; empty until the first.
#[derive(Debug, Default)]
pub(super) struct Context(String);

impl Context {
    /// Appends one value, which is JSON text.
    pub(super) fn push(&mut self, key: &str, json: &str) {
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
