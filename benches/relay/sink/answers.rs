//! Whole HTTP responses, made once.

use std::collections::HashMap;

use bytes::Bytes;

const RECORD: &str = r#"{"SequenceNumber":"49661234567890123456789012345678901234567890123456789042","ShardId":"shardId-000000000000"}"#;

#[derive(Default)]
pub struct Answers {
    accepted: HashMap<usize, Bytes>,
}

impl Answers {
    /// PutRecords, all accepted.
    pub fn accepted(&mut self, records: usize) -> Bytes {
        let made = self.accepted.entry(records).or_insert_with(|| {
            let all = vec![RECORD; records].join(",");
            let body = format!(r#"{{"FailedRecordCount":0,"Records":[{all}]}}"#);
            response("200 OK", "application/x-amz-json-1.1", &body).into()
        });
        made.clone()
    }
}

/// PutRecords, as Kinesis fails.
pub fn refused() -> Vec<u8> {
    let body = r#"{"__type":"InternalFailure","message":"the stand-in refuses"}"#;
    response(
        "500 Internal Server Error",
        "application/x-amz-json-1.1",
        body,
    )
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
    response("200 OK", "text/xml", &body)
}

fn response(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nx-amzn-requestid: 01234567-89ab-cdef-0123-456789abcdef\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
