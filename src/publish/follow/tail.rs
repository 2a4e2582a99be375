//! Which file is to be read next, and from where.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;

use super::{
    file::{self, FileId, Followed, HEAD_BYTES},
    place::Place,
};
use crate::publish::source::CHUNK_BYTES;

/// Files that were read to their end and are remembered.
const DONE: usize = 64;
/// So few first bytes make no file out whose inode is another.
const LEAST_HEAD_BYTES: usize = 64;

/// What comes next.
#[derive(Debug)]
pub(in crate::publish) enum Step {
    /// What follows is of this file.
    Begin(Begin),
    /// More of it.
    Bytes(Bytes),
    /// Something that its reader should know.
    Note(String),
    /// Nothing for now.
    Idle,
}

/// The reading of a file begins.
#[derive(Debug)]
pub(in crate::publish) struct Begin {
    pub(in crate::publish) file: Arc<Followed>,
    /// Bytes that are passed over.
    pub(in crate::publish) offset: u64,
    /// Lines that are passed over.
    pub(in crate::publish) line: u64,
    /// Whether what was read before is complete, with or without its last line break.
    /// Otherwise its last line comes again.
    pub(in crate::publish) ends_last: bool,
}

/// Follows one path.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    resume: Option<Place>,
    current: Option<Current>,
    /// The last that were read to their end, the newest last.
    done: VecDeque<Arc<Followed>>,
    /// When the last of them was written to.
    since: Option<SystemTime>,
    waiting: bool,
}

#[derive(Debug)]
struct Current {
    file: File,
    followed: Arc<Followed>,
    /// Where to read on.
    offset: u64,
    /// The end of the last line that is complete.
    line_end: u64,
    lines: u64,
}

#[derive(Debug)]
enum Read {
    Bytes(Bytes),
    End,
    /// It is shorter than it was, or starts otherwise.
    Truncated,
}

impl Current {
    fn new(file: File, offset: u64, line: u64) -> io::Result<Self> {
        Ok(Self {
            followed: Arc::new(Followed::new(&file)?),
            file,
            offset,
            line_end: offset,
            lines: line,
        })
    }

    fn begin(&self, ends_last: bool) -> Step {
        Step::Begin(Begin {
            file: Arc::clone(&self.followed),
            offset: self.line_end,
            line: self.lines,
            ends_last,
        })
    }

    fn read(&mut self) -> io::Result<Read> {
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
            return Ok(Read::Truncated);
        }
        seen.head = head;
        seen.modified = metadata.modified()?;
        drop(seen);
        if read == 0 {
            return Ok(Read::End);
        }
        chunk.truncate(read);
        if let Some(last) = chunk.iter().rposition(|byte| *byte == b'\n') {
            self.line_end = self.offset + last as u64 + 1;
            self.lines += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
        self.offset += read as u64;
        Ok(Read::Bytes(chunk.into()))
    }
}

impl Tail {
    /// `resume` is the place from which to go on; without it, the file's beginning.
    pub(super) fn new(path: PathBuf, resume: Option<Place>) -> Self {
        Self {
            path,
            resume,
            current: None,
            done: VecDeque::new(),
            since: None,
            waiting: false,
        }
    }

