//! `application/x-www-form-urlencoded`: the request format of AWS' Query protocol, and of query
//! strings.

/// Decoded parameters, in the order received.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(form: &[u8]) -> Self {
        Self(form_urlencoded::parse(form).into_owned().collect())
    }

    /// Returns the value of the first parameter with this name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}
