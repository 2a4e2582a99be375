//! Checks the inputs and makes an [`Onboarding`] of them.

use super::{Capacity, KeyArn, Onboarding, Principal};
use crate::domain::{
    arn::{ArnError, Partition, RoleArn, StreamArn},
    character::BadCharacter,
};

/// Maximum number of shards of a new stream. The default quota of an account is a few hundred
/// to 20,000, depending on the region.
pub const MAX_SHARDS: u32 = 10_000;

/// The inputs as text.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Name of the stream, or its ARN, which includes region and account.
    pub stream: Option<String>,
    /// Region of the stream, such as `eu-west-1`.
    pub region: Option<String>,
    /// The 12 digits of the account of the customer.
    pub account: Option<String>,
    /// Name of the role, without a path.
    pub role_name: Option<String>,
    /// Identity that assumes the role: an account or an ARN.
    pub principal: Option<String>,
    /// Number of shards; `None` is an on-demand stream.
    pub shards: Option<String>,
    /// Whether the stream is on demand, which is also the default.
    pub on_demand: bool,
    /// Customer managed key that encrypts the stream; `None` is the key managed by AWS.
    pub kms_key_arn: Option<String>,
}

/// One problem of the inputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Problem {
    /// Name of the field of [`Inputs`] with hyphens, such as `kms-key-arn`.
    pub field: &'static str,
    /// The problem and its remedy. It does not contain the value, which may be a secret.
    pub message: String,
}

impl Inputs {
    /// Checks all inputs.
    ///
    /// # Errors
    ///
    /// All problems, at least one.
    pub fn check(&self) -> Result<Onboarding, Vec<Problem>> {
        let mut problems = Problems::default();
        let stream = self.stream(&mut problems);
        let role_name = self.role_name(&mut problems);
        let principal = problems.parsed("principal", &self.principal, Principal::parse);
        let capacity = self.capacity(&mut problems);
        let kms_key = self.kms_key(&mut problems);
        if let (Some(stream), Some(principal)) = (&stream, &principal)
            && let Err(error) = principal.check_partition(stream.partition())
        {
            problems.add("principal", error.to_string());
        }
        if let (Some(stream), Some(key)) = (&stream, &kms_key)
            && let Err(error) = key.check_region(stream)
        {
            problems.add("kms-key-arn", error.to_string());
        }
        let role = match (&stream, role_name) {
            (Some(stream), Some(name)) => role_arn(stream, name)
                .map_err(|error| problems.add("role-name", error.to_string()))
                .ok(),
            _ => None,
        };
        match (stream, role, principal, capacity) {
            (Some(stream), Some(role), Some(principal), Some(capacity))
                if problems.found.is_empty() =>
            {
                Ok(Onboarding {
                    stream,
                    role,
                    principal,
                    capacity,
                    kms_key,
                })
            }
            _ => Err(problems.found),
        }
    }

    fn stream(&self, problems: &mut Problems) -> Option<StreamArn> {
        match given(&self.stream) {
            Some(arn) if arn.starts_with("arn:") => self.stream_of_arn(arn, problems),
            name => self.stream_of_parts(name, problems),
        }
    }

    fn stream_of_arn(&self, arn: &str, problems: &mut Problems) -> Option<StreamArn> {
        let stream = StreamArn::parse(arn)
            .map_err(|error| problems.add("stream", error.to_string()))
            .ok()?;
        for (field, value, in_arn) in [
            ("region", &self.region, stream.region()),
            ("account", &self.account, stream.account()),
        ] {
            if given(value).is_some_and(|value| value != in_arn) {
                let what = format!("is not the {field} in the ARN of the stream; omit it");
                problems.add(field, what);
            }
        }
        Some(stream)
    }

