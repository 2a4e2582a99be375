use proptest::prelude::*;
use serde_json::json;

use super::*;

const ROLE: &str = "arn:aws:iam::222222222222:role/siem";
const STREAM: &str = "arn:aws:kinesis:us-east-1:222222222222:stream/detections";

const VENDOR: Requester<'static> = Requester {
    arn: "arn:aws:iam::111111111111:user/relay",
    role_arn: None,
    account: "111111111111",
};

fn trust(principal: Value, condition: Value) -> Policy {
    let statement = json!({
        "Effect": "Allow",
        "Principal": principal,
        "Action": "sts:AssumeRole",
        "Condition": condition,
    });
    let document = json!({ "Version": "2012-10-17", "Statement": statement });
    Policy::parse_trust(&document.to_string()).unwrap()
}

fn assume(policy: &Policy, external_id: Option<&str>) -> Trust {
    let keys: Vec<_> = external_id
        .map(|id| ("sts:ExternalId", id))
        .into_iter()
        .collect();
    policy.evaluate_trust(
        &VENDOR,
        &AccessRequest {
            action: "sts:AssumeRole",
            resource: ROLE,
            keys: &keys,
        },
    )
}

#[test]
fn external_id_conditions() {
    let one = trust(
        json!({ "AWS": "111111111111" }),
        json!({ "StringEquals": { "sts:ExternalId": "secret-1" } }),
    );
    assert_eq!(assume(&one, Some("secret-1")), Trust::Delegated);
    assert_eq!(assume(&one, Some("secret-2")), Trust::ImplicitDeny);
    assert_eq!(assume(&one, None), Trust::ImplicitDeny);

    let list = trust(
        json!({ "AWS": ["arn:aws:iam::111111111111:user/relay"] }),
        json!({ "StringEquals": { "STS:externalid": ["a1", "a2"] } }),
    );
    assert_eq!(assume(&list, Some("a2")), Trust::Named);
    assert_eq!(assume(&list, Some("a3")), Trust::ImplicitDeny);

    let like = trust(
        json!("*"),
        json!({ "StringLike": { "sts:ExternalId": "*" } }),
    );
    assert_eq!(assume(&like, Some("anything")), Trust::Delegated);
    assert_eq!(assume(&like, None), Trust::ImplicitDeny);

    let if_exists = trust(
        json!("*"),
        json!({ "StringEqualsIfExists": { "sts:ExternalId": "a1" } }),
    );
    assert_eq!(assume(&if_exists, None), Trust::Delegated);
    assert_eq!(assume(&if_exists, Some("a2")), Trust::ImplicitDeny);

    let none = trust(json!("*"), json!({ "Null": { "sts:ExternalId": "true" } }));
    assert_eq!(assume(&none, None), Trust::Delegated);
    assert_eq!(assume(&none, Some("a1")), Trust::ImplicitDeny);
}

#[test]
fn principals_are_exact() {
    let other = trust(
        json!({ "AWS": "arn:aws:iam::333333333333:root" }),
        json!({}),
    );
    assert_eq!(assume(&other, None), Trust::ImplicitDeny);
    let service = trust(json!({ "Service": "firehose.amazonaws.com" }), json!({}));
    assert_eq!(assume(&service, None), Trust::ImplicitDeny);
    let root = trust(
        json!({ "AWS": "arn:aws:iam::111111111111:root" }),
        json!({}),
    );
    assert_eq!(assume(&root, None), Trust::Delegated);
}

#[test]
fn a_deny_wins_over_an_allow_after_it() {
    let document = json!({ "Statement": [
        { "Effect": "Deny", "Principal": "*", "Action": "sts:*",
          "Condition": { "StringEquals": { "sts:ExternalId": "banned" } } },
        { "Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole" },
    ]});
    let policy = Policy::parse_trust(&document.to_string()).unwrap();
    assert_eq!(assume(&policy, Some("fine")), Trust::Delegated);
    assert_eq!(assume(&policy, Some("banned")), Trust::ExplicitDeny);
}

