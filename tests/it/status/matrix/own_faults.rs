//! Rows of the status table that are our own fault, and refused connections to AWS.

use aws_stand_in::{Control, Operation, vendor_credentials};
use futures_util::future::join_all;
use siem_client::v1::StatusReason;
use tonic_health::pb::health_check_response::ServingStatus;

use super::{
    SETTINGS,
    case::{Case, From},
    finish, start,
    trouble::Trouble,
};
use crate::harness::{
    Gateway, Process, ProcessEnv, error, fault, own_credentials_without_assume_role,
};

/// A fault of the service's own credentials.
#[derive(Clone, Copy, Debug)]
enum OwnFault {
    /// The secret key is wrong.
    Secret,
    /// STS refuses every call that is signed with them.
    Refused(&'static str),
    /// Their policy does not allow sts:AssumeRole, so that AWS denies every role.
    MayNotAssume,
    /// Kinesis refuses every signature, also of new sessions.
    Signature(&'static str),
}

/// Each fault, with the error code in every integration's status.
#[rustfmt::skip]
const OWN: [(OwnFault, &str); 8] = [
    (OwnFault::Secret,                          "SignatureDoesNotMatch"),
    (OwnFault::Refused("InvalidClientTokenId"), "InvalidClientTokenId"),
    (OwnFault::Refused("ExpiredToken"),         "ExpiredToken"),
    (OwnFault::Refused("OptInRequired"),        "OptInRequired"),
    (OwnFault::MayNotAssume,                    "AccessDenied"),
    (OwnFault::Signature("ExpiredTokenException"),       "ExpiredTokenException"),
    (OwnFault::Signature("UnrecognizedClientException"), "UnrecognizedClientException"),
    (OwnFault::Signature("InvalidSignatureException"),   "InvalidSignatureException"),
];

impl OwnFault {
    fn begin(self, aws: &Control) {
        let mut own = vendor_credentials();
        match self {
            Self::Secret => own.secret_access_key = "another-secret".to_owned(),
            Self::MayNotAssume => own = own_credentials_without_assume_role(),
            Self::Refused(code) => {
                refuse(aws, Operation::AssumeRole, code, 403);
                refuse(aws, Operation::GetCallerIdentity, code, 403);
            }
            Self::Signature(code) => refuse(aws, Operation::PutRecords, code, 400),
        }
        aws.put_credentials(own).unwrap();
        aws.expire_sessions();
    }

    fn repair(aws: &Control) {
        aws.clear_faults();
        aws.put_credentials(vendor_credentials()).unwrap();
    }
}

fn refuse(aws: &Control, operation: Operation, code: &str, status: u16) {
    let refusal = fault(operation, None, error(code, status));
    aws.add_fault(refusal).unwrap();
}

/// With any fault of our own credentials, no status blames the customer or stays ACTIVE: each says,
/// as health does, that the service cannot deliver. Events wait, and everything recovers by itself.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_our_own_credentials_blame_no_customer() {
    let env = ProcessEnv::new().await;
    let process = start(&env).await;
    let aws = env.aws.clone();
    let case = |number: usize, from| {
        let api = process.api.clone();
        let case = Case::new(api, aws.clone(), number, Trouble::External, from);
        case.in_account(300_000_000_000 + 10 * number as u64 + u64::from(from == From::Active))
    };
    let mut active: Vec<Case> = (0..4).map(|number| case(number, From::Active)).collect();
    join_all(active.iter_mut().map(Case::establish)).await;
    let mut health = process.api.health("delivery").await;
    health.until(ServingStatus::Serving).await;
    let mut all = Vec::new();
    for (number, (own, code)) in OWN.into_iter().enumerate() {
        own.begin(&aws);
        let unavailable = active.iter_mut();
        join_all(unavailable.map(|case| case.becomes_unavailable(code))).await;
        health.until(ServingStatus::NotServing).await;
        // An integration that was never delivered to is configured meanwhile.
        let mut unknown = case(number, From::Unknown);
        unknown.establish().await;
        unknown.becomes_unavailable(code).await;
        OwnFault::repair(&aws);
        health.until(ServingStatus::Serving).await;
        unknown.becomes_active().await;
        join_all(active.iter_mut().map(Case::becomes_active)).await;
        join_all(active.iter_mut().map(Case::check_delivered)).await;
        all.push(unknown);
    }
    all.append(&mut active);
    finish(env, process, &mut all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_show_and_recover() {
    let env = ProcessEnv::new().await;
    let mut gateway = Gateway::to(env.stand_in.address()).await;
    let process = Process::start(env.dir.path(), &gateway.url(), &SETTINGS).await;
    let mut cases = [From::Active, From::Unknown].map(|from| {
        let api = process.api.clone();
        Case::new(api, env.aws.clone(), 0, Trouble::External, from)
    });
    join_all(cases.iter_mut().map(Case::establish)).await;
    gateway.close().await;
    let reason = StatusReason::Unreachable;
    let shows = cases.iter_mut();
    join_all(shows.map(|case| case.shows(reason, "ConnectionFailed"))).await;
    gateway.open();
    join_all(cases.iter_mut().map(Case::recovers)).await;
    finish(env, process, &mut cases).await;
}
