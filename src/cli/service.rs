//! Flags of the subcommands that call a running service.

use std::path::PathBuf;

use clap::Args;
use siem_client::ChannelOptions;

/// Title of these flags in the help.
const SERVICE: &str = "Service";

/// Address of the service, and the credentials of the caller.
#[derive(Debug, Args)]
pub(super) struct ServiceArgs {
    /// The address of the service.
    #[arg(long, global = true, help_heading = SERVICE, value_name = "URL", default_value = siem_client::DEFAULT_ADDRESS, env = "SIEM_RELAY_ADDRESS")]
    address: String,
    /// PEM file of the certification authorities that may have issued the service's certificate.
    /// [default: those that the system trusts]
    #[arg(long, global = true, help_heading = SERVICE, value_name = "FILE", env = "SIEM_RELAY_CA")]
    ca: Option<PathBuf>,
    /// PEM file of a client certificate, with those that lead to its authority.
    #[arg(
        long,
        global = true,
        help_heading = SERVICE,
        value_name = "FILE",
        env = "SIEM_RELAY_CERT",
        requires = "key"
    )]
    cert: Option<PathBuf>,
    /// PEM file of the certificate's key.
    #[arg(
        long,
        global = true,
        help_heading = SERVICE,
        value_name = "FILE",
        env = "SIEM_RELAY_KEY",
        requires = "cert"
    )]
    key: Option<PathBuf>,
    /// File with a bearer token. It is read again at least every 60 s, and when the token is
    /// refused.
    #[arg(
        long,
        global = true,
        help_heading = SERVICE,
        value_name = "FILE",
        env = "SIEM_RELAY_TOKEN_FILE"
    )]
    token_file: Option<PathBuf>,
}

impl ServiceArgs {
    pub(super) fn options(&self) -> ChannelOptions {
        let mut service = ChannelOptions::new(&self.address);
        if let Some(ca) = &self.ca {
            service = service.ca_file(ca);
        }
        if let (Some(certificate), Some(key)) = (&self.cert, &self.key) {
            service = service.identity_files(certificate, key);
        }
        if let Some(token_file) = &self.token_file {
            service = service.token_file(token_file);
        }
        service
    }
}
