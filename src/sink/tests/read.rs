//! Reading a stream from the stand-in.

use aws_sdk_kinesis::{Client, primitives::Blob};

use super::*;
use aws_stand_in::{
    Control, Effect, Fault as SetFault, LongTermCredentials, Operation, Options, StandIn,
    StreamSpec, When,
};

/// The owner of a stream, and its reader.
struct World {
    _stand_in: StandIn,
    control: Control,
    client: Client,
    reader: StreamReader,
    written: u32,
}

impl World {
    async fn start(shards: u32) -> Self {
        let stand_in = StandIn::start(Options {
            enforce_shard_limits: false,
            ..Options::default()
        })
        .await
        .unwrap();
        let control = stand_in.control();
        control
            .put_credentials(LongTermCredentials {
                access_key_id: "AKIAREADER".to_owned(),
                secret_access_key: "reader-secret".to_owned(),
                principal_arn: "arn:aws:iam::123456789012:user/auditor".to_owned(),
                policy: None,
            })
            .unwrap();
        control
            .create_stream(StreamSpec::new(STREAM, shards))
            .unwrap();
        let options = AwsOptions {
            stand_in: Some(StandInAccess {
                url: stand_in.url(),
                region: "us-east-1".to_owned(),
                access_key_id: "AKIAREADER".to_owned(),
                secret_access_key: "reader-secret".to_owned().into(),
            }),
            ..AwsOptions::default()
        };
        let sdk = config::load(&options).await;
        let builder = aws_sdk_kinesis::config::Builder::from(&sdk)
            .region(aws_config::Region::new("eu-west-1"));
        let stream = StreamArn::parse(STREAM).unwrap();
        Self {
            _stand_in: stand_in,
            control,
            client: Client::from_conf(builder.build()),
            reader: StreamReader::with_options(stream, &options).await,
            written: 0,
        }
    }

    /// Writes `count` records under ten keys.
    async fn write(&mut self, count: u32) {
        for number in self.written..self.written + count {
            self.client
                .put_record()
                .stream_arn(STREAM)
                .partition_key(format!("key {}", number % 10))
                .data(Blob::new(number.to_string()))
                .send()
                .await
                .unwrap();
        }
        self.written += count;
    }

    async fn split(&self, shard: &str, at: u128) {
        self.client
            .split_shard()
            .stream_arn(STREAM)
            .shard_to_split(shard)
            .new_starting_hash_key(at.to_string())
            .send()
            .await
            .unwrap();
    }

    async fn read(&mut self) -> Vec<ReadRecord> {
        let mut read = Vec::new();
        self.reader
            .catch_up(&mut |record| read.push(record))
            .await
            .unwrap();
        read
    }
}

/// Checks that every record is there once, and those of a key are in the order written.
#[track_caller]
fn check(read: &[ReadRecord], expected: std::ops::Range<u32>) {
    let number = |record: &ReadRecord| -> u32 {
        String::from_utf8(record.data.clone())
            .unwrap()
            .parse()
            .unwrap()
    };
    let mut last = std::collections::HashMap::new();
    for record in read {
        assert_eq!(record.partition_key, format!("key {}", number(record) % 10));
        let before = last.insert(&record.partition_key, number(record));
        assert!(before < Some(number(record)), "{record:?}");
    }
    let mut all: Vec<u32> = read.iter().map(number).collect();
    all.sort_unstable();
    assert_eq!(all, expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn closed_shards_are_read_before_their_children() {
    let mut world = World::start(2).await;
    world.write(40).await;
    world.split("shardId-000000000000", u128::MAX / 4).await;
    world.write(40).await;
    world.split("shardId-000000000002", u128::MAX / 8).await;
    world.write(40).await;
    check(&world.read().await, 0..120);
    // Continues through another split.
    world.write(20).await;
    world.split("shardId-000000000001", u128::MAX / 4 * 3).await;
    world.write(20).await;
    check(&world.read().await, 120..160);
    assert_eq!(world.read().await, []);
}

#[tokio::test]
async fn an_expired_iterator_is_replaced_and_throttling_is_retried() {
    let mut world = World::start(1).await;
    world.write(10).await;
    check(&world.read().await, 0..10);
    world.write(10).await;
    for code in [
        "ExpiredIteratorException",
        "ProvisionedThroughputExceededException",
    ] {
        let fault = SetFault {
            operation: Some(Operation::GetRecords),
            target: None,
            calls: Some(1),
            when: When::Before,
            effect: Effect::Error {
                code: code.to_owned(),
                status: 400,
                message: String::new(),
            },
        };
        world.control.add_fault(fault).unwrap();
    }
    check(&world.read().await, 10..20);
}

#[tokio::test]
async fn an_error_names_call_stream_and_code() {
    let mut world = World::start(1).await;
    world.control.delete_stream(STREAM);
    let error = world.reader.catch_up(&mut |_| {}).await.unwrap_err();
    let text = error.to_string();
    let start = format!("ListShards on {STREAM}: ResourceNotFoundException: ");
    assert!(text.starts_with(&start), "{text}");
}
