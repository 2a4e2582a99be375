//! Output of `siem-relay ctl`: text for human readers, or JSON.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use siem_client::{SiemError, StatusEvent, status_of, v1};

use super::failure::code_name;

/// Something to print.
pub(super) enum Shown<'a> {
    Integration(&'a v1::Integration),
    Configured(&'a v1::ConfigureResponse),
    Test(&'a v1::SendTestResponse),
    /// Organization and final counts; None if there was no integration.
    Deleted(&'a str, Option<&'a v1::EventCounts>),
    /// Event of a status stream, and the token that continues after it.
    Event(&'a StatusEvent, &'a str),
    /// End of a snapshot, with the token.
    Synced(&'a str),
    /// A further snapshot follows.
    Reset,
    /// A status stream is interrupted.
    Disconnected(&'a SiemError),
    Reconnected,
}

/// Standard output, in one of the formats.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) is_json: bool,
}

impl Output {
    pub(super) fn print(self, shown: &Shown<'_>) -> io::Result<()> {
        match self.is_json {
            true => writeln!(io::stdout(), "{}", shown.json()),
            false => write!(io::stdout(), "{}", shown.text()),
        }
    }

    /// Prints a page of integrations.
    pub(super) fn print_page(
        self,
        table: &mut Table,
        integrations: &[v1::Integration],
    ) -> io::Result<()> {
        match self.is_json {
            true => integrations
                .iter()
                .try_for_each(|each| self.print(&Shown::Integration(each))),
            false => write!(io::stdout(), "{}", table.page(integrations)),
        }
    }
}

impl Shown<'_> {
    fn text(&self) -> String {
        match self {
            Self::Integration(integration) => integration_text(integration),
            Self::Configured(answer) => {
                let integration = answer.integration.clone().unwrap_or_default();
                let mut text = integration_text(&integration);
                text.push_str(&checks_text(&answer.checks));
                text.push_str(&warnings_text(&answer.warnings));
                text
            }
            Self::Test(verdict) => test_text(verdict),
            Self::Deleted(organization, None) => {
                format!("{organization} has no integration\n")
            }
            Self::Deleted(organization, Some(counts)) => format!(
                "{organization} was deleted: {} accepted, {} delivered, {} expired, {} discarded\n",
                counts.accepted, counts.delivered, counts.expired, counts.discarded
            ),
            Self::Event(event, _) => event_text(event),
            Self::Synced(_) => "-- these are the current statuses; changes follow\n".to_owned(),
            Self::Reset => "-- forget the above: the current statuses follow again\n".to_owned(),
            Self::Disconnected(error) => format!(
                "-- not connected ({}: {}); connecting again\n",
                code_name(error.code),
                clean(&error.message)
            ),
            Self::Reconnected => "-- connected; continues after the last event\n".to_owned(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Integration(integration) => integration_json(integration),
            Self::Configured(answer) => json!({
                "integration": answer.integration.as_ref().map(integration_json),
                "checks": answer.checks.iter().map(check_json).collect::<Vec<_>>(),
                "warnings": answer.warnings,
            }),
            Self::Test(verdict) => test_json(verdict),
            Self::Deleted(organization, counts) => json!({
                "organization_id": organization,
                "counts": counts.map(counts_json),
            }),
            Self::Event(event, token) => event_json(event, token),
            Self::Synced(token) => json!({ "event": "synced", "resume_token": token }),
            Self::Reset => json!({ "event": "reset" }),
            Self::Disconnected(error) => json!({
                "event": "disconnected",
                "code": code_name(error.code),
                "message": error.message,
            }),
            Self::Reconnected => json!({ "event": "reconnected" }),
        }
    }
}

/// Text of the service or of AWS, which must not control the terminal or begin a line.
pub(super) fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' | '\\' => cleaned.push(character),
            _ => cleaned.extend(character.escape_debug()),
        }
    }
    cleaned
}

fn short(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_owned()
}

