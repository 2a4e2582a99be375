use std::path::Path;

use aws_lc_rs::{
    encoding::AsDer,
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
        RSA_PSS_SHA256, RsaKeyPair,
    },
};
use serde_json::json;

use super::{super::file::CallersFile, *};

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://login.example.com";

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Keys of an issuer, and that issuer's entry in the callers file.
struct World {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    keys: KeySet,
    file: CallersFile,
}

fn jwk_of_rsa(key: &RsaKeyPair) -> Value {
    let public = key.public_key();
    json!({
        "kty": "RSA",
        "kid": "rsa",
        "n": encode(public.modulus().big_endian_without_leading_zero()),
        "e": encode(public.exponent().big_endian_without_leading_zero()),
    })
}

impl World {
    fn new() -> Self {
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        let point = ec.public_key().as_ref();
        let set = json!({ "keys": [
            jwk_of_rsa(&rsa),
            {
                "kty": "EC", "crv": "P-256", "kid": "ec",
                "x": encode(&point[1..33]), "y": encode(&point[33..]),
            },
            { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encode(ed.public_key()) },
            { "kty": "oct", "kid": "oct", "k": encode(b"secret") },
        ]});
        let file = format!(
            r#"
            [[issuers]]
            issuer = "{ISSUER}"
            audience = "siem-relay"
            jwks_file = "keys"
            max_lifetime_seconds = 3600
            scopes_claim = "scope"
            organizations_claim = "organizations"
            [[issuers]]
            issuer = "https://silent.example.com"
            audience = "siem-relay"
            jwks_file = "other"
            [[callers]]
            issuer = "{ISSUER}"
            subject = "dashboard"
            scopes = ["siem.read"]
            organizations = ["*"]
            "#
        );
        Self {
            keys: KeySet::parse(set.to_string().as_bytes()).unwrap(),
            file: CallersFile::parse(file.as_bytes(), Path::new("/")).unwrap(),
            rsa,
            ec,
            ed,
        }
    }

    fn verify(&self, token: &str) -> Result<Token, TokenError> {
        self.verify_at(token, NOW)
    }

    fn verify_at(&self, token: &str, now: i64) -> Result<Token, TokenError> {
        let keys = [Some(&self.keys), None];
        let issuers: Vec<TrustedIssuer<'_>> = self
            .file
            .issuers
            .iter()
            .zip(keys)
            .map(|(issuer, keys)| TrustedIssuer { issuer, keys })
            .collect();
        verify(token, &issuers, now).map(|(token, _)| token)
    }

    /// Signs texts with one of the keys, whatever they say.
    fn sign_text(&self, header: &str, claims: &str, with: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let random = SystemRandom::new();
        let rsa = |padding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa
                .sign(padding, &random, signed.as_bytes(), &mut signature)
                .unwrap();
            signature
        };
        let hmac = |secret: &[u8]| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            hmac::sign(&key, signed.as_bytes()).as_ref().to_vec()
        };
        let signature = match with {
            "rsa" => rsa(&RSA_PKCS1_SHA256),
            "pss" => rsa(&RSA_PSS_SHA256),
            "ec" => self
                .ec
                .sign(&random, signed.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
            "ed" => self.ed.sign(signed.as_bytes()).as_ref().to_vec(),
            // The public keys as secrets: algorithm confusion.
            "hmac-der" => hmac(self.rsa.public_key().as_der().unwrap().as_ref()),
            "hmac-n" => hmac(
                self.rsa
                    .public_key()
                    .modulus()
                    .big_endian_without_leading_zero(),
            ),
            "hmac-ed" => hmac(self.ed.public_key().as_ref()),
            "hmac-oct" => hmac(b"secret"),
            "none" => Vec::new(),
            other => panic!("{other}"),
        };
        format!("{signed}.{}", encode(signature))
    }

    fn sign(&self, header: &Value, claims: &Value, with: &str) -> String {
        self.sign_text(&header.to_string(), &claims.to_string(), with)
    }

    /// Verifies claims in an otherwise good token.
    fn verify_claims(&self, claims: &Value) -> Result<Token, TokenError> {
        self.verify(&self.sign(&json!({ "alg": "EdDSA", "kid": "ed" }), claims, "ed"))
    }

    /// Verifies good claims, with one of them replaced.
    fn verify_with(&self, name: &str, value: Value) -> Result<Token, TokenError> {
        let mut claims = claims();
        match value {
            Value::Null => claims.as_object_mut().unwrap().remove(name),
            value => claims
                .as_object_mut()
                .unwrap()
                .insert(name.to_owned(), value),
        };
        self.verify_claims(&claims)
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER,
        "sub": "dashboard",
        "aud": "siem-relay",
        "iat": NOW - 10,
        "nbf": NOW - 10,
        "exp": NOW + 600,
        "scope": "openid siem.read siem.write",
        "organizations": ["acme", "test-*"],
    })
}

