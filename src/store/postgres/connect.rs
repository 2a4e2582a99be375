//! Settings of the connections, and the choice of a host.
//!
//! Several hosts may be given: those of a primary and its standbys. Only a host that takes writes
//! is used. The last one that did is tried first; if it does not answer within [`STAGGER`], the
//! next is tried beside it.
//!
//! Whoever promotes a standby stops the former primary first. If that one goes on, it is found
//! out: the other hosts are asked every [`WATCH`], and once one takes writes on a later timeline,
//! those on earlier ones are not used any more.

use std::{
    collections::HashMap,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use sea_orm::sqlx::{
    self, AssertSqlSafe, ConnectOptions, Connection, Executor, Row,
    postgres::{PgConnectOptions, PgConnection, PgRow, PgSslMode},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{sleep, timeout};

use crate::secret_file;

/// Port of PostgreSQL.
const PORT: u16 = 5432;
/// Connections of an instance, unless it is set.
const MAX_CONNECTIONS: u32 = 10;
/// Time after which the next host is tried beside one that has not answered.
const STAGGER: Duration = Duration::from_millis(300);
/// Time between looks at the hosts that are not used.
const WATCH: Duration = Duration::from_secs(2);
/// Bound on a look at a host.
const LOOK: Duration = Duration::from_secs(1);

/// Columns for [`Hosts::admit`]. The first eight hexadecimal digits of a file of the write-ahead
/// log are the timeline; a server in recovery has none. `pg_control_checkpoint` would show the
/// former one for a while after a promotion.
pub(super) const SERVER: &str = "NOT pg_is_in_recovery() \
    AND current_setting('default_transaction_read_only') = 'off' AS takes_writes, \
    CASE WHEN pg_is_in_recovery() THEN '0' \
    ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END AS timeline";

/// Settings of the connections to PostgreSQL.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// Host names, addresses or directories of sockets, with ports.
    pub hosts: Vec<(String, u16)>,
    /// Name of the database.
    pub database: String,
    /// Role.
    pub user: String,
    /// Password.
    pub password: Option<SecretString>,
    /// File with the password, read for each new connection, so that it can be rotated.
    pub password_file: Option<PathBuf>,
    /// Encryption.
    pub tls: Tls,
    /// Most connections; at least 2.
    pub max_connections: u32,
}

/// Encryption of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// None.
    Off,
    /// Encrypted, without a check of the server's certificate.
    Require,
    /// Encrypted. The server's certificate is checked, and names the host.
    VerifyFull {
        /// File with the certificates of the authorities, in PEM.
        ca_file: PathBuf,
        /// Files with this client's certificate and its key, in PEM.
        client: Option<(PathBuf, PathBuf)>,
    },
}

