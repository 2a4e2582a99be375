//! Selection of the file to read next, and the position to start at.
//!
//! A file is read only if it is, or is known to have been, the file at the path: by its inode,
//! by its first bytes, or because a rotation by rename made it since (its name is the name of
//! the log and a number or a date, and it did not exist at the last check of the directory). A
//! name alone is never enough.

use std::{
    collections::{HashSet, VecDeque},
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use super::{
    FileNotice,
    directory::{self, NameKind, Sibling},
    file::{self, Checkpoint, FileId, HEAD_BYTES, KnownFile, OpenFile, ReadResult, open},
    state_file::SavedState,
};
use crate::publish::source::Part;

/// Time for which a rotated file is kept open after it was read, since its writer may need a
/// while to switch to the new one.
const LINGER: Duration = Duration::from_secs(300);
/// Maximum number of rotated files kept open. Each may hold disk space of a removed file.
const MAX_OPEN_ROTATED: usize = 32;
/// Number of known files above which those that no longer exist are forgotten.
const MAX_KNOWN: usize = 128;
/// Interval between checks of the directory, and between repetitions of a warning.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// Lag of the log's modification time behind another file's after which the sensor is assumed to
/// write there instead.
const WRITTEN_ELSEWHERE: Duration = Duration::from_secs(60);

/// Follower of one path.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    /// The state to resume from, until its file was found or given up.
    resume: Option<SavedState>,
    current: Option<OpenFile>,
    /// Whether the current file is read for the last time, so that its last line counts even
    /// without a line break.
    is_final_read: bool,
    /// Whether the last line of the previous file is complete even without a line break.
    completes_last_line: bool,
    /// The file to return to after the current one, which was rotated earlier and grew.
    interrupted: Option<OpenFile>,
    /// Files that were rotated, read and are still open, the newest last.
    rotated: VecDeque<RotatedFile>,
    /// Files that were seen before, the oldest first.
    known: Vec<KnownFile>,
    /// Whether the path ever named a file.
    has_existed: bool,
    /// Notices to return before anything else.
    notices: VecDeque<FileNotice>,
    /// Files that a warning has named.
    warned: HashSet<PathBuf>,
    /// Time of the last warning that the path cannot be opened.
    warned_absent_at: Option<Instant>,
    /// Time of the last check of the directory.
    checked_at: Option<Instant>,
}

/// A file that was rotated and read to its end.
#[derive(Debug)]
struct RotatedFile {
    open: OpenFile,
    /// Its length at the last read.
    length: u64,
    /// Time of the last read.
    read_at: Instant,
}

/// Result of the search for the file of a saved state.
enum Found {
    File(File),
    /// The file at the path cannot be opened, and may be the file of the saved state.
    Unreadable(io::Error),
    Nothing,
}

impl Tail {
    /// Follows `path` from the position in `resume`, or else from its start.
    pub(super) fn new(path: PathBuf, resume: Option<SavedState>) -> Self {
        let known = resume.as_ref().map(SavedState::known).unwrap_or_default();
        let was_read = known.iter().any(|known| known.checkpoint.is_some());
        let has_existed = was_read
            || resume
                .as_ref()
                .is_some_and(|state| state.id != FileId::NONE);
        Self {
            path,
            resume,
            current: None,
            is_final_read: false,
            completes_last_line: true,
            interrupted: None,
            rotated: VecDeque::new(),
            known,
            has_existed,
            notices: VecDeque::new(),
            warned: HashSet::new(),
            warned_absent_at: None,
            checked_at: None,
        }
    }

    /// Returns the next part; none while the log is idle.
    ///
    /// # Errors
    ///
    /// An input that cannot be followed, or an I/O error of the file that is read.
    pub(super) fn next_part(&mut self) -> io::Result<Option<Part>> {
        if let Some(notice) = self.notices.pop_front() {
            return Ok(Some(Part::Notice(notice)));
        }
        let part = match self.resume.take() {
            Some(state) => self.resume(state)?,
            None => self.read_current()?,
        };
        Ok(part.or_else(|| self.notices.pop_front().map(Part::Notice)))
    }

