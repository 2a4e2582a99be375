//! Orderly shutdown on SIGTERM and SIGINT.

use std::{
    io, process,
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code that a shell reports for a process that SIGINT ended.
const EXIT_INTERRUPTED: i32 = 130;

/// A signal this soon after the first is a duplicate: `timeout` and supervisors signal both a
/// process and its group, so that it arrives twice.
const DUPLICATE_WINDOW: Duration = Duration::from_millis(200);

/// Returns a token that the first SIGTERM or SIGINT cancels. A second signal, if it arrives
/// more than 200 ms later, ends the process at once with exit code 130.
///
/// # Errors
///
/// If the signal handlers cannot be installed.
pub fn shutdown_on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let name = next_signal(&mut terminate, &mut interrupt).await;
        tracing::info!(
            signal = name,
            "shutting down; a second signal ends the process at once"
        );
        token.cancel();
        let duplicates_end = Instant::now() + DUPLICATE_WINDOW;
        let mut name = next_signal(&mut terminate, &mut interrupt).await;
        while Instant::now() < duplicates_end {
            name = next_signal(&mut terminate, &mut interrupt).await;
        }
        tracing::warn!(
            signal = name,
            "ending the process at once after a second signal"
        );
        process::exit(EXIT_INTERRUPTED);
    });
    Ok(shutdown)
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
