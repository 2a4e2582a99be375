//! The service's own identity, apart from the customers'.

use std::time::Duration;

use aws_stand_in::vendor_credentials;
use siem_client::v1::{self, StatusReason};
use tonic_health::pb::health_check_response::ServingStatus;

use super::Ground;
use crate::harness::{Customer, Load, age_deliveries};

/// The environment's credentials are the service's own: without them no customer is
/// blamed, and events wait.
#[tokio::test(flavor = "multi_thread")]
async fn without_own_credentials_events_wait_and_nobody_is_blamed() {
    let ground = Ground::new().await;
    ground
        .aws
        .put_credentials({
            let mut own = vendor_credentials();
            own.secret_access_key = "another-secret".to_owned();
            own
        })
        .unwrap();
    let process = ground.start().await;
    process.api.configure(&ground.customer).await;
    let mut load = Load::new("acme", 1, 3);
    process.api.publish(&load.events(3)).await;
    let status = process
        .api
        .until_status("acme", |status| !status.aws_error_code.is_empty())
        .await;
    assert_eq!(status.reason(), StatusReason::Unspecified);
    assert_eq!(status.status(), v1::Status::Unknown);
    let own = vendor_credentials();
    ground.aws.put_credentials(own).unwrap();
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, 3);
}

/// As after a deployment with another identity, which may not assume the roles.
#[tokio::test(flavor = "multi_thread")]
async fn roles_that_worked_before_a_restart_are_witnesses_after_it() {
    let ground = Ground::new().await;
    let process = ground.start().await;
    let customers: Vec<Customer> = (0..4)
        .map(|number| {
            let organization_id = format!("customer-{number}");
            let account = 300_000_000_000 + number;
            let customer = Customer::in_account(&organization_id, account, "eu-west-1");
            customer.make_role(&ground.aws);
            customer.make_stream(&ground.aws, 1);
            customer
        })
        .collect();
    let mut loads = Vec::new();
    for customer in &customers {
        process.api.configure(customer).await;
        let mut load = Load::new(&customer.organization_id, 1, 3);
        process.api.publish(&load.events(1)).await;
        process.api.until_delivered(&customer.organization_id).await;
        loads.push(load);
    }
    process.terminate().await;
    process.ended().await;

    // It was broken for hours before somebody tried a restart.
    age_deliveries(ground.dir.path(), Duration::from_secs(3 * 3600)).await;
    let mut own = vendor_credentials();
    let policy = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"sts:AssumeRole","Resource":"*"}]}"#;
    own.policy = Some(policy.to_owned());
    ground.aws.put_credentials(own).unwrap();
    let process = ground.start_with(&["--retry-first-ms", "200"]).await;
    let mut health = process.api.health("delivery").await;
    for (customer, load) in customers.iter().zip(&mut loads) {
        process.api.publish(&load.events(1)).await;
        let told = |status: &v1::IntegrationStatus| status.aws_error_code == "AccessDenied";
        let status = process
            .api
            .until_status(&customer.organization_id, told)
            .await;
        assert_eq!(status.status(), v1::Status::Active);
        assert_eq!(status.reason(), StatusReason::Unspecified);
    }
    health.until(ServingStatus::NotServing).await;
    ground.aws.put_credentials(vendor_credentials()).unwrap();
    health.until(ServingStatus::Serving).await;
    for customer in &customers {
        let counts = process.api.until_delivered(&customer.organization_id).await;
        assert_eq!(counts.delivered, 2);
    }
}
