//! Whether this service's own AWS identity is good, apart from any customer's.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    integration::{Integration, IntegrationKey},
    map::Map,
};

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
/// Roles of one account that are remembered at the most, so that it leaves room for others.
const MOST_OF_ACCOUNT: usize = 4;
/// Fewer AWS accounts that refuse together prove nothing against this service.
pub const LEAST_ACCOUNTS: usize = 3;
/// Witnesses that are asked at the most, each of another account.
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
    /// AWS account of the role. One customer's decision may concern all roles of an account.
    account: Box<str>,
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
    /// Accounts whose roles were refused when they were asked just before.
    pub refused_already: usize,
}

/// Whom to ask whether our identity is still refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Probe<T> {
    /// Fewer than [`LEAST_ACCOUNTS`] accounts remain: not enough evidence against this service.
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
    /// A role of an account was assumed.
    pub fn worked(&mut self, key: IntegrationKey, account: &str, now: Instant, role: T) {
        self.forget(key);
        let same_account = |witness: &Witness<T>| *witness.account == *account;
        let of_account = self.roles.iter().filter(|one| same_account(one)).count();
        let leaves = match of_account >= MOST_OF_ACCOUNT {
            true => self.roles.iter().position(same_account),
            false => (self.roles.len() == MOST_ROLES).then_some(0),
        };
        if let Some(leaves) = leaves {
            self.roles.remove(leaves);
        }
        self.roles.push_back(Witness {
            key,
            account: account.into(),
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

    fn find(&mut self, key: IntegrationKey) -> Option<&mut Witness<T>> {
        self.roles.iter_mut().find(|witness| witness.key == key)
    }

    /// Roles to ask about a refusal of `account`, each of another account; None where too few
    /// accounts are known. Roles that are not `current` any more are forgotten.
    pub fn to_ask(
        &mut self,
        account: &str,
        now: Instant,
        current: impl Fn(&T) -> bool,
    ) -> Option<Asked<T>> {
        self.roles.retain(|witness| {
            now.duration_since(witness.worked) <= LATELY && current(&witness.role)
        });
        let mut seen = vec![account];
        let (mut roles, mut refused_already) = (Vec::new(), 0);
        // Those that worked last are the likeliest to work still.
        for witness in self.roles.iter().rev() {
            if seen.len() > MOST_WITNESSES || seen.contains(&&*witness.account) {
                continue;
            }
            let asks = witness.next <= now;
            if asks {
                roles.push(witness.role.clone());
            } else if witness.denied {
                refused_already += 1;
            } else {
                // Its answer said nothing; another role of the account may say more.
                continue;
            }
            seen.push(&witness.account);
        }
        // The account that is asked about counts as well.
        (1 + roles.len() + refused_already >= LEAST_ACCOUNTS).then_some(Asked {
            roles,
            refused_already,
        })
    }

    /// The role to ask next while our identity is refused. That time does not count as time
    /// since a role worked.
    pub fn probe(&mut self, now: Instant, current: impl Fn(&T) -> bool) -> Probe<T> {
        self.roles.retain(|witness| current(&witness.role));
        let accounts: BTreeSet<_> = self.roles.iter().map(|witness| &witness.account).collect();
        if accounts.len() < LEAST_ACCOUNTS {
            return Probe::TooFew;
        }
        let first = self.roles.iter().min_by_key(|witness| witness.next);
        match first {
            Some(witness) if witness.next <= now => Probe::Ask(witness.role.clone()),
            _ => Probe::Wait,
        }
    }
}

/// Whether answers speak against our identity: `refused` accounts, the one that raised the
/// question included, and none whose role could be assumed.
pub fn is_ours(refused: usize, worked: usize) -> bool {
    refused >= LEAST_ACCOUNTS && worked == 0
}

/// A refusal this old is no evidence any more: longer than the longest back-off.
const DOUBT_LASTS: Duration = Duration::from_secs(600);
/// Delay before a refused session is attributed, so that refusals of other integrations with
/// the same cause can arrive first.
const DOUBT: Duration = Duration::from_secs(3);

/// Integrations whose newly assumed sessions, or whose AssumeRole, AWS refuses for the
/// credentials: whose fault that is.
#[derive(Debug, Default)]
pub struct Doubts {
    by_key: Map<IntegrationKey, Doubt>,
    /// Others have delivered since the last of them began.
    others_deliver: bool,
}

#[derive(Debug)]
struct Doubt {
    integration: Arc<Integration>,
    first: Instant,
    last: Instant,
    /// Another integration delivered since the first refusal.
    others_deliver: bool,
}

/// Verdict of the evidence about a refused session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Others deliver with sessions of the same identity.
    Customer,
    /// At least [`LEAST_ACCOUNTS`] accounts refuse, and nobody delivers.
    Service,
    /// Too early to say.
    Undecided,
    /// Nobody else delivers or is refused: STS has to be asked about the credentials.
    AskSts,
}

impl Doubts {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// A session was refused. `patiently` waits for what others meet before anything but
    /// their success counts.
    pub fn refused(
        &mut self,
        integration: &Arc<Integration>,
        now: Instant,
        patiently: bool,
    ) -> (Blame, Instant) {
        self.by_key
            .retain(|_, doubt| now.duration_since(doubt.last) <= DOUBT_LASTS);
        let doubt = self
            .by_key
            .entry(integration.key)
            .and_modify(|doubt| {
                let is_old = now.duration_since(doubt.last) > DOUBT_LASTS;
                if is_old || doubt.integration.version != integration.version {
                    *doubt = Doubt::new(integration, now);
                }
                doubt.last = now;
            })
            .or_insert_with(|| Doubt::new(integration, now));
        let (first, others_deliver) = (doubt.first, doubt.others_deliver);
        self.others_deliver &= others_deliver;
        let blame = if others_deliver {
            Blame::Customer
        } else if self.is_ours() {
            Blame::Service
        } else if patiently && now.duration_since(first) < DOUBT {
            Blame::Undecided
        } else {
            Blame::AskSts
        };
        (blame, first)
    }

    /// Whether as many accounts are refused as speak against this service.
    fn is_ours(&self) -> bool {
        let undelivered = self.by_key.values().filter(|doubt| !doubt.others_deliver);
        let accounts: BTreeSet<_> = undelivered
            .map(|doubt| doubt.integration.role_arn.account())
            .collect();
        accounts.len() >= LEAST_ACCOUNTS
    }

    /// AWS took a session of an integration.
    pub fn delivered(&mut self, key: IntegrationKey) {
        self.by_key.remove(&key);
        // It is called for each write: mostly all of them know already.
        if !std::mem::replace(&mut self.others_deliver, true) {
            for doubt in self.by_key.values_mut() {
                doubt.others_deliver = true;
            }
        }
    }

    /// Keeps only integrations that are `current`.
    pub fn retain(&mut self, current: impl Fn(&Integration) -> bool) {
        self.by_key.retain(|_, doubt| current(&doubt.integration));
    }
}

impl Doubt {
    fn new(integration: &Arc<Integration>, now: Instant) -> Self {
        Self {
            integration: Arc::clone(integration),
            first: now,
            last: now,
            others_deliver: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::integration::testing::integration;
    use proptest::prelude::*;

    const ANY: fn(&i64) -> bool = |_| true;

    /// So many seconds after a moment of this test's own.
    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |second| start + Duration::from_secs(second)
    }

    /// A role worked, of an account of its own.
    fn work(witnesses: &mut Witnesses<i64>, key: i64, now: Instant) {
        witnesses.worked(IntegrationKey(key), &key.to_string(), now, key);
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
            work(&mut witnesses, key, at(key as u64 * 1000));
        }
        let mut ask = |key: i64, second, current: fn(&i64) -> bool| {
            witnesses.to_ask(&key.to_string(), at(second), current)
        };
        assert_eq!(ask(9, 3000, ANY), asked(&[3, 2, 1, 0], 0));
        assert_eq!(ask(3, 3000, ANY), asked(&[2, 1, 0], 0));
        assert_eq!(ask(9, 3700, ANY), asked(&[3, 2, 1], 0));
        assert_eq!(ask(3, 3700, ANY), asked(&[2, 1], 0));
        assert_eq!(ask(9, 3700, |key| *key == 1), None, "two are too few");
    }

    #[test]
    fn roles_of_one_account_are_one_witness() {
        let now = Instant::now();
        let mut witnesses = Witnesses::default();
        for key in 0..6 {
            witnesses.worked(IntegrationKey(key), "one", now, key);
        }
        assert_eq!(witnesses.to_ask("other", now, ANY), None);
        witnesses.worked(IntegrationKey(6), "two", now, 6);
        assert_eq!(witnesses.to_ask("other", now, ANY), asked(&[6, 5], 0));
        assert_eq!(witnesses.to_ask("one", now, ANY), None);
        assert_eq!(witnesses.probe(now, ANY), Probe::TooFew);
    }

    /// One customer of an account.
    fn customer(key: i64, account: u64) -> Arc<Integration> {
        Arc::new(integration(key, account))
    }

    #[test]
    fn a_session_that_others_do_not_need_is_judged_by_what_others_meet() {
        let at = clock();
        let mut doubts = Doubts::default();
        let one = customer(1, 1);
        assert_eq!(doubts.refused(&one, at(0), true), (Blame::Undecided, at(0)));
        assert_eq!(doubts.refused(&one, at(0), false).0, Blame::AskSts);
        assert_eq!(doubts.refused(&one, at(2), true).0, Blame::Undecided);
        assert_eq!(doubts.refused(&one, at(3), true).0, Blame::AskSts);
        doubts.delivered(IntegrationKey(2));
        assert_eq!(doubts.refused(&one, at(4), true).0, Blame::Customer);
        doubts.delivered(IntegrationKey(1));
        assert!(doubts.is_empty());
        assert_eq!(doubts.refused(&one, at(5), true).0, Blame::Undecided);
    }

    #[test]
    fn three_accounts_that_are_refused_while_nobody_delivers_are_ours() {
        let now = Instant::now();
        let mut doubts = Doubts::default();
        for (key, account) in [(1, 1), (2, 1), (3, 1), (4, 2)] {
            let blame = doubts.refused(&customer(key, account), now, true).0;
            assert_eq!(blame, Blame::Undecided);
        }
        assert_eq!(doubts.refused(&customer(5, 3), now, true).0, Blame::Service);
        assert_eq!(doubts.refused(&customer(1, 1), now, true).0, Blame::Service);
        doubts.delivered(IntegrationKey(9));
        assert_eq!(
            doubts.refused(&customer(1, 1), now, true).0,
            Blame::Customer
        );
    }

    #[test]
    fn a_configure_begins_a_new_doubt() {
        let at = clock();
        let mut doubts = Doubts::default();
        doubts.refused(&customer(1, 1), at(0), true);
        doubts.delivered(IntegrationKey(2));
        let mut next = integration(1, 1);
        next.version += 1;
        let blame = doubts.refused(&Arc::new(next), at(9), true);
        assert_eq!(blame, (Blame::Undecided, at(9)));
        doubts.retain(|_| false);
        assert!(doubts.is_empty());
    }

    #[test]
    fn a_witness_that_was_just_refused_is_not_asked_again_but_counts() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..4 {
            work(&mut witnesses, key, at(0));
        }
        witnesses.refused(IntegrationKey(2), at(1));
        let mut ask = |second| witnesses.to_ask("9", at(second), ANY);
        assert_eq!(ask(10), asked(&[3, 1, 0], 1));
        assert_eq!(ask(11), asked(&[3, 2, 1, 0], 0));
    }

    #[test]
    fn an_unclear_answer_is_no_refusal() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..5 {
            work(&mut witnesses, key, at(0));
        }
        for key in 0..4 {
            witnesses.unclear(IntegrationKey(key), at(1));
        }
        let mut ask = |second| witnesses.to_ask("9", at(second), ANY);
        assert_eq!(ask(10), None, "two are too few");
        assert_eq!(ask(11), asked(&[4, 3, 2, 1, 0], 0));
    }

    #[test]
    fn what_was_refused_before_we_might_assume_again_does_not_count() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..4 {
            work(&mut witnesses, key, at(0));
            witnesses.tried(IntegrationKey(key), at(0));
        }
        witnesses.pardon(at(5));
        let next = witnesses.to_ask("3", at(5), ANY);
        assert_eq!(next, asked(&[2, 1, 0], 0));
    }

    #[test]
    fn probes_until_too_few_are_left() {
        let at = clock();
        let mut witnesses = Witnesses::default();
        for key in 0..3 {
            work(&mut witnesses, key, at(0));
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
            work(&mut witnesses, key, at(0));
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
    fn three_accounts_that_refuse_and_none_that_works_are_ours() {
        assert!(is_ours(3, 0));
        assert!(is_ours(6, 0));
        assert!(!is_ours(2, 0));
        assert!(!is_ours(5, 1));
    }

    proptest! {
        #[test]
        fn remembers_a_bounded_number_each_once(keys in prop::collection::vec(0i64..100, 0..300)) {
            let mut witnesses = Witnesses::default();
            let now = Instant::now();
            for key in keys {
                work(&mut witnesses, key, now);
            }
            prop_assert!(witnesses.roles.len() <= MOST_ROLES);
            let mut known: Vec<_> = witnesses.roles.iter().map(|one| one.key).collect();
            known.sort();
            known.dedup();
            prop_assert_eq!(known.len(), witnesses.roles.len());
        }
    }
}
