//! Tokens, callers files and their keys for tests.

use std::path::PathBuf;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Issuer of [`Files::new`].
pub(super) const ISSUER: &str = "https://login.example.com";

/// Key pair of an issuer.
pub(super) struct Signer {
    id: &'static str,
    key: Ed25519KeyPair,
}

impl Signer {
    pub(super) fn new(id: &'static str) -> Self {
        Self {
            id,
            key: Ed25519KeyPair::generate().unwrap(),
        }
    }

    fn jwk(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x })
    }

    pub(super) fn key_set(signers: &[&Self]) -> String {
        let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
        json!({ "keys": keys }).to_string()
    }

    /// Signs a token of a subject that expires at this time.
    pub(super) fn token(&self, subject: &str, expires_at: i64) -> String {
        let header = json!({ "alg": "EdDSA", "kid": self.id });
        let claims =
            json!({ "iss": ISSUER, "sub": subject, "aud": "siem-relay", "exp": expires_at });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A callers file beside a key set, with one issuer.
pub(super) struct Files {
    dir: TempDir,
    issuer: String,
}

impl Files {
    /// `keys` is the location of the keys: `jwks_file = "keys.json"`, or a URL.
    pub(super) fn new(keys: &str, callers: &str) -> Self {
        let files = Self {
            dir: TempDir::new().unwrap(),
            issuer: format!("[[issuers]]\nissuer = '{ISSUER}'\naudience = 'siem-relay'\n{keys}\n"),
        };
        files.write_callers(callers);
        files
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("callers.toml")
    }

    pub(super) fn write_callers(&self, callers: &str) {
        std::fs::write(self.path(), format!("{}{callers}", self.issuer)).unwrap();
    }

    pub(super) fn write_keys(&self, signers: &[&Signer]) {
        std::fs::write(self.dir.path().join("keys.json"), Signer::key_set(signers)).unwrap();
    }
}

/// Entry of a caller with a subject, for organizations such as `'acme', 'test-*'`.
pub(super) fn subject(subject: &str, scope: &str, organizations: &str) -> String {
    entry(
        &format!("issuer = '{ISSUER}'\nsubject = '{subject}'"),
        scope,
        organizations,
    )
}

/// Entry of a caller with an identity.
pub(super) fn entry(identity: &str, scope: &str, organizations: &str) -> String {
    format!("[[callers]]\n{identity}\nscopes = ['{scope}']\norganizations = [{organizations}]\n")
}
