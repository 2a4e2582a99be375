//! A file that is appended to and synced by a thread of its own: once for all that has
//! come while it was at the last.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    thread,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// From where it begins anew, as a write-ahead log does.
const LENGTH: usize = 64 << 20;
/// Requests that wait; one more waits outside.
const WAITING: usize = 1024;

struct Append {
    bytes: Bytes,
    synced: oneshot::Sender<Result<(), io::ErrorKind>>,
}

#[derive(Clone)]
pub struct Log {
    appends: mpsc::Sender<Append>,
}

impl Log {
    pub fn create(folder: &Path) -> io::Result<Self> {
        let file = File::create(folder.join("intake"))?;
        let (appends, waiting) = mpsc::channel(WAITING);
        thread::spawn(move || write(file, waiting));
        Ok(Self { appends })
    }

    /// Returns once the bytes are on the disk.
    pub async fn append(&self, bytes: Bytes) -> Result<(), Status> {
        let (synced, done) = oneshot::channel();
        let gone = || Status::internal("the log's thread is gone");
        let sent = self.appends.send(Append { bytes, synced }).await;
        sent.map_err(|_| gone())?;
        let written = done.await.map_err(|_| gone())?;
        written.map_err(|error| Status::internal(error.to_string()))
    }
}

fn write(mut file: File, mut waiting: mpsc::Receiver<Append>) {
    let mut at = 0;
    while let Some(first) = waiting.blocking_recv() {
        let mut appends = vec![first];
        while let Ok(append) = waiting.try_recv() {
            appends.push(append);
        }
        let written = commit(&mut file, &mut at, &appends);
        for Append { synced, .. } in appends {
            let result = written.as_ref().map_err(io::Error::kind).copied();
            let _nobody_waits = synced.send(result);
        }
    }
}

fn commit(file: &mut File, at: &mut usize, appends: &[Append]) -> io::Result<()> {
    for Append { bytes, .. } in appends {
        file.write_all(bytes)?;
        *at += bytes.len();
    }
    file.sync_data()?;
    if *at >= LENGTH {
        *at = 0;
        file.seek(SeekFrom::Start(0))?;
    }
    Ok(())
}
