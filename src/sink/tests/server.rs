//! An HTTP server on plain sockets, which can also close early, hang and send wrong lengths.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::Notify,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use aws_stand_in::cbor;

/// A request that arrived.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Number of the call to its service, from 1.
    pub number: usize,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Call {
    pub fn is_sts(&self) -> bool {
        !self.headers.contains_key("x-amz-target")
    }

    pub fn header(&self, name: &str) -> &str {
        &self.headers[name]
    }

    /// Body of a write, in JSON or CBOR.
    pub fn json(&self) -> Value {
        match self.is_cbor() {
            true => serde_json::from_str(&cbor::to_json(&self.body).unwrap()).unwrap(),
            false => serde_json::from_slice(&self.body).unwrap(),
        }
    }

    fn is_cbor(&self) -> bool {
        self.header("content-type") == cbor::CONTENT_TYPE
    }

    pub fn form(&self) -> HashMap<String, String> {
        form(std::str::from_utf8(&self.body).unwrap())
    }

    /// Access key id, region and service of the signature.
    pub fn credential(&self) -> (&str, &str, &str) {
        let header = self.header("authorization");
        let (_, rest) = header.split_once("Credential=").unwrap();
        let mut parts = rest.split(['/', ',']);
        let key = parts.next().unwrap();
        let _date = parts.next();
        (key, parts.next().unwrap(), parts.next().unwrap())
    }

    /// Grants every role for an hour and takes every record.
    pub fn granted(&self) -> Answer {
        match self.is_sts() {
            true => assumed(self),
            false => written(self),
        }
    }
}

/// The values of an HTML form.
pub fn form(text: &str) -> HashMap<String, String> {
    text.split('&')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (percent_decoded(name), percent_decoded(value)))
        .collect()
}

/// Whether a call probes the role without knowing the external ID. Such a call is denied, not
/// counted, and its connection is closed.
pub fn is_probe(form: &HashMap<String, String>) -> bool {
    form.get("Policy")
        .is_some_and(|policy| policy.contains("Deny"))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).unwrap()
}

/// Action of the server on a request.
#[derive(Clone, Debug)]
pub enum Answer {
    Whole {
        status: u16,
        content_type: &'static str,
        body: String,
    },
    /// The whole answer, once notified.
    Held(Arc<Notify>, Box<Answer>),
    /// The whole answer, then closes.
    Last(Box<Answer>),
    /// Less of the body than its length announces, then closes.
    Truncated(String),
    /// Closes without an answer.
    Closed,
    /// Neither answers nor closes.
    Hang,
}

impl Answer {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::Whole {
            status,
            content_type: "application/x-amz-json-1.1",
            body: body.to_string(),
        }
    }

    pub fn xml(status: u16, body: String) -> Self {
        Self::Whole {
            status,
            content_type: "text/xml",
            body,
        }
    }

    pub fn html(status: u16) -> Self {
        Self::Whole {
            status,
            content_type: "text/html",
            body: "<html><body><h1>Service Unavailable</h1></body></html>".to_owned(),
        }
    }
}

/// Answer to AssumeRole: access key `ASIA` and the number of the call, for an hour.
pub fn assumed(call: &Call) -> Answer {
    assumed_until(call, SystemTime::now() + Duration::from_secs(3600))
}

/// [`assumed`], until another time.
pub fn assumed_until(call: &Call, expiration: SystemTime) -> Answer {
    Answer::xml(200, assumed_xml(call.number, expiration))
}

pub fn assumed_xml(number: usize, expiration: SystemTime) -> String {
    let expiration = jiff::Timestamp::try_from(expiration).unwrap();
    format!(
        r#"<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleResult>
    <AssumedRoleUser>
      <AssumedRoleId>AROAEXAMPLE:siem-relay-acme</AssumedRoleId>
      <Arn>arn:aws:sts::123456789012:assumed-role/writer/siem-relay-acme</Arn>
    </AssumedRoleUser>
    <Credentials>
      <AccessKeyId>ASIA{number}</AccessKeyId>
      <SecretAccessKey>secret-{number}</SecretAccessKey>
      <SessionToken>token-{number}</SessionToken>
      <Expiration>{expiration:.0}</Expiration>
    </Credentials>
    <PackedPolicySize>6</PackedPolicySize>
  </AssumeRoleResult>
  <ResponseMetadata><RequestId>request-{number}</RequestId></ResponseMetadata>
</AssumeRoleResponse>"#
    )
}

/// An error of STS.
pub fn sts_error(status: u16, code: &str, message: &str) -> Answer {
    Answer::xml(status, error_xml(code, message))
}

pub fn error_xml(code: &str, message: &str) -> String {
    format!(
        r#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>
  <RequestId>of-the-body</RequestId>
</ErrorResponse>"#
    )
}

