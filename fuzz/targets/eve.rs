//! Lines of EVE files: every byte of a line leads to records and errors, without an end of their own
//! only if the line ends, and a record is an event that encodes.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use siem_client::v1;
use siem_relay::publish::eve::{Origin, Record, records};
use uuid::Uuid;

static ORIGIN: LazyLock<Origin> =
    LazyLock::new(|| Origin::new("acme", Uuid::from_u128(1), Uuid::from_u128(2)));

fuzz_target!(|line: &[u8]| {
    for (count, parsed) in records(line, &ORIGIN).enumerate() {
        // Each record takes at least its two braces, and each damaged part a byte.
        assert!(count <= line.len());
        if let Ok(Record::Alert(event)) = parsed.record {
            let bytes = event.encode_to_vec();
            assert_eq!(v1::Event::decode(&*bytes).unwrap().organization_id, "acme");
        }
    }
});
