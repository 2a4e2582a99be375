//! The setting `log-url`.

use std::path::PathBuf;

use secrecy::SecretString;

use super::{Certificate, KafkaOptions, KafkaSecurity, Mechanism, Password, Tls};

/// Form of the URL, for messages.
const FORM: &str = "kafka://HOST:PORT,HOST:PORT/TOPIC";

impl KafkaOptions {
    /// Parses `kafka://HOST:PORT,HOST:PORT/TOPIC?NAME=VALUE&…`. The names are `security`
    /// (`plaintext`, `tls` or `sasl`), `mechanism` (`plain`, `scram-sha-256` or `scram-sha-512`),
    /// `user`, `ca`, `cert` and `key` (files in PEM).
    ///
    /// `security` is `sasl` with a `user`, and else `tls`, unless every host is a loopback
    /// address.
    ///
    /// # Errors
    ///
    /// A description of what is wrong with the URL.
    pub fn parse(
        url: &str,
        password: Option<SecretString>,
        password_file: Option<PathBuf>,
        allow_single_replica: bool,
    ) -> Result<Self, String> {
        let rest = url.strip_prefix("kafka://");
        let rest = rest.ok_or_else(|| format!("it must be {FORM}"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (hosts, topic) = rest
            .split_once('/')
            .ok_or_else(|| format!("it names no topic: {FORM}"))?;
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if topic.is_empty() || topic.len() > 249 || !topic.bytes().all(is_name) {
            return Err(
                "the topic has 1 to 249 letters, digits, dots, hyphens or underscores".into(),
            );
        }
        let brokers: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        for broker in &brokers {
            let (host, port) = broker.rsplit_once(':').unwrap_or((broker, ""));
            let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
            if host.is_empty() || host.contains('@') || !is_port {
                return Err(format!("{broker:?} is not a host and a port: {FORM}"));
            }
        }
        let (mut security, mut mechanism, mut user) = (None, None, None);
        let (mut ca, mut cert, mut key) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "security" => security = Some(value),
                "mechanism" => {
                    mechanism = Some(match value {
                        "plain" => Mechanism::Plain,
                        "scram-sha-256" => Mechanism::ScramSha256,
                        "scram-sha-512" => Mechanism::ScramSha512,
                        _ => {
                            return Err(
                                "mechanism must be plain, scram-sha-256 or scram-sha-512".into()
                            );
                        }
                    });
                }
                "user" => user = Some(value.to_owned()),
                "ca" => ca = Some(PathBuf::from(value)),
                "cert" => cert = Some(PathBuf::from(value)),
                "key" => key = Some(PathBuf::from(value)),
                "password" => {
                    return Err("a password in the URL is seen by others: give it by \
                        SIEM_RELAY_LOG_PASSWORD or log-password-file"
                        .into());
                }
                name => return Err(format!("it has an unknown setting {name:?}")),
            }
        }
        let is_local = brokers.iter().all(|broker| is_loopback(broker));
        let default = match (&user, is_local) {
            (Some(_), _) => "sasl",
            (None, true) => "plaintext",
            (None, false) => "tls",
        };
        let has_files = ca.is_some() || cert.is_some() || key.is_some();
        let tls = Tls {
            ca_file: ca,
            certificate: match (cert, key) {
                (Some(cert_file), Some(key_file)) => Some(Certificate {
                    cert_file,
                    key_file,
                }),
                (None, None) => None,
                _ => return Err("cert and key need each other".into()),
            },
        };
        let security = security.unwrap_or(default);
        if security != "sasl" && (user.is_some() || mechanism.is_some()) {
            return Err("user and mechanism need security=sasl".into());
        }
        let security = match security {
            "plaintext" if has_files => {
                return Err("ca, cert and key need security=tls or security=sasl".into());
            }
            "plaintext" => KafkaSecurity::Plaintext,
            "tls" => KafkaSecurity::Tls(tls),
            "sasl" => KafkaSecurity::Sasl {
                mechanism: mechanism.unwrap_or(Mechanism::ScramSha512),
                user: user.ok_or("security=sasl needs a user")?,
                password: match (password, password_file) {
                    (Some(password), _) => Password::Given(password),
                    (None, Some(file)) => Password::File(file),
                    (None, None) => {
                        return Err("security=sasl needs a password: give it by \
                            SIEM_RELAY_LOG_PASSWORD or log-password-file"
                            .into());
                    }
                },
                tls,
            },
            _ => return Err("security must be plaintext, tls or sasl".into()),
        };
        Ok(Self {
            brokers,
            topic: topic.to_owned(),
            security,
            allow_single_replica,
        })
    }
}

fn is_loopback(broker: &str) -> bool {
    let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
    let host = host.trim_matches(['[', ']']);
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<KafkaOptions, String> {
        KafkaOptions::parse(url, Some("secret".into()), None, false)
    }

    #[test]
    fn accepts_what_it_documents() {
        let options = parse("kafka://127.0.0.1:9092,[::1]:9093/siem.log").unwrap();
        assert_eq!(options.brokers, ["127.0.0.1:9092", "[::1]:9093"]);
        assert_eq!(options.topic, "siem.log");
        assert!(matches!(options.security, KafkaSecurity::Plaintext));
        let options = parse("kafka://b-1.example.com:9094/log?ca=/ca.pem").unwrap();
        assert!(matches!(
            options.security,
            KafkaSecurity::Tls(Tls {
                ca_file: Some(_),
                certificate: None
            })
        ));
        let options = parse("kafka://b-1.example.com:9094/log?user=relay").unwrap();
        let KafkaSecurity::Sasl {
            mechanism, user, ..
        } = options.security
        else {
            panic!("no SASL");
        };
        assert_eq!((mechanism, &*user), (Mechanism::ScramSha512, "relay"));
    }

    #[test]
    fn names_the_problem() {
        for (url, problem) in [
            ("http://a:1/t", "must be kafka://"),
            ("kafka://a:1", "no topic"),
            ("kafka://a:1/", "1 to 249"),
            ("kafka://a/t", "not a host and a port"),
            ("kafka://u:p@a:x/t", "not a host and a port"),
            ("kafka://a:1/t?password=x", "SIEM_RELAY_LOG_PASSWORD"),
            ("kafka://a:1/t?user=x&security=tls", "security=sasl"),
            ("kafka://a:1/t?cert=/c", "cert and key"),
            ("kafka://a:1/t?security=none", "plaintext, tls or sasl"),
            ("kafka://a:1/t?acks=1", "unknown setting \"acks\""),
        ] {
            let found = parse(url).unwrap_err();
            assert!(found.contains(problem), "{url}: {found}");
        }
        let none = KafkaOptions::parse("kafka://a:1/t?user=x", None, None, false);
        assert!(none.unwrap_err().contains("log-password-file"));
    }
}
