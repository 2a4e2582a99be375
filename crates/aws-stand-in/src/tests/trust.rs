//! Authentication and authorization of callers.

use super::*;

#[tokio::test]
async fn the_external_id_decides() {
    let world = World::start().await;
    let assume = || {
        let sts = world.sts();
        sts.assume_role()
            .role_arn(ROLE)
            .role_session_name("siem-relay")
    };
    let denied = code("AccessDenied", 403);
    assert_eq!(refused!(assume().send()), denied);
    assert_eq!(refused!(assume().external_id("wrong").send()), denied);

    let error = assume().external_id("wrong").send().await.unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains("User: arn:aws:iam::111111111111:user/relay is not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::222222222222:role/siem/relay"), "{text}");

    let answer = assume().external_id(EXTERNAL_ID).send().await.unwrap();
    assert_eq!(
        answer.assumed_role_user().unwrap().arn(),
        "arn:aws:sts::222222222222:assumed-role/relay/siem-relay"
    );
    let credentials = answer.credentials().unwrap();
    assert!(credentials.access_key_id().starts_with("ASIA"));
    let lifetime = credentials.expiration().secs() - state::now_ms() / 1000;
    assert!((3590..=3600).contains(&lifetime), "{lifetime}");
    assert_eq!(
        world
            .control
            .call_count(Operation::AssumeRole, Some("AccessDenied")),
        3
    );
    assert_eq!(
        world.control.call_count(Operation::AssumeRole, Some("OK")),
        1
    );
}

#[tokio::test]
async fn a_missing_role_is_denied_like_a_distrusting_one() {
    let world = World::start().await;
    let call = world
        .sts()
        .assume_role()
        .role_arn("arn:aws:iam::222222222222:role/nobody")
        .role_session_name("siem-relay")
        .external_id(EXTERNAL_ID)
        .send();
    assert_eq!(refused!(call), code("AccessDenied", 403));
}

#[tokio::test]
async fn parameters_are_validated() {
    let world = World::start().await;
    let assume = || {
        let sts = world.sts();
        let call = sts
            .assume_role()
            .role_arn(ROLE)
            .role_session_name("siem-relay");
        call.external_id(EXTERNAL_ID)
    };
    let invalid = code("ValidationError", 400);
    assert_eq!(refused!(assume().external_id("x").send()), invalid);
    assert_eq!(refused!(assume().external_id("with space").send()), invalid);
    assert_eq!(
        refused!(assume().external_id("x".repeat(1225)).send()),
        invalid
    );
    assert_eq!(refused!(assume().role_session_name("x").send()), invalid);
    assert_eq!(refused!(assume().role_session_name("a/b").send()), invalid);
    assert_eq!(
        refused!(assume().role_arn("arn:aws:s3:::bucket-of-mine").send()),
        invalid
    );
    assert_eq!(refused!(assume().duration_seconds(899).send()), invalid);
    assert_eq!(refused!(assume().duration_seconds(43201).send()), invalid);
    assert_eq!(refused!(assume().duration_seconds(3601).send()), invalid);
    assert_eq!(refused!(assume().policy(" ".repeat(2049)).send()), invalid);
    assert_eq!(
        refused!(assume().policy("{}").send()),
        code("MalformedPolicyDocument", 400)
    );
    assume().duration_seconds(900).send().await.unwrap();
}

#[tokio::test]
async fn chained_sessions_last_an_hour_at_most() {
    let world = World::start().await;
    let trust = json!({ "Statement": {
        "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "sts:AssumeRole",
    }});
    let chained = "arn:aws:iam::222222222222:role/chained";
    let mut role = RoleSpec::new(chained, trust.to_string(), permissions("*"));
    role.max_session_seconds = 43_200;
    world.control.put_role(role).unwrap();
    let sts = world.sts_as(world.assume(None).await);
    let assume = || {
        sts.assume_role()
            .role_arn(chained)
            .role_session_name("chained")
    };
    assert_eq!(
        refused!(assume().duration_seconds(3601).send()),
        code("ValidationError", 400)
    );
    let answer = assume().send().await.unwrap();
    let id = answer.assumed_role_user().unwrap().assumed_role_id();
    assert!(id.starts_with("AROA") && id.ends_with(":chained"), "{id}");
}

#[tokio::test]
async fn the_policy_of_the_caller_must_allow_assume_role() {
    let nothing = json!({ "Statement": [] }).to_string();
    let mut options = Options::default();
    options.credentials[0].policy = Some(nothing);
    let world = World::start_with(options).await;
    let call = world
        .sts()
        .assume_role()
        .role_arn(ROLE)
        .role_session_name("siem-relay")
        .external_id(EXTERNAL_ID)
        .send();
    assert_eq!(refused!(call), code("AccessDenied", 403));
}

#[tokio::test]
async fn a_session_policy_restricts_the_role() {
    let world = World::start().await;
    let kinesis = world.kinesis_as(world.assume(Some(permissions(STREAM))).await);
    let put = |stream: &str| {
        let call = kinesis
            .put_records()
            .stream_arn(stream)
            .records(entry("k", "d"));
        call.send()
    };
    put(STREAM).await.unwrap();
    assert_eq!(
        refused!(put(OTHER_STREAM)),
        code("AccessDeniedException", 400)
    );
    let error = put(OTHER_STREAM).await.unwrap_err().into_service_error();
    assert!(error.is_access_denied_exception());
    let text = error.to_string() + &format!("{error:?}");
    assert!(
        text.contains("because no session policy allows the kinesis:PutRecords action"),
        "{text}"
    );
}

