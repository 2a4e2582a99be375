//! Conformance of registries, and of the replica that they feed.

mod audit;
mod keys;
mod model;
mod planted;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
};
use uuid::Uuid;

use super::{Checked, ensure};
use crate::{
    domain::{
        arn::{RoleArn, StreamArn},
        audit::Actor,
        integration::{Integration, IntegrationId, PreviousExternalId, SealedExternalId},
        organization::OrganizationId,
        rights::Rights,
        status::{Cause, Fault, Observation, Reason, Stage, Status},
    },
    store::{
        ConfigureError, IssueError, StoreError,
        ports::{
            Claim, ISSUED_VALID, Keys, MAX_ISSUED, NextRetry, Observed, Planned, Registered,
            Registry, RegistryChange, RegistryChanges,
        },
        replica::Replica,
        sql::{RegistryOptions, SqlRegistry, testing::database},
    },
};

/// Settings with which the registries of the suite are opened.
pub(crate) const OPTIONS: RegistryOptions = RegistryOptions {
    partitions: 7,
    tombstones: 4,
    failing_after: Duration::from_secs(60),
};

/// Changes of one read that is meant to return all.
const ALL: usize = 10_000;

type Shared = Arc<dyn Registry>;

/// Runs every check. `create` makes the storage of a new registry, which `open` opens with
/// [`OPTIONS`].
pub(crate) async fn suite<S>(
    create: impl AsyncFn() -> S,
    open: impl AsyncFn(&S) -> Shared,
) -> Checked {
    let new = async || open(&create().await).await;
    configuring(new().await).await?;
    refusals(new().await).await?;
    external_ids(new().await).await?;
    issued_external_ids(new().await).await?;
    status_of_a_new_configuration(new().await).await?;
    folding(new().await).await?;
    void_observations(new().await).await?;
    concurrency(new().await).await?;
    bulk(new().await).await?;
    forgotten_deletions(new().await).await?;
    audit::suite(&new).await?;
    let storage = create().await;
    instances(vec![open(&storage).await, open(&storage).await], 0).await?;
    let storage = create().await;
    stall(open(&storage).await, open(&storage).await).await?;
    let storage = create().await;
    keys::rotation(open(&storage).await, async || open(&storage).await).await?;
    keys::stale_steps(open(&create().await).await).await?;
    keys::unreadable(open(&create().await).await).await?;
    for seed in 0..SEEDS / 12 {
        let storage = create().await;
        let (first, second) = (open(&storage).await, open(&storage).await);
        keys::rotation_beside_configures(first, second, seed).await?;
    }
    for seed in 0..SEEDS {
        let storage = create().await;
        let run = model::run(seed, async || open(&storage).await);
        run.await.map_err(|error| format!("seed {seed}: {error}"))?;
    }
    Ok(())
}

/// Random runs of a suite.
const SEEDS: u64 = 24;

/// Values of a Configure.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    stream: u8,
    /// Stands for an external ID.
    external_id: u8,
    pub(crate) keep_previous: bool,
    issued_only: bool,
    version: Option<u64>,
}

impl Wish {
    pub(crate) fn of(external_id: u8) -> Self {
        Self {
            stream: 1,
            external_id,
            keep_previous: false,
            issued_only: false,
            version: None,
        }
    }
}

fn fingerprint(external_id: u8) -> Vec<u8> {
    vec![external_id; 32]
}

fn claim(external_id: u8) -> Claim {
    Claim {
        fingerprint: fingerprint(external_id),
        others: Vec::new(),
        sealed: sealed(external_id),
    }
}

fn sealed(external_id: u8) -> SealedExternalId {
    SealedExternalId {
        key_id: "key".into(),
        bytes: vec![external_id; 40].into(),
    }
}

