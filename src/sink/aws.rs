//! The Sink over AWS: the role's session, then the write.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tracing::{Instrument, Span, field::Empty, info_span};
use uuid::Uuid;

use super::{
    AwsOptions, ExternalIds, Gate, PutRecordsClient, Receipt, Record, RecordOutcome,
    RehearsalReport, Sink, TestReport,
    assume_role::AssumeRole,
    clock::Clock,
    config,
    direct::Direct,
    identity::{Identity, Patience},
    kinesis::Kinesis,
    sessions::{Session, Sessions},
};
use crate::domain::{
    arn::Partition,
    attribution::Standing,
    event::Head,
    integration::Integration,
    status::{Cause, Fault, Meaning, Reason},
};

/// Writes with the AWS SDK. Cheap to clone; clones share connections and sessions.
#[derive(Clone)]
pub struct AwsSink {
    identity: Arc<Identity>,
    sessions: Sessions,
    kinesis: Kinesis,
    clock: Clock,
    /// Writes in the SDK's stead, where it is to.
    direct: Option<Arc<Direct>>,
}

impl AwsSink {
    /// Loads this service's own AWS configuration: credentials, region and endpoints
    /// by the [default chain], or what [`AwsOptions::stand_in`] gives. It calls no AWS
    /// service, and missing credentials show only once a role is to be assumed.
    ///
    /// [default chain]: https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html
    pub async fn new(options: AwsOptions, external_ids: Arc<dyn ExternalIds>) -> Self {
        let sdk = config::load(&options).await;
        Self::with_config(&sdk, &options, external_ids)
    }

    /// Takes a loaded configuration of the SDK.
    pub(super) fn with_config(
        sdk: &aws_config::SdkConfig,
        options: &AwsOptions,
        external_ids: Arc<dyn ExternalIds>,
    ) -> Self {
        let clock = Clock::default();
        let assume_role = AssumeRole::new(sdk, options, external_ids, clock.clone());
        let identity = Arc::new(Identity::new(assume_role, Gate::default()));
        Self {
            sessions: Sessions::new(Arc::clone(&identity), options),
            identity,
            kinesis: Kinesis::new(sdk, options.attempt_timeout, clock.clone()),
            clock: clock.clone(),
            direct: match options.put_records_client {
                PutRecordsClient::Sdk => None,
                PutRecordsClient::Direct => {
                    let connector = config::connector(options);
                    let proxies = config::proxies(options);
                    let direct =
                        Direct::new(sdk, connector, proxies, options.attempt_timeout, clock);
                    Some(Arc::new(direct))
                }
            },
        }
    }

    /// Takes in whose roles worked before this process began, and how long ago, the newest
    /// last. Where all are refused now, that speaks against this service, not against its
    /// customers.
    pub fn recall(&self, worked: Vec<(Arc<Integration>, Duration)>) {
        self.identity.recall(worked);
    }

    async fn write(
        &self,
        session: &Session,
        integration: &Integration,
        records: &[Record],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let stream = &integration.stream_arn;
        let head = Head::new(integration.integration_id);
        let answer = match &self.direct {
            Some(direct) => direct.put(session, stream, &head, records).await,
            None => Box::pin(self.kinesis.put(session, stream, &head, records)).await,
        };
        self.clock.report();
        answer
    }

    async fn put(
        &self,
        integration: &Arc<Integration>,
        records: &[Record],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let session = self.sessions.get(integration).await?;
        let answer = self.write(&session, integration, records).await;
        match credentials_fault(&answer) {
            None => {
                self.note_session(integration, &answer);
                answer
            }
            Some(fault) if fault.cause == Cause::NotBuilt => {
                Err(self.identity.judge_not_built(integration, fault.clone()))
            }
            Some(_) => Box::pin(self.put_again(integration, records, &session, answer)).await,
        }
    }

