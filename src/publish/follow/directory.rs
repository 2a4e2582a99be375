//! The files beside a log, and the names by which rotated files are recognised.

use std::{
    cmp::Reverse,
    fs::{self, File, Metadata},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::file::{FileId, Fingerprint, HEAD_BYTES, KnownFile, head};

/// Extensions of compressed files, which cannot be read here.
const COMPRESSED: [&str; 6] = ["gz", "xz", "zst", "bz2", "lz4", "Z"];

/// Relation of a file's name to that of the log, for example to `eve.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameKind {
    /// Name that a rotation by rename gives: the name of the log and a number or a date, as
    /// `eve.json.1` and `eve.json-20260102`.
    Rotated,
    /// Name of a rotated file that was compressed, as `eve.json.1.gz`.
    Compressed,
    /// Name of the log with the number of a thread or a date before its extension, as
    /// `eve.1.json` and `eve-20260102.json`. Suricata writes such files if `threaded: yes` or a
    /// file name with `%` is set, and logrotate if `extension` is set.
    Variant,
    /// Any other name, such as `eve-2.json`.
    Other,
}

impl NameKind {
    fn of(name: &str, log_name: &str) -> Self {
        let uncompressed = COMPRESSED
            .iter()
            .find_map(|extension| name.strip_suffix(extension)?.strip_suffix('.'));
        // First, since `Z` alone could end a date too.
        if uncompressed.is_some_and(|name| is_rotated(name, log_name)) {
            Self::Compressed
        } else if is_rotated(name, log_name) {
            Self::Rotated
        } else if is_variant(name, log_name) {
            Self::Variant
        } else {
            Self::Other
        }
    }
}

/// A regular file in the directory of the log.
#[derive(Debug)]
pub(super) struct Sibling {
    pub(super) path: PathBuf,
    pub(super) metadata: Metadata,
    pub(super) kind: NameKind,
}

impl Sibling {
    pub(super) fn id(&self) -> FileId {
        FileId::of(&self.metadata)
    }

    pub(super) fn modified(&self) -> SystemTime {
        self.metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// Returns the regular files beside a log without the log itself, the least recently written
/// first. Empty if the directory cannot be listed.
pub(super) fn siblings(path: &Path) -> Vec<Sibling> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let log_name = log_name(path);
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut found: Vec<(Reverse<u32>, Sibling)> = entries
        .filter(|entry| Some(&*entry.file_name()) != path.file_name())
        // Fails if the file was renamed or removed meanwhile.
        .filter_map(|entry| {
            let metadata = fs::metadata(entry.path()).ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let sibling = Sibling {
                path: entry.path(),
                metadata,
                kind: NameKind::of(&name, &log_name),
            };
            let is_file = sibling.metadata.is_file();
            is_file.then(|| (Reverse(rotation_number(&name)), sibling))
        })
        .collect();
    found.sort_by_cached_key(|(number, sibling)| {
        (sibling.modified(), *number, sibling.path.clone())
    });
    found.into_iter().map(|(_, sibling)| sibling).collect()
}

/// Returns the files of earlier rotations that are beside a log now.
pub(super) fn rotated_files(path: &Path) -> Vec<KnownFile> {
    siblings(path)
        .into_iter()
        // An empty file cannot be distinguished from the one that replaces it.
        .filter(|sibling| sibling.kind == NameKind::Rotated && sibling.metadata.len() > 0)
        .map(|sibling| {
            let opened = File::open(&sibling.path);
            let head = opened.and_then(|file| head(&file, HEAD_BYTES));
            KnownFile {
                id: sibling.id(),
                fingerprint: Fingerprint::of(&head.unwrap_or_default()),
                checkpoint: None,
            }
        })
        .collect()
}

/// Returns the file name of a log.
pub(super) fn log_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Returns the number of up to three digits at the end of a name, otherwise 0. It orders files
/// that were written in the same clock tick: `eve.json.2` is older than `eve.json.1`. Longer
/// numbers are dates.
fn rotation_number(name: &str) -> u32 {
    let numbered = name.trim_end_matches(|each: char| !each.is_ascii_digit());
    let rest = numbered.trim_end_matches(|each: char| each.is_ascii_digit());
    let digits = &numbered[rest.len()..];
    match digits.len() {
        1..=3 => digits.parse().unwrap_or(0),
        _ => 0,
    }
}

fn is_number_or_date(mark: &str) -> bool {
    mark.chars()
        .all(|each| each.is_ascii_digit() || ".-_:TZ+".contains(each))
}

fn is_rotated(name: &str, log_name: &str) -> bool {
    name.strip_prefix(log_name).is_some_and(|mark| {
        mark.starts_with(['.', '-', '_'])
            && mark.chars().any(|each| each.is_ascii_digit())
            && is_number_or_date(mark)
    })
}

fn is_variant(name: &str, log_name: &str) -> bool {
    let Some((stem, extension)) = log_name.rsplit_once('.') else {
        return false;
    };
    let mark = name
        .strip_prefix(stem)
        .and_then(|rest| rest.strip_suffix(extension))
        .and_then(|rest| rest.strip_suffix('.'));
    let Some(mark) = mark else {
        return false;
    };
    let thread = mark.strip_prefix('.').unwrap_or_default();
    let is_thread =
        (1..=4).contains(&thread.len()) && thread.bytes().all(|each| each.is_ascii_digit());
    let digits = mark.chars().filter(char::is_ascii_digit).count();
    is_thread || digits >= 6 && is_number_or_date(mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_recognised_by_their_names() {
        let check = |names: &[&str], expected: NameKind| {
            for name in names {
                assert_eq!(NameKind::of(name, "eve.json"), expected, "{name}");
            }
        };
        check(
            &[
                "eve.json.1",
                "eve.json.12",
                "eve.json-20260102",
                "eve.json.2026-01-02T03:04:05",
                "eve.json-1767322800",
            ],
            NameKind::Rotated,
        );
        check(
            &[
                "eve.json.1.gz",
                "eve.json-20260102.xz",
                "eve.json.2.zst",
                "eve.json.1.Z",
            ],
            NameKind::Compressed,
        );
        check(
            &[
                "eve.1.json",
                "eve.12.json",
                "eve-20260102.json",
                "eve-2026-01-02-03:04.json",
                "eve.20260102.json",
                "eve20260102.json",
                "eve-20260102.3.json",
            ],
            NameKind::Variant,
        );
        check(
            &[
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
            ],
            NameKind::Other,
        );
    }
}
