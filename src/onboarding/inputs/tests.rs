use super::*;

fn inputs() -> Inputs {
    Inputs {
        stream: Some("detections".to_owned()),
        region: Some("cn-north-1".to_owned()),
        account: Some("222222222222".to_owned()),
        role_name: Some("siem-delivery".to_owned()),
        principal: Some("111111111111".to_owned()),
        ..Inputs::default()
    }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// The fields with problems.
fn invalid_fields(inputs: &Inputs) -> Vec<&'static str> {
    let problems = inputs.check().err().unwrap_or_default();
    problems.iter().map(|problem| problem.field).collect()
}

#[test]
fn a_name_with_region_and_account_is_an_arn_of_the_regions_partition() {
    let onboarding = inputs().check().unwrap();
    assert_eq!(
        onboarding.stream().as_str(),
        "arn:aws-cn:kinesis:cn-north-1:222222222222:stream/detections"
    );
    assert_eq!(
        onboarding.role().as_str(),
        "arn:aws-cn:iam::222222222222:role/siem-delivery"
    );
    assert_eq!(onboarding.capacity, Capacity::OnDemand);
}

#[test]
fn an_arn_includes_region_and_account() {
    let arn = "arn:aws-us-gov:kinesis:us-gov-west-1:222222222222:stream/detections";
    let by_arn = Inputs {
        stream: some(arn),
        region: None,
        account: some(""),
        ..inputs()
    };
    assert_eq!(by_arn.check().unwrap().stream().as_str(), arn);
    let repeated = Inputs {
        region: some("us-gov-west-1"),
        account: some("222222222222"),
        ..by_arn.clone()
    };
    assert!(repeated.check().is_ok());
    let contradicted = Inputs {
        region: some("us-gov-east-1"),
        account: some("333333333333"),
        ..by_arn
    };
    assert_eq!(invalid_fields(&contradicted), ["region", "account"]);
}

#[test]
fn all_problems_are_reported_together() {
    let missing = ["stream", "region", "account", "role-name", "principal"];
    assert_eq!(invalid_fields(&Inputs::default()), missing);
    let all = Inputs {
        stream: some("a/b"),
        region: some("europe"),
        account: some("22222222222"),
        role_name: some("path/name"),
        principal: some("me"),
        shards: some("0"),
        on_demand: false,
        kms_key_arn: some("alias/siem"),
    };
    let mut expected = missing.to_vec();
    expected.extend(["shards", "kms-key-arn"]);
    assert_eq!(invalid_fields(&all), expected);
}

#[test]
fn names_follow_the_rules_of_aws() {
    for name in ["", "a b", "a/b", "a:b", "*", "ä", &"x".repeat(129)] {
        let stream = some(name);
        assert_eq!(
            invalid_fields(&Inputs { stream, ..inputs() }),
            ["stream"],
            "{name}"
        );
    }
    for name in ["", "a b", "a/b", "a:b", "*", "ä", &"x".repeat(65)] {
        let role_name = some(name);
        let inputs = Inputs {
            role_name,
            ..inputs()
        };
        assert_eq!(invalid_fields(&inputs), ["role-name"], "{name}");
    }
}

#[test]
fn the_number_of_shards_is_checked() {
    let with = |shards: &str, on_demand| Inputs {
        shards: some(shards),
        on_demand,
        ..inputs()
    };
    for shards in ["1", "10000"] {
        let count = shards.parse().unwrap();
        let onboarding = with(shards, false).check().unwrap();
        assert_eq!(onboarding.capacity, Capacity::Shards(count));
    }
    for shards in ["0", "-1", "10001", "1.5", "many", "99999999999"] {
        assert_eq!(invalid_fields(&with(shards, false)), ["shards"], "{shards}");
    }
    assert_eq!(invalid_fields(&with("1", true)), ["shards"]);
}

#[test]
fn the_principal_is_in_the_partition_and_the_key_in_the_region_of_the_stream() {
    let elsewhere = Inputs {
        principal: some("arn:aws:iam::111111111111:root"),
        kms_key_arn: some("arn:aws-cn:kms:cn-northwest-1:222222222222:key/a"),
        ..inputs()
    };
    assert_eq!(invalid_fields(&elsewhere), ["principal", "kms-key-arn"]);
}

#[test]
fn a_problem_does_not_contain_the_value() {
    let swapped = Inputs {
        stream: some("hunter2 hunter2"),
        region: some("hunter2"),
        account: some("hunter2"),
        role_name: some("hunter2/hunter2"),
        principal: some("hunter2"),
        shards: some("hunter2"),
        kms_key_arn: some("hunter2"),
        on_demand: false,
    };
    let problems = swapped.check().unwrap_err();
    assert_eq!(problems.len(), 7);
    for problem in problems {
        assert!(!problem.to_string().contains("hunter2"), "{problem}");
    }
}
