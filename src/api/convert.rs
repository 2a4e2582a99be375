//! Domain values to messages.

use jiff::Timestamp;

use crate::{
    domain::{
        event::{Rejection, RejectionReason},
        integration::{Progress, Snapshot},
        status::{Reason, Status},
    },
    proto::v1,
    watch::{Message, Update},
};

pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // jiff's fraction has the sign of the time; protobuf's is never negative.
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

/// The status that a filter names; None for one that is never sent.
pub(super) fn status_filter(value: i32) -> Option<Status> {
    match v1::Status::try_from(value).ok()? {
        v1::Status::Unspecified => None,
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
        (Status::Unknown, None) => "No attempt has shown yet whether it works.".to_owned(),
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

pub(super) fn counts(progress: &Progress, oldest: Option<Timestamp>) -> v1::EventCounts {
    let pending = progress.pending();
    v1::EventCounts {
        accepted: progress.accepted(),
        delivered: progress.delivered,
        expired: progress.expired,
        discarded: progress.discarded,
        pending,
        pending_bytes: progress.pending_bytes,
        oldest_pending_time: oldest.filter(|_| pending > 0).map(timestamp),
    }
}

pub(super) fn integration(snapshot: &Snapshot, oldest: Option<Timestamp>) -> v1::Integration {
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
        counts: Some(counts(&snapshot.progress, oldest)),
        previous_external_id_hint: previous.map_or(String::new(), |one| one.hint.to_string()),
        previous_external_id_expire_time: previous.map(|one| timestamp(one.until)),
    }
}

pub(super) fn rejection(index: usize, rejection: Rejection) -> v1::Rejection {
    let reason = match rejection.reason {
        RejectionReason::MissingField | RejectionReason::InvalidField => {
            v1::ErrorReason::InvalidField
        }
        RejectionReason::RecordTooLarge => v1::ErrorReason::RecordTooLarge,
        RejectionReason::MalformedEvent => v1::ErrorReason::MalformedEvent,
    };
    v1::Rejection {
        index: index as u32,
        reason: reason.into(),
        field: rejection.field.into_owned(),
        message: rejection.message.into_owned(),
    }
}

/// An update of a status stream.
pub(super) fn update(message: Message) -> v1::StreamStatusResponse {
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
