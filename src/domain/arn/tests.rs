use proptest::prelude::*;

use super::*;

const STREAM: &str = "arn:aws:kinesis:us-east-1:123456789012:stream/detections";
const ROLE: &str = "arn:aws:iam::123456789012:role/siem";

#[test]
fn a_stream_arn_is_parsed() {
    let arn =
        StreamArn::parse("arn:aws-cn:kinesis:cn-north-1:123456789012:stream/a.B_c-9").unwrap();
    assert_eq!(arn.partition(), Partition::AwsCn);
    assert_eq!(arn.region(), "cn-north-1");
    assert_eq!(arn.account(), "123456789012");
    assert_eq!(arn.name(), "a.B_c-9");
    assert_eq!(
        arn.to_string(),
        "arn:aws-cn:kinesis:cn-north-1:123456789012:stream/a.B_c-9"
    );
    assert_eq!(arn, StreamArn::parse(arn.as_str()).unwrap());
}

#[test]
fn a_role_arn_is_parsed() {
    let arn = RoleArn::parse("arn:aws:iam::123456789012:role/teams/se:c/S_+=,.@-9").unwrap();
    assert_eq!(arn.partition(), Partition::Aws);
    assert_eq!(arn.account(), "123456789012");
    assert_eq!(arn.name(), "S_+=,.@-9");
    assert_eq!(RoleArn::parse(ROLE).unwrap().name(), "siem");
}

#[test]
fn lengths_are_bounded() {
    let stream = |name: &str| StreamArn::parse(&STREAM.replace("detections", name));
    assert!(stream(&"n".repeat(128)).is_ok());
    assert_eq!(stream(&"n".repeat(129)).unwrap_err(), ArnError::StreamName);
    let role = |name: &str| RoleArn::parse(&ROLE.replace("siem", name));
    assert!(role(&"n".repeat(64)).is_ok());
    assert_eq!(role(&"n".repeat(65)).unwrap_err(), ArnError::RoleName);
    // With the slash before it the path has 512 characters.
    assert!(role(&format!("{}/n", "p".repeat(510))).is_ok());
    let long = format!("{}/n", "p".repeat(511));
    assert_eq!(role(&long).unwrap_err(), ArnError::RolePath);
    assert_eq!(role(&"p/".repeat(2_000)).unwrap_err(), ArnError::TooLong);
}

#[test]
fn regions_belong_to_their_partition() {
    let regions = [
        ("aws", "us-east-1"),
        ("aws", "ap-southeast-7"),
        ("aws", "mx-central-1"),
        ("aws-cn", "cn-northwest-1"),
        ("aws-us-gov", "us-gov-west-1"),
        ("aws-eusc", "eusc-de-east-1"),
        ("aws-iso", "us-iso-west-1"),
        ("aws-iso-b", "us-isob-east-1"),
        ("aws-iso-e", "eu-isoe-west-1"),
        ("aws-iso-f", "us-isof-south-1"),
    ];
    for (_, region) in regions {
        for partition in Partition::ALL {
            let own = regions.contains(&(partition.as_str(), region));
            let text = format!("arn:{partition}:kinesis:{region}:123456789012:stream/s");
            let expected = if own {
                Ok(())
            } else {
                Err(ArnError::Region(partition))
            };
            assert_eq!(StreamArn::parse(&text).map(|_| ()), expected, "{text}");
        }
    }
    for bad in [
        "us",
        "us-1",
        "u-east-1",
        "us-east",
        "US-EAST-1",
        "us-east-1a",
        "us--1",
        "us-east-",
        "-east-1",
        "us-e1st-1",
        "us-east-1.evil.example.com",
        "us-east-11111111111111111111111111",
    ] {
        let text = STREAM.replace("us-east-1", bad);
        let error = StreamArn::parse(&text).unwrap_err();
        assert_eq!(error, ArnError::Region(Partition::Aws), "{bad}");
    }
}

fn bad_character(position: usize, character: char) -> ArnError {
    ArnError::Character(BadCharacter {
        position,
        character,
    })
}

