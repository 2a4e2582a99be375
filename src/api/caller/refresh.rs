//! Keys of an issuer by HTTP: fetched at intervals, and early for a token with an unknown key.

use std::{future::Future, io, time::Duration};

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout},
};

use super::key_set::{KeySetError, MAX_KEY_SET};
use crate::https;

/// Interval of fetches.
const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Interval while the last fetch failed, and least interval of early fetches.
const SHORT_INTERVAL: Duration = Duration::from_secs(60);
/// Interval while there are no keys at all.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);
/// Time of a fetch, and of a request that waits for one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Reason why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("found no root certificates: {0}")]
    Roots(io::Error),
    #[error("the key server did not answer within 10 s")]
    Timeout,
    #[error("the key server cannot be reached")]
    Connection(#[from] hyper_util::client::legacy::Error),
    #[error("the key server answered HTTP status {0}; redirects are not followed")]
    Status(u16),
    #[error("the answer of the key server was cut off or is larger than 1 MiB")]
    Body,
    #[error("the answer of the key server {0}")]
    KeySet(#[from] KeySetError),
}

/// Fetches a key set over a connection of its own.
pub(super) async fn fetch(url: Uri) -> Result<Bytes, FetchError> {
    let client = https::client().map_err(FetchError::Roots)?;
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = url;
    let exchange = async {
        let answer = client.request(request).await?;
        if answer.status() != http::StatusCode::OK {
            return Err(FetchError::Status(answer.status().as_u16()));
        }
        let body = Limited::new(answer.into_body(), MAX_KEY_SET)
            .collect()
            .await;
        Ok(body.map_err(|_| FetchError::Body)?.to_bytes())
    };
    timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| FetchError::Timeout)?
}

/// Schedule of the fetches of one URL. Only [`Refresh::run`] fetches, so fetches never overlap,
/// however many requests ask for one.
#[derive(Debug)]
pub(super) struct Refresh {
    wanted: Notify,
    fetches: watch::Sender<Fetches>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Fetches {
    ended: u64,
    last_ended: Option<Instant>,
    is_running: bool,
}

impl Fetches {
    fn may_start_early(&self) -> bool {
        let last = self.last_ended;
        last.is_some_and(|last| last.elapsed() >= SHORT_INTERVAL)
    }
}

impl Refresh {
    pub(super) fn new() -> Self {
        Self {
            wanted: Notify::new(),
            fetches: watch::Sender::default(),
        }
    }

    /// Waits for a fetch, for a token whose key is unknown. Returns false at once if the last one
    /// is so recent that there will be none.
    pub(super) async fn fetched(&self) -> bool {
        let mut fetches = self.fetches.subscribe();
        let now = *fetches.borrow_and_update();
        // Before the first fetch, it is about to begin.
        if now.may_start_early() {
            self.wanted.notify_one();
        } else if !now.is_running && now.last_ended.is_some() {
            return false;
        }
        let next = fetches.wait_for(|fetches| fetches.ended > now.ended);
        matches!(timeout(TIMEOUT, next).await, Ok(Ok(_)))
    }

    /// Calls `fetch` at intervals, and for requests that wait, until it is cancelled. `fetch`
    /// applies the keys, and returns whether it succeeded.
    pub(super) async fn run<F: Future<Output = bool>>(&self, mut fetch: impl FnMut() -> F) {
        let mut has_keys = false;
        loop {
            self.fetches
                .send_modify(|fetches| fetches.is_running = true);
            let succeeded = fetch().await;
            has_keys |= succeeded;
            let ended = Instant::now();
            self.fetches.send_modify(|fetches| {
                *fetches = Fetches {
                    ended: fetches.ended + 1,
                    last_ended: Some(ended),
                    is_running: false,
                };
            });
            let interval = match (succeeded, has_keys) {
                (true, _) => INTERVAL,
                (false, true) => SHORT_INTERVAL,
                (false, false) => FIRST_INTERVAL,
            };
            let next = sleep_until(ended + interval);
            tokio::pin!(next);
            loop {
                tokio::select! {
                    () = &mut next => break,
                    // A permit may be left from before the fetch.
                    () = self.wanted.notified() => {
                        if self.fetches.borrow().may_start_early() {
                            break;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use tokio::time::{advance, sleep};

    use super::*;

    struct Server {
        refresh: Arc<Refresh>,
        fetches: Arc<AtomicU64>,
    }

    impl Server {
        /// Runs a schedule of fetches that take a second, and of which the first ones fail.
        fn start(failing: u64) -> Self {
            let (refresh, fetches) = (Arc::new(Refresh::new()), Arc::<AtomicU64>::default());
            let (running, count) = (Arc::clone(&refresh), Arc::clone(&fetches));
            tokio::spawn(async move {
                let fetch = || {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    async move {
                        sleep(Duration::from_secs(1)).await;
                        number >= failing
                    }
                };
                running.run(fetch).await;
            });
            Self { refresh, fetches }
        }

        fn count(&self) -> u64 {
            self.fetches.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_unknown_keys_cause_one_fetch_a_minute() {
        let server = Server::start(0);
        assert!(server.refresh.fetched().await, "the first fetch is awaited");
        assert_eq!(server.count(), 1);
        advance(Duration::from_secs(59)).await;
        assert!(!server.refresh.fetched().await, "the last one is recent");
        assert_eq!(server.count(), 1);
        advance(Duration::from_secs(2)).await;
        let waiting = (0..100).map(|_| server.refresh.fetched());
        let waited = futures_util::future::join_all(waiting).await;
        assert!(waited.into_iter().all(|fetched| fetched));
        assert_eq!(server.count(), 2);
        assert!(!server.refresh.fetched().await);
        sleep(Duration::from_secs(100)).await;
        assert_eq!(server.count(), 2, "no permit is left over");
        sleep(INTERVAL).await;
        assert_eq!(server.count(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_down_at_the_start_is_asked_again() {
        let server = Server::start(2);
        sleep(Duration::from_secs(20)).await;
        assert_eq!(server.count(), 3);
        sleep(INTERVAL).await;
        assert_eq!(server.count(), 4);
    }
}
