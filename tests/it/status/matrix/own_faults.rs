//! The rows that are nobody's fault but ours, and those that close the way to AWS.

use aws_stand_in::{Control, Operation, vendor_credentials};
use futures_util::future::join_all;
use siem_client::v1::StatusReason;
use tempfile::TempDir;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    Ground, SETTINGS,
    case::{Case, From},
    trouble::Trouble,
};
use crate::harness::{Gateway, Process, refusal, stand_in};

/// What is wrong with the service's own credentials.
#[derive(Clone, Copy, Debug)]
enum Own {
    /// The secret is another one.
    Secret,
    /// STS refuses whatever is signed with them.
    Refused(&'static str),
    /// They may not assume roles: AWS says of each role that it is denied.
    MayNotAssume,
    /// Kinesis takes no signature, also not of sessions that were just assumed.
    Signature(&'static str),
}

/// What is wrong, and the code that each integration tells.
#[rustfmt::skip]
const OWN: [(Own, &str); 8] = [
    (Own::Secret,                          "SignatureDoesNotMatch"),
    (Own::Refused("InvalidClientTokenId"), "InvalidClientTokenId"),
    (Own::Refused("ExpiredToken"),         "ExpiredToken"),
    (Own::Refused("OptInRequired"),        "OptInRequired"),
    (Own::MayNotAssume,                    "AccessDenied"),
    (Own::Signature("ExpiredTokenException"),       "ExpiredTokenException"),
    (Own::Signature("UnrecognizedClientException"), "UnrecognizedClientException"),
    (Own::Signature("InvalidSignatureException"),   "InvalidSignatureException"),
];

impl Own {
    fn begin(self, aws: &Control) {
        let mut own = vendor_credentials();
        match self {
            Self::Secret => own.secret_access_key = "another-secret".to_owned(),
            Self::MayNotAssume => {
                let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"sts:AssumeRole","Resource":"*"}]}"#;
                own.policy = Some(policy.to_owned());
            }
            Self::Refused(code) => {
                refuse(aws, Operation::AssumeRole, code, 403);
                refuse(aws, Operation::GetCallerIdentity, code, 403);
            }
            Self::Signature(code) => refuse(aws, Operation::PutRecords, code, 400),
        }
        aws.put_credentials(own).unwrap();
        aws.expire_sessions();
    }

    fn mend(aws: &Control) {
        aws.clear_faults();
        aws.put_credentials(vendor_credentials()).unwrap();
    }
}

fn refuse(aws: &Control, operation: Operation, code: &str, status: u16) {
    aws.add_fault(refusal(operation, None, code, status))
        .unwrap();
}

/// Whatever is wrong with our own credentials, no status blames the customer or stays green:
/// each says that the service cannot deliver, as health does, and events wait. All heal by
/// themselves.
#[tokio::test(flavor = "multi_thread")]
async fn our_own_credentials_are_nobody_elses_fault() {
    let ground = Ground::start().await;
    let aws = ground.stand_in.control();
    let case = |number: usize, from| {
        let api = ground.process.api.clone();
        let case = Case::new(api, aws.clone(), number, Trouble::Elsewhere, from);
        case.in_account(300_000_000_000 + 10 * number as u64 + u64::from(from == From::Active))
    };
    let mut active: Vec<Case> = (0..4).map(|number| case(number, From::Active)).collect();
    join_all(active.iter_mut().map(Case::establish)).await;
    let mut health = ground.process.api.health("delivery").await;
    health.until(ServingStatus::Serving).await;
    let mut all = Vec::new();
    for (number, (own, code)) in OWN.into_iter().enumerate() {
        own.begin(&aws);
        join_all(active.iter_mut().map(|one| one.is_unavailable(code))).await;
        health.until(ServingStatus::NotServing).await;
        // Meanwhile another one comes that nothing is known of.
        let mut unknown = case(number, From::Unknown);
        unknown.establish().await;
        unknown.is_unavailable(code).await;
        Own::mend(&aws);
        health.until(ServingStatus::Serving).await;
        unknown.turns_active().await;
        join_all(active.iter_mut().map(Case::turns_active)).await;
        join_all(active.iter_mut().map(Case::is_delivered)).await;
        all.push(unknown);
    }
    all.append(&mut active);
    join_all(all.iter_mut().map(Case::end)).await;
    let audited = ground.end().await;
    for case in &all {
        case.check_audit(&audited);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_show_and_heal() {
    let stand_in = stand_in().await;
    let aws = stand_in.control();
    let mut gateway = Gateway::to(stand_in.address()).await;
    let dir = TempDir::new().unwrap();
    let process = Process::start(dir.path(), &gateway.url(), &SETTINGS).await;
    let mut cases = [From::Active, From::Unknown].map(|from| {
        let api = process.api.clone();
        Case::new(api, aws.clone(), 0, Trouble::Elsewhere, from)
    });
    join_all(cases.iter_mut().map(Case::establish)).await;
    gateway.close().await;
    let reason = StatusReason::Unreachable;
    let shows = cases.iter_mut();
    join_all(shows.map(|case| case.shows(reason, "ConnectionFailed"))).await;
    gateway.open();
    join_all(cases.iter_mut().map(Case::heals)).await;
    join_all(cases.iter_mut().map(Case::end)).await;
    let ground = Ground {
        stand_in,
        dir,
        process,
    };
    let audited = ground.end().await;
    for case in &cases {
        case.check_audit(&audited);
    }
}
