mod stand_in;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const STREAM: &str = "arn:aws:kinesis:eu-west-1:222222222222:stream/detections";
const KEY: &str = "arn:aws:kms:eu-west-1:222222222222:key/0b5ecb46-9d1f-4b4c-8a3c-1d9d3d4b8a11";
const EXTERNAL_ID: &str = "0123456789abcdef-never-to-be-seen";

fn inputs() -> Inputs {
    Inputs {
        stream: Some(STREAM.to_owned()),
        role_name: Some("siem-delivery".to_owned()),
        principal: Some("arn:aws:iam::111111111111:user/relay".to_owned()),
        ..Inputs::default()
    }
}

fn under_a_key() -> Inputs {
    Inputs {
        kms_key_arn: Some(KEY.to_owned()),
        ..inputs()
    }
}

fn trust_policy() -> Document {
    Document::TrustPolicy(ExternalId::parse(EXTERNAL_ID.to_owned()).unwrap())
}

fn json_of(inputs: &Inputs, document: &Document) -> Value {
    serde_json::from_str(&inputs.check().unwrap().text(document)).unwrap()
}

#[test]
fn trust_policy_requires_the_external_id() {
    let expected = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "AssumeRoleWithExternalId",
            "Effect": "Allow",
            "Principal": {"AWS": "arn:aws:iam::111111111111:user/relay"},
            "Action": ["sts:AssumeRole"],
            "Condition": {"StringEquals": {"sts:ExternalId": EXTERNAL_ID}},
        }],
    });
    assert_eq!(json_of(&inputs(), &trust_policy()), expected);
}

#[test]
fn permission_policy_allows_writing_to_one_stream_only() {
    let expected = json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Sid": "WriteRecords",
            "Effect": "Allow",
            "Action": ["kinesis:PutRecord", "kinesis:PutRecords"],
            "Resource": STREAM,
        }],
    });
    assert_eq!(json_of(&inputs(), &Document::PermissionPolicy), expected);
}

#[test]
fn permission_policy_allows_the_key_for_this_stream_only() {
    let policy = json_of(&under_a_key(), &Document::PermissionPolicy);
    assert_eq!(policy["Statement"].as_array().unwrap().len(), 2);
    let expected = json!({
        "Sid": "EncryptRecords",
        "Effect": "Allow",
        "Action": ["kms:GenerateDataKey"],
        "Resource": KEY,
        "Condition": {"StringEquals": {"kms:EncryptionContext:aws:kinesis:arn": STREAM}},
    });
    assert_eq!(policy["Statement"][1], expected);
}

/// IAM accepts 2,048 characters without white space, unless the quota was raised.
#[test]
fn the_longest_trust_policy_fits_the_quota_of_iam() {
    let path = "p".repeat(510);
    let name = "n".repeat(64);
    let longest = Inputs {
        principal: Some(format!("arn:aws:iam::111111111111:role/{path}/{name}")),
        ..inputs()
    };
    let external_id = ExternalId::parse("x".repeat(1224)).unwrap();
    let policy = json_of(&longest, &Document::TrustPolicy(external_id));
    assert!(
        policy.to_string().len() <= 2_048,
        "{}",
        policy.to_string().len()
    );
}

#[test]
fn a_stream_is_on_demand_or_has_shards() {
    let texts = |inputs: &Inputs| {
        let onboarding = inputs.check().unwrap();
        [Document::CloudFormation, Document::Terraform].map(|d| onboarding.text(&d))
    };
    for text in texts(&inputs()) {
        assert!(text.contains("ON_DEMAND"), "{text}");
        assert!(!text.to_lowercase().contains("shard"), "{text}");
        assert!(text.contains("alias/aws/kinesis"), "{text}");
        assert!(!text.contains("GenerateDataKey"), "{text}");
    }
    let shards = Inputs {
        shards: Some("7".to_owned()),
        ..under_a_key()
    };
    let [template, file] = texts(&shards);
    for text in [&template, &file] {
        assert!(text.contains("PROVISIONED"), "{text}");
        assert!(!text.contains("alias/aws/kinesis"), "{text}");
        assert!(text.contains("GenerateDataKey"), "{text}");
    }
    assert!(template.contains("Default: 7\n"), "{template}");
    assert!(file.contains("default     = 7\n"), "{file}");
}

