//! The control endpoint: the control handle over HTTP, for tests in other languages.
//! `docs/stand-in.md` describes it.

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
use super::form;

/// Records that are read at a time.
const PAGE: usize = 1000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    enforce_shard_limits: Option<bool>,
    /// Absent leaves it, `null` ends it.
    #[serde(default, deserialize_with = "present")]
    session_lifetime: Option<Option<SessionLifetime>>,
    clock_offset_seconds: Option<i64>,
}

/// One line of `GET /_control/records`.
#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    shard_id: &'a str,
    sequence_number: &'a str,
    partition_key: &'a str,
    arrived_at_ms: i64,
    /// Base64.
    data: String,
    /// The data as text, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
}

type Answer = Result<Response<Body>, (StatusCode, String)>;

/// Answers a request to a path under `/_control`.
pub(super) async fn answer(control: &Control, parts: &Parts, body: &Bytes) -> Response<Body> {
    let answer = if from_this_machine(parts) {
        route(control, parts, body)
    } else {
        let why = "the Host must be a loopback address, and there must be no Origin";
        Err((StatusCode::FORBIDDEN, why.to_owned()))
    };
    answer.unwrap_or_else(|(status, error)| respond(status, &json!({ "error": error })))
}

fn route(control: &Control, parts: &Parts, body: &[u8]) -> Answer {
    let query = form::decode(parts.uri.query().unwrap_or_default().as_bytes());
    let path = parts
        .uri
        .path()
        .strip_prefix("/_control/")
        .unwrap_or_default();
    match (&parts.method, path) {
        (&Method::GET, "health") => ok(&json!({})),
        (&Method::PUT, "roles") => put(control.put_role(read(body)?)),
        (&Method::PUT, "credentials") => put(control.put_credentials(read(body)?)),
        (&Method::PUT, "streams") => put(control.create_stream(read(body)?)),
        (&Method::DELETE, "roles") => deleted(control.delete_role(need(&query, "arn")?)),
        (&Method::DELETE, "streams") => deleted(control.delete_stream(need(&query, "arn")?)),
        (&Method::DELETE, "sessions") => ok(&json!({ "expired": control.expire_sessions() })),
        (&Method::GET, "streams") => ok(&json!({ "streams": control.streams() })),
        (&Method::GET, "records") => records(control, &query),
        (&Method::GET, "call") => {
            let request_id = need(&query, "request_id")?;
            match control.answered(request_id) {
                Some(call) => ok(&json!({ "call": call })),
                None => Err((
                    StatusCode::NOT_FOUND,
                    format!("no call {request_id} is known: only the newest are"),
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
        (&Method::POST, "faults") => match control.add_fault(read(body)?) {
            Ok(id) => ok(&json!({ "id": id })),
            Err(error) => Err(refused(&error)),
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
            settings(control, &read(body)?);
            ok(&json!({}))
        }
        (method, _) => {
            let path = parts.uri.path();
            Err((
                StatusCode::NOT_FOUND,
                format!("no {method} {path}: see docs/stand-in.md"),
            ))
        }
    }
}

fn settings(control: &Control, settings: &Settings) {
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

fn clear_faults(control: &Control, query: &[(String, String)]) -> Answer {
    match form::value(query, "id") {
        None => ok(&json!({ "cleared": control.clear_faults() })),
        Some(id) => {
            let id = id.parse().map_err(|_| bad_request("id must be a number"))?;
            deleted(control.clear_fault(FaultId(id)))
        }
    }
}

/// Streams the records as JSON lines, a page at a time, up to where the stream stood.
fn records(control: &Control, query: &[(String, String)]) -> Answer {
    let arn = need(query, "arn")?.to_owned();
    let from = match form::value(query, "from") {
        None => 0,
        Some(from) => from
            .parse()
            .map_err(|_| bad_request("from must be a number"))?,
    };
    let end = control
        .stream(&arn)
        .map_err(|error| refused(&error))?
        .accepted;
    let pages = stream::unfold((control.clone(), from), move |(control, from)| {
        let page = control.records(&arn, from, PAGE).unwrap_or_default();
        let lines: Vec<u8> = page
            .iter()
            .filter(|r| r.index < end)
            .flat_map(line)
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

fn line(record: &Record) -> Vec<u8> {
    let line = Line {
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

/// Keeps web pages out, also those that reach loopback by a DNS name of their own.
fn from_this_machine(parts: &Parts) -> bool {
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

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, (StatusCode, String)> {
    serde_json::from_slice(body).map_err(|error| bad_request(&error.to_string()))
}

fn need<'a>(query: &'a [(String, String)], name: &str) -> Result<&'a str, (StatusCode, String)> {
    form::value(query, name).ok_or_else(|| bad_request(&format!("the query lacks {name}=")))
}

fn bad_request(message: &str) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, message.to_owned())
}

fn refused(error: &ControlError) -> (StatusCode, String) {
    let status = match error {
        ControlError::NoSuchStream(_) => StatusCode::NOT_FOUND,
        ControlError::StreamExists(_) => StatusCode::CONFLICT,
        _ => StatusCode::BAD_REQUEST,
    };
    (status, error.to_string())
}

fn put(result: Result<(), ControlError>) -> Answer {
    result.map_err(|error| refused(&error))?;
    ok(&json!({}))
}

fn deleted(was_there: bool) -> Answer {
    if was_there {
        ok(&json!({}))
    } else {
        Err((
            StatusCode::NOT_FOUND,
            "there is no such thing to delete".to_owned(),
        ))
    }
}

fn ok(body: &serde_json::Value) -> Answer {
    Ok(respond(StatusCode::OK, body))
}

fn respond(status: StatusCode, body: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("{body}\n")));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// Tells `null` from absent.
fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}
