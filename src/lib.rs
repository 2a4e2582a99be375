//! siem-relay takes intrusion detections over gRPC and delivers each customer's
//! own to a Kinesis stream in the customer's AWS account.
//!
//! # The code map
//!
//! | room | what it holds |
//! | --- | --- |
//! | [`cli`] | the subcommands |
//! | [`config`] | flags, environment and file become one validated configuration |
//! | [`app`] | the composition root: builds the rooms below, and shuts them down in order |
//! | [`telemetry`] | logs and traces |
//! | [`domain`] | pure: ARNs, integrations, the status table, events and their rendering, the delivery state machine |
//! | [`proto`] | what `build.rs` made of `proto/` |
//! | [`api`] | the gRPC services |
//! | [`store`] | the log, the integrations and their status, on disk and in memory |
//! | [`gate`] | admits AWS calls for integrations; none starts after a deletion |
//! | [`sink`] | AWS: AssumeRole and PutRecords; GetRecords for `verify` |
//! | [`worker`] | who has work, whose turn it is, send, settle |
//! | [`watch`] | status changes to subscribers |
//! | [`client`] | the gRPC client that `publish` and `sandbox` use |
//! | [`publish`] | Suricata EVE files into the service |
//! | [`verify`] | pure: proves from a stream's records that nothing is missing |
//! | [`onboarding`] | what a customer applies in its own account: policies and templates |
//! | [`sandbox`] | the local stand-in for STS, IAM trust and Kinesis, and the show around it |
//!
//! # Between the rooms
//!
//! `api` and `worker` see `domain` and ports, never each other. Adapters (`store`,
//! `sink`) see `domain` and `gate`, never one another. Only `api`, `client`, `publish` and
//! `sandbox` know tonic; only `store` knows sea_orm; only `sink` knows the AWS SDK.
//! `tests/it/house.rs` holds these borders.

pub mod api;
pub mod app;
pub mod cli;
pub mod client;
pub mod config;
pub mod domain;
pub mod gate;
pub mod onboarding;
pub mod proto;
pub mod publish;
pub mod sandbox;
pub mod sink;
pub mod store;
pub mod telemetry;
pub mod verify;
pub mod watch;
pub mod worker;
