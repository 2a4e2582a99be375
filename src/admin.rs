//! Commands to a running service, over a Unix socket that only root and the user of the service
//! may use.
//!
//! A client sends one request as a line of JSON, and gets one answer as a line of JSON; then the
//! connection is closed. A request has at most 4 KiB bytes and an answer 1 MiB.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{config::MAX_SOCKET_PATH, store::KeysReport, telemetry::LogLevel};

/// Most bytes of a request.
const MAX_REQUEST: u64 = 4096;
/// Most bytes of an answer.
const MAX_ANSWER: u64 = 1 << 20;
/// Most connections that are served at once; others wait.
const MAX_CONNECTIONS: usize = 8;
/// Time in which a connection is accepted, a request arrives, or an answer is taken.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that a command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept, such as for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(500);

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Returns the keys of external IDs.
    KeysList,
    /// Makes the first key of the service's key file the active one.
    KeysRotate,
    /// Returns the directives of the log, after it has replaced them if others are given.
    LogLevel {
        /// Directives to use until the service ends.
        filter: Option<String>,
    },
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Keys of external IDs.
    Keys(KeysReport),
    /// Directives of the log.
    LogLevel(LogLevel),
    /// The command failed.
    Error(String),
}

/// Executes requests.
#[async_trait]
pub trait Commands: Send + Sync + 'static {
    /// Executes a request.
    async fn execute(&self, request: Request) -> Answer;
}

/// Reason that the socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The path does not fit into the address of a socket.
    #[error(
        "the path of the socket {0} has more than {MAX_SOCKET_PATH} bytes: set admin-socket to a shorter one"
    )]
    TooLong(PathBuf),
    /// Another process listens on it.
    #[error(
        "another process listens on the socket {0}: stop it, or set admin-socket to another path"
    )]
    InUse(PathBuf),
    /// Another kind of file is there.
    #[error("{0} is not a socket: remove it, or set admin-socket to another path")]
    NotASocket(PathBuf),
    /// The system refuses it.
    #[error("cannot listen on the socket {path}: {source}")]
    Listen {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// No service listens.
    #[error(
        "no service answers on the socket {path} ({source}): give the data-dir or the admin-socket of a running service, and run this as its user or as root"
    )]
    NoService {
        /// Path of the socket.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The service gave no answer that can be read.
    #[error("the service gave no answer: {0}")]
    NoAnswer(String),
}

/// The listening socket. It is removed when this value is dropped.
pub struct Admin {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket: another process may have replaced it.
    identity: Option<(u64, u64)>,
}

