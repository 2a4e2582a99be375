//! Injected faults and counted order hazards.

use aws_sdk_kinesis::error::SdkError;
use aws_sdk_kinesis::operation::RequestId;
use aws_sdk_kinesis::operation::put_records::{PutRecordsError, PutRecordsOutput};

use super::*;

type PutResult = Result<PutRecordsOutput, SdkError<PutRecordsError>>;

fn fault(effect: Effect) -> Fault {
    Fault {
        operation: Some(Operation::PutRecords),
        target: None,
        calls: None,
        when: When::Before,
        effect,
    }
}

fn put(
    kinesis: &aws_sdk_kinesis::Client,
    records: Vec<PutRecordsRequestEntry>,
) -> impl Future<Output = PutResult> + use<> {
    let call = kinesis.put_records().stream_arn(STREAM);
    call.set_records(Some(records)).send()
}

#[tokio::test]
async fn an_error_is_limited_to_a_number_of_calls_and_a_stream() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let error = Effect::Error {
        code: "KMSDisabledException".to_owned(),
        status: 400,
        message: "the key is disabled".to_owned(),
    };
    let mut for_two = fault(error);
    for_two.calls = Some(2);
    for_two.target = Some("detections".to_owned());
    world.control.add_fault(for_two).unwrap();
    let other = kinesis
        .put_records()
        .stream_arn(OTHER_STREAM)
        .records(entry("k", "d"));
    other.send().await.unwrap();
    for nth in 1..=2 {
        let error = put(&kinesis, vec![entry("k", "d")]).await.unwrap_err();
        let request_id = error.request_id().unwrap();
        let call = AnsweredCall {
            operation: Operation::PutRecords,
            target: STREAM.to_owned(),
            outcome: "KMSDisabledException".to_owned(),
            nth,
            records: 1,
        };
        assert_eq!(world.control.call_by_request_id(request_id), Some(call));
        assert!(error.into_service_error().is_kms_disabled_exception());
    }
    put(&kinesis, vec![entry("k", "d")]).await.unwrap();
    let count = world
        .control
        .call_count(Operation::PutRecords, Some("KMSDisabledException"));
    assert_eq!(count, 2);
}

#[tokio::test]
async fn assume_role_can_fail() {
    let world = World::start().await;
    let error = Effect::Error {
        code: "RegionDisabledException".to_owned(),
        status: 403,
        message: String::new(),
    };
    let mut sts_fault = fault(error);
    sts_fault.operation = Some(Operation::AssumeRole);
    sts_fault.target = Some(ROLE.to_owned());
    let id = world.control.add_fault(sts_fault).unwrap();
    let assume = || {
        let sts = world.sts();
        let call = sts
            .assume_role()
            .role_arn(ROLE)
            .role_session_name("siem-relay");
        call.external_id(EXTERNAL_ID).send()
    };
    assert_eq!(refused!(assume()), code("RegionDisabledException", 403));
    assert!(world.control.clear_fault(id) && !world.control.clear_fault(id));
    assume().await.unwrap();
}

#[tokio::test]
async fn garbage_and_resets_are_not_aws_errors() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    world
        .control
        .add_fault(fault(Effect::Garbage { status: 503 }))
        .unwrap();
    let error = put(&kinesis, vec![entry("k", "d")]).await.unwrap_err();
    assert_eq!(error.raw_response().unwrap().status().as_u16(), 503);
    world.control.clear_faults();

    world.control.add_fault(fault(Effect::Reset)).unwrap();
    let error = put(&kinesis, vec![entry("k", "d")]).await.unwrap_err();
    assert!(matches!(error, SdkError::DispatchFailure(_)), "{error:?}");
    assert_eq!(world.control.stream(STREAM).unwrap().accepted, 0);
    world.control.clear_faults();

    let mut lost_answer = fault(Effect::Reset);
    lost_answer.when = When::After;
    world.control.add_fault(lost_answer).unwrap();
    let error = put(&kinesis, vec![entry("k", "d")]).await.unwrap_err();
    assert!(matches!(error, SdkError::DispatchFailure(_)), "{error:?}");
    assert_eq!(world.control.stream(STREAM).unwrap().accepted, 1);
    world.control.clear_faults();
    put(&kinesis, vec![entry("k", "d")]).await.unwrap();
}

