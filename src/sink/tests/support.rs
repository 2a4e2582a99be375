//! Helpers of the tests: both clients, external IDs, captured logs.

use std::io;

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

use super::*;

tokio::task_local! {
    /// Client for PutRecords requests in the current test.
    pub(super) static CLIENT: PutRecordsClient;
}

pub(super) fn client() -> PutRecordsClient {
    CLIENT
        .try_with(|client| *client)
        .unwrap_or(PutRecordsClient::Direct)
}

/// Runs each test with both clients.
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

/// Opens every external ID as [`EXTERNAL_ID`].
pub(super) struct OneExternalId;

impl ExternalIds for OneExternalId {
    fn open(&self, _: &Integration) -> Result<ExternalId, Unreadable> {
        Ok(ExternalId::parse(EXTERNAL_ID.to_owned()).unwrap())
    }

    fn open_previous(&self, _: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        None
    }

    fn current_accepted(&self, _: &Integration) {}

    fn is_current(&self, _: &Integration) -> bool {
        true
    }
}

/// Opens every external ID, and records deleted integrations.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) deleted: Mutex<HashSet<IntegrationId>>,
    /// Whether the lease of this instance has ended.
    pub(super) lapsed: AtomicBool,
    pub(super) gate: Gate,
    pub(super) accepted: AtomicUsize,
}

impl ExternalIds for Registry {
    fn open(&self, _: &Integration) -> Result<ExternalId, Unreadable> {
        Ok(ExternalId::parse(EXTERNAL_ID.to_owned()).unwrap())
    }

    fn open_previous(&self, integration: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        integration.previous.as_ref()?;
        Some(Ok(ExternalId::parse(PREVIOUS_ID.to_owned()).unwrap()))
    }

    fn current_accepted(&self, _: &Integration) {
        self.accepted.fetch_add(1, Ordering::SeqCst);
    }

    fn is_current(&self, integration: &Integration) -> bool {
        !self
            .deleted
            .lock()
            .unwrap()
            .contains(&integration.integration_id)
    }

    fn may_call(&self, integration: &Integration) -> bool {
        self.is_current(integration) && !self.lapsed.load(Ordering::SeqCst)
    }
}

/// A captured log.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Captures the log of this thread, at any level, until the guard is dropped.
    pub fn capture() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::CLOSE)
            .with_writer(log.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().unwrap();
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
