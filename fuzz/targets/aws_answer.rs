//! Answers to PutRecords: whatever a server answers, there is one outcome for each record, or one
//! fault for all.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: (u16, u8, &str, &[u8])| {
    let (http_status, sent, error_type, body) = answer;
    siem_relay::fuzzing::aws_answer(http_status, sent.into(), error_type, body);
});
