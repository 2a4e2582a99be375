//! Entries of the fuzz targets in `fuzz/` into parts that are private. Each panics if an
//! invariant is broken.

pub use crate::{api::fuzz_credentials as credentials, sink::fuzz_answer as aws_answer};
