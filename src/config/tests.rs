use std::{ffi::OsString, fs, path::Path};

use proptest::prelude::*;

use super::*;

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

/// Sources made of flags, variables and the text of a file.
struct TestSources {
    sources: Sources,
    directory: tempfile::TempDir,
}

fn given(flags: &[(&str, &str)], variables: &[(&str, &str)], file: &str) -> TestSources {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("siem.toml");
    fs::write(&path, file).unwrap();
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    let sources = Sources {
        file: Some(path),
        flags: flags.iter().map(owned).collect(),
        environment: variables
            .iter()
            .map(|(name, text)| (OsString::from(name), OsString::from(text)))
            .collect(),
    };
    TestSources { sources, directory }
}

impl TestSources {
    fn load(self) -> Result<Config, ConfigError> {
        Config::load(self.sources)
    }

    /// The messages of all problems, with the name of the file instead of its path.
    fn problems(self) -> Vec<String> {
        let directory = format!("{}/", self.directory.path().display());
        let error = Config::load(self.sources).expect_err("it has problems");
        error
            .problems
            .iter()
            .map(|problem| problem.to_string().replace(&directory, ""))
            .collect()
    }
}

fn flags(flags: &[(&str, &str)]) -> TestSources {
    given(flags, &[], "")
}

#[test]
fn every_default_is_allowed() {
    let config = Config::load(Sources::default()).unwrap();
    assert_eq!(config.listen, "127.0.0.1:50051".parse().unwrap());
    assert_eq!(config.data_dir, Path::new("./data"));
    assert!(!config.insecure);
    assert_eq!(config.settle_linger, Duration::from_millis(50));
    assert_eq!(config.max_request_bytes, 5 * MIB);
    assert_eq!(config.log_format, None);
    match config.key_source() {
        KeySource::DataDirFile(path) => assert_eq!(path, Path::new("./data/external-id.key")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = "heartbeat-seconds = 7\nretry_first_ms = 70\ncommit-linger-ms = \"3\"";
    let variables = [
        ("SIEM_RELAY_HEARTBEAT_SECONDS", "8"),
        ("SIEM_RELAY_RETRY_FIRST_MS", "80"),
        ("PATH", "/usr/bin"),
    ];
    let config = given(&[("heartbeat-seconds", "9")], &variables, file)
        .load()
        .unwrap();
    assert_eq!(config.heartbeat, Duration::from_secs(9));
    assert_eq!(config.retry_first, Duration::from_millis(80));
    assert_eq!(config.commit_linger, Duration::from_millis(3));
    assert_eq!(config.retry_most, Duration::from_secs(300));
}

#[test]
fn an_overridden_value_is_not_checked() {
    let config = given(&[("heartbeat-seconds", "9")], &[], "heartbeat-seconds = -1")
        .load()
        .unwrap();
    assert_eq!(config.heartbeat, Duration::from_secs(9));
}

#[test]
fn the_environment_names_the_file_unless_a_flag_does() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.toml");
    fs::write(&path, "heartbeat-seconds = 12").unwrap();
    let variable = || (OsString::from(CONFIG_VARIABLE), path.clone().into());
    let by_variable = Config::load(Sources {
        environment: vec![variable()],
        ..Sources::default()
    });
    assert_eq!(by_variable.unwrap().heartbeat, Duration::from_secs(12));

    let mut by_flag = given(&[], &[], "heartbeat-seconds = 13");
    by_flag.sources.environment.push(variable());
    assert_eq!(by_flag.load().unwrap().heartbeat, Duration::from_secs(13));
}

#[test]
fn all_problems_are_reported_together() {
    let problems = given(
        &[("listen", "localhost:50051"), ("insecure", "yes")],
        &[
            ("SIEM_RELAY_MAX_RECORDS_PER_REQUEST", "501"),
            ("SIEM_RELAY_DATA_DIRR", "/srv"),
            ("SIEM_RELAY_FOO", "1"),
            ("SIEM_RELAY_EXTERNAL_ID_KEY", "hunter2"),
            ("SIEM_RELAY_LOG_LEVEL", "inof"),
        ],
        "settle-linger-ms = 51\nrole-session-name = [\"a\"]\nreqests-in-flight = 3\nexternal-id-key = \"hunter2\"",
    )
    .problems();
    let expected = [
        "external-id-key in file siem.toml: is a secret, which is accepted only from the environment; set SIEM_RELAY_EXTERNAL_ID_KEY instead",
        "reqests-in-flight in file siem.toml: is not a setting; did you mean requests-in-flight? If not, remove it",
        "role-session-name in file siem.toml: has the TOML type array; give a string, an integer or a boolean",
        "environment variable SIEM_RELAY_DATA_DIRR: is not a setting; did you mean SIEM_RELAY_DATA_DIR? If not, unset it",
        "environment variable SIEM_RELAY_FOO: is not a setting; unset it, or see siem-relay serve --help",
        "flag --listen: \"localhost:50051\" is not an IP address and a port (host names are not resolved); give an IP address and a port, such as 127.0.0.1:50051 or [::1]:50051",
        "flag --insecure: \"yes\" is neither true nor false; give one of these",
        "environment variable SIEM_RELAY_EXTERNAL_ID_KEY: is not a key; give 64 hexadecimal characters, for example the output of siem-relay external-id",
        "environment variable SIEM_RELAY_MAX_RECORDS_PER_REQUEST: 501 is out of range; give a whole number from 1 to 500",
        "settle-linger-ms in file siem.toml: 51 is out of range; give a whole number from 1 to 50 ms",
        "environment variable SIEM_RELAY_LOG_LEVEL: \"inof\" is not a level; did you mean info? give one of off, error, warn, info, debug, trace, or target=level",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn the_error_counts_and_lists_its_problems() {
    let error = flags(&[("heartbeat-seconds", "0"), ("requests-in-flight", "0")])
        .load()
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("the configuration has 2 problems\n  flag --"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 3);
}

#[test]
fn beyond_loopback_needs_tls_and_authentication() {
    for (listen, is_loopback) in [
        ("127.0.0.1:0", true),
        ("127.8.9.10:1", true),
        ("[::1]:50051", true),
        ("[::ffff:127.0.0.1]:50051", true),
        ("0.0.0.0:50051", false),
        ("[::]:50051", false),
        ("192.0.2.1:50051", false),
        ("[2001:db8::1]:50051", false),
        ("[::ffff:192.0.2.1]:50051", false),
    ] {
        let tls = ["tls-cert", "tls-key"];
        let both = ["tls-cert", "tls-key", "tls-client-ca"];
        for (given, lacks_tls, lacks_authentication) in [
            (&[][..], true, true),
            (&tls[..], false, true),
            (&both[..], false, false),
            (&["insecure"][..], false, true),
            (&["insecure-no-authentication"][..], true, false),
            (
                &["insecure", "insecure-no-authentication"][..],
                false,
                false,
            ),
        ] {
            let value = |name: &str| match name.starts_with("tls") {
                true => "some.pem",
                false => "true",
            };
            let given = given.iter().map(|name| (*name, value(name)));
            let pairs: Vec<_> = given.chain([("listen", listen)]).collect();
            let loaded = flags(&pairs).load();
            let message = loaded.map_or_else(|error| error.to_string(), |_| String::new());
            let problems = message.lines().count().saturating_sub(1);
            let expected = [lacks_tls, lacks_authentication].map(|lacks| lacks && !is_loopback);
            assert_eq!(
                ["there is no TLS", "not authenticated"].map(|words| message.contains(words)),
                expected,
                "{pairs:?}: {message}"
            );
            assert_eq!(problems, expected.iter().filter(|lacks| **lacks).count());
        }
    }
}

#[test]
fn tls_settings_are_complete() {
    for (pairs, expected) in [
        (
            &[("tls-cert", "a")][..],
            "flag --tls-cert: is set without tls-key",
        ),
        (
            &[("tls-key", "a")],
            "flag --tls-key: is set without tls-cert",
        ),
        (
            &[("tls-client-ca", "a")],
            "flag --tls-client-ca: is set without tls-cert",
        ),
    ] {
        let problems = flags(pairs).problems();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with(expected), "{problems:?}");
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for (pairs, expected) in [
        (
            [("retry-first-ms", "600"), ("retry-most-ms", "500")],
            "flag --retry-first-ms: 600 is more than retry-most-ms, 500",
        ),
        (
            [
                ("requests-in-flight", "4"),
                ("requests-in-flight-per-integration", "5"),
            ],
            "flag --requests-in-flight-per-integration: 5 is more than requests-in-flight, 4",
        ),
        (
            [
                ("window-bytes", "1048576"),
                ("window-bytes-per-integration", "1048577"),
            ],
            "flag --window-bytes-per-integration: 1048577 is more than window-bytes, 1048576",
        ),
    ] {
        let problems = flags(&pairs).problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with(expected), "{problems:?}");
    }
    // The problem names the setting that was given. A lower total alone is allowed.
    let problems = flags(&[("retry-most-ms", "500")]).problems();
    assert!(
        problems[0].starts_with("flag --retry-most-ms: 500 is less than"),
        "{problems:?}"
    );
    flags(&[("requests-in-flight", "4")]).load().unwrap();

    let both = given(
        &[("external-id-key-file", "k")],
        &[("SIEM_RELAY_EXTERNAL_ID_KEY", KEY)],
        "",
    );
    let problems = both.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("set only one of them"), "{problems:?}");
}

#[test]
fn the_key_is_never_printed() {
    let variables = [("SIEM_RELAY_EXTERNAL_ID_KEY", KEY)];
    let config = given(&[], &variables, "").load().unwrap();
    assert!(matches!(config.key_source(), KeySource::Given(_)));
    for printed in [format!("{config:?}"), format!("{:#?}", config.key_source())] {
        assert!(printed.contains("redacted"), "{printed}");
        for digits in ["00112233", "0, 17, 34"] {
            assert!(!printed.contains(digits), "{printed}");
        }
    }

    // Nor is a key in the wrong setting, or one that lacks a digit.
    let wrong = given(
        &[("external-id-key-file", KEY), ("external-id-key", KEY)],
        &[("SIEM_RELAY_EXTERNAL_ID_KEY", &KEY[1..])],
        &format!("external-id-key = \"{KEY}\"\n"),
    );
    let problems = wrong.problems();
    assert!(problems.len() >= 4, "{problems:?}");
    assert!(
        !format!("{problems:?}").contains("2233445566"),
        "{problems:?}"
    );

    let broken = given(&[], &[], &format!("external-id-key = \"{KEY}\" x")).problems();
    assert!(
        broken[0].contains("are not valid TOML at line 1"),
        "{broken:?}"
    );
    assert!(!broken[0].contains("2233445566"), "{broken:?}");
}

#[test]
fn an_unreadable_file_is_reported_with_the_other_problems() {
    let mut sources = flags(&[("heartbeat-seconds", "x")]);
    sources.sources.file = Some(sources.directory.path().join("absent.toml"));
    let problems = sources.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].starts_with("the settings in file absent.toml: cannot be read: "),
        "{problems:?}"
    );
}