fn organization(name: &str) -> OrganizationId {
    OrganizationId::new(name).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

/// Decides as the service does, with stand-ins for encryption.
fn planned(
    organization_id: &OrganizationId,
    existing: Option<&Registered>,
    wish: &Wish,
) -> Result<Planned, ConfigureError> {
    let before = existing.map(|registered| &*registered.integration);
    if wish.version.is_some() && wish.version != before.map(|before| before.version) {
        return Err(ConfigureError::EtagMismatch);
    }
    let version = before.map_or(1, |before| before.version + 1);
    let new_id = before.is_none_or(|before| before.external_id.bytes[0] != wish.external_id);
    let stream = format!(
        "arn:aws:kinesis:us-east-1:222222222222:stream/s{}",
        wish.stream
    );
    let stream_arn = StreamArn::parse(&stream).unwrap();
    let previous = before.and_then(|before| match (new_id, wish.keep_previous) {
        (true, true) => Some(PreviousExternalId {
            external_id: before.external_id.clone(),
            hint: before.external_id_hint.clone(),
            until: at(9_999),
        }),
        (true, false) => None,
        (false, _) => before.previous.clone(),
    });
    let changed = before.map(|before| {
        let mut changed = Vec::new();
        if before.stream_arn != stream_arn {
            changed.push("kinesis_stream_arn");
        }
        if new_id {
            changed.push("external_id");
        }
        changed
    });
    Ok(Planned {
        previous_claim: previous
            .as_ref()
            .map(|previous| claim(previous.external_id.bytes[0])),
        integration: Integration {
            organization_id: organization_id.clone(),
            integration_id: before.map_or_else(
                || IntegrationId(Uuid::now_v7()),
                |before| before.integration_id,
            ),
            stream_arn,
            role_arn: RoleArn::parse("arn:aws:iam::222222222222:role/relay").unwrap(),
            external_id: sealed(wish.external_id),
            external_id_hint: format!("h{}", wish.external_id).into(),
            external_id_set_at: at(version as i64),
            previous,
            version,
            created_at: before.map_or(at(0), |before| before.created_at),
            updated_at: at(100 + version as i64),
        },
        claim: claim(wish.external_id),
        changed,
        issued_only: wish.issued_only && new_id,
        actor: Actor::named("tester"),
    })
}

pub(crate) async fn configure(
    registry: &Shared,
    name: &str,
    wish: Wish,
) -> Result<u64, ConfigureError> {
    let organization_id = organization(name);
    let plan = |existing: Option<&Registered>, _: &Keys| planned(&organization_id, existing, &wish);
    let stored = registry.configure(&organization_id, &plan).await?;
    Ok(stored.revision)
}

fn failed<E: std::fmt::Display>(action: &'static str) -> impl Fn(E) -> String {
    move |error| format!("{action} failed: {error}")
}

async fn must_configure(registry: &Shared, name: &str, wish: Wish) -> Checked<Registered> {
    let revision = configure(registry, name, wish).await;
    let revision = revision.map_err(failed("Configure"))?;
    let found = must_find(registry, name).await?;
    ensure!(
        found.revision == revision,
        "a Configure returned revision {revision}, not {}",
        found.revision,
    );
    Ok(found)
}

async fn must_delete(registry: &Shared, name: &str) -> Checked<u64> {
    let deleted = registry
        .delete(&organization(name), None, &Actor::named("tester"))
        .await;
    let deleted = deleted.map_err(failed("delete"))?;
    let tombstone = deleted.ok_or("delete found no integration")?;
    Ok(tombstone.revision)
}

async fn all(registry: &Shared) -> Checked<RegistryChanges> {
    let changes = registry.changes_after(0, ALL).await;
    changes.map_err(failed("changes_after"))
}

async fn find(registry: &Shared, name: &str) -> Checked<Option<Registered>> {
    let mut found = all(registry)
        .await?
        .changes
        .into_iter()
        .filter_map(|change| match change {
            RegistryChange::Current(registered) => Some(registered),
            RegistryChange::Deleted(_) => None,
        });
    Ok(found.find(|found| found.integration.organization_id.as_str() == name))
}

async fn must_find(registry: &Shared, name: &str) -> Checked<Registered> {
    let found = find(registry, name).await?;
    found.ok_or_else(|| format!("the integration of {name} is not visible"))
}

fn denied() -> Observation {
    let code = "AccessDeniedException";
    Observation::Failed(Fault::answered(
        Stage::Write,
        Some(code),
        400,
        Some("request"),
    ))
}

fn unreachable() -> Observation {
    Observation::Failed(Fault::unanswered(Stage::Write, Cause::Timeout))
}

fn observed(of: &Registered, began: i64, observation: Observation) -> Observed {
    Observed {
        integration_id: of.integration.integration_id,
        version: of.integration.version,
        began_at: at(began),
        at: at(began + 1),
        observation,
        next_retry: NextRetry::None,
    }
}

async fn observe(registry: &Shared, observed: &[Observed]) -> Checked {
    registry.observe(observed).await.map_err(failed("observe"))
}

/// Reads the changes after the cursor of a replica in pages of `limit`, checks them and applies
/// them.
async fn follow(replica: &Replica, registry: &Shared, limit: usize) -> Checked {
    loop {
        let after = replica.cursor();
        let changes = registry.changes_after(after, limit).await;
        let changes = changes.map_err(failed("changes_after"))?;
        let mut last = after;
        for change in &changes.changes {
            let revision = change.revision();
            ensure!(revision > last, "revision {revision} follows {last}");
            last = revision;
        }
        ensure!(last <= changes.up_to, "a change after up_to");
        let count = changes.changes.len();
        ensure!(count <= limit, "more changes than the limit");
        ensure!(
            !changes.more || count > 0,
            "a page without changes, and more after it"
        );
        if replica.apply(changes).is_complete {
            return Ok(());
        }
        yield_now().await;
    }
}

/// Compares a replica to one that reads everything anew.
async fn ensure_complete(replica: &Replica, registry: &Shared) -> Checked {
    let anew = Replica::default();
    follow(&anew, registry, ALL).await?;
    let list = |replica: &Replica| {
        let page = replica.page("", ALL, &Rights::UNLIMITED, |_| true);
        let one =
            |registered: Registered| (registered.integration.integration_id, registered.revision);
        page.into_iter().map(one).collect::<Vec<_>>()
    };
    let (list, expected) = (list(replica), list(&anew));
    let first = list.iter().zip(&expected).find(|(one, other)| one != other);
    ensure!(
        list == expected,
        "a reader that follows has {} integrations of {}; the first that differs: {first:?}",
        list.len(),
        expected.len(),
    );
    Ok(())
}

async fn configuring(registry: Shared) -> Checked {
    let created = must_configure(&registry, "acme", Wish::of(1)).await?;
    let integration = &created.integration;
    ensure!(
        created.status_revision == created.revision,
        "a creation is a change of status"
    );
    let partition = integration.integration_id.0.as_u128() % u128::from(OPTIONS.partitions);
    ensure!(
        u128::from(created.partition) == partition,
        "partition {}",
        created.partition
    );
    ensure!(
        created.status.status == Status::Unknown,
        "a new integration has a status"
    );
    ensure!(
        created.status.since == integration.created_at,
        "the status is older"
    );

    let mut wish = Wish::of(2);
    wish.keep_previous = true;
    let wanted = planned(&organization("acme"), Some(&created), &wish);
    let wanted = wanted.map_err(failed("the plan"))?;
    let replaced = must_configure(&registry, "acme", wish).await?;
    let (stored, wanted) = (
        format!("{:?}", replaced.integration),
        format!("{:?}", wanted.integration),
    );
    ensure!(stored == wanted, "stored {stored}, not {wanted}");
    ensure!(
        replaced.revision > created.revision,
        "the revision did not rise"
    );
    ensure!(
        replaced.status_revision == created.status_revision,
        "a change of the configuration without one of the status raised its revision",
    );
    ensure!(
        replaced.partition == created.partition,
        "the partition changed"
    );

    let (acme, tester) = (organization("acme"), Actor::named("tester"));
    let stale = registry
        .delete(&acme, Some(&integration.etag()), &tester)
        .await;
    ensure!(
        matches!(stale, Err(ConfigureError::EtagMismatch)),
        "deleted under a stale etag"
    );
    let deleted = must_delete(&registry, "acme").await?;
    ensure!(deleted > replaced.revision, "the revision did not rise");
    ensure!(
        find(&registry, "acme").await?.is_none(),
        "visible after its deletion"
    );
    let again = registry
        .delete(&organization("acme"), None, &Actor::named("tester"))
        .await;
    ensure!(again.map_err(failed("delete"))?.is_none(), "deleted again");
    let recreated = must_configure(&registry, "acme", Wish::of(1)).await?;
    let is_new = recreated.integration.integration_id != integration.integration_id;
    ensure!(
        is_new && recreated.integration.version == 1,
        "not a new integration"
    );
    ensure!(recreated.revision > deleted, "the revision did not rise");

    let changes = all(&registry).await?.changes;
    ensure!(
        changes.len() == 2,
        "{} changes, not a deletion and a creation",
        changes.len()
    );
    ensure!(
        matches!(&changes[0], RegistryChange::Deleted(tombstone)
            if tombstone.revision == deleted
                && tombstone.integration_id == integration.integration_id
                && tombstone.organization_id.as_str() == "acme"),
        "the deletion is missing",
    );
    Ok(())
}

async fn refusals(registry: Shared) -> Checked {
    must_configure(&registry, "acme", Wish::of(1)).await?;
    let before = all(&registry).await?;
    let mut wish = Wish::of(2);
    wish.version = Some(9);
    let refused = configure(&registry, "acme", wish.clone()).await;
    ensure!(
        matches!(refused, Err(ConfigureError::EtagMismatch)),
        "{refused:?}"
    );
    let refused = configure(&registry, "other", Wish::of(1)).await;
    ensure!(
        matches!(refused, Err(ConfigureError::ExternalIdInUse)),
        "{refused:?}"
    );
    let after = all(&registry).await?;
    ensure!(
        after.up_to == before.up_to,
        "a refused Configure took a revision"
    );
    ensure!(after.changes.len() == 1, "a refused Configure was stored");
    wish.version = Some(1);
    let replaced = must_configure(&registry, "acme", wish).await?;
    ensure!(
        replaced.integration.version == 2,
        "the plan saw another version"
    );
    Ok(())
}

/// Whether an organization may use an external ID.
async fn may_use(
    registry: &Shared,
    name: &str,
    external_id: u8,
    issued_only: bool,
) -> Checked<&'static str> {
    may_use_at(registry, name, external_id, issued_only, at(0)).await
}