#[tokio::test]
async fn a_call_hangs_until_the_fault_is_cleared() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let mut after = fault(Effect::Hang);
    after.when = When::After;
    let id = world.control.add_fault(after).unwrap();
    let mut arrived = world.control.subscribe(STREAM).unwrap();
    let first = tokio::spawn(put(&kinesis, vec![entry("k", "1"), entry("l", "1")]));
    arrived.next().await.unwrap();
    let second = tokio::spawn(put(&kinesis, vec![entry("m", "2")]));
    let third = tokio::spawn(put(&kinesis, vec![entry("l", "3")]));
    for _ in 0..3 {
        arrived.next().await.unwrap();
    }
    assert!(!first.is_finished() && !second.is_finished() && !third.is_finished());
    assert_eq!(world.control.hazards().overlapping_keys, 1);
    world.control.clear_fault(id);
    for call in [first, second, third] {
        call.await.unwrap().unwrap();
    }
    put(&kinesis, vec![entry("k", "4")]).await.unwrap();
    assert_eq!(
        world.control.hazards(),
        HazardCounts {
            overlapping_keys: 1,
            overtaken_keys: 0
        }
    );
}

#[tokio::test]
async fn a_seed_determines_which_records_fail() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let world = World::start().await;
        let kinesis = world.kinesis().await;
        let effect = Effect::FailRecords {
            probability: 0.3,
            seed: 7,
            code: "InternalFailure".to_owned(),
        };
        world.control.add_fault(fault(effect)).unwrap();
        let records: Vec<_> = (0..200)
            .map(|n| entry(&n.to_string(), n.to_string()))
            .collect();
        let answer = put(&kinesis, records).await.unwrap();
        let failed: Vec<bool> = answer
            .records()
            .iter()
            .map(|record| record.error_code() == Some("InternalFailure"))
            .collect();
        let count = failed.iter().filter(|failed| **failed).count();
        assert!((30..=90).contains(&count), "{count}");
        assert_eq!(answer.failed_record_count(), i32::try_from(count).ok());
        assert_eq!(
            world.control.stream(STREAM).unwrap().accepted,
            200 - count as u64
        );

        // Newer records of the same keys: they overtake those that failed.
        world.control.clear_faults();
        let records = (0..200).map(|n| entry(&n.to_string(), "other")).collect();
        put(&kinesis, records).await.unwrap();
        assert_eq!(world.control.hazards().overtaken_keys, 1);
        runs.push(failed);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn hanging_calls_finish_at_shutdown() {
    let world = World::start().await;
    let kinesis = world.kinesis().await;
    let mut after = fault(Effect::Hang);
    after.when = When::After;
    world.control.add_fault(after).unwrap();
    let mut arrived = world.control.subscribe(STREAM).unwrap();
    let call = tokio::spawn(put(&kinesis, vec![entry("k", "d")]));
    arrived.next().await.unwrap();
    world.stand_in.shutdown().await;
    call.await.unwrap().unwrap();
    assert!(put(&kinesis, vec![entry("k", "d")]).await.is_err());
}

#[tokio::test]
async fn values_out_of_range_are_refused() {
    let world = World::start().await;
    let fail = |probability| Effect::FailRecords {
        probability,
        seed: 0,
        code: "InternalFailure".to_owned(),
    };
    for effect in [
        fail(1.1),
        fail(-0.1),
        fail(f64::NAN),
        Effect::Garbage { status: 204 },
    ] {
        let error = world.control.add_fault(fault(effect)).unwrap_err();
        assert!(matches!(error, ControlError::InvalidFault(_)), "{error}");
    }
}
