//! Faults of the service's own identity.

use std::time::Duration;

use aws_stand_in::vendor_credentials;
use siem_client::v1::{self, StatusReason};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::harness::{
    Customer, Load, ProcessEnv, backdate_deliveries, own_credentials_without_assume_role,
};

/// The credentials in the environment are the service's own. While they are wrong, no status blames a
/// customer, and events wait.
#[tokio::test(flavor = "multi_thread")]
async fn with_wrong_own_credentials_events_wait_and_no_customer_is_blamed() {
    let env = ProcessEnv::new().await;
    let mut own = vendor_credentials();
    own.secret_access_key = "another-secret".to_owned();
    env.aws.put_credentials(own).unwrap();
    let process = env.start().await;
    process.api.configure(&env.customer).await;
    let mut load = Load::new("acme", 1, 3);
    process.api.publish(&load.events(3)).await;
    let status = process
        .api
        .until_status("acme", |status| !status.aws_error_code.is_empty())
        .await;
    assert_eq!(status.reason(), StatusReason::Unspecified);
    assert_eq!(status.status(), v1::Status::Unknown);
    let own = vendor_credentials();
    env.aws.put_credentials(own).unwrap();
    let counts = process.api.until_delivered("acme").await;
    assert_eq!(counts.delivered, 3);
}

/// Simulates a deployment with another identity, which may not assume the customers' roles.
#[tokio::test(flavor = "multi_thread")]
async fn roles_that_worked_before_a_restart_are_evidence_after_it() {
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let customers: Vec<Customer> = (0..4)
        .map(|number| {
            let organization_id = format!("customer-{number}");
            let account = 300_000_000_000 + number;
            let customer = Customer::in_account(&organization_id, account, "eu-west-1");
            customer.make_role(&env.aws);
            customer.make_stream(&env.aws, 1);
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
    process.stop().await;

    // Roles last worked hours before the restart.
    backdate_deliveries(env.dir.path(), Duration::from_secs(3 * 3600)).await;
    let own = own_credentials_without_assume_role();
    env.aws.put_credentials(own).unwrap();
    let process = env.start_with(&["--retry-first-ms", "200"]).await;
    let mut health = process.api.health("delivery").await;
    for (customer, load) in customers.iter().zip(&mut loads) {
        process.api.publish(&load.events(1)).await;
        let denied = |status: &v1::IntegrationStatus| status.aws_error_code == "AccessDenied";
        let status = process
            .api
            .until_status(&customer.organization_id, denied)
            .await;
        assert_eq!(status.status(), v1::Status::Active);
        assert_eq!(status.reason(), StatusReason::Unspecified);
    }
    health.until(ServingStatus::NotServing).await;
    env.aws.put_credentials(vendor_credentials()).unwrap();
    health.until(ServingStatus::Serving).await;
    for customer in &customers {
        let counts = process.api.until_delivered(&customer.organization_id).await;
        assert_eq!(counts.delivered, 2);
    }
}