async fn may_use_at(
    registry: &Shared,
    name: &str,
    external_id: u8,
    issued_only: bool,
    now: Timestamp,
) -> Checked<&'static str> {
    let checked = registry
        .check_external_id(&organization(name), &claim(external_id), issued_only, now)
        .await;
    match checked {
        Ok(()) => Ok("yes"),
        Err(ConfigureError::ExternalIdInUse) => Ok("in use"),
        Err(ConfigureError::ExternalIdNotIssued) => Ok("not issued"),
        Err(error) => Err(format!("check_external_id failed: {error}")),
    }
}

async fn external_ids(registry: Shared) -> Checked {
    must_configure(&registry, "acme", Wish::of(1)).await?;
    let mut wish = Wish::of(2);
    wish.keep_previous = true;
    let acme = must_configure(&registry, "acme", wish).await?;
    for used in [1, 2] {
        let refused = configure(&registry, "other", Wish::of(used)).await;
        let in_use = matches!(refused, Err(ConfigureError::ExternalIdInUse));
        ensure!(in_use, "external ID {used} is used by two organizations");
        let checked = may_use(&registry, "other", used, false).await?;
        ensure!(checked == "in use", "external ID {used}: {checked}");
        ensure!(
            may_use(&registry, "acme", used, false).await? == "yes",
            "not its own"
        );
    }

    let id = acme.integration.integration_id;
    for (version, is_retired) in [(1, false), (2, true), (2, true)] {
        let before = must_find(&registry, "acme").await?;
        let retired = registry
            .retire_previous_external_id(id, version, at(0))
            .await;
        retired.map_err(failed("retire"))?;
        let now = must_find(&registry, "acme").await?;
        ensure!(
            now.integration.previous.is_none() == is_retired,
            "version {version}"
        );
        let changes = before.integration.previous.is_some() == now.integration.previous.is_none();
        ensure!(
            (now.revision > before.revision) == changes,
            "the revision is wrong"
        );
        ensure!(
            now.status_revision == acme.status_revision,
            "not a change of status"
        );
        ensure!(now.integration.version == 2, "the version changed");
    }
    must_configure(&registry, "other", Wish::of(1)).await?;

    must_issue(&registry, "acme", 3, at(0)).await?;
    ensure!(
        may_use(&registry, "other", 3, false).await? == "in use",
        "issued to another"
    );
    ensure!(
        may_use(&registry, "acme", 3, true).await? == "yes",
        "issued to it"
    );
    ensure!(
        may_use(&registry, "acme", 4, true).await? == "not issued",
        "never issued"
    );
    let refused = configure(&registry, "other", Wish::of(3)).await;
    ensure!(
        matches!(refused, Err(ConfigureError::ExternalIdInUse)),
        "issued to another"
    );
    let mut wish = Wish::of(4);
    wish.issued_only = true;
    let refused = configure(&registry, "acme", wish.clone()).await;
    ensure!(
        matches!(refused, Err(ConfigureError::ExternalIdNotIssued)),
        "never issued"
    );
    wish.external_id = 3;
    must_configure(&registry, "acme", wish).await?;

    must_delete(&registry, "acme").await?;
    ensure!(
        may_use(&registry, "other", 2, false).await? == "yes",
        "a deleted one uses it"
    );
    ensure!(
        may_use(&registry, "other", 3, false).await? == "yes",
        "a deleted one used it"
    );
    must_configure(&registry, "other", Wish::of(2))
        .await
        .map(drop)
}

