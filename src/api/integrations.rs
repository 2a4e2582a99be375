//! `siem.v1.SiemIntegrationService`: configuration, tests and status of integrations.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use jiff::Timestamp;
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::{
    Delivery,
    audit::{self, Attempt, Foreign, TestAttempt},
    caller::{Binding, Caller},
    convert,
    deletions::Deletions,
    errors::ApiError,
    limits::{CallerKey, Limits, QueuePermit, Trial},
    onboarding,
    sealed_token::SealedTokens,
    validate,
};
use crate::{
    domain::{
        audit::Actor,
        integration::{Integration, Snapshot},
        organization::OrganizationId,
        rights::Rights,
        status::StatusDetail,
    },
    proto::v1::{
        self, ConfigureRequest, ConfigureResponse, DeleteRequest, DeleteResponse,
        GenerateExternalIdRequest, GenerateExternalIdResponse, GetOnboardingRequest,
        GetOnboardingResponse, GetRequest, GetResponse, ListAuditEntriesRequest,
        ListAuditEntriesResponse, ListRequest, ListResponse, SendTestRequest, SendTestResponse,
        StreamStatusRequest, StreamStatusResponse,
        siem_integration_service_server::SiemIntegrationService,
    },
    store::{AuditPosition, Configure, ConfigureError, Deleted, Store, StoreError},
    watch::{self, Ended, Watch},
};

/// Bytes of a page of the audit, about. Clients refuse messages over 4 MiB.
const MAX_AUDIT_BYTES: usize = 2 << 20;

pub(super) struct Integrations<D> {
    pub(super) store: Store,
    pub(super) delivery: Arc<D>,
    pub(super) watch: Watch,
    /// Configure accepts only external IDs that GenerateExternalId issued.
    pub(super) issued_only: bool,
    pub(super) deletions: Deletions,
    pub(super) page_tokens: SealedTokens,
    pub(super) resume_tokens: Arc<SealedTokens>,
    pub(super) limits: Limits,
}

/// Organization and caller of a Configure.
#[derive(Clone)]
struct Configuring {
    organization_id: OrganizationId,
    key: CallerKey,
    attempt: Attempt,
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
            let id = snapshot.integration.integration_id;
            let as_of = self.store.delivers_for(id).then(Timestamp::now);
            convert::integration(snapshot, oldest.copied(), as_of)
        };
        Ok(snapshots.iter().map(message).collect())
    }

    async fn message(&self, snapshot: Snapshot) -> Result<v1::Integration, StoreError> {
        let messages = self.messages(vec![snapshot]).await?;
        messages.into_iter().next().ok_or(StoreError::Closed)
    }

    /// Whether a Configure names another external ID than the stored one.
    fn names_new_external_id(&self, configure: &Configure) -> bool {
        let Some(named) = &configure.external_id else {
            return false;
        };
        let stored = self.store.find(configure.organization_id.as_str());
        let stored = stored.map(|stored| self.store.open_external_id(&stored.integration));
        !matches!(stored, Some(Ok(stored)) if stored.expose() == named.expose())
    }

    /// Opens a page token. One that was not issued to the caller is recorded, and becomes a text
    /// that is no valid token, so that it is reported with the other problems.
    fn open_page_token(&self, binding: &Binding, token: &str, attempt: &Attempt) -> String {
        self.page_tokens.open(binding, token).unwrap_or_else(|| {
            attempt.refuse_field("page_token");
            ".".to_owned()
        })
    }

    /// Warnings about a configuration that is valid.
    fn warnings(&self, integration: &Integration) -> Vec<String> {
        let mut warnings = convert::warnings(integration);
        let external_id = self.store.open_external_id(integration);
        // One that cannot be opened shows as the status.
        let weakness = external_id.ok().and_then(|id| id.weakness());
        warnings.extend(weakness.map(str::to_owned));
        warnings
    }

    /// Waits until a test may call AWS, and counts it then: a test that the queue refuses does not
    /// count, and one that the limit of the organization refuses does not wait.
    async fn admit_test(
        &self,
        trial: Trial,
        caller: &CallerKey,
        organization_id: &OrganizationId,
    ) -> Result<QueuePermit, ApiError> {
        self.limits.check_trial(trial, organization_id)?;
        let permit = self.limits.admit_test(caller).await?;
        self.limits.admit_trial(trial, organization_id)?;
        Ok(permit)
    }

    /// Answers a Configure with `validate_only`.
    async fn validate_only(
        &self,
        configure: Configure,
        configuring: &Configuring,
    ) -> Result<ConfigureResponse, ApiError> {
        let _test = self
            .admit_test(
                Trial::ValidateOnly,
                &configuring.key,
                &configuring.organization_id,
            )
            .await?;
        let store = self.store.clone();
        let checking = async move { store.validate_only(configure).await };
        let snapshot = outcome(&self.limits, configuring, checking).await?;
        let report = self.delivery.validate_only(&snapshot.integration).await?;
        let mut integration = self.message(snapshot.clone()).await?;
        if snapshot.integration.version == 1 {
            integration.integration_id.clear();
            integration.etag.clear();
        }
        Ok(ConfigureResponse {
            integration: Some(integration),
            checks: convert::validation_checks(&report, &snapshot.integration),
            warnings: self.warnings(&snapshot.integration),
        })
    }
}

