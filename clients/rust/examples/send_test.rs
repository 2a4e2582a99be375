//! Writes a test event: `send_test ADDRESS ORGANIZATION`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use siem_client::{ChannelOptions, Client, v1::SendTestRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization] = &arguments[..] else {
        return Err("usage: send_test ADDRESS ORGANIZATION".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let answer = client.send_test(SendTestRequest {
        organization_id: organization.clone(),
    });
    let verdict = answer.await?;
    for check in &verdict.checks {
        let (name, result) = (check.name(), check.result());
        println!(
            "{} {} {}",
            name.as_str_name(),
            result.as_str_name(),
            check.remedy
        );
    }
    if !verdict.delivered {
        return Err(verdict.message.into());
    }
    Ok(())
}
