//! A test event, on the very path that delivery takes.

use std::{sync::Arc, time::SystemTime};

use jiff::Timestamp;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Worker;
use crate::{
    domain::{
        delivery::Settlement,
        event::{Format, Time, render_test},
        integration::{Integration, IntegrationKey},
        status::Observation,
        verdict::{TestError, TestReport, TestVerdict, ValidationReport},
    },
    sink::{Content, Record, Sink},
    store::{NextRetry, Observed, Settle, Tells},
};

const MESSAGE: &str = "This is a test event. No intrusion was detected.";

impl<S: Sink> Worker<S> {
    /// Writes a test event with credentials that are assumed anew, and sets the
    /// status by what it meets. Waits behind nothing.
    pub async fn send_test(&self, organization_id: &str) -> Result<TestVerdict, TestError> {
        let shared = &self.shared;
        let before = shared
            .store
            .find(organization_id)
            .ok_or(TestError::NoIntegration)?;
        let key = before.integration.key;
        let exists = || shared.store.exists(key);
        let Some(pass) = shared.gate.enter(key, exists) else {
            return Err(match exists() {
                true => TestError::ShuttingDown,
                false => TestError::NoIntegration,
            });
        };
        let event_id = Uuid::now_v7();
        let integration_id = before.integration.integration_id;
        let record = record(integration_id, &shared.options.format, event_id);
        let report = tokio::select! {
            biased;
            () = pass.cancelled() => return Err(match exists() {
                true => TestError::ShuttingDown,
                false => TestError::NoIntegration,
            }),
            report = shared.sink.test(&before.integration, record) => report,
        };
        drop(pass);
        let observation = observation(&report);
        let passed = observation == Observation::Accepted;
        let (done, settled) = oneshot::channel();
        shared
            .store
            .settle(Settle {
                key,
                settlement: Settlement::default(),
                observed: Some(Observed {
                    version: before.integration.version,
                    at: Timestamp::now(),
                    observation,
                    // A test that fails leaves the back-off of delivery as it is.
                    next_retry: match passed {
                        true => NextRetry::Never,
                        false => NextRetry::Kept,
                    },
                }),
                tells: Tells::Waiting(done),
            })
            .await;
        if settled.await.is_err() {
            return Err(TestError::ShuttingDown);
        }
        if passed {
            shared.lanes().tested(key);
            shared.wake.notify_one();
        }
        let after = shared.store.get(key).ok_or(TestError::NoIntegration)?;
        Ok(TestVerdict {
            event_id,
            report,
            after,
        })
    }
}

impl<S: Sink> Worker<S> {
    /// Tests an integration as it might be configured, writing nothing and setting no
    /// status. Ends where the integration that it would replace is deleted meanwhile.
    pub async fn validate_only(
        &self,
        integration: &Arc<Integration>,
    ) -> Result<ValidationReport, TestError> {
        let shared = &self.shared;
        let key = integration.key;
        let exists = || key == IntegrationKey::UNSTORED || shared.store.exists(key);
        let gone = || match exists() {
            true => TestError::ShuttingDown,
            false => TestError::NoIntegration,
        };
        let pass = shared.gate.enter(key, exists).ok_or_else(gone)?;
        let format = &shared.options.format;
        let record = record(integration.integration_id, format, Uuid::now_v7());
        tokio::select! {
            biased;
            () = pass.cancelled() => Err(gone()),
            report = shared.sink.validate_only(integration, record) => Ok(report),
        }
    }
}

fn record(integration_id: Uuid, format: &Format, event_id: Uuid) -> Record {
    let now = Time::from(SystemTime::now());
    let mut data = Vec::new();
    render_test(integration_id, format, event_id, now, MESSAGE, &mut data);
    Record {
        partition_key: integration_id,
        content: Content::Whole(data.into()),
    }
}

fn observation(report: &TestReport) -> Observation {
    report
        .fault()
        .map_or(Observation::Accepted, Observation::Failed)
}
