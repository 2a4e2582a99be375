//! From JSON to a [`Policy`].

use serde_json::{Map, Value};

use super::{Condition, Matcher, Policy, PolicyError, Principal, Statement};

pub(super) fn document(json: &str, trust: bool) -> Result<Policy, PolicyError> {
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
            Value::Object(fields) => statement(fields, trust),
            _ => Err(problem("a statement must be an object")),
        })
        .collect::<Result<_, _>>()?;
    Ok(Policy { statements })
}

fn statement(fields: &Map<String, Value>, trust: bool) -> Result<Statement, PolicyError> {
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
    let actions =
        matcher(fields, "Action", "NotAction")?.ok_or_else(|| problem("Action is missing"))?;
    let resources = matcher(fields, "Resource", "NotResource")?;
    let principals = fields.get("Principal").map(principals).transpose()?;
    match (trust, &resources, &principals) {
        (true, Some(_), _) => return Err(problem("a trust policy has no Resource")),
        (true, _, None) => return Err(problem("Principal is missing")),
        (false, _, Some(_)) => return Err(problem("an identity policy has no Principal")),
        (false, None, _) => return Err(problem("Resource is missing")),
        _ => {}
    }
    let conditions = fields.get("Condition").map(conditions).transpose()?;
    Ok(Statement {
        allow,
        principals,
        actions,
        resources,
        conditions: conditions.unwrap_or_default(),
    })
}

fn matcher(
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

fn principals(value: &Value) -> Result<Vec<Principal>, PolicyError> {
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
                "AWS" => aws_principal(&name)?,
                "Service" | "Federated" | "CanonicalUser" => Principal::Other,
                _ => return Err(problem(format!("unknown kind of Principal {kind}"))),
            });
        }
    }
    Ok(principals)
}

fn aws_principal(name: &str) -> Result<Principal, PolicyError> {
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

fn conditions(value: &Value) -> Result<Vec<Condition>, PolicyError> {
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
