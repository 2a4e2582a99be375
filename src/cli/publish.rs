//! `siem-relay publish`: publishes the alerts of a Suricata EVE file.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use uuid::Uuid;

use super::{report_error, service::ServiceArgs, shutdown_on_signals};
use crate::{
    config::EXIT_USAGE,
    publish::{self, ConsoleReporter, Input, PublishOptions},
};
use siem_client::PublisherOptions;

/// Time that an interrupted run waits for the answers in flight.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Time without any answer after which a run without --follow fails.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);
const MIB: u32 = 1 << 20;

/// Publishes the alerts of a Suricata EVE file.
///
/// Reads EVE JSON, one record per line. Alerts are published; records of other event types
/// are counted and skipped. A broken line is reported with its number, and the intact
/// records in and after it are published. If the service restarts, the publisher reconnects
/// and sends the unanswered alerts again. A time without an offset is read as UTC.
///
/// With --follow it continues like `tail -F`, across rotation and truncation, until SIGTERM
/// or Ctrl-C, and stores its position: the next run continues after the last answered
/// alert. A restart of either side loses nothing; alerts that were sent and not answered are
/// sent again with the same ids. The first run reads only the given path; later runs also
/// read rotated files that are known to have had that path. If the path is missing or cannot
/// be opened, the publisher waits for it. Several files for one sensor, which Suricata
/// writes with a % in filename or with threaded: yes, need one publisher each.
///
/// Over https:// the service's certificate is verified, and the publisher names itself by a
/// client certificate (--cert, --key), a token (--token-file) or both. Certificates are read
/// again for each connection. A token is not sent to an http:// address beyond loopback.
///
/// Exit codes: 0 if the whole input was read (with --follow, up to the signal), no line was
/// broken and every alert was accepted, also if there was no alert; 64 if the options are
/// wrong; 1 otherwise.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The EVE file, or - for standard input, which may be a pipe from a running sensor.
    #[arg(long, value_name = "FILE")]
    eve: PathBuf,
    /// Follow the file, from the stored position or else from its beginning.
    #[arg(long, conflicts_with = "from_line")]
    follow: bool,
    /// File that stores the position. [default: .NAME.siem-relay in the directory of the file]
    #[arg(long, value_name = "FILE", requires = "follow")]
    state_file: Option<PathBuf>,
    /// The organization of the events.
    #[arg(long, value_name = "ID")]
    organization: String,
    /// The network that the sensor watches.
    #[arg(long, value_name = "UUID")]
    network: Uuid,
    /// The sensor's device id. The events of one device stay in order.
    #[arg(long, value_name = "UUID")]
    device: Uuid,
    #[command(flatten)]
    service: ServiceArgs,
    /// The first line to read, counted from 1. An interrupted run prints the line at which to
    /// continue.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Maximum number of events in one request.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    batch_events: u16,
    /// Maximum number of requests in flight.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    max_requests: u16,
    /// Maximum size of the events in flight, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    max_mib: u32,
    /// Fail after this many seconds without an answer, or with temporary rejections only. [default: 300; with --follow, never]
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
            service: args.service.options(),
            organization_id: args.organization,
            network_id: args.network,
            device_id: args.device,
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

/// Publishes the input, and prints the summary to stdout and everything else to stderr.
pub async fn run(args: PublishArgs) -> ExitCode {
    if args.follow && args.eve.as_os_str() == "-" {
        let _ = writeln!(
            io::stderr(),
            "siem-relay: standard input cannot be followed; give a file, or omit --follow"
        );
        return EXIT_USAGE.into();
    }
    let shutdown = match shutdown_on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            report_error("cannot install signal handlers", &error);
            return ExitCode::FAILURE;
        }
    };
    let mut reporter = ConsoleReporter::new(io::stderr());
    let result = publish::run(args.into(), &mut reporter, shutdown).await;
    reporter.finish();
    match result {
        Ok(summary) => {
            // A closed stdout does not change the exit code.
            let _ = write!(io::stdout(), "{summary}");
            summary.exit_code().into()
        }
        Err(error) => {
            report_error("cannot publish", &error);
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
    fn following_uses_a_state_file_and_never_gives_up() {
        let followed = options("--eve log/eve.json --follow").unwrap();
        let expected = |state_file: &str| Input::Follow {
            path: "log/eve.json".into(),
            state_file: state_file.into(),
        };
        assert_eq!(followed.input, expected("log/.eve.json.siem-relay"));
        assert_eq!(followed.publisher.give_up_after, Duration::MAX);
        let explicit = options("--eve log/eve.json --follow --state-file s --retry-for 5").unwrap();
        assert_eq!(explicit.input, expected("s"));
        assert_eq!(explicit.publisher.give_up_after, Duration::from_secs(5));
        let whole = options("--eve log/eve.json").unwrap();
        assert_eq!(whole.publisher.give_up_after, GIVE_UP_AFTER);
    }

    #[test]
    fn conflicting_options_are_refused() {
        assert!(options("--eve x --follow --from-line 3").is_err());
        assert!(options("--eve x --state-file s").is_err());
        assert!(options("--eve x --cert c").is_err());
        assert!(options("--eve x --key k").is_err());
    }
}
