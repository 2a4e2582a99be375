//! Every row of the status table, through the built binary and the real AWS SDK: from
//! ACTIVE and from UNKNOWN, AWS starts to answer so, and is mended.

mod case;
mod own_faults;
mod trouble;

use aws_stand_in::{
    Operation::{AssumeRole, PutRecords},
    StandIn,
};
use futures_util::future::join_all;
use siem_client::v1::StatusReason::{self, *};
use tempfile::TempDir;

use self::{
    case::{Case, Figures, From},
    trouble::Trouble::{self, *},
};
use crate::harness::{Audited, Customer, Process, audit, stand_in};

/// One row: what goes wrong, the reason that must be told, and the code beside it.
struct Row(Trouble, StatusReason, &'static str);

/// What stays until someone mends it.
#[rustfmt::skip]
const STAYING: [Row; 32] = [
    // AssumeRole is denied.
    Row(Distrusted,                                                          AssumeRoleDenied,     "AccessDenied"),
    Row(NoRole,                                                              AssumeRoleDenied,     "AccessDenied"),
    // Writing is denied, and the key.
    Row(MayNotWrite,                                                         WriteDenied,          "AccessDeniedException"),
    Row(MayNotUseKey,                                                        KmsDenied,            "KMSAccessDeniedException"),
    // What is missing or cannot be used.
    Row(NoStream,                                                            StreamNotFound,       "ResourceNotFoundException"),
    Row(Error(PutRecords, "KMSDisabledException", 400),                      KmsUnavailable,       "KMSDisabledException"),
    Row(Error(PutRecords, "KMSInvalidStateException", 400),                  KmsUnavailable,       "KMSInvalidStateException"),
    Row(Error(PutRecords, "KMSNotFoundException", 400),                      KmsUnavailable,       "KMSNotFoundException"),
    Row(Error(PutRecords, "KMSOptInRequired", 400),                          KmsUnavailable,       "KMSOptInRequired"),
    // What AWS refuses, whatever the batch.
    Row(Error(AssumeRole, "RegionDisabledException", 403),                   InvalidConfiguration, "RegionDisabledException"),
    Row(Error(AssumeRole, "ValidationError", 400),                           InvalidConfiguration, "ValidationError"),
    Row(Error(PutRecords, "InvalidArgumentException", 400),                  InvalidConfiguration, "InvalidArgumentException"),
    // Too much for too long.
    Row(Records("ProvisionedThroughputExceededException"),                   Throttled,            "ProvisionedThroughputExceededException"),
    Row(Error(PutRecords, "ProvisionedThroughputExceededException", 400),    Throttled,            "ProvisionedThroughputExceededException"),
    Row(Error(PutRecords, "KMSThrottlingException", 400),                    Throttled,            "KMSThrottlingException"),
    Row(Error(PutRecords, "ThrottlingException", 400),                       Throttled,            "ThrottlingException"),
    Row(Error(AssumeRole, "Throttling", 400),                                Throttled,            "Throttling"),
    // AWS or the network fails for too long.
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
    // Codes that no document tells of.
    Row(Error(PutRecords, "SomethingNewException", 400),                     InvalidConfiguration, "SomethingNewException"),
    Row(Error(PutRecords, "SomethingNewException", 403),                     WriteDenied,          "SomethingNewException"),
    Row(Error(PutRecords, "SomethingNewException", 599),                     Unreachable,          "SomethingNewException"),
];

/// What is over with one call: no status tells of it.
#[rustfmt::skip]
const PASSING: [Trouble; 12] = [
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

/// The built binary, with waits that do not keep a test waiting.
struct Ground {
    stand_in: StandIn,
    dir: TempDir,
    process: Process,
}

const SETTINGS: [&str; 6] = [
    "--failing-after-seconds",
    "1",
    "--retry-first-ms",
    "200",
    "--aws-attempt-timeout-ms",
    "2000",
];

impl Ground {
    async fn start() -> Self {
        let stand_in = stand_in().await;
        let dir = TempDir::new().unwrap();
        let process = Process::start(dir.path(), &stand_in.url(), &SETTINGS).await;
        Self {
            stand_in,
            dir,
            process,
        }
    }

    /// Others whose roles work, and were assumed last: that some are denied together says
    /// nothing of this service then.
    async fn bystanders(&self) {
        for number in 0..6 {
            let customer = Customer::new(&format!("bystander-{number}"));
            customer.make_role(&self.stand_in.control());
            customer.make_stream(&self.stand_in.control(), 1);
            self.process.api.configure(&customer).await;
            let organization_id = &customer.organization_id;
            assert!(self.process.api.send_test(organization_id).await.delivered);
        }
    }

    /// Stops it in order, and reads its audit.
    async fn end(self) -> Vec<Audited> {
        self.process.terminate().await;
        let (status, log) = self.process.ended().await;
        assert!(status.success(), "{log}");
        audit(self.dir.path()).await
    }
}

fn cases(ground: &Ground, troubles: impl Iterator<Item = Trouble>) -> Vec<Case> {
    let rows = troubles.enumerate();
    let both =
        rows.flat_map(|(at, trouble)| [(at, trouble, From::Active), (at, trouble, From::Unknown)]);
    both.map(|(at, trouble, from)| {
        let api = ground.process.api.clone();
        Case::new(api, ground.stand_in.control(), at, trouble, from)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table_shows_and_heals() {
    let ground = Ground::start().await;
    let mut cases = cases(&ground, STAYING.iter().map(|row| row.0));
    join_all(cases.iter_mut().map(Case::establish)).await;
    ground.bystanders().await;
    let expected = STAYING.iter().flat_map(|row| [row, row]);
    let proofs = cases
        .iter_mut()
        .zip(expected)
        .map(|(case, row)| async { case.shows_and_heals(row.1, row.2).await });
    let figures = join_all(proofs).await;
    Figures::write(&figures);
    join_all(cases.iter_mut().map(Case::end)).await;
    let audited = ground.end().await;
    for case in &cases {
        case.check_audit(&audited);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_is_no_status() {
    let ground = Ground::start().await;
    let mut cases = cases(&ground, PASSING.into_iter());
    join_all(cases.iter_mut().map(Case::establish)).await;
    join_all(cases.iter_mut().map(Case::passes)).await;
    join_all(cases.iter_mut().map(Case::end)).await;
    let audited = ground.end().await;
    for case in &cases {
        case.check_audit(&audited);
    }
}
