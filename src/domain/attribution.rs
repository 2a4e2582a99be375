//! Attribution of refusals: AWS answers a fault of this service's own identity and a mistake of
//! one customer with the same codes, so that evidence of several accounts has to decide.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    integration::{Integration, IntegrationId},
    map::Map,
};

/// State of this service's own AWS identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IdentityState {
    /// No evidence of a fault.
    #[default]
    Good,
    /// This service's own credentials are missing, expired or refused, or AWS refuses
    /// requests that are signed with newly assumed sessions.
    CredentialsRefused {
        /// AWS's error code, or ours if nothing could be sent.
        code: Box<str>,
    },
    /// The canary role is denied, or roles of several accounts that were assumed recently are
    /// denied together, and none can be assumed. AWS answers the same if our own identity lacks
    /// the permission to assume roles.
    MayNotAssume,
}

/// Age up to which an assumed role is evidence.
const RECENT: Duration = Duration::from_secs(3600);
/// Limit of the roles that are remembered.
pub const MAX_ROLES: usize = 64;
/// Limit of the roles of one account, so that one account does not displace the others.
const MAX_ROLES_OF_ACCOUNT: usize = 4;
/// Distinct AWS accounts that must refuse together before that is evidence against this
/// service.
pub const MIN_ACCOUNTS: usize = 3;
/// Limit of the roles that are checked about one refusal, each of another account.
pub const MAX_CHECKS: usize = 5;
/// Interval before a role that failed a check is checked again: doubled each time up to the
/// maximum.
const FIRST_INTERVAL: Duration = Duration::from_secs(10);
const MAX_INTERVAL: Duration = Duration::from_secs(180);
/// Interval before a role that delivery itself was refused is checked: longer than the longest
/// backoff of delivery.
const INTERVAL_AFTER_DELIVERY: Duration = Duration::from_secs(330);

/// Roles that were assumed recently. Assuming some of them again shows whether a refusal
/// concerns our own identity.
#[derive(Debug)]
pub struct RecentRoles<T> {
    /// The newest is last.
    roles: VecDeque<RecentRole<T>>,
}

#[derive(Debug)]
struct RecentRole<T> {
    id: IntegrationId,
    /// AWS account of the role. One customer's decision may concern all roles of an account.
    account: Box<str>,
    role: T,
    assumed: Instant,
    /// Failed checks and attempts since then.
    failures: u32,
    /// The last answer was a denial.
    denied: bool,
    /// Time of the next check at the earliest.
    next: Instant,
}

/// Roles to check about a refusal.
#[derive(Debug, PartialEq, Eq)]
pub struct Checks<T> {
    /// Roles to assume now.
    pub roles: Vec<T>,
    /// Accounts whose roles were refused by a check a short while ago.
    pub refused_already: usize,
}

/// Next check while our identity is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum NextCheck<T> {
    /// Fewer than [`MIN_ACCOUNTS`] accounts remain: not enough evidence against this service.
    TooFewAccounts,
    /// All roles were checked a short while ago.
    Wait,
    /// The role to assume.
    Assume(T),
}

impl<T> Default for RecentRoles<T> {
    fn default() -> Self {
        Self {
            roles: VecDeque::new(),
        }
    }
}

impl<T: Clone> RecentRoles<T> {
    /// Adds a role of an account that was assumed.
    pub fn assumed(&mut self, id: IntegrationId, account: &str, now: Instant, role: T) {
        self.forget(id);
        let same_account = |role: &RecentRole<T>| *role.account == *account;
        let of_account = self.roles.iter().filter(|role| same_account(role)).count();
        let displaced = match of_account >= MAX_ROLES_OF_ACCOUNT {
            true => self.roles.iter().position(same_account),
            false => (self.roles.len() == MAX_ROLES).then_some(0),
        };
        if let Some(displaced) = displaced {
            self.roles.remove(displaced);
        }
        self.roles.push_back(RecentRole {
            id,
            account: account.into(),
            role,
            assumed: now,
            failures: 0,
            denied: false,
            next: now,
        });
    }

