//! Tokens of OAUTHBEARER.
//!
//! The library asks for a token from threads that must not wait: they also hand out acks. So a
//! task keeps a token that is valid, and the library takes it from here.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::time::{sleep, timeout};

use super::{KafkaError, lock};
use crate::secret_file;

/// Longest time between two reads of a file with a token.
const REREAD: Duration = Duration::from_secs(10);
/// Time until another attempt to issue a token after one that failed.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time until an issuer answers.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(20);
/// Life that the library is given at most. It asks again after 80% of it, so that it has a new
/// token within a minute.
const LIBRARY_LIFE: Duration = Duration::from_secs(75);
/// Most bytes of a token.
const MAX_BYTES: usize = 64 << 10;

/// A token.
#[derive(Clone, Debug)]
pub struct Token {
    /// The token itself.
    pub value: SecretString,
    /// Time at which it was issued or read.
    pub issued_at: SystemTime,
    /// Time from which brokers refuse it; None if only its issuer knows.
    pub expires_at: Option<SystemTime>,
}

impl Token {
    /// Time from issuing to renewal: 80% of its life.
    fn renewed_after(&self) -> Duration {
        let life = self.expires_at.map(|at| at.duration_since(self.issued_at));
        match life {
            Some(life) => life.unwrap_or_default().mul_f64(0.8),
            None => REREAD,
        }
    }

    fn has_expired(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Time at which the library is told that the token expires, in milliseconds since 1970.
    pub(super) fn library_expiry(&self, now: SystemTime) -> i64 {
        let latest = now + LIBRARY_LIFE;
        let at = self.expires_at.map_or(latest, |at| at.min(latest));
        at.duration_since(UNIX_EPOCH)
            .map_or(0, |at| at.as_millis() as i64)
    }
}

/// An issuer of tokens, which can take its time.
#[async_trait]
pub trait TokenIssuer: fmt::Debug + Send + Sync {
    /// Issues a token.
    ///
    /// # Errors
    ///
    /// A description of what failed, without secrets.
    async fn issue(&self) -> Result<Token, String>;
}

/// Origin of tokens.
#[derive(Debug)]
enum Origin {
    /// File with a token, which somebody renews. A line end after it is ignored.
    File(PathBuf),
    Issuer(Arc<dyn TokenIssuer>),
}

/// The token of a log, which is renewed while the log is in use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    origin: Origin,
    current: Mutex<Option<Token>>,
}

impl Tokens {
    /// Tokens from a file.
    pub fn from_file(path: PathBuf) -> Self {
        Self::new(Origin::File(path))
    }

    /// Tokens of an issuer.
    pub fn from_issuer(issuer: Arc<dyn TokenIssuer>) -> Self {
        Self::new(Origin::Issuer(issuer))
    }

    fn new(origin: Origin) -> Self {
        Self {
            shared: Arc::new(Shared {
                origin,
                current: Mutex::default(),
            }),
        }
    }

    /// Gets the first token, and renews it from then on.
    pub(super) async fn start(&self) -> Result<(), KafkaError> {
        if lock(&self.shared.current).is_some() {
            return Ok(());
        }
        let token = self.shared.next().await?;
        let wait = self.shared.wait_after(&token);
        *lock(&self.shared.current) = Some(token);
        tokio::spawn(renew(Arc::downgrade(&self.shared), wait));
        Ok(())
    }

    /// The token that is valid now.
    pub(super) fn current(&self, now: SystemTime) -> Result<Token, String> {
        match &*lock(&self.shared.current) {
            Some(token) if !token.has_expired(now) => Ok(token.clone()),
            Some(_) => Err("the token for Kafka has expired and there is no new one".to_owned()),
            None => Err("there is no token for Kafka yet".to_owned()),
        }
    }
}

impl Shared {
    async fn next(&self) -> Result<Token, KafkaError> {
        let token = match &self.origin {
            Origin::File(path) => {
                let failed = |source| KafkaError::File {
                    path: path.clone(),
                    source,
                };
                let text = secret_file::read(path).map_err(|error| failed(error.into()))?;
                let token = parse(&text, SystemTime::now());
                token.map_err(|problem| failed(io::Error::other(problem)))?
            }
            Origin::Issuer(issuer) => match timeout(ISSUE_TIMEOUT, issuer.issue()).await {
                Ok(issued) => issued.map_err(KafkaError::Token)?,
                Err(_) => {
                    let reason = format!("no answer within {} s", ISSUE_TIMEOUT.as_secs());
                    return Err(KafkaError::Token(reason));
                }
            },
        };
        match token.has_expired(SystemTime::now()) {
            true => Err(KafkaError::Token("it has expired already".to_owned())),
            false => Ok(token),
        }
    }

    /// Time until the next look, after a token was got.
    fn wait_after(&self, token: &Token) -> Duration {
        match self.origin {
            // Whoever writes the file may do so late.
            Origin::File(_) => REREAD.min(token.renewed_after() / 4),
            Origin::Issuer(_) => token.renewed_after(),
        }
        .max(Duration::from_secs(1))
    }
}

