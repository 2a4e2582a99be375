//! Whether this service's own AWS identity is good, apart from any customer's.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::integration::IntegrationKey;

/// How this service stands with AWS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing speaks against it.
    #[default]
    Good,
    /// Its own credentials are missing, expired or refused, or what is signed with a
    /// session that was just assumed.
    CredentialsRefused {
        /// AWS's error code, or ours where nothing could be sent.
        code: Box<str>,
    },
    /// Most roles that it assumed lately are refused together, which AWS also answers
    /// where our own identity may not assume.
    MayNotAssume,
}

/// How long a role counts as having worked.
const LATELY: Duration = Duration::from_secs(3600);
/// Roles that are remembered at the most.
pub const MOST_ROLES: usize = 64;
/// Fewer witnesses prove nothing.
pub const LEAST_WITNESSES: usize = 3;
/// Witnesses that are asked at the most.
pub const MOST_WITNESSES: usize = 5;
/// Between one time that a role is asked in vain and the next: doubled each time.
const ASK_FIRST: Duration = Duration::from_secs(10);
const ASK_MOST: Duration = Duration::from_secs(180);
/// A role that delivery itself tries is not asked between two tries.
const TRIED: Duration = Duration::from_secs(330);

/// Roles that were assumed lately: who to ask whether it is our identity that is
/// refused.
#[derive(Debug)]
pub struct Witnesses<T> {
    /// Newest last.
    roles: VecDeque<Witness<T>>,
}

#[derive(Debug)]
struct Witness<T> {
    key: IntegrationKey,
    role: T,
    worked: Instant,
    /// How often it was asked or tried in vain since.
    vain: u32,
    /// The last answer was a denial.
    denied: bool,
    /// It is not asked before.
    next: Instant,
}

/// Whom to ask about a refusal.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked<T> {
    /// To be assumed now.
    pub roles: Vec<T>,
    /// Witnesses that were refused when they were asked just before.
    pub refused_already: usize,
}

/// Whom to ask whether our identity is still refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Probe<T> {
    /// So few are left that nothing speaks against our identity any more.
    TooFew,
    /// Nobody yet: all were asked a short while ago.
    Wait,
    /// This one.
    Ask(T),
}

impl<T> Default for Witnesses<T> {
    fn default() -> Self {
        Self {
            roles: VecDeque::new(),
        }
    }
}

impl<T: Clone> Witnesses<T> {
    /// A role was assumed.
    pub fn worked(&mut self, key: IntegrationKey, now: Instant, role: T) {
        self.forget(key);
        if self.roles.len() == MOST_ROLES {
            self.roles.pop_front();
        }
        self.roles.push_back(Witness {
            key,
            role,
            worked: now,
            vain: 0,
            denied: false,
            next: now,
        });
    }

    /// A role was asked, and refused.
    pub fn refused(&mut self, key: IntegrationKey, now: Instant) {
        self.asked_in_vain(key, now, true);
    }

    /// A role was asked, and what was answered says nothing either way.
    pub fn unclear(&mut self, key: IntegrationKey, now: Instant) {
        self.asked_in_vain(key, now, false);
    }

    fn asked_in_vain(&mut self, key: IntegrationKey, now: Instant, denied: bool) {
        if let Some(witness) = self.find(key) {
            let wait = ASK_FIRST.saturating_mul(1 << witness.vain.min(16));
            witness.vain = witness.vain.saturating_add(1);
            witness.denied = denied;
            witness.next = now + wait.min(ASK_MOST);
        }
    }

    /// Delivery itself tried a role, which was refused.
    pub fn tried(&mut self, key: IntegrationKey, now: Instant) {
        if let Some(witness) = self.find(key) {
            witness.vain = witness.vain.saturating_add(1);
            witness.denied = true;
            witness.next = now + TRIED;
        }
    }

    /// Our identity may assume again: what roles said before counts no more.
    pub fn pardon(&mut self, now: Instant) {
        for witness in &mut self.roles {
            witness.vain = 0;
            witness.denied = false;
            witness.next = now;
        }
    }

    /// The role says nothing any more.
    pub fn forget(&mut self, key: IntegrationKey) {
        self.roles.retain(|witness| witness.key != key);
    }

    /// Whether the role worked and nothing has spoken against it since.
    pub fn knows(&self, key: IntegrationKey) -> bool {
        self.roles.iter().any(|witness| witness.key == key)
    }

    fn find(&mut self, key: IntegrationKey) -> Option<&mut Witness<T>> {
        self.roles.iter_mut().find(|witness| witness.key == key)
    }

    /// Who to ask about the refusal of `key`; None where too few are known. Those that
    /// are not `current` any more are forgotten.
    pub fn to_ask(
        &mut self,
        key: IntegrationKey,
        now: Instant,
        current: impl Fn(&T) -> bool,
    ) -> Option<Asked<T>> {
        self.roles.retain(|witness| {
            now.duration_since(witness.worked) <= LATELY && current(&witness.role)
        });
        let others = self.roles.iter().rev().filter(|other| other.key != key);
        let (fresh, just_asked): (Vec<_>, Vec<_>) = others
            .take(MOST_WITNESSES)
            .partition(|witness| witness.next <= now);
        let refused_already = just_asked.iter().filter(|witness| witness.denied).count();
        (fresh.len() + refused_already >= LEAST_WITNESSES).then(|| Asked {
            roles: fresh.iter().map(|witness| witness.role.clone()).collect(),
            refused_already,
        })
    }