pub fn access_denied() -> Answer {
    sts_error(
        403,
        "AccessDenied",
        "User: arn:aws:iam::210987654321:user/relay is not authorized to perform: sts:AssumeRole",
    )
}

/// Answer to PutRecords in which every record is accepted.
pub fn written(call: &Call) -> Answer {
    let sent = call.json()["Records"].as_array().unwrap().len();
    Answer::json(200, &written_json(sent))
}

pub fn written_json(sent: usize) -> Value {
    let records: Vec<_> = (0..sent)
        .map(
            |index| json!({"SequenceNumber": index.to_string(), "ShardId": "shardId-000000000000"}),
        )
        .collect();
    json!({"FailedRecordCount": 0, "Records": records})
}

/// An error of Kinesis.
pub fn kinesis_error(status: u16, code: &str) -> Answer {
    Answer::json(status, &json!({"__type": code, "message": "a message"}))
}

type Script = dyn Fn(&Call) -> Answer + Send + Sync;

/// Answers by a script and records the calls. Ends when dropped.
pub struct Server {
    address: std::net::SocketAddr,
    calls: Arc<Mutex<Vec<Call>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub async fn start(script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(None, script).await
    }

    /// Starts with TLS if there is an acceptor.
    pub async fn start_with(
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Call) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let script: Arc<Script> = Arc::new(script);
        let mut tasks = JoinSet::new();
        let connections = Arc::new(AtomicUsize::new(0));
        let (log, count) = (calls.clone(), connections.clone());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (log, script, tls) = (log.clone(), script.clone(), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(socket, log, script).await,
                        Some(tls) => {
                            if let Ok(socket) = tls.accept(socket).await {
                                serve(socket, log, script).await;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            calls,
            connections,
            _tasks: tasks,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Number of connections made to the server.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// Number of calls to STS.
    pub fn assumed(&self) -> usize {
        self.calls().iter().filter(|call| call.is_sts()).count()
    }

    /// Access key id of each write.
    pub fn keys_that_wrote(&self) -> Vec<String> {
        let calls = self.calls();
        let writes = calls.iter().filter(|call| !call.is_sts());
        writes.map(|call| call.credential().0.to_owned()).collect()
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    log: Arc<Mutex<Vec<Call>>>,
    script: Arc<Script>,
) {
    let mut socket = BufReader::new(socket);
    while let Some(mut call) = read(&mut socket).await {
        if call.is_sts() && is_probe(&call.form()) {
            let Answer::Whole {
                status,
                content_type,
                body,
            } = access_denied()
            else {
                unreachable!("it is whole")
            };
            let head = head(status, content_type, body.len(), 0);
            let head = head.replacen("\r\n", "\r\nconnection: close\r\n", 1);
            let _ = socket.write_all((head + &body).as_bytes()).await;
            return;
        }
        {
            let mut log = log.lock().unwrap();
            call.number = 1 + log.iter().filter(|c| c.is_sts() == call.is_sts()).count();
            log.push(call.clone());
        }
        let mut answer = script(&call);
        if let Answer::Held(notify, held) = answer {
            notify.notified().await;
            answer = *held;
        }
        let is_last = matches!(answer, Answer::Last(_));
        if let Answer::Last(last) = answer {
            answer = *last;
        }
        match answer {
            Answer::Whole {
                status,
                content_type,
                body,
            } => {
                // Kinesis answers in the format of the request.
                let recoded = cbor::from_json(body.as_bytes()).filter(|_| call.is_cbor());
                let (content_type, body) = match recoded {
                    Some(recoded) => (cbor::CONTENT_TYPE, recoded),
                    None => (content_type, body.into_bytes()),
                };
                let head = head(status, content_type, body.len(), call.number);
                let whole = [head.as_bytes(), &body].concat();
                if socket.write_all(&whole).await.is_err() || is_last {
                    return;
                }
            }
            Answer::Truncated(body) => {
                let head = head(
                    200,
                    "application/x-amz-json-1.1",
                    body.len() * 2,
                    call.number,
                );
                let _ = socket.write_all((head + &body).as_bytes()).await;
                return;
            }
            Answer::Closed => return,
            Answer::Hang => std::future::pending().await,
            Answer::Held(..) | Answer::Last(_) => unreachable!("held once, last once"),
        }
    }
}

fn head(status: u16, content_type: &str, length: usize, number: usize) -> String {
    format!(
        "HTTP/1.1 {status} Answer\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
         x-amzn-requestid: request-{number}\r\n\r\n"
    )
}

async fn read<S: AsyncRead + Unpin>(socket: &mut BufReader<S>) -> Option<Call> {
    let mut call = Call::default();
    let mut line = String::new();
    socket.read_line(&mut line).await.ok()?;
    loop {
        line.clear();
        if socket.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        call.headers
            .insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = call.headers.get("content-length")?.parse().ok()?;
    call.body.resize(length, 0);
    socket.read_exact(&mut call.body).await.ok()?;
    Some(call)
}
