//! The wildcards of IAM policies: `*` is any run of characters, `?` exactly one.

/// Whether the whole of `text` fits `pattern`. Takes at most `pattern × text` steps.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut pos) = (0, 0);
    // The last star, and where the text that it swallows ends: on a mismatch it takes one more.
    let mut star: Option<(usize, usize)> = None;
    while pos < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, pos));
                at += 1;
            }
            Some(c) if *c == '?' || *c == text[pos] => {
                at += 1;
                pos += 1;
            }
            _ => match star {
                Some((star_at, swallowed)) => {
                    star = Some((star_at, swallowed + 1));
                    at = star_at + 1;
                    pos = swallowed + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, without cleverness.
    fn reference(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|n| reference(rest, &text[n..])),
            Some((c, rest)) => text
                .split_first()
                .is_some_and(|(first, tail)| (*c == '?' || c == first) && reference(rest, tail)),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?é]{0,8}", text in "[abé]{0,10}") {
            let p: Vec<char> = pattern.chars().collect();
            let t: Vec<char> = text.chars().collect();
            prop_assert_eq!(matches(&pattern, &text), reference(&p, &t));
        }

        #[test]
        fn a_plain_pattern_fits_itself_only(text in "[a-z:/-]{0,12}", other in "[a-z:/-]{0,12}") {
            prop_assert!(matches(&text, &text));
            prop_assert_eq!(matches(&text, &other), text == other);
        }

        #[test]
        fn a_star_takes_any_tail(head in "[a-z:]{0,8}", tail in any::<String>()) {
            let pattern = format!("{head}*");
            let text = format!("{head}{tail}");
            prop_assert!(matches(&pattern, &text));
        }
    }

    #[test]
    fn many_stars_end_soon() {
        let pattern = "*a".repeat(500) + "b";
        assert!(!matches(&pattern, &"a".repeat(2000)));
    }
}
