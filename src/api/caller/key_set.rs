//! Public keys of an issuer of tokens, from a JSON Web Key Set (RFC 7517).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use super::json::parse_object;

/// Bytes of a key set.
pub(super) const MAX_KEY_SET: usize = 1 << 20;
/// Bits of an RSA modulus.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Bytes of a coordinate on P-256, and of an Ed25519 key.
const COORDINATE: usize = 32;

/// Usable keys of an issuer. Never empty.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
    /// Keys that were skipped: of an unknown type or another use, too short, or malformed.
    pub(super) skipped: usize,
}

/// Key with the only algorithm that it is used for.
#[derive(Debug)]
pub(super) struct Key {
    id: Option<Box<str>>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// Reason why a text has no usable keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeySetError {
    #[error("is larger than 1 MiB")]
    TooLarge,
    #[error(
        "is not a JSON Web Key Set, an object with an array \"keys\" and without repeated names"
    )]
    NotAKeySet,
    #[error(
        "has no usable key; it needs an RSA key of 2048 to 8192 bits, an EC key on P-256 or an OKP key on Ed25519, for signatures"
    )]
    NoUsableKey,
}

/// Result of the search for the key of a token.
pub(super) enum Selected<'a> {
    Key(&'a Key),
    /// No key has the id.
    Unknown,
    /// The token names no key, or an id of several, so the key is a guess.
    Ambiguous,
}

impl KeySet {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, KeySetError> {
        if bytes.len() > MAX_KEY_SET {
            return Err(KeySetError::TooLarge);
        }
        let mut set = parse_object(bytes).ok_or(KeySetError::NotAKeySet)?;
        let Some(Value::Array(all)) = set.remove("keys") else {
            return Err(KeySetError::NotAKeySet);
        };
        let keys: Vec<Key> = all
            .iter()
            .filter_map(|jwk| Key::parse(jwk.as_object()?))
            .collect();
        match keys.is_empty() {
            true => Err(KeySetError::NoUsableKey),
            false => Ok(Self {
                skipped: all.len() - keys.len(),
                keys,
            }),
        }
    }

    /// Finds the key with this id, or the only one for a token that names none.
    pub(super) fn select(&self, id: Option<&str>) -> Selected<'_> {
        let mut matching = self
            .keys
            .iter()
            .filter(|key| id.is_none() || key.id.as_deref() == id);
        match (matching.next(), matching.next()) {
            (Some(key), None) => Selected::Key(key),
            (None, _) => Selected::Unknown,
            (Some(_), Some(_)) => Selected::Ambiguous,
        }
    }
}

impl Key {
    /// Returns a key for signatures; None for any other one, which is skipped.
    fn parse(jwk: &Map<String, Value>) -> Option<Self> {
        // A private key that was published is known to others.
        if jwk.contains_key("d") {
            return None;
        }
        let text = |name: &str| {
            jwk.get(name)
                .map(|value| value.as_str().unwrap_or_default())
        };
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let coordinate = |name: &str| bytes(name).filter(|bytes| bytes.len() == COORDINATE);
        let (algorithm, key) = match (text("kty")?, text("crv")) {
            ("RSA", None) => {
                let (modulus, exponent) = (bytes("n")?, bytes("e")?);
                if !is_strong(&modulus, &exponent) {
                    return None;
                }
                let key = DecodingKey::from_rsa_raw_components(&modulus, &exponent);
                (Algorithm::RS256, key)
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (coordinate("x")?, coordinate("y")?);
                // Uncompressed point, SEC 1 section 2.3.3.
                let key = DecodingKey::from_ec_der(&[&[4], &x[..], &y[..]].concat());
                (Algorithm::ES256, key)
            }
            ("OKP", Some("Ed25519")) => (
                Algorithm::EdDSA,
                DecodingKey::from_ed_der(&coordinate("x")?),
            ),
            _ => return None,
        };
        let is_for_it = text("alg").is_none_or(|name| name.parse().ok() == Some(algorithm));
        let is_for_signatures = text("use").is_none_or(|purpose| purpose == "sig");
        let verifies = jwk.get("key_ops").is_none_or(|operations| {
            let operations = operations.as_array().map(Vec::as_slice).unwrap_or_default();
            operations.iter().any(|operation| operation == "verify")
        });
        let id = match jwk.get("kid") {
            None => None,
            Some(id) => Some(id.as_str()?.into()),
        };
        (is_for_it && is_for_signatures && verifies).then_some(Self { id, algorithm, key })
    }
}