    /// A check of the role was denied.
    pub fn denied(&mut self, id: IntegrationId, now: Instant) {
        self.failed(id, now, true);
    }

    /// A check of the role gave no clear answer.
    pub fn unclear(&mut self, id: IntegrationId, now: Instant) {
        self.failed(id, now, false);
    }

    fn failed(&mut self, id: IntegrationId, now: Instant, denied: bool) {
        if let Some(role) = self.find(id) {
            let interval = FIRST_INTERVAL.saturating_mul(1 << role.failures.min(16));
            role.failures = role.failures.saturating_add(1);
            role.denied = denied;
            role.next = now + interval.min(MAX_INTERVAL);
        }
    }

    /// Delivery itself was denied the role.
    pub fn denied_to_delivery(&mut self, id: IntegrationId, now: Instant) {
        if let Some(role) = self.find(id) {
            role.failures = role.failures.saturating_add(1);
            role.denied = true;
            role.next = now + INTERVAL_AFTER_DELIVERY;
        }
    }

    /// Discards earlier answers, because our identity may assume roles again.
    pub fn reset(&mut self, now: Instant) {
        for role in &mut self.roles {
            role.failures = 0;
            role.denied = false;
            role.next = now;
        }
    }

    /// Removes a role that is no evidence any more.
    pub fn forget(&mut self, id: IntegrationId) {
        self.roles.retain(|role| role.id != id);
    }

    fn find(&mut self, id: IntegrationId) -> Option<&mut RecentRole<T>> {
        self.roles.iter_mut().find(|role| role.id == id)
    }

    /// Roles to check about a refusal of `account`, each of another account; None if too few
    /// accounts are known. Removes roles that are not `current` any more.
    pub fn checks(
        &mut self,
        account: &str,
        now: Instant,
        current: impl Fn(&T) -> bool,
    ) -> Option<Checks<T>> {
        self.roles
            .retain(|role| now.duration_since(role.assumed) <= RECENT && current(&role.role));
        let mut seen = vec![account];
        let (mut roles, mut refused_already) = (Vec::new(), 0);
        // The roles that were assumed last are the likeliest to work.
        for role in self.roles.iter().rev() {
            if seen.len() > MAX_CHECKS || seen.contains(&&*role.account) {
                continue;
            }
            if role.next <= now {
                roles.push(role.role.clone());
            } else if role.denied {
                refused_already += 1;
            } else {
                // Its answer was not clear; that of another role of the account may be.
                continue;
            }
            seen.push(&role.account);
        }
        // The refused account counts as well.
        (1 + roles.len() + refused_already >= MIN_ACCOUNTS).then_some(Checks {
            roles,
            refused_already,
        })
    }

    /// The next check while our identity is refused. `RECENT` does not apply, because no
    /// role can be assumed meanwhile.
    pub fn next_check(&mut self, now: Instant, current: impl Fn(&T) -> bool) -> NextCheck<T> {
        self.roles.retain(|role| current(&role.role));
        let accounts: BTreeSet<_> = self.roles.iter().map(|role| &role.account).collect();
        if accounts.len() < MIN_ACCOUNTS {
            return NextCheck::TooFewAccounts;
        }
        let first = self.roles.iter().min_by_key(|role| role.next);
        match first {
            Some(role) if role.next <= now => NextCheck::Assume(role.role.clone()),
            _ => NextCheck::Wait,
        }
    }
}

/// Whether answers are evidence against our identity: `refused` accounts, the one with the
/// first refusal included, and no account whose role could be assumed.
pub fn is_service_fault(refused: usize, assumed: usize) -> bool {
    refused >= MIN_ACCOUNTS && assumed == 0
}

/// Age at which a refusal is no evidence any more: longer than the longest backoff.
const REFUSAL_EXPIRY: Duration = Duration::from_secs(600);
/// Delay before a refused session is attributed, so that refusals of other integrations with
/// the same cause can arrive first.
const ATTRIBUTION_DELAY: Duration = Duration::from_secs(3);

