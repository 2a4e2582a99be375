//! Documents as files.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use super::FileError;
use crate::onboarding::{Document, Onboarding, Problem};

/// The files that are there already.
pub(super) fn in_the_way(directory: &Path, documents: &[Document]) -> Vec<Problem> {
    let names = documents.iter().map(Document::file_name);
    names
        .filter(|name| directory.join(name).symlink_metadata().is_ok())
        .map(|name| Problem {
            field: "output",
            what: format!("has a file {name} already; --force replaces it"),
        })
        .collect()
}

/// Writes one file a document, whole or not at all, and says each to `told`. The one that holds the
/// external ID is for its owner's eyes only.
pub(super) fn write(
    directory: &Path,
    onboarding: &Onboarding,
    documents: &[Document],
    force: bool,
    told: &mut impl Write,
) -> Result<(), FileError> {
    fs::create_dir_all(directory).map_err(|error| at(directory, error))?;
    for document in documents {
        let path = directory.join(document.file_name());
        let mode = match document {
            Document::TrustPolicy(_) => 0o600,
            _ => 0o666,
        };
        let mut file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(directory)
            .map_err(|error| at(directory, error))?;
        file.write_all(onboarding.text(document).as_bytes())
            .map_err(|error| at(&path, error))?;
        let kept = match force {
            true => file.persist(&path),
            false => file.persist_noclobber(&path),
        };
        kept.map_err(|error| at(&path, error.error))?;
        // The files are what was asked for; where nobody reads, that is no failure.
        let _ = writeln!(told, "wrote {}", path.display());
    }
    Ok(())
}

fn at(path: &Path, error: io::Error) -> FileError {
    FileError {
        path: path.to_owned(),
        source: error,
    }
}
