//! What is said at the start: where everything is, and what to try next. Pure.

use std::net::SocketAddr;

use super::{
    Feed, Options, Port,
    account::{Account, ROLE_ARN, SHARDS, STREAM_ARN},
    screen::{Color, Paint},
    world::World,
};

const SERVICE: &str = "siem.v1.SiemIntegrationService";
const WRONG_EXTERNAL_ID: &str = "not-the-external-id";

/// Where everything is.
pub(super) struct Place<'a> {
    address: SocketAddr,
    aws_url: String,
    organization: &'a str,
    external_id: &'a str,
    /// The port that was taken, so that another had to do.
    port_taken: Option<u16>,
    /// Nobody has the time to try anything.
    is_brief: bool,
}

impl<'a> Place<'a> {
    pub(super) fn new(options: &'a Options, world: &World, account: &'a Account) -> Self {
        let address = world.address();
        Self {
            address,
            aws_url: world.aws_url(),
            organization: options.organization.as_str(),
            external_id: account.external_id(),
            port_taken: match options.port {
                Port::Preferably(port) if port != address.port() => Some(port),
                _ => None,
            },
            is_brief: matches!(options.feed, Feed::Count(_) | Feed::Eve { .. }),
        }
    }
}

/// The first lines on the screen.
pub(super) fn greeting(place: &Place<'_>, paint: Paint) -> String {
    let mut lines = Vec::new();
    if let Some(port) = place.port_taken {
        lines.push(format!(
            "port {port} is taken; a free one is used (--port chooses)"
        ));
    }
    let bold = |text: &str| paint.color(Color::Bold, text);
    lines.push(format!("{}  http://{}", bold("siem-relay"), place.address));
    lines.push(format!(
        "{}  {} (STS and Kinesis, on this machine only)",
        bold("stand-in for AWS"),
        place.aws_url
    ));
    lines.push(format!(
        "organization {} delivers to {STREAM_ARN} ({SHARDS} shards)",
        bold(place.organization)
    ));
    if !place.is_brief {
        lines.extend(to_try(place, paint));
    }
    lines.join("\n")
}

fn to_try(place: &Place<'_>, paint: Paint) -> Vec<String> {
    let Place {
        address,
        organization,
        ..
    } = place;
    let named = format!(r#"{{"organization_id":"{organization}"}}"#);
    let calls = [
        ("how the integration fares", "Get", named.clone()),
        ("a test event, with a verdict", "SendTest", named.clone()),
        (
            "a wrong external ID: Unauthorized, and events wait",
            "Configure",
            configure(organization, WRONG_EXTERNAL_ID),
        ),
        (
            "the right one: healed, and what waited arrives",
            "Configure",
            configure(organization, place.external_id),
        ),
        (
            "each change of status, until Ctrl-C",
            "StreamStatus",
            format!(r#"{{"organization_ids":["{organization}"]}}"#),
        ),
        ("an end; Configure begins anew", "Delete", named),
    ];
    let mut lines = vec![
        String::new(),
        "To try in another terminal (grpcurl: https://github.com/fullstorydev/grpcurl):".to_owned(),
    ];
    for (what, method, request) in calls {
        lines.push(paint.color(Color::Dim, format!("# {what}")));
        lines.push(format!(
            "grpcurl -plaintext -d '{request}' {address} {SERVICE}/{method}"
        ));
    }
    lines.push(paint.color(
        Color::Dim,
        "# what AWS was asked; faults on demand: docs/stand-in.md",
    ));
    lines.push(format!("curl -s {}/_control/calls", place.aws_url));
    lines.push(String::new());
    lines.push("All of it is gone at the end. Ctrl-C ends.".to_owned());
    lines
}

fn configure(organization: &str, external_id: &str) -> String {
    format!(
        r#"{{"organization_id":"{organization}","kinesis_stream_arn":"{STREAM_ARN}","role_arn":"{ROLE_ARN}","external_id":"{external_id}"}}"#
    )
}