    /// Who to ask next while our identity is refused. That time does not count as time
    /// since a role worked.
    pub fn probe(&mut self, now: Instant, current: impl Fn(&T) -> bool) -> Probe<T> {
        self.roles.retain(|witness| current(&witness.role));
        if self.roles.len() < LEAST_WITNESSES {
            return Probe::TooFew;
        }
        let first = self.roles.iter().min_by_key(|witness| witness.next);
        match first {
            Some(witness) if witness.next <= now => Probe::Ask(witness.role.clone()),
            _ => Probe::Wait,
        }
    }
}

/// Whether refusals of so many of those who were asked speak against our identity.
pub fn is_ours(asked: usize, refused: usize) -> bool {
    asked >= LEAST_WITNESSES && refused * 2 > asked
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: fn(&i64) -> bool = |_| true;

    /// So many seconds after a moment of this test's own.
    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |second| start + Duration::from_secs(second)
    }

    fn asked(roles: &[i64], refused_already: usize) -> Option<Asked<i64>> {
        Some(Asked {
            roles: roles.to_vec(),
            refused_already,
        })
    }

    #[test]
    fn asks_only_others_that_worked_within_the_hour() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..4 {
            witnesses.worked(IntegrationKey(key), at(key as u64 * 1000), key);
        }
        let mut ask = |key, second, current: fn(&i64) -> bool| {
            witnesses.to_ask(IntegrationKey(key), at(second), current)
        };
        assert_eq!(ask(9, 3000, ANY), asked(&[3, 2, 1, 0], 0));
        assert_eq!(ask(3, 3000, ANY), asked(&[2, 1, 0], 0));
        assert_eq!(ask(9, 3700, ANY), asked(&[3, 2, 1], 0));
        assert_eq!(ask(3, 3700, ANY), None);
        assert_eq!(ask(9, 3700, |key| key % 2 == 1), None, "two are too few");
    }

    #[test]
    fn a_witness_that_was_just_refused_is_not_asked_again_but_counts() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..4 {
            witnesses.worked(IntegrationKey(key), at(0), key);
        }
        witnesses.refused(IntegrationKey(2), at(1));
        let mut ask = |second| witnesses.to_ask(IntegrationKey(9), at(second), ANY);
        assert_eq!(ask(10), asked(&[3, 1, 0], 1));
        assert_eq!(ask(11), asked(&[3, 2, 1, 0], 0));
    }

    #[test]
    fn an_unclear_answer_is_no_refusal() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..5 {
            witnesses.worked(IntegrationKey(key), at(0), key);
        }
        for key in 0..3 {
            witnesses.unclear(IntegrationKey(key), at(1));
        }
        let mut ask = |second| witnesses.to_ask(IntegrationKey(9), at(second), ANY);
        assert_eq!(ask(10), None, "two are too few");
        assert_eq!(ask(11), asked(&[4, 3, 2, 1, 0], 0));
    }

    #[test]
    fn what_was_refused_before_we_might_assume_again_does_not_count() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..4 {
            witnesses.worked(IntegrationKey(key), at(0), key);
            witnesses.tried(IntegrationKey(key), at(0));
        }
        witnesses.pardon(at(5));
        let next = witnesses.to_ask(IntegrationKey(3), at(5), ANY);
        assert_eq!(next, asked(&[2, 1, 0], 0));
    }

    #[test]
    fn probes_until_too_few_are_left() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..3 {
            witnesses.worked(IntegrationKey(key), at(0), key);
        }
        // However long ago they worked.
        let late = 10 * 3600;
        for key in 0..3 {
            let next = witnesses.probe(at(late), ANY);
            assert_eq!(next, Probe::Ask(key));
            witnesses.refused(IntegrationKey(key), at(late));
        }
        assert_eq!(witnesses.probe(at(late + 9), ANY), Probe::Wait);
        witnesses.tried(IntegrationKey(0), at(late + 9));
        let next = witnesses.probe(at(late + 10), ANY);
        assert_eq!(next, Probe::Ask(1));
        assert_eq!(
            witnesses.probe(at(late + 10), |key| *key > 0),
            Probe::TooFew
        );
    }

    #[test]
    fn three_witnesses_alone_are_probed_at_most_20_times_an_hour_each() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..3 {
            witnesses.worked(IntegrationKey(key), at(0), key);
            witnesses.refused(IntegrationKey(key), at(0));
        }
        let mut probes = [const { Vec::new() }; 3];
        let (mut second, mut wait) = (10, 20);
        while second < 3 * 3600 {
            if let Probe::Ask(key) = witnesses.probe(at(second), ANY) {
                probes[key as usize].push(second);
                witnesses.refused(IntegrationKey(key), at(second));
            }
            second += wait;
            wait = (wait * 2).min(60);
        }
        let mut all = probes.concat();
        all.sort_unstable();
        let longest = all.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!(longest, Some(60));
        for of_one in probes {
            for from in 60..2 * 3600 {
                let hour = of_one.iter().filter(|at| (from..from + 3600).contains(*at));
                assert!(hour.count() <= 20, "{from}: {of_one:?}");
            }
        }
    }

    #[test]
    fn a_majority_of_at_least_three_is_ours() {
        assert!(is_ours(3, 2));
        assert!(is_ours(5, 3));
        assert!(!is_ours(5, 2));
        assert!(!is_ours(4, 2));
        assert!(!is_ours(2, 2));
    }

    proptest! {
        #[test]
        fn remembers_a_bounded_number_each_once(keys in prop::collection::vec(0i64..100, 0..300)) {
            let mut witnesses = Witnesses::default();
            let now = Instant::now();
            for key in keys {
                witnesses.worked(IntegrationKey(key), now, key);
            }
            prop_assert!(witnesses.roles.len() <= MOST_ROLES);
            let mut known: Vec<_> = witnesses.roles.iter().map(|one| one.key).collect();
            known.sort();
            known.dedup();
            prop_assert_eq!(known.len(), witnesses.roles.len());
        }
    }
}
