//! Body of a [PutRecords] request, written in one pass in CBOR, which Kinesis accepts beside JSON
//! and which AWS's SDK for Java sends by default ([`CBOR_ENABLED`]): records are bytes in CBOR,
//! and base64 in JSON, which is a third longer.
//!
//! Maps and arrays have indefinite lengths, as that SDK writes them.
//!
//! [PutRecords]: https://docs.aws.amazon.com/kinesis/latest/APIReference/API_PutRecords.html
//! [`CBOR_ENABLED`]: https://docs.aws.amazon.com/sdk-for-java/latest/developer-guide/migration-client-changes.html

use std::convert::Infallible;

use minicbor::{Encoder, encode};

use crate::{
    domain::event::{RecordHead, UnreadableEvent},
    sink::Record,
};

const UUID_LENGTH: usize = 36;
/// Upper bound of a record's bytes beside its data and the characters of its key.
const RECORD_BYTES: usize = 32;
/// Upper bound of a body's bytes beside its records and the stream's ARN.
const BODY_BYTES: usize = 64;

/// The body cannot be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error(transparent)]
    Encode(#[from] encode::Error<Infallible>),
    #[error(transparent)]
    Unreadable(#[from] UnreadableEvent),
    /// A wrong length would corrupt everything after the record.
    #[error("the length of a record differs from its announced length")]
    Length,
}

/// Writes the body.
pub(super) fn write(
    head: &RecordHead,
    records: &[Record],
    stream_arn: &str,
) -> Result<Vec<u8>, BodyError> {
    let mut length = stream_arn.len() + BODY_BYTES;
    for record in records {
        length += record.length()? + UUID_LENGTH + RECORD_BYTES;
    }
    let mut to = Encoder::new(Vec::with_capacity(length));
    to.begin_map()?.str("StreamARN")?.str(stream_arn)?;
    to.str("Records")?.begin_array()?;
    for record in records {
        to.begin_map()?.str("Data")?;
        let length = record.length()?;
        to.bytes_len(length as u64)?;
        let start = to.writer().len();
        record.write(head, to.writer_mut())?;
        if to.writer().len() - start != length {
            return Err(BodyError::Length);
        }
        let mut key = [0; UUID_LENGTH];
        let key = record.partition_key.hyphenated().encode_lower(&mut key);
        to.str("PartitionKey")?.str(key)?.end()?;
    }
    to.end()?.end()?;
    Ok(to.into_writer())
}

#[cfg(test)]
mod tests {
    use minicbor::{Decoder, data::Type};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::sink::Content;

    const ARN: &str = "arn:aws:kinesis:eu-west-1:123456789012:stream/a";

    fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
        let few = prop::collection::vec(any::<u8>(), 0..300);
        // Lengths at which the header of a CBOR item grows.
        let around = prop::sample::select(vec![0, 23, 24, 255, 256, 0xffff, 0x1_0000, 0x1_0001]);
        prop_oneof![few, around.prop_map(|length| vec![7; length])]
    }

    /// An event if there is a sequence, or else rendered data.
    fn content(sequence: Option<u64>, bytes: Vec<u8>) -> Content {
        match sequence {
            Some(sequence) => Content::Event {
                sequence,
                stored: [br#""partitionkey":""#, &bytes[..]].concat().into(),
            },
            None => Content::Whole(bytes.into()),
        }
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
                    content: content(sequence, body),
                })
                .collect();
            let head = RecordHead::new(Uuid::from_u128(7));
            let body = write(&head, &records, ARN).unwrap();
            let mut read = Decoder::new(&body);
            prop_assert_eq!(read.map().unwrap(), None);
            prop_assert_eq!(read.str().unwrap(), "StreamARN");
            prop_assert_eq!(read.str().unwrap(), ARN);
            prop_assert_eq!(read.str().unwrap(), "Records");
            prop_assert_eq!(read.array().unwrap(), None);
            for record in &records {
                prop_assert_eq!(read.map().unwrap(), None);
                prop_assert_eq!(read.str().unwrap(), "Data");
                prop_assert_eq!(read.bytes().unwrap(), &*record.data(&head).unwrap());
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
