//! Minimal stand-in for STS and Kinesis (`sink`): accepts every record and inspects as little
//! as possible, since it shares the processors with the service. It counts records, and on
//! request reads from each when it was sent, or its sequence.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    io,
    ops::Range,
    rc::Rc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use memchr::memmem;
use minicbor::{Decoder, Encoder, data::Type};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{
    Failure,
    http::{self, Message},
    process::Controller,
    stats::{Latency, Samples, now_nanos},
};

/// Header that only Kinesis' requests have.
const KINESIS_HEADER: &[u8] = b"x-amz-target:";
const ASSUME_ROLE: &[u8] = b"Action=AssumeRole";
/// Part of the session policy with which the service tries a role without its external ID.
const EXTERNAL_ID_PROOF: &[u8] = b"Deny";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Time until PutRecords is answered.
    pub delay_ms: u64,
}

/// Command; each is answered with a [`Tally`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Sets all counts to 0.
    Reset { inspect: Inspect },
    /// Waits until this number of records has arrived.
    AwaitRecords { records: u64 },
    /// Makes PutRecords fail, or succeed again.
    Refuse { refuse: bool },
    /// Denies access to the streams of the first organizations.
    Deny { organizations: usize },
}

/// Part of each record that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inspect {
    Nothing,
    /// Time of sending.
    Times,
    /// Integration and sequence.
    Identities,
}

/// Counts since the last reset.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    pub records: u64,
    pub requests: u64,
    /// Size of PutRecords' bodies.
    pub bytes: u64,
    pub assumed_roles: u64,
    pub last_nanos: u64,
    pub latency: Latency,
    /// Records with distinct identities.
    pub distinct: u64,
}

struct State {
    tally: Tally,
    inspect: Inspect,
    refuse: bool,
    denied: usize,
    delay_ms: u64,
    responses: AcceptedResponses,
    send_times: SendTimes,
    samples: Samples,
    identities: Identities,
}

impl State {
    fn reset(&mut self, inspect: Inspect) {
        self.tally = Tally::default();
        self.inspect = inspect;
        self.samples = Samples::default();
        self.identities = Identities::default();
    }

    fn tally(&mut self) -> Tally {
        Tally {
            latency: self.samples.take(),
            distinct: self.identities.distinct(),
            ..self.tally
        }
    }

    /// Counts the records of a PutRecords body, and returns their number.
    fn count(&mut self, body: &[u8]) -> usize {
        let now = now_nanos();
        let records = for_each_record(body, |data| match self.inspect {
            Inspect::Nothing => {}
            Inspect::Times => {
                if let Some(sent) = self.send_times.read(data) {
                    self.samples.add(sent, now);
                }
            }
            Inspect::Identities => self.identities.add(data),
        });
        self.tally.records += records as u64;
        self.tally.requests += 1;
        self.tally.bytes += body.len() as u64;
        self.tally.last_nanos = now;
        records
    }
}

struct Shared {
    state: RefCell<State>,
    /// Notified by each PutRecords.
    arrived: Notify,
}