impl Drop for Admin {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _absent = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = path.symlink_metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn check_length(path: &Path) -> Result<(), AdminError> {
    match path.as_os_str().len() > MAX_SOCKET_PATH {
        true => Err(AdminError::TooLong(path.to_owned())),
        false => Ok(()),
    }
}

impl Admin {
    /// Listens. The socket of a process that has ended is replaced.
    ///
    /// # Errors
    ///
    /// See [`AdminError`].
    pub async fn bind(path: &Path) -> Result<Self, AdminError> {
        check_length(path)?;
        let failed = |source| AdminError::Listen {
            path: path.to_owned(),
            source,
        };
        if let Ok(metadata) = path.symlink_metadata() {
            if !metadata.file_type().is_socket() {
                return Err(AdminError::NotASocket(path.to_owned()));
            }
            // A process that is stopped does not accept, but its socket connects or waits.
            match timeout(PEER_TIMEOUT, UnixStream::connect(path)).await {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(Err(error)) => return Err(failed(error)),
                Ok(Ok(_)) | Err(_) => return Err(AdminError::InUse(path.to_owned())),
            }
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let admin = Self {
            listener,
            identity: identity(path),
            path: path.to_owned(),
        };
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        Ok(admin)
    }

    /// Answers requests until `stop`.
    pub async fn serve(self, commands: Arc<dyn Commands>, stop: CancellationToken) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accept = async {
                let permit = Arc::clone(&connections).acquire_owned().await;
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                accepted = accept => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let commands = Arc::clone(&commands);
                    tokio::spawn(async move {
                        let _permit = permit;
                        serve_connection(stream, &*commands).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for commands");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

async fn serve_connection(mut stream: UnixStream, commands: &dyn Commands) {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    let answer = match peer {
        Ok(uid) if may_command(uid, rustix::process::geteuid().as_raw()) => {
            match timeout(PEER_TIMEOUT, read_line(&mut stream, MAX_REQUEST)).await {
                Ok(Ok(line)) => match serde_json::from_str::<Request>(&line) {
                    Ok(request) => {
                        match request {
                            Request::KeysList | Request::LogLevel { filter: None } => {
                                tracing::debug!(?request, uid, "command");
                            }
                            Request::KeysRotate | Request::LogLevel { .. } => {
                                tracing::info!(?request, uid, "command");
                            }
                        }
                        let executed = timeout(COMMAND_TIMEOUT, commands.execute(request)).await;
                        executed.unwrap_or_else(|_elapsed| {
                            Answer::Error("the command takes too long; it may go on".to_owned())
                        })
                    }
                    Err(error) => Answer::Error(format!("unknown request: {error}")),
                },
                Ok(Err(error)) => Answer::Error(format!("cannot read the request: {error}")),
                Err(_elapsed) => return,
            }
        }
        Ok(uid) => {
            tracing::warn!(uid, "refused commands of another user");
            let text = "only root and the user of the service may give commands";
            Answer::Error(text.to_owned())
        }
        Err(error) => {
            tracing::warn!(%error, "refused commands of an unknown user");
            return;
        }
    };
    // It has no map with keys that are not text.
    let Ok(mut line) = serde_json::to_vec(&answer) else {
        return;
    };
    line.push(b'\n');
    let _closed = timeout(PEER_TIMEOUT, stream.write_all(&line)).await;
}

/// Whether a user may give commands to a service of the user `own`.
fn may_command(uid: u32, own: u32) -> bool {
    uid == 0 || uid == own
}

/// Reads a line of at most `max` bytes.
async fn read_line(stream: &mut (impl AsyncRead + Unpin), max: u64) -> io::Result<String> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(max));
    reader.read_line(&mut line).await?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it is no line of at most {max} bytes"),
        )),
    }
}

/// Sends a request to the service that listens on a socket, and waits for its answer, for about a
/// minute at most.
///
/// # Errors
///
/// [`AdminError::TooLong`], [`AdminError::NoService`] or [`AdminError::NoAnswer`].
pub async fn call(path: &Path, request: Request) -> Result<Answer, AdminError> {
    check_length(path)?;
    let no_service = |source| AdminError::NoService {
        path: path.to_owned(),
        source,
    };
    let connected = timeout(PEER_TIMEOUT, UnixStream::connect(path)).await;
    let connected = connected.map_err(|_elapsed| no_service(io::ErrorKind::TimedOut.into()))?;
    let mut stream = connected.map_err(no_service)?;
    let no_answer = |error: &dyn ToString| AdminError::NoAnswer(error.to_string());
    let called = async {
        let mut line = serde_json::to_string(&request).map_err(|error| no_answer(&error))?;
        line.push('\n');
        // A service that refuses this user answers without reading.
        let _refused = stream.write_all(line.as_bytes()).await;
        let answer = read_line(&mut stream, MAX_ANSWER).await;
        let answer = answer.map_err(|error| no_answer(&error))?;
        serde_json::from_str(&answer).map_err(|error| no_answer(&error))
    };
    let called = timeout(COMMAND_TIMEOUT + 2 * PEER_TIMEOUT, called).await;
    called.unwrap_or_else(|_elapsed| Err(no_answer(&"it takes too long")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;

    use super::*;

    struct Echo;

    #[async_trait]
    impl Commands for Echo {
        async fn execute(&self, request: Request) -> Answer {
            Answer::Error(format!("{request:?}"))
        }
    }

    async fn ask(path: &Path, line: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(line).await.unwrap();
        read_line(&mut stream, MAX_ANSWER).await.unwrap()
    }

    #[tokio::test]
    async fn requests_are_answered_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let stop = CancellationToken::new();
        let admin = Admin::bind(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let serving = tokio::spawn(admin.serve(Arc::new(Echo), stop.clone()));
        let answer = call(&path, Request::KeysRotate).await.unwrap();
        assert!(matches!(answer, Answer::Error(text) if text == "KeysRotate"));
        for line in [
            &b"{\"command\":\"stop\"}\n"[..],
            b"keys-list\n",
            b"{\"command\":\"keys-list\",\"and\":1}\n",
            b"\xff\n",
            &[b'x'; 2 * MAX_REQUEST as usize],
        ] {
            let answer = ask(&path, line).await;
            assert!(answer.starts_with("{\"error\":"), "{answer}");
        }
        // Silent peers hold up nobody, up to the limit.
        let silent = UnixStream::connect(&path).await.unwrap();
        assert!(
            ask(&path, b"{\"command\":\"keys-list\"}\n")
                .await
                .contains("KeysList")
        );
        drop(silent);
        stop.cancel();
        serving.await.unwrap();
        assert!(!path.exists(), "the socket stays");
        let absent = call(&path, Request::KeysList).await;
        assert!(matches!(absent, Err(AdminError::NoService { .. })));
    }

    #[tokio::test]
    async fn the_socket_of_an_ended_process_is_replaced_and_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        // The standard library leaves the file behind.
        drop(StdListener::bind(&path).unwrap());
        let admin = Admin::bind(&path).await.unwrap();
        let refused = Admin::bind(&path).await;
        assert!(matches!(refused, Err(AdminError::InUse(_))));
        fs::remove_file(&path).unwrap();
        fs::write(&path, "notes").unwrap();
        let refused = Admin::bind(&path).await;
        assert!(matches!(refused, Err(AdminError::NotASocket(_))));
        drop(admin);
        assert_eq!(
            fs::read(&path).unwrap(),
            b"notes",
            "another file was removed"
        );
        let long = folder.path().join("x".repeat(MAX_SOCKET_PATH));
        for refused in [
            Admin::bind(&long).await.err().unwrap(),
            call(&long, Request::KeysList).await.err().unwrap(),
        ] {
            assert!(refused.to_string().contains("107 bytes"), "{refused}");
        }
    }

    #[test]
    fn other_users_may_give_no_commands() {
        assert!(may_command(0, 1000) && may_command(1000, 1000) && may_command(0, 0));
        assert!(!may_command(1001, 1000) && !may_command(1000, 0));
    }
}
