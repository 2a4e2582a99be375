//! The place that is remembered: a small file that is replaced as a whole.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use super::{
    Position,
    file::{self, FileId, Followed, Known, Print, Read},
};

/// How far a file was published, and how to find the file again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::publish) struct Place {
    /// The file's name, so that one state is not used for two files.
    path: PathBuf,
    /// 0 and 0 where nothing was there yet.
    #[serde(flatten)]
    pub(super) id: FileId,
    /// Every alert before is answered.
    #[serde(flatten)]
    pub(super) read: Read,
    #[serde(flatten)]
    pub(super) print: Print,
    /// Nanoseconds since 1970.
    modified: u64,
    /// Other files. Absent in the state of versions that went by the time of a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    known: Option<Vec<Known>>,
}

impl Place {
    fn new(path: &Path, position: &Position) -> Self {
        let file = &position.file;
        Self {
            path: path.to_owned(),
            id: file.id,
            read: Read {
                offset: position.offset,
                line: position.line,
            },
            print: file.print(),
            modified: nanoseconds(file.seen().modified),
            known: Some(file.known.clone()),
        }
    }

    /// Before anything is read: the file that the path names now counts from its start, and
    /// no other file that is there.
    fn start(path: &Path, now: SystemTime) -> io::Result<Self> {
        // One that cannot be opened yet is waited for.
        let opened = file::open(path).ok().flatten();
        let followed = opened.map(|(file, _)| Followed::new(&file)).transpose()?;
        Ok(Self {
            path: path.to_owned(),
            id: followed.as_ref().map_or(FileId::NONE, |file| file.id),
            read: Read::START,
            print: followed
                .as_ref()
                .map_or_else(|| Print::of(&[]), Followed::print),
            modified: nanoseconds(followed.map_or(now, |file| file.seen().modified)),
            known: Some(file::rotated_before(path)),
        })
    }

    pub(super) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.modified)
    }

    /// Other files. For a state without them: what was rotated and not written to since.
    pub(super) fn known(&self) -> Vec<Known> {
        self.known.clone().unwrap_or_else(|| {
            let mut known = file::rotated_before(&self.path);
            let written: Vec<FileId> = file::beside(&self.path)
                .into_iter()
                .filter(|entry| entry.modified() >= self.modified())
                .map(|entry| entry.id())
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

/// Why the place cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file cannot be read or written.
    #[error("the state file {} cannot be used: {error}; name another with --state-file", path.display())]
    File {
        /// The state file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Another process has it.
    #[error("the state file {} is in use by another process; name another with --state-file", path.display())]
    InUse {
        /// The state file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{} is no state file: {error}; remove it to start at the beginning, or name another with --state-file", path.display())]
    Damaged {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// It belongs to another file.
    #[error("the state file {} is of {}; name another with --state-file", path.display(), other.display())]
    OfAnother {
        /// The state file.
        path: PathBuf,
        /// The file that it is of.
        other: PathBuf,
    },
}

/// Keeps the place, alone.
#[derive(Debug)]
pub(in crate::publish) struct Keeper {
    /// Absolute, so that it means the same from wherever it is started.
    followed: PathBuf,
    state_file: PathBuf,
    kept: Option<Place>,
    _lock: File,
}

impl Keeper {
    pub(in crate::publish) fn open(
        followed: &Path,
        state_file: PathBuf,
    ) -> Result<Self, PlaceError> {
        let failed = |error| PlaceError::File {
            path: state_file.clone(),
            error,
        };
        let followed = std::path::absolute(followed).map_err(failed)?;
        let mut lock_file = state_file.clone().into_os_string();
        lock_file.push(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock_file)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PlaceError::InUse { path: state_file }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let kept = match fs::read(&state_file) {
            Ok(text) => match serde_json::from_slice::<Place>(&text) {
                Ok(place) => Some(place),
                Err(error) => {
                    let path = state_file;
                    return Err(PlaceError::Damaged { path, error });
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if let Some(place) = &kept
            && place.path != followed
        {
            return Err(PlaceError::OfAnother {
                path: state_file,
                other: place.path.clone(),
            });
        }
        let mut keeper = Self {
            followed,
            state_file,
            kept,
            _lock: lock,
        };
        if keeper.kept.is_none() {
            keeper.start()?;
        }
        Ok(keeper)
    }

    pub(in crate::publish) fn kept(&self) -> Option<&Place> {
        self.kept.as_ref()
    }

    /// Keeps that nothing was read. Without it, what is rotated before the first place
    /// is kept would be forgotten by a kill.
    fn start(&mut self) -> Result<(), PlaceError> {
        let failed = |error| PlaceError::File {
            path: self.state_file.clone(),
            error,
        };
        // The time that files are given, which runs a little behind the clock.
        let now = self
            .temporary()
            .and_then(|file| file.as_file().metadata()?.modified());
        let place = Place::start(&self.followed, now.map_err(failed)?).map_err(failed)?;
        self.write(&place).map_err(failed)?;
        self.kept = Some(place);
        Ok(())
    }

    /// Replaces what is kept, unless it is the same.
    pub(in crate::publish) fn keep(&mut self, position: &Position) -> Result<(), PlaceError> {
        let place = Place::new(&self.followed, position);
        if self.kept.as_ref() == Some(&place) {
            return Ok(());
        }
        self.write(&place).map_err(|error| PlaceError::File {
            path: self.state_file.clone(),
            error,
        })?;
        self.kept = Some(place);
        Ok(())
    }

    fn temporary(&self) -> io::Result<NamedTempFile> {
        let directory = match self.state_file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        NamedTempFile::new_in(directory)
    }

    fn write(&self, place: &Place) -> io::Result<()> {
        let mut file = self.temporary()?;
        serde_json::to_writer(&mut file, place)?;
        file.write_all(b"\n")?;
        // An older place costs duplicates only; half a file would cost the place.
        file.as_file().sync_all()?;
        file.persist(&self.state_file)?;
        Ok(())
    }
}
