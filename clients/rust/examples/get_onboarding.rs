//! Writes the documents that a customer applies: `get_onboarding ADDRESS STREAM_ARN ROLE_NAME EXTERNAL_ID`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error, fs};

use siem_client::{ChannelOptions, Client, v1::GetOnboardingRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, stream_arn, role_name, external_id] = &arguments[..] else {
        return Err("usage: get_onboarding ADDRESS STREAM_ARN ROLE_NAME EXTERNAL_ID".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let answer = client.get_onboarding(GetOnboardingRequest {
        stream: stream_arn.clone(),
        role_name: role_name.clone(),
        external_id: external_id.clone(),
        ..GetOnboardingRequest::default()
    });
    for document in answer.await?.documents {
        fs::write(&document.file_name, document.text)?;
        println!("{}: {}", document.file_name, document.title);
    }
    Ok(())
}
