//! The subcommands. Each is a module, a variant of `Command` with its arguments, and an arm of
//! `dispatch`.

mod ctl;
mod dev_credentials;
mod doctor;
mod external_id;
mod health;
mod keys;
mod log;
mod log_level;
mod move_out;
mod onboarding;
mod publish;
mod sandbox;
mod serve;
mod service;
mod signals;
mod verify;

use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, setrlimit, umask},
};
use tokio::runtime;

use crate::{
    config::EXIT_USAGE,
    domain::{error_chain::error_chain, organization::OrganizationId},
};

pub use signals::shutdown_on_signals;

/// Delivers intrusion detections to each customer's own Kinesis stream as CloudEvents.
#[derive(Parser)]
#[command(
    name = "siem-relay",
    version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")"),
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the service.
    Serve(serve::Args),
    /// Checks what the service needs, one line each, and changes nothing. Exit codes: 0 without a
    /// failed check, 1 with one, 64 for wrong settings.
    Doctor(doctor::DoctorArgs),
    /// Manages the event log.
    #[command(subcommand)]
    Log(log::Command),
    /// Shows and rotates the keys of external IDs of a running service.
    #[command(subcommand)]
    Keys(keys::Command),
    LogLevel(log_level::LogLevelArgs),
    Health(health::HealthArgs),
    Move(move_out::MoveArgs),
    Sandbox(sandbox::SandboxArgs),
    Publish(publish::PublishArgs),
    Ctl(ctl::CtlArgs),
    Verify(verify::VerifyArgs),
    Onboarding(onboarding::OnboardingArgs),
    DevCredentials(dev_credentials::DevCredentialsArgs),
    /// Prints a new random external ID of 64 hexadecimal characters, which can also be used as
    /// the key in `external-id-key-file`.
    ExternalId,
}

async fn dispatch(command: Command) -> ExitCode {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Log(command) => log::run(command).await,
        Command::Keys(command) => keys::run(command).await,
        Command::LogLevel(args) => log_level::run(args).await,
        Command::Health(args) => health::run(args),
        Command::Move(args) => move_out::run(args).await,
        Command::Sandbox(args) => sandbox::run(args).await,
        Command::Publish(args) => publish::run(args).await,
        Command::Ctl(args) => ctl::run(args).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Onboarding(args) => onboarding::run(args),
        Command::DevCredentials(args) => dev_credentials::run(args),
        Command::ExternalId => external_id::run(),
    }
}

/// Runs the subcommand given on the command line. The exit code is 0 on success, 64
/// (`EX_USAGE`) for wrong arguments or settings, 130 after a second signal, and otherwise
/// defined by the subcommand.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors for clap too. A closed output is no failure.
            let _ = error.print();
            return exit_code_of(&error);
        }
    };
    if let Command::Serve(_)
    | Command::Doctor(_)
    | Command::Move(_)
    | Command::Log(_)
    | Command::Sandbox(_) = cli.command
        && let Err(error) = protect_process()
    {
        report_error("cannot protect the memory of the process", &error);
        return ExitCode::FAILURE;
    }
    let mut builder = runtime::Builder::new_multi_thread();
    if let Command::Serve(_) = cli.command {
        // The service starts its own threads (`app::Threads`). Signals and the export of traces
        // run here; the export must continue while the shutdown waits for the last spans.
        builder.worker_threads(1);
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            report_error("cannot start the async runtime", &error);
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(dispatch(cli.command));
    // A blocking read of standard input cannot be cancelled and must not delay the exit.
    runtime.shutdown_background();
    code
}

/// Keeps secrets of a process that handles external IDs to itself: files that it makes are for its
/// user alone, and its memory goes into no core dump. Other processes of the same user can read it
/// all the same, as they can read the key file.
fn protect_process() -> io::Result<()> {
    umask(Mode::RWXG | Mode::RWXO);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}

fn exit_code_of(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Parses an argument.
fn organization_id(text: &str) -> Result<OrganizationId, String> {
    OrganizationId::new(text).map_err(|error| error.to_string())
}

/// Prints an error and its chain to standard error, for errors without a log.
fn report_error(context: &str, error: &dyn Error) {
    let _ = writeln!(
        io::stderr(),
        "siem-relay: {context}: {}",
        error_chain(error)
    );
}

#[cfg(test)]
mod tests;