/// Reason without its prefix; empty if there is none.
fn reason_of(status: &v1::IntegrationStatus) -> String {
    match v1::StatusReason::try_from(status.reason) {
        Ok(v1::StatusReason::Unspecified) => String::new(),
        Ok(reason) => short(reason.as_str_name(), "STATUS_REASON_"),
        Err(_) => format!("reason {}", status.reason),
    }
}

fn status_name(status: &v1::IntegrationStatus) -> String {
    short(status_of(status).as_str_name(), "STATUS_")
}

fn time(timestamp: siem_client::Timestamp) -> Option<Timestamp> {
    Timestamp::new(timestamp.seconds, timestamp.nanos).ok()
}

/// Time in seconds, and its distance from now. A dash if it is not set.
fn time_text(timestamp: Option<siem_client::Timestamp>) -> String {
    let Some(time) = timestamp.and_then(time) else {
        return "-".to_owned();
    };
    let second = Timestamp::from_second(time.as_second()).unwrap_or(time);
    format!("{second} ({})", distance(Timestamp::now(), time))
}

/// Distance of a time from now, in its largest unit.
fn distance(now: Timestamp, time: Timestamp) -> String {
    let seconds = time.as_second() - now.as_second();
    let (count, unit) = match seconds.unsigned_abs() {
        seconds if seconds < 120 => (seconds, "s"),
        seconds if seconds < 7_200 => (seconds / 60, "min"),
        seconds if seconds < 172_800 => (seconds / 3_600, "h"),
        seconds => (seconds / 86_400, "d"),
    };
    match seconds {
        1.. => format!("in {count} {unit}"),
        _ => format!("{count} {unit} ago"),
    }
}

fn time_json(timestamp: Option<siem_client::Timestamp>) -> Value {
    let time = timestamp.and_then(time);
    time.map_or(Value::Null, |time| time.to_string().into())
}

/// Names and values, aligned. Values that are empty are left out.
fn pairs(pairs: &[(&str, String)]) -> String {
    let shown = pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    shown
        .map(|(name, value)| format!("{name:width$}  {value}\n"))
        .collect()
}

fn unless_dash(text: String) -> String {
    match text == "-" {
        true => String::new(),
        false => text,
    }
}

fn integration_text(integration: &v1::Integration) -> String {
    let status = integration.status.clone().unwrap_or_default();
    let counts = integration.counts.unwrap_or_default();
    let name = match reason_of(&status) {
        reason if reason.is_empty() => status_name(&status),
        reason => format!("{} ({reason})", status_name(&status)),
    };
    let aws = [&status.aws_error_code, &status.aws_request_id].map(|text| clean(text));
    let hint = |hint: &str, what: &str, time| match hint {
        "" => String::new(),
        hint => format!("…{}, {what} {}", clean(hint), time_text(time)),
    };
    pairs(&[
        ("organization", clean(&integration.organization_id)),
        ("integration", clean(&integration.integration_id)),
        ("status", name),
        ("since", time_text(status.since_time)),
        ("message", clean(&status.message)),
        ("AWS error", aws.join(" ").trim().to_owned()),
        ("last attempt", time_text(status.last_attempt_time)),
        ("last delivery", time_text(status.last_delivery_time)),
        ("next retry", time_text(status.next_retry_time)),
        ("accepted", counts.accepted.to_string()),
        ("delivered", counts.delivered.to_string()),
        ("expired", counts.expired.to_string()),
        ("discarded", counts.discarded.to_string()),
        (
            "pending",
            format!("{} ({} bytes)", counts.pending, counts.pending_bytes),
        ),
        ("oldest pending", time_text(counts.oldest_pending_time)),
        ("counts of", unless_dash(time_text(counts.as_of_time))),
        ("stream", clean(&integration.kinesis_stream_arn)),
        ("role", clean(&integration.role_arn)),
        (
            "external ID",
            hint(
                &integration.external_id_hint,
                "set",
                integration.external_id_set_time,
            ),
        ),
        (
            "previous external ID",
            hint(
                &integration.previous_external_id_hint,
                "used until",
                integration.previous_external_id_expire_time,
            ),
        ),
        ("created", time_text(integration.create_time)),
        ("updated", time_text(integration.update_time)),
        ("etag", clean(&integration.etag)),
    ])
}