/// Renews the token until nobody uses it. One that cannot be renewed stays in use.
async fn renew(shared: Weak<Shared>, mut wait: Duration) {
    let mut has_failed = false;
    loop {
        sleep(wait).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        wait = match shared.next().await {
            Ok(token) => {
                has_failed = false;
                let wait = shared.wait_after(&token);
                *lock(&shared.current) = Some(token);
                wait
            }
            Err(error) => {
                match has_failed {
                    false => tracing::warn!("the token for Kafka is not renewed: {error}"),
                    true => tracing::debug!("the token for Kafka is not renewed: {error}"),
                }
                has_failed = true;
                RETRY
            }
        };
    }
}

/// Reads a token; its expiry is known if it is a JWT.
fn parse(text: &[u8], now: SystemTime) -> Result<Token, String> {
    #[derive(Deserialize)]
    struct Claims {
        exp: Option<f64>,
    }
    let text = std::str::from_utf8(text).map_err(|_| "it is not text")?;
    let text = text.trim_end_matches(['\r', '\n']);
    // RFC 6750, 2.1.
    let is_of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    if text.is_empty() || text.len() > MAX_BYTES || !text.bytes().all(is_of_token) {
        return Err("it is not one token of at most 64 KiB".to_owned());
    }
    let claims = text.split('.').nth(1).and_then(|claims| {
        let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
        serde_json::from_slice::<Claims>(&claims).ok()
    });
    let expiry = claims.and_then(|claims| claims.exp);
    let expiry = expiry.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Ok(Token {
        value: text.into(),
        issued_at: now,
        expires_at: expiry.and_then(|expiry| UNIX_EPOCH.checked_add(expiry)),
    })
}

/// First message of a client by [RFC 7628].
///
/// [RFC 7628]: https://www.rfc-editor.org/rfc/rfc7628#section-3.1
pub(super) fn initial_response(token: &Token) -> Vec<u8> {
    format!("n,,\x01auth=Bearer {}\x01\x01", token.value.expose_secret()).into_bytes()
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn jwt(claims: &str) -> Vec<u8> {
        format!("e30.{}.c2ln\n", URL_SAFE_NO_PAD.encode(claims)).into_bytes()
    }

    #[test]
    fn a_jwt_names_its_expiry() {
        let token = parse(&jwt(r#"{"sub":"relay","exp":1100}"#), at(1000)).unwrap();
        assert_eq!(token.expires_at, Some(at(1100)));
        assert_eq!(token.renewed_after(), Duration::from_secs(80));
        assert!(!token.has_expired(at(1099)));
        assert!(token.has_expired(at(1100)));
        assert!(!token.value.expose_secret().ends_with('\n'));
        // The library looks again within a minute, and never after the expiry.
        assert_eq!(token.library_expiry(at(1000)), 1_075_000);
        assert_eq!(token.library_expiry(at(1090)), 1_100_000);
    }

    #[test]
    fn another_token_has_no_known_expiry() {
        for text in ["opaque", "a.b.c", "e30.e30.x"] {
            let token = parse(text.as_bytes(), at(1000)).unwrap();
            assert_eq!(token.expires_at, None, "{text}");
            assert_eq!(token.library_expiry(at(1000)), 1_075_000);
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let long = vec![b'a'; MAX_BYTES + 1];
        for text in [&b""[..], b"\n", b"two words", b"a\x01b", b"\xff", &long] {
            assert!(parse(text, at(0)).is_err());
        }
    }

    #[tokio::test]
    async fn a_token_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "opaque\n").unwrap();
        let set = |mode| std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        set(0o644);
        let tokens = Tokens::from_file(path.clone());
        let error = tokens.start().await.unwrap_err().to_string();
        assert!(
            error.contains(path.to_str().unwrap()) && error.contains("chmod 600"),
            "{error}"
        );
        assert!(!error.contains("opaque"), "{error}");
        set(0o600);
        tokens.start().await.unwrap();
        tokens.current(SystemTime::now()).unwrap();
    }

    #[derive(Debug, Default)]
    struct Issuer {
        issued: Mutex<u32>,
    }

    #[async_trait]
    impl TokenIssuer for Issuer {
        async fn issue(&self) -> Result<Token, String> {
            let mut issued = lock(&self.issued);
            *issued += 1;
            match *issued {
                2 => Err("not now".to_owned()),
                number => Ok(Token {
                    value: number.to_string().into(),
                    issued_at: SystemTime::now(),
                    expires_at: Some(SystemTime::now() + Duration::from_secs(100)),
                }),
            }
        }
    }

    /// Time is that of the runtime: the wall clock, by which tokens expire, stays.
    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_at_80_percent_of_its_life_and_kept_if_that_fails() {
        let tokens = Tokens::from_issuer(Arc::<Issuer>::default());
        let now = SystemTime::now();
        assert!(tokens.current(now).is_err());
        tokens.start().await.unwrap();
        tokens.start().await.unwrap();
        let current = || {
            tokens
                .current(now)
                .unwrap()
                .value
                .expose_secret()
                .to_owned()
        };
        sleep(Duration::from_secs(79)).await;
        assert_eq!(current(), "1");
        // The attempt after 80 s fails, and the one 5 s later does not.
        sleep(Duration::from_secs(5)).await;
        assert_eq!(current(), "1");
        sleep(Duration::from_secs(2)).await;
        assert_eq!(current(), "3");
        assert!(tokens.current(now + Duration::from_secs(3600)).is_err());
    }
}
