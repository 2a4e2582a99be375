//! From what was given to an [`Onboarding`], or to everything that is wrong with it.

use super::{Capacity, KeyArn, Onboarding, Principal};
use crate::domain::{
    arn::{ArnError, Partition, RoleArn, StreamArn},
    character::BadCharacter,
};

/// The most shards a stream is made with here. Accounts start with a quota of a few
/// hundred to 20,000 by region.
pub const MAX_SHARDS: u32 = 10_000;

/// What was given, as text.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The stream's name, or its ARN, which says region and account as well.
    pub stream: Option<String>,
    /// The stream's region, such as `eu-west-1`.
    pub region: Option<String>,
    /// The 12 digits of the customer's account.
    pub account: Option<String>,
    /// The name of the role, without a path.
    pub role_name: Option<String>,
    /// Who assumes the role: an account or an ARN.
    pub principal: Option<String>,
    /// The number of shards; none is a stream on demand.
    pub shards: Option<String>,
    /// Whether the stream is to scale itself, which it does where nothing is said.
    pub on_demand: bool,
    /// A customer's key that encrypts the stream; none is the one that AWS manages.
    pub kms_key_arn: Option<String>,
}

/// One thing that is wrong: the field, by its name in [`Inputs`] with hyphens, and what
/// is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct Problem {
    /// Such as `kms-key-arn`.
    pub field: &'static str,
    /// What is wrong and what to do. It does not repeat the value.
    pub what: String,
}

impl Inputs {
    /// Checks everything.
    ///
    /// # Errors
    ///
    /// Every problem, never none.
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
            && let Err(error) = key.check_place(stream)
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
                let what = format!("is not the {field} in the stream's ARN; leave it out");
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
                let what = "is required: give the stream's name, or its ARN";
                problems.add("stream", what);
                None
            }
        };
        let region = problems.given(
            "region",
            &self.region,
            "is required beside a stream's name: give one such as eu-west-1",
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
            "is required beside a stream's name: give the customer's 12-digit account ID",
        );
        let account = account.filter(|account| {
            let known = is_account(account);
            if !known {
                problems.add("account", "is not the 12 digits of an AWS account ID");
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
        let what = "is required: give the name that the role is to have";
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
            problems.add("shards", "goes not with on-demand; leave one of them out");
            return None;
        }
        let number = shards.parse().ok();
        let Some(shards) = number.filter(|shards| (1..=MAX_SHARDS).contains(shards)) else {
            problems.add(
                "shards",
                format!("is not a whole number from 1 to {MAX_SHARDS}"),
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
    fn add(&mut self, field: &'static str, what: impl Into<String>) {
        let what = what.into();
        self.found.push(Problem { field, what });
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
        // A parser says best what an empty text lacks.
        parse(value.as_deref().unwrap_or_default())
            .map_err(|error| self.add(field, error.to_string()))
            .ok()
    }
}

/// An empty text is as good as none.
fn given(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|value| !value.is_empty())
}

pub(super) fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Refuses what looks like white space or like nothing, by its position in the text.
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
