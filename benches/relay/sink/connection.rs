//! One HTTP/1.1 connection, kept alive: requests with a content-length, one after another.

use std::{io, time::Duration};

use memchr::memmem;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Shared, answers, stamp::is_cbor};

const HEAD_END: &[u8] = b"\r\n\r\n";
const LENGTH: &[u8] = b"content-length:";
/// What only Kinesis' requests have.
const TARGET: &[u8] = b"x-amz-target:";
const ASSUME_ROLE: &[u8] = b"Action=AssumeRole";

/// Answers until the peer closes.
pub async fn serve(mut stream: TcpStream, shared: Shared) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 20);
    loop {
        let Some((head, length)) = read_head(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        let end = head + length;
        buffer.reserve(end.saturating_sub(buffer.len()));
        while buffer.len() < end {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let is_write = memmem::find(&buffer[..head], TARGET).is_some();
        match is_write {
            true => write(&mut stream, &shared, &buffer[head..end]).await?,
            false => {
                let is_assume_role = memmem::find(&buffer[head..end], ASSUME_ROLE).is_some();
                shared.0.borrow_mut().tally.assumed_roles += u64::from(is_assume_role);
                stream.write_all(&answers::sts(is_assume_role)).await?;
            }
        }
        buffer.drain(..end);
    }
}

/// Where the body starts, and its length. None at the end.
async fn read_head(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(usize, usize)>> {
    loop {
        if let Some(at) = memmem::find(buffer, HEAD_END) {
            buffer[..at].make_ascii_lowercase();
            return Ok(Some((at + HEAD_END.len(), content_length(&buffer[..at]))));
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

async fn write(stream: &mut TcpStream, shared: &Shared, body: &[u8]) -> io::Result<()> {
    let (state, came) = &**shared;
    let (delay_ms, refuse) = {
        let state = state.borrow();
        (state.delay_ms, state.refuse)
    };
    if refuse {
        return stream.write_all(&answers::refused()).await;
    }
    if delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
    let answer = {
        let mut state = state.borrow_mut();
        let records = state.take(body);
        state.answers.accepted(records, is_cbor(body))
    };
    came.notify_one();
    stream.write_all(&answer).await
}
