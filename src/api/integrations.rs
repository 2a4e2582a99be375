//! `siem.v1.SiemIntegrationService`: configuration, tests and status of integrations.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures_util::stream::{Stream, StreamExt};
use tokio::sync::RwLock;
use tonic::{Request, Response, Status};

use super::{Delivery, convert, errors::ApiError, validate};
use crate::{
    domain::{integration::Snapshot, organization::OrganizationId, status::StatusDetail},
    proto::v1::{
        self, ConfigureRequest, ConfigureResponse, DeleteRequest, DeleteResponse,
        GenerateExternalIdRequest, GenerateExternalIdResponse, GetRequest, GetResponse,
        ListRequest, ListResponse, SendTestRequest, SendTestResponse, StreamStatusRequest,
        StreamStatusResponse, siem_integration_service_server::SiemIntegrationService,
    },
    store::{Configure, Deleted, Store, StoreError},
    watch::{Ended, Watch},
};

pub(super) struct Integrations<D> {
    pub(super) store: Store,
    pub(super) delivery: Arc<D>,
    pub(super) watch: Watch,
    /// Configure accepts only external IDs that GenerateExternalId issued.
    pub(super) issued_only: bool,
    /// Locked for reading during each deletion.
    pub(super) deletions: Arc<RwLock<()>>,
}

impl<D: Delivery> Integrations<D> {
    /// Converts integrations, with their counts and the acceptance time of the oldest pending
    /// event of each.
    async fn messages(
        &self,
        mut snapshots: Vec<Snapshot>,
    ) -> Result<Vec<v1::Integration>, StoreError> {
        self.store.complete(&mut snapshots).await?;
        let with_pending = snapshots
            .iter()
            .filter(|snapshot| snapshot.progress.pending() > 0);
        let ids: Vec<_> = with_pending
            .map(|snapshot| snapshot.integration.integration_id)
            .collect();
        let oldest = match ids.is_empty() {
            true => HashMap::new(),
            false => self.store.oldest_pending(&ids).await?,
        };
        let message = |snapshot: &Snapshot| {
            let oldest = oldest.get(&snapshot.integration.integration_id);
            convert::integration(snapshot, oldest.copied())
        };
        Ok(snapshots.iter().map(message).collect())
    }

    async fn message(&self, snapshot: Snapshot) -> Result<v1::Integration, StoreError> {
        let messages = self.messages(vec![snapshot]).await?;
        messages.into_iter().next().ok_or(StoreError::Closed)
    }

    /// Answers a Configure with `validate_only`.
    async fn validate_only(&self, configure: Configure) -> Result<ConfigureResponse, ApiError> {
        let snapshot = self.store.validate_only(configure).await?;
        let report = self.delivery.validate_only(&snapshot.integration).await?;
        let mut integration = self.message(snapshot.clone()).await?;
        if snapshot.integration.version == 1 {
            integration.integration_id.clear();
            integration.etag.clear();
        }
        Ok(ConfigureResponse {
            integration: Some(integration),
            checks: convert::validation_checks(&report, &snapshot.integration),
            warnings: convert::warnings(&snapshot.integration),
        })
    }
}

/// Deletes an integration, and waits until no AWS call for it is in flight. Only then are its
/// counts final.
async fn delete<D: Delivery>(
    store: Store,
    delivery: Arc<D>,
    deletions: Arc<RwLock<()>>,
    organization_id: OrganizationId,
    caller: Box<str>,
) -> Result<Option<Deleted>, ApiError> {
    let _in_progress = deletions.read().await;
    let known = store.id_of(organization_id.as_str());
    let deleted = store.delete(organization_id, caller).await?;
    // If an earlier Delete was committed but not confirmed, this one finishes it.
    let deleted = match deleted.or(known) {
        Some(id) => Some(delivery.deleted(id).await),
        None => None,
    };
    store.wait_for_deletions().await?;
    Ok(deleted)
}

/// Caller for the audit log. There is no authentication yet.
fn caller<T>(request: &Request<T>) -> Box<str> {
    match request.remote_addr() {
        Some(address) => format!("unauthenticated {address}").into(),
        None => "unauthenticated".into(),
    }
}

