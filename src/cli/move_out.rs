//! `siem-relay move`: moves a stopped embedded service into shared storage.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use tracing::info;

use super::{report_error, serve};
use crate::{
    app::{self, AppError},
    config::{Config, ConfigError, EXIT_USAGE},
    store::{Keyring, MoveError, Moved, Store},
    telemetry,
};

/// Moves everything in `data-dir` into the empty shared storage of `log-url` and `database-url`.
///
/// The service on the directory must be stopped, and nothing may run on the database. Integrations,
/// external IDs, statuses, audit, counts, sequences and pending events move. If the move is
/// interrupted, the directory stays usable and the database is refused until the same command has
/// completed; it starts over. Afterwards the directory is refused, and instances start with the
/// two URLs.
///
/// External IDs are encrypted anew with `external-id-key` or `external-id-key-file`, which are those
/// of the shared storage. Every setting of `serve` is a flag.
#[derive(clap::Args)]
pub(super) struct MoveArgs {
    /// The file with the key that encrypts the external IDs in the directory. Default:
    /// DATA_DIR/external-id.key; if that is absent, the same key as that of the shared storage
    #[arg(long, value_name = "FILE")]
    from_external_id_key_file: Option<PathBuf>,
    /// Leaves out external IDs that an earlier version issued and that are not used by an
    /// integration, which cannot be moved to another key. Their organizations have to generate others
    #[arg(long)]
    drop_issued: bool,
    #[command(flatten)]
    settings: serve::Args,
}

/// Runs the move. Fails with exit code 64 for wrong settings, and else with 1.
pub(super) async fn run(args: MoveArgs) -> ExitCode {
    match move_out(args).await {
        Ok(message) => {
            let _closed = writeln!(io::stdout(), "{message}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            report_error("cannot move", &*error);
            let is_usage = error.is::<ConfigError>()
                || matches!(
                    error.downcast_ref(),
                    Some(AppError::Setting { .. } | AppError::Key(_))
                )
                || matches!(error.downcast_ref(), Some(MoveError::NoSource(_)));
            match is_usage {
                true => ExitCode::from(EXIT_USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

async fn move_out(args: MoveArgs) -> Result<String, Box<dyn std::error::Error>> {
    let config = Config::load(args.settings.into_sources())?;
    let _telemetry = telemetry::init(&config)?;
    let Some(shared) = app::shared_options(&config)? else {
        return Err(Box::new(AppError::Setting {
            setting: "database-url",
            problem: "is not set; give log-url and database-url of the storage to move to"
                .to_owned(),
        }));
    };
    let keyring = app::keyring(&config).map_err(AppError::from)?;
    let in_directory = config.data_dir.join("external-id.key");
    let from_key_file = args
        .from_external_id_key_file
        .or_else(|| in_directory.exists().then_some(in_directory));
    let from_keyring = match from_key_file {
        Some(file) => Keyring::from_file(&file).map_err(AppError::from)?,
        None => app::keyring(&config).map_err(AppError::from)?,
    };
    let options = app::store_options(&config);
    info!(data_dir = %config.data_dir.display(), "moving to shared storage");
    let moved =
        Store::move_out(&options, &from_keyring, &shared, &keyring, args.drop_issued).await?;
    let data_dir = config.data_dir.display();
    let Some(Moved {
        integrations,
        pending,
        dropped,
    }) = moved
    else {
        return Ok(format!(
            "everything in {data_dir} is moved already: start instances with log-url and database-url"
        ));
    };
    let left_out = match dropped {
        0 => String::new(),
        dropped => format!("; {dropped} issued external IDs were left out"),
    };
    Ok(format!(
        "moved {integrations} integrations with {pending} pending events{left_out}: start instances with log-url and database-url; {data_dir} is not used any more"
    ))
}
