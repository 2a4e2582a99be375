//! Files with secrets: keys, passwords, tokens.
//!
//! The rule is PostgreSQL's for `ssl_key_file`: only the owner may have access, except that the
//! group may read a file of root. Kubernetes' `fsGroup` makes secrets files of root that their
//! group may read.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

/// Most bytes of a file with secrets.
pub const MAX_BYTES: u64 = 1 << 20;

/// Reason that a file with a secret was not read.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It cannot be opened or read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// It is a directory or a device.
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    /// Others than its owner can use it.
    #[error(
        "{path} has mode {mode:04o}, so others than its owner can use the secret in it: run `chmod 600 {path}` (in Kubernetes: `defaultMode: 0400`); only a file that root owns may be readable by its group"
    )]
    Open {
        /// Path of the file.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
    },
    /// It is longer than [`MAX_BYTES`].
    #[error("{0} is larger than 1 MiB; give a file that holds the secret alone")]
    TooLarge(PathBuf),
    /// It is not UTF-8.
    #[error("{0} is not UTF-8 text")]
    NotText(PathBuf),
}

impl SecretFileError {
    /// Kind of the system's error; `InvalidData` for content or permissions that are refused.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Read { source, .. } => source.kind(),
            Self::Open { .. } => io::ErrorKind::PermissionDenied,
            Self::NotAFile(_) | Self::TooLarge(_) | Self::NotText(_) => io::ErrorKind::InvalidData,
        }
    }
}

impl From<SecretFileError> for io::Error {
    fn from(error: SecretFileError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

/// Reads a file with a secret, of at most [`MAX_BYTES`]. The bytes are wiped when they are
/// dropped.
///
/// # Errors
///
/// See [`SecretFileError`]. The permissions are those of the file that was opened, so replacing it
/// meanwhile changes nothing.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let failed = |source| SecretFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    check(path, &metadata)?;
    // One buffer of the whole size: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        metadata.len().min(MAX_BYTES) as usize + 1,
    ));
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(failed)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(SecretFileError::TooLarge(path.to_owned())),
        false => Ok(bytes),
    }
}

/// Reads a text file with a secret, as [`read`] does.
///
/// # Errors
///
/// As [`read`], and if it is not UTF-8.
pub fn read_text(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| SecretFileError::NotText(path.to_owned()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Refuses a file that others than its owner can use, without reading it: for one that a library
/// reads.
///
/// # Errors
///
/// As [`read`].
pub fn check_permissions(path: &Path) -> Result<(), SecretFileError> {
    let metadata = path.metadata().map_err(|source| SecretFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    check(path, &metadata)
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), SecretFileError> {
    if metadata.is_dir() {
        return Err(SecretFileError::NotAFile(path.to_owned()));
    }
    let mode = metadata.mode() & 0o7777;
    match mode & refused(metadata.uid()) {
        0 => Ok(()),
        _ => Err(SecretFileError::Open {
            path: path.to_owned(),
            mode,
        }),
    }
}

/// Permission bits that a file with a secret may not have, by its owner.
fn refused(uid: u32) -> u32 {
    match uid {
        0 => 0o037,
        _ => 0o077,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use super::*;

    #[test]
    fn a_group_may_read_a_file_of_root_only() {
        for (uid, mode, is_refused) in [
            (1000, 0o600, false),
            (1000, 0o400, false),
            (1000, 0o640, true),
            (1000, 0o440, true),
            (1000, 0o604, true),
            (1000, 0o610, true),
            (0, 0o600, false),
            (0, 0o640, false),
            (0, 0o440, false),
            (0, 0o660, true),
            (0, 0o650, true),
            (0, 0o644, true),
            (0, 0o601, true),
        ] {
            assert_eq!(mode & refused(uid) != 0, is_refused, "{uid} {mode:o}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_by_path_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        fs::write(&path, "secret").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        let named = path.to_str().unwrap();
        assert!(
            message.contains(named) && message.contains("0644"),
            "{message}"
        );
        assert!(message.contains(&format!("chmod 600 {named}")), "{message}");
        assert!(check_permissions(&path).is_err());
        // A link has no permissions of its own: Kubernetes links its secrets.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read(&link).is_err());
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(**read(&link).unwrap(), *b"secret");
        assert_eq!(**read_text(&path).unwrap(), *"secret");
    }

    #[test]
    fn other_content_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let write = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        };
        write(&vec![b'x'; MAX_BYTES as usize + 1]);
        assert!(matches!(read(&path), Err(SecretFileError::TooLarge(_))));
        write(b"\xff");
        assert!(matches!(read_text(&path), Err(SecretFileError::NotText(_))));
        let directory = read(folder.path());
        assert!(matches!(directory, Err(SecretFileError::NotAFile(_))));
        let absent = read(&folder.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }
}
