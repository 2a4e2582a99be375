//! The callers that are known now: the content of the callers file and the keys of its issuers.
//! Both are read again while the service runs. Each change makes a new [`Directory`], so that a
//! stream sees that its rights may have changed.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use http::Uri;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    certificate::Certificate,
    file::{CallersFile, KeyLocation, MAX_FILE, NoMatch, Problems},
    key_set::{KeySet, MAX_KEY_SET},
    refresh::{Refresh, fetch},
    token::{self, TokenError, TrustedIssuer},
};
use crate::domain::{
    error_chain::error_chain,
    map::Map,
    rights::{Grant, Organizations, Rights, Scope, Scopes},
};

/// Interval at which the files are read. A change is applied once two readings agree, so that a
/// file that is being written is not.
const POLL: Duration = Duration::from_secs(1);
/// Interval of log lines about the same problem.
const REMINDER: Duration = Duration::from_secs(60 * 60);
/// Verified tokens in memory.
const MAX_VERIFIED: usize = 10_000;

/// Callers that may use the API, with their rights. Cheap to clone.
#[derive(Clone)]
pub struct Callers {
    path: Arc<Path>,
    current: watch::Sender<Arc<Directory>>,
}

/// Reason why the callers file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Path of the callers file or of a key set.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The callers file has problems.
    #[error("{} has problems:\n  {problems}", path.display())]
    Content {
        /// Path of the callers file.
        path: PathBuf,
        /// The problems, one a line, each with its path in the file.
        problems: String,
    },
    /// The service is stopping.
    #[error("the service is stopping")]
    Stopped,
}

/// Certificate and token of a request.
pub(super) struct Credentials {
    pub(super) certificate: Option<CertificateDer<'static>>,
    pub(super) token: Option<SecretString>,
}

impl Credentials {
    /// Whether there are none.
    pub(super) fn are_absent(&self) -> bool {
        self.certificate.is_none() && self.token.is_none()
    }
}

/// Identity and rights that credentials prove.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) principal: Arc<str>,
    pub(super) issuer: Option<Arc<str>>,
    pub(super) rights: Rights,
    /// Time in Unix seconds at which the certificate or the token expires.
    pub(super) expires_at: i64,
}

/// Reason why credentials prove nothing.
#[derive(Debug)]
pub(super) enum Denied {
    Because(&'static str),
    /// The key of the token is unknown. A fetch may bring it.
    UnknownKey(Option<Arc<Refresh>>),
}

impl Denied {
    /// Problem and remedy, without anything of the credentials.
    pub(super) fn problem(&self) -> &'static str {
        match self {
            Self::Because(problem) => problem,
            Self::UnknownKey(_) => {
                "the key of the token (kid) is not one of its issuer, or the issuer's keys could not be fetched yet; try again later"
            }
        }
    }
}

/// Callers and keys at one time.
pub(super) struct Directory {
    /// Files from which `file` and keys were read.
    contents: Arc<Contents>,
    file: Arc<CallersFile>,
    /// Keys of each issuer, in the order of the file.
    keys: Vec<IssuerKeys>,
    /// Tokens that were verified, by their SHA-256. None for those that were with earlier keys or
    /// callers, and must be again: they are the ones that the limit of failures lets pass.
    verified: Mutex<Map<[u8; 32], Option<Arc<VerifiedToken>>>>,
}

#[derive(Clone, Default)]
struct IssuerKeys {
    /// None until they could be fetched.
    set: Option<Arc<KeySet>>,
    /// None for a file.
    refresh: Option<Arc<Refresh>>,
}

struct VerifiedToken {
    principal: Arc<str>,
    issuer: Arc<str>,
    grants: Vec<Arc<Grant>>,
    expires_at: i64,
}

