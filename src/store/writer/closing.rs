//! The end of the writer.

use tokio::{sync::oneshot, time::timeout};

use super::{Failure, RETRY, Unsettled, Writer, slow::Slow};

impl Writer {
    /// What could not be written is tried again for as long as somebody waits: without it,
    /// what was delivered would be sent again.
    pub(super) async fn settle_at_last(
        &mut self,
        unsettled: &mut Unsettled,
        close: &mut oneshot::Sender<()>,
        slow: &mut Slow,
    ) -> Option<Failure> {
        while !unsettled.is_empty() {
            if timeout(RETRY, close.closed()).await.is_ok() {
                tracing::warn!(
                    attempts = unsettled.count,
                    "not settled: what they delivered will be sent again"
                );
                return None;
            }
            let written = slow.watch(self.write(Vec::new(), unsettled)).await;
            if let Err(error) = written {
                let failure = self.failed(&error).await;
                if failure.is_some() {
                    return failure;
                }
            }
        }
        None
    }

    pub(super) async fn close(mut self, reply: oneshot::Sender<()>) {
        // Where that fails the next start does it.
        if let Err(error) = self.unpack(i64::MAX).await {
            tracing::warn!(%error, "what is left of the log stays in packs");
        }
        self.close_express().await;
        if let Err(error) = self.db.close().await {
            tracing::warn!(%error, "the database did not close cleanly");
        }
        // Who hears that it is closed may open it at once.
        drop(self.lock);
        let _gone = reply.send(());
    }
}