    fn stream_of_parts(&self, name: Option<&str>, problems: &mut Problems) -> Option<StreamArn> {
        let name = match name {
            Some(name) => checked_stream_name(name)
                .map_err(|error| problems.add("stream", error.to_string()))
                .ok(),
            None => {
                let what = "is required; give the name or the ARN of the stream";
                problems.add("stream", what);
                None
            }
        };
        let region = problems.given(
            "region",
            &self.region,
            "is required with the name of a stream; give one such as eu-west-1",
        );
        let partition = region.and_then(|region| {
            let partition = Partition::ALL.into_iter().find(|p| p.has_region(region));
            if partition.is_none() {
                problems.add("region", "is not an AWS region; give one such as eu-west-1");
            }
            partition
        });
        let account = problems.given(
            "account",
            &self.account,
            "is required with the name of a stream; give the 12-digit account ID of the customer",
        );
        let account = account.filter(|account| {
            let known = is_account(account);
            if !known {
                problems.add("account", "is not an AWS account ID; give its 12 digits");
            }
            known
        });
        let (name, region, partition, account) = (name?, region?, partition?, account?);
        StreamArn::parse(&format!(
            "arn:{partition}:kinesis:{region}:{account}:stream/{name}"
        ))
        .map_err(|error| problems.add("stream", error.to_string()))
        .ok()
    }

    fn role_name(&self, problems: &mut Problems) -> Option<&str> {
        let what = "is required; give the name of the role to create";
        let name = problems.given("role-name", &self.role_name, what)?;
        checked_role_name(name)
            .map_err(|error| problems.add("role-name", error.to_string()))
            .ok()
    }

    fn capacity(&self, problems: &mut Problems) -> Option<Capacity> {
        let Some(shards) = given(&self.shards) else {
            return Some(Capacity::OnDemand);
        };
        if self.on_demand {
            problems.add("shards", "conflicts with on-demand; give only one of them");
            return None;
        }
        let number = shards.parse().ok();
        let Some(shards) = number.filter(|shards| (1..=MAX_SHARDS).contains(shards)) else {
            problems.add(
                "shards",
                format!("is not a whole number from 1 to {MAX_SHARDS}; give one"),
            );
            return None;
        };
        Some(Capacity::Shards(shards))
    }

    fn kms_key(&self, problems: &mut Problems) -> Option<KeyArn> {
        let key = given(&self.kms_key_arn)?;
        KeyArn::parse(key)
            .map_err(|error| problems.add("kms-key-arn", error.to_string()))
            .ok()
    }
}

#[derive(Default)]
struct Problems {
    found: Vec<Problem>,
}

impl Problems {
    fn add(&mut self, field: &'static str, message: impl Into<String>) {
        let message = message.into();
        self.found.push(Problem { field, message });
    }

    fn given<'a>(
        &mut self,
        field: &'static str,
        value: &'a Option<String>,
        missing: &str,
    ) -> Option<&'a str> {
        let value = given(value);
        if value.is_none() {
            self.add(field, missing);
        }
        value
    }

    fn parsed<T, E: std::error::Error>(
        &mut self,
        field: &'static str,
        value: &Option<String>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        // The parser has the best message for an empty text.
        parse(value.as_deref().unwrap_or_default())
            .map_err(|error| self.add(field, error.to_string()))
            .ok()
    }
}

/// Returns the value if it is not empty.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Refuses invisible characters and white space, and reports their position.
pub(super) fn check_printable(text: &str) -> Result<(), ArnError> {
    match BadCharacter::find_unprintable(text) {
        Some(bad) => Err(ArnError::Character(bad)),
        None => Ok(()),
    }
}

fn checked_stream_name(name: &str) -> Result<&str, ArnError> {
    check_printable(name)?;
    match StreamArn::parse(&format!(
        "arn:aws:kinesis:us-east-1:000000000000:stream/{name}"
    )) {
        Ok(_) => Ok(name),
        Err(ArnError::Wildcard) => Err(ArnError::Wildcard),
        Err(_) => Err(ArnError::StreamName),
    }
}

fn checked_role_name(name: &str) -> Result<&str, ArnError> {
    check_printable(name)?;
    match RoleArn::parse(&format!("arn:aws:iam::000000000000:role/{name}")) {
        Ok(role) if role.name() == name => Ok(name),
        Err(ArnError::Wildcard) => Err(ArnError::Wildcard),
        _ => Err(ArnError::RoleName),
    }
}

fn role_arn(stream: &StreamArn, name: &str) -> Result<RoleArn, ArnError> {
    let (partition, account) = (stream.partition(), stream.account());
    RoleArn::parse(&format!("arn:{partition}:iam::{account}:role/{name}"))
}

#[cfg(test)]
mod tests;
