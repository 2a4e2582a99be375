//! Process entry. No TLS provider is installed here: the AWS SDK brings its own, and
//! nothing else speaks TLS.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Memory is mostly freed by another thread than took it, which the C library's allocator
/// makes threads wait for. No huge pages: what is resident stays near what is in use.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    siem_relay::cli::run()
}
