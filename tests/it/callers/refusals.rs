//! The audit of refusals that no error shows, and what a caller with limited rights sees of it.

use std::collections::BTreeSet;

use siem_client::v1::{
    self, AuditAction, AuditEntry, ListAuditEntriesRequest, ListRequest, PublishRequest,
};

use super::{Env, entries};
use crate::harness::{Callers, event, with_timeout};

const PUBLISH: &str = "siem.v1.EventService/Publish";
const PUBLISH_STREAM: &str = "siem.v1.EventService/PublishStream";
const LIST: &str = "siem.v1.SiemIntegrationService/List";
const STREAM_STATUS: &str = "siem.v1.SiemIntegrationService/StreamStatus";

impl Env {
    /// All entries that a caller sees, newest first, and the sizes of their pages.
    async fn audit(&self, subject: &str, page_size: u32) -> (Vec<AuditEntry>, Vec<usize>) {
        let (mut entries, mut sizes, mut page_token) = (Vec::new(), Vec::new(), String::new());
        loop {
            let request = ListAuditEntriesRequest {
                page_size,
                page_token,
                ..ListAuditEntriesRequest::default()
            };
            let request = self.callers.by(subject, request);
            let mut client = self.relay.api.integrations();
            let page = client.list_audit_entries(request).await.unwrap();
            let page = page.into_inner();
            sizes.push(page.entries.len());
            entries.extend(page.entries);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return (entries, sizes);
            }
        }
    }

    /// Polls until the refusals of a method are as many as expected, and returns them.
    pub(super) async fn refused(&self, method: &str, expected: u64) -> Vec<AuditEntry> {
        with_timeout("refusals", async {
            loop {
                let (mut entries, _) = self.audit("auditor", 1000).await;
                entries.retain(|entry| {
                    entry.action() == AuditAction::Refuse && entry.method == method
                });
                if entries.iter().map(|entry| entry.count).sum::<u64>() >= expected {
                    return entries;
                }
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

fn organizations(entries: &[AuditEntry]) -> BTreeSet<&str> {
    let organizations = entries.iter().map(|entry| entry.organization_id.as_str());
    organizations.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_events_and_subscriptions_are_audited() {
    let env = Env::start().await;
    let events = ["beta", "acme", "beta", "never"].map(event).to_vec();
    let request = env.callers.by("publisher", PublishRequest { events });
    let answer = env.relay.api.events().publish(request).await.unwrap();
    assert_eq!(answer.into_inner().rejections.len(), 3);
    let requests = ["acme", "beta"].map(|id| v1::PublishStreamRequest {
        request_id: id.to_owned(),
        events: vec![event(id)],
    });
    let requests = env.callers.by("publisher", tokio_stream::iter(requests));
    let answers = env.relay.api.events().publish_stream(requests).await;
    let mut answers = answers.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let request = v1::StreamStatusRequest {
        organization_ids: vec!["beta".to_owned(), "acme".to_owned(), "gone".to_owned()],
        resume_token: String::new(),
    };
    let request = env.callers.by("reader", request);
    let stream = env.relay.api.integrations().stream_status(request).await;
    stream.unwrap().into_inner().message().await.unwrap();
    let page = |page_token: &str| ListRequest {
        page_size: 1,
        page_token: page_token.to_owned(),
        ..ListRequest::default()
    };
    let first = env.callers.by("admin", page(""));
    let first = env.relay.api.integrations().list(first).await.unwrap();
    let foreign = env
        .callers
        .by("reader", page(&first.into_inner().next_page_token));
    env.relay
        .api
        .integrations()
        .list(foreign)
        .await
        .unwrap_err();

    let published = env.refused(PUBLISH, 3).await;
    assert_eq!(organizations(&published), BTreeSet::from(["beta", "never"]));
    let streamed = env.refused(PUBLISH_STREAM, 1).await;
    assert_eq!(organizations(&streamed), BTreeSet::from(["beta"]));
    let named = env.refused(STREAM_STATUS, 2).await;
    assert_eq!(organizations(&named), BTreeSet::from(["beta", "gone"]));
    for (entries, subject, count) in [
        (&published, "publisher", 3),
        (&streamed, "publisher", 1),
        (&named, "reader", 2),
    ] {
        let principal = format!("{}#{subject}", Callers::ISSUER);
        assert_eq!(entries.iter().map(|entry| entry.count).sum::<u64>(), count);
        for entry in entries {
            assert_eq!(entry.principal, principal);
            assert_eq!(entry.code, "PERMISSION_DENIED");
            assert!(!entry.peer.is_empty() && !entry.request_id.is_empty());
        }
    }
    let listed = env.refused(LIST, 1).await;
    assert_eq!(listed[0].changes[0].field, "page_token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refused_events_makes_few_entries() {
    const REQUESTS: u64 = 300;
    let env = Env::start().await;
    for number in 0..REQUESTS {
        let events = (0..10).map(|index| event(&format!("invented-{number}-{index}")));
        let request = PublishRequest {
            events: events.collect(),
        };
        let request = env.callers.by("publisher", request);
        env.relay.api.events().publish(request).await.unwrap();
    }
    let entries = env.refused(PUBLISH, 10 * REQUESTS).await;
    let counted: u64 = entries.iter().map(|entry| entry.count).sum();
    assert_eq!(counted, 10 * REQUESTS);
    // The first one at once, and then those of each ten seconds.
    assert!(entries.len() <= 60, "{} entries", entries.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auditor_with_limited_rights_learns_nothing_of_others() {
    let mut callers = entries();
    callers.push(Callers::caller("of-teams", "audit", &["team-*", "zeta"]));
    let env = Env::with(Callers::new(&callers)).await;
    for organization_id in ["team-2", "zeta", "other-1", "other-2", "team-3"] {
        env.create(organization_id).await;
    }
    let (seen, sizes) = env.audit("of-teams", 2).await;
    assert_eq!(
        organizations(&seen),
        BTreeSet::from(["team-1", "team-2", "team-3", "zeta"])
    );
    assert_eq!(sizes, [2, 2], "pages are full whatever others do");
    let (all, _) = env.audit("auditor", 1000).await;
    let ids = |entries: &[AuditEntry]| -> BTreeSet<String> {
        entries.iter().map(|entry| entry.entry_id.clone()).collect()
    };
    assert!(ids(&seen).is_subset(&ids(&all)), "an entry has one id");
    assert_eq!(ids(&all).len(), all.len());
    for id in ids(&all) {
        assert!(id.len() == 32 && id.parse::<i64>().is_err(), "{id}");
    }
}