const COLUMNS: [&str; 10] = [
    "ORGANIZATION",
    "STATUS",
    "REASON",
    "SINCE",
    "ACCEPTED",
    "DELIVERED",
    "PENDING",
    "OLDEST",
    "NEXT RETRY",
    "MESSAGE",
];

/// Table of integrations, page by page. The first page decides about the widths, so that no more
/// than one page is in memory.
#[derive(Default)]
pub(super) struct Table {
    widths: Option<[usize; COLUMNS.len()]>,
}

impl Table {
    fn page(&mut self, integrations: &[v1::Integration]) -> String {
        let rows: Vec<_> = integrations.iter().map(row).collect();
        let mut text = String::new();
        let widths = *self.widths.get_or_insert_with(|| {
            let header = COLUMNS.map(str::to_owned);
            let all = std::iter::once(&header).chain(&rows);
            let mut widths = [0; COLUMNS.len()];
            for row in all {
                for (width, cell) in widths.iter_mut().zip(row) {
                    *width = (*width).max(cell.chars().count());
                }
            }
            text.push_str(&line(&header, &widths));
            widths
        });
        rows.iter()
            .for_each(|row| text.push_str(&line(row, &widths)));
        text
    }
}

fn row(integration: &v1::Integration) -> [String; COLUMNS.len()] {
    let status = integration.status.clone().unwrap_or_default();
    let counts = integration.counts.unwrap_or_default();
    let now = Timestamp::now();
    let ago = |timestamp: Option<siem_client::Timestamp>| {
        let time = timestamp.and_then(time);
        time.map_or("-".to_owned(), |time| distance(now, time))
    };
    let dash = |text: String| match text.is_empty() {
        true => "-".to_owned(),
        false => text,
    };
    [
        clean(&integration.organization_id),
        status_name(&status),
        dash(reason_of(&status)),
        ago(status.since_time),
        counts.accepted.to_string(),
        counts.delivered.to_string(),
        counts.pending.to_string(),
        ago(counts.oldest_pending_time),
        ago(status.next_retry_time),
        dash(clean(&status.message)),
    ]
}

fn line(row: &[String; COLUMNS.len()], widths: &[usize; COLUMNS.len()]) -> String {
    let cells = row.iter().zip(widths);
    let line: String = cells
        .map(|(cell, width)| format!("{cell:width$}  ", width = *width))
        .collect();
    format!("{}\n", line.trim_end())
}

fn check_name(check: &v1::Check) -> String {
    match v1::CheckName::try_from(check.name) {
        Ok(name) => short(name.as_str_name(), "CHECK_NAME_"),
        Err(_) => format!("check {}", check.name),
    }
}

fn checks_text(checks: &[v1::Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let result = short(check.result().as_str_name(), "CHECK_RESULT_");
        let aws = match (&*check.aws_error_code, &*check.aws_request_id) {
            ("", _) => String::new(),
            (code, request) => format!(" [AWS: {} {}]", clean(code), clean(request)),
        };
        // Writing to a String cannot fail.
        let line = format!(
            "{:22}  {result:7}  {}{aws}",
            check_name(check),
            clean(&check.message)
        );
        let _ = writeln!(text, "{}", line.trim_end());
        if !check.remedy.is_empty() {
            let _ = writeln!(text, "  to do: {}", clean(&check.remedy));
        }
    }
    text
}

fn warnings_text(warnings: &[String]) -> String {
    let lines = warnings.iter();
    lines
        .map(|warning| format!("warning: {}\n", clean(warning)))
        .collect()
}

