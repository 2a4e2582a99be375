//! The caller of a request: its identity and its rights.
//!
//! [`CallerLayer`] refuses whatever [`rpc`] does not list, and whoever lacks the scope that is
//! listed there. Handlers check the organizations, which only the decoded request names.

mod certificate;
mod directory;
mod file;
mod json;
mod key_set;
mod refresh;
mod rpc;
#[cfg(test)]
mod testing;
mod token;

use std::{
    fmt,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use aws_lc_rs::digest::{Digest, SHA256, digest};
use bytes::Bytes;
use futures_util::future::{BoxFuture, Either};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use http_body::{Body, Frame};
use secrecy::SecretString;
use tokio::time::sleep;
use tonic::Status;
use tower::{Layer, Service};

pub use self::directory::{Callers, CallersError};
pub(super) use self::rpc::is_stream;
use self::{
    directory::{Access, Credentials, Directory, now},
    rpc::{Need, Rpc},
};
use super::{
    audit::Attempt,
    errors::ApiError,
    limits::{CallerKey, Limits},
    peer::Peer,
};
use crate::domain::rights::{Rights, Scope};

/// Principal of every request while authentication is off.
pub(super) static UNAUTHENTICATED: LazyLock<Arc<str>> = LazyLock::new(|| "unauthenticated".into());

/// Longest time until the expiry of a stream's credentials is compared with the clock again, which
/// may have been set meanwhile.
const EXPIRY_CHECK: Duration = Duration::from_secs(60);

/// Caller of a request. An extension of each request.
#[derive(Clone)]
pub(super) struct Caller {
    /// Unique name, such as the SPIFFE ID of a certificate, or issuer and subject of a token.
    pub(super) principal: Arc<str>,
    /// Issuer of the token; None for other callers.
    pub(super) issuer: Option<Arc<str>>,
    /// Address of its connection.
    pub(super) address: Option<SocketAddr>,
    /// RPC that it calls.
    rpc: &'static str,
    /// Rights when the request came.
    rights: Rights,
    /// None while authentication is off, and for a caller of health without an identity.
    session: Option<Arc<Session>>,
}

/// Caller that a page token or a resume token is for; None while authentication is off.
pub(super) struct Binding(pub(super) Option<Digest>);

/// Credentials of a request, to check its rights again while it runs.
struct Session {
    callers: Callers,
    credentials: Credentials,
    /// Result of the last check, and the directory that it is of.
    last: Mutex<(Arc<Directory>, Access)>,
}

impl Session {
    /// Rights at this time. Cheap while neither the callers file nor the keys have changed.
    fn access(&self, now: i64) -> Result<Access, ApiError> {
        let current = self.callers.current();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&last.0, &current) || last.1.expires_at <= now {
            let access = current.access(&self.credentials, now);
            let access = access.map_err(|denied| ApiError::Unauthenticated(denied.problem()))?;
            *last = (current, access);
        }
        Ok(last.1.clone())
    }
}

impl Caller {
    /// The caller of a request that passed [`CallerLayer`].
    pub(super) fn of<T>(request: &tonic::Request<T>) -> Self {
        let caller = request.extensions().get::<Self>();
        caller.cloned().unwrap_or_else(|| Self {
            rights: Rights::none(),
            ..Self::unlimited(None)
        })
    }

    /// Whether it has proven its identity.
    pub(super) fn is_authenticated(&self) -> bool {
        *self.principal != **UNAUTHENTICATED
    }

    /// The caller of every request while authentication is off.
    fn unlimited(address: Option<SocketAddr>) -> Self {
        Self {
            principal: Arc::clone(&UNAUTHENTICATED),
            issuer: None,
            address,
            rpc: "",
            rights: Rights::UNLIMITED,
            session: None,
        }
    }

    #[cfg(test)]
    pub(super) fn for_test(principal: &str, rights: Rights) -> Self {
        Self {
            principal: principal.into(),
            rights,
            ..Self::unlimited(None)
        }
    }

    /// Rights when the request came.
    pub(super) fn rights(&self) -> &Rights {
        &self.rights
    }

    /// Replaces the rights by those that [`Caller::changed`] returned.
    pub(super) fn set_rights(&mut self, rights: Rights) {
        self.rights = rights;
    }

