//! Translation between gRPC-Web and gRPC: base64 of requests and answers, and trailers, which
//! gRPC-Web has in the body.
//!
//! tonic-web does the same, but of an error in a request it keeps no more than the text, so that
//! reason and delay of a refusal are lost; it takes base64 that is damaged for a defect of the
//! server, and an answer that ends without a status for one that is complete.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE, TE},
};
use http_body::Frame;
use tonic::{Status, body::Body, codegen::StdError};

use super::Encoding;
use crate::api::errors::ApiError;

/// Flag of a frame of trailers.
const TRAILERS: u8 = 0x80;
/// Characters of base64 that stand for three bytes.
const GROUP: usize = 4;

/// Makes a gRPC request of a gRPC-Web request.
pub(super) fn to_grpc(request: Request<Body>, encoding: Encoding) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    let headers = &mut parts.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.remove(CONTENT_LENGTH);
    let body = match encoding {
        Encoding::Binary => body,
        Encoding::Base64 => Body::new(DecodedBody::new(body)),
    };
    Request::from_parts(parts, body)
}

/// Makes a gRPC-Web answer of a gRPC answer. One without any message keeps its status in the
/// headers.
pub(super) fn to_web<B>(answer: Response<B>, encoding: Encoding) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    let (mut parts, body) = answer.into_parts();
    parts.headers.insert(CONTENT_TYPE, encoding.content_type());
    let has_status = parts.headers.contains_key("grpc-status");
    let body = match has_status {
        true => Body::empty(),
        false => Body::new(EncodedBody {
            body: Body::new(body),
            encoding,
            has_ended: false,
        }),
    };
    Response::from_parts(parts, body)
}

/// Body of a request, out of base64. Its parts may each have padding.
struct DecodedBody {
    body: Body,
    /// Characters of a group that is not complete.
    rest: BytesMut,
    has_ended: bool,
}

impl DecodedBody {
    fn new(body: Body) -> Self {
        Self {
            body,
            rest: BytesMut::new(),
            has_ended: false,
        }
    }

    /// Decodes all groups that are complete.
    fn decode(&mut self, text: &[u8]) -> Result<Bytes, ApiError> {
        self.rest.extend_from_slice(text);
        let complete = self.rest.len() / GROUP * GROUP;
        let groups = self.rest.split_to(complete);
        let mut groups = &groups[..];
        let mut bytes = Vec::with_capacity(complete / GROUP * 3);
        while !groups.is_empty() {
            let padding = groups.iter().position(|character| *character == b'=');
            let end = padding.map_or(groups.len(), |padding| (padding / GROUP + 1) * GROUP);
            let (part, after) = groups.split_at(end);
            let decoded = STANDARD.decode_vec(part, &mut bytes);
            decoded.map_err(|_| ApiError::Malformed("it is not base64".to_owned()))?;
            groups = after;
        }
        Ok(bytes.into())
    }
}

impl http_body::Body for DecodedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        loop {
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?;
            let decoded = match frame.map(Frame::into_data) {
                Some(Ok(text)) => this.decode(&text),
                // Trailers of HTTP have no meaning here.
                Some(Err(_trailers)) => continue,
                None => {
                    this.has_ended = true;
                    match this.rest.is_empty() {
                        true => return Poll::Ready(None),
                        false => Err(ApiError::Malformed("its base64 is cut off".to_owned())),
                    }
                }
            };
            match decoded {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Err(error) => {
                    this.has_ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
    }
}

/// Body of an answer, whose last frame is that of its trailers.
struct EncodedBody {
    body: Body,
    encoding: Encoding,
    has_ended: bool,
}

impl EncodedBody {
    fn encode(&self, bytes: Bytes) -> Frame<Bytes> {
        Frame::data(match self.encoding {
            Encoding::Binary => bytes,
            Encoding::Base64 => STANDARD.encode(bytes).into(),
        })
    }
}

impl http_body::Body for EncodedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose();
        let trailers = match frame.map(|frame| frame.map(Frame::into_data)) {
            Ok(Some(Ok(data))) => return Poll::Ready(Some(Ok(this.encode(data)))),
            // A frame has data or trailers.
            Ok(Some(Err(trailers))) => trailers.into_trailers().unwrap_or_default(),
            Ok(None) => trailers_of(&Status::internal("the answer ended without a status")),
            Err(status) => trailers_of(&status),
        };
        this.has_ended = true;
        Poll::Ready(Some(Ok(this.encode(trailers_frame(&trailers)))))
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }
}