impl Directory {
    /// Returns what credentials prove at this time, in Unix seconds.
    pub(super) fn access(&self, credentials: &Credentials, now: i64) -> Result<Access, Denied> {
        let certificate = credentials.certificate.as_ref();
        let certificate = certificate
            .map(|der| self.by_certificate(der, now))
            .transpose()?;
        let token = credentials.token.as_ref();
        let token = token
            .map(|token| self.by_token(token.expose_secret(), now))
            .transpose()?;
        match (certificate, token) {
            (Some(access), None) => Ok(access),
            (None, Some(token)) => Ok(Access {
                principal: Arc::clone(&token.principal),
                issuer: Some(Arc::clone(&token.issuer)),
                rights: Rights::intersection(token.grants.iter().cloned()),
                expires_at: token.expires_at,
            }),
            (Some(certificate), Some(token)) => Ok(Access {
                principal: format!("{} {}", certificate.principal, token.principal).into(),
                issuer: Some(Arc::clone(&token.issuer)),
                rights: certificate.rights.and(&token.grants),
                expires_at: certificate.expires_at.min(token.expires_at),
            }),
            (None, None) => Err(Denied::Because(
                "the request has neither a client certificate nor a token; send one as authorization: Bearer TOKEN",
            )),
        }
    }

    fn by_certificate(&self, der: &CertificateDer<'_>, now: i64) -> Result<Access, Denied> {
        let certificate = Certificate::read(der).map_err(Denied::Because)?;
        if certificate.expires_at <= now {
            return Err(Denied::Because("the client certificate has expired"));
        }
        let found = self.file.by_certificate(&certificate);
        let (name, grant) = found.map_err(|error| {
            Denied::Because(match error {
                NoMatch::Unknown => "no name of the client certificate is one of a known caller",
                NoMatch::Ambiguous => "the client certificate has the names of several callers",
            })
        })?;
        Ok(Access {
            principal: name.to_string().into(),
            issuer: None,
            rights: Rights::intersection([grant]),
            expires_at: certificate.expires_at,
        })
    }

    /// Whether a check needs no signature, or that of a token which was verified before.
    pub(super) fn has_verified(&self, credentials: &Credentials) -> bool {
        credentials.token.as_ref().is_none_or(|token| {
            let hash = hash(token.expose_secret());
            self.verified().contains_key(&hash)
        })
    }