#[test]
fn one_key_in_two_spellings_is_refused() {
    let problems = given(&[], &[], "data-dir = \"a\"\ndata_dir = \"b\"").problems();
    assert_eq!(
        problems,
        ["data_dir in file siem.toml: is given twice, with hyphens and with underscores; keep one"]
    );
}

#[test]
fn variables_that_kubernetes_sets_for_a_service_are_ignored() {
    let variables = [
        ("SIEM_RELAY_SERVICE_HOST", "192.0.2.1"),
        ("SIEM_RELAY_SERVICE_PORT", "50051"),
        ("SIEM_RELAY_SERVICE_PORT_GRPC", "50051"),
        ("SIEM_RELAY_PORT", "tcp://192.0.2.1:50051"),
        ("SIEM_RELAY_PORT_50051_TCP_ADDR", "192.0.2.1"),
    ];
    given(&[], &variables, "").load().unwrap();
}

#[test]
fn suggests_names_within_a_few_edits_only() {
    let known = ["listen", "data-dir", "log-level"];
    for (typed, expected) in [
        ("lsten", Some("listen")),
        ("data_dir", Some("data-dir")),
        ("log-levle", Some("log-level")),
        ("aws-region", None),
        ("", None),
    ] {
        assert_eq!(source::nearest(typed, known), expected, "{typed}");
    }
}

