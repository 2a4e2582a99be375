//! The callers file: issuers of tokens that are trusted, and callers with their rights.
//! `docs/callers.md` describes it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Display},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::Uri;
use toml::{Table, Value};

use super::certificate::{Certificate, Name};
use crate::domain::{
    rights::{AwsAccounts, Grant, Organizations, Pattern, Scope, Scopes},
    service_url,
};

/// Bytes of the file.
pub(super) const MAX_FILE: usize = 1 << 20;
/// Issuers in the file. Each with a URL has a task.
const MAX_ISSUERS: usize = 32;
/// Problems that are named.
const MAX_PROBLEMS: usize = 50;
/// Bytes of a text in the file.
const MAX_TEXT: usize = 2048;
/// Lifetime of tokens, if `max_lifetime_seconds` is absent.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest `max_lifetime_seconds`: a year.
const MAX_LIFETIME: i64 = 365 * 24 * 60 * 60;

/// Content of the callers file.
#[derive(Debug)]
pub(super) struct CallersFile {
    pub(super) issuers: Vec<Issuer>,
    grants: Vec<Arc<Grant>>,
    /// Positions in `grants`.
    by_name: HashMap<Name, usize>,
}

/// Issuer of tokens that is trusted.
#[derive(Debug)]
pub(super) struct Issuer {
    /// Exact value of the claim `iss`.
    pub(super) issuer: Arc<str>,
    /// Value that the claim `aud` must contain.
    pub(super) audience: Box<str>,
    pub(super) keys: KeyLocation,
    pub(super) max_lifetime: Duration,
    /// Claim that limits the scopes of a token.
    pub(super) scopes_claim: Option<Box<str>>,
    /// Claim that limits the organizations of a token.
    pub(super) organizations_claim: Option<Box<str>>,
    by_subject: HashMap<Box<str>, usize>,
    /// By name of the claim, then by its value.
    by_claim: BTreeMap<Box<str>, HashMap<Box<str>, usize>>,
}

/// Location of an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum KeyLocation {
    File(PathBuf),
    /// HTTPS, or HTTP on loopback.
    Url(Uri),
}

impl Display for KeyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// Reason why no caller of the file has an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoMatch {
    Unknown,
    Ambiguous,
}

