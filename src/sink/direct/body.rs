//! The JSON of a [PutRecords] request, written in one pass.
//!
//! [PutRecords]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html

use base64_simd::STANDARD;

use crate::{domain::event::Head, sink::Record};

const DATA: &[u8] = br#"{"Data":""#;
const KEY: &[u8] = br#"","PartitionKey":""#;
const END: &[u8] = br#""}"#;
const UUID_LENGTH: usize = 36;

/// The body. `stream_arn` needs no escaping: ARNs that are known hold none of `"` and `\`.
pub(super) fn write(head: &Head, records: &[Record], stream_arn: &str) -> Vec<u8> {
    let each = |record: &Record| {
        STANDARD.encoded_length(record.length())
            + DATA.len()
            + KEY.len()
            + UUID_LENGTH
            + END.len()
            + 1
    };
    let mut out =
        Vec::with_capacity(records.iter().map(each).sum::<usize>() + stream_arn.len() + 64);
    out.extend_from_slice(br#"{"StreamARN":""#);
    out.extend_from_slice(stream_arn.as_bytes());
    out.extend_from_slice(br#"","Records":["#);
    let mut data = Vec::new();
    for (index, record) in records.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        data.clear();
        record.write(head, &mut data);
        out.extend_from_slice(DATA);
        STANDARD.encode_append(&data, &mut out);
        out.extend_from_slice(KEY);
        let mut key = [0; UUID_LENGTH];
        record.partition_key.hyphenated().encode_lower(&mut key);
        out.extend_from_slice(&key);
        out.extend_from_slice(END);
    }
    out.extend_from_slice(b"]}");
    out
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::Value;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn holds_every_record(
            records in prop::collection::vec((any::<u128>(), prop::option::of(1_u64..), any::<Vec<u8>>()), 1..20),
        ) {
            let records: Vec<Record> = records
                .into_iter()
                .map(|(key, sequence, body)| Record {
                    partition_key: Uuid::from_u128(key),
                    sequence,
                    body: Bytes::from(body),
                })
                .collect();
            let head = Head::new(Uuid::from_u128(7));
            let body = write(&head, &records, "arn:aws:kinesis:eu-west-1:123456789012:stream/a");
            let body: Value = serde_json::from_slice(&body).unwrap();
            prop_assert_eq!(&body["StreamARN"], "arn:aws:kinesis:eu-west-1:123456789012:stream/a");
            let written = body["Records"].as_array().unwrap();
            prop_assert_eq!(written.len(), records.len());
            for (record, written) in records.iter().zip(written) {
                let data = BASE64_STANDARD.decode(written["Data"].as_str().unwrap()).unwrap();
                prop_assert_eq!(data, record.data(&head));
                prop_assert_eq!(&written["PartitionKey"], &record.partition_key.to_string());
            }
        }
    }
}
