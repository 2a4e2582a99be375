//! The pure rooms: values, rules and rendering, without input or output.

pub mod arn;
pub mod event;
pub mod organization;