#[tonic::async_trait]
impl<D: Delivery> SiemIntegrationService for Integrations<D> {
    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        self.store.catch_up().await.map_err(ApiError::from)?;
        let exists = self.store.id_of(&request.organization_id).is_some();
        let validate_only = request.validate_only;
        let own = self.delivery.partition();
        let configure = validate::configure(request, exists, self.issued_only, own, caller)?;
        if validate_only {
            return Ok(Response::new(self.validate_only(configure).await?));
        }
        let snapshot = self
            .store
            .configure(configure)
            .await
            .map_err(ApiError::from)?;
        // No instance may map the organization to an integration that was deleted before. A
        // repetition waits as well, because the first call may have been given up.
        if self.store.is_new(&snapshot.integration) {
            let confirmed = self.store.wait_for_deletions().await;
            confirmed.map_err(ApiError::from)?;
        }
        let warnings = convert::warnings(&snapshot.integration);
        let integration = self.message(snapshot).await.map_err(ApiError::from)?;
        Ok(Response::new(ConfigureResponse {
            integration: Some(integration),
            checks: Vec::new(),
            warnings,
        }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let organization_id = validate::organization_id(&request.into_inner().organization_id)?;
        self.store.catch_up().await.map_err(ApiError::from)?;
        let snapshot = self
            .store
            .find(organization_id.as_str())
            .ok_or(ApiError::NotFound)?;
        let integration = self.message(snapshot).await.map_err(ApiError::from)?;
        Ok(Response::new(GetResponse {
            integration: Some(integration),
        }))
    }

    async fn generate_external_id(
        &self,
        request: Request<GenerateExternalIdRequest>,
    ) -> Result<Response<GenerateExternalIdResponse>, Status> {
        let organization_id = validate::organization_id(&request.into_inner().organization_id)?;
        let external_id = self
            .store
            .issue_external_id(organization_id)
            .await
            .map_err(ApiError::from)?;
        Ok(Response::new(GenerateExternalIdResponse {
            external_id: external_id.expose().to_owned(),
        }))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let page = validate::page(request.into_inner())?;
        let keep = |status: &StatusDetail| {
            page.statuses.is_empty() || page.statuses.contains(&status.status)
        };
        self.store.catch_up().await.map_err(ApiError::from)?;
        // One more than a page, to see whether there is a next page.
        let mut snapshots = self.store.page(&page.after, page.size + 1, keep);
        let more = snapshots.len() > page.size;
        snapshots.truncate(page.size);
        let next_page_token = match snapshots.last() {
            Some(last) if more => last.integration.organization_id.as_str().to_owned(),
            _ => String::new(),
        };
        let integrations = self.messages(snapshots).await.map_err(ApiError::from)?;
        Ok(Response::new(ListResponse {
            integrations,
            next_page_token,
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let caller = caller(&request);
        let request = request.into_inner();
        let organization_id = validate::organization_id(&request.organization_id)?;
        // A separate task, so that a cancelled call does not interrupt the deletion.
        let deleting = tokio::spawn(delete(
            self.store.clone(),
            Arc::clone(&self.delivery),
            Arc::clone(&self.deletions),
            organization_id,
            caller,
        ));
        let deleted = deleting.await.map_err(|_| ApiError::Internal)??;
        if deleted.is_none() {
            // Another call may be deleting it: this one, too, answers only once no AWS call
            // is in flight.
            drop(self.deletions.write().await);
        }
        match deleted {
            Some(deleted) => {
                let counts = convert::counts(&deleted.progress, None);
                Ok(Response::new(DeleteResponse {
                    counts: Some(counts),
                }))
            }
            None if request.allow_missing => Ok(Response::new(DeleteResponse { counts: None })),
            None => Err(ApiError::NotFound.into()),
        }
    }

    async fn send_test(
        &self,
        request: Request<SendTestRequest>,
    ) -> Result<Response<SendTestResponse>, Status> {
        let organization_id = validate::organization_id(&request.into_inner().organization_id)?;
        self.store.catch_up().await.map_err(ApiError::from)?;
        let verdict = self
            .delivery
            .send_test(organization_id.as_str())
            .await
            .map_err(ApiError::from)?;
        Ok(Response::new(convert::test_response(&verdict)))
    }

    type StreamStatusStream =
        Pin<Box<dyn Stream<Item = Result<StreamStatusResponse, Status>> + Send>>;

    async fn stream_status(
        &self,
        request: Request<StreamStatusRequest>,
    ) -> Result<Response<Self::StreamStatusStream>, Status> {
        let request = request.into_inner();
        let organizations = validate::status_stream(&request)?;
        // The token may be of another instance, which was ahead.
        self.store.catch_up().await.map_err(ApiError::from)?;
        let updates = self.watch.subscribe(organizations, &request.resume_token);
        let answers = updates.map(|update| match update {
            Ok(message) => Ok(convert::status_update(message)),
            Err(Ended) => Err(ApiError::ShuttingDown.into()),
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
