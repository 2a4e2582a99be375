//! Who may call: long-term credentials, roles, and the sessions that AssumeRole gave out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aws_lc_rs::constant_time;

use super::control::{ControlError, LongTermCredentials, RoleSpec};
use super::policy::{Asker, Decision, Policy, Question};
use super::sigv4::AuthFailure;
use super::token;

/// Sessions that are remembered; the oldest are forgotten first.
const MAX_SESSIONS: usize = 100_000;

/// The parts of an IAM or STS ARN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrincipalArn<'a> {
    pub(super) partition: &'a str,
    pub(super) account: &'a str,
    /// After the account: `user/NAME`, `role/PATH/NAME`, `assumed-role/NAME/SESSION`, `root`.
    pub(super) resource: &'a str,
}

impl<'a> PrincipalArn<'a> {
    pub(super) fn parse(arn: &'a str) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", partition, "iam" | "sts", "", account, resource] = parts[..] else {
            return None;
        };
        let account_is_valid = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        (account_is_valid && partition.starts_with("aws") && !resource.is_empty()).then_some(Self {
            partition,
            account,
            resource,
        })
    }

    /// A role's name without its path.
    pub(super) fn role_name(&self) -> Option<&'a str> {
        let path_and_name = self.resource.strip_prefix("role/")?;
        let name = path_and_name.rsplit('/').next()?;
        (!name.is_empty()).then_some(name)
    }
}

/// A role as it stands.
pub(super) struct Role {
    pub(super) arn: String,
    /// `AROA…`: new at every creation, so that sessions of a deleted role die with it.
    pub(super) id: String,
    pub(super) trust: Policy,
    pub(super) permissions: Option<Policy>,
    pub(super) max_session_seconds: u32,
}

/// Temporary credentials that were given out.
pub(super) struct Session {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) session_token: String,
    pub(super) role_arn: String,
    pub(super) role_id: String,
    /// The ARN of the assumed-role session.
    pub(super) arn: String,
    pub(super) policy: Option<Arc<Policy>>,
    pub(super) expires_at_ms: i64,
}

struct LongTerm {
    secret_access_key: String,
    arn: String,
    policy: Option<Arc<Policy>>,
}

/// An authenticated caller.
pub(super) struct Caller {
    pub(super) arn: String,
    pub(super) account: String,
    pub(super) partition: String,
    pub(super) session: Option<(Arc<Session>, Arc<Role>)>,
    /// Of long-term credentials; none is full access.
    policy: Option<Arc<Policy>>,
}

/// Which kind of policy refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NoIdentityPolicy,
    IdentityPolicyDeny,
    NoSessionPolicy,
    SessionPolicyDeny,
}

impl Refusal {
    /// Whether a Deny refused, which no other policy can mend.
    pub(super) fn is_deny(self) -> bool {
        matches!(self, Self::IdentityPolicyDeny | Self::SessionPolicyDeny)
    }
}

impl Caller {
    /// What the caller's own policies say: both the identity policy and, in a session
    /// that has one, the session policy must allow.
    pub(super) fn may(&self, question: &Question<'_>) -> Result<(), Refusal> {
        let (identity, session) = match &self.session {
            Some((session, role)) => (
                role.permissions
                    .as_ref()
                    .map_or(Decision::Silent, |p| p.evaluate(question)),
                session
                    .policy
                    .as_ref()
                    .map_or(Decision::Allow, |p| p.evaluate(question)),
            ),
            None => (
                self.policy
                    .as_ref()
                    .map_or(Decision::Allow, |p| p.evaluate(question)),
                Decision::Allow,
            ),
        };
        match (identity, session) {
            (Decision::Deny, _) => Err(Refusal::IdentityPolicyDeny),
            (_, Decision::Deny) => Err(Refusal::SessionPolicyDeny),
            (Decision::Silent, _) => Err(Refusal::NoIdentityPolicy),
            (_, Decision::Silent) => Err(Refusal::NoSessionPolicy),
            (Decision::Allow, Decision::Allow) => Ok(()),
        }
    }

    pub(super) fn asker(&self) -> Asker<'_> {
        Asker {
            arn: &self.arn,
            role_arn: self
                .session
                .as_ref()
                .map(|(session, _)| session.role_arn.as_str()),
            account: &self.account,
        }
    }
}

/// All identities that the stand-in knows.
#[derive(Default)]
pub(super) struct Identities {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    long_term: HashMap<String, LongTerm>,
    roles: HashMap<String, Arc<Role>>,
    sessions: HashMap<String, Arc<Session>>,
    /// Access key ids of sessions, oldest first.
    issued: VecDeque<String>,
    /// Those that were made to expire before their time.
    expired: HashSet<String>,
}

