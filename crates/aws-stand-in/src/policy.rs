//! IAM policy documents: parsing and evaluation.
//!
//! What is not understood is refused when the document is put, so that no condition is
//! silently skipped: policy variables, `NotPrincipal` and condition operators beyond those
//! of [`condition`]. See "IAM JSON policy elements reference" and "Policy evaluation logic"
//! in the IAM User Guide.

use serde_json::{Map, Value};

/// Why a document is not a policy this stand-in can evaluate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed policy: {0}")]
pub struct PolicyError(String);

/// A parsed policy document.
///
/// It may hold external IDs, so it does not print.
pub(super) struct Policy {
    statements: Vec<Statement>,
}

struct Statement {
    allow: bool,
    /// Only in trust policies.
    principals: Option<Vec<Principal>>,
    actions: Matcher,
    /// Not in trust policies, where the resource is the role itself.
    resources: Option<Matcher>,
    conditions: Vec<Condition>,
}

/// `Action` or `NotAction`, `Resource` or `NotResource`.
struct Matcher {
    negated: bool,
    patterns: Vec<String>,
}

/// A principal of a trust policy, of the kind `AWS`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Principal {
    Anyone,
    /// Everyone in the account, as far as their own policies let them.
    Account(String),
    Arn(String),
    /// A service or federated principal: never who calls here.
    Other,
}

/// What is asked: an action on a resource, with the condition keys of the request.
pub(super) struct Question<'a> {
    pub(super) action: &'a str,
    pub(super) resource: &'a str,
    /// Condition keys (compared without case) and their single values.
    pub(super) keys: &'a [(&'a str, &'a str)],
}

/// Who asks, as a trust policy sees it.
pub(super) struct Asker<'a> {
    /// The user, role or session ARN of the caller.
    pub(super) arn: &'a str,
    /// The role behind a session.
    pub(super) role_arn: Option<&'a str>,
    pub(super) account: &'a str,
}

/// What one document says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Allow,
    /// No statement matches.
    Silent,
    Deny,
}

/// What a trust policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// The caller itself is named.
    Named,
    /// The caller's account, or everyone, is named: the caller's own policy decides.
    Delegated,
    Silent,
    Deny,
}

impl Policy {
    /// Parses an identity or session policy: no principals, and resources are required.
    pub(super) fn parse_identity(json: &str) -> Result<Self, PolicyError> {
        parse_document(json, false)
    }

    /// Parses a role's trust policy: principals are required, and no resources.
    pub(super) fn parse_trust(json: &str) -> Result<Self, PolicyError> {
        parse_document(json, true)
    }

    /// Evaluates an identity or session policy: a matching Deny wins over any Allow.
    pub(super) fn evaluate(&self, question: &Question<'_>) -> Decision {
        let mut decision = Decision::Silent;
        for statement in self.statements.iter().filter(|s| s.applies(question)) {
            if !statement.allow {
                return Decision::Deny;
            }
            decision = Decision::Allow;
        }
        decision
    }

    /// Evaluates a trust policy for a caller.
    pub(super) fn evaluate_trust(&self, asker: &Asker<'_>, question: &Question<'_>) -> Trust {
        let mut trust = Trust::Silent;
        for statement in self.statements.iter().filter(|s| s.applies(question)) {
            let Some(named) = statement.names(asker) else {
                continue;
            };
            if !statement.allow {
                return Trust::Deny;
            }
            if named {
                trust = Trust::Named;
            } else if trust == Trust::Silent {
                trust = Trust::Delegated;
            }
        }
        trust
    }
}

impl Statement {
    fn applies(&self, question: &Question<'_>) -> bool {
        self.actions.matches(question.action, true)
            && self
                .resources
                .as_ref()
                .is_none_or(|resources| resources.matches(question.resource, false))
            && self.conditions.iter().all(|c| c.holds(question.keys))
    }

