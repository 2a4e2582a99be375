//! Rights of callers: scopes, and the organizations and AWS accounts that they apply to.

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::organization::{self, OrganizationId};

named_enum! {
    /// Kind of access. Each RPC needs one.
    pub enum Scope {
        /// Reads integrations and their status.
        Read = "siem.read",
        /// Configures, tests and deletes integrations.
        Write = "siem.write",
        /// Publishes events.
        Publish = "siem.publish",
        /// Reads the audit log.
        Audit = "siem.audit",
    }
}

impl Scope {
    /// Returns the scope with a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Set of scopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether the scope is in the set.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

/// Pattern of organization ids: an id, a prefix followed by `*`, or `*`.
///
/// Patterns are ordered by their text without the `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern {
    text: Box<str>,
    is_prefix: bool,
}

/// Reason why a text is not a [`Pattern`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a pattern of organization ids; give an id of 1 to 64 letters, digits, _ and -, a prefix followed by *, or *"
)]
pub struct PatternError;

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// [`PatternError`] if `text` is neither an organization id, nor the beginning of one
    /// followed by `*`, nor `*`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let prefix = text.strip_suffix('*');
        let (text, is_prefix) = (prefix.unwrap_or(text), prefix.is_some());
        if !(is_prefix && text.is_empty()) {
            organization::check(text).map_err(|_| PatternError)?;
        }
        Ok(Self {
            text: text.into(),
            is_prefix,
        })
    }

    /// The organization's id, or the beginning of the ids.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether [`Pattern::text`] is the beginning of the ids.
    pub fn is_prefix(&self) -> bool {
        self.is_prefix
    }

    /// Returns the organizations that both patterns have.
    fn and(&self, other: &Self) -> Option<Self> {
        // Of two that have one in common, one is a part of the other.
        let is_part = |part: &Self, of: &Self| match part.is_prefix {
            true => of.is_prefix && part.text.starts_with(&*of.text),
            false => of.matches(&part.text),
        };
        if is_part(self, other) {
            return Some(self.clone());
        }
        is_part(other, self).then(|| other.clone())
    }

    /// Whether the pattern has the organization.
    pub fn matches(&self, organization_id: &str) -> bool {
        match self.is_prefix {
            true => organization_id.starts_with(&*self.text),
            false => organization_id == &*self.text,
        }
    }

    /// Order of patterns that match the same organization: an id after every prefix, and a
    /// longer prefix after a shorter one.
    fn specificity(&self) -> (bool, usize) {
        (!self.is_prefix, self.text.len())
    }
}

impl From<OrganizationId> for Pattern {
    fn from(organization_id: OrganizationId) -> Self {
        Self {
            text: organization_id.as_str().into(),
            is_prefix: false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        f.write_str(if self.is_prefix { "*" } else { "" })
    }
}

/// Set of organizations, as disjoint patterns in ascending order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Organizations(Box<[Pattern]>);

/// Position of an organization in a search for those of a set, in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek<'a> {
    /// The organization is in the set.
    Member,
    /// It is not, and none is before this text.
    From(&'a str),
    /// It is not, and none is after it.
    End,
}

impl Organizations {
    /// Every organization.
    pub fn all() -> Self {
        Self::from_iter([Pattern {
            text: "".into(),
            is_prefix: true,
        }])
    }

    /// Whether the organization is in the set. Takes logarithmic time.
    pub fn has(&self, organization_id: &str) -> bool {
        self.seek(organization_id) == Seek::Member
    }

    /// Returns the organizations that both sets have.
    fn and(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        let mut rest = other.0.iter().peekable();
        for pattern in &self.0 {
            // Patterns in ascending order that are before this one have nothing in common with
            // later ones either.
            let is_before = |one: &Pattern| *one.text < *pattern.text && one.and(pattern).is_none();
            while rest.next_if(|one| is_before(one)).is_some() {}
            let common = rest.clone().map_while(|one| pattern.and(one));
            both.extend(common);
        }
        both.into_iter().collect()
    }

    /// Finds the organization, or the beginning of the next pattern after it.
    fn seek(&self, organization_id: &str) -> Seek<'_> {
        let next = self
            .0
            .partition_point(|pattern| &*pattern.text <= organization_id);
        // The patterns are disjoint: whatever lies between a prefix and a text that begins with
        // it begins with it, too, so only the last pattern up to the id can match.
        let last = next.checked_sub(1).map(|last| &self.0[last]);
        if last.is_some_and(|pattern| pattern.matches(organization_id)) {
            return Seek::Member;
        }
        match self.0.get(next) {
            Some(pattern) => Seek::From(&pattern.text),
            None => Seek::End,
        }
    }
}

impl FromIterator<Pattern> for Organizations {
    fn from_iter<I: IntoIterator<Item = Pattern>>(patterns: I) -> Self {
        let mut sorted: Vec<Pattern> = patterns.into_iter().collect();
        // A prefix before the id with the same text, so that the prefix is kept.
        sorted.sort_unstable_by(|one, other| {
            let order = |pattern: &Pattern| !pattern.is_prefix;
            one.text
                .cmp(&other.text)
                .then(order(one).cmp(&order(other)))
        });
        sorted.dedup_by(|later, kept| kept.matches(&later.text));
        Self(sorted.into())
    }
}