    fn read_current(&mut self) -> io::Result<Option<Part>> {
        let Some(current) = &mut self.current else {
            return self.next_file();
        };
        match current.read()? {
            ReadResult::Bytes(bytes) => Ok(Some(Part::Bytes(bytes))),
            ReadResult::Truncated => self.truncated(),
            ReadResult::End => self.at_end(),
        }
    }

    /// Resumes reading the file of a saved state, or skips it if it is gone.
    fn resume(&mut self, state: SavedState) -> io::Result<Option<Part>> {
        if state.id == FileId::NONE {
            return self.next_file();
        }
        self.known.retain(|known| known.id != state.id);
        // Searched twice, since a rotation during the first search may hide the file.
        for _ in 0..2 {
            match self.find_saved(&state)? {
                Found::File(file) => {
                    self.warn_unread(&state, true);
                    return self.start(file, state.checkpoint).map(Some);
                }
                Found::Unreadable(error) => {
                    self.resume = Some(state);
                    self.warn_absent(&error, true);
                    return Ok(None);
                }
                Found::Nothing => {}
            }
        }
        // The removal of an empty file loses nothing.
        if !state.fingerprint.is_empty() || state.checkpoint.offset > 0 {
            self.notices.push_back(FileNotice::Loss(format!(
                "the file that was being read is gone: any lines that it had after line {} were not read",
                state.checkpoint.line
            )));
        }
        self.warn_unread(&state, false);
        // It is read if it becomes readable later.
        self.remember(KnownFile {
            id: state.id,
            fingerprint: state.fingerprint,
            checkpoint: Some(state.checkpoint),
        });
        self.next_file()
    }

    /// Searches the path and its directory for the file of a saved state: by its inode and first
    /// bytes, otherwise a copy with the same first bytes.
    fn find_saved(&mut self, state: &SavedState) -> io::Result<Found> {
        // Whether it is the same file, and whether it is at least a copy.
        let compare = |file: &File, metadata: &Metadata| -> io::Result<(bool, bool)> {
            let matches =
                metadata.len() >= state.checkpoint.offset && state.fingerprint.matches(file)?;
            let is_same = FileId::of(metadata) == state.id;
            Ok((
                matches && is_same,
                matches && state.fingerprint.identifies_copy(),
            ))
        };
        let mut copy = None;
        match open(&self.path) {
            Ok(Some((file, metadata))) => match compare(&file, &metadata)? {
                (true, _) => return Ok(Found::File(file)),
                (false, true) => copy = Some(file),
                (false, false) => {}
            },
            Ok(None) => {}
            Err(error) => {
                let here = fs::metadata(&self.path).ok();
                if here.is_none_or(|here| FileId::of(&here) == state.id) {
                    return Ok(Found::Unreadable(error));
                }
            }
        }
        for sibling in directory::siblings(&self.path) {
            let is_rotated = sibling.kind == NameKind::Rotated;
            // Without first bytes only a rotated name identifies a file: inodes are reused.
            if sibling.metadata.len() < state.checkpoint.offset
                || state.fingerprint.is_empty() && !is_rotated
            {
                continue;
            }
            match open(&sibling.path) {
                Ok(Some((file, metadata))) => match compare(&file, &metadata)? {
                    (true, _) => return Ok(Found::File(file)),
                    (false, true) => copy = Some(file),
                    (false, false) => {}
                },
                Ok(None) => {}
                Err(error) if is_rotated || sibling.id() == state.id => {
                    self.warn_unreadable(&sibling.path, &error);
                }
                // It belongs to another log.
                Err(_) => {}
            }
        }
        Ok(copy.map_or(Found::Nothing, Found::File))
    }