    fn verified(&self) -> MutexGuard<'_, Map<[u8; 32], Option<Arc<VerifiedToken>>>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn by_token(&self, text: &str, now: i64) -> Result<Arc<VerifiedToken>, Denied> {
        let hash = hash(text);
        if let Some(Some(token)) = self.verified().get(&hash)
            && token.expires_at > now
        {
            return Ok(Arc::clone(token));
        }
        let token = match self.verify(text, now) {
            Ok(token) => Arc::new(token),
            Err(denied) => {
                self.verified().remove(&hash);
                return Err(denied);
            }
        };
        let mut verified = self.verified();
        if verified.len() >= MAX_VERIFIED {
            verified.retain(|_, token| token.as_ref().is_some_and(|token| token.expires_at > now));
        }
        if verified.len() >= MAX_VERIFIED {
            verified.clear();
        }
        verified.insert(hash, Some(Arc::clone(&token)));
        Ok(token)
    }

    /// The tokens that are verified, for a directory that replaces this one.
    fn verified_before(&self) -> Mutex<Map<[u8; 32], Option<Arc<VerifiedToken>>>> {
        let verified = self.verified();
        Mutex::new(verified.keys().map(|hash| (*hash, None)).collect())
    }

    fn verify(&self, text: &str, now: i64) -> Result<VerifiedToken, Denied> {
        let issuers = self.file.issuers.iter().zip(&self.keys);
        let issuers: Vec<TrustedIssuer<'_>> = issuers
            .map(|(issuer, keys)| TrustedIssuer {
                issuer,
                keys: keys.set.as_deref(),
            })
            .collect();
        let (token, issuer) = token::verify(text, &issuers, now).map_err(|error| match error {
            TokenError::Invalid(problem) => Denied::Because(problem),
            TokenError::UnknownKey { issuer } => {
                Denied::UnknownKey(self.keys[issuer].refresh.clone())
            }
        })?;
        let issuer = &self.file.issuers[issuer];
        let grant = self.file.by_token(issuer, &token.subject, &token.claims);
        let grant = grant.map_err(|error| {
            Denied::Because(match error {
                NoMatch::Unknown => {
                    "the subject and the claims of the token are not those of a known caller"
                }
                NoMatch::Ambiguous => "the claims of the token are those of several callers",
            })
        })?;
        let mut grants = vec![grant];
        if token.scopes.is_some() || token.organizations.is_some() {
            grants.push(Arc::new(Grant {
                scopes: token
                    .scopes
                    .unwrap_or_else(|| Scopes::from_iter(Scope::ALL)),
                organizations: token.organizations.unwrap_or_else(Organizations::all),
                ..Grant::default()
            }));
        }
        Ok(VerifiedToken {
            principal: token::principal(&issuer.issuer, &token.subject),
            issuer: Arc::clone(&issuer.issuer),
            grants,
            expires_at: token.expires_at,
        })
    }

    /// Makes a directory of what was read. Keys by URL are those from before.
    fn new(loaded: Loaded, before: Option<&Self>) -> Self {
        let mut remote = before.map(Self::remote).unwrap_or_default();
        let issuers = loaded.file.issuers.iter().zip(loaded.sets);
        let keys = issuers.map(|(issuer, set)| match &issuer.keys {
            KeyLocation::File(_) => IssuerKeys { set, refresh: None },
            KeyLocation::Url(url) => {
                let new = || IssuerKeys {
                    set: None,
                    refresh: Some(Arc::new(Refresh::new())),
                };
                remote.entry(url.clone()).or_insert_with(new).clone()
            }
        });
        Self {
            keys: keys.collect(),
            contents: Arc::new(loaded.contents),
            file: Arc::new(loaded.file),
            verified: before.map(Self::verified_before).unwrap_or_default(),
        }
    }

    /// Keys by their URLs.
    fn remote(&self) -> HashMap<Uri, IssuerKeys> {
        let issuers = self.file.issuers.iter().zip(&self.keys);
        let remote = issuers.filter_map(|(issuer, keys)| match &issuer.keys {
            KeyLocation::Url(url) => Some((url.clone(), keys.clone())),
            KeyLocation::File(_) => None,
        });
        remote.collect()
    }

    /// The same callers with other keys of a URL.
    fn with_keys(&self, url: &Uri, set: &Arc<KeySet>) -> Self {
        let issuers = self.file.issuers.iter().zip(&self.keys);
        let keys = issuers.map(|(issuer, keys)| match &issuer.keys {
            KeyLocation::Url(of) if of == url => IssuerKeys {
                set: Some(Arc::clone(set)),
                refresh: keys.refresh.clone(),
            },
            _ => keys.clone(),
        });
        Self {
            keys: keys.collect(),
            contents: Arc::clone(&self.contents),
            file: Arc::clone(&self.file),
            verified: self.verified_before(),
        }
    }
}

impl Callers {
    /// Reads the callers file and the key sets in files that it names. Keys by URL are fetched
    /// by `keep_current`.
    ///
    /// # Errors
    ///
    /// [`CallersError`] if a file cannot be read, or with all problems of the callers file.
    pub fn open(path: &Path) -> Result<Self, CallersError> {
        let directory = Directory::new(Loaded::read(path)?, None);
        Ok(Self {
            path: path.into(),
            current: watch::Sender::new(Arc::new(directory)),
        })
    }

    /// The directory as it is now.
    pub(super) fn current(&self) -> Arc<Directory> {
        Arc::clone(&self.current.borrow())
    }