impl PostgresOptions {
    /// Parses `postgres://USER@HOST:PORT,HOST:PORT/DATABASE?NAME=VALUE&…`. The names are
    /// `sslmode` (`disable`, `require` or `verify-full`), `sslrootcert`, `sslcert`, `sslkey`,
    /// `host` (the directory of a socket) and `max-connections`.
    ///
    /// `sslmode` is `verify-full` unless every host is a loopback address or a socket.
    ///
    /// # Errors
    ///
    /// A description of what is wrong with the URL, without its password.
    pub fn parse(
        url: &str,
        password: Option<SecretString>,
        password_file: Option<PathBuf>,
    ) -> Result<Self, String> {
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or("it must begin with postgres://")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (user, hosts),
            None => return Err("it names no user: postgres://USER@HOST/DATABASE".to_owned()),
        };
        if user.contains(':') {
            return Err(
                "a password in the URL is seen by others: give it by SIEM_RELAY_DATABASE_PASSWORD or database-password-file"
                    .to_owned(),
            );
        }
        let (user, database) = (decode(user)?, decode(database)?);
        if user.is_empty() || database.is_empty() {
            return Err("it needs a user and a database: postgres://USER@HOST/DATABASE".to_owned());
        }
        let mut hosts = match hosts {
            "" => Vec::new(),
            hosts => hosts.split(',').map(host).collect::<Result<_, _>>()?,
        };
        let mut mode = None;
        let (mut ca_file, mut certificate, mut key) = (None, None, None);
        let mut max_connections = MAX_CONNECTIONS;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value)?;
            match name {
                "sslmode" => mode = Some(value),
                "sslrootcert" => ca_file = Some(PathBuf::from(value)),
                "sslcert" => certificate = Some(PathBuf::from(value)),
                "sslkey" => key = Some(PathBuf::from(value)),
                "host" => hosts.push((value, PORT)),
                "max-connections" => {
                    let parsed = value.parse().ok().filter(|max| (2..=1000).contains(max));
                    max_connections = parsed.ok_or("max-connections must be 2 to 1000")?;
                }
                "password" => {
                    return Err(
                        "a password in the URL is seen by others: give it by SIEM_RELAY_DATABASE_PASSWORD or database-password-file"
                            .to_owned(),
                    );
                }
                name => return Err(format!("it has an unknown setting {name:?}")),
            }
        }
        if hosts.is_empty() {
            return Err("it names no host: postgres://USER@HOST/DATABASE".to_owned());
        }
        let is_local = hosts.iter().all(|(host, _)| is_local(host));
        let default = if is_local { "disable" } else { "verify-full" };
        let mode = mode.as_deref().unwrap_or(default);
        let has_files = ca_file.is_some() || certificate.is_some() || key.is_some();
        let tls = match mode {
            "disable" | "require" if has_files => {
                return Err("sslrootcert, sslcert and sslkey need sslmode=verify-full".to_owned());
            }
            "disable" => Tls::Off,
            "require" => Tls::Require,
            "verify-full" => Tls::VerifyFull {
                ca_file: ca_file.ok_or(
                    "sslmode=verify-full needs sslrootcert, the file with the certificate authority of the server",
                )?,
                client: match (certificate, key) {
                    (Some(certificate), Some(key)) => Some((certificate, key)),
                    (None, None) => None,
                    _ => return Err("sslcert and sslkey need each other".to_owned()),
                },
            },
            _ => return Err("sslmode must be disable, require or verify-full".to_owned()),
        };
        Ok(Self {
            hosts,
            database,
            user,
            password,
            password_file,
            tls,
            max_connections,
        })
    }

    /// The hosts, for messages.
    pub(super) fn hosts_text(&self) -> String {
        let hosts = self.hosts.iter().map(|(host, port)| name(host, *port));
        hosts.collect::<Vec<_>>().join(", ")
    }

    fn driver_options(&self, host: &str, port: u16) -> io::Result<PgConnectOptions> {
        let options = PgConnectOptions::new_without_pgpass()
            .port(port)
            .username(&self.user)
            .database(&self.database)
            .application_name("siem-relay")
            .disable_statement_logging();
        let options = match host.starts_with('/') {
            true => options.socket(host),
            false => options.host(host),
        };
        let options = match &self.tls {
            Tls::Off => options.ssl_mode(PgSslMode::Disable),
            Tls::Require => options.ssl_mode(PgSslMode::Require),
            Tls::VerifyFull { ca_file, client } => {
                let options = options.ssl_mode(PgSslMode::VerifyFull);
                let options = options.ssl_root_cert(ca_file);
                match client {
                    None => options,
                    Some((certificate, key)) => {
                        secret_file::check_permissions(key)?;
                        options.ssl_client_cert(certificate).ssl_client_key(key)
                    }
                }
            }
        };
        Ok(match (&self.password_file, &self.password) {
            (Some(file), _) => options.password(read_password(file)?.expose_secret()),
            (None, Some(password)) => options.password(password.expose_secret()),
            (None, None) => options,
        })
    }
}

fn name(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn read_password(file: &Path) -> io::Result<SecretString> {
    let text = secret_file::read_text(file).map_err(|error| {
        let text = format!("cannot use the password file: {error}");
        io::Error::new(error.kind(), text)
    })?;
    Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
}

fn host(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(address) => {
            let (address, port) = address.split_once(']').ok_or("an address lacks its ]")?;
            (address, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().map_err(|_| format!("{port:?} is no port"))?,
        None => PORT,
    };
    match decode(host)? {
        host if host.is_empty() => Err("it has an empty host".to_owned()),
        host => Ok((host, port)),
    }
}

fn is_local(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|address| address.is_loopback())
}

/// Replaces percent escapes.
fn decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest
            .split_at_checked(2)
            .ok_or("it has an incomplete escape")?;
        let mut byte = [0];
        hex::decode_to_slice(digits, &mut byte).map_err(|_| "it has an invalid escape")?;
        bytes.extend(byte);
        rest = after;
    }
    match String::from_utf8(bytes) {
        // PostgreSQL's strings end at a NUL.
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err("it has an invalid escape".to_owned()),
    }
}

