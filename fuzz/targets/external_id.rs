//! External IDs: an accepted one has the alphabet and the length of STS, and never prints.
#![no_main]

use libfuzzer_sys::fuzz_target;
use siem_relay::domain::external_id::ExternalId;

fuzz_target!(|text: &str| {
    match ExternalId::parse(text.to_owned()) {
        Ok(id) => {
            assert_eq!(id.expose(), text);
            assert!((2..=1224).contains(&text.len()));
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            assert!(id.hint().len() <= text.len() / 4);
            assert_eq!(format!("{id:?}"), "ExternalId([redacted])");
        }
        // The message names one character at most, by its code point.
        Err(error) => assert!(error.to_string().len() < 160),
    }
});
