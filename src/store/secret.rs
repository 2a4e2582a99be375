//! Encryption of external IDs at rest with AES-256-GCM, and a keyed HMAC to find them.
//!
//! A [`Keyring`] has one or more keys, each with an id that is derived from it and is stored beside
//! what it encrypted. The database decides which of them is active: see
//! [`rotation`](super::rotation).

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    StoreError,
    ports::{Claim, Keys, Reseal},
};
use crate::{
    domain::{
        external_id::ExternalId,
        integration::{IntegrationId, SealedExternalId},
        organization::OrganizationId,
    },
    secret_file::{self, SecretFileError},
};

const NONCE_BYTES: usize = 12;
/// Most keys of a keyring: each one costs a hash at every Configure.
const MAX_KEYS: usize = 16;
/// Distinguishes what is encrypted for an organization from what is for an integration.
const ISSUED: &[u8] = b"issued to ";

/// 32 bytes from which the encryption key and the HMAC key are derived.
struct MasterKey(Zeroizing<[u8; 32]>);

/// Keys of external IDs, wiped from memory when the last copy is dropped. A new database uses the
/// first one; `siem-relay keys rotate` makes it the active one of another.
#[derive(Clone)]
pub struct Keyring(Arc<[MasterKey]>);

/// Reason that a text is not a keyring. It shows nothing of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// A line is neither a key nor a comment.
    #[error("line {0} is not a key of 64 hexadecimal characters")]
    Malformed(usize),
    /// A key is there twice.
    #[error("line {0} repeats a key")]
    Repeated(usize),
    /// There is no key.
    #[error("there is no key of 64 hexadecimal characters")]
    Empty,
    /// There are too many keys.
    #[error("there are more than {MAX_KEYS} keys; remove those that no external ID needs")]
    TooMany,
}

/// Reason that there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read, or others can use it.
    #[error("the external ID key file cannot be used: {0}")]
    Secret(#[from] SecretFileError),
    /// The file cannot be created.
    #[error("cannot create {path} for the external ID key: {source}")]
    Create {
        /// Path of the file or its directory.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The content of the file is not a keyring.
    #[error("{problem} in the external ID key file {path}")]
    Content {
        /// Path of the file.
        path: PathBuf,
        /// Problem of the content.
        problem: KeyringError,
    },
    /// The system returned no random bytes.
    #[error("the system returned no random bytes for a new external ID key")]
    NoRandomness,
}

impl Keyring {
    /// Parses keys of 64 hexadecimal characters, separated by white space, at most 16. A `#` begins
    /// a comment up to the end of the line.
    ///
    /// # Errors
    ///
    /// See [`KeyringError`].
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keys: Vec<MasterKey> = Vec::with_capacity(MAX_KEYS);
        for (line, number) in text.lines().zip(1..) {
            let content = line.split('#').next().unwrap_or_default();
            for word in content.split_whitespace() {
                let mut key = Zeroizing::new([0; 32]);
                let decoded = hex::decode_to_slice(word, &mut *key);
                decoded.map_err(|_| KeyringError::Malformed(number))?;
                if keys.iter().any(|known| *known.0 == *key) {
                    return Err(KeyringError::Repeated(number));
                }
                if keys.len() == MAX_KEYS {
                    return Err(KeyringError::TooMany);
                }
                keys.push(MasterKey(key));
            }
        }
        match keys.is_empty() {
            true => Err(KeyringError::Empty),
            false => Ok(Self(keys.into())),
        }
    }

    /// A keyring of one key.
    pub fn of(key: &[u8; 32]) -> Self {
        Self([MasterKey(Zeroizing::new(*key))].into())
    }

    /// Reads a key file.
    ///
    /// # Errors
    ///
    /// [`KeyError::Secret`] also for a file that others than its owner can use.
    pub fn from_file(path: &Path) -> Result<Self, KeyError> {
        let text = secret_file::read_text(path)?;
        Self::parse(&text).map_err(|problem| KeyError::Content {
            path: path.to_owned(),
            problem,
        })
    }

    /// Reads a key file, or creates it with a new key and mode 0600 if it is missing.
    ///
    /// # Errors
    ///
    /// As [`Keyring::from_file`], and if it cannot be created.
    pub fn from_file_or_new(path: &Path) -> Result<Self, KeyError> {
        match Self::from_file(path) {
            Err(KeyError::Secret(error)) if error.kind() == io::ErrorKind::NotFound => {
                write_new_key(path)?;
                Self::from_file(path)
            }
            read => read,
        }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring([redacted])")
    }
}