/// Waits for the outcome of a Configure, which ends even if the caller hangs up. An external ID that
/// is refused counts against the limits and is audited in either case: the answers must not serve
/// to find those of others.
async fn outcome(
    limits: &Limits,
    configuring: &Configuring,
    work: impl Future<Output = Result<Snapshot, ConfigureError>> + Send + 'static,
) -> Result<Snapshot, ApiError> {
    let (limits, configuring) = (limits.clone(), configuring.clone());
    let working = tokio::spawn(async move {
        let outcome = work.await;
        if let Err(ConfigureError::ExternalIdInUse | ConfigureError::ExternalIdNotIssued) = &outcome
        {
            limits.external_id_refused(&configuring.key);
            configuring.attempt.refuse_field("external_id");
        }
        outcome
    });
    let outcome = working.await.map_err(|error| {
        tracing::error!(%error, "a Configure failed");
        ApiError::Internal
    })?;
    Ok(outcome?)
}

/// Deletes an integration, and waits until no AWS call for it is in flight. Only then are its
/// counts final.
async fn delete<D: Delivery>(
    store: Store,
    delivery: Arc<D>,
    deletions: Deletions,
    organization_id: OrganizationId,
    etag: String,
    actor: Actor,
) -> Result<Option<Deleted>, ApiError> {
    // Another call may be deleting it: this one, too, answers only once no AWS call is in flight.
    let _deleting = deletions.begin(&organization_id).await;
    let known = store.id_of(organization_id.as_str());
    let etag = Some(etag).filter(|etag| !etag.is_empty());
    let deleted = store.delete(organization_id.clone(), etag, actor).await?;
    // If an earlier Delete was committed but not confirmed, this one finishes it.
    let deleted = match deleted.or(known) {
        Some(id) => Some(delivery.deleted(id).await),
        None => None,
    };
    store.wait_for_deletion(&organization_id).await?;
    Ok(deleted)
}

/// Resume token that no subscription has, so that one begins with a reset.
const OTHER_TOKEN: &str = ".";

/// Records those of the named organizations to which the caller has no right.
fn refuse_foreign(attempt: &Attempt, caller: &Caller, named: &[OrganizationId]) {
    let mut foreign = Foreign::default();
    for id in named {
        if !caller.rights().cover(id.as_str()) {
            foreign.add(id.as_str());
        }
    }
    attempt.refuse_foreign(foreign);
}

/// Status stream that begins anew when the rights of its caller change.
struct Following<F> {
    attempt: Attempt,
    caller: Caller,
    /// Organizations that the request names; none for all that the caller may see.
    named: Arc<[OrganizationId]>,
    binding: Binding,
    tokens: Arc<SealedTokens>,
    watch: Watch,
    updates: BoxStream<'static, Result<watch::Message, Ended>>,
    subscribe: F,
}

