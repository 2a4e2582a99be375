//! A customer's auditor, who reads the stream.

use aws_stand_in::{Control, LongTermCredentials};
use serde_json::Value;

use super::{run, tool, with_aws};

/// A user of the customer's account who may read.
pub fn auditor(aws: &Control) -> LongTermCredentials {
    let auditor = LongTermCredentials {
        access_key_id: "AKIAAUDITOR".to_owned(),
        secret_access_key: "auditor-secret".to_owned(),
        principal_arn: "arn:aws:iam::222222222222:user/auditor".to_owned(),
        policy: None,
    };
    aws.put_credentials(auditor.clone()).unwrap();
    auditor
}

/// `verify` finds every sequence up to the last in the stream, or told of by gaps. Returns
/// what it says of the one integration.
pub async fn verified(aws: &Control, url: &str, stream_arn: &str, last: u64) -> Value {
    let arguments = [
        "verify",
        "--output",
        "json",
        "--stream",
        stream_arn,
        "--last-sequence",
        &last.to_string(),
    ];
    let ended = run(with_aws(tool(&arguments), url, &auditor(aws))).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report = ended.json()["integrations"][0].take();
    assert_eq!(report["last_sequence"], last);
    report
}
