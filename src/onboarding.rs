//! The documents that a customer applies in its own AWS account so that the service may write
//! to a stream: two IAM policies as JSON, and the whole setup as a CloudFormation template and
//! as a Terraform file.
//!
//! Pure: inputs become texts. CloudFormation and Terraform take the external ID as a parameter;
//! only [`Document::TrustPolicy`] contains it.
//!
//! The texts are in `onboarding/templates`, in the syntax of Jinja. `{{ name }}` inserts a
//! complete string literal of the document's language, with quotes, so that no value can end
//! it. `{{ raw.name }}` inserts a value without quotes, for comments only.

mod inputs;
mod key;
mod principal;
#[cfg(test)]
mod tests;

use minijinja::{Environment, UndefinedBehavior, Value, context};

pub use inputs::{Inputs, MAX_SHARDS, Problem};
pub use key::{KeyArn, KeyArnError};
pub use principal::{Principal, PrincipalError};

use crate::domain::{
    arn::{RoleArn, StreamArn},
    external_id::ExternalId,
};

/// Capacity mode of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// Kinesis scales the stream.
    OnDemand,
    /// A number of shards, each of 1,000 records and 1 MiB a second.
    Shards(u32),
}

/// The checked inputs of all documents, made by [`Inputs::check`].
#[derive(Clone, Debug)]
pub struct Onboarding {
    stream: StreamArn,
    role: RoleArn,
    principal: Principal,
    capacity: Capacity,
    kms_key: Option<KeyArn>,
}

/// A document to print.
#[derive(Clone, Debug)]
pub enum Document {
    /// The trust policy of the role, as JSON. It contains the external ID in plain text.
    TrustPolicy(ExternalId),
    /// The permission policy of the role, as JSON.
    PermissionPolicy,
    /// A CloudFormation template, as YAML.
    CloudFormation,
    /// A Terraform file, formatted like the output of `terraform fmt`.
    Terraform,
}

impl Document {
    /// Name of the file to write.
    pub fn file_name(&self) -> &'static str {
        match self {
            Self::TrustPolicy(_) => "trust-policy.json",
            Self::PermissionPolicy => "permission-policy.json",
            Self::CloudFormation => "siem-relay.cfn.yaml",
            Self::Terraform => "siem-relay.tf",
        }
    }

    /// Title, in one line.
    pub fn title(&self) -> &'static str {
        match self {
            Self::TrustPolicy(_) => "trust policy of the role, with the external ID",
            Self::PermissionPolicy => "permission policy of the role",
            Self::CloudFormation => "CloudFormation template, creates stream and role",
            Self::Terraform => "Terraform file, creates stream and role",
        }
    }

    fn template(&self) -> &'static str {
        match self {
            Self::TrustPolicy(_) => include_str!("onboarding/templates/trust-policy.json"),
            Self::PermissionPolicy => include_str!("onboarding/templates/permission-policy.json"),
            Self::CloudFormation => include_str!("onboarding/templates/siem-relay.cfn.yaml"),
            Self::Terraform => include_str!("onboarding/templates/siem-relay.tf"),
        }
    }

    /// Function that quotes a text as a string literal.
    fn quote(&self) -> fn(&str) -> String {
        match self {
            Self::TrustPolicy(_) | Self::PermissionPolicy => json,
            Self::CloudFormation => yaml,
            Self::Terraform => hcl,
        }
    }
}

impl Onboarding {
    /// ARN of the stream, which may not exist yet.
    pub fn stream(&self) -> &StreamArn {
        &self.stream
    }

    /// ARN that the role will have.
    pub fn role(&self) -> &RoleArn {
        &self.role
    }

    /// Text of a document. It ends with a newline.
    pub fn text(&self, document: &Document) -> String {
        let raw = |text: &str| Value::from_safe_string(text.to_owned());
        let values = context! {
            stream_arn => self.stream.as_str(),
            region => self.stream.region(),
            account => self.stream.account(),
            stream_name => self.stream.name(),
            role_name => self.role.name(),
            principal => self.principal.as_str(),
            principal_pattern => Principal::PATTERN,
            kms_key_arn => self.kms_key.as_ref().map(KeyArn::as_str),
            kms_key_pattern => KeyArn::PATTERN,
            shards => match self.capacity {
                Capacity::OnDemand => None,
                Capacity::Shards(shards) => Some(shards),
            },
            max_shards => MAX_SHARDS,
            external_id => match document {
                Document::TrustPolicy(external_id) => Some(external_id.expose()),
                _ => None,
            },
            raw => context! {
                stream_arn => raw(self.stream.as_str()),
                region => raw(self.stream.region()),
                account => raw(self.stream.account()),
                role_arn => raw(self.role.as_str()),
            },
        };
        let quote = document.quote();
        let mut templates = Environment::empty();
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        templates.set_formatter(move |out, _, value| {
            match value.as_str() {
                Some(text) if !value.is_safe() => out.write_str(&quote(text))?,
                _ => write!(out, "{value}")?,
            }
            Ok(())
        });
        #[expect(
            clippy::expect_used,
            reason = "the templates are constants, and tests render each with every option"
        )]
        let mut text = templates
            .render_str(document.template(), values)
            .expect("the template is valid");
        text.push('\n');
        text
    }
}

/// JSON string.
fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// [Single-quoted scalar] of YAML, in which only the quote is special. The text has no line
/// break.
///
/// [Single-quoted scalar]: https://yaml.org/spec/1.2.2/#732-single-quoted-style
fn yaml(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// [Quoted string] of HCL. The start of a template sequence is written as a Unicode escape,
/// since `$${` would be ambiguous after another dollar sign. The text has no line break.
///
/// [Quoted string]: https://developer.hashicorp.com/terraform/language/expressions/strings
fn hcl(text: &str) -> String {
    let text = text
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace("${", r"\u0024{")
        .replace("%{", r"\u0025{");
    format!("\"{text}\"")
}
