//! The setting `log-url`.

use std::{path::PathBuf, sync::Arc};

use secrecy::SecretString;

use super::{
    Certificate, KafkaOptions, KafkaSecurity, Mechanism, Password, Tls, TokenIssuer, Tokens,
};

/// Form of the URL, for messages.
const FORM: &str = "kafka://HOST:PORT,HOST:PORT/TOPIC";

/// Credentials, which the URL does not have.
pub struct LogCredentials<'a> {
    /// The password.
    pub password: Option<SecretString>,
    /// File with the password, or with a token.
    pub password_file: Option<PathBuf>,
    /// Makes the issuer of tokens for Amazon MSK in a region.
    pub msk: &'a dyn Fn(String) -> Arc<dyn TokenIssuer>,
}

/// Value of `mechanism`.
enum Method {
    Password(Mechanism),
    TokenFile,
    Msk,
}

impl KafkaOptions {
    /// Parses `kafka://HOST:PORT,HOST:PORT/TOPIC?NAME=VALUE&…`. The names are `security`
    /// (`plaintext`, `tls` or `sasl`), `mechanism` (`plain`, `scram-sha-256`, `scram-sha-512`,
    /// `oauthbearer` or `aws-msk-iam`), `user`, `region` (of Amazon MSK, unless the first host
    /// names it), `ca`, `cert` and `key` (files in PEM).
    ///
    /// `security` is `sasl` with a `user` or a `mechanism`, and else `tls`, unless every host is a
    /// loopback address.
    ///
    /// # Errors
    ///
    /// A description of what is wrong with the URL.
    pub fn parse(
        url: &str,
        credentials: LogCredentials<'_>,
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
        let (mut security, mut mechanism, mut user, mut region) = (None, None, None, None);
        let (mut ca, mut cert, mut key) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "security" => security = Some(value),
                "mechanism" => {
                    mechanism = Some(match value {
                        "plain" => Method::Password(Mechanism::Plain),
                        "scram-sha-256" => Method::Password(Mechanism::ScramSha256),
                        "scram-sha-512" => Method::Password(Mechanism::ScramSha512),
                        "oauthbearer" => Method::TokenFile,
                        "aws-msk-iam" => Method::Msk,
                        _ => {
                            return Err("mechanism must be plain, scram-sha-256, scram-sha-512, \
                                oauthbearer or aws-msk-iam"
                                .into());
                        }
                    });
                }
                "region" => region = Some(value.to_owned()),
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
        let has_sasl = user.is_some() || mechanism.is_some();
        let default = match (has_sasl, is_local) {
            (true, _) => "sasl",
            (false, true) => "plaintext",
            (false, false) => "tls",
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
        if security != "sasl" && has_sasl {
            return Err("user and mechanism need security=sasl".into());
        }
        if region.is_some() && !matches!(mechanism, Some(Method::Msk)) {
            return Err("region needs mechanism=aws-msk-iam".into());
        }
        let security = match security {
            "plaintext" if has_files => {
                return Err("ca, cert and key need security=tls or security=sasl".into());
            }
            "plaintext" => KafkaSecurity::Plaintext,
            "tls" => KafkaSecurity::Tls(tls),
            "sasl" => {
                let method = mechanism.unwrap_or(Method::Password(Mechanism::ScramSha512));
                sasl(method, user, region, credentials, &brokers, tls)?
            }
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

fn sasl(
    method: Method,
    user: Option<String>,
    region: Option<String>,
    credentials: LogCredentials<'_>,
    brokers: &[String],
    tls: Tls,
) -> Result<KafkaSecurity, String> {
    if !matches!(method, Method::Password(_)) && user.is_some() {
        return Err("user needs a mechanism with a password: the token names its user".into());
    }
    Ok(match method {
        Method::Password(mechanism) => KafkaSecurity::Sasl {
            mechanism,
            user: user.ok_or("security=sasl needs a user")?,
            password: match (credentials.password, credentials.password_file) {
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
        Method::TokenFile => {
            let file = credentials.password_file.ok_or(
                "mechanism=oauthbearer needs log-password-file, a file with a token, which \
                 somebody renews before it expires",
            )?;
            let tokens = Tokens::from_file(file);
            KafkaSecurity::Token { tokens, tls }
        }
        Method::Msk => {
            let region = region.or_else(|| msk_region(&brokers[0]));
            let region = region.ok_or(
                "mechanism=aws-msk-iam needs region=REGION: the host does not name the region",
            )?;
            let is_of_region = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if region.is_empty() || region.len() > 32 || !region.bytes().all(is_of_region) {
                return Err("region must be the name of an AWS region, such as us-east-1".into());
            }
            let tokens = Tokens::from_issuer((credentials.msk)(region));
            KafkaSecurity::Token { tokens, tls }
        }
    })
}

/// Region in the name of a broker of Amazon MSK, such as
/// `b-1.relay.abc123.c2.kafka.us-east-1.amazonaws.com:9098`.
fn msk_region(broker: &str) -> Option<String> {
    let (host, _) = broker.rsplit_once(':')?;
    let host = host.strip_suffix(".cn").unwrap_or(host);
    let (rest, region) = host.strip_suffix(".amazonaws.com")?.rsplit_once('.')?;
    let service = rest.rsplit('.').next()?;
    service.starts_with("kafka").then(|| region.to_owned())
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

    #[derive(Debug)]
    struct Issuer(String);

    #[async_trait::async_trait]
    impl TokenIssuer for Issuer {
        async fn issue(&self) -> Result<crate::store::kafka::Token, String> {
            Err(self.0.clone())
        }
    }

    fn credentials() -> LogCredentials<'static> {
        LogCredentials {
            password: None,
            password_file: None,
            msk: &|region| Arc::new(Issuer(region)),
        }
    }

    fn parse(url: &str) -> Result<KafkaOptions, String> {
        let credentials = LogCredentials {
            password: Some("secret".into()),
            ..credentials()
        };
        KafkaOptions::parse(url, credentials, false)
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
            ("kafka://a:1/t?mechanism=x", "oauthbearer or aws-msk-iam"),
            ("kafka://a:1/t?mechanism=aws-msk-iam", "needs region=REGION"),
            (
                "kafka://a:1/t?mechanism=aws-msk-iam&region=a.b",
                "such as us-east-1",
            ),
            (
                "kafka://a:1/t?user=x&mechanism=aws-msk-iam&region=r",
                "the token names its user",
            ),
            (
                "kafka://a:1/t?user=x&region=us-east-1",
                "mechanism=aws-msk-iam",
            ),
            (
                "kafka://a:1/t?security=tls&mechanism=oauthbearer",
                "security=sasl",
            ),
            ("kafka://a:1/t?acks=1", "unknown setting \"acks\""),
        ] {
            let found = parse(url).unwrap_err();
            assert!(found.contains(problem), "{url}: {found}");
        }
        for url in [
            "kafka://a:1/t?user=x",
            "kafka://a:1/t?mechanism=oauthbearer",
        ] {
            let none = KafkaOptions::parse(url, credentials(), false);
            assert!(none.unwrap_err().contains("log-password-file"));
        }
    }

    #[test]
    fn tokens_come_from_a_file_or_from_aws() {
        let credentials = LogCredentials {
            password_file: Some("/run/token".into()),
            ..credentials()
        };
        let url = "kafka://127.0.0.1:9093/log?mechanism=oauthbearer&ca=/ca.pem";
        let options = KafkaOptions::parse(url, credentials, false).unwrap();
        assert!(
            format!("{options:?}").contains("File(\"/run/token\")"),
            "{options:?}"
        );
        assert_eq!(options.security.files(), [std::path::Path::new("/ca.pem")]);
        for (url, region) in [
            (
                "kafka://b-1.relay.abc123.c2.kafka.us-east-1.amazonaws.com:9098/t?mechanism=aws-msk-iam",
                "us-east-1",
            ),
            (
                "kafka://boot-x.c3.kafka-serverless.eu-central-1.amazonaws.com:9098/t?mechanism=aws-msk-iam",
                "eu-central-1",
            ),
            (
                "kafka://b-1.relay.abc.c2.kafka.cn-north-1.amazonaws.com.cn:9098/t?mechanism=aws-msk-iam",
                "cn-north-1",
            ),
            (
                "kafka://kafka.internal:9098/t?mechanism=aws-msk-iam&region=eu-west-1",
                "eu-west-1",
            ),
        ] {
            let options = parse(url).unwrap();
            let issuer = format!("Issuer(\"{region}\")");
            assert!(format!("{options:?}").contains(&issuer), "{options:?}");
        }
    }
}