#[track_caller]
fn refused(result: Result<Token, TokenError>, part: &str) {
    match result {
        Err(Invalid(problem)) => assert!(problem.contains(part), "{problem}, not {part}"),
        other => panic!("{other:?}, not {part}"),
    }
}

#[test]
fn good_tokens_of_each_algorithm_pass() {
    let world = World::new();
    for (algorithm, key) in [("RS256", "rsa"), ("ES256", "ec"), ("EdDSA", "ed")] {
        let header = json!({ "alg": algorithm, "kid": key, "typ": "at+jwt", "x5t": "x" });
        let token = world.verify(&world.sign(&header, &claims(), key)).unwrap();
        assert_eq!(
            (&*token.subject, token.expires_at),
            ("dashboard", NOW + 600)
        );
        let scopes = token.scopes.unwrap();
        assert!(scopes.has(Scope::Read) && scopes.has(Scope::Write) && !scopes.has(Scope::Publish));
        let organizations = token.organizations.unwrap();
        assert!(organizations.has("test-1") && !organizations.has("other"));
    }
}

#[test]
fn the_key_decides_about_the_algorithm() {
    let world = World::new();
    let try_all = |algorithm: &str, kid: &str, with: &str| {
        let header = json!({ "alg": algorithm, "kid": kid });
        world.verify(&world.sign(&header, &claims(), with))
    };
    for with in ["hmac-der", "hmac-n", "hmac-ed", "hmac-oct", "none", "rsa"] {
        for kid in ["rsa", "ed", "oct"] {
            for algorithm in ["HS256", "HS384", "HS512", "none", "None", "NONE", ""] {
                refused(try_all(algorithm, kid, with), "algorithm");
            }
        }
    }
    for (algorithm, kid, with) in [
        ("PS256", "rsa", "pss"),
        ("RS384", "rsa", "rsa"),
        ("ES384", "ec", "ec"),
        ("rs256", "rsa", "rsa"),
        ("ES256", "rsa", "rsa"),
        ("RS256", "ec", "ec"),
        ("EdDSA", "ec", "ed"),
        ("RS256", "ed", "hmac-n"),
    ] {
        refused(try_all(algorithm, kid, with), "algorithm");
    }
    for (algorithm, kid, with) in [
        ("RS256", "rsa", "hmac-n"),
        ("RS256", "rsa", "hmac-der"),
        ("RS256", "rsa", "pss"),
        ("RS256", "rsa", "none"),
        ("ES256", "ec", "ed"),
        ("EdDSA", "ed", "hmac-ed"),
        ("EdDSA", "ed", "none"),
    ] {
        refused(try_all(algorithm, kid, with), "signature");
    }
    for header in [
        json!({ "kid": "ed" }),
        json!({ "alg": 5, "kid": "ed" }),
        json!({ "alg": ["EdDSA"], "kid": "ed" }),
    ] {
        refused(
            world.verify(&world.sign(&header, &claims(), "ed")),
            "algorithm",
        );
    }
}