#[tokio::test]
async fn a_changed_permission_policy_applies_to_existing_sessions() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let put = || {
        kinesis
            .put_records()
            .stream_arn(STREAM)
            .records(entry("k", "d"))
            .send()
    };
    put().await.unwrap();
    let elsewhere = RoleSpec::new(ROLE, trust_policy(EXTERNAL_ID), permissions(OTHER_STREAM));
    world.control.put_role(elsewhere).unwrap();
    assert_eq!(refused!(put()), code("AccessDeniedException", 400));
    assert!(world.control.delete_role(ROLE));
    assert_eq!(refused!(put()), code("UnrecognizedClientException", 400));
}

#[tokio::test]
async fn a_stream_of_another_account_is_denied() {
    let world = World::start().await;
    let foreign = "arn:aws:kinesis:eu-west-1:333333333333:stream/detections";
    world
        .control
        .create_stream(StreamSpec::new(foreign, 1))
        .unwrap();
    let kinesis = world.kinesis().await;
    let put = kinesis
        .put_records()
        .stream_arn(foreign)
        .records(entry("k", "d"))
        .send();
    assert_eq!(refused!(put), code("AccessDeniedException", 400));
}

#[tokio::test]
async fn a_customer_managed_key_requires_permission_on_the_key() {
    let world = World::start().await;
    let encrypted = "arn:aws:kinesis:eu-west-1:222222222222:stream/encrypted";
    let key = "arn:aws:kms:eu-west-1:222222222222:key/1234";
    let mut spec = StreamSpec::new(encrypted, 1);
    spec.kms_key_arn = Some(key.to_owned());
    world.control.create_stream(spec).unwrap();
    let policy = |context: &str| {
        json!({ "Statement": [
            { "Effect": "Allow", "Action": "kinesis:PutRecords", "Resource": encrypted },
            { "Effect": "Allow", "Action": "kms:GenerateDataKey", "Resource": "*", "Condition":
              { "StringEquals": { "kms:EncryptionContext:aws:kinesis:arn": context } } },
        ]})
        .to_string()
    };
    let all = json!({ "Statement": { "Effect": "Allow", "Action": "*", "Resource": "*" } });
    let role = RoleSpec::new(ROLE, trust_policy(EXTERNAL_ID), all.to_string());
    world.control.put_role(role).unwrap();
    for (context, allowed) in [(encrypted, true), (STREAM, false)] {
        let kinesis = world.kinesis_as(world.assume(Some(policy(context))).await);
        let put = kinesis
            .put_records()
            .stream_arn(encrypted)
            .records(entry("k", "d"))
            .send();
        if allowed {
            assert_eq!(
                put.await.unwrap().encryption_type().unwrap().as_str(),
                "KMS"
            );
        } else {
            assert_eq!(refused!(put), code("KMSAccessDeniedException", 400));
        }
    }
}

#[tokio::test]
async fn keys_tokens_and_signatures_are_checked() {
    let world = World::start().await;
    let good = world.assume(None).await;
    let with = |key: &str, secret: &str, token: Option<&str>| {
        let credentials = Credentials::new(key, secret, token.map(str::to_owned), None, "test");
        let kinesis = world.kinesis_as(credentials);
        kinesis
            .put_records()
            .stream_arn(STREAM)
            .records(entry("k", "d"))
            .send()
    };
    let (key, secret) = (good.access_key_id(), good.secret_access_key());
    let token = good.session_token();
    with(key, secret, token).await.unwrap();
    let unknown = code("UnrecognizedClientException", 400);
    assert_eq!(refused!(with("AKIANOBODY", secret, None)), unknown);
    assert_eq!(refused!(with(key, secret, None)), unknown);
    assert_eq!(refused!(with(key, secret, Some("another"))), unknown);
    let bad = code("InvalidSignatureException", 400);
    assert_eq!(refused!(with(key, "another", token)), bad);

    let sts = world.sts_as(Credentials::new("AKIANOBODY", "x", None, None, "test"));
    let identity = sts.get_caller_identity().send();
    assert_eq!(refused!(identity), code("InvalidClientTokenId", 403));
    let vendor = vendor_credentials().access_key_id;
    let sts = world.sts_as(Credentials::new(vendor, "x", None, None, "test"));
    let identity = sts.get_caller_identity().send();
    assert_eq!(refused!(identity), code("SignatureDoesNotMatch", 403));
    let identity = world.sts().get_caller_identity().send().await.unwrap();
    assert_eq!(identity.arn(), Some("arn:aws:iam::111111111111:user/relay"));
}

#[tokio::test]
async fn sessions_expire() {
    let world = World::start().await;
    let early = SessionLifetime {
        seconds: 0,
        announced: false,
    };
    world.control.set_session_lifetime(Some(early));
    let kinesis = world.kinesis().await;
    let put = kinesis
        .put_records()
        .stream_arn(STREAM)
        .records(entry("k", "d"))
        .send();
    assert_eq!(refused!(put), code("ExpiredTokenException", 400));

    world.control.set_session_lifetime(None);
    let credentials = world.assume(None).await;
    let kinesis = world.kinesis_as(credentials.clone());
    let put = || {
        kinesis
            .put_records()
            .stream_arn(STREAM)
            .records(entry("k", "d"))
            .send()
    };
    put().await.unwrap();
    assert_eq!(world.control.expire_sessions(), 2);
    assert_eq!(refused!(put()), code("ExpiredTokenException", 400));
    let identity = world.sts_as(credentials).get_caller_identity().send();
    assert_eq!(refused!(identity), code("ExpiredToken", 403));
    let kinesis = world.kinesis().await;
    kinesis
        .put_records()
        .stream_arn(STREAM)
        .records(entry("k", "d"))
        .send()
        .await
        .unwrap();
}
