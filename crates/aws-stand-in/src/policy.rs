//! IAM policy documents: parsing and evaluation.
//!
//! Unsupported elements (policy variables, `NotPrincipal`, and condition operators other than
//! those of [`Condition`]) are refused when the document is parsed, so that no condition is
//! silently skipped. See "IAM JSON policy elements reference" and "Policy evaluation logic" in
//! the IAM User Guide.

use serde_json::{Map, Value};

/// Reason why a document is not a policy that the stand-in can evaluate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed policy: {0}")]
pub struct PolicyError(String);

/// A parsed policy document. Without `Debug`, because it may contain external IDs.
pub(super) struct Policy {
    statements: Vec<Statement>,
}

struct Statement {
    allow: bool,
    /// Present only in trust policies.
    principals: Option<Vec<Principal>>,
    actions: Matcher,
    /// Absent only in trust policies, where the resource is the role itself.
    resources: Option<Matcher>,
    conditions: Vec<Condition>,
}

/// Patterns of `Action` or `Resource`, or negated of `NotAction` or `NotResource`.
struct Matcher {
    negated: bool,
    patterns: Vec<String>,
}

/// A principal of a trust policy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Principal {
    Anyone,
    /// All principals of the account, subject to their own policies.
    Account(String),
    Arn(String),
    /// A service or federated principal, which matches no caller of the stand-in.
    Other,
}

/// A request to authorize: an action on a resource, with condition keys.
pub(super) struct AccessRequest<'a> {
    pub(super) action: &'a str,
    pub(super) resource: &'a str,
    /// Condition keys, compared ignoring case, each with its single value.
    pub(super) keys: &'a [(&'a str, &'a str)],
}

/// The principal that makes a request, as a trust policy identifies it.
pub(super) struct Requester<'a> {
    /// ARN of the user or of the session.
    pub(super) arn: &'a str,
    /// Role of the session.
    pub(super) role_arn: Option<&'a str>,
    pub(super) account: &'a str,
}

/// Result of evaluating an identity or session policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Allow,
    /// No statement matches.
    ImplicitDeny,
    ExplicitDeny,
}

/// Result of evaluating a trust policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The requester itself is named.
    Named,
    /// The account of the requester, or everyone, is named: the requester's own policy decides.
    Delegated,
    ImplicitDeny,
    ExplicitDeny,
}

impl Policy {
    /// Parses an identity or session policy, which has resources and no principals.
    pub(super) fn parse_identity(json: &str) -> Result<Self, PolicyError> {
        parse_document(json, false)
    }

    /// Parses the trust policy of a role, which has principals and no resources.
    pub(super) fn parse_trust(json: &str) -> Result<Self, PolicyError> {
        parse_document(json, true)
    }

    /// Evaluates an identity or session policy: a matching Deny wins over any Allow.
    pub(super) fn evaluate(&self, request: &AccessRequest<'_>) -> Decision {
        let mut decision = Decision::ImplicitDeny;
        for statement in self.statements.iter().filter(|s| s.applies_to(request)) {
            if !statement.allow {
                return Decision::ExplicitDeny;
            }
            decision = Decision::Allow;
        }
        decision
    }

    /// Evaluates a trust policy: a matching Deny wins over any Allow.
    pub(super) fn evaluate_trust(
        &self,
        requester: &Requester<'_>,
        request: &AccessRequest<'_>,
    ) -> Trust {
        let mut trust = Trust::ImplicitDeny;
        for statement in self.statements.iter().filter(|s| s.applies_to(request)) {
            let Some(named) = statement.names(requester) else {
                continue;
            };
            if !statement.allow {
                return Trust::ExplicitDeny;
            }
            if named {
                trust = Trust::Named;
            } else if trust == Trust::ImplicitDeny {
                trust = Trust::Delegated;
            }
        }
        trust
    }
}

impl Statement {
    fn applies_to(&self, request: &AccessRequest<'_>) -> bool {
        self.actions.matches(request.action, true)
            && self
                .resources
                .as_ref()
                .is_none_or(|resources| resources.matches(request.resource, false))
            && self.conditions.iter().all(|c| c.holds(request.keys))
    }

    /// Whether a principal matches the requester: `Some(true)` by its own ARN, `Some(false)` by its
    /// account or as anyone.
    fn names(&self, requester: &Requester<'_>) -> Option<bool> {
        let mut found = None;
        for principal in self.principals.iter().flatten() {
            match principal {
                Principal::Arn(arn)
                    if arn == requester.arn || Some(arn.as_str()) == requester.role_arn =>
                {
                    return Some(true);
                }
                Principal::Anyone => found = Some(false),
                Principal::Account(account) if account == requester.account => found = Some(false),
                Principal::Arn(_) | Principal::Account(_) | Principal::Other => {}
            }
        }
        found
    }
}

