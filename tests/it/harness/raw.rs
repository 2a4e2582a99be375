//! Requests as bytes, for those that no generated client sends.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tonic::Status;
use tower::{Service as _, ServiceExt as _};

use super::{Api, with_timeout};

/// An answer as bytes.
pub struct RawAnswer {
    pub headers: HeaderMap,
    /// The headers again if there is no message.
    pub trailers: HeaderMap,
    /// Messages with their prefixes.
    pub body: Bytes,
}

impl RawAnswer {
    pub fn status(&self) -> Status {
        Status::from_header_map(&self.trailers).expect("a status")
    }

    /// The status of a call that must fail. It must fit into the trailers that clients accept.
    #[track_caller]
    pub fn refusal(&self) -> Status {
        // HTTP/2 counts 32 bytes more for each header.
        let bytes: usize = self
            .trailers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 32)
            .sum();
        assert!(bytes < 8 << 10, "{bytes} bytes of trailers");
        let details = self.trailers.get("grpc-status-details-bin");
        assert!(details.is_none_or(|details| details.len() <= 4 << 10));
        let status = self.status();
        assert_ne!(status.code(), tonic::Code::Ok);
        status
    }

    /// The only message of an answer that is not an error.
    #[track_caller]
    pub fn message<M: prost::Message + Default>(&self) -> M {
        let mut messages = self.messages();
        assert_eq!(messages.len(), 1, "{:?}", self.status());
        messages.remove(0)
    }

    #[track_caller]
    pub fn messages<M: prost::Message + Default>(&self) -> Vec<M> {
        let mut rest = &self.body[..];
        let mut messages = Vec::new();
        while let Some((prefix, after)) = rest.split_at_checked(5) {
            let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
            let (message, after) = after.split_at(length);
            messages.push(M::decode(message).unwrap());
            rest = after;
        }
        messages
    }
}

impl Api {
    /// Sends a body to a method such as `siem.v1.EventService/Publish`.
    pub async fn raw(&self, method: &str, encoding: Option<&str>, body: Vec<u8>) -> RawAnswer {
        let mut request = Request::post(format!("http://{}/{method}", self.address()))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(encoding) = encoding {
            request = request.header("grpc-encoding", encoding);
        }
        let body = tonic::body::Body::new(Full::new(Bytes::from(body)));
        let request = request.body(body).unwrap();
        with_timeout(method, self.call(request)).await
    }

    /// Sends the beginning of a body, and then nothing, until the server answers.
    pub fn half_sent(
        &self,
        method: &str,
        beginning: Vec<u8>,
    ) -> impl Future<Output = RawAnswer> + use<> {
        let beginning = Ok::<_, Status>(Frame::data(Bytes::from(beginning)));
        let body = stream::iter([beginning]).chain(stream::pending());
        let request = Request::post(format!("http://{}/{method}", self.address()))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(tonic::body::Body::new(StreamBody::new(body)))
            .unwrap();
        let api = self.clone();
        async move { with_timeout("an answer", api.call(request)).await }
    }

    async fn call(&self, request: Request<tonic::body::Body>) -> RawAnswer {
        let mut channel = self.channel();
        {
            let answer = channel.ready().await.unwrap().call(request).await.unwrap();
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.unwrap();
            let trailers = body.trailers().cloned();
            RawAnswer {
                trailers: trailers.unwrap_or_else(|| parts.headers.clone()),
                headers: parts.headers,
                body: body.to_bytes(),
            }
        }
    }
}

/// A message with its gRPC prefix; flag 1 marks a compressed message.
pub fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[flag], &length.to_be_bytes()[..], message].concat()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