async fn issue(
    registry: &Shared,
    name: &str,
    external_id: u8,
    now: Timestamp,
) -> Result<(), IssueError> {
    registry
        .issue_external_id(
            &organization(name),
            &|_| Ok(claim(external_id)),
            &Actor::named("tester"),
            now,
        )
        .await
}

async fn must_issue(registry: &Shared, name: &str, external_id: u8, now: Timestamp) -> Checked {
    let issued = issue(registry, name, external_id, now).await;
    issued.map_err(failed("issue"))
}

/// An organization may have ten external IDs that it does not use; none is forgotten before it
/// lapses.
async fn issued_external_ids(registry: Shared) -> Checked {
    let month = ISSUED_VALID.as_secs() as i64;
    for external_id in 1..=MAX_ISSUED as u8 {
        must_issue(&registry, "acme", external_id, at(external_id.into())).await?;
    }
    let refused = issue(&registry, "acme", 11, at(20)).await;
    ensure!(
        matches!(refused, Err(IssueError::TooMany)),
        "the eleventh is not refused"
    );
    must_issue(&registry, "other", 21, at(20)).await?;
    for external_id in 1..=MAX_ISSUED as u8 {
        ensure!(
            may_use(&registry, "acme", external_id, true).await? == "yes",
            "the refused one displaced {external_id}"
        );
    }

    // One that is used does not count.
    let mut wish = Wish::of(4);
    wish.issued_only = true;
    must_configure(&registry, "acme", wish.clone()).await?;
    must_issue(&registry, "acme", 11, at(20)).await?;
    let refused = issue(&registry, "acme", 12, at(20)).await;
    ensure!(
        matches!(refused, Err(IssueError::TooMany)),
        "there are ten again"
    );
    // It stays in use beyond the time of one that is not used.
    ensure!(
        may_use_at(&registry, "other", 4, false, at(5 * month)).await? == "in use",
        "a configured one lapsed"
    );
    // Its predecessor may come back while it is kept.
    wish.external_id = 5;
    wish.keep_previous = true;
    must_configure(&registry, "acme", wish.clone()).await?;
    ensure!(
        may_use(&registry, "acme", 4, true).await? == "yes",
        "the previous one is refused"
    );

    // The first one lapses, and the others do not yet.
    let lapse = at(1 + month);
    for (external_id, now, expected) in [
        (1, at(month), "in use"),
        (1, lapse, "yes"),
        (2, lapse, "in use"),
    ] {
        let found = may_use_at(&registry, "other", external_id, false, now).await?;
        ensure!(found == expected, "{external_id} at {now}: {found}");
    }
    let found = may_use_at(&registry, "acme", 1, true, lapse).await?;
    ensure!(found == "not issued", "a lapsed one is {found}");
    must_issue(&registry, "acme", 13, lapse).await?;

    // A Delete ends all reservations, also without an integration.
    must_delete(&registry, "acme").await?;
    for external_id in [2, 4, 5, 13] {
        ensure!(
            may_use(&registry, "other", external_id, false).await? == "yes",
            "{external_id} was not released"
        );
    }
    let deleted = registry
        .delete(&organization("other"), None, &Actor::named("tester"))
        .await;
    let deleted = deleted.map_err(failed("delete"))?;
    ensure!(deleted.is_none(), "there is no integration");
    ensure!(
        may_use(&registry, "acme", 21, false).await? == "yes",
        "21 was not released"
    );

    // Nor are there more if they are issued at the same time.
    let racers: JoinSet<_> = (30..50)
        .map(|external_id| {
            let registry = Arc::clone(&registry);
            async move { issue(&registry, "racer", external_id, at(0)).await }
        })
        .collect();
    let issued = racers.join_all().await;
    let issued = issued.iter().filter(|issued| issued.is_ok()).count();
    ensure!(issued == MAX_ISSUED as usize, "{issued} at the same time");
    Ok(())
}

