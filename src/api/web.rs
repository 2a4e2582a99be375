//! Requests of browsers: gRPC-Web, which this layer translates, and the origins whose pages may
//! send them.
//!
//! A browser asks before a page of another origin may send a request that is not a plain form. The
//! question (a preflight) carries no token, so it is answered here, ahead of `caller`. Requests of
//! a foreign origin are refused as well, not only hidden from their page: with a client certificate
//! the browser itself would prove an identity.
//!
//! Formats: [gRPC-Web], [CORS].
//!
//! [gRPC-Web]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
//! [CORS]: https://fetch.spec.whatwg.org/#http-cors-protocol

mod body;
mod console;

use std::{
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either as EitherFuture, MapOk, TryFutureExt as _, ready};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{ACCEPT, ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS},
    uri::Authority,
};
use http_body_util::{Either, Full};
use tonic::{body::Body, codegen::StdError};
use tower::{Layer, Service, ServiceExt as _};
use tower_http::cors::{AllowOrigin, Cors, CorsLayer};

use super::errors::echo;

/// Headers that a page of another origin may set: those of gRPC-Web clients, a token, and those
/// that this service reads.
const REQUEST_HEADERS: [HeaderName; 10] = [
    AUTHORIZATION,
    CONTENT_TYPE,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-grpc-web"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-user-agent"),
];
/// Headers of an answer that a page of another origin may read: an error without any message is
/// in them.
const EXPOSED_HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
    HeaderName::from_static("grpc-status-details-bin"),
];
/// Time for which a browser may remember the answer to a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(600);

/// Settings of gRPC-Web.
#[derive(Clone, Debug)]
pub struct WebOptions {
    /// The page of `console` is served.
    pub console: bool,
    /// Address of the CloudFormation template to which the page links.
    pub template_url: Option<String>,
    /// Origins other than the service's own whose pages may call the API, each as a browser writes
    /// it: `https://HOST[:PORT]` in lower case, without the default port.
    pub origins: Vec<String>,
    /// The service ends TLS itself.
    pub has_tls: bool,
    /// Callers are authenticated.
    pub has_authentication: bool,
}

/// Form in which messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Binary,
    /// For clients that read answers as text.
    Base64,
}

impl Encoding {
    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Binary => "application/grpc-web+proto",
            Self::Base64 => "application/grpc-web-text+proto",
        })
    }
}

/// Protocol of a request, by its content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Grpc,
    GrpcWeb(Encoding),
    Other,
}

impl Protocol {
    fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(CONTENT_TYPE).iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Self::of_media_type(value),
            _ => Self::Other,
        }
    }

    fn of_media_type(value: &HeaderValue) -> Self {
        let text = value.to_str().unwrap_or_default();
        let media_type = text.split(';').next().unwrap_or_default();
        let media_type = media_type.trim_ascii().to_ascii_lowercase();
        match media_type.as_str() {
            "application/grpc-web" | "application/grpc-web+proto" => {
                Self::GrpcWeb(Encoding::Binary)
            }
            "application/grpc-web-text" | "application/grpc-web-text+proto" => {
                Self::GrpcWeb(Encoding::Base64)
            }
            "application/grpc" => Self::Grpc,
            other if other.starts_with("application/grpc+") => Self::Grpc,
            _ => Self::Other,
        }
    }
}

/// Origins that may send requests.
#[derive(Debug)]
struct Origins(WebOptions);

impl Origins {
    /// Whether pages of an origin may send a request with this URI and these headers.
    fn allow(&self, origin: &HeaderValue, uri: &Uri, headers: &HeaderMap) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        self.0.origins.iter().any(|allowed| allowed == origin)
            || self.is_own(origin, uri, headers) == Some(true)
    }

    /// Whether an origin is that of the address to which the request was sent. None if one of them
    /// cannot be read.
    fn is_own(&self, origin: &str, uri: &Uri, headers: &HeaderMap) -> Option<bool> {
        let (scheme, rest) = origin.split_once("://")?;
        let default_port = match scheme {
            // Without TLS of our own there may be a proxy that has it.
            "http" if !self.0.has_tls => 80,
            "https" => 443,
            _ => return Some(false),
        };
        let origin: Authority = rest.parse().ok()?;
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let own = match (uri.authority(), host) {
            (Some(authority), _) => authority.clone(),
            (None, host) => host?.parse().ok()?,
        };
        let port = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
        let is_same = origin.host().eq_ignore_ascii_case(own.host()) && port(&origin) == port(&own);
        // Any page can have its own name lead to this address (DNS rebinding). A certificate or a
        // token defeats that, nothing else does.
        Some(is_same && (self.0.has_authentication || is_local_name(own.host())))
    }
}

/// Whether no foreign page can have this name: an IP address or `localhost`.
fn is_local_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let name = host.to_ascii_lowercase();
    address.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost")
}

/// Layer that passes on gRPC, translates gRPC-Web if that is on, and refuses the rest.
#[derive(Clone)]
pub(super) struct WebLayer {
    /// None while gRPC-Web is off.
    pub(super) options: Option<WebOptions>,
}

