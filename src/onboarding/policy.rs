//! The two policies of the role, as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{KeyArn, Principal};
use crate::domain::{arn::StreamArn, external_id::ExternalId};

/// The version of the policy language.
pub(super) const VERSION: &str = "2012-10-17";

/// What the role may do with the stream.
pub(super) const WRITE_ACTIONS: [&str; 2] = ["kinesis:PutRecord", "kinesis:PutRecords"];

/// By it Kinesis' calls of KMS [name the stream].
///
/// [name the stream]: https://docs.aws.amazon.com/streams/latest/dev/permissions-user-key-KMS.html
pub(super) const ENCRYPTION_CONTEXT: &str = "kms:EncryptionContext:aws:kinesis:arn";

/// Its fields are in the order that people write them in.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy<'a> {
    version: &'a str,
    statement: Vec<Statement<'a>>,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Statement<'a> {
    sid: &'a str,
    effect: &'a str,
    #[serde(skip_serializing_if = "Map::is_empty")]
    principal: Map<'a, &'a str>,
    action: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    condition: Map<'a, Map<'a, &'a str>>,
}

type Map<'a, T> = BTreeMap<&'a str, T>;

/// Lets the principal assume the role, if it knows the external ID.
pub(super) fn trust(principal: &Principal, external_id: &ExternalId) -> String {
    text(vec![Statement {
        sid: "AssumeRoleWithExternalId",
        effect: "Allow",
        principal: Map::from([("AWS", principal.as_str())]),
        action: vec!["sts:AssumeRole"],
        condition: string_equals("sts:ExternalId", external_id.expose()),
        ..Statement::default()
    }])
}

/// Lets the role write to the stream, and have the records encrypted under the key.
pub(super) fn permission(stream: &StreamArn, kms_key: Option<&KeyArn>) -> String {
    let mut statements = vec![Statement {
        sid: "WriteRecords",
        effect: "Allow",
        action: WRITE_ACTIONS.to_vec(),
        resource: Some(stream.as_str()),
        ..Statement::default()
    }];
    if let Some(key) = kms_key {
        statements.push(Statement {
            sid: "EncryptRecords",
            effect: "Allow",
            action: vec!["kms:GenerateDataKey"],
            resource: Some(key.as_str()),
            condition: string_equals(ENCRYPTION_CONTEXT, stream.as_str()),
            ..Statement::default()
        });
    }
    text(statements)
}

fn string_equals<'a>(key: &'a str, value: &'a str) -> Map<'a, Map<'a, &'a str>> {
    Map::from([("StringEquals", Map::from([(key, value)]))])
}

fn text(statement: Vec<Statement<'_>>) -> String {
    let version = VERSION;
    let policy = Policy { version, statement };
    #[expect(
        clippy::expect_used,
        reason = "texts and lists of texts have no JSON that fails"
    )]
    let mut text = serde_json::to_string_pretty(&policy).expect("a policy is JSON");
    text.push('\n');
    text
}