/// Integrations whose newly assumed sessions AWS refuses, or whose AssumeRole it refuses for
/// the credentials.
#[derive(Debug, Default)]
pub struct RefusedSessions {
    by_key: Map<IntegrationId, RefusedSession>,
    /// Another integration delivered since each of the refusals.
    others_deliver: bool,
}

#[derive(Debug)]
struct RefusedSession {
    integration: Arc<Integration>,
    first: Instant,
    last: Instant,
    /// Another integration delivered since the first refusal.
    others_deliver: bool,
}

/// Attribution of a refused session by the evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// The customer's fault: others deliver with sessions of the same identity.
    Customer,
    /// This service's fault: at least [`MIN_ACCOUNTS`] accounts refuse, and nobody delivers.
    Service,
    /// Not decided before `ATTRIBUTION_DELAY`.
    Undecided,
    /// No other integration delivers or is refused: STS has to be asked about the credentials.
    AskSts,
}

impl RefusedSessions {
    /// Whether no session is refused.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Adds a refusal. Returns its attribution and the time of the integration's first refusal.
    /// With `may_wait`, an attribution other than to the customer takes
    /// `ATTRIBUTION_DELAY`.
    pub fn refused(
        &mut self,
        integration: &Arc<Integration>,
        now: Instant,
        may_wait: bool,
    ) -> (Attribution, Instant) {
        self.by_key
            .retain(|_, refused| now.duration_since(refused.last) <= REFUSAL_EXPIRY);
        let refused = self
            .by_key
            .entry(integration.integration_id)
            .and_modify(|refused| {
                if refused.integration.version != integration.version {
                    *refused = RefusedSession::new(integration, now);
                }
                refused.last = now;
            })
            .or_insert_with(|| RefusedSession::new(integration, now));
        let (first, others_deliver) = (refused.first, refused.others_deliver);
        self.others_deliver &= others_deliver;
        let attribution = if others_deliver {
            Attribution::Customer
        } else if self.is_service_fault() {
            Attribution::Service
        } else if may_wait && now.duration_since(first) < ATTRIBUTION_DELAY {
            Attribution::Undecided
        } else {
            Attribution::AskSts
        };
        (attribution, first)
    }

    /// Whether enough accounts are refused for evidence against this service.
    fn is_service_fault(&self) -> bool {
        let undelivered = self
            .by_key
            .values()
            .filter(|refused| !refused.others_deliver);
        let accounts: BTreeSet<_> = undelivered
            .map(|refused| refused.integration.role_arn.account())
            .collect();
        accounts.len() >= MIN_ACCOUNTS
    }

    /// AWS accepted a session of an integration.
    pub fn delivered(&mut self, id: IntegrationId) {
        self.by_key.remove(&id);
        // Runs after each write; usually the flags are set already.
        if !std::mem::replace(&mut self.others_deliver, true) {
            for refused in self.by_key.values_mut() {
                refused.others_deliver = true;
            }
        }
    }

    /// Keeps only integrations that are `current`.
    pub fn retain(&mut self, current: impl Fn(&Integration) -> bool) {
        self.by_key
            .retain(|_, refused| current(&refused.integration));
    }
}

impl RefusedSession {
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
    use crate::domain::integration::testing::testing_id;
    use proptest::prelude::*;

    const ANY: fn(&i64) -> bool = |_| true;

    fn clock() -> impl Fn(u64) -> Instant {
        let start = Instant::now();
        move |second| start + Duration::from_secs(second)
    }

    /// Assumes a role of a separate account.
    fn assume(roles: &mut RecentRoles<i64>, key: i64, now: Instant) {
        roles.assumed(testing_id(key), &key.to_string(), now, key);
    }

    fn checks(roles: &[i64], refused_already: usize) -> Option<Checks<i64>> {
        Some(Checks {
            roles: roles.to_vec(),
            refused_already,
        })
    }

