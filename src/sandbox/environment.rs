//! The running parts: stand-in, service, and the directory of the database.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::SystemTime,
};

use aws_stand_in::{Control, StandIn, vendor_credentials};
use siem_client::ChannelOptions;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    Options, Port, SandboxError,
    account::{Account, REGION},
};
use crate::{
    app::{App, AppError},
    config::Config,
    dev_credentials::{self, DevCredentials},
    sink::StandInAccess,
};

/// Time that the service has to finish what is in flight.
const SHUTDOWN_DEADLINE_SECONDS: u32 = 3;
/// Short retry waits, so that a repaired integration is Active soon.
const RETRY_FIRST_MS: u32 = 1_000;
const RETRY_MOST_MS: u32 = 10_000;

/// A running service and its stand-in for AWS.
pub(super) struct Environment {
    address: SocketAddr,
    stand_in: StandIn,
    service: JoinHandle<Result<(), AppError>>,
    stop: CancellationToken,
    directory: TempDir,
    credentials: Option<DevCredentials>,
}

impl Environment {
    /// Starts the stand-in with the account, then the service.
    pub(super) async fn start(options: &Options, account: &Account) -> Result<Self, SandboxError> {
        let stand_in = start_stand_in(options.aws_port).await?;
        account.set_up(&stand_in.control())?;
        let directory = TempDir::with_prefix("siem-relay-sandbox-");
        let directory = directory.map_err(SandboxError::Directory)?;
        let credentials = match options.is_secure {
            true => Some(DevCredentials::write(
                &directory.path().join("credentials"),
                &[],
                &[],
                SystemTime::now(),
            )?),
            false => None,
        };
        let app = start_app(options.port, &stand_in, &directory, credentials.as_ref()).await?;
        let address = app.address();
        let stop = CancellationToken::new();
        let service = tokio::spawn(app.run(stop.clone()));
        Ok(Self {
            address,
            stand_in,
            service,
            stop,
            directory,
            credentials,
        })
    }

    /// Address of the API.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Address of the API, and the credentials that it wants. A client certificate, since a token
    /// may expire before the sandbox ends.
    pub(super) fn service(&self) -> ChannelOptions {
        match &self.credentials {
            None => ChannelOptions::new(self.address.to_string()),
            Some(credentials) => ChannelOptions::new(format!("https://{}", self.address))
                .ca_file(credentials.path(dev_credentials::CA))
                .identity_files(
                    credentials.path(dev_credentials::CLIENT_CERTIFICATE),
                    credentials.path(dev_credentials::CLIENT_KEY),
                ),
        }
    }

    /// The development credentials, if the API wants some.
    pub(super) fn credentials(&self) -> Option<&DevCredentials> {
        self.credentials.as_ref()
    }

    /// Endpoint of STS and Kinesis.
    pub(super) fn aws_url(&self) -> String {
        self.stand_in.url()
    }

    pub(super) fn control(&self) -> Control {
        self.stand_in.control()
    }

    /// Waits until the service ends by itself, which is an error.
    pub(super) async fn ended(&mut self) -> SandboxError {
        match (&mut self.service).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => SandboxError::Ended,
        }
    }

    /// Stops the service: it settles what is in flight and closes its database.
    pub(super) async fn stop_service(&mut self) -> Result<(), SandboxError> {
        self.stop.cancel();
        if self.service.is_finished() {
            return Ok(());
        }
        match (&mut self.service).await {
            Ok(ended) => Ok(ended?),
            Err(_) => Err(SandboxError::Ended),
        }
    }

    /// Stops the service, then the stand-in, then removes the directory.
    pub(super) async fn shutdown(mut self) -> Result<(), SandboxError> {
        let stopped = self.stop_service().await;
        self.stand_in.shutdown().await;
        let removed = self.directory.close().map_err(SandboxError::LeftBehind);
        stopped.and(removed)
    }
}

/// Starts a stand-in on loopback.
pub(super) async fn start_stand_in(port: u16) -> Result<StandIn, SandboxError> {
    let options = aws_stand_in::Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        ..aws_stand_in::Options::default()
    };
    let started = StandIn::start(options).await;
    started.map_err(|source| SandboxError::StandIn { port, source })
}

async fn start_app(
    port: Port,
    stand_in: &StandIn,
    directory: &TempDir,
    credentials: Option<&DevCredentials>,
) -> Result<App, SandboxError> {
    let own = vendor_credentials();
    let access = StandInAccess {
        url: stand_in.url(),
        region: REGION.to_owned(),
        access_key_id: own.access_key_id,
        secret_access_key: own.secret_access_key.into(),
    };
    let (Port::Exactly(first) | Port::Preferably(first)) = port;
    match App::start(
        &config(first, directory, credentials)?,
        Some(access.clone()),
    )
    .await
    {
        Err(error) if !is_taken(&error) => Err(error.into()),
        Err(_) if port == Port::Preferably(first) => {
            Ok(App::start(&config(0, directory, credentials)?, Some(access)).await?)
        }
        Err(_) => Err(SandboxError::PortTaken { port: first }),
        Ok(app) => Ok(app),
    }
}

fn is_taken(error: &AppError) -> bool {
    matches!(error, AppError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
}

fn config(
    port: u16,
    directory: &TempDir,
    credentials: Option<&DevCredentials>,
) -> Result<Config, SandboxError> {
    let path = directory.path();
    let data_dir = path
        .to_str()
        .ok_or_else(|| SandboxError::DirectoryName(path.to_owned()))?;
    let settings = [
        (
            "listen",
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string(),
        ),
        ("console", "true".to_owned()),
        ("data-dir", data_dir.to_owned()),
        ("retry-first-ms", RETRY_FIRST_MS.to_string()),
        ("retry-most-ms", RETRY_MOST_MS.to_string()),
        (
            "shutdown-deadline-seconds",
            SHUTDOWN_DEADLINE_SECONDS.to_string(),
        ),
    ];
    let secure = credentials.map(DevCredentials::settings);
    let all = settings.into_iter().chain(secure.into_iter().flatten());
    Ok(Config::from_pairs(all)?)
}
