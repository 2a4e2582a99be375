//! AWS STS: AssumeRole and GetCallerIdentity, in the Query protocol.
//!
//! Constraints and messages follow the STS API reference and its service model.

use std::sync::Arc;

use http::StatusCode;

use super::control::Operation;
use super::error::{AwsError, Service, escape_xml};
use super::form::Form;
use super::identity::{
    Caller, PrincipalArn, Role, Session, secret_access_key, session_token, unique_id,
};
use super::policy::{AccessRequest, Policy, Trust};
use super::state::Shared;

/// A parsed request.
pub(super) enum Request {
    AssumeRole(AssumeRole),
    GetCallerIdentity,
}

/// Parameters of AssumeRole. Without `Debug`, because they contain the external ID.
pub(super) struct AssumeRole {
    role_arn: String,
    session_name: String,
    external_id: Option<String>,
    duration_seconds: u32,
    policy: Option<Arc<Policy>>,
}

/// Returns the operation that a form names, with its target: the role, or empty.
pub(super) fn operation(form: &Form) -> Option<(Operation, &str)> {
    let operation = Operation::from_name(form.get("Action")?)?;
    let target = form.get("RoleArn").unwrap_or_default();
    operation.is_sts().then_some((operation, target))
}

pub(super) fn parse(operation: Operation, form: &Form) -> Result<Request, AwsError> {
    match operation {
        Operation::AssumeRole => AssumeRole::parse(form).map(Request::AssumeRole),
        _ => Ok(Request::GetCallerIdentity),
    }
}

/// Executes a request and returns the XML of its response.
pub(super) fn execute(
    shared: &Shared,
    caller: &Caller,
    request: &Request,
    request_id: &str,
) -> Result<String, AwsError> {
    let (name, result) = match request {
        Request::AssumeRole(request) => ("AssumeRole", request.execute(shared, caller)?),
        Request::GetCallerIdentity => ("GetCallerIdentity", caller_identity(caller)),
    };
    Ok(format!(
        "<{name}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  \
         <{name}Result>\n{result}  </{name}Result>\n  <ResponseMetadata>\n    \
         <RequestId>{request_id}</RequestId>\n  </ResponseMetadata>\n</{name}Response>\n"
    ))
}

impl AssumeRole {
    fn parse(form: &Form) -> Result<Self, AwsError> {
        let get = |name| form.get(name);
        let role_arn = string_parameter(get("RoleArn"), "roleArn", 20..=2048, |_| true, "")?;
        if PrincipalArn::parse(role_arn)
            .and_then(|arn| arn.role_name())
            .is_none()
        {
            return Err(AwsError::new(
                "ValidationError",
                format!("{role_arn} is invalid"),
            ));
        }
        let session_name = string_parameter(
            get("RoleSessionName"),
            "roleSessionName",
            2..=64,
            |c| is_word(c) || "+=,.@-".contains(c),
            "[\\w+=,.@-]*",
        )?;
        let external_id = get("ExternalId").map(|id| {
            let allowed = |c| is_word(c) || "+=,.@:/-".contains(c);
            string_parameter(
                Some(id),
                "externalId",
                2..=1224,
                allowed,
                "[\\w+=,.@:\\/-]*",
            )
        });
        let policy = get("Policy").map(session_policy).transpose()?.map(Arc::new);
        Ok(Self {
            role_arn: role_arn.to_owned(),
            session_name: session_name.to_owned(),
            external_id: external_id.transpose()?.map(str::to_owned),
            duration_seconds: duration(get("DurationSeconds"))?,
            policy,
        })
    }

    fn execute(&self, shared: &Shared, caller: &Caller) -> Result<String, AwsError> {
        let role = shared
            .identities
            .role(&self.role_arn)
            .filter(|role| self.allowed(role, caller))
            .ok_or_else(|| self.denied(caller))?;
        self.check_duration(&role, caller)?;
        let now = shared.clock_ms();
        let requested = now + i64::from(self.duration_seconds) * 1000;
        let (expires, announced) = match shared.settings().session_lifetime {
            None => (requested, requested),
            Some(lifetime) => {
                let early = now + i64::from(lifetime.seconds) * 1000;
                (early, if lifetime.announced { early } else { requested })
            }
        };
        let session = shared.identities.add_session(self.session(&role, expires)?);
        let expiration =
            jiff::Timestamp::from_second(announced / 1000).map_err(|_| internal_failure())?;
        Ok(format!(
            "    <AssumedRoleUser>\n      <AssumedRoleId>{}:{}</AssumedRoleId>\n      \
             <Arn>{}</Arn>\n    </AssumedRoleUser>\n    <Credentials>\n      \
             <AccessKeyId>{}</AccessKeyId>\n      <SecretAccessKey>{}</SecretAccessKey>\n      \
             <SessionToken>{}</SessionToken>\n      <Expiration>{expiration}</Expiration>\n    \
             </Credentials>\n",
            role.id,
            escape_xml(&self.session_name),
            escape_xml(&session.arn),
            session.access_key_id,
            session.secret_access_key,
            session.session_token,
        ))
    }

