//! Driver of clients/scenario for siem-client: reads calls from standard input, and answers on
//! standard output.

use std::{
    collections::VecDeque,
    error::Error,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Map, Value, json};
use siem_client::{
    ChannelError, ChannelOptions, Client, Publisher, SiemError, StatusEvent, StatusWatch,
    Timestamp, Token, status_of,
    v1::{self, ErrorReason, StatusReason},
};
use tokio::io::{AsyncBufReadExt, BufReader};

type Failure = Box<dyn Error + Send + Sync>;

const NETWORK: &str = "00000000-0000-0000-0000-000000000001";
const DEVICE: &str = "00000000-0000-0000-0000-000000000002";
/// 2026-01-02T03:04:05Z.
const START_SECONDS: i64 = 1_767_323_045;

/// Arguments of a call.
struct Arguments(Map<String, Value>);

impl Arguments {
    fn text(&self, name: &str) -> String {
        let text = self.0.get(name).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    }

    fn flag(&self, name: &str) -> bool {
        self.0
            .get(name)
            .and_then(Value::as_bool)
            .unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(Value::as_u64)
    }

    fn seconds(&self, name: &str) -> Option<Duration> {
        let seconds = self.0.get(name).and_then(Value::as_f64);
        seconds.map(Duration::from_secs_f64)
    }

    fn list(&self, name: &str) -> Vec<Value> {
        let list = self.0.get(name).and_then(Value::as_array);
        list.cloned().unwrap_or_default()
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let list = self.list(name);
        let texts = list.iter().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }

    /// Returns the numbered events, as clients/scenario/README.md describes them.
    fn events(&self) -> Vec<(u64, v1::Event)> {
        let invalid: Vec<u64> = self
            .list("invalid")
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        let first = self.number("first").unwrap_or_default();
        let last = self.number("last").unwrap_or_default();
        let event = |number: u64| v1::Event {
            organization_id: self.text("organization_id"),
            network_id: NETWORK.to_owned(),
            device_id: DEVICE.to_owned(),
            observed_time: Some(Timestamp {
                seconds: START_SECONDS + number as i64 / 1000,
                nanos: number as i32 % 1000 * 1_000_000,
            }),
            event_id: self
                .flag("event_ids")
                .then(|| format!("00000000-0000-4000-8000-{number:012}")),
            payload: Some(v1::event::Payload::IdsDetection(v1::IdsDetection {
                src_ip: match invalid.contains(&number) {
                    true => "192.0.2.256".to_owned(),
                    false => "192.0.2.7".to_owned(),
                },
                dest_ip: "198.51.100.80".to_owned(),
                signature: Some(format!("detection {number}")),
                ..v1::IdsDetection::default()
            })),
        };
        (first..=last)
            .map(|number| (number, event(number)))
            .collect()
    }
}

/// Returns the name of a value of an enum, or its number.
fn name<E: TryFrom<i32>>(value: i32, name: impl Fn(&E) -> &'static str) -> String {
    match E::try_from(value) {
        Ok(known) => name(&known).to_owned(),
        Err(_) => value.to_string(),
    }
}

fn reason_name(reason: i32) -> String {
    name(reason, ErrorReason::as_str_name)
}

fn shown(status: Option<v1::IntegrationStatus>) -> Value {
    let status = status.unwrap_or_default();
    json!({
        "status": status_of(&status).as_str_name(),
        "reason": name(status.reason, StatusReason::as_str_name),
    })
}

fn joined(mut one: Value, other: Value) -> Value {
    if let (Some(one), Value::Object(other)) = (one.as_object_mut(), other) {
        one.extend(other);
    }
    one
}

fn integration(found: Option<v1::Integration>) -> Value {
    let found = found.unwrap_or_default();
    let counts = found.counts.unwrap_or_default();
    let fields = json!({
        "organization_id": found.organization_id,
        "integration_id": found.integration_id,
        "etag": found.etag,
        "accepted": counts.accepted,
        "delivered": counts.delivered,
        "pending": counts.pending,
    });
    joined(fields, shown(found.status))
}

fn status_event(event: StatusEvent) -> Value {
    match event {
        StatusEvent::Snapshot(snapshot) => {
            let organizations: Vec<_> = snapshot.statuses.keys().cloned().collect();
            let statuses: Map<String, Value> = snapshot
                .statuses
                .into_iter()
                .map(|(organization, current)| {
                    let status = shown(current.status)["status"].clone();
                    (organization, status)
                })
                .collect();
            json!({
                "kind": "snapshot",
                "organizations": organizations,
                "statuses": statuses,
                "absent": snapshot.absent,
            })
        }
        StatusEvent::Current(current) => {
            let fields = json!({"kind": "current", "organization_id": current.organization_id});
            joined(fields, shown(current.status))
        }
        StatusEvent::Deleted(deleted) => {
            json!({"kind": "deleted", "organization_id": deleted.organization_id})
        }
        StatusEvent::Absent(absent) => {
            json!({"kind": "absent", "organization_id": absent.organization_id})
        }
    }
}

