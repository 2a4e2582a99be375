//! `siem-relay ctl`: the API for operators, at a terminal or in a script.

mod failure;
mod show;

use std::{
    fs::File,
    io::{self, BufRead as _, Read, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use siem_client::{Client, Code, SiemError, StatusEvent, v1};
use tokio::time::{MissedTickBehavior, interval};

use self::{
    failure::{Failure, Rpc},
    show::{Output, Shown},
};
use super::{organization_id, service::ServiceArgs, shutdown_on_signals};
use crate::domain::organization::OrganizationId;

/// Bytes of an external ID that are read: more than the longest one and its line break.
const MAX_EXTERNAL_ID_BYTES: u64 = 4_096;
/// Integrations that are asked for at a time.
const PAGE_SIZE: u32 = 500;
/// Interval in which a status stream is asked whether it is interrupted.
const LOOK: Duration = Duration::from_millis(250);

/// Shows, tests and changes integrations through the API of a running service.
///
/// Over https:// the service's certificate is verified, and the caller names itself by a client
/// certificate (--cert, --key), a token (--token-file) or both. A token is not sent to an http://
/// address beyond loopback.
///
/// With --output json each integration, event or verdict is one line of JSON, with the field names
/// of the API; numbers are JSON numbers, and times RFC 3339. Errors are JSON on standard error.
///
/// Exit codes: 0 on success; 1 if a call, a test or a check failed, or a deletion was not
/// confirmed; 64 if the options are wrong.
#[derive(Debug, Args)]
pub struct CtlArgs {
    #[command(flatten)]
    service: ServiceArgs,
    /// Format of the output.
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Time limit of a call, in seconds. `watch` has none.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    timeout: u32,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Text for human readers.
    Table,
    /// JSON, one value a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows one integration with its status and counts.
    Get {
        /// The organization.
        #[arg(value_parser = organization_id)]
        organization: OrganizationId,
    },
    /// Shows all integrations that the caller may see.
    List {
        /// Show only integrations with this status; may be repeated.
        #[arg(long = "status", value_enum, value_name = "STATUS")]
        statuses: Vec<StatusName>,
    },
    /// Shows the current statuses, and then each change, until SIGINT or SIGTERM.
    ///
    /// It continues after the last change if the connection is lost or the service restarts, and
    /// marks both.
    Watch {
        /// The organizations. [default: all]
        #[arg(value_parser = organization_id)]
        organizations: Vec<OrganizationId>,
        /// Continue after the event that had this token in the output of --output json.
        #[arg(
            long,
            value_name = "TOKEN",
            default_value = "",
            hide_default_value = true
        )]
        resume_after: String,
    },
    /// Writes a test event into the stream of an integration.
    Test {
        /// The organization.
        #[arg(value_parser = organization_id)]
        organization: OrganizationId,
    },
    /// Creates or replaces an integration.
    Configure(ConfigureArgs),
    /// Deletes an integration, after a question. Its pending events are discarded.
    Delete {
        /// The organization.
        #[arg(value_parser = organization_id)]
        organization: OrganizationId,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Delete it only if it has this etag.
        #[arg(long, default_value = "", hide_default_value = true)]
        etag: String,
        /// Succeed if there is no integration.
        #[arg(long)]
        allow_missing: bool,
    },
}

