//! Encryption of external IDs at rest with AES-256-GCM, and a keyed HMAC to find them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

use super::StoreError;
use crate::domain::{
    external_id::ExternalId,
    integration::{IntegrationId, SealedExternalId},
};

const NONCE_BYTES: usize = 12;

/// 32 bytes from which the encryption key and the HMAC key are derived.
pub struct MasterKey(Zeroizing<[u8; 32]>);

/// Reason that there is no master key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or created.
    #[error("cannot {action} the external ID key file {path}: {source}")]
    File {
        /// `read` or `create`.
        action: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The text is not a key.
    #[error("the external ID key must be 64 hexadecimal characters")]
    Malformed,
    /// The system returned no random bytes.
    #[error("the system returned no random bytes for a new external ID key")]
    NoRandomness,
}

impl MasterKey {
    /// Parses 64 hexadecimal characters, with or without white space around them.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), &mut *key).map_err(|_| KeyError::Malformed)?;
        Ok(Self(key))
    }

    /// Copies a key.
    pub fn from_bytes(key: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*key))
    }

    /// Reads the key file.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let text = fs::read_to_string(path).map_err(|source| KeyError::File {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        Self::from_hex(&Zeroizing::new(text))
    }

    /// Reads the key file, or creates it with mode 0600 if it is missing.
    pub fn from_file_or_new(path: &Path) -> Result<Self, KeyError> {
        match Self::from_file(path) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let key = Self::random()?;
                key.write_new(path).map_err(|source| KeyError::File {
                    action: "create",
                    path: path.to_owned(),
                    source,
                })?;
                Self::from_file(path)
            }
            read => read,
        }
    }

    fn random() -> Result<Self, KeyError> {
        let mut key = Zeroizing::new([0; 32]);
        SystemRandom::new()
            .fill(&mut *key)
            .map_err(|_| KeyError::NoRandomness)?;
        Ok(Self(key))
    }

    /// Writes another file and links it to `path`, so that a kill leaves no part of a key there.
    fn write_new(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let mut text = Zeroizing::new(hex::encode(self.0.as_slice()));
        text.push('\n');
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // If another process has created the file first, its key is used.
        let linked = fs::hard_link(&new, path);
        fs::remove_file(&new)?;
        match linked {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }
}

/// Returns a new external ID of 64 hexadecimal characters: 256 random bits.
pub(super) fn random_external_id() -> Result<ExternalId, StoreError> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut *bytes)
        .map_err(|_| StoreError::Sealing)?;
    ExternalId::parse(hex::encode(bytes.as_slice())).map_err(|_| StoreError::Sealing)
}

/// Encrypts, decrypts and finds external IDs.
pub(super) struct Sealer {
    key_id: Box<str>,
    seal: RandomizedNonceKey,
    find: hmac::Key,
}

impl Sealer {
    /// Derives the keys.
    pub(super) fn new(master: &MasterKey) -> Result<Self, StoreError> {
        let seal_key = derive(master, b"siem-relay external id seal");
        let find_key = derive(master, b"siem-relay external id find");
        let id = derive(master, b"siem-relay external id key id");
        Ok(Self {
            key_id: Uuid::from_slice(&id.as_ref()[..16])
                .map_err(|_| StoreError::Sealing)?
                .simple()
                .to_string()
                .into(),
            seal: RandomizedNonceKey::new(&AES_256_GCM, seal_key.as_ref())
                .map_err(|_| StoreError::Sealing)?,
            find: hmac::Key::new(hmac::HMAC_SHA256, find_key.as_ref()),
        })
    }

    /// Id of the encryption key, as it is stored with what was encrypted.
    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Encrypts an external ID. It can be decrypted for the same integration only.
    pub(super) fn seal(
        &self,
        external_id: &ExternalId,
        integration_id: IntegrationId,
    ) -> Result<SealedExternalId, StoreError> {
        let mut text = external_id.expose().as_bytes().to_vec();
        let nonce = self
            .seal
            .seal_in_place_append_tag(Aad::from(integration_id.0.as_bytes()), &mut text)
            .map_err(|_| StoreError::Sealing)?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut text);
        Ok(SealedExternalId {
            key_id: self.key_id.clone(),
            bytes: bytes.into(),
        })
    }

    /// Decrypts an external ID.
    pub(super) fn open(
        &self,
        sealed: &SealedExternalId,
        integration_id: IntegrationId,
    ) -> Result<ExternalId, StoreError> {
        let (nonce, text) = sealed
            .bytes
            .split_at_checked(NONCE_BYTES)
            .ok_or(StoreError::Sealing)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| StoreError::Sealing)?;
        let mut text = Zeroizing::new(text.to_vec());
        let clear = self
            .seal
            .open_in_place(nonce, Aad::from(integration_id.0.as_bytes()), &mut text)
            .map_err(|_| StoreError::Sealing)?;
        let clear = String::from_utf8(clear.to_vec()).map_err(|error| {
            error.into_bytes().zeroize();
            StoreError::Sealing
        })?;
        ExternalId::parse(clear).map_err(|_| StoreError::Sealing)
    }

    /// Keyed hash of an external ID, which reveals nothing without the key.
    pub(super) fn fingerprint(&self, external_id: &ExternalId) -> Vec<u8> {
        hmac::sign(&self.find, external_id.expose().as_bytes())
            .as_ref()
            .to_vec()
    }
}

fn derive(master: &MasterKey, label: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &*master.0), label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sealer(hex: &str) -> Sealer {
        Sealer::new(&MasterKey::from_hex(hex).unwrap()).unwrap()
    }

    #[test]
    fn decrypts_for_the_same_integration_and_key_only() {
        let (one, other) = (sealer(&"ab".repeat(32)), sealer(&"cd".repeat(32)));
        let id = IntegrationId(Uuid::now_v7());
        let secret = ExternalId::parse("a-very-secret-thing".into()).unwrap();
        let sealed = one.seal(&secret, id).unwrap();
        let text = String::from_utf8_lossy(&sealed.bytes).into_owned();
        assert!(!text.contains("secret"));
        assert_eq!(one.open(&sealed, id).unwrap().expose(), secret.expose());
        let another = IntegrationId(Uuid::now_v7());
        assert!(matches!(
            one.open(&sealed, another),
            Err(StoreError::Sealing)
        ));
        assert!(matches!(other.open(&sealed, id), Err(StoreError::Sealing)));
        assert_ne!(one.key_id, other.key_id);
        assert_eq!(one.fingerprint(&secret), one.fingerprint(&secret));
        assert_ne!(one.fingerprint(&secret), other.fingerprint(&secret));
        let again = one.seal(&secret, id).unwrap();
        assert_ne!(again.bytes, sealed.bytes, "the same nonce was used again");
    }

    #[test]
    fn a_new_key_file_is_private_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("external-id.key");
        let first = MasterKey::from_file_or_new(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = MasterKey::from_file_or_new(&path).unwrap();
        assert_eq!(*first.0, *second.0);
    }

    #[test]
    fn a_malformed_key_is_refused() {
        for text in ["", "abc", &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(matches!(
                MasterKey::from_hex(text),
                Err(KeyError::Malformed)
            ));
        }
    }
}