#[derive(Default)]
struct Driver {
    client: Option<Client>,
    watch: Option<StatusWatch>,
    publisher: Option<Publisher>,
    rejected: Arc<Mutex<Vec<(u64, v1::Rejection)>>>,
    receipts: Vec<tokio::task::JoinHandle<()>>,
}

impl Driver {
    fn client(&self) -> Result<Client, Failure> {
        Ok(self.client.clone().ok_or("there is no client")?)
    }

    async fn call(&mut self, call: &str, arguments: &Arguments) -> Result<Value, Failure> {
        let organization_id = arguments.text("organization_id");
        match call {
            "connect" => self.connect(arguments),
            "configure" => {
                let request = v1::ConfigureRequest {
                    organization_id,
                    kinesis_stream_arn: arguments.text("kinesis_stream_arn"),
                    role_arn: arguments.text("role_arn"),
                    external_id: arguments.text("external_id"),
                    etag: arguments.text("etag"),
                    validate_only: arguments.flag("validate_only"),
                    keep_previous_external_id: arguments.flag("keep_previous_external_id"),
                };
                Ok(integration(
                    self.client()?.configure(request).await?.integration,
                ))
            }
            "get" => {
                let mut client = self.client()?;
                if let Some(timeout) = arguments.seconds("timeout") {
                    client = client.with_timeout(timeout);
                }
                let answer = client.get(v1::GetRequest { organization_id }).await?;
                Ok(integration(answer.integration))
            }
            "list" => {
                let request = v1::ListRequest {
                    page_token: arguments.text("page_token"),
                    ..v1::ListRequest::default()
                };
                let answer = self.client()?.list(request).await?;
                let found = answer.integrations.into_iter();
                let names: Vec<_> = found.map(|each| each.organization_id).collect();
                Ok(json!({"organization_ids": names, "next_page_token": answer.next_page_token}))
            }
            "generate_external_id" => {
                let request = v1::GenerateExternalIdRequest { organization_id };
                let answer = self.client()?.generate_external_id(request).await?;
                Ok(json!({"external_id": answer.external_id}))
            }
            "get_onboarding" => {
                let request = v1::GetOnboardingRequest {
                    stream: arguments.text("stream"),
                    role_name: arguments.text("role_name"),
                    ..v1::GetOnboardingRequest::default()
                };
                let answer = self.client()?.get_onboarding(request).await?;
                let documents = answer.documents.into_iter();
                let names: Vec<_> = documents.map(|each| each.file_name).collect();
                Ok(json!({"file_names": names, "role_arn": answer.role_arn}))
            }
            "list_audit_entries" => {
                let request = v1::ListAuditEntriesRequest {
                    organization_id,
                    ..v1::ListAuditEntriesRequest::default()
                };
                let answer = self.client()?.list_audit_entries(request).await?;
                let entries = answer.entries.iter();
                let actions: Vec<_> = entries.map(|each| each.action().as_str_name()).collect();
                let principals: Vec<_> = answer.entries.iter().map(|each| &each.principal).collect();
                Ok(json!({"actions": actions, "principals": principals}))
            }
            "delete" => {
                let request = v1::DeleteRequest {
                    organization_id,
                    allow_missing: arguments.flag("allow_missing"),
                    etag: arguments.text("etag"),
                };
                let counts = self.client()?.delete(request).await?.counts;
                let counts = counts.unwrap_or_default();
                Ok(json!({"accepted": counts.accepted, "pending": counts.pending}))
            }
            "send_test" => {
                let request = v1::SendTestRequest { organization_id };
                let answer = self.client()?.send_test(request).await?;
                let fields = json!({"delivered": answer.delivered, "message": answer.message});
                Ok(joined(fields, shown(answer.status)))
            }
            "watch_open" => {
                let watch = self
                    .client()?
                    .watch_status(arguments.texts("organization_ids"));
                self.watch = Some(watch.resume_after(arguments.text("resume_token")));
                Ok(json!({}))
            }
            "watch_next" => {
                let watch = self.watch.as_mut().ok_or("there is no watch")?;
                Ok(status_event(watch.next().await?))
            }
            "watch_token" => {
                let watch = self.watch.as_ref().ok_or("there is no watch")?;
                Ok(json!({"resume_token": watch.resume_token()}))
            }
            "watch_close" => {
                self.watch = None;
                Ok(json!({}))
            }
            "publish" => {
                let events = arguments.events().into_iter();
                let events = events.map(|(_, event)| event).collect();
                let answer = self
                    .client()?
                    .publish(v1::PublishRequest { events })
                    .await?;
                let rejections: Vec<_> = answer
                    .rejections
                    .iter()
                    .map(|each| {
                        let reason = reason_name(each.reason);
                        json!({"index": each.index, "reason": reason, "field": each.field})
                    })
                    .collect();
                Ok(json!({
                    "accepted": answer.accepted,
                    "unconfigured": answer.unconfigured,
                    "rejections": rejections,
                }))
            }
            "publisher_open" => {
                self.publisher = Some(self.client()?.publisher(Default::default()));
                self.rejected = Arc::default();
                Ok(json!({}))
            }
            "send" => self.send(arguments).await,
            "flush" => {
                self.flush(arguments.seconds("timeout").unwrap_or_default())
                    .await
            }
            "publisher_close" => {
                let publisher = self.publisher.take().ok_or("there is no publisher")?;
                let timeout = arguments.seconds("timeout").unwrap_or_default();
                let unacknowledged = match publisher.close(timeout).await {
                    Ok(()) => vec![],
                    Err(error) => error.unacknowledged,
                };
                let ids = unacknowledged.into_iter();
                let ids: Vec<_> = ids.filter_map(|event| event.event_id).collect();
                Ok(json!({"unacknowledged": ids}))
            }
            _ => Err(format!("unknown call {call}").into()),
        }
    }