impl CallersFile {
    /// Parses the file. Relative paths in it start at `directory`.
    pub(super) fn parse(bytes: &[u8], directory: &Path) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let file = Self::read(bytes, directory, &mut problems);
        match (file, problems.count) {
            (Some(file), 0) => Ok(file),
            _ => Err(problems),
        }
    }

    fn read(bytes: &[u8], directory: &Path, problems: &mut Problems) -> Option<Self> {
        if bytes.len() > MAX_FILE {
            problems.add("the file", "is larger than 1 MiB");
            return None;
        }
        let Ok(text) = str::from_utf8(bytes) else {
            problems.add("the file", "is not UTF-8");
            return None;
        };
        let table = match text.parse::<Table>() {
            Ok(table) => table,
            Err(error) => {
                let before = error.span().and_then(|span| text.get(..span.start));
                let line = before.map_or(1, |before| before.matches('\n').count() + 1);
                problems.add(&format!("line {line}"), error.message());
                return None;
            }
        };
        let mut root = Fields::new("", table, problems);
        let issuers = root.tables("issuers", problems);
        let callers = root.tables("callers", problems);
        root.finish(problems);
        if callers.is_empty() && problems.count == 0 {
            problems.add(
                "callers",
                "is empty, so that nobody could call; list at least one caller",
            );
        }
        if issuers.len() > MAX_ISSUERS {
            problems.add(
                "issuers",
                format_args!("has more than {MAX_ISSUERS} entries"),
            );
            return None;
        }
        let mut file = Self {
            issuers: Vec::new(),
            grants: Vec::new(),
            by_name: HashMap::new(),
        };
        for fields in issuers {
            file.add_issuer(fields, directory, problems);
        }
        for fields in callers {
            file.add_caller(fields, problems);
        }
        Some(file)
    }

    fn add_issuer(&mut self, mut fields: Fields, directory: &Path, problems: &mut Problems) {
        let issuer = fields.required_text("issuer", problems);
        let audience = fields.required_text("audience", problems);
        let file = fields.text("jwks_file", problems);
        let url = fields.text("jwks_url", problems);
        let max_lifetime = fields.seconds("max_lifetime_seconds", problems);
        let scopes_claim = fields.text("scopes_claim", problems);
        let organizations_claim = fields.text("organizations_claim", problems);
        let keys = match (file, url) {
            (Some(file), None) => Some(KeyLocation::File(directory.join(&*file))),
            (None, Some(url)) => match service_url::parse(&url) {
                Ok(url) => Some(KeyLocation::Url(url)),
                Err(problem) => {
                    problems.add(&fields.path("jwks_url"), problem);
                    None
                }
            },
            (None, None) if fields.is_damaged => None,
            _ => {
                problems.add(&fields.path, "needs exactly one of jwks_file and jwks_url");
                None
            }
        };
        let path = fields.path("issuer");
        fields.finish(problems);
        if let (Some(issuer), Some(audience), Some(keys)) = (issuer, audience, keys) {
            if self.issuers.iter().any(|other| *other.issuer == *issuer) {
                return problems.add(&path, "is listed before");
            }
            self.issuers.push(Issuer {
                issuer: issuer.into(),
                audience,
                keys,
                max_lifetime: max_lifetime.unwrap_or(DEFAULT_LIFETIME),
                scopes_claim,
                organizations_claim,
                by_subject: HashMap::new(),
                by_claim: BTreeMap::new(),
            });
        }
    }

    fn add_caller(&mut self, mut fields: Fields, problems: &mut Problems) {
        let position = self.grants.len();
        self.add_identity(&mut fields, position, problems);
        let scopes = fields.required_texts("scopes", problems);
        let scopes = scopes.into_iter().filter_map(|(path, text)| {
            let scope = Scope::parse(&text);
            if scope.is_none() {
                let known = Scope::ALL.map(Scope::as_str).join(", ");
                problems.add(&path, format_args!("is no scope; use {known}"));
            }
            scope
        });
        let scopes: Scopes = scopes.collect();
        let organizations = fields.required_texts("organizations", problems);
        let organizations = organizations.into_iter().filter_map(|(path, text)| {
            let pattern = Pattern::parse(&text);
            pattern.map_err(|error| problems.add(&path, error)).ok()
        });
        let organizations: Organizations = organizations.collect();
        let aws_accounts = aws_accounts(&mut fields, problems);
        fields.finish(problems);
        self.grants.push(Arc::new(Grant {
            scopes,
            organizations,
            aws_accounts,
        }));
    }

    fn add_identity(&mut self, fields: &mut Fields, position: usize, problems: &mut Problems) {
        type Parse = fn(&str) -> Result<Name, &'static str>;
        const KINDS: [(&str, Parse); 4] = [
            ("spiffe", Name::spiffe),
            ("uri", Name::uri),
            ("dns", Name::dns),
            ("email", Name::email),
        ];
        let mut given = 0;
        for (key, parse) in KINDS {
            let Some(text) = fields.text(key, problems) else {
                continue;
            };
            given += 1;
            match parse(&text) {
                Ok(name) => {
                    if self.by_name.insert(name, position).is_some() {
                        problems.add(&fields.path(key), LISTED_BEFORE);
                    }
                }
                Err(problem) => problems.add(&fields.path(key), problem),
            }
        }
        let issuer = fields.text("issuer", problems);
        let subject = fields.text("subject", problems);
        let claim = fields.text("claim", problems);
        let value = fields.text("value", problems);
        if let Some(issuer) = &issuer {
            given += 1;
            let mut issuers = self.issuers.iter_mut();
            match issuers.find(|known| *known.issuer == **issuer) {
                None => problems.add(
                    &fields.path("issuer"),
                    "is not the issuer of a valid entry of issuers; add one",
                ),
                Some(known) => {
                    let before = match (subject, claim, value) {
                        (Some(subject), None, None) => known.by_subject.insert(subject, position),
                        (None, Some(claim), Some(value)) => {
                            let values = known.by_claim.entry(claim).or_default();
                            values.insert(value, position)
                        }
                        _ => {
                            return problems.add(
                                &fields.path,
                                "needs beside issuer either subject, or claim and value",
                            );
                        }
                    };
                    if before.is_some() {
                        problems.add(&fields.path, LISTED_BEFORE);
                    }
                }
            }
        } else if subject.is_some() || claim.is_some() || value.is_some() {
            given += 1;
            problems.add(&fields.path, "has subject, claim or value without issuer");
        }
        if given != 1 && !fields.is_damaged {
            problems.add(
                &fields.path,
                "needs exactly one identity: spiffe, uri, dns, email, or issuer with subject or claim",
            );
        }
    }

    /// Key sets in files, in the order of their issuers.
    pub(super) fn key_files(&self) -> Vec<PathBuf> {
        let files = self.issuers.iter().filter_map(|issuer| match &issuer.keys {
            KeyLocation::File(path) => Some(path.clone()),
            KeyLocation::Url(_) => None,
        });
        files.collect()
    }

    fn grant(&self, positions: impl IntoIterator<Item = usize>) -> Result<Arc<Grant>, NoMatch> {
        let mut positions = positions.into_iter();
        let first = positions.next().ok_or(NoMatch::Unknown)?;
        match positions.all(|other| other == first) {
            true => Ok(Arc::clone(&self.grants[first])),
            false => Err(NoMatch::Ambiguous),
        }
    }

    /// Returns the name of a certificate that identifies a caller, and its rights. A SPIFFE ID
    /// goes before other names, of which all that are listed must be of one caller.
    pub(super) fn by_certificate<'a>(
        &self,
        certificate: &'a Certificate,
    ) -> Result<(&'a Name, Arc<Grant>), NoMatch> {
        let names = certificate.names.iter();
        let mut known = names.filter_map(|name| Some((name, *self.by_name.get(name)?)));
        let (name, position) = known.next().ok_or(NoMatch::Unknown)?;
        let others = match name {
            Name::Spiffe { .. } => Vec::new(),
            _ => known.map(|(_, position)| position).collect(),
        };
        let grant = self.grant([position].into_iter().chain(others))?;
        Ok((name, grant))
    }

    /// Returns the rights of a token's caller, by its subject, or else by its claims.
    pub(super) fn by_token(
        &self,
        issuer: &Issuer,
        subject: &str,
        claims: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Arc<Grant>, NoMatch> {
        if let Some(position) = issuer.by_subject.get(subject) {
            return self.grant([*position]);
        }
        let positions = issuer.by_claim.iter().filter_map(|(claim, by_value)| {
            let value = claims.get(&**claim)?.as_str()?;
            by_value.get(value).copied()
        });
        self.grant(positions)
    }
}

