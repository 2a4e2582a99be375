//! Follows the statuses of all integrations: `watch_status ADDRESS [RESUME_TOKEN]`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error};

use siem_client::{ChannelOptions, Client, StatusEvent, status_of};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address = arguments
        .next()
        .ok_or("usage: watch_status ADDRESS [RESUME_TOKEN]")?;
    let client = Client::connect(&ChannelOptions::new(address))?;
    let mut watch = client.watch_status(vec![]);
    if let Some(token) = arguments.next() {
        watch = watch.resume_after(token);
    }
    loop {
        match watch.next().await? {
            StatusEvent::Snapshot(snapshot) => {
                println!("{} integrations", snapshot.statuses.len());
            }
            StatusEvent::Current(current) => {
                let status = current.status.unwrap_or_default();
                println!(
                    "{} {} {}",
                    current.organization_id,
                    status_of(&status).as_str_name(),
                    status.message
                );
            }
            StatusEvent::Deleted(deleted) => println!("{} deleted", deleted.organization_id),
            StatusEvent::Absent(absent) => {
                println!("{} has no integration", absent.organization_id);
            }
        }
        // A later run that is given this token continues here.
        println!("resume token {}", watch.resume_token());
    }
}