/// Chooses among the hosts.
#[derive(Debug)]
pub(super) struct Hosts {
    options: PostgresOptions,
    /// Index of the host that took writes last.
    preferred: AtomicUsize,
    /// Latest timeline of a server that took writes.
    timeline: AtomicU32,
}

impl Hosts {
    /// Starts a task that looks at the other hosts, if there are several.
    pub(super) fn new(options: PostgresOptions) -> Arc<Self> {
        let several = options.hosts.len() > 1;
        let hosts = Arc::new(Self {
            options,
            preferred: AtomicUsize::new(0),
            timeline: AtomicU32::new(0),
        });
        if several {
            tokio::spawn(watch(Arc::downgrade(&hosts)));
        }
        hosts
    }

    /// Returns an error unless the server of a session, described by the columns [`SERVER`], may
    /// be used.
    pub(super) fn admit(&self, row: &PgRow) -> Result<(), String> {
        let read = || Ok((row.try_get("takes_writes")?, row.try_get("timeline")?));
        let read: Result<(bool, &str), sqlx::Error> = read();
        let (takes_writes, timeline) = read.map_err(|error| error.to_string())?;
        if !takes_writes {
            return Err("the server only reads".to_owned());
        }
        let timeline = u32::from_str_radix(timeline, 16);
        let timeline = timeline.map_err(|_| "the server has an unknown timeline")?;
        match self.is_current(timeline) {
            true => Ok(()),
            false => Err("the server was replaced by one that was promoted".to_owned()),
        }
    }

    /// Whether no server with a later timeline takes writes.
    pub(super) fn is_current(&self, timeline: u32) -> bool {
        let latest = self.timeline.fetch_max(timeline, Ordering::Relaxed);
        if latest != 0 && latest < timeline {
            tracing::warn!(timeline, "the database was promoted to a new timeline");
        }
        latest <= timeline
    }

    /// Latest timeline of a server that took writes; 0 before any was seen.
    pub(super) fn latest_timeline(&self) -> u32 {
        self.timeline.load(Ordering::Relaxed)
    }

    /// Connects to a host, without a bound.
    pub(super) async fn connect(&self) -> Result<PgConnection, String> {
        self.first(|options| self.connect_to(options)).await
    }

    async fn connect_to(&self, options: PgConnectOptions) -> Result<PgConnection, String> {
        let connected = PgConnection::connect_with(&options).await;
        let mut connection = connected.map_err(|error| error.to_string())?;
        self.look(&mut connection).await?;
        Ok(connection)
    }

    async fn look(&self, connection: &mut PgConnection) -> Result<(), String> {
        let sql = sqlx::raw_sql(AssertSqlSafe(format!("SELECT {SERVER}")));
        let row = connection.fetch_one(sql).await;
        self.admit(&row.map_err(|error| error.to_string())?)
    }

    pub(super) fn options(&self) -> &PostgresOptions {
        &self.options
    }

    /// Returns the result of the first host for which `connect` succeeds.
    ///
    /// # Errors
    ///
    /// The errors of all hosts.
    pub(super) async fn first<T, F>(
        &self,
        connect: impl Fn(PgConnectOptions) -> F,
    ) -> Result<T, String>
    where
        F: Future<Output = Result<T, String>>,
    {
        let hosts = &self.options.hosts;
        let preferred = self.preferred.load(Ordering::Relaxed);
        let mut order = (0..hosts.len()).map(|at| (preferred + at) % hosts.len());
        let attempt = |at: usize| {
            let (host, port) = &hosts[at];
            let name = name(host, *port);
            let connecting = self.options.driver_options(host, *port).map(&connect);
            async move {
                let connected = match connecting {
                    Ok(connecting) => connecting.await,
                    Err(error) => Err(error.to_string()),
                };
                connected
                    .map(|connected| (at, connected))
                    .map_err(|error| format!("{name}: {error}"))
            }
        };
        let mut attempts = FuturesUnordered::new();
        let mut errors = Vec::new();
        attempts.extend(order.next().map(attempt));
        loop {
            let ended = tokio::select! {
                ended = attempts.next() => ended,
                () = sleep(STAGGER), if order.len() > 0 => {
                    attempts.extend(order.next().map(attempt));
                    continue;
                }
            };
            match ended {
                Some(Ok((at, connected))) => {
                    if self.preferred.swap(at, Ordering::Relaxed) != at {
                        let (host, port) = &hosts[at];
                        tracing::warn!(
                            host = name(host, *port),
                            "another host of the database takes the writes"
                        );
                    }
                    return Ok(connected);
                }
                Some(Err(error)) => {
                    errors.push(error);
                    attempts.extend(order.next().map(attempt));
                }
                None => return Err(errors.join("; ")),
            }
        }
    }
}

