//! The state file: the position in a followed file, stored across runs.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{
    Position, directory,
    file::{self, Checkpoint, FileId, Fingerprint, FollowedFile, KnownFile},
};

/// Content of the state file: how far a log was published, and how to find the file again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::publish) struct SavedState {
    /// Path of the log, so that a state file is not used for two logs.
    path: PathBuf,
    /// [`FileId::NONE`] if the log did not exist yet.
    #[serde(flatten)]
    pub(super) id: FileId,
    /// Position up to which every alert is answered.
    #[serde(flatten)]
    pub(super) checkpoint: Checkpoint,
    #[serde(flatten)]
    pub(super) fingerprint: Fingerprint,
    /// Last modification of the file, in nanoseconds since 1970.
    modified: u64,
    /// Other files. Absent in state files of earlier versions, which compared modification times
    /// instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    known: Option<Vec<KnownFile>>,
}

impl SavedState {
    fn new(path: &Path, position: &Position) -> Self {
        let file = &position.file;
        Self {
            path: path.to_owned(),
            id: file.id,
            checkpoint: position.checkpoint,
            fingerprint: file.fingerprint(),
            modified: nanoseconds(file.last_read().modified),
            known: Some(file.known.clone()),
        }
    }

    /// Returns the state before anything is read: the file at the path is read from its start,
    /// and none of the other existing files.
    fn initial(path: &Path, now: SystemTime) -> io::Result<Self> {
        // A file that cannot be opened is treated as absent, since following waits for it.
        let opened = file::open(path).ok().flatten();
        let followed = opened
            .map(|(file, _)| FollowedFile::new(&file))
            .transpose()?;
        Ok(Self {
            path: path.to_owned(),
            id: followed.as_ref().map_or(FileId::NONE, |file| file.id),
            checkpoint: Checkpoint::START,
            fingerprint: followed
                .as_ref()
                .map_or_else(|| Fingerprint::of(&[]), FollowedFile::fingerprint),
            modified: nanoseconds(followed.map_or(now, |file| file.last_read().modified)),
            known: Some(directory::rotated_files(path)),
        })
    }

    pub(super) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.modified)
    }

    /// Returns the other known files. Without a stored list they are the rotated files that were
    /// not written to since.
    pub(super) fn known(&self) -> Vec<KnownFile> {
        self.known.clone().unwrap_or_else(|| {
            let mut known = directory::rotated_files(&self.path);
            let written: Vec<FileId> = directory::siblings(&self.path)
                .into_iter()
                .filter(|sibling| sibling.modified() >= self.modified())
                .map(|sibling| sibling.id())
                .collect();
            known.retain(|known| known.id != self.id && !written.contains(&known.id));
            known
        })
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Reason why the state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// It cannot be read or written.
    #[error("the state file {} cannot be read or written: {error}; name another with --state-file", path.display())]
    Io {
        /// The state file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// Another process has locked it.
    #[error("the state file {} is in use by another process; name another with --state-file", path.display())]
    InUse {
        /// The state file.
        path: PathBuf,
    },
    /// It is damaged, or not a state file.
    #[error("the state file {} is damaged or is another kind of file: {error}; remove it to start at the beginning of the log, or name another with --state-file", path.display())]
    Damaged {
        /// The state file.
        path: PathBuf,
        /// The error of reading it.
        error: serde_json::Error,
    },
    /// It belongs to another log.
    #[error("the state file {} belongs to the log {}; name another with --state-file", path.display(), other.display())]
    OtherLog {
        /// The state file.
        path: PathBuf,
        /// The log that it belongs to.
        other: PathBuf,
    },
}

/// The state file of a log, locked by this process.
#[derive(Debug)]
pub(in crate::publish) struct StateFile {
    /// Absolute path, so that the working directory of a run does not matter.
    log: PathBuf,
    path: PathBuf,
    saved: Option<SavedState>,
    _lock: File,
}

impl StateFile {
    pub(in crate::publish) fn open(log: &Path, path: PathBuf) -> Result<Self, StateFileError> {
        let failed = |error| StateFileError::Io {
            path: path.clone(),
            error,
        };
        let log = std::path::absolute(log).map_err(failed)?;
        let mut lock_file = path.clone().into_os_string();
        lock_file.push(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock_file)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateFileError::InUse { path }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let saved = match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<SavedState>(&text) {
                Ok(saved) => Some(saved),
                Err(error) => return Err(StateFileError::Damaged { path, error }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if let Some(saved) = &saved
            && saved.path != log
        {
            let other = saved.path.clone();
            return Err(StateFileError::OtherLog { path, other });
        }
        let mut state_file = Self {
            log,
            path,
            saved,
            _lock: lock,
        };
        if state_file.saved.is_none() {
            // Without an initial state, a kill would forget files that are rotated before the
            // first position is saved.
            let initial = state_file
                .initial_state()
                .map_err(|error| state_file.failed(error))?;
            state_file.write(initial)?;
        }
        Ok(state_file)
    }

    pub(in crate::publish) fn saved(&self) -> Option<&SavedState> {
        self.saved.as_ref()
    }

    fn failed(&self, error: io::Error) -> StateFileError {
        StateFileError::Io {
            path: self.path.clone(),
            error,
        }
    }

    fn initial_state(&self) -> io::Result<SavedState> {
        // The clock of the file system, which may be slightly behind the system clock.
        let now = self.temporary_file()?.as_file().metadata()?.modified()?;
        SavedState::initial(&self.log, now)
    }

    /// Writes the position, unless it is stored already.
    pub(in crate::publish) fn save(&mut self, position: &Position) -> Result<(), StateFileError> {
        let state = SavedState::new(&self.log, position);
        match self.saved.as_ref() == Some(&state) {
            true => Ok(()),
            false => self.write(state),
        }
    }

    fn write(&mut self, state: SavedState) -> Result<(), StateFileError> {
        self.replace(&state).map_err(|error| self.failed(error))?;
        self.saved = Some(state);
        Ok(())
    }

    fn temporary_file(&self) -> io::Result<NamedTempFile> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        NamedTempFile::new_in(directory)
    }

    /// Replaces the whole file. Synced before the rename: losing the newest position costs
    /// duplicates only, but a torn file would cost every position.
    fn replace(&self, state: &SavedState) -> io::Result<()> {
        let mut file = self.temporary_file()?;
        serde_json::to_writer(&mut file, state)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }
}
