//! Child processes: this binary in a role. A child reads commands as lines of JSON on
//! standard input and answers each with one line on standard output. Also the CPU time,
//! memory and disk writes of a process, as Linux counts them.

use std::{collections::BTreeSet, fs, net::SocketAddr, ops::Add, process::Stdio};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, Stdin, Stdout},
    process::{Child as TokioChild, ChildStdin, ChildStdout, Command},
    runtime::{Builder, Runtime},
    task::LocalSet,
};

use super::{Failure, floor, intake, loader, log_floor, sink, subscribers};

/// Argument that precedes a role in JSON.
const ROLE_ARGUMENT: &str = "--role";
/// `USER_HZ`, which is 100 on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Task of a child process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Sink(sink::Config),
    Loader(loader::Config),
    Floor(floor::Config),
    Intake(intake::Config),
    Subscribers(subscribers::Config),
    LogFloor(log_floor::Config),
}

impl Role {
    /// Returns None in the measuring process.
    pub fn of_this_process() -> Option<Result<Self, Failure>> {
        let mut arguments = std::env::args().skip(1);
        if arguments.next()? != ROLE_ARGUMENT {
            return None;
        }
        let role = arguments.next().unwrap_or_default();
        Some(serde_json::from_str(&role).map_err(Failure::from))
    }

    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Sink(config) => LocalSet::new().block_on(&one_thread()?, sink::run(config)),
            Self::Loader(config) => one_thread()?.block_on(loader::run(config)),
            Self::Floor(config) => many_threads()?.block_on(floor::run(config)),
            Self::Intake(config) => many_threads()?.block_on(intake::run(config)),
            Self::Subscribers(config) => many_threads()?.block_on(subscribers::run(config)),
            Self::LogFloor(config) => many_threads()?.block_on(log_floor::run(config)),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Sink(_) => "sink",
            Self::Loader(_) => "loader",
            Self::Floor(_) => "floor",
            Self::Intake(_) => "intake",
            Self::Subscribers(_) => "subscribers",
            Self::LogFloor(_) => "log floor",
        }
    }
}

/// Runtime on the calling thread.
pub fn one_thread() -> Result<Runtime, Failure> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Runtime with one thread per processor.
fn many_threads() -> Result<Runtime, Failure> {
    Ok(Builder::new_multi_thread().enable_all().build()?)
}

/// Measuring process, as seen from a child.
pub struct Controller {
    commands: Lines<BufReader<Stdin>>,
    answers: Stdout,
}

impl Controller {
    pub fn new() -> Self {
        Self {
            commands: BufReader::new(tokio::io::stdin()).lines(),
            answers: tokio::io::stdout(),
        }
    }

    /// Returns the next command, or None once the measuring process has ended.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        match self.commands.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }

    pub async fn answer(&mut self, answer: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(answer)? + "\n";
        self.answers.write_all(line.as_bytes()).await?;
        self.answers.flush().await?;
        Ok(())
    }
}

/// Child process, as seen from the measuring process. Dropping it kills the process.
pub struct Child {
    name: &'static str,
    process: TokioChild,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts a process, and returns it with the answer that it gives once it is ready.
    pub async fn start<T: DeserializeOwned>(role: Role) -> Result<(Self, T), Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([ROLE_ARGUMENT, &serde_json::to_string(&role)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let commands = process.stdin.take().ok_or("no standard input")?;
        let answers = process.stdout.take().ok_or("no standard output")?;
        let mut child = Self {
            name: role.name(),
            process,
            commands,
            answers: BufReader::new(answers).lines(),
        };
        let ready = child.answer().await?;
        Ok((child, ready))
    }

    /// Sends a command and returns the answer.
    pub async fn call<T: DeserializeOwned>(
        &mut self,
        command: &impl Serialize,
    ) -> Result<T, Failure> {
        let line = serde_json::to_string(command)? + "\n";
        self.commands.write_all(line.as_bytes()).await?;
        self.answer().await
    }

    async fn answer<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        match self.answers.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => Err(format!("the process {} ended early", self.name).into()),
        }
    }

    pub fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(&self.process)
    }

    pub fn reset_peak(&self) -> Result<(), Failure> {
        reset_peak(&self.process)
    }
}

/// Resources that a process has used since its start, read from [`/proc/PID`].
///
/// [`/proc/PID`]: https://man7.org/linux/man-pages/man5/proc.5.html
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time of all threads.
    pub cpu_seconds: f64,
    /// Peak of the resident memory since the last [`reset_peak`].
    pub peak_bytes: u64,
    pub resident_bytes: u64,
    /// Bytes that the process caused to be written to disk.
    pub written_bytes: u64,
}