/// Writes another file and links it to `path`, so that a kill leaves no part of a key there.
fn write_new_key(path: &Path) -> Result<(), KeyError> {
    let mut key = Zeroizing::new([0; 32]);
    let filled = SystemRandom::new().fill(&mut *key);
    filled.map_err(|_| KeyError::NoRandomness)?;
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in *key {
        text.push_str(&hex::encode([byte]));
    }
    text.push('\n');
    write_new(path, text.as_bytes()).map_err(|source| KeyError::Create {
        path: path.to_owned(),
        source,
    })
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
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

/// Returns a new external ID of 64 hexadecimal characters: 256 random bits.
pub(super) fn random_external_id() -> Result<ExternalId, StoreError> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemRandom::new()
        .fill(&mut *bytes)
        .map_err(|_| StoreError::Sealing)?;
    ExternalId::parse(hex::encode(bytes.as_slice())).map_err(|_| StoreError::Sealing)
}

/// Encrypts, decrypts and finds external IDs with any key of a keyring.
pub(super) struct Sealer {
    /// In the order of the keyring; never empty.
    keys: Vec<Key>,
}

/// Keys that are derived from one [`MasterKey`].
struct Key {
    id: Box<str>,
    seal: RandomizedNonceKey,
    find: hmac::Key,
}

impl Key {
    fn derive(master: &MasterKey) -> Result<Self, StoreError> {
        let seal_key = derive(master, b"siem-relay external id seal");
        let find_key = derive(master, b"siem-relay external id find");
        let id = derive(master, b"siem-relay external id key id");
        let id = Uuid::from_slice(&id.as_ref()[..16]).map_err(|_| StoreError::Sealing)?;
        Ok(Self {
            id: id.simple().to_string().into(),
            seal: RandomizedNonceKey::new(&AES_256_GCM, seal_key.as_ref())
                .map_err(|_| StoreError::Sealing)?,
            find: hmac::Key::new(hmac::HMAC_SHA256, find_key.as_ref()),
        })
    }

    /// Encrypts an external ID, which can be decrypted for the same `owner` only.
    fn seal(&self, external_id: &ExternalId, owner: &[u8]) -> Result<SealedExternalId, StoreError> {
        let clear = external_id.expose().as_bytes();
        // With its tag it must not grow: what it leaves behind is not wiped.
        let mut text = Vec::with_capacity(clear.len() + AES_256_GCM.tag_len());
        text.extend_from_slice(clear);
        let nonce = self
            .seal
            .seal_in_place_append_tag(Aad::from(owner), &mut text)
            .map_err(|_| StoreError::Sealing)?;
        let mut bytes = nonce.as_ref().to_vec();
        bytes.append(&mut text);
        Ok(SealedExternalId {
            key_id: self.id.clone(),
            bytes: bytes.into(),
        })
    }

    fn open(&self, sealed: &[u8], owner: &[u8]) -> Result<ExternalId, StoreError> {
        let (nonce, text) = sealed
            .split_at_checked(NONCE_BYTES)
            .ok_or(StoreError::Sealing)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| StoreError::Sealing)?;
        let mut text = Zeroizing::new(text.to_vec());
        let clear = self
            .seal
            .open_in_place(nonce, Aad::from(owner), &mut text)
            .map_err(|_| StoreError::Sealing)?;
        let clear = std::str::from_utf8(clear).map_err(|_| StoreError::Sealing)?;
        ExternalId::parse(clear.to_owned()).map_err(|_| StoreError::Sealing)
    }

    /// Key for the tokens of callers.
    fn token_key(&self) -> [u8; 32] {
        let key = hmac::sign(&self.find, b"siem-relay caller token");
        // HMAC-SHA-256 has 32 bytes.
        key.as_ref().try_into().unwrap_or_default()
    }

    /// Keyed hash of an external ID, which reveals nothing without the key.
    fn fingerprint(&self, external_id: &ExternalId) -> Vec<u8> {
        hmac::sign(&self.find, external_id.expose().as_bytes())
            .as_ref()
            .to_vec()
    }
}

impl Sealer {
    /// Derives the keys.
    pub(super) fn new(keyring: &Keyring) -> Result<Self, StoreError> {
        let keys = keyring.0.iter().map(Key::derive);
        Ok(Self {
            keys: keys.collect::<Result<_, _>>()?,
        })
    }

