//! Reader of HTTP/1.1 messages with a content-length, for the sink and the bare socket.
//!
//! Not an HTTP library: the bare socket measures the least CPU that a request can take, and
//! the sink shares the processors with the service.

use std::io;

use memchr::memmem;
use tokio::{io::AsyncReadExt, net::TcpStream};

const HEAD_END: &[u8] = b"\r\n\r\n";
const CONTENT_LENGTH: &[u8] = b"content-length:";

/// Offsets of a message's body in the buffer.
pub struct Message {
    pub body: usize,
    pub end: usize,
}

/// Reads until the buffer starts with a whole message, and makes its head lowercase. Returns
/// None if the peer has closed the connection.
pub async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Message>> {
    let Some(message) = read_head(stream, buffer).await? else {
        return Ok(None);
    };
    buffer.reserve(message.end.saturating_sub(buffer.len()));
    while buffer.len() < message.end {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(message))
}

async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Message>> {
    loop {
        if let Some(at) = memmem::find(buffer, HEAD_END) {
            buffer[..at].make_ascii_lowercase();
            let body = at + HEAD_END.len();
            let end = body + content_length(&buffer[..at]);
            return Ok(Some(Message { body, end }));
        }
        buffer.reserve(64 << 10);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// Returns 0 if the head names no length.
fn content_length(head: &[u8]) -> usize {
    let value = memmem::find(head, CONTENT_LENGTH).map(|at| &head[at + CONTENT_LENGTH.len()..]);
    let digits = value.map(|value| value.trim_ascii_start());
    let digits = digits.and_then(|value| value.split(|byte| !byte.is_ascii_digit()).next());
    let text = digits.and_then(|digits| str::from_utf8(digits).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}
