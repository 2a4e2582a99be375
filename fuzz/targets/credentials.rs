//! Tokens, key sets, callers files and certificates: whatever a peer sends, no token is accepted
//! that the trusted key did not sign.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: (&[u8], &[u8], &[u8], &[u8])| {
    let (header, claims, signature, other) = parts;
    siem_relay::fuzzing::credentials(header, claims, signature, other);
});