    /// Ids of the keys, in the order of the keyring.
    pub(super) fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| &*key.id)
    }

    /// Key for the tokens of callers: of the first key, so that equal keyrings have the same.
    pub(super) fn token_key(&self) -> [u8; 32] {
        self.keys[0].token_key()
    }

    /// Id of the first key, which a new database uses.
    pub(super) fn first(&self) -> &str {
        &self.keys[0].id
    }

    fn find(&self, key_id: &str) -> Option<&Key> {
        self.keys.iter().find(|key| *key.id == *key_id)
    }

    /// Whether it has a key.
    pub(super) fn has(&self, key_id: &str) -> bool {
        self.find(key_id).is_some()
    }

    /// Keys that are stored, or about to be, and that it does not have.
    pub(super) fn missing(&self, keys: &Keys) -> Vec<Box<str>> {
        let missing = keys.all().filter(|id| !self.has(id));
        missing.map(Into::into).collect()
    }

    /// Encrypts with the active key of a database.
    ///
    /// # Errors
    ///
    /// `Failed` if it lacks a key under which external IDs are stored: then it cannot know that
    /// another organization has not the same one.
    pub(super) fn under(&self, keys: &Keys) -> Result<Active<'_>, StoreError> {
        let lacks =
            |id: &str| StoreError::Failed(format!("this instance lacks the external ID key {id}"));
        if let Some(id) = keys.stored().find(|id| !self.has(id)) {
            return Err(lacks(id));
        }
        let key = self.find(&keys.active).ok_or_else(|| lacks(&keys.active))?;
        Ok(Active { sealer: self, key })
    }

    /// Encrypts with the first key, for what is not stored.
    pub(super) fn with_first(&self) -> Active<'_> {
        Active {
            sealer: self,
            key: &self.keys[0],
        }
    }

    /// Decrypts the external ID of an integration.
    pub(super) fn open(
        &self,
        sealed: &SealedExternalId,
        integration_id: IntegrationId,
    ) -> Result<ExternalId, StoreError> {
        let key = self.find(&sealed.key_id).ok_or(StoreError::Sealing)?;
        key.open(&sealed.bytes, integration_id.0.as_bytes())
    }
}

/// A sealer with its active key.
#[derive(Clone, Copy)]
pub(super) struct Active<'a> {
    sealer: &'a Sealer,
    key: &'a Key,
}

impl Active<'_> {
    /// Encrypts an external ID. It can be decrypted for the same integration only.
    pub(super) fn seal(
        &self,
        external_id: &ExternalId,
        integration_id: IntegrationId,
    ) -> Result<SealedExternalId, StoreError> {
        self.key.seal(external_id, integration_id.0.as_bytes())
    }

    /// Decrypts the external ID of an integration, with any key.
    pub(super) fn open(
        &self,
        sealed: &SealedExternalId,
        integration_id: IntegrationId,
    ) -> Result<ExternalId, StoreError> {
        self.sealer.open(sealed, integration_id)
    }

    /// The claim of an organization on an external ID. Its keyed hashes reveal nothing without
    /// the keys.
    pub(super) fn claim(
        &self,
        external_id: &ExternalId,
        organization_id: &OrganizationId,
    ) -> Result<Claim, StoreError> {
        let others = self.sealer.keys.iter().filter(|key| key.id != self.key.id);
        Ok(Claim {
            fingerprint: self.key.fingerprint(external_id),
            others: others.map(|key| key.fingerprint(external_id)).collect(),
            sealed: self.key.seal(external_id, &issued_to(organization_id))?,
        })
    }
}

/// Re-seals with the active key of `to` whatever `from` can decrypt.
pub(super) struct Resealer<'a> {
    pub(super) from: &'a Sealer,
    pub(super) to: Active<'a>,
}

impl Reseal for Resealer<'_> {
    fn target(&self) -> &str {
        &self.to.key.id
    }

    fn of_integration(
        &self,
        organization_id: &OrganizationId,
        integration_id: IntegrationId,
        sealed: &SealedExternalId,
    ) -> Result<(SealedExternalId, Claim), StoreError> {
        let external_id = self.from.open(sealed, integration_id)?;
        let sealed = self.to.seal(&external_id, integration_id)?;
        Ok((sealed, self.to.claim(&external_id, organization_id)?))
    }

    fn issued(
        &self,
        organization_id: &OrganizationId,
        sealed: &SealedExternalId,
    ) -> Result<Claim, StoreError> {
        let key = self.from.find(&sealed.key_id).ok_or(StoreError::Sealing)?;
        let external_id = key.open(&sealed.bytes, &issued_to(organization_id))?;
        self.to.claim(&external_id, organization_id)
    }
}

fn issued_to(organization_id: &OrganizationId) -> Vec<u8> {
    [ISSUED, organization_id.as_str().as_bytes()].concat()
}

