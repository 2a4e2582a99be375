//! Condition blocks: the string, ARN, `Bool` and `Null` operators, with `IfExists`,
//! `ForAnyValue:` and `ForAllValues:`.

use super::{PolicyError, wildcard};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equals,
    EqualsIgnoreCase,
    Like,
    Null,
}

/// One key of one operator: holds if any of the values fits (none, if negated).
pub(super) struct Condition {
    operator: Operator,
    negated: bool,
    /// What an absent key means.
    if_absent: bool,
    key: String,
    values: Vec<String>,
}

impl Condition {
    pub(super) fn new(operator: &str, key: &str, values: Vec<String>) -> Result<Self, PolicyError> {
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

    pub(super) fn holds(&self, keys: &[(&str, &str)]) -> bool {
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
            Operator::Like => wildcard::matches(value, present),
            Operator::Null => false,
        }
    }
}
