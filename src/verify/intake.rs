//! From captured bytes to records.

use super::{
    Audit, event,
    framer::{self, Content, Framer, Piece},
    wrapper,
};

/// One input that is read into an [`Audit`]: CloudEvents one a line, end to end or in
/// arrays; answers of `aws kinesis get-records`, their records one by one, what Lambda
/// gets, and bare base64. What is none of it is counted as foreign, and the rest is read.
#[derive(Debug)]
pub struct Intake<'a> {
    audit: &'a mut Audit,
    name: String,
    framer: Framer,
}

impl<'a> Intake<'a> {
    /// `name` is told with the places of what is wrong.
    pub fn new(audit: &'a mut Audit, name: &str) -> Self {
        Self {
            audit,
            name: name.to_owned(),
            framer: Framer::new(),
        }
    }

    /// More of the input, in chunks of any size.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.framer.feed(chunk);
        self.take_pieces();
    }

    /// There is no more.
    pub fn end(mut self) {
        self.framer.end();
        self.take_pieces();
    }

    fn take_pieces(&mut self) {
        while let Some(piece) = self.framer.next_piece() {
            self.piece(piece);
        }
    }

    fn piece(&mut self, piece: Piece) {
        let line = piece.line;
        match piece.content {
            Content::Text(text) => self.text(line, &text),
            Content::Object(object) => self.object(line, &object),
        }
    }

    fn text(&mut self, line: u64, text: &[u8]) {
        let name = &self.name;
        let place = || format!("{name}:{line}");
        match wrapper::bare(text) {
            Some(data) => self.audit.take(&data, None, &place),
            None => self.audit.foreign("no JSON", text, &place),
        }
    }

    fn object(&mut self, line: u64, object: &[u8]) {
        let name = &self.name;
        let place = || format!("{name}:{line}");
        let why = match event::read(object, None) {
            Ok(event) => return self.audit.event(event, &place),
            Err(why) => why,
        };
        if let Some(records) = wrapper::open(object) {
            for (number, record) in (1u64..).zip(records) {
                let place = || format!("{name}:{line}: record {number}");
                match record {
                    Some(record) => {
                        let key = record.partition_key.as_deref();
                        self.audit.take(&record.data, key, &place);
                    }
                    None => self.audit.foreign("no record of Kinesis", object, &place),
                }
            }
            return;
        }
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(object).is_ok();
        match !is_json && object.contains(&b'\n') {
            // Damage may have put several lines into one.
            true => framer::lines(object, line)
                .into_iter()
                .for_each(|piece| self.piece(piece)),
            false => self.audit.foreign(why, object, &place),
        }
    }
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
    fn every_shape_is_read() {
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
    fn damage_costs_what_is_damaged() {
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
    fn nothing_is_not_complete() {
        assert_eq!(audited(b"").verdict, Verdict::NothingRead);
        assert_eq!(audited(b"noise").verdict, Verdict::NothingRead);
    }
}
