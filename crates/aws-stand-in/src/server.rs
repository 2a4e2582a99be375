//! The HTTP server: one port, two services and the control endpoint.

mod connection;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Request, State};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, header};
use tokio::net::TcpListener;

use super::control::{Control, Operation};
use super::error::{AwsError, Service, json, xml};
use super::fault::{Interruption, When};
use super::identity::Caller;
use super::sigv4::{AuthFailure, Authorization, Signed};
use super::state::Shared;
use super::stream::NewRecord;
use super::{cbor, control_http, form, kinesis, sts, token};
use connection::{Connection, LoopbackListener};

/// Bytes of a request: 10 MiB of records in base64, with room for names and keys.
const MAX_BODY_BYTES: usize = 20 * 1024 * 1024;

/// Serves until `stop` completes and the calls in flight are answered.
pub(super) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new().fallback(answer).with_state(shared);
    let service = router.into_make_service_with_connect_info::<Connection>();
    axum::serve(LoopbackListener(listener), service)
        .with_graceful_shutdown(stop)
        .await
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(_) => return too_large(&parts),
    };
    if parts.uri.path().starts_with("/_control") {
        return control_http::answer(&Control { shared }, &parts, &body).await;
    }
    let request_id = token::request_id();
    if let Some(operation) = kinesis::operation(&parts.headers) {
        let is_cbor = cbor::is_asked(&parts.headers);
        let call = operation.map(|operation| Call::kinesis(operation, &body, is_cbor));
        let response = finish(&shared, &parts, &body, call, Service::Kinesis, &request_id).await;
        return match is_cbor {
            true => cbor::recode(response).await,
            false => response,
        };
    }
    let pairs = form::decode(&body);
    let call = match sts::operation(&pairs) {
        Some((operation, target)) => Ok(Call {
            operation,
            target: target.to_owned(),
            request: sts::parse(operation, &pairs).map(Work::Sts),
        }),
        None => Err(AwsError::new(
            "InvalidAction",
            "Could not find operation for the request",
        )),
    };
    finish(&shared, &parts, &body, call, Service::Sts, &request_id).await
}

/// A call of a known operation. Its request may still be invalid, which is told once the
/// caller is authenticated.
struct Call {
    operation: Operation,
    target: String,
    request: Result<Work, AwsError>,
}

enum Work {
    Sts(sts::Request),
    Kinesis(kinesis::Request),
}

impl Call {
    fn kinesis(operation: Operation, body: &[u8], is_cbor: bool) -> Self {
        let request = match is_cbor {
            true => kinesis::parse_cbor(operation, body),
            false => kinesis::parse(operation, body),
        };
        let target = request
            .as_ref()
            .map(|request| request.target().into_owned());
        Self {
            operation,
            target: target.unwrap_or_default(),
            request: request.map(Work::Kinesis),
        }
    }

    fn records(&self) -> &[NewRecord] {
        match &self.request {
            Ok(Work::Kinesis(request)) => request.records(),
            _ => &[],
        }
    }
}

/// Carries a call out, counts it, and renders its answer.
async fn finish(
    shared: &Shared,
    parts: &Parts,
    body: &Bytes,
    call: Result<Call, AwsError>,
    service: Service,
    request_id: &str,
) -> Response<Body> {
    let call = match call {
        Ok(call) => call,
        Err(error) => return error.into_response(service, request_id),
    };
    let mut counted = Counted {
        shared,
        call: &call,
        request_id,
        outcome: "Cancelled".into(),
    };
    let result = run(shared, parts, body, &call, service, request_id).await;
    counted.outcome = match &result {
        Ok(_) => "OK".into(),
        Err(Interruption::Error(error)) => error.code.clone(),
        Err(Interruption::Garbage(_)) => "Garbage".into(),
        Err(Interruption::Reset) => "Reset".into(),
    };
    drop(counted);
    let mut response = match (result, service) {
        (Ok(body), Service::Kinesis) => json(StatusCode::OK, body, request_id),
        (Ok(body), Service::Sts) => xml(StatusCode::OK, body, request_id),
        (Err(Interruption::Error(error)), _) => error.into_response(service, request_id),
        (Err(Interruption::Garbage(status)), _) => garbage(status),
        (Err(Interruption::Reset), _) => {
            if let Some(ConnectInfo(connection)) = parts.extensions.get::<ConnectInfo<Connection>>()
            {
                connection.reset();
            }
            garbage(StatusCode::BAD_GATEWAY)
        }
    };
    if let Some(date) = http_date(shared.clock_ms()) {
        response.headers_mut().insert(header::DATE, date);
    }
    response
}

