//! Lists all integrations, page by page: `list ADDRESS`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use siem_client::{ChannelOptions, Client, status_of, v1::ListRequest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address] = &arguments[..] else {
        return Err("usage: list ADDRESS".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let mut request = ListRequest {
        page_size: 100,
        ..ListRequest::default()
    };
    loop {
        let page = client.list(request.clone()).await?;
        for integration in page.integrations {
            let status = status_of(&integration.status.unwrap_or_default());
            println!("{} {}", integration.organization_id, status.as_str_name());
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    Ok(())
}
