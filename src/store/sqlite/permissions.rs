//! Permissions of the files in the data directory, which hold customers' events.
//!
//! The process makes files and directories for its user alone (its umask). Files of earlier
//! versions are tightened. The directory may be a mount point, or made by somebody for a purpose of
//! theirs, so it stays as it is.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// Bits that give others than the owner access.
const OTHERS: u32 = 0o077;

/// Takes access to the files of a database from others than their owner, and warns if others can
/// use the directory, or the files cannot be changed.
pub(super) fn tighten(data_dir: &Path, database: &Path, lock: &Path) {
    let beside = |suffix: &str| {
        let mut name = OsString::from(database);
        name.push(suffix);
        name
    };
    let (wal, shm) = (beside("-wal"), beside("-shm"));
    for file in [database, Path::new(&wal), Path::new(&shm), lock] {
        match tighten_file(file) {
            Ok(None) => {}
            Ok(Some(mode)) => tracing::warn!(
                file = %file.display(),
                mode = format!("{mode:04o}"),
                "others could use the file; it has mode 0600 now"
            ),
            Err(error) => tracing::warn!(
                file = %file.display(),
                %error,
                "others can use the file, and its permissions cannot be changed: run chmod 600"
            ),
        }
    }
    if let Ok(metadata) = data_dir.metadata() {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & OTHERS != 0 {
            tracing::warn!(
                data_dir = %data_dir.display(),
                mode = format!("{mode:04o}"),
                "others than its owner can use the data directory: run chmod 700, unless they should"
            );
        }
    }
}

/// Returns the permissions before, if they were changed.
fn tighten_file(path: &Path) -> io::Result<Option<u32>> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(None);
    }
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(Some(mode))
}
