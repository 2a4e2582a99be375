//! Identities of callers: long-term credentials, roles, and the sessions of AssumeRole.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use aws_lc_rs::constant_time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng as _;

use super::control::{ControlError, LongTermCredentials, RoleSpec};
use super::policy::{AccessRequest, Decision, Policy, Requester};
use super::sigv4::AuthFailure;

/// Limit of the sessions kept; the oldest are dropped first.
const MAX_SESSIONS: usize = 100_000;

/// Parts of an IAM or STS ARN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrincipalArn<'a> {
    pub(super) partition: &'a str,
    pub(super) account: &'a str,
    /// Part after the account: `user/NAME`, `role/PATH/NAME`, `assumed-role/NAME/SESSION`, `root`.
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

    /// Name of a role without its path.
    pub(super) fn role_name(&self) -> Option<&'a str> {
        let path_and_name = self.resource.strip_prefix("role/")?;
        let name = path_and_name.rsplit('/').next()?;
        (!name.is_empty()).then_some(name)
    }
}

/// A role with its current policies.
pub(super) struct Role {
    pub(super) arn: String,
    /// Unique id `AROA…`, new at every creation: a session of a deleted role is not valid for a new
    /// role of the same name.
    pub(super) id: String,
    pub(super) trust: Policy,
    pub(super) permissions: Option<Policy>,
    pub(super) max_session_seconds: u32,
}

/// Temporary credentials issued by AssumeRole.
pub(super) struct Session {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: String,
    pub(super) session_token: String,
    pub(super) role_arn: String,
    pub(super) role_id: String,
    /// ARN of the assumed-role session.
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
    /// Identity policy of long-term credentials; full access if unset.
    policy: Option<Arc<Policy>>,
}

/// Kind of policy that denied a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NoIdentityPolicy,
    IdentityPolicyDeny,
    NoSessionPolicy,
    SessionPolicyDeny,
}

impl Refusal {
    /// Whether the denial is explicit, so that no other policy can allow the request.
    pub(super) fn is_explicit(self) -> bool {
        matches!(self, Self::IdentityPolicyDeny | Self::SessionPolicyDeny)
    }
}

impl Caller {
    /// Checks the caller's own policies: the identity policy and, if the session has one, the
    /// session policy must allow the request.
    pub(super) fn authorize(&self, request: &AccessRequest<'_>) -> Result<(), Refusal> {
        let (identity, session) = match &self.session {
            Some((session, role)) => (
                role.permissions
                    .as_ref()
                    .map_or(Decision::ImplicitDeny, |p| p.evaluate(request)),
                session
                    .policy
                    .as_ref()
                    .map_or(Decision::Allow, |p| p.evaluate(request)),
            ),
            None => (
                self.policy
                    .as_ref()
                    .map_or(Decision::Allow, |p| p.evaluate(request)),
                Decision::Allow,
            ),
        };
        match (identity, session) {
            (Decision::ExplicitDeny, _) => Err(Refusal::IdentityPolicyDeny),
            (_, Decision::ExplicitDeny) => Err(Refusal::SessionPolicyDeny),
            (Decision::ImplicitDeny, _) => Err(Refusal::NoIdentityPolicy),
            (_, Decision::ImplicitDeny) => Err(Refusal::NoSessionPolicy),
            (Decision::Allow, Decision::Allow) => Ok(()),
        }
    }

    /// The caller as a trust policy identifies it.
    pub(super) fn requester(&self) -> Requester<'_> {
        Requester {
            arn: &self.arn,
            role_arn: self
                .session
                .as_ref()
                .map(|(session, _)| session.role_arn.as_str()),
            account: &self.account,
        }
    }
}

/// All identities of a stand-in.
#[derive(Default)]
pub(super) struct Identities {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Long-term credentials, by access key id.
    long_term: HashMap<String, LongTerm>,
    /// Roles, by ARN.
    roles: HashMap<String, Arc<Role>>,
    /// Sessions, by access key id.
    sessions: HashMap<String, Arc<Session>>,
    /// Access key ids of sessions, oldest first.
    issued: VecDeque<String>,
    /// Access key ids of sessions that the control handle expired.
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

    /// Creates a role, or replaces its policies while its sessions remain valid.
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
            None => unique_id("AROA"),
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

    pub(super) fn add_session(&self, session: Session) -> Arc<Session> {
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

    /// Expires all sessions issued so far. Returns the number that were not expired before.
    pub(super) fn expire_sessions(&self) -> usize {
        let mut inner = self.write();
        let issued: Vec<String> = inner.issued.iter().cloned().collect();
        let before = inner.expired.len();
        inner.expired.extend(issued);
        inner.expired.len() - before
    }

    /// Returns the owner of an access key, and the secret key to verify its signature with.
    pub(super) fn caller(
        &self,
        access_key_id: &str,
        session_token: Option<&str>,
        now_ms: i64,
    ) -> Result<(Caller, String), AuthFailure> {
        let inner = self.read();
        if let Some(long_term) = inner.long_term.get(access_key_id) {
            // Long-term credentials have no session token.
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

/// Generates a unique id such as `ASIA…` or `AROA…`: the prefix and 16 characters.
pub(super) fn unique_id(prefix: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut rng = rand::rng();
    let mut id = prefix.to_owned();
    id.extend((0..16).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    id
}

/// Generates a secret access key of 40 characters.
pub(super) fn secret_access_key() -> String {
    STANDARD.encode(rand::random::<[u8; 30]>())
}

/// Generates an opaque session token of about 360 characters.
pub(super) fn session_token() -> String {
    let mut bytes = [0; 256];
    rand::rng().fill(&mut bytes[..]);
    format!("IQoJb3JpZ2luX2Vj{}", STANDARD.encode(bytes))
}
