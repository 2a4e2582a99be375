//! The texts that have a syntax of their own.

use tracing_subscriber::EnvFilter;

use super::{nearest::nearest, rule::Syntax};

/// A URI-reference that is not empty, as CloudEvents 1.0 asks of `source`. The
/// length bounds what every record carries.
pub(super) const EVENT_SOURCE: Syntax = Syntax {
    limits: "a URI-reference of up to 256 characters",
    check: uri_reference,
};

/// CloudEvents 1.0: `type` should start with a reverse-DNS name.
pub(super) const EVENT_TYPE_PREFIX: Syntax = Syntax {
    limits: "a reverse-DNS name, such as `com.example`, of up to 128 characters",
    check: reverse_dns,
};

/// AWS STS API reference, AssumeRole, RoleSessionName.
pub(super) const ROLE_SESSION_NAME: Syntax = Syntax {
    limits: "2 to 64 of `A-Z a-z 0-9 _ + = , . @ -`",
    check: role_session_name,
};

/// The directives of tracing-subscriber's `EnvFilter`.
pub(super) const LOG_LEVEL: Syntax = Syntax {
    limits: "`error`, `warn`, `info`, `debug`, `trace` or `off`, or a list of directives, such as `info,siem_relay::worker=debug`",
    check: log_directives,
};

/// RFC 3986, section 4.1.
fn uri_reference(text: &str) -> Result<(), String> {
    let refuse = |what: &str| {
        Err(format!(
            "{text:?} {what}; give a URI-reference, such as https://example.com/ids"
        ))
    };
    if text.len() > 256 {
        return Err("has more than 256 characters; give a shorter URI-reference".to_owned());
    }
    if !text.bytes().all(is_uri_byte) {
        return refuse("holds a character that a URI may not hold");
    }
    if !percents_are_whole(text) {
        return refuse("holds a % without two hexadecimal digits");
    }
    if text.matches('#').count() > 1 {
        return refuse("holds more than one #");
    }
    // Before the first slash, question mark or number sign, a colon ends a scheme.
    let first = text.split(['/', '?', '#']).next().unwrap_or_default();
    match first.split_once(':') {
        Some((scheme, _)) if !is_scheme(scheme) => refuse("does not start with a URI scheme"),
        _ => Ok(()),
    }
}

fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

fn percents_are_whole(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes();
        digits.len() >= 2 && digits[..2].iter().all(u8::is_ascii_hexdigit)
    })
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

fn reverse_dns(text: &str) -> Result<(), String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if text.len() <= 128 && text.contains('.') && text.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a reverse-DNS name of up to 128 characters; give one, such as com.example"
    ))
}

fn role_session_name(text: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if (2..=64).contains(&text.len()) && text.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!(
        "{text:?} is not a role session name; give 2 to 64 letters, digits or any of _+=,.@-"
    ))
}

fn log_directives(text: &str) -> Result<(), String> {
    if !text.is_ascii() {
        // EnvFilter cuts such text inside a character, and panics.
        return Err(format!(
            "{text:?} holds characters beyond ASCII; give directives such as info,siem_relay=debug"
        ));
    }
    // EnvFilter takes a word that is no level as a target, and an absent level as all.
    for word in text.split(',').map(str::trim) {
        if let Some(target) = word.strip_suffix('=') {
            return Err(format!(
                "{word:?} names no level after the =; give a level, such as {target}=debug"
            ));
        }
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let is_level = levels.iter().any(|level| level.eq_ignore_ascii_case(word));
        if !is_level && !word.contains(['=', ':', '[']) {
            let hint = nearest(word, levels)
                .map(|level| format!("did you mean {level}? "))
                .unwrap_or_default();
            return Err(format!(
                "{word:?} is not a level; {hint}give one of {}, or target=level",
                levels.join(", ")
            ));
        }
    }
    EnvFilter::builder()
        .parse(text)
        .map(|_| ())
        .map_err(|error| {
            format!("{text:?} is not a list of log directives ({error}); give one such as info,siem_relay=debug")
        })
}
