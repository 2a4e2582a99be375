//! Reads the input on a thread of its own.
//!
//! Reading a pipe can block for ever. On a plain thread that holds up neither the
//! runtime nor the end of the process. What is there is passed on at once, so that
//! a live pipe is prompt. Whatever else yields parts can take this one's place.

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
    follow::{self, Begin, Keeper, Told},
};

pub(super) const CHUNK_BYTES: usize = 128 << 10;
/// Parts that were read and not taken yet.
pub(super) const PARTS_AHEAD: usize = 4;

/// What comes of an input.
#[derive(Debug)]
pub(super) enum Part {
    /// What follows is of this file.
    Begin(Begin),
    /// More of the input.
    Bytes(Bytes),
    /// Something that happened to a file that is followed.
    Told(Told),
}

/// An input that is being read.
#[derive(Debug)]
pub(super) struct Source {
    /// Ends where the input does, or after an error.
    pub(super) parts: mpsc::Receiver<io::Result<Part>>,
    /// How much there is, where that is known.
    pub(super) total_bytes: Option<u64>,
    /// Remembers the place, where the input is followed.
    pub(super) keeper: Option<Keeper>,
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
        // Opening blocks as well where it is a named pipe.
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
            keeper: None,
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

/// Ends when nobody takes the parts any more.
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
