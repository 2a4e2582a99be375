//! Which file is to be read next, and from where.
//!
//! A file is read only if it is, or is known to have been, what the path names: by its inode,
//! by its first bytes, or because a rotation by rename made it since (its name is the whole
//! name of the log and a number or a date, and it was not there when the directory was last
//! looked at). A name alone is never enough.

mod current;
mod warnings;

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, File, Metadata},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;

use super::{
    Told,
    file::{self, Entry, FileId, Followed, HEAD_BYTES, Known, Read, open},
    state_file::Place,
};
use current::{Current, More};

/// Time for which a file is kept open after it was rotated and read: its writer may take a while to
/// go on to the new one.
const LINGER: Duration = Duration::from_secs(300);
/// Rotated files that are kept open. Each may take disk space that was given up.
const MAX_OLD: usize = 32;
/// Files that are gone are remembered while there are no more than so many in all.
const MAX_KNOWN: usize = 128;

/// What comes next.
#[derive(Debug)]
pub(in crate::publish) enum Step {
    /// What follows is of this file.
    Begin(Begin),
    /// More of it.
    Bytes(Bytes),
    /// Something that its reader should know.
    Told(Told),
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
    /// Whether the last line of the current file counts, though it has no line break.
    is_last_read: bool,
    /// Whether what was read last is complete, with or without its last line break.
    ends_last: bool,
    /// To go on with after the current file, which was rotated earlier and grew.
    back: Option<Current>,
    /// Files that were rotated, read and are still open, the newest last.
    old: VecDeque<Old>,
    known: Vec<Known>,
    /// Whether the path ever named a file.
    was_there: bool,
    /// To be told before anything else.
    told: VecDeque<Told>,
    /// Files of which a warning was told.
    warned: HashSet<PathBuf>,
    /// Time of the last warning that the path cannot be opened.
    absent: Option<Instant>,
    /// Time of the last check whether the sensor writes elsewhere.
    looked: Option<Instant>,
}

/// A file that was rotated and read to its end.
#[derive(Debug)]
struct Old {
    current: Current,
    /// Its length when it was read last.
    length: u64,
    /// Time of the last read.
    since: Instant,
}

impl Tail {
    /// `resume` is the place from which to go on; without it, the file's beginning.
    pub(super) fn new(path: PathBuf, resume: Option<Place>) -> Self {
        let known = resume.as_ref().map(Place::known).unwrap_or_default();
        let was_read = known.iter().any(|known| known.read.is_some());
        let was_there = was_read
            || resume
                .as_ref()
                .is_some_and(|place| place.id != FileId::NONE);
        Self {
            path,
            resume,
            current: None,
            is_last_read: false,
            ends_last: true,
            back: None,
            old: VecDeque::new(),
            known,
            was_there,
            told: VecDeque::new(),
            warned: HashSet::new(),
            absent: None,
            looked: None,
        }
    }

    /// What comes next.
    ///
    /// # Errors
    ///
    /// An input that cannot be followed, or an I/O error of the file that is read.
    pub(super) fn step(&mut self) -> io::Result<Step> {
        if let Some(told) = self.told.pop_front() {
            return Ok(Step::Told(told));
        }
        let step = match self.resume.take() {
            Some(place) => self.resume(place)?,
            None => self.read_on()?,
        };
        Ok(match (step, self.told.pop_front()) {
            (Step::Idle, Some(told)) => Step::Told(told),
            (step, Some(told)) => {
                self.told.push_front(told);
                step
            }
            (step, None) => step,
        })
    }

    fn read_on(&mut self) -> io::Result<Step> {
        let Some(current) = &mut self.current else {
            return self.next_file();
        };
        match current.read()? {
            More::Bytes(bytes) => Ok(Step::Bytes(bytes)),
            More::Truncated => self.truncated(),
            More::End => self.at_end(),
        }
    }

