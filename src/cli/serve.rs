//! `siem-relay serve`: runs the service. Every setting is a flag.

use std::{env, path::PathBuf, process::ExitCode};

use clap::{Arg, ArgMatches, FromArgMatches, value_parser};
use tracing::{Level, error, info};

use super::{error_chain, report_error, shutdown_on_signals};
use crate::{
    app,
    config::{self, CONFIG_FLAG, CONFIG_VARIABLE, Config, EXIT_USAGE, Setting, Sources},
    telemetry,
};

/// The flags of `serve`: one for each row of the settings table.
#[derive(Default)]
pub(super) struct Args {
    file: Option<PathBuf>,
    pub(super) flags: Vec<(String, String)>,
}

impl Args {
    pub(super) fn into_sources(self) -> Sources {
        Sources {
            file: self.file,
            flags: self.flags,
            environment: env::vars_os().collect(),
        }
    }
}

/// Runs the service until a signal ends it.
pub(super) async fn run(args: Args) -> ExitCode {
    let config = match Config::load(args.into_sources()) {
        Ok(config) => config,
        Err(error) => {
            report_error("cannot start", &error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let _telemetry = match telemetry::init(&config) {
        Ok(guard) => guard,
        Err(error) => {
            report_error("cannot start", &error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let shutdown = match shutdown_on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            report_error("cannot install signal handlers", &error);
            return ExitCode::FAILURE;
        }
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %config.listen,
        data_dir = %config.data_dir.display(),
        "starting siem-relay"
    );
    match app::run(config, shutdown).await {
        Ok(()) => {
            info!("siem-relay stopped");
            ExitCode::SUCCESS
        }
        Err(error @ app::AppError::Setting { .. }) => {
            report_error("cannot start", &error);
            ExitCode::from(EXIT_USAGE)
        }
        Err(error) => {
            if tracing::enabled!(Level::ERROR) {
                error!(error = error_chain(&error), "siem-relay failed");
            } else {
                report_error("the service failed", &error);
            }
            ExitCode::FAILURE
        }
    }
}

impl clap::Args for Args {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new(CONFIG_FLAG)
            .long(CONFIG_FLAG)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help(format!(
                "A TOML file with any of these settings [env: {CONFIG_VARIABLE}]"
            ));
        command
            .arg(file)
            .args(config::settings().iter().map(flag_of))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>(CONFIG_FLAG).cloned();
        self.flags = config::settings()
            .iter()
            .filter_map(|setting| {
                let text = matches.get_one::<String>(setting.name)?;
                Some((setting.name.to_owned(), text.clone()))
            })
            .collect();
        Ok(())
    }
}

/// Flag of one setting. Its value stays text, because the configuration checks all settings
/// together.
fn flag_of(setting: &Setting) -> Arg {
    let default = setting.default.trim_matches(['(', ')']);
    let help = setting.help.trim_end_matches('.');
    let flag = Arg::new(setting.name)
        .long(setting.name)
        .allow_negative_numbers(true)
        .help(format!("{help} [default: {default}]"))
        .long_help(format!(
            "{help}\n[default: {default}] [allowed: {}] [env: {}]",
            setting.limits.replace('`', ""),
            setting.variable()
        ));
    if setting.is_switch {
        flag.value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    } else {
        // The flag of a secret exists only so that the error can name the variable to use instead.
        flag.value_name(value_name(setting.name))
            .hide(setting.is_secret)
    }
}

fn value_name(setting: &str) -> &'static str {
    match setting {
        "listen" => "ADDRESS:PORT",
        "data-dir" => "DIR",
        "admin-socket" | "callers" => "FILE",
        _ if setting.ends_with("-file") || setting.starts_with("tls-") => "FILE",
        _ if setting.ends_with("-url") => "URL",
        _ if setting.ends_with("-ms") => "MILLISECONDS",
        _ if setting.ends_with("-seconds") => "SECONDS",
        _ if setting.contains("bytes") => "BYTES",
        _ => "VALUE",
    }
}
