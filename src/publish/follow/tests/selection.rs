//! Selection of the files that are read.

use std::time::{Duration, SystemTime};

use super::*;

/// Writes a file that must not be read, newer than all others.
fn write_foreign(log: &Log, name: &str) {
    log.append(&log.named(name), &format!("{:>80}\n", "foreign"));
    touch(log, name, 600);
}

/// Sets the modification time to `seconds` from now.
fn touch(log: &Log, name: &str, seconds: i64) {
    let now = SystemTime::now();
    let change = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        now - change
    } else {
        now + change
    };
    let file = OpenOptions::new()
        .write(true)
        .open(log.named(name))
        .unwrap();
    file.set_modified(time).unwrap();
}

#[test]
fn only_the_path_is_read_at_the_first_start() {
    for exists in [true, false] {
        let mut log = Log::unfollowed();
        for name in ["eve.json.1", "eve.json-20260102", "eve.json.old"] {
            write_foreign(&log, name);
        }
        if exists {
            log.write(3);
        }
        log.start();
        // A kill before anything was read.
        log.start();
        log.write(2);
        log.read();
        log.notices.clear();
        log.check();
        log.restart();
        // The rotation also renames the earlier files.
        log.rotate();
        log.write(2);
        log.check();
        log.restart();
        log.rotate();
        log.write(2);
        log.restart();
        log.check();
    }
}

#[test]
fn another_log_in_the_directory_is_never_read() {
    let mut log = Log::with_three_lines_read();
    for name in [
        "eve-2.json",
        "eve-flow.json",
        "eve-2.json.1",
        "eve.json.bak",
    ] {
        write_foreign(&log, name);
    }
    for _ in 0..2 {
        log.write(2);
        log.rotate();
        log.write(2);
        log.check();
        log.write(1);
        log.rotate();
        log.write(1);
        log.restart();
        log.check();
        log.copy_truncate();
        log.write(1);
        log.check();
    }
}

#[test]
fn a_file_that_was_the_log_is_found_under_any_name() {
    for name in ["eve-20260102.json", "eve.1.json", "moved"] {
        let mut log = Log::with_three_lines_read();
        log.write(2);
        fs::rename(log.path(), log.named(name)).unwrap();
        log.restart();
        log.write(2);
        log.check();
        // A copy is found by its first bytes.
        log.write(2);
        fs::copy(log.path(), log.named("copy")).unwrap();
        fs::write(log.path(), "").unwrap();
        log.restart();
        log.write(2);
        log.check();
    }
}

#[test]
fn a_manual_copy_is_not_read_again() {
    let mut log = Log::with_three_lines_read();
    fs::copy(log.path(), log.named("eve.json.20260102")).unwrap();
    log.rotate();
    log.write(2);
    log.check();
    fs::copy(log.path(), log.named("eve.json.20260103")).unwrap();
    log.rotate();
    log.write(2);
    log.restart();
    log.check();
}

#[test]
fn lines_written_to_the_old_file_after_a_rotation_are_read() {
    let mut log = Log::with_three_lines_read();
    log.rotate();
    log.write(2);
    log.check();
    for _ in 0..3 {
        log.write_to(&log.named("eve.json.1"), 2);
        log.check();
        log.write(2);
        log.check();
    }
    // The same if nothing was written for a long time before the rotation.
    touch(&log, "eve.json", -600);
    log.rotate();
    log.write(1);
    log.check();
    log.write_to(&log.named("eve.json.1"), 1);
    log.check();
    // A line that is completed late, while the new file ends with a partial line.
    log.append(&log.named("eve.json.1"), "     ");
    log.append(&log.path(), "    ");
    log.read();
    log.append(&log.named("eve.json.1"), &format!("{}\n", log.written + 1));
    log.written += 1;
    log.check();
    log.append(&log.path(), &format!("{}\n", log.written + 1));
    log.written += 1;
    log.check();
    // The same if the old file was removed, as after a compression.
    log.rotate();
    log.write(2);
    log.check();
    let mut old = OpenOptions::new()
        .append(true)
        .open(log.named("eve.json.1"))
        .unwrap();
    fs::remove_file(log.named("eve.json.1")).unwrap();
    log.written += 1;
    writeln!(old, "{:>80}", log.written).unwrap();
    log.check();
}

#[test]
fn lines_written_to_the_old_file_while_nothing_follows_are_read() {
    let mut log = Log::with_three_lines_read();
    log.rotate();
    log.write(2);
    log.check();
    log.restart();
    log.write_to(&log.named("eve.json.1"), 2);
    // The state file names the new file.
    log.write(1);
    log.read();
    let last = log.read.split_off(5);
    assert_eq!(last, ["8", "6", "7"], "the saved position is first");
    log.rotate();
    log.write(1);
    log.read();
    let last = log.read.split_off(5);
    assert_eq!(last, ["9"]);
}

