//! How health follows this service's own identity, with and without traffic.

use tokio::time::{advance, sleep};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

/// Customers that worked, and then are refused together.
async fn refused_together(count: i64) -> (Aws, AwsSink, Arc<Registry>) {
    let (aws, sink, registry) = that_worked(count).await;
    aws.now(denied);
    assert_eq!(refusal(&sink, &customer(1)).await, Meaning::Ours);
    assert_eq!(*sink.standing().borrow(), Standing::MayNotAssume);
    (aws, sink, registry)
}

fn watch(sink: &AwsSink) -> tokio::task::JoinHandle<()> {
    let sink = sink.clone();
    tokio::spawn(async move { sink.watch_standing().await })
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_while_all_is_good_and_idle() {
    let (aws, sink, _) = that_worked(5).await;
    let before = aws.asked().len();
    let _watching = watch(&sink);
    sleep(24 * HOUR).await;
    let asked = aws.asked();
    assert_eq!(asked.len(), before + 1);
    assert_eq!(asked[before].1, Asked::CallerIdentity);
}

#[tokio::test(start_paused = true)]
async fn it_heals_without_traffic_once_one_role_works_again() {
    for until_mended in [Duration::from_secs(30), 10 * HOUR] {
        let (aws, sink, _) = refused_together(4).await;
        let _watching = watch(&sink);
        sleep(until_mended).await;
        assert_eq!(*sink.standing().borrow(), Standing::MayNotAssume);
        aws.now(|_| Said::Yes);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(*sink.standing().borrow(), Standing::Good);
    }
}

/// How often each of four witnesses is asked in each of some hours after the first minute.
async fn asked_an_hour(kind: fn(i64) -> Arc<Integration>) -> Vec<usize> {
    // Those that are changing their external ID work with the one before.
    let aws = Aws::new(|asked| match asked {
        Asked::AssumeRole { external_id, .. } if external_id.as_deref() != Some(PREVIOUS_ID) => {
            denied(asked)
        }
        _ => Said::Yes,
    });
    if kind(1).previous.is_none() {
        aws.now(|_| Said::Yes);
    }
    let sink = aws.sink(Arc::new(Registry::default()));
    for which in 1..=4 {
        let outcomes = sink.put_records(&kind(which), records(1)).await;
        assert_eq!(outcomes, Ok(vec![accepted(0)]));
    }
    aws.now(denied);
    assert_eq!(refusal(&sink, &kind(1)).await, Meaning::Ours);
    let start = tokio::time::Instant::now() + Duration::from_secs(60);
    let _watching = watch(&sink);
    sleep(5 * HOUR).await;
    assert_eq!(*sink.standing().borrow(), Standing::MayNotAssume);
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
async fn witnesses_are_asked_at_most_20_times_an_hour() {
    for kind in [customer, rotating] {
        let counts = asked_an_hour(kind).await;
        assert_eq!(counts.len(), 4 * 4);
        assert!(
            counts.iter().all(|count| (10..=20).contains(count)),
            "{counts:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_speaks_against_us_where_too_few_are_left() {
    let (_aws, sink, registry) = refused_together(4).await;
    let _watching = watch(&sink);
    registry
        .deleted
        .lock()
        .unwrap()
        .extend([2, 3].map(IntegrationKey));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*sink.standing().borrow(), Standing::Good);
    let denial = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(refusal(&sink, &customer(1)).await, denial);
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_mended_leave_what_else_is_wrong() {
    let (aws, sink, _) = refused_together(4).await;
    aws.now(|_| Said::No("ExpiredToken"));
    let _watching = watch(&sink);
    sleep(Duration::from_secs(60)).await;
    let refused = Standing::CredentialsRefused {
        code: "ExpiredToken".into(),
    };
    assert_eq!(*sink.standing().borrow(), refused);
    aws.now(denied);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*sink.standing().borrow(), Standing::MayNotAssume);
    aws.now(|_| Said::Yes);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(*sink.standing().borrow(), Standing::Good);
}

#[tokio::test(start_paused = true)]
async fn a_witness_that_is_refused_while_others_work_is_seldom_asked() {
    let (aws, sink, _) = that_worked(60).await;
    let broken = role(60);
    let also = broken.clone();
    aws.now(move |asked| match asked {
        Asked::AssumeRole { role_arn, .. } if *role_arn == also => denied(asked),
        Asked::AssumeRole { role_arn, .. } => {
            let number: i64 = role_arn.rsplit('-').next().unwrap().parse().unwrap();
            match number <= 40 {
                true => denied(asked),
                false => Said::Yes,
            }
        }
        _ => Said::Yes,
    });
    // One after another turns to be refused, and each raises the question.
    for which in 1..=40 {
        advance(Duration::from_secs(6)).await;
        let denial = Meaning::Refused(Reason::AssumeRoleDenied);
        assert_eq!(refusal(&sink, &customer(which)).await, denial);
    }
    let asked = aws.assumed()[&broken].len();
    assert!(asked <= 1 + 6, "{asked} times");
}