impl fmt::Display for Organizations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            write!(f, "{}{pattern}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// AWS accounts that Configure may name, by organization.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AwsAccounts(BTreeMap<Pattern, Box<[Box<str>]>>);

impl AwsAccounts {
    /// Restricts the organizations of a pattern to these accounts.
    pub fn restrict(&mut self, pattern: Pattern, accounts: Vec<Box<str>>) {
        self.0.insert(pattern, accounts.into());
    }

    /// Whether an organization may use an account. The most specific pattern that matches the
    /// organization decides; without one every account is allowed.
    fn allow(&self, organization_id: &str, account: &str) -> bool {
        let matching = self.0.iter();
        let matching = matching.filter(|(pattern, _)| pattern.matches(organization_id));
        let decides = matching.max_by_key(|(pattern, _)| pattern.specificity());
        decides.is_none_or(|(_, accounts)| accounts.iter().any(|one| &**one == account))
    }
}

/// Scopes, and the organizations and AWS accounts that they apply to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Scopes.
    pub scopes: Scopes,
    /// Organizations.
    pub organizations: Organizations,
    /// AWS accounts.
    pub aws_accounts: AwsAccounts,
}

/// Rights of a caller: the intersection of grants, for example of a certificate and a token.
/// Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights(Option<Arc<[Arc<Grant>]>>);

impl Rights {
    /// Rights without limits, while authentication is off.
    pub const UNLIMITED: Self = Self(None);

    /// Returns the intersection of grants; without any, no rights.
    pub fn intersection(grants: impl IntoIterator<Item = Arc<Grant>>) -> Self {
        let mut grants: Vec<Arc<Grant>> = grants.into_iter().collect();
        if grants.is_empty() {
            grants.push(Arc::default());
        }
        Self(Some(grants.into()))
    }

    /// No rights at all.
    pub fn none() -> Self {
        Self::intersection([])
    }

    /// Returns these rights as far as the grants allow them, too.
    pub fn and(&self, grants: &[Arc<Grant>]) -> Self {
        Self::intersection(self.grants().iter().chain(grants).cloned())
    }

    fn grants(&self) -> &[Arc<Grant>] {
        self.0.as_deref().unwrap_or_default()
    }

    /// Whether the caller has the scope.
    pub fn has(&self, scope: Scope) -> bool {
        self.grants().iter().all(|grant| grant.scopes.has(scope))
    }

    /// Whether the rights apply to an organization.
    pub fn cover(&self, organization_id: &str) -> bool {
        let mut grants = self.grants().iter();
        grants.all(|grant| grant.organizations.has(organization_id))
    }

