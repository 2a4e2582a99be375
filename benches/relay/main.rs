//! What the service costs, measured on its real binary: `cargo bench --bench relay`.
//!
//! Every part is a process of its own, so that the CPU of each can be told apart:
//!
//! ```text
//! loader ──gRPC──▶ siem-relay ──HTTP──▶ sink      the service
//!                    floor ─────HTTP──▶ sink      the AWS SDK and nothing else, or a bare socket
//! loader ──gRPC──▶ intake                         tonic, a file that is synced, and nothing else
//! ```
//!
//! This binary starts itself in the roles loader, sink, floor, intake and subscribers;
//! `cargo bench --bench relay -- --help` names the options. See docs/performance.md.

mod configure;
mod disk;
mod events;
mod floor;
mod frames;
mod growth;
mod http;
mod idle;
mod intake;
mod loader;
mod measure;
mod options;
mod process;
mod report;
mod sanity;
mod service;
mod sink;
mod spread;
mod stats;
mod subscribers;
mod table;
mod usage;
mod workload;

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// As the service has it, so that the floor is not dearer for its allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Any problem ends the run; its text is all that is needed.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let ended = match process::Role::of_this_process() {
        Some(Ok(role)) => role.run(),
        Some(Err(failure)) => Err(failure),
        None => options::run(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            table::tell(&format!("failed: {failure}"));
            ExitCode::FAILURE
        }
    }
}
