//! Pages of the audit for callers that may see some organizations, and refusals.

use super::*;
use crate::domain::{
    audit::{AuditAction, AuditEntry, CallerClass, Refusal},
    rights::Pattern,
};

const ALL_OF_THEM: AuditQuery = AuditQuery {
    organizations: None,
    start: None,
    end: None,
    before: None,
    limit: 1000,
};

/// Records entries of `other`, with one of `acme` before each of these numbers.
async fn record(store: &Store, count: usize, acme: &[usize]) {
    let mut entries = Vec::new();
    for number in 0..count {
        let entry =
            |name| AuditEntry::new(AuditAction::SendTest, Actor::named("test"), name, now());
        if acme.contains(&number) {
            entries.push(entry("acme"));
        }
        entries.push(entry("other"));
    }
    let registry = store.shared.catalog.registry();
    registry.record(&entries).await.unwrap();
}

#[tokio::test]
async fn pages_of_a_caller_are_as_full_as_if_there_were_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20).await;
    let acme = [0, 10, 700, 2_500, 2_501, 22_999];
    record(&store, 23_000, &acme).await;
    let (mut sizes, mut before) = (Vec::new(), None);
    loop {
        let query = AuditQuery {
            before,
            limit: 3,
            organizations: Some(vec![Pattern::parse("acme").unwrap()]),
            ..ALL_OF_THEM
        };
        let page = store.audit(query).await.unwrap();
        assert!(
            page.entries
                .iter()
                .all(|entry| &*entry.organization_id == "acme")
        );
        sizes.push(page.entries.len());
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [3, 3]);
    let whole = store.audit(ALL_OF_THEM).await.unwrap();
    assert!(whole.entries.len() == 1000 && whole.next.is_some());
}

#[tokio::test]
async fn refusals_are_written_at_the_latest_when_the_store_closes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1 << 20).await;
    for _ in 0..1000 {
        store.audit_refusal(Refusal {
            actor: Actor::named("mallory"),
            class: CallerClass::Authenticated,
            method: "".into(),
            organization_id: "acme".into(),
            code: "PERMISSION_DENIED".into(),
            reason: "PERMISSION_DENIED".into(),
            field: None,
            count: 1,
        });
    }
    store.close().await;
    let store = open(folder.path(), 1 << 20).await;
    let found = store.audit(ALL_OF_THEM).await.unwrap().entries;
    assert!(found.len() <= 2, "{found:?}");
    assert_eq!(found.iter().map(|entry| entry.count).sum::<u64>(), 1000);
    store.close().await;
}
