//! Random identifiers in the shapes that AWS gives them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng as _;

/// A unique id such as `ASIA…` or `AROA…`: the prefix and 16 characters.
pub(super) fn key_id(prefix: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut rng = rand::rng();
    let mut id = prefix.to_owned();
    id.extend((0..16).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])));
    id
}

/// A secret access key: 40 characters.
pub(super) fn secret() -> String {
    STANDARD.encode(rand::random::<[u8; 30]>())
}

/// A session token: opaque, some 350 characters.
pub(super) fn session_token() -> String {
    let mut bytes = [0; 256];
    rand::rng().fill(&mut bytes[..]);
    format!("IQoJb3JpZ2luX2Vj{}", STANDARD.encode(bytes))
}

/// A request id.
pub(super) fn request_id() -> String {
    uuid::Builder::from_random_bytes(rand::random())
        .into_uuid()
        .to_string()
}
