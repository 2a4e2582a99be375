//! The printed policies, enforced by the stand-in against the real SDK.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::{
    domain::{
        integration::{Integration, IntegrationId, SealedExternalId},
        organization::OrganizationId,
        status::{Fault, Stage},
    },
    gate::Gate,
    sink::{
        AwsOptions, AwsSink, Content, ExternalIds, Record, RecordOutcome, Sink as _, StandInAccess,
        Unreadable,
    },
};
use aws_stand_in::{Options, RoleSpec, StandIn, StreamSpec, vendor_credentials};

struct FixedExternalId(&'static str);

impl ExternalIds for FixedExternalId {
    fn open(&self, _: &Integration) -> Result<ExternalId, Unreadable> {
        Ok(ExternalId::parse(self.0.to_owned()).unwrap())
    }

    fn open_previous(&self, _: &Integration) -> Option<Result<ExternalId, Unreadable>> {
        None
    }

    fn current_accepted(&self, _: &Integration) {}

    fn is_current(&self, _: &Integration) -> bool {
        true
    }
}

/// The account of a customer that applied the printed policies.
struct Customer {
    stand_in: StandIn,
    onboarding: Onboarding,
}

impl Customer {
    async fn with(inputs: Inputs) -> Self {
        let stand_in = StandIn::start(Options::default()).await.unwrap();
        let onboarding = inputs.check().unwrap();
        let control = stand_in.control();
        let stream = StreamSpec {
            kms_key_arn: inputs.kms_key_arn,
            ..StreamSpec::new(onboarding.stream().as_str(), 1)
        };
        control.create_stream(stream).unwrap();
        let role = RoleSpec::new(
            onboarding.role().as_str(),
            onboarding.text(&trust_policy()),
            onboarding.text(&Document::PermissionPolicy),
        );
        control.put_role(role).unwrap();
        Self {
            stand_in,
            onboarding,
        }
    }

    /// Writes three records as the service would with this external ID.
    async fn write(
        &self,
        external_id: &'static str,
        stream: &StreamArn,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let own = vendor_credentials();
        let options = AwsOptions {
            attempt_timeout: Duration::from_secs(5),
            stand_in: Some(StandInAccess {
                url: self.stand_in.url(),
                region: "us-east-1".to_owned(),
                access_key_id: own.access_key_id,
                secret_access_key: own.secret_access_key.into(),
            }),
            ..AwsOptions::default()
        };
        let sink = AwsSink::new(
            options,
            Arc::new(FixedExternalId(external_id)),
            Gate::default(),
        )
        .await;
        let records = (0..3).map(|index| Record {
            partition_key: Uuid::from_u128(index as u128),
            content: Content::Whole(bytes::Bytes::from_static(b"{}\n")),
        });
        sink.put_records(&self.integration(stream), records.collect(), &[])
            .await
    }

    fn integration(&self, stream: &StreamArn) -> Arc<Integration> {
        Arc::new(Integration {
            organization_id: OrganizationId::new("acme").unwrap(),
            integration_id: IntegrationId(Uuid::from_u128(7)),
            stream_arn: stream.clone(),
            role_arn: self.onboarding.role().clone(),
            external_id: SealedExternalId {
                key_id: "k".into(),
                bytes: Box::default(),
            },
            external_id_hint: "seen".into(),
            external_id_set_at: Timestamp::UNIX_EPOCH,
            previous: None,
            version: 1,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        })
    }

    async fn expect_delivery(&self) {
        let stream = self.onboarding.stream();
        let outcomes = self.write(EXTERNAL_ID, stream).await.unwrap();
        let accepted = |outcome: &RecordOutcome| matches!(outcome, RecordOutcome::Accepted { .. });
        assert!(
            outcomes.len() == 3 && outcomes.iter().all(accepted),
            "{outcomes:?}"
        );
        let arrived = self.stand_in.control().stream(stream.as_str()).unwrap();
        assert_eq!(arrived.accepted, 3);
    }

    async fn refusal(&self, external_id: &'static str, stream: &StreamArn) -> (Stage, String) {
        let fault = self.write(external_id, stream).await.unwrap_err();
        (fault.stage, fault.code().to_owned())
    }
}

#[tokio::test]
async fn only_the_external_id_gives_access_and_only_to_the_stream() {
    let customer = Customer::with(inputs()).await;
    let stream = customer.onboarding.stream();
    let denied = (Stage::AssumeRole, "AccessDenied".to_owned());
    assert_eq!(customer.refusal("another-one", stream).await, denied);
    customer.expect_delivery().await;

    let other = StreamArn::parse(&format!("{stream}-2")).unwrap();
    let spec = StreamSpec::new(other.as_str(), 1);
    customer.stand_in.control().create_stream(spec).unwrap();
    let denied = (Stage::Write, "AccessDeniedException".to_owned());
    assert_eq!(customer.refusal(EXTERNAL_ID, &other).await, denied);
}

#[tokio::test]
async fn the_account_may_be_the_principal() {
    for principal in ["111111111111", "arn:aws:iam::111111111111:root"] {
        let by_account = Inputs {
            principal: Some(principal.to_owned()),
            ..inputs()
        };
        Customer::with(by_account).await.expect_delivery().await;
    }
    let stranger = Inputs {
        principal: Some("333333333333".to_owned()),
        ..inputs()
    };
    let customer = Customer::with(stranger).await;
    let denied = (Stage::AssumeRole, "AccessDenied".to_owned());
    let stream = customer.onboarding.stream();
    assert_eq!(customer.refusal(EXTERNAL_ID, stream).await, denied);
}

#[tokio::test]
async fn a_stream_under_the_customers_key_can_be_written() {
    Customer::with(under_a_key()).await.expect_delivery().await;

    // Without the permission for the key it is refused.
    let customer = Customer::with(under_a_key()).await;
    let without_key = inputs().check().unwrap();
    let role = RoleSpec::new(
        customer.onboarding.role().as_str(),
        customer.onboarding.text(&trust_policy()),
        without_key.text(&Document::PermissionPolicy),
    );
    customer.stand_in.control().put_role(role).unwrap();
    let denied = (Stage::Write, "KMSAccessDeniedException".to_owned());
    let stream = customer.onboarding.stream();
    assert_eq!(customer.refusal(EXTERNAL_ID, stream).await, denied);
}
