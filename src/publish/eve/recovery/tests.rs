use proptest::prelude::*;

use super::*;

fn flow(number: u32) -> String {
    format!(r#"{{"timestamp":"2026-02-03T04:05:{number:02}Z","event_type":"flow","n":{number}}}"#)
}

fn alert(number: u32) -> String {
    format!(
        r#"{{"timestamp": "2026-02-03T04:05:{number:02}Z", "event_type": "alert", "vlan": [1, 2], "src_ip": "192.0.2.{number}", "alert": {{"signature": "a \"b\" \u00e9 {{x}}", "gid": 1, "metadata": {{"tag": ["x"]}}}}, "ok": true, "http": {{"url": "/\\"}}}}"#
    )
}

/// Returns the text of each object, and `!` for damage.
fn parts(text: &str) -> Vec<&str> {
    Fragments::new(text.as_bytes())
        .map(|fragment| match fragment {
            Fragment::Object { object, .. } => &text[object],
            Fragment::Damaged { .. } => "!",
        })
        .collect()
}

fn objects(text: &str) -> Vec<&str> {
    let mut parts = parts(text);
    parts.retain(|part| *part != "!");
    parts
}

#[test]
fn records_without_a_line_break_between_them_are_separated() {
    let (a, b) = (alert(1), flow(2));
    assert_eq!(parts(&format!("{a}{b}")), [&a, &b]);
    assert_eq!(parts(&format!(" {a} \t{b}{a}\0\0{b} \0")), [&a, &b, &a, &b]);
    assert_eq!(parts(&format!("{a}}}{b}")), [&a, "!", &b]);
    assert_eq!(parts(&format!("{a}xyz")), [&a, "!"]);
    assert_eq!(parts(&format!("{a},")), [&a, "!"]);
    assert_eq!(parts(r#"{"a":1},{"b":2}"#), ["!"]);
}

#[test]
fn the_record_after_a_cut_one_is_found() {
    let (a, b, c) = (alert(1), alert(2), flow(3));
    for cut in (1..a.len()).filter(|cut| a.is_char_boundary(*cut)) {
        let cut = &a[..cut];
        assert_eq!(parts(&format!("{cut}{b}")), ["!", &b], "{cut}");
        assert_eq!(parts(&format!("{cut}\0\0{b}")), ["!", &b], "{cut}");
        assert_eq!(
            parts(&format!("{c}{cut}{b}{c}")),
            [&c, "!", &b, &c],
            "{cut}"
        );
        for other in ["{", "{\"", &c[..30], &b[..b.len() - 1]] {
            assert_eq!(objects(&format!("{cut}{other}{b}")), [&b], "{cut} {other}");
            assert_eq!(objects(&format!("{cut}{b}{other}")), [&b], "{cut} {other}");
        }
        assert_eq!(parts(cut), ["!"]);
    }
    // A record whose start is missing.
    for cut in (1..a.len()).filter(|cut| a.is_char_boundary(*cut)) {
        let cut = &a[cut..];
        assert_eq!(objects(&format!("{cut}{b}")), [&b], "{cut}");
    }
}

#[test]
fn a_nested_object_is_not_a_record() {
    let inner = r#"{"timestamp":"2026-02-03T04:05:06Z","event_type":"alert","alert":{"gid":1}}"#;
    let escaped = inner.replace('"', "\\\"");
    let outer = format!(
        r#"{{"timestamp":"t","event_type":"flow","in":[{inner},{{"x":{inner},"y":0}}],"text":"{escaped}","z":{inner},"end":1}}"#
    );
    assert_eq!(parts(&outer), [&outer]);
    for cut in 1..outer.len() {
        let cut = &outer[..cut];
        // A whole nested object at the very end cannot be distinguished from the next record.
        if !cut.ends_with(inner) {
            assert_eq!(parts(cut), ["!"], "{cut}");
        }
    }
    for cut in 1..outer.len() {
        let cut = &outer[cut..];
        if !cut.starts_with(inner) {
            assert!(!parts(cut).contains(&inner), "{cut}");
        }
    }
}

#[test]
fn an_object_without_the_members_of_a_record_is_damage() {
    for other in [
        r#"{"a":1}"#,
        r#"{"timestamp":"t"}"#,
        r#"{"timestamp":1,"event_type":"alert"}"#,
        r#"{"event_type":"alert","alert":{}}"#,
        r#"{"timestamp":"t","event_type":1}"#,
    ] {
        assert_eq!(parts(&format!(r#"{{"cut":"{other}"#)), ["!"], "{other}");
        assert_eq!(parts(other), [other]);
    }
    let old = r#"{"timestamp":"t","alert":{}}"#;
    assert_eq!(parts(&format!(r#"{{"cut":"{old}"#)), ["!", old]);
}

#[test]
fn a_prefix_is_distinguished_from_damage() {
    let record = alert(1);
    let prefixes = |text: &str| -> Vec<Option<String>> {
        Fragments::new(text.as_bytes())
            .map(|fragment| match fragment {
                Fragment::Object { prefix, .. } => prefix.map(|range| text[range].to_owned()),
                Fragment::Damaged { .. } => Some("!".to_owned()),
            })
            .collect()
    };
    for prefix in [
        "@cee: ",
        "<13>Feb  3 04:05:01 host suricata[123]: @cee: ",
        "Feb  3 04:05:01 host suricata[123]: ",
        r#"<165>1 2026-02-03T04:05:01Z host suricata 1 - [x@1 a="b"] "#,
        "\u{feff}",
    ] {
        let line = format!("{prefix}{record}");
        assert_eq!(prefixes(&line), [Some(prefix.to_owned())]);
        let glued = format!("{prefix}{record}{prefix}{record}");
        assert_eq!(prefixes(&glued), vec![Some(prefix.to_owned()); 2]);
        let cut = format!("{prefix}{}{prefix}{record}", &record[..50]);
        assert_eq!(objects(&cut), [&record], "{cut}");
    }
    for damage in [r#"ity":3}}"#, r#","x":"#, "ity\": 3, \"", "x\0"] {
        assert_eq!(
            parts(&format!("{damage}{record}")),
            ["!", &record],
            "{damage}"
        );
    }
    assert_eq!(parts(&format!("[{record},")), ["!"]);
    assert_eq!(parts("@cee: nothing"), ["!"]);
    assert_eq!(parts("@cee: {"), ["!"]);
}

#[test]
fn a_hostile_line_takes_linear_time() {
    let record = alert(1);
    let length = 1 << 20;
    for unit in [
        "{",
        "{\"",
        "{\"a\":",
        "{\"timestamp\":",
        "[{\"a{\":",
        "{\"a{\":\"b{\",",
        "\"{\":{\"",
        r#"{"timestamp":"t","event_type":"e","x":{"#,
        r#"{"timestamp":"t","event_type":"e"},"#,
        r#"{"timestamp":"t","alert":{}}}"#,
        "{\"\\",
        "\0",
        "}",
    ] {
        let line = unit.repeat(length / unit.len()) + &record;
        assert_eq!(objects(&line).last(), Some(&&*record), "{unit}");
        let line = unit.repeat(length / unit.len());
        assert!(
            Fragments::new(line.as_bytes()).count() <= line.len(),
            "{unit}"
        );
    }
}

proptest! {
    #[test]
    fn fragments_of_any_text_are_disjoint_and_in_order(text in r#"[{}\[\]":,\\a0 \x00]{0,200}"#) {
        let mut end = 0;
        for fragment in Fragments::new(text.as_bytes()) {
            let range = match fragment {
                Fragment::Object { object, .. } => {
                    let whole = serde_json::from_str::<&RawValue>(&text[object.clone()]);
                    // The scan does not check numbers.
                    prop_assert!(whole.is_ok() || text.contains('0'), "{}", text);
                    object
                }
                Fragment::Damaged { range, .. } => range,
            };
            prop_assert!(end <= range.start && range.start < range.end);
            end = range.end;
        }
        prop_assert!(end <= text.len());
    }

    #[test]
    fn records_between_damage_are_found(
        parts in prop::collection::vec((0..400_usize, any::<bool>()), 1..8),
    ) {
        let mut line = String::new();
        let mut expected = vec![];
        for (number, (cut, whole)) in (1..).zip(parts) {
            let record = alert(number);
            if whole {
                line += &record;
                expected.push(record);
            } else {
                line += &record[..cut.clamp(1, record.len() - 1)];
            }
        }
        prop_assert_eq!(objects(&line), expected);
    }
}
