//! Reads the input on a thread of its own.
//!
//! Reading a pipe can block for ever. On a plain thread that holds up neither the
//! runtime nor the end of the process. What is there is passed on at once, so that
//! a live pipe is prompt. Whatever else yields chunks can take this one's place.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
    thread,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{Input, PublishError};

const CHUNK_BYTES: usize = 128 << 10;
/// Chunks that were read and not taken yet.
const CHUNKS_AHEAD: usize = 4;

/// An input that is being read.
#[derive(Debug)]
pub(super) struct Source {
    /// Ends where the input does, or after an error.
    pub(super) chunks: mpsc::Receiver<io::Result<Bytes>>,
    /// How much there is, where that is known.
    pub(super) total_bytes: Option<u64>,
}

pub(super) async fn open(input: Input) -> Result<Source, PublishError> {
    let (opened, open_result) = oneshot::channel();
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let path = match &input {
        Input::Stdin => "standard input".into(),
        Input::File(path) => path.clone(),
    };
    let failed = |error| PublishError::Open { path, error };
    let read = move || match input {
        Input::Stdin => {
            let _ = opened.send(Ok(None));
            pump(io::stdin().lock(), &sender);
        }
        // Opening blocks as well where it is a named pipe.
        Input::File(path) => match open_file(&path) {
            Ok((file, total_bytes)) => {
                let _ = opened.send(Ok(total_bytes));
                pump(file, &sender);
            }
            Err(error) => {
                let _ = opened.send(Err(error));
            }
        },
    };
    let thread = thread::Builder::new().name("eve-reader".into()).spawn(read);
    if let Err(error) = thread {
        return Err(failed(error));
    }
    match open_result.await {
        Ok(Ok(total_bytes)) => Ok(Source {
            chunks,
            total_bytes,
        }),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(failed(io::Error::other("the reading thread ended"))),
    }
}

fn open_file(path: &Path) -> io::Result<(File, Option<u64>)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    let total_bytes = metadata.is_file().then_some(metadata.len());
    Ok((file, total_bytes))
}

/// Ends when nobody takes the chunks any more.
fn pump(mut input: impl Read, chunks: &mpsc::Sender<io::Result<Bytes>>) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let chunk = match input.read(&mut chunk) {
            Ok(0) => return,
            Ok(len) => {
                chunk.truncate(len);
                Ok(Bytes::from(chunk))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}
