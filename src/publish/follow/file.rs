//! One file: its identity under any name, and reading it.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

use super::{FileStart, Position};
use crate::publish::source::{CHUNK_BYTES, Part};

/// Number of first bytes in a fingerprint; they include the time and the flow of an EVE record.
pub(super) const HEAD_BYTES: usize = 1_024;
/// Minimum number of first bytes that identify a copy of a file, which has another inode.
const MIN_COPY_FINGERPRINT_BYTES: usize = 64;

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl FileId {
    /// The id of no file.
    pub(super) const NONE: Self = Self {
        device: 0,
        inode: 0,
    };

    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// Number and SHA-1 of a file's first bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fingerprint {
    #[serde(rename = "head_length")]
    length: usize,
    #[serde(rename = "head_sha1")]
    sha1: String,
}

impl Fingerprint {
    /// Returns the fingerprint of these first bytes. If all are NULs it is empty: a truncation
    /// leaves NULs at the start, so that they identify no file.
    pub(super) fn of(head: &[u8]) -> Self {
        let head = match head.iter().all(|byte| *byte == 0) {
            true => &[],
            false => head,
        };
        let hash = Sha1::digest(head);
        Self {
            length: head.len(),
            sha1: hex::encode(hash),
        }
    }

    /// Whether it matches every file.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether it identifies a copy, which has another inode.
    pub(super) fn identifies_copy(&self) -> bool {
        self.length >= MIN_COPY_FINGERPRINT_BYTES
    }

    pub(super) fn matches(&self, file: &File) -> io::Result<bool> {
        Ok(self.matches_head(&head(file, self.length)?))
    }

    /// Whether it matches a file that starts with these bytes.
    pub(super) fn matches_head(&self, head: &[u8]) -> bool {
        let head = head.get(..self.length);
        head.is_some_and(|head| *self == Self::of(head))
    }
}

/// The end of a line up to which a file was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::publish) struct Checkpoint {
    /// Offset after the line break.
    pub(in crate::publish) offset: u64,
    /// Number of lines before `offset`.
    pub(in crate::publish) line: u64,
}

impl Checkpoint {
    /// The start of a file.
    pub(super) const START: Self = Self { offset: 0, line: 0 };
}

/// A file that was seen before. Under any name it is resumed or ignored, never read from its
/// start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownFile {
    #[serde(flatten)]
    pub(super) id: FileId,
    #[serde(flatten)]
    pub(super) fingerprint: Fingerprint,
    /// None if the file existed before the log was first followed, so that it is never read.
    #[serde(rename = "read")]
    pub(super) checkpoint: Option<Checkpoint>,
}

/// Identity of a file that is followed, and its content as of the last read.
#[derive(Debug)]
pub(in crate::publish) struct FollowedFile {
    pub(super) id: FileId,
    /// Other files that were known when reading this one began.
    pub(super) known: Vec<KnownFile>,
    last_read: Mutex<LastRead>,
}

/// Observations at the last read of a file.
#[derive(Clone, Debug)]
pub(super) struct LastRead {
    /// The first bytes.
    pub(super) head: Vec<u8>,
    pub(super) modified: SystemTime,
}

impl FollowedFile {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            id: FileId::of(&metadata),
            known: Vec::new(),
            last_read: Mutex::new(LastRead {
                head: head(file, HEAD_BYTES)?,
                modified: metadata.modified()?,
            }),
        })
    }

    /// Returns the same file with these as the other known files.
    fn with_known(&self, known: &[KnownFile]) -> Self {
        let others = known.iter().filter(|known| known.id != self.id);
        Self {
            id: self.id,
            known: others.cloned().collect(),
            last_read: Mutex::new(self.last_read().clone()),
        }
    }

    pub(super) fn last_read(&self) -> MutexGuard<'_, LastRead> {
        self.last_read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.last_read().head)
    }
}

/// An open file, and how far it was read.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    pub(super) followed: Arc<FollowedFile>,
    /// Offset of the next read.
    pub(super) offset: u64,
    /// End of the last complete line.
    pub(super) checkpoint: Checkpoint,
}

/// Result of a read.
#[derive(Debug)]
pub(super) enum ReadResult {
    Bytes(Bytes),
    End,
    /// The file is shorter than before, or its first bytes have changed.
    Truncated,
}

impl OpenFile {
    pub(super) fn new(file: File, checkpoint: Checkpoint) -> io::Result<Self> {
        Ok(Self {
            followed: Arc::new(FollowedFile::new(&file)?),
            file,
            offset: checkpoint.offset,
            checkpoint,
        })
    }

    /// Starts, or restarts, reading at the end of the last complete line.
    pub(super) fn start(&mut self, known: &[KnownFile], completes_last_line: bool) -> Part {
        self.offset = self.checkpoint.offset;
        self.followed = Arc::new(self.followed.with_known(known));
        Part::FileStart(FileStart {
            position: Position {
                file: Arc::clone(&self.followed),
                checkpoint: self.checkpoint,
            },
            completes_last_line,
        })
    }

    pub(super) fn known(&self) -> KnownFile {
        KnownFile {
            id: self.followed.id,
            fingerprint: self.followed.fingerprint(),
            checkpoint: Some(self.checkpoint),
        }
    }

    pub(super) fn read(&mut self) -> io::Result<ReadResult> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = loop {
            match self.file.read_at(&mut chunk, self.offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        // Checked after the read, so that a truncation before it is noticed.
        let metadata = self.file.metadata()?;
        let head = head(&self.file, HEAD_BYTES)?;
        let mut last_read = self.followed.last_read();
        if metadata.len() < self.offset || !head.starts_with(&last_read.head) {
            return Ok(ReadResult::Truncated);
        }
        last_read.head = head;
        last_read.modified = metadata.modified()?;
        drop(last_read);
        if read == 0 {
            return Ok(ReadResult::End);
        }
        chunk.truncate(read);
        if let Some(last) = chunk.iter().rposition(|byte| *byte == b'\n') {
            self.checkpoint.offset = self.offset + last as u64 + 1;
            self.checkpoint.line += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        self.offset += read as u64;
        Ok(ReadResult::Bytes(chunk.into()))
    }
}

/// Returns the first bytes of a file; fewer if it is shorter.
pub(super) fn head(file: &File, length: usize) -> io::Result<Vec<u8>> {
    let mut head = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(filled);
    Ok(head)
}

/// Opens a regular file; none if it does not exist.
pub(super) fn open(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    // Checked first, because opening a named pipe blocks.
    let is_file = fs::metadata(path).map(|metadata| metadata.is_file());
    let opened = is_file.and_then(|is_file| match is_file {
        true => File::open(path),
        false => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "not a regular file; only regular files can be followed",
        )),
    });
    match opened {
        Ok(file) => {
            let metadata = file.metadata()?;
            Ok(Some((file, metadata)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nuls_identify_no_file() {
        assert!(Fingerprint::of(&[0; 1_000]).is_empty());
        assert!(!Fingerprint::of(b"0000000").identifies_copy());
        assert!(Fingerprint::of(&[b'0'; 64]).identifies_copy());
    }
}
