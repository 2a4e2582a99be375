//! The body of a [PutRecords] request, written in one pass in the CBOR that Kinesis takes
//! beside JSON and that AWS' own SDK for Java sends by default ([`CBOR_ENABLED`]): records
//! are bytes in it, which in JSON are base64 and so a third longer.
//!
//! Maps and arrays have no length and an end instead, as that SDK writes them.
//!
//! [PutRecords]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
//! [`CBOR_ENABLED`]: https://docs.aws.amazon.com/sdk-for-java/latest/developer-guide/migration-client-changes.html

use crate::{domain::event::Head, sink::Record};

/// Kinds of items and their beginnings ([RFC 8949]).
///
/// [RFC 8949]: https://www.rfc-editor.org/rfc/rfc8949.html#section-3
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const MAP: u8 = 0xbf;
const ARRAY: u8 = 0x9f;
const END: u8 = 0xff;
/// What begins an item of so many bytes, at the most.
const MOST_BEGINNING: usize = 9;
const UUID_LENGTH: usize = 36;
const KEY: &str = "PartitionKey";

/// The body.
pub(super) fn write(head: &Head, records: &[Record], stream_arn: &str) -> Vec<u8> {
    let each = |record: &Record| record.length() + MOST_BEGINNING + UUID_LENGTH + 24;
    let mut out =
        Vec::with_capacity(records.iter().map(each).sum::<usize>() + stream_arn.len() + 64);
    out.push(MAP);
    text("StreamARN", &mut out);
    text(stream_arn, &mut out);
    text("Records", &mut out);
    out.push(ARRAY);
    for record in records {
        out.push(MAP);
        text("Data", &mut out);
        begin(BYTES, record.length(), &mut out);
        let start = out.len();
        record.write(head, &mut out);
        debug_assert_eq!(out.len() - start, record.length());
        text(KEY, &mut out);
        let mut key = [0; UUID_LENGTH];
        text(
            record.partition_key.hyphenated().encode_lower(&mut key),
            &mut out,
        );
        out.push(END);
    }
    out.extend_from_slice(&[END, END]);
    out
}

fn text(text: &str, out: &mut Vec<u8>) {
    begin(TEXT, text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

/// Begins an item of so many bytes, in as few bytes as that takes.
fn begin(kind: u8, length: usize, out: &mut Vec<u8>) {
    match length {
        0..24 => out.push(kind | length as u8),
        24..0x100 => out.extend_from_slice(&[kind | 24, length as u8]),
        0x100..0x1_0000 => {
            out.push(kind | 25);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(kind | 26);
            out.extend_from_slice(&(length as u32).to_be_bytes());
        }
        _ => {
            out.push(kind | 27);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use minicbor::{Decoder, data::Type};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/a";

    fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
        let few = prop::collection::vec(any::<u8>(), 0..300);
        // Where what begins an item becomes longer.
        let around = prop::sample::select(vec![0, 23, 24, 255, 256, 0xffff, 0x1_0000, 0x1_0001]);
        prop_oneof![few, around.prop_map(|length| vec![7; length])]
    }

    proptest! {
        #[test]
        fn holds_every_record(
            records in prop::collection::vec(
                (any::<u128>(), prop::option::of(1_u64..), some_bytes()),
                1..20,
            ),
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
            let body = write(&head, &records, ARN);
            let mut read = Decoder::new(&body);
            prop_assert_eq!(read.map().unwrap(), None);
            prop_assert_eq!(read.str().unwrap(), "StreamARN");
            prop_assert_eq!(read.str().unwrap(), ARN);
            prop_assert_eq!(read.str().unwrap(), "Records");
            prop_assert_eq!(read.array().unwrap(), None);
            for record in &records {
                prop_assert_eq!(read.map().unwrap(), None);
                prop_assert_eq!(read.str().unwrap(), "Data");
                prop_assert_eq!(read.bytes().unwrap(), &*record.data(&head));
                prop_assert_eq!(read.str().unwrap(), "PartitionKey");
                prop_assert_eq!(read.str().unwrap(), &*record.partition_key.to_string());
                prop_assert_eq!(read.datatype().unwrap(), Type::Break);
                read.skip().unwrap();
            }
            for _ in ["the array", "the map"] {
                prop_assert_eq!(read.datatype().unwrap(), Type::Break);
                read.skip().unwrap();
            }
            prop_assert_eq!(read.position(), body.len());
        }
    }
}
