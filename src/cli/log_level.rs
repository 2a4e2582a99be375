//! `siem-relay log-level`: the log level of a running service. Every setting of `serve` is a flag.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Args;

use super::{report_error, serve};
use crate::{
    admin::{self, Answer, Request},
    config::{Config, ConfigError, EXIT_USAGE},
};

/// Shows or changes the log level of a running service.
///
/// A change is in use until the service ends: the next start uses the setting `log-level` again. It
/// also applies to the spans that are exported. Secrets are logged at no level.
#[derive(Args)]
pub(super) struct LogLevelArgs {
    /// Directives to use from now on, such as `info,siem_relay=debug`.
    filter: Option<String>,
    #[command(flatten)]
    settings: serve::Args,
}

/// Runs the subcommand. Fails with exit code 64 for wrong settings, and else with 1.
pub(super) async fn run(args: LogLevelArgs) -> ExitCode {
    match execute(args).await {
        Ok(text) => {
            let _closed = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            report_error("log-level", &*error);
            match error.is::<ConfigError>() {
                true => ExitCode::from(EXIT_USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

async fn execute(args: LogLevelArgs) -> Result<String, Box<dyn std::error::Error>> {
    let path = Config::load(args.settings.into_sources())?.admin_socket();
    let filter = args.filter;
    let level = match admin::call(&path, Request::LogLevel { filter }).await? {
        Answer::LogLevel(level) => level,
        Answer::Error(error) => return Err(error.into()),
        Answer::Keys(_) => return Err("the service answered another command".into()),
    };
    Ok(match level.filter == level.configured {
        true => format!("{} (the setting log-level)", level.filter),
        false => format!(
            "{} (until the service ends; from the next start on: {})",
            level.filter, level.configured
        ),
    })
}
