//! PostgreSQL with its standbys.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::{
    Missing,
    processes::{Processes, User, directory, free_port, program, run},
    with_timeout,
};

const MISSING: Missing = Missing { name: "PostgreSQL" };

/// Words in the log of a server, primary or standby, that takes connections.
const READY: &str = "database system is ready to accept";

/// Words in the log of a server whose port was taken meanwhile.
const PORT_TAKEN: &str = "Address already in use";

/// Settings of every server. Parts of the log are compared, so they are in English.
const SETTINGS: [(&str, &str); 7] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    // A kill would leave segments behind in /dev/shm, which is small in containers.
    ("dynamic_shared_memory_type", "mmap"),
    ("shared_buffers", "32MB"),
    ("lc_messages", "C"),
    ("jit", "off"),
    // Log that a standby lacks after it was down.
    ("wal_keep_size", "512MB"),
];

/// Options of [`Postgres::start_with`].
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Whether nothing is synced to disk. A kill then keeps what was committed, as long as the
    /// machine runs; tests of faults of the disk go without.
    pub fast: bool,
    /// Further settings of `postgresql.conf`.
    pub settings: Vec<(String, String)>,
}

/// A PostgreSQL server. The user `postgres` connects over TCP without a password.
pub struct Postgres {
    processes: Processes,
    bin: PathBuf,
    user: Option<User>,
    port: u16,
}

impl Postgres {
    /// Starts a server that syncs each commit to disk.
    pub async fn start() -> Result<Self, Missing> {
        Self::start_with(PostgresOptions::default()).await
    }

    /// Starts a server.
    pub async fn start_with(options: PostgresOptions) -> Result<Self, Missing> {
        let bin = find_bin().ok_or(MISSING)?;
        let user = User::instead_of_root();
        let template = template(&bin, user).await;
        let dir = directory("postgres", user);
        let mut copy = User::command(user, Path::new("cp"));
        copy.arg("-a")
            .arg(template.path().join("data"))
            .arg(dir.path());
        run("cp", copy).await;
        let mut settings = options.settings;
        if options.fast {
            settings.push(("fsync".to_owned(), "off".to_owned()));
            settings.push(("full_page_writes".to_owned(), "off".to_owned()));
        }
        append_settings(&dir.path().join("data/postgresql.conf"), &settings);
        Ok(Self::run(dir, bin, user).await)
    }

    /// Starts a server on the data in a directory.
    async fn run(dir: TempDir, bin: PathBuf, user: Option<User>) -> Self {
        let mut server = Self {
            processes: Processes::new(dir),
            bin,
            user,
            port: free_port(),
        };
        while let Err(log) = server.try_start().await {
            assert!(log.contains(PORT_TAKEN), "PostgreSQL did not start: {log}");
            server.port = free_port();
        }
        server
    }

    async fn try_start(&self) -> Result<(), String> {
        let mut command = User::command(self.user, &self.bin.join("postgres"));
        command.arg("-D").arg(self.data());
        command.args(["-p", &self.port.to_string()]);
        self.processes.spawn(command);
        self.processes.until_logged(READY).await
    }

    /// Directory of the data.
    pub fn data(&self) -> PathBuf {
        self.processes.dir.path().join("data")
    }

    /// Port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Log since the last start.
    pub fn log(&self) -> String {
        self.processes.log()
    }

    /// URL of the database `postgres`.
    pub fn url(&self) -> String {
        self.database_url("postgres")
    }

    /// URL of a database.
    pub fn database_url(&self, name: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }

