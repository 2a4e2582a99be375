//! `siem-relay dev-credentials`: certificates, keys and tokens for development.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use clap::Args;

use super::{organization_id, report_error};
use crate::{
    config::EXIT_USAGE,
    dev_credentials::{DevCredentials, DevCredentialsError},
    domain::organization::OrganizationId,
};

/// Makes certificates and tokens for development.
///
/// Writes into DIR a certification authority, a certificate of the service and one of a
/// client, a key that signs tokens with its public part (jwks.json), a callers file that
/// trusts both, and a token for each set of scopes. Prints the commands that use them. Never
/// use them in production: whoever reads DIR is every caller. They expire by themselves.
///
/// Exit codes: 0 if all was written; 64 if DIR has such files already, which are never
/// overwritten, or an argument is wrong; 1 otherwise.
#[derive(Debug, Args)]
pub struct DevCredentialsArgs {
    /// The directory. It is made if it does not exist, for its owner only.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// A further name or address of the service, beside localhost, 127.0.0.1 and ::1.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// An organization that the callers may touch. [default: all]
    #[arg(long = "organization", value_name = "ID", value_parser = organization_id)]
    organizations: Vec<OrganizationId>,
}

/// Writes the credentials, and prints how to use them.
pub(super) fn run(args: DevCredentialsArgs) -> ExitCode {
    let DevCredentialsArgs {
        directory,
        hosts,
        organizations,
    } = args;
    match DevCredentials::write(&directory, &hosts, &organizations, SystemTime::now()) {
        Ok(credentials) => {
            // A closed stdout changes nothing of what was written.
            let _ = write!(io::stdout(), "{}", credentials.how_to());
            ExitCode::SUCCESS
        }
        Err(error) => {
            report_error("cannot make development credentials", &error);
            match error {
                DevCredentialsError::Exists(_)
                | DevCredentialsError::DirectoryName(_)
                | DevCredentialsError::Host(_) => EXIT_USAGE.into(),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