impl<S: Clone> Layer<S> for WebLayer {
    type Service = WebService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let browsers = self.options.clone().map(|options| {
            let origins = Arc::new(Origins(options));
            let checked = Arc::clone(&origins);
            let cors = CorsLayer::new()
                .allow_origin(AllowOrigin::predicate(move |origin, parts| {
                    checked.allow(origin, &parts.uri, &parts.headers)
                }))
                .allow_methods([Method::POST])
                .allow_headers(REQUEST_HEADERS)
                .expose_headers(EXPOSED_HEADERS)
                .max_age(PREFLIGHT_MAX_AGE);
            let inner = inner.clone();
            cors.layer(Browsers { inner, origins })
        });
        WebService {
            grpc: inner,
            browsers,
        }
    }
}

/// Service of [`WebLayer`].
#[derive(Clone)]
pub(super) struct WebService<S> {
    grpc: S,
    browsers: Option<Cors<Browsers<S>>>,
}

type Answer<B> = Response<Either<B, Body>>;
type Grpc<F, B> = MapOk<F, fn(Response<B>) -> Answer<B>>;
type Browser<B> = BoxFuture<'static, Result<Answer<B>, Infallible>>;

impl<S, B> Service<Request<Body>> for WebService<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = Answer<B>;
    type Error = Infallible;
    type Future = EitherFuture<Grpc<S::Future, B>, Browser<B>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.grpc.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_grpc = Protocol::of(request.headers()) == Protocol::Grpc
            && request.method() == Method::POST
            && request.version() == Version::HTTP_2;
        if is_grpc {
            let answer = self.grpc.call(request);
            return EitherFuture::Left(answer.map_ok(|answer| answer.map(Either::Left)));
        }
        let answer: BoxFuture<'static, _> = match self.browsers.clone() {
            Some(browsers) => Box::pin(browsers.oneshot(request)),
            None => {
                let refusal = match request.method() {
                    &Method::POST => Refusal::unsupported("application/grpc"),
                    _ => Refusal::method_not_allowed(),
                };
                Box::pin(ready(Ok(refusal.answer())))
            }
        };
        EitherFuture::Right(Box::pin(answer.map_ok(|answer| answer.map(Either::Right))))
    }
}

/// Service of requests that are not gRPC over HTTP/2, behind the answers to preflights.
#[derive(Clone)]
struct Browsers<S> {
    inner: S,
    origins: Arc<Origins>,
}

impl<S> Browsers<S> {
    /// Encoding of a gRPC-Web request, or the answer to one that is refused.
    fn admit(&self, request: &Request<Body>) -> Result<Encoding, Refusal> {
        let headers = request.headers();
        // The end of an answer of HTTP/1.0 looks like its interruption.
        if request.version() < Version::HTTP_11 {
            let text = "this service needs HTTP/1.1 or HTTP/2";
            return Err(Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, text));
        }
        let given = headers.get_all(ORIGIN);
        let allows = |origin| self.origins.allow(origin, request.uri(), headers);
        if let Some(foreign) = given.iter().find(|origin| !allows(origin)) {
            let origin = echo(&String::from_utf8_lossy(foreign.as_bytes()));
            tracing::debug!(origin, "a page of this origin may not call the API");
            let text = format!(
                "pages of the origin {origin:?} may not call this service; its operator can allow \
                 them by grpc-web-origins"
            );
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        }
        if given.iter().nth(1).is_some() {
            let text = "the request has several origin headers";
            return Err(Refusal::new(StatusCode::FORBIDDEN, text));
        }
        match (Protocol::of(headers), request.method()) {
            (Protocol::GrpcWeb(encoding), &Method::POST) => Ok(encoding),
            (_, method) if method != Method::POST => Err(Refusal::method_not_allowed()),
            (Protocol::Grpc, _) => {
                let text = "application/grpc needs HTTP/2; over HTTP/1.1 this service takes \
                            application/grpc-web+proto";
                Err(Refusal::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, text))
            }
            _ => Err(Refusal::unsupported(
                "application/grpc, application/grpc-web+proto or application/grpc-web-text+proto",
            )),
        }
    }
}

impl<S, B> Service<Request<Body>> for Browsers<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // `call` waits for the clone that it uses.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let options = &self.origins.0;
        if options.console
            && let Some(answer) = console::answer(&request, options.template_url.as_deref())
        {
            return Box::pin(ready(Ok(answer)));
        }
        let encoding = match self.admit(&request) {
            Ok(encoding) => encoding,
            Err(refusal) => return Box::pin(ready(Ok(refusal.answer()))),
        };
        let answer_encoding = accepted(request.headers()).unwrap_or(encoding);
        let inner = self.inner.clone();
        Box::pin(async move {
            let answer = inner.oneshot(body::to_grpc(request, encoding)).await?;
            Ok(body::to_web(answer, answer_encoding))
        })
    }
}

