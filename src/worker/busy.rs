//! Whether there is time left to deliver: how much of it the runtime's threads worked lately.

use std::{thread::available_parallelism, time::Duration};

use tokio::{runtime::Handle, time::Instant};

/// Of how much time that is told.
const SPAN: Duration = Duration::from_millis(100);
/// Parts of a hundred that leave no time for more.
const BUSY: u128 = 85;
/// Parts of a hundred below which there is time again: publishes that give way make the next
/// span a calmer one.
const CALM: u128 = 60;

/// See the module.
#[derive(Debug)]
pub(super) struct Busy {
    since: Instant,
    /// What all threads had worked by then.
    worked: Duration,
    is_busy: bool,
    /// More threads than these cannot all work.
    processors: usize,
}

impl Busy {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            worked: worked(),
            is_busy: false,
            processors: available_parallelism().map_or(usize::MAX, usize::from),
        }
    }

    /// Whether the threads of the current runtime had hardly any time left lately.
    pub(super) fn is_busy(&mut self) -> bool {
        let now = Instant::now();
        if now - self.since >= SPAN {
            let threads = Handle::current().metrics().num_workers();
            self.look(now, worked(), threads.min(self.processors));
        }
        self.is_busy
    }

    /// When it is to be looked again, so that nobody waits for what is over. None while there
    /// is time.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.is_busy.then(|| self.since + SPAN)
    }

    fn look(&mut self, now: Instant, worked: Duration, threads: usize) {
        let had = (now - self.since).as_nanos() * threads as u128;
        let did = worked.saturating_sub(self.worked).as_nanos();
        let least = if self.is_busy { CALM } else { BUSY };
        self.is_busy = did * 100 > had * least;
        (self.since, self.worked) = (now, worked);
    }
}

/// How long the threads of the current runtime have worked, added up.
fn worked() -> Duration {
    let metrics = Handle::current().metrics();
    let workers = 0..metrics.num_workers();
    workers
        .map(|worker| metrics.worker_total_busy_duration(worker))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_by_the_share_of_all_threads() {
        let mut busy = Busy::new();
        let (mut now, mut worked) = (busy.since, busy.worked);
        for (threads, did, is_busy) in [
            (2, 160, false),
            (2, 180, true),
            (2, 130, true),
            (2, 110, false),
            (2, 130, false),
            (4, 180, false),
            (1, 100, true),
        ] {
            now += SPAN;
            worked += Duration::from_millis(did);
            busy.look(now, worked, threads);
            assert_eq!(busy.is_busy, is_busy, "{did} ms of {threads} threads");
            let next_look = is_busy.then(|| now + SPAN);
            assert_eq!(busy.next_look(), next_look);
        }
    }
}
