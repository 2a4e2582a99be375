//! Texts as the template languages write them.

/// A [single-quoted scalar]: only the quote itself is special. The text has no line break.
///
/// [single-quoted scalar]: https://yaml.org/spec/1.2.2/#732-single-quoted-style
pub(super) fn yaml(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A [quoted template] without a template in it: the start of one is written as an
/// escape, since `$${` would be ambiguous after another dollar. The text has no line break.
///
/// [quoted template]: https://developer.hashicorp.com/terraform/language/expressions/strings
pub(super) fn hcl(text: &str) -> String {
    let text = text
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace("${", r"\u0024{")
        .replace("%{", r"\u0025{");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_is_special_so_that_it_is_not() {
        assert_eq!(yaml("it's 0x1"), "'it''s 0x1'");
        assert_eq!(yaml("012"), "'012'");
        assert_eq!(hcl(r#"a\b"c"#), r#""a\\b\"c""#);
        assert_eq!(hcl("$${a} %{b} $a"), r#""$\u0024{a} \u0025{b} $a""#);
    }
}
