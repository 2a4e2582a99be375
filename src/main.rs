//! Process entry. No TLS provider is installed here: the AWS SDK and `sink::direct` each name
//! theirs.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// Most memory is freed on a different thread from the one that allocated it, and the allocator
/// of the C library then makes threads wait for each other.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // Keeps resident memory close to memory in use on systems that give huge pages to every
    // process. If it fails, the process only takes more memory.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    siem_relay::cli::run()
}