/// The value of a YAML line `key: 'value'`, which must be quoted as a whole.
fn yaml_value<'a>(text: &'a str, before: &str) -> String {
    let quoted = after(text, before);
    let inner = quoted
        .strip_prefix('\'')
        .and_then(|rest: &'a str| rest.strip_suffix('\''))
        .unwrap_or_else(|| panic!("{quoted} is not quoted"));
    let bare = inner.replace("''", "");
    assert!(!bare.contains('\''), "{quoted} ends early");
    inner.replace("''", "'")
}

/// The value of an HCL line `default = "value"`, without templates.
fn hcl_value(text: &str, before: &str) -> String {
    let quoted = after(text, before);
    assert!(
        !quoted.contains("${") && !quoted.contains("%{"),
        "{quoted} has a template"
    );
    // JSON has the same escapes.
    serde_json::from_str(quoted).unwrap_or_else(|error| panic!("{quoted}: {error}"))
}

/// The rest of the line after `before`.
fn after<'a>(text: &'a str, before: &str) -> &'a str {
    let (_, rest) = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before:?} in {text}"));
    rest.lines().next().unwrap()
}

fn default_of(parameter: &str, description: &str) -> String {
    format!("  {parameter}:\n    Description: {description}\n    Type: String\n    Default: ")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_valid_name_is_quoted_correctly(
        stream in "[A-Za-z0-9_.-]{1,128}",
        role in "[A-Za-z0-9_+=,.@-]{1,64}",
        path in "(/[!-)+.0->@-~]{1,9}){0,3}",
        external_id in "[A-Za-z0-9_+=,.@:/-]{2,60}",
        shards in proptest::option::of(1..=MAX_SHARDS),
        has_key in any::<bool>(),
    ) {
        let principal = format!("arn:aws:iam::111111111111:role{path}/relay");
        let onboarding = Inputs {
            stream: Some(stream.clone()),
            region: Some("eu-west-1".to_owned()),
            account: Some("222222222222".to_owned()),
            role_name: Some(role.clone()),
            principal: Some(principal.clone()),
            shards: shards.map(|shards| shards.to_string()),
            on_demand: false,
            kms_key_arn: has_key.then(|| KEY.to_owned()),
        };
        let onboarding = onboarding.check().unwrap();

        let trust = Document::TrustPolicy(ExternalId::parse(external_id.clone()).unwrap());
        let trust: Value = serde_json::from_str(&onboarding.text(&trust)).unwrap();
        let statement = &trust["Statement"][0];
        prop_assert_eq!(&statement["Principal"]["AWS"], &principal);
        prop_assert_eq!(&statement["Condition"]["StringEquals"]["sts:ExternalId"], &external_id);
        let permission = onboarding.text(&Document::PermissionPolicy);
        let permission: Value = serde_json::from_str(&permission).unwrap();
        let arn = format!("arn:aws:kinesis:eu-west-1:222222222222:stream/{stream}");
        prop_assert_eq!(&permission["Statement"][0]["Resource"], &arn);

        let template = onboarding.text(&Document::CloudFormation);
        let who = "The account ID or the ARN of the identity that may assume the role";
        for (parameter, description, value) in [
            ("TrustedPrincipal", who, &principal),
            ("StreamName", "The name of the stream", &stream),
            ("RoleName", "The name of the role", &role),
        ] {
            prop_assert_eq!(&yaml_value(&template, &default_of(parameter, description)), value);
        }
        let file = onboarding.text(&Document::Terraform);
        for (variable, value) in [
            ("trusted_principal", &principal),
            ("stream_name", &stream),
            ("role_name", &role),
        ] {
            let (_, rest) = file.split_once(&format!("variable \"{variable}\" {{")).unwrap();
            prop_assert_eq!(&hcl_value(rest, "  default     = "), value);
        }
    }
}

#[test]
fn only_the_trust_policy_contains_the_external_id() {
    let onboarding = under_a_key().check().unwrap();
    assert!(onboarding.text(&trust_policy()).contains(EXTERNAL_ID));
    for document in [
        Document::PermissionPolicy,
        Document::CloudFormation,
        Document::Terraform,
    ] {
        let text = onboarding.text(&document);
        assert!(!text.contains(EXTERNAL_ID), "{}", document.file_name());
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
    }
}

#[test]
fn special_characters_are_quoted() {
    assert_eq!(yaml("it's 0x1"), "'it''s 0x1'");
    assert_eq!(yaml("012"), "'012'");
    assert_eq!(hcl(r#"a\b"c"#), r#""a\\b\"c""#);
    assert_eq!(hcl("$${a} %{b} $a"), r#""$\u0024{a} \u0025{b} $a""#);
}
