//! A clock for requests that are due at times of their own, as from many sensors:
//! the gaps between them are random, and waiting for answers moves none.

use std::{
    thread,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::sync::{Mutex, mpsc};

use super::now_nanos;

const SEED: u64 = 11;
/// Requests that are due and not sent, at the most: beyond it nothing can be measured.
const BACKLOG: usize = 1 << 20;

/// When each request is due, in nanoseconds since 1970, told when that time comes.
pub type Ticks = Mutex<mpsc::Receiver<u64>>;

/// A Poisson process with `gap` seconds between requests on average. It has a thread of
/// its own, since the timers of the runtime know milliseconds only.
pub fn ticks(gap: f64, seconds: f64) -> std::sync::Arc<Ticks> {
    let (due, ticks) = mpsc::channel(BACKLOG);
    thread::spawn(move || {
        let (start, start_nanos) = (Instant::now(), now_nanos());
        let mut rng = StdRng::seed_from_u64(SEED);
        let mut at = 0.0;
        loop {
            at -= gap * (1.0 - rng.random::<f64>()).ln();
            if at >= seconds {
                return;
            }
            let after = Duration::from_secs_f64(at);
            while let Some(early) = after.checked_sub(start.elapsed()) {
                thread::park_timeout(early);
            }
            let nanos = start_nanos + after.as_nanos() as u64;
            if due.blocking_send(nanos).is_err() {
                return;
            }
        }
    });
    std::sync::Arc::new(Mutex::new(ticks))
}