const LISTED_BEFORE: &str = "is the identity of an earlier caller; merge the two";

/// Reads `aws_accounts`: a list for all organizations of the caller, or lists by pattern.
fn aws_accounts(fields: &mut Fields, problems: &mut Problems) -> AwsAccounts {
    let path = fields.path("aws_accounts");
    let mut accounts = AwsAccounts::default();
    let mut restrict = |path: &str, pattern: &str, value: Value, problems: &mut Problems| {
        let listed = texts(path, value, problems).into_iter();
        let listed = listed.filter_map(|(path, text)| {
            let is_account = text.len() == 12 && text.bytes().all(|c| c.is_ascii_digit());
            if !is_account {
                problems.add(&path, "is not an AWS account of twelve digits, in quotes");
            }
            is_account.then_some(text)
        });
        let listed: Vec<Box<str>> = listed.collect();
        match Pattern::parse(pattern) {
            Ok(pattern) => accounts.restrict(pattern, listed),
            Err(error) => problems.add(path, error),
        }
    };
    match fields.take("aws_accounts") {
        None => {}
        Some(Value::Table(by_pattern)) => {
            for (pattern, value) in by_pattern {
                let pattern_path = format!("{path}.{pattern:?}");
                restrict(&pattern_path, &pattern, value, problems);
            }
        }
        Some(list) => restrict(&path, "*", list, problems),
    }
    accounts
}

/// Problems of a callers file, with the path of each: the first ones in full, and the number of
/// all.
#[derive(Debug, Default)]
pub(super) struct Problems {
    named: Vec<String>,
    count: usize,
}