    /// Creates a database. Returns its URL.
    pub async fn create_database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE \"{name}\""))
            .await;
        self.database_url(name)
    }

    /// Executes statements by psql, in one transaction if they are several. Returns the rows, one
    /// in a line, with `|` between columns.
    ///
    /// # Panics
    ///
    /// If a statement fails.
    pub async fn sql(&self, database: &str, statements: &str) -> String {
        self.try_sql(database, statements).await.unwrap()
    }

    /// Executes as [`Self::sql`] does. Returns the error of psql if a statement fails.
    pub async fn try_sql(&self, database: &str, statements: &str) -> Result<String, String> {
        let mut psql = tokio::process::Command::new(self.bin.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"]);
        psql.arg(self.database_url(database))
            .args(["-c", statements]);
        psql.stdin(Stdio::null()).kill_on_drop(true);
        let output = with_timeout("psql", psql.output()).await.unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout)
                .unwrap()
                .trim_end()
                .to_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Changes a setting of the running server that needs no restart.
    pub async fn set(&self, name: &str, value: &str) {
        let statement = format!("ALTER SYSTEM SET {name} = '{value}'");
        self.sql("postgres", &statement).await;
        self.sql("postgres", "SELECT pg_reload_conf()").await;
    }

    /// Shuts down: connections are closed, and what is committed is kept.
    pub async fn stop(&self) {
        self.processes.stop(Signal::INT).await;
    }

    /// Sends SIGKILL to all processes of the server.
    pub async fn kill(&self) {
        self.processes.kill().await;
    }

    /// Starts a stopped or killed server again on its port, and waits until it takes connections.
    pub async fn start_again(&self) {
        if let Err(log) = self.try_start().await {
            panic!("PostgreSQL did not start again: {log}");
        }
    }

    /// Stops all processes by SIGSTOP: connections remain, and nothing is answered.
    pub fn pause(&self) {
        self.processes.pause();
    }

    /// Lets a paused server continue.
    pub fn resume(&self) {
        self.processes.resume();
    }

    /// Adds a standby, without which no commit of this server ends any more. `synchronous_commit`
    /// decides whether commits wait until it has synced them (`on`) or shows them
    /// (`remote_apply`).
    pub async fn add_standby(&self) -> Self {
        let dir = directory("standby", self.user);
        self.copy_to(dir.path()).await;
        let standby = Self::run(dir, self.bin.clone(), self.user).await;
        self.wait_for_standby().await;
        standby
    }

    /// Makes this stopped or killed server a standby of another one, on its own port and with the
    /// other's data instead of its own.
    pub async fn follow(&self, primary: &Self) {
        self.remove_segment();
        fs::remove_dir_all(self.data()).unwrap();
        primary.copy_to(self.processes.dir.path()).await;
        self.start_again().await;
        primary.wait_for_standby().await;
    }

    /// Copies the data to a directory, as that of a standby.
    async fn copy_to(&self, dir: &Path) {
        let data = dir.join("data");
        let mut copy = User::command(self.user, &self.bin.join("pg_basebackup"));
        copy.args(["-h", "127.0.0.1", "-U", "postgres"]);
        copy.args(["-p", &self.port.to_string()]);
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-D"]);
        copy.arg(&data);
        run("pg_basebackup", copy).await;
        // The primary that it becomes has no standby.
        let none = ("synchronous_standby_names".to_owned(), String::new());
        append_settings(&data.join("postgresql.auto.conf"), &[none]);
    }

    /// Makes commits wait for a standby, once there is one.
    async fn wait_for_standby(&self) {
        self.set("synchronous_standby_names", "*").await;
        self.until("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")
            .await;
    }

    /// Waits, in the server, until a query returns another number than 0.
    pub async fn until(&self, query: &str) {
        // A transaction sees the activity of others as it was at its first look, unless it is
        // cleared.
        let wait = format!(
            "DO $$ BEGIN WHILE ({query}) = 0 LOOP PERFORM pg_sleep(0.01); \
            PERFORM pg_stat_clear_snapshot(); END LOOP; END $$"
        );
        self.sql("postgres", &wait).await;
    }

    /// Makes a standby the primary, and waits until it takes writes. The former primary is not
    /// stopped.
    pub async fn promote(&self) {
        let promoted = self.sql("postgres", "SELECT pg_promote()").await;
        assert_eq!(promoted, "t", "no promotion within a minute");
    }

    /// Removes the System V segment of the last run, which outlives a kill. A system has few.
    fn remove_segment(&self) {
        let Ok(lock) = fs::read_to_string(self.data().join("postmaster.pid")) else {
            return;
        };
        // Line 7 has its key and its id.
        let line = lock.lines().nth(6).unwrap_or_default();
        if let Some(segment) = line.split_whitespace().nth(1) {
            let mut remove = Command::new("ipcrm");
            remove.args(["-m", segment]).stderr(Stdio::null());
            let _absent = remove.status();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.processes.kill_all();
        self.remove_segment();
    }
}

/// Directory of `initdb`, `postgres` and the others, which Debian keeps out of `PATH`.
fn find_bin() -> Option<PathBuf> {
    let has_server = |dir: &PathBuf| {
        ["initdb", "postgres", "psql", "pg_basebackup"]
            .iter()
            .all(|name| dir.join(name).is_file())
    };
    let in_path = program("postgres", &[]).and_then(|file| file.parent().map(Path::to_owned));
    let configured = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
    };
    let newest = || {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let versions = versions.filter_map(|version| {
            let version = version.ok()?;
            let number: u32 = version.file_name().to_str()?.parse().ok()?;
            Some((number, version.path().join("bin")))
        });
        versions.max().map(|(_number, bin)| bin)
    };
    in_path
        .filter(has_server)
        .or_else(|| configured().filter(has_server))
        .or_else(|| newest().filter(has_server))
}

/// Directory with an empty cluster, which is made once in this process: initdb takes seconds.
async fn template(bin: &Path, user: Option<User>) -> &'static TempDir {
    static TEMPLATE: OnceCell<TempDir> = OnceCell::const_new();
    let make = || async {
        let dir = directory("postgres-template", user);
        let data = dir.path().join("data");
        let mut initdb = User::command(user, &bin.join("initdb"));
        initdb.args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]);
        initdb.arg("-D").arg(&data).current_dir(dir.path());
        run("initdb", initdb).await;
        let owned = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        append_settings(&data.join("postgresql.conf"), &owned);
        dir
    };
    TEMPLATE.get_or_init(make).await
}

fn append_settings(file: &Path, settings: &[(String, String)]) {
    let mut text = fs::read_to_string(file).unwrap();
    for (name, value) in settings {
        text.push_str(&format!("{name} = '{value}'\n"));
    }
    // Keeps the owner of the file.
    fs::write(file, text).unwrap();
}
