//! IAM policy documents: parsing and evaluation.
//!
//! What is not understood is refused when the document is put, so that no condition is
//! silently skipped: policy variables, `NotPrincipal` and condition operators beyond those
//! of [`condition`]. See "IAM JSON policy elements reference" and "Policy evaluation logic"
//! in the IAM User Guide.

mod condition;
mod parse;
mod wildcard;

use condition::Condition;

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
        parse::document(json, false)
    }

    /// Parses a role's trust policy: principals are required, and no resources.
    pub(super) fn parse_trust(json: &str) -> Result<Self, PolicyError> {
        parse::document(json, true)
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
                wildcard::matches(&pattern.to_ascii_lowercase(), &text.to_ascii_lowercase())
            } else {
                wildcard::matches(pattern, text)
            }
        });
        any != self.negated
    }
}

#[cfg(test)]
mod tests;
