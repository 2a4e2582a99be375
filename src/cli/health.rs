//! `siem-relay health`: the probe of a service on this machine, for containers without other
//! programs. Every setting of `serve` is a flag.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use clap::Args;

use super::{report_error, serve};
use crate::config::{Config, ConfigError, EXIT_USAGE};

/// Time for the connection, and for each part of the answer. Docker's health checks have 30 s.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of an answer that are read.
const MAX_ANSWER: u64 = 16 * 1024;

/// Asks the running service on this machine whether it is ready: whether it has its lease, and its
/// log and database answer.
///
/// It asks `/readyz` at the address of `metrics-listen`, and prints the answer. The exit code is 0 if
/// the service is ready, 1 if it is not or does not answer, and 64 for wrong settings.
#[derive(Args)]
pub(super) struct HealthArgs {
    /// Asks `/livez` instead: whether the process answers, whatever it depends on.
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    settings: serve::Args,
}

/// Runs the subcommand.
pub(super) fn run(args: HealthArgs) -> ExitCode {
    match ask(args) {
        Ok((is_healthy, text)) => {
            let _closed = write!(io::stdout(), "{text}");
            match is_healthy {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            report_error("health", &*error);
            match error.is::<ConfigError>() {
                true => ExitCode::from(EXIT_USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn ask(args: HealthArgs) -> Result<(bool, String), Box<dyn std::error::Error>> {
    let path = if args.live { "/livez" } else { "/readyz" };
    let config = Config::load(args.settings.into_sources())?;
    let listen = config
        .metrics_listen
        .ok_or("the service is asked at the address of metrics-listen: set it")?;
    let address = local(listen);
    let failed = |error: io::Error| format!("the service does not answer at {address}: {error}");
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(failed)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(failed)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER)
        .read_to_end(&mut answer)
        .map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| format!("another program than siem-relay answers at {address}"))?;
    let status = head.split(' ').nth(1);
    Ok((status == Some("200"), body.to_owned()))
}

/// Address at which a listener of this machine is reached.
fn local(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
