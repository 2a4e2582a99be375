//! The console: a web page over gRPC-Web, built from `clients/console` and embedded.
//!
//! Its files need no caller: they are the same for everyone, and each of the page's calls is judged
//! as any other.

use std::{io::Write as _, sync::LazyLock};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH,
        CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, REFERRER_POLICY,
        VARY, X_CONTENT_TYPE_OPTIONS,
    },
};
use http_body_util::Full;
use tonic::body::Body;

use super::Refusal;

/// Path of the page.
const PATH: &str = "/console/";
/// The page loads only its own files, calls only its own origin, and is in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'";

/// An embedded file.
struct File {
    /// Name below [`PATH`]; empty for the page itself.
    name: &'static str,
    content_type: &'static str,
    plain: Bytes,
    gzip: Bytes,
    /// Strong validators of both forms.
    etags: [HeaderValue; 2],
}

impl File {
    fn new(name: &'static str, content_type: &'static str, content: &'static [u8]) -> Self {
        let hash = hex::encode(digest(&SHA256, content).as_ref());
        let etag = |form| {
            // Hexadecimal digits and quotes are valid in a header.
            HeaderValue::from_str(&format!("\"{hash}{form}\""))
                .unwrap_or(HeaderValue::from_static("\"\""))
        };
        Self {
            name,
            content_type,
            plain: Bytes::from_static(content),
            gzip: gzip(content).into(),
            etags: [etag(""), etag("-gzip")],
        }
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to a vector does not fail.
    let _ = encoder.write_all(content);
    encoder.finish().unwrap_or_default()
}

static FILES: LazyLock<[File; 4]> = LazyLock::new(|| {
    macro_rules! file {
        ($name:literal, $file:literal, $type:literal) => {
            File::new(
                $name,
                $type,
                include_bytes!(concat!("../../../clients/console/dist/", $file)),
            )
        };
    }
    [
        file!("", "index.html", "text/html; charset=utf-8"),
        file!("console.js", "console.js", "text/javascript; charset=utf-8"),
        file!("console.css", "console.css", "text/css; charset=utf-8"),
        file!("icon.svg", "icon.svg", "image/svg+xml"),
    ]
});

/// Answers a request for the page or a file of it; `None` if the path is another one.
/// `template_url` is that of the link to CloudFormation.
pub(super) fn answer(
    request: &Request<Body>,
    template_url: Option<&str>,
) -> Option<Response<Body>> {
    let path = request.uri().path();
    let name = match path.strip_prefix(PATH) {
        Some(name) => name,
        None if path == "/console" => return Some(redirect()),
        None => return None,
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let text = "the console's files are read by GET and HEAD";
        let mut refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text).answer();
        let methods = HeaderValue::from_static("GET, HEAD");
        refusal.headers_mut().insert(ALLOW, methods);
        return Some(refusal);
    }
    let is_head = request.method() == Method::HEAD;
    if name == "settings.json" {
        let text = serde_json::json!({ "templateUrl": template_url }).to_string();
        return Some(content("application/json", text.into(), is_head));
    }
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        let text = "the console has no such file; its page is /console/";
        return Some(Refusal::new(StatusCode::NOT_FOUND, text).answer());
    };
    Some(of_file(file, request.headers(), is_head))
}

fn redirect() -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let headers = answer.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static(PATH));
    answer
}

fn of_file(file: &File, asked: &HeaderMap, is_head: bool) -> Response<Body> {
    let takes_gzip = takes_gzip(asked);
    let (bytes, etag) = match takes_gzip {
        true => (&file.gzip, &file.etags[1]),
        false => (&file.plain, &file.etags[0]),
    };
    let mut answer = match has_current(asked, etag) {
        true => {
            let mut answer = content(file.content_type, Bytes::new(), true);
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
            answer.headers_mut().remove(CONTENT_LENGTH);
            answer
        }
        false => content(file.content_type, bytes.clone(), is_head),
    };
    let headers = answer.headers_mut();
    headers.insert(ETAG, etag.clone());
    headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
    if takes_gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer
}

fn content(content_type: &'static str, bytes: Bytes, is_head: bool) -> Response<Body> {
    let length = bytes.len();
    let body = match is_head {
        true => Body::empty(),
        false => Body::new(Full::new(bytes)),
    };
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_LENGTH, length.into());
    for (name, value) in [
        (CONTENT_TYPE, content_type),
        // Asked for each time, so that page and service are of one version.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CROSS_ORIGIN_OPENER_POLICY, "same-origin"),
        (CROSS_ORIGIN_RESOURCE_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

const CROSS_ORIGIN_OPENER_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-opener-policy");
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

/// Items of the comma-separated values of a header.
fn items(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim_ascii)
}

/// Whether a client takes gzip; a weight of zero refuses it.
fn takes_gzip(headers: &HeaderMap) -> bool {
    items(headers, ACCEPT_ENCODING).any(|item| {
        let (coding, weight) = item.split_once(';').unwrap_or((item, "q=1"));
        let weight = weight.trim_ascii().strip_prefix("q=").unwrap_or("1");
        coding.trim_ascii().eq_ignore_ascii_case("gzip")
            && weight.parse::<f32>().is_ok_and(|weight| weight > 0.0)
    })
}

fn has_current(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    items(headers, IF_NONE_MATCH)
        .any(|item| item == "*" || item.trim_start_matches("W/").as_bytes() == etag.as_bytes())
}
