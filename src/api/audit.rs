//! The audit's part of the API: the author of each request, refused calls, and test events.
//!
//! [`AuditLayer`] is outside of `caller`, so that it sees the calls that `caller` refuses.
//! [`note_caller`] and the handlers add the facts that are known further inside. Handlers record
//! those refusals at once that their answers do not show, or that a hang-up must not hide.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use futures_util::future::{FutureExt as _, TryFutureExt as _};
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};
use uuid::Uuid;

use super::{caller, caller::Caller, errors::ApiError, peer::Peer};
use crate::{
    domain::{
        audit::{Actor, AuditAction, AuditChange, AuditEntry, CallerClass, Refusal},
        organization::OrganizationId,
    },
    proto::{DESCRIPTOR_SET, v1},
    store::Store,
};

/// Header with the caller's id of a request.
const REQUEST_ID: &str = "x-request-id";
/// Bytes of a caller's id of a request; a longer one is not recorded.
const MAX_REQUEST_ID: usize = 64;
/// RPCs that change something or call AWS, whose rate limits are audited.
const WRITES: [&str; 4] = ["Configure", "GenerateExternalId", "Delete", "SendTest"];
/// Organizations to which a caller has no right that one request records by their names. Further
/// ones are recorded together: the storage of refusals keeps no more apart.
const MAX_FOREIGN: usize = 8;

/// Facts about one request. An extension of the request.
#[derive(Clone)]
pub(super) struct Attempt(Arc<Facts>);

struct Facts {
    request_id: Uuid,
    client_request_id: Option<Box<str>>,
    peer: Option<SocketAddr>,
    /// Set by [`note_caller`] once the caller is known.
    caller: OnceLock<Caller>,
    /// Organization that the request names.
    organization_id: OnceLock<OrganizationId>,
    uri: Uri,
    shared: Arc<Shared>,
}

/// Organizations to which a caller has no right, with the number of their refused events or names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Foreign {
    by_organization: BTreeMap<Box<str>, u64>,
}

impl Foreign {
    /// Counts one. Beyond [`MAX_FOREIGN`] different ones they are counted without their names.
    pub(super) fn add(&mut self, organization_id: &str) {
        if let Some(count) = self.by_organization.get_mut(organization_id) {
            *count += 1;
            return;
        }
        let is_full = self.by_organization.len() >= MAX_FOREIGN;
        let name = if is_full { "" } else { organization_id };
        *self.by_organization.entry(name.into()).or_default() += 1;
    }
}

