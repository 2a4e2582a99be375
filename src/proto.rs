//! The messages and services of `siem.v1`, as `build.rs` generates them.
//!
//! `events` of the two publish requests are [`bytes::Bytes`], each an encoded
//! [`v1::Event`]: the same on the wire as the documented message.

mod codec;

use std::fmt;

/// The package `siem.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all, unused_qualifications)]
    tonic::include_proto!("siem.v1");
}

/// The encoded `FileDescriptorSet` of `siem.v1`, for reflection.
pub const DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/siem_v1_descriptor.bin"));

/// Text that prost's errors begin with. tonic hands them on as INTERNAL with this text alone.
pub(crate) const UNDECODABLE: &str = "failed to decode Protobuf message";

impl fmt::Debug for v1::ConfigureRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigureRequest")
            .field("organization_id", &self.organization_id)
            .field("kinesis_stream_arn", &self.kinesis_stream_arn)
            .field("role_arn", &self.role_arn)
            .field("external_id", &"[redacted]")
            .field("etag", &self.etag)
            .field("validate_only", &self.validate_only)
            .field("keep_previous_external_id", &self.keep_previous_external_id)
            .finish()
    }
}

impl fmt::Debug for v1::GenerateExternalIdResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GenerateExternalIdResponse")
            .field("external_id", &"[redacted]")
            .finish()
    }
}
