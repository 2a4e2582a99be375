//! The text printed at the start: addresses, and commands to try. No I/O.

use std::net::SocketAddr;

use super::{
    Feed, Options, Port,
    account::{Account, ROLE_ARN, SHARDS, STREAM_ARN},
    color::{Color, Paint},
    environment::Environment,
};

const SERVICE: &str = "siem.v1.SiemIntegrationService";
const WRONG_EXTERNAL_ID: &str = "not-the-external-id";

/// Addresses and names that the text contains.
pub(super) struct Endpoints<'a> {
    address: SocketAddr,
    aws_url: String,
    organization: &'a str,
    external_id: &'a str,
    /// The preferred port, if it was taken.
    port_taken: Option<u16>,
    /// Flags of grpcurl for encryption and authentication.
    grpcurl_flags: String,
    /// The API is encrypted.
    scheme: &'static str,
    /// The run ends by itself: no commands to try.
    is_brief: bool,
}

impl<'a> Endpoints<'a> {
    pub(super) fn new(
        options: &'a Options,
        environment: &Environment,
        account: &'a Account,
    ) -> Self {
        let address = environment.address();
        Self {
            address,
            aws_url: environment.aws_url(),
            organization: options.organization.as_str(),
            external_id: account.external_id(),
            port_taken: match options.port {
                Port::Preferably(port) if port != address.port() => Some(port),
                _ => None,
            },
            grpcurl_flags: match environment.credentials() {
                None => "-plaintext".to_owned(),
                Some(credentials) => credentials.grpcurl_flags(),
            },
            scheme: match environment.credentials() {
                None => "http",
                Some(_) => "https",
            },
            is_brief: matches!(options.feed, Feed::Count(_) | Feed::Eve { .. }),
        }
    }
}

/// Returns the first lines.
pub(super) fn greeting(endpoints: &Endpoints<'_>, paint: Paint) -> String {
    let mut lines = Vec::new();
    if let Some(port) = endpoints.port_taken {
        lines.push(format!(
            "port {port} is taken; a free one is used (--port chooses)"
        ));
    }
    let bold = |text: &str| paint.color(Color::Bold, text);
    lines.push(format!(
        "{}  {}://{}/console/ (organization {})",
        bold("console"),
        endpoints.scheme,
        endpoints.address,
        endpoints.organization
    ));
    lines.push(format!(
        "{}  {}://{}",
        bold("siem-relay"),
        endpoints.scheme,
        endpoints.address
    ));
    lines.push(format!(
        "{}  {} (STS and Kinesis, on this machine only)",
        bold("stand-in for AWS"),
        endpoints.aws_url
    ));
    lines.push(format!(
        "organization {} delivers to {STREAM_ARN} ({SHARDS} shards)",
        bold(endpoints.organization)
    ));
    if !endpoints.is_brief {
        lines.extend(to_try(endpoints, paint));
    }
    lines.join("\n")
}

fn to_try(endpoints: &Endpoints<'_>, paint: Paint) -> Vec<String> {
    let Endpoints {
        address,
        organization,
        grpcurl_flags,
        ..
    } = endpoints;
    let named = format!(r#"{{"organization_id":"{organization}"}}"#);
    let calls = [
        (
            "the integration with its status and counts",
            "Get",
            named.clone(),
        ),
        ("a test event, with a verdict", "SendTest", named.clone()),
        (
            "a wrong external ID: UNAUTHORIZED, and events wait",
            "Configure",
            configure(organization, WRONG_EXTERNAL_ID),
        ),
        (
            "the right one: ACTIVE again, and the waiting events arrive",
            "Configure",
            configure(organization, endpoints.external_id),
        ),
        (
            "the status and each change of it, until Ctrl-C",
            "StreamStatus",
            format!(r#"{{"organization_ids":["{organization}"]}}"#),
        ),
        (
            "removes the integration; a Configure creates a new one",
            "Delete",
            named,
        ),
    ];
    let mut lines = vec![
        String::new(),
        "To try in another terminal (grpcurl: https://github.com/fullstorydev/grpcurl):".to_owned(),
    ];
    for (what, method, request) in calls {
        lines.push(paint.color(Color::Dim, format!("# {what}")));
        lines.push(format!(
            "grpcurl {grpcurl_flags} -d '{request}' {address} {SERVICE}/{method}"
        ));
    }
    lines.push(paint.color(
        Color::Dim,
        "# the calls that the stand-in received; faults on demand: docs/stand-in.md",
    ));
    lines.push(format!("curl -s {}/_control/calls", endpoints.aws_url));
    lines.push(String::new());
    lines.push("Ctrl-C ends the sandbox and removes everything it made.".to_owned());
    lines
}

fn configure(organization: &str, external_id: &str) -> String {
    format!(
        r#"{{"organization_id":"{organization}","kinesis_stream_arn":"{STREAM_ARN}","role_arn":"{ROLE_ARN}","external_id":"{external_id}"}}"#
    )
}
