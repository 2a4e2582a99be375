//! The table of statuses as Markdown, for `docs/status.md`.

use std::fmt::Write as _;

use super::{Reason, Status};

/// Returns the table of all statuses and reasons. `docs/status.md` has it between the comments
/// `<!-- statuses -->` and `<!-- /statuses -->`.
pub fn status_table_markdown() -> String {
    let mut table = String::from(
        "| status | reason | when | what delivery does |\n\
         | --- | --- | --- | --- |\n",
    );
    for status in Status::ALL {
        let reasons = Reason::ALL.into_iter().filter(|one| one.status() == status);
        let mut rows: Vec<_> = reasons
            .map(|reason| (format!("`{}`", reason.as_str()), of_reason(reason)))
            .collect();
        if let Some(row) = without_reason(status) {
            rows.insert(0, (String::new(), row));
        }
        for (reason, (when, delivery)) in rows {
            let status = status.as_str();
            // Writing to a String cannot fail.
            let _ = writeln!(table, "| `{status}` | {reason} | {when} | {delivery} |");
        }
    }
    table
}

/// Condition and delivery of a status without a reason; None if it always has one.
fn without_reason(status: Status) -> Option<(&'static str, &'static str)> {
    match status {
        Status::Unknown => Some((
            "no attempt has given a clear result since the integration was created or changed",
            "sends events",
        )),
        Status::Active => Some(("the last attempt delivered a record", "continues")),
        Status::Unauthorized | Status::Failing => None,
    }
}

/// Condition of a reason, and the behaviour of delivery.
fn of_reason(reason: Reason) -> (&'static str, &'static str) {
    const RETRIES: &str = "keeps events, retries every 5 s to 5 min";
    const BACKS_OFF: &str = "keeps events, retries with backoff";
    match reason {
        Reason::AssumeRoleDenied => (
            "STS AssumeRole is denied: role, trust policy or external ID",
            RETRIES,
        ),
        Reason::WriteDenied => (
            "Kinesis denies the write: permission or resource policy",
            RETRIES,
        ),
        Reason::KmsDenied => ("the role may not use the stream's KMS key", RETRIES),
        Reason::StreamNotFound => ("the stream does not exist", RETRIES),
        Reason::KmsUnavailable => (
            "the stream's KMS key is disabled, deleted or not found",
            RETRIES,
        ),
        Reason::InvalidConfiguration => (
            "AWS refuses a configured value, or refuses sessions in the stream's region, which may not be enabled in the account",
            RETRIES,
        ),
        Reason::Throttled => (
            "nothing was delivered for 60 s (`failing-after-seconds`) because of throttling",
            "keeps events, slows this integration only",
        ),
        Reason::Unreachable => (
            "nothing was delivered for 60 s because of time-outs, refused connections or internal errors of AWS",
            BACKS_OFF,
        ),
        Reason::LogUnreadable => (
            "the service cannot read the events that it has stored for this integration; nothing to change in the customer's account",
            "keeps events until the operator has repaired the storage",
        ),
        Reason::ExternalIdNotRequired => (
            "the role can be assumed without the external ID or with any (setting `external-id-proof`)",
            RETRIES,
        ),
        Reason::ServiceUnavailable => (
            "nothing was delivered for 60 s because of a fault of this service (its credentials, clock or settings); nothing to change in the customer's account",
            "keeps events, retries with backoff and as soon as the fault is over; gRPC health of `delivery` is NOT_SERVING",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_status_and_reason_has_one_row() {
        let table = status_table_markdown();
        for reason in Reason::ALL {
            let row = format!("| `{}` | `{}` |", reason.status().as_str(), reason.as_str());
            assert_eq!(table.matches(&row).count(), 1, "{row}");
        }
        for status in Status::ALL {
            let row = format!("| `{}` |", status.as_str());
            assert!(table.contains(&row), "{row}");
        }
    }

    /// `docs/status.md` repeats the table between two comments; print the current one with
    /// `cargo test docs_have_the_status_table`.
    #[test]
    fn docs_have_the_status_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status.md");
        let page = fs::read_to_string(path).unwrap();
        let (_, rest) = page
            .split_once("<!-- statuses -->")
            .expect("an opening comment");
        let (section, _) = rest
            .split_once("<!-- /statuses -->")
            .expect("a closing comment");
        let table = status_table_markdown();
        assert!(
            section.trim() == table.trim(),
            "the status table of docs/status.md is stale; it should be\n\n{table}"
        );
    }
}
