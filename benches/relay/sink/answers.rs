//! Whole HTTP responses, made once.

use std::collections::HashMap;

use bytes::Bytes;
use minicbor::Encoder;

const JSON: &str = "application/x-amz-json-1.1";
const NUMBER: &str = "49661234567890123456789012345678901234567890123456789042";
const SHARD: &str = "shardId-000000000000";

#[derive(Default)]
pub struct Answers {
    accepted: HashMap<(usize, bool), Bytes>,
}

impl Answers {
    /// PutRecords, all accepted.
    pub fn accepted(&mut self, records: usize, is_cbor: bool) -> Bytes {
        let made = self.accepted.entry((records, is_cbor));
        let made = made.or_insert_with(|| match is_cbor {
            true => response("200 OK", "application/x-amz-cbor-1.1", &cbor(records)).into(),
            false => response("200 OK", JSON, json(records).as_bytes()).into(),
        });
        made.clone()
    }
}

fn json(records: usize) -> String {
    let record = format!(r#"{{"SequenceNumber":"{NUMBER}","ShardId":"{SHARD}"}}"#);
    let all = vec![record; records].join(",");
    format!(r#"{{"FailedRecordCount":0,"Records":[{all}]}}"#)
}

fn cbor(records: usize) -> Vec<u8> {
    let mut to = Encoder::new(Vec::new());
    let mut write = || {
        to.begin_map()?.str("FailedRecordCount")?.u8(0)?;
        to.str("Records")?.begin_array()?;
        for _ in 0..records {
            to.begin_map()?.str("SequenceNumber")?.str(NUMBER)?;
            to.str("ShardId")?.str(SHARD)?.end()?;
        }
        to.end()?.end()?.ok()
    };
    // Writing to memory cannot fail.
    let _written: Result<(), minicbor::encode::Error<_>> = write();
    to.into_writer()
}

/// PutRecords, as Kinesis fails.
pub fn refused() -> Vec<u8> {
    let body = r#"{"__type":"InternalFailure","message":"the stand-in refuses"}"#;
    response("500 Internal Server Error", JSON, body.as_bytes())
}

/// AssumeRole without the right external ID.
pub fn denied() -> Vec<u8> {
    let body = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
                <Type>Sender</Type><Code>AccessDenied</Code><Message>not authorized</Message>\
                </Error><RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>\
                </ErrorResponse>";
    response("403 Forbidden", "text/xml", body.as_bytes())
}

/// One of the two calls of STS that the service makes.
pub fn sts(is_assume_role: bool) -> Vec<u8> {
    let expiration = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let name = if is_assume_role {
        "AssumeRole"
    } else {
        "GetCallerIdentity"
    };
    let result = match is_assume_role {
        true => format!(
            "<Credentials><AccessKeyId>ASIAEXAMPLEEXAMPLE00</AccessKeyId>\
             <SecretAccessKey>exampleexampleexampleexampleexampleexamp</SecretAccessKey>\
             <SessionToken>{}</SessionToken><Expiration>{expiration:.0}</Expiration></Credentials>\
             <AssumedRoleUser><Arn>arn:aws:sts::222222222222:assumed-role/siem/relay</Arn>\
             <AssumedRoleId>AROAEXAMPLE:relay</AssumedRoleId></AssumedRoleUser>",
            "t".repeat(360),
        ),
        false => "<Arn>arn:aws:iam::111111111111:user/relay</Arn><UserId>AIDAEXAMPLE</UserId>\
                  <Account>111111111111</Account>"
            .to_owned(),
    };
    let body = format!(
        "<{name}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <{name}Result>{result}</{name}Result><ResponseMetadata>\
         <RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ResponseMetadata>\
         </{name}Response>"
    );
    response("200 OK", "text/xml", body.as_bytes())
}

fn response(status: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nx-amzn-requestid: 01234567-89ab-cdef-0123-456789abcdef\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
