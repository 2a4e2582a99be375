//! `siem-relay onboarding`: what a customer applies so that the service may write to a
//! stream.

mod external_id;
mod output;
#[cfg(test)]
mod tests;

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use self::external_id::Given;
use super::complain;
use crate::{
    config::EXIT_USAGE,
    domain::external_id::ExternalId,
    onboarding::{Document, Inputs, Onboarding, Problem},
};

/// Prints what a customer applies so that the service may write to a stream.
///
/// Trust policy and permission policy are for a role that is made by hand, beside a
/// stream that exists; the CloudFormation template and the Terraform file each make
/// stream and role. All of them grant the same: the principal may assume the role with
/// the external ID, and the role may write to that one stream. Nothing calls AWS.
///
/// The external ID stands in the trust policy and nowhere else; the other files take it
/// as a parameter. It may also be given as SIEM_RELAY_ONBOARDING_EXTERNAL_ID.
///
/// The service proves that the role requires the external ID: after each change of the
/// integration, and then daily, it tries to assume the role without one and with a random
/// one. Tell the customer that both attempts are denied and appear in its CloudTrail as
/// AssumeRole with AccessDenied.
///
/// The exit code is 0, 64 where the options are wrong, otherwise 1.
#[derive(Args)]
pub struct OnboardingArgs {
    /// The stream's name, or its ARN, which says region and account as well. Required.
    #[arg(long, value_name = "NAME|ARN")]
    stream: Option<String>,
    /// The stream's region. Required beside a stream's name.
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// The customer's account. Required beside a stream's name.
    #[arg(long, value_name = "ID")]
    account: Option<String>,
    /// The name that the role is to have. Required.
    #[arg(long, value_name = "NAME")]
    role_name: Option<String>,
    /// Who assumes the role: the account, or the ARN of the identity, whose AWS
    /// credentials `siem-relay serve` has. IAM takes an ARN only of what exists.
    /// Required.
    #[arg(long, value_name = "ID|ARN")]
    principal: Option<String>,
    /// Make the stream with so many shards. [default: a stream on demand]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    shards: Option<String>,
    /// Make a stream that scales itself.
    #[arg(long)]
    on_demand: bool,
    /// Encrypt the stream under this key. [default: alias/aws/kinesis, managed by AWS]
    #[arg(long, value_name = "ARN")]
    kms_key_arn: Option<String>,
    #[command(flatten)]
    external_id: Given,
    /// What to print.
    #[arg(long, value_enum, default_value_t = Format::All)]
    format: Format,
    /// Write files into this directory in place of printing.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Replace files that are there.
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

/// What is to be done, checked.
struct Task {
    onboarding: Onboarding,
    documents: Vec<Document>,
    /// To be told, since nobody knows it yet.
    generated: Option<ExternalId>,
}

/// Checks the options, and prints or writes.
pub(super) fn run(args: OnboardingArgs) -> ExitCode {
    let destination = args.output.clone();
    let force = args.force;
    let variable = env::var_os(external_id::VARIABLE);
    let task = match check(args, variable) {
        Ok(task) => task,
        Err(problems) => {
            tell(&problems);
            return EXIT_USAGE.into();
        }
    };
    let done = match destination {
        Some(directory) => write(&task, &directory, force),
        None => print(&task).map_err(|error| complain("cannot print", &error)),
    };
    if done.is_err() {
        return ExitCode::FAILURE;
    }
    match task.generated.as_ref().map(announce) {
        // Nobody knows it: what was made for the customer is of no use.
        Some(Err(error)) => {
            complain("cannot show the external ID: make another", &error);
            ExitCode::FAILURE
        }
        Some(Ok(())) | None => ExitCode::SUCCESS,
    }
}

fn write(task: &Task, directory: &Path, force: bool) -> Result<(), ()> {
    let Task {
        onboarding,
        documents,
        ..
    } = task;
    output::write(directory, onboarding, documents, force, &mut io::stdout())
        .map_err(|error| complain("cannot write", &error))
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
    let onboarding = inputs.check();
    let external_id = args.external_id.take(format.needs_external_id(), variable);
    let mut problems = Vec::new();
    let mut noted = |problem: Vec<Problem>| problems.extend(problem);
    let onboarding = onboarding.map_err(&mut noted).ok();
    let external_id = external_id
        .map_err(|problem| noted(vec![problem]))
        .unwrap_or_default();
    let documents = format.documents(external_id.id.as_ref());
    if let (Some(directory), false) = (&args.output, args.force) {
        noted(output::in_the_way(directory, &documents));
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

fn tell(problems: &[Problem]) {
    let mut text = String::from("siem-relay: cannot make what the customer applies:\n");
    for problem in problems {
        text += &format!("  --{problem}\n");
    }
    // Where nobody reads, the exit code still tells.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// One document as it is, several with headings that are comments to YAML and HCL.
fn print(task: &Task) -> io::Result<()> {
    let mut text = String::new();
    if let [document] = &task.documents[..] {
        text += &task.onboarding.text(document);
    } else {
        text += &format!(
            "# The integration is configured with\n#   kinesis_stream_arn  {}\n#   role_arn            {}\n",
            task.onboarding.stream(),
            task.onboarding.role(),
        );
        for document in &task.documents {
            let (name, title) = (document.file_name(), document.title());
            let text_of_it = task.onboarding.text(document);
            text += &format!("\n# ==== {name}: {title}\n\n{text_of_it}");
        }
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Tells a new external ID, the one time that it is shown, apart from the documents.
fn announce(external_id: &ExternalId) -> io::Result<()> {
    writeln!(
        io::stderr(),
        "\nthe external ID, which is shown this once; the integration, the template and the Terraform file are to get it:\n\n  {}\n",
        external_id.expose()
    )
}

/// An error of the file system, and where it came up.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
struct FileError {
    path: PathBuf,
    source: io::Error,
}
