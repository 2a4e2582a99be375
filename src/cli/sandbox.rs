//! `siem-relay sandbox`: runs the service with a stand-in for AWS and sample detections.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use aws_stand_in::vendor_credentials;
use clap::Args;
use uuid::Uuid;

use super::{organization_id, report_error, shutdown_on_signals};
use crate::{
    config::{Config, EXIT_USAGE},
    domain::organization::OrganizationId,
    publish::Input,
    sandbox::{self, DEFAULT_DEVICE, DEFAULT_NETWORK, DEFAULT_PORT, Feed, Options, Port},
    telemetry::{self, TelemetryGuard},
};

/// Hides the service's log lines about status changes, which the sandbox prints itself.
const DEFAULT_LOG_LEVEL: &str = "warn,siem_relay::watch=error";

/// Runs the service with a local stand-in for AWS, and shows how detections are delivered.
///
/// Everything runs in one process, without an AWS account, network or files. It configures
/// an integration, publishes sample detections, and prints the events that it reads back
/// from the stream and each change of status, until Ctrl-C. If stdout is not a terminal, it
/// contains only the CloudEvents as delivered, one per line; everything else goes to
/// stderr. The database is a temporary directory that is removed at the end.
///
/// With --events or --eve it ends by itself. Exit codes: 0 if every event was read back and
/// no line of an EVE file was broken; 64 if the options are wrong; 1 otherwise.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// The port of the gRPC API; 0 picks a free one. [default: 50051; with --events or --eve a
    /// free port if 50051 is in use] With --aws-only, the port of the stand-in.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Publish this many sample events as fast as they are accepted, and end.
    #[arg(long, value_name = "N", conflicts_with = "eve", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    events: Option<u64>,
    /// Publish the alerts of this Suricata EVE file (- for standard input), and end.
    #[arg(long, value_name = "FILE")]
    eve: Option<PathBuf>,
    /// The organization of the events.
    #[arg(long, value_name = "ID", default_value = "acme", value_parser = organization_id)]
    organization: OrganizationId,
    /// Use TLS, client certificates and tokens. Makes development credentials in the temporary
    /// directory; the printed commands use them.
    #[arg(long, conflicts_with = "aws_only")]
    secure: bool,
    /// The network that the sensor of the EVE file watches.
    #[arg(long, value_name = "UUID", requires = "eve", default_value_t = DEFAULT_NETWORK)]
    network: Uuid,
    /// The device id of the sensor of the EVE file.
    #[arg(long, value_name = "UUID", requires = "eve", default_value_t = DEFAULT_DEVICE)]
    device: Uuid,
    /// With --events or --eve: fail after this many seconds without a delivered event.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    timeout: u32,
    /// Run only the stand-in for STS and Kinesis, without roles or streams, until a signal.
    /// Prints the environment variables with which AWS SDKs and `siem-relay serve` use it.
    #[arg(long, conflicts_with_all = ["events", "eve", "organization", "timeout"])]
    aws_only: bool,
    /// The port of the stand-in. [default: a free one]
    #[arg(long, value_name = "PORT")]
    aws_port: Option<u16>,
    /// The log level of the service.
    #[arg(long, value_name = "LEVEL", default_value = DEFAULT_LOG_LEVEL)]
    log_level: String,
}

impl From<SandboxArgs> for Options {
    fn from(args: SandboxArgs) -> Self {
        let feed = match (args.events, args.eve) {
            (Some(count), _) => Feed::Count(count),
            (None, Some(path)) => Feed::Eve {
                input: match path.as_os_str() == "-" {
                    true => Input::Stdin,
                    false => Input::File(path),
                },
                network_id: args.network,
                device_id: args.device,
            },
            (None, None) => Feed::Samples,
        };
        Self {
            port: match args.port {
                Some(port) => Port::Exactly(port),
                None if feed.has_end() => Port::Preferably(DEFAULT_PORT),
                None => Port::Exactly(DEFAULT_PORT),
            },
            aws_port: args.aws_port.unwrap_or(0),
            organization: args.organization,
            is_secure: args.secure,
            feed,
            stall_timeout: Duration::from_secs(args.timeout.into()),
        }
    }
}

