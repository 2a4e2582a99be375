//! A file, and the inode and first bytes that identify it under any name.

use std::{
    cmp::Reverse,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};

/// Number of first bytes that identify a file; an EVE record's time and flow are in them.
pub(super) const HEAD_BYTES: usize = 1_024;
/// Extensions of compressed copies, which cannot be read here.
const COMPRESSED: [&str; 6] = ["gz", "xz", "zst", "bz2", "lz4", "Z"];

/// Fewer first bytes do not identify a file whose inode differs.
const LEAST_PRINT_BYTES: usize = 64;

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

/// First bytes that identify a file: their number and SHA-1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Print {
    #[serde(rename = "head_length")]
    length: usize,
    #[serde(rename = "head_sha1")]
    sha1: String,
}

impl Print {
    /// NULs identify no file: a truncation leaves them at the start.
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

    /// Whether any file starts so.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Whether it identifies a copy, whose inode differs.
    pub(super) fn is_telling(&self) -> bool {
        self.length >= LEAST_PRINT_BYTES
    }

    pub(super) fn is_of(&self, file: &File) -> io::Result<bool> {
        Ok(self.is_of_head(&head(file, self.length)?))
    }

    /// Whether it is of a file that starts with these bytes.
    pub(super) fn is_of_head(&self, head: &[u8]) -> bool {
        let head = head.get(..self.length);
        head.is_some_and(|head| *self == Self::of(head))
    }
}

/// A file seen before. Under any name it is resumed or ignored, never read from its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    #[serde(flatten)]
    pub(super) id: FileId,
    #[serde(flatten)]
    pub(super) print: Print,
    /// Progress of its reading; none where it was there before the log was first followed, and
    /// is never read.
    pub(super) read: Option<Read>,
}

/// Progress of reading a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Read {
    /// Bytes up to the end of a line.
    pub(super) offset: u64,
    /// Lines before `offset`.
    pub(super) line: u64,
}

impl Read {
    /// Nothing was read.
    pub(super) const START: Self = Self { offset: 0, line: 0 };
}

