//! Syncs that fail or hang on demand.

use std::{fs, path::PathBuf};

use tempfile::TempDir;
use tokio::process::Command;

use super::within;

/// Makes the syncs of a process fail from a moment on, and what was not synced vanish; or
/// makes them hang for a while.
pub struct Syncs {
    folder: TempDir,
}

impl Syncs {
    /// Builds what the process loads, with the C compiler.
    pub async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/sync_faults.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]);
        compiler
            .arg(library(&folder))
            .args([source, "-ldl", "-pthread"]);
        let compiled = within("the C compiler", compiler.status()).await.unwrap();
        assert!(compiled.success(), "{compiled}");
        Self { folder }
    }

    /// From now on they fail.
    pub fn fail(&self) {
        fs::write(self.flag("fail"), []).unwrap();
    }

    /// From now on they do not end.
    pub fn hang(&self) {
        fs::write(self.flag("hang"), []).unwrap();
    }

    /// They end again.
    pub fn go_on(&self) {
        fs::remove_file(self.flag("hang")).unwrap();
    }

    fn flag(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program that arranges it and becomes the one that is named next.
    pub fn entrance(&self) -> Vec<String> {
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", library(&self.folder).display()),
            format!("SYNC_FAILS_WHILE={}", self.flag("fail").display()),
            format!("SYNC_HANGS_WHILE={}", self.flag("hang").display()),
        ]
    }
}

fn library(folder: &TempDir) -> PathBuf {
    folder.path().join("syncs.so")
}
