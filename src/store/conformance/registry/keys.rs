//! Rotation of keys, with the service's own encryption.

use futures_util::{FutureExt as _, future::BoxFuture};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    domain::external_id::ExternalId,
    store::{
        Configure,
        plan::plan,
        ports::{ISSUED_VALID, ResealPass, Unreadable},
        secret::{Keyring, Resealer, Sealer},
    },
};

/// More integrations than one step re-seals.
const INTEGRATIONS: usize = 130;

/// A sealer with keys of these bytes, the first one first.
fn sealer(keys: &[u8]) -> Sealer {
    let keys: Vec<String> = keys.iter().map(|key| hex::encode([*key; 32])).collect();
    Sealer::new(&Keyring::parse(&keys.join("\n")).unwrap()).unwrap()
}

fn external_id(text: &str) -> ExternalId {
    ExternalId::parse(text.to_owned()).unwrap()
}

async fn seal(
    registry: &Shared,
    sealer: &Sealer,
    name: &str,
    text: &str,
    keep_previous: bool,
) -> Result<Registered, ConfigureError> {
    let configure = Configure {
        organization_id: organization(name),
        stream_arn: StreamArn::parse("arn:aws:kinesis:us-east-1:222222222222:stream/s").unwrap(),
        role_arn: RoleArn::parse("arn:aws:iam::222222222222:role/relay").unwrap(),
        external_id: Some(external_id(text)),
        keep_previous,
        issued_only: false,
        etag: None,
        actor: Actor::named("tester"),
    };
    let plan = |existing: Option<&Registered>, keys: &Keys| {
        plan(existing, &configure, sealer.under(keys)?, at(0))
    };
    registry.configure(&configure.organization_id, &plan).await
}

async fn must_seal(registry: &Shared, sealer: &Sealer, name: &str, text: &str) -> Checked {
    let sealed = seal(registry, sealer, name, text, true).await;
    sealed.map(drop).map_err(failed("Configure"))
}

async fn issue(registry: &Shared, sealer: &Sealer, name: &str, text: &str) -> Checked {
    let organization_id = organization(name);
    let issue = |keys: &Keys| {
        sealer
            .under(keys)?
            .claim(&external_id(text), &organization_id)
    };
    let issued = registry
        .issue_external_id(
            &organization_id,
            &issue,
            &Actor::named("tester"),
            Timestamp::now(),
        )
        .await;
    issued.map_err(failed("issue"))
}

async fn must_be_taken(registry: &Shared, sealer: &Sealer, texts: &[&str]) -> Checked {
    for text in texts {
        let taken = seal(registry, sealer, "thief", text, false).await;
        let is_refused = matches!(taken, Err(ConfigureError::ExternalIdInUse));
        ensure!(is_refused, "{text} is given twice: {taken:?}");
    }
    Ok(())
}

fn ready(is_ready: bool) -> impl Fn() -> BoxFuture<'static, Result<bool, StoreError>> {
    move || std::future::ready(Ok(is_ready)).boxed()
}

async fn activate(registry: &Shared, key: &str) -> Checked<Keys> {
    let proposed = registry.propose_key(key).await.map_err(failed("propose"))?;
    ensure!(proposed.pending.as_deref() == Some(key), "{proposed:?}");
    let active = registry.activate_key(key, &ready(false)).await;
    let active = active.map_err(failed("activate"))?;
    ensure!(active == proposed, "activated before all can read it");
    let active = registry.activate_key(key, &ready(true)).await;
    let active = active.map_err(failed("activate"))?;
    ensure!(
        &*active.active == key && active.pending.is_none(),
        "{active:?}"
    );
    Ok(active)
}

/// Does one step of a pass.
async fn step(registry: &Shared, sealer: &Sealer, pass: &mut ResealPass) -> Checked {
    let keys = registry.keys().await.map_err(failed("keys"))?;
    let resealer = Resealer {
        from: sealer,
        to: sealer.under(&keys).map_err(failed("under"))?,
    };
    let stepped = registry.reseal(pass, &resealer).await;
    stepped.map_err(failed("reseal"))
}