    /// Decides at the end of the current file whether the writer has switched to another.
    fn at_end(&mut self) -> io::Result<Option<Part>> {
        if self.interrupted.is_some() {
            return Ok(self.return_to_interrupted());
        }
        let Some(id) = self.current.as_ref().map(|current| current.followed.id) else {
            return Ok(None);
        };
        let here = match fs::metadata(&self.path) {
            Ok(here) => here,
            Err(error) => {
                // During a rotation the path does not exist for a moment.
                self.warn_absent(&error, error.kind() != io::ErrorKind::NotFound);
                return Ok(self.reread_rotated());
            }
        };
        self.warned_absent_at = None;
        if FileId::of(&here) == id {
            return match self.is_check_due() {
                true => self.check_directory(),
                false => Ok(self.reread_rotated()),
            };
        }
        // Until the writer writes to the new file, it may write to the old one.
        if here.len() == 0 {
            return Ok(self.reread_rotated());
        }
        let Some(current) = &mut self.current else {
            return Ok(None);
        };
        match current.read()? {
            ReadResult::Bytes(bytes) => return Ok(Some(Part::Bytes(bytes))),
            ReadResult::Truncated => return self.truncated(),
            ReadResult::End => {}
        }
        self.set_aside();
        self.next_file()
    }

    fn is_check_due(&mut self) -> bool {
        let is_due = self
            .checked_at
            .is_none_or(|checked_at| checked_at.elapsed() >= CHECK_INTERVAL);
        if is_due {
            self.checked_at = Some(Instant::now());
        }
        is_due
    }

    /// Checks the directory of an idle log for rotated files that could not be opened before or
    /// have grown, and for signs that the sensor writes elsewhere.
    fn check_directory(&mut self) -> io::Result<Option<Part>> {
        self.warn_written_elsewhere();
        if let Some(known) = self.current.as_ref().map(OpenFile::known) {
            self.remember(known);
        }
        match self.unread_file()? {
            Some((file, checkpoint)) => {
                let file = OpenFile::new(file, checkpoint)?;
                Ok(Some(self.interrupt_for(file, false)))
            }
            None => Ok(self.reread_rotated()),
        }
    }

    /// Reads rotated files that have grown, or whose last line can no longer be completed.
    fn reread_rotated(&mut self) -> Option<Part> {
        let mut index = 0;
        while let Some(rotated) = self.rotated.get(index) {
            let Ok(metadata) = rotated.open.file.metadata() else {
                // On NFS a removed file may be inaccessible.
                self.rotated.remove(index);
                continue;
            };
            let length = metadata.len();
            let is_over = rotated.read_at.elapsed() >= LINGER;
            let has_grown = length > rotated.length;
            let has_rest = length > rotated.open.checkpoint.offset;
            if !has_grown && !is_over {
                index += 1;
                continue;
            }
            let rotated = self.rotated.remove(index)?;
            if has_rest {
                return Some(self.interrupt_for(rotated.open, is_over));
            }
        }
        None
    }

    /// Reads a rotated file, and returns to the current one after it.
    fn interrupt_for(&mut self, mut rotated: OpenFile, is_final_read: bool) -> Part {
        if let Some(mut current) = self.current.take() {
            self.remember(current.known());
            current.offset = current.checkpoint.offset;
            self.interrupted = Some(current);
        }
        self.is_final_read = is_final_read;
        let part = rotated.start(&self.known, false);
        self.current = Some(rotated);
        part
    }

    fn return_to_interrupted(&mut self) -> Option<Part> {
        self.set_aside();
        self.current = self.interrupted.take();
        let completes_last_line = std::mem::replace(&mut self.completes_last_line, true);
        let current = self.current.as_mut()?;
        Some(current.start(&self.known, completes_last_line))
    }

