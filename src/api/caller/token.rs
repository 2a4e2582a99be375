//! Verification of JSON Web Tokens (RFC 7519, RFC 8725) in compact form.
//!
//! The key decides about the algorithm, never the token: a key is used for one algorithm only, and
//! the token must name the same. Nothing in a token leads to a key that the issuer's own set does
//! not have.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, crypto};
use serde_json::{Map, Value};

use super::{
    file::Issuer,
    json::parse_object,
    key_set::{KeySet, Selected},
};
use crate::domain::rights::{Organizations, Pattern, Scope, Scopes};

/// Bytes of a token.
const MAX_TOKEN: usize = 8 << 10;
/// Bytes of a subject.
const MAX_SUBJECT: usize = 256;
/// Difference of clocks in seconds that is allowed for the beginning of a token's validity. Its
/// end is exact, so that a stream that was opened with it ends at that time.
const MAX_SKEW: u64 = 60;
/// Algorithms of keys that [`KeySet`] accepts.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
/// Header fields that name a key, or that must be understood.
const REFUSED_HEADERS: [&str; 8] = ["crit", "jku", "jwk", "x5u", "x5c", "zip", "enc", "b64"];

/// Issuer with its keys.
pub(super) struct TrustedIssuer<'a> {
    pub(super) issuer: &'a Issuer,
    /// None until its keys could be read.
    pub(super) keys: Option<&'a KeySet>,
}

/// Content of a token that was verified.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) subject: Box<str>,
    /// End of its validity, in Unix seconds.
    pub(super) expires_at: i64,
    /// Scopes that it is limited to.
    pub(super) scopes: Option<Scopes>,
    /// Organizations that it is limited to.
    pub(super) organizations: Option<Organizations>,
    pub(super) claims: Map<String, Value>,
}

/// Reason why a token is refused. The text has nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenError {
    Invalid(&'static str),
    /// The keys of this issuer are unknown, or have none with the token's id. Newer ones may.
    UnknownKey {
        issuer: usize,
    },
}

use TokenError::Invalid;

/// Token whose signature was not verified yet.
struct Unverified<'a> {
    /// Header and claims as they were signed.
    signed: &'a str,
    signature: &'a str,
    header: Map<String, Value>,
    claims: Map<String, Value>,
}

impl<'a> Unverified<'a> {
    fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(Invalid("the token is larger than 8 KiB"));
        }
        let malformed = Invalid("the token is malformed");
        let (signed, signature) = token.rsplit_once('.').ok_or(malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(malformed)?;
        let object = |part: &str| parse_object(&URL_SAFE_NO_PAD.decode(part).ok()?);
        Ok(Self {
            signed,
            signature,
            header: object(header).ok_or(Invalid(
                "the header of the token is not a JSON object without repeated names",
            ))?,
            claims: object(claims).ok_or(Invalid(
                "the content of the token is not a JSON object without repeated names",
            ))?,
        })
    }

    /// Returns algorithm and key id.
    fn header(&self) -> Result<(Algorithm, Option<&str>), TokenError> {
        if REFUSED_HEADERS
            .iter()
            .any(|name| self.header.contains_key(*name))
        {
            return Err(Invalid(
                "the header of the token has crit, jku, jwk, x5u, x5c, zip, enc or b64, which are not accepted",
            ));
        }
        let name = self.header.get("alg").and_then(Value::as_str);
        let algorithm = name.and_then(|name| name.parse().ok());
        let algorithm = algorithm.filter(|algorithm| ALGORITHMS.contains(algorithm));
        let algorithm = algorithm.ok_or(Invalid(
            "the algorithm of the token is not RS256, ES256 or EdDSA",
        ))?;
        match (self.header.get("kid"), self.header.get("typ")) {
            (None | Some(Value::String(_)), None | Some(Value::String(_))) => {}
            _ => return Err(Invalid("kid or typ of the token is not a text")),
        }
        Ok((algorithm, self.header.get("kid").and_then(Value::as_str)))
    }

    /// Finds the issuer and its key, and verifies the signature. Returns the position of the
    /// issuer.
    fn verify(&self, issuers: &[TrustedIssuer<'_>]) -> Result<usize, TokenError> {
        let (algorithm, id) = self.header()?;
        let named = self.claims.get("iss").and_then(Value::as_str);
        let named = named.ok_or(Invalid(
            "the token has no issuer (iss), or one that is not a text",
        ))?;
        let mut known = issuers.iter();
        let position = known.position(|trusted| *trusted.issuer.issuer == *named);
        let issuer = position.ok_or(Invalid("the issuer (iss) of the token is not trusted"))?;
        let unknown = TokenError::UnknownKey { issuer };
        let key = match issuers[issuer].keys.ok_or(unknown)?.select(id) {
            Selected::Key(key) => key,
            Selected::Unknown => return Err(unknown),
            Selected::Ambiguous => {
                return Err(Invalid(
                    "the token does not name one key (kid) of its issuer, which has several",
                ));
            }
        };
        if key.algorithm != algorithm {
            return Err(Invalid("the algorithm of the token is not that of its key"));
        }
        let signed = self.signed.as_bytes();
        match crypto::verify(self.signature, signed, &key.key, key.algorithm) {
            Ok(true) => Ok(issuer),
            Ok(false) | Err(_) => Err(Invalid("the signature of the token is wrong")),
        }
    }
}