    /// Finds the file of a place: by its inode, or a copy by how it starts.
    fn resume(&mut self, place: Place) -> io::Result<Step> {
        if place.id == FileId::NONE {
            return self.next_file();
        }
        self.known.retain(|known| known.id != place.id);
        // A second look, since files may have been renamed during the first.
        for _ in 0..2 {
            match self.file_of(&place)? {
                Found::File(file) => {
                    self.tell_unread(&place, true)?;
                    return self.start(file, place.read);
                }
                // It is waited for.
                Found::Unreadable(error) => {
                    self.resume = Some(place);
                    self.tell_absent(&error, true);
                    return Ok(Step::Idle);
                }
                Found::Nothing => {}
            }
        }
        // An empty file that is gone is no loss.
        if !place.print.is_empty() || place.read.offset > 0 {
            self.told.push_back(Told::Loss(format!(
                "the file that was being read is gone: what it had after line {}, if anything, was not read",
                place.read.line
            )));
        }
        self.tell_unread(&place, false)?;
        // Should it be readable later.
        self.remember(Known {
            id: place.id,
            print: place.print.clone(),
            read: Some(place.read),
        });
        self.next_file()
    }

    fn file_of(&mut self, place: &Place) -> io::Result<Found> {
        let own = file::own_name(&self.path);
        let is_place = |file: &File, metadata: &Metadata| -> io::Result<(bool, bool)> {
            let starts = metadata.len() >= place.read.offset && place.print.is_of(file)?;
            let same = FileId::of(metadata) == place.id;
            Ok((starts && same, starts && place.print.is_telling()))
        };
        let mut copy = None;
        match open(&self.path) {
            Ok(Some((file, metadata))) => match is_place(&file, &metadata)? {
                (true, _) => return Ok(Found::File(file)),
                (false, true) => copy = Some(file),
                (false, false) => {}
            },
            Ok(None) => {}
            Err(error) => {
                let here = fs::metadata(&self.path).ok();
                if here.is_none_or(|here| FileId::of(&here) == place.id) {
                    return Ok(Found::Unreadable(error));
                }
            }
        }
        for entry in file::beside(&self.path) {
            let is_rotated = file::is_rotated(&entry.name, &own);
            let same = entry.id() == place.id;
            // Without first bytes a file is not identified: its inode alone may be used again.
            if entry.metadata.len() < place.read.offset || place.print.is_empty() && !is_rotated {
                continue;
            }
            match open(&entry.path) {
                Ok(Some((file, metadata))) => match is_place(&file, &metadata)? {
                    (true, _) => return Ok(Found::File(file)),
                    (false, true) => copy = Some(file),
                    (false, false) => {}
                },
                Ok(None) => {}
                Err(error) if same || is_rotated => self.tell_skipped(&entry.path, &error),
                // Another log beside the path, of which nothing is to be read.
                Err(_) => {}
            }
        }
        Ok(copy.map_or(Found::Nothing, Found::File))
    }

    /// At the end of a file: whether the writer has gone on to another.
    fn at_end(&mut self) -> io::Result<Step> {
        if self.back.is_some() {
            return self.go_back();
        }
        let Some(id) = self.current.as_ref().map(|current| current.followed.id) else {
            return Ok(Step::Idle);
        };
        let now = match fs::metadata(&self.path) {
            Ok(now) => now,
            Err(error) => {
                // It is not there for a moment whenever it is rotated.
                self.tell_absent(&error, error.kind() != io::ErrorKind::NotFound);
                return self.idle();
            }
        };
        self.absent = None;
        if FileId::of(&now) == id {
            return match self.is_time_to_look() {
                true => self.look_around(),
                false => self.idle(),
            };
        }
        // Until it has written to the new file, it writes to the old one.
        if now.len() == 0 {
            return self.idle();
        }
        let Some(current) = &mut self.current else {
            return Ok(Step::Idle);
        };
        match current.read()? {
            More::Bytes(bytes) => return Ok(Step::Bytes(bytes)),
            More::Truncated => return self.truncated(),
            More::End => {}
        }
        self.put_aside();
        self.next_file()
    }

    /// Looks beside the path, while nothing new is in it, for what could not be opened before or
    /// was written late.
    fn look_around(&mut self) -> io::Result<Step> {
        self.look_elsewhere();
        let current = self.current.as_ref().map(Current::known);
        current.into_iter().for_each(|known| self.remember(known));
        match self.missed()? {
            Some((file, read)) => Ok(self.read_again(Current::new(file, read)?, false)),
            None => self.idle(),
        }
    }

