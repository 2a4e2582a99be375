//! Conversion of domain values into protobuf messages.

use std::{borrow::Cow, time::Duration};

use jiff::Timestamp;

use crate::{
    domain::{
        event::{Rejection, RejectionReason},
        integration::{Integration, Progress, Snapshot},
        status::{Fault, Meaning, Reason, Status},
        verdict::{AssumedWith, DryRun, ExternalIdProof, TestVerdict, ValidationReport},
    },
    proto::v1,
    watch::{Message, Update},
};

pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // A fraction in jiff has the sign of the time; in protobuf it is never negative.
    let nanos = i64::from(time.subsec_nanosecond());
    prost_types::Timestamp {
        seconds: time.as_second() - i64::from(nanos < 0),
        nanos: nanos.rem_euclid(1_000_000_000) as i32,
    }
}

fn status_value(status: Status) -> v1::Status {
    match status {
        Status::Unknown => v1::Status::Unknown,
        Status::Active => v1::Status::Active,
        Status::Unauthorized => v1::Status::Unauthorized,
        Status::Failing => v1::Status::Failing,
    }
}

/// Returns the status that a filter names; None for a number that is no status.
pub(super) fn status_filter(value: i32) -> Option<Status> {
    match v1::Status::try_from(value).ok()? {
        v1::Status::Unspecified | v1::Status::Paused => None,
        v1::Status::Unknown => Some(Status::Unknown),
        v1::Status::Active => Some(Status::Active),
        v1::Status::Unauthorized => Some(Status::Unauthorized),
        v1::Status::Failing => Some(Status::Failing),
    }
}

fn reason_value(reason: Option<Reason>) -> v1::StatusReason {
    match reason {
        None => v1::StatusReason::Unspecified,
        Some(Reason::AssumeRoleDenied) => v1::StatusReason::AssumeRoleDenied,
        Some(Reason::WriteDenied) => v1::StatusReason::WriteDenied,
        Some(Reason::KmsDenied) => v1::StatusReason::KmsDenied,
        Some(Reason::StreamNotFound) => v1::StatusReason::StreamNotFound,
        Some(Reason::KmsUnavailable) => v1::StatusReason::KmsUnavailable,
        Some(Reason::InvalidConfiguration) => v1::StatusReason::InvalidConfiguration,
        Some(Reason::Throttled) => v1::StatusReason::Throttled,
        Some(Reason::Unreachable) => v1::StatusReason::Unreachable,
        Some(Reason::LogUnreadable) => v1::StatusReason::LogUnreadable,
        Some(Reason::ExternalIdNotRequired) => v1::StatusReason::ExternalIdNotRequired,
        Some(Reason::ServiceUnavailable) => v1::StatusReason::ServiceUnavailable,
    }
}

pub(super) fn status(snapshot: &Snapshot) -> v1::IntegrationStatus {
    let detail = &snapshot.status;
    let message = match (detail.status, detail.reason) {
        (_, Some(reason)) => {
            let code = detail.aws_error_code.as_deref().unwrap_or_default();
            let remedy = reason.remedy_for(&snapshot.integration, code);
            format!("{}. {remedy}", reason.message())
        }
        (Status::Unknown, None) if detail.last_attempt.is_none() => {
            "No delivery has been attempted yet.".to_owned()
        }
        (Status::Unknown, None) => "No attempt has been conclusive yet.".to_owned(),
        (_, None) => String::new(),
    };
    v1::IntegrationStatus {
        status: status_value(detail.status).into(),
        reason: reason_value(detail.reason).into(),
        message,
        since_time: Some(timestamp(detail.since)),
        last_attempt_time: detail.last_attempt.map(timestamp),
        last_delivery_time: detail.last_delivery.map(timestamp),
        next_retry_time: detail.next_retry.map(timestamp),
        aws_error_code: detail.aws_error_code.as_deref().unwrap_or_default().into(),
        aws_request_id: detail.aws_request_id.as_deref().unwrap_or_default().into(),
    }
}

/// `oldest` is the acceptance time of the oldest pending event, and `as_of` the time of the counts.
pub(super) fn counts(
    progress: &Progress,
    oldest: Option<Timestamp>,
    as_of: Option<Timestamp>,
) -> v1::EventCounts {
    let pending = progress.pending();
    v1::EventCounts {
        accepted: progress.accepted(),
        delivered: progress.delivered,
        expired: progress.expired,
        discarded: progress.discarded,
        pending,
        pending_bytes: progress.pending_bytes,
        oldest_pending_time: oldest.filter(|_| pending > 0).map(timestamp),
        filtered: 0,
        as_of_time: as_of.map(timestamp),
    }
}

