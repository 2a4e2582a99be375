//! Creates or replaces an integration: `configure ADDRESS ORGANIZATION STREAM_ARN ROLE_ARN EXTERNAL_ID`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{env, error::Error};

use siem_client::{ChannelOptions, Client, v1::ConfigureRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization, stream_arn, role_arn, external_id] = &arguments[..] else {
        return Err("usage: configure ADDRESS ORGANIZATION STREAM_ARN ROLE_ARN EXTERNAL_ID".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let answer = client.configure(ConfigureRequest {
        organization_id: organization.clone(),
        kinesis_stream_arn: stream_arn.clone(),
        role_arn: role_arn.clone(),
        external_id: external_id.clone(),
        ..ConfigureRequest::default()
    });
    let answer = match answer.await {
        Ok(answer) => answer,
        Err(error) => {
            for violation in &error.violations {
                eprintln!("{}: {}", violation.field, violation.description);
            }
            return Err(error.into());
        }
    };
    let integration = answer.integration.unwrap_or_default();
    println!("{} etag {}", integration.integration_id, integration.etag);
    for warning in answer.warnings {
        println!("warning: {warning}");
    }
    Ok(())
}
