//! Defects of the worker's own code.

use tokio::{sync::watch, time::timeout};

use super::*;
use crate::{
    domain::{arn::Partition, status::Fault},
    sink::{Record, RecordOutcome, TestReport, ValidationReport},
};

/// Sink that panics.
struct Broken {
    identity: watch::Sender<IdentityState>,
}

impl Sink for Broken {
    async fn put_records(
        &self,
        _: &Arc<Integration>,
        _: Vec<Record>,
        _: &[crate::domain::trace::TraceContext],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        panic!("a defect");
    }

    async fn test(&self, _: &Arc<Integration>, _: Record) -> TestReport {
        panic!("a defect");
    }

    async fn validate_only(&self, _: &Arc<Integration>, _: Record) -> ValidationReport {
        panic!("a defect");
    }

    fn identity_state(&self) -> watch::Receiver<IdentityState> {
        self.identity.subscribe()
    }

    fn partition(&self) -> Option<Partition> {
        None
    }

    fn account(&self) -> Option<Arc<str>> {
        None
    }

    async fn watch_identity(&self) {
        std::future::pending().await
    }

    fn forget(&self, _: IntegrationId) {}
}

/// Otherwise its integration would no longer be delivered, and nothing would show it.
#[tokio::test]
async fn an_attempt_that_panics_ends_the_worker() {
    let dir = TempDir::new().unwrap();
    let key = Keyring::of(&[7; 32]);
    let options = options_of_store(dir.path(), Duration::from_millis(1));
    let gate = Gate::default();
    let store = Store::open(options, &key, gate.clone()).await.unwrap();
    configure(&store, 0, 0).await;
    let broken = Broken {
        identity: watch::Sender::new(IdentityState::Good),
    };
    let worker = Worker::new(store.clone(), broken, gate, options_of_worker());
    let mut run = pin!(worker.run(CancellationToken::new(), CancellationToken::new()));
    let mut segments = Segments::default();
    push(&mut segments, store.id_of(&organization(0)).unwrap(), 1);
    let appended = async {
        let durable = store.append(segments, None).await.unwrap();
        durable.await.unwrap()
    };
    tokio::select! {
        biased;
        () = &mut run => panic!("the worker ended before there was work"),
        () = appended => {}
    }
    let ended = timeout(3 * MINUTE, run).await;
    ended.expect("the worker ends");
    assert_eq!(store.find(&organization(0)).unwrap().progress.pending(), 1);
    store.close().await;
}