    #[test]
    fn checks_only_other_accounts_of_the_last_hour() {
        let at = clock();
        let mut roles = RecentRoles::default();
        for key in 0..4 {
            assume(&mut roles, key, at(key as u64 * 1000));
        }
        let mut checks_of = |key: i64, second, current: fn(&i64) -> bool| {
            roles.checks(&key.to_string(), at(second), current)
        };
        assert_eq!(checks_of(9, 3000, ANY), checks(&[3, 2, 1, 0], 0));
        assert_eq!(checks_of(3, 3000, ANY), checks(&[2, 1, 0], 0));
        assert_eq!(checks_of(9, 3700, ANY), checks(&[3, 2, 1], 0));
        assert_eq!(checks_of(3, 3700, ANY), checks(&[2, 1], 0));
        assert_eq!(checks_of(9, 3700, |key| *key == 1), None, "two are too few");
    }

    #[test]
    fn roles_of_one_account_count_once() {
        let now = Instant::now();
        let mut roles = RecentRoles::default();
        for key in 0..6 {
            roles.assumed(testing_id(key), "one", now, key);
        }
        assert_eq!(roles.checks("other", now, ANY), None);
        roles.assumed(testing_id(6), "two", now, 6);
        assert_eq!(roles.checks("other", now, ANY), checks(&[6, 5], 0));
        assert_eq!(roles.checks("one", now, ANY), None);
        assert_eq!(roles.next_check(now, ANY), NextCheck::TooFewAccounts);
    }

    fn customer(key: i64, account: u64) -> Arc<Integration> {
        Arc::new(integration(key, account))
    }

    #[test]
    fn a_refused_session_is_attributed_by_what_other_integrations_get() {
        let at = clock();
        let mut sessions = RefusedSessions::default();
        let one = customer(1, 1);
        assert_eq!(
            sessions.refused(&one, at(0), true),
            (Attribution::Undecided, at(0))
        );
        assert_eq!(sessions.refused(&one, at(0), false).0, Attribution::AskSts);
        assert_eq!(
            sessions.refused(&one, at(2), true).0,
            Attribution::Undecided
        );
        assert_eq!(sessions.refused(&one, at(3), true).0, Attribution::AskSts);
        sessions.delivered(testing_id(2));
        assert_eq!(sessions.refused(&one, at(4), true).0, Attribution::Customer);
        sessions.delivered(testing_id(1));
        assert!(sessions.is_empty());
        assert_eq!(
            sessions.refused(&one, at(5), true).0,
            Attribution::Undecided
        );
    }

    #[test]
    fn three_refused_accounts_and_no_delivery_are_our_fault() {
        let now = Instant::now();
        let mut sessions = RefusedSessions::default();
        for (key, account) in [(1, 1), (2, 1), (3, 1), (4, 2)] {
            let attribution = sessions.refused(&customer(key, account), now, true).0;
            assert_eq!(attribution, Attribution::Undecided);
        }
        assert_eq!(
            sessions.refused(&customer(5, 3), now, true).0,
            Attribution::Service
        );
        assert_eq!(
            sessions.refused(&customer(1, 1), now, true).0,
            Attribution::Service
        );
        sessions.delivered(testing_id(9));
        assert_eq!(
            sessions.refused(&customer(1, 1), now, true).0,
            Attribution::Customer
        );
    }

    #[test]
    fn a_configure_discards_earlier_refusals() {
        let at = clock();
        let mut sessions = RefusedSessions::default();
        sessions.refused(&customer(1, 1), at(0), true);
        sessions.delivered(testing_id(2));
        let mut next = integration(1, 1);
        next.version += 1;
        let attribution = sessions.refused(&Arc::new(next), at(9), true);
        assert_eq!(attribution, (Attribution::Undecided, at(9)));
        sessions.retain(|_| false);
        assert!(sessions.is_empty());
    }

