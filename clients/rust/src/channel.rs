//! The connection to a server, with TLS and a token where they are configured.

use std::{
    fmt,
    future::Future,
    io, mem,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tonic::{
    Code, ConnectError, Status,
    body::Body,
    codegen::{Service, StdError, http},
    transport::{self, Endpoint},
};

use crate::{
    connector::{Connector, Tls},
    replay::Replay,
    token::{Source, Token, Tokens},
};

/// Interval of HTTP/2 pings while a call is open; they detect a peer that vanished.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reason for which a channel cannot be made of these options.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not a URL with a host.
    #[error("address {0:?} is not of the form http://HOST:PORT or https://HOST:PORT")]
    Malformed(String),
    /// The scheme is neither `http` nor `https`.
    #[error("address {0:?} has an unsupported scheme; use http://HOST:PORT or https://HOST:PORT")]
    Scheme(String),
    /// Certificates are given for an address without TLS.
    #[error("address {0:?} is without TLS, and certificates are given; use https://HOST:PORT")]
    CertificateWithoutTls(String),
    /// A token would be sent in clear.
    #[error(
        "a token is not sent in clear to {0:?}, which is not on loopback; use https://HOST:PORT"
    )]
    TokenInClear(String),
    /// A file cannot be read.
    #[error("cannot read {what} {}: {error}", path.display())]
    File {
        /// The content that the file should have.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A file has other content than it should have.
    #[error("{what} {} cannot be used: {problem}", path.display())]
    Content {
        /// The content that the file should have.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// No certificate of a certification authority was found in the system.
    #[error("the system has no certificates of certification authorities; name a file of them")]
    NoSystemRoots,
    /// The token has characters that a header cannot have, or is empty or too long.
    #[error("{0}")]
    Token(String),
    /// TLS itself cannot be set up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Address of a server, and the means by which both ends know each other.
///
/// Over `https` the server's certificate is verified for the host of the address, against a file
/// of certificates or else those that the system trusts. The caller names itself by a client
/// certificate, a token, or both.
///
/// Files are read when the channel is made, so that an error is seen early. Those of
/// certificates are read again for each connection, and that of a token at least every 60 s: a
/// program that runs for long uses what has replaced them.
///
/// ```no_run
/// # fn example() -> Result<(), siem_client::ChannelError> {
/// use siem_client::ChannelOptions;
///
/// let channel = ChannelOptions::new("https://siem-relay.example.com:50051")
///     .ca_file("/etc/siem/ca.pem")
///     .token_file("/run/secrets/siem-token")
///     .connect()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    address: String,
    ca_file: Option<PathBuf>,
    identity: Option<Identity>,
    token: Option<Source>,
}

/// Files of a client certificate.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl ChannelOptions {
    /// Options for a server at `http://HOST:PORT` or `https://HOST:PORT`. An address without a
    /// scheme counts as `http://`.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            ca_file: None,
            identity: None,
            token: None,
        }
    }

    /// Trusts the certification authorities of this PEM file, instead of the system's.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Presents a client certificate: PEM files of the certificate, with those that lead to its
    /// authority after it, and of its key.
    #[must_use]
    pub fn identity_files(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.identity = Some(Identity {
            certificate: certificate.into(),
            key: key.into(),
        });
        self
    }

    /// Sends this token with each call. It is used until the server refuses it.
    #[must_use]
    pub fn token(mut self, token: Token) -> Self {
        self.token = Some(Source::Fixed(token));
        self
    }

    /// Sends the token that this file contains. The file is read again at least every 60 s, and
    /// when the server refuses the token.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(Source::File(path.into()));
        self
    }

    /// Sends the token that `fetch` returns. It is called at the first call, once four fifths of
    /// the token's lifetime are over, and when the server refuses the token: never by two calls
    /// at a time, and the result is for all. It has 30 s. While it runs ahead of the expiry, calls
    /// use the earlier token; if it fails, they do so until that has expired, and then fail as
    /// UNAVAILABLE.
    #[must_use]
    pub fn token_function<F, R, E>(mut self, fetch: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<Token, E>> + Send + 'static,
        E: Into<StdError>,
    {
        self.token = Some(Source::function(fetch));
        self
    }

    /// Returns a channel that connects at its first use, and again whenever the connection was
    /// lost. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] if the options contradict each other or a file cannot be used. An address
    /// at which nothing listens fails at the first call.
    pub fn connect(&self) -> Result<Channel, ChannelError> {
        let (endpoint, is_secure) = self.endpoint()?;
        let tls = match is_secure {
            true => {
                let host = endpoint.uri().host().unwrap_or_default();
                Some(self.tls(host)?)
            }
            false if self.ca_file.is_some() || self.identity.is_some() => {
                return Err(ChannelError::CertificateWithoutTls(self.address.clone()));
            }
            false => None,
        };
        let loopback_only = self.token.is_some() && !is_secure;
        if loopback_only && !endpoint.uri().host().is_some_and(is_loopback) {
            return Err(ChannelError::TokenInClear(self.address.clone()));
        }
        if let Some(Source::File(path)) = &self.token {
            Token::read(path)?;
        }
        let connector = Connector::new(tls, loopback_only);
        let endpoint = endpoint
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
        Ok(Channel {
            transport: transport::Channel::new(connector, endpoint),
            tokens: self
                .token
                .clone()
                .map(|source| Arc::new(Tokens::new(source))),
        })
    }

    fn endpoint(&self) -> Result<(Endpoint, bool), ChannelError> {
        let address = &self.address;
        let malformed = || ChannelError::Malformed(address.clone());
        let (url, is_secure) = match address.split_once("://") {
            None => (format!("http://{address}"), false),
            Some(("http", _)) => (address.clone(), false),
            Some(("https", _)) => (address.clone(), true),
            Some(_) => return Err(ChannelError::Scheme(address.clone())),
        };
        let endpoint = Endpoint::from_shared(url).map_err(|_| malformed())?;
        let authority = endpoint.uri().authority().ok_or_else(malformed)?;
        // User information would be sent along as part of the authority.
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(malformed());
        }
        Ok((endpoint, is_secure))
    }

    fn tls(&self, host: &str) -> Result<Tls, ChannelError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let malformed = |_| ChannelError::Malformed(self.address.clone());
        let tls = Tls {
            server_name: host.to_owned().try_into().map_err(malformed)?,
            ca_file: self.ca_file.clone(),
            identity: self.identity.clone(),
        };
        tls.config()?;
        Ok(tls)
    }
}

