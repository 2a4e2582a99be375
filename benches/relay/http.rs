//! HTTP/1.1 messages with a content-length, one after another on one connection.

use std::io;

use memchr::memmem;
use tokio::{io::AsyncReadExt, net::TcpStream};

const HEAD_END: &[u8] = b"\r\n\r\n";
const LENGTH: &[u8] = b"content-length:";

/// Where a message's body begins and where it ends.
pub struct Message {
    pub head: usize,
    pub end: usize,
}

/// Reads until a whole message is at the buffer's start; its head becomes lowercase. None
/// once the peer has closed.
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
            let head = at + HEAD_END.len();
            let end = head + content_length(&buffer[..at]);
            return Ok(Some(Message { head, end }));
        }
        buffer.reserve(64 << 10);
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    let value = memmem::find(head, LENGTH).map(|at| &head[at + LENGTH.len()..]);
    let digits = value.map(|value| value.trim_ascii_start());
    let digits = digits.and_then(|value| value.split(|byte| !byte.is_ascii_digit()).next());
    let text = digits.and_then(|digits| str::from_utf8(digits).ok());
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}