    /// Nothing new is in the current file: whether an older one has grown.
    fn idle(&mut self) -> io::Result<Step> {
        let mut at = 0;
        while let Some(old) = self.old.get(at) {
            let Ok(metadata) = old.current.file.metadata() else {
                // On NFS nothing may be left of a file that was removed.
                self.old.remove(at);
                continue;
            };
            let length = metadata.len();
            let is_over = old.since.elapsed() >= LINGER;
            let grew = length > old.length;
            let has_rest = length > old.current.line_end;
            if !grew && !is_over {
                at += 1;
                continue;
            }
            let Some(old) = self.old.remove(at) else {
                break;
            };
            if has_rest {
                return Ok(self.read_again(old.current, is_over));
            }
        }
        Ok(Step::Idle)
    }

    fn read_again(&mut self, mut old: Current, is_last_read: bool) -> Step {
        if let Some(mut current) = self.current.take() {
            self.remember(current.known());
            current.offset = current.line_end;
            self.back = Some(current);
        }
        self.is_last_read = is_last_read;
        let step = old.begin(&self.known, false);
        self.current = Some(old);
        step
    }

    /// Goes on after an older file was read again.
    fn go_back(&mut self) -> io::Result<Step> {
        self.put_aside();
        self.current = self.back.take();
        let (known, ends_last) = (&self.known, std::mem::replace(&mut self.ends_last, true));
        let begin = |current: &mut Current| current.begin(known, ends_last);
        Ok(self.current.as_mut().map_or(Step::Idle, begin))
    }

