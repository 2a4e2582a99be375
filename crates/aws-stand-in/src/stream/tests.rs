use std::time::Duration;

use proptest::prelude::*;

use super::*;

const ARN: &str = "arn:aws:kinesis:us-east-1:222222222222:stream/detections";

fn streams(shards: u32, max_records: u64) -> (Streams, Arc<Stream>) {
    let streams = Streams::new(max_records, u64::MAX);
    let spec = StreamSpec::new(ARN, shards);
    assert!(streams.create(StreamArn::parse(ARN).unwrap(), &spec, 1_700_000_000_000));
    let stream = streams.get(ARN).unwrap();
    (streams, stream)
}

fn record(hash_key: u128, size: usize) -> NewRecord {
    NewRecord {
        partition_key: "k".into(),
        hash_key,
        data: Bytes::from(vec![b'x'; size - 1]),
    }
}

/// Number of records stored, and not stored.
fn put(streams: &Streams, stream: &Arc<Stream>, records: &[NewRecord]) -> (usize, usize) {
    let outcomes = streams.put(stream, records, true, 0, || None);
    let stored = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, PutOutcome::Stored { .. }))
        .count();
    (stored, outcomes.len() - stored)
}

fn batch(count: usize) -> Vec<NewRecord> {
    (0..count).map(|_| record(0, 10)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_shard_takes_1000_records_a_second() {
    let (streams, stream) = streams(1, 10_000);
    assert_eq!(put(&streams, &stream, &batch(1500)), (1000, 500));
    assert_eq!(put(&streams, &stream, &batch(1)), (0, 1));
    tokio::time::advance(Duration::from_millis(250)).await;
    assert_eq!(put(&streams, &stream, &batch(500)), (250, 250));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(put(&streams, &stream, &batch(1500)), (1000, 500));
}

#[tokio::test(start_paused = true)]
async fn a_shard_takes_1_mib_a_second_whatever_other_shards_take() {
    let (streams, stream) = streams(2, 10_000);
    let half = 512 * 1024;
    let sizes = [(0, half), (0, half), (0, 1), (u128::MAX, half)];
    let records = sizes.map(|(key, size)| record(key, size));
    let outcomes = streams.put(&stream, &records, true, 0, || None);
    assert_eq!(outcomes[2], PutOutcome::Throttled { shard: 0 });
    assert!(matches!(outcomes[3], PutOutcome::Stored { shard: 1, .. }));
}

#[tokio::test]
async fn the_oldest_records_are_dropped_first() {
    let (streams, stream) = streams(4, 100);
    let spread: Vec<_> = (0..10).map(|n| record(u128::MAX / 10 * n, 10)).collect();
    for _ in 0..30 {
        streams.put(&stream, &spread, false, 0, || None);
    }
    let stats = stream.stats();
    assert_eq!(
        (stats.accepted, stats.dropped, stats.retained_bytes),
        (300, 200, 1000)
    );
    let indexes: Vec<u64> = stream
        .records(0, usize::MAX)
        .iter()
        .map(|r| r.index)
        .collect();
    assert_eq!(indexes, (200..300).collect::<Vec<_>>());
    let in_shards: usize = stream.lock().shards.iter().map(|s| s.records.len()).sum();
    assert_eq!(in_shards, 100);
}

#[tokio::test]
async fn a_split_assigns_the_keys_to_the_new_shards() {
    let (streams, stream) = streams(2, 100);
    let middle = u128::MAX / 4;
    assert!(!stream.split(0, 0) && !stream.split(7, 1) && !stream.split(1, middle));
    assert!(stream.split(0, middle));
    assert!(!stream.split(0, middle), "a closed shard cannot be split");
    let records = [middle - 1, middle, u128::MAX].map(|key| record(key, 10));
    let shards: Vec<u32> = streams
        .put(&stream, &records, true, 0, || None)
        .into_iter()
        .filter_map(|outcome| match outcome {
            PutOutcome::Stored { shard, .. } => Some(shard),
            _ => None,
        })
        .collect();
    assert_eq!(shards, [2, 3, 1]);
}

proptest! {
    #[test]
    fn a_hash_key_belongs_to_the_shard_whose_range_contains_it(count in 1u32..50, key in any::<u128>()) {
        let (_, stream) = streams(count, 1);
        let state = stream.lock();
        let (start, end) = state.shards[state.shard_for(key) as usize].hash_keys;
        prop_assert!(start <= key && key <= end);
    }

    #[test]
    fn sequence_numbers_sort_as_text_and_parse_back(shard in 0u32..100, a in any::<u32>(), b in any::<u32>()) {
        let (_, stream) = streams(1, 1);
        let (first, second) = (stream.sequence_number(shard, a.into()), stream.sequence_number(shard, b.into()));
        prop_assert_eq!(first.len(), 56);
        prop_assert_eq!(first.cmp(&second), a.cmp(&b));
        prop_assert_eq!(stream.parse_sequence_number(shard, &first), Some(a.into()));
        prop_assert_eq!(stream.parse_sequence_number(shard + 1, &first), None);
    }

    #[test]
    fn parsing_an_arn_never_panics(text in any::<String>()) {
        let _ = StreamArn::parse(&text);
        let arn = format!("arn:aws:kinesis:us-east-1:222222222222:stream/{text}");
        prop_assert!(StreamArn::parse(&arn).is_none_or(|id| id.name == text));
    }
}