    /// Writes with another session than the one that was refused.
    async fn put_again(
        &self,
        integration: &Arc<Integration>,
        records: &[Record],
        refused: &Arc<Session>,
        answer: Result<Vec<RecordOutcome>, Fault>,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        self.sessions.discard(integration, refused).await;
        // Where some records were accepted, the caller sends what remains.
        if answer.as_ref().is_ok_and(|outcomes| any_accepted(outcomes)) {
            return answer;
        }
        let session = self.sessions.get(integration).await?;
        let answer = self.write(&session, integration, records).await;
        self.judge_new_session(integration, &session, answer, Patience::Waits)
            .await
    }

    /// The session was just assumed; where it is refused all the same, it is judged whose
    /// fault that is.
    async fn judge_new_session(
        &self,
        integration: &Arc<Integration>,
        session: &Session,
        answer: Result<Vec<RecordOutcome>, Fault>,
        patience: Patience,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        match credentials_fault(&answer) {
            Some(fault) if fault.cause == Cause::NotBuilt => {
                Err(self.identity.judge_not_built(integration, fault.clone()))
            }
            Some(fault) => {
                let fault = fault.clone();
                let identity = &self.identity;
                Err(identity
                    .judge_session(integration, session, fault, patience)
                    .await)
            }
            None => {
                self.note_session(integration, &answer);
                answer
            }
        }
    }

    /// Takes in that AWS knew the session, where the answer shows it: an outage or a time-out
    /// shows nothing.
    fn note_session(&self, integration: &Integration, answer: &Result<Vec<RecordOutcome>, Fault>) {
        let known = match answer {
            Ok(outcomes) => any_accepted(outcomes),
            Err(fault) => matches!(
                fault.meaning(),
                Meaning::Refused(
                    Reason::WriteDenied
                        | Reason::KmsDenied
                        | Reason::KmsUnavailable
                        | Reason::StreamNotFound
                )
            ),
        };
        if known {
            self.identity.session_passed(integration.key);
        }
    }

    /// Writes a test record, again where it was signed by a wrong clock.
    async fn write_test(
        &self,
        session: &Session,
        integration: &Arc<Integration>,
        record: Record,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let record = [record];
        let before = self.clock.offset_ms();
        let answer = self.write(session, integration, &record).await;
        match self.clock.is_off_since(before) && credentials_fault(&answer).is_some() {
            true => self.write(session, integration, &record).await,
            false => answer,
        }
    }

    async fn test_anew(&self, integration: &Arc<Integration>, record: Record) -> TestReport {
        let start = Instant::now();
        let (session, proof, is_refused) = match self.sessions.renew(integration).await {
            Ok(renewed) => renewed,
            Err(fault) => {
                return TestReport {
                    assume_role: Err(fault),
                    external_id: None,
                    write: None,
                    latency: start.elapsed(),
                };
            }
        };
        let with = session.with();
        let mut report = TestReport {
            assume_role: Ok(with),
            external_id: Some(proof),
            write: None,
            latency: Duration::ZERO,
        };
        if !is_refused {
            let answer = self.write_test(&session, integration, record).await;
            let answer = self
                .judge_new_session(integration, &session, answer, Patience::AtOnce)
                .await;
            report.write = Some(answer.and_then(receipt));
        }
        report.latency = start.elapsed();
        report
    }

    async fn rehearse_anew(
        &self,
        integration: &Arc<Integration>,
        record: Record,
    ) -> RehearsalReport {
        let session = match self.identity.rehearse(integration).await {
            Ok(session) => session,
            Err(fault) => {
                return RehearsalReport {
                    assume_role: Err(fault),
                    external_id: None,
                    write: None,
                };
            }
        };
        let head = Head::new(integration.integration_id);
        let (proof, answer) = tokio::join!(
            self.identity.prove_external_id(integration),
            self.kinesis
                .rehearse(&session, &integration.stream_arn, &head, record),
        );
        let answer = match answer {
            Err(fault) if fault.meaning() == Meaning::SessionInvalid => {
                Err(self.identity.judge_rehearsed(&session, fault).await)
            }
            answer => answer,
        };
        RehearsalReport {
            assume_role: Ok(session.with()),
            external_id: Some(proof),
            write: Some(answer),
        }
    }
}

