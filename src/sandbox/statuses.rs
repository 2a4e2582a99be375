//! Statuses of integrations, received by StreamStatus.

use std::time::Duration;

use tokio::sync::watch;

use super::{
    color::{Color, Paint},
    screen::Screen,
};
use siem_client::{
    Channel, StatusEvent, StatusWatch,
    v1::{IntegrationStatus, Status, StatusReason},
};

/// Twice the heartbeat of the service that the sandbox starts.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// State of an organization's integration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum IntegrationState {
    /// Nothing was received yet.
    #[default]
    Unknown,
    /// It exists.
    Present {
        status: Status,
        reason: StatusReason,
        message: String,
        aws: String,
    },
    /// It was deleted.
    Deleted,
}

impl IntegrationState {
    fn of(status: Option<IntegrationStatus>) -> Self {
        let status = status.unwrap_or_default();
        let aws = match (&*status.aws_error_code, &*status.aws_request_id) {
            ("", _) => String::new(),
            (code, "") => code.to_owned(),
            (code, request) => format!("{code}, request {request}"),
        };
        Self::Present {
            aws,
            message: status.message.clone(),
            status: status.status(),
            reason: status.reason(),
        }
    }

    /// Returns whether both have the same status and reason.
    fn is_same_status(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Present { status, reason, .. },
                Self::Present {
                    status: other_status,
                    reason: other_reason,
                    ..
                },
            ) => status == other_status && reason == other_reason,
            _ => self == other,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        matches!(
            self,
            Self::Present {
                status: Status::Active,
                ..
            }
        )
    }

    /// Returns the text without colors, for an error.
    pub(super) fn describe(&self) -> String {
        self.line(Paint::new(false))
    }

    /// Returns the status with reason, message and AWS's error code.
    fn line(&self, paint: Paint) -> String {
        let (status, reason, message, aws) = match self {
            Self::Unknown => return "not known yet".to_owned(),
            Self::Deleted => return paint.color(Color::Yellow, "DELETED"),
            Self::Present {
                status,
                reason,
                message,
                aws,
            } => (status, reason, message, aws),
        };
        let color = match status {
            Status::Active => Color::Green,
            Status::Unauthorized | Status::Failing => Color::Red,
            Status::Unknown | Status::Unspecified | Status::Paused => Color::Yellow,
        };
        let name = status.as_str_name().trim_start_matches("STATUS_");
        let mut line = paint.color(color, name);
        if *reason != StatusReason::Unspecified {
            let reason = reason.as_str_name().trim_start_matches("STATUS_REASON_");
            line.push_str(&format!(" ({reason})"));
        }
        if !message.is_empty() {
            line.push_str(&format!(" {message}"));
        }
        if !aws.is_empty() {
            line.push_str(&paint.color(Color::Dim, format!(" [AWS: {aws}]")));
        }
        line
    }
}

/// Prints each change of every integration, and keeps the state of one organization's in
/// `latest`. Ends only if the service refuses the call.
pub(super) async fn follow(
    channel: Channel,
    organization: String,
    screen: Screen,
    latest: watch::Sender<IntegrationState>,
) {
    let mut watch = StatusWatch::new(channel, Vec::new()).with_silence_limit(SILENCE_LIMIT);
    let mut shown = std::collections::HashMap::new();
    loop {
        let changes: Vec<(String, IntegrationState)> = match watch.next().await {
            Ok(StatusEvent::Snapshot(snapshot)) => {
                let statuses = snapshot.statuses.into_iter();
                let states = statuses.map(|(organization, current)| {
                    (organization, IntegrationState::of(current.status))
                });
                states.collect()
            }
            Ok(StatusEvent::Current(current)) => vec![(
                current.organization_id,
                IntegrationState::of(current.status),
            )],
            Ok(StatusEvent::Deleted(deleted)) => {
                vec![(deleted.organization_id, IntegrationState::Deleted)]
            }
            Ok(StatusEvent::Absent(_)) => continue,
            Err(error) => {
                screen.note(&format!("StreamStatus failed: {error}"));
                return;
            }
        };
        for (changed_organization, state) in changes {
            let changed = shown
                .get(&changed_organization)
                .is_none_or(|before: &IntegrationState| !state.is_same_status(before));
            if changed {
                let paint = screen.paint();
                let title = paint.color(Color::Bold, format!("● {changed_organization}"));
                screen.note(&format!("{title} {}", state.line(paint)));
            }
            if changed_organization == organization {
                latest.send_replace(state.clone());
            }
            shown.insert(changed_organization, state);
        }
    }
}
