//! siem-relay receives intrusion detections over gRPC and delivers those of each customer to a
//! Kinesis stream in the customer's AWS account.
//!
//! # Code map
//!
//! | module | contents |
//! | --- | --- |
//! | [`cli`] | the subcommands |
//! | [`config`] | the validated configuration, read from flags, environment and file |
//! | [`admin`] | commands to a running service over a Unix socket |
//! | [`app`] | the composition root: builds the modules below, and shuts them down in order |
//! | [`telemetry`] | logs, and the export of traces and metrics |
//! | [`metrics`] | counters and histograms of this process, and the list of all metrics |
//! | [`monitoring`] | the HTTP listener for Prometheus and probes |
//! | [`domain`] | pure: ARNs, integrations, the status table, events and their rendering, the delivery state machine |
//! | [`proto`] | the code that `build.rs` generates from `proto/` |
//! | [`api`] | the gRPC services |
//! | [`store`] | the log, the integrations and their status, on disk and in memory |
//! | [`boot_time`] | the clock of leases |
//! | [`secret_file`] | files with secrets, which only their owner may use |
//! | [`gate`] | admits AWS calls for integrations; none starts after a deletion |
//! | [`https`] | the HTTP client for URLs that the operator names |
//! | [`sink`] | AWS: AssumeRole and PutRecords; GetRecords for `verify` |
//! | [`worker`] | delivery: scheduling of integrations, sending, settling |
//! | [`watch`] | status changes for subscribers |
//! | [`notifications`] | status changes for a webhook of the operator |
//! | [`publish`] | publishing of Suricata EVE files |
//! | [`verify`] | pure: proof from the records of a stream that no event is missing |
//! | [`onboarding`] | policies and templates that a customer applies in its AWS account |
//! | [`dev_credentials`] | certificates, keys and tokens for development |
//! | [`sandbox`] | a demonstration: the service with a local stand-in for AWS, and sample events |
//!
//! # Borders
//!
//! `api` and `worker` use `domain` and `store`, and reach each other only through `api::Delivery`,
//! which `app` implements. `store` uses `domain`, `gate`, `metrics`, `boot_time` and `secret_file` only; `sink` uses `domain`, `gate` and
//! `metrics`. Only `api` uses
//! tonic (the tools use the crate `siem-client`), only `store` sea_orm, only `sink` the AWS SDK.
//! `tests/it/borders.rs` checks this. `docs/architecture.md` describes the way of an event through
//! the modules.

pub mod admin;
pub mod api;
pub mod app;
pub mod boot_time;
pub mod cli;
pub mod config;
pub mod dev_credentials;
pub mod domain;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod gate;
pub mod https;
pub mod metrics;
pub mod monitoring;
pub mod notifications;
pub mod onboarding;
pub mod proto;
pub mod publish;
pub mod sandbox;
pub mod secret_file;
pub mod sink;
pub mod store;
pub mod telemetry;
pub mod verify;
pub mod watch;
pub mod worker;