/// Answers first with its address.
pub async fn run(config: Config) -> Result<(), Failure> {
    let shared = Rc::new(Shared {
        state: RefCell::new(State {
            tally: Tally::default(),
            inspect: Inspect::Nothing,
            refuse: false,
            denied: 0,
            delay_ms: config.delay_ms,
            responses: AcceptedResponses::default(),
            send_times: SendTimes::default(),
            samples: Samples::default(),
            identities: Identities::default(),
        }),
        arrived: Notify::new(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut controller = Controller::new();
    controller.answer(&listener.local_addr()?).await?;
    tokio::task::spawn_local(accept(listener, Rc::clone(&shared)));
    while let Some(command) = controller.next().await? {
        let tally = execute(command, &shared).await;
        controller.answer(&tally).await?;
    }
    Ok(())
}

async fn execute(command: Command, shared: &Shared) -> Tally {
    let Shared { state, arrived } = shared;
    match command {
        Command::Reset { inspect } => state.borrow_mut().reset(inspect),
        Command::Refuse { refuse } => state.borrow_mut().refuse = refuse,
        Command::Deny { organizations } => state.borrow_mut().denied = organizations,
        Command::AwaitRecords { records } => loop {
            let more = arrived.notified();
            if state.borrow().tally.records >= records {
                break;
            }
            more.await;
        },
    }
    state.borrow_mut().tally()
}

async fn accept(listener: TcpListener, shared: Rc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _no_delay = stream.set_nodelay(true);
        let shared = Rc::clone(&shared);
        tokio::task::spawn_local(async move {
            // An error means that the peer has closed the connection.
            let _closed = serve(stream, &shared).await;
        });
    }
}

/// Answers one request after another until the peer closes the connection.
async fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1 << 20);
    loop {
        let Some(Message { body, end }) = http::read(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        let (head, body) = (&buffer[..body], &buffer[body..end]);
        if memmem::find(head, KINESIS_HEADER).is_some() {
            put_records(&mut stream, shared, body).await?;
        } else if memmem::find(body, EXTERNAL_ID_PROOF).is_some() {
            stream.write_all(&access_denied()).await?;
        } else {
            let is_assume_role = memmem::find(body, ASSUME_ROLE).is_some();
            shared.state.borrow_mut().tally.assumed_roles += u64::from(is_assume_role);
            stream.write_all(&sts_response(is_assume_role)).await?;
        }
        buffer.drain(..end);
    }
}

async fn put_records(stream: &mut TcpStream, shared: &Shared, body: &[u8]) -> io::Result<()> {
    let Shared { state, arrived } = shared;
    let (delay_ms, refuse, denied) = {
        let state = state.borrow();
        (state.delay_ms, state.refuse, state.denied)
    };
    if refuse {
        return stream.write_all(&internal_failure()).await;
    }
    if denied > 0 && organization(body).is_some_and(|number| number < denied) {
        return stream.write_all(&write_denied()).await;
    }
    if delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    }
    let response = {
        let mut state = state.borrow_mut();
        let records = state.count(body);
        state.responses.get(records, is_cbor(body))
    };
    arrived.notify_one();
    stream.write_all(&response).await
}

const JSON: &str = "application/x-amz-json-1.1";
const CBOR: &str = "application/x-amz-cbor-1.1";
const SEQUENCE_NUMBER: &str = "49661234567890123456789012345678901234567890123456789042";
const SHARD_ID: &str = "shardId-000000000000";

/// Responses to PutRecords with all records accepted. Each is made once.
#[derive(Default)]
struct AcceptedResponses {
    by_records: HashMap<(usize, bool), Bytes>,
}

impl AcceptedResponses {
    fn get(&mut self, records: usize, is_cbor: bool) -> Bytes {
        let response = self.by_records.entry((records, is_cbor));
        let response = response.or_insert_with(|| match is_cbor {
            true => response_of("200 OK", CBOR, &accepted_cbor(records)).into(),
            false => response_of("200 OK", JSON, accepted_json(records).as_bytes()).into(),
        });
        response.clone()
    }
}

