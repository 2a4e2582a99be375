//! `application/x-www-form-urlencoded`, the request format of AWS' Query protocol.

/// Decodes a form into its pairs, in order. Broken percent escapes stay as they are,
/// bytes that are not UTF-8 become U+FFFD.
pub(super) fn decode(form: &[u8]) -> Vec<(String, String)> {
    form.split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let split = pair.iter().position(|byte| *byte == b'=');
            let (name, value) = match split {
                Some(at) => (&pair[..at], &pair[at + 1..]),
                None => (pair, &[][..]),
            };
            (decode_part(name), decode_part(value))
        })
        .collect()
}

/// The value of the first pair with this name.
pub(super) fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

fn decode_part(part: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part;
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            (byte, _) => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decodes_pairs_and_leaves_broken_escapes() {
        assert_eq!(
            decode(b"Action=AssumeRole&a=b+c%2Fd&empty=&%zz=%4&lone"),
            [
                ("Action", "AssumeRole"),
                ("a", "b c/d"),
                ("empty", ""),
                ("%zz", "%4"),
                ("lone", ""),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    proptest! {
        #[test]
        fn what_is_escaped_comes_back(text in any::<String>()) {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let form = format!("k={escaped}");
            let decoded = decode(form.as_bytes());
            prop_assert_eq!(value(&decoded, "k"), Some(text.as_str()));
        }

        #[test]
        fn garbage_does_not_panic(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
        }
    }
}