#[derive(Debug, Args)]
struct ConfigureArgs {
    /// The organization.
    #[arg(value_parser = organization_id)]
    organization: OrganizationId,
    /// ARN of the Kinesis data stream.
    #[arg(long, value_name = "ARN")]
    stream: String,
    /// ARN of the role that the service assumes.
    #[arg(long, value_name = "ARN")]
    role: String,
    /// File with the external ID in its first line, or - for standard input. An argument would be
    /// in the history of the shell and in process lists. [default: the stored one is kept]
    #[arg(long, value_name = "FILE")]
    external_id_file: Option<PathBuf>,
    /// Keep using the stored external ID until the role can be assumed with the new one.
    #[arg(long, requires = "external_id_file")]
    keep_previous_external_id: bool,
    /// Replace the integration only if it has this etag.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
    /// Save nothing: run the checks of `test` without writing an event.
    #[arg(long)]
    validate_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatusName {
    Unknown,
    Active,
    Unauthorized,
    Failing,
    Paused,
}

impl StatusName {
    fn status(self) -> v1::Status {
        match self {
            Self::Unknown => v1::Status::Unknown,
            Self::Active => v1::Status::Active,
            Self::Unauthorized => v1::Status::Unauthorized,
            Self::Failing => v1::Status::Failing,
            Self::Paused => v1::Status::Paused,
        }
    }
}

/// Runs a command.
pub async fn run(args: CtlArgs) -> ExitCode {
    let output = Output {
        is_json: args.output == Format::Json,
    };
    let done = match Client::connect(&args.service.options()) {
        Ok(client) => {
            let client = client.with_timeout(Duration::from_secs(args.timeout.into()));
            let ctl = Ctl { client, output };
            ctl.execute(args.command).await
        }
        Err(error) => Err(Failure::Usage(error.to_string())),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            failure.report(output.is_json);
            failure.exit_code()
        }
    }
}

struct Ctl {
    client: Client,
    output: Output,
}

impl Ctl {
    /// Returns whether what was asked for has succeeded.
    async fn execute(self, command: Command) -> Result<bool, Failure> {
        match command {
            Command::Get { organization } => {
                let integration = self.get(&organization).await?;
                self.output.print(&Shown::Integration(&integration))?;
                Ok(true)
            }
            Command::List { statuses } => self.list(&statuses).await,
            Command::Watch {
                organizations,
                resume_after,
            } => self.watch(organizations, resume_after).await,
            Command::Test { organization } => self.test(&organization).await,
            Command::Configure(args) => self.configure(args).await,
            Command::Delete {
                organization,
                yes,
                etag,
                allow_missing,
            } => self.delete(&organization, yes, etag, allow_missing).await,
        }
    }

    async fn get(&self, organization: &OrganizationId) -> Result<v1::Integration, Failure> {
        let call = self.client.get(v1::GetRequest {
            organization_id: organization.to_string(),
        });
        let answer = call.await.map_err(failed(Rpc::Get))?;
        Ok(answer.integration.unwrap_or_default())
    }