/// A time in the form of the header `Date`.
fn http_date(at_ms: i64) -> Option<HeaderValue> {
    let at = jiff::Timestamp::from_millisecond(at_ms).ok()?;
    let text = at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    HeaderValue::try_from(text).ok()
}

/// Counts its call when dropped, so that a call whose caller hung up is counted too.
struct Counted<'a> {
    shared: &'a Shared,
    call: &'a Call,
    request_id: &'a str,
    outcome: std::borrow::Cow<'static, str>,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let Call {
            operation, target, ..
        } = self.call;
        self.shared.calls.count(
            self.request_id,
            *operation,
            target,
            &self.outcome,
            self.call.records().len(),
        );
    }
}

/// Faults, authentication, then the work itself. Calls in flight end here, before their
/// answers leave: the caller cannot know of an answer while its call still counts.
async fn run(
    shared: &Shared,
    parts: &Parts,
    body: &Bytes,
    call: &Call,
    service: Service,
    request_id: &str,
) -> Result<String, Interruption> {
    let Call {
        operation, target, ..
    } = call;
    let records = call.records();
    let in_flight = (!records.is_empty()).then(|| shared.hazards.begin(target, records));
    let mut accepted = Vec::new();
    let result = async {
        shared
            .faults
            .apply(When::Before, *operation, target)
            .await?;
        let answer = work(
            shared,
            parts,
            body,
            call,
            service,
            request_id,
            &mut accepted,
        );
        shared.faults.apply(When::After, *operation, target).await?;
        answer.map_err(Interruption::Error)
    }
    .await;
    if let Some(in_flight) = in_flight {
        in_flight.settle(records, |index| accepted.get(index) == Some(&true));
    }
    result
}

fn work(
    shared: &Shared,
    parts: &Parts,
    body: &Bytes,
    call: &Call,
    service: Service,
    request_id: &str,
    accepted: &mut Vec<bool>,
) -> Result<String, AwsError> {
    let (caller, region) =
        authenticate(shared, parts, body, service).map_err(|f| refused(f, service))?;
    match call.request.as_ref().map_err(Clone::clone)? {
        Work::Sts(request) => sts::execute(shared, &caller, request, request_id),
        Work::Kinesis(request) => {
            let context = kinesis::Context {
                shared,
                caller: &caller,
                region,
                operation: call.operation,
            };
            let done = kinesis::execute(&context, request)?;
            *accepted = done.accepted;
            Ok(done.json)
        }
    }
}

/// The caller, and the region that it signed for.
fn authenticate<'a>(
    shared: &Shared,
    parts: &'a Parts,
    body: &[u8],
    service: Service,
) -> Result<(Caller, &'a str), AuthFailure> {
    let authorization = Authorization::read(&parts.headers)?;
    let now = shared.clock_ms();
    let (caller, secret) = shared.identities.caller(
        authorization.access_key_id,
        authorization.session_token,
        now,
    )?;
    if shared.verify_signatures {
        let signed = Signed {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or_default(),
            headers: &parts.headers,
            body,
        };
        authorization.verify(&secret, service.signing_name(), now / 1000, &signed)?;
    }
    Ok((caller, authorization.region))
}

/// The two protocols have their own names for the same refusals ("Common errors" of each).
fn refused(failure: AuthFailure, service: Service) -> AwsError {
    let (json_code, xml_code, message) = match failure {
        AuthFailure::Missing => (
            "MissingAuthenticationTokenException",
            "MissingAuthenticationToken",
            "Missing Authentication Token".to_owned(),
        ),
        AuthFailure::Incomplete(message) => (
            "IncompleteSignatureException",
            "IncompleteSignature",
            message,
        ),
        AuthFailure::UnknownKey => (
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "The security token included in the request is invalid.".to_owned(),
        ),
        AuthFailure::Expired => (
            "ExpiredTokenException",
            "ExpiredToken",
            "The security token included in the request is expired".to_owned(),
        ),
        AuthFailure::BadSignature(message) => (
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            message,
        ),
    };
    match service {
        Service::Kinesis => AwsError::new(json_code, message),
        Service::Sts => AwsError::new(xml_code, message).with_status(StatusCode::FORBIDDEN),
    }
}

fn garbage(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from("<html><body>upstream failure</body></html>"));
    *response.status_mut() = status;
    let html = HeaderValue::from_static("text/html");
    response.headers_mut().insert(header::CONTENT_TYPE, html);
    response
}

fn too_large(parts: &Parts) -> Response<Body> {
    let service = match kinesis::operation(&parts.headers) {
        Some(_) => Service::Kinesis,
        None => Service::Sts,
    };
    AwsError::new(
        "RequestEntityTooLarge",
        "the request is too large or was cut short",
    )
    .with_status(StatusCode::PAYLOAD_TOO_LARGE)
    .into_response(service, &token::request_id())
}
