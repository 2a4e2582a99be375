//! Identities in client certificates: subject alternative names (RFC 5280, section 4.2.1.6). The
//! common name is never used.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

/// Bytes of a SPIFFE ID ([limit](https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/#23-maximum-spiffe-id-length)).
const MAX_SPIFFE_ID: usize = 2048;
const SPIFFE_SCHEME: &str = "spiffe://";

/// Subject alternative name, in a form in which equal names are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// SPIFFE ID by its parts, which are compared apart: the trust domain ignores case.
    Spiffe {
        trust_domain: Box<str>,
        path: Box<str>,
    },
    /// Any other URI, byte for byte.
    Uri(Box<str>),
    /// DNS name in lower case, without a wildcard.
    Dns(Box<str>),
    /// Mailbox, with the domain in lower case.
    Email(Box<str>),
}

impl Name {
    /// Parses a [SPIFFE ID](https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/) of a workload.
    pub(super) fn spiffe(text: &str) -> Result<Self, &'static str> {
        let after_scheme = text.split_at_checked(SPIFFE_SCHEME.len());
        let (_, rest) = after_scheme
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SPIFFE_SCHEME))
            .ok_or("is not a SPIFFE ID; give spiffe://TRUST-DOMAIN/PATH")?;
        let (trust_domain, path) = match rest.split_once('/') {
            Some((trust_domain, path)) if text.len() <= MAX_SPIFFE_ID => (trust_domain, path),
            Some(_) => return Err("is longer than 2048 bytes, the limit of a SPIFFE ID"),
            None => {
                return Err(
                    "has no path, so it names no workload; give spiffe://TRUST-DOMAIN/PATH",
                );
            }
        };
        let trust_domain = trust_domain.to_ascii_lowercase();
        let in_domain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-._".contains(&c);
        if trust_domain.is_empty() || !trust_domain.bytes().all(in_domain) {
            return Err(
                "has a trust domain other than letters, digits, '.', '-' and '_' (no port or user)",
            );
        }
        let in_path = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
        let is_segment =
            |segment: &str| !["", ".", ".."].contains(&segment) && segment.bytes().all(in_path);
        if !path.split('/').all(is_segment) {
            return Err(
                "has a path with other than non-empty segments of letters, digits, '.', '-' and '_'",
            );
        }
        Ok(Self::Spiffe {
            trust_domain: trust_domain.into(),
            path: path.into(),
        })
    }

    pub(super) fn uri(text: &str) -> Result<Self, &'static str> {
        if is_spiffe(text) {
            return Err("is a SPIFFE ID; give it as spiffe");
        }
        if text.is_empty() || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err("is not a URI of printable ASCII characters");
        }
        Ok(Self::Uri(text.into()))
    }

    pub(super) fn dns(text: &str) -> Result<Self, &'static str> {
        let name = text.to_ascii_lowercase();
        let known = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(known);
        match name.split('.').all(is_label) {
            true => Ok(Self::Dns(name.into())),
            false => {
                Err("is not a DNS name; give a name without a wildcard, such as relay.example.com")
            }
        }
    }

    pub(super) fn email(text: &str) -> Result<Self, &'static str> {
        match text.rsplit_once('@') {
            Some((user, domain))
                if !user.is_empty()
                    && !domain.is_empty()
                    && text.bytes().all(|c| c.is_ascii_graphic()) =>
            {
                let domain = domain.to_ascii_lowercase();
                Ok(Self::Email(format!("{user}@{domain}").into()))
            }
            _ => Err("is not a mailbox, such as relay@example.com"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe { trust_domain, path } => {
                write!(f, "{SPIFFE_SCHEME}{trust_domain}/{path}")
            }
            Self::Uri(text) => write!(f, "uri:{text}"),
            Self::Dns(text) => write!(f, "dns:{text}"),
            Self::Email(text) => write!(f, "email:{text}"),
        }
    }
}

/// Whether a URI has the scheme of SPIFFE IDs, well-formed or not.
fn is_spiffe(text: &str) -> bool {
    let scheme = text.split_once(':');
    scheme.is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe"))
}

/// Names and validity of a client certificate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Certificate {
    /// Names that may identify a caller, a SPIFFE ID first.
    pub(super) names: Vec<Name>,
    /// End of its validity, in Unix seconds.
    pub(super) expires_at: i64,
}

