//! The control endpoint: the control handle over HTTP, for tests in other languages.
//! `docs/stand-in.md` documents its requests.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::control::{Control, ControlError, Record, SessionLifetime};
use super::fault::FaultId;
use super::form::Form;

/// Records read from a stream at a time.
const PAGE: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    enforce_shard_limits: Option<bool>,
    /// Absent leaves the setting unchanged, `null` turns it off.
    #[serde(default, deserialize_with = "some_even_if_null")]
    session_lifetime: Option<Option<SessionLifetime>>,
    clock_offset_seconds: Option<i64>,
}

/// One line of `GET /_control/records`.
#[derive(Serialize)]
struct RecordLine<'a> {
    index: u64,
    shard_id: &'a str,
    sequence_number: &'a str,
    partition_key: &'a str,
    arrived_at_ms: i64,
    /// Data in base64.
    data: String,
    /// Data as text, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

/// A response, or the status and message of an error.
type Outcome = Result<Response<Body>, (StatusCode, String)>;

/// Handles a request to a path under `/_control`.
pub(super) fn handle(control: &Control, parts: &Parts, body: &Bytes) -> Response<Body> {
    let outcome = if is_local(parts) {
        route(control, parts, body)
    } else {
        let message = "Host must be a loopback address, and Origin must be absent";
        Err((StatusCode::FORBIDDEN, message.to_owned()))
    };
    outcome.unwrap_or_else(|(status, error)| respond(status, &json!({ "error": error })))
}

fn route(control: &Control, parts: &Parts, body: &[u8]) -> Outcome {
    let query = Form::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let path = parts
        .uri
        .path()
        .strip_prefix("/_control/")
        .unwrap_or_default();
    match (&parts.method, path) {
        (&Method::GET, "health") => ok(&json!({})),
        (&Method::PUT, "roles") => put(control.put_role(parse_body(body)?)),
        (&Method::PUT, "credentials") => put(control.put_credentials(parse_body(body)?)),
        (&Method::PUT, "streams") => put(control.create_stream(parse_body(body)?)),
        (&Method::DELETE, "roles") => deleted(control.delete_role(required(&query, "arn")?)),
        (&Method::DELETE, "streams") => deleted(control.delete_stream(required(&query, "arn")?)),
        (&Method::DELETE, "sessions") => ok(&json!({ "expired": control.expire_sessions() })),
        (&Method::GET, "streams") => ok(&json!({ "streams": control.streams() })),
        (&Method::GET, "records") => records(control, &query),
        (&Method::GET, "call") => {
            let request_id = required(&query, "request_id")?;
            match control.call_by_request_id(request_id) {
                Some(call) => ok(&json!({ "call": call })),
                None => Err((
                    StatusCode::NOT_FOUND,
                    format!("no call {request_id}: only the newest 10,000 calls are kept"),
                )),
            }
        }
        (&Method::GET, "calls") => ok(&json!({
            "calls": control.calls(),
            "hazards": control.hazards(),
        })),
        (&Method::DELETE, "calls") => {
            control.reset_counts();
            ok(&json!({}))
        }
        (&Method::POST, "faults") => match control.add_fault(parse_body(body)?) {
            Ok(id) => ok(&json!({ "id": id })),
            Err(error) => Err(rejection(&error)),
        },
        (&Method::GET, "faults") => {
            let faults = control.faults().into_iter();
            let list: Vec<_> = faults
                .map(|(id, f)| json!({ "id": id, "fault": f }))
                .collect();
            ok(&json!({ "faults": list }))
        }
        (&Method::DELETE, "faults") => clear_faults(control, &query),
        (&Method::PUT, "settings") => {
            change_settings(control, &parse_body(body)?);
            ok(&json!({}))
        }
        (method, _) => {
            let path = parts.uri.path();
            Err((
                StatusCode::NOT_FOUND,
                format!("{method} {path} is not supported: see docs/stand-in.md"),
            ))
        }
    }
}

