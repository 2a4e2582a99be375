//! The Sink that calls AWS: assumes the role, then writes.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};
use tracing::{Instrument, Span, field::Empty, info_span};

use super::{
    AwsOptions, ExternalIds, PutRecordsClient, Receipt, Record, RecordOutcome, Sink, TestReport,
    ValidationReport,
    assume_role::AssumeRole,
    clock::Clock,
    config,
    direct::Direct,
    identity::{Identity, Urgency},
    kinesis::Kinesis,
    pace::Pace,
    sessions::{Session, Sessions},
};
use crate::{
    domain::{
        arn::Partition,
        attribution::IdentityState,
        event::RecordHead,
        integration::{Integration, IntegrationId},
        status::{Cause, Fault, Meaning, Operation, Reason, Stage},
        trace::TraceContext,
    },
    gate::Gate,
    metrics,
    telemetry::link_traces,
};

/// Name of the attribute with AWS's request id.
const REQUEST_ID: &str = "aws.request_id";
/// Calls of a test: AssumeRole and the write. Probes are counted by themselves.
const TEST_CALLS: u32 = 2;

/// Writes to Kinesis. Cheap to clone; clones share connections and sessions.
#[derive(Clone)]
pub struct AwsSink {
    identity: Arc<Identity>,
    sessions: Sessions,
    kinesis: Kinesis,
    clock: Clock,
    pace: Arc<Pace>,
    /// Writes instead of the SDK, if [`AwsOptions::put_records_client`] says so.
    direct: Option<Arc<Direct>>,
}

impl AwsSink {
    /// Loads this service's own AWS configuration: credentials, region and endpoints
    /// by the [default chain], or by [`AwsOptions::stand_in`]. Calls no AWS service; missing
    /// credentials show only once a role is assumed.
    ///
    /// The sink's own calls, such as renewals of sessions, pass `gate`; callers of the sink
    /// enter it first.
    ///
    /// [default chain]: https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html
    pub async fn new(options: AwsOptions, external_ids: Arc<dyn ExternalIds>, gate: Gate) -> Self {
        let sdk = config::load(&options).await;
        Self::with_config(&sdk, &options, external_ids, gate)
    }

