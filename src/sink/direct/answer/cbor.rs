//! Reads answers in CBOR. Unknown members are skipped; text is borrowed unless it is chunked.

use std::borrow::Cow;

use minicbor::{Decoder, data::Type, decode::Error};

use super::{ErrorBody, Output, ResultEntry, Text};

/// A success answer with at most `max` records.
pub(super) fn output(body: &[u8], max: usize) -> Result<Output<'_>, Error> {
    let mut records = None;
    whole(body, |read, name| match name {
        "Records" if records.is_some() => Err(Error::message("a member is repeated")),
        "Records" => {
            records = Some(entries(read, max)?);
            Ok(())
        }
        _ => read.skip(),
    })?;
    match records {
        Some(records) => Ok(Output { records }),
        None => Err(Error::message("the member Records is missing")),
    }
}

/// An error answer.
pub(super) fn error(body: &[u8]) -> Result<ErrorBody<'_>, Error> {
    let mut error = ErrorBody::default();
    whole(body, |read, name| match name {
        "__type" => once(&mut error.kind, read),
        "code" => once(&mut error.code, read),
        _ => read.skip(),
    })?;
    Ok(error)
}

fn entries<'b>(read: &mut Decoder<'b>, max: usize) -> Result<Vec<ResultEntry<'b>>, Error> {
    let mut entries = Vec::new();
    let length = read.array()?;
    each(read, length, |read| {
        if entries.len() == max {
            return Err(Error::message("it has more records than were sent"));
        }
        entries.push(entry(read)?);
        Ok(())
    })?;
    Ok(entries)
}

fn entry<'b>(read: &mut Decoder<'b>) -> Result<ResultEntry<'b>, Error> {
    let mut entry = ResultEntry::default();
    members(read, |read, name| match name {
        "ShardId" => once(&mut entry.shard_id, read),
        "SequenceNumber" => once(&mut entry.sequence_number, read),
        "ErrorCode" => once(&mut entry.error_code, read),
        _ => read.skip(),
    })?;
    Ok(entry)
}

/// Reads a member that must not be repeated: the values could contradict each other.
fn once<'b>(member: &mut Option<Text<'b>>, read: &mut Decoder<'b>) -> Result<(), Error> {
    match member.is_some() {
        true => Err(Error::message("a member is repeated")),
        false => text(read).map(|text| *member = text),
    }
}

/// Reads one map that is the whole body.
fn whole<'b>(
    body: &'b [u8],
    member: impl FnMut(&mut Decoder<'b>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut read = Decoder::new(body);
    members(&mut read, member)?;
    match read.position() == body.len() {
        true => Ok(()),
        false => Err(Error::message("there is data after the map")),
    }
}

fn members<'b>(
    read: &mut Decoder<'b>,
    mut member: impl FnMut(&mut Decoder<'b>, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let length = read.map()?;
    each(read, length, |read| match text(read)? {
        Some(name) => member(read, &name),
        None => Err(Error::message("the name of a member is null")),
    })
}

/// Reads `length` items, or up to the break without a length.
fn each<'b>(
    read: &mut Decoder<'b>,
    length: Option<u64>,
    mut item: impl FnMut(&mut Decoder<'b>) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(length) = length else {
        while read.datatype()? != Type::Break {
            item(read)?;
        }
        return read.skip();
    };
    for _ in 0..length {
        item(read)?;
    }
    Ok(())
}

/// A text, chunked or not; None if it is null.
fn text<'b>(read: &mut Decoder<'b>) -> Result<Option<Text<'b>>, Error> {
    let text = match read.datatype()? {
        Type::Null => return read.null().map(|()| None),
        Type::StringIndef => Cow::Owned(read.str_iter()?.collect::<Result<_, _>>()?),
        _ => Cow::Borrowed(read.str()?),
    };
    Ok(Some(Text(text)))
}

#[cfg(test)]
mod tests {
    use minicbor::Encoder;
    use proptest::prelude::*;

    use super::*;

    type Written = Encoder<Vec<u8>>;