    /// The directory, as it changes.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Directory>> {
        self.current.subscribe()
    }

    /// Returns what credentials prove now. For a token with an unknown key it waits for a fetch of
    /// the keys, if one is due.
    pub(super) async fn access(
        &self,
        credentials: &Credentials,
    ) -> Result<(Access, Arc<Directory>), &'static str> {
        let mut has_waited = false;
        loop {
            let directory = self.current();
            let denied = match directory.access(credentials, now()) {
                Ok(access) => return Ok((access, directory)),
                Err(denied) => denied,
            };
            match &denied {
                Denied::UnknownKey(Some(refresh)) if !has_waited && refresh.fetched().await => {
                    has_waited = true;
                }
                _ => return Err(denied.problem()),
            }
        }
    }

    /// Reads the files again when they change, and fetches keys by URL, until `stop`. A file with
    /// problems changes nothing; the log says so at once, and then hourly.
    pub(in crate::api) async fn keep_current(self, stop: CancellationToken) {
        let keep = async {
            let mut tasks = HashMap::new();
            let mut alarm = Alarm::default();
            let mut changed = None;
            loop {
                self.fetch_keys(&mut tasks);
                let path = Arc::clone(&self.path);
                let applied = self.current();
                let key_files = applied.file.key_files();
                match in_background(move || Contents::read(&path, &key_files)).await {
                    Ok(contents) if contents == *applied.contents => {
                        changed = None;
                        if alarm.clear() {
                            tracing::info!("the callers file is as it was before the problem");
                        }
                    }
                    // The writer may not have finished.
                    Ok(contents) if changed.as_ref() != Some(&contents) => changed = Some(contents),
                    Ok(_) | Err(_) => match self.reload().await {
                        Ok(()) => {
                            alarm.clear();
                            changed = None;
                            tracing::info!(path = %self.path.display(), "callers reloaded");
                        }
                        Err(error) => {
                            let problem = error_chain(&error);
                            if alarm.is_due(&problem, Instant::now()) {
                                tracing::error!(
                                    problem,
                                    "the callers file cannot be used; the callers from before are"
                                );
                            }
                        }
                    },
                }
                sleep(POLL).await;
            }
        };
        stop.run_until_cancelled(keep).await;
    }

    /// Reads and applies the files.
    async fn reload(&self) -> Result<(), CallersError> {
        let path = Arc::clone(&self.path);
        let loaded = in_background(move || Loaded::read(&path)).await?;
        self.current.send_modify(|directory| {
            *directory = Arc::new(Directory::new(loaded, Some(directory)));
        });
        Ok(())
    }

    /// Starts a task for each URL without one, and ends those that are not needed any more.
    fn fetch_keys(&self, tasks: &mut HashMap<Uri, AbortOnDropHandle<()>>) {
        let remote = self.current().remote();
        tasks.retain(|url, _| remote.contains_key(url));
        for (url, keys) in remote {
            let Some(refresh) = keys.refresh else {
                continue;
            };
            tasks.entry(url.clone()).or_insert_with(|| {
                let fetcher = Fetcher {
                    current: self.current.clone(),
                    url,
                    last: Mutex::default(),
                };
                let run = async move { refresh.run(|| fetcher.fetch()).await };
                AbortOnDropHandle::new(tokio::spawn(run))
            });
        }
    }
}

/// SHA-256 of a token.
fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    // SHA-256 has 32 bytes. A shorter digest must not become a hash that tokens share.
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

/// Time in Unix seconds.
pub(super) fn now() -> i64 {
    Timestamp::now().as_second()
}

async fn in_background<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, CallersError> + Send + 'static,
) -> Result<T, CallersError> {
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or(Err(CallersError::Stopped))
}

/// Bytes of the callers file, and of the key sets that it names.
#[derive(PartialEq, Eq)]
struct Contents {
    callers: Vec<u8>,
    key_sets: Vec<Vec<u8>>,
}