    /// Keeps the current file open after it was read to its end, unless this was its final read.
    fn set_aside(&mut self) {
        let Some(mut current) = self.current.take() else {
            return;
        };
        let modified = current.followed.last_read().modified;
        let is_idle = SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|since| since >= LINGER);
        let is_final_read = std::mem::take(&mut self.is_final_read);
        // A last line without a line break counts once no writer is likely to complete it.
        self.completes_last_line = is_final_read || is_idle;
        let length = current.offset;
        if self.completes_last_line && current.checkpoint.offset < length {
            current.checkpoint.offset = length;
            current.checkpoint.line += 1;
        }
        self.remember(current.known());
        if is_final_read {
            return;
        }
        if self.rotated.len() == MAX_OPEN_ROTATED {
            // The next check of the directory finds anything that is added to it.
            self.rotated.pop_front();
        }
        self.rotated.push_back(RotatedFile {
            open: current,
            length,
            read_at: Instant::now(),
        });
    }

    fn remember(&mut self, known: KnownFile) {
        self.known.retain(|other| other.id != known.id);
        self.known.push(known);
    }

    /// Starts to read the oldest unread rotated file, or else the file at the path.
    fn next_file(&mut self) -> io::Result<Option<Part>> {
        if let Some((file, checkpoint)) = self.unread_file()? {
            return self.start(file, checkpoint).map(Some);
        }
        let (file, metadata) = match open(&self.path) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                self.refuse_variant()?;
                self.warn_absent(&io::ErrorKind::NotFound.into(), true);
                return Ok(self.reread_rotated());
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Err(error),
            Err(error) => {
                self.warn_absent(&error, true);
                return Ok(self.reread_rotated());
            }
        };
        self.has_existed = true;
        if self.warned_absent_at.take().is_some() {
            self.notices.push_back(FileNotice::Present);
        }
        // An empty file cannot be distinguished from the one that replaces it.
        if metadata.len() == 0 {
            return Ok(self.reread_rotated());
        }
        // It may have been rotated, and another created, since the check above.
        if let Some((file, checkpoint)) = self.unread_file()? {
            return self.start(file, checkpoint).map(Some);
        }
        let checkpoint = self
            .find_known(&file, &metadata)?
            .and_then(|known| known.checkpoint)
            .filter(|checkpoint| checkpoint.offset <= metadata.len());
        self.start(file, checkpoint.unwrap_or(Checkpoint::START))
            .map(Some)
    }

    /// Finds the oldest file beside the path that was the log and has unread content.
    fn unread_file(&mut self) -> io::Result<Option<(File, Checkpoint)>> {
        let here = fs::metadata(&self.path).ok().map(|here| FileId::of(&here));
        let siblings = directory::siblings(&self.path);
        self.forget(&siblings, here);
        for sibling in siblings {
            let id = sibling.id();
            let was_read = |known: &KnownFile| known.id == id && known.checkpoint.is_some();
            let is_rotated = sibling.kind == NameKind::Rotated;
            let is_candidate = is_rotated || self.known.iter().any(was_read);
            if !is_candidate || self.is_open(id) || Some(id) == here || sibling.metadata.len() == 0
            {
                continue;
            }
            let (file, metadata) = match open(&sibling.path) {
                Ok(Some(opened)) => opened,
                Ok(None) => continue,
                Err(error) => {
                    let is_ignored =
                        |known: &KnownFile| known.id == id && known.checkpoint.is_none();
                    if !self.known.iter().any(is_ignored) {
                        self.warn_unreadable(&sibling.path, &error);
                    }
                    continue;
                }
            };
            let checkpoint = match self.find_known(&file, &metadata)? {
                Some(known) => known
                    .checkpoint
                    .filter(|checkpoint| checkpoint.offset < metadata.len()),
                None => is_rotated.then_some(Checkpoint::START),
            };
            if let Some(checkpoint) = checkpoint {
                return Ok(Some((file, checkpoint)));
            }
        }
        Ok(None)
    }

    /// Whether it is one of the rotated files that are kept open.
    fn is_open(&self, id: FileId) -> bool {
        self.rotated
            .iter()
            .any(|rotated| rotated.open.followed.id == id)
    }

    /// Finds a file among the known ones: by its inode and first bytes, otherwise as a copy by
    /// its first bytes.
    fn find_known(&self, file: &File, metadata: &Metadata) -> io::Result<Option<KnownFile>> {
        let (id, head) = (FileId::of(metadata), file::head(file, HEAD_BYTES)?);
        let matches = |known: &&KnownFile| known.fingerprint.matches_head(&head);
        let mut same = self.known.iter().filter(|known| known.id == id);
        let mut copies = self
            .known
            .iter()
            .filter(|known| known.fingerprint.identifies_copy());
        let found = same.find(matches).or_else(|| copies.find(matches));
        Ok(found.cloned())
    }

    /// Forgets files that no longer exist, the oldest first, down to the limit; files without an
    /// identifying fingerprint are forgotten whatever the limit. The others are kept because a
    /// listing may miss a file that is renamed meanwhile.
    fn forget(&mut self, siblings: &[Sibling], here: Option<FileId>) {
        let existing: HashSet<FileId> = siblings.iter().map(Sibling::id).chain(here).collect();
        let mut excess = self.known.len().saturating_sub(MAX_KNOWN);
        let mut known = std::mem::take(&mut self.known);
        known.retain(|known| {
            if existing.contains(&known.id) || self.is_open(known.id) {
                return true;
            }
            let is_excess = excess > 0;
            excess = excess.saturating_sub(1);
            !is_excess && known.fingerprint.identifies_copy()
        });
        self.known = known;
    }

    fn start(&mut self, file: File, checkpoint: Checkpoint) -> io::Result<Part> {
        self.has_existed = true;
        self.warned_absent_at = None;
        self.checked_at = None;
        let mut current = OpenFile::new(file, checkpoint)?;
        let completes_last_line = std::mem::replace(&mut self.completes_last_line, true);
        let part = current.start(&self.known, completes_last_line);
        self.current = Some(current);
        Ok(part)
    }

    /// Handles a truncation of the current file. Content that was written between the last read
    /// and the truncation is in the copy that was made before it (logrotate's copytruncate), if
    /// there is one.
    fn truncated(&mut self) -> io::Result<Option<Part>> {
        let Some(truncated) = self.current.take() else {
            return Ok(None);
        };
        if let Some(mut current) = self.interrupted.take() {
            // The truncated file was rotated and read before, so nothing is lost.
            let part = current.start(&self.known, false);
            self.current = Some(current);
            return Ok(Some(part));
        }
        let Checkpoint { offset, line } = truncated.checkpoint;
        if let Some(copy) = self.find_copy(&truncated)? {
            self.completes_last_line = false;
            return self.start(copy, truncated.checkpoint).map(Some);
        }
        // The known checkpoint belongs to the content before the truncation.
        self.known.retain(|known| known.id != truncated.followed.id);
        let partial_line = match truncated.offset - offset {
            0 => String::new(),
            bytes => format!("{bytes} bytes of an incomplete line and "),
        };
        Ok(Some(Part::Notice(FileNotice::Loss(format!(
            "the file was truncated, and no copy of it exists: it is read from its start, and {partial_line}any unread lines after line {line} are lost"
        )))))
    }

    /// Finds the newest copy of a file, by its first bytes.
    fn find_copy(&mut self, original: &OpenFile) -> io::Result<Option<File>> {
        let fingerprint = original.followed.fingerprint();
        if !fingerprint.identifies_copy() {
            return Ok(None);
        }
        for sibling in directory::siblings(&self.path).into_iter().rev() {
            if sibling.id() == original.followed.id
                || sibling.metadata.len() < original.checkpoint.offset
            {
                continue;
            }
            match open(&sibling.path) {
                Ok(Some((file, _))) if fingerprint.matches(&file)? => return Ok(Some(file)),
                Ok(_) => {}
                Err(error) if sibling.kind == NameKind::Rotated => {
                    self.warn_unreadable(&sibling.path, &error);
                }
                // It belongs to another log.
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// Warns of files that may be part of this log and are not read. `is_found` is whether the
    /// file of the saved state was found.
    fn warn_unread(&mut self, state: &SavedState, is_found: bool) {
        let here = fs::metadata(&self.path).ok();
        if here.is_some_and(|here| FileId::of(&here) == state.id) {
            return;
        }
        let log_name = directory::log_name(&self.path);
        for sibling in directory::siblings(&self.path) {
            let id = sibling.id();
            let is_known =
                is_found && id == state.id || self.known.iter().any(|known| known.id == id);
            let is_newer = match is_found {
                true => sibling.modified() > state.modified(),
                false => sibling.modified() >= state.modified(),
            };
            if is_known || !is_newer {
                continue;
            }
            let path = sibling.path.display();
            match sibling.kind {
                NameKind::Compressed => self.notices.push_back(FileNotice::Loss(format!(
                    "{path} was written after the last line that was read, and is not read because it is compressed: publish it with: zcat {path} | siem-relay publish --eve - …, and let logrotate delay the compression (delaycompress)"
                ))),
                NameKind::Variant => self.notices.push_back(FileNotice::Warning(format!(
                    "{path} was written after the last line that was read, and is not read because nothing shows that it was {log_name}: if it was, publish it with --eve {path}"
                ))),
                NameKind::Rotated | NameKind::Other => {}
            }
        }
    }

    /// Fails if the path has never existed and the sensor writes files with another name.
    fn refuse_variant(&self) -> io::Result<()> {
        if self.has_existed {
            return Ok(());
        }
        let variant = directory::siblings(&self.path)
            .into_iter()
            .find(|sibling| sibling.kind == NameKind::Variant);
        match variant {
            Some(sibling) => Err(io::Error::other(format!(
                "{} does not exist, but {} does: the sensor seems to write one file per day or thread, and --follow reads only the file that it names; {}",
                self.path.display(),
                directory::log_name(&sibling.path),
                self.advice()
            ))),
            None => Ok(()),
        }
    }

    /// Warns if the sensor writes to another file than the log.
    fn warn_written_elsewhere(&mut self) {
        let Some(current) = &self.current else {
            return;
        };
        let last_written = current.followed.last_read().modified;
        for sibling in directory::siblings(&self.path) {
            if sibling.kind == NameKind::Variant
                && sibling.modified() > last_written + WRITTEN_ELSEWHERE
                && self.warned.insert(sibling.path.clone())
            {
                self.notices.push_back(FileNotice::Warning(format!(
                    "{} is written to, and {} is not: if it belongs to the same sensor, its alerts are not published; {}",
                    sibling.path.display(),
                    directory::log_name(&self.path),
                    self.advice()
                )));
            }
        }
    }

    /// Reports at intervals that the path cannot be opened; the first time at once, or only
    /// after one interval.
    fn warn_absent(&mut self, error: &io::Error, at_once: bool) {
        let is_due = match self.warned_absent_at {
            Some(warned_at) => warned_at.elapsed() >= CHECK_INTERVAL,
            None => at_once,
        };
        if !is_due {
            self.warned_absent_at.get_or_insert_with(Instant::now);
            return;
        }
        self.warned_absent_at = Some(Instant::now());
        let path = self.path.display();
        self.notices.push_back(FileNotice::Absent(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "waiting for {path}, which does not exist; if the sensor writes its log elsewhere, name that file with --eve"
            ),
            _ => format!(
                "waiting for {path}, which cannot be opened: {error}; give the user of this process read permission"
            ),
        }));
    }

    fn warn_unreadable(&mut self, path: &Path, error: &io::Error) {
        if self.warned.insert(path.to_owned()) {
            self.notices.push_back(FileNotice::Loss(format!(
                "{} is skipped because it cannot be opened: {error}; give the user of this process read permission, and publish it with --eve",
                path.display()
            )));
        }
    }

    fn advice(&self) -> String {
        format!(
            "set `filename: {}` and `threaded: no` for eve-log in suricata.yaml and rotate with logrotate, or run one publisher per file",
            directory::log_name(&self.path)
        )
    }
}