async fn status_of_a_new_configuration(registry: Shared) -> Checked {
    let created = must_configure(&registry, "acme", Wish::of(1)).await?;
    let unreachable = [observed(&created, 1, unreachable())];
    observe(&registry, &unreachable).await?;
    let stalled = must_find(&registry, "acme").await?;
    ensure!(stalled.stall.span().is_some(), "the stall is not kept");
    observe(&registry, &[observed(&created, 2, denied())]).await?;
    let denied = must_find(&registry, "acme").await?;
    let same = must_configure(&registry, "acme", Wish::of(1)).await?;
    ensure!(
        same.status == denied.status,
        "the status changed with nothing configured"
    );
    ensure!(
        same.status_revision == denied.status_revision,
        "no change of status"
    );
    let mut wish = Wish::of(1);
    wish.stream = 2;
    let changed = must_configure(&registry, "acme", wish).await?;
    let status = &changed.status;
    ensure!(
        status.status == Status::Unknown,
        "an old status for a new configuration"
    );
    ensure!(
        status.since == changed.integration.updated_at,
        "since {}",
        status.since
    );
    ensure!(
        status.aws_error_code.is_none(),
        "an old error for a new configuration"
    );
    ensure!(
        changed.status_revision == changed.revision,
        "a change of status"
    );
    // The clock of another instance may be behind.
    observe(&registry, &[observed(&changed, 0, Observation::Accepted)]).await?;
    let active = must_find(&registry, "acme").await?;
    ensure!(
        active.status.status == Status::Active,
        "the observation was dropped"
    );
    Ok(())
}

