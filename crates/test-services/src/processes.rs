//! Processes of a service, which are found by their working directory, and directories that go
//! with this process.

use std::{
    collections::BTreeSet,
    fs,
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock},
    thread,
};

use rustix::{
    net::{Shutdown, shutdown},
    process::{Pid, Signal, kill_process},
};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::with_timeout;

/// Waits for the end of its standard input, then ends every process that works below `$0`, and
/// removes `$0`. PostgreSQL's System V segment, of which a system has few, outlives a kill.
const SWEEP: &str = r#"
read -r _
while found=$(find /proc/[0-9]*/cwd -maxdepth 0 -lname "$0/*"); [ -n "$found" ]; do
  for one in $found; do one=${one#/proc/}; kill -9 "${one%/cwd}"; done
done 2>/dev/null
for file in "$0"/*/data/postmaster.pid; do
  ipcrm -m "$(sed -n '7s/.* //p' "$file")"
done 2>/dev/null
rm -rf "$0"
"#;

/// Directory for everything that this process starts. A shell removes it, and ends the processes in
/// it, once this process has ended in any way: handles in statics are never dropped.
fn root() -> &'static Path {
    static ROOT: OnceLock<(PathBuf, Child)> = OnceLock::new();
    let (root, _sweeper) = ROOT.get_or_init(|| {
        let root = tempfile::Builder::new().prefix("test-services-").tempdir();
        let root = root.unwrap().keep().canonicalize().unwrap();
        let mut sweeper = Command::new("sh");
        sweeper.args(["-c", SWEEP]).arg(&root).current_dir("/");
        // An interrupt from the terminal ends this process, and must not end the sweeper before.
        sweeper
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0);
        // The end of this process closes the sweeper's standard input.
        let sweeper = sweeper.spawn().unwrap();
        // The user that PostgreSQL runs as passes through.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).unwrap();
        (root, sweeper)
    });
    root
}

/// Makes a directory below that of this process.
pub(crate) fn directory(name: &str, owner: Option<User>) -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(root())
        .unwrap();
    if let Some(owner) = owner {
        chown(dir.path(), Some(owner.uid), Some(owner.gid)).unwrap();
    }
    dir
}

/// A user that processes run as instead of root.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// An unprivileged user if this process is root's.
    pub(crate) fn instead_of_root() -> Option<Self> {
        rustix::process::geteuid().is_root().then(|| {
            let users = fs::read_to_string("/etc/passwd").unwrap();
            let named = |name: &str| {
                let user = users.lines().find(|line| line.starts_with(name))?;
                let mut ids = user.split(':').skip(2).map(|id| id.parse().unwrap());
                let (uid, gid) = (ids.next()?, ids.next()?);
                Some(Self { uid, gid })
            };
            named("postgres:").or_else(|| named("nobody:")).unwrap()
        })
    }

    /// Command that this user runs, if there is one.
    pub(crate) fn command(user: Option<Self>, program: &Path) -> Command {
        let mut command = Command::new(program);
        if let Some(user) = user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

/// One run of a service's main process.
#[derive(Default)]
struct Run {
    id: u32,
    log: String,
    ended: Option<ExitStatus>,
}

/// A service: its directory, and all processes that work in it.
pub(crate) struct Processes {
    pub(crate) dir: TempDir,
    run: Mutex<watch::Receiver<Run>>,
}

impl Processes {
    /// A service that does not run. Its processes must keep their working directory in `dir`.
    pub(crate) fn new(dir: TempDir) -> Self {
        Self {
            dir,
            run: Mutex::new(watch::channel(Run::default()).1),
        }
    }

    fn run(&self) -> watch::Receiver<Run> {
        self.run.lock().unwrap().clone()
    }

    /// Starts the main process.
    pub(crate) fn spawn(&self, mut command: Command) {
        assert!(self.all().is_empty(), "it runs already");
        let (reader, writer) = io::pipe().unwrap();
        let errors = writer.try_clone().unwrap();
        command.current_dir(self.dir.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
        let mut child = command.spawn().unwrap();
        // It holds the pipe's writing end, of which the log's end depends.
        drop(command);
        let (runs, run) = watch::channel(Run {
            id: child.id(),
            ..Run::default()
        });
        *self.run.lock().unwrap() = run;
        thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            while reader
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                runs.send_modify(|run| run.log.push_str(&String::from_utf8_lossy(&line)));
                line.clear();
            }
            let ended = child.wait().ok();
            runs.send_modify(|run| run.ended = ended);
        });
    }

    /// Waits until the log of this run has these words. Returns the log if the process ends before.
    pub(crate) async fn until_logged(&self, words: &str) -> Result<(), String> {
        let mut run = self.run();
        let settled = run.wait_for(|run| run.log.contains(words) || run.ended.is_some());
        let run = with_timeout(words, settled).await.unwrap();
        match run.log.contains(words) {
            true => Ok(()),
            false => Err(run.log.clone()),
        }
    }

    /// Output of the main process since its last start.
    pub(crate) fn log(&self) -> String {
        self.run().borrow().log.clone()
    }

    /// Ids of the processes that have not ended.
    fn all(&self) -> Vec<Pid> {
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let entry = entry.ok()?;
            let id = entry.file_name().to_str()?.parse().ok()?;
            let works_in = fs::read_link(entry.path().join("cwd")).ok()?;
            works_in.starts_with(self.dir.path()).then_some(id)
        });
        processes.filter_map(Pid::from_raw).collect()
    }

    /// Sends a signal to every process for which it is due, until none is left.
    fn signal_while(&self, signal: Signal, due: impl Fn(Pid) -> bool) {
        loop {
            let mut processes = self.all();
            processes.retain(|process| due(*process));
            if processes.is_empty() {
                return;
            }
            for process in processes {
                // It may have ended by itself.
                let _ended = kill_process(process, signal);
            }
            thread::yield_now();
        }
    }

    /// Sends SIGKILL to all processes, until none is left.
    pub(crate) fn kill_all(&self) {
        self.signal_while(Signal::KILL, |_process| true);
    }

    async fn until_ended(&self) {
        let mut run = self.run();
        let ended = run.wait_for(|run| run.id == 0 || run.ended.is_some());
        with_timeout("the end of a process", ended).await.unwrap();
    }

    /// Sends SIGKILL to all processes, and waits for their end.
    pub(crate) async fn kill(&self) {
        self.kill_all();
        self.until_ended().await;
    }

    /// Sends a signal to the main process, and waits for its end.
    pub(crate) async fn stop(&self, signal: Signal) {
        self.resume();
        let main = self.run().borrow().id;
        for process in self.all() {
            if process.as_raw_nonzero().get().unsigned_abs() == main {
                let _ended = kill_process(process, signal);
            }
        }
        self.until_ended().await;
    }

    /// Stops all processes by SIGSTOP.
    pub(crate) fn pause(&self) {
        self.signal_while(Signal::STOP, |process| state(process) != Some('T'));
    }

    /// Lets stopped processes continue.
    pub(crate) fn resume(&self) {
        self.signal_while(Signal::CONT, |process| state(process) == Some('T'));
    }
}

impl Drop for Processes {
    #[expect(
        clippy::print_stderr,
        reason = "for a test that fails, beside its error"
    )]
    fn drop(&mut self) {
        self.kill_all();
        if thread::panicking() {
            let dir = self.dir.path().display();
            eprintln!("log of the service in {dir}:\n{}", self.log());
        }
    }
}

/// State of a process, such as `T` for one that is stopped.
fn state(process: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_name, rest) = stat.rsplit_once(") ")?;
    rest.chars().next()
}

/// A port that nothing listens on, and that is given out once.
pub(crate) fn free_port() -> u16 {
    let listener = listen();
    // Closing alone leaves it to a process that is just being spawned, until its exec.
    shutdown(&listener, Shutdown::Both).unwrap();
    listener.local_addr().unwrap().port()
}

/// Listens on a port of 127.0.0.1 that is given out once. It is outside of the range from which
/// connections get theirs, so that it remains free while its service is down.
pub(crate) fn listen() -> TcpListener {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let random = RandomState::new().hash_one(0_u8);
        let port = 20_000 + (random % 12_000) as u16;
        if GIVEN.lock().unwrap().insert(port)
            && let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        {
            return listener;
        }
    }
}

/// Path of a program in one of these directories, or in those of `PATH`.
pub(crate) fn program(name: &str, directories: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = directories
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path));
    all.find_map(|dir| Some(dir.join(name)).filter(|file| file.is_file()))
}

/// Runs a program to its end, which must be a success.
pub(crate) async fn run(name: &str, mut command: Command) {
    command.stdin(Stdio::null());
    let mut command = tokio::process::Command::from(command);
    let output = with_timeout(name, command.kill_on_drop(true).output()).await;
    let output = output.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name}: {}: {errors}",
        output.status
    );
}