/// Encoding that a client asks for in its answer.
fn accepted(headers: &HeaderMap) -> Option<Encoding> {
    match Protocol::of_media_type(headers.get(ACCEPT)?) {
        Protocol::GrpcWeb(encoding) => Some(encoding),
        _ => None,
    }
}

/// Answer of HTTP to a request that is no call.
struct Refusal {
    code: StatusCode,
    text: String,
}

impl Refusal {
    fn new(code: StatusCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    fn unsupported(supported: &str) -> Self {
        let text = format!("the content type is not one of this service, {supported}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
    }

    fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "calls are sent by POST")
    }

    fn answer(self) -> Response<Body> {
        let body = Body::new(Full::new(Bytes::from(self.text + "\n")));
        let mut answer = Response::new(body);
        *answer.status_mut() = self.code;
        let headers = answer.headers_mut();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        headers.insert(CONTENT_TYPE, plain);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.code == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn protocols_follow_from_the_content_type() {
        for (content_type, protocol) in [
            ("application/grpc", Protocol::Grpc),
            ("application/grpc+proto", Protocol::Grpc),
            ("application/grpc; charset=utf-8", Protocol::Grpc),
            ("application/grpc-web", Protocol::GrpcWeb(Encoding::Binary)),
            (
                "Application/gRPC-Web+Proto;charset=utf-8",
                Protocol::GrpcWeb(Encoding::Binary),
            ),
            (
                "application/grpc-web-text",
                Protocol::GrpcWeb(Encoding::Base64),
            ),
            (
                "application/grpc-web-text+proto",
                Protocol::GrpcWeb(Encoding::Base64),
            ),
            ("application/grpc-web+json", Protocol::Other),
            ("application/grpc-websocket", Protocol::Other),
            ("application/grpcx", Protocol::Other),
            ("application/json", Protocol::Other),
            ("", Protocol::Other),
        ] {
            let headers = headers(&[(CONTENT_TYPE, content_type)]);
            assert_eq!(Protocol::of(&headers), protocol, "{content_type}");
        }
        assert_eq!(Protocol::of(&HeaderMap::new()), Protocol::Other);
        let mut twice = headers(&[(CONTENT_TYPE, "application/grpc")]);
        twice.append(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        assert_eq!(Protocol::of(&twice), Protocol::Other);
    }

    #[test]
    fn an_origin_is_listed_or_the_services_own() {
        let options = |has_tls, has_authentication| WebOptions {
            console: false,
            template_url: None,
            origins: vec!["https://soc.example.com".to_owned()],
            has_tls,
            has_authentication,
        };
        let open = Origins(options(false, false));
        let tokens = Origins(options(false, true));
        let tls = Origins(options(true, true));
        for (origins, origin, host, allowed) in [
            (&open, "https://soc.example.com", "127.0.0.1:50051", true),
            (&open, "https://SOC.example.com", "127.0.0.1:50051", false),
            (&open, "http://soc.example.com", "127.0.0.1:50051", false),
            (
                &open,
                "https://soc.example.com:8443",
                "127.0.0.1:50051",
                false,
            ),
            (&open, "http://127.0.0.1:50051", "127.0.0.1:50051", true),
            (&open, "http://localhost:50051", "localhost:50051", true),
            (&open, "http://[::1]:50051", "[::1]:50051", true),
            (&open, "http://127.0.0.1:50052", "127.0.0.1:50051", false),
            (&open, "http://127.0.0.1", "127.0.0.1:50051", false),
            (&open, "http://localhost:50051", "127.0.0.1:50051", false),
            // A name that leads here by DNS rebinding.
            (
                &open,
                "http://evil.example:50051",
                "evil.example:50051",
                false,
            ),
            (
                &tokens,
                "http://siem.example:50051",
                "siem.example:50051",
                true,
            ),
            // Behind a proxy that ends TLS.
            (&tokens, "https://siem.example", "siem.example", true),
            (&tokens, "https://siem.example", "siem.example:443", true),
            (&tokens, "http://siem.example", "siem.example:443", false),
            (&tls, "https://siem.example", "siem.example", true),
            (&tls, "http://siem.example", "siem.example", false),
            (&tls, "ftp://siem.example", "siem.example", false),
            (&open, "null", "127.0.0.1:50051", false),
            (&open, "", "127.0.0.1:50051", false),
            (&open, "http://", "127.0.0.1:50051", false),
            (&open, "http://localhost:50051", "", false),
        ] {
            let headers = headers(&[(HOST, host)]);
            let (origin, uri) = (HeaderValue::from_static(origin), Uri::from_static("/a.B/C"));
            let is_allowed = origins.allow(&origin, &uri, &headers);
            assert_eq!(is_allowed, allowed, "{origin:?} at {host}");
        }
        // HTTP/2 has the authority in the URI.
        let uri = Uri::from_static("http://127.0.0.1:50051/a.B/C");
        let origin = HeaderValue::from_static("http://127.0.0.1:50051");
        assert!(open.allow(&origin, &uri, &HeaderMap::new()));
    }
}
