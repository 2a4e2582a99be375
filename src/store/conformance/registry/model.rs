//! Random operations, compared to a model of a registry.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::{Checked, ensure},
    *,
};

const NAMES: [&str; 3] = ["acme", "bolt", "coil"];
const STEPS: usize = 150;

/// Expected state of an integration.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    id: IntegrationId,
    version: u64,
    external_id: u8,
    previous: Option<u8>,
    stream: u8,
    status: Status,
    next_retry: Option<Timestamp>,
    /// Time at which the last recorded attempt of this version began, in seconds.
    began: i64,
}

struct Model {
    rng: StdRng,
    integrations: BTreeMap<&'static str, Expected>,
    issued: BTreeMap<u8, &'static str>,
    /// Configurations that were replaced, or deleted.
    old: Vec<Registered>,
    clock: i64,
}

/// A reader of the changes of status, as a status stream is.
#[derive(Default)]
struct Subscriber {
    token: u64,
    statuses: BTreeMap<String, (IntegrationId, Status)>,
}

/// Runs random operations, reopening the registry and following its changes now and then.
pub(super) async fn run(seed: u64, open: impl AsyncFn() -> Shared) -> Checked {
    let mut model = Model {
        rng: StdRng::seed_from_u64(seed),
        integrations: BTreeMap::new(),
        issued: BTreeMap::new(),
        old: Vec::new(),
        clock: 0,
    };
    let (replica, mut subscriber) = (Replica::default(), Subscriber::default());
    let mut registry = open().await;
    for step in 0..STEPS {
        let stepped = model.step(&registry).await;
        stepped.map_err(|error| format!("step {step}: {error}"))?;
        // A replica that follows seldom misses deletions that are forgotten meanwhile.
        if model.rng.random_ratio(1, 1 + (seed % 12) as u32) {
            let limit = model.rng.random_range(1..5);
            follow(&replica, &registry, limit).await?;
            ensure_complete(&replica, &registry).await?;
            model.compare(&replica)?;
            subscriber.read(&replica, limit);
            model.compare_statuses(&subscriber)?;
        }
        if model.rng.random_ratio(1, 30) {
            registry = open().await;
        }
    }
    Ok(())
}

impl Model {
    async fn step(&mut self, registry: &Shared) -> Checked {
        let name = NAMES[self.rng.random_range(0..NAMES.len())];
        self.clock += 10;
        match self.rng.random_range(0..10) {
            0..3 => self.configure(registry, name).await,
            3 | 4 => self.delete(registry, name).await,
            5 => self.issue(registry, name).await,
            6 => self.retire(registry, name).await,
            _ => self.observe(registry, name).await,
        }
    }