/// A file that is followed.
#[derive(Debug)]
pub(in crate::publish) struct Followed {
    pub(super) id: FileId,
    /// Other files, as they were known when its reading began.
    pub(super) known: Vec<Known>,
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
            known: Vec::new(),
            seen: Mutex::new(Seen {
                head: head(file, HEAD_BYTES)?,
                modified: metadata.modified()?,
            }),
        })
    }

    /// The same file, with other files known.
    pub(super) fn knowing(&self, known: &[Known]) -> Self {
        let others = known.iter().filter(|known| known.id != self.id);
        Self {
            id: self.id,
            known: others.cloned().collect(),
            seen: Mutex::new(self.seen().clone()),
        }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn print(&self) -> Print {
        Print::of(&self.seen().head)
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

/// Opens a regular file; none where there is none.
pub(super) fn open(path: &Path) -> io::Result<Option<(File, Metadata)>> {
    // Before it is opened, since that blocks where it is a named pipe.
    let is_file = fs::metadata(path).map(|metadata| metadata.is_file());
    let opened = is_file.and_then(|is_file| match is_file {
        true => File::open(path),
        false => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "not a regular file, which alone can be followed",
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

/// A file of the log's directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
}

impl Entry {
    pub(super) fn id(&self) -> FileId {
        FileId::of(&self.metadata)
    }

    pub(super) fn modified(&self) -> SystemTime {
        self.metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The regular files beside a log but for the log itself, the one that was written to longest
/// ago first. None where the directory cannot be listed.
pub(super) fn beside(path: &Path) -> Vec<Entry> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<Entry> = entries
        .filter(|entry| Some(&*entry.file_name()) != path.file_name())
        // It may be renamed or removed at any time.
        .filter_map(|entry| {
            let metadata = fs::metadata(entry.path()).ok()?;
            metadata.is_file().then(|| Entry {
                name: entry.file_name().to_string_lossy().into_owned(),
                path: entry.path(),
                metadata,
            })
        })
        .collect();
    found.sort_by_cached_key(|entry| {
        let age = Reverse(count(&entry.name));
        (entry.modified(), age, entry.path.clone())
    });
    found
}

/// The files of an earlier rotation that are beside a log now.
pub(super) fn rotated_before(path: &Path) -> Vec<Known> {
    let beside = beside(path).into_iter();
    let rotated = beside.filter(|entry| is_rotated(&entry.name, &own_name(path)));
    rotated
        // An empty file cannot be told from the one that takes its place.
        .filter(|entry| entry.metadata.len() > 0)
        .map(|entry| {
            let opened = File::open(&entry.path);
            let head = opened.and_then(|file| head(&file, HEAD_BYTES));
            Known {
                id: entry.id(),
                print: Print::of(&head.unwrap_or_default()),
                read: None,
            }
        })
        .collect()
}

/// The name of a log.
pub(super) fn own_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
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

/// Whether a name is what a rotation by rename makes of another: the whole name and a number or
/// a date, as `eve.json.1` and `eve.json-20260102`.
pub(super) fn is_rotated(name: &str, own: &str) -> bool {
    let is_part = |each: char| each.is_ascii_digit() || ".-_:TZ+".contains(each);
    name.strip_prefix(own).is_some_and(|mark| {
        mark.starts_with(['.', '-', '_'])
            && mark.chars().any(|each| each.is_ascii_digit())
            && mark.chars().all(is_part)
    })
}

/// Whether a name is that of a rotated file that was compressed.
pub(super) fn is_compressed(name: &str, own: &str) -> bool {
    COMPRESSED.iter().any(|ending| {
        let plain = name.strip_suffix(ending);
        let plain = plain.and_then(|plain| plain.strip_suffix('.'));
        plain.is_some_and(|plain| is_rotated(plain, own))
    })
}

/// Whether a name has a thread's number or a date within that of the log, before its ending:
/// `eve.1.json`, `eve-20260102.json`. Suricata writes such files by `threaded: yes` and by a
/// file name with `%`, and logrotate by `extension`. `eve-2.json` is none.
pub(super) fn is_variant(name: &str, own: &str) -> bool {
    let Some((stem, ending)) = own.rsplit_once('.') else {
        return false;
    };
    let mark = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(ending))
        .and_then(|rest| rest.strip_suffix('.'));
    let Some(mark) = mark else {
        return false;
    };
    let thread = mark.strip_prefix('.').unwrap_or_default();
    let is_thread =
        (1..=4).contains(&thread.len()) && thread.bytes().all(|each| each.is_ascii_digit());
    let digits = mark.chars().filter(char::is_ascii_digit).count();
    let is_part = |each: char| each.is_ascii_digit() || ".-_:TZ+".contains(each);
    is_thread || digits >= 6 && mark.chars().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_told_by_their_names() {
        let kinds = |name: &str| {
            let own = "eve.json";
            (
                is_rotated(name, own),
                is_compressed(name, own),
                is_variant(name, own),
            )
        };
        for name in [
            "eve.json.1",
            "eve.json.12",
            "eve.json-20260102",
            "eve.json.2026-01-02T03:04:05",
            "eve.json-1767322800",
        ] {
            assert_eq!(kinds(name), (true, false, false), "{name}");
        }
        for name in ["eve.json.1.gz", "eve.json-20260102.xz", "eve.json.2.zst"] {
            assert_eq!(kinds(name), (false, true, false), "{name}");
        }
        for name in [
            "eve.1.json",
            "eve.12.json",
            "eve-20260102.json",
            "eve-2026-01-02-03:04.json",
            "eve.20260102.json",
            "eve20260102.json",
            "eve-20260102.3.json",
        ] {
            assert_eq!(kinds(name), (false, false, true), "{name}");
        }
        for name in [
            "eve.json",
            "eve-2.json",
            "eve2.json",
            "eve-flow.json",
            "eve-flow-20260102.json",
            "eve.json.old",
            "eve.json.bak",
            "eve.json.swp",
            ".eve.json.siem-relay",
            "fast.log.1",
            "eve.json.",
            "eve-2.json.1",
            "xeve.json.1",
        ] {
            assert_eq!(kinds(name), (false, false, false), "{name}");
        }
    }

    #[test]
    fn nuls_make_no_file_out() {
        assert!(Print::of(&[0; 1_000]).is_empty());
        assert!(!Print::of(b"0000000").is_telling());
        assert!(Print::of(&[b'0'; 64]).is_telling());
    }
}
