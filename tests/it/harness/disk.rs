//! Disks that fill, and disks whose syncs fail or hang.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{print, with_timeout};

/// Namespaces in which an unprivileged user may mount.
const NAMESPACES: [&str; 2] = ["--user", "--mount"];

/// A file system in a mount namespace, seen only by processes that enter it. Dropping this handle
/// ends it.
pub struct Disk {
    keeper: Child,
    folder: TempDir,
    data: PathBuf,
}

impl Disk {
    /// Mounts a tmpfs of this size. None, with a printed reason, without the right to mount.
    pub async fn of(mebibytes: u32) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let script = format!(
            "mkdir data && mount -t tmpfs -o size={mebibytes}m,mode=0700 tmpfs data \
             && echo ready && exec cat"
        );
        let mut keeper = Command::new("unshare");
        keeper
            .args(NAMESPACES)
            .args(["--map-root-user", "sh", "-c", &script])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let made = match keeper.spawn() {
            Ok(mut keeper) => {
                let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
                let ready = with_timeout("the mount", lines.next_line()).await.unwrap();
                ready.map(|_| Self {
                    data: folder.path().join("data"),
                    keeper,
                    folder,
                })
            }
            Err(_absent) => None,
        };
        if made.is_none() {
            print(
                "SKIPPED: cannot mount a small disk: that needs unshare(1) and the right to mount",
            );
        }
        made
    }

    fn keeper(&self) -> String {
        self.keeper.id().expect("the keeper runs").to_string()
    }

    /// Path of the file system inside of the namespace.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Path, outside of the namespace, of a file such as `data/ballast`.
    pub fn outside(&self, file: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper()));
        root.join(self.folder.path().strip_prefix("/").unwrap())
            .join(file)
    }

    /// Command line that executes the program behind it inside of the namespace.
    pub fn launcher(&self) -> Vec<String> {
        let keeper = self.keeper();
        let mut launcher = vec!["nsenter", "--preserve-credentials", "--target", &keeper];
        launcher.extend(NAMESPACES);
        launcher.into_iter().map(str::to_owned).collect()
    }
}

/// Syncs of a process that fail, losing what was not synced before, that hang until released, or
/// that kill the process.
pub struct SyncFaults {
    folder: TempDir,
}

impl SyncFaults {
    /// Compiles the library that is preloaded into the process.
    pub async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let source = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/harness/sync_faults.c"
        );
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"]);
        compiler
            .arg(library(&folder))
            .args([source, "-ldl", "-pthread"]);
        let compiled = with_timeout("the C compiler", compiler.status())
            .await
            .unwrap();
        assert!(compiled.success(), "{compiled}");
        Self { folder }
    }

    /// Makes every further sync fail.
    pub fn fail(&self) {
        fs::write(self.flag("fail"), []).unwrap();
    }

    /// Makes every further sync hang.
    pub fn hang(&self) {
        fs::write(self.flag("hang"), []).unwrap();
    }

    /// Lets hanging syncs finish.
    pub fn release(&self) {
        fs::remove_file(self.flag("hang")).unwrap();
    }

    fn flag(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Command line that executes the program behind it with these syncs.
    pub fn launcher(&self) -> Vec<String> {
        vec![
            "env".to_owned(),
            format!("LD_PRELOAD={}", library(&self.folder).display()),
            format!("SYNC_FAILS_WHILE={}", self.flag("fail").display()),
            format!("SYNC_HANGS_WHILE={}", self.flag("hang").display()),
        ]
    }

    /// [`Self::launcher`] of a process that is killed instead of the sync with this number, from 1.
    pub fn launcher_with_kill_at(&self, sync: u32) -> Vec<String> {
        let mut launcher = self.launcher();
        launcher.push(format!("SYNC_KILLS_AT={sync}"));
        launcher
    }
}

fn library(folder: &TempDir) -> PathBuf {
    folder.path().join("syncs.so")
}
