//! Publishes many events over PublishStream: `publisher ADDRESS ORGANIZATION COUNT`.

#![allow(clippy::print_stdout)]

use std::{
    env,
    error::Error,
    time::{Duration, SystemTime},
};

use siem_client::{
    ChannelOptions, Client, PublisherOptions, Timestamp,
    v1::{Event, IdsDetection, event::Payload},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization, count] = &arguments[..] else {
        return Err("usage: publisher ADDRESS ORGANIZATION COUNT".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let publisher = client.publisher(PublisherOptions::default());
    let mut receipts = Vec::new();
    for number in 0..count.parse::<u32>()? {
        let event = Event {
            organization_id: organization.clone(),
            network_id: "6f9619ff-8b86-4d01-b42d-00cf4fc964ff".to_owned(),
            device_id: "7d444840-9dc0-41d1-b245-5ffdce74fad2".to_owned(),
            observed_time: Some(Timestamp::from(SystemTime::now())),
            event_id: None,
            payload: Some(Payload::IdsDetection(IdsDetection {
                src_ip: "192.0.2.10".to_owned(),
                dest_ip: "198.51.100.7".to_owned(),
                signature: Some(format!("example {number}")),
                ..IdsDetection::default()
            })),
        };
        // Waits while too many are unanswered. The receipts may be dropped: `stats` counts them.
        receipts.push(publisher.send(&event).await?);
    }
    // Names the events without an answer after this time.
    publisher.flush(Duration::from_secs(60)).await?;
    println!("{} accepted", publisher.stats().accepted);
    publisher.close(Duration::from_secs(30)).await?;
    for (number, receipt) in receipts.into_iter().enumerate() {
        if let Some(rejection) = receipt.await?.rejection {
            println!("{number}: {}: {}", rejection.field, rejection.message);
        }
    }
    Ok(())
}