    /// Whether it may see more than a probe may.
    pub(super) fn is_identified(&self) -> bool {
        self.session.is_some() || self.rights == Rights::UNLIMITED
    }

    /// Binding of page tokens and resume tokens. It differs between callers, and after a change of
    /// the caller's organizations.
    pub(super) fn binding(&self) -> Binding {
        let organizations = self.rights.organizations();
        Binding(organizations.map(|organizations| {
            let text = format!("{}\n{organizations}", self.principal);
            digest(&SHA256, text.as_bytes())
        }))
    }

    /// Checks the right to an organization.
    pub(super) fn require(&self, organization_id: &str) -> Result<(), ApiError> {
        match self.rights.cover(organization_id) {
            true => Ok(()),
            false => Err(self.refuse(ApiError::PermissionDenied(FOREIGN))),
        }
    }

    /// Whether it has the right to an organization. Otherwise the organization is to look as if
    /// it had no integration.
    pub(super) fn sees(&self, organization_id: &str) -> bool {
        let covers = self.rights.cover(organization_id);
        if !covers {
            self.refuse(ApiError::PermissionDenied(FOREIGN));
        }
        covers
    }

    /// Checks the right to configure an organization with AWS accounts.
    pub(super) fn require_accounts(
        &self,
        organization_id: &str,
        accounts: [&str; 2],
    ) -> Result<(), ApiError> {
        let mut accounts = accounts.into_iter();
        match accounts.all(|account| self.rights.allow_account(organization_id, account)) {
            true => Ok(()),
            false => Err(self.refuse(ApiError::PermissionDenied(
                "the caller may not use the AWS account of the stream or of the role for this organization",
            ))),
        }
    }

    /// Rights now, for a message of a stream.
    pub(super) fn rights_now(&self) -> Result<Rights, ApiError> {
        let Some(session) = &self.session else {
            return Ok(self.rights.clone());
        };
        let access = session.access(now());
        let rights = access.map_err(|error| self.refuse(error))?.rights;
        self.check_scope(&rights)?;
        Ok(rights)
    }

    /// Waits until the rights differ from `known`; for ever if they cannot change. Fails once the
    /// caller has no right to the RPC any more.
    pub(super) async fn changed(&self, known: &Rights) -> Result<Rights, ApiError> {
        let Some(session) = &self.session else {
            return std::future::pending().await;
        };
        let mut directory = session.callers.subscribe();
        loop {
            directory.borrow_and_update();
            let rights = self.rights_now()?;
            if rights != *known {
                return Ok(rights);
            }
            let expires_at = session.access(now())?.expires_at;
            let left = u64::try_from(expires_at - now()).unwrap_or_default();
            let left = Duration::from_secs(left).min(EXPIRY_CHECK);
            tokio::select! {
                _changed = directory.changed() => {}
                () = sleep(left) => {}
            }
        }
    }

    /// Waits until the caller has no right to the RPC any more.
    async fn revoked(self) -> ApiError {
        let mut rights = self.rights.clone();
        loop {
            match self.changed(&rights).await {
                Ok(changed) => rights = changed,
                Err(error) => return error,
            }
        }
    }

    /// Checks the scope of the RPC.
    fn check_scope(&self, rights: &Rights) -> Result<(), ApiError> {
        let need = rpc::find(self.rpc).map(|rpc| rpc.need);
        match need {
            Some(Need::Scope(scope)) if !rights.has(scope) => {
                Err(self.refuse(ApiError::PermissionDenied(lacks(scope))))
            }
            _ => Ok(()),
        }
    }

    /// Logs a refusal. All refusals for want of an identity or a right pass here.
    fn refuse(&self, error: ApiError) -> ApiError {
        tracing::debug!(
            principal = &*self.principal,
            issuer = self.issuer.as_deref(),
            address = self.address.map(tracing::field::display),
            rpc = self.rpc,
            %error,
            "refused"
        );
        error
    }
}

const FOREIGN: &str = "the caller has no right to this organization";

