//! Lines that are read across rotations and truncations in every order, without a service.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
};

use siem_client::PublisherOptions;
use tempfile::TempDir;
use uuid::Uuid;

use super::{state_file::SavedState, *};
use crate::publish::{
    Input, PublishOptions, Summary,
    lines::Lines,
    session::{self, Session},
};

mod selection;

/// More steps than any test needs.
const MAX_STEPS: usize = 10_000;

/// A log that is written and followed.
struct Log {
    dir: TempDir,
    tail: Option<Tail>,
    lines: Lines,
    file: Option<Arc<FollowedFile>>,
    /// Every line that was read.
    read: Vec<String>,
    /// End of the last line that was read.
    position: Option<Position>,
    notices: Vec<FileNotice>,
    written: u32,
}

impl Log {
    fn new() -> Self {
        let mut log = Self::unfollowed();
        log.start();
        log
    }

    /// Creates a log of which three lines have been read.
    fn with_three_lines_read() -> Self {
        let mut log = Self::new();
        log.write(3);
        log.read();
        log.notices.clear();
        log
    }

    /// Creates a log that is not followed yet.
    fn unfollowed() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            tail: None,
            lines: Lines::new(1_000),
            file: None,
            read: Vec::new(),
            position: None,
            notices: Vec::new(),
            written: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("eve.json")
    }

    fn named(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts to follow from the saved state.
    fn start(&mut self) {
        self.tail = None;
        let state_file = default_state_file(&self.path());
        let state_file = StateFile::open(&self.path(), state_file).unwrap();
        self.tail = Some(Tail::new(self.path(), state_file.saved().cloned()));
        self.lines = Lines::new(1_000);
    }

    /// Saves the current position, and restarts as after a kill.
    fn restart(&mut self) {
        if let Some(position) = &self.position {
            let state_file = default_state_file(&self.path());
            let mut state_file = StateFile::open(&self.path(), state_file).unwrap();
            state_file.save(position).unwrap();
        }
        self.start();
    }

    fn append(&self, path: &Path, text: &str) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// Writes numbered lines.
    fn write(&mut self, count: u32) {
        self.write_to(&self.path(), count);
    }

    fn write_to(&mut self, path: &Path, count: u32) {
        for _ in 0..count {
            self.written += 1;
            let line = format!("{:>80}\n", self.written);
            self.append(path, &line);
        }
    }

    /// Reads until the log is idle.
    fn read(&mut self) {
        for _ in 0..MAX_STEPS {
            match self.tail.as_mut().unwrap().next_part().unwrap() {
                None => return,
                Some(Part::Notice(FileNotice::Present)) => {}
                Some(Part::Notice(notice)) => self.notices.push(notice),
                Some(Part::Bytes(bytes)) => {
                    self.lines.feed(bytes);
                    self.take();
                }
                Some(Part::FileStart(start)) => {
                    if start.completes_last_line {
                        self.lines.end();
                        self.take();
                    }
                    let Checkpoint { offset, line } = start.position.checkpoint;
                    self.lines = Lines::after(1_000, offset, line);
                    self.file = Some(Arc::clone(&start.position.file));
                    self.position = Some(start.position);
                }
            }
        }
        panic!("the log never becomes idle");
    }

    fn take(&mut self) {
        while let Some(line) = self.lines.next_line() {
            let text = String::from_utf8(line.text.unwrap().to_vec()).unwrap();
            self.read.push(text.trim().to_owned());
            self.position = self.file.clone().map(|file| Position {
                file,
                checkpoint: Checkpoint {
                    offset: line.end,
                    line: line.number,
                },
            });
        }
    }

    /// Checks that every line is read in order and once.
    #[track_caller]
    fn check(&mut self) {
        self.read();
        let expected: Vec<String> = (1..=self.written).map(|line| line.to_string()).collect();
        assert_eq!(self.read, expected);
        assert_eq!(self.notices, []);
    }

    /// Checks that the last notice is a loss with these words.
    #[track_caller]
    fn check_lost(&self, words: &str) {
        match self.notices.last() {
            Some(FileNotice::Loss(text)) if text.contains(words) => {}
            other => panic!("{other:?} is not a loss with: {words}"),
        }
    }

    fn shift(&self) {
        for number in (1..5).rev() {
            let from = self.named(&format!("eve.json.{number}"));
            if from.exists() {
                fs::rename(from, self.named(&format!("eve.json.{}", number + 1))).unwrap();
            }
        }
    }

    fn rotate(&self) {
        self.shift();
        fs::rename(self.path(), self.named("eve.json.1")).unwrap();
    }

    fn copy_truncate(&self) {
        fs::copy(self.path(), self.named("eve.json.1")).unwrap();
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(self.path())
            .unwrap();
    }
}

#[test]
fn an_appended_line_is_read_once_it_is_complete() {
    let mut log = Log::new();
    log.read();
    assert_eq!(log.notices.len(), 1, "the log does not exist yet");
    log.notices.clear();
    log.write(3);
    log.check();
    log.append(&log.path(), "  4");
    log.check();
    log.append(&log.path(), "\n");
    log.written = 4;
    log.check();
}

#[test]
fn a_rotation_is_followed_and_the_old_file_read_to_its_end() {
    let mut log = Log::new();
    log.write(3);
    log.read();
    log.write(3);
    log.rotate();
    // The writer keeps the old file open until it opens the new one.
    log.write_to(&log.named("eve.json.1"), 2);
    log.read();
    fs::write(log.path(), "").unwrap();
    log.write_to(&log.named("eve.json.1"), 2);
    log.check();
    log.write(4);
    log.check();
    // Two rotations between two reads.
    log.write(2);
    log.rotate();
    log.write(5);
    log.rotate();
    log.write(3);
    log.check();
}