    /// Owners of an external ID.
    fn owners(&self, external_id: u8) -> impl Iterator<Item = &'static str> {
        let uses = move |one: &Expected| {
            one.external_id == external_id || one.previous == Some(external_id)
        };
        let users = self.integrations.iter().filter(move |(_, one)| uses(one));
        let issued = self.issued.get(&external_id).copied();
        users.map(|(name, _)| *name).chain(issued)
    }

    async fn configure(&mut self, registry: &Shared, name: &'static str) -> Checked {
        let before = self.integrations.get(name).cloned();
        let wish = Wish {
            stream: self.rng.random_range(0..2),
            external_id: self.rng.random_range(0..6),
            keep_previous: self.rng.random(),
            issued_only: self.rng.random_ratio(1, 5),
            version: self.rng.random_ratio(1, 5).then_some(2),
        };
        let is_new = before
            .as_ref()
            .is_none_or(|one| one.external_id != wish.external_id);
        let version = before.as_ref().map(|one| one.version);
        let expected = if wish.version.is_some() && wish.version != version {
            "the etag"
        } else if self.owners(wish.external_id).any(|owner| owner != name) {
            "in use"
        } else if wish.issued_only && is_new && self.owners(wish.external_id).next().is_none() {
            "not issued"
        } else {
            "stored"
        };
        let stored = find(registry, name).await?;
        let actual = match configure(registry, name, wish.clone()).await {
            Ok(_) => "stored",
            Err(ConfigureError::EtagMismatch) => "the etag",
            Err(ConfigureError::ExternalIdInUse) => "in use",
            Err(ConfigureError::ExternalIdNotIssued) => "not issued",
            Err(error) => return Err(format!("Configure failed: {error}")),
        };
        ensure!(
            actual == expected,
            "{name}: {wish:?}: {actual}, not {expected}"
        );
        if actual != "stored" {
            return Ok(());
        }
        self.issued.remove(&wish.external_id);
        self.old.extend(stored);
        let created = must_find(registry, name).await?;
        let mut next = Expected {
            id: created.integration.integration_id,
            version: 1,
            external_id: wish.external_id,
            previous: None,
            stream: wish.stream,
            status: Status::Unknown,
            next_retry: None,
            began: 0,
        };
        if let Some(before) = before {
            ensure!(next.id == before.id, "a Configure changed the id");
            next.version = before.version + 1;
            next.previous = match (is_new, wish.keep_previous) {
                (true, true) => Some(before.external_id),
                (true, false) => None,
                (false, _) => before.previous,
            };
            if !is_new && before.stream == wish.stream {
                next.status = before.status;
                next.next_retry = before.next_retry;
            }
        }
        self.integrations.insert(name, next);
        Ok(())
    }

    async fn delete(&mut self, registry: &Shared, name: &'static str) -> Checked {
        self.old.extend(find(registry, name).await?);
        let deleted = registry
            .delete(&organization(name), None, &Actor::named("tester"))
            .await;
        let deleted = deleted.map_err(failed("delete"))?;
        let id = deleted.map(|tombstone| tombstone.integration_id);
        let expected = self.integrations.remove(name).map(|one| one.id);
        ensure!(id == expected, "deleted {id:?}, not {expected:?}");
        self.issued.retain(|_, owner| *owner != name);
        Ok(())
    }

    async fn issue(&mut self, registry: &Shared, name: &'static str) -> Checked {
        let external_id = self.rng.random_range(0..6);
        // Issued external IDs are random: nobody has one before.
        if self.owners(external_id).next().is_none() {
            must_issue(registry, name, external_id, at(self.clock)).await?;
            self.issued.insert(external_id, name);
        }
        Ok(())
    }

    async fn retire(&mut self, registry: &Shared, name: &'static str) -> Checked {
        let Some(one) = self.integrations.get_mut(name) else {
            return Ok(());
        };
        let version = one.version - u64::from(self.rng.random_ratio(1, 4));
        let retired = registry.retire_previous_external_id(one.id, version, at(0));
        let retired = retired.await;
        retired.map_err(failed("retire"))?;
        if version == one.version {
            one.previous = None;
        }
        Ok(())
    }

    async fn observe(&mut self, registry: &Shared, name: &'static str) -> Checked {
        let mut observations = Vec::new();
        let now = find(registry, name).await?;
        for _ in 0..self.rng.random_range(1..4) {
            let is_old = self.rng.random_ratio(1, 4) && !self.old.is_empty();
            let of = match is_old {
                true => Some(&self.old[self.rng.random_range(0..self.old.len())]),
                false => now.as_ref(),
            };
            let Some(of) = of else { continue };
            let accepted = self.rng.random();
            let observation = if accepted {
                Observation::Accepted
            } else {
                denied()
            };
            let began = self.clock + self.rng.random_range(-20..10);
            let mut one = observed(of, began, observation);
            one.next_retry = match self.rng.random_range(0..3) {
                0 => NextRetry::None,
                1 => NextRetry::Unchanged,
                _ => NextRetry::At(at(self.clock + 100)),
            };
            self.fold(&one, began);
            observations.push(one);
        }
        observe(registry, &observations).await
    }

    fn fold(&mut self, one: &Observed, began: i64) {
        let mut all = self.integrations.values_mut();
        let Some(of) = all.find(|of| of.id == one.integration_id) else {
            return;
        };
        if of.version != one.version || began < of.began {
            return;
        }
        of.began = began;
        of.status = match one.observation {
            Observation::Accepted => Status::Active,
            _ => Status::Unauthorized,
        };
        match one.next_retry {
            NextRetry::None => of.next_retry = None,
            NextRetry::Unchanged => {}
            NextRetry::At(time) => of.next_retry = Some(time),
        }
    }

    fn compare(&self, replica: &Replica) -> Checked {
        let page = replica.page("", ALL, &Rights::UNLIMITED, |_| true);
        ensure!(
            page.len() == self.integrations.len(),
            "{} integrations",
            page.len()
        );
        for (name, expected) in &self.integrations {
            let found = replica
                .id_of(name)
                .and_then(|id| replica.look(id, Registered::clone));
            let found = found.ok_or_else(|| format!("{name} is missing"))?;
            let integration = &found.integration;
            let previous = integration.previous.as_ref();
            let stream = integration.stream_arn.as_str().ends_with('1');
            let actual = Expected {
                id: integration.integration_id,
                version: integration.version,
                external_id: integration.external_id.bytes[0],
                previous: previous.map(|previous| previous.external_id.bytes[0]),
                stream: u8::from(stream),
                status: found.status.status,
                next_retry: found.status.next_retry,
                began: expected.began,
            };
            ensure!(
                actual == *expected,
                "{name} is {actual:?}, not {expected:?}"
            );
            ensure!(
                found.status_revision <= found.revision,
                "the revision of the status"
            );
        }
        Ok(())
    }

    fn compare_statuses(&self, subscriber: &Subscriber) -> Checked {
        let all = self.integrations.iter();
        let expected: BTreeMap<_, _> = all
            .map(|(name, one)| ((*name).to_owned(), (one.id, one.status)))
            .collect();
        let actual = &subscriber.statuses;
        ensure!(
            *actual == expected,
            "a status stream has {actual:?}, not {expected:?}"
        );
        Ok(())
    }
}

impl Subscriber {
    fn read(&mut self, replica: &Replica, limit: usize) {
        loop {
            let found = replica.changes_after(self.token, limit, |_| true);
            if self.token < found.forgotten_to {
                self.statuses.clear();
                self.token = replica.applied();
                for one in replica.page("", ALL, &Rights::UNLIMITED, |_| true) {
                    self.put(&one);
                }
                return;
            }
            if found.up_to == self.token {
                return;
            }
            self.token = found.up_to;
            for change in found.changes {
                match change {
                    RegistryChange::Current(registered) => self.put(&registered),
                    RegistryChange::Deleted(tombstone) => {
                        self.statuses.remove(tombstone.organization_id.as_str());
                    }
                }
            }
        }
    }

    fn put(&mut self, registered: &Registered) {
        let integration = &registered.integration;
        let status = (integration.integration_id, registered.status.status);
        let name = integration.organization_id.as_str().to_owned();
        self.statuses.insert(name, status);
    }
}
