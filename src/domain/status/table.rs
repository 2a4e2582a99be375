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

/// When a status stands without a reason; None where it always has one.
fn without_reason(status: Status) -> Option<(&'static str, &'static str)> {
    match status {
        Status::Unknown => Some((
            "no attempt has shown anything yet since the integration was created or changed",
            "sends what comes",
        )),
        Status::Active => Some(("the last attempt got a record through", "goes on")),
        Status::Unauthorized | Status::Failing => None,
    }
}

/// When a reason is given, and what delivery does then. A new reason needs a row here.
fn of_reason(reason: Reason) -> (&'static str, &'static str) {
    const RETRIED: &str = "keeps events, retries 5 s to 5 min later";
    const BACKS_OFF: &str = "keeps events, backs off";
    match reason {
        Reason::AssumeRoleDenied => (
            "STS AssumeRole is denied: role, trust policy or external ID",
            RETRIED,
        ),
        Reason::WriteDenied => (
            "Kinesis denies the write: permission or resource policy",
            RETRIED,
        ),
        Reason::KmsDenied => ("the role may not use the stream's KMS key", RETRIED),
        Reason::StreamNotFound => ("the stream does not exist", RETRIED),
        Reason::KmsUnavailable => (
            "the stream's KMS key is disabled, deleted or not to be found",
            RETRIED,
        ),
        Reason::InvalidConfiguration => (
            "AWS refuses what is configured: a value, or sessions in the stream's region, which may not be enabled in the account",
            RETRIED,
        ),
        Reason::Throttled => (
            "nothing got through for 60 s (`failing-after-seconds`), for throttling",
            "keeps events, slows this integration only",
        ),
        Reason::Unreachable => (
            "nothing got through for 60 s, for time-outs, refused connections or AWS's own errors",
            BACKS_OFF,
        ),
        Reason::LogUnreadable => (
            "the service cannot read its own log of this integration; nothing is to be changed in the customer's account",
            "keeps events until its operator has repaired the storage",
        ),
        Reason::ExternalIdNotRequired => (
            "the role can be assumed without the external ID, or with any (`external-id-proof`)",
            RETRIED,
        ),
        Reason::ServiceUnavailable => (
            "nothing got through for 60 s, for a fault of this service: its credentials, clock or settings; nothing is to be changed in the customer's account",
            "keeps events, retries, and at once when the fault is over; health of `delivery` is NOT_SERVING",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn has_every_status_and_reason_once() {
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

    /// `docs/status.md` repeats the table between two comments; print it anew with
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