impl<F> Following<F>
where
    F: Fn(&Watch, &Rights, &str) -> BoxStream<'static, Result<watch::Message, Ended>>,
{
    async fn next(&mut self) -> Option<Result<StreamStatusResponse, Status>> {
        loop {
            tokio::select! {
                biased;
                changed = self.caller.changed(self.caller.rights()) => match changed {
                    Ok(rights) => {
                        // Drops what was queued for the rights from before.
                        self.updates = (self.subscribe)(&self.watch, &rights, OTHER_TOKEN);
                        self.caller.set_rights(rights);
                        self.binding = self.caller.binding();
                        refuse_foreign(&self.attempt, &self.caller, &self.named);
                    }
                    Err(error) => return Some(Err(error.into())),
                },
                update = self.updates.next() => return match update? {
                    Ok(mut message) => {
                        message.resume_token = self.tokens.seal(&self.binding, message.resume_token);
                        Some(Ok(convert::status_update(message)))
                    }
                    Err(Ended) => Some(Err(ApiError::ShuttingDown.into())),
                },
            }
        }
    }
}

#[tonic::async_trait]
impl<D: Delivery> SiemIntegrationService for Integrations<D> {
    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let request = request.into_inner();
        attempt.concerns(&request.organization_id);
        if OrganizationId::new(&request.organization_id).is_ok() {
            // Before any other check, so that the answer does not depend on what exists.
            caller.require(&request.organization_id)?;
        }
        self.store.catch_up().await.map_err(ApiError::from)?;
        let exists = self.store.id_of(&request.organization_id).is_some();
        let validate_only = request.validate_only;
        let own = self.delivery.partition();
        let configure =
            validate::configure(request, exists, self.issued_only, own, attempt.actor())?;
        let accounts = [configure.stream_arn.account(), configure.role_arn.account()];
        caller.require_accounts(configure.organization_id.as_str(), accounts)?;
        let configuring = Configuring {
            organization_id: configure.organization_id.clone(),
            key: CallerKey::of(&caller),
            attempt,
        };
        if self.names_new_external_id(&configure) {
            self.limits
                .admit_external_id(&configuring.key, &configuring.organization_id)?;
        }
        if validate_only {
            let answer = self.validate_only(configure, &configuring).await?;
            return Ok(Response::new(answer));
        }
        let store = self.store.clone();
        let storing = async move { store.configure(configure).await };
        let snapshot = outcome(&self.limits, &configuring, storing).await?;
        // No instance may map the organization to an integration that was deleted before. A
        // repetition waits as well, because the first call may have been given up.
        if self.store.is_new(&snapshot.integration) {
            let id = &snapshot.integration.organization_id;
            let confirmed = self.store.wait_for_deletion(id).await;
            confirmed.map_err(ApiError::from)?;
        }
        let warnings = self.warnings(&snapshot.integration);
        let integration = self.message(snapshot).await.map_err(ApiError::from)?;
        Ok(Response::new(ConfigureResponse {
            integration: Some(integration),
            checks: Vec::new(),
            warnings,
        }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let request = request.into_inner();
        attempt.concerns(&request.organization_id);
        let organization_id = validate::organization_id(&request.organization_id)?;
        self.store.catch_up().await.map_err(ApiError::from)?;
        let id = organization_id.as_str();
        let sees = attempt.sees(&caller, &organization_id);
        let snapshot = sees.then(|| self.store.find(id)).flatten();
        let snapshot = snapshot.ok_or(ApiError::NotFound)?;
        let integration = self.message(snapshot).await.map_err(ApiError::from)?;
        Ok(Response::new(GetResponse {
            integration: Some(integration),
        }))
    }

    async fn generate_external_id(
        &self,
        request: Request<GenerateExternalIdRequest>,
    ) -> Result<Response<GenerateExternalIdResponse>, Status> {
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let request = request.into_inner();
        attempt.concerns(&request.organization_id);
        let organization_id = validate::organization_id(&request.organization_id)?;
        caller.require(organization_id.as_str())?;
        let trial = Trial::GenerateExternalId;
        self.limits.check_trial(trial, &organization_id)?;
        self.limits.admit_generated_id(&CallerKey::of(&caller))?;
        self.limits.admit_trial(trial, &organization_id)?;
        let external_id = self
            .store
            .issue_external_id(organization_id, attempt.actor())
            .await
            .map_err(ApiError::from)?;
        Ok(Response::new(GenerateExternalIdResponse {
            external_id: external_id.expose().to_owned(),
        }))
    }

    async fn get_onboarding(
        &self,
        request: Request<GetOnboardingRequest>,
    ) -> Result<Response<GetOnboardingResponse>, Status> {
        let account = self.delivery.account();
        let documents = onboarding::documents(request.into_inner(), account)?;
        Ok(Response::new(documents))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let mut request = request.into_inner();
        let binding = caller.binding();
        request.page_token = self.open_page_token(&binding, &request.page_token, &attempt);
        let page = validate::page(request)?;
        let keep = |status: &StatusDetail| {
            page.statuses.is_empty() || page.statuses.contains(&status.status)
        };
        self.store.catch_up().await.map_err(ApiError::from)?;
        // One more than a page, to see whether there is a next page.
        let rights = caller.rights();
        let mut snapshots = self.store.page(&page.after, page.size + 1, rights, keep);
        let more = snapshots.len() > page.size;
        snapshots.truncate(page.size);
        let next_page_token = match snapshots.last() {
            Some(last) if more => last.integration.organization_id.as_str().to_owned(),
            _ => String::new(),
        };
        let integrations = self.messages(snapshots).await.map_err(ApiError::from)?;
        Ok(Response::new(ListResponse {
            integrations,
            next_page_token: self.page_tokens.seal(&binding, next_page_token),
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let request = request.into_inner();
        attempt.concerns(&request.organization_id);
        let organization_id = validate::organization_id(&request.organization_id)?;
        if !attempt.sees(&caller, &organization_id) {
            self.store.catch_up().await.map_err(ApiError::from)?;
            return match request.allow_missing {
                true => Ok(Response::new(DeleteResponse { counts: None })),
                false => Err(ApiError::NotFound.into()),
            };
        }
        // A separate task, so that a cancelled call does not interrupt the deletion.
        let deleting = tokio::spawn(delete(
            self.store.clone(),
            Arc::clone(&self.delivery),
            self.deletions.clone(),
            organization_id,
            request.etag,
            attempt.actor(),
        ));
        let deleted = deleting.await.map_err(|error| {
            tracing::error!(%error, "a deletion failed");
            ApiError::Internal
        })??;
        match deleted {
            Some(deleted) => {
                let counts = convert::counts(&deleted.progress, None, Some(Timestamp::now()));
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
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let request = request.into_inner();
        attempt.concerns(&request.organization_id);
        let organization_id = validate::organization_id(&request.organization_id)?;
        self.store.catch_up().await.map_err(ApiError::from)?;
        // Organizations without an integration need no limit, and must not fill its memory.
        if !attempt.sees(&caller, &organization_id)
            || self.store.id_of(organization_id.as_str()).is_none()
        {
            return Err(ApiError::NotFound.into());
        }
        let _test = self
            .admit_test(Trial::SendTest, &CallerKey::of(&caller), &organization_id)
            .await?;
        let test = TestAttempt::new(&self.store, &attempt, organization_id.as_str());
        let verdict = self.delivery.send_test(organization_id.as_str()).await;
        let outcome = verdict.as_ref().ok();
        let delivered = outcome.map(|verdict| verdict.report.fault().is_none());
        test.ended(delivered).await;
        let verdict = verdict.map_err(ApiError::from)?;
        Ok(Response::new(convert::test_response(&verdict)))
    }

    async fn list_audit_entries(
        &self,
        request: Request<ListAuditEntriesRequest>,
    ) -> Result<Response<ListAuditEntriesResponse>, Status> {
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let mut request = request.into_inner();
        attempt.concerns(&request.organization_id);
        let binding = caller.binding();
        request.page_token = self.open_page_token(&binding, &request.page_token, &attempt);
        let mut query = validate::audit_query(&request)?;
        match request.organization_id.as_str() {
            "" => query.organizations = caller.rights().patterns(),
            organization_id => caller.require(organization_id)?,
        }
        let reading = self
            .limits
            .admit_audit_read(&CallerKey::of(&caller))
            .await?;
        let page = self.store.audit(query).await;
        drop(reading);
        let page = page.map_err(ApiError::from)?;
        let mut next = page.next;
        let (mut entries, mut bytes) = (Vec::with_capacity(page.entries.len()), 0);
        for entry in page.entries {
            let position = AuditPosition::from(&entry);
            let entry_id = self.store.audit_entry_id(entry.id);
            let message = audit::message(entry, entry_id);
            bytes += message.encoded_len();
            entries.push(message);
            if bytes > MAX_AUDIT_BYTES {
                next = Some(position);
                break;
            }
        }
        Ok(Response::new(ListAuditEntriesResponse {
            entries,
            next_page_token: match next {
                Some(next) => self.page_tokens.seal(&binding, validate::audit_token(next)),
                None => String::new(),
            },
        }))
    }

    type StreamStatusStream =
        Pin<Box<dyn Stream<Item = Result<StreamStatusResponse, Status>> + Send>>;

    async fn stream_status(
        &self,
        request: Request<StreamStatusRequest>,
    ) -> Result<Response<Self::StreamStatusStream>, Status> {
        let (attempt, caller) = (Attempt::of(&request), Caller::of(&request));
        let request = request.into_inner();
        let organizations = validate::status_stream(&request)?;
        refuse_foreign(&attempt, &caller, &organizations);
        // The token may be of another instance, which was ahead.
        self.store.catch_up().await.map_err(ApiError::from)?;
        let binding = caller.binding();
        let token = self.resume_tokens.open(&binding, &request.resume_token);
        let token = token.unwrap_or_else(|| OTHER_TOKEN.to_owned());
        let named: Arc<[OrganizationId]> = organizations.into();
        let of_subscription = Arc::clone(&named);
        let subscribe = move |watch: &Watch, rights: &Rights, token: &str| {
            let updates = watch.subscribe(of_subscription.to_vec(), token, rights.clone());
            updates.boxed()
        };
        let following = Following {
            updates: subscribe(&self.watch, caller.rights(), &token),
            watch: self.watch.clone(),
            tokens: Arc::clone(&self.resume_tokens),
            subscribe,
            binding,
            attempt,
            caller,
            named,
        };
        let answers = stream::unfold(following, |mut following| async {
            let answer = following.next().await?;
            Some((answer, following))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;
    use crate::api::{LimitOptions, audit::testing::recording};

    #[tokio::test]
    async fn a_refused_external_id_counts_although_the_caller_hangs_up() {
        let limits = Limits::new(LimitOptions {
            requests_per_second: 0,
            streams: 0,
            events_per_second: 0,
            test_interval: Duration::from_secs(3600),
            failed_authentications_per_second: 0,
        });
        let organization_id = OrganizationId::new("acme").unwrap();
        let key = CallerKey::default();
        let mut guesses = 0;
        loop {
            let other = OrganizationId::new(&format!("o{guesses}")).unwrap();
            if limits.admit_external_id(&key, &other).is_err() {
                break;
            }
            let (attempt, mut recorded) = recording("/siem.v1.SiemIntegrationService/Configure");
            attempt.concerns("acme");
            let configuring = Configuring {
                organization_id: organization_id.clone(),
                key: key.clone(),
                attempt,
            };
            let (answer, answered) = oneshot::channel();
            let work = async move { Err(answered.await.unwrap()) };
            let mut call = Box::pin(outcome(&limits, &configuring, work));
            assert!(futures_util::poll!(&mut call).is_pending());
            drop(call);
            answer.send(ConfigureError::ExternalIdInUse).unwrap();
            let refusal = recorded.recv().await.unwrap();
            assert_eq!(&*refusal.organization_id, "acme");
            assert_eq!(refusal.field, Some("external_id"));
            guesses += 1;
        }
        assert!((60..=62).contains(&guesses), "{guesses} guesses");
    }
}
