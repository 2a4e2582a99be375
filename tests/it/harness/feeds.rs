//! A status stream as its subscriber reads it.

use siem_client::v1::{
    self, Status, StatusReason, StreamStatusResponse, stream_status_response::Event,
};
use tonic::{Code, Streaming};

use super::within;

/// What a subscriber is told, short enough to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Current(String, Status, StatusReason),
    Deleted(String),
    Absent(String),
    Synced,
    Reset,
    Heartbeat,
}

impl Told {
    pub fn current(organization_id: &str, status: Status) -> Self {
        Self::Current(
            organization_id.to_owned(),
            status,
            StatusReason::Unspecified,
        )
    }

    pub fn because(organization_id: &str, status: Status, reason: StatusReason) -> Self {
        Self::Current(organization_id.to_owned(), status, reason)
    }
}

/// A subscription.
pub struct StatusFeed {
    messages: Streaming<StreamStatusResponse>,
    /// The token of the newest message.
    pub token: String,
    /// The status of the newest `Current`.
    pub last: Option<v1::IntegrationStatus>,
}

impl StatusFeed {
    pub(super) fn new(messages: Streaming<StreamStatusResponse>) -> Self {
        Self {
            messages,
            token: String::new(),
            last: None,
        }
    }

    /// The next message, heartbeats too.
    pub async fn any(&mut self) -> Told {
        let message = within("a status message", self.messages.message()).await;
        let message = message.unwrap().expect("the stream goes on");
        assert!(!message.resume_token.is_empty());
        self.token = message.resume_token;
        match message.event.unwrap() {
            Event::Current(current) => {
                let status = current.status.unwrap();
                let told = Told::Current(current.organization_id, status.status(), status.reason());
                self.last = Some(status);
                told
            }
            Event::Deleted(deleted) => Told::Deleted(deleted.organization_id),
            Event::Absent(absent) => Told::Absent(absent.organization_id),
            Event::Synced(_) => Told::Synced,
            Event::Reset(_) => Told::Reset,
            Event::Heartbeat(_) => Told::Heartbeat,
        }
    }

    /// The next message that is no heartbeat.
    pub async fn next(&mut self) -> Told {
        within("a status message beyond heartbeats", async {
            loop {
                match self.any().await {
                    Told::Heartbeat => {}
                    told => return told,
                }
            }
        })
        .await
    }

    /// Reads up to and with `synced`; tells what came before it.
    pub async fn until_synced(&mut self) -> Vec<Told> {
        let mut before = Vec::new();
        loop {
            match self.next().await {
                Told::Synced => return before,
                told => before.push(told),
            }
        }
    }

    /// Reads until this is told; counts what is told before.
    pub async fn until(&mut self, wanted: &Told) -> usize {
        let mut before = Vec::new();
        loop {
            let told = self.next().await;
            if told == *wanted {
                return before.len();
            }
            before.push(told);
            assert!(before.len() < 10_000, "told {before:?}, not {wanted:?}");
        }
    }

    /// Reads to the end, which must be the server's; tells its code.
    pub async fn end(&mut self) -> Code {
        within("the end of the stream", async {
            loop {
                match self.messages.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Code::Ok,
                    Err(status) => return status.code(),
                }
            }
        })
        .await
    }
}
