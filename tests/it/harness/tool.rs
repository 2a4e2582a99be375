//! Subcommands of the built binary that end by themselves.

use std::process::{Output, Stdio};

use aws_stand_in::{Control, LongTermCredentials};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::with_timeout;

/// Exit code and output of a subcommand.
#[derive(Debug)]
pub struct ToolOutput {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl ToolOutput {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

/// `siem-relay` with these arguments and an empty environment.
pub fn tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siem-relay"));
    command
        .env_clear()
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Adds the endpoint of Kinesis and credentials to the environment.
pub fn with_aws(mut command: Command, url: &str, credentials: &LongTermCredentials) -> Command {
    command
        .env("AWS_ENDPOINT_URL_KINESIS", url)
        .env("AWS_ACCESS_KEY_ID", &credentials.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &credentials.secret_access_key)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// Runs a command to its end.
pub async fn run(mut command: Command) -> ToolOutput {
    let output = with_timeout("the end of the tool", command.output()).await;
    ToolOutput::new(output.unwrap())
}

/// Runs a command to its end with this on standard input.
pub async fn run_with_input(mut command: Command, input: &[u8]) -> ToolOutput {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let write = async {
        // A command that stops reading early has failed, and its exit code says why.
        let _closed = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = with_timeout("the end of the tool", async {
        tokio::join!(write, child.wait_with_output())
    })
    .await;
    ToolOutput::new(output.unwrap())
}

/// Credentials of a user of the customer's account that may read the stream.
pub fn reader_credentials(aws: &Control) -> LongTermCredentials {
    let reader = LongTermCredentials {
        access_key_id: "AKIAAUDITOR".to_owned(),
        secret_access_key: "auditor-secret".to_owned(),
        principal_arn: "arn:aws:iam::222222222222:user/auditor".to_owned(),
        policy: None,
    };
    aws.put_credentials(reader.clone()).unwrap();
    reader
}

/// Runs `verify` on a stream: every sequence up to `last` must be delivered or in a gap. Returns
/// the report of the only integration.
pub async fn run_verify(aws: &Control, url: &str, stream_arn: &str, last: u64) -> Value {
    let arguments = [
        "verify",
        "--output",
        "json",
        "--stream",
        stream_arn,
        "--last-sequence",
        &last.to_string(),
    ];
    let ended = run(with_aws(tool(&arguments), url, &reader_credentials(aws))).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report = ended.json()["integrations"][0].take();
    assert_eq!(report["last_sequence"], last);
    report
}