impl Matcher {
    fn matches(&self, text: &str, ignore_case: bool) -> bool {
        let any = self.patterns.iter().any(|pattern| {
            if ignore_case {
                wildcard_matches(&pattern.to_ascii_lowercase(), &text.to_ascii_lowercase())
            } else {
                wildcard_matches(pattern, text)
            }
        });
        any != self.negated
    }
}

fn parse_document(json: &str, trust: bool) -> Result<Policy, PolicyError> {
    let value: Value =
        serde_json::from_str(json).map_err(|error| malformed(format!("not JSON: {error}")))?;
    let Value::Object(mut document) = value else {
        return Err(malformed("not a JSON object"));
    };
    match document.get("Version").and_then(Value::as_str) {
        Some("2012-10-17" | "2008-10-17") | None => {}
        Some(_) => return Err(malformed("Version must be 2012-10-17")),
    }
    let statements = match document.remove("Statement") {
        Some(Value::Array(statements)) => statements,
        Some(statement @ Value::Object(_)) => vec![statement],
        _ => return Err(malformed("Statement is missing")),
    };
    let statements = statements
        .iter()
        .map(|value| match value {
            Value::Object(fields) => parse_statement(fields, trust),
            _ => Err(malformed("a statement must be an object")),
        })
        .collect::<Result<_, _>>()?;
    Ok(Policy { statements })
}

fn parse_statement(fields: &Map<String, Value>, trust: bool) -> Result<Statement, PolicyError> {
    let known = [
        "Sid",
        "Effect",
        "Principal",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Condition",
    ];
    if let Some(name) = fields.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(malformed(format!(
            "{name} is not supported by the stand-in"
        )));
    }
    let allow = match fields.get("Effect").and_then(Value::as_str) {
        Some("Allow") => true,
        Some("Deny") => false,
        _ => return Err(malformed("Effect must be Allow or Deny")),
    };
    let actions = parse_matcher(fields, "Action", "NotAction")?
        .ok_or_else(|| malformed("Action is missing"))?;
    let resources = parse_matcher(fields, "Resource", "NotResource")?;
    let principals = fields.get("Principal").map(parse_principals).transpose()?;
    match (trust, &resources, &principals) {
        (true, Some(_), _) => return Err(malformed("a trust policy has no Resource")),
        (true, _, None) => return Err(malformed("Principal is missing")),
        (false, _, Some(_)) => return Err(malformed("an identity policy has no Principal")),
        (false, None, _) => return Err(malformed("Resource is missing")),
        _ => {}
    }
    let conditions = fields.get("Condition").map(parse_conditions).transpose()?;
    Ok(Statement {
        allow,
        principals,
        actions,
        resources,
        conditions: conditions.unwrap_or_default(),
    })
}

fn parse_matcher(
    fields: &Map<String, Value>,
    name: &str,
    negated_name: &str,
) -> Result<Option<Matcher>, PolicyError> {
    let (negated, value) = match (fields.get(name), fields.get(negated_name)) {
        (Some(_), Some(_)) => {
            return Err(malformed(format!(
                "{name} and {negated_name} exclude each other"
            )));
        }
        (Some(value), None) => (false, value),
        (None, Some(value)) => (true, value),
        (None, None) => return Ok(None),
    };
    let patterns = strings(value)
        .ok_or_else(|| malformed(format!("{name} must be a string or a list of strings")))?;
    if patterns.iter().any(|pattern| pattern.contains("${")) {
        return Err(malformed(
            "policy variables are not supported by the stand-in",
        ));
    }
    Ok(Some(Matcher { negated, patterns }))
}

fn parse_principals(value: &Value) -> Result<Vec<Principal>, PolicyError> {
    let kinds = match value {
        Value::String(star) if star == "*" => return Ok(vec![Principal::Anyone]),
        Value::Object(kinds) => kinds,
        _ => return Err(malformed("Principal must be \"*\" or an object")),
    };
    let mut principals = Vec::new();
    for (kind, value) in kinds {
        let names =
            strings(value).ok_or_else(|| malformed("the values of Principal must be strings"))?;
        for name in names {
            principals.push(match kind.as_str() {
                "AWS" => parse_aws_principal(&name)?,
                "Service" | "Federated" | "CanonicalUser" => Principal::Other,
                _ => return Err(malformed(format!("unknown type of Principal {kind}"))),
            });
        }
    }
    Ok(principals)
}

