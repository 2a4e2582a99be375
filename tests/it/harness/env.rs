//! The service inside this process.

use std::{net::SocketAddr, path::Path};

use siem_relay::{
    app::{App, AppError},
    config::Config,
    sink::StandInAccess,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Api, within};

/// A running service.
pub struct Relay {
    pub address: SocketAddr,
    stop: CancellationToken,
    run: JoinHandle<Result<(), AppError>>,
}

impl Relay {
    pub async fn start(data_dir: &Path, settings: &[(String, String)], aws: StandInAccess) -> Self {
        let own = [
            ("listen", "127.0.0.1:0".to_owned()),
            ("data-dir", data_dir.to_str().unwrap().to_owned()),
            ("retry-first-ms", "20".to_owned()),
        ];
        let asked = settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()));
        let own = own
            .into_iter()
            .filter(|(name, _)| settings.iter().all(|(asked, _)| asked != name));
        let config = Config::from_pairs(own.chain(asked)).unwrap();
        let app = within("the start", App::start(&config, Some(aws)))
            .await
            .unwrap();
        let address = app.address();
        let stop = CancellationToken::new();
        let run = tokio::spawn(app.run(stop.clone()));
        Self { address, stop, run }
    }

    pub fn api(&self) -> Api {
        Api::new(self.address)
    }

    /// Asks it to stop, without waiting.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Stops it in order.
    pub async fn stop(self) {
        self.stop.cancel();
        within("the stop", self.run).await.unwrap().unwrap();
    }
}