impl Contents {
    fn read(path: &Path, key_files: &[PathBuf]) -> Result<Self, CallersError> {
        let key_sets = key_files.iter().map(|path| read_file(path, MAX_KEY_SET));
        Ok(Self {
            callers: read_file(path, MAX_FILE)?,
            key_sets: key_sets.collect::<Result<_, _>>()?,
        })
    }
}

/// Reads a file. One that is larger than the limit is cut one byte above it.
fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, CallersError> {
    let read = || {
        let file = File::open(path)?;
        // Reading from a pipe could wait for ever.
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| CallersError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Callers file and key sets that were read and are valid.
struct Loaded {
    contents: Contents,
    file: CallersFile,
    /// Keys of each issuer; None for one with a URL.
    sets: Vec<Option<Arc<KeySet>>>,
}

impl Loaded {
    fn read(path: &Path) -> Result<Self, CallersError> {
        let directory = path.parent().unwrap_or(Path::new(""));
        let callers = read_file(path, MAX_FILE)?;
        let failed = |problems: Problems| CallersError::Content {
            path: path.to_owned(),
            problems: problems.to_string(),
        };
        let file = CallersFile::parse(&callers, directory).map_err(failed)?;
        let key_sets = Contents::read(path, &file.key_files())?.key_sets;
        let mut parsed = key_sets.iter().map(|bytes| KeySet::parse(bytes));
        let mut problems = Problems::default();
        let mut sets = Vec::new();
        for (index, issuer) in file.issuers.iter().enumerate() {
            let set = match &issuer.keys {
                KeyLocation::Url(_) => None,
                KeyLocation::File(_) => parsed.next(),
            };
            let set = set.transpose().unwrap_or_else(|error| {
                let location = &issuer.keys;
                problems.add(
                    &format!("issuers[{index}].jwks_file"),
                    format_args!("{location} {error}"),
                );
                None
            });
            sets.push(set.map(Arc::new));
        }
        if !problems.is_empty() {
            return Err(failed(problems));
        }
        Ok(Self {
            contents: Contents { callers, key_sets },
            file,
            sets,
        })
    }
}

/// Fetches the keys of one URL.
struct Fetcher {
    current: watch::Sender<Arc<Directory>>,
    url: Uri,
    last: Mutex<LastFetch>,
}

#[derive(Default)]
struct LastFetch {
    answer: Bytes,
    alarm: Alarm,
}

impl Fetcher {
    /// Fetches and applies the keys. An answer without usable keys changes nothing.
    async fn fetch(&self) -> bool {
        let answer = fetch(self.url.clone()).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let parsed = answer.and_then(|answer| Ok((KeySet::parse(&answer)?, answer)));
        let (set, answer) = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                let problem = error_chain(&error);
                if last.alarm.is_due(&problem, Instant::now()) {
                    tracing::warn!(
                        url = %self.url, problem,
                        "the keys of an issuer of tokens cannot be fetched; those from before are used, if there are any"
                    );
                }
                return false;
            }
        };
        last.alarm.clear();
        // With new keys every token is verified again.
        if answer != last.answer {
            tracing::info!(
                url = %self.url, skipped = set.skipped,
                "fetched the keys of an issuer of tokens"
            );
            let set = Arc::new(set);
            self.current.send_modify(|directory| {
                *directory = Arc::new(directory.with_keys(&self.url, &set));
            });
            last.answer = answer;
        }
        true
    }
}

/// Decides which repetitions of a problem are logged: the first one, and one an hour.
#[derive(Default)]
struct Alarm(Option<(String, Instant)>);

impl Alarm {
    fn is_due(&mut self, problem: &str, now: Instant) -> bool {
        let is_known = |(known, since): &(String, Instant)| {
            known == problem && now.duration_since(*since) < REMINDER
        };
        if self.0.as_ref().is_some_and(is_known) {
            return false;
        }
        self.0 = Some((problem.to_owned(), now));
        true
    }

    /// Ends the problem. Returns whether there was one.
    fn clear(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests;
