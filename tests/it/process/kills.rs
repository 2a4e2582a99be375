//! Kills at the first start, and while integrations come and go.

use std::{collections::HashMap, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1;
use tonic::Code;

use super::Ground;
use crate::harness::{Api, Customer, Load, Process, arrive, check_whole, knob, within};

/// The schema and the key are made at the first start, and a kill leaves no half of them.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_the_first_start_leave_nothing_in_the_way() {
    let mut chance = StdRng::seed_from_u64(knob("SEED", 90));
    for _ in 0..3 {
        let ground = Ground::new().await;
        for _ in 0..8 {
            let url = ground.stand_in.url();
            let moment = Duration::from_micros(chance.random_range(0..80_000));
            Process::start_and_kill(ground.dir.path(), &url, moment).await;
        }
        let process = ground.start().await;
        let integration = process.api.configure(&ground.customer).await;
        let mut load = Load::new("acme", 2, 91);
        process.api.publish(&load.events(10)).await;
        process.api.until_delivered("acme").await;
        let arrived = arrive(&ground.aws, &ground.customer.stream_arn, 10).await;
        check_whole(&arrived, &integration.integration_id, &load.made);
    }
}

/// What is known of an organization that comes and goes.
#[derive(Default)]
struct Known {
    /// What the last answer said: the integration, or that there is none.
    now: Option<v1::Integration>,
    /// The last change was asked for and not answered.
    open: bool,
    /// Every integration that a Delete was answered for.
    deleted: Vec<String>,
}

/// Creates, fills and deletes one organization's integration until the server is gone.
async fn come_and_go(api: &Api, customer: &Customer, known: &mut Known, load: &mut Load) {
    loop {
        known.open = true;
        let Ok(integration) = api.try_configure(customer.request()).await else {
            return;
        };
        known.now = Some(integration);
        // More than one transaction removes.
        for _ in 0..20 {
            let events = load.events(1);
            if api.try_publish(events).await.is_err() {
                known.open = false;
                return;
            }
        }
        let Ok(_counts) = api.delete(&customer.organization_id, true).await else {
            return;
        };
        let gone = known.now.take().map(|gone| gone.integration_id);
        known.deleted.extend(gone);
        known.open = false;
    }
}

/// What a new process says of it. False where it is gone already.
async fn check(api: &Api, customer: &Customer, known: &mut Known) -> bool {
    let found = match api.try_get(&customer.organization_id).await {
        Ok(integration) => Some(integration),
        Err(status) if status.code() == Code::NotFound => None,
        Err(_gone) => return false,
    };
    if let Some(found) = &found {
        assert!(
            !known.deleted.contains(&found.integration_id),
            "it came back"
        );
        assert_eq!(found.kinesis_stream_arn, customer.stream_arn);
    }
    let id = |one: &Option<v1::Integration>| one.as_ref().map(|one| one.integration_id.clone());
    assert!(
        known.open || id(&found) == id(&known.now),
        "an answer was lost"
    );
    if known.open && found.is_none() {
        known.deleted.extend(id(&known.now));
    }
    known.now = found;
    known.open = false;
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_keep_every_answered_configure_and_delete() {
    let ground = Ground::new().await;
    let mut chance = StdRng::seed_from_u64(knob("SEED", 92));
    let customers: Vec<Customer> = (0..4).map(|n| Customer::new(&format!("org-{n}"))).collect();
    let mut known: Vec<Known> = customers.iter().map(|_| Known::default()).collect();
    let mut loads: Vec<Load> = (0..4)
        .map(|n| Load::new(&format!("org-{n}"), 2, n))
        .collect();
    for customer in &customers {
        customer.make_role(&ground.aws);
        customer.make_stream(&ground.aws, 1);
    }
    for _ in 0..20 {
        let process = ground.start().await;
        let api = process.api.clone();
        let parties = customers.iter().zip(&mut known).zip(&mut loads);
        let coming_and_going = parties.map(|((customer, known), load)| {
            let api = api.clone();
            async move {
                if check(&api, customer, known).await {
                    come_and_go(&api, customer, known, load).await;
                }
            }
        });
        let moment = Duration::from_micros(chance.random_range(0..150_000));
        let kill = async {
            tokio::time::sleep(moment).await;
            process.kill().await;
        };
        let all = futures_util::future::join_all(coming_and_going);
        within("the end of the process", async { tokio::join!(all, kill) }).await;
    }
    let process = ground.start().await;
    for (customer, known) in customers.iter().zip(&mut known) {
        assert!(check(&process.api, customer, known).await);
        // What comes next has nothing of the old.
        process
            .api
            .delete(&customer.organization_id, true)
            .await
            .unwrap();
        let stored = || ground.aws.stream(&customer.stream_arn).unwrap().accepted;
        let before = stored();
        let integration = process.api.configure(customer).await;
        let mut load = Load::new(&customer.organization_id, 2, 95);
        process.api.publish(&load.events(5)).await;
        process.api.until_delivered(&customer.organization_id).await;
        assert_eq!(stored(), before + 5);
        let records = ground
            .aws
            .records(&customer.stream_arn, before, 100)
            .unwrap();
        let mut sequences: HashMap<String, Vec<u64>> = HashMap::new();
        for record in records {
            let json: serde_json::Value = serde_json::from_slice(&record.data).unwrap();
            let owner = json["integrationid"].as_str().unwrap().to_owned();
            let sequence = json["sequence"].as_str().unwrap().parse().unwrap();
            sequences.entry(owner).or_default().push(sequence);
        }
        let whole = HashMap::from([(integration.integration_id, vec![1, 2, 3, 4, 5])]);
        assert_eq!(sequences, whole);
    }
}
