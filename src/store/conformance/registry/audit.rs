//! Rules of the audit.

use std::{collections::BTreeSet, net::SocketAddr};

use super::*;
use crate::{
    domain::{
        audit::{AuditAction, AuditChange, AuditEntry, CallerClass, Refusal, Refusals},
        rights::Pattern,
    },
    store::ports::{AuditLimits, AuditPosition, AuditQuery},
};

const EVERYTHING: AuditQuery = AuditQuery {
    organizations: None,
    start: None,
    end: None,
    before: None,
    limit: ALL,
};

/// More entries than one step of the removal takes.
const MANY: usize = 600;

pub(super) async fn suite(new: impl AsyncFn() -> Shared) -> Checked {
    changes(new().await).await?;
    repetitions(new().await).await?;
    pages(new().await).await?;
    limits(new().await).await
}

async fn list(registry: &Shared, query: &AuditQuery) -> Checked<Vec<AuditEntry>> {
    registry.audit(query).await.map_err(failed("audit"))
}

fn actor(name: &str) -> Actor {
    Actor {
        principal: name.into(),
        issuer: Some("https://issuer.example".into()),
        peer: Some(SocketAddr::from(([192, 0, 2, 1], 443))),
        request_id: Some(Uuid::now_v7()),
        client_request_id: Some("theirs".into()),
    }
}

/// Configures as an author at a time.
async fn configure_as(
    registry: &Shared,
    actor: &Actor,
    name: &str,
    wish: &Wish,
    at: Timestamp,
) -> Checked<Registered> {
    let organization_id = organization(name);
    let plan = |existing: Option<&Registered>, _: &Keys| {
        let mut planned = planned(&organization_id, existing, wish)?;
        planned.actor = actor.clone();
        planned.integration.updated_at = at;
        Ok(planned)
    };
    let stored = registry.configure(&organization_id, &plan).await;
    stored.map_err(failed("Configure"))
}

/// Field, old value and new value.
type Shown<'a> = (&'a str, &'a str, &'a str);

fn shown(changes: &[AuditChange]) -> Vec<Shown<'_>> {
    let changes = changes.iter();
    changes
        .map(|change| (&*change.field, &*change.old, &*change.new))
        .collect()
}

