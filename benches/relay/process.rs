//! This binary once more, in a role: told what to do by lines of JSON on standard
//! input, answering each with one line on standard output.

use std::process::Stdio;

use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, Stdin, Stdout},
    process::{Child as Process, ChildStdin, ChildStdout, Command},
};

use super::{
    Failure, floor, intake, loader, sink, subscribers,
    usage::{self, Usage},
};

/// The argument that stands before a role's name and plan.
const MARK: &str = "--role";

/// What a process of this binary does.
pub enum Role {
    Sink(sink::Plan),
    Loader(loader::Plan),
    Floor(floor::Plan),
    Intake(intake::Plan),
    Subscribers(subscribers::Plan),
}

impl Role {
    /// None in the process that measures.
    pub fn of_this_process() -> Option<Result<Self, Failure>> {
        let mut arguments = std::env::args().skip(1);
        if arguments.next()? != MARK {
            return None;
        }
        let name = arguments.next().unwrap_or_default();
        let plan = arguments.next().unwrap_or_default();
        Some(Self::named(&name, &plan))
    }

    fn named(name: &str, plan: &str) -> Result<Self, Failure> {
        Ok(match name {
            "sink" => Self::Sink(serde_json::from_str(plan)?),
            "loader" => Self::Loader(serde_json::from_str(plan)?),
            "floor" => Self::Floor(serde_json::from_str(plan)?),
            "intake" => Self::Intake(serde_json::from_str(plan)?),
            "subscribers" => Self::Subscribers(serde_json::from_str(plan)?),
            other => return Err(format!("there is no role {other:?}").into()),
        })
    }

    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Sink(plan) => sink::run(plan),
            Self::Loader(plan) => loader::run(plan),
            Self::Floor(plan) => floor::run(plan),
            Self::Intake(plan) => intake::run(plan),
            Self::Subscribers(plan) => subscribers::run(plan),
        }
    }
}

/// The orders that a role gets, and where it answers.
pub struct Orders {
    lines: Lines<BufReader<Stdin>>,
    answers: Stdout,
}

impl Orders {
    pub fn new() -> Self {
        Self {
            lines: BufReader::new(tokio::io::stdin()).lines(),
            answers: tokio::io::stdout(),
        }
    }

    /// None once the process that measures is gone.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        match self.lines.next_line().await? {
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

/// A role's process, as the one that measures sees it. It ends with this handle.
pub struct Child {
    name: &'static str,
    process: Process,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Child {
    pub fn start(name: &'static str, plan: &impl Serialize) -> Result<Self, Failure> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([MARK, name, &serde_json::to_string(plan)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = process.stdin.take().ok_or("no standard input")?;
        let answers = process.stdout.take().ok_or("no standard output")?;
        Ok(Self {
            name,
            process,
            orders,
            answers: BufReader::new(answers).lines(),
        })
    }

    pub async fn order(&mut self, order: &impl Serialize) -> Result<(), Failure> {
        let line = serde_json::to_string(order)? + "\n";
        self.orders.write_all(line.as_bytes()).await?;
        Ok(())
    }

    pub async fn answer<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        match self.answers.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => Err(format!("the {} ended early", self.name).into()),
        }
    }

    pub async fn ask<T: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<T, Failure> {
        self.order(order).await?;
        self.answer().await
    }

    fn pid(&self) -> Result<u32, Failure> {
        Ok(self.process.id().ok_or("the process has ended")?)
    }

    pub fn usage(&self) -> Result<Usage, Failure> {
        Usage::of(self.pid()?)
    }

    pub fn reset_peak(&self) -> Result<(), Failure> {
        usage::reset_peak(self.pid()?)
    }
}