#[test]
fn the_header_leads_to_no_other_key() {
    let world = World::new();
    let attacker = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    for (name, value) in [
        ("jwk", jwk_of_rsa(&attacker)),
        ("jku", json!("https://attacker.example.com/keys")),
        ("x5u", json!("https://attacker.example.com/chain")),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("crit", Value::Null),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
    ] {
        let mut header = json!({ "alg": "EdDSA", "kid": "ed" });
        header[name] = value;
        refused(
            world.verify(&world.sign(&header, &claims(), "ed")),
            "not accepted",
        );
    }
    let of = |kid: Value| {
        let header = json!({ "alg": "EdDSA", "kid": kid });
        world.verify(&world.sign(&header, &claims(), "ed"))
    };
    for kid in [
        "",
        "ED",
        "ed ",
        "ed\u{0}",
        "../ed",
        "ed' OR '1'='1",
        "/dev/null",
        "oct",
    ] {
        assert_eq!(
            of(json!(kid)).unwrap_err(),
            TokenError::UnknownKey { issuer: 0 },
            "{kid}"
        );
    }
    for kid in [json!(1), json!(["ed"]), json!({}), json!(true), Value::Null] {
        refused(of(kid), "kid");
    }
    let without = world.sign(&json!({ "alg": "EdDSA" }), &claims(), "ed");
    refused(world.verify(&without), "does not name one key");
}

#[test]
fn a_changed_or_cut_token_is_refused() {
    let world = World::new();
    let header = json!({ "alg": "EdDSA", "kid": "ed" });
    let token = world.sign(&header, &claims(), "ed");
    world.verify(&token).unwrap();
    for length in 0..token.len() {
        assert!(world.verify(&token[..length]).is_err(), "{length}");
    }
    let parts: Vec<&str> = token.split('.').collect();
    let mut admin = claims();
    admin["sub"] = json!("admin");
    let forged = format!("{}.{}.{}", parts[0], encode(admin.to_string()), parts[2]);
    refused(world.verify(&forged), "signature");
    for bad in [
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{}", parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}..{}", parts[0], parts[2]),
        format!("{token}="),
        format!("{token} "),
        format!(" {token}"),
        token.replace('.', ","),
        format!("{}.{}.{}=", parts[0], parts[1], parts[2]),
        "x".repeat(9000),
    ] {
        assert!(world.verify(&bad).is_err(), "{bad}");
    }
    // The same signature, with other bits behind its last byte.
    let last = token.chars().last().unwrap();
    for other in ('A'..='Z').chain('a'..='z').filter(|other| *other != last) {
        let changed = format!("{}{other}", &token[..token.len() - 1]);
        refused(world.verify(&changed), "signature");
    }
    let mut large = claims();
    large["pad"] = json!("x".repeat(8 << 10));
    refused(world.verify_claims(&large), "8 KiB");
}

#[test]
fn repeated_names_are_refused() {
    let world = World::new();
    let header = r#"{"alg":"EdDSA","kid":"ed"}"#;
    let good = claims().to_string();
    let repeated =
        |name: &str, value: &str| good.replacen('{', &format!("{{\"{name}\":{value},"), 1);
    world.verify(&world.sign_text(header, &good, "ed")).unwrap();
    for (name, value) in [
        ("sub", "\"admin\""),
        ("s\\u0075b", "\"x\""),
        ("exp", "1"),
        ("aud", "[]"),
    ] {
        let text = repeated(name, value);
        refused(
            world.verify(&world.sign_text(header, &text, "ed")),
            "content",
        );
    }
    for header in [
        r#"{"alg":"none","alg":"EdDSA","kid":"ed"}"#,
        r#"{"alg":"EdDSA","kid":"x","kid":"ed"}"#,
        "[]",
        "\"x\"",
    ] {
        refused(
            world.verify(&world.sign_text(header, &good, "ed")),
            "header",
        );
    }
}

