//! Warnings about files that are not read, or not there.

use std::{
    fs, io,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Tail, Told,
    file::{self, FileId},
};
use crate::publish::follow::state_file::Place;

/// Between warnings of the same.
const WARN_AGAIN: Duration = Duration::from_secs(60);
/// A file that was written to so much later than the one that is followed shows that the
/// sensor writes elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(60);

impl Tail {
    /// Tells of files that may be of this log, and that are not read. `found` is whether the
    /// place's own file was found.
    pub(super) fn tell_unread(&mut self, place: &Place, found: bool) -> io::Result<()> {
        let own = file::own_name(&self.path);
        let here = fs::metadata(&self.path).ok();
        if here.is_some_and(|here| FileId::of(&here) == place.id) {
            return Ok(());
        }
        for entry in file::beside(&self.path) {
            let id = entry.id();
            let known = found && id == place.id || self.known.iter().any(|known| known.id == id);
            let newer = match found {
                true => entry.modified() > place.modified(),
                false => entry.modified() >= place.modified(),
            };
            if known || !newer {
                continue;
            }
            let path = entry.path.display();
            if file::is_compressed(&entry.name, &own) {
                self.told.push_back(Told::Loss(format!(
                    "{path} was written after what was read last, and is compressed: it is not read; let logrotate delay the compression (delaycompress), and publish it by: zcat {path} | siem-relay publish --eve - …"
                )));
            } else if file::is_variant(&entry.name, &own) {
                self.told.push_back(Told::Warning(format!(
                    "{path} was written after what was read last, but nothing shows that it was {own}: it is not read; if it was, publish it with --eve {path}"
                )));
            }
        }
        Ok(())
    }

    /// Refuses to wait for a file where the sensor writes others in its place.
    pub(super) fn check_pattern(&self) -> io::Result<()> {
        let own = file::own_name(&self.path);
        let mut beside = file::beside(&self.path).into_iter();
        let variant = beside.find(|entry| file::is_variant(&entry.name, &own));
        match variant {
            Some(entry) if !self.was_there => Err(io::Error::other(format!(
                "{} is not there, but {} is: the sensor seems to write a file for each day or thread, and --follow reads only the file that it names; {}",
                self.path.display(),
                entry.name,
                advice(&own)
            ))),
            _ => Ok(()),
        }
    }

    /// Whether it is time to look beside the path again.
    pub(super) fn is_time_to_look(&mut self) -> bool {
        let is_due = |looked: Instant| looked.elapsed() >= WARN_AGAIN;
        let is_due = self.looked.is_none_or(is_due);
        if is_due {
            self.looked = Some(Instant::now());
        }
        is_due
    }

    /// Warns where the sensor writes to another file than the one that is followed.
    pub(super) fn look_elsewhere(&mut self) {
        let Some(current) = &self.current else {
            return;
        };
        let own = file::own_name(&self.path);
        let last_written = current.followed.seen().modified;
        for entry in file::beside(&self.path) {
            if file::is_variant(&entry.name, &own)
                && entry.modified() > last_written + ELSEWHERE
                && self.warned.insert(entry.path.clone())
            {
                self.told.push_back(Told::Warning(format!(
                    "{} is written to, and {own} is not: if it is of the same sensor, its alerts are not published; {}",
                    entry.path.display(),
                    advice(&own)
                )));
            }
        }
    }

    /// Tells at intervals that the path is waited for, the first time at once or after one.
    pub(super) fn tell_absent(&mut self, error: &io::Error, at_once: bool) {
        let is_due = match self.absent {
            Some(told) => told.elapsed() >= WARN_AGAIN,
            None => at_once,
        };
        if !is_due {
            self.absent.get_or_insert_with(Instant::now);
            return;
        }
        self.absent = Some(Instant::now());
        let path = self.path.display();
        self.told.push_back(Told::Absent(match error.kind() {
            io::ErrorKind::NotFound => format!(
                "{path} is not there yet, and is waited for; if the sensor writes its log elsewhere, name that file with --eve"
            ),
            _ => format!(
                "{path} cannot be opened, and is waited for: {error}; let the user of this process read it"
            ),
        }));
    }

    pub(super) fn tell_skipped(&mut self, path: &Path, error: &io::Error) {
        if self.warned.insert(path.to_owned()) {
            self.told.push_back(Told::Loss(format!(
                "{} is skipped, since it cannot be opened: {error}; let the user of this process read it, and publish it with --eve",
                path.display()
            )));
        }
    }
}

fn advice(own: &str) -> String {
    format!(
        "set `filename: {own}` and `threaded: no` for eve-log in suricata.yaml and rotate with logrotate, or run a publisher for each file"
    )
}
