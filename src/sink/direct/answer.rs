//! Reads PutRecords answers: CBOR as requested, or JSON, which a proxy or a substitute for AWS may
//! answer. Errors are in [header or body], as the AWS SDK reads them.
//!
//! [header or body]: https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html#operation-error-serialization

mod cbor;

use std::{borrow::Cow, ops::Deref};

use serde::Deserialize;

use crate::{
    domain::status::{Fault, Stage},
    sink::{
        RecordOutcome,
        fault::{ShardIds, record_outcome},
    },
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output<'a> {
    #[serde(borrow)]
    records: Vec<ResultEntry<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ResultEntry<'a> {
    #[serde(borrow)]
    shard_id: Option<Text<'a>>,
    #[serde(borrow)]
    sequence_number: Option<Text<'a>>,
    #[serde(borrow)]
    error_code: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
struct ErrorBody<'a> {
    #[serde(borrow)]
    code: Option<Text<'a>>,
    #[serde(borrow, rename = "__type")]
    kind: Option<Text<'a>>,
}

/// Borrowed unless it contains an escape. An `Option<Cow<str>>` would never borrow: serde looks
/// for a `Cow` in the type of a field, not within an `Option`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// An answer to PutRecords.
pub(super) struct Answer<'a> {
    pub(super) http_status: u16,
    pub(super) request_id: Option<&'a str>,
    /// Header `x-amzn-errortype`.
    pub(super) error_type: Option<&'a str>,
    pub(super) body: &'a [u8],
}

impl Answer<'_> {
    /// One outcome per record sent. An answer of another length proves nothing about any record.
    pub(super) fn outcomes(&self, sent: usize) -> Result<Vec<RecordOutcome>, Fault> {
        if !(200..300).contains(&self.http_status) {
            return Err(self.error());
        }
        let Some(output) = self.output(sent) else {
            return Err(self.not_aws(self.http_status));
        };
        if output.records.len() != sent {
            return Err(self.not_aws(200));
        }
        let mut shards = ShardIds::default();
        let outcome = |entry: &ResultEntry<'_>| {
            record_outcome(
                &mut shards,
                entry.error_code.as_deref(),
                entry.shard_id.as_deref(),
                entry.sequence_number.as_deref(),
                self.request_id,
            )
        };
        Ok(output.records.iter().map(outcome).collect())
    }

    /// Whether the body starts with a CBOR map; no JSON text starts with such a byte.
    fn is_cbor(&self) -> bool {
        self.body.first().is_some_and(|byte| byte >> 5 == 5)
    }

    fn output(&self, sent: usize) -> Option<Output<'_>> {
        match self.is_cbor() {
            true => cbor::output(self.body, sent).ok(),
            false => serde_json::from_slice(self.body).ok(),
        }
    }

    fn error_body(&self) -> Option<ErrorBody<'_>> {
        match self.is_cbor() {
            true => cbor::error(self.body).ok(),
            false => serde_json::from_slice(self.body).ok(),
        }
    }

    fn error(&self) -> Fault {
        // An HTML page has no code in its body, but the header may.
        let body = self.error_body().unwrap_or_default();
        let code = self
            .error_type
            .or(body.code.as_deref())
            .or(body.kind.as_deref())
            .map(bare_code);
        Fault::answered(Stage::Write, code, self.http_status, self.request_id)
    }

    fn not_aws(&self, http_status: u16) -> Fault {
        Fault::not_aws(Stage::Write, http_status, self.request_id)
    }
}

/// The code without the name space before `#` and the URL after `:`.
fn bare_code(code: &str) -> &str {
    let code = code.split_once(':').map_or(code, |(code, _)| code);
    code.rsplit_once('#').map_or(code, |(_, code)| code)
}

/// Reads an answer to a request with `sent` records, and panics if its outcomes are not one for
/// each record.
#[cfg(feature = "fuzzing")]
pub fn fuzz_answer(http_status: u16, sent: usize, error_type: &str, body: &[u8]) {
    let answer = Answer {
        http_status,
        request_id: None,
        error_type: Some(error_type).filter(|text| !text.is_empty()),
        body,
    };
    if let Ok(outcomes) = answer.outcomes(sent) {
        assert_eq!(outcomes.len(), sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(
        http_status: u16,
        error_type: Option<&str>,
        body: &str,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let answer = Answer {
            http_status,
            request_id: Some("request-1"),
            error_type,
            body: body.as_bytes(),
        };
        answer.outcomes(1)
    }

    fn code(http_status: u16, error_type: Option<&str>, body: &str) -> String {
        answer(http_status, error_type, body)
            .unwrap_err()
            .code()
            .to_owned()
    }

    #[test]
    fn the_header_wins_over_the_body_and_code_over_type() {
        let body = r#"{"code":"B","__type":"C","message":"x"}"#;
        assert_eq!(code(400, Some("ns#A:http://example.com/"), body), "A");
        assert_eq!(code(400, None, body), "B");
        assert_eq!(code(400, None, r#"{"__type":"ns#C"}"#), "C");
        assert_eq!(code(400, None, "{}"), "NotAnAwsAnswer");
        assert_eq!(code(502, None, "<html>"), "NotAnAwsAnswer");
    }

    #[test]
    fn unknown_members_and_escapes_are_read() {
        let body = r#"{"EncryptionType":"KMS","FailedRecordCount":0,"Records":[{"New":[1],"ShardId":"s\u0031","SequenceNumber":"9","ErrorCode":null}]}"#;
        let accepted = RecordOutcome::Accepted {
            shard_id: "s1".into(),
            sequence_number: "9".into(),
        };
        assert_eq!(answer(200, None, body), Ok(vec![accepted]));
    }

    #[test]
    fn text_without_escapes_is_borrowed() {
        let body = r#"{"Records":[{"ShardId":"s1","SequenceNumber":"\u0039"}]}"#;
        let output: Output<'_> = serde_json::from_str(body).unwrap();
        let entry = &output.records[0];
        assert!(matches!(entry.shard_id, Some(Text(Cow::Borrowed("s1")))));
        assert_eq!(entry.sequence_number.as_deref(), Some("9"));
    }

    #[test]
    fn an_answer_of_another_length_proves_nothing() {
        for body in [
            r#"{"Records":[]}"#,
            "{}",
            "",
            "[]",
            r#"{"Records":[{},{}]}"#,
        ] {
            assert_eq!(code(200, None, body), "NotAnAwsAnswer");
        }
        // A record without shard and number was not accepted.
        let outcomes = answer(200, None, r#"{"Records":[{}]}"#).unwrap();
        assert!(matches!(outcomes[..], [RecordOutcome::Failed(_)]));
    }
}