#[test]
fn issuer_audience_and_subject_are_exact() {
    let world = World::new();
    for issuer in [
        "https://login.example.com/",
        "https://LOGIN.example.com",
        "x",
        "",
    ] {
        refused(world.verify_with("iss", json!(issuer)), "not trusted");
    }
    for issuer in [Value::Null, json!([ISSUER]), json!(1), json!({})] {
        refused(world.verify_with("iss", issuer), "no issuer");
    }
    let silent = world.verify_with("iss", json!("https://silent.example.com"));
    assert_eq!(silent.unwrap_err(), TokenError::UnknownKey { issuer: 1 });
    for audience in [
        json!("siem-relay"),
        json!(["a", "siem-relay"]),
        json!(["siem-relay"]),
    ] {
        world.verify_with("aud", audience).unwrap();
    }
    for audience in [
        json!("siem-relay2"),
        json!("SIEM-RELAY"),
        json!(["a"]),
        json!([]),
        json!(""),
    ] {
        refused(world.verify_with("aud", audience), "another service");
    }
    for audience in [
        Value::Null,
        json!({ "siem-relay": 1 }),
        json!([1, "siem-relay"]),
        json!([["siem-relay"]]),
        json!(true),
    ] {
        refused(world.verify_with("aud", audience), "no audience");
    }
    for subject in [
        Value::Null,
        json!(1),
        json!(["dashboard"]),
        json!(""),
        json!("a\nb"),
        json!("x".repeat(257)),
    ] {
        refused(world.verify_with("sub", subject), "subject");
    }
}

#[test]
fn times_have_bounds() {
    let world = World::new();
    for (name, value, part) in [
        ("exp", json!(NOW), "expired"),
        ("exp", json!(NOW - 1), "expired"),
        ("exp", json!(0), "expired"),
        ("exp", Value::Null, "no expiry"),
        ("exp", json!("1800000600"), "no expiry"),
        ("exp", json!(1_800_000_600.5), "no expiry"),
        ("exp", json!(-1), "no expiry"),
        ("exp", json!(true), "no expiry"),
        ("exp", json!([NOW + 600]), "no expiry"),
        ("exp", json!(NOW + 3591), "longer"),
        ("exp", json!(u64::MAX), "longer"),
        ("nbf", json!(NOW + 61), "nbf"),
        ("nbf", json!("0"), "nbf"),
        ("iat", json!(NOW + 61), "iat"),
        ("iat", json!({}), "iat"),
        ("iat", json!(NOW - 3001), "longer"),
        ("iat", json!(0), "longer"),
    ] {
        refused(world.verify_with(name, value), part);
    }
    for (name, value) in [
        ("exp", json!(NOW + 1)),
        ("exp", json!(NOW + 3590)),
        ("nbf", json!(NOW + 60)),
        ("iat", json!(NOW + 60)),
        ("nbf", Value::Null),
        ("iat", Value::Null),
    ] {
        world.verify_with(name, value).unwrap();
    }
    let mut without_iat = claims();
    without_iat.as_object_mut().unwrap().remove("iat");
    without_iat["exp"] = json!(NOW + 3661);
    refused(world.verify_claims(&without_iat), "longer");
    let header = json!({ "alg": "EdDSA", "kid": "ed" });
    let token = world.sign(&header, &claims(), "ed");
    world.verify_at(&token, NOW + 599).unwrap();
    refused(world.verify_at(&token, NOW + 600), "expired");
    refused(world.verify_at(&token, -1), "nbf");
}

#[test]
fn claims_of_rights_have_one_type_and_their_absence_is_no_right() {
    let world = World::new();
    let none = world
        .verify_with("scope", Value::Null)
        .unwrap()
        .scopes
        .unwrap();
    assert_eq!(none, Scopes::default());
    let none = world.verify_with("organizations", Value::Null).unwrap();
    assert_eq!(none.organizations.unwrap(), Organizations::default());
    let list = world
        .verify_with("scope", json!(["siem.publish", "x"]))
        .unwrap();
    assert!(list.scopes.unwrap().has(Scope::Publish));
    let one = world.verify_with("organizations", json!("acme")).unwrap();
    assert!(one.organizations.unwrap().has("acme"));
    for scope in [
        json!(1),
        json!([1]),
        json!({ "siem.read": true }),
        json!(true),
    ] {
        refused(world.verify_with("scope", scope), "scopes");
    }
    for organizations in [
        json!(1),
        json!([1]),
        json!({}),
        json!("a b"),
        json!(["a*b"]),
        json!([""]),
    ] {
        refused(
            world.verify_with("organizations", organizations),
            "organizations",
        );
    }
}
