//! A gRPC-Web client, as a browser is one: over HTTP/1.1 or HTTP/2, binary or as text.

use std::net::SocketAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tonic::Status;

use super::{framed, with_timeout};

pub const BINARY: &str = "application/grpc-web+proto";
pub const TEXT: &str = "application/grpc-web-text+proto";

/// A connection.
pub enum WebClient {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl WebClient {
    /// Connects by HTTP/1.1.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::http1(TcpStream::connect(address).await.unwrap()).await
    }

    pub async fn http1(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (send, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(send)
    }

    pub async fn http2(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let executor = TokioExecutor::new();
        let (send, connection) = http2::handshake(executor, TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        Self::Http2(send)
    }

    /// Sends a request. None if the connection ends before the answer begins.
    pub async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Option<Response<Incoming>> {
        let answer = async {
            match self {
                Self::Http1(send) => {
                    let path = request.uri().path_and_query().unwrap().to_string();
                    *request.uri_mut() = path.parse().unwrap();
                    send.ready().await?;
                    send.send_request(request).await
                }
                Self::Http2(send) => {
                    request.headers_mut().remove("host");
                    send.ready().await?;
                    send.send_request(request).await
                }
            }
        };
        with_timeout("an answer", answer).await.ok()
    }

    /// Performs a call with further headers.
    pub async fn call(
        &mut self,
        method: &str,
        content_type: &str,
        headers: &[(&str, &str)],
        message: &impl Message,
    ) -> WebAnswer {
        let body = framed(0, &message.encode_to_vec());
        let request = request(method, content_type, headers, &body);
        WebAnswer::read(self.send(request).await.expect("an answer")).await
    }
}

/// A request with this body, in base64 if the content type says so.
pub fn request(
    method: &str,
    content_type: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Request<Full<Bytes>> {
    let body = match content_type.contains("-text") {
        true => STANDARD.encode(body).into_bytes(),
        false => body.to_vec(),
    };
    let mut request = Request::post(format!("http://localhost/{method}"))
        .header("host", "localhost")
        .header("content-type", content_type)
        .header("x-grpc-web", "1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from(body))).unwrap()
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct WebAnswer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    /// Messages without their prefixes.
    pub messages: Vec<Bytes>,
    /// Trailers of the body. None if it has none.
    pub trailers: Option<HeaderMap>,
    /// Body of an answer that is not gRPC-Web.
    pub text: String,
}

impl WebAnswer {
    pub async fn read(answer: Response<Incoming>) -> Self {
        let (parts, body) = answer.into_parts();
        let body = with_timeout("the end of an answer", body.collect()).await;
        let body = body.unwrap().to_bytes();
        let mut read = Self {
            code: parts.status,
            messages: Vec::new(),
            trailers: None,
            text: String::new(),
            headers: parts.headers,
        };
        let content_type = read.headers.get("content-type").cloned();
        match content_type.as_ref().map(HeaderValue::as_bytes) {
            Some(b"application/grpc-web+proto") => read.parse(&body),
            Some(b"application/grpc-web-text+proto") => {
                let groups = body.chunks(4).map(|group| STANDARD.decode(group).unwrap());
                read.parse(&groups.collect::<Vec<_>>().concat());
            }
            _ => read.text = String::from_utf8(body.to_vec()).unwrap(),
        }
        read
    }

    fn parse(&mut self, mut rest: &[u8]) {
        while let Some((flag, message, after)) = first_frame(rest) {
            assert!(self.trailers.is_none(), "trailers come last");
            match flag {
                0 => self.messages.push(Bytes::copy_from_slice(message)),
                0x80 => self.trailers = Some(parse_trailers(message)),
                flag => panic!("flag {flag}"),
            }
            rest = after;
        }
        assert!(rest.is_empty(), "{rest:?}");
    }

    /// The status, out of the headers or the body.
    #[track_caller]
    pub fn status(&self) -> Status {
        let headers = self.trailers.as_ref().unwrap_or(&self.headers);
        Status::from_header_map(headers).unwrap_or_else(|| panic!("no status: {self:?}"))
    }

    /// The message of a unary answer.
    #[track_caller]
    pub fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.status().code(), tonic::Code::Ok, "{self:?}");
        assert_eq!(self.messages.len(), 1);
        M::decode(&self.messages[0][..]).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

/// Splits the first frame off: flag, content, rest. None if there is no whole one.
pub fn first_frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (prefix, rest) = bytes.split_at_checked(5)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize;
    let (content, after) = rest.split_at_checked(length)?;
    Some((prefix[0], content, after))
}

pub fn parse_trailers(frame: &[u8]) -> HeaderMap {
    let text = std::str::from_utf8(frame).unwrap();
    let lines = text.split_terminator("\r\n");
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            let name: HeaderName = name.parse().unwrap();
            (name, value.trim_start().parse().unwrap())
        })
        .collect()
}
