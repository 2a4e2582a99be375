//! Process entry. No TLS provider is installed here: the AWS SDK brings its own, and
//! nothing else speaks TLS.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Memory is mostly freed by another thread than took it, which the C library's allocator
/// makes threads wait for.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // What is resident stays near what is in use, also where the system gives huge pages
    // unasked. Where that cannot be had, more memory is taken, and nothing else.
    #[cfg(target_os = "linux")]
    let _more_memory = rustix::thread::disable_transparent_huge_pages(true);
    siem_relay::cli::run()
}
