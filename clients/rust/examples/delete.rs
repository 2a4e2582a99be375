//! Removes an integration: `delete ADDRESS ORGANIZATION`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use siem_client::{ChannelOptions, Client, v1::DeleteRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization] = &arguments[..] else {
        return Err("usage: delete ADDRESS ORGANIZATION".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let answer = client.delete(DeleteRequest {
        organization_id: organization.clone(),
        // With it the call may be repeated after a lost answer.
        allow_missing: true,
        ..DeleteRequest::default()
    });
    let counts = answer.await?.counts.unwrap_or_default();
    println!(
        "{} events were delivered, {} discarded",
        counts.delivered, counts.discarded
    );
    Ok(())
}
