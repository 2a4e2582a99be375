use std::collections::HashMap;

use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::*;

fn written(text: &str) -> Result<String, Problem> {
    let mut out = Vec::new();
    Context::check(text)?.write(&mut out);
    Ok(String::from_utf8(out).unwrap())
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|members| Value::Object(Map::from_iter(members))),
        ]
    })
}

fn accepts(text: &str) -> bool {
    serde_json::from_str::<HashMap<String, IgnoredAny>>(text).is_ok()
}

proptest! {
    #[test]
    fn accepts_objects_written_by_serde_json(value in any_json(), pretty: bool) {
        let text = match pretty {
            true => serde_json::to_string_pretty(&value).unwrap(),
            false => value.to_string(),
        };
        match written(&text) {
            Ok(out) => {
                prop_assert!(value.is_object());
                prop_assert_eq!(&out, &text.replace(['\n', '\r'], " "));
            }
            Err(problem) => {
                prop_assert!(!value.is_object());
                prop_assert_eq!(problem, Problem::NotAnObject);
            }
        }
    }

    #[test]
    fn agrees_with_serde_json_on_broken_text(
        value in any_json(),
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), "[\\[\\]{}\",:\\\\0-9.eE+\\-u \ntrue]{0,2}"),
            0..4,
        ),
    ) {
        let mut text: Vec<char> = format!("{{\"a\":{value}}}").chars().collect();
        for (at, edit) in edits {
            let at = at.index(text.len());
            text.splice(at..=at, edit.chars());
            text.push(' ');
        }
        let text: String = text.into_iter().collect();
        // serde_json accepts lone surrogates in ignored values.
        prop_assume!(!text.to_lowercase().contains("\\ud"));
        prop_assert_eq!(Context::check(&text).is_ok(), accepts(&text), "{}", text);
    }
}

#[test]
fn numbers_are_not_rewritten() {
    let text = r#"{"a":1.000000000000000000000000001e+400,"b":-0.0,"c":18446744073709551616}"#;
    assert_eq!(written(text).unwrap(), text);
}

