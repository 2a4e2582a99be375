//! Those who know the external IDs, as the store does.

use super::*;

/// Opens every external ID as [`EXTERNAL_ID`].
pub(super) struct OneExternalId;

impl ExternalIds for OneExternalId {
    fn open(&self, _: &Integration) -> Result<ExternalId, Unreadable> {
        Ok(ExternalId::parse(EXTERNAL_ID.to_owned()).unwrap())
    }

    fn open_previous(&self, _: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        None
    }

    fn took_over(&self, _: &Integration) {}

    fn is_current(&self, _: &Integration) -> bool {
        true
    }
}

/// Opens every external ID, and knows which integrations were deleted.
#[derive(Default)]
pub(super) struct Registry {
    pub(super) deleted: Mutex<HashSet<IntegrationKey>>,
    pub(super) took_over: AtomicUsize,
}

impl ExternalIds for Registry {
    fn open(&self, _: &Integration) -> Result<ExternalId, Unreadable> {
        Ok(ExternalId::parse(EXTERNAL_ID.to_owned()).unwrap())
    }

    fn open_previous(&self, integration: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        integration.previous.as_ref()?;
        Some(Ok(ExternalId::parse(PREVIOUS_ID.to_owned()).unwrap()))
    }

    fn took_over(&self, _: &Integration) {
        self.took_over.fetch_add(1, Ordering::SeqCst);
    }

    fn is_current(&self, integration: &Integration) -> bool {
        !self.deleted.lock().unwrap().contains(&integration.key)
    }
}