    /// What comes next.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        if let Some(place) = self.resume.take() {
            return self.resume(&place);
        }
        let Some(current) = &mut self.current else {
            return self.next_file();
        };
        match current.read()? {
            Read::Bytes(bytes) => Ok(Step::Bytes(bytes)),
            Read::Truncated => self.truncated(),
            Read::End => self.at_end(),
        }
    }

    /// Finds the file of a place: by its inode, or a copy by how it starts.
    fn resume(&mut self, place: &Place) -> io::Result<Step> {
        if place.head_length == 0 {
            self.since = Some(place.modified());
            return self.next_file();
        }
        // A second look, since files may have been renamed during the first.
        for _ in 0..2 {
            if let Some(file) = self.file_of(place)? {
                return self.go_on(file, place);
            }
        }
        self.since = Some(place.modified());
        Ok(Step::Note(format!(
            "the file that was being read is gone: what it had after line {}, if anything, was not read",
            place.line
        )))
    }

    fn file_of(&self, place: &Place) -> io::Result<Option<File>> {
        let mut copy = None;
        let rotated = file::rotated(&self.path)?.into_iter().map(|(path, _)| path);
        for path in [self.path.clone()].into_iter().chain(rotated) {
            let Some((file, metadata)) = file::open(&path)? else {
                continue;
            };
            let head = file::head(&file, place.head_length)?;
            if metadata.len() < place.offset || !place.has_head(&head) {
                continue;
            }
            if FileId::of(&metadata) == place.id() {
                return Ok(Some(file));
            }
            if place.head_length >= LEAST_HEAD_BYTES {
                copy = Some(file);
            }
        }
        Ok(copy)
    }

    fn go_on(&mut self, file: File, place: &Place) -> io::Result<Step> {
        let current = Current::new(file, place.offset, place.line)?;
        let step = current.begin(true);
        self.current = Some(current);
        Ok(step)
    }

    /// At the end of a file: whether the writer has gone on to another.
    fn at_end(&mut self) -> io::Result<Step> {
        let Some(current) = &mut self.current else {
            return Ok(Step::Idle);
        };
        let now = match fs::metadata(&self.path) {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Step::Idle),
            Err(error) => return Err(error),
        };
        // Until it has written to the new file, it may still write to the old one.
        if FileId::of(&now) == current.followed.id || now.len() == 0 {
            return Ok(Step::Idle);
        }
        match current.read()? {
            Read::Bytes(bytes) => return Ok(Step::Bytes(bytes)),
            Read::Truncated => return self.truncated(),
            Read::End => {}
        }
        self.since = Some(current.followed.seen().modified);
        if self.done.len() == DONE {
            self.done.pop_front();
        }
        self.done.push_back(Arc::clone(&current.followed));
        self.current = None;
        self.next_file()
    }

    /// The oldest file that was rotated since the last one ended, or the path's.
    fn next_file(&mut self) -> io::Result<Step> {
        if let Some(file) = self.missed()? {
            return self.start(file);
        }
        match file::open(&self.path)? {
            // What is empty cannot be told from what takes its place.
            Some((_, metadata)) if metadata.len() == 0 => Ok(Step::Idle),
            // It may have been rotated, and another made, since the last look.
            Some((file, _)) => match self.missed()? {
                Some(missed) => self.start(missed),
                None => self.start(file),
            },
            None if self.waiting => Ok(Step::Idle),
            None => {
                self.waiting = true;
                let path = self.path.display();
                Ok(Step::Note(format!("{path} is not there yet")))
            }
        }
    }

    /// The oldest file that was rotated since the last one ended, and not read.
    fn missed(&self) -> io::Result<Option<File>> {
        let Some(since) = self.since else {
            return Ok(None);
        };
        for (path, metadata) in file::rotated(&self.path)? {
            if metadata.modified()? < since {
                continue;
            }
            if let Some((file, metadata)) = file::open(&path)?
                && metadata.len() > 0
                && !self.is_done(&file, FileId::of(&metadata))?
            {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    fn start(&mut self, file: File) -> io::Result<Step> {
        self.waiting = false;
        let current = Current::new(file, 0, 0)?;
        let step = current.begin(true);
        self.current = Some(current);
        Ok(step)
    }

    fn is_done(&self, file: &File, id: FileId) -> io::Result<bool> {
        for done in self.done.iter().filter(|done| done.id == id) {
            if done.starts(file)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What was written between the last read and the truncation is in the copy that was
    /// made before it (logrotate's copytruncate), if there is one.
    fn truncated(&mut self) -> io::Result<Step> {
        let Some(old) = self.current.take() else {
            return Ok(Step::Idle);
        };
        if let Some(file) = copy_of(&self.path, &old)? {
            let copy = Current {
                offset: old.line_end,
                ..Current::new(file, old.line_end, old.lines)?
            };
            let step = copy.begin(false);
            self.current = Some(copy);
            return Ok(step);
        }
        Ok(Step::Note(format!(
            "the file was truncated, and no copy of it is there: it is read anew, and what it had after line {} and was not read is lost",
            old.lines
        )))
    }
}

fn copy_of(path: &Path, old: &Current) -> io::Result<Option<File>> {
    if old.followed.seen().head.len() < LEAST_HEAD_BYTES {
        return Ok(None);
    }
    for (path, metadata) in file::rotated(path)?.into_iter().rev() {
        if FileId::of(&metadata) == old.followed.id || metadata.len() < old.line_end {
            continue;
        }
        if let Some((file, _)) = file::open(&path)?
            && old.followed.starts(&file)?
        {
            return Ok(Some(file));
        }
    }
    Ok(None)
}