fn trailers_of(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        let code = HeaderValue::from(status.code() as i32);
        trailers.insert("grpc-status", code);
    }
    trailers
}

/// Frame with trailers, in the form of headers of HTTP/1.1.
fn trailers_frame(trailers: &HeaderMap) -> Bytes {
    let lines = trailers.iter();
    let length = lines.map(|(name, value)| name.as_str().len() + value.len() + 3);
    let length: usize = length.sum();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(TRAILERS);
    // Trailers are far below 4 GiB: errors are bounded.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    for (name, value) in trailers {
        frame.put_slice(name.as_ref());
        frame.put_u8(b':');
        frame.put_slice(value.as_bytes());
        frame.put_slice(b"\r\n");
    }
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body::Body as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;
    use tonic_types::StatusExt as _;

    use super::*;

    fn body_of(parts: Vec<Result<Frame<Bytes>, Status>>) -> Body {
        Body::new(StreamBody::new(stream::iter(parts)))
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(future)
    }

    fn decoded(parts: Vec<Vec<u8>>) -> Result<Bytes, Status> {
        let parts = parts.into_iter().map(|part| Ok(Frame::data(part.into())));
        let body = DecodedBody::new(body_of(parts.collect()));
        block_on(body.collect()).map(|collected| collected.to_bytes())
    }

    proptest! {
        #[test]
        fn base64_is_decoded_in_whatever_pieces(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            piece in 1_usize..9,
        ) {
            let text: String = messages.iter().map(|message| STANDARD.encode(message)).collect();
            let pieces = text.as_bytes().chunks(piece).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(&decoded(pieces).unwrap()[..], &messages.concat()[..]);
        }

        #[test]
        fn other_bytes_are_an_error_and_no_panic(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8),
        ) {
            let whole = pieces.concat();
            if let Ok(bytes) = decoded(pieces) {
                prop_assert!(bytes.len() <= whole.len());
                prop_assert_eq!(whole.len() % GROUP, 0);
            }
        }
    }

    #[test]
    fn damaged_base64_is_a_malformed_request() {
        for text in ["AAA", "AAAAA", "A\nAA", "A===", "=AAA", "AAA=A", "AB=="] {
            let status = decoded(vec![text.into()]).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{text}");
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.reason, "MALFORMED_REQUEST");
        }
    }

    #[test]
    fn an_error_of_the_body_keeps_its_details() {
        let error = Status::from(ApiError::MessageTimeout);
        let body = DecodedBody::new(body_of(vec![Err(error)]));
        let status = block_on(body.collect()).unwrap_err();
        assert!(status.get_details_retry_info().is_some());
    }

    /// Body of an answer as a client reads it.
    fn encoded(parts: Vec<Result<Frame<Bytes>, Status>>, encoding: Encoding) -> Vec<u8> {
        let answer = Response::new(body_of(parts));
        let answer = to_web(answer, encoding);
        block_on(answer.into_body().collect())
            .unwrap()
            .to_bytes()
            .to_vec()
    }

    #[test]
    fn each_answer_ends_with_its_status() {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let message = || Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x01a")));
        let complete = vec![message(), Ok(Frame::trailers(trailers))];
        assert_eq!(
            encoded(complete, Encoding::Binary),
            b"\0\0\0\0\x01a\x80\0\0\0\x0fgrpc-status:0\r\n"
        );
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        let failed = vec![message(), Err(Status::aborted("no"))];
        let trailers = b"\x80\0\0\0\x21grpc-status:10\r\ngrpc-message:no\r\n";
        assert_eq!(
            encoded(failed, Encoding::Base64),
            (text(b"\0\0\0\0\x01a") + &text(trailers)).as_bytes()
        );
        let cut = encoded(vec![message()], Encoding::Binary);
        let cut = String::from_utf8_lossy(&cut);
        assert!(cut.contains("grpc-status:13\r\n"), "{cut}");
    }

    #[test]
    fn a_status_without_messages_stays_in_the_headers() {
        let answer = Status::not_found("none").into_http::<Body>();
        let answer = to_web(answer, Encoding::Base64);
        assert_eq!(answer.headers()["grpc-status"], "5");
        let content_type = &answer.headers()[CONTENT_TYPE];
        assert_eq!(content_type, "application/grpc-web-text+proto");
        assert!(answer.body().is_end_stream());
    }
}
