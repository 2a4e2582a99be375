//! `siem-relay log`: manages the event log. Every setting of `serve` is a flag.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use super::{report_error, serve};
use crate::{
    app::{self, AppError},
    config::{Config, EXIT_USAGE},
    store::{AcceptedLoss, Store},
};

#[derive(Subcommand)]
pub(super) enum Command {
    /// Makes the topic of `log-url` with the settings that keep events safe.
    CreateTopic(CreateTopic),
    /// Accepts that a part of the log is lost, so that its partition is delivered again. Each
    /// integration gets a gap event over everything that may be missing.
    AcceptLoss(AcceptLoss),
}

#[derive(Args)]
pub(super) struct CreateTopic {
    /// Number of partitions. More can be added later, but none removed.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: u32,
    /// Number of replicas of each partition. Fewer than 3 lose events with a broker, and are for
    /// development.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    replication: u32,
    #[command(flatten)]
    settings: serve::Args,
}

#[derive(Args)]
pub(super) struct AcceptLoss {
    /// The partition; 0 without `log-url`.
    #[arg(long)]
    partition: u32,
    /// Sequences of each gap, after a restore of the database: at least as many as an integration
    /// may have had events since the backup. With it the log may be whole.
    #[arg(long)]
    window: Option<u64>,
    #[command(flatten)]
    settings: serve::Args,
}

/// Runs a subcommand. Fails with exit code 64 for wrong settings, and else with 1.
pub(super) async fn run(command: Command) -> ExitCode {
    let (context, done) = match command {
        Command::CreateTopic(args) => ("cannot make the topic", create_topic(args).await),
        Command::AcceptLoss(args) => ("cannot accept the loss", accept(args).await),
    };
    match done {
        Ok(message) => {
            let _closed = writeln!(io::stdout(), "{message}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            report_error(context, &*error);
            match error.downcast_ref::<AppError>() {
                Some(AppError::Setting { .. }) => ExitCode::from(EXIT_USAGE),
                None if error.is::<crate::config::ConfigError>() => ExitCode::from(EXIT_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

type Done = Result<String, Box<dyn std::error::Error>>;

async fn create_topic(args: CreateTopic) -> Done {
    let config = Config::load(args.settings.into_sources())?;
    let Some(shared) = app::shared_options(&config)? else {
        return Err(Box::new(AppError::Setting {
            setting: "log-url",
            problem: "is not set; give kafka://HOST:PORT/TOPIC".to_owned(),
        }));
    };
    Store::create_topic(&shared.log, args.partitions, args.replication).await?;
    Ok(format!(
        "made the topic with {} partitions and {} replicas of each",
        args.partitions, args.replication
    ))
}

async fn accept(args: AcceptLoss) -> Done {
    let config = Config::load(args.settings.into_sources())?;
    let options = app::store_options(&config);
    let accepted = match app::shared_options(&config)? {
        Some(shared) => {
            let keyring = app::keyring(&config)?;
            Store::accept_shared_loss(&shared, &options, &keyring, args.partition, args.window)
                .await?
        }
        None if args.partition != 0 => {
            return Err(Box::new(AppError::Setting {
                setting: "partition",
                problem: "the log of a directory has partition 0 only".to_owned(),
            }));
        }
        None => Store::accept_loss(&options, args.window).await?,
    };
    let Some(AcceptedLoss {
        partition,
        from,
        integrations,
        window,
    }) = accepted
    else {
        let partition = args.partition;
        return Err(format!(
            "the log of partition {partition} is whole; nothing to accept (--window is for a database that was restored)"
        )
        .into());
    };
    Ok(format!(
        "partition {partition} is delivered from position {from} on; {integrations} integrations got a gap of {window} sequences"
    ))
}