impl Attempt {
    fn new<B>(request: &Request<B>, shared: Arc<Shared>) -> Self {
        let peer = request.extensions().get::<Peer>();
        let given = request.headers().get(REQUEST_ID);
        let is_short = |text: &&str| (1..=MAX_REQUEST_ID).contains(&text.len());
        Self(Arc::new(Facts {
            request_id: Uuid::now_v7(),
            // Visible ASCII only: `to_str` refuses all but that, spaces and tabs.
            client_request_id: given
                .and_then(|value| value.to_str().ok())
                .filter(is_short)
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))
                .map(Into::into),
            peer: peer.and_then(|peer| peer.address),
            caller: OnceLock::new(),
            organization_id: OnceLock::new(),
            uri: request.uri().clone(),
            shared,
        }))
    }

    /// The attempt of a request that passed [`AuditLayer`].
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        let attempt = request.extensions().get::<Self>();
        let nothing = || Arc::new(Shared::new(|_| ()));
        attempt
            .cloned()
            .unwrap_or_else(|| Self::new(&Request::new(()), nothing()))
    }

    /// Notes the caller, which is the author of what follows.
    pub(super) fn note_caller(&self, caller: &Caller) {
        self.0.caller.get_or_init(|| caller.clone());
    }

    /// Notes the organization that the request names, if it is the name of one.
    pub(super) fn concerns(&self, organization_id: &str) {
        if let Ok(organization_id) = OrganizationId::new(organization_id) {
            self.0.organization_id.get_or_init(|| organization_id);
        }
    }

    /// Whether the caller has a right to the organization. Otherwise the request is recorded as
    /// refused, although the organization is to look as if it had no integration.
    pub(super) fn sees(&self, caller: &Caller, organization_id: &OrganizationId) -> bool {
        let sees = caller.sees(organization_id.as_str());
        if !sees {
            let mut foreign = Foreign::default();
            foreign.add(organization_id.as_str());
            self.refuse_foreign(foreign);
        }
        sees
    }

    /// Records organizations to which the caller has no right.
    pub(super) fn refuse_foreign(&self, foreign: Foreign) {
        let status = Status::from(ApiError::PermissionDenied(""));
        for (organization_id, count) in foreign.by_organization {
            self.record(&status, &organization_id, count, None);
        }
    }

    /// Records that the request is refused because of one of its fields.
    pub(super) fn refuse_field(&self, field: &'static str) {
        let status = Status::from(ApiError::invalid(field, ""));
        self.record(&status, self.organization_id(), 1, Some(field));
    }

    /// Author of what the request changes.
    pub(super) fn actor(&self) -> Actor {
        let facts = &self.0;
        let caller = facts.caller.get();
        let principal = caller.map(|caller| Arc::clone(&caller.principal));
        Actor {
            principal: principal.unwrap_or_else(|| Arc::clone(&caller::UNAUTHENTICATED)),
            issuer: caller.and_then(|caller| caller.issuer.clone()),
            peer: facts.peer,
            request_id: Some(facts.request_id),
            client_request_id: facts.client_request_id.clone(),
        }
    }

    fn organization_id(&self) -> &str {
        let organization_id = self.0.organization_id.get();
        organization_id.map_or("", |id| id.as_str())
    }

    /// Records the error of an answer, if it is a refusal.
    fn answered(&self, status: &Status) {
        let is_refusal = match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => true,
            // Not those that concern all callers.
            Code::ResourceExhausted => {
                is_one_of(self.0.uri.path(), &WRITES)
                    && !["OVERLOADED", "DISK_FULL"].contains(&reason(status).as_str())
            }
            _ => false,
        };
        if is_refusal {
            self.record(status, self.organization_id(), 1, None);
        }
    }

    fn record(
        &self,
        status: &Status,
        organization_id: &str,
        count: u64,
        field: Option<&'static str>,
    ) {
        let (actor, shared) = (self.actor(), &self.0.shared);
        let method = self.0.uri.path().trim_start_matches('/');
        (shared.record)(Refusal {
            class: match actor.principal == *caller::UNAUTHENTICATED {
                true => CallerClass::Anonymous,
                false => CallerClass::Authenticated,
            },
            actor,
            // A path may be anything.
            method: match shared.methods.contains(method) {
                true => method.into(),
                false => "".into(),
            },
            organization_id: organization_id.into(),
            code: code_name(status.code()).into(),
            reason: reason(status).into(),
            field,
            count,
        });
    }
}

/// Reason in the `ErrorInfo` of an error; empty without one.
fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.map(|info| info.reason).unwrap_or_default()
}

fn is_one_of(path: &str, methods: &[&str]) -> bool {
    let method = path.rsplit('/').next();
    method.is_some_and(|method| methods.contains(&method))
}

/// Name of a code, as the documentation of gRPC has it.
pub(super) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Adds the caller to the facts of a request, once `caller` has determined it.
pub(super) fn note_caller<B>(request: Request<B>) -> Request<B> {
    let extensions = request.extensions();
    if let (Some(attempt), Some(caller)) = (extensions.get::<Attempt>(), extensions.get::<Caller>())
    {
        attempt.note_caller(caller);
    }
    request
}

