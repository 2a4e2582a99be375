//! The input, read by a separate thread.
//!
//! Reading a pipe can block forever. A plain thread then blocks neither the runtime nor the
//! exit of the process. Bytes are passed on as soon as they arrive, so that a live pipe is
//! published without delay.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
    thread,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{
    Input, PublishError,
    follow::{self, FileNotice, FileStart, StateFile},
};

pub(super) const CHUNK_BYTES: usize = 128 << 10;
/// Capacity of the channel of parts.
pub(super) const PARTS_AHEAD: usize = 4;

/// A part of an input.
#[derive(Debug)]
pub(super) enum Part {
    /// Start of a followed file, to which the next bytes belong.
    FileStart(FileStart),
    /// More of the input.
    Bytes(Bytes),
    /// An incident in following a file.
    Notice(FileNotice),
}

/// An input that is being read.
#[derive(Debug)]
pub(super) struct Source {
    /// The parts, up to the end of the input or its first error.
    pub(super) parts: mpsc::Receiver<io::Result<Part>>,
    /// Length of the input, if known.
    pub(super) total_bytes: Option<u64>,
    /// Stores the position, if the input is followed.
    pub(super) state_file: Option<StateFile>,
}

pub(super) async fn open(input: Input) -> Result<Source, PublishError> {
    if let Input::Follow { path, state_file } = input {
        return follow::open(path, state_file);
    }
    let (opened, open_result) = oneshot::channel();
    let (sender, parts) = mpsc::channel(PARTS_AHEAD);
    let path = match &input {
        Input::Stdin => "standard input".into(),
        Input::File(path) | Input::Follow { path, .. } => path.clone(),
    };
    let failed = |error| PublishError::Open { path, error };
    let read = move || match input {
        Input::Stdin => {
            let _ = opened.send(Ok(None));
            pump(io::stdin().lock(), &sender);
        }
        // Opening a named pipe blocks too.
        Input::File(path) | Input::Follow { path, .. } => match open_file(&path) {
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
            parts,
            total_bytes,
            state_file: None,
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

/// Reads until the end of the input, an error, or the drop of the receiver.
fn pump(mut input: impl Read, parts: &mpsc::Sender<io::Result<Part>>) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let chunk = match input.read(&mut chunk) {
            Ok(0) => return,
            Ok(len) => {
                chunk.truncate(len);
                Ok(Part::Bytes(Bytes::from(chunk)))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => Err(error),
        };
        let failed = chunk.is_err();
        if parts.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}