#[test]
fn a_state_file_of_an_earlier_version_is_resumed() {
    let mut log = Log::unfollowed();
    write_foreign(&log, "eve.json.2");
    touch(&log, "eve.json.2", -3_600);
    log.write(3);
    let (file, metadata) = file::open(&log.path()).unwrap().unwrap();
    let head = file::head(&file, file::HEAD_BYTES).unwrap();
    let fingerprint = serde_json::to_value(file::Fingerprint::of(&head)).unwrap();
    let id = file::FileId::of(&metadata);
    let modified = metadata.modified().unwrap();
    let modified = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let state = format!(
        r#"{{"path":{:?},"device":{},"inode":{},"offset":162,"line":2,"head_length":{},"head_sha1":{},"modified":{}}}"#,
        log.path(),
        id.device,
        id.inode,
        fingerprint["head_length"],
        fingerprint["head_sha1"],
        modified.as_nanos()
    );
    fs::write(default_state_file(&log.path()), state).unwrap();
    log.write(1);
    log.rotate();
    log.write(2);
    log.rotate();
    log.write(2);
    log.start();
    log.read.extend(["1".to_owned(), "2".to_owned()]);
    log.check();
    log.restart();
    log.check();
}

#[test]
fn a_log_per_day_or_thread_instead_of_the_path_is_an_error() {
    for name in ["eve-20260102.json", "eve.1.json"] {
        let mut log = Log::unfollowed();
        write_foreign(&log, name);
        log.start();
        let error = log.tail.as_mut().unwrap().next_part().unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains(name) && error.contains("threaded: no"),
            "{error}"
        );
    }
    // Such files may appear later.
    let mut log = Log::new();
    log.read();
    assert!(matches!(log.notices[..], [FileNotice::Absent(_)]));
    write_foreign(&log, "eve-2.json");
    log.read();
    write_foreign(&log, "eve.2.json");
    assert!(log.tail.as_mut().unwrap().next_part().is_err());
    // A path that existed before is waited for.
    let mut log = Log::new();
    log.write(2);
    log.read();
    write_foreign(&log, "eve.2.json");
    touch(&log, "eve.2.json", -600);
    fs::rename(log.path(), log.named("eve.json.1")).unwrap();
    log.restart();
    log.read();
    log.write(2);
    log.notices.clear();
    log.check();
}

#[test]
fn a_warning_names_the_file_that_the_sensor_writes_instead() {
    let mut log = Log::unfollowed();
    log.write(2);
    touch(&log, "eve.json", -600);
    for name in ["eve-2.json", "eve-20260102.json"] {
        write_foreign(&log, name);
    }
    log.start();
    log.read();
    log.read();
    let [FileNotice::Warning(text)] = &log.notices[..] else {
        panic!("{:?}", log.notices);
    };
    assert!(text.contains("eve-20260102.json"), "{text}");
    assert_eq!(log.read.len(), 2);
}

#[test]
fn a_file_that_was_compressed_unread_is_reported() {
    let mut log = Log::new();
    log.write(3);
    log.read();
    log.write(2);
    fs::rename(log.path(), log.named("eve.json.1.gz")).unwrap();
    fs::write(log.named("eve.json.1.gz"), "compressed").unwrap();
    let before = log.named("eve.json.2.gz");
    fs::write(&before, "compressed").unwrap();
    touch(&log, "eve.json.2.gz", -3_600);
    log.write(1);
    log.notices.clear();
    log.restart();
    log.read();
    log.check_lost("eve.json.1.gz");
    assert!(
        log.notices
            .iter()
            .all(|notice| !format!("{notice:?}").contains("json.2.gz"))
    );
    assert_eq!(log.read.last().unwrap(), "6");
}

#[test]
fn lines_after_nuls_are_read_across_a_truncation() {
    // A writer without O_APPEND continues at its old offset after a truncation.
    let mut log = Log::unfollowed();
    fs::write(log.path(), vec![0; 5_000]).unwrap();
    log.write(2);
    log.start();
    log.read();
    assert_eq!(log.read.len(), 2);
    log.copy_truncate();
    let file = OpenOptions::new().write(true).open(log.path()).unwrap();
    file.set_len(6_000).unwrap();
    log.write(2);
    log.read();
    let read: Vec<&str> = log
        .read
        .iter()
        .map(|line| line.trim_matches('\0').trim())
        .collect();
    assert_eq!(read, ["1", "2", "3", "4"]);
}

#[test]
fn a_last_line_without_a_line_break_is_read_once_the_file_is_idle() {
    let mut log = Log::with_three_lines_read();
    log.append(&log.path(), "     4");
    log.read();
    touch(&log, "eve.json", -600);
    log.rotate();
    log.written = 4;
    log.write(2);
    log.check();
    log.restart();
    log.check();
}

#[test]
fn the_state_file_has_a_bounded_size() {
    let mut log = Log::unfollowed();
    for number in 1..10 {
        write_foreign(&log, &format!("eve.json-2026010{number}"));
    }
    log.start();
    for round in 0..200 {
        log.write(1);
        fs::rename(log.path(), log.named("eve.json.1")).unwrap();
        touch(&log, "eve.json.1", -600);
        log.write(1);
        log.read();
        if round % 50 == 0 {
            log.restart();
        }
    }
    log.notices.clear();
    log.check();
    let known = &log.position.as_ref().unwrap().file.known;
    assert!((10..=140).contains(&known.len()), "{}", known.len());
}

/// The first bytes of a file with a hole do not identify it: after it is rewritten, only its
/// inode is the same.
#[test]
fn a_rewritten_file_that_began_with_nuls_is_read_from_its_start() {
    let mut log = Log::new();
    log.append(&log.path(), &"\0".repeat(4_096));
    log.write(20);
    log.read();
    for _ in 0..3 {
        fs::write(log.path(), "").unwrap();
        log.read();
        let before = log.read.len();
        log.write(3);
        log.read();
        assert_eq!(log.read.len(), before + 3);
    }
}