    /// Finds an organization among those that the rights apply to. The work for all organizations
    /// in ascending order is bounded by the members and the number of patterns, if the search
    /// goes on from [`Seek::From`].
    pub fn seek(&self, organization_id: &str) -> Seek<'_> {
        let mut grants = self.grants().iter();
        let outside = grants.find_map(|grant| {
            let found = grant.organizations.seek(organization_id);
            (found != Seek::Member).then_some(found)
        });
        outside.unwrap_or(Seek::Member)
    }

    /// Whether an organization may use an AWS account.
    pub fn allow_account(&self, organization_id: &str, account: &str) -> bool {
        let mut grants = self.grants().iter();
        grants.all(|grant| grant.aws_accounts.allow(organization_id, account))
    }

    /// Disjoint patterns of the organizations that the rights apply to; None if these are all, and
    /// what belongs to none.
    pub fn patterns(&self) -> Option<Vec<Pattern>> {
        let of_grants = self.grants().iter().map(|grant| &grant.organizations);
        let common = of_grants.fold(Organizations::all(), |common, one| common.and(one));
        let patterns = common.0.into_vec();
        let is_all = |pattern: &Pattern| pattern.is_prefix && pattern.text.is_empty();
        (!patterns.iter().any(is_all)).then_some(patterns)
    }

    /// Text that differs between rights to different organizations; None for unlimited rights.
    pub fn organizations(&self) -> Option<String> {
        let grants = self.0.as_ref()?.iter();
        let texts: Vec<String> = grants
            .map(|grant| grant.organizations.to_string())
            .collect();
        Some(texts.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn organizations(patterns: &[&str]) -> Organizations {
        let patterns = patterns.iter().map(|text| Pattern::parse(text).unwrap());
        patterns.collect()
    }

    #[test]
    fn patterns_are_ids_prefixes_or_everything() {
        for (text, matching, other) in [
            ("acme", "acme", "acme1"),
            ("acme", "acme", "acm"),
            ("acme-*", "acme-", "acme"),
            ("acme*", "acme", "acm"),
            ("A*", "A1", "a1"),
        ] {
            let pattern = Pattern::parse(text).unwrap();
            assert!(pattern.matches(matching), "{text} {matching}");
            assert!(!pattern.matches(other), "{text} {other}");
        }
        assert!(Pattern::parse("*").unwrap().matches("any"));
        for text in ["", "a*b", "**", "*a", "a b", "é", "a*\n", &"a".repeat(65)] {
            assert_eq!(Pattern::parse(text), Err(PatternError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn patterns_of_rights_are_those_that_all_grants_have(
            sets in prop::collection::vec(prop::collection::vec("[ab]{0,3}\\*|[ab]{1,3}", 0..5), 0..4),
            ids in prop::collection::vec("[ab]{1,4}", 20),
        ) {
            let grants = sets.iter().map(|texts| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let organizations = organizations(&texts);
                Arc::new(Grant { organizations, ..Grant::default() })
            });
            let rights = Rights::intersection(grants);
            let patterns = rights.patterns();
            for id in &ids {
                let found = patterns.iter().flatten().filter(|pattern| pattern.matches(id)).count();
                prop_assert!(found <= 1, "disjoint");
                prop_assert_eq!(rights.cover(id), patterns.is_none() || found == 1);
            }
            prop_assert_eq!(rights.cover(""), patterns.is_none());
        }
    }

    #[test]
    fn the_most_specific_pattern_decides_about_accounts() {
        let mut accounts = AwsAccounts::default();
        for (pattern, account) in [("a*", "1"), ("acme", "2"), ("ac*", "3")] {
            accounts.restrict(Pattern::parse(pattern).unwrap(), vec![account.into()]);
        }
        for (organization, account, allowed) in [
            ("acme", "2", true),
            ("acme", "3", false),
            ("acme1", "3", true),
            ("acme1", "1", false),
            ("ab", "1", true),
            ("b", "9", true),
        ] {
            assert_eq!(
                accounts.allow(organization, account),
                allowed,
                "{organization}"
            );
        }
    }

    #[test]
    fn rights_are_an_intersection() {
        let grant = |scopes: &[Scope], patterns: &[&str]| {
            Arc::new(Grant {
                scopes: scopes.iter().copied().collect(),
                organizations: organizations(patterns),
                aws_accounts: AwsAccounts::default(),
            })
        };
        let both = Rights::intersection([
            grant(&[Scope::Read, Scope::Write], &["acme", "test-*"]),
            grant(&[Scope::Read, Scope::Audit], &["test-1", "zeta"]),
        ]);
        let has = Scope::ALL.map(|scope| both.has(scope));
        assert_eq!(has, [true, false, false, false]);
        let covered = ["acme", "test-1", "test-2", "zeta"].map(|id| both.cover(id));
        assert_eq!(covered, [false, true, false, false]);
        assert!(Scope::ALL.iter().all(|scope| Rights::UNLIMITED.has(*scope)));
        assert!(Rights::UNLIMITED.cover("acme") && !Rights::none().cover("acme"));
        assert!(!Rights::none().has(Scope::Read));
        assert_ne!(both.organizations(), Rights::none().organizations());
    }

    /// A few letters, so that patterns and ids often meet.
    const ID: &str = "[ab]{1,4}";

    proptest! {
        #[test]
        fn a_set_has_what_any_of_its_patterns_matches(
            texts in prop::collection::vec("[ab]{1,3}\\*?|\\*", 0..8),
            id in ID,
        ) {
            let patterns: Vec<Pattern> =
                texts.iter().map(|text| Pattern::parse(text).unwrap()).collect();
            let expected = patterns.iter().any(|pattern| pattern.matches(&id));
            let set: Organizations = patterns.into_iter().collect();
            prop_assert_eq!(set.has(&id), expected, "{}", set);
        }

        #[test]
        fn a_search_finds_every_member_in_bounded_steps(
            first in prop::collection::vec("[ab]{1,3}\\*?", 0..6),
            second in prop::collection::vec("[ab]{1,3}\\*?|\\*", 0..6),
            ids in prop::collection::btree_set(ID, 0..30),
        ) {
            let set = |texts: &[String]| -> Organizations {
                texts.iter().map(|text| Pattern::parse(text).unwrap()).collect()
            };
            let grants = [&first, &second].map(|texts| {
                Arc::new(Grant {
                    organizations: set(texts),
                    ..Grant::default()
                })
            });
            let patterns: usize = grants.iter().map(|grant| grant.organizations.0.len()).sum();
            let rights = Rights::intersection(grants);
            let (mut from, mut found, mut others) = (String::new(), Vec::new(), 0);
            'search: loop {
                for id in ids.range(from.clone()..) {
                    match rights.seek(id) {
                        Seek::Member => found.push(id.clone()),
                        Seek::From(next) => {
                            others += 1;
                            prop_assert!(next > id.as_str());
                            from = next.to_owned();
                            continue 'search;
                        }
                        Seek::End => break 'search,
                    }
                }
                break;
            }
            let expected: Vec<String> =
                ids.iter().filter(|id| rights.cover(id)).cloned().collect();
            prop_assert_eq!(found, expected);
            prop_assert!(others <= patterns);
        }
    }
}