    fn connect(&mut self, arguments: &Arguments) -> Result<Value, Failure> {
        let mut options = ChannelOptions::new(arguments.text("address"));
        if arguments.0.contains_key("ca") {
            options = options.ca_file(arguments.text("ca"));
        }
        if arguments.0.contains_key("certificate") {
            options = options.identity_files(arguments.text("certificate"), arguments.text("key"));
        }
        if arguments.0.contains_key("token") {
            options = options.token(Token::new(&arguments.text("token"))?);
        }
        if arguments.0.contains_key("tokens") {
            let tokens = Arc::new(Mutex::new(VecDeque::from(arguments.texts("tokens"))));
            options = options.token_function(move || {
                let mut tokens = tokens.lock().unwrap();
                let token = match tokens.len() {
                    0 | 1 => tokens.front().cloned(),
                    _ => tokens.pop_front(),
                };
                async move { Token::new(&token.unwrap_or_default()) }
            });
        }
        self.client = Some(Client::connect(&options)?);
        Ok(json!({}))
    }

    async fn send(&mut self, arguments: &Arguments) -> Result<Value, Failure> {
        let publisher = self.publisher.as_ref().ok_or("there is no publisher")?;
        let mut sent = 0;
        for (number, event) in arguments.events() {
            let receipt = publisher.send(&event).await?;
            sent += 1;
            let rejected = Arc::clone(&self.rejected);
            self.receipts.push(tokio::spawn(async move {
                if let Ok(result) = receipt.await
                    && let Some(rejection) = result.rejection
                {
                    rejected.lock().unwrap().push((number, rejection));
                }
            }));
        }
        Ok(json!({"sent": sent}))
    }

    async fn flush(&mut self, timeout: Duration) -> Result<Value, Failure> {
        let publisher = self.publisher.as_ref().ok_or("there is no publisher")?;
        publisher.flush(timeout).await?;
        for receipt in self.receipts.drain(..) {
            receipt.await?;
        }
        let stats = publisher.stats();
        let mut rejected = self.rejected.lock().unwrap().clone();
        rejected.sort_by_key(|(number, _)| *number);
        let rejected: Vec<_> = rejected
            .iter()
            .map(|(number, each)| {
                let reason = reason_name(each.reason);
                json!({"number": number, "reason": reason, "field": each.field})
            })
            .collect();
        Ok(json!({
            "accepted": stats.accepted,
            "filtered": stats.filtered,
            "unconfigured": stats.unconfigured,
            "rejected": rejected,
        }))
    }
}

/// Returns the answer to a failed call; other failures end the driver.
fn error(failure: Failure) -> Result<Value, Failure> {
    let failure = match failure.downcast::<ChannelError>() {
        Ok(refused) => {
            let message = refused.to_string();
            return Ok(json!({"error": {"code": "CONFIGURATION", "message": message}}));
        }
        Err(failure) => failure,
    };
    let error = failure.downcast::<SiemError>()?;
    let violations: Vec<_> = error.violations.iter().map(|each| &each.field).collect();
    // `NotFound` becomes `NOT_FOUND`.
    let mut code = String::new();
    for (index, letter) in format!("{:?}", error.code).chars().enumerate() {
        if index > 0 && letter.is_uppercase() {
            code.push('_');
        }
        code.extend(letter.to_uppercase());
    }
    Ok(json!({"error": {
        "code": code,
        "reason": error.reason_name,
        "violations": violations,
        "message": error.message,
    }}))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut driver = Driver::default();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let mut arguments: Map<String, Value> = serde_json::from_str(&line)?;
        let call = arguments.remove("call").unwrap_or_default();
        let call = call.as_str().unwrap_or_default().to_owned();
        let answer = match driver.call(&call, &Arguments(arguments)).await {
            Ok(answer) => answer,
            Err(failure) => error(failure)?,
        };
        println!("{answer}");
    }
    Ok(())
}
