//! Certificates, keys and tokens for development: everything that a service needs to encrypt its
//! connections and to know its callers, and everything that the callers need.
//!
//! They are valid for days at most, and all private keys are in one directory. A production
//! system has a certification authority and an issuer of tokens instead.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use serde_json::json;
use uuid::Uuid;

use crate::domain::organization::OrganizationId;

/// Certificate of the authority, which clients trust.
pub const CA: &str = "ca.pem";
/// Key of the authority.
pub const CA_KEY: &str = "ca.key";
/// Certificate of the service.
pub const SERVER_CERTIFICATE: &str = "server.pem";
/// Key of the service.
pub const SERVER_KEY: &str = "server.key";
/// Certificate of a client, with [`CLIENT_SPIFFE_ID`].
pub const CLIENT_CERTIFICATE: &str = "client.pem";
/// Key of the client.
pub const CLIENT_KEY: &str = "client.key";
/// Key that signs tokens.
pub const SIGNING_KEY: &str = "token-signing.key";
/// Public part of the key that signs tokens, as a JSON Web Key Set.
pub const KEY_SET: &str = "jwks.json";
/// Callers file, which trusts the above.
pub const CALLERS: &str = "callers.toml";
/// Token with all scopes.
pub const ADMIN_TOKEN: &str = "admin.token";
/// Token to publish events.
pub const PUBLISH_TOKEN: &str = "publish.token";

/// SPIFFE ID of the client certificate, which has all scopes.
pub const CLIENT_SPIFFE_ID: &str = "spiffe://siem-relay.test/client";
/// Issuer of the tokens.
pub const ISSUER: &str = "https://siem-relay.test/dev";
/// Audience of the tokens.
pub const AUDIENCE: &str = "siem-relay";

/// Lifetime of the certificates.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Lifetime of the tokens.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);
/// Time by which certificates are valid before they were made, for clocks that are late.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Tokens: file, subject and scopes.
const TOKENS: [(&str, &str, &[&str]); 4] = [
    ("read.token", "dev-reader", &["siem.read"]),
    ("write.token", "dev-dashboard", &["siem.read", "siem.write"]),
    (PUBLISH_TOKEN, "dev-pipeline", &["siem.publish"]),
    (ADMIN_TOKEN, "dev-admin", ALL_SCOPES),
];
const ALL_SCOPES: &[&str] = &["siem.read", "siem.write", "siem.publish", "siem.audit"];

/// Reason for which the credentials were not written.
#[derive(Debug, thiserror::Error)]
pub enum DevCredentialsError {
    /// A file with such a name exists, and is not overwritten.
    #[error(
        "{} exists and is not overwritten: give another directory, or remove this one",
        .0.display()
    )]
    Exists(PathBuf),
    /// The path of the directory cannot be part of a file.
    #[error("{} is not UTF-8: give another directory", .0.display())]
    DirectoryName(PathBuf),
    /// A host is neither a name nor an address.
    #[error("host {0:?} is neither a DNS name nor an IP address")]
    Host(String),
    /// A file or the directory cannot be written.
    #[error("cannot write {}: {error}", path.display())]
    Write {
        /// The path.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A key or certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A token cannot be signed.
    #[error("cannot sign a token: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
}

/// A directory with credentials for development.
#[derive(Debug)]
pub struct DevCredentials {
    directory: PathBuf,
}

impl DevCredentials {
    /// Makes the credentials, valid from `now`, and writes them into a directory, which is made
    /// where it does not exist. Files with secrets are readable by their owner only.
    ///
    /// The service's certificate is for localhost, 127.0.0.1, ::1 and `hosts`. The callers may
    /// touch `organizations`; none means all.
    ///
    /// # Errors
    ///
    /// [`DevCredentialsError`]; no file is ever overwritten.
    pub fn write(
        directory: &Path,
        hosts: &[String],
        organizations: &[OrganizationId],
        now: SystemTime,
    ) -> Result<Self, DevCredentialsError> {
        let path = directory.to_owned();
        if directory.to_str().is_none() {
            return Err(DevCredentialsError::DirectoryName(path));
        }
        let files = files(hosts, organizations, now)?;
        let failed = |path: PathBuf| |error| DevCredentialsError::Write { path, error };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(failed(path.clone()))?;
        let existing = files.iter().map(|file| directory.join(file.name));
        if let Some(existing) = existing.into_iter().find(|path| exists(path)) {
            return Err(DevCredentialsError::Exists(existing));
        }
        for file in files {
            let path = directory.join(file.name);
            file.write(&path).map_err(failed(path))?;
        }
        Ok(Self { directory: path })
    }