fn lacks(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "the caller lacks the scope siem.read",
        Scope::Write => "the caller lacks the scope siem.write",
        Scope::Publish => "the caller lacks the scope siem.publish",
        Scope::Audit => "the caller lacks the scope siem.audit",
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.principal)?;
        match self.address {
            Some(address) => write!(f, " {address}"),
            None => Ok(()),
        }
    }
}

/// Layer that adds the [`Caller`] to each request, or refuses it. The layer of the limits is further
/// inside, because they are those of callers; so what is refused here is limited here.
#[derive(Clone)]
pub(super) struct CallerLayer {
    /// None while authentication is off.
    pub(super) callers: Option<Callers>,
    pub(super) limits: Limits,
}

impl<S> Layer<S> for CallerLayer {
    type Service = CallerService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallerService {
            callers: self.callers.clone(),
            limits: self.limits.clone(),
            inner,
        }
    }
}

/// Service of [`CallerLayer`].
#[derive(Clone)]
pub(super) struct CallerService<S> {
    callers: Option<Callers>,
    limits: Limits,
    inner: S,
}

type Answer = Response<tonic::body::Body>;

impl<S> Service<Request<tonic::body::Body>> for CallerService<S>
where
    S: Service<Request<tonic::body::Body>, Response = Answer> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Answer, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        let peer = request.extensions().get::<Peer>();
        let address = peer.and_then(|peer| peer.address);
        let Some(callers) = self.callers.clone() else {
            request.extensions_mut().insert(Caller::unlimited(address));
            return Either::Left(self.inner.call(request));
        };
        // The service that was polled must be the one that is called.
        let inner = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, inner);
        let limits = self.limits.clone();
        Either::Right(Box::pin(async move {
            let rpc = rpc::find(request.uri().path());
            let caller = match authorize(callers, &limits, &mut request, address, rpc).await {
                Ok(caller) => caller,
                Err(refused) => return Ok(refused.into_http()),
            };
            request.extensions_mut().insert(caller.clone());
            let answer = inner.call(request).await?;
            match rpc {
                Some(rpc) if rpc.is_stream && caller.session.is_some() => Ok(answer.map(|body| {
                    tonic::body::Body::new(EndingBody {
                        body,
                        revoked: Box::pin(caller.revoked()),
                        has_ended: false,
                    })
                })),
                _ => Ok(answer),
            }
        }))
    }
}

/// Returns the caller of a request, if it may call the RPC.
async fn authorize(
    callers: Callers,
    limits: &Limits,
    request: &mut Request<tonic::body::Body>,
    address: Option<SocketAddr>,
    rpc: Option<&'static Rpc>,
) -> Result<Caller, Status> {
    let path = rpc.map_or("unknown", |rpc| rpc.path);
    let nobody = Caller {
        rpc: path,
        rights: Rights::none(),
        ..Caller::unlimited(address)
    };
    let needs_nothing = rpc.is_some_and(|rpc| rpc.need == Need::Nothing);
    let credentials = credentials(request);
    // Probes are no failed authentications.
    if needs_nothing && matches!(&credentials, Ok(credentials) if credentials.are_absent()) {
        return Ok(nobody);
    }
    let address = CallerKey::of_address(address);
    let (credentials, (access, directory)) =
        match authenticate(&callers, limits, &address, credentials).await {
            Ok(authenticated) => authenticated,
            Err(_) if needs_nothing => return Ok(nobody),
            Err(error) => return Err(nobody.refuse(error).into()),
        };
    let caller = Caller {
        principal: Arc::clone(&access.principal),
        issuer: access.issuer.clone(),
        rights: access.rights.clone(),
        session: Some(Arc::new(Session {
            callers,
            credentials,
            last: Mutex::new((directory, access)),
        })),
        ..nobody
    };
    if let Some(attempt) = request.extensions().get::<Attempt>() {
        attempt.note_caller(&caller);
    }
    let allowed = match rpc {
        None => Err(Status::unimplemented("this server has no such RPC")),
        Some(_) => caller.check_scope(&caller.rights).map_err(Status::from),
    };
    match allowed {
        Ok(()) => Ok(caller),
        Err(refused) => {
            limits.admit_request(&CallerKey::of(&caller))?;
            Err(refused)
        }
    }
}

type Authenticated = (Credentials, (Access, Arc<Directory>));

