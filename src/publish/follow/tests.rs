//! Rotation and truncation in every order, without a service: what is read, line by line.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
};

use tempfile::TempDir;

use super::{state_file::Place, *};
use crate::publish::lines::Lines;

mod selection;

/// Far more than any test needs.
const MOST_STEPS: usize = 10_000;

/// A log that is written and followed.
struct Log {
    dir: TempDir,
    tail: Option<Tail>,
    lines: Lines,
    file: Option<Arc<Followed>>,
    /// Every line that was read, and where it ends.
    read: Vec<String>,
    position: Option<Position>,
    notes: Vec<Told>,
    written: u32,
}

impl Log {
    fn new() -> Self {
        let mut log = Self::unstarted();
        log.start();
        log
    }

    /// Three lines of it have been read.
    fn begun() -> Self {
        let mut log = Self::new();
        log.write(3);
        log.read();
        log.notes.clear();
        log
    }

    /// Nobody follows it yet.
    fn unstarted() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            tail: None,
            lines: Lines::new(1_000),
            file: None,
            read: Vec::new(),
            position: None,
            notes: Vec::new(),
            written: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("eve.json")
    }

    fn named(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Follows, from where the last one kept its place.
    fn start(&mut self) {
        self.tail = None;
        let state_file = default_state_file(&self.path());
        let keeper = Keeper::open(&self.path(), state_file).unwrap();
        self.tail = Some(Tail::new(self.path(), keeper.kept().cloned()));
        self.lines = Lines::new(1_000);
    }

    /// Ends as a kill does, with this as the last that was kept.
    fn restart(&mut self) {
        if let Some(position) = &self.position {
            let state_file = default_state_file(&self.path());
            let mut keeper = Keeper::open(&self.path(), state_file).unwrap();
            keeper.keep(position).unwrap();
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

    /// Writes so many lines.
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

    /// Reads what there is.
    fn read(&mut self) {
        for _ in 0..MOST_STEPS {
            match self.tail.as_mut().unwrap().step().unwrap() {
                Step::Idle => return,
                Step::Told(Told::There) => {}
                Step::Told(told @ (Told::Warning(_) | Told::Loss(_) | Told::Absent(_))) => {
                    self.notes.push(told)
                }
                Step::Bytes(bytes) => {
                    self.lines.feed(bytes);
                    self.take();
                }
                Step::Begin(begin) => {
                    if begin.ends_last {
                        self.lines.end();
                        self.take();
                    }
                    self.lines = Lines::after(1_000, begin.offset, begin.line);
                    self.position = Some(Position {
                        file: Arc::clone(&begin.file),
                        offset: begin.offset,
                        line: begin.line,
                    });
                    self.file = Some(begin.file);
                }
            }
        }
        panic!("it never rests");
    }

    fn take(&mut self) {
        while let Some(line) = self.lines.next_line() {
            let text = String::from_utf8(line.text.unwrap().to_vec()).unwrap();
            self.read.push(text.trim().to_owned());
            self.position = self.file.clone().map(|file| Position {
                file,
                offset: line.end,
                line: line.number,
            });
        }
    }

    /// Everything was read, in order and once.
    #[track_caller]
    fn check(&mut self) {
        self.read();
        let expected: Vec<String> = (1..=self.written).map(|line| line.to_string()).collect();
        assert_eq!(self.read, expected);
        assert_eq!(self.notes, []);
    }

    /// The last that was told is a loss with these words.
    #[track_caller]
    fn check_lost(&self, words: &str) {
        match self.notes.last() {
            Some(Told::Loss(text)) if text.contains(words) => {}
            other => panic!("{other:?} is no loss with: {words}"),
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
fn what_is_appended_is_read_once_its_line_is_complete() {
    let mut log = Log::new();
    log.read();
    assert_eq!(log.notes.len(), 1, "it is not there yet");
    log.notes.clear();
    log.write(3);
    log.check();
    log.append(&log.path(), "  4");
    log.check();
    log.append(&log.path(), "\n");
    log.written = 4;
    log.check();
}

#[test]
fn a_rotation_is_followed_and_the_old_file_finished() {
    let mut log = Log::new();
    log.write(3);
    log.read();
    log.write(3);
    log.rotate();
    // The writer has the old file until it opens the new one.
    log.write_to(&log.named("eve.json.1"), 2);
    log.read();
    fs::write(log.path(), "").unwrap();
    log.write_to(&log.named("eve.json.1"), 2);
    log.check();
    log.write(4);
    log.check();
    // Twice, unseen.
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
    // It has grown beyond where it was read before that is looked at.
    log.write(1);
    log.copy_truncate();
    log.write(8);
    log.check();
}

#[test]
fn a_truncation_without_a_copy_is_told() {
    let mut log = Log::new();
    log.write(5);
    log.read();
    fs::write(log.path(), "").unwrap();
    log.write(2);
    log.read();
    assert_eq!(log.read.len(), 7);
    assert_eq!(log.notes.len(), 1);
    log.check_lost("truncated");
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut log = Log::new();
    log.write(5);
    log.check();
    log.restart();
    log.check();
    log.write(5);
    log.restart();
    log.check();
    assert_eq!(log.position.as_ref().unwrap().line, 10);
    // Half a line is read again when it is whole.
    log.append(&log.path(), "   1");
    log.read();
    log.restart();
    log.append(&log.path(), "1\n");
    log.written = 11;
    log.check();
}

#[test]
fn what_happened_meanwhile_is_caught_up_with() {
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
        // The last one, and none between.
        log.write(before);
        log.rotate();
        log.restart();
        log.check();
        log.write(2);
        log.restart();
        log.check();
        // By copying.
        log.write(before);
        log.copy_truncate();
        log.write(9);
        log.restart();
        log.check();
    }
}

#[test]
fn what_is_rotated_before_a_place_is_kept_is_not_lost() {
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
            // Killed before it had read anything.
            log.start();
            log.check();
        }
    }
}

#[test]
fn a_file_that_is_gone_is_told_and_the_rest_is_read() {
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
    assert_eq!(log.notes.len(), 1);
    log.check_lost("is gone");
}

#[test]
fn a_place_is_of_one_file_and_one_process() {
    let dir = TempDir::new().unwrap();
    let (path, state_file) = (dir.path().join("eve.json"), dir.path().join("state"));
    fs::write(&path, "x\n").unwrap();
    let mut keeper = Keeper::open(&path, state_file.clone()).unwrap();
    let again = Keeper::open(&path, state_file.clone());
    assert!(matches!(again, Err(PlaceError::InUse { .. })));
    let (file, _) = file::open(&path).unwrap().unwrap();
    let position = Position {
        file: Arc::new(Followed::new(&file).unwrap()),
        offset: 2,
        line: 1,
    };
    keeper.keep(&position).unwrap();
    let kept: Option<Place> = keeper.kept().cloned();
    drop(keeper);
    let keeper = Keeper::open(&path, state_file.clone()).unwrap();
    assert_eq!(keeper.kept(), kept.as_ref());
    drop(keeper);
    let other = Keeper::open(&dir.path().join("other.json"), state_file.clone());
    assert!(matches!(other, Err(PlaceError::OfAnother { .. })));
    fs::write(&state_file, "{").unwrap();
    let damaged = Keeper::open(&path, state_file);
    assert!(matches!(damaged, Err(PlaceError::Damaged { .. })));
}