impl Sink for AwsSink {
    async fn put_records(
        &self,
        integration: &Arc<Integration>,
        records: Vec<Record>,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let span = info_span!(
            "put_records",
            organization_id = integration.organization_id.as_str(),
            records = records.len(),
            outcome = Empty,
        );
        async {
            let answer = self.put(integration, &records).await;
            if let Some(fault) = first_fault(&answer) {
                Span::current().record("outcome", fault.code());
            }
            answer
        }
        .instrument(span)
        .await
    }

    async fn test(&self, integration: &Arc<Integration>, record: Record) -> TestReport {
        let span = info_span!(
            "test_record",
            organization_id = integration.organization_id.as_str(),
            outcome = Empty,
        );
        async {
            let report = self.test_anew(integration, record).await;
            let fault = report.fault();
            let outcome = fault.as_ref().map_or("Accepted", Fault::code);
            Span::current().record("outcome", outcome);
            report
        }
        .instrument(span)
        .await
    }

    async fn rehearse(&self, integration: &Arc<Integration>, record: Record) -> RehearsalReport {
        let span = info_span!(
            "rehearse_record",
            organization_id = integration.organization_id.as_str(),
        );
        self.rehearse_anew(integration, record)
            .instrument(span)
            .await
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.identity.standing()
    }

    fn partition(&self) -> Option<Partition> {
        self.identity.partition()
    }

    async fn watch_standing(&self) {
        self.identity.watch().await;
    }

    fn gate(&self) -> &Gate {
        self.identity.gate()
    }

    fn forget(&self, integration_id: Uuid) {
        self.sessions.forget(integration_id);
    }
}

/// Why the request, or a record of it, was refused for its credentials, or could not be made.
fn credentials_fault(answer: &Result<Vec<RecordOutcome>, Fault>) -> Option<&Fault> {
    let invalid = |fault: &&Fault| {
        fault.meaning() == Meaning::SessionInvalid || fault.cause == Cause::NotBuilt
    };
    match answer {
        Err(fault) => Some(fault).filter(invalid),
        Ok(outcomes) => outcomes.iter().find_map(|outcome| match outcome {
            RecordOutcome::Failed(fault) => Some(fault).filter(invalid),
            RecordOutcome::Accepted { .. } => None,
        }),
    }
}

fn any_accepted(outcomes: &[RecordOutcome]) -> bool {
    let accepted = |outcome: &RecordOutcome| matches!(outcome, RecordOutcome::Accepted { .. });
    outcomes.iter().any(accepted)
}

/// What a span tells of an answer that is not all good.
fn first_fault(answer: &Result<Vec<RecordOutcome>, Fault>) -> Option<&Fault> {
    match answer {
        Err(fault) => Some(fault),
        Ok(outcomes) => outcomes.iter().find_map(|outcome| match outcome {
            RecordOutcome::Failed(fault) => Some(fault),
            RecordOutcome::Accepted { .. } => None,
        }),
    }
}

/// The receipt of a request of one record, for which [`Kinesis::put`] gives one outcome.
fn receipt(outcomes: Vec<RecordOutcome>) -> Result<Receipt, Fault> {
    match outcomes.into_iter().next() {
        Some(RecordOutcome::Accepted {
            shard_id,
            sequence_number,
        }) => Ok(Receipt {
            shard_id: (*shard_id).into(),
            sequence_number,
        }),
        Some(RecordOutcome::Failed(fault)) => Err(fault),
        None => Err(super::fault::unlike_aws(
            crate::domain::status::Stage::Write,
            200,
            None,
        )),
    }
}
