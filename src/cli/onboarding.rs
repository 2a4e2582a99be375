//! `siem-relay onboarding`: prints the documents that a customer applies in its AWS account.

use std::{
    env,
    ffi::OsString,
    fs::{self, Permissions},
    io::{self, BufRead as _, Read as _, Write},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use super::{external_id::generate, report_error};
use crate::{
    config::EXIT_USAGE,
    domain::external_id::ExternalId,
    onboarding::{Document, Inputs, Onboarding, Problem},
};

/// Environment variable with the external ID, used if no flag gives one.
const EXTERNAL_ID_VARIABLE: &str = "SIEM_RELAY_ONBOARDING_EXTERNAL_ID";

/// Limit for the line read from standard input: more than the longest external ID and its line
/// break.
const MAX_LINE_LENGTH: u64 = 4_096;

/// Prints the documents that a customer applies so that the service may write to a stream.
///
/// The trust policy and the permission policy are for a role created by hand and an existing
/// stream; the CloudFormation template and the Terraform file each create stream and role.
/// All of them grant the same rights: the principal may assume the role with the external
/// ID, and the role may write to that one stream. The command calls no AWS API.
///
/// Only the trust policy contains the external ID; the template and the Terraform file take
/// it as a parameter. It may also be given as SIEM_RELAY_ONBOARDING_EXTERNAL_ID.
///
/// The service verifies that the role requires the external ID: after each change of the
/// integration, and then daily, it tries to assume the role without one and with a random
/// one. Inform the customer that both attempts are denied and appear in its CloudTrail as
/// AssumeRole with AccessDenied.
///
/// Exit codes: 0 on success, 64 if the options are wrong, 1 otherwise.
#[derive(Args)]
pub struct OnboardingArgs {
    /// The name of the stream, or its ARN, which includes region and account. Required.
    #[arg(long, value_name = "NAME|ARN")]
    stream: Option<String>,
    /// The region of the stream. Required with the name of a stream.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// The account of the customer. Required with the name of a stream.
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// The name of the role to create. Required.
    #[arg(long, value_name = "NAME")]
    role_name: Option<String>,
    /// The identity that assumes the role: the account or the ARN of the identity whose AWS
    /// credentials `siem-relay serve` uses. IAM accepts only the ARN of an existing
    /// identity. Required.
    #[arg(long, value_name = "ID|ARN")]
    principal: Option<String>,
    /// Create the stream with this number of shards. [default: an on-demand stream]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    shards: Option<String>,
    /// Create an on-demand stream, which Kinesis scales.
    #[arg(long)]
    on_demand: bool,
    /// Encrypt the stream with this key. [default: alias/aws/kinesis, managed by AWS]
    #[arg(long, value_name = "ARN")]
    kms_key_arn: Option<String>,
    #[command(flatten)]
    external_id: ExternalIdArgs,
    /// The documents to print.
    #[arg(long, value_enum, default_value_t = Format::All)]
    format: Format,
    /// Write files into this directory instead of printing.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace existing files.
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    TrustPolicy,
    PermissionPolicy,
    #[value(name = "cloudformation")]
    CloudFormation,
    Terraform,
    All,
}

impl Format {
    fn needs_external_id(self) -> bool {
        matches!(self, Self::TrustPolicy | Self::All)
    }

    fn documents(self, external_id: Option<&ExternalId>) -> Vec<Document> {
        let trust_policy = || external_id.cloned().map(Document::TrustPolicy);
        match self {
            Self::TrustPolicy => trust_policy().into_iter().collect(),
            Self::PermissionPolicy => vec![Document::PermissionPolicy],
            Self::CloudFormation => vec![Document::CloudFormation],
            Self::Terraform => vec![Document::Terraform],
            Self::All => trust_policy()
                .into_iter()
                .chain([
                    Document::PermissionPolicy,
                    Document::CloudFormation,
                    Document::Terraform,
                ])
                .collect(),
        }
    }
}

/// The checked options.
struct Task {
    onboarding: Onboarding,
    documents: Vec<Document>,
    /// A new external ID, which must be shown because it is stored nowhere else.
    generated: Option<ExternalId>,
}

/// Checks the options, and prints or writes the documents.
pub(super) fn run(args: OnboardingArgs) -> ExitCode {
    let directory = args.output.clone();
    let force = args.force;
    let task = match check(args, env::var_os(EXTERNAL_ID_VARIABLE)) {
        Ok(task) => task,
        Err(problems) => {
            report_problems(&problems);
            return EXIT_USAGE.into();
        }
    };
    let done = match directory {
        Some(directory) => write(&task, &directory, force, &mut io::stdout())
            .map_err(|error| report_error("cannot write", &error)),
        None => print(&task).map_err(|error| report_error("cannot print", &error)),
    };
    if done.is_err() {
        return ExitCode::FAILURE;
    }
    match task.generated.as_ref().map(show) {
        Some(Err(error)) => {
            report_error(
                "cannot show the new external ID, so the documents are of no use; run the command again",
                &error,
            );
            ExitCode::FAILURE
        }
        Some(Ok(())) | None => ExitCode::SUCCESS,
    }
}

fn check(args: OnboardingArgs, variable: Option<OsString>) -> Result<Task, Vec<Problem>> {
    let format = args.format;
    let inputs = Inputs {
        stream: args.stream,
        region: args.region,
        account: args.account,
        role_name: args.role_name,
        principal: args.principal,
        shards: args.shards,
        on_demand: args.on_demand,
        kms_key_arn: args.kms_key_arn,
    };
    let mut problems = Vec::new();
    let onboarding = inputs.check().map_err(|found| problems.extend(found)).ok();
    let external_id = args
        .external_id
        .read(format.needs_external_id(), variable)
        .map_err(|found| problems.push(found))
        .unwrap_or_default();
    let documents = format.documents(external_id.id.as_ref());
    if let (Some(directory), false) = (&args.output, args.force) {
        problems.extend(existing_files(directory, &documents));
    }
    match onboarding {
        Some(onboarding) if problems.is_empty() => Ok(Task {
            onboarding,
            documents,
            generated: external_id.id.filter(|_| external_id.is_new),
        }),
        _ => Err(problems),
    }
}

fn report_problems(problems: &[Problem]) {
    let mut text = String::from("siem-relay: cannot create the documents:\n");
    for problem in problems {
        text += &format!("  --{problem}\n");
    }
    // A closed stderr does not change the exit code.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Prints a single document unchanged, and several with headings that are comments in YAML and
/// HCL.
fn print(task: &Task) -> io::Result<()> {
    let mut text = String::new();
    if let [document] = &task.documents[..] {
        text += &task.onboarding.text(document);
    } else {
        text += &format!(
            "# Configure the integration with\n#   kinesis_stream_arn  {}\n#   role_arn            {}\n",
            task.onboarding.stream(),
            task.onboarding.role(),
        );
        for document in &task.documents {
            let (name, title) = (document.file_name(), document.title());
            let body = task.onboarding.text(document);
            text += &format!("\n# ==== {name}: {title}\n\n{body}");
        }
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Shows a new external ID on stderr, apart from the documents.
fn show(external_id: &ExternalId) -> io::Result<()> {
    writeln!(
        io::stderr(),
        "\nthe new external ID, which is shown only this once; give it to the integration and to the template or the Terraform file:\n\n  {}\n",
        external_id.expose()
    )
}

/// Returns a problem for each file that exists already.
fn existing_files(directory: &Path, documents: &[Document]) -> Vec<Problem> {
    let names = documents.iter().map(Document::file_name);
    names
        .filter(|name| directory.join(name).symlink_metadata().is_ok())
        .map(|name| Problem {
            field: "output",
            message: format!("already contains a file {name}; --force replaces it"),
        })
        .collect()
}

/// Writes one file for each document, completely or not at all, and its path to `log`. Only its
/// owner can read the file with the external ID.
fn write(
    task: &Task,
    directory: &Path,
    force: bool,
    log: &mut impl Write,
) -> Result<(), FileError> {
    let failed = |path: &Path, source| FileError {
        path: path.to_owned(),
        source,
    };
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for document in &task.documents {
        let path = directory.join(document.file_name());
        let mode = match document {
            Document::TrustPolicy(_) => 0o600,
            _ => 0o666,
        };
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory)
            .map_err(|error| failed(directory, error))?;
        file.write_all(task.onboarding.text(document).as_bytes())
            .map_err(|error| failed(&path, error))?;
        let kept = match force {
            true => file.persist(&path),
            false => file.persist_noclobber(&path),
        };
        kept.map_err(|error| failed(&path, error.error))?;
        // The files are written; a closed stdout is no failure.
        let _ = writeln!(log, "wrote {}", path.display());
    }
    Ok(())
}

/// An error of the file system with its path.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
struct FileError {
    path: PathBuf,
    source: io::Error,
}

/// Options for the external ID. They may contain a secret, so the type has no `Debug`.
#[derive(Args, Default)]
struct ExternalIdArgs {
    /// The external ID. Other users of this machine can see it on the command line.
    #[arg(long, value_name = "SECRET")]
    external_id: Option<String>,
    /// Read the external ID from the first line of standard input.
    #[arg(long)]
    external_id_stdin: bool,
    /// Generate a new external ID and show it once, on stderr.
    #[arg(long)]
    generate_external_id: bool,
}

#[derive(Default)]
struct ExternalIdInput {
    id: Option<ExternalId>,
    /// Whether it was generated by this command.
    is_new: bool,
}

impl ExternalIdArgs {
    /// Reads the external ID from the option that is given, or else from the variable.
    fn read(
        self,
        is_required: bool,
        variable: Option<OsString>,
    ) -> Result<ExternalIdInput, Problem> {
        let options = [
            self.external_id.is_some(),
            self.external_id_stdin,
            self.generate_external_id,
        ];
        if options.into_iter().filter(|is_given| *is_given).count() > 1 {
            return problem(
                "external-id",
                "give only one of --external-id, --external-id-stdin and --generate-external-id",
            );
        }
        let is_new = self.generate_external_id;
        let id = if let Some(text) = self.external_id {
            Some(parse("external-id", text)?)
        } else if self.external_id_stdin {
            Some(parse("external-id-stdin", first_line()?)?)
        } else if is_new {
            Some(match generate() {
                Ok(text) => parse("generate-external-id", text)?,
                Err(_) => {
                    return problem("generate-external-id", "the system gave no random bytes");
                }
            })
        } else {
            variable.map(from_variable).transpose()?.flatten()
        };
        if id.is_none() && is_required {
            let message = format!(
                "is required for the trust policy; give it by --external-id-stdin or {EXTERNAL_ID_VARIABLE}, or generate one by --generate-external-id"
            );
            return problem("external-id", message);
        }
        Ok(ExternalIdInput { id, is_new })
    }
}

fn parse(field: &'static str, text: String) -> Result<ExternalId, Problem> {
    ExternalId::parse(text).or_else(|error| problem(field, error.to_string()))
}

fn first_line() -> Result<String, Problem> {
    let mut line = String::new();
    let mut input = io::stdin().lock().take(MAX_LINE_LENGTH);
    if let Err(error) = input.read_line(&mut line) {
        return problem("external-id-stdin", format!("cannot be read: {error}"));
    }
    let length = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(length);
    Ok(line)
}

/// Reads the variable. An empty one counts as not set.
fn from_variable(value: OsString) -> Result<Option<ExternalId>, Problem> {
    let refuse = |message: String| {
        let message = format!("the variable {EXTERNAL_ID_VARIABLE} {message}");
        problem("external-id", message)
    };
    match value.into_string() {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => ExternalId::parse(text)
            .map(Some)
            .or_else(|error| refuse(error.to_string())),
        Err(_) => refuse("is not UTF-8".to_owned()),
    }
}

fn problem<T>(field: &'static str, message: impl Into<String>) -> Result<T, Problem> {
    let message = message.into();
    Err(Problem { field, message })
}

#[cfg(test)]
mod tests;
