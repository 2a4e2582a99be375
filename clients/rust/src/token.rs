//! Tokens that name the caller, and their renewal.

use std::{
    fmt, fs,
    future::Future,
    io::{self, Read},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    task::spawn_blocking,
    time::{Duration, Instant, timeout},
};
use tonic::codegen::{StdError, http::HeaderValue};

use crate::channel::ChannelError;

/// The server refuses larger ones.
const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Time after which a token of a file counts as expired, so that the file is read again.
const FILE_LIFETIME: Duration = Duration::from_secs(60);
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Wait after a renewal ahead of the expiry has failed.
const RETRY_WAIT: Duration = Duration::from_secs(5);

/// A bearer token, such as a JWT. Its value is not printed.
#[derive(Clone, PartialEq)]
pub struct Token {
    header: HeaderValue,
    lifetime: Option<Duration>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// A token without `Bearer`; white space around it is ignored. It is used until it is
    /// refused.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Token`] if it is empty, longer than 8 KiB, or has characters other than
    /// visible ASCII.
    pub fn new(token: &str) -> Result<Self, ChannelError> {
        let token = token.trim_ascii();
        let problem = match token.len() {
            0 => "the token is empty",
            length if length > MAX_TOKEN_BYTES => "the token is longer than 8 KiB",
            _ if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
                "the token has characters other than visible ASCII; give one token, without Bearer"
            }
            _ => "",
        };
        let invalid = |problem: &str| ChannelError::Token(problem.to_owned());
        if !problem.is_empty() {
            return Err(invalid(problem));
        }
        let header = HeaderValue::try_from(format!("Bearer {token}"));
        let mut header = header.map_err(|error| invalid(&error.to_string()))?;
        // Keeps it out of debug output and of the tables of header compression.
        header.set_sensitive(true);
        Ok(Self {
            header,
            lifetime: None,
        })
    }

    /// Limits its use to this time from its receipt.
    #[must_use]
    pub fn expires_in(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(lifetime);
        self
    }

    pub(super) fn read(path: &Path) -> Result<Self, ChannelError> {
        let what = "token file";
        let failed = |error: io::Error| ChannelError::File {
            what,
            path: path.to_owned(),
            error,
        };
        let mut text = String::new();
        // One byte more than allowed shows that it is too long.
        let limit = MAX_TOKEN_BYTES as u64 + 1;
        let file = fs::File::open(path).map_err(failed)?;
        file.take(limit).read_to_string(&mut text).map_err(failed)?;
        let token = Self::new(&text).map_err(|error| ChannelError::Content {
            what,
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        Ok(token.expires_in(FILE_LIFETIME))
    }
}

type Fetch =
    dyn Fn() -> Pin<Box<dyn Future<Output = Result<Token, StdError>> + Send>> + Send + Sync;

/// Origin of tokens.
#[derive(Clone)]
pub(super) enum Source {
    Fixed(Token),
    File(PathBuf),
    Function(Arc<Fetch>),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(_) => f.write_str("Fixed"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Function(_) => f.write_str("Function"),
        }
    }
}

impl Source {
    pub(super) fn function<F, R, E>(fetch: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Token, E>> + Send + 'static,
        E: Into<StdError>,
    {
        Self::Function(Arc::new(move || {
            let token = fetch();
            Box::pin(async { token.await.map_err(Into::into) })
        }))
    }

    async fn fetch(&self) -> Result<Token, StdError> {
        match self {
            Self::Fixed(token) => Ok(token.clone()),
            Self::File(path) => {
                let path = path.clone();
                Ok(spawn_blocking(move || Token::read(&path)).await??)
            }
            Self::Function(fetch) => fetch().await,
        }
    }
}

/// A token that was fetched.
#[derive(Clone)]
pub(super) struct Fetched {
    token: Token,
    renew_at: Option<Instant>,
    expires_at: Option<Instant>,
    /// Number of the fetch, from 1.
    number: u64,
}

impl Fetched {
    pub(super) fn header(&self) -> HeaderValue {
        self.token.header.clone()
    }

