//! The HTTP server: two services and the control endpoint on one port.

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
use super::form::Form;
use super::identity::Caller;
use super::sigv4::{AuthFailure, Authorization, Signed};
use super::state::Shared;
use super::stream::NewRecord;
use super::{cbor, control_http, kinesis, sts};
use connection::{Connection, ResettableListener};

/// Size limit of a request: 10 MiB of records in base64, plus names and keys.
const MAX_BODY_BYTES: usize = 20 * 1024 * 1024;

/// Serves until `stop` completes and no call is in flight.
pub(super) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new().fallback(handle).with_state(shared);
    let service = router.into_make_service_with_connect_info::<Connection>();
    axum::serve(ResettableListener(listener), service)
        .with_graceful_shutdown(stop)
        .await
}

async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, MAX_BODY_BYTES).await {
        Ok(body) => body,
        Err(_) => return too_large(&parts),
    };
    if parts.uri.path().starts_with("/_control") {
        return control_http::handle(&Control { shared }, &parts, &body);
    }
    let request_id = request_id();
    if let Some(operation) = kinesis::operation(&parts.headers) {
        let is_cbor = cbor::is_requested(&parts.headers);
        let call = operation.map(|operation| Call::kinesis(operation, &body, is_cbor));
        let response = respond(&shared, &parts, &body, call, Service::Kinesis, &request_id).await;
        return match is_cbor {
            true => cbor::reencode(response).await,
            false => response,
        };
    }
    let form = Form::parse(&body);
    let call = match sts::operation(&form) {
        Some((operation, target)) => Ok(Call {
            operation,
            target: target.to_owned(),
            request: sts::parse(operation, &form).map(ServiceRequest::Sts),
        }),
        None => Err(AwsError::new(
            "InvalidAction",
            "Could not find operation for the request",
        )),
    };
    respond(&shared, &parts, &body, call, Service::Sts, &request_id).await
}

/// A call of a supported operation. An invalid request is reported only after authentication, as
/// AWS does.
struct Call {
    operation: Operation,
    target: String,
    request: Result<ServiceRequest, AwsError>,
}

enum ServiceRequest {
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
            request: request.map(ServiceRequest::Kinesis),
        }
    }

    fn records(&self) -> &[NewRecord] {
        match &self.request {
            Ok(ServiceRequest::Kinesis(request)) => request.records(),
            _ => &[],
        }
    }
}

/// Processes a call, counts it, and renders its response.
async fn respond(
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
    let mut counter = CountOnDrop {
        shared,
        call: &call,
        request_id,
        outcome: "Cancelled".into(),
    };
    let result = process(shared, parts, body, &call, service, request_id).await;
    counter.outcome = match &result {
        Ok(_) => "OK".into(),
        Err(Interruption::Error(error)) => error.code.clone(),
        Err(Interruption::Garbage(_)) => "Garbage".into(),
        Err(Interruption::Reset) => "Reset".into(),
    };
    drop(counter);
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

/// Formats a time for the header `Date`.
fn http_date(at_ms: i64) -> Option<HeaderValue> {
    let at = jiff::Timestamp::from_millisecond(at_ms).ok()?;
    let text = at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    HeaderValue::try_from(text).ok()
}

/// Counts a call when dropped, and so also a call cancelled because its caller disconnected.
struct CountOnDrop<'a> {
    shared: &'a Shared,
    call: &'a Call,
    request_id: &'a str,
    outcome: std::borrow::Cow<'static, str>,
}

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        let Call {
            operation, target, ..
        } = self.call;
        self.shared.call_log.add(
            self.request_id,
            *operation,
            target,
            &self.outcome,
            self.call.records().len(),
        );
    }
}

/// Applies faults, authenticates the caller and executes the request. The call no longer counts
/// as in flight when this returns, before its response is sent: otherwise a caller could send the
/// next call while this one counts as in flight, which would look like a hazard.
async fn process(
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
    let in_flight = (!records.is_empty()).then(|| shared.order_hazards.begin(target, records));
    let mut accepted = Vec::new();
    let result = async {
        shared
            .faults
            .apply(When::Before, *operation, target)
            .await?;
        let response = execute(
            shared,
            parts,
            body,
            call,
            service,
            request_id,
            &mut accepted,
        );
        shared.faults.apply(When::After, *operation, target).await?;
        response.map_err(Interruption::Error)
    }
    .await;
    if let Some(in_flight) = in_flight {
        in_flight.settle(records, |index| accepted.get(index) == Some(&true));
    }
    result
}

/// Authenticates the caller and executes the request.
fn execute(
    shared: &Shared,
    parts: &Parts,
    body: &Bytes,
    call: &Call,
    service: Service,
    request_id: &str,
    accepted: &mut Vec<bool>,
) -> Result<String, AwsError> {
    let (caller, region) =
        authenticate(shared, parts, body, service).map_err(|f| auth_error(f, service))?;
    match call.request.as_ref().map_err(Clone::clone)? {
        ServiceRequest::Sts(request) => sts::execute(shared, &caller, request, request_id),
        ServiceRequest::Kinesis(request) => {
            let context = kinesis::Context {
                shared,
                caller: &caller,
                region,
                operation: call.operation,
            };
            let output = kinesis::execute(&context, request)?;
            *accepted = output.accepted;
            Ok(output.json)
        }
    }
}

/// Returns the caller, and the region that the request was signed for.
fn authenticate<'a>(
    shared: &Shared,
    parts: &'a Parts,
    body: &[u8],
    service: Service,
) -> Result<(Caller, &'a str), AuthFailure> {
    let authorization = Authorization::parse(&parts.headers)?;
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

/// Converts an authentication failure into the error that each service's "Common errors" lists.
fn auth_error(failure: AuthFailure, service: Service) -> AwsError {
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

/// Generates a UUID from the thread's random generator, which makes no system call.
fn request_id() -> String {
    uuid::Builder::from_random_bytes(rand::random())
        .into_uuid()
        .to_string()
}

fn too_large(parts: &Parts) -> Response<Body> {
    let service = match kinesis::operation(&parts.headers) {
        Some(_) => Service::Kinesis,
        None => Service::Sts,
    };
    AwsError::new(
        "RequestEntityTooLarge",
        "the request is larger than 20 MiB or its body is incomplete",
    )
    .with_status(StatusCode::PAYLOAD_TOO_LARGE)
    .into_response(service, &request_id())
}
