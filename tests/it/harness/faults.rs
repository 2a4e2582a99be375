//! The stand-in for AWS, its faults, and the service's own credentials there.

use aws_stand_in::{
    Effect, Fault, LongTermCredentials, Operation, Options, StandIn, When, vendor_credentials,
};

/// A stand-in whose shards have no limits until a test sets them.
pub async fn stand_in() -> StandIn {
    let options = Options {
        enforce_shard_limits: false,
        ..Options::default()
    };
    StandIn::start(options).await.unwrap()
}

/// A fault of each call of an operation, on one stream or role, or on all of them.
pub fn fault(operation: Operation, target: Option<&str>, effect: Effect) -> Fault {
    Fault {
        operation: Some(operation),
        target: target.map(str::to_owned),
        calls: None,
        when: When::Before,
        effect,
    }
}

/// An error answer of AWS without a message.
pub fn error(code: &str, status: u16) -> Effect {
    Effect::Error {
        code: code.to_owned(),
        status,
        message: String::new(),
    }
}

/// Internal failures of single records at random, unrelated to the rate of writing.
pub fn failing_records(probability: f64, seed: u64) -> Effect {
    Effect::FailRecords {
        probability,
        seed,
        code: "InternalFailure".to_owned(),
    }
}

/// Throttling of every record.
pub fn throttled_records() -> Effect {
    Effect::FailRecords {
        probability: 1.0,
        seed: 0,
        code: "ProvisionedThroughputExceededException".to_owned(),
    }
}

/// The service's own credentials with a policy that denies sts:AssumeRole.
pub fn own_credentials_without_assume_role() -> LongTermCredentials {
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"sts:AssumeRole","Resource":"*"}]}"#;
    LongTermCredentials {
        policy: Some(policy.to_owned()),
        ..vendor_credentials()
    }
}
