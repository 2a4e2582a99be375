//! Test events, which take the same path to AWS as delivery.

use std::{sync::Arc, time::SystemTime};

use jiff::Timestamp;
use uuid::Uuid;

use super::Worker;
use crate::{
    domain::{
        event::{Format, Time, render_test},
        integration::{Integration, IntegrationId},
        status::Observation,
        verdict::{TestError, TestVerdict, ValidationReport},
    },
    sink::{Content, Record, Sink},
    store::{NextRetry, Observed},
};

const MESSAGE: &str = "This is a test event. No intrusion was detected.";

impl<S: Sink> Worker<S> {
    /// Writes a test event with newly assumed credentials, and sets the status by the result.
    /// Needs no permit, and waits for nothing that is pending.
    pub async fn send_test(&self, organization_id: &str) -> Result<TestVerdict, TestError> {
        let shared = &self.shared;
        let before = shared.store.find(organization_id);
        let integration = before.ok_or(TestError::NoIntegration)?.integration;
        let id = integration.integration_id;
        let is_allowed = || shared.store.may_call(id);
        let event_id = Uuid::now_v7();
        let record = record(id, &shared.options.format, event_id);
        let began_at = Timestamp::now();
        let test = shared.sink.test(&integration, record);
        let report = self.admitted(id, is_allowed, test).await?;
        let observation = match report.fault() {
            None => Observation::Accepted,
            Some(fault) => Observation::Failed(fault),
        };
        let accepted = observation == Observation::Accepted;
        let observed = Observed {
            integration_id: id,
            version: integration.version,
            began_at,
            at: Timestamp::now(),
            observation,
            // A test that fails does not change the backoff of delivery.
            next_retry: match accepted {
                true => NextRetry::None,
                false => NextRetry::Unchanged,
            },
        };
        if let Err(error) = shared.store.observe(observed).await {
            tracing::error!(%error, integration_id = %id, "cannot record a test");
            return Err(TestError::ShuttingDown);
        }
        if accepted {
            shared.lanes().tested(id);
            shared.wake.notify_one();
        }
        let after = shared.store.get(id).ok_or(TestError::NoIntegration)?;
        Ok(TestVerdict {
            event_id,
            report,
            after,
        })
    }

    /// Tests a configuration that is not stored, writing nothing and setting no status. Ends if
    /// the integration that it would replace is deleted meanwhile.
    pub async fn validate_only(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<ValidationReport, TestError> {
        let shared = &self.shared;
        let id = integration.integration_id;
        // The first version replaces none.
        let is_allowed = || integration.version == 1 || shared.store.may_call(id);
        let record = record(id, &shared.options.format, Uuid::now_v7());
        let validation = shared.sink.validate_only(integration, record);
        self.admitted(id, is_allowed, validation).await
    }

    /// Makes a call that the gate admits.
    async fn admitted<T>(
        &self,
        id: IntegrationId,
        is_allowed: impl Fn() -> bool,
        call: impl Future<Output = T>,
    ) -> Result<T, TestError> {
        let answer = self.shared.gate.call(id, &is_allowed, call).await;
        answer.ok_or_else(|| match is_allowed() {
            true => TestError::ShuttingDown,
            false => TestError::NoIntegration,
        })
    }
}

fn record(id: IntegrationId, format: &Format, event_id: Uuid) -> Record {
    let now = Time::from(SystemTime::now());
    let mut data = Vec::new();
    render_test(id.0, format, event_id, now, MESSAGE, &mut data);
    Record {
        partition_key: id.0,
        content: Content::Whole(data.into()),
    }
}
