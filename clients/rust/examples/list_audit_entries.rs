//! Prints the newest audit entries of an organization: `list_audit_entries ADDRESS ORGANIZATION`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use siem_client::{ChannelOptions, Client, v1::ListAuditEntriesRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization] = &arguments[..] else {
        return Err("usage: list_audit_entries ADDRESS ORGANIZATION".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let answer = client.list_audit_entries(ListAuditEntriesRequest {
        organization_id: organization.clone(),
        page_size: 10,
        ..ListAuditEntriesRequest::default()
    });
    for entry in answer.await?.entries {
        println!(
            "{} {} by {}",
            entry.time.unwrap_or_default(),
            entry.action().as_str_name(),
            entry.principal
        );
    }
    Ok(())
}