async fn folding(registry: Shared) -> Checked {
    let created = must_configure(&registry, "acme", Wish::of(1)).await?;
    let accepted = |began| observed(&created, began, Observation::Accepted);
    let denied = |began| observed(&created, began, denied());
    let mut before = created.clone();
    // Each with the expected status, and whether details and status change.
    let mut retry = denied(40);
    retry.next_retry = NextRetry::At(at(90));
    let mut unchanged = denied(50);
    unchanged.next_retry = NextRetry::Unchanged;
    let steps: [(Vec<Observed>, Status, bool, bool); 9] = [
        (vec![accepted(10)], Status::Active, true, true),
        (vec![accepted(10)], Status::Active, false, false),
        (vec![accepted(20)], Status::Active, false, false),
        (vec![denied(21), accepted(22)], Status::Active, false, false),
        (
            vec![accepted(30), denied(31)],
            Status::Unauthorized,
            true,
            true,
        ),
        (vec![retry], Status::Unauthorized, true, false),
        (vec![unchanged], Status::Unauthorized, false, false),
        (vec![], Status::Unauthorized, false, false),
        (vec![denied(60), accepted(61)], Status::Active, true, true),
    ];
    for (number, (observations, status, details, changes)) in steps.into_iter().enumerate() {
        observe(&registry, &observations).await?;
        let now = must_find(&registry, "acme").await?;
        ensure!(
            now.status.status == status,
            "step {number}: {:?}",
            now.status
        );
        ensure!(
            (now.revision > before.revision) == details,
            "step {number}: the revision"
        );
        let revised = now.status_revision > before.status_revision;
        ensure!(
            revised == changes,
            "step {number}: the revision of the status"
        );
        ensure!(
            !changes || now.status_revision == now.revision,
            "step {number}: two revisions"
        );
        let last = observations.last().map(|last| last.at);
        let since = match changes {
            true => last.unwrap_or(before.status.since),
            false => before.status.since,
        };
        ensure!(
            now.status.since == since,
            "step {number}: since {}",
            now.status.since
        );
        let retry = (number == 5 || number == 6 || number == 7).then(|| at(90));
        ensure!(
            now.status.next_retry == retry,
            "step {number}: {:?}",
            now.status.next_retry
        );
        let is_denied = status == Status::Unauthorized;
        let reason = is_denied.then_some(Reason::WriteDenied);
        ensure!(
            now.status.reason == reason,
            "step {number}: {:?}",
            now.status.reason
        );
        let code = is_denied.then_some("AccessDeniedException");
        ensure!(
            now.status.aws_error_code.as_deref() == code,
            "step {number}: the error code"
        );
        before = now;
    }
    Ok(())
}

async fn void_observations(registry: Shared) -> Checked {
    let first = must_configure(&registry, "acme", Wish::of(1)).await?;
    let second = must_configure(&registry, "acme", Wish::of(2)).await?;
    observe(&registry, &[observed(&first, 10, denied())]).await?;
    let now = must_find(&registry, "acme").await?;
    ensure!(
        now.revision == second.revision,
        "an observation of an old version was applied"
    );
    let accepted = observed(&second, 20, Observation::Accepted);
    observe(&registry, std::slice::from_ref(&accepted)).await?;
    let active = must_find(&registry, "acme").await?;
    // It ended later, but began before.
    let mut late = observed(&second, 19, denied());
    late.at = at(30);
    observe(&registry, &[late.clone()]).await?;
    let now = must_find(&registry, "acme").await?;
    ensure!(
        now.revision == active.revision,
        "an observation of an older attempt was applied"
    );
    // Recorded although it changed nothing else.
    let later = observed(&second, 40, Observation::Accepted);
    observe(&registry, &[later]).await?;
    late.began_at = at(39);
    observe(&registry, &[late]).await?;
    let now = must_find(&registry, "acme").await?;
    ensure!(
        now.revision == active.revision,
        "an observation of an older attempt was applied"
    );
    must_delete(&registry, "acme").await?;
    observe(&registry, &[accepted]).await?;
    ensure!(
        find(&registry, "acme").await?.is_none(),
        "an observation of a deleted one"
    );
    Ok(())
}