/// Verifies a token at this time, in Unix seconds. Returns its content and the position of its
/// issuer.
pub(super) fn verify(
    token: &str,
    issuers: &[TrustedIssuer<'_>],
    now: i64,
) -> Result<(Token, usize), TokenError> {
    let unverified = Unverified::parse(token)?;
    let position = unverified.verify(issuers)?;
    let issuer = issuers[position].issuer;
    let claims = unverified.claims;
    check_audience(claims.get("aud"), &issuer.audience)?;
    let expires_at = check_times(&claims, issuer, u64::try_from(now).unwrap_or_default())?;
    let subject = match claims.get("sub") {
        Some(Value::String(subject))
            if (1..=MAX_SUBJECT).contains(&subject.len())
                && !subject.chars().any(char::is_control) =>
        {
            subject.as_str().into()
        }
        _ => {
            return Err(Invalid(
                "the token has no subject (sub) of 1 to 256 bytes without control characters",
            ));
        }
    };
    let limit = |claim: &Option<Box<str>>| {
        let claim = claim.as_deref()?;
        Some(claims.get(claim).unwrap_or(&Value::Null))
    };
    let scopes = limit(&issuer.scopes_claim).map(scopes).transpose()?;
    let organizations = limit(&issuer.organizations_claim)
        .map(organizations)
        .transpose()?;
    let token = Token {
        subject,
        expires_at,
        scopes,
        organizations,
        claims,
    };
    Ok((token, position))
}

fn check_audience(audience: Option<&Value>, ours: &str) -> Result<(), TokenError> {
    let has_ours = match audience {
        Some(Value::String(one)) => one == ours,
        Some(Value::Array(all)) if all.iter().all(Value::is_string) => {
            all.iter().any(|one| one == ours)
        }
        _ => {
            return Err(Invalid(
                "the token has no audience (aud), or one that is not a text or a list of texts",
            ));
        }
    };
    match has_ours {
        true => Ok(()),
        false => Err(Invalid(
            "the audience (aud) of the token is another service",
        )),
    }
}

/// Checks `exp`, `nbf` and `iat`, and returns `exp`.
fn check_times(claims: &Map<String, Value>, issuer: &Issuer, now: u64) -> Result<i64, TokenError> {
    let time = |name: &str, problem: &'static str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or(Invalid(problem)),
    };
    let expiry = "the token has no expiry (exp) in whole seconds";
    let expires_at = time("exp", expiry)?.ok_or(Invalid(expiry))?;
    let not_before = time("nbf", "nbf of the token is not in whole seconds")?;
    let issued_at = time("iat", "iat of the token is not in whole seconds")?;
    if expires_at <= now {
        return Err(Invalid("the token has expired (exp)"));
    }
    let latest = now + MAX_SKEW;
    if not_before.is_some_and(|time| time > latest) {
        return Err(Invalid("the token is not valid yet (nbf)"));
    }
    if issued_at.is_some_and(|time| time > latest) {
        return Err(Invalid("the token was issued in the future (iat)"));
    }
    let max_lifetime = issuer.max_lifetime.as_secs();
    // A token without iat was issued now at the latest.
    let lifetime = expires_at.saturating_sub(issued_at.unwrap_or(latest));
    if lifetime > max_lifetime || expires_at > latest + max_lifetime {
        return Err(Invalid(
            "the token is valid for longer than its issuer's tokens may be; use one with an earlier exp",
        ));
    }
    i64::try_from(expires_at).map_err(|_| Invalid(expiry))
}

/// Scopes of a claim: a text with spaces, as in RFC 8693, or a list of texts. Those of other
/// services are ignored; without the claim there are none.
fn scopes(claim: &Value) -> Result<Scopes, TokenError> {
    let names: Vec<&str> = match claim {
        Value::Null => Vec::new(),
        Value::String(names) => names.split(' ').collect(),
        list => texts(list).ok_or(Invalid(
            "the scopes of the token are not a text or a list of texts",
        ))?,
    };
    Ok(names.into_iter().filter_map(Scope::parse).collect())
}

/// Organizations of a claim: a pattern or a list of patterns. Without the claim there are none.
fn organizations(claim: &Value) -> Result<Organizations, TokenError> {
    let problem = "the organizations of the token are not a pattern or a list of patterns";
    let patterns = match claim {
        Value::Null => Vec::new(),
        Value::String(pattern) => vec![pattern.as_str()],
        list => texts(list).ok_or(Invalid(problem))?,
    };
    let patterns = patterns.into_iter().map(Pattern::parse);
    patterns
        .collect::<Result<_, _>>()
        .map_err(|_| Invalid(problem))
}

fn texts(list: &Value) -> Option<Vec<&str>> {
    list.as_array()?.iter().map(Value::as_str).collect()
}

/// Principal of a token's caller: unique among all issuers.
pub(super) fn principal(issuer: &str, subject: &str) -> Arc<str> {
    format!("{issuer}#{subject}").into()
}

#[cfg(test)]
mod tests;
