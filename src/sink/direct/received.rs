//! An answer as it arrived.

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Body;
use http_body_util::BodyExt;

use crate::{domain::status::Cause, sink::clock::is_page};

/// An answer for 500 records has about 100 KB, and twice that where all of them fail.
const MOST_BYTES: usize = 1 << 20;

/// A whole answer, of whoever gave it.
pub(super) struct Received {
    pub(super) http_status: u16,
    pub(super) request_id: Option<String>,
    pub(super) error_type: Option<String>,
    /// The header `Date`, unless a cache answered, or a proxy with a page.
    pub(super) date: Option<String>,
    pub(super) body: Vec<u8>,
}

/// Takes an answer, which is none of AWS where it breaks off or has no end.
pub(super) async fn receive<B>(response: Response<B>) -> Result<Received, Cause>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, mut body) = response.into_parts();
    let http_status = head.status.as_u16();
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Cause::NotAws { http_status })?;
        let piece = frame.into_data().unwrap_or_default();
        if whole.len() + piece.len() > MOST_BYTES {
            return Err(Cause::NotAws { http_status });
        }
        whole.extend_from_slice(&piece);
    }
    let header = |name| header(&head.headers, name);
    Ok(Received {
        http_status,
        request_id: header("x-amzn-requestid").or_else(|| header("x-amz-request-id")),
        error_type: header("x-amzn-errortype"),
        date: header("date").filter(|_| {
            let is_page = is_page(header("content-type").as_deref());
            !is_page && !head.headers.contains_key("age")
        }),
        body: whole,
    })
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
