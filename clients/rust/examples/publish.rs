//! Publishes one event in one call: `publish ADDRESS ORGANIZATION`.

#![allow(clippy::print_stdout)]

use std::{env, error::Error, time::SystemTime};

use siem_client::{
    ChannelOptions, Client, Timestamp,
    v1::{Event, IdsDetection, PublishRequest, event::Payload},
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, organization] = &arguments[..] else {
        return Err("usage: publish ADDRESS ORGANIZATION".into());
    };
    let client = Client::connect(&ChannelOptions::new(address))?;
    let event = Event {
        organization_id: organization.clone(),
        network_id: "6f9619ff-8b86-4d01-b42d-00cf4fc964ff".to_owned(),
        device_id: "7d444840-9dc0-41d1-b245-5ffdce74fad2".to_owned(),
        observed_time: Some(Timestamp::from(SystemTime::now())),
        event_id: None,
        payload: Some(Payload::IdsDetection(IdsDetection {
            src_ip: "192.0.2.10".to_owned(),
            dest_ip: "198.51.100.7".to_owned(),
            signature: Some("example".to_owned()),
            ..IdsDetection::default()
        })),
    };
    let answer = client.publish(PublishRequest {
        events: vec![event],
    });
    let answer = answer.await?;
    println!("{} accepted", answer.accepted);
    for rejection in answer.rejections {
        println!("{}: {}", rejection.field, rejection.message);
    }
    Ok(())
}