#[test]
fn the_grammar_is_enforced() {
    for good in [
        "{}",
        " { } ",
        r#"{"":{"a":[]}}"#,
        r#"{"a":[1,-0,0.5,1e5,1E-5,true,false,null,"\ud83d\ude00\/"],"b":1}"#,
    ] {
        assert_eq!(written(good).as_deref(), Ok(good));
    }
    for (bad, at) in [
        ("{", 1),
        ("{}x", 2),
        ("{} {}", 3),
        (r#"{"a"}"#, 4),
        (r#"{"a":}"#, 5),
        (r#"{"a":1,}"#, 7),
        (r#"{"a":[1,]}"#, 8),
        (r#"{"a":[1}"#, 7),
        (r#"{"a":01}"#, 6),
        (r#"{"a":1.}"#, 7),
        (r#"{"a":1e}"#, 7),
        (r#"{"a":-}"#, 6),
        (r#"{"a":+1}"#, 5),
        (r#"{"a":nul}"#, 8),
        (r#"{"a":NaN}"#, 5),
        (r#"{"a":"\x"}"#, 6),
        (r#"{"a":"\u12g4"}"#, 10),
        (r#"{"a":"\ud800\u12g4"}"#, 16),
        ("{\"a\":\"\n\"}", 6),
        ("{\"a\":\"", 6),
        ("{'a':1}", 1),
    ] {
        assert_eq!(written(bad), Err(Problem::Invalid(at)), "{bad}");
    }
    for (lone, at) in [
        (r#"{"a":"\ud800"}"#, 6),
        (r#"{"a":"\ud800\u0041"}"#, 6),
        (r#"{"a":"x\uDC00"}"#, 7),
        (r#"{"\ud83d":1}"#, 2),
        (r#"{"a":"\ud83d\n"}"#, 6),
        (r#"{"a":"\ud83d\ud83d\ude00"}"#, 6),
    ] {
        assert_eq!(written(lone), Err(Problem::LoneSurrogate(at)), "{lone}");
    }
    for other in ["", "  ", "[]", "null", "1", "\"{}\"", "\u{feff}{}"] {
        assert_eq!(written(other), Err(Problem::NotAnObject), "{other:?}");
    }
}

#[test]
fn the_last_member_of_a_repeated_name_is_kept_at_every_level() {
    for (given, expected) in [
        (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        (r#"{"a":1, "b" : 3 ,"a":2}"#, r#"{"b" : 3 ,"a":2}"#),
        (r#"{"a":1,"a":2,"a":3}"#, r#"{"a":3}"#),
        (
            r#"{"tls":{"s":"x","i":1.0,"s":"y","i":1.00,"n":{"k":1,"k":2}},"z":0}"#,
            r#"{"tls":{"s":"y","i":1.00,"n":{"k":2}},"z":0}"#,
        ),
        (r#"[{"a":1,"a":2},{"a":3}]"#, ""),
        (
            r#"{"l":[{"a":1,"a":2},{"a":3},[{"b":0,"b":[]}]]}"#,
            r#"{"l":[{"a":2},{"a":3},[{"b":[]}]]}"#,
        ),
        // Within a removed member, and within the kept one.
        (
            r#"{"o":{"a":1,"a":2},"o":{"b":1,"b":2}}"#,
            r#"{"o":{"b":2}}"#,
        ),
        // The same name with and without escapes.
        (r#"{"a":1,"\u0061":2}"#, r#"{"\u0061":2}"#),
        (r#"{"\/":1,"/":2,"\u002f":3}"#, r#"{"\u002f":3}"#),
        // Different names with similar or equal fingerprints.
        (
            r#"{"":0,"a":1,"aa":2,"a ":3}"#,
            r#"{"":0,"a":1,"aa":2,"a ":3}"#,
        ),
        (
            r#"{"12345678-x-87654321":1,"12345678-y-87654321":2}"#,
            r#"{"12345678-x-87654321":1,"12345678-y-87654321":2}"#,
        ),
        ("{\"a\":1,\n\"a\":2}", r#"{"a":2}"#),
    ] {
        match expected {
            "" => assert_eq!(written(given), Err(Problem::NotAnObject)),
            _ => assert_eq!(written(given).as_deref(), Ok(expected), "{given}"),
        }
    }
}

#[test]
fn repeated_names_take_linear_time() {
    let same = "\"k\":0,".repeat(1_000_000);
    assert_eq!(
        written(&format!("{{{same}\"k\":1}}")).as_deref(),
        Ok(r#"{"k":1}"#)
    );
    let other: String = (0..300_000).map(|n| format!("\"k{n}\":0,")).collect();
    let text = format!("{{{other}\"k7\":1}}");
    let expected = text.replacen("\"k7\":0,", "", 1);
    assert!(written(&text) == Ok(expected));
}

/// Whether any object within a value has a name twice.
fn repeats(value: &mut serde_json::Deserializer<serde_json::de::StrRead<'_>>) -> bool {
    struct Seen(bool);
    impl<'de> serde::de::DeserializeSeed<'de> for &mut Seen {
        type Value = ();
        fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
            d.deserialize_any(self)
        }
    }
    impl<'de> serde::de::Visitor<'de> for &mut Seen {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("any value")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let mut keys = std::collections::HashSet::new();
            while let Some(key) = map.next_key::<String>()? {
                self.0 |= !keys.insert(key);
                map.next_value_seed(&mut *self)?;
            }
            Ok(())
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            while seq.next_element_seed(&mut *self)?.is_some() {}
            Ok(())
        }
        fn visit_unit<E>(self) -> Result<(), E> {
            Ok(())
        }
        fn visit_i64<E>(self, _: i64) -> Result<(), E> {
            Ok(())
        }
        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }
    }
    let mut seen = Seen(false);
    serde::de::DeserializeSeed::deserialize(&mut seen, value).unwrap();
    seen.0
}

fn repeating_json() -> impl Strategy<Value = String> {
    let leaf = "[0-9]".prop_map(|text| text);
    leaf.prop_recursive(4, 40, 5, |inner| {
        let member = ("a{0,2}|b|\\\\u0061|a{7,18}", inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..3).prop_map(|all| format!("[{}]", all.join(" ,"))),
            prop::collection::vec(member, 0..5).prop_map(|members| {
                let members: Vec<String> = members
                    .into_iter()
                    .map(|(key, value)| format!("\"{key}\" :{value}"))
                    .collect();
                format!("{{{}}}", members.join(", "))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_name_is_left_twice_and_the_last_value_counts(value in repeating_json()) {
        let text = format!("{{\"x\":{value}}}");
        let out = written(&text).unwrap();
        // `Value` keeps the last member of a name.
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        prop_assert_eq!(read(&out), read(&text));
        prop_assert!(!repeats(&mut serde_json::Deserializer::from_str(&out)), "{}", out);
        let had = repeats(&mut serde_json::Deserializer::from_str(&text));
        prop_assert_eq!(had, out != text);
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    assert!(written(&nested(64)).is_ok());
    assert_eq!(written(&nested(65)), Err(Problem::TooDeep));
    let arrays = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert!(written(&arrays(63)).is_ok());
    assert_eq!(written(&arrays(64)), Err(Problem::TooDeep));
    assert_eq!(
        written(&format!("{{\"a\":{}", "[".repeat(100_000))),
        Err(Problem::TooDeep)
    );
}