fn test_text(verdict: &v1::SendTestResponse) -> String {
    let word = match verdict.delivered {
        true => "delivered",
        false => "failed",
    };
    let mut text = match verdict.message.as_str() {
        "" => format!("{word}\n"),
        message => format!("{word}: {}\n", clean(message)),
    };
    text.push_str(&checks_text(&verdict.checks));
    if let Some(receipt) = &verdict.receipt {
        let latency = receipt.latency.unwrap_or_default();
        let millis = latency.seconds * 1000 + i64::from(latency.nanos) / 1_000_000;
        let _ = writeln!(
            text,
            "receipt: event {}, {}, sequence number {}, {millis} ms",
            clean(&receipt.event_id),
            clean(&receipt.shard_id),
            clean(&receipt.sequence_number)
        );
    }
    let status = verdict.status.clone().unwrap_or_default();
    let _ = writeln!(text, "status: {}", status_text(&status));
    text.push_str(&warnings_text(&verdict.warnings));
    text
}

fn status_text(status: &v1::IntegrationStatus) -> String {
    let mut text = status_name(status);
    let reason = reason_of(status);
    if !reason.is_empty() {
        let _ = write!(text, " ({reason})");
    }
    let _ = write!(text, ", since {}", time_text(status.since_time));
    if status.next_retry_time.is_some() {
        let _ = write!(text, ", next retry {}", time_text(status.next_retry_time));
    }
    if !status.message.is_empty() {
        let _ = write!(text, ": {}", clean(&status.message));
    }
    text
}

fn event_text(event: &StatusEvent) -> String {
    match event {
        StatusEvent::Current(current) => {
            let status = current.status.clone().unwrap_or_default();
            let organization = clean(&current.organization_id);
            format!("{organization}  {}\n", status_text(&status))
        }
        StatusEvent::Deleted(deleted) => format!(
            "{}  DELETED, {}\n",
            clean(&deleted.organization_id),
            time_text(deleted.delete_time)
        ),
        StatusEvent::Absent(absent) => {
            format!("{}  has no integration\n", clean(&absent.organization_id))
        }
        // It is shown as its parts.
        StatusEvent::Snapshot(_) => String::new(),
    }
}

fn event_json(event: &StatusEvent, token: &str) -> Value {
    let mut value = match event {
        StatusEvent::Current(current) => json!({
            "event": "current",
            "organization_id": current.organization_id,
            "integration_id": current.integration_id,
            "status": current.status.as_ref().map(status_json),
        }),
        StatusEvent::Deleted(deleted) => json!({
            "event": "deleted",
            "organization_id": deleted.organization_id,
            "integration_id": deleted.integration_id,
            "delete_time": time_json(deleted.delete_time),
        }),
        StatusEvent::Absent(absent) => json!({
            "event": "absent",
            "organization_id": absent.organization_id,
        }),
        StatusEvent::Snapshot(_) => json!({ "event": "snapshot" }),
    };
    value["resume_token"] = token.into();
    value
}

fn integration_json(integration: &v1::Integration) -> Value {
    json!({
        "organization_id": integration.organization_id,
        "integration_id": integration.integration_id,
        "kinesis_stream_arn": integration.kinesis_stream_arn,
        "role_arn": integration.role_arn,
        "external_id_hint": integration.external_id_hint,
        "external_id_set_time": time_json(integration.external_id_set_time),
        "previous_external_id_hint": integration.previous_external_id_hint,
        "previous_external_id_expire_time": time_json(integration.previous_external_id_expire_time),
        "create_time": time_json(integration.create_time),
        "update_time": time_json(integration.update_time),
        "etag": integration.etag,
        "status": integration.status.as_ref().map(status_json),
        "counts": integration.counts.as_ref().map(counts_json),
    })
}

fn status_json(status: &v1::IntegrationStatus) -> Value {
    let reason = v1::StatusReason::try_from(status.reason);
    json!({
        "status": status_of(status).as_str_name(),
        "reason": match reason {
            Ok(reason) => reason.as_str_name().into(),
            Err(_) => Value::from(status.reason),
        },
        "message": status.message,
        "since_time": time_json(status.since_time),
        "last_attempt_time": time_json(status.last_attempt_time),
        "last_delivery_time": time_json(status.last_delivery_time),
        "next_retry_time": time_json(status.next_retry_time),
        "aws_error_code": status.aws_error_code,
        "aws_request_id": status.aws_request_id,
    })
}