async fn changes(registry: Shared) -> Checked {
    let (alice, bob) = (actor("alice"), actor("bob"));
    let created = configure_as(&registry, &alice, "acme", &Wish::of(1), at(1)).await?;
    let mut wish = Wish::of(2);
    wish.keep_previous = true;
    wish.stream = 3;
    configure_as(&registry, &bob, "acme", &wish, at(2)).await?;
    wish.version = Some(99);
    let refused = configure(&registry, "acme", wish).await;
    ensure!(refused.is_err(), "a stale version was accepted");
    let id = created.integration.integration_id;
    let retired = registry.retire_previous_external_id(id, 2, at(4)).await;
    retired.map_err(failed("retire"))?;
    let now = must_find(&registry, "acme").await?;
    observe(&registry, &[observed(&now, 5, denied())]).await?;
    let issued = registry
        .issue_external_id(
            &organization("acme"),
            &|_: &Keys| Ok(claim(9)),
            &alice,
            at(9),
        )
        .await;
    issued.map_err(failed("issue"))?;
    let deleted = registry.delete(&organization("acme"), None, &bob).await;
    deleted.map_err(failed("delete"))?;
    let absent = registry.delete(&organization("acme"), None, &bob).await;
    absent.map_err(failed("delete"))?;

    let mut entries = list(&registry, &EVERYTHING).await?;
    // Some have the time of the clock, others that of the plan.
    entries.sort_by_key(|entry| entry.id);
    let stream = |number| format!("arn:aws:kinesis:us-east-1:222222222222:stream/s{number}");
    let (first, second) = (stream(1), stream(3));
    let role = "arn:aws:iam::222222222222:role/relay";
    let service = Actor::service();
    let expected: [(_, _, Vec<Shown<'_>>); 6] = [
        (
            AuditAction::Create,
            &alice,
            vec![
                ("kinesis_stream_arn", "", &first),
                ("role_arn", "", role),
                ("external_id", "", "changed"),
            ],
        ),
        (
            AuditAction::Replace,
            &bob,
            vec![
                ("kinesis_stream_arn", &first, &second),
                ("external_id", "", "changed"),
                ("previous_external_id", "", "in use"),
            ],
        ),
        (
            AuditAction::ExternalIdTookOver,
            &service,
            vec![("previous_external_id", "in use", "")],
        ),
        (
            AuditAction::Status,
            &service,
            vec![
                ("status", "UNKNOWN", "UNAUTHORIZED"),
                ("reason", "", "WRITE_DENIED"),
                ("aws_error_code", "", "AccessDeniedException"),
                ("aws_request_id", "", "request"),
            ],
        ),
        (AuditAction::IssueExternalId, &alice, vec![]),
        (
            AuditAction::Delete,
            &bob,
            vec![
                ("kinesis_stream_arn", &second, ""),
                ("role_arn", role, ""),
                ("external_id", "", "changed"),
            ],
        ),
    ];
    ensure!(
        entries.len() == expected.len(),
        "{} entries, not {}: {entries:?}",
        entries.len(),
        expected.len()
    );
    for (entry, (action, actor, changes)) in entries.iter().zip(expected) {
        ensure!(
            entry.action == Some(action),
            "{:?}, not {action:?}",
            entry.action
        );
        ensure!(entry.actor == *actor, "{action:?} by {:?}", entry.actor);
        ensure!(
            shown(&entry.changes) == changes,
            "{action:?}: {:?}",
            entry.changes
        );
        ensure!(
            &*entry.organization_id == "acme" && &*entry.code == "OK" && entry.count == 1,
            "{entry:?}"
        );
        let with_id = action != AuditAction::IssueExternalId;
        ensure!(
            entry.integration_id == with_id.then_some(id),
            "{action:?} of {:?}",
            entry.integration_id
        );
    }
    Ok(())
}

/// Configures that change nothing are counted.
async fn repetitions(registry: Shared) -> Checked {
    let (alice, bob) = (actor("alice"), actor("bob"));
    let mut anonymous = actor("alice");
    anonymous.issuer = None;
    let mut other = Wish::of(1);
    other.stream = 2;
    let hour = 3600;
    let same = Wish::of(1);
    // From the beginning of an hour on.
    let from = hour - 1_000_000 % hour;
    for (actor, wish, second) in [
        (&alice, &same, 0),
        (&alice, &same, 1),
        (&alice, &same, 2),
        (&bob, &same, 3),
        (&anonymous, &same, 4),
        (&alice, &same, 5),
        (&alice, &other, 6),
        (&alice, &other, 7),
        (&alice, &other, hour),
    ] {
        configure_as(&registry, actor, "acme", wish, at(from + second)).await?;
    }
    let entries = list(&registry, &EVERYTHING).await?;
    let found: Vec<_> = entries
        .iter()
        .rev()
        .map(|entry| {
            let first = entry.at.as_second() - at(from).as_second();
            let last = entry.last_at.as_second() - at(from).as_second();
            (&*entry.actor.principal, entry.count, first, last)
        })
        .collect();
    let expected = [
        ("alice", 1, 0, 0),
        ("alice", 4, 1, 7),
        ("bob", 1, 3, 3),
        ("alice", 1, 4, 4),
        ("alice", 1, 6, 6),
        ("alice", 1, hour, hour),
    ];
    ensure!(found == expected, "{found:?}, not {expected:?}");
    Ok(())
}

fn refusals(count: usize, name: &str, now: Timestamp) -> Vec<AuditEntry> {
    let mut all = Vec::new();
    for number in 0..count {
        let mut refusals = Refusals::default();
        let refusal = Refusal {
            actor: actor("mallory"),
            class: CallerClass::Authenticated,
            method: "siem.v1.SiemIntegrationService/Delete".into(),
            organization_id: name.into(),
            code: "PERMISSION_DENIED".into(),
            reason: "PERMISSION_DENIED".into(),
            field: None,
            count: 1,
        };
        for _ in 0..=number % 3 {
            refusals.add(refusal.clone(), now);
        }
        all.extend(refusals.take());
    }
    all
}

fn tests(count: usize, name: &str, now: Timestamp) -> Vec<AuditEntry> {
    let test = || {
        AuditEntry::new(AuditAction::SendTest, actor("tester"), name, now)
            .about(IntegrationId(Uuid::now_v7()), Vec::new())
    };
    std::iter::repeat_with(test).take(count).collect()
}

async fn record(registry: &Shared, entries: &[AuditEntry]) -> Checked {
    registry.record(entries).await.map_err(failed("record"))
}

async fn pages(registry: Shared) -> Checked {
    for second in 1..6 {
        // Several at the same time.
        for name in ["acme", "other", ""] {
            let entries = [refusals(2, name, at(second)), tests(2, name, at(second))];
            record(&registry, &entries.concat()).await?;
        }
        for name in ["Acme", "acme-1", "acme_1", "acm", "acmf", "acmez"] {
            record(&registry, &tests(1, name, at(second))).await?;
        }
    }
    let all = list(&registry, &EVERYTHING).await?;
    ensure!(all.len() == 90, "{} entries, not 90", all.len());
    let ids: BTreeSet<i64> = all.iter().map(|entry| entry.id).collect();
    ensure!(ids.len() == all.len(), "two entries have one id");
    let is_refusal = |entry: &AuditEntry| entry.action == Some(AuditAction::Refuse);
    ensure!(
        all.iter().all(|entry| (entry.id < 0) == is_refusal(entry)),
        "refusals have ids of their own"
    );
    ensure!(
        all.iter()
            .map(AuditPosition::from)
            .is_sorted_by(|a, b| a > b),
        "not the newest first"
    );
    // More than one statement has.
    let many: Vec<String> = (0..1_200).map(|number| format!("o{number}")).collect();
    let many: Vec<&str> = many
        .iter()
        .map(String::as_str)
        .chain(["acme*", "other"])
        .collect();
    for (names, from, to) in [
        (None, None, None),
        (Some(&["acme"][..]), None, None),
        (Some(&["none"]), None, None),
        (Some(&[]), None, None),
        (Some(&["acme*"]), None, None),
        (Some(&["Acme", "acme*", "other"]), None, None),
        (Some(&many), Some(2), None),
        (None, Some(2), Some(4)),
        (Some(&["other"]), Some(3), None),
        (Some(&["other"]), None, Some(3)),
    ] {
        let patterns: Option<Vec<Pattern>> = names.map(|names: &[&str]| {
            let patterns = names.iter().map(|name| Pattern::parse(name).unwrap());
            patterns.collect()
        });
        let query = AuditQuery {
            organizations: patterns.clone(),
            start: from.map(at),
            end: to.map(at),
            ..EVERYTHING
        };
        let is_wanted = |entry: &&AuditEntry| {
            let mut patterns = patterns.iter().flatten();
            (names.is_none() || patterns.any(|pattern| pattern.matches(&entry.organization_id)))
                && query.start.is_none_or(|start| entry.at >= start)
                && query.end.is_none_or(|end| entry.at < end)
        };
        let wanted: Vec<AuditEntry> = all.iter().filter(is_wanted).cloned().collect();
        for limit in [1, 7, 90] {
            let (mut found, mut before) = (Vec::new(), None);
            loop {
                let query = AuditQuery {
                    before,
                    limit,
                    ..query.clone()
                };
                let page = list(&registry, &query).await?;
                ensure!(page.len() <= limit, "more entries than the limit");
                let Some(last) = page.last() else { break };
                before = Some(AuditPosition::from(last));
                found.extend(page);
                ensure!(found.len() <= wanted.len(), "an entry is on two pages");
            }
            ensure!(
                found == wanted,
                "{names:?} from {from:?} to {to:?} in pages of {limit}: {} entries, not {}",
                found.len(),
                wanted.len()
            );
        }
    }
    Ok(())
}

/// Removes until nothing is left to remove, and returns the number of steps.
async fn prune(registry: &Shared, now: Timestamp, limits: AuditLimits) -> Checked<usize> {
    for step in 1..100 {
        let pruned = registry.prune_audit(now, limits).await;
        if pruned.map_err(failed("prune_audit"))? {
            return Ok(step);
        }
    }
    Err("the removal does not end".to_owned())
}

async fn limits(registry: Shared) -> Checked {
    let counts = async || {
        let all = list(&registry, &EVERYTHING).await?;
        let refused = all.iter().filter(|entry| entry.id < 0).count();
        Ok::<_, String>((all.len() - refused, refused))
    };
    let unlimited = AuditLimits {
        max_age: Duration::MAX,
        max_entries: u64::MAX,
    };
    record(&registry, &tests(20, "old", at(0))).await?;
    record(&registry, &refusals(MANY, "acme", at(10))).await?;
    record(&registry, &tests(MANY, "acme", at(20))).await?;
    ensure!(
        prune(&registry, at(1_000_000_000), unlimited).await? == 1,
        "something was to be removed without limits"
    );
    ensure!(
        counts().await? == (MANY + 20, MANY),
        "removed without limits"
    );
    let aged = AuditLimits {
        max_age: Duration::from_secs(60),
        ..unlimited
    };
    prune(&registry, at(60), aged).await?;
    ensure!(
        counts().await? == (MANY + 20, MANY),
        "removed before its time"
    );
    prune(&registry, at(61), aged).await?;
    let found = counts().await?;
    ensure!(
        found == (MANY, MANY),
        "{found:?} after the oldest are too old"
    );
    let few = AuditLimits {
        max_entries: 50,
        ..unlimited
    };
    ensure!(
        prune(&registry, at(61), few).await? > 1,
        "everything was removed in one step"
    );
    let found = counts().await?;
    ensure!(found == (45, 5), "{found:?} of at most 50 entries");
    // However many refusals come, they take nothing from the others.
    record(&registry, &refusals(MANY, "acme", at(30))).await?;
    prune(&registry, at(61), few).await?;
    let found = counts().await?;
    ensure!(found == (45, 5), "{found:?} after many refusals");
    let left = list(&registry, &EVERYTHING).await?;
    ensure!(
        left[..5]
            .iter()
            .all(|entry| entry.id < 0 && entry.at == at(30)),
        "not the oldest were removed"
    );
    prune(&registry, at(1_000), aged).await?;
    ensure!(counts().await? == (0, 0), "entries that are too old");
    record(&registry, &tests(1, "new", at(1_000))).await?;
    record(&registry, &refusals(1, "new", at(1_000))).await?;
    prune(&registry, at(1_000), few).await?;
    ensure!(counts().await? == (1, 1), "a new entry was removed");
    Ok(())
}
