//! A callers file, and tokens of its issuer.

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::Request;

/// Key pair of an issuer of tokens.
pub struct TokenKey {
    id: String,
    key: Ed25519KeyPair,
}

impl TokenKey {
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            key: Ed25519KeyPair::generate().unwrap(),
        }
    }

    /// Key set with the public key.
    pub fn key_set(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.key.public_key());
        let key = json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x });
        json!({ "keys": [key] }).to_string()
    }

    /// Signs claims.
    pub fn sign(&self, claims: &Value) -> String {
        let header = json!({ "alg": "EdDSA", "kid": self.id, "typ": "JWT" });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Files of callers of one issuer.
pub struct Callers {
    dir: TempDir,
    keys: String,
    pub key: TokenKey,
}

impl Callers {
    pub const ISSUER: &str = "https://login.example.com";

    /// Callers with keys in a file.
    pub fn new(callers: &[String]) -> Self {
        let new = Self::with_keys("jwks_file = 'keys.json'", callers);
        std::fs::write(new.dir.path().join("keys.json"), new.key.key_set()).unwrap();
        new
    }

    /// Callers with keys at this location.
    pub fn with_keys(location: &str, callers: &[String]) -> Self {
        let new = Self {
            dir: TempDir::new().unwrap(),
            keys: location.to_owned(),
            key: TokenKey::new("first"),
        };
        new.write(callers);
        new
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("callers.toml")
    }

    /// Writes the file as a deployment does: a reader sees the old or the new one.
    pub fn write(&self, callers: &[String]) {
        let issuer = Self::ISSUER;
        let text = format!(
            "[[issuers]]\nissuer = '{issuer}'\naudience = 'siem-relay'\n{}\norganizations_claim = 'organizations'\n{}",
            self.keys,
            callers.concat()
        );
        let new = self.dir.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    /// Entry of a caller, with scopes such as `read write`.
    pub fn caller(subject: &str, scopes: &str, organizations: &[&str]) -> String {
        let issuer = Self::ISSUER;
        let scopes: Vec<String> = scopes
            .split(' ')
            .map(|scope| format!("siem.{scope}"))
            .collect();
        format!(
            "[[callers]]\nissuer = '{issuer}'\nsubject = '{subject}'\nscopes = {scopes:?}\norganizations = {organizations:?}\n"
        )
    }

    /// Claims of a subject's token without a limit to organizations.
    pub fn claims(subject: &str) -> Value {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        json!({
            "iss": Self::ISSUER,
            "sub": subject,
            "aud": ["other", "siem-relay"],
            "iat": now,
            "exp": now + 3600,
            "organizations": "*",
        })
    }

    pub fn token(&self, subject: &str) -> String {
        self.key.sign(&Self::claims(subject))
    }

    /// A request with a subject's token.
    pub fn by<M>(&self, subject: &str, message: M) -> Request<M> {
        bearer(&self.token(subject), message)
    }
}

/// A request with a token; without one if it is empty.
pub fn bearer<M>(token: &str, message: M) -> Request<M> {
    let mut request = Request::new(message);
    if !token.is_empty() {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}
