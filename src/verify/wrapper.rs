//! The shapes in which people capture a stream's records: the answers of GetRecords
//! (`aws kinesis get-records`), their records one by one, the events that Lambda gets,
//! and bare base64.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::Text;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A record that was taken out of its wrapping.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unwrapped {
    /// The key under which Kinesis had it, where the wrapping tells.
    pub(super) partition_key: Option<String>,
    pub(super) data: Vec<u8>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(rename = "Records", borrow)]
    records: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Record<'a> {
    #[serde(rename = "Data", alias = "data", borrow)]
    data: Text<'a>,
    #[serde(
        rename = "PartitionKey",
        alias = "partitionKey",
        alias = "partition_key",
        borrow
    )]
    partition_key: Option<Text<'a>>,
}

#[derive(Deserialize)]
struct LambdaRecord<'a> {
    #[serde(borrow)]
    kinesis: Record<'a>,
}

/// The records of an object; None where it wraps none, and None in place of a record
/// that cannot be read.
pub(super) fn open(object: &[u8]) -> Option<Vec<Option<Unwrapped>>> {
    if let Ok(answer) = serde_json::from_slice::<Answer<'_>>(object) {
        let records = answer.records.iter();
        return Some(records.map(|record| one(record.get().as_bytes())).collect());
    }
    one(object).map(|record| vec![Some(record)])
}

/// The data of a line that is nothing but base64, in quotes or not.
pub(super) fn bare(text: &[u8]) -> Option<Vec<u8>> {
    let around = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b',' | b']');
    let from = text.iter().position(|byte| !around(byte))?;
    let to = text.iter().rposition(|byte| !around(byte))?;
    let data = BASE64.decode(&text[from..=to]).ok()?;
    data.starts_with(b"{").then_some(data)
}

fn one(record: &[u8]) -> Option<Unwrapped> {
    let record: Record<'_> = match serde_json::from_slice::<LambdaRecord<'_>>(record) {
        Ok(record) => record.kinesis,
        Err(_) => serde_json::from_slice(record).ok()?,
    };
    Some(Unwrapped {
        data: BASE64.decode(record.data.0.as_bytes()).ok()?,
        partition_key: record.partition_key.map(|key| key.0.into_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unwrapped(partition_key: Option<&str>, data: &str) -> Unwrapped {
        Unwrapped {
            partition_key: partition_key.map(str::to_owned),
            data: data.into(),
        }
    }

    #[test]
    fn answers_of_get_records_are_opened() {
        let answer = br#"{
            "Records": [
                {"SequenceNumber": "49", "ApproximateArrivalTimestamp": 1.5, "Data": "e30K", "PartitionKey": "k"},
                {"SequenceNumber": "50", "Data": "?", "PartitionKey": "k"}
            ],
            "NextShardIterator": "AAAA", "MillisBehindLatest": 0
        }"#;
        let expected = vec![Some(unwrapped(Some("k"), "{}\n")), None];
        assert_eq!(open(answer), Some(expected));
        assert_eq!(open(br#"{"Records": []}"#), Some(vec![]));
    }

    #[test]
    fn so_are_single_records_and_what_lambda_gets() {
        let record = br#"{"Data": "e30K", "PartitionKey": "k"}"#;
        assert_eq!(open(record), Some(vec![Some(unwrapped(Some("k"), "{}\n"))]));
        let record = br#"{"index": 0, "data": "e30", "text": "{}"}"#;
        assert_eq!(open(record), Some(vec![Some(unwrapped(None, "{}"))]));
        let event = br#"{"Records": [{"kinesis": {"partitionKey": "k", "data": "e30K"}, "eventID": "s:1"}]}"#;
        assert_eq!(open(event), Some(vec![Some(unwrapped(Some("k"), "{}\n"))]));
        assert_eq!(bare(b"e30K\r"), Some(b"{}\n".to_vec()));
        assert_eq!(bare(b"\"e30K\","), Some(b"{}\n".to_vec()));
    }

    #[test]
    fn what_is_no_wrapping_is_left_alone() {
        assert_eq!(open(br#"{"data": {"type": "x"}}"#), None);
        assert_eq!(open(br#"{"specversion": "1.0"}"#), None);
        assert_eq!(bare(b"nonsense"), None);
        assert_eq!(bare(b""), None);
    }
}
