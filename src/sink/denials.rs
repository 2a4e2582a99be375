//! What is remembered of roles that are denied: for a moment that they are, and for
//! longer with which external ID they are tried next.

use std::time::Duration;

use tokio::time::Instant;

use super::{AssumedWith, assume_role::Tries};
use crate::domain::status::Fault;

/// A denial is told again within this, without a call: for those who ask just after it.
/// Shorter than the least wait between attempts.
const STANDS: Duration = Duration::from_secs(1);
/// As long both external IDs are tried each time. Then they take turns, so that two cost
/// no more calls than one.
const BOTH: Duration = Duration::from_secs(60);
/// After so long without a denial, the next is the first again.
const FORGOTTEN: Duration = Duration::from_secs(900);

/// Denials in a row.
pub(super) struct Denial {
    fault: Fault,
    first: Instant,
    last: Instant,
    next: AssumedWith,
}

impl Denial {
    /// A role was denied when it was tried so, `before` being the denial that came before.
    pub(super) fn new(before: Option<&Self>, tried: Tries, fault: Fault, now: Instant) -> Self {
        let first = match before {
            Some(before) if now.duration_since(before.last) < FORGOTTEN => before.first,
            _ => now,
        };
        let next = match tried {
            Tries::One(AssumedWith::Current) => AssumedWith::Previous,
            Tries::Both | Tries::One(AssumedWith::Previous) => AssumedWith::Current,
        };
        Self {
            fault,
            first,
            last: now,
            next,
        }
    }

    /// The denial, while it need not be asked for again.
    pub(super) fn standing(&self, now: Instant) -> Option<Fault> {
        (now.duration_since(self.last) < STANDS).then(|| self.fault.clone())
    }

    /// How the role is tried next.
    pub(super) fn next_tries(&self, now: Instant) -> Tries {
        let fresh = now.duration_since(self.first) < BOTH;
        let forgotten = now.duration_since(self.last) >= FORGOTTEN;
        match fresh || forgotten {
            true => Tries::Both,
            false => Tries::One(self.next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::status::{Cause, Stage};

    fn fault() -> Fault {
        Fault {
            stage: Stage::AssumeRole,
            cause: Cause::Timeout,
            request_id: None,
        }
    }

    #[test]
    fn stands_for_a_moment() {
        let now = Instant::now();
        let denial = Denial::new(None, Tries::Both, fault(), now);
        assert_eq!(denial.standing(now), Some(fault()));
        assert_eq!(denial.standing(now + STANDS), None);
    }

    #[test]
    fn after_the_first_minute_one_external_id_is_tried_at_a_time() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut denial = Denial::new(None, Tries::Both, fault(), at(0));
        let mut tried = Vec::new();
        for second in [5, 55, 65, 75, 300, 600, 2000] {
            let tries = denial.next_tries(at(second));
            tried.push(tries);
            denial = Denial::new(Some(&denial), tries, fault(), at(second));
        }
        let [current, previous] = [AssumedWith::Current, AssumedWith::Previous].map(Tries::One);
        let both = Tries::Both;
        assert_eq!(
            tried,
            [both, both, current, previous, current, previous, both]
        );
    }
}
