//! Pure values, rules and rendering: no input or output, and the time is an argument.

pub mod arn;
pub mod attribution;
pub mod backoff;
pub mod bitmap;
pub mod character;
pub mod delivery;
pub mod error_chain;
pub mod event;
pub mod external_id;
pub mod gap;
pub mod integration;
pub mod map;
pub mod organization;
pub mod retention;
pub mod segment;
pub mod shard_rates;
pub mod status;
pub mod verdict;
