//! The gRPC services.

pub mod wire;
