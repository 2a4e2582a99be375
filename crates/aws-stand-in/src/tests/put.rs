//! Writing and reading back.

use aws_sdk_kinesis::types::ShardIteratorType;

use super::*;

#[tokio::test]
async fn put_records_are_read_back() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let mut put = kinesis.put_records().stream_arn(STREAM);
    for n in 0..500 {
        put = put.records(entry(&format!("device-{}", n % 7), format!("{n} é\n")));
    }
    let answer = put.send().await.unwrap();
    assert_eq!(answer.failed_record_count(), Some(0));

    let shards = kinesis
        .list_shards()
        .stream_arn(STREAM)
        .send()
        .await
        .unwrap();
    let mut read = Vec::new();
    for shard in shards.shards() {
        let iterator = kinesis
            .get_shard_iterator()
            .stream_arn(STREAM)
            .shard_id(shard.shard_id())
            .shard_iterator_type(ShardIteratorType::TrimHorizon)
            .send()
            .await
            .unwrap();
        let mut next = iterator.shard_iterator;
        let mut last = String::new();
        loop {
            let page = kinesis.get_records().set_shard_iterator(next).limit(100);
            let page = page.send().await.unwrap();
            if page.records().is_empty() {
                break;
            }
            for record in page.records() {
                assert!(last.as_str() < record.sequence_number());
                last = record.sequence_number().to_owned();
                read.push((last.clone(), shard.shard_id().to_owned(), record.clone()));
            }
            next = page.next_shard_iterator;
        }
    }
    assert!(read.iter().any(|(_, shard, _)| shard.ends_with('0')));
    assert!(read.iter().any(|(_, shard, _)| shard.ends_with('1')));
    assert_eq!(read.len(), 500);
    for (n, result) in answer.records().iter().enumerate() {
        let number = result.sequence_number().unwrap();
        let (_, shard, record) = read.iter().find(|(read, ..)| read == number).unwrap();
        assert_eq!(Some(shard.as_str()), result.shard_id());
        assert_eq!(record.data().as_ref(), format!("{n} é\n").as_bytes());
        assert_eq!(
            record.partition_key(),
            Some(format!("device-{}", n % 7).as_str())
        );
    }
    let arrival = world.control.records(STREAM, 0, 1000).unwrap();
    assert_eq!(arrival[3].data, "3 é\n".as_bytes());
    assert_eq!(arrival.len(), 500);
}

#[tokio::test]
async fn iterators_start_at_their_position() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let put = |data: &str| {
        let call = kinesis.put_record().stream_name("other").partition_key("k");
        call.data(Blob::new(data)).send()
    };
    put("one").await.unwrap();
    let two = put("two").await.unwrap();
    put("three").await.unwrap();
    let read = async |kind: ShardIteratorType| {
        let iterator = kinesis
            .get_shard_iterator()
            .stream_arn(OTHER_STREAM)
            .shard_id("shardId-000000000000")
            .starting_sequence_number(two.sequence_number())
            .shard_iterator_type(kind)
            .send()
            .await
            .unwrap();
        put("later").await.unwrap();
        let page = kinesis
            .get_records()
            .set_shard_iterator(iterator.shard_iterator);
        let page = page.send().await.unwrap();
        let first = page.records()[0].data().as_ref().to_vec();
        String::from_utf8(first).unwrap()
    };
    assert_eq!(read(ShardIteratorType::AtSequenceNumber).await, "two");
    assert_eq!(read(ShardIteratorType::AfterSequenceNumber).await, "three");
    assert_eq!(read(ShardIteratorType::Latest).await, "later");
    assert_eq!(read(ShardIteratorType::TrimHorizon).await, "one");
    let garbage = kinesis.get_records().shard_iterator("garbage").send();
    assert_eq!(refused!(garbage), code("InvalidArgumentException", 400));
}

#[tokio::test]
async fn a_throttled_shard_fails_single_records_inside_200() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let put = || {
        let records = (0..500).map(|n| entry("k", n.to_string())).collect();
        let call = kinesis.put_records().stream_arn(OTHER_STREAM);
        call.set_records(Some(records)).send()
    };
    let mut failed = 0;
    // 4,000 records at once, where the shard takes 1,000 and one more each millisecond.
    for _ in 0..8 {
        let answer = put().await.unwrap();
        let errors = answer.records().iter().filter(|record| {
            record.error_code() == Some("ProvisionedThroughputExceededException")
                && record.sequence_number().is_none()
                && record.error_message().unwrap().starts_with("Rate exceeded for shard shardId-000000000000 in stream other under account 222222222222")
        });
        let count = i32::try_from(errors.count()).unwrap();
        assert_eq!(answer.failed_record_count(), Some(count));
        failed += count;
    }
    let accepted = world.control.stream(OTHER_STREAM).unwrap().accepted;
    assert_eq!(accepted + u64::try_from(failed).unwrap(), 4000);
    assert!(failed > 0 && accepted >= 1000, "{failed} {accepted}");

    world.control.set_enforce_shard_limits(false);
    assert_eq!(put().await.unwrap().failed_record_count(), Some(0));
}

