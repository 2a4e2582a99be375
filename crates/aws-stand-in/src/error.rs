//! Errors with AWS' codes and messages, and their JSON and XML responses.

use std::borrow::Cow;
use std::fmt::Write as _;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};

/// The services on the port. They differ in protocol and in the codes of the errors that all
/// AWS services share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    Sts,
    Kinesis,
}

impl Service {
    /// Name in the credential scope of a signature.
    pub(super) fn signing_name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::Kinesis => "kinesis",
        }
    }
}

/// An AWS error: code, HTTP status and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AwsError {
    pub(super) code: Cow<'static, str>,
    pub(super) status: StatusCode,
    pub(super) message: String,
}

impl AwsError {
    /// An error with HTTP status 400, the usual one.
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code: Cow::Borrowed(code),
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
        }
    }

    pub(super) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// An error of AWS' model validation. Both services share the message, not the code.
    pub(super) fn constraint(
        service: Service,
        field: &str,
        value: Option<&str>,
        constraint: &str,
    ) -> Self {
        let code = match service {
            Service::Sts => "ValidationError",
            Service::Kinesis => "ValidationException",
        };
        let mut message = "1 validation error detected: Value".to_owned();
        // Writing to a String cannot fail.
        let _ = match value {
            Some(value) => write!(message, " '{value}'"),
            None => write!(message, " null"),
        };
        let _ = write!(
            message,
            " at '{field}' failed to satisfy constraint: {constraint}"
        );
        Self::new(code, message)
    }

    /// Renders the error in the protocol of `service`.
    pub(super) fn into_response(self, service: Service, request_id: &str) -> Response<Body> {
        match service {
            Service::Kinesis => self.into_json(request_id),
            Service::Sts => self.into_xml(request_id),
        }
    }

    fn into_json(self, request_id: &str) -> Response<Body> {
        let body = serde_json::json!({ "__type": self.code, "message": self.message });
        let error_type = HeaderValue::from_str(&self.code).ok();
        let mut response = json(self.status, body.to_string(), request_id);
        if let Some(value) = error_type {
            response.headers_mut().insert("x-amzn-errortype", value);
        }
        response
    }

    fn into_xml(self, request_id: &str) -> Response<Body> {
        let kind = if self.status.is_server_error() {
            "Receiver"
        } else {
            "Sender"
        };
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    \
             <Type>{kind}</Type>\n    <Code>{}</Code>\n    <Message>{}</Message>\n  </Error>\n  \
             <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n",
            escape_xml(&self.code),
            escape_xml(&self.message),
        );
        xml(self.status, body, request_id)
    }
}

/// A JSON 1.1 response.
pub(super) fn json(status: StatusCode, body: impl Into<Body>, request_id: &str) -> Response<Body> {
    response(
        status,
        "application/x-amz-json-1.1",
        body.into(),
        request_id,
    )
}

/// A response of the Query protocol.
pub(super) fn xml(status: StatusCode, body: String, request_id: &str) -> Response<Body> {
    response(status, "text/xml", Body::from(body), request_id)
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: Body,
    request_id: &str,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Ok(value) = HeaderValue::from_str(request_id) {
        headers.insert("x-amzn-RequestId", value);
    }
    response
}

/// Escapes text for XML, and drops the control characters that XML 1.0 cannot represent.
pub(super) fn escape_xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(character),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}
