//! Whether this service's own AWS identity is good, apart from any customer's.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

use super::integration::IntegrationKey;

/// How this service stands with AWS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing speaks against it.
    #[default]
    Good,
    /// Its own credentials are missing, expired or refused.
    CredentialsRefused {
        /// AWS's error code, or ours where nothing could be sent.
        code: Box<str>,
    },
    /// Most roles that it assumed lately are refused together, which AWS also answers
    /// where our own identity may not assume.
    MayNotAssume,
}

/// How long a role counts as having worked.
const LATELY: SignedDuration = SignedDuration::from_hours(1);
/// Roles that are remembered at the most.
const MOST_ROLES: usize = 64;
/// Fewer witnesses prove nothing.
pub const LEAST_WITNESSES: usize = 3;
/// Witnesses that are asked at the most.
pub const MOST_WITNESSES: usize = 5;

/// Roles that were assumed lately: who to ask whether it is our identity that is
/// refused.
#[derive(Debug)]
pub struct Witnesses<T> {
    /// Newest last.
    roles: VecDeque<(IntegrationKey, Timestamp, T)>,
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
    pub fn worked(&mut self, key: IntegrationKey, now: Timestamp, role: T) {
        self.forget(key);
        if self.roles.len() == MOST_ROLES {
            self.roles.pop_front();
        }
        self.roles.push_back((key, now, role));
    }

    /// The role says nothing any more.
    pub fn forget(&mut self, key: IntegrationKey) {
        self.roles.retain(|(known, _, _)| *known != key);
    }

    /// Whether the role worked and nothing has spoken against it since.
    pub fn knows(&self, key: IntegrationKey) -> bool {
        self.roles.iter().any(|(known, _, _)| *known == key)
    }

    /// Who to ask about the refusal of `key`; empty where too few are known. Those that
    /// are not `current` any more are forgotten.
    pub fn to_ask(
        &mut self,
        key: IntegrationKey,
        now: Timestamp,
        current: impl Fn(&T) -> bool,
    ) -> Vec<T> {
        self.roles
            .retain(|(_, worked, role)| now.duration_since(*worked) <= LATELY && current(role));
        let others = self
            .roles
            .iter()
            .rev()
            .filter(|(known, _, _)| *known != key);
        let asked: Vec<T> = others
            .take(MOST_WITNESSES)
            .map(|(_, _, role)| role.clone())
            .collect();
        match asked.len() < LEAST_WITNESSES {
            true => Vec::new(),
            false => asked,
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn asks_only_others_that_worked_within_the_hour() {
        let mut witnesses = Witnesses::default();
        for key in 0..4 {
            witnesses.worked(IntegrationKey(key), at(key * 1000), key);
        }
        assert_eq!(
            witnesses.to_ask(IntegrationKey(9), at(3000), |_| true),
            [3, 2, 1, 0]
        );
        assert_eq!(
            witnesses.to_ask(IntegrationKey(3), at(3000), |_| true),
            [2, 1, 0]
        );
        assert_eq!(
            witnesses.to_ask(IntegrationKey(9), at(3700), |_| true),
            [3, 2, 1]
        );
        assert!(
            witnesses
                .to_ask(IntegrationKey(3), at(3700), |_| true)
                .is_empty()
        );
        let odd = witnesses.to_ask(IntegrationKey(9), at(3700), |key| key % 2 == 1);
        assert!(odd.is_empty(), "two are too few: {odd:?}");
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
            for key in keys {
                witnesses.worked(IntegrationKey(key), at(0), key);
            }
            prop_assert!(witnesses.roles.len() <= MOST_ROLES);
            let mut known: Vec<_> = witnesses.roles.iter().map(|(key, _, _)| *key).collect();
            known.sort();
            known.dedup();
            prop_assert_eq!(known.len(), witnesses.roles.len());
        }
    }
}