    fn has_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= Instant::now())
    }
}

/// The current token, and at most one fetch of the next one.
pub(super) struct Tokens {
    source: Source,
    current: StdMutex<Option<Fetched>>,
    /// Held by the one fetch that runs; its content is the result of the last one.
    fetching: Arc<Mutex<Result<Fetched, String>>>,
    /// Fetches that ended, whether they succeeded or not.
    ended: AtomicU64,
}

type FetchResult = Result<Fetched, String>;

impl Tokens {
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            current: StdMutex::default(),
            fetching: Arc::new(Mutex::new(Err(String::new()))),
            ended: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Fetched>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a token that has not expired, after a fetch if there is none. A token that expires
    /// soon is returned at once, and renewed meanwhile.
    ///
    /// # Errors
    ///
    /// The reason for which no token could be fetched.
    pub(super) async fn current(self: &Arc<Self>) -> FetchResult {
        let current = self.lock().clone();
        let Some(current) = current.filter(|token| !token.has_expired()) else {
            return self.fetch(0).await;
        };
        if current.renew_at.is_some_and(|at| at <= Instant::now())
            && let Ok(guard) = Arc::clone(&self.fetching).try_lock_owned()
        {
            let this = Arc::clone(self);
            tokio::spawn(async move { this.fetch_and_keep(guard).await });
        }
        Ok(current)
    }

    /// Returns another token than one that was refused; none if there is no other.
    pub(super) async fn instead_of(self: &Arc<Self>, refused: &Fetched) -> Option<Fetched> {
        let fetched = self.fetch(refused.number).await.ok()?;
        (fetched.token.header != refused.token.header).then_some(fetched)
    }

    /// Fetches a token, or awaits the fetch that runs, unless there is one of a later number than
    /// that of the refused one; 0 for none.
    async fn fetch(self: &Arc<Self>, refused: u64) -> FetchResult {
        let ended = self.ended.load(Ordering::Acquire);
        let guard = Arc::clone(&self.fetching).lock_owned().await;
        if self.ended.load(Ordering::Acquire) != ended {
            return guard.clone();
        }
        if let Some(current) = &*self.lock()
            && current.number > refused
            && !current.has_expired()
        {
            return Ok(current.clone());
        }
        let this = Arc::clone(self);
        // A call that is dropped must not end the fetch for all others.
        let fetch = tokio::spawn(async move { this.fetch_and_keep(guard).await });
        let stopped = |error: tokio::task::JoinError| format!("cannot get a token: {error}");
        fetch.await.map_err(stopped)?
    }

    /// Awaits the fetch that runs, and returns the result of the last one.
    #[cfg(test)]
    pub(super) async fn fetch_ended(&self) -> FetchResult {
        self.fetching.lock().await.clone()
    }

    async fn fetch_and_keep(&self, mut last: OwnedMutexGuard<FetchResult>) -> FetchResult {
        let fetched = match timeout(FETCH_TIMEOUT, self.source.fetch()).await {
            Ok(Ok(token)) => Ok(token),
            Ok(Err(error)) => Err(format!("cannot get a token: {error}")),
            Err(_) => Err("cannot get a token: it takes too long".to_owned()),
        };
        let now = Instant::now();
        let mut current = self.lock();
        let number = self.ended.load(Ordering::Acquire) + 1;
        let fetched = fetched.map(|token| Fetched {
            renew_at: token.lifetime.map(|lifetime| now + lifetime.mul_f64(0.8)),
            expires_at: token.lifetime.map(|lifetime| now + lifetime),
            number,
            token,
        });
        match (&fetched, &mut *current) {
            (Ok(fetched), current) => *current = Some(fetched.clone()),
            (Err(_), Some(current)) => current.renew_at = Some(now + RETRY_WAIT),
            (Err(_), None) => {}
        }
        last.clone_from(&fetched);
        self.ended.store(number, Ordering::Release);
        fetched
    }
}
