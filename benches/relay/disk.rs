//! How long the disk below takes to sync a small write: the unit of ack latencies.

use std::{fs::File, io::Write, path::Path};

use super::{
    Failure,
    stats::{Latency, Samples, now_nanos},
};

const SYNCS: usize = 300;

/// Appends 4 KiB and syncs, again and again.
pub fn sync_latency(folder: &Path) -> Result<Latency, Failure> {
    let path = folder.join("sync-probe");
    let mut file = File::create(&path)?;
    let mut samples = Samples::default();
    for _ in 0..SYNCS {
        let start = now_nanos();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        samples.add(start, now_nanos());
    }
    std::fs::remove_file(&path)?;
    Ok(samples.take())
}
