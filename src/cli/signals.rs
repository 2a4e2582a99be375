//! SIGTERM and SIGINT ask for an orderly shutdown.

use std::{
    io, process,
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a shell reports for a process that SIGINT ended.
const EXIT_INTERRUPTED: i32 = 130;

/// Signals so close to the first are the same one: `timeout` and supervisors signal a
/// process and its group, so that it arrives twice.
const ECHO: Duration = Duration::from_millis(200);

/// A token that the first SIGTERM or SIGINT cancels. A second one, unless it comes
/// within 200 ms, ends the process at once with exit code 130.
///
/// # Errors
///
/// Where the operating system refuses the handlers.
pub fn shutdown_on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = name, "shutting down; a second signal ends at once");
        token.cancel();
        let echo_ends = Instant::now() + ECHO;
        let mut name = either(&mut terminate, &mut interrupt).await;
        while Instant::now() < echo_ends {
            name = either(&mut terminate, &mut interrupt).await;
        }
        tracing::warn!(signal = name, "ending at once");
        process::exit(EXIT_INTERRUPTED);
    });
    Ok(shutdown)
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
