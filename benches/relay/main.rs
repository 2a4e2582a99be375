//! Benchmark of the service's real binary: `cargo bench --bench relay`.
//!
//! Each part is a process, so that its CPU time can be measured separately. This binary
//! starts itself in six roles:
//!
//! | role | task |
//! | --- | --- |
//! | `loader` | load generator: publishes events over gRPC |
//! | `sink` | minimal stand-in for STS and Kinesis: accepts every record and counts it |
//! | `floor` | baseline of sending: the AWS SDK, or a bare socket, sends ready-made requests |
//! | `intake` | baseline of receiving: tonic writes each request to a file and syncs it |
//! | `subscribers` | subscribers of StreamStatus |
//! | `log floor` | baseline of shared storage: rdkafka alone produces and reads the log's entries |
//!
//! ```text
//! loader ──gRPC──▶ siem-relay ──HTTP──▶ sink      the service
//!                    floor ─────HTTP──▶ sink      the baseline of sending
//! loader ──gRPC──▶ intake                         the baseline of receiving
//! ```
//!
//! `cargo bench --bench relay -- --help` lists the options; docs/performance.md has results.

mod codec;
mod disturbed;
mod events;
mod floor;
mod growth;
mod http;
mod idle;
mod instances;
mod intake;
mod loader;
mod log_floor;
mod measure;
mod options;
mod process;
mod report;
mod sanity;
mod service;
mod sink;
mod stats;
mod subscribers;
mod table;
mod workload;

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// The service's allocator, so that the baselines do not cost more for another one.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Any error; all of them end the benchmark and are only printed.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let result = match process::Role::of_this_process() {
        Some(role) => role.and_then(process::Role::run),
        None => options::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            table::progress(&format!("failed: {failure}"));
            ExitCode::FAILURE
        }
    }
}
