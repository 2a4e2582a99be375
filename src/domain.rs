//! The pure rooms: values, rules and rendering, without input or output.

pub mod arn;
pub mod attribution;
pub mod backoff;
pub mod bitmap;
pub mod character;
pub mod delivery;
pub mod event;
pub mod external_id;
pub mod flow;
pub mod gap;
pub mod hex;
pub mod integration;
pub mod map;
pub mod organization;
pub mod retention;
pub mod segment;
pub mod sources;
pub mod status;
pub mod verdict;