/// Returns what credentials prove. Failures are limited by address; see
/// [`Limits::admit_authentication`].
async fn authenticate(
    callers: &Callers,
    limits: &Limits,
    address: &CallerKey,
    credentials: Result<Credentials, &'static str>,
) -> Result<Authenticated, ApiError> {
    let is_cheap = match &credentials {
        Ok(credentials) => callers.current().has_verified(credentials),
        Err(_) => true,
    };
    if !is_cheap {
        limits.admit_authentication(address)?;
    }
    let checked = match credentials {
        Ok(credentials) => {
            let access = callers.access(&credentials).await;
            access.map(|access| (credentials, access))
        }
        Err(problem) => Err(problem),
    };
    match checked {
        Ok(authenticated) => {
            if !is_cheap {
                limits.authenticated(address);
            }
            Ok(authenticated)
        }
        Err(problem) => {
            if is_cheap {
                limits.admit_authentication(address)?;
            }
            Err(ApiError::Unauthenticated(problem))
        }
    }
}

/// Takes the credentials out of a request: layers below need no token, and cannot log it.
fn credentials(request: &mut Request<tonic::body::Body>) -> Result<Credentials, &'static str> {
    let token = take_token(request.headers_mut())?;
    let peer = request.extensions().get::<Peer>();
    Ok(Credentials {
        certificate: peer.and_then(|peer| peer.certificates.first().cloned()),
        token,
    })
}

/// Takes the token out of `authorization: Bearer TOKEN` ([RFC 6750]).
///
/// [RFC 6750]: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
fn take_token(headers: &mut HeaderMap) -> Result<Option<SecretString>, &'static str> {
    if headers.get_all(AUTHORIZATION).iter().nth(1).is_some() {
        return Err("the request has several authorization headers");
    }
    let Some(value) = headers.remove(AUTHORIZATION) else {
        return Ok(None);
    };
    let text = value.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Some(SecretString::from(token.trim_start_matches(' '))))
        }
        _ => Err("the authorization header is not of the form Bearer TOKEN"),
    }
}

/// Body of an answer that ends with an error once the caller's rights have ended.
struct EndingBody {
    body: tonic::body::Body,
    revoked: BoxFuture<'static, ApiError>,
    has_ended: bool,
}

impl Body for EndingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        // First, so that nothing is sent after the end of the rights.
        if let Poll::Ready(error) = self.revoked.as_mut().poll(cx) {
            self.has_ended = true;
            let mut trailers = HeaderMap::new();
            let status = Status::from(error);
            let added = status.add_header(&mut trailers);
            return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }
}

/// Reads what a peer sends to prove its identity, and panics if a token is accepted whose signature
/// the trusted key, the one of RFC 8037, has not made.
#[cfg(feature = "fuzzing")]
pub fn fuzz_credentials(header: &[u8], claims: &[u8], signature: &[u8], other: &[u8]) {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    const CALLERS: &str = "[[issuers]]\nissuer = 'i'\naudience = 'a'\njwks_file = 'k'\n\n\
        [[callers]]\nissuer = 'i'\nsubject = 's'\nscopes = ['siem.read']\norganizations = ['*']\n";
    const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    let file = file::CallersFile::parse(CALLERS.as_bytes(), "/".as_ref());
    let file = file.unwrap_or_else(|_| panic!("the callers file is valid"));
    let keys = key_set::KeySet::parse(KEYS.as_bytes());
    let keys = keys.unwrap_or_else(|_| panic!("the key set is valid"));
    let issuers = [token::TrustedIssuer {
        issuer: &file.issuers[0],
        keys: Some(&keys),
    }];
    let encode = |part| URL_SAFE_NO_PAD.encode(part);
    let made = format!(
        "{}.{}.{}",
        encode(header),
        encode(claims),
        encode(signature)
    );
    for token in [made.as_str(), &String::from_utf8_lossy(other)] {
        assert!(token::verify(token, &issuers, 1_800_000_000).is_err());
    }
    let _keys = key_set::KeySet::parse(other);
    let _file = file::CallersFile::parse(other, "/".as_ref());
    let _names = certificate::Certificate::read(&other.into());
}

#[cfg(test)]
mod tests;
