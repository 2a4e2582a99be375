//! `siem-relay publish`: the alerts of a Suricata EVE file into the service.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use uuid::Uuid;

use super::{complain, shutdown_on_signals};
use crate::{
    config::EXIT_USAGE,
    publish::{self, ConsoleReporter, Input, PublishOptions},
};
use siem_client::{self, PublisherOptions};

/// How long an interrupt waits for the answers in flight.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// How long a run that has an end goes on without an answer.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);
const MIB: u32 = 1 << 20;

/// Publishes the alerts of a Suricata EVE file.
///
/// Reads EVE JSON, one record a line. Alerts are published; records of other event
/// types are counted and skipped; a broken line is reported with its number, and what is
/// intact in it and after it is published. When the service restarts, it connects again and
/// sends again what was not answered. A time without an offset is taken as UTC.
///
/// With --follow it goes on as `tail -F` does, across rotation and truncation, until
/// SIGTERM or Ctrl-C, and remembers its place: the next run goes on behind the last
/// alert that was answered. Nothing is lost by a restart of either side; what was sent
/// and not answered is sent again, under the same ids. The first start reads the path and no
/// other file; later, rotated files are read that are known to have been the path. A path that
/// is not there or cannot be opened is waited for. Several files for one sensor, which
/// Suricata writes by a filename with % or by threaded: yes, need a publisher each.
///
/// Exit codes: 0 where the whole input was read, no line was broken and every alert was
/// accepted, also where there was none; with --follow the same, up to the signal. 64 where the
/// options are wrong. 1 otherwise.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The EVE file, or - for standard input, which may be a live pipe.
    #[arg(long, value_name = "FILE")]
    eve: PathBuf,
    /// Follow the file, from the place that is remembered, or from its beginning.
    #[arg(long, conflicts_with = "from_line")]
    follow: bool,
    /// Where the place is remembered. [default: beside the file, as .NAME.siem-relay]
    #[arg(long, value_name = "FILE", requires = "follow")]
    state_file: Option<PathBuf>,
    /// The organization whose events they are.
    #[arg(long, value_name = "ID")]
    organization: String,
    /// The network that the sensor watches.
    #[arg(long, value_name = "UUID")]
    network: Uuid,
    /// The sensor. The events of one device stay in order.
    #[arg(long, value_name = "UUID")]
    device: Uuid,
    /// Where the service listens.
    #[arg(long, value_name = "URL", default_value = siem_client::DEFAULT_ADDRESS, env = "SIEM_RELAY_ADDRESS")]
    address: String,
    /// The first line that counts, from 1; an interrupted run tells it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Events of one request at most.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    batch_events: u16,
    /// Requests that may be unanswered.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    max_requests: u16,
    /// MiB of events that may be unanswered.
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    max_mib: u32,
    /// Give up when nothing was answered for so many seconds. [default: 300, with
    /// --follow never]
    #[arg(long, value_name = "SECONDS")]
    retry_for: Option<u32>,
}

impl PublishArgs {
    fn input(&self) -> Input {
        let path = self.eve.clone();
        match (self.follow, path.as_os_str() == "-") {
            (true, _) => Input::Follow {
                state_file: self
                    .state_file
                    .clone()
                    .unwrap_or_else(|| publish::default_state_file(&path)),
                path,
            },
            (false, true) => Input::Stdin,
            (false, false) => Input::File(path),
        }
    }

    fn give_up_after(&self) -> Duration {
        match (self.retry_for, self.follow) {
            (Some(seconds), _) => Duration::from_secs(seconds.into()),
            (None, true) => Duration::MAX,
            (None, false) => GIVE_UP_AFTER,
        }
    }
}

impl From<PublishArgs> for PublishOptions {
    fn from(args: PublishArgs) -> Self {
        let give_up_after = args.give_up_after();
        Self {
            input: args.input(),
            organization_id: args.organization,
            network_id: args.network,
            device_id: args.device,
            address: args.address,
            from_line: args.from_line,
            shutdown_grace: SHUTDOWN_GRACE,
            publisher: PublisherOptions {
                max_batch_events: args.batch_events.into(),
                max_requests_in_flight: args.max_requests.into(),
                max_bytes_in_flight: args.max_mib * MIB,
                give_up_after,
                ..PublisherOptions::default()
            },
        }
    }
}

/// Publishes, and prints the summary to stdout; all else goes to stderr.
pub async fn run(args: PublishArgs) -> ExitCode {
    if args.follow && args.eve.as_os_str() == "-" {
        let _ = writeln!(
            io::stderr(),
            "siem-relay: standard input cannot be followed: name a file, or leave --follow out"
        );
        return EXIT_USAGE.into();
    }
    let shutdown = match shutdown_on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            complain("signals cannot be handled", &error);
            return ExitCode::FAILURE;
        }
    };
    let mut reporter = ConsoleReporter::new(io::stderr());
    let result = publish::run(args.into(), &mut reporter, shutdown).await;
    reporter.finish();
    match result {
        Ok(summary) => {
            // Whoever closed stdout still gets the exit code.
            let _ = write!(io::stdout(), "{summary}");
            summary.exit_code().into()
        }
        Err(error) => {
            complain("cannot publish", &error);
            match error.is_usage() {
                true => EXIT_USAGE.into(),
                false => ExitCode::FAILURE,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Whole {
        #[command(flatten)]
        args: PublishArgs,
    }

    fn options(arguments: &str) -> Result<PublishOptions, clap::Error> {
        let own = "publish --organization acme --network 00000000-0000-0000-0000-000000000001 \
            --device 00000000-0000-0000-0000-000000000002 ";
        let all = own.split_whitespace().chain(arguments.split_whitespace());
        Ok(Whole::try_parse_from(all)?.args.into())
    }

    #[test]
    fn a_file_that_is_followed_has_a_state_file_and_patience() {
        let followed = options("--eve log/eve.json --follow").unwrap();
        let expected = |state_file: &str| Input::Follow {
            path: "log/eve.json".into(),
            state_file: state_file.into(),
        };
        assert_eq!(followed.input, expected("log/.eve.json.siem-relay"));
        assert_eq!(followed.publisher.give_up_after, Duration::MAX);
        let told = options("--eve log/eve.json --follow --state-file s --retry-for 5").unwrap();
        assert_eq!(told.input, expected("s"));
        assert_eq!(told.publisher.give_up_after, Duration::from_secs(5));
        let whole = options("--eve log/eve.json").unwrap();
        assert_eq!(whole.publisher.give_up_after, GIVE_UP_AFTER);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert!(options("--eve x --follow --from-line 3").is_err());
        assert!(options("--eve x --state-file s").is_err());
    }
}