/// Observations of more integrations at once than one statement of an engine may take.
async fn bulk(registry: Shared) -> Checked {
    const COUNT: usize = 1200;
    let mut observations = Vec::new();
    for number in 0..COUNT {
        let organization_id = organization(&format!("o{number}"));
        let plan = |existing: Option<&Registered>, _: &Keys| {
            let mut planned = planned(&organization_id, existing, &Wish::of(1))?;
            planned.claim.fingerprint = number.to_be_bytes().to_vec();
            Ok(planned)
        };
        let configured = registry.configure(&organization_id, &plan).await;
        configured.map_err(failed("Configure"))?;
    }
    let before = all(&registry).await?;
    for change in &before.changes {
        if let RegistryChange::Current(registered) = change {
            observations.push(observed(registered, 1, Observation::Accepted));
        }
    }
    ensure!(
        observations.len() == COUNT,
        "{} of {COUNT} are visible",
        observations.len()
    );
    observe(&registry, &observations).await?;
    let after = registry.changes_after(before.up_to, ALL).await;
    let after = after.map_err(failed("changes_after"))?;
    ensure!(
        after.changes.len() == COUNT,
        "{} of {COUNT} changed",
        after.changes.len()
    );
    let all_active = after.changes.iter().all(|change| match change {
        RegistryChange::Current(registered) => registered.status.status == Status::Active,
        RegistryChange::Deleted(_) => false,
    });
    ensure!(all_active, "an observation was not applied");
    let replica = Replica::default();
    follow(&replica, &registry, 100).await?;
    ensure_complete(&replica, &registry).await
}

async fn concurrency(registry: Shared) -> Checked {
    let writers = (0..6_u8).map(|writer| {
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            let name = format!("o{writer}");
            let mut revisions = Vec::new();
            for round in 0..8 {
                let mut wish = Wish::of(writer);
                wish.stream = round;
                let configured = configure(&registry, &name, wish).await;
                revisions.push(configured.map_err(failed("Configure"))?);
                if round % 4 == 3 && writer % 2 == 0 {
                    revisions.push(must_delete(&registry, &name).await?);
                }
                yield_now().await;
            }
            Ok::<_, String>(revisions)
        })
    });
    let writers: Vec<_> = writers.collect();
    let replica = Replica::default();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        follow(&replica, &registry, 3).await?;
        yield_now().await;
    }
    follow(&replica, &registry, 3).await?;
    let mut revisions = Vec::new();
    for writer in writers {
        let written = writer.await.map_err(failed("a writer"))?;
        let written = written?;
        ensure!(
            written.is_sorted(),
            "revisions of one caller are not in order"
        );
        revisions.extend(written);
    }
    let count = revisions.len();
    revisions.sort_unstable();
    revisions.dedup();
    ensure!(revisions.len() == count, "two changes have one revision");
    ensure_complete(&replica, &registry).await
}

/// Instances that configure the same few organizations with the same few external IDs, delete and
/// observe, while each follows the changes. In the order of the revisions, no two organizations
/// have an external ID at a time.
pub(crate) async fn instances(instances: Vec<Shared>, seed: u64) -> Checked {
    let follower = |registry: &Shared, all_done: watch::Receiver<bool>| {
        let registry = Arc::clone(registry);
        tokio::spawn(async move {
            let replica = Replica::default();
            while !*all_done.borrow() {
                follow(&replica, &registry, 3).await?;
                yield_now().await;
            }
            follow(&replica, &registry, 3).await?;
            ensure_complete(&replica, &registry).await
        })
    };
    let done = watch::Sender::new(false);
    let followers: Vec<_> = instances
        .iter()
        .map(|registry| follower(registry, done.subscribe()))
        .collect();
    let mut writers = JoinSet::new();
    for (number, registry) in (0..3).flat_map(|_| &instances).enumerate() {
        let registry = Arc::clone(registry);
        let random = StdRng::seed_from_u64(seed * 100 + number as u64);
        writers.spawn(async move { write_as_others_do(&registry, random).await });
    }
    let mut history = Vec::new();
    while let Some(written) = writers.join_next().await {
        history.extend(written.map_err(failed("a writer"))??);
    }
    done.send_replace(true);
    for follower in followers {
        follower.await.map_err(failed("a follower"))??;
    }
    history.sort_unstable();
    let mut holders: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut last = 0;
    for (revision, name, external_ids) in history {
        ensure!(revision > last, "two changes have revision {revision}");
        last = revision;
        for (other, held) in &holders {
            let shared = held.iter().find(|id| external_ids.contains(id));
            ensure!(
                *other == name || shared.is_none(),
                "revision {revision}: {name} and {other} have external ID {shared:?}"
            );
        }
        holders.insert(name, external_ids);
    }
    Ok(())
}

