//! Kinesis' protocol in CBOR, as the AWS SDK for Java uses it: the members of the JSON
//! protocol, with byte strings instead of base64.

use axum::body::{Body, to_bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Response, header};
use minicbor::data::Type;
use minicbor::{Decoder, Encoder, decode, encode};
use serde_json::Value;

/// Content type of requests and responses in CBOR.
pub const CONTENT_TYPE: &str = "application/x-amz-cbor-1.1";
/// Limit of the nesting of maps and arrays, above that of Kinesis' messages.
const MAX_DEPTH: usize = 16;

/// Returns whether a request is in CBOR.
pub(super) fn is_requested(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|content_type| content_type == CONTENT_TYPE)
}

/// Re-encodes a JSON response as CBOR, and leaves any other response unchanged.
pub(super) async fn reencode(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    // Cannot fail: the body is in memory.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let Some(cbor) = from_json(&body) else {
        return Response::from_parts(parts, Body::from(body));
    };
    let content_type = HeaderValue::from_static(CONTENT_TYPE);
    parts.headers.insert(header::CONTENT_TYPE, content_type);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(cbor))
}

/// Re-encodes a CBOR message as JSON, with byte strings in base64.
///
/// # Errors
///
/// The message is not valid CBOR, is nested too deeply, or is followed by other bytes.
pub fn to_json(body: &[u8]) -> Result<String, decode::Error> {
    let mut decoder = Decoder::new(body);
    let value = value(&mut decoder, MAX_DEPTH)?;
    match decoder.position() == body.len() {
        true => Ok(value.to_string()),
        false => Err(decode::Error::message("bytes follow the message")),
    }
}

fn value(from: &mut Decoder<'_>, depth: usize) -> Result<Value, decode::Error> {
    let deeper = || {
        let too_deep = decode::Error::message("maps or arrays are nested more than 16 deep");
        depth.checked_sub(1).ok_or(too_deep)
    };
    Ok(match from.datatype()? {
        Type::Bool => from.bool()?.into(),
        Type::Null => {
            from.null()?;
            Value::Null
        }
        Type::F32 | Type::F64 => from.f64()?.into(),
        Type::Bytes | Type::BytesIndef => {
            let pieces: Result<Vec<_>, _> = from.bytes_iter()?.collect();
            STANDARD.encode(pieces?.concat()).into()
        }
        Type::String | Type::StringIndef => text(from)?.into(),
        Type::Array | Type::ArrayIndef => {
            let (depth, mut items) = (deeper()?, Vec::new());
            let length = from.array()?;
            while has_next(from, length, items.len())? {
                items.push(value(from, depth)?);
            }
            items.into()
        }
        Type::Map | Type::MapIndef => {
            let (depth, mut members) = (deeper()?, Vec::new());
            let length = from.map()?;
            while has_next(from, length, members.len())? {
                members.push((text(from)?, value(from, depth)?));
            }
            Value::Object(members.into_iter().collect())
        }
        _ => from.i64()?.into(),
    })
}

fn text(from: &mut Decoder<'_>) -> Result<String, decode::Error> {
    from.str_iter()?.collect()
}

/// Returns whether another item follows after the first `read` ones.
fn has_next(
    from: &mut Decoder<'_>,
    length: Option<u64>,
    read: usize,
) -> Result<bool, decode::Error> {
    match length {
        Some(length) => Ok((read as u64) < length),
        None if from.datatype()? == Type::Break => from.skip().map(|()| false),
        None => Ok(true),
    }
}

/// Re-encodes a JSON message as CBOR, with strings as text. Returns `None` if it is not JSON.
pub fn from_json(body: &[u8]) -> Option<Vec<u8>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder, &value).ok()?;
    Some(encoder.into_writer())
}

type Written = Result<(), encode::Error<std::convert::Infallible>>;

fn write(to: &mut Encoder<Vec<u8>>, value: &Value) -> Written {
    match value {
        Value::Null => to.null()?,
        Value::Bool(value) => to.bool(*value)?,
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => to.i64(number)?,
            (None, Some(number)) => to.f64(number)?,
            (None, None) => to.null()?,
        },
        Value::String(text) => to.str(text)?,
        Value::Array(items) => {
            to.begin_array()?;
            for item in items {
                write(to, item)?;
            }
            to.end()?
        }
        Value::Object(members) => {
            to.begin_map()?;
            for (name, member) in members {
                to.str(name)?;
                write(to, member)?;
            }
            to.end()?
        }
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{control::Operation, kinesis};

    #[test]
    fn json_survives_the_round_trip() {
        let value = json!({"a": [1, -2, 0.5, "é", null, true], "b": {"c": {}}});
        let cbor = from_json(value.to_string().as_bytes()).unwrap();
        let read: Value = serde_json::from_str(&to_json(&cbor).unwrap()).unwrap();
        assert_eq!(read, value);
        assert_eq!(from_json(b"<html>"), None);
    }

    #[test]
    fn bytes_become_base64_and_malformed_cbor_is_refused() {
        let mut encoder = Encoder::new(Vec::new());
        encoder
            .map(2)
            .unwrap()
            .str("Data")
            .unwrap()
            .bytes(b"abc")
            .unwrap();
        encoder.str("More").unwrap().begin_bytes().unwrap();
        encoder
            .bytes(b"a")
            .unwrap()
            .bytes(b"bc")
            .unwrap()
            .end()
            .unwrap();
        let body = encoder.into_writer();
        assert_eq!(to_json(&body).unwrap(), r#"{"Data":"YWJj","More":"YWJj"}"#);
        for length in 0..body.len() {
            assert!(to_json(&body[..length]).is_err(), "{length}");
        }
        assert!(to_json(&[&*body, b"\0"].concat()).is_err());
        // An array of one within another.
        let deep = |depth| [vec![0x81; depth], vec![0]].concat();
        assert!(to_json(&deep(MAX_DEPTH)).is_ok());
        assert!(to_json(&deep(MAX_DEPTH + 1)).is_err());
    }

    #[test]
    fn only_writes_are_accepted_in_cbor() {
        let code = |operation| {
            let parsed = kinesis::parse_cbor(operation, &[0xa0]);
            parsed.err().unwrap().code
        };
        assert_eq!(code(Operation::ListShards), "SerializationException");
        assert_eq!(code(Operation::PutRecords), "ValidationException");
    }
}