    async fn list(&self, statuses: &[StatusName]) -> Result<bool, Failure> {
        let statuses = statuses.iter().map(|name| name.status() as i32).collect();
        let mut request = v1::ListRequest {
            page_size: PAGE_SIZE,
            page_token: String::new(),
            statuses,
        };
        let mut table = show::Table::default();
        loop {
            let call = self.client.list(request.clone());
            let page = call.await.map_err(failed(Rpc::List))?;
            self.output.print_page(&mut table, &page.integrations)?;
            if page.next_page_token.is_empty() {
                return Ok(true);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn watch(
        &self,
        organizations: Vec<OrganizationId>,
        resume_after: String,
    ) -> Result<bool, Failure> {
        let shutdown = shutdown_on_signals().map_err(Failure::Io)?;
        let organizations = organizations.iter().map(ToString::to_string).collect();
        let watch = self.client.watch_status(organizations);
        // A snapshot replaces what was shown before, also by an earlier run.
        let mut has_snapshot = !resume_after.is_empty();
        let mut watch = watch.resume_after(resume_after);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_interrupted = false;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return Ok(true),
                event = watch.next() => {
                    Some(event.map_err(failed(Rpc::Watch))?)
                }
                _ = looks.tick() => None,
            };
            match watch.interruption() {
                Some(error) if !is_interrupted => {
                    is_interrupted = true;
                    self.output.print(&Shown::Disconnected(error))?;
                }
                None if is_interrupted => {
                    is_interrupted = false;
                    self.output.print(&Shown::Reconnected)?;
                }
                _ => {}
            }
            let token = watch.resume_token();
            match event {
                Some(StatusEvent::Snapshot(snapshot)) => {
                    if std::mem::replace(&mut has_snapshot, true) {
                        self.output.print(&Shown::Reset)?;
                    }
                    let current = snapshot.statuses.into_values().map(StatusEvent::Current);
                    let absent = snapshot.absent.into_iter().map(|organization_id| {
                        StatusEvent::Absent(v1::StatusAbsent { organization_id })
                    });
                    for event in current.chain(absent) {
                        self.output.print(&Shown::Event(&event, ""))?;
                    }
                    self.output.print(&Shown::Synced(token))?;
                }
                Some(event) => self.output.print(&Shown::Event(&event, token))?,
                None => {}
            }
        }
    }

    async fn test(&self, organization: &OrganizationId) -> Result<bool, Failure> {
        let call = self.client.send_test(v1::SendTestRequest {
            organization_id: organization.to_string(),
        });
        let verdict = call.await.map_err(failed(Rpc::Test))?;
        self.output.print(&Shown::Test(&verdict))?;
        Ok(verdict.delivered)
    }

    async fn configure(&self, args: ConfigureArgs) -> Result<bool, Failure> {
        let external_id = match &args.external_id_file {
            Some(path) => read_external_id(path)?,
            None => String::new(),
        };
        let call = self.client.configure(v1::ConfigureRequest {
            organization_id: args.organization.to_string(),
            kinesis_stream_arn: args.stream,
            role_arn: args.role,
            external_id,
            etag: args.etag,
            validate_only: args.validate_only,
            keep_previous_external_id: args.keep_previous_external_id,
        });
        let answer = call.await.map_err(failed(Rpc::Configure))?;
        self.output.print(&Shown::Configured(&answer))?;
        let mut checks = answer.checks.iter();
        Ok(checks.all(|check| check.result() != v1::CheckResult::Failed))
    }

    async fn delete(
        &self,
        organization: &OrganizationId,
        yes: bool,
        mut etag: String,
        allow_missing: bool,
    ) -> Result<bool, Failure> {
        if !yes {
            match self.get(organization).await {
                Ok(integration) => {
                    let question = show::deletion_question(&integration);
                    if !confirm(question).await.map_err(Failure::Io)? {
                        let _closed = writeln!(
                            io::stderr(),
                            "siem-relay: nothing was deleted; answer yes, or give --yes"
                        );
                        return Ok(false);
                    }
                    if etag.is_empty() {
                        // Only the integration that was asked about, not one that has replaced it meanwhile.
                        etag = integration.etag;
                    }
                }
                Err(failure) if allow_missing && failure.code() == Some(Code::NotFound) => {}
                Err(failure) => return Err(failure),
            }
        }
        let call = self.client.delete(v1::DeleteRequest {
            organization_id: organization.to_string(),
            allow_missing,
            etag,
        });
        let answer = call.await.map_err(failed(Rpc::Delete))?;
        let counts = answer.counts;
        self.output
            .print(&Shown::Deleted(organization.as_str(), counts.as_ref()))?;
        Ok(true)
    }
}

fn failed(rpc: Rpc) -> impl Fn(SiemError) -> Failure {
    move |error| Failure::Call(rpc, Box::new(error))
}

/// Asks on standard error, and reads the answer from standard input.
async fn confirm(question: String) -> io::Result<bool> {
    let asking = tokio::task::spawn_blocking(move || {
        let _closed = write!(io::stderr(), "{question}");
        let mut answer = String::new();
        io::stdin().lock().take(64).read_line(&mut answer)?;
        Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
    });
    asking.await.map_err(io::Error::other)?
}

/// Reads the first line of a file, or of standard input.
fn read_external_id(path: &Path) -> Result<String, Failure> {
    let named = |problem: String| {
        let path = path.display();
        Failure::Usage(format!("the external ID in {path} {problem}"))
    };
    let source: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => {
            let opened = File::open(path);
            Box::new(opened.map_err(|error| named(format!("cannot be read: {error}")))?)
        }
    };
    let mut text = String::new();
    let mut source = io::BufReader::new(source.take(MAX_EXTERNAL_ID_BYTES));
    let read = source.read_line(&mut text);
    read.map_err(|error| named(format!("cannot be read: {error}")))?;
    let length = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(length);
    match text.is_empty() {
        true => Err(named(
            "is empty; give a file whose first line is the external ID".to_owned(),
        )),
        false => Ok(text),
    }
}