    fn written(write: impl FnOnce(&mut Written)) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new());
        write(&mut encoder);
        encoder.into_writer()
    }

    fn field(to: &mut Written, name: &str, value: &str) {
        to.str(name).unwrap().str(value).unwrap();
    }

    fn fields<'a>(entry: &'a ResultEntry<'_>) -> [Option<&'a str>; 3] {
        [&entry.shard_id, &entry.sequence_number, &entry.error_code].map(|text| text.as_deref())
    }

    /// Unknown members of every type.
    fn unknown(to: &mut Written) {
        to.str("New").unwrap().begin_array().unwrap();
        to.map(1).unwrap().u8(1).unwrap().begin_bytes().unwrap();
        to.bytes(b"x").unwrap().end().unwrap().f64(0.5).unwrap();
        to.tag(minicbor::data::IanaTag::Timestamp)
            .unwrap()
            .u64(1)
            .unwrap();
        to.end().unwrap();
    }

    #[test]
    fn reads_definite_and_indefinite_lengths() {
        let with_lengths = written(|to| {
            to.map(3).unwrap();
            to.str("FailedRecordCount").unwrap().u8(1).unwrap();
            unknown(to);
            to.str("Records").unwrap().array(2).unwrap();
            to.map(3).unwrap();
            field(to, "ShardId", "s1");
            unknown(to);
            field(to, "SequenceNumber", "9");
            to.map(2).unwrap();
            field(to, "ErrorCode", "InternalFailure");
            to.str("ShardId").unwrap().null().unwrap();
        });
        let with_ends = written(|to| {
            to.begin_map().unwrap();
            to.str("Records").unwrap().begin_array().unwrap();
            to.begin_map().unwrap();
            field(to, "SequenceNumber", "9");
            to.begin_str()
                .unwrap()
                .str("Shard")
                .unwrap()
                .str("Id")
                .unwrap()
                .end()
                .unwrap();
            to.begin_str()
                .unwrap()
                .str("s")
                .unwrap()
                .str("1")
                .unwrap()
                .end()
                .unwrap();
            to.end().unwrap().begin_map().unwrap();
            field(to, "ErrorCode", "InternalFailure");
            to.end().unwrap().end().unwrap();
            unknown(to);
            to.end().unwrap();
        });
        for body in [with_lengths, with_ends] {
            let output = output(&body, 2).unwrap();
            let entries: Vec<_> = output.records.iter().map(fields).collect();
            let wanted = [
                [Some("s1"), Some("9"), None],
                [None, None, Some("InternalFailure")],
            ];
            assert_eq!(entries, wanted);
        }
    }

    #[test]
    fn text_that_is_not_chunked_is_borrowed() {
        let body = written(|to| {
            to.map(1).unwrap().str("__type").unwrap().str("A").unwrap();
        });
        assert!(matches!(
            error(&body).unwrap().kind,
            Some(Text(Cow::Borrowed("A")))
        ));
    }

    #[test]
    fn a_truncated_or_continued_answer_is_refused() {
        let body = written(|to| {
            to.begin_map().unwrap();
            to.str("Records").unwrap().array(1).unwrap().map(1).unwrap();
            field(to, "ErrorCode", "InternalFailure");
            to.end().unwrap();
        });
        assert!(output(&body, 1).is_ok());
        assert!(output(&body, 0).is_err());
        for length in 0..body.len() {
            assert!(output(&body[..length], 1).is_err(), "{length}");
        }
        assert!(output(&[&*body, b"\0"].concat(), 1).is_err());
        let twice = written(|to| {
            to.map(1).unwrap().str("Records").unwrap().array(1).unwrap();
            to.map(2).unwrap();
            field(to, "ErrorCode", "InternalFailure");
            to.str("ErrorCode").unwrap().null().unwrap();
        });
        assert!(output(&twice, 1).is_err());
        let without = written(|to| {
            to.map(0).unwrap();
        });
        assert!(output(&without, 1).is_err());
        assert!(error(&without).is_ok());
    }

    proptest! {
        #[test]
        fn a_damaged_answer_does_not_panic(
            at in any::<prop::sample::Index>(),
            bytes in prop::collection::vec(any::<u8>(), 1..4),
        ) {
            let mut body = written(|to| {
                to.begin_map().unwrap();
                unknown(to);
                to.str("Records").unwrap().array(2).unwrap();
                for _ in 0..2 {
                    to.map(2).unwrap();
                    field(to, "ShardId", "s1");
                    field(to, "SequenceNumber", "9");
                }
                to.end().unwrap();
            });
            let at = at.index(body.len());
            let end = body.len().min(at + bytes.len());
            body.splice(at..end, bytes);
            if let Ok(output) = output(&body, 2) {
                prop_assert!(output.records.len() <= 2);
            }
            let _either = error(&body);
        }
    }
}