fn change_settings(control: &Control, settings: &Settings) {
    if let Some(enforce) = settings.enforce_shard_limits {
        control.set_enforce_shard_limits(enforce);
    }
    if let Some(lifetime) = settings.session_lifetime {
        control.set_session_lifetime(lifetime);
    }
    if let Some(seconds) = settings.clock_offset_seconds {
        control.set_clock_offset(seconds);
    }
}

fn clear_faults(control: &Control, query: &Form) -> Outcome {
    match query.get("id") {
        None => ok(&json!({ "cleared": control.clear_faults() })),
        Some(id) => {
            let id = id.parse().map_err(|_| bad_request("id must be a number"))?;
            deleted(control.clear_fault(FaultId(id)))
        }
    }
}

/// Streams the records as JSON lines, a page at a time, up to the newest one at the time of the
/// request.
fn records(control: &Control, query: &Form) -> Outcome {
    let arn = required(query, "arn")?.to_owned();
    let from = match query.get("from") {
        None => 0,
        Some(from) => from
            .parse()
            .map_err(|_| bad_request("from must be a number"))?,
    };
    let end = control
        .stream(&arn)
        .map_err(|error| rejection(&error))?
        .accepted;
    let pages = stream::unfold((control.clone(), from), move |(control, from)| {
        let page = control.records(&arn, from, PAGE).unwrap_or_default();
        let lines: Vec<u8> = page
            .iter()
            .filter(|r| r.index < end)
            .flat_map(json_line)
            .collect();
        let next = page.last().map_or(from, |record| record.index + 1);
        let page = (!lines.is_empty()).then_some((Ok::<_, std::io::Error>(lines), (control, next)));
        std::future::ready(page)
    });
    let mut response = Response::new(Body::from_stream(pages));
    let lines = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, lines);
    Ok(response)
}

fn json_line(record: &Record) -> Vec<u8> {
    let line = RecordLine {
        index: record.index,
        shard_id: &record.shard_id,
        sequence_number: &record.sequence_number,
        partition_key: &record.partition_key,
        arrived_at_ms: record.arrived_at_ms,
        data: STANDARD.encode(&record.data),
        text: std::str::from_utf8(&record.data).ok(),
    };
    let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Whether a request is not from a web page. A page could otherwise send requests to loopback,
/// also under a DNS name of its site that resolves to it.
fn is_local(parts: &Parts) -> bool {
    let host = parts
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let Some(authority) = host.and_then(|host| host.parse::<Authority>().ok()) else {
        return false;
    };
    let host = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']');
    let loopback = host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    loopback && !parts.headers.contains_key(header::ORIGIN)
}

fn parse_body<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|error| bad_request(&error.to_string()))
}

fn required<'a>(query: &'a Form, name: &str) -> Result<&'a str, (StatusCode, String)> {
    let missing = || bad_request(&format!("the query parameter {name} is missing"));
    query.get(name).ok_or_else(missing)
}

fn bad_request(message: &str) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, message.to_owned())
}

fn rejection(error: &ControlError) -> (StatusCode, String) {
    let status = match error {
        ControlError::NoSuchStream(_) => StatusCode::NOT_FOUND,
        ControlError::StreamExists(_) => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, error.to_string())
}

fn put(result: Result<(), ControlError>) -> Outcome {
    result.map_err(|error| rejection(&error))?;
    ok(&json!({}))
}

fn deleted(existed: bool) -> Outcome {
    if existed {
        ok(&json!({}))
    } else {
        Err((
            StatusCode::NOT_FOUND,
            "the thing to delete does not exist".to_owned(),
        ))
    }
}

fn ok(body: &serde_json::Value) -> Outcome {
    Ok(respond(StatusCode::OK, body))
}

fn respond(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{body}\n")));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Deserializes `null` as `Some(None)`, to distinguish it from an absent field.
fn some_even_if_null<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}
