//! What a process has used, as Linux tells in [`/proc/PID`].
//!
//! [`/proc/PID`]: https://man7.org/linux/man-pages/man5/proc.5.html

use std::fs;

use super::Failure;

/// `USER_HZ`, which is 100 on every architecture that Linux shows to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Totals since the process began, and its memory.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time of all threads.
    pub cpu_seconds: f64,
    /// The most memory it has held since the last [`reset_peak`].
    pub peak_bytes: u64,
    pub resident_bytes: u64,
    /// What it caused to be written to disk.
    pub written_bytes: u64,
}

impl Usage {
    pub fn of(pid: u32) -> Result<Self, Failure> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let status = read("status")?;
        Ok(Self {
            cpu_seconds: cpu_seconds(&read("stat")?)?,
            peak_bytes: kilobytes(&status, "VmHWM:")?,
            resident_bytes: kilobytes(&status, "VmRSS:")?,
            written_bytes: number(&read("io")?, "write_bytes:")?,
        })
    }
}

/// Lets the peak begin anew from what is held now.
pub fn reset_peak(pid: u32) -> Result<(), Failure> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Fields 14 and 15; the second field may hold spaces and ends with a parenthesis.
fn cpu_seconds(stat: &str) -> Result<f64, Failure> {
    let (_, after) = stat.rsplit_once(") ").ok_or("an unknown form of stat")?;
    let fields: Vec<&str> = after.split(' ').collect();
    let ticks = |index: usize| -> Result<u64, Failure> {
        Ok(fields.get(index).ok_or("stat is too short")?.parse()?)
    };
    Ok((ticks(11)? + ticks(12)?) as f64 / TICKS_PER_SECOND)
}

fn kilobytes(text: &str, name: &str) -> Result<u64, Failure> {
    Ok(number(text, name)? * 1024)
}

fn number(text: &str, name: &str) -> Result<u64, Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.split_whitespace().next());
    Ok(value
        .ok_or_else(|| format!("there is no {name}"))?
        .parse()?)
}
