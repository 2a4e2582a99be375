//! A file and what makes it out, under whatever name.

use std::{
    cmp::Reverse,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// How many of its first bytes make a file out; an EVE record's time and flow are there.
pub(super) const HEAD_BYTES: usize = 1_024;
/// What a compressed copy is called, which cannot be read here.
const COMPRESSED: [&str; 6] = ["gz", "xz", "zst", "bz2", "lz4", "Z"];

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A file that is followed.
#[derive(Debug)]
pub(in crate::publish) struct Followed {
    pub(super) id: FileId,
    seen: Mutex<Seen>,
}

/// What was seen of it when it was last read.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Its first bytes.
    pub(super) head: Vec<u8>,
    pub(super) modified: SystemTime,
}

impl Followed {
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            id: FileId::of(&metadata),
            seen: Mutex::new(Seen {
                head: head(file, HEAD_BYTES)?,
                modified: metadata.modified()?,
            }),
        })
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a file starts as this one did.
    pub(super) fn starts(&self, file: &File) -> io::Result<bool> {
        let seen = self.seen();
        Ok(head(file, seen.head.len())? == seen.head)
    }
}

/// The first bytes of a file: fewer where it is shorter.
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

/// Opens a file; none where there is none.
pub(super) fn open(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok(Some((file, metadata))),
        false => Err(io::Error::other(
            "not a regular file, which alone can be followed",
        )),
    }
}

/// The rotated files of a log, the one that was written to longest ago first.
pub(super) fn rotated(path: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let mut found = Vec::new();
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let (Some(name), Some(own)) = (name.to_str(), path.file_name()) else {
            continue;
        };
        if !is_rotated(name, &own.to_string_lossy()) {
            continue;
        }
        // It may be renamed or removed at any time.
        let Ok(metadata) = fs::metadata(entry.path()) else {
            continue;
        };
        if metadata.is_file() {
            let age = Reverse(count(name));
            found.push(((metadata.modified()?, age, entry.path()), metadata));
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found
        .into_iter()
        .map(|((_, _, path), metadata)| (path, metadata))
        .collect())
}

/// How many rotations a name counts, where it does and not by date: `eve.json.2` is
/// older than `eve.json.1`, though both may have been written in the same tick.
fn count(name: &str) -> u32 {
    let mark = name.trim_end_matches(|each: char| !each.is_ascii_digit());
    let digits = mark.len()
        - mark
            .trim_end_matches(|each: char| each.is_ascii_digit())
            .len();
    match digits {
        1..=3 => mark[mark.len() - digits..].parse().unwrap_or(0),
        _ => 0,
    }
}

/// Whether a name is what rotation makes of another: `eve.json.1`, `eve.json-20260102`,
/// `eve-20260102.json`, `eve.1.json`, and not `eve-flow.json`.
fn is_rotated(name: &str, own: &str) -> bool {
    let is_mark = |mark: &str| {
        mark.len() > 1
            && mark.starts_with(['.', '-', '_'])
            && mark.chars().any(|each| each.is_ascii_digit())
            && mark
                .chars()
                .all(|each| each.is_ascii_digit() || ".-_:TZ+".contains(each))
    };
    if let Some(mark) = name.strip_prefix(own) {
        return is_mark(mark) || (mark == ".old" || mark == ".bak");
    }
    if COMPRESSED.iter().any(|ending| name.ends_with(ending)) {
        return false;
    }
    own.rsplit_once('.').is_some_and(|(stem, ending)| {
        let mark = name
            .strip_prefix(stem)
            .and_then(|rest| rest.strip_suffix(ending))
            .and_then(|rest| rest.strip_suffix('.'));
        mark.is_some_and(is_mark)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_told_by_their_names() {
        for name in [
            "eve.json.1",
            "eve.json-20260102",
            "eve.json.2026-01-02T03:04:05",
            "eve-20260102.json",
            "eve.1.json",
            "eve.json.old",
        ] {
            assert!(is_rotated(name, "eve.json"), "{name}");
        }
        for name in [
            "eve.json",
            "eve-flow.json",
            "eve.json.1.gz",
            "eve.json.swp",
            ".eve.json.siem-relay",
            "fast.log.1",
            "eve.json.",
        ] {
            assert!(!is_rotated(name, "eve.json"), "{name}");
        }
    }
}