    #[test]
    fn a_role_that_was_just_denied_counts_without_another_check() {
        let at = clock();
        let mut roles = RecentRoles::default();
        for key in 0..4 {
            assume(&mut roles, key, at(0));
        }
        roles.denied(testing_id(2), at(1));
        let mut checks_of = |second| roles.checks("9", at(second), ANY);
        assert_eq!(checks_of(10), checks(&[3, 1, 0], 1));
        assert_eq!(checks_of(11), checks(&[3, 2, 1, 0], 0));
    }

    #[test]
    fn an_unclear_answer_is_no_denial() {
        let at = clock();
        let mut roles = RecentRoles::default();
        for key in 0..5 {
            assume(&mut roles, key, at(0));
        }
        for key in 0..4 {
            roles.unclear(testing_id(key), at(1));
        }
        let mut checks_of = |second| roles.checks("9", at(second), ANY);
        assert_eq!(checks_of(10), None, "two are too few");
        assert_eq!(checks_of(11), checks(&[4, 3, 2, 1, 0], 0));
    }

    #[test]
    fn a_reset_discards_earlier_denials() {
        let at = clock();
        let mut roles = RecentRoles::default();
        for key in 0..4 {
            assume(&mut roles, key, at(0));
            roles.denied_to_delivery(testing_id(key), at(0));
        }
        roles.reset(at(5));
        let next = roles.checks("3", at(5), ANY);
        assert_eq!(next, checks(&[2, 1, 0], 0));
    }

    #[test]
    fn checks_roles_until_too_few_accounts_are_left() {
        let at = clock();
        let mut roles = RecentRoles::default();
        for key in 0..3 {
            assume(&mut roles, key, at(0));
        }
        // Their age does not matter.
        let late = 10 * 3600;
        for key in 0..3 {
            let next = roles.next_check(at(late), ANY);
            assert_eq!(next, NextCheck::Assume(key));
            roles.denied(testing_id(key), at(late));
        }
        assert_eq!(roles.next_check(at(late + 9), ANY), NextCheck::Wait);
        roles.denied_to_delivery(testing_id(0), at(late + 9));
        let next = roles.next_check(at(late + 10), ANY);
        assert_eq!(next, NextCheck::Assume(1));
        assert_eq!(
            roles.next_check(at(late + 10), |key| *key > 0),
            NextCheck::TooFewAccounts
        );
    }

    #[test]
    fn three_roles_alone_are_probed_at_most_20_times_an_hour_each() {
        let at = clock();
        let mut roles = RecentRoles::default();
        for key in 0..3 {
            assume(&mut roles, key, at(0));
            roles.denied(testing_id(key), at(0));
        }
        let mut checked = [const { Vec::new() }; 3];
        let (mut second, mut wait) = (10, 20);
        while second < 3 * 3600 {
            if let NextCheck::Assume(key) = roles.next_check(at(second), ANY) {
                checked[key as usize].push(second);
                roles.denied(testing_id(key), at(second));
            }
            second += wait;
            wait = (wait * 2).min(60);
        }
        let mut all = checked.concat();
        all.sort_unstable();
        let longest = all.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!(longest, Some(60));
        for of_one in checked {
            for from in 60..2 * 3600 {
                let hour = of_one.iter().filter(|at| (from..from + 3600).contains(*at));
                assert!(hour.count() <= 20, "{from}: {of_one:?}");
            }
        }
    }

    #[test]
    fn needs_three_refusing_accounts_and_none_that_works() {
        assert!(is_service_fault(3, 0));
        assert!(is_service_fault(6, 0));
        assert!(!is_service_fault(2, 0));
        assert!(!is_service_fault(5, 1));
    }

    proptest! {
        #[test]
        fn remembers_a_limited_number_each_once(keys in prop::collection::vec(0i64..100, 0..300)) {
            let mut roles = RecentRoles::default();
            let now = Instant::now();
            for key in keys {
                assume(&mut roles, key, now);
            }
            prop_assert!(roles.roles.len() <= MAX_ROLES);
            let mut known: Vec<_> = roles.roles.iter().map(|one| one.id).collect();
            known.sort();
            known.dedup();
            prop_assert_eq!(known.len(), roles.roles.len());
        }
    }
}