pub(super) fn integration(
    snapshot: &Snapshot,
    oldest: Option<Timestamp>,
    as_of: Option<Timestamp>,
) -> v1::Integration {
    let integration = &snapshot.integration;
    let previous = integration.previous_at(Timestamp::now());
    v1::Integration {
        organization_id: integration.organization_id.as_str().to_owned(),
        integration_id: integration.integration_id.to_string(),
        kinesis_stream_arn: integration.stream_arn.as_str().to_owned(),
        role_arn: integration.role_arn.as_str().to_owned(),
        external_id_hint: integration.external_id_hint.to_string(),
        external_id_set_time: Some(timestamp(integration.external_id_set_at)),
        create_time: Some(timestamp(integration.created_at)),
        update_time: Some(timestamp(integration.updated_at)),
        etag: integration.etag(),
        status: Some(status(snapshot)),
        counts: Some(counts(&snapshot.progress, oldest, as_of)),
        previous_external_id_hint: previous.map_or(String::new(), |id| id.hint.to_string()),
        previous_external_id_expire_time: previous.map(|id| timestamp(id.until)),
    }
}

pub(super) fn rejection(index: usize, rejection: Rejection) -> v1::Rejection {
    let reason = match rejection.reason {
        RejectionReason::MissingField | RejectionReason::InvalidField => {
            v1::ErrorReason::InvalidField
        }
        RejectionReason::RecordTooLarge => v1::ErrorReason::RecordTooLarge,
        RejectionReason::MalformedEvent => v1::ErrorReason::MalformedEvent,
        RejectionReason::Overloaded => v1::ErrorReason::Overloaded,
        RejectionReason::PermissionDenied => v1::ErrorReason::PermissionDenied,
        RejectionReason::RateLimited => v1::ErrorReason::RateLimited,
    };
    v1::Rejection {
        index: index as u32,
        reason: reason.into(),
        field: rejection.field.into_owned(),
        message: rejection.message.into_owned(),
    }
}

pub(super) fn status_update(message: Message) -> v1::StreamStatusResponse {
    use v1::stream_status_response::Event;
    let event = match message.update {
        Update::Current(snapshot) => Event::Current(v1::StatusCurrent {
            organization_id: snapshot.integration.organization_id.as_str().to_owned(),
            integration_id: snapshot.integration.integration_id.to_string(),
            status: Some(status(&snapshot)),
        }),
        Update::Deleted(tombstone) => Event::Deleted(v1::StatusDeleted {
            organization_id: tombstone.organization_id.as_str().to_owned(),
            integration_id: tombstone.integration_id.to_string(),
            delete_time: Some(timestamp(tombstone.deleted_at)),
        }),
        Update::Absent(organization_id) => Event::Absent(v1::StatusAbsent {
            organization_id: organization_id.as_str().to_owned(),
        }),
        Update::Synced => Event::Synced(v1::StatusSynced {}),
        Update::Reset => Event::Reset(v1::StatusReset {}),
        Update::Heartbeat => Event::Heartbeat(v1::StatusHeartbeat {}),
    };
    v1::StreamStatusResponse {
        resume_token: message.resume_token,
        event: Some(event),
    }
}

pub(super) fn test_response(verdict: &TestVerdict) -> v1::SendTestResponse {
    let report = &verdict.report;
    let receipt = match &report.write {
        Some(Ok(receipt)) => Some(v1::TestReceipt {
            event_id: verdict.event_id.to_string(),
            shard_id: receipt.shard_id.to_string(),
            sequence_number: receipt.sequence_number.to_string(),
            latency: Some(duration(report.latency)),
        }),
        Some(Err(_)) | None => None,
    };
    let integration = &verdict.after.integration;
    let fault = report.fault();
    let write = match (&report.write, &report.assume_role) {
        (Some(result), _) => check(
            v1::CheckName::WriteRecord,
            result.as_ref().err(),
            integration,
        ),
        (None, Err(_)) => skipped(v1::CheckName::WriteRecord, NOT_ASSUMED),
        (None, Ok(_)) => skipped(
            v1::CheckName::WriteRecord,
            "nothing is written with a role that does not require the External ID",
        ),
    };
    v1::SendTestResponse {
        delivered: receipt.is_some(),
        message: match fault {
            Some(fault) => explain(&fault, integration).0.to_owned(),
            None => "Delivered - the test event is in the stream".to_owned(),
        },
        checks: vec![
            assume_role_check(&report.assume_role, integration),
            external_id_check(report.external_id.as_ref()),
            write,
        ],
        receipt,
        status: Some(status(&verdict.after)),
        warnings: warnings(integration),
    }
}

/// Checks of a Configure with `validate_only`.
pub(super) fn validation_checks(
    report: &ValidationReport,
    integration: &Integration,
) -> Vec<v1::Check> {
    let write = match &report.write {
        Some(Ok(DryRun::WouldSucceed)) => check(v1::CheckName::WriteRecord, None, integration),
        Some(Ok(DryRun::Written)) => skipped(
            v1::CheckName::WriteRecord,
            "the endpoint does not support DryRun: it wrote the record, a test event",
        ),
        Some(Err(fault)) => check(v1::CheckName::WriteRecord, Some(fault), integration),
        None => skipped(v1::CheckName::WriteRecord, NOT_ASSUMED),
    };
    vec![
        assume_role_check(&report.assume_role, integration),
        external_id_check(report.external_id.as_ref()),
        write,
        skipped(
            v1::CheckName::UseKmsKey,
            "AWS does not document whether DryRun checks the stream's KMS key; SendTest checks it",
        ),
    ]
}