#[test]
fn texts_with_a_syntax_are_checked() {
    for (name, good, bad) in [
        (
            "event-source",
            &[
                "https://meter.com",
                "/ids",
                "urn:uuid:1",
                "a%20b",
                "//example.com?q#f",
            ][..],
            &["", "a b", "%2", "a#b#c", ":a", "1a:b", "é", "<x>"][..],
        ),
        (
            "event-type-prefix",
            &["com.meter", "com.example.a-b"],
            &["", "com", "com.", ".com", "com..x", "com.-x", "com.a_b"],
        ),
        (
            "role-session-name",
            &["ab", "siem-relay", "a_+=,.@-"],
            &["", "a", "a b", "a/b", "é€"],
        ),
        (
            "log-level",
            &["info", "WARN", "info,siem_relay::worker=debug", "off"],
            &[
                "",
                "loud",
                "info,",
                "siem_relay=loud",
                "siem_relay",
                "nonsense=",
                "info, siem_relay= ",
                " \u{b2}[",
            ],
        ),
        ("log-format", &["text", "json"], &["", "TEXT", "xml"]),
        (
            "listen",
            &["127.0.0.1:0"],
            &["", "127.0.0.1", "[::1]", ":50051", "127.0.0.1:65536"],
        ),
        ("data-dir", &["/srv/siem"], &["", "a\0b"]),
    ] {
        for text in good {
            flags(&[(name, text)]).load().unwrap();
        }
        for text in bad {
            let problems = flags(&[(name, text)]).problems();
            assert_eq!(problems.len(), 1, "{name} {text:?}");
            assert!(
                problems[0].starts_with(&format!("flag --{name}: ")),
                "{problems:?}"
            );
        }
    }
}