    /// Whether the trust policy allows the caller and so do the caller's own policies. A caller
    /// of the same account whom the trust policy names needs no permission of its own.
    fn allowed(&self, role: &Role, caller: &Caller) -> bool {
        let mut keys = vec![
            ("sts:RoleSessionName", self.session_name.as_str()),
            (
                "aws:PrincipalArn",
                caller.requester().role_arn.unwrap_or(&caller.arn),
            ),
            ("aws:PrincipalAccount", &caller.account),
        ];
        keys.extend(self.external_id.as_deref().map(|id| ("sts:ExternalId", id)));
        let request = AccessRequest {
            action: Operation::AssumeRole.action(),
            resource: &role.arn,
            keys: &keys,
        };
        let trust = role.trust.evaluate_trust(&caller.requester(), &request);
        let account = PrincipalArn::parse(&role.arn).map(|arn| arn.account);
        let same_account = account == Some(caller.account.as_str());
        let own = caller.authorize(&request);
        match trust {
            Trust::ExplicitDeny | Trust::ImplicitDeny => false,
            Trust::Named if same_account => !own.is_err_and(|refusal| refusal.is_explicit()),
            Trust::Named | Trust::Delegated => own.is_ok(),
        }
    }

    /// The same error whether the role does not exist or does not trust the caller.
    fn denied(&self, caller: &Caller) -> AwsError {
        let message = format!(
            "User: {} is not authorized to perform: sts:AssumeRole on resource: {}",
            caller.arn, self.role_arn
        );
        AwsError::new("AccessDenied", message).with_status(StatusCode::FORBIDDEN)
    }

    fn check_duration(&self, role: &Role, caller: &Caller) -> Result<(), AwsError> {
        let problem = if caller.session.is_some() && self.duration_seconds > 3600 {
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining."
        } else if self.duration_seconds > role.max_session_seconds {
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
        } else {
            return Ok(());
        };
        Err(AwsError::new("ValidationError", problem))
    }

    fn session(&self, role: &Role, expires_at_ms: i64) -> Result<Session, AwsError> {
        let arn = PrincipalArn::parse(&role.arn).ok_or_else(internal_failure)?;
        let name = arn.role_name().ok_or_else(internal_failure)?;
        Ok(Session {
            access_key_id: unique_id("ASIA"),
            secret_access_key: secret_access_key(),
            session_token: session_token(),
            role_arn: role.arn.clone(),
            role_id: role.id.clone(),
            arn: format!(
                "arn:{}:sts::{}:assumed-role/{name}/{}",
                arn.partition, arn.account, self.session_name
            ),
            policy: self.policy.clone(),
            expires_at_ms,
        })
    }
}

fn session_policy(json: &str) -> Result<Policy, AwsError> {
    let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{ff}');
    let pattern = "[\\u0009\\u000A\\u000D\\u0020-\\u00FF]+";
    string_parameter(Some(json), "policy", 1..=2048, allowed, pattern)?;
    Policy::parse_identity(json)
        .map_err(|error| AwsError::new("MalformedPolicyDocument", error.to_string()))
}

fn duration(value: Option<&str>) -> Result<u32, AwsError> {
    let Some(value) = value else {
        return Ok(3600);
    };
    let invalid = |constraint: &str| {
        AwsError::constraint(Service::Sts, "durationSeconds", Some(value), constraint)
    };
    let seconds: i64 = value
        .parse()
        .map_err(|_| AwsError::new("MalformedInput", "DurationSeconds is not a number"))?;
    match u32::try_from(seconds) {
        Ok(seconds @ 900..=43200) => Ok(seconds),
        _ if seconds < 900 => Err(invalid(
            "Member must have value greater than or equal to 900",
        )),
        _ => Err(invalid(
            "Member must have value less than or equal to 43200",
        )),
    }
}

/// Checks a string parameter as AWS' model validation does: presence, characters, length.
fn string_parameter<'a>(
    value: Option<&'a str>,
    field: &str,
    length: std::ops::RangeInclusive<usize>,
    allowed: impl Fn(char) -> bool,
    pattern: &str,
) -> Result<&'a str, AwsError> {
    let invalid =
        |constraint: &str| Err(AwsError::constraint(Service::Sts, field, value, constraint));
    let Some(text) = value else {
        return invalid("Member must not be null");
    };
    let chars = text.chars().count();
    if !text.chars().all(allowed) {
        invalid(&format!(
            "Member must satisfy regular expression pattern: {pattern}"
        ))
    } else if chars < *length.start() {
        let min = length.start();
        invalid(&format!(
            "Member must have length greater than or equal to {min}"
        ))
    } else if chars > *length.end() {
        let max = length.end();
        invalid(&format!(
            "Member must have length less than or equal to {max}"
        ))
    } else {
        Ok(text)
    }
}

/// `\w` of Java, the regular expression language of AWS' patterns.
fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn caller_identity(caller: &Caller) -> String {
    let user_id = match &caller.session {
        Some((session, role)) => {
            let name = session.arn.rsplit('/').next().unwrap_or_default();
            format!("{}:{name}", role.id)
        }
        None => caller.arn.rsplit('/').next().unwrap_or_default().to_owned(),
    };
    format!(
        "    <Arn>{}</Arn>\n    <UserId>{}</UserId>\n    <Account>{}</Account>\n",
        escape_xml(&caller.arn),
        escape_xml(&user_id),
        caller.account
    )
}

fn internal_failure() -> AwsError {
    AwsError::new("InternalFailure", "").with_status(StatusCode::INTERNAL_SERVER_ERROR)
}