#[test]
fn other_texts_are_not_a_stream() {
    for (text, error) in [
        ("", ArnError::Empty(Kind::Stream)),
        ("detections", ArnError::NotAnArn(Kind::Stream)),
        (
            "arn:aws:kinesis:us-east-1:123456789012",
            ArnError::NotAnArn(Kind::Stream),
        ),
        (
            "urn:aws:kinesis:us-east-1:123456789012:stream/s",
            ArnError::NotAnArn(Kind::Stream),
        ),
        (
            " arn:aws:kinesis:us-east-1:123456789012:stream/s",
            bad_character(1, ' '),
        ),
        (
            "arn:aws:kinesis:us-east-1:123456789012:stream/s\n",
            bad_character(48, '\n'),
        ),
        (
            "\u{feff}arn:aws:kinesis:us-east-1:123456789012:stream/s",
            bad_character(1, '\u{feff}'),
        ),
        (
            "arn:aws:kinesis:us-east-1:12345\u{200b}6789012:stream/s",
            bad_character(32, '\u{200b}'),
        ),
        (
            "\u{430}rn:aws:kinesis:us-east-1:123456789012:stream/s",
            bad_character(1, '\u{430}'),
        ),
        (
            "arn:aws:kinesis:us-east-1:123456789012:stream/*",
            ArnError::Wildcard,
        ),
        (
            "arn:aws:kinesis:*:123456789012:stream/s",
            ArnError::Wildcard,
        ),
        (
            "arn:aws-moon:kinesis:us-east-1:123456789012:stream/s",
            ArnError::Partition,
        ),
        (
            "arn:aws:firehose:us-east-1:123456789012:deliverystream/s",
            ArnError::Firehose,
        ),
        (ROLE, ArnError::Swapped(Kind::Stream)),
        ("arn:aws:s3:::bucket", ArnError::OtherService(Kind::Stream)),
        ("arn:aws:kinesis::123456789012:stream/s", ArnError::NoRegion),
        (
            "arn:aws:kinesis:us-east-1:12345678901:stream/s",
            ArnError::Account(Kind::Stream),
        ),
        (
            "arn:aws:kinesis:us-east-1:12345678901x:stream/s",
            ArnError::Account(Kind::Stream),
        ),
        (
            "arn:aws:kinesis:us-east-1:123456789012:s",
            ArnError::NotAStream,
        ),
        (
            "arn:aws:kinesis:us-east-1:123456789012:stream/",
            ArnError::StreamName,
        ),
        (
            "arn:aws:kinesis:us-east-1:123456789012:stream/sé",
            bad_character(48, 'é'),
        ),
        (
            "arn:aws:kinesis:us-east-1:123456789012:stream/s/consumer/c:1",
            ArnError::StreamSuffix,
        ),
        (
            "arn:aws:kinesis:us-east-1:123456789012:stream/s:x",
            ArnError::StreamSuffix,
        ),
    ] {
        assert_eq!(StreamArn::parse(text).unwrap_err(), error, "{text}");
    }
}

#[test]
fn other_texts_are_not_a_role() {
    for (text, error) in [
        ("", ArnError::Empty(Kind::Role)),
        (STREAM, ArnError::Swapped(Kind::Role)),
        (
            "arn:aws:sts::123456789012:assumed-role/siem/session",
            ArnError::Session,
        ),
        (
            "arn:aws:ec2:us-east-1:123456789012:vpc/v",
            ArnError::OtherService(Kind::Role),
        ),
        (
            "arn:aws:iam:us-east-1:123456789012:role/siem",
            ArnError::RoleRegion,
        ),
        ("arn:aws:iam:::role/siem", ArnError::Account(Kind::Role)),
        ("arn:aws:iam::123456789012:user/siem", ArnError::User),
        ("arn:aws:iam::123456789012:root", ArnError::Root),
        (
            "arn:aws:iam::123456789012:instance-profile/siem",
            ArnError::InstanceProfile,
        ),
        ("arn:aws:iam::123456789012:policy/siem", ArnError::Policy),
        ("arn:aws:iam::123456789012:group/siem", ArnError::NotARole),
        ("arn:aws:iam::123456789012:role", ArnError::NotARole),
        ("arn:aws:iam::123456789012:role/", ArnError::RoleName),
        ("arn:aws:iam::123456789012:role/path/", ArnError::RoleName),
        ("arn:aws:iam::123456789012:role//siem", ArnError::RolePath),
        (
            "arn:aws:iam::123456789012:role/pfad-ü/siem",
            bad_character(37, 'ü'),
        ),
        ("arn:aws:iam::123456789012:role/si:em", ArnError::RoleName),
        ("arn:aws:iam::123456789012:role/*", ArnError::Wildcard),
    ] {
        assert_eq!(RoleArn::parse(text).unwrap_err(), error, "{text}");
    }
}

#[test]
fn partitions_are_compared() {
    let stream = StreamArn::parse(STREAM).unwrap();
    assert!(stream.same_partition(&RoleArn::parse(ROLE).unwrap()));
    let other = ROLE.replace("arn:aws:", "arn:aws-us-gov:");
    assert!(!stream.same_partition(&RoleArn::parse(&other).unwrap()));
}

proptest! {
    #[test]
    fn an_error_never_contains_the_text(secret in "[a-z0-9:/ ]{12,80}") {
        for text in [secret.clone(), format!("{STREAM}/{secret}"), format!("{ROLE}:{secret}")] {
            let errors = [
                StreamArn::parse(&text).map(|_| ()),
                RoleArn::parse(&text).map(|_| ()),
            ];
            for error in errors.into_iter().filter_map(Result::err) {
                prop_assert!(!error.to_string().contains(&secret), "{}", error);
            }
        }
    }
}