/// Paths of all RPCs, without the leading slash.
fn methods() -> HashSet<String> {
    let sets = [DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    // Both are parts of this program; `methods_are_known` shows that they can be decoded.
    let files = sets.into_iter().flat_map(|set| {
        let set = FileDescriptorSet::decode(set);
        set.map(|set| set.file).unwrap_or_default()
    });
    let mut methods: HashSet<String> = files
        .flat_map(|file| {
            let package = file.package().to_owned();
            file.service.into_iter().flat_map(move |service| {
                let name = format!("{package}.{}", service.name());
                let methods = service.method.into_iter();
                methods.map(move |method| format!("{name}/{}", method.name()))
            })
        })
        .collect();
    for version in ["v1", "v1alpha"] {
        methods.insert(format!(
            "grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        ));
    }
    methods
}

/// Layer that records refused calls, and adds the [`Attempt`] to each request.
#[derive(Clone)]
pub(super) struct AuditLayer {
    shared: Arc<Shared>,
}

struct Shared {
    record: Box<dyn Fn(Refusal) + Send + Sync>,
    methods: HashSet<String>,
}

impl Shared {
    fn new(record: impl Fn(Refusal) + Send + Sync + 'static) -> Self {
        Self {
            record: Box::new(record),
            methods: methods(),
        }
    }
}

impl AuditLayer {
    /// `record` gets each refused call.
    pub(super) fn new(record: impl Fn(Refusal) + Send + Sync + 'static) -> Self {
        Self {
            shared: Arc::new(Shared::new(record)),
        }
    }
}

impl<S> Layer<S> for AuditLayer {
    type Service = AuditService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        AuditService {
            shared: Arc::clone(&self.shared),
            inner,
        }
    }
}

/// Service of [`AuditLayer`].
#[derive(Clone)]
pub(super) struct AuditService<S> {
    shared: Arc<Shared>,
    inner: S,
}

type Answer = Response<tonic::body::Body>;

impl<S, B> Service<Request<B>> for AuditService<S>
where
    S: Service<Request<B>, Response = Answer>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let attempt = Attempt::new(&request, Arc::clone(&self.shared));
        // Streams may be refused in the middle of their answer.
        let is_stream = caller::is_stream(request.uri().path());
        request.extensions_mut().insert(attempt.clone());
        let answer = self.inner.call(request);
        let answer = answer.map_ok(move |answer| {
            if let Some(status) = answer.extensions().get::<Status>() {
                attempt.answered(status);
                return answer;
            }
            if !is_stream {
                return answer;
            }
            let check = move |trailers: &HeaderMap| {
                if let Some(status) = Status::from_header_map(trailers) {
                    attempt.answered(&status);
                }
            };
            answer.map(|body| {
                tonic::body::Body::new(body.map_frame(move |frame| {
                    frame.trailers_ref().into_iter().for_each(&check);
                    frame
                }))
            })
        });
        answer.boxed()
    }
}

/// Test event that is under way. It is recorded also if its caller hangs up before the verdict.
pub(super) struct TestAttempt {
    store: Store,
    entry: Option<AuditEntry>,
}

impl TestAttempt {
    /// Creates the attempt to test the integration of an organization. None if there is none.
    pub(super) fn new(store: &Store, attempt: &Attempt, organization_id: &str) -> Self {
        let entry = store.id_of(organization_id).map(|id| {
            let action = AuditAction::SendTest;
            let entry = AuditEntry::new(action, attempt.actor(), organization_id, Timestamp::now());
            entry.about(id, Vec::new())
        });
        Self {
            store: store.clone(),
            entry,
        }
    }

    /// Records the outcome. None stands for a test that was not made.
    pub(super) async fn ended(mut self, delivered: Option<bool>) {
        if let (Some(mut entry), Some(delivered)) = (self.entry.take(), delivered) {
            let delivered = if delivered { "true" } else { "false" };
            entry.changes = vec![AuditChange::new("delivered", "", delivered)];
            self.store.record_audit(entry).await;
        }
    }
}

impl Drop for TestAttempt {
    fn drop(&mut self) {
        if let Some(mut entry) = self.entry.take() {
            entry.code = code_name(Code::Cancelled).into();
            let store = self.store.clone();
            tokio::spawn(async move { store.record_audit(entry).await });
        }
    }
}

/// Converts the kind of an entry.
pub(super) fn action(action: Option<AuditAction>) -> v1::AuditAction {
    match action {
        None => v1::AuditAction::Unspecified,
        Some(AuditAction::Create) => v1::AuditAction::Create,
        Some(AuditAction::Replace) => v1::AuditAction::Replace,
        Some(AuditAction::Delete) => v1::AuditAction::Delete,
        Some(AuditAction::IssueExternalId) => v1::AuditAction::IssueExternalId,
        Some(AuditAction::ExternalIdTookOver) => v1::AuditAction::ExternalIdTookOver,
        Some(AuditAction::Status) => v1::AuditAction::Status,
        Some(AuditAction::SendTest) => v1::AuditAction::SendTest,
        Some(AuditAction::Refuse) => v1::AuditAction::Refuse,
    }
}

