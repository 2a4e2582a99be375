use std::{convert::Infallible, time::Duration};

use http_body_util::{BodyExt as _, Empty};
use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tower::ServiceExt as _;

use super::{
    testing::{Files, Signer, entry, subject},
    *,
};
use crate::api::LimitOptions;

const GET: &str = "/siem.v1.SiemIntegrationService/Get";
const STREAM: &str = "/siem.v1.SiemIntegrationService/StreamStatus";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

fn certificate(names: &[&str], year: i32) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.not_after = date_time_ymd(year, 1, 1);
    let names = names
        .iter()
        .map(|name| SanType::URI((*name).try_into().unwrap()));
    params.subject_alt_names = names.collect();
    let key = KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

/// Callers `one` by token, and `spiffe://example.org/one` by certificate.
struct Env {
    signer: Signer,
    files: Files,
    callers: Callers,
}

impl Env {
    fn new() -> Self {
        let signer = Signer::new("a");
        let files = Files::new("jwks_file = 'keys.json'", &Self::entries("'acme', 'beta'"));
        files.write_keys(&[&signer]);
        Self {
            callers: Callers::open(&files.path()).unwrap(),
            signer,
            files,
        }
    }

    fn entries(organizations: &str) -> String {
        let by_token = subject("one", "siem.read", organizations);
        let spiffe = "spiffe = 'spiffe://example.org/one'";
        by_token + &entry(spiffe, "siem.read', 'siem.write", "'acme', 'gamma'")
    }

    fn token(&self) -> String {
        format!("Bearer {}", self.signer.token("one", now() + 600))
    }

    async fn call(
        &self,
        path: &str,
        authorization: &[&str],
        certificates: &[CertificateDer<'static>],
    ) -> Answer {
        let inner = tower::service_fn(|request: Request<tonic::body::Body>| async move {
            assert!(!request.headers().contains_key(AUTHORIZATION));
            let mut answer = Answer::default();
            answer
                .extensions_mut()
                .insert(request.extensions().get::<Caller>().cloned());
            // A stream that does not end by itself.
            *answer.body_mut() = tonic::body::Body::new(http_body_util::StreamBody::new(
                futures_util::stream::pending::<Result<Frame<Bytes>, Status>>(),
            ));
            Ok::<_, Infallible>(answer)
        });
        let layer = CallerLayer {
            callers: Some(self.callers.clone()),
            limits: Limits::new(LimitOptions {
                requests_per_second: 0,
                streams: 0,
                events_per_second: 0,
                test_interval: Duration::ZERO,
                failed_authentications_per_second: 0,
            }),
        };
        let mut request = Request::builder().uri(path);
        for value in authorization {
            request = request.header(AUTHORIZATION, *value);
        }
        let body = tonic::body::Body::new(Empty::new());
        let mut request = request.body(body).unwrap();
        request.extensions_mut().insert(Peer {
            address: None,
            certificates: certificates.into(),
        });
        layer.layer(inner).oneshot(request).await.unwrap()
    }

    async fn caller(
        &self,
        authorization: &[&str],
        certificates: &[CertificateDer<'static>],
    ) -> Result<Caller, Status> {
        let answer = self.call(GET, authorization, certificates).await;
        caller_of(&answer)
    }
}

fn caller_of(answer: &Answer) -> Result<Caller, Status> {
    match Status::from_header_map(answer.headers()) {
        Some(status) => Err(status),
        None => Ok(answer
            .extensions()
            .get::<Option<Caller>>()
            .unwrap()
            .clone()
            .unwrap()),
    }
}

#[tokio::test]
async fn a_token_or_a_certificate_identifies_a_caller() {
    let env = Env::new();
    let token = env.token();
    let of_one = certificate(&["spiffe://EXAMPLE.org/one"], 2999);
    let by_token = env.caller(&[&token], &[]).await.unwrap();
    assert_eq!(&*by_token.principal, "https://login.example.com#one");
    assert_eq!(
        by_token.issuer.as_deref(),
        Some("https://login.example.com")
    );
    let by_certificate = env
        .caller(&[], std::slice::from_ref(&of_one))
        .await
        .unwrap();
    assert_eq!(&*by_certificate.principal, "spiffe://example.org/one");
    assert!(by_certificate.rights.has(Scope::Write));
    let by_both = env
        .caller(&[&token.replace("Bearer", "bearer")], &[of_one])
        .await
        .unwrap();
    assert_eq!(
        &*by_both.principal,
        "spiffe://example.org/one https://login.example.com#one"
    );
    assert!(by_both.rights.has(Scope::Read) && !by_both.rights.has(Scope::Write));
    let covered = ["acme", "beta", "gamma"].map(|id| by_both.rights.cover(id));
    assert_eq!(covered, [true, false, false]);
}

#[tokio::test]
async fn other_credentials_are_refused_also_beside_good_ones() {
    let env = Env::new();
    let good = env.token();
    let bad_header = [
        "Bearer",
        "Bearer ",
        "Basic dTpw",
        "",
        "Bearer x",
        &good[7..],
        "Bearer\u{a0}x",
    ];
    for header in bad_header {
        let refused = env.caller(&[header], &[]).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated, "{header:?}");
    }
    let refused = env.caller(&[&good, &good], &[]).await.err().unwrap();
    assert!(refused.message().contains("several authorization headers"));
    let names: [(&[&str], i32, &str); 5] = [
        (&["spiffe://example.org/two"], 2999, "known caller"),
        (
            &["spiffe://example.org/one", "spiffe://example.org/two"],
            2999,
            "another URI",
        ),
        (&["spiffe://example.org/one"], 2020, "expired"),
        (&["https://example.org/one"], 2999, "known caller"),
        (&[], 2999, "known caller"),
    ];
    for (names, year, part) in names {
        for authorization in [&[][..], &[good.as_str()]] {
            let certificates = [certificate(names, year)];
            let refused = env
                .caller(authorization, &certificates)
                .await
                .err()
                .unwrap();
            assert_eq!(refused.code(), Code::Unauthenticated, "{names:?}");
            assert!(refused.message().contains(part), "{refused:?}");
        }
    }
    let of_one = certificate(&["spiffe://example.org/one"], 2999);
    let refused = env
        .caller(&["Bearer x"], std::slice::from_ref(&of_one))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    // Only the peer's own certificate identifies it, which is the first.
    let chain = [certificate(&["spiffe://example.org/two"], 2999), of_one];
    assert!(env.caller(&[], &chain).await.is_err());
}

#[tokio::test]
async fn a_path_without_an_entry_is_refused() {
    let env = Env::new();
    let token = env.token();
    let paths = [
        "/",
        "//siem.v1.SiemIntegrationService/Get",
        "/siem.v1.SiemIntegrationService/Get/",
        "/x/y",
    ];
    for path in paths {
        let anonymous = caller_of(&env.call(path, &[], &[]).await).err().unwrap();
        assert_eq!(anonymous.code(), Code::Unauthenticated, "{path}");
        let known = caller_of(&env.call(path, &[&token], &[]).await)
            .err()
            .unwrap();
        assert_eq!(known.code(), Code::Unimplemented, "{path}");
    }
    let delete = "/siem.v1.SiemIntegrationService/Delete";
    let refused = caller_of(&env.call(delete, &[&token], &[]).await)
        .err()
        .unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("siem.write"));
    for authorization in [&[][..], &["Bearer x"]] {
        let anonymous = caller_of(&env.call(HEALTH, authorization, &[]).await).unwrap();
        assert!(!anonymous.is_identified() && !anonymous.rights.cover("acme"));
    }
    assert!(
        caller_of(&env.call(HEALTH, &[&token], &[]).await)
            .unwrap()
            .is_identified()
    );
}

