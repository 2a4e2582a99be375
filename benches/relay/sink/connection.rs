//! One HTTP/1.1 connection, kept alive: requests with a content-length, one after another.

use std::{io, time::Duration};

use memchr::memmem;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{Shared, answers, stamp::is_cbor};
use crate::http::{self, Message};

/// What only Kinesis' requests have.
const TARGET: &[u8] = b"x-amz-target:";
const ASSUME_ROLE: &[u8] = b"Action=AssumeRole";
/// The session policy of a role that is tried without knowing its external ID.
const PROBE: &[u8] = b"Deny";

/// Answers until the peer closes.
pub async fn serve(mut stream: TcpStream, shared: Shared) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 20);
    loop {
        let Some(Message { head, end }) = http::read(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        let is_write = memmem::find(&buffer[..head], TARGET).is_some();
        match is_write {
            true => write(&mut stream, &shared, &buffer[head..end]).await?,
            false => {
                let body = &buffer[head..end];
                if memmem::find(body, PROBE).is_some() {
                    stream.write_all(&answers::denied()).await?;
                } else {
                    let is_assume_role = memmem::find(body, ASSUME_ROLE).is_some();
                    shared.0.borrow_mut().tally.assumed_roles += u64::from(is_assume_role);
                    stream.write_all(&answers::sts(is_assume_role)).await?;
                }
            }
        }
        buffer.drain(..end);
    }
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
