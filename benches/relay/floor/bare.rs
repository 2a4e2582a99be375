//! A request as bytes on a connection that is kept, and the bytes of its answer.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
};

use aws_sdk_kinesis::types::PutRecordsRequestEntry;
use minicbor::{Encoder, encode};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::STREAM_ARN;
use crate::{Failure, http};

/// As long as the head of a signed request.
const HEAD: &str = "POST / HTTP/1.1\r\nhost: kinesis.us-east-1.amazonaws.com\r\n\
    content-type: application/x-amz-cbor-1.1\r\nx-amz-target: Kinesis_20131202.PutRecords\r\n";
const SIGNATURE_BYTES: usize = 360 + 64 + 200;

/// Requests, ready to be written.
#[derive(Default)]
pub struct Made {
    counts: [usize; 2],
    requests: HashMap<(usize, usize), Vec<u8>>,
}

impl Made {
    /// Makes all requests, each with so many of its entries, where they are not made yet.
    pub fn make(
        &mut self,
        requests: &[Vec<PutRecordsRequestEntry>],
        counts: [usize; 2],
    ) -> Result<(), Failure> {
        if self.counts == counts {
            return Ok(());
        }
        self.counts = counts;
        self.requests.clear();
        for (number, entries) in requests.iter().enumerate() {
            for count in counts.map(|count| count.min(entries.len())) {
                if let Entry::Vacant(vacant) = self.requests.entry((number, count)) {
                    vacant.insert(request(&entries[..count])?);
                }
            }
        }
        Ok(())
    }
}

pub struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Connection {
    pub async fn open(sink: SocketAddr) -> Result<Self, Failure> {
        let stream = TcpStream::connect(sink).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            answer: Vec::with_capacity(64 << 10),
        })
    }

    /// Sends the first entries of a request.
    pub async fn put(&mut self, made: &Made, number: usize, count: usize) -> Result<(), Failure> {
        let request = made
            .requests
            .get(&(number, count))
            .ok_or("no such request")?;
        self.stream.write_all(request).await?;
        self.answer.clear();
        let answer = http::read(&mut self.stream, &mut self.answer).await?;
        answer.map(drop).ok_or("the sink closed".into())
    }
}

fn request(entries: &[PutRecordsRequestEntry]) -> Result<Vec<u8>, Failure> {
    let body = body(entries)?;
    let signature = "a".repeat(SIGNATURE_BYTES);
    let length = body.len();
    let head = format!("{HEAD}authorization: {signature}\r\ncontent-length: {length}\r\n\r\n");
    Ok([head.as_bytes(), &body].concat())
}

fn body(entries: &[PutRecordsRequestEntry]) -> Result<Vec<u8>, Failure> {
    let mut to = Encoder::new(Vec::new());
    let mut write = || {
        to.begin_map()?.str("StreamARN")?.str(STREAM_ARN)?;
        to.str("Records")?.begin_array()?;
        for entry in entries {
            to.begin_map()?.str("Data")?.bytes(entry.data().as_ref())?;
            let key = entry.partition_key().unwrap_or_default();
            to.str("PartitionKey")?.str(key)?.end()?;
        }
        to.end()?.end()?.ok()
    };
    let written: Result<(), encode::Error<_>> = write();
    written?;
    Ok(to.into_writer())
}
