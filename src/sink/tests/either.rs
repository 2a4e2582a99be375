//! Tests that run with each of the two who make PutRecords requests.

use super::PutRecordsClient;

tokio::task_local! {
    /// Who makes PutRecords requests in the present test.
    pub(super) static CLIENT: PutRecordsClient;
}

pub(super) fn client() -> PutRecordsClient {
    CLIENT
        .try_with(|client| *client)
        .unwrap_or(PutRecordsClient::Direct)
}

/// Both clients do what these tests ask.
macro_rules! with_either_client {
    ($($test:ident),* $(,)?) => {
        mod sdk {
            $(#[tokio::test]
            async fn $test() {
                super::CLIENT.scope(super::PutRecordsClient::Sdk, super::$test()).await;
            })*
        }
        mod direct {
            $(#[tokio::test]
            async fn $test() {
                super::CLIENT.scope(super::PutRecordsClient::Direct, super::$test()).await;
            })*
        }
    };
}