async fn finish(registry: &Shared, sealer: &Sealer) -> Checked<Keys> {
    let mut pass = ResealPass::default();
    while !pass.is_complete {
        step(registry, sealer, &mut pass).await?;
    }
    ensure!(pass.unreadable.rows == 0, "{:?}", pass.unreadable);
    registry
        .retire_keys(Timestamp::now())
        .await
        .map_err(failed("retire"))
}

/// Every external ID that an integration uses, with its organization.
async fn opened(registry: &Shared, sealer: &Sealer) -> Checked<Vec<(String, String)>> {
    let mut found = Vec::new();
    for change in all(registry).await?.changes {
        let RegistryChange::Current(registered) = change else {
            continue;
        };
        let integration = &registered.integration;
        let previous = integration.previous.as_ref().map(|one| &one.external_id);
        for sealed in [&integration.external_id].into_iter().chain(previous) {
            let clear = sealer.open(sealed, integration.integration_id);
            let clear = clear.map_err(failed("open"))?;
            let name = integration.organization_id.as_str().to_owned();
            found.push((clear.expose().to_owned(), name));
        }
    }
    Ok(found)
}

/// Everything is re-sealed under another key, with an interruption. `open` opens a registry of the
/// same storage.
pub(super) async fn rotation(registry: Shared, open: impl AsyncFn() -> Shared) -> Checked {
    let (old, both, new) = (sealer(&[1]), sealer(&[2, 1]), sealer(&[2]));
    for first in [old.first(), new.first()] {
        let keys = registry.start_keys(first, Timestamp::now()).await;
        let keys = keys.map_err(failed("start_keys"))?;
        ensure!(keys.all().eq([old.first()]), "{keys:?}");
    }
    must_seal(&registry, &old, "acme", "first").await?;
    must_seal(&registry, &old, "acme", "second").await?;
    for number in 0..INTEGRATIONS {
        must_seal(
            &registry,
            &old,
            &format!("o{number}"),
            &format!("id-{number}"),
        )
        .await?;
    }
    issue(&registry, &old, "later", "issued").await?;
    let taken = ["first", "second", "issued", "id-0", "id-129"];
    must_be_taken(&registry, &both, &taken).await?;

    let unknown = registry.activate_key("unknown", &ready(true)).await;
    let unknown = unknown.map_err(failed("activate"))?;
    ensure!(&*unknown.active == old.first(), "a key was not proposed");
    let keys = activate(&registry, new.first()).await?;
    ensure!(keys.stored().eq([new.first(), old.first()]), "{keys:?}");
    let stale = seal(&registry, &old, "acme", "third", false).await;
    ensure!(
        matches!(stale, Err(ConfigureError::Store(_))),
        "stored without the active key: {stale:?}"
    );
    must_be_taken(&registry, &both, &taken).await?;
    must_seal(&registry, &both, "acme", "third").await?;
    issue(&registry, &both, "later", "issued-2").await?;
    let retired = registry.retire_keys(Timestamp::now()).await;
    let retired = retired.map_err(failed("retire"))?;
    ensure!(retired == keys, "a key that is needed is retired");

    // The process is killed after one step.
    step(&registry, &both, &mut ResealPass::default()).await?;
    let registry = open().await;
    let keys = registry.start_keys(both.first(), Timestamp::now()).await;
    let keys = keys.map_err(failed("start_keys"))?;
    ensure!(keys.stored().eq([new.first(), old.first()]), "{keys:?}");
    let usage = registry.key_usage().await.map_err(failed("key_usage"))?;
    let of = |sealer: &Sealer| usage.get(sealer.first()).copied().unwrap_or(0);
    ensure!(
        of(&old) > 0 && of(&new) > 0,
        "one step does all or nothing: {usage:?}"
    );
    ensure!(of(&old) + of(&new) == INTEGRATIONS as u64 + 3, "{usage:?}");
    must_be_taken(
        &registry,
        &both,
        &["first", "issued", "issued-2", "id-0", "id-129"],
    )
    .await?;
    let revision = all(&registry).await?.up_to;
    let keys = finish(&registry, &both).await?;
    ensure!(keys.all().eq([new.first()]), "{keys:?}");
    ensure!(
        all(&registry).await?.up_to == revision,
        "nothing that is shown changed"
    );
    let found = opened(&registry, &new).await?;
    ensure!(
        found.len() == INTEGRATIONS + 2,
        "{} external IDs",
        found.len()
    );
    must_be_taken(
        &registry,
        &new,
        &["first", "third", "issued", "issued-2", "id-0"],
    )
    .await?;
    must_seal(&registry, &new, "later", "issued").await?;

    // The proposal of the active key takes another one back.
    let proposed = registry.propose_key("other").await;
    ensure!(
        proposed.is_ok_and(|keys| keys.pending.is_some()),
        "not proposed"
    );
    let back = registry.propose_key(new.first()).await;
    let back = back.map_err(failed("propose"))?;
    ensure!(back == keys, "{back:?}");
    Ok(())
}