fn parse_aws_principal(name: &str) -> Result<Principal, PolicyError> {
    let invalid = || malformed(format!("invalid principal {name}"));
    if name == "*" {
        return Ok(Principal::Anyone);
    }
    if is_account(name) {
        return Ok(Principal::Account(name.to_owned()));
    }
    let mut parts = name.splitn(6, ':');
    let (Some("arn"), Some(_), Some(service @ ("iam" | "sts")), Some(""), Some(account), Some(id)) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return Err(invalid());
    };
    // As in AWS, the ARN of a principal allows no wildcards.
    if !is_account(account) || id.contains(['*', '?']) {
        return Err(invalid());
    }
    match (service, id) {
        ("iam", "root") => Ok(Principal::Account(account.to_owned())),
        _ => Ok(Principal::Arn(name.to_owned())),
    }
}

fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_conditions(value: &Value) -> Result<Vec<Condition>, PolicyError> {
    let Value::Object(operators) = value else {
        return Err(malformed("Condition must be an object"));
    };
    let mut conditions = Vec::new();
    for (operator, keys) in operators {
        let Value::Object(keys) = keys else {
            return Err(malformed(format!("{operator} must be an object")));
        };
        for (key, value) in keys {
            let values = strings(value)
                .ok_or_else(|| malformed(format!("{key} must be a string or a list of strings")))?;
            conditions.push(Condition::new(operator, key, values)?);
        }
    }
    Ok(conditions)
}

/// Reads a string or a list of strings. Booleans and numbers are converted to text.
fn strings(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        value => text(value).map(|text| vec![text]),
    }
}

fn malformed(reason: impl Into<String>) -> PolicyError {
    PolicyError(reason.into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equals,
    EqualsIgnoreCase,
    Like,
    Null,
}

/// One key of a condition operator: a string, ARN, `Bool` or `Null` operator, with `IfExists`,
/// `ForAnyValue:` and `ForAllValues:`.
///
/// Holds if any of the values matches, or none if negated.
struct Condition {
    operator: Operator,
    negated: bool,
    /// Result if the request does not have the key.
    if_absent: bool,
    key: String,
    values: Vec<String>,
}

impl Condition {
    fn new(operator: &str, key: &str, values: Vec<String>) -> Result<Self, PolicyError> {
        let unknown = || {
            PolicyError(format!(
                "condition operator {operator} is not supported by the stand-in"
            ))
        };
        let (name, for_all) = match operator.split_once(':') {
            None => (operator, false),
            Some(("ForAnyValue", name)) => (name, false),
            Some(("ForAllValues", name)) => (name, true),
            Some(_) => return Err(unknown()),
        };
        let (name, if_exists) = match name.strip_suffix("IfExists") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (operator, negated) = match name {
            "StringEquals" => (Operator::Equals, false),
            "StringNotEquals" => (Operator::Equals, true),
            "StringEqualsIgnoreCase" | "Bool" => (Operator::EqualsIgnoreCase, false),
            "StringNotEqualsIgnoreCase" => (Operator::EqualsIgnoreCase, true),
            "StringLike" | "ArnLike" | "ArnEquals" => (Operator::Like, false),
            "StringNotLike" | "ArnNotLike" | "ArnNotEquals" => (Operator::Like, true),
            "Null" => (Operator::Null, false),
            _ => return Err(unknown()),
        };
        Ok(Self {
            operator,
            negated,
            if_absent: negated || if_exists || for_all,
            key: key.to_owned(),
            values,
        })
    }

    fn holds(&self, keys: &[(&str, &str)]) -> bool {
        let present = keys
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(&self.key))
            .map(|(_, value)| *value);
        if self.operator == Operator::Null {
            let absent = if present.is_none() { "true" } else { "false" };
            return self.values.iter().any(|v| v.eq_ignore_ascii_case(absent));
        }
        let Some(present) = present else {
            return self.if_absent;
        };
        self.values.iter().any(|value| self.matches(value, present)) != self.negated
    }

    fn matches(&self, value: &str, present: &str) -> bool {
        match self.operator {
            Operator::Equals => value == present,
            Operator::EqualsIgnoreCase => value.eq_ignore_ascii_case(present),
            Operator::Like => wildcard_matches(value, present),
            Operator::Null => false,
        }
    }
}

/// Whether `pattern` matches all of `text`: `*` matches any characters, `?` exactly one. Takes at
/// most as many steps as the product of both lengths.
fn wildcard_matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut pos) = (0, 0);
    // Position of the last star, and end of the text it matches, which a mismatch extends by one.
    let mut star: Option<(usize, usize)> = None;
    while pos < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, pos));
                at += 1;
            }
            Some(c) if *c == '?' || *c == text[pos] => {
                at += 1;
                pos += 1;
            }
            _ => match star {
                Some((star_at, end)) => {
                    star = Some((star_at, end + 1));
                    at = star_at + 1;
                    pos = end + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests;
