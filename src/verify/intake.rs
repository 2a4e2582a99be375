//! Extraction of records from captured bytes.
//!
//! A record may be wrapped: in a response of GetRecords (`aws kinesis get-records`), as one of
//! its records, in an event for Lambda, or in bare base64.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Audit,
    event::{self, Text},
    framer::{self, Content, Frame, Framer},
};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reader of one input into an [`Audit`]: CloudEvents one per line, end to end or in arrays,
/// bare or wrapped. Anything else is counted as foreign, and the rest is read.
#[derive(Debug)]
pub struct Intake<'a> {
    audit: &'a mut Audit,
    name: String,
    framer: Framer,
}

impl<'a> Intake<'a> {
    /// Creates a reader; `name` appears in the positions of foreign and malformed records.
    pub fn new(audit: &'a mut Audit, name: &str) -> Self {
        Self {
            audit,
            name: name.to_owned(),
            framer: Framer::new(),
        }
    }

    /// Adds more of the input, in chunks of any size.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.framer.feed(chunk);
        self.take_frames();
    }

    /// Ends the input.
    pub fn end(mut self) {
        self.framer.end();
        self.take_frames();
    }

    fn take_frames(&mut self) {
        while let Some(frame) = self.framer.next_frame() {
            self.frame(frame);
        }
    }

    fn frame(&mut self, frame: Frame) {
        let line = frame.line;
        match frame.content {
            Content::Text(text) => self.text(line, &text),
            Content::Object(object) => self.object(line, &object),
        }
    }

    fn text(&mut self, line: u64, text: &[u8]) {
        let name = &self.name;
        let place = || format!("{name}:{line}");
        match decode_base64(text) {
            Some(data) => self.audit.take(&data, None, &place),
            None => self.audit.foreign("not JSON", text, &place),
        }
    }

    fn object(&mut self, line: u64, object: &[u8]) {
        let name = &self.name;
        let place = || format!("{name}:{line}");
        let why = match event::read(object, None) {
            Ok(event) => return self.audit.event(event, &place),
            Err(why) => why,
        };
        if let Some(records) = unwrap_records(object) {
            for (number, record) in (1u64..).zip(records) {
                let place = || format!("{name}:{line}: record {number}");
                match record {
                    Some(record) => {
                        let key = record.partition_key.as_deref();
                        self.audit.take(&record.data, key, &place);
                    }
                    None => self.audit.foreign("not a Kinesis record", object, &place),
                }
            }
            return;
        }
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(object).is_ok();
        match !is_json && object.contains(&b'\n') {
            // Damage may have joined several lines into one object.
            true => framer::lines(object, line)
                .into_iter()
                .for_each(|frame| self.frame(frame)),
            false => self.audit.foreign(why, object, &place),
        }
    }
}

/// A record without its wrapping.
#[derive(Debug, PartialEq, Eq)]
struct Unwrapped {
    /// Partition key of the Kinesis record, if the wrapping contains it.
    partition_key: Option<String>,
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct GetRecordsResponse<'a> {
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

/// Returns the records that an object wraps; none if it wraps nothing, and none in place of a
/// record that cannot be read.
fn unwrap_records(object: &[u8]) -> Option<Vec<Option<Unwrapped>>> {
    if let Ok(response) = serde_json::from_slice::<GetRecordsResponse<'_>>(object) {
        let records = response.records.iter();
        return Some(
            records
                .map(|record| unwrap_record(record.get().as_bytes()))
                .collect(),
        );
    }
    unwrap_record(object).map(|record| vec![Some(record)])
}

/// Returns the data of a line that consists of base64, with or without quotes.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let around = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b'"' | b',' | b']');
    let from = text.iter().position(|byte| !around(byte))?;
    let to = text.iter().rposition(|byte| !around(byte))?;
    let data = BASE64.decode(&text[from..=to]).ok()?;
    data.starts_with(b"{").then_some(data)
}

