//! State of this service's own identity, with and without traffic.

use tokio::time::{advance, sleep};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Customers whose roles were assumed, and then are all denied.
async fn refused_together(count: i64) -> (Aws, AwsSink, Arc<Registry>) {
    let (aws, sink, registry) = with_assumed_roles(count).await;
    aws.set_script(denied);
    assert_eq!(refusal(&sink, &customer(1)).await, Meaning::Ours);
    assert_eq!(*sink.identity_state().borrow(), IdentityState::MayNotAssume);
    (aws, sink, registry)
}

fn watch(sink: &AwsSink) -> tokio::task::JoinHandle<()> {
    let sink = sink.clone();
    tokio::spawn(async move { sink.watch_identity().await })
}

#[tokio::test(start_paused = true)]
async fn only_one_check_is_made_while_the_state_is_good() {
    let (aws, sink, _) = with_assumed_roles(5).await;
    let before = aws.requests().len();
    let _watching = watch(&sink);
    sleep(24 * HOUR).await;
    let requests = aws.requests();
    assert_eq!(requests.len(), before + 1);
    assert_eq!(requests[before].1, Request::CallerIdentity);
}

#[tokio::test(start_paused = true)]
async fn the_state_recovers_without_traffic_once_a_role_can_be_assumed() {
    for until_repaired in [Duration::from_secs(30), 10 * HOUR] {
        let (aws, sink, _) = refused_together(4).await;
        let _watching = watch(&sink);
        sleep(until_repaired).await;
        assert_eq!(*sink.identity_state().borrow(), IdentityState::MayNotAssume);
        aws.set_script(|_| Reply::Ok);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(*sink.identity_state().borrow(), IdentityState::Good);
    }
}

/// Number of checks of each of four roles in each of four hours after the first minute.
async fn checks_per_hour(kind: fn(i64) -> Arc<Integration>) -> Vec<usize> {
    // Roles of integrations with a previous external ID accept that one.
    let aws = Aws::new(|request| match request {
        Request::AssumeRole { external_id, .. } if external_id.as_deref() != Some(PREVIOUS_ID) => {
            denied(request)
        }
        _ => Reply::Ok,
    });
    if kind(1).previous.is_none() {
        aws.set_script(|_| Reply::Ok);
    }
    let sink = aws.sink(Arc::new(Registry::default()));
    for which in 1..=4 {
        let outcomes = sink.put_records(&kind(which), records(1), &[]).await;
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    aws.set_script(denied);
    assert_eq!(refusal(&sink, &kind(1)).await, Meaning::Ours);
    let start = tokio::time::Instant::now() + Duration::from_secs(60);
    let _watching = watch(&sink);
    sleep(5 * HOUR).await;
    assert_eq!(*sink.identity_state().borrow(), IdentityState::MayNotAssume);
    let mut counts = Vec::new();
    for assumed in aws.assumed().values() {
        for from in (0..4).map(|hour| start + hour * HOUR) {
            let within = assumed.iter().filter(|at| (from..from + HOUR).contains(at));
            counts.push(within.count());
        }
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn roles_are_checked_at_most_20_times_an_hour() {
    for kind in [customer, rotating] {
        let counts = checks_per_hour(kind).await;
        assert_eq!(counts.len(), 4 * 4);
        assert!(
            counts.iter().all(|count| (10..=20).contains(count)),
            "{counts:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_state_is_good_when_too_few_accounts_are_left() {
    let (_aws, sink, registry) = refused_together(4).await;
    let _watching = watch(&sink);
    registry
        .deleted
        .lock()
        .unwrap()
        .extend([2, 3].map(testing_id));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*sink.identity_state().borrow(), IdentityState::Good);
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(refusal(&sink, &customer(1)).await, denial);
}

#[tokio::test(start_paused = true)]
async fn repaired_credentials_leave_another_fault() {
    let (aws, sink, _) = refused_together(4).await;
    aws.set_script(|_| Reply::Error("ExpiredToken"));
    let _watching = watch(&sink);
    sleep(Duration::from_secs(60)).await;
    let refused = IdentityState::CredentialsRefused {
        code: "ExpiredToken".into(),
    };
    assert_eq!(*sink.identity_state().borrow(), refused);
    aws.set_script(denied);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*sink.identity_state().borrow(), IdentityState::MayNotAssume);
    aws.set_script(|_| Reply::Ok);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*sink.identity_state().borrow(), IdentityState::Good);
}

#[tokio::test(start_paused = true)]
async fn a_role_that_is_denied_while_others_work_is_seldom_checked() {
    let (aws, sink, _) = with_assumed_roles(60).await;
    let broken = role(60);
    let also = broken.clone();
    aws.set_script(move |request| match request {
        Request::AssumeRole { role_arn, .. } if *role_arn == also => denied(request),
        Request::AssumeRole { role_arn, .. } => {
            let number: i64 = role_arn.rsplit('-').next().unwrap().parse().unwrap();
            match number <= 40 {
                true => denied(request),
                false => Reply::Ok,
            }
        }
        _ => Reply::Ok,
    });
    // One customer after another is denied, which causes a round of checks each time.
    for which in 1..=40 {
        advance(Duration::from_secs(6)).await;
        let denial = Meaning::Refused(Reason::AssumeRoleDenied);
        assert_eq!(refusal(&sink, &customer(which)).await, denial);
    }
    let checks = aws.assumed()[&broken].len();
    assert!(checks <= 1 + 6, "{checks} times");
}