    /// Path of one of the files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Path of one of the files, as text in quotes where a shell needs them.
    fn shell_path(&self, name: &str) -> String {
        let path = self.path(name).to_string_lossy().into_owned();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:,@%".contains(&byte);
        match path.bytes().all(is_plain) {
            true => path,
            false => format!("'{}'", path.replace('\'', r"'\''")),
        }
    }

    /// Settings by which a service uses them.
    pub fn settings(&self) -> [(&'static str, String); 4] {
        self.settings_of(|name| self.path(name).to_string_lossy().into_owned())
    }

    fn settings_of(&self, path: impl Fn(&str) -> String) -> [(&'static str, String); 4] {
        [
            ("tls-cert", path(SERVER_CERTIFICATE)),
            ("tls-key", path(SERVER_KEY)),
            ("tls-client-ca", path(CA)),
            ("callers", path(CALLERS)),
        ]
    }

    /// Flags of grpcurl by which it calls such a service with all scopes.
    pub fn grpcurl_flags(&self) -> String {
        format!(
            "-cacert {} -H \"authorization: Bearer $(cat {})\"",
            self.shell_path(CA),
            self.shell_path(ADMIN_TOKEN)
        )
    }

    /// Text that says how to use them.
    pub fn how_to(&self) -> String {
        let settings = self.settings_of(|name| self.shell_path(name));
        let flags: Vec<_> = settings
            .iter()
            .map(|(name, path)| format!("--{name} {path}"))
            .collect();
        let path = |name| self.shell_path(name);
        format!(
            "\
For development only: the private keys lie beside each other, and anyone with them is every caller.
Certificates are valid for {} days, tokens for {} hours; then remove the directory and repeat.

siem-relay serve {}
grpcurl {} localhost:50051 siem.v1.SiemIntegrationService/List
grpcurl -cacert {} -cert {} -key {} localhost:50051 siem.v1.SiemIntegrationService/List
siem-relay publish --address https://localhost:50051 --ca {} --token-file {} --eve eve.json …

Scopes: read.token siem.read; write.token siem.read and siem.write; publish.token siem.publish;
admin.token and the client certificate ({CLIENT_SPIFFE_ID}) all. Change them in
{}.
",
            CERTIFICATE_LIFETIME.as_secs() / 86_400,
            TOKEN_LIFETIME.as_secs() / 3_600,
            flags.join(" "),
            self.grpcurl_flags(),
            path(CA),
            path(CLIENT_CERTIFICATE),
            path(CLIENT_KEY),
            path(CA),
            path(PUBLISH_TOKEN),
            path(CALLERS),
        )
    }
}

/// Whether something has this path, also a link that leads nowhere.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

struct File {
    name: &'static str,
    content: String,
    is_secret: bool,
}

impl File {
    fn public(name: &'static str, content: String) -> Self {
        Self {
            name,
            content,
            is_secret: false,
        }
    }

    fn secret(name: &'static str, content: String) -> Self {
        Self {
            name,
            content,
            is_secret: true,
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mode = if self.is_secret { 0o600 } else { 0o644 };
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(self.content.as_bytes())
    }
}

fn files(
    hosts: &[String],
    organizations: &[OrganizationId],
    now: SystemTime,
) -> Result<Vec<File>, DevCredentialsError> {
    let authority = authority(now)?;
    let mut server_names = vec![
        dns_name("localhost")?,
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    for host in hosts {
        server_names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => dns_name(host)?,
        });
    }
    let (server, server_key) = issue(
        &authority,
        "siem-relay development server",
        server_names,
        ExtendedKeyUsagePurpose::ServerAuth,
        now,
    )?;
    let (client, client_key) = issue(
        &authority,
        "siem-relay development client",
        vec![SanType::URI(CLIENT_SPIFFE_ID.try_into()?)],
        ExtendedKeyUsagePurpose::ClientAuth,
        now,
    )?;
    let signing_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let key_id = Uuid::new_v4().to_string();
    let mut files = vec![
        File::public(CA, authority.pem()),
        File::secret(CA_KEY, authority.key().serialize_pem()),
        File::public(SERVER_CERTIFICATE, server.pem()),
        File::secret(SERVER_KEY, server_key.serialize_pem()),
        File::public(CLIENT_CERTIFICATE, client.pem()),
        File::secret(CLIENT_KEY, client_key.serialize_pem()),
        File::secret(SIGNING_KEY, signing_key.serialize_pem()),
        File::public(KEY_SET, key_set(&signing_key, &key_id)),
        File::public(CALLERS, callers(organizations)),
    ];
    for (name, subject, _) in TOKENS {
        let token = token(&signing_key, &key_id, subject, now)?;
        files.push(File::secret(name, token + "\n"));
    }
    Ok(files)
}

fn dns_name(host: &str) -> Result<SanType, DevCredentialsError> {
    let is_label = |label: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(known)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let invalid = || DevCredentialsError::Host(host.to_owned());
    if host.len() > 253 || !host.split('.').all(is_label) {
        return Err(invalid());
    }
    Ok(SanType::DnsName(host.try_into().map_err(|_| invalid())?))
}

/// Parameters that all certificates have in common.
fn params(common_name: &str, now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "siem-relay, for development only");
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = epoch + now.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = now - BACKDATED;
    params.not_after = now + CERTIFICATE_LIFETIME;
    params
}

fn authority(now: SystemTime) -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    // A name of its own, so that two authorities are not mistaken for each other.
    let mut params = params(&format!("authority {}", Uuid::new_v4()), now);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

fn issue(
    authority: &CertifiedIssuer<'static, KeyPair>,
    common_name: &str,
    names: Vec<SanType>,
    purpose: ExtendedKeyUsagePurpose,
    now: SystemTime,
) -> Result<(Certificate, KeyPair), rcgen::Error> {
    let mut params = params(common_name, now);
    params.subject_alt_names = names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    // OpenSSL's strict mode, which Python uses, requires it.
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok((params.signed_by(&key, authority)?, key))
}

/// The public key as a JSON Web Key Set (RFC 7517).
fn key_set(key: &KeyPair, key_id: &str) -> String {
    // Uncompressed point (SEC 1, section 2.3.3): the byte 4, then both coordinates.
    let (x, y) = key.public_key_raw()[1..].split_at(32);
    let encode = |bytes| URL_SAFE_NO_PAD.encode(bytes);
    let set = json!({"keys": [{
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": key_id,
        "x": encode(x), "y": encode(y),
    }]});
    format!("{set:#}\n")
}

fn token(
    key: &KeyPair,
    key_id: &str,
    subject: &str,
    now: SystemTime,
) -> Result<String, jsonwebtoken::errors::Error> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(key_id.to_owned());
    let claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "jti": Uuid::new_v4(),
        "iat": now, "nbf": now, "exp": now + TOKEN_LIFETIME.as_secs(),
    });
    jsonwebtoken::encode(
        &header,
        &claims,
        &EncodingKey::from_ec_der(key.serialized_der()),
    )
}