fn accepted_json(records: usize) -> String {
    let record = format!(r#"{{"SequenceNumber":"{SEQUENCE_NUMBER}","ShardId":"{SHARD_ID}"}}"#);
    let all = vec![record; records].join(",");
    format!(r#"{{"FailedRecordCount":0,"Records":[{all}]}}"#)
}

fn accepted_cbor(records: usize) -> Vec<u8> {
    let mut to = Encoder::new(Vec::new());
    let mut write = || {
        to.begin_map()?.str("FailedRecordCount")?.u8(0)?;
        to.str("Records")?.begin_array()?;
        for _ in 0..records {
            to.begin_map()?
                .str("SequenceNumber")?
                .str(SEQUENCE_NUMBER)?;
            to.str("ShardId")?.str(SHARD_ID)?.end()?;
        }
        to.end()?.end()?.ok()
    };
    // Writing to memory cannot fail.
    let _written: Result<(), minicbor::encode::Error<_>> = write();
    to.into_writer()
}

/// Response to PutRecords for a fault of Kinesis.
fn internal_failure() -> Vec<u8> {
    let body = r#"{"__type":"InternalFailure","message":"the sink refuses all records"}"#;
    response_of("500 Internal Server Error", JSON, body.as_bytes())
}

/// Response to PutRecords without the right to write.
fn write_denied() -> Vec<u8> {
    let body = r#"{"__type":"AccessDeniedException","message":"not authorized to perform: kinesis:PutRecords"}"#;
    response_of("400 Bad Request", JSON, body.as_bytes())
}

/// Number of the organization to whose stream a PutRecords body in CBOR writes.
fn organization(body: &[u8]) -> Option<usize> {
    let mut decoder = Decoder::new(body);
    decoder.map().ok()?;
    decoder.str().ok()?;
    let (_, number) = decoder.str().ok()?.rsplit_once('-')?;
    number.parse().ok()
}

/// Response to AssumeRole without the right external ID.
fn access_denied() -> Vec<u8> {
    let body = "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>\
                <Type>Sender</Type><Code>AccessDenied</Code><Message>not authorized</Message>\
                </Error><RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId>\
                </ErrorResponse>";
    response_of("403 Forbidden", "text/xml", body.as_bytes())
}

/// Response to AssumeRole or GetCallerIdentity, the only STS calls of the service.
fn sts_response(is_assume_role: bool) -> Vec<u8> {
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
    response_of("200 OK", "text/xml", body.as_bytes())
}

fn response_of(status: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nx-amzn-requestid: 01234567-89ab-cdef-0123-456789abcdef\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Text before each record's base64 in JSON. It cannot occur within base64.
const DATA_NAME: &[u8] = b"\"Data\":\"";

/// Record in a PutRecords body.
#[derive(Clone, Copy)]
enum RecordData<'a> {
    /// Rest of the body from the start of the record's base64.
    Base64(&'a [u8]),
    /// Bytes of the record, and nothing else.
    Plain(&'a [u8]),
}

impl RecordData<'_> {
    /// Returns the start of the record, of at most about this length.
    fn start<'a>(&'a self, length: usize, decoded: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        match self {
            Self::Plain(data) => Some(&data[..length.min(data.len())]),
            Self::Base64(base64) => {
                let limit = length.div_ceil(3) * 4;
                let base64 = &base64[..limit.min(base64.len())];
                let end = base64.iter().position(|byte| *byte == b'"');
                let whole = end.unwrap_or(base64.len()) / 4 * 4;
                decoded.clear();
                STANDARD.decode_vec(&base64[..whole], decoded).ok()?;
                Some(decoded)
            }
        }
    }
}

/// Returns whether a body is CBOR; if not, it is JSON.
fn is_cbor(body: &[u8]) -> bool {
    body.first() != Some(&b'{')
}

/// Calls `inspect` for each record of a PutRecords body, and returns their number.
fn for_each_record<'a>(body: &'a [u8], mut inspect: impl FnMut(RecordData<'a>)) -> usize {
    if is_cbor(body) {
        return for_each_record_in_cbor(body, inspect).unwrap_or_default();
    }
    let found = memmem::find_iter(body, DATA_NAME).map(|at| &body[at + DATA_NAME.len()..]);
    found
        .map(|base64| inspect(RecordData::Base64(base64)))
        .count()
}

/// Reads a body as the service writes it: a map of the stream's ARN and the records, in this
/// order.
fn for_each_record_in_cbor<'a>(
    body: &'a [u8],
    mut inspect: impl FnMut(RecordData<'a>),
) -> Result<usize, minicbor::decode::Error> {
    let mut decoder = Decoder::new(body);
    decoder.map()?;
    for _ in ["name", "ARN", "name"] {
        decoder.str()?;
    }
    decoder.array()?;
    let mut records = 0;
    while decoder.datatype()? != Type::Break {
        decoder.map()?;
        decoder.str()?;
        inspect(RecordData::Plain(decoder.bytes()?));
        for _ in ["name", "key"] {
            decoder.str()?;
        }
        decoder.skip()?;
        records += 1;
    }
    Ok(records)
}

const TIME_NAME: &[u8] = b"\"time\":\"";
/// Length of the longest time, and of up to two bytes before it in its base64 group.
const TIME_WINDOW: usize = 33;
const TIME_WINDOW_BASE64: usize = TIME_WINDOW / 3 * 4;
/// Limit of the offset of the time in a record.
const MAX_TIME_OFFSET: usize = 450;

/// Reader of the attribute `time`, which has the same offset in all records.
#[derive(Default)]
struct SendTimes {
    /// Offset of the time, once it is known.
    offset: Option<usize>,
    /// Last date, as text and in seconds since 1970.
    day: ([u8; 10], u64),
}

impl SendTimes {
    /// Returns nanoseconds since 1970, or None if the record has no time of this century.
    fn read(&mut self, data: RecordData<'_>) -> Option<u64> {
        if let Some(offset) = self.offset
            && let Some(nanos) = self.read_at(data, offset)
        {
            return Some(nanos);
        }
        let mut decoded = Vec::new();
        let start = data.start(MAX_TIME_OFFSET, &mut decoded)?;
        let offset = memmem::find(start, TIME_NAME)? + TIME_NAME.len();
        self.offset = Some(offset);
        self.read_at(data, offset)
    }

    fn read_at(&mut self, data: RecordData<'_>, offset: usize) -> Option<u64> {
        match data {
            RecordData::Plain(data) => self.parse(data.get(offset..offset + TIME_WINDOW)?),
            RecordData::Base64(base64) => {
                let start = offset / 3 * 4;
                let mut window = [0; TIME_WINDOW];
                let encoded = base64.get(start..start + TIME_WINDOW_BASE64)?;
                STANDARD.decode_slice(encoded, &mut window).ok()?;
                self.parse(&window[offset % 3..])
            }
        }
    }

    fn parse(&mut self, text: &[u8]) -> Option<u64> {
        if text[10] != b'T' || text[4] != b'-' {
            return None;
        }
        let date: [u8; 10] = text[..10].try_into().ok()?;
        if date != self.day.0 {
            let date_text = str::from_utf8(&date).ok()?;
            let midnight: jiff::Timestamp = format!("{date_text}T00:00:00Z").parse().ok()?;
            self.day = (date, u64::try_from(midnight.as_second()).ok()?);
        }
        let two = |at: usize| Some(digit(text[at])? * 10 + digit(text[at + 1])?);
        let seconds = self.day.1 + two(11)? * 3600 + two(14)? * 60 + two(17)?;
        let (mut nanos, mut unit) = (0, 100_000_000);
        if text[19] == b'.' {
            for &byte in &text[20..] {
                let Some(digit) = digit(byte) else { break };
                nanos += digit * unit;
                unit /= 10;
            }
        }
        Some(seconds * 1_000_000_000 + nanos)
    }
}

fn digit(byte: u8) -> Option<u64> {
    byte.is_ascii_digit().then(|| u64::from(byte - b'0'))
}

/// Offsets in `{"specversion":"1.0","integrationid":"…","sequence":"…"`, which have the same
/// length in all records.
const INTEGRATION: Range<usize> = 38..74;
const SEQUENCE: Range<usize> = 88..108;

/// Integration and sequence of each record that has arrived.
#[derive(Default)]
struct Identities {
    sequences: HashMap<[u8; 36], HashSet<u64>>,
}

impl Identities {
    fn add(&mut self, data: RecordData<'_>) {
        if let Some((integration, sequence)) = Self::read(data) {
            let sequences = self.sequences.entry(integration).or_default();
            sequences.insert(sequence);
        }
    }

    fn distinct(&self) -> u64 {
        let sequences = self.sequences.values();
        sequences.map(|sequences| sequences.len() as u64).sum()
    }

    fn read(data: RecordData<'_>) -> Option<([u8; 36], u64)> {
        let mut decoded = Vec::new();
        let start = data.start(SEQUENCE.end, &mut decoded)?;
        let integration = start.get(INTEGRATION)?.try_into().ok()?;
        let sequence = str::from_utf8(start.get(SEQUENCE)?).ok()?.parse().ok()?;
        Some((integration, sequence))
    }
}
