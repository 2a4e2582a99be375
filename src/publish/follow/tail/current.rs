//! One open file, and how far it was read.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;

use super::{
    Begin, Step,
    file::{self, Followed, HEAD_BYTES, Known, Read},
};
use crate::publish::source::CHUNK_BYTES;

/// A file that is being read.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) file: File,
    pub(super) followed: Arc<Followed>,
    /// Position at which reading goes on.
    pub(super) offset: u64,
    /// The end of the last line that is complete.
    pub(super) line_end: u64,
    pub(super) lines: u64,
}

/// Result of a read.
#[derive(Debug)]
pub(super) enum More {
    Bytes(Bytes),
    End,
    /// It is shorter than it was, or starts otherwise.
    Truncated,
}

impl Current {
    pub(super) fn new(file: File, read: Read) -> io::Result<Self> {
        Ok(Self {
            followed: Arc::new(Followed::new(&file)?),
            file,
            offset: read.offset,
            line_end: read.offset,
            lines: read.line,
        })
    }

    /// It will be read on from the end of a line.
    pub(super) fn begin(&mut self, known: &[Known], ends_last: bool) -> Step {
        self.offset = self.line_end;
        self.followed = Arc::new(self.followed.knowing(known));
        Step::Begin(Begin {
            file: Arc::clone(&self.followed),
            offset: self.line_end,
            line: self.lines,
            ends_last,
        })
    }

    pub(super) fn known(&self) -> Known {
        Known {
            id: self.followed.id,
            print: self.followed.print(),
            read: Some(Read {
                offset: self.line_end,
                line: self.lines,
            }),
        }
    }

    pub(super) fn read(&mut self) -> io::Result<More> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = loop {
            match self.file.read_at(&mut chunk, self.offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let metadata = self.file.metadata()?;
        // After the read: what was truncated before it shows.
        let head = file::head(&self.file, HEAD_BYTES)?;
        let mut seen = self.followed.seen();
        if metadata.len() < self.offset || !head.starts_with(&seen.head) {
            return Ok(More::Truncated);
        }
        seen.head = head;
        seen.modified = metadata.modified()?;
        drop(seen);
        if read == 0 {
            return Ok(More::End);
        }
        chunk.truncate(read);
        if let Some(last) = chunk.iter().rposition(|byte| *byte == b'\n') {
            self.line_end = self.offset + last as u64 + 1;
            self.lines += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        self.offset += read as u64;
        Ok(More::Bytes(chunk.into()))
    }
}
