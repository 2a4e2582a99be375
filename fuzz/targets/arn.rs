//! ARNs of streams and roles: an accepted one is the text that was given, and its parts are in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use siem_relay::domain::arn::{RoleArn, StreamArn};

fuzz_target!(|text: &str| {
    if let Ok(arn) = StreamArn::parse(text) {
        assert_eq!(arn.as_str(), text);
        let end = format!(":kinesis:{}:{}:stream/{}", arn.region(), arn.account(), arn.name());
        assert!(text.ends_with(&end));
    }
    if let Ok(arn) = RoleArn::parse(text) {
        assert_eq!(arn.as_str(), text);
        assert!(text.contains(&format!(":iam::{}:role/", arn.account())));
        assert!(text.ends_with(arn.name()) && !arn.name().contains('/'));
    }
});