#[tokio::test]
async fn limits_of_requests_and_records() {
    let world = World::start().await;
    world.control.set_enforce_shard_limits(false);
    let kinesis = world.kinesis().await;
    let put = |records: Vec<PutRecordsRequestEntry>| {
        let call = kinesis.put_records().stream_arn(STREAM);
        call.set_records(Some(records)).send()
    };
    let invalid = code("ValidationException", 400);
    assert_eq!(refused!(put(vec![])), invalid);
    assert_eq!(refused!(put(vec![entry("k", "d"); 501])), invalid);
    assert_eq!(refused!(put(vec![entry("", "d")])), invalid);
    assert_eq!(refused!(put(vec![entry(&"é".repeat(257), "d")])), invalid);
    put(vec![entry(&"é".repeat(256), "d")]).await.unwrap();
    let invalid = code("InvalidArgumentException", 400);
    let mib = 1024 * 1024;
    assert_eq!(refused!(put(vec![entry("k", vec![0; mib])])), invalid);
    put(vec![entry("k", vec![0; mib - 1])]).await.unwrap();
    put(vec![entry("k", vec![0; mib - 1]); 10]).await.unwrap();
    let mut eleven = vec![entry("k", vec![0; mib - 1]); 10];
    eleven.push(entry("k", "d"));
    assert_eq!(refused!(put(eleven)), invalid);
    assert_eq!(
        refused!(put(vec![entry("k", vec![0; mib]); 20])),
        code("RequestEntityTooLarge", 413)
    );
}

#[tokio::test]
async fn streams_are_created_split_and_deleted() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let put = |name: &str| {
        let call = kinesis
            .put_records()
            .stream_name(name)
            .records(entry("k", "d"));
        call.send()
    };
    assert_eq!(refused!(put("new")), code("ResourceNotFoundException", 400));
    kinesis
        .create_stream()
        .stream_name("new")
        .shard_count(3)
        .send()
        .await
        .unwrap();
    let again = kinesis.create_stream().stream_name("new").send();
    assert_eq!(refused!(again), code("ResourceInUseException", 400));
    put("new").await.unwrap();
    let summary = kinesis
        .describe_stream_summary()
        .stream_name("new")
        .send()
        .await
        .unwrap();
    let summary = summary.stream_description_summary.unwrap();
    assert_eq!(summary.open_shard_count(), 3);
    let arn = "arn:aws:kinesis:eu-west-1:222222222222:stream/new";
    assert_eq!(summary.stream_arn(), arn);
    kinesis
        .split_shard()
        .stream_name("new")
        .shard_to_split("shardId-000000000000")
        .new_starting_hash_key("1000")
        .send()
        .await
        .unwrap();
    let shards = kinesis
        .list_shards()
        .stream_name("new")
        .send()
        .await
        .unwrap();
    assert_eq!(shards.shards().len(), 5);
    assert_eq!(
        shards.shards()[4].parent_shard_id(),
        Some("shardId-000000000000")
    );
    let names = kinesis.list_streams().send().await.unwrap();
    assert_eq!(names.stream_names(), ["detections", "new", "other"]);

    let mut records = world.control.subscribe(arn).unwrap();
    assert_eq!(records.next().await.unwrap().data, "d");
    kinesis
        .delete_stream()
        .stream_name("new")
        .send()
        .await
        .unwrap();
    assert!(records.next().await.is_none());
    assert_eq!(refused!(put("new")), code("ResourceNotFoundException", 400));
}

#[tokio::test]
async fn a_subscriber_sees_records_as_they_arrive() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let mut records = world.control.subscribe(STREAM).unwrap();
    let reader = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 20 {
            seen.push(records.next().await.unwrap().index);
        }
        seen
    });
    for n in 0..20 {
        let put = kinesis.put_records().stream_arn(STREAM);
        put.records(entry(&n.to_string(), "d"))
            .send()
            .await
            .unwrap();
    }
    assert_eq!(reader.await.unwrap(), (0..20).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let call = kinesis
        .put_records()
        .stream_arn(STREAM)
        .records(entry("k", "d"));
    let error = call.dry_run(true).send().await.unwrap_err();
    assert!(error.into_service_error().is_dry_run_operation_exception());
    assert_eq!(world.control.stream(STREAM).unwrap().accepted, 0);
}
