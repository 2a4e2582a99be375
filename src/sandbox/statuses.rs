//! The integration's status, as StreamStatus tells it.

use std::time::Duration;

use tokio::sync::watch;

use super::screen::{Color, Paint, Screen};
use siem_client::{
    Channel, StatusEvent, StatusWatch,
    v1::{IntegrationStatus, Status, StatusReason},
};

/// Twice the heartbeat of the service that the sandbox starts.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// How an organization's integration stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing was told yet.
    #[default]
    Untold,
    /// It is there.
    Present {
        status: Status,
        reason: StatusReason,
        message: String,
        aws: String,
    },
    /// It is not there any more.
    Deleted,
}

impl Standing {
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

    /// Whether a person sees no difference.
    fn looks_like(&self, other: &Self) -> bool {
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

    /// Without colors, for an error.
    pub(super) fn describe(&self) -> String {
        self.line(Paint::new(false))
    }

    /// The badge and what explains it.
    fn line(&self, paint: Paint) -> String {
        let (status, reason, message, aws) = match self {
            Self::Untold => return "not known".to_owned(),
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
            Status::Unknown | Status::Unspecified => Color::Yellow,
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

/// Shows each change of every integration, and keeps the organization's own in `latest`,
/// until the call is refused. Never ends otherwise.
pub(super) async fn follow(
    channel: Channel,
    organization: String,
    screen: Screen,
    latest: watch::Sender<Standing>,
) {
    let mut watch = StatusWatch::new(channel, Vec::new(), SILENCE_LIMIT);
    let mut shown = std::collections::HashMap::new();
    loop {
        let (whose, standing) = match watch.next().await {
            Ok(StatusEvent::Current(current)) => {
                (current.organization_id, Standing::of(current.status))
            }
            Ok(StatusEvent::Deleted(deleted)) => (deleted.organization_id, Standing::Deleted),
            Ok(_) => continue,
            Err(status) => {
                screen.say(&format!("StreamStatus failed: {}", status.message()));
                return;
            }
        };
        let changed = shown
            .get(&whose)
            .is_none_or(|before: &Standing| !standing.looks_like(before));
        if changed {
            let paint = screen.paint();
            let title = paint.color(Color::Bold, format!("● {whose}"));
            screen.say(&format!("{title} {}", standing.line(paint)));
        }
        if whose == organization {
            latest.send_replace(standing.clone());
        }
        shown.insert(whose, standing);
    }
}
