//! A CloudEvent, formatted for a terminal. No I/O.

use serde_json::Value;

use super::color::{Color, Paint, sanitized};
use aws_stand_in::Record;

/// Returns three lines, without a line break at the end.
pub(super) fn block(record: &Record, paint: Paint) -> String {
    let Ok(event) = serde_json::from_slice::<Value>(&record.data) else {
        return sanitized(&String::from_utf8_lossy(&record.data));
    };
    let data = &event["data"];
    let bar = paint.color(severity_color(data), "┃");
    let dim = |text: String| paint.color(Color::Dim, text);
    let ids = dim(format!(
        "id {}  device {}  {}",
        text(&event["id"]),
        text(&event["partitionkey"]),
        record.shard_id
    ));
    format!(
        "{bar} {}\n{bar} {}\n{bar} {ids}",
        headline(&event, paint),
        subject(data, paint),
    )
}

fn severity_color(data: &Value) -> Color {
    match data["severity"].as_u64() {
        Some(1) => Color::Red,
        Some(2) => Color::Yellow,
        _ => Color::Cyan,
    }
}

/// Time, sequence, and the two endpoints.
fn headline(event: &Value, paint: Paint) -> String {
    let data = &event["data"];
    let time = text(&event["time"]);
    let clock = time.get(11..23).unwrap_or(&time).trim_end_matches('Z');
    let number = match event["sequence"].as_str() {
        Some(sequence) => format!("#{}", sanitized(sequence.trim_start_matches('0'))),
        None => "test".to_owned(),
    };
    let mut line = format!(
        "{} {}",
        paint.color(Color::Dim, clock),
        paint.color(Color::Bold, format!("{number:<6}"))
    );
    if data["src_ip"].is_string() {
        let proto = text(&data["proto"]);
        let from = endpoint(&data["src_ip"], &data["src_port"]);
        let to = endpoint(&data["dest_ip"], &data["dest_port"]);
        line.push_str(&format!(" {proto} {from} → {to}"));
        if let Some(app_proto) = data["app_proto"].as_str() {
            line.push_str(&format!("  {}", sanitized(app_proto)));
        }
    }
    match data["action"].as_str() {
        Some("blocked") => line.push_str(&format!("  {}", paint.color(Color::Green, "blocked"))),
        Some(action) => line.push_str(&format!("  {}", sanitized(action))),
        None => {}
    }
    line
}

/// `192.0.2.1:443`, `[2001:db8::1]:443`, or the address alone.
fn endpoint(address: &Value, port: &Value) -> String {
    let address = text(address);
    match (port.as_u64(), address.contains(':')) {
        (None, _) => address,
        (Some(port), true) => format!("[{address}]:{port}"),
        (Some(port), false) => format!("{address}:{port}"),
    }
}

/// Signature of a detection, range of a gap, or message of a test event.
fn subject(data: &Value, paint: Paint) -> String {
    if data["first_sequence"].is_u64() {
        return paint.color(
            Color::Red,
            format!(
                "gap: {} events from #{} are not delivered ({})",
                data["count"],
                data["first_sequence"],
                text(&data["reason"])
            ),
        );
    }
    let Some(signature) = data["signature"].as_str() else {
        return text(&data["message"]);
    };
    let signature = paint.color(Color::Bold, sanitized(signature));
    let rule = [&data["gid"], &data["signature_id"], &data["rev"]].map(number);
    let category = text(&data["category"]);
    format!(
        "{signature}  {} {category}",
        paint.color(Color::Dim, format!("[{}]", rule.join(":")))
    )
}

fn text(value: &Value) -> String {
    sanitized(value.as_str().unwrap_or_default())
}

fn number(value: &Value) -> String {
    value
        .as_u64()
        .map_or_else(|| "-".to_owned(), |n| n.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(event: &Value) -> String {
        let record = Record {
            index: 0,
            shard_id: "shardId-000000000001".into(),
            sequence_number: "1".into(),
            partition_key: "device".into(),
            data: event.to_string().into(),
            arrived_at_ms: 0,
        };
        block(&record, Paint::new(false))
    }

    #[test]
    fn a_detection_is_three_lines() {
        let event = json!({
            "id": "an-id", "partitionkey": "device", "time": "2026-01-01T10:20:30.123456Z",
            "sequence": "00000000000000000042",
            "data": {
                "type": "TYPE_DETECTION", "src_ip": "2001:db8::1", "src_port": 5, "dest_ip": "192.0.2.1",
                "dest_port": 443, "proto": "TCP", "app_proto": "tls", "action": "blocked", "gid": 1,
                "signature_id": 1000001, "rev": 2, "signature": "Ex\u{1b}ample", "category": "Misc", "severity": 1,
            },
        });
        assert_eq!(
            shown(&event),
            "┃ 10:20:30.123 #42    TCP [2001:db8::1]:5 → 192.0.2.1:443  tls  blocked\n\
             ┃ Ex\u{fffd}ample  [1:1000001:2] Misc\n\
             ┃ id an-id  device device  shardId-000000000001"
        );
    }

    #[test]
    fn events_without_ports_or_signature_are_formatted() {
        let icmp = json!({"time": "x", "data": {"src_ip": "192.0.2.1", "dest_ip": "192.0.2.2", "proto": "ICMP"}});
        assert!(shown(&icmp).contains("ICMP 192.0.2.1 → 192.0.2.2"));
        let test = json!({"data": {"type": "TYPE_TEST", "message": "This is a test."}});
        assert!(shown(&test).contains("This is a test."));
        let gap = json!({"data": {"first_sequence": 3, "count": 2, "reason": "RECORD_REFUSED"}});
        assert!(shown(&gap).contains("gap: 2 events from #3"));
        assert!(shown(&json!([])).contains("test"));
    }
}