/// External IDs are stored only under keys that the database names, whatever a step has read before.
pub(super) async fn stale_steps(registry: Shared) -> Checked {
    let all = sealer(&[1, 2, 3]);
    let ids: Vec<String> = all.key_ids().map(str::to_owned).collect();
    let started = registry.start_keys(&ids[0], Timestamp::now()).await;
    started.map_err(failed("start_keys"))?;
    must_seal(&registry, &all, "acme", "used").await?;
    issue(&registry, &all, "later", "issued").await?;
    let stale = activate(&registry, &ids[1]).await?;
    activate(&registry, &ids[2]).await?;
    let resealer = Resealer {
        from: &all,
        to: all.under(&stale).map_err(failed("under"))?,
    };
    for issued in [None, Some(Vec::new())] {
        let mut pass = ResealPass {
            issued,
            ..ResealPass::default()
        };
        let stepped = registry.reseal(&mut pass, &resealer).await;
        stepped.map_err(failed("reseal"))?;
        ensure!(
            pass.is_outdated && pass.is_complete && pass.resealed == 0,
            "stored under a key that is not active: {pass:?}"
        );
    }
    let keys = finish(&registry, &all).await?;
    ensure!(keys.all().eq([&*ids[2]]), "{keys:?}");

    // A withdrawal of a key that was activated meanwhile changes nothing.
    let withdrawn = registry.withdraw_key(&ids[2]).await;
    let withdrawn = withdrawn.map_err(failed("withdraw"))?;
    ensure!(withdrawn == keys, "{withdrawn:?}");
    let proposed = registry.propose_key(&ids[0]).await;
    proposed.map_err(failed("propose"))?;
    for (key, pending) in [(&ids[1], Some(&*ids[0])), (&ids[0], None)] {
        let withdrawn = registry.withdraw_key(key).await;
        let withdrawn = withdrawn.map_err(failed("withdraw"))?;
        ensure!(withdrawn.pending.as_deref() == pending, "{withdrawn:?}");
    }
    Ok(())
}