/// Warnings about settings that are valid but seldom intended.
pub(super) fn warnings(integration: &Integration) -> Vec<String> {
    let accounts = (
        integration.role_arn.account(),
        integration.stream_arn.account(),
    );
    match accounts {
        (role, stream) if role != stream => vec![format!(
            "the role is in account {role} and the stream in account {stream}: the stream needs a resource policy that allows the role to write"
        )],
        _ => Vec::new(),
    }
}

const NOT_ASSUMED: &str = "the role could not be assumed";

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.as_secs() as i64,
        nanos: duration.subsec_nanos() as i32,
    }
}

fn skipped(name: v1::CheckName, message: &str) -> v1::Check {
    v1::Check {
        name: name.into(),
        result: v1::CheckResult::Skipped.into(),
        message: message.to_owned(),
        ..v1::Check::default()
    }
}

fn passed(name: v1::CheckName) -> v1::Check {
    v1::Check {
        name: name.into(),
        result: v1::CheckResult::Passed.into(),
        ..v1::Check::default()
    }
}

fn check(name: v1::CheckName, fault: Option<&Fault>, integration: &Integration) -> v1::Check {
    let Some(fault) = fault else {
        return passed(name);
    };
    let (message, remedy) = explain(fault, integration);
    v1::Check {
        name: name.into(),
        result: v1::CheckResult::Failed.into(),
        message: message.to_owned(),
        remedy: remedy.into_owned(),
        aws_error_code: fault.code().to_owned(),
        aws_request_id: fault.request_id.as_deref().unwrap_or_default().to_owned(),
    }
}

fn assume_role_check(result: &Result<AssumedWith, Fault>, integration: &Integration) -> v1::Check {
    match result {
        Ok(AssumedWith::Current) => passed(v1::CheckName::AssumeRole),
        Ok(AssumedWith::Previous) => v1::Check {
            message: "with the previous External ID; the new one is refused".to_owned(),
            remedy: Reason::AssumeRoleDenied.remedy().to_owned(),
            ..passed(v1::CheckName::AssumeRole)
        },
        Err(fault) => check(v1::CheckName::AssumeRole, Some(fault), integration),
    }
}

fn external_id_check(proof: Option<&ExternalIdProof>) -> v1::Check {
    const NAME: v1::CheckName = v1::CheckName::ExternalIdRequired;
    let failed = |message: &str| v1::Check {
        name: NAME.into(),
        result: v1::CheckResult::Failed.into(),
        message: message.to_owned(),
        remedy: Reason::ExternalIdNotRequired.remedy().to_owned(),
        ..v1::Check::default()
    };
    match proof {
        None => skipped(NAME, NOT_ASSUMED),
        Some(ExternalIdProof::Required) => passed(NAME),
        Some(ExternalIdProof::NotRequired) => {
            failed("the role can be assumed without an External ID")
        }
        Some(ExternalIdProof::AnyAccepted) => {
            failed("the role can be assumed with any External ID")
        }
        Some(ExternalIdProof::Unclear(fault)) => v1::Check {
            aws_error_code: fault.code().to_owned(),
            aws_request_id: fault.request_id.as_deref().unwrap_or_default().to_owned(),
            ..skipped(NAME, "AWS gave no conclusive answer; test again")
        },
    }
}

/// Returns message and remedy for a fault.
fn explain(fault: &Fault, integration: &Integration) -> (&'static str, Cow<'static, str>) {
    match fault.meaning() {
        Meaning::Refused(reason) => {
            let remedy = reason.remedy_for(integration, fault.code());
            (reason.message(), remedy)
        }
        Meaning::Throttled => (
            "Throttled - the stream accepts no more records at the moment",
            Reason::Throttled.remedy().into(),
        ),
        Meaning::Unreachable => (
            "Unreachable - AWS gave no usable answer",
            "Try again in a minute; check the network between this service and AWS if it lasts."
                .into(),
        ),
        Meaning::SessionInvalid | Meaning::Ours => (
            "Not tested - this service cannot call AWS at the moment",
            "Nothing to change in your account: the operator of this service has to repair it, for example its AWS credentials, its clock or its limit of open files."
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_timestamp_has_no_negative_fraction(micros in -62_135_596_800_000_000i64..253_402_300_799_999_999) {
            let message = timestamp(Timestamp::from_microsecond(micros).unwrap());
            prop_assert!((0..1_000_000_000).contains(&message.nanos));
            prop_assert_eq!(message.seconds * 1_000_000 + i64::from(message.nanos) / 1000, micros);
        }
    }
}