async fn end_of(answer: Answer) -> Status {
    let body = answer.into_body().collect().await.unwrap();
    Status::from_header_map(body.trailers().unwrap()).unwrap()
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let env = Env::new();
    let token = format!("Bearer {}", env.signer.token("one", now() + 2));
    let answer = env.call(STREAM, &[&token], &[]).await;
    let end = end_of(answer).await;
    assert_eq!(end.code(), Code::Unauthenticated);
    assert!(end.message().contains("expired"), "{end:?}");
}

#[tokio::test]
async fn a_stream_ends_with_the_rights_of_its_caller() {
    for (callers, keys, code) in [
        (
            subject("one", "siem.write", "'acme'"),
            "a",
            Code::PermissionDenied,
        ),
        (
            subject("two", "siem.read", "'acme'"),
            "a",
            Code::Unauthenticated,
        ),
        (Env::entries("'acme', 'beta'"), "b", Code::Unauthenticated),
    ] {
        let env = Env::new();
        let stop = CancellationToken::new();
        let running = tokio::spawn(env.callers.clone().keep_current(stop.clone()));
        let answer = env.call(STREAM, &[&env.token()], &[]).await;
        let caller = caller_of(&answer).unwrap();
        caller.rights_now().unwrap();
        env.files.write_callers(&callers);
        match keys {
            "a" => env.files.write_keys(&[&env.signer]),
            _ => env.files.write_keys(&[&Signer::new("b")]),
        }
        let end = end_of(answer).await;
        assert_eq!(end.code(), code, "{end:?}");
        assert_eq!(Status::from(caller.rights_now().unwrap_err()).code(), code);
        stop.cancel();
        running.await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_learns_of_other_organizations() {
    let env = Env::new();
    let stop = CancellationToken::new();
    let running = tokio::spawn(env.callers.clone().keep_current(stop.clone()));
    let answer = env.call(STREAM, &[&env.token()], &[]).await;
    let caller = caller_of(&answer).unwrap();
    env.files.write_callers(&Env::entries("'acme'"));
    let rights = caller.changed(caller.rights()).await.unwrap();
    assert!(rights.cover("acme") && !rights.cover("beta"));
    stop.cancel();
    running.await.unwrap();
}