/// Returns revision, organization and external IDs of each change.
async fn write_as_others_do(
    registry: &Shared,
    mut random: StdRng,
) -> Checked<Vec<(u64, String, Vec<u8>)>> {
    let mut written = Vec::new();
    for _ in 0..40 {
        let name = format!("o{}", random.random_range(0..4));
        let organization_id = organization(&name);
        if random.random_range(0..4) == 0 {
            let deleted = registry
                .delete(&organization_id, None, &Actor::named("tester"))
                .await;
            if let Some(tombstone) = deleted.map_err(failed("delete"))? {
                written.push((tombstone.revision, name, Vec::new()));
            }
            continue;
        }
        let mut wish = Wish::of(random.random_range(1..6));
        wish.keep_previous = random.random();
        wish.stream = random.random_range(1..3);
        let plan =
            |existing: Option<&Registered>, _: &Keys| planned(&organization_id, existing, &wish);
        let stored = match registry.configure(&organization_id, &plan).await {
            Err(ConfigureError::ExternalIdInUse) => continue,
            stored => stored.map_err(failed("Configure"))?,
        };
        let integration = &stored.integration;
        let previous = integration.previous.as_ref();
        let held = previous.map(|previous| &previous.external_id);
        let held = held.into_iter().chain([&integration.external_id]);
        written.push((stored.revision, name, held.map(|id| id.bytes[0]).collect()));
        let began = random.random_range(0..100);
        observe(registry, &[observed(&stored, began, Observation::Accepted)]).await?;
    }
    Ok(written)
}

async fn forgotten_deletions(registry: Shared) -> Checked {
    let early = Replica::default();
    let mut deleted = Vec::new();
    for number in 0..OPTIONS.tombstones as u8 + 2 {
        must_configure(&registry, &format!("o{number}"), Wish::of(number)).await?;
    }
    follow(&early, &registry, 2).await?;
    for number in 0..OPTIONS.tombstones as u8 + 2 {
        deleted.push(must_delete(&registry, &format!("o{number}")).await?);
    }
    let changes = all(&registry).await?;
    let kept: Vec<u64> = changes
        .changes
        .iter()
        .map(RegistryChange::revision)
        .collect();
    ensure!(
        kept == deleted[2..],
        "deletions {kept:?} are kept of {deleted:?}"
    );
    ensure!(
        changes.forgotten_to == deleted[1],
        "forgotten to {}",
        changes.forgotten_to
    );
    ensure!(
        changes.up_to == deleted[deleted.len() - 1],
        "complete to {}",
        changes.up_to
    );
    follow(&early, &registry, 2).await?;
    ensure_complete(&early, &registry).await
}

/// The period without a delivery is kept between calls and over a restart.
async fn stall(first: Shared, second: Shared) -> Checked {
    let created = must_configure(&first, "acme", Wish::of(1)).await?;
    let long = OPTIONS.failing_after.as_secs() as i64;
    let mut begin = observed(&created, 10, unreachable());
    begin.next_retry = NextRetry::At(at(20));
    observe(&first, &[begin]).await?;
    let begun = must_find(&second, "acme").await?;
    ensure!(
        begun.status.status == Status::Unknown,
        "a short outage is a status"
    );
    ensure!(begun.revision > created.revision, "details changed");
    ensure!(
        begun.stall.span() == Some((at(11), at(11))),
        "{:?}",
        begun.stall
    );
    observe(&second, &[observed(&created, 10 + long, unreachable())]).await?;
    let failing = must_find(&first, "acme").await?;
    ensure!(
        failing.status.reason == Some(Reason::Unreachable),
        "{:?}",
        failing.status
    );
    Ok(())
}

async fn open_sql(db: &crate::store::sql::Database) -> Shared {
    Arc::new(SqlRegistry::open(db.clone(), OPTIONS).await.unwrap())
}

#[tokio::test]
async fn sqlite_conforms() {
    suite(database, open_sql).await.unwrap();
}