fn counts_json(counts: &v1::EventCounts) -> Value {
    json!({
        "accepted": counts.accepted,
        "delivered": counts.delivered,
        "expired": counts.expired,
        "discarded": counts.discarded,
        "pending": counts.pending,
        "pending_bytes": counts.pending_bytes,
        "oldest_pending_time": time_json(counts.oldest_pending_time),
        "filtered": counts.filtered,
        "as_of_time": time_json(counts.as_of_time),
    })
}

fn check_json(check: &v1::Check) -> Value {
    json!({
        "name": check.name().as_str_name(),
        "result": check.result().as_str_name(),
        "message": check.message,
        "remedy": check.remedy,
        "aws_error_code": check.aws_error_code,
        "aws_request_id": check.aws_request_id,
    })
}

fn test_json(verdict: &v1::SendTestResponse) -> Value {
    let receipt = verdict.receipt.as_ref().map(|receipt| {
        let latency = receipt.latency.unwrap_or_default();
        json!({
            "event_id": receipt.event_id,
            "shard_id": receipt.shard_id,
            "sequence_number": receipt.sequence_number,
            "latency_seconds": latency.seconds as f64 + f64::from(latency.nanos) / 1e9,
        })
    });
    json!({
        "delivered": verdict.delivered,
        "message": verdict.message,
        "checks": verdict.checks.iter().map(check_json).collect::<Vec<_>>(),
        "receipt": receipt,
        "status": verdict.status.as_ref().map(status_json),
        "warnings": verdict.warnings,
    })
}

/// Question before a deletion, for a terminal.
pub(super) fn deletion_question(integration: &v1::Integration) -> String {
    let counts = integration.counts.unwrap_or_default();
    format!(
        "{}  {}\n{} pending events will be discarded.\n\
         Are you sure you want to delete this SIEM integration? [yes/no] ",
        clean(&integration.organization_id),
        clean(&integration.kinesis_stream_arn),
        counts.pending
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_does_not_control_the_terminal() {
        assert_eq!(clean("don't \"x\" \\ é 検"), "don't \"x\" \\ é 検");
        assert_eq!(clean("a\u{1b}[31m\nb\u{202e}"), "a\\u{1b}[31m\\nb\\u{202e}");
    }

    #[test]
    fn times_are_near_or_far() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, text) in [
            (0, "0 s ago"),
            (-119, "119 s ago"),
            (-120, "2 min ago"),
            (-7_200, "2 h ago"),
            (-172_800, "2 d ago"),
            (30, "in 30 s"),
        ] {
            let time = Timestamp::from_second(1_000_000 + seconds).unwrap();
            assert_eq!(distance(now, time), text);
        }
    }

    #[test]
    fn values_of_a_later_service_are_shown() {
        let status = v1::IntegrationStatus {
            status: 77,
            reason: 99,
            message: "new".to_owned(),
            ..v1::IntegrationStatus::default()
        };
        assert_eq!(status_text(&status), "UNKNOWN (reason 99), since -: new");
        assert_eq!(status_json(&status)["status"], "STATUS_UNKNOWN");
        assert_eq!(status_json(&status)["reason"], 99);
    }

    #[test]
    fn columns_are_aligned() {
        let integration = |organization: &str| v1::Integration {
            organization_id: organization.to_owned(),
            ..v1::Integration::default()
        };
        let mut table = Table::default();
        let text = table.page(&[integration("a"), integration("longer-than-the-title")]);
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[0].find("STATUS").unwrap();
        assert!(
            lines[1..]
                .iter()
                .all(|line| line[column..].starts_with("UNKNOWN"))
        );
        assert!(!table.page(&[integration("b")]).contains("ORGANIZATION"));
    }
}