impl Identities {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put_credentials(&self, new: LongTermCredentials) -> Result<(), ControlError> {
        PrincipalArn::parse(&new.principal_arn)
            .ok_or_else(|| ControlError::InvalidArn(new.principal_arn.clone()))?;
        let policy = new
            .policy
            .as_deref()
            .map(Policy::parse_identity)
            .transpose()?;
        let long_term = LongTerm {
            secret_access_key: new.secret_access_key,
            arn: new.principal_arn,
            policy: policy.map(Arc::new),
        };
        self.write().long_term.insert(new.access_key_id, long_term);
        Ok(())
    }

    /// Creates a role or replaces its policies; sessions go on under the new policies.
    pub(super) fn put_role(&self, spec: RoleSpec) -> Result<(), ControlError> {
        PrincipalArn::parse(&spec.role_arn)
            .and_then(|arn| arn.role_name())
            .ok_or_else(|| ControlError::InvalidArn(spec.role_arn.clone()))?;
        let trust = Policy::parse_trust(&spec.trust_policy)?;
        let permissions = spec
            .permission_policy
            .as_deref()
            .map(Policy::parse_identity)
            .transpose()?;
        let mut inner = self.write();
        let id = match inner.roles.get(&spec.role_arn) {
            Some(role) => role.id.clone(),
            None => token::key_id("AROA"),
        };
        let role = Role {
            arn: spec.role_arn.clone(),
            id,
            trust,
            permissions,
            max_session_seconds: spec.max_session_seconds,
        };
        inner.roles.insert(spec.role_arn, Arc::new(role));
        Ok(())
    }

    pub(super) fn delete_role(&self, arn: &str) -> bool {
        self.write().roles.remove(arn).is_some()
    }

    pub(super) fn role(&self, arn: &str) -> Option<Arc<Role>> {
        self.read().roles.get(arn).cloned()
    }

    pub(super) fn remember(&self, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        let mut inner = self.write();
        inner.issued.push_back(session.access_key_id.clone());
        inner
            .sessions
            .insert(session.access_key_id.clone(), Arc::clone(&session));
        while inner.issued.len() > MAX_SESSIONS {
            if let Some(oldest) = inner.issued.pop_front() {
                inner.sessions.remove(&oldest);
                inner.expired.remove(&oldest);
            }
        }
        session
    }

    /// Lets every session that was issued so far count as expired; answers how many.
    pub(super) fn expire_sessions(&self) -> usize {
        let mut inner = self.write();
        let issued: Vec<String> = inner.issued.iter().cloned().collect();
        let before = inner.expired.len();
        inner.expired.extend(issued);
        inner.expired.len() - before
    }

    /// Finds the caller behind an access key, and the secret to verify its signature with.
    pub(super) fn caller(
        &self,
        access_key_id: &str,
        session_token: Option<&str>,
        now_ms: i64,
    ) -> Result<(Caller, String), AuthFailure> {
        let inner = self.read();
        if let Some(long_term) = inner.long_term.get(access_key_id) {
            // Long-term credentials come without a token.
            let arn = PrincipalArn::parse(&long_term.arn).filter(|_| session_token.is_none());
            let arn = arn.ok_or(AuthFailure::UnknownKey)?;
            let caller = Caller {
                arn: long_term.arn.clone(),
                account: arn.account.to_owned(),
                partition: arn.partition.to_owned(),
                session: None,
                policy: long_term.policy.clone(),
            };
            return Ok((caller, long_term.secret_access_key.clone()));
        }
        let session = inner
            .sessions
            .get(access_key_id)
            .ok_or(AuthFailure::UnknownKey)?;
        let token = session_token.unwrap_or_default().as_bytes();
        constant_time::verify_slices_are_equal(token, session.session_token.as_bytes())
            .map_err(|_| AuthFailure::UnknownKey)?;
        if now_ms >= session.expires_at_ms || inner.expired.contains(access_key_id) {
            return Err(AuthFailure::Expired);
        }
        let role = inner
            .roles
            .get(&session.role_arn)
            .filter(|role| role.id == session.role_id);
        let role = Arc::clone(role.ok_or(AuthFailure::UnknownKey)?);
        let arn = PrincipalArn::parse(&session.arn).ok_or(AuthFailure::UnknownKey)?;
        let caller = Caller {
            arn: session.arn.clone(),
            account: arn.account.to_owned(),
            partition: arn.partition.to_owned(),
            session: Some((Arc::clone(session), role)),
            policy: None,
        };
        Ok((caller, session.secret_access_key.clone()))
    }
}