/// RPC of an entry; empty if there is none.
fn method(entry: &AuditEntry) -> String {
    let method = match entry.action {
        Some(AuditAction::Create | AuditAction::Replace) => "Configure",
        Some(AuditAction::Delete) => "Delete",
        Some(AuditAction::IssueExternalId) => "GenerateExternalId",
        Some(AuditAction::SendTest) => "SendTest",
        Some(AuditAction::Refuse | AuditAction::Status | AuditAction::ExternalIdTookOver)
        | None => return entry.method.to_string(),
    };
    format!("siem.v1.SiemIntegrationService/{method}")
}

/// Converts an entry, whose id the callers get as `entry_id`.
pub(super) fn message(entry: AuditEntry, entry_id: String) -> v1::AuditEntry {
    let reason = format!("ERROR_REASON_{}", entry.reason);
    let reason = v1::ErrorReason::from_str_name(&reason);
    let text = |text: Option<Box<str>>| text.map(String::from).unwrap_or_default();
    let actor = &entry.actor;
    v1::AuditEntry {
        entry_id,
        time: Some(super::convert::timestamp(entry.at)),
        last_time: Some(super::convert::timestamp(entry.last_at)),
        count: entry.count,
        action: action(entry.action).into(),
        method: method(&entry),
        principal: actor.principal.to_string(),
        issuer: actor.issuer.as_deref().unwrap_or_default().to_owned(),
        peer: actor.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        request_id: actor
            .request_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        client_request_id: text(actor.client_request_id.clone()),
        organization_id: entry.organization_id.into(),
        integration_id: entry
            .integration_id
            .map(|id| id.to_string())
            .unwrap_or_default(),
        code: entry.code.into(),
        reason: reason.unwrap_or_default().into(),
        changes: entry
            .changes
            .into_iter()
            .map(|change| v1::AuditChange {
                field: change.field.into_owned(),
                old_value: change.old.into_owned(),
                new_value: change.new.into_owned(),
            })
            .collect(),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use tokio::sync::mpsc;

    use super::*;

    /// Attempt of a request with this path, and what is recorded of it.
    pub(in crate::api) fn recording(path: &str) -> (Attempt, mpsc::UnboundedReceiver<Refusal>) {
        let (sender, recorded) = mpsc::unbounded_channel();
        let shared = Shared::new(move |refusal| drop(sender.send(refusal)));
        let request = Request::builder().uri(path).body(()).unwrap();
        (Attempt::new(&request, Arc::new(shared)), recorded)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::{testing::recording, *};
    use crate::domain::rights::Rights;

    fn attempt(request_id: &str) -> Attempt {
        let request = Request::builder().header(REQUEST_ID, request_id);
        let nothing = Arc::new(Shared::new(|_| ()));
        Attempt::new(&request.body(()).unwrap(), nothing)
    }

    #[test]
    fn methods_are_known() {
        let methods = methods();
        for method in [
            "siem.v1.SiemIntegrationService/ListAuditEntries",
            "siem.v1.EventService/PublishStream",
            "grpc.health.v1.Health/Check",
        ] {
            assert!(methods.contains(method), "{method}");
        }
        let of_service = |method: &&str| {
            methods.contains(&format!("siem.v1.SiemIntegrationService/{method}"))
                || methods.contains(&format!("siem.v1.EventService/{method}"))
        };
        assert!(WRITES.iter().all(of_service));
    }

    #[test]
    fn an_id_of_the_caller_is_kept_if_it_is_short_and_visible() {
        let longest = "x".repeat(MAX_REQUEST_ID);
        for good in ["a", "018f-7.b/c=", &longest] {
            let actor = attempt(good).actor();
            assert_eq!(actor.client_request_id.as_deref(), Some(good));
        }
        for bad in ["", " ", "a b", "a\tb", "é", &format!("{longest}x")] {
            assert_eq!(attempt(bad).actor().client_request_id, None, "{bad:?}");
        }
        let ids = [attempt("a"), attempt("a")].map(|one| one.actor().request_id);
        assert!(ids[0].is_some() && ids[0] != ids[1]);
    }

    #[tokio::test]
    async fn refusals_are_found_in_headers_and_at_the_end_of_streams() {
        let (sender, mut recorded) = mpsc::unbounded_channel();
        let layer = AuditLayer::new(move |refusal| sender.send(refusal).unwrap());
        let refusing = tower::service_fn(|request: Request<()>| async move {
            let attempt = request.extensions().get::<Attempt>().unwrap();
            attempt.concerns("acme");
            let status = Status::from(ApiError::PermissionDenied("not yours"));
            Ok::<_, std::convert::Infallible>(match caller::is_stream(request.uri().path()) {
                false => status.into_http(),
                true => {
                    let mut trailers = HeaderMap::new();
                    status.add_header(&mut trailers).unwrap();
                    let body = http_body_util::Empty::<bytes::Bytes>::new();
                    let body = body.with_trailers(async { Some(Ok(trailers)) });
                    Response::new(tonic::body::Body::new(body))
                }
            })
        });
        let mut service = layer.layer(refusing);
        for method in [
            "siem.v1.SiemIntegrationService/Get",
            "siem.v1.SiemIntegrationService/StreamStatus",
            "siem.v1.EventService/PublishStream",
            "grpc.health.v1.Health/Watch",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ] {
            let request = Request::builder().uri(format!("/{method}"));
            let call = service.call(request.body(()).unwrap());
            let answer = call.await.unwrap();
            answer.into_body().collect().await.unwrap();
            let refusal = recorded.try_recv().unwrap();
            assert_eq!(&*refusal.method, method);
            assert_eq!(
                (&*refusal.code, &*refusal.reason, &*refusal.organization_id),
                ("PERMISSION_DENIED", "PERMISSION_DENIED", "acme")
            );
            // No layer has noted the caller.
            assert_eq!(refusal.class, CallerClass::Anonymous);
            assert!(recorded.try_recv().is_err());
        }
    }

    #[test]
    fn a_caller_that_was_noted_is_the_author() {
        let mut request = Request::new(());
        let (attempt, mut recorded) = recording("/x");
        request.extensions_mut().insert(attempt.clone());
        let mut caller = Caller::for_test("alice", Rights::UNLIMITED);
        caller.issuer = Some("https://issuer.example".into());
        request.extensions_mut().insert(caller);
        note_caller(request);
        let actor = attempt.actor();
        assert_eq!(&*actor.principal, "alice");
        assert_eq!(actor.issuer.as_deref(), Some("https://issuer.example"));
        let status = Status::from(ApiError::PermissionDenied("not yours"));
        attempt.answered(&status);
        let refusal = recorded.try_recv().unwrap();
        assert_eq!(refusal.class, CallerClass::Authenticated);
    }

    #[test]
    fn foreign_organizations_beyond_a_few_are_counted_together() {
        let (attempt, mut recorded) = recording("/siem.v1.EventService/Publish");
        let mut foreign = Foreign::default();
        for number in 0..100 {
            foreign.add(&format!("o{number}"));
            foreign.add("o0");
        }
        attempt.refuse_foreign(foreign);
        let mut counts = BTreeMap::new();
        while let Ok(refusal) = recorded.try_recv() {
            assert_eq!(&*refusal.code, "PERMISSION_DENIED");
            counts.insert(refusal.organization_id, refusal.count);
        }
        assert_eq!(counts.len(), MAX_FOREIGN + 1);
        assert_eq!((counts["o0"], counts["o1"]), (101, 1));
        assert_eq!(counts.values().sum::<u64>(), 200);
    }

    #[test]
    fn refusals_are_those_of_callers() {
        let configure = "/siem.v1.SiemIntegrationService/Configure";
        let get = "/siem.v1.SiemIntegrationService/Get";
        let limited = || ApiError::RateLimited {
            limit: "one at a time",
            retry_after: std::time::Duration::from_secs(1),
        };
        let refused = |error: ApiError, path: &str| {
            let (attempt, mut recorded) = recording(path);
            attempt.answered(&error.into());
            let refusal = recorded.try_recv().ok()?;
            Some((refusal.code.to_string(), refusal.method.to_string()))
        };
        let found = |code: &str, path: &str| {
            Some((code.to_owned(), path.trim_start_matches('/').to_owned()))
        };
        let unknown = || ApiError::Unauthenticated("no token");
        assert_eq!(refused(unknown(), get), found("UNAUTHENTICATED", get));
        assert_eq!(
            refused(unknown(), "/no.Service/Method"),
            found("UNAUTHENTICATED", "")
        );
        assert_eq!(
            refused(limited(), configure),
            found("RESOURCE_EXHAUSTED", configure)
        );
        assert_eq!(refused(limited(), get), None);
        assert_eq!(refused(ApiError::Overloaded, configure), None);
        assert_eq!(refused(ApiError::EtagMismatch, configure), None);
    }
}