/// Whether an RSA key has an allowed length and an odd exponent above 1.
fn is_strong(modulus: &[u8], exponent: &[u8]) -> bool {
    let leading = modulus.iter().position(|byte| *byte != 0);
    let bits = leading.map_or(0, |leading| {
        (modulus.len() - leading) * 8 - modulus[leading].leading_zeros() as usize
    });
    let is_odd = exponent.last().is_some_and(|byte| byte % 2 == 1);
    let is_one =
        exponent.iter().rev().skip(1).all(|byte| *byte == 0) && exponent.last() == Some(&1);
    RSA_BITS.contains(&bits) && is_odd && !is_one && exponent.len() <= 8
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(keys: Value) -> Result<KeySet, KeySetError> {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
    }

    fn rsa(bits: usize, id: &str) -> Value {
        let mut modulus = vec![0xff; bits / 8];
        modulus[0] = 0x80;
        json!({ "kty": "RSA", "kid": id, "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB" })
    }

    fn ed(id: &str) -> Value {
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": id, "x": URL_SAFE_NO_PAD.encode([7; 32]) })
    }

    fn with(mut jwk: Value, name: &str, value: Value) -> Value {
        jwk[name] = value;
        jwk
    }

    #[test]
    fn an_unusable_key_skips_that_key_only() {
        let symmetric = json!({ "kty": "oct", "kid": "s", "k": "AAAA" });
        let mut ninth = rsa(2048, "short");
        let mut short = vec![0xff; 256];
        short[0] = 0x7f;
        ninth["n"] = URL_SAFE_NO_PAD.encode(short).into();
        let unusable = [
            symmetric,
            json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "x" }),
            json!("text"),
            json!({}),
            ninth,
            rsa(1024, "1024"),
            rsa(16384, "16384"),
            with(rsa(2048, "e1"), "e", json!("AQ")),
            with(rsa(2048, "even"), "e", json!("Ag")),
            with(rsa(2048, "ps"), "alg", json!("PS256")),
            with(rsa(2048, "hs"), "alg", json!("HS256")),
            with(rsa(2048, "alg"), "alg", json!(5)),
            with(rsa(2048, "enc"), "use", json!("enc")),
            with(rsa(2048, "sign"), "key_ops", json!(["sign"])),
            with(ed("private"), "d", json!("AA")),
            with(ed("kid"), "kid", json!(7)),
            with(ed("448"), "crv", json!("Ed448")),
            with(ed("long"), "x", json!(URL_SAFE_NO_PAD.encode([7; 33]))),
        ];
        for jwk in &unusable {
            assert_eq!(
                parse(json!([jwk])).unwrap_err(),
                KeySetError::NoUsableKey,
                "{jwk}"
            );
        }
        let mut all = unusable.to_vec();
        let good = with(rsa(2048, "good"), "alg", json!("RS256"));
        all.push(with(good, "use", json!("sig")));
        let set = parse(json!(all)).unwrap();
        assert_eq!((set.keys.len(), set.skipped), (1, unusable.len()));
        assert!(matches!(set.select(Some("good")), Selected::Key(_)));
    }

    #[test]
    fn an_id_selects_exactly_one_key() {
        let set = parse(json!([ed("a"), ed("b"), rsa(2048, "b")])).unwrap();
        assert!(matches!(set.select(Some("a")), Selected::Key(_)));
        assert!(matches!(set.select(Some("b")), Selected::Ambiguous));
        assert!(matches!(set.select(Some("c")), Selected::Unknown));
        assert!(matches!(set.select(Some("")), Selected::Unknown));
        assert!(matches!(set.select(None), Selected::Ambiguous));
        let one = parse(json!([ed("a")])).unwrap();
        assert!(matches!(one.select(None), Selected::Key(_)));
        assert!(matches!(one.select(Some("A")), Selected::Unknown));
    }

    #[test]
    fn other_answers_are_no_key_set() {
        for text in [
            "",
            "[]",
            "{}",
            "{\"keys\":{}}",
            "<html>",
            "{\"keys\":[],\"keys\":[]}",
        ] {
            let error = KeySet::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error, KeySetError::NotAKeySet, "{text}");
        }
        assert_eq!(parse(json!([])).unwrap_err(), KeySetError::NoUsableKey);
        let large = vec![b' '; MAX_KEY_SET + 1];
        assert_eq!(KeySet::parse(&large).unwrap_err(), KeySetError::TooLarge);
    }
}
