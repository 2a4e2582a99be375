//! Measures the publisher: `bench ADDRESS EVENTS`, against a server with the integration acme. It prints the
//! throughput from the first send to the last answer, and the growth of the peak of this process's memory.

#![allow(clippy::print_stdout)]

use std::{
    env,
    error::Error,
    fs,
    time::{Duration, Instant, SystemTime},
};

use siem_client::{
    ChannelOptions, Client, PublisherOptions, Timestamp,
    v1::{Event, IdsDetection, event::Payload},
};

const DEVICES: u32 = 100;

fn device(number: u32) -> String {
    format!("00000000-0000-0000-0000-{number:012x}")
}

/// A detection of about 300 bytes.
fn event(number: u32) -> Event {
    Event {
        organization_id: "acme".to_owned(),
        network_id: device(0),
        device_id: device(number % DEVICES),
        observed_time: Some(Timestamp::from(SystemTime::now())),
        event_id: None,
        payload: Some(Payload::IdsDetection(IdsDetection {
            src_ip: "192.0.2.7".to_owned(),
            src_port: Some(1024 + number % 60_000),
            dest_ip: "198.51.100.80".to_owned(),
            dest_port: Some(443),
            proto: "TCP".to_owned(),
            app_proto: "tls".to_owned(),
            signature_id: Some(number),
            signature: Some(format!("detection {number}")),
            category: Some("Misc activity".to_owned()),
            severity: Some(3),
            context_json: r#"{"tls":{"sni":"www.example.com","version":"TLS 1.3"}}"#.to_owned(),
            ..IdsDetection::default()
        })),
    }
}

/// Peak of the memory in MiB (proc_pid_status(5)), and the CPU time in seconds, at 100 ticks a second
/// (proc_pid_stat(5)).
fn usage() -> Result<(f64, f64), Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|rest| rest.split_whitespace().next());
    let kib: f64 = peak.ok_or("the system does not tell the memory")?.parse()?;
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks: Result<Vec<f64>, _> = ticks.map(str::parse).collect();
    Ok((kib / 1024.0, ticks?.iter().sum::<f64>() / 100.0))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [address, events] = &arguments[..] else {
        return Err("usage: bench ADDRESS EVENTS".into());
    };
    let total: u32 = events.parse()?;
    let client = Client::connect(&ChannelOptions::new(address))?;
    let publisher = client.publisher(PublisherOptions::default());
    let (memory, cpu) = usage()?;
    let start = Instant::now();
    for number in 0..total {
        publisher.send(&event(number)).await?;
    }
    publisher.flush(Duration::from_secs(600)).await?;
    let seconds = start.elapsed().as_secs_f64();
    let (memory_after, cpu_after) = usage()?;
    println!("{:?}", publisher.stats());
    println!(
        "{total} events in {seconds:.1} s, {:.0} events/s, {:.1} s of CPU, {:.0} MiB more memory",
        f64::from(total) / seconds,
        cpu_after - cpu,
        memory_after - memory
    );
    publisher.close(Duration::from_secs(30)).await?;
    Ok(())
}
