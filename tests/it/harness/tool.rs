//! The built binary as a tool that ends by itself.

use std::{process::Output, process::Stdio};

use aws_stand_in::LongTermCredentials;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use super::within;

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
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

/// `siem-relay` with these arguments, and nothing in its environment.
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

/// Gives a tool an AWS and who it is there.
pub fn with_aws(mut command: Command, url: &str, who: &LongTermCredentials) -> Command {
    command
        .env("AWS_ENDPOINT_URL_KINESIS", url)
        .env("AWS_ACCESS_KEY_ID", &who.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &who.secret_access_key)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// Runs a tool to its end.
pub async fn run(mut command: Command) -> Ended {
    let output = within("the end of the tool", command.output()).await;
    Ended::new(output.unwrap())
}

/// Runs a tool that reads this.
pub async fn run_with_input(mut command: Command, input: &[u8]) -> Ended {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let write = async {
        // Where it does not read to the end, its exit code tells why.
        let _gone = stdin.write_all(input).await;
        drop(stdin);
    };
    let ((), output) = within("the end of the tool", async {
        tokio::join!(write, child.wait_with_output())
    })
    .await;
    Ended::new(output.unwrap())
}