#[test]
fn actions_ignore_case_and_resources_do_not() {
    let document = json!({ "Statement": {
        "Effect": "Allow",
        "Action": ["kinesis:put*"],
        "Resource": "arn:aws:kinesis:*:222222222222:stream/det?ctions",
    }});
    let policy = Policy::parse_identity(&document.to_string()).unwrap();
    let ask = |action, resource| {
        policy.evaluate(&AccessRequest {
            action,
            resource,
            keys: &[],
        })
    };
    assert_eq!(ask("kinesis:PutRecords", STREAM), Decision::Allow);
    assert_eq!(ask("kinesis:GetRecords", STREAM), Decision::ImplicitDeny);
    assert_eq!(
        ask("kinesis:PutRecords", &STREAM.replace("det", "Det")),
        Decision::ImplicitDeny
    );
}

#[test]
fn not_action_and_not_resource() {
    let document = json!({ "Statement": [
        { "Effect": "Allow", "Action": "*", "Resource": "*" },
        { "Effect": "Deny", "NotAction": "kinesis:*", "Resource": "*" },
        { "Effect": "Deny", "Action": "*", "NotResource": STREAM },
    ]});
    let policy = Policy::parse_identity(&document.to_string()).unwrap();
    let ask = |action, resource| {
        policy.evaluate(&AccessRequest {
            action,
            resource,
            keys: &[],
        })
    };
    assert_eq!(ask("kinesis:PutRecords", STREAM), Decision::Allow);
    assert_eq!(ask("kms:GenerateDataKey", STREAM), Decision::ExplicitDeny);
    assert_eq!(ask("kinesis:PutRecords", "other"), Decision::ExplicitDeny);
}

#[test]
fn malformed_and_unsupported_policies_are_refused() {
    let refused = |document: Value, trust: bool| {
        let json = document.to_string();
        if trust {
            Policy::parse_trust(&json).is_err()
        } else {
            Policy::parse_identity(&json).is_err()
        }
    };
    let allow = |extra: Value| {
        let mut statement = json!({ "Effect": "Allow", "Action": "*" });
        if let (Some(into), Some(from)) = (statement.as_object_mut(), extra.as_object()) {
            into.extend(from.clone());
        }
        json!({ "Statement": [statement] })
    };
    assert!(refused(json!([]), false));
    assert!(refused(json!({ "Statement": [1] }), false));
    assert!(refused(allow(json!({})), false));
    assert!(refused(allow(json!({})), true));
    assert!(refused(
        allow(json!({ "Resource": "*", "Principal": "*" })),
        false
    ));
    assert!(refused(
        allow(json!({ "Resource": "*", "Principal": "*" })),
        true
    ));
    assert!(refused(
        allow(json!({ "Resource": "arn:${aws:username}" })),
        false
    ));
    assert!(refused(
        allow(json!({ "Resource": "*", "Effect": "allow" })),
        false
    ));
    assert!(refused(
        allow(json!({ "Principal": { "AWS": "arn:aws:iam::111111111111:user/*" } })),
        true
    ));
    assert!(refused(allow(json!({ "NotPrincipal": "*" })), true));
    assert!(refused(
        allow(
            json!({ "Resource": "*", "Condition": { "IpAddress": { "aws:SourceIp": "192.0.2.0/24" } } })
        ),
        false
    ));
}

/// Recursive definition of the wildcards.
fn reference(pattern: &[char], text: &[char]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some(('*', rest)) => (0..=text.len()).any(|n| reference(rest, &text[n..])),
        Some((c, rest)) => text
            .split_first()
            .is_some_and(|(first, tail)| (*c == '?' || c == first) && reference(rest, tail)),
    }
}

proptest! {
    #[test]
    fn wildcards_match_as_defined(pattern in "[ab*?é]{0,8}", text in "[abé]{0,10}") {
        let p: Vec<char> = pattern.chars().collect();
        let t: Vec<char> = text.chars().collect();
        prop_assert_eq!(wildcard_matches(&pattern, &text), reference(&p, &t));
    }

    #[test]
    fn a_pattern_without_wildcards_matches_only_itself(text in "[a-z:/-]{0,12}", other in "[a-z:/-]{0,12}") {
        prop_assert!(wildcard_matches(&text, &text));
        prop_assert_eq!(wildcard_matches(&text, &other), text == other);
    }

    #[test]
    fn a_star_matches_any_suffix(head in "[a-z:]{0,8}", tail in any::<String>()) {
        let pattern = format!("{head}*");
        let text = format!("{head}{tail}");
        prop_assert!(wildcard_matches(&pattern, &text));
    }
}

#[test]
fn many_stars_take_polynomial_time() {
    let pattern = "*a".repeat(500) + "b";
    assert!(!wildcard_matches(&pattern, &"a".repeat(2000)));
}
