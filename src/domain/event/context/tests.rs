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
    fn takes_what_serde_json_writes(value in any_json(), pretty: bool) {
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
        // serde_json takes lone surrogates where it ignores the value.
        prop_assume!(!text.to_lowercase().contains("\\ud"));
        prop_assert_eq!(Context::check(&text).is_ok(), accepts(&text), "{}", text);
    }
}

#[test]
fn numbers_keep_their_digits() {
    let text = r#"{"a":1.000000000000000000000000001e+400,"b":-0.0,"c":18446744073709551616}"#;
    assert_eq!(written(text).unwrap(), text);
}

#[test]
fn the_grammar_is_kept() {
    for good in [
        "{}",
        " { } ",
        r#"{"":{"a":[]}}"#,
        r#"{"a":[1,-0,0.5,1e5,1E-5,true,false,null,"\ud83d\ude00\/"],"a":1}"#,
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
        (r#"{"a":"\ud800"}"#, 12),
        (r#"{"a":"\ud800\u0041"}"#, 6),
        (r#"{"a":"\udc00"}"#, 6),
        ("{\"a\":\"\n\"}", 6),
        ("{\"a\":\"", 6),
        ("{'a':1}", 1),
    ] {
        assert_eq!(written(bad), Err(Problem::Invalid(at)), "{bad}");
    }
    for other in ["", "  ", "[]", "null", "1", "\"{}\"", "\u{feff}{}"] {
        assert_eq!(written(other), Err(Problem::NotAnObject), "{other:?}");
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
