//! ListAuditEntries, and what it lists.

use aws_stand_in::Operation;
use sea_orm::{ConnectionTrait, DbBackend, Statement};
use siem_client::v1::{
    AuditAction, AuditEntry, ConfigureRequest, ErrorReason, ListAuditEntriesRequest,
};
use tonic::{Code, Request};

use crate::harness::{
    Api, Customer, FeedEvent, ProcessEnv, TestEnv, database, reason, violated, with_timeout,
};

const SERVICE: &str = "siem.v1.SiemIntegrationService";

fn of(organization_id: &str) -> ListAuditEntriesRequest {
    ListAuditEntriesRequest {
        organization_id: organization_id.to_owned(),
        ..ListAuditEntriesRequest::default()
    }
}

/// All entries, oldest first.
async fn all(api: &Api, request: ListAuditEntriesRequest) -> Vec<AuditEntry> {
    let (mut entries, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListAuditEntriesRequest {
            page_token,
            ..request.clone()
        };
        let page = api.try_audit(request).await.unwrap();
        entries.extend(page.entries);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            entries.reverse();
            return entries;
        }
    }
}

/// Polls until an entry satisfies `good`, and returns it.
async fn until(api: &Api, good: impl Fn(&AuditEntry) -> bool) -> AuditEntry {
    with_timeout("an audit entry", async {
        loop {
            let entries = all(api, ListAuditEntriesRequest::default()).await;
            if let Some(found) = entries.into_iter().find(&good) {
                return found;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

fn changes(entry: &AuditEntry) -> Vec<(&str, &str, &str)> {
    let changes = entry.changes.iter();
    changes
        .map(|change| {
            (
                change.field.as_str(),
                change.old_value.as_str(),
                change.new_value.as_str(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_audited_with_its_caller() {
    let env = TestEnv::start().await;
    let (customer, created) = env.customer("acme").await;
    let elsewhere = customer.with_stream("elsewhere");
    elsewhere.make_stream(&env.aws, 1);
    let mut request = Request::new(elsewhere.request());
    let id = "their-id.7".parse().unwrap();
    request.metadata_mut().insert("x-request-id", id);
    env.api.integrations().configure(request).await.unwrap();
    env.api.generate_external_id("acme").await;
    let mut feed = env.api.watch_changes("acme").await;
    assert!(env.api.send_test("acme").await.delivered);
    env.api.delete("acme", false).await.unwrap();
    feed.until(&FeedEvent::Deleted("acme".to_owned())).await;
    env.api.delete("acme", true).await.unwrap();
    env.api.generate_external_id("other").await;

    let entries = all(&env.api, of("acme")).await;
    let find = |action: AuditAction| {
        let mut found = entries.iter().filter(|entry| entry.action() == action);
        let one = found.next().unwrap_or_else(|| panic!("no {action:?}"));
        assert!(found.next().is_none(), "{action:?} twice");
        one
    };
    assert_eq!(entries.len(), 6, "{entries:#?}");
    let mut ids = Vec::new();
    for (action, method, shown) in [
        (
            AuditAction::Create,
            "Configure",
            vec![
                ("kinesis_stream_arn", "", customer.stream_arn.as_str()),
                ("role_arn", "", &customer.role_arn),
                ("external_id", "", "changed"),
            ],
        ),
        (
            AuditAction::Replace,
            "Configure",
            vec![(
                "kinesis_stream_arn",
                customer.stream_arn.as_str(),
                elsewhere.stream_arn.as_str(),
            )],
        ),
        (AuditAction::IssueExternalId, "GenerateExternalId", vec![]),
        (
            AuditAction::SendTest,
            "SendTest",
            vec![("delivered", "", "true")],
        ),
        (
            AuditAction::Delete,
            "Delete",
            vec![
                ("kinesis_stream_arn", elsewhere.stream_arn.as_str(), ""),
                ("role_arn", &customer.role_arn, ""),
                ("external_id", "", "changed"),
            ],
        ),
    ] {
        let entry = find(action);
        assert_eq!(entry.method, format!("{SERVICE}/{method}"));
        assert_eq!(changes(entry), shown, "{action:?}");
        assert_eq!(entry.principal, "unauthenticated");
        let id = uuid::Uuid::parse_str(&entry.request_id).unwrap();
        assert_eq!(id.get_version_num(), 7);
        ids.push(id);
        assert_eq!((entry.code.as_str(), entry.count), ("OK", 1));
        assert_eq!(entry.reason(), ErrorReason::Unspecified);
        assert_eq!(entry.time, entry.last_time);
        match action {
            AuditAction::IssueExternalId => assert_eq!(entry.integration_id, ""),
            _ => assert_eq!(entry.integration_id, created.integration_id),
        }
    }
    let client_ids = entries.iter().map(|entry| entry.client_request_id.as_str());
    assert_eq!(client_ids.filter(|id| !id.is_empty()).count(), 1);
    assert_eq!(find(AuditAction::Replace).client_request_id, "their-id.7");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 5, "each request has an id");

    let status = find(AuditAction::Status);
    assert_eq!(changes(status), [("status", "UNKNOWN", "ACTIVE")]);
    assert_eq!(
        (status.principal.as_str(), status.method.as_str()),
        ("siem-relay", "")
    );
    let others = all(&env.api, of("other")).await;
    assert_eq!(others.len(), 1);
    assert_eq!(
        all(&env.api, ListAuditEntriesRequest::default())
            .await
            .len(),
        7
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn configures_that_change_nothing_are_counted() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    for _ in 0..20 {
        env.api.configure(&customer).await;
    }
    let entries = all(&env.api, of("acme")).await;
    // Two if an hour begins meanwhile.
    assert!((2..=3).contains(&entries.len()), "{entries:#?}");
    assert_eq!(entries[0].action(), AuditAction::Create);
    let same = &entries[1..];
    assert!(same.iter().all(|entry| entry.changes.is_empty()));
    assert_eq!(same.iter().map(|entry| entry.count).sum::<u64>(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_external_id_is_audited_and_counted() {
    let env = TestEnv::start().await;
    let (customer, _) = env.customer("acme").await;
    let guess = ConfigureRequest {
        organization_id: "other".to_owned(),
        ..customer.request()
    };
    let refusals = 30;
    let mut codes = Vec::new();
    for number in 0..refusals {
        let guess = ConfigureRequest {
            validate_only: number % 2 == 0,
            ..guess.clone()
        };
        codes.push(env.api.try_configure(guess).await.unwrap_err());
    }
    let is_refusal = |entry: &AuditEntry| entry.action() == AuditAction::Refuse;
    let first = until(&env.api, is_refusal).await;
    assert_eq!(first.method, format!("{SERVICE}/Configure"));
    assert_eq!(first.organization_id, "other");
    assert_eq!(first.integration_id, "");
    assert_eq!(changes(&first), [("external_id", "", "refused")]);
    let refused = reason(&codes[0]);
    assert_eq!(
        first.reason().as_str_name(),
        format!("ERROR_REASON_{refused}")
    );
    // An orderly shutdown writes those that wait.
    let env = env.restart().await;
    let entries = all(&env.api, of("other")).await;
    assert!(entries.iter().all(is_refusal));
    let counted: u64 = entries.iter().map(|entry| entry.count).sum();
    assert_eq!(counted, refusals);
    assert!(entries.len() < 5, "{} entries", entries.len());
    // Errors of other kinds are none.
    let malformed = ConfigureRequest::default();
    env.api.try_configure(malformed).await.unwrap_err();
    let env = env.restart().await;
    let again = all(&env.api, ListAuditEntriesRequest::default()).await;
    assert_eq!(
        again.iter().filter(|entry| is_refusal(entry)).count(),
        entries.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_and_filters_select_entries() {
    let env = TestEnv::start().await;
    for number in 0..5 {
        for name in ["acme", "other"] {
            let stream = format!("s{number}");
            env.api
                .configure(&Customer::new(name).with_stream(&stream))
                .await;
        }
    }
    let everything = all(&env.api, ListAuditEntriesRequest::default()).await;
    assert_eq!(everything.len(), 10);
    let ids = |entries: &[AuditEntry]| -> Vec<String> {
        entries.iter().map(|entry| entry.entry_id.clone()).collect()
    };
    let acme: Vec<AuditEntry> = everything
        .iter()
        .filter(|entry| entry.organization_id == "acme")
        .cloned()
        .collect();
    for page_size in [1, 2, 5, 1000] {
        let request = ListAuditEntriesRequest {
            page_size,
            ..of("acme")
        };
        let first = env.api.try_audit(request.clone()).await.unwrap();
        assert!(first.entries.len() <= page_size as usize);
        assert_eq!(ids(&all(&env.api, request).await), ids(&acme));
    }
    let between = ListAuditEntriesRequest {
        start_time: acme[1].time,
        end_time: acme[3].time,
        ..of("acme")
    };
    assert_eq!(ids(&all(&env.api, between).await), ids(&acme[1..3]));
    assert_eq!(all(&env.api, of("nobody")).await, []);
    let bad = ListAuditEntriesRequest {
        page_size: 1001,
        page_token: "nobody's".to_owned(),
        start_time: acme[3].time,
        end_time: acme[1].time,
        ..of("a b")
    };
    let refused = env.api.try_audit(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        violated(&refused),
        ["organization_id", "end_time", "page_size", "page_token"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_entries_beyond_the_limit_are_removed() {
    let env = TestEnv::with(&[("audit-max-entries", "100")]).await;
    let customer = Customer::new("acme");
    let changes = 130;
    for number in 0..changes {
        let stream = format!("s{}", number % 2);
        env.api.configure(&customer.with_stream(&stream)).await;
    }
    let request = ListAuditEntriesRequest {
        page_size: 1,
        ..of("acme")
    };
    let newest = env.api.try_audit(request).await.unwrap().entries.remove(0);
    let env = env.restart().await;
    let left = with_timeout("the removal", async {
        loop {
            let entries = all(&env.api, of("acme")).await;
            if entries.len() <= 90 {
                return entries;
            }
            tokio::task::yield_now().await;
        }
    });
    let left = left.await;
    assert_eq!(left.len(), 90, "a tenth is for refusals");
    assert_eq!(left[89].entry_id, newest.entry_id);
    assert!(
        left.iter()
            .all(|entry| entry.action() == AuditAction::Replace)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_test_whose_caller_hangs_up_is_audited() {
    let env = TestEnv::start().await;
    env.customer("acme").await;
    let hanging = env.hang(Operation::AssumeRole, None);
    let api = env.api.clone();
    let call = tokio::spawn(async move { api.try_send_test("acme").await });
    env.until_hanging(&hanging, 1).await;
    call.abort();
    let entry = until(&env.api, |entry| entry.action() == AuditAction::SendTest).await;
    assert_eq!(
        (entry.code.as_str(), entry.organization_id.as_str()),
        ("CANCELLED", "acme")
    );
    env.aws.clear_fault(hanging.id);
}

/// External IDs in no row and no answer of the audit, neither in clear nor as the hash that is
/// stored beside them.
#[tokio::test(flavor = "multi_thread")]
async fn no_external_id_is_in_the_audit() {
    const SECRETS: [&str; 2] = [
        "Vx3:first-marker/of=acme,77",
        "Vx3:second-marker/of=acme,88",
    ];
    let env = ProcessEnv::new().await;
    let process = env.start().await;
    let [first, second] = SECRETS.map(|secret| env.customer.with_external_id(secret));
    first.make_role(&env.aws);
    process.api.configure(&first).await;
    assert!(process.api.send_test("acme").await.delivered);
    let rotated = ConfigureRequest {
        keep_previous_external_id: true,
        ..second.request()
    };
    process.api.try_configure(rotated).await.unwrap();
    second.make_role(&env.aws);
    assert!(process.api.send_test("acme").await.delivered);
    for validate_only in [false, true] {
        let guess = ConfigureRequest {
            organization_id: "other".to_owned(),
            validate_only,
            ..second.request()
        };
        process.api.try_configure(guess).await.unwrap_err();
    }
    let issued = process.api.generate_external_id("acme").await;
    let took_over = |entry: &AuditEntry| entry.action() == AuditAction::ExternalIdTookOver;
    until(&process.api, took_over).await;
    until(&process.api, |entry| entry.action() == AuditAction::Refuse).await;
    process.api.delete("acme", false).await.unwrap();
    let entries = all(&process.api, ListAuditEntriesRequest::default()).await;
    process.stop().await;

    let db = database(env.dir.path()).await;
    let sql = |text: &str| Statement::from_string(DbBackend::Sqlite, text);
    let names = "SELECT group_concat('coalesce(' || name || ', 0)', '||') AS columns \
        FROM pragma_table_info('audit')";
    let names = db.query_one_raw(sql(names)).await.unwrap().unwrap();
    let columns: String = names.try_get("", "columns").unwrap();
    let rows = sql(&format!("SELECT {columns} AS text FROM audit"));
    let rows = db.query_all_raw(rows).await.unwrap();
    assert!(rows.len() >= entries.len());
    let rows = rows
        .iter()
        .map(|row| row.try_get::<String>("", "text").unwrap());
    let text = format!("{:?} {entries:?}", rows.collect::<Vec<_>>());
    assert!(text.contains("external_id_took_over") && text.contains("refuse"));
    let secrets = SECRETS.into_iter().chain(["Vx3", "-marker", &issued]);
    for secret in secrets {
        assert!(!text.contains(secret), "{secret} is in {text}");
        assert!(!text.contains(&hex::encode(secret)), "{secret} in hex");
    }
}
