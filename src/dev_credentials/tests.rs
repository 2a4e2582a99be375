use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

use jsonwebtoken::{DecodingKey, Validation};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};

use super::*;

fn organization(text: &str) -> OrganizationId {
    OrganizationId::new(text).unwrap()
}

/// Time of the tests, in Unix seconds.
const NOW: u64 = 1_790_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

fn written(
    hosts: &[&str],
    organizations: &[OrganizationId],
) -> (tempfile::TempDir, DevCredentials) {
    let directory = tempfile::tempdir().unwrap();
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let path = directory.path().join("made/here");
    let credentials = DevCredentials::write(&path, &hosts, organizations, now()).unwrap();
    (directory, credentials)
}

fn certificate(credentials: &DevCredentials, name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(credentials.path(name)).unwrap()
}

#[test]
fn secrets_are_readable_by_their_owner_only() {
    let (_directory, credentials) = written(&[], &[]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(credentials.directory.clone()), 0o700);
    let mut modes = BTreeMap::new();
    for entry in fs::read_dir(&credentials.directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        modes.insert(name, mode(entry.path()));
    }
    let public: Vec<&str> = modes
        .iter()
        .filter(|(_, mode)| **mode != 0o600)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(
        public,
        [CA, CALLERS, CLIENT_CERTIFICATE, KEY_SET, SERVER_CERTIFICATE]
    );
    assert_eq!(modes.len(), 13);
}

#[test]
fn certificates_have_the_names_and_are_valid_for_a_week() {
    let (_directory, credentials) =
        written(&["relay.example.com", "192.0.2.1", "2001:db8::1"], &[]);
    let authority = certificate(&credentials, CA);
    let (_, authority) = X509Certificate::from_der(&authority).unwrap();
    for (name, expected) in [
        (
            SERVER_CERTIFICATE,
            [
                "localhost",
                "127.0.0.1",
                "::1",
                "relay.example.com",
                "192.0.2.1",
                "2001:db8::1",
            ]
            .as_slice(),
        ),
        (CLIENT_CERTIFICATE, &[CLIENT_SPIFFE_ID]),
    ] {
        let der = certificate(&credentials, name);
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(parsed.issuer(), authority.subject());
        let validity = parsed.validity();
        let now = NOW as i64;
        assert_eq!(validity.not_before.timestamp(), now - 3_600);
        assert_eq!(validity.not_after.timestamp(), now + 7 * 86_400);
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        let names = names.value.general_names.iter().map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => (*name).to_owned(),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => IpAddr::from(v4).to_string(),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(*bytes).unwrap()).to_string(),
            },
            other => panic!("{other:?}"),
        });
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn tokens_verify_against_the_key_set() {
    let (_directory, credentials) = written(&[], &[]);
    let read = |name| fs::read_to_string(credentials.path(name)).unwrap();
    let set: Value = serde_json::from_str(&read(KEY_SET)).unwrap();
    let key = &set["keys"][0];
    assert!(key.get("d").is_none(), "a private key");
    let text = |name: &str| key[name].as_str().unwrap();
    let decoding = DecodingKey::from_ec_components(text("x"), text("y")).unwrap();
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[ISSUER]);
    // The tests have their own time.
    validation.validate_exp = false;
    for (file, subject, _) in TOKENS {
        let token = read(file);
        let decoded = jsonwebtoken::decode::<Value>(token.trim_end(), &decoding, &validation);
        let decoded = decoded.unwrap();
        assert_eq!(decoded.header.kid.as_deref(), key["kid"].as_str());
        assert_eq!(decoded.claims["sub"], subject);
        assert_eq!(decoded.claims["exp"], NOW + 12 * 3_600);
        assert_eq!(decoded.claims["nbf"], NOW);
    }
}

#[test]
fn the_callers_file_names_each_caller_and_the_organizations() {
    for (organizations, expected) in [
        (vec![], vec!["*"]),
        (
            vec![organization("acme"), organization("x-1")],
            vec!["acme", "x-1"],
        ),
    ] {
        let (_directory, credentials) = written(&[], &organizations);
        let text = fs::read_to_string(credentials.path(CALLERS)).unwrap();
        let file: toml::Table = text.parse().unwrap();
        let issuer = &file["issuers"].as_array().unwrap()[0];
        assert_eq!(issuer["jwks_file"].as_str(), Some(KEY_SET));
        let callers = file["callers"].as_array().unwrap();
        assert_eq!(callers.len(), TOKENS.len() + 1);
        for caller in callers {
            let names = caller["organizations"].as_array().unwrap().iter();
            let names: Vec<_> = names.map(|name| name.as_str().unwrap()).collect();
            assert_eq!(names, expected);
        }
        assert_eq!(callers[4]["spiffe"].as_str(), Some(CLIENT_SPIFFE_ID));
    }
}

#[test]
fn nothing_is_overwritten() {
    let (_directory, credentials) = written(&[], &[]);
    let key = fs::read(credentials.path(SERVER_KEY)).unwrap();
    let again = DevCredentials::write(&credentials.directory, &[], &[], now());
    assert!(matches!(again, Err(DevCredentialsError::Exists(_))));
    assert_eq!(fs::read(credentials.path(SERVER_KEY)).unwrap(), key);

    // A link that leads nowhere would be written through.
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("target");
    std::os::unix::fs::symlink(&target, directory.path().join(ADMIN_TOKEN)).unwrap();
    let linked = DevCredentials::write(directory.path(), &[], &[], now());
    assert!(matches!(linked, Err(DevCredentialsError::Exists(_))));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    assert!(!target.exists());
}

#[test]
fn a_host_that_is_no_name_is_refused() {
    for bad in [
        "",
        "a b",
        "https://x",
        "x:50051",
        "-x",
        "a..b",
        "ümlaut",
        "*.example.com",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let made = DevCredentials::write(directory.path(), &[bad.to_owned()], &[], now());
        assert!(matches!(made, Err(DevCredentialsError::Host(_))), "{bad}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}

#[test]
fn commands_quote_paths_for_a_shell() {
    let of = |directory: &str| DevCredentials {
        directory: directory.into(),
    };
    assert_eq!(of("/tmp/dev").shell_path(CA), "/tmp/dev/ca.pem");
    assert_eq!(of("/tmp/a b").shell_path(CA), "'/tmp/a b/ca.pem'");
    assert_eq!(of("/tmp/$(x)'").shell_path(CA), r"'/tmp/$(x)'\''/ca.pem'");
}