    /// Whether a principal fits the caller: `Some(true)` if by its own name.
    fn names(&self, asker: &Asker<'_>) -> Option<bool> {
        let mut found = None;
        for principal in self.principals.iter().flatten() {
            match principal {
                Principal::Arn(arn) if arn == asker.arn || Some(arn.as_str()) == asker.role_arn => {
                    return Some(true);
                }
                Principal::Anyone => found = Some(false),
                Principal::Account(account) if account == asker.account => found = Some(false),
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
        serde_json::from_str(json).map_err(|error| problem(format!("not JSON: {error}")))?;
    let Value::Object(mut document) = value else {
        return Err(problem("not a JSON object"));
    };
    match document.get("Version").and_then(Value::as_str) {
        Some("2012-10-17" | "2008-10-17") | None => {}
        Some(_) => return Err(problem("Version must be 2012-10-17")),
    }
    let statements = match document.remove("Statement") {
        Some(Value::Array(statements)) => statements,
        Some(statement @ Value::Object(_)) => vec![statement],
        _ => return Err(problem("Statement is missing")),
    };
    let statements = statements
        .iter()
        .map(|value| match value {
            Value::Object(fields) => parse_statement(fields, trust),
            _ => Err(problem("a statement must be an object")),
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
        return Err(problem(format!("{name} is not supported here")));
    }
    let allow = match fields.get("Effect").and_then(Value::as_str) {
        Some("Allow") => true,
        Some("Deny") => false,
        _ => return Err(problem("Effect must be Allow or Deny")),
    };
    let actions = parse_matcher(fields, "Action", "NotAction")?
        .ok_or_else(|| problem("Action is missing"))?;
    let resources = parse_matcher(fields, "Resource", "NotResource")?;
    let principals = fields.get("Principal").map(parse_principals).transpose()?;
    match (trust, &resources, &principals) {
        (true, Some(_), _) => return Err(problem("a trust policy has no Resource")),
        (true, _, None) => return Err(problem("Principal is missing")),
        (false, _, Some(_)) => return Err(problem("an identity policy has no Principal")),
        (false, None, _) => return Err(problem("Resource is missing")),
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
        (Some(_), Some(_)) => return Err(problem(format!("{name} beside {negated_name}"))),
        (Some(value), None) => (false, value),
        (None, Some(value)) => (true, value),
        (None, None) => return Ok(None),
    };
    let patterns = strings(value).ok_or_else(|| problem(format!("{name} must be strings")))?;
    if patterns.iter().any(|pattern| pattern.contains("${")) {
        return Err(problem("policy variables are not supported here"));
    }
    Ok(Some(Matcher { negated, patterns }))
}

fn parse_principals(value: &Value) -> Result<Vec<Principal>, PolicyError> {
    let kinds = match value {
        Value::String(star) if star == "*" => return Ok(vec![Principal::Anyone]),
        Value::Object(kinds) => kinds,
        _ => return Err(problem("Principal must be \"*\" or an object")),
    };
    let mut principals = Vec::new();
    for (kind, value) in kinds {
        let names = strings(value).ok_or_else(|| problem("Principal must hold strings"))?;
        for name in names {
            principals.push(match kind.as_str() {
                "AWS" => parse_aws_principal(&name)?,
                "Service" | "Federated" | "CanonicalUser" => Principal::Other,
                _ => return Err(problem(format!("unknown kind of Principal {kind}"))),
            });
        }
    }
    Ok(principals)
}

fn parse_aws_principal(name: &str) -> Result<Principal, PolicyError> {
    let invalid = || problem(format!("invalid principal {name}"));
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
    // As in AWS, a principal's ARN takes no wildcards.
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
        return Err(problem("Condition must be an object"));
    };
    let mut conditions = Vec::new();
    for (operator, keys) in operators {
        let Value::Object(keys) = keys else {
            return Err(problem(format!("{operator} must be an object")));
        };
        for (key, value) in keys {
            let values = strings(value).ok_or_else(|| problem(format!("{key} must be strings")))?;
            conditions.push(Condition::new(operator, key, values)?);
        }
    }
    Ok(conditions)
}

/// A string or a list of strings; booleans and numbers count as their text.
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

fn problem(what: impl Into<String>) -> PolicyError {
    PolicyError(what.into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equals,
    EqualsIgnoreCase,
    Like,
    Null,
}

/// One key of one operator: holds if any of the values fits (none, if negated).
struct Condition {
    operator: Operator,
    negated: bool,
    /// What an absent key means.
    if_absent: bool,
    key: String,
    values: Vec<String>,
}

impl Condition {
    fn new(operator: &str, key: &str, values: Vec<String>) -> Result<Self, PolicyError> {
        let unknown = || {
            PolicyError(format!(
                "condition operator {operator} is not supported here"
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
        self.values.iter().any(|value| self.fits(value, present)) != self.negated
    }

    fn fits(&self, value: &str, present: &str) -> bool {
        match self.operator {
            Operator::Equals => value == present,
            Operator::EqualsIgnoreCase => value.eq_ignore_ascii_case(present),
            Operator::Like => wildcard_matches(value, present),
            Operator::Null => false,
        }
    }
}

/// Whether the whole of `text` fits `pattern`. Takes at most `pattern × text` steps.
fn wildcard_matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut pos) = (0, 0);
    // The last star, and where the text that it swallows ends: on a mismatch it takes one more.
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
                Some((star_at, swallowed)) => {
                    star = Some((star_at, swallowed + 1));
                    at = star_at + 1;
                    pos = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests;
