//! File systems of a test's own, as disks that fill.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{say, within};

/// Of a user of its own, who may mount.
const NAMESPACES: [&str; 2] = ["--user", "--mount"];

/// A file system that only processes see which enter it. It ends with this handle.
pub struct Disk {
    keeper: Child,
    folder: TempDir,
    data: PathBuf,
}

impl Disk {
    /// A small one, in memory. None, said aloud, where we may not mount anything.
    pub async fn of(mebibytes: u32) -> Option<Self> {
        let script = format!("mount -t tmpfs -o size={mebibytes}m,mode=0700 tmpfs data");
        Self::mount(&script).await
    }

    async fn mount(script: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let script = format!("mkdir data && {script} && echo ready && exec cat");
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
                let mut words = BufReader::new(keeper.stdout.take().unwrap()).lines();
                let ready = within("the mount", words.next_line()).await.unwrap();
                ready.map(|_| Self {
                    data: folder.path().join("data"),
                    keeper,
                    folder,
                })
            }
            Err(_absent) => None,
        };
        if made.is_none() {
            say("SKIPPED: no disk of its own: it takes unshare(1) and the right to mount");
        }
        made
    }

    fn keeper(&self) -> String {
        self.keeper.id().expect("the keeper lives").to_string()
    }

    /// Where it is, for those within.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where a file of `data` is, for those outside.
    pub fn outside(&self, file: &str) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper()));
        root.join(self.folder.path().strip_prefix("/").unwrap())
            .join(file)
    }

    /// The program that enters it and becomes the one that is named next.
    pub fn entrance(&self) -> Vec<String> {
        let keeper = self.keeper();
        let mut entrance = vec!["nsenter", "--preserve-credentials", "--target", &keeper];
        entrance.extend(NAMESPACES);
        entrance.into_iter().map(str::to_owned).collect()
    }
}