fn derive(master: &MasterKey, label: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &*master.0), label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn sealer(text: &str) -> Sealer {
        Sealer::new(&Keyring::parse(text).unwrap()).unwrap()
    }

    fn external_id(text: &str) -> ExternalId {
        ExternalId::parse(text.into()).unwrap()
    }

    #[test]
    fn decrypts_for_the_same_integration_and_key_only() {
        let (one, other) = (sealer(&"ab".repeat(32)), sealer(&"cd".repeat(32)));
        let id = IntegrationId(Uuid::now_v7());
        let secret = external_id("a-very-secret-thing");
        let sealed = one.with_first().seal(&secret, id).unwrap();
        let text = String::from_utf8_lossy(&sealed.bytes).into_owned();
        assert!(!text.contains("secret"));
        assert_eq!(one.open(&sealed, id).unwrap().expose(), secret.expose());
        let another = IntegrationId(Uuid::now_v7());
        assert!(matches!(
            one.open(&sealed, another),
            Err(StoreError::Sealing)
        ));
        assert!(matches!(other.open(&sealed, id), Err(StoreError::Sealing)));
        let mut renamed = sealed.clone();
        renamed.key_id = other.first().into();
        assert!(matches!(other.open(&renamed, id), Err(StoreError::Sealing)));
        assert_ne!(one.first(), other.first());
        let print = |sealer: &Sealer| sealer.keys[0].fingerprint(&secret);
        assert_eq!(print(&one), print(&one));
        assert_ne!(print(&one), print(&other));
        let again = one.with_first().seal(&secret, id).unwrap();
        assert_ne!(again.bytes, sealed.bytes, "the same nonce was used again");
    }

    #[test]
    fn a_keyring_seals_under_the_active_key_and_opens_all() {
        let [old, new] = ["ab", "cd"].map(|byte| byte.repeat(32));
        let (before, both) = (
            sealer(&old),
            sealer(&format!("# new\n{new}\n{old} # old\n")),
        );
        let id = IntegrationId(Uuid::now_v7());
        let acme = OrganizationId::new("acme").unwrap();
        let secret = external_id("secret");
        let sealed = before.with_first().seal(&secret, id).unwrap();
        assert_eq!(both.open(&sealed, id).unwrap().expose(), "secret");
        let stored = Keys {
            active: before.first().into(),
            ..Keys::default()
        };
        let active = both.under(&stored).unwrap();
        assert_eq!(&*active.seal(&secret, id).unwrap().key_id, before.first());
        let claim = active.claim(&secret, &acme).unwrap();
        let first = before.with_first().claim(&secret, &acme).unwrap();
        assert_eq!(claim.fingerprint, first.fingerprint);
        assert_eq!(claim.others, [both.keys[0].fingerprint(&secret)]);

        let rotated = Keys {
            active: both.first().into(),
            retiring: vec![before.first().into()],
            pending: None,
        };
        let resealer = Resealer {
            from: &both,
            to: both.under(&rotated).unwrap(),
        };
        let (sealed, moved) = resealer.of_integration(&acme, id, &sealed).unwrap();
        assert_eq!(&*sealed.key_id, both.first());
        assert_eq!(both.open(&sealed, id).unwrap().expose(), "secret");
        let issued = resealer.issued(&acme, &claim.sealed).unwrap();
        assert_eq!(issued.fingerprint, moved.fingerprint);
        assert_eq!(issued.fingerprint, claim.others[0]);
        let other = OrganizationId::new("other").unwrap();
        assert!(resealer.issued(&other, &claim.sealed).is_err());

        let message = before.under(&rotated).err().unwrap().to_string();
        assert!(message.contains(both.first()), "{message}");
        assert_eq!(before.missing(&rotated), [Box::<str>::from(both.first())]);
    }

    #[test]
    fn a_new_key_file_is_private_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("external-id.key");
        let first = Keyring::from_file_or_new(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Keyring::from_file_or_new(&path).unwrap();
        assert_eq!(*first.0[0].0, *second.0[0].0);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Keyring::from_file_or_new(&path).unwrap_err().to_string();
        assert!(refused.contains("chmod 600"), "{refused}");
    }

    #[test]
    fn a_malformed_keyring_is_refused_by_line() {
        let key = "ab".repeat(32);
        for (text, problem) in [
            (String::new(), KeyringError::Empty),
            ("# none\n\n".to_owned(), KeyringError::Empty),
            ("abc".to_owned(), KeyringError::Malformed(1)),
            ("zz".repeat(32), KeyringError::Malformed(1)),
            (format!("{key}\n{key}00"), KeyringError::Malformed(2)),
            (format!("{key}\n\n{key}"), KeyringError::Repeated(3)),
            (
                (0..17).map(|n| format!("{n:064x}\n")).collect(),
                KeyringError::TooMany,
            ),
        ] {
            assert_eq!(Keyring::parse(&text).err(), Some(problem));
        }
        assert_eq!(Keyring::parse(&format!(" {key} \r\n")).unwrap().0.len(), 1);
        assert_eq!(
            format!("{:?}", Keyring::of(&[7; 32])),
            "Keyring([redacted])"
        );
    }
}
