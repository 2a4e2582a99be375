//! `siem-relay keys`: the keys of external IDs of a running service. Every setting of `serve` is a
//! flag.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};

use super::{report_error, serve};
use crate::{
    admin::{self, Answer, Request},
    config::{Config, ConfigError, EXIT_USAGE},
    store::{KeyState, KeysReport},
};

/// Time between two looks at a rotation.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Subcommand)]
pub(super) enum Command {
    /// Shows the keys by their ids: which is active, how many external IDs each one encrypts, and
    /// which instances can read it.
    List(List),
    /// Makes the first key of the key file active, and encrypts all external IDs anew.
    ///
    /// The running service must have been started with the key file that has the new key first and
    /// the earlier ones after it. With several instances, the key becomes active once each of them
    /// has it. The rest is done in the background, and goes on by itself after an interruption.
    /// An earlier key that `keys list` shows as unused can be removed from the file.
    Rotate(Rotate),
}

#[derive(Args)]
pub(super) struct List {
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: serve::Args,
}

#[derive(Args)]
pub(super) struct Rotate {
    /// Waits until all external IDs are encrypted with the key.
    #[arg(long)]
    wait: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: serve::Args,
}

/// Runs a subcommand. Fails with exit code 64 for wrong settings, and else with 1.
pub(super) async fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::List(args) => execute(args.settings, Request::KeysList, false, args.json).await,
        Command::Rotate(args) => {
            execute(args.settings, Request::KeysRotate, args.wait, args.json).await
        }
    };
    match done {
        Ok(text) => {
            let _closed = write!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            report_error("keys", &*error);
            match error.is::<ConfigError>() {
                true => ExitCode::from(EXIT_USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

async fn execute(
    settings: serve::Args,
    mut request: Request,
    wait: bool,
    json: bool,
) -> Result<String, Box<dyn std::error::Error>> {
    let path = Config::load(settings.into_sources())?.admin_socket();
    loop {
        let report = match admin::call(&path, request).await? {
            Answer::Keys(report) => report,
            Answer::Error(error) => return Err(error.into()),
            Answer::LogLevel(_) => return Err("the service answered another command".into()),
        };
        if wait && !report.unreadable.is_empty() {
            return Err(
                format!("{}; then the rotation ends by itself", unreadable(&report)).into(),
            );
        }
        if !wait || report.is_settled() {
            return match json {
                true => Ok(serde_json::to_string(&report)? + "\n"),
                false => Ok(text(&report)),
            };
        }
        request = Request::KeysList;
        tokio::time::sleep(LOOK).await;
    }
}

fn unreadable(report: &KeysReport) -> String {
    format!(
        "external IDs of these organizations cannot be decrypted, and keep their key until they are configured again: {}",
        report.unreadable.join(" ")
    )
}

/// The keys as text.
fn text(report: &KeysReport) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{:32}  {:8}  {:>12}", "KEY", "STATE", "EXTERNAL IDS");
    for key in &report.keys {
        let state = match key.state {
            KeyState::Active => "active",
            KeyState::Pending => "pending",
            KeyState::Retiring => "retiring",
            KeyState::Unused => "unused",
        };
        let mut notes = String::new();
        if key.id == report.first {
            notes.push_str("  first in the key file");
        }
        if !key.is_readable {
            notes.push_str("  not in the key file");
        }
        let _ = writeln!(text, "{:32}  {state:8}  {:>12}{notes}", key.id, key.rows);
    }
    for instance in &report.instances {
        let keys = instance.keys.join(" ");
        let _ = writeln!(
            text,
            "instance {} on {} reads {keys}",
            instance.id, instance.host
        );
    }
    for instance in &report.waiting_for {
        let _ = writeln!(
            text,
            "waiting for instance {} on {}, which cannot read the pending key: give it the key file and restart it",
            instance.id, instance.host
        );
    }
    if !report.unreadable.is_empty() {
        let _ = writeln!(text, "{}", unreadable(report));
    }
    let active = report.keys.iter().find(|key| key.state == KeyState::Active);
    if report.is_settled() && active.is_some_and(|key| key.id != report.first) {
        let _ = writeln!(
            text,
            "the first key of the key file is not active: run `siem-relay keys rotate`"
        );
    }
    text
}