    /// Uses a loaded configuration of the SDK.
    pub(super) fn with_config(
        sdk: &aws_config::SdkConfig,
        options: &AwsOptions,
        external_ids: Arc<dyn ExternalIds>,
        gate: Gate,
    ) -> Self {
        let clock = Clock::default();
        let pace = Arc::<Pace>::default();
        let assume_role =
            AssumeRole::new(sdk, options, external_ids, clock.clone(), Arc::clone(&pace));
        let identity = Arc::new(Identity::new(assume_role, gate));
        Self {
            sessions: Sessions::new(Arc::clone(&identity), options),
            identity,
            kinesis: Kinesis::new(sdk, options.attempt_timeout, clock.clone()),
            clock: clock.clone(),
            pace,
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

    /// Restores the evidence of roles that worked before this process started, with the time
    /// since then, the newest last. If all are refused now, the fault is this service's.
    pub fn recall(&self, roles: Vec<(Arc<Integration>, Duration)>) {
        self.identity.recall(roles);
    }

    async fn write(
        &self,
        session: &Session,
        integration: &Integration,
        records: &[Record],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let stream = &integration.stream_arn;
        let head = RecordHead::new(integration.integration_id.0);
        let answer = match &self.direct {
            Some(direct) => direct.put(session, stream, &head, records).await,
            None => Box::pin(self.kinesis.put(session, stream, &head, records)).await,
        };
        self.clock.report();
        metrics::count_attempt(Operation::PutRecords, first_fault(&answer).map(Fault::code));
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

    /// Writes with another session than the refused one.
    async fn put_again(
        &self,
        integration: &Arc<Integration>,
        records: &[Record],
        refused: &Arc<Session>,
        answer: Result<Vec<RecordOutcome>, Fault>,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        self.sessions.discard(integration, refused).await;
        // If some records were accepted, the caller sends the others again.
        if answer.as_ref().is_ok_and(|outcomes| any_accepted(outcomes)) {
            return answer;
        }
        let session = self.sessions.get(integration).await?;
        let answer = self.write(&session, integration, records).await;
        self.judge_new_session(integration, &session, answer, Urgency::CanWait)
            .await
    }

    /// Attributes the refusal of a session that was just assumed.
    async fn judge_new_session(
        &self,
        integration: &Arc<Integration>,
        session: &Session,
        answer: Result<Vec<RecordOutcome>, Fault>,
        urgency: Urgency,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        match credentials_fault(&answer) {
            Some(fault) if fault.cause == Cause::NotBuilt => {
                Err(self.identity.judge_not_built(integration, fault.clone()))
            }
            Some(fault) => {
                let fault = fault.clone();
                let identity = &self.identity;
                Err(identity
                    .judge_session(integration, session, fault, urgency)
                    .await)
            }
            None => {
                self.note_session(integration, &answer);
                answer
            }
        }
    }

    /// Notes that AWS accepted the session, if the answer proves it: an outage or a timeout
    /// proves nothing.
    fn note_session(&self, integration: &Integration, answer: &Result<Vec<RecordOutcome>, Fault>) {
        let accepted = match answer {
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
        if accepted {
            self.identity.session_accepted(integration.integration_id);
        }
    }

    /// Writes a test record, a second time if the first was signed with a wrong clock.
    async fn write_test(
        &self,
        session: &Session,
        integration: &Arc<Integration>,
        record: Record,
    ) -> Result<Vec<RecordOutcome>, Fault> {
        let record = [record];
        let before = self.clock.offset_ms();
        let span = put_records_span(integration, record.len());
        async {
            let answer = self.write(session, integration, &record).await;
            let answer =
                match self.clock.is_off_since(before) && credentials_fault(&answer).is_some() {
                    true => self.write(session, integration, &record).await,
                    false => answer,
                };
            record_outcome(&answer);
            answer
        }
        .instrument(span)
        .await
    }

    async fn test_anew(&self, integration: &Arc<Integration>, record: Record) -> TestReport {
        self.pace.admit(TEST_CALLS).await;
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
                .judge_new_session(integration, &session, answer, Urgency::Immediate)
                .await;
            report.write = Some(answer.and_then(receipt));
        }
        report.latency = start.elapsed();
        report
    }

    async fn validate_anew(
        &self,
        integration: &Arc<Integration>,
        record: Record,
    ) -> ValidationReport {
        self.pace.admit(TEST_CALLS).await;
        let session = match self.identity.validate_only(integration).await {
            Ok(session) => session,
            Err(fault) => {
                return ValidationReport {
                    assume_role: Err(fault),
                    external_id: None,
                    write: None,
                };
            }
        };
        let head = RecordHead::new(integration.integration_id.0);
        let (proof, answer) = tokio::join!(
            self.identity.prove_external_id(integration),
            self.kinesis
                .validate_only(&session, &integration.stream_arn, &head, record),
        );
        metrics::count_attempt(
            Operation::PutRecords,
            answer.as_ref().err().map(Fault::code),
        );
        let answer = match answer {
            Err(fault) if fault.meaning() == Meaning::SessionInvalid => {
                Err(self.identity.judge_dry_run(&session, fault).await)
            }
            answer => answer,
        };
        ValidationReport {
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
        traces: &[TraceContext],
    ) -> Result<Vec<RecordOutcome>, Fault> {
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let span = put_records_span(integration, records.len());
        if !span.is_disabled() {
            link_traces(&span, traces);
        }
        async {
            let answer = self.put(integration, &records).await;
            record_outcome(&answer);
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

    async fn validate_only(
        &self,
        integration: &Arc<Integration>,
        record: Record,
    ) -> ValidationReport {
        let span = info_span!(
            "validate_only",
            organization_id = integration.organization_id.as_str(),
        );
        self.validate_anew(integration, record)
            .instrument(span)
            .await
    }

    fn identity_state(&self) -> watch::Receiver<IdentityState> {
        self.identity.state_changes()
    }

    fn partition(&self) -> Option<Partition> {
        self.identity.partition()
    }

    fn account(&self) -> Option<Arc<str>> {
        self.identity.account()
    }

    async fn watch_identity(&self) {
        self.identity.watch().await;
    }

    fn forget(&self, integration_id: IntegrationId) {
        self.sessions.forget(integration_id);
    }
}

/// Span of a PutRecords call. It is only exported, so that it costs nothing unless traces are.
fn put_records_span(integration: &Integration, records: usize) -> Span {
    info_span!(
        "put_records",
        otel.kind = "client",
        rpc.system = "aws-api",
        rpc.service = "Kinesis",
        rpc.method = "PutRecords",
        organization_id = integration.organization_id.as_str(),
        integration_id = %integration.integration_id,
        records,
        aws.request_id = Empty,
        outcome = Empty,
    )
}

/// Sets attributes of the current span. The request id of an answer was set when it arrived; that
/// of AssumeRole is on the span of that call.
fn record_outcome(answer: &Result<Vec<RecordOutcome>, Fault>) {
    let fault = first_fault(answer);
    Span::current().record("outcome", fault.map_or("Accepted", Fault::code));
}

/// Sets the AWS request id of the current span.
pub(super) fn record_request_id(request_id: Option<&str>) {
    if let Some(request_id) = request_id {
        Span::current().record(REQUEST_ID, request_id);
    }
}

/// The first fault of an answer, of the request or of a record.
fn first_fault(answer: &Result<Vec<RecordOutcome>, Fault>) -> Option<&Fault> {
    find_fault(answer, |_| true)
}

/// The first fault of a request that was refused for its credentials or could not be built.
fn credentials_fault(answer: &Result<Vec<RecordOutcome>, Fault>) -> Option<&Fault> {
    find_fault(answer, |fault| {
        fault.meaning() == Meaning::SessionInvalid || fault.cause == Cause::NotBuilt
    })
}

fn find_fault(
    answer: &Result<Vec<RecordOutcome>, Fault>,
    wanted: impl Fn(&Fault) -> bool,
) -> Option<&Fault> {
    match answer {
        Err(fault) => wanted(fault).then_some(fault),
        Ok(outcomes) => outcomes.iter().find_map(|outcome| match outcome {
            RecordOutcome::Failed(fault) if wanted(fault) => Some(fault),
            _ => None,
        }),
    }
}

fn any_accepted(outcomes: &[RecordOutcome]) -> bool {
    let accepted = |outcome: &RecordOutcome| matches!(outcome, RecordOutcome::Accepted { .. });
    outcomes.iter().any(accepted)
}

/// Receipt of a request with one record, for which [`Kinesis::put`] returns one outcome.
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
        None => Err(Fault::not_aws(Stage::Write, 200, None)),
    }
}