    /// Keeps a file open that was read to its end, unless it was for long enough.
    fn put_aside(&mut self) {
        let Some(mut current) = self.current.take() else {
            return;
        };
        let modified = current.followed.seen().modified;
        let is_quiet = SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|since| since >= LINGER);
        let is_last_read = std::mem::take(&mut self.is_last_read);
        // A last line without its line break counts once nobody is about to complete it.
        self.ends_last = is_last_read || is_quiet;
        let length = current.offset;
        if self.ends_last && current.line_end < length {
            current.line_end = length;
            current.lines += 1;
        }
        self.remember(current.known());
        if is_last_read {
            return;
        }
        if self.old.len() == MAX_OLD {
            // The next look at the directory finds the rest of it.
            self.old.pop_front();
        }
        self.old.push_back(Old {
            current,
            length,
            since: Instant::now(),
        });
    }

    fn remember(&mut self, known: Known) {
        self.known.retain(|other| other.id != known.id);
        self.known.push(known);
    }

    /// The oldest file that was rotated since the last one ended, or the path's.
    fn next_file(&mut self) -> io::Result<Step> {
        if let Some((file, read)) = self.missed()? {
            return self.start(file, read);
        }
        let (file, metadata) = match open(&self.path) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                self.check_pattern()?;
                self.tell_absent(&io::ErrorKind::NotFound.into(), true);
                return self.idle();
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Err(error),
            Err(error) => {
                self.tell_absent(&error, true);
                return self.idle();
            }
        };
        self.was_there = true;
        if self.absent.take().is_some() {
            self.told.push_back(Told::There);
        }
        // An empty file cannot be told from the one that takes its place.
        if metadata.len() == 0 {
            return self.idle();
        }
        // It may have been rotated, and another made, since the last look.
        if let Some((file, read)) = self.missed()? {
            return self.start(file, read);
        }
        let read = self.known_of(&file, &metadata)?;
        let read = read
            .and_then(|known| known.read)
            .filter(|read| read.offset <= metadata.len());
        self.start(file, read.unwrap_or(Read::START))
    }

    /// The oldest file beside the path that was the path, and has what was not read.
    fn missed(&mut self) -> io::Result<Option<(File, Read)>> {
        let own = file::own_name(&self.path);
        let here = fs::metadata(&self.path).ok().map(|here| FileId::of(&here));
        let beside = file::beside(&self.path);
        self.forget(&beside, here);
        for entry in beside {
            let id = entry.id();
            let is_open = self.old.iter().any(|old| old.current.followed.id == id);
            let was_read = |known: &Known| known.id == id && known.read.is_some();
            let is_rotated = file::is_rotated(&entry.name, &own);
            let is_candidate = is_rotated || self.known.iter().any(was_read);
            if !is_candidate || is_open || Some(id) == here || entry.metadata.len() == 0 {
                continue;
            }
            let (file, metadata) = match open(&entry.path) {
                Ok(Some(opened)) => opened,
                Ok(None) => continue,
                Err(error) => {
                    let never = |known: &Known| known.id == id && known.read.is_none();
                    if !self.known.iter().any(never) {
                        self.tell_skipped(&entry.path, &error);
                    }
                    continue;
                }
            };
            let read = match self.known_of(&file, &metadata)? {
                Some(known) => known.read.filter(|read| read.offset < metadata.len()),
                None => is_rotated.then_some(Read::START),
            };
            if let Some(read) = read {
                return Ok(Some((file, read)));
            }
        }
        Ok(None)
    }

    /// Finds what is known of a file: by its inode, or of what it is a copy of by how it starts.
    fn known_of(&self, file: &File, metadata: &Metadata) -> io::Result<Option<Known>> {
        let (id, head) = (FileId::of(metadata), file::head(file, HEAD_BYTES)?);
        let starts = |known: &&Known| known.print.is_of_head(&head);
        let same = self
            .known
            .iter()
            .filter(|known| known.id == id)
            .find(starts);
        let mut telling = self.known.iter().filter(|known| known.print.is_telling());
        Ok(same.or_else(|| telling.find(starts)).cloned())
    }

    /// Forgets files that are gone where there are many. A listing may miss a file that is
    /// renamed meanwhile, so one that can be told by its first bytes is kept as long as it may.
    fn forget(&mut self, beside: &[Entry], here: Option<FileId>) {
        let there: HashSet<FileId> = beside.iter().map(Entry::id).chain(here).collect();
        let open = |id| self.old.iter().any(|old| old.current.followed.id == id);
        let mut excess = self.known.len().saturating_sub(MAX_KNOWN);
        // The oldest come first.
        self.known.retain(|known| {
            if there.contains(&known.id) || open(known.id) {
                return true;
            }
            let is_excess = excess > 0;
            excess = excess.saturating_sub(1);
            !is_excess && known.print.is_telling()
        });
    }

    fn start(&mut self, file: File, read: Read) -> io::Result<Step> {
        self.was_there = true;
        self.absent = None;
        self.looked = None;
        let mut current = Current::new(file, read)?;
        let ends_last = std::mem::replace(&mut self.ends_last, true);
        let step = current.begin(&self.known, ends_last);
        self.current = Some(current);
        Ok(step)
    }

    /// What was written between the last read and the truncation is in the copy that was
    /// made before it (logrotate's copytruncate), if there is one.
    fn truncated(&mut self) -> io::Result<Step> {
        let Some(old) = self.current.take() else {
            return Ok(Step::Idle);
        };
        if let Some(current) = &mut self.back {
            // It was rotated and read, and is of no interest any more.
            let step = current.begin(&self.known, false);
            self.current = self.back.take();
            return Ok(step);
        }
        if let Some(file) = self.copy_of(&old)? {
            let read = Read {
                offset: old.line_end,
                line: old.lines,
            };
            self.ends_last = false;
            return self.start(file, read);
        }
        // The known position belongs to the content from before the truncation.
        self.known.retain(|known| known.id != old.followed.id);
        let rest = match old.offset - old.line_end {
            0 => String::new(),
            bytes => format!("{bytes} bytes of a line that was not complete, and "),
        };
        Ok(Step::Told(Told::Loss(format!(
            "the file was truncated, and no copy of it is there: it is read anew, and {rest}what it had after line {} and was not read is lost",
            old.lines
        ))))
    }

    fn copy_of(&mut self, old: &Current) -> io::Result<Option<File>> {
        let print = old.followed.print();
        if !print.is_telling() {
            return Ok(None);
        }
        let own = file::own_name(&self.path);
        for entry in file::beside(&self.path).into_iter().rev() {
            if entry.id() == old.followed.id || entry.metadata.len() < old.line_end {
                continue;
            }
            match open(&entry.path) {
                Ok(Some((file, _))) if print.is_of(&file)? => return Ok(Some(file)),
                Ok(_) => {}
                Err(error) if file::is_rotated(&entry.name, &own) => {
                    self.tell_skipped(&entry.path, &error);
                }
                // Another log beside the path, of which nothing is to be read.
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

/// Result of the search for the file of a place.
enum Found {
    File(File),
    /// It is the path, and cannot be opened.
    Unreadable(io::Error),
    Nothing,
}