fn unwrap_record(record: &[u8]) -> Option<Unwrapped> {
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
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde_json::json;

    use super::*;
    use crate::verify::{Expectation, Verdict, testing::detection};

    fn audited(input: &[u8]) -> crate::verify::Report {
        let mut audit = Audit::new(Expectation::default());
        let mut intake = Intake::new(&mut audit, "in");
        for chunk in input.chunks(7) {
            intake.feed(chunk);
        }
        intake.end();
        audit.report()
    }

    fn records(numbers: std::ops::RangeInclusive<u64>) -> Vec<String> {
        numbers
            .map(|sequence| detection(sequence).to_string())
            .collect()
    }

    #[test]
    fn every_kind_of_capture_is_read() {
        let one = records(1..=6);
        let wrapped = |record: &String| {
            json!({
                "SequenceNumber": "1",
                "Data": STANDARD.encode(format!("{record}\n")),
                "PartitionKey": detection(1)["partitionkey"],
            })
        };
        let answer = |records: &[String]| json!({ "Records": records.iter().map(wrapped).collect::<Vec<_>>(), "MillisBehindLatest": 0 });
        let bare: Vec<String> = one.iter().map(|record| STANDARD.encode(record)).collect();
        let pretty: Vec<String> = [&one[..2], &one[2..]]
            .map(|records| serde_json::to_string_pretty(&answer(records)).unwrap())
            .into();
        let events: Vec<_> = (1..=6)
            .map(|sequence| serde_json::to_string_pretty(&detection(sequence)).unwrap())
            .collect();
        for input in [
            one.join("\n"),
            one.join("\r\n"),
            one.concat(),
            format!("[{}]", one.join(",\n")),
            format!("[\n{}\n]\n", one.join("\n,")),
            events.join("\n"),
            answer(&one).to_string(),
            pretty.join("\n"),
            pretty.concat(),
            one.iter()
                .map(|record| wrapped(record).to_string() + "\n")
                .collect(),
            bare.join("\n"),
            json!(bare).to_string().replace(',', ",\n"),
        ] {
            let report = audited(input.as_bytes());
            assert_eq!(report.foreign.count, 0, "{input}\n{report}");
            assert_eq!(
                (report.records, report.verdict),
                (6, Verdict::Complete),
                "{input}"
            );
            assert_eq!(report.integrations[0].events, 6, "{input}");
        }
    }

    #[test]
    fn damage_affects_its_own_records_only() {
        let one = records(1..=5);
        let cut = &one[2][..one[2].len() / 2];
        let input = format!(
            "{}\n{}\n{cut}\n{}\nnoise\n{}\n{{\"a\":\n1}}",
            one[0], one[1], one[3], one[4]
        );
        let report = audited(input.as_bytes());
        let places: Vec<&str> = report
            .foreign
            .first
            .iter()
            .map(|one| one.place.as_str())
            .collect();
        assert_eq!(places, ["in:3", "in:5", "in:7"]);
        let integration = &report.integrations[0];
        assert_eq!((integration.events, integration.holes.sequences), (4, 1));
        assert_eq!(integration.holes.first[0].first, 3);
        assert_eq!(report.verdict, Verdict::Incomplete);
    }

    #[test]
    fn a_record_under_another_key_is_malformed() {
        let record =
            json!({ "Data": STANDARD.encode(detection(1).to_string()), "PartitionKey": "x" });
        let report = audited(record.to_string().as_bytes());
        assert_eq!(report.integrations[0].malformed.count, 1);
        assert_eq!(
            report.integrations[0].malformed.first[0].place,
            "in:1: record 1"
        );
    }

    #[test]
    fn an_input_without_events_is_not_complete() {
        assert_eq!(audited(b"").verdict, Verdict::NothingRead);
        assert_eq!(audited(b"noise").verdict, Verdict::NothingRead);
    }

    fn unwrapped(partition_key: Option<&str>, data: &str) -> Unwrapped {
        Unwrapped {
            partition_key: partition_key.map(str::to_owned),
            data: data.into(),
        }
    }

    #[test]
    fn responses_of_get_records_are_unwrapped() {
        let answer = br#"{
            "Records": [
                {"SequenceNumber": "49", "ApproximateArrivalTimestamp": 1.5, "Data": "e30K", "PartitionKey": "k"},
                {"SequenceNumber": "50", "Data": "?", "PartitionKey": "k"}
            ],
            "NextShardIterator": "AAAA", "MillisBehindLatest": 0
        }"#;
        let expected = vec![Some(unwrapped(Some("k"), "{}\n")), None];
        assert_eq!(unwrap_records(answer), Some(expected));
        assert_eq!(unwrap_records(br#"{"Records": []}"#), Some(vec![]));
    }

    #[test]
    fn single_records_and_events_for_lambda_are_unwrapped() {
        let record = br#"{"Data": "e30K", "PartitionKey": "k"}"#;
        assert_eq!(
            unwrap_records(record),
            Some(vec![Some(unwrapped(Some("k"), "{}\n"))])
        );
        let record = br#"{"index": 0, "data": "e30", "text": "{}"}"#;
        assert_eq!(
            unwrap_records(record),
            Some(vec![Some(unwrapped(None, "{}"))])
        );
        let event = br#"{"Records": [{"kinesis": {"partitionKey": "k", "data": "e30K"}, "eventID": "s:1"}]}"#;
        assert_eq!(
            unwrap_records(event),
            Some(vec![Some(unwrapped(Some("k"), "{}\n"))])
        );
        assert_eq!(decode_base64(b"e30K\r"), Some(b"{}\n".to_vec()));
        assert_eq!(decode_base64(b"\"e30K\","), Some(b"{}\n".to_vec()));
    }

    #[test]
    fn other_json_is_not_unwrapped() {
        assert_eq!(unwrap_records(br#"{"data": {"type": "x"}}"#), None);
        assert_eq!(unwrap_records(br#"{"specversion": "1.0"}"#), None);
        assert_eq!(decode_base64(b"nonsense"), None);
        assert_eq!(decode_base64(b""), None);
    }
}