impl Certificate {
    /// Reads a certificate that TLS has verified.
    ///
    /// A certificate with several URIs of which one is a SPIFFE ID has no names: SPIFFE demands
    /// that it is refused, since another verifier might choose the other one.
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, &'static str> {
        let (_, certificate) = parse_x509_certificate(der).map_err(|_| UNREADABLE)?;
        let extension = certificate.subject_alternative_name();
        let extension = extension.map_err(|_| UNREADABLE)?;
        let names = extension.map_or(&[][..], |extension| &extension.value.general_names);
        let (mut spiffe, mut others, mut uris) = (Vec::new(), Vec::new(), 0);
        for name in names {
            let name = match name {
                GeneralName::URI(text) => {
                    uris += 1;
                    match is_spiffe(text) {
                        true => {
                            spiffe.push(Name::spiffe(text).map_err(|_| MALFORMED_SPIFFE_ID)?);
                            continue;
                        }
                        false => Name::uri(text),
                    }
                }
                GeneralName::DNSName(text) => Name::dns(text),
                GeneralName::RFC822Name(text) => Name::email(text),
                _ => continue,
            };
            // A name of another form, such as a wildcard, identifies nobody.
            others.extend(name);
        }
        if !spiffe.is_empty() && uris > 1 {
            return Err(SEVERAL_SPIFFE_IDS);
        }
        spiffe.append(&mut others);
        Ok(Self {
            names: spiffe,
            expires_at: certificate.validity().not_after.timestamp(),
        })
    }
}

const UNREADABLE: &str = "the client certificate cannot be read";
const MALFORMED_SPIFFE_ID: &str = "the client certificate has a malformed SPIFFE ID";
const SEVERAL_SPIFFE_IDS: &str =
    "the client certificate has a SPIFFE ID beside another URI, so it identifies no caller";

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(names: Vec<SanType>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "admin.example.com");
        params.subject_alt_names = names;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn a_spiffe_id_is_compared_by_its_parts() {
        let id = Name::spiffe("spiffe://example.org/siem/dashboard").unwrap();
        assert_eq!(id.to_string(), "spiffe://example.org/siem/dashboard");
        assert_eq!(
            Name::spiffe("SPIFFE://Example.ORG/siem/dashboard").as_ref(),
            Ok(&id)
        );
        for other in [
            "spiffe://example.org/siem/Dashboard",
            "spiffe://example.com/siem/dashboard",
        ] {
            assert_ne!(Name::spiffe(other).as_ref(), Ok(&id), "{other}");
        }
        for bad in [
            "",
            "spiffe://",
            "spiffe://example.org",
            "spiffe://example.org/",
            "spiffe:///path",
            "spiffe://example.org/a//b",
            "spiffe://example.org/a/../b",
            "spiffe://example.org/a/",
            "spiffe://example.org/%61",
            "spiffe://example.org/a?b",
            "spiffe://example.org/a#b",
            "spiffe://user@example.org/a",
            "spiffe://example.org:1/a",
            "spiffe:example.org/a",
            "spiffe:",
            "spiffe:é/a",
            "https://example.org/a",
            &format!("spiffe://example.org/{}", "a".repeat(2048)),
        ] {
            assert!(Name::spiffe(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_those_of_the_extension_with_the_spiffe_id_first() {
        let der = certificate(vec![
            SanType::DnsName("Relay.Example.com".try_into().unwrap()),
            SanType::DnsName("*.example.com".try_into().unwrap()),
            SanType::Rfc822Name("Relay@Example.com".try_into().unwrap()),
            uri("spiffe://example.org/relay"),
        ]);
        let names = Certificate::read(&der).unwrap().names;
        let names: Vec<String> = names.iter().map(Name::to_string).collect();
        let expected = [
            "spiffe://example.org/relay",
            "dns:relay.example.com",
            "email:Relay@example.com",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_common_name_identifies_nobody() {
        assert_eq!(
            Certificate::read(&certificate(Vec::new())).unwrap().names,
            []
        );
    }

    #[test]
    fn ambiguous_spiffe_ids_are_refused() {
        let (one, other) = ("spiffe://example.org/a", "spiffe://example.org/b");
        for (names, problem) in [
            (vec![uri(one), uri(other)], SEVERAL_SPIFFE_IDS),
            (vec![uri(one), uri(one)], SEVERAL_SPIFFE_IDS),
            (
                vec![uri("https://example.org"), uri(one)],
                SEVERAL_SPIFFE_IDS,
            ),
            (
                vec![uri("spiffe://example.org/a/../b")],
                MALFORMED_SPIFFE_ID,
            ),
            (vec![uri("spiffe:x")], MALFORMED_SPIFFE_ID),
        ] {
            assert_eq!(Certificate::read(&certificate(names)), Err(problem));
        }
        let plain = Certificate::read(&certificate(vec![uri("https://a"), uri("https://b")]));
        assert_eq!(plain.unwrap().names.len(), 2);
        assert_eq!(
            Certificate::read(&CertificateDer::from(vec![1, 2])),
            Err(UNREADABLE)
        );
    }
}
