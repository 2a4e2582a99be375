//! Process entry. No TLS provider is installed here: the AWS SDK brings its own, and
//! nothing else speaks TLS.

use std::process::ExitCode;

fn main() -> ExitCode {
    siem_relay::cli::run()
}