/// Whether a host names this machine. The connector compares the address that it leads to.
fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
    }
}

/// A connection to the server, which is opened at its first use and again after each loss.
/// Clones share it. Calls of the generated clients, of [`Publisher`](crate::Publisher) and
/// of [`StatusWatch`](crate::StatusWatch) carry the token, if there is one.
///
/// A call that is answered with UNAUTHENTICATED before its response begins is sent once more with
/// a token that was fetched anew, if the first 8 MiB of its request suffice for that.
#[derive(Clone)]
pub struct Channel {
    transport: transport::Channel,
    tokens: Option<Arc<Tokens>>,
}

impl From<transport::Channel> for Channel {
    /// A connection with settings of your own, without a token.
    fn from(transport: transport::Channel) -> Self {
        Self {
            transport,
            tokens: None,
        }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.transport.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(tokens) = self.tokens.clone() else {
            let answer = self.transport.call(request);
            return Box::pin(async { Ok(answer.await?) });
        };
        // The clone is not ready; the original is.
        let spare = self.transport.clone();
        let ready = mem::replace(&mut self.transport, spare);
        let limit = request.headers().get("grpc-timeout");
        let limit = limit.and_then(|text| time_limit_of(text.to_str().ok()?));
        let call = call_with_token(tokens, ready, request);
        match limit {
            None => Box::pin(call),
            Some(limit) => Box::pin(async move {
                let late = |_| Status::deadline_exceeded("the time limit of the call is over");
                tokio::time::timeout(limit, call).await.map_err(late)?
            }),
        }
    }
}

/// Parses the time limit of a call: up to eight digits and a unit. tonic counts it for each
/// attempt; it is that of the call, which fetches tokens and may have two attempts.
fn time_limit_of(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|c| c.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

async fn call_with_token(
    tokens: Arc<Tokens>,
    mut transport: transport::Channel,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, StdError> {
    let token = tokens.current().await.map_err(no_token)?;
    let (parts, body) = request.into_parts();
    let (replay, body) = Replay::new(body);
    let mut first = http::Request::from_parts(parts.clone(), body);
    first
        .headers_mut()
        .insert(http::header::AUTHORIZATION, token.header());
    let answer = transport.call(first).await?;
    if !is_refused(&answer) {
        replay.stop_recording();
        return Ok(answer);
    }
    // Whatever this fails with, the refusal says more.
    let Some(token) = tokens.instead_of(&token).await else {
        return Ok(answer);
    };
    let Some(body) = replay.again() else {
        return Ok(answer);
    };
    let mut second = http::Request::from_parts(parts, body);
    second
        .headers_mut()
        .insert(http::header::AUTHORIZATION, token.header());
    std::future::poll_fn(|context| transport.poll_ready(context)).await?;
    Ok(transport.call(second).await?)
}

/// No server has seen the call, as without a connection.
fn no_token(problem: String) -> StdError {
    Box::new(ConnectError(problem.into()))
}

/// Whether the answer is UNAUTHENTICATED and nothing else.
fn is_refused(answer: &http::Response<Body>) -> bool {
    match answer.headers().get("grpc-status") {
        Some(code) => *code == (Code::Unauthenticated as i32).to_string(),
        None => answer.status() == http::StatusCode::UNAUTHORIZED,
    }
}

#[cfg(test)]
mod tests;
