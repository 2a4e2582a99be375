//! Shows an integration: `get ADDRESS ORGANIZATION`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use siem_client::{
    ChannelOptions, Client, status_of,
    v1::{ErrorReason, GetRequest},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization] = &arguments[..] else {
        return Err("usage: get ADDRESS ORGANIZATION".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let answer = client.get(GetRequest {
        organization_id: organization.clone(),
    });
    let integration = match answer.await {
        Ok(answer) => answer.integration.unwrap_or_default(),
        Err(error) if error.reason == ErrorReason::IntegrationNotFound => {
            return Err(format!("{organization} has no integration").into());
        }
        Err(error) => return Err(error.into()),
    };
    let status = integration.status.unwrap_or_default();
    println!("{} {}", status_of(&status).as_str_name(), status.message);
    let counts = integration.counts.unwrap_or_default();
    println!(
        "{} of {} events delivered",
        counts.delivered, counts.accepted
    );
    Ok(())
}