/// Runs the sandbox, or only its stand-in for AWS.
pub async fn run(args: SandboxArgs) -> ExitCode {
    let _telemetry = match logs(&args.log_level) {
        Ok(guard) => guard,
        Err(code) => return code,
    };
    let shutdown = match shutdown_on_signals() {
        Ok(shutdown) => shutdown,
        Err(error) => {
            report_error("cannot install signal handlers", &error);
            return ExitCode::FAILURE;
        }
    };
    let ended = match args.aws_only {
        true => {
            let port = args.aws_port.or(args.port).unwrap_or(0);
            sandbox::run_aws_only(port, shutdown, print_exports).await
        }
        false => sandbox::run(args.into(), shutdown).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_error("the sandbox failed", &error);
            ExitCode::FAILURE
        }
    }
}

fn logs(level: &str) -> Result<TelemetryGuard, ExitCode> {
    let usage = |error: &dyn std::error::Error| {
        report_error("cannot start", error);
        ExitCode::from(EXIT_USAGE)
    };
    let settings = [
        ("log-level", level.to_owned()),
        ("log-format", "text".to_owned()),
    ];
    let config = Config::from_pairs(settings).map_err(|error| usage(&error))?;
    telemetry::init(&config).map_err(|error| usage(&error))
}

/// Prints the shell commands that make AWS SDKs use the stand-in.
fn print_exports(address: SocketAddr) {
    let own = vendor_credentials();
    let url = format!("http://{address}");
    // A closed stdout or stderr is no failure.
    let _ = write!(
        io::stdout(),
        "export AWS_ACCESS_KEY_ID={}\n\
         export AWS_SECRET_ACCESS_KEY={}\n\
         export AWS_REGION={}\n\
         export AWS_ENDPOINT_URL_STS={url}\n\
         export AWS_ENDPOINT_URL_KINESIS={url}\n",
        own.access_key_id,
        own.secret_access_key,
        sandbox::REGION,
    );
    let _ = writeln!(
        io::stderr(),
        "the stand-in for STS and Kinesis listens at {url}; the exported credentials are those of \
         {}. Its control endpoint {url}/_control creates streams, roles and faults: see \
         docs/stand-in.md. Ctrl-C ends it.",
        own.principal_arn
    );
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Whole {
        #[command(flatten)]
        args: SandboxArgs,
    }

    fn options(arguments: &str) -> Result<Options, clap::Error> {
        let all = ["sandbox"].into_iter().chain(arguments.split_whitespace());
        Ok(Whole::try_parse_from(all)?.args.into())
    }

    #[test]
    fn only_a_run_that_ends_by_itself_falls_back_to_a_free_port() {
        let port = |arguments| options(arguments).unwrap().port;
        assert_eq!(port(""), Port::Exactly(DEFAULT_PORT));
        assert_eq!(port("--events 5"), Port::Preferably(DEFAULT_PORT));
        assert_eq!(port("--eve x"), Port::Preferably(DEFAULT_PORT));
        assert_eq!(port("--events 5 --port 50051"), Port::Exactly(DEFAULT_PORT));
        assert_eq!(port("--port 0"), Port::Exactly(0));
    }

    #[test]
    fn an_eve_file_has_a_default_network_and_device() {
        let feed = options("--eve - --organization other").unwrap().feed;
        assert_eq!(
            feed,
            Feed::Eve {
                input: Input::Stdin,
                network_id: DEFAULT_NETWORK,
                device_id: DEFAULT_DEVICE,
            }
        );
    }

    #[test]
    fn conflicting_or_invalid_options_are_refused() {
        for arguments in [
            "--events 5 --eve x",
            "--events 0",
            "--aws-only --events 5",
            "--aws-only --secure",
            "--organization a/b",
            "--network 4e740000-0000-4000-8000-000000000001",
            "--timeout 0",
        ] {
            assert!(options(arguments).is_err(), "{arguments}");
        }
    }
}