/// Looks at the hosts that are not used.
async fn watch(hosts: Weak<Hosts>) {
    let mut connections = HashMap::new();
    loop {
        sleep(WATCH).await;
        let Some(hosts) = hosts.upgrade() else {
            return;
        };
        connections.remove(&hosts.preferred.load(Ordering::Relaxed));
        for (at, (host, port)) in hosts.options.hosts.iter().enumerate() {
            if at == hosts.preferred.load(Ordering::Relaxed) {
                continue;
            }
            let look = async {
                let mut connection = match connections.remove(&at) {
                    Some(connection) => connection,
                    None => {
                        let options = hosts.options.driver_options(host, *port).ok()?;
                        PgConnection::connect_with(&options).await.ok()?
                    }
                };
                // Only the timeline is learned; a standby is refused each time.
                let _refused = hosts.look(&mut connection).await;
                Some(connection)
            };
            if let Ok(Some(connection)) = timeout(LOOK, look).await {
                connections.insert(at, connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<PostgresOptions, String> {
        PostgresOptions::parse(url, Some("secret".into()), None)
    }

    #[test]
    fn a_url_names_hosts_user_database_and_settings() {
        let options = parse(
            "postgres://relay%40eu@db-1,db-2:5433,[fd00::1]:5434/siem?sslrootcert=/etc/ca%20file.pem&max-connections=4",
        );
        let options = options.unwrap();
        let hosts = [("db-1", 5432), ("db-2", 5433), ("fd00::1", 5434)];
        assert_eq!(
            options.hosts,
            hosts.map(|(host, port)| (host.to_owned(), port))
        );
        assert_eq!(
            (options.user.as_str(), options.database.as_str()),
            ("relay@eu", "siem")
        );
        let tls = Tls::VerifyFull {
            ca_file: "/etc/ca file.pem".into(),
            client: None,
        };
        assert_eq!(options.tls, tls);
        assert_eq!(options.max_connections, 4);
        assert_eq!(options.hosts_text(), "db-1:5432, db-2:5433, [fd00::1]:5434");
        assert!(!format!("{options:?}").contains("secret"));
    }

    #[test]
    fn connections_are_encrypted_unless_they_stay_on_the_machine() {
        for local in [
            "postgres://relay@localhost/siem",
            "postgres://relay@127.0.0.1:1,[::1]:2/siem",
            "postgresql://relay@/siem?host=/run/postgresql",
            "postgres://relay@%2Frun%2Fpostgresql/siem",
            "postgres://relay@db/siem?sslmode=disable",
        ] {
            assert_eq!(parse(local).unwrap().tls, Tls::Off, "{local}");
        }
        let require = parse("postgres://relay@db/siem?sslmode=require").unwrap();
        assert_eq!(require.tls, Tls::Require);
        let refused = parse("postgres://relay@localhost,db/siem").unwrap_err();
        assert!(refused.contains("sslrootcert"), "{refused}");
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        for url in [
            "postgres://relay:hunter2@localhost/siem",
            "postgres://relay@localhost/siem?password=hunter2",
        ] {
            let refused = parse(url).unwrap_err();
            assert!(
                refused.contains("SIEM_RELAY_DATABASE_PASSWORD"),
                "{refused}"
            );
            assert!(!refused.contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn what_cannot_be_right_is_refused() {
        for (url, reason) in [
            ("mysql://relay@localhost/siem", "postgres://"),
            ("postgres://localhost/siem", "user"),
            ("postgres://relay@localhost", "database"),
            ("postgres://relay@/siem", "host"),
            ("postgres://relay@localhost,,other/siem", "empty host"),
            ("postgres://relay@localhost:x/siem", "port"),
            ("postgres://relay@localhost/si%00em", "escape"),
            ("postgres://relay@localhost/si%2", "escape"),
            ("postgres://relay@localhost/siem?sslmode=prefer", "sslmode"),
            ("postgres://relay@localhost/siem?sslcert=a", "verify-full"),
            ("postgres://relay@localhost/siem?max-connections=1", "2 to"),
            ("postgres://relay@localhost/siem?options=x", "\"options\""),
        ] {
            let refused = parse(url).unwrap_err();
            assert!(refused.contains(reason), "{url}: {refused}");
        }
    }
}
