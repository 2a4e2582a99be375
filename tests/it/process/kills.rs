//! Kills at the first start, and while integrations are created and deleted.

use std::{collections::HashMap, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};
use siem_client::v1;
use tonic::Code;

use crate::harness::{
    Api, Customer, Load, Process, ProcessEnv, check_complete, parameter, read_events, with_timeout,
};

/// The first start creates the schema and the key; a kill must not leave them incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_the_first_start_do_not_prevent_the_next_start() {
    let mut random = StdRng::seed_from_u64(parameter("SEED", 90));
    for _ in 0..3 {
        let env = ProcessEnv::new().await;
        for _ in 0..8 {
            let url = env.stand_in.url();
            let time = Duration::from_micros(random.random_range(0..80_000));
            Process::start_and_kill(env.dir.path(), &url, time).await;
        }
        let process = env.start().await;
        let integration = process.api.configure(&env.customer).await;
        let mut load = Load::new("acme", 2, 91);
        process.api.publish(&load.events(10)).await;
        process.api.until_delivered("acme").await;
        let arrived = read_events(&env.aws, &env.customer.stream_arn, 10).await;
        check_complete(&arrived, &integration.integration_id, &load.made);
    }
}

/// Known state of an organization whose integration is created and deleted.
#[derive(Default)]
struct Known {
    /// The integration by the last answer; None after a Delete.
    now: Option<v1::Integration>,
    /// Whether the last call got no answer.
    in_doubt: bool,
    /// Id of every integration whose Delete was answered.
    deleted: Vec<String>,
}

/// Configures, publishes to and deletes one organization's integration until the server is gone.
async fn configure_and_delete(api: &Api, customer: &Customer, known: &mut Known, load: &mut Load) {
    loop {
        known.in_doubt = true;
        let Ok(integration) = api.try_configure(customer.request()).await else {
            return;
        };
        known.now = Some(integration);
        // More chunks than one transaction deletes.
        for _ in 0..20 {
            let events = load.events(1);
            if api.try_publish(events).await.is_err() {
                known.in_doubt = false;
                return;
            }
        }
        let Ok(_counts) = api.delete(&customer.organization_id, true).await else {
            return;
        };
        let gone = known.now.take().map(|gone| gone.integration_id);
        known.deleted.extend(gone);
        known.in_doubt = false;
    }
}

/// Checks what a new process has kept. Returns false if the process is already gone.
async fn check(api: &Api, customer: &Customer, known: &mut Known) -> bool {
    let found = match api.try_get(&customer.organization_id).await {
        Ok(integration) => Some(integration),
        Err(status) if status.code() == Code::NotFound => None,
        Err(_gone) => return false,
    };
    if let Some(found) = &found {
        assert!(
            !known.deleted.contains(&found.integration_id),
            "a deleted integration exists again"
        );
        assert_eq!(found.kinesis_stream_arn, customer.stream_arn);
    }
    let id = |integration: &Option<v1::Integration>| {
        let integration = integration.as_ref();
        integration.map(|integration| integration.integration_id.clone())
    };
    assert!(
        known.in_doubt || id(&found) == id(&known.now),
        "an answer was lost"
    );
    if known.in_doubt && found.is_none() {
        known.deleted.extend(id(&known.now));
    }
    known.now = found;
    known.in_doubt = false;
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_keep_every_answered_configure_and_delete() {
    let env = ProcessEnv::new().await;
    let mut random = StdRng::seed_from_u64(parameter("SEED", 92));
    let customers: Vec<Customer> = (0..4).map(|n| Customer::new(&format!("org-{n}"))).collect();
    let mut known: Vec<Known> = customers.iter().map(|_| Known::default()).collect();
    let mut loads: Vec<Load> = (0..4)
        .map(|n| Load::new(&format!("org-{n}"), 2, n))
        .collect();
    for customer in &customers {
        customer.make_role(&env.aws);
        customer.make_stream(&env.aws, 1);
    }
    for _ in 0..20 {
        let process = env.start().await;
        let api = process.api.clone();
        let all = customers.iter().zip(&mut known).zip(&mut loads);
        let calls = all.map(|((customer, known), load)| {
            let api = api.clone();
            async move {
                if check(&api, customer, known).await {
                    configure_and_delete(&api, customer, known, load).await;
                }
            }
        });
        let time = Duration::from_micros(random.random_range(0..150_000));
        let kill = async {
            tokio::time::sleep(time).await;
            process.kill().await;
        };
        let all = futures_util::future::join_all(calls);
        with_timeout("the end of the process", async { tokio::join!(all, kill) }).await;
    }
    let process = env.start().await;
    for (customer, known) in customers.iter().zip(&mut known) {
        assert!(check(&process.api, customer, known).await);
        // A new integration has nothing of the old one.
        process
            .api
            .delete(&customer.organization_id, true)
            .await
            .unwrap();
        let stored = || env.aws.stream(&customer.stream_arn).unwrap().accepted;
        let before = stored();
        let integration = process.api.configure(customer).await;
        let mut load = Load::new(&customer.organization_id, 2, 95);
        process.api.publish(&load.events(5)).await;
        process.api.until_delivered(&customer.organization_id).await;
        assert_eq!(stored(), before + 5);
        let records = env.aws.records(&customer.stream_arn, before, 100).unwrap();
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