impl Usage {
    pub fn of(process: &TokioChild) -> Result<Self, Failure> {
        let pid = pid(process)?;
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let status = read("status")?;
        Ok(Self {
            cpu_seconds: cpu_seconds(&read("stat")?)?,
            peak_bytes: field(&status, "VmHWM:")? * 1024,
            resident_bytes: field(&status, "VmRSS:")? * 1024,
            written_bytes: field(&read("io")?, "write_bytes:")?,
        })
    }
}

/// Sum over processes. The sum of peaks is an upper bound.
impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            peak_bytes: self.peak_bytes + other.peak_bytes,
            resident_bytes: self.resident_bytes + other.resident_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
        }
    }
}

/// Sets the peak of the resident memory to its present value.
pub fn reset_peak(process: &TokioChild) -> Result<(), Failure> {
    let pid = pid(process)?;
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

pub fn pid(process: &TokioChild) -> Result<u32, Failure> {
    Ok(process.id().ok_or("the process has ended")?)
}

/// Sum of fields 14 and 15 of `stat`.
fn cpu_seconds(stat: &str) -> Result<f64, Failure> {
    Ok((stat_field(stat, 14)? + stat_field(stat, 15)?) as f64 / TICKS_PER_SECOND)
}

/// Field of `stat`, counted from 1 as in its documentation. The second may contain spaces and
/// ends with a parenthesis.
fn stat_field(stat: &str, number: usize) -> Result<u64, Failure> {
    let (_, after) = stat.rsplit_once(") ").ok_or("unexpected format of stat")?;
    let field = after.split(' ').nth(number - 3);
    Ok(field.ok_or("stat is too short")?.parse()?)
}

/// A server that this benchmark did not start: processes with all their descendants.
#[derive(Clone, Debug)]
pub struct ForeignProcesses {
    roots: Vec<u32>,
}

impl ForeignProcesses {
    /// Takes the processes with these ids, or if none is given, those that listen on these
    /// addresses. None if they run on other machines.
    pub fn find(pids: &[u32], addresses: &[SocketAddr]) -> Result<Option<Self>, Failure> {
        let roots = match pids {
            [] => listeners(addresses)?,
            pids => pids.to_vec(),
        };
        Ok((!roots.is_empty()).then_some(Self { roots }))
    }

    /// User and system time since the start, with that of children that have ended.
    pub fn cpu_seconds(&self) -> Result<f64, Failure> {
        let mut children: Vec<(u32, u32)> = Vec::new();
        for pid in pids()? {
            // A process may end meanwhile; its parent then has its time.
            if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) {
                children.push((stat_field(&stat, 4)? as u32, pid));
            }
        }
        let mut all: BTreeSet<u32> = BTreeSet::new();
        let mut new = self.roots.clone();
        while let Some(pid) = new.pop() {
            if all.insert(pid) {
                let of_pid = children.iter().filter(|(parent, _)| *parent == pid);
                new.extend(of_pid.map(|(_, child)| *child));
            }
        }
        let mut ticks = 0;
        for pid in all {
            if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) {
                for number in 14..=17 {
                    ticks += stat_field(&stat, number)?;
                }
            } else if self.roots.contains(&pid) {
                return Err(format!("the process {pid} has ended").into());
            }
        }
        Ok(ticks as f64 / TICKS_PER_SECOND)
    }
}

fn pids() -> Result<impl Iterator<Item = u32>, Failure> {
    let names = fs::read_dir("/proc")?.flatten();
    Ok(names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

/// Processes that listen on the ports of loopback addresses.
fn listeners(addresses: &[SocketAddr]) -> Result<Vec<u32>, Failure> {
    const LISTEN: &str = "0A";
    let local = addresses.iter().filter(|one| one.ip().is_loopback());
    let ports: BTreeSet<u16> = local.map(SocketAddr::port).collect();
    let mut sockets = BTreeSet::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let port = fields.get(1).and_then(|address| address.rsplit_once(':'));
            let port = port.and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            if port.is_some_and(|port| ports.contains(&port)) && fields.get(3) == Some(&LISTEN) {
                sockets.extend(fields.get(9).map(|inode| format!("socket:[{inode}]")));
            }
        }
    }
    let listens = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd"));
        files.into_iter().flatten().flatten().any(|file| {
            let target = fs::read_link(file.path()).unwrap_or_default();
            target
                .to_str()
                .is_some_and(|target| sockets.contains(target))
        })
    };
    Ok(pids()?.filter(listens).collect())
}

fn field(text: &str, name: &str) -> Result<u64, Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value
        .ok_or_else(|| format!("no field {name} in /proc"))?
        .parse()?)
}
