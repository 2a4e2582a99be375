//! The subcommands of `siem-relay`. To add one, write a module, a variant of `Command` that
//! module's arguments, and an arm of [`dispatch`].

mod external_id;
mod onboarding;
mod publish;
mod sandbox;
mod serve;
mod signals;
mod verify;

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tokio::runtime;

use crate::{config::EXIT_USAGE, domain::sources::with_sources};

pub use signals::shutdown_on_signals;

/// Delivers intrusion detections to each customer's own Kinesis stream as CloudEvents.
#[derive(Parser)]
#[command(name = "siem-relay", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the service.
    Serve(serve::Args),
    Sandbox(sandbox::SandboxArgs),
    Publish(publish::PublishArgs),
    Verify(verify::VerifyArgs),
    Onboarding(onboarding::OnboardingArgs),
    /// Prints a fresh external ID of 64 hexadecimal characters; it serves as a key of
    /// `external-id-key-file` as well.
    ExternalId,
}

async fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Sandbox(args) => sandbox::run(args).await,
        Command::Publish(args) => publish::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Onboarding(args) => onboarding::run(args),
        Command::ExternalId => external_id::run(),
    }
}

/// Runs the subcommand that the arguments of the process name. The exit code is 0
/// where it succeeded, 64 (`EX_USAGE`) where arguments or settings are wrong, 130
/// after a second signal, and otherwise what the subcommand says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let mut builder = runtime::Builder::new_multi_thread();
    if let Command::Serve(_) = cli.command {
        // The service has threads of its own. What is left are signals and the export of
        // traces, which goes on while the last ones are waited for.
        builder.worker_threads(1);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain("the runtime cannot start", &error);
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(dispatch(cli.command));
    // A blocking read of standard input cannot be ended, and must not hold us back.
    runtime.shutdown_background();
    code
}

/// Prints help or version, or what is wrong with the arguments.
fn explain(error: &clap::Error) -> ExitCode {
    // Where the reader is gone, there is nobody left to tell.
    let _ = error.print();
    exit_code_of(error)
}

fn exit_code_of(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Tells an error on standard error, for when there is no log, or it is off.
fn complain(what: &str, error: &dyn Error) {
    let _ = writeln!(io::stderr(), "siem-relay: {what}: {}", with_sources(error));
}

#[cfg(test)]
mod tests;