/// An external ID that cannot be decrypted is named, keeps its key, and stops no other.
pub(super) async fn unreadable(registry: Shared) -> Checked {
    let both = sealer(&[1, 2]);
    let ids: Vec<String> = both.key_ids().map(str::to_owned).collect();
    let started = registry.start_keys(&ids[0], Timestamp::now()).await;
    started.map_err(failed("start_keys"))?;
    for number in 0..INTEGRATIONS {
        let (name, text) = (format!("o{number}"), format!("id-{number}"));
        must_seal(&registry, &both, &name, &text).await?;
    }
    let damaged = organization("damaged");
    let plan = |_: Option<&Registered>, keys: &Keys| {
        let mut planned = planned(&damaged, None, &Wish::of(1))?;
        let sealed = &mut planned.integration.external_id;
        sealed.key_id = keys.active.clone();
        sealed.bytes = [7; 40].into();
        Ok(planned)
    };
    let stored = registry.configure(&damaged, &plan).await;
    stored.map_err(failed("Configure"))?;
    activate(&registry, &ids[1]).await?;
    let mut pass = ResealPass::default();
    while !pass.is_complete {
        step(&registry, &both, &mut pass).await?;
    }
    let mut expected = Unreadable::default();
    expected.add("damaged");
    ensure!(pass.unreadable == expected, "{:?}", pass.unreadable);
    ensure!(pass.resealed == INTEGRATIONS as u64, "{pass:?}");
    let retired = registry.retire_keys(Timestamp::now()).await;
    let retired = retired.map_err(failed("retire"))?;
    ensure!(retired.stored().eq([&*ids[1], &*ids[0]]), "{retired:?}");
    // The remedy.
    must_seal(&registry, &both, "damaged", "fresh").await?;
    issue(&registry, &both, "later", "lapsing").await?;
    activate(&registry, &ids[0]).await?;
    let lapsed = Timestamp::now() + ISSUED_VALID;
    let mut pass = ResealPass {
        issued: None,
        ..ResealPass::default()
    };
    while pass.issued.is_none() {
        step(&registry, &both, &mut pass).await?;
    }
    let retired = registry.retire_keys(lapsed).await;
    let retired = retired.map_err(failed("retire"))?;
    ensure!(
        retired.stored().eq([&*ids[0]]),
        "a reservation that has lapsed keeps its key: {retired:?}"
    );
    Ok(())
}

/// Instances configure while keys are rotated, to and fro.
pub(super) async fn rotation_beside_configures(
    first: Shared,
    second: Shared,
    seed: u64,
) -> Checked {
    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
    let both = Arc::new(sealer(&[1, 2]));
    let ids: Vec<String> = both.key_ids().map(str::to_owned).collect();
    let started = first.start_keys(&ids[0], Timestamp::now()).await;
    started.map_err(failed("start_keys"))?;
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    for (registry, number) in [&first, &second, &second].into_iter().zip(0..) {
        let (registry, sealer, stop) = (Arc::clone(registry), Arc::clone(&both), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(seed * 10 + number);
            let (mut given, mut refused) = (0, 0);
            while !stop.is_cancelled() {
                let name = NAMES[rng.random_range(0..NAMES.len())];
                let text = format!("id-{}", rng.random_range(0..8));
                let keep_previous = rng.random();
                match seal(&registry, &sealer, name, &text, keep_previous).await {
                    Ok(_) => given += 1,
                    Err(ConfigureError::ExternalIdInUse) => refused += 1,
                    Err(error) => return Err(format!("Configure failed: {error}")),
                }
                if rng.random_ratio(1, 8) {
                    let deleted = registry
                        .delete(&organization(name), None, &Actor::named("tester"))
                        .await;
                    deleted.map_err(failed("delete"))?;
                }
                yield_now().await;
            }
            Ok((given, refused))
        }));
    }
    let mut rotated = Ok(());
    for round in 0..6 {
        rotated = async {
            activate(&first, &ids[(round + 1) % 2]).await?;
            finish(&first, &both).await?;
            let mut holders = HashMap::new();
            for (text, name) in opened(&second, &both).await? {
                let holder = holders.entry(text).or_insert_with(|| name.clone());
                ensure!(
                    *holder == name,
                    "{holder} and {name} have the same external ID"
                );
            }
            Ok(())
        }
        .await;
        if rotated.is_err() {
            break;
        }
    }
    stop.cancel();
    let (mut given, mut refused) = (0, 0);
    for task in tasks {
        let counts: Checked<(u32, u32)> = task.await.map_err(failed("task"))?;
        let (of_task, refused_by_task) = counts?;
        given += of_task;
        refused += refused_by_task;
    }
    rotated?;
    ensure!(given > 0 && refused > 0, "{given} given, {refused} refused");
    let keys = finish(&first, &both).await?;
    ensure!(keys.stored().count() == 1, "{keys:?}");
    Ok(())
}