impl Problems {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn add(&mut self, path: &str, problem: impl Display) {
        self.count += 1;
        if self.named.len() < MAX_PROBLEMS {
            self.named.push(format!("{path}: {problem}"));
        }
    }
}

impl Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.named.iter().enumerate() {
            write!(f, "{}{problem}", if index == 0 { "" } else { "\n  " })?;
        }
        match self.count - self.named.len() {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more"),
        }
    }
}

/// Fields of a table of the file that were not read yet.
struct Fields {
    path: String,
    table: Table,
    known: Vec<&'static str>,
    /// A field has another type than it should, and was reported.
    is_damaged: bool,
}

impl Fields {
    fn new(path: &str, table: Table, problems: &mut Problems) -> Self {
        let mut fields = Self {
            path: path.to_owned(),
            table: Table::new(),
            known: Vec::new(),
            is_damaged: false,
        };
        // As in the settings file, hyphens may stand for underscores.
        for (key, value) in table {
            if fields.table.insert(key.replace('-', "_"), value).is_some() {
                let path = fields.path(&key);
                problems.add(
                    &path,
                    "is given twice, with hyphens and with underscores; keep one",
                );
            }
        }
        fields
    }

    fn path(&self, key: &str) -> String {
        match self.path.is_empty() {
            true => key.to_owned(),
            false => format!("{}.{key}", self.path),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.table.remove(key)
    }

    /// Reports the fields that were not taken.
    fn finish(self, problems: &mut Problems) {
        for key in self.table.keys() {
            let known = self.known.join(", ");
            // A key may have any characters, and any length.
            let shown: String = key.chars().take(40).flat_map(char::escape_debug).collect();
            problems.add(
                &self.path(&shown),
                format_args!("is unknown; known are {known}"),
            );
        }
    }

    fn text(&mut self, key: &'static str, problems: &mut Problems) -> Option<Box<str>> {
        let value = self.take(key)?;
        let text = text(&self.path(key), value, problems);
        self.is_damaged |= text.is_none();
        text
    }

    fn required_text(&mut self, key: &'static str, problems: &mut Problems) -> Option<Box<str>> {
        if !self.table.contains_key(key) {
            problems.add(&self.path(key), "is required");
            self.is_damaged = true;
        }
        self.text(key, problems)
    }

    /// Texts of a required array, each with its path.
    fn required_texts(
        &mut self,
        key: &'static str,
        problems: &mut Problems,
    ) -> Vec<(String, Box<str>)> {
        let path = self.path(key);
        match self.take(key) {
            Some(value) => texts(&path, value, problems),
            None => {
                problems.add(&path, "is required, as a list of texts");
                Vec::new()
            }
        }
    }

    fn seconds(&mut self, key: &'static str, problems: &mut Problems) -> Option<Duration> {
        match self.take(key)? {
            Value::Integer(seconds @ 1..=MAX_LIFETIME) => {
                Some(Duration::from_secs(seconds.unsigned_abs()))
            }
            _ => {
                let problem = format!("is not a whole number from 1 to {MAX_LIFETIME}");
                problems.add(&self.path(key), problem);
                None
            }
        }
    }

    /// Tables of an array, which may be absent.
    fn tables(&mut self, key: &'static str, problems: &mut Problems) -> Vec<Self> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let Value::Array(values) = value else {
            problems.add(
                key,
                format_args!("is not a list of tables; write [[{key}]]"),
            );
            return Vec::new();
        };
        let tables = values.into_iter().enumerate().filter_map(|(index, value)| {
            let path = format!("{key}[{index}]");
            match value {
                Value::Table(table) => Some(Self::new(&path, table, problems)),
                _ => {
                    problems.add(&path, "is not a table");
                    None
                }
            }
        });
        tables.collect()
    }
}

/// Returns a text without control characters.
fn text(path: &str, value: Value, problems: &mut Problems) -> Option<Box<str>> {
    match value {
        Value::String(text)
            if !text.is_empty()
                && text.len() <= MAX_TEXT
                && !text.chars().any(char::is_control) =>
        {
            Some(text.into())
        }
        _ => {
            problems.add(
                path,
                "is not a text of 1 to 2048 bytes without control characters",
            );
            None
        }
    }
}

