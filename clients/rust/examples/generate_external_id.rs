//! Issues an external ID: `generate_external_id ADDRESS ORGANIZATION`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use siem_client::{ChannelOptions, Client, v1::GenerateExternalIdRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization] = &arguments[..] else {
        return Err("usage: generate_external_id ADDRESS ORGANIZATION".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let answer = client.generate_external_id(GenerateExternalIdRequest {
        organization_id: organization.clone(),
    });
    println!("{}", answer.await?.external_id);
    Ok(())
}