/// Callers file. Strings of JSON without control characters are strings of TOML.
fn callers(organizations: &[OrganizationId]) -> String {
    let organizations: Vec<&str> = match organizations {
        [] => vec!["*"],
        some => some.iter().map(OrganizationId::as_str).collect(),
    };
    let organizations = json!(organizations);
    let mut text = format!(
        "# For development only.\n\n[[issuers]]\nissuer = {ISSUER:?}\naudience = {AUDIENCE:?}\n\
         jwks_file = {KEY_SET:?}\nmax_lifetime_seconds = {}\n",
        TOKEN_LIFETIME.as_secs()
    );
    let mut caller = |identity: &str, scopes: &[&str]| {
        let scopes = json!(scopes);
        text.push_str(&format!(
            "\n[[callers]]\n{identity}\nscopes = {scopes}\norganizations = {organizations}\n"
        ));
    };
    for (file, subject, scopes) in TOKENS {
        let identity = format!("# {file}\nissuer = {ISSUER:?}\nsubject = {subject:?}");
        caller(&identity, scopes);
    }
    caller(
        &format!("# {CLIENT_CERTIFICATE}\nspiffe = {CLIENT_SPIFFE_ID:?}"),
        ALL_SCOPES,
    );
    text
}

#[cfg(test)]
mod tests;