#[test]
fn a_copy_that_is_truncated_is_followed() {
    let mut log = Log::new();
    log.write(5);
    log.read();
    log.append(&log.path(), "      6");
    log.read();
    log.append(&log.path(), "\n");
    log.written = 6;
    log.write(2);
    log.copy_truncate();
    log.write(1);
    log.check();
    // After the truncation it grows beyond the last position before the next read.
    log.write(1);
    log.copy_truncate();
    log.write(8);
    log.check();
}

#[test]
fn a_truncation_without_a_copy_is_reported() {
    let mut log = Log::new();
    log.write(5);
    log.read();
    fs::write(log.path(), "").unwrap();
    log.write(2);
    log.read();
    assert_eq!(log.read.len(), 7);
    assert_eq!(log.notices.len(), 1);
    log.check_lost("truncated");
}

#[test]
fn a_restart_resumes_at_the_saved_position() {
    let mut log = Log::new();
    log.write(5);
    log.check();
    log.restart();
    log.check();
    log.write(5);
    log.restart();
    log.check();
    assert_eq!(log.position.as_ref().unwrap().checkpoint.line, 10);
    // A partial line is read again when it is complete.
    log.append(&log.path(), "   1");
    log.read();
    log.restart();
    log.append(&log.path(), "1\n");
    log.written = 11;
    log.check();
}

#[test]
fn rotations_while_nothing_follows_are_read() {
    for before in [0, 4] {
        let mut log = Log::new();
        log.write(3);
        log.read();
        log.write(before);
        log.rotate();
        log.write(4);
        log.rotate();
        log.restart();
        log.read();
        log.write(4);
        log.check();
        // One rotation, without a new file.
        log.write(before);
        log.rotate();
        log.restart();
        log.check();
        log.write(2);
        log.restart();
        log.check();
        // By copytruncate.
        log.write(before);
        log.copy_truncate();
        log.write(9);
        log.restart();
        log.check();
    }
}

#[test]
fn files_that_are_rotated_before_a_position_is_saved_are_read() {
    for written in [0, 3] {
        for copies in [false, true] {
            let mut log = Log::new();
            log.write(written);
            log.start();
            log.write(2);
            for _ in 0..2 {
                if copies {
                    log.shift();
                    log.copy_truncate();
                } else {
                    log.rotate();
                }
                log.write(3);
            }
            // A kill before anything was read.
            log.start();
            log.check();
        }
    }
}

#[test]
fn a_removed_file_is_reported_and_the_rest_is_read() {
    let mut log = Log::new();
    log.write(3);
    log.read();
    log.rotate();
    log.write(3);
    log.rotate();
    fs::remove_file(log.named("eve.json.2")).unwrap();
    log.write(3);
    log.restart();
    log.read();
    assert_eq!(log.read.len(), 9);
    assert_eq!(log.notices.len(), 1);
    log.check_lost("is gone");
}

#[test]
fn a_state_file_serves_one_log_and_one_process() {
    let dir = TempDir::new().unwrap();
    let (path, state_file) = (dir.path().join("eve.json"), dir.path().join("state"));
    fs::write(&path, "x\n").unwrap();
    let mut first = StateFile::open(&path, state_file.clone()).unwrap();
    let second = StateFile::open(&path, state_file.clone());
    assert!(matches!(second, Err(StateFileError::InUse { .. })));
    let (file, _) = file::open(&path).unwrap().unwrap();
    let position = Position {
        file: Arc::new(FollowedFile::new(&file).unwrap()),
        checkpoint: Checkpoint { offset: 2, line: 1 },
    };
    first.save(&position).unwrap();
    let saved: Option<SavedState> = first.saved().cloned();
    drop(first);
    let next = StateFile::open(&path, state_file.clone()).unwrap();
    assert_eq!(next.saved(), saved.as_ref());
    drop(next);
    let other = StateFile::open(&dir.path().join("other.json"), state_file.clone());
    assert!(matches!(other, Err(StateFileError::OtherLog { .. })));
    fs::write(&state_file, "{").unwrap();
    let damaged = StateFile::open(&path, state_file);
    assert!(matches!(damaged, Err(StateFileError::Damaged { .. })));
}

/// Alerts of a rotated file may all be answered when those of the next one are not.
#[test]
fn a_position_is_in_the_file_that_it_names() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| {
        fs::write(dir.path().join(name), name).unwrap();
        let file = fs::File::open(dir.path().join(name)).unwrap();
        Arc::new(FollowedFile::new(&file).unwrap())
    };
    let (old, new) = (file("old"), file("new"));
    let start = |file: &Arc<FollowedFile>| Position {
        file: Arc::clone(file),
        checkpoint: Checkpoint { offset: 0, line: 0 },
    };
    let options = PublishOptions {
        input: Input::Stdin,
        organization_id: "acme".into(),
        network_id: Uuid::nil(),
        device_id: Uuid::nil(),
        service: siem_client::ChannelOptions::new(""),
        from_line: 1,
        shutdown_grace: Duration::ZERO,
        publisher: PublisherOptions::default(),
    };
    let mut reporter = ();
    let mut session = Session::new(&mut reporter, Summary::new(options), None);
    let bits = session.start_file(&start(&old));
    session.handled(session::tag(bits, 50, true), 5_000);
    let bits = session.start_file(&start(&new));
    assert_eq!(
        session.position().unwrap().checkpoint,
        start(&new).checkpoint
    );
    session.sending(session::tag(bits, 1, true), 100);
    let position = session.position().unwrap();
    assert!(Arc::ptr_eq(&position.file, &new));
    assert_eq!(position.checkpoint, start(&new).checkpoint);
}