/// Returns the texts of an array, each with its path.
fn texts(path: &str, value: Value, problems: &mut Problems) -> Vec<(String, Box<str>)> {
    let Value::Array(values) = value else {
        problems.add(path, "is not a list of texts");
        return Vec::new();
    };
    if values.is_empty() {
        problems.add(path, "is empty; list at least one");
    }
    let texts = values.into_iter().enumerate().filter_map(|(index, value)| {
        let path = format!("{path}[{index}]");
        let text = text(&path, value, problems)?;
        Some((path, text))
    });
    texts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CallersFile, String> {
        let parsed = CallersFile::parse(text.as_bytes(), Path::new("/etc/relay"));
        parsed.map_err(|problems| problems.to_string())
    }

    const ISSUER: &str = r#"
        [[issuers]]
        issuer = "https://login.example.com"
        audience = "siem-relay"
        jwks_file = "keys.json"
    "#;
    const RIGHTS: &str = "scopes = ['siem.read']\norganizations = ['*']\n";

    #[test]
    fn a_file_may_use_every_key() {
        let file = parse(
            r#"
            [[issuers]]
            issuer = "https://login.example.com"
            audience = "siem-relay"
            jwks-url = "https://login.example.com/keys"
            max_lifetime_seconds = 600
            scopes_claim = "scope"
            organizations_claim = "organizations"

            [[callers]]
            spiffe = "spiffe://example.org/dashboard"
            scopes = ["siem.read", "siem.write"]
            organizations = ["acme", "test-*"]
            aws_accounts = ["111122223333"]

            [[callers]]
            issuer = "https://login.example.com"
            claim = "client_id"
            value = "pipeline"
            scopes = ["siem.publish"]
            organizations = ["*"]
            [callers.aws_accounts]
            acme = ["111122223333"]
            "test-*" = ["444455556666", "777788889999"]
            "#,
        )
        .unwrap();
        let issuer = &file.issuers[0];
        assert_eq!(issuer.max_lifetime, Duration::from_secs(600));
        let claims = serde_json::json!({ "client_id": "pipeline" });
        let grant = file
            .by_token(issuer, "any", claims.as_object().unwrap())
            .unwrap();
        assert!(grant.scopes.has(Scope::Publish) && !grant.scopes.has(Scope::Read));
        let none = file.by_token(issuer, "any", &serde_json::Map::new());
        assert_eq!(none, Err(NoMatch::Unknown));
        let certificate = Certificate {
            names: vec![Name::spiffe("spiffe://example.org/dashboard").unwrap()],
            expires_at: 0,
        };
        let (_, grant) = file.by_certificate(&certificate).unwrap();
        assert!(grant.organizations.has("test-1") && !grant.organizations.has("other"));
    }

    #[test]
    fn every_problem_is_named_with_its_path() {
        let problems = parse(
            r#"
            color = 1
            [[issuers]]
            issuer = "https://a"
            jwks_url = "http://example.com/keys"
            max_lifetime_seconds = 0
            [[issuers]]
            issuer = "https://b"
            audience = ""
            jwks_url = "https://b/keys"
            jwks_file = "keys"
            [[callers]]
            spiffe = "spiffe://example.org"
            scopes = ["siem.reed", 5]
            organizations = []
            aws_accounts = ["1"]
            [[callers]]
            issuer = "https://c"
            subject = "x"
            scopes = "siem.read"
            organizations = ["a*b"]
            role = "x"
            [[callers]]
            dns = "a.example.com"
            email = "a@example.com"
            [callers.aws_accounts]
            "a b" = ["111122223333"]
            "#,
        )
        .unwrap_err();
        let paths: Vec<&str> = problems
            .lines()
            .map(|line| line.trim().split(": ").next().unwrap())
            .collect();
        let expected = [
            "color",
            "issuers[0].audience",
            "issuers[0].max_lifetime_seconds",
            "issuers[0].jwks_url",
            "issuers[1].audience",
            "issuers[1]",
            "callers[0].spiffe",
            "callers[0].scopes[1]",
            "callers[0].scopes[0]",
            "callers[0].organizations",
            "callers[0].aws_accounts[0]",
            "callers[1].issuer",
            "callers[1].scopes",
            "callers[1].organizations[0]",
            "callers[1].role",
            "callers[2]",
            "callers[2].scopes",
            "callers[2].organizations",
            "callers[2].aws_accounts.\"a b\"",
        ];
        assert_eq!(paths, expected, "{problems}");
    }

    #[test]
    fn a_file_that_would_lock_everybody_out_is_refused() {
        for text in ["", ISSUER, "callers = []"] {
            assert!(
                parse(text).unwrap_err().starts_with("callers: is empty"),
                "{text}"
            );
        }
        assert!(
            parse("[[callers]]\n[[x")
                .unwrap_err()
                .starts_with("line 2: ")
        );
        let long = format!("# {}", "x".repeat(MAX_FILE));
        assert!(parse(&long).unwrap_err().contains("1 MiB"));
    }

    #[test]
    fn an_identity_is_listed_once_and_alone() {
        let caller = |identity: &str| format!("[[callers]]\n{identity}\n{RIGHTS}");
        let token = "issuer = 'https://login.example.com'";
        for (one, other) in [
            ("spiffe = 'spiffe://a/b'", "spiffe = 'spiffe://A/b'"),
            ("dns = 'a.b'", "dns = 'A.b'"),
            (
                &format!("{token}\nsubject = 'x'"),
                &format!("{token}\nsubject = 'x'"),
            ),
        ] {
            let text = format!("{ISSUER}{}{}", caller(one), caller(other));
            assert!(parse(&text).unwrap_err().contains(LISTED_BEFORE), "{one}");
            parse(&format!("{ISSUER}{}", caller(one))).unwrap();
        }
        for identity in [
            "",
            "subject = 'x'",
            "dns = 'a'\nuri = 'b'",
            token,
            &format!("{token}\nclaim = 'x'"),
            &format!("{token}\nsubject = 'x'\nclaim = 'a'\nvalue = 'b'"),
            &format!("{token}\nsubject = 'x'\ndns = 'a'"),
        ] {
            let problems = parse(&format!("{ISSUER}{}", caller(identity))).unwrap_err();
            assert!(
                problems.starts_with("callers[0]: "),
                "{identity}: {problems}"
            );
        }
    }

    #[test]
    fn a_certificate_of_two_callers_is_ambiguous_unless_it_has_a_spiffe_id() {
        let caller = |identity: &str| format!("[[callers]]\n{identity}\n{RIGHTS}");
        let text = ["spiffe = 'spiffe://a/b'", "dns = 'a.b'", "email = 'a@b'"].map(caller);
        let file = parse(&text.concat()).unwrap();
        let of = |names: &[Name]| {
            let certificate = Certificate {
                names: names.to_vec(),
                expires_at: 0,
            };
            let found = file.by_certificate(&certificate);
            found.map(|(name, _)| name.to_string())
        };
        let spiffe = Name::spiffe("spiffe://a/b").unwrap();
        let (dns, email) = (Name::dns("a.b").unwrap(), Name::email("a@b").unwrap());
        let other = Name::dns("other").unwrap();
        assert_eq!(of(&[dns.clone(), email.clone()]), Err(NoMatch::Ambiguous));
        assert_eq!(of(&[other.clone(), email]), Ok("email:a@b".to_owned()));
        assert_eq!(of(&[spiffe, dns]), Ok("spiffe://a/b".to_owned()));
        assert_eq!(of(&[other]), Err(NoMatch::Unknown));
    }

    #[test]
    fn keys_come_by_https_or_from_loopback() {
        for good in [
            "https://login.example.com/keys?a=b",
            "http://127.0.0.1:8080/keys",
            "http://[::1]/keys",
            "http://localhost:1/",
        ] {
            assert!(service_url::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "http://login.example.com/keys",
            "http://127.0.0.1.example.com/",
            "http://localhost.example.com/",
            "http://10.0.0.1/",
            "ftp://127.0.0.1/",
            "file:///etc/keys",
            "/etc/keys",
            "https://user:password@login.example.com/",
            "https://",
        ] {
            assert!(service_url::parse(bad).is_err(), "{bad}");
        }
    }
}
