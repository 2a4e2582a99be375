//! Every row of the status table, through the built binary: from ACTIVE and from UNKNOWN, a trouble
//! begins, shows in the status, and is repaired.

mod case;
mod own_faults;
mod trouble;

use aws_stand_in::Operation::{AssumeRole, PutRecords};
use futures_util::future::join_all;
use siem_client::v1::StatusReason::{self, *};

use self::{
    case::{Case, Figures, From},
    trouble::Trouble::{self, *},
};
use crate::harness::{Customer, Process, ProcessEnv, audit_rows};

/// A row of the table: the trouble, and the reason and AWS error code that the status must have.
struct Row(Trouble, StatusReason, &'static str);

/// Troubles that last until they are repaired.
#[rustfmt::skip]
const LASTING: [Row; 32] = [
    // AssumeRole is denied.
    Row(Distrusted,                                                          AssumeRoleDenied,     "AccessDenied"),
    Row(NoRole,                                                              AssumeRoleDenied,     "AccessDenied"),
    // Writing or use of the KMS key is denied.
    Row(MayNotWrite,                                                         WriteDenied,          "AccessDeniedException"),
    Row(MayNotUseKey,                                                        KmsDenied,            "KMSAccessDeniedException"),
    // The stream is missing, or its key cannot be used.
    Row(NoStream,                                                            StreamNotFound,       "ResourceNotFoundException"),
    Row(Error(PutRecords, "KMSDisabledException", 400),                      KmsUnavailable,       "KMSDisabledException"),
    Row(Error(PutRecords, "KMSInvalidStateException", 400),                  KmsUnavailable,       "KMSInvalidStateException"),
    Row(Error(PutRecords, "KMSNotFoundException", 400),                      KmsUnavailable,       "KMSNotFoundException"),
    Row(Error(PutRecords, "KMSOptInRequired", 400),                          KmsUnavailable,       "KMSOptInRequired"),
    // AWS refuses every call.
    Row(Error(AssumeRole, "RegionDisabledException", 403),                   InvalidConfiguration, "RegionDisabledException"),
    Row(Error(AssumeRole, "ValidationError", 400),                           InvalidConfiguration, "ValidationError"),
    Row(Error(PutRecords, "InvalidArgumentException", 400),                  InvalidConfiguration, "InvalidArgumentException"),
    // Throttling for longer than failing-after-seconds.
    Row(Records("ProvisionedThroughputExceededException"),                   Throttled,            "ProvisionedThroughputExceededException"),
    Row(Error(PutRecords, "ProvisionedThroughputExceededException", 400),    Throttled,            "ProvisionedThroughputExceededException"),
    Row(Error(PutRecords, "KMSThrottlingException", 400),                    Throttled,            "KMSThrottlingException"),
    Row(Error(PutRecords, "ThrottlingException", 400),                       Throttled,            "ThrottlingException"),
    Row(Error(AssumeRole, "Throttling", 400),                                Throttled,            "Throttling"),
    // Failures of AWS or the network for longer than failing-after-seconds.
    Row(Error(PutRecords, "InternalFailure", 500),                           Unreachable,          "InternalFailure"),
    Row(Error(PutRecords, "ServiceUnavailable", 503),                        Unreachable,          "ServiceUnavailable"),
    Row(Error(AssumeRole, "InternalFailure", 500),                           Unreachable,          "InternalFailure"),
    Row(Records("InternalFailure"),                                          Unreachable,          "InternalFailure"),
    Row(Hang(PutRecords),                                                    Unreachable,          "RequestTimeout"),
    Row(Hang(AssumeRole),                                                    Unreachable,          "RequestTimeout"),
    Row(Reset(PutRecords),                                                   Unreachable,          "ConnectionFailed"),
    Row(Reset(AssumeRole),                                                   Unreachable,          "ConnectionFailed"),
    Row(Page(PutRecords, 502),                                               Unreachable,          "NotAnAwsAnswer"),
    Row(Page(PutRecords, 403),                                               Unreachable,          "NotAnAwsAnswer"),
    Row(Page(PutRecords, 200),                                               Unreachable,          "NotAnAwsAnswer"),
    Row(Page(AssumeRole, 200),                                               Unreachable,          "NotAnAwsAnswer"),
    // Error codes that AWS does not document.
    Row(Error(PutRecords, "SomethingNewException", 400),                     InvalidConfiguration, "SomethingNewException"),
    Row(Error(PutRecords, "SomethingNewException", 403),                     WriteDenied,          "SomethingNewException"),
    Row(Error(PutRecords, "SomethingNewException", 599),                     Unreachable,          "SomethingNewException"),
];

/// Troubles of one call, which no status reports.
#[rustfmt::skip]
const TRANSIENT: [Trouble; 12] = [
    Records("ProvisionedThroughputExceededException"),
    Error(PutRecords, "KMSThrottlingException", 400),
    Error(AssumeRole, "Throttling", 400),
    Error(PutRecords, "InternalFailure", 500),
    Error(AssumeRole, "ServiceUnavailable", 503),
    Records("InternalFailure"),
    Hang(PutRecords),
    Reset(PutRecords),
    Page(AssumeRole, 502),
    Error(PutRecords, "ExpiredTokenException", 400),
    Error(PutRecords, "UnrecognizedClientException", 400),
    Error(PutRecords, "InvalidSignatureException", 400),
];

/// Waits that do not keep a test waiting.
const SETTINGS: [&str; 6] = [
    "--failing-after-seconds",
    "1",
    "--retry-first-ms",
    "200",
    "--aws-attempt-timeout-ms",
    "2000",
];

async fn start(env: &ProcessEnv) -> Process {
    env.start_with(&SETTINGS).await
}

/// Delivers for other customers, whose roles work. With them as the latest evidence, roles that are
/// denied together do not count against this service.
async fn deliver_for_others(env: &ProcessEnv, process: &Process) {
    for number in 0..6 {
        let customer = Customer::new(&format!("bystander-{number}"));
        customer.make_role(&env.aws);
        customer.make_stream(&env.aws, 1);
        process.api.configure(&customer).await;
        let organization_id = &customer.organization_id;
        assert!(process.api.send_test(organization_id).await.delivered);
    }
}

/// Deletes the integrations, shuts down in order, and checks the audit.
async fn finish(env: ProcessEnv, process: Process, cases: &mut [Case]) {
    join_all(cases.iter_mut().map(Case::delete)).await;
    process.stop().await;
    let rows = audit_rows(env.dir.path()).await;
    for case in cases {
        case.check_audit(&rows);
    }
}

/// Each trouble twice, from either status.
fn cases(
    env: &ProcessEnv,
    process: &Process,
    troubles: impl Iterator<Item = Trouble>,
) -> Vec<Case> {
    let rows = troubles.enumerate();
    let both =
        rows.flat_map(|(at, trouble)| [(at, trouble, From::Active), (at, trouble, From::Unknown)]);
    both.map(|(at, trouble, from)| {
        let api = process.api.clone();
        Case::new(api, env.aws.clone(), at, trouble, from)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_status_table_shows_and_recovers() {
    let env = ProcessEnv::new().await;
    let process = start(&env).await;
    let mut cases = cases(&env, &process, LASTING.iter().map(|row| row.0));
    join_all(cases.iter_mut().map(Case::establish)).await;
    deliver_for_others(&env, &process).await;
    let expected = LASTING.iter().flat_map(|row| [row, row]);
    let runs = cases
        .iter_mut()
        .zip(expected)
        .map(|(case, row)| async { case.shows_and_recovers(row.1, row.2).await });
    let figures = join_all(runs).await;
    Figures::write(&figures);
    finish(env, process, &mut cases).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_of_one_call_changes_no_status() {
    let env = ProcessEnv::new().await;
    let process = start(&env).await;
    let mut cases = cases(&env, &process, TRANSIENT.into_iter());
    join_all(cases.iter_mut().map(Case::establish)).await;
    join_all(cases.iter_mut().map(Case::passes_unnoticed)).await;
    finish(env, process, &mut cases).await;
}