#[test]
fn the_table_has_one_described_row_for_each_setting() {
    let known = settings();
    let mut names: Vec<&str> = known.iter().map(|setting| setting.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), known.len());
    for setting in &known {
        assert!(setting.help.ends_with('.'), "{}", setting.name);
        let row = format!("| `{}` |", setting.variable());
        assert_eq!(settings_table_markdown().matches(&row).count(), 1, "{row}");
    }
}

/// `docs/settings.md` repeats the table between two comments; print the current one with
/// `cargo test docs_have_the_settings_table`.
#[test]
fn docs_have_the_settings_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let page = fs::read_to_string(path).unwrap();
    let (_, rest) = page
        .split_once("<!-- settings -->")
        .expect("an opening comment");
    let (section, _) = rest
        .split_once("<!-- /settings -->")
        .expect("a closing comment");
    let table = settings_table_markdown();
    assert!(
        section.trim() == table.trim(),
        "the settings table of docs/settings.md is stale; it should be\n\n{table}"
    );
}

proptest! {
    #[test]
    fn no_text_panics_and_numbers_keep_their_limits(text in r#"\PC{0,20}|[0-9]{1,40}|[a-i={}\[\], :"]{1,20}"#) {
        for setting in settings() {
            let loaded = Config::from_pairs([(setting.name, text.clone())]);
            if setting.name == "max-records-per-request" {
                let within = text.bytes().all(|byte| byte.is_ascii_digit())
                    && text.parse().is_ok_and(|number: u128| (1..=500).contains(&number));
                prop_assert_eq!(loaded.is_ok(), within);
            }
        }
    }
}
