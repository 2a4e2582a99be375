//! Decision about a Configure: what it stores, given the integration that exists.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Configure, ConfigureError, StoreError,
    ports::{Planned, Registered},
    secret::Active,
};
use crate::domain::{
    external_id::ExternalId,
    integration::{Integration, IntegrationId, PreviousExternalId},
};

/// Time for which a previous external ID may be used.
const PREVIOUS_VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// Decides what a Configure stores, or refuses it. `now` has whole microseconds.
pub(super) fn plan(
    existing: Option<&Registered>,
    configure: &Configure,
    sealer: Active<'_>,
    now: Timestamp,
) -> Result<Planned, ConfigureError> {
    let current_etag = existing.map(|registered| registered.integration.etag());
    if configure.etag.is_some() && configure.etag != current_etag {
        return Err(ConfigureError::EtagMismatch);
    }
    match existing {
        None => plan_creation(configure, sealer, now),
        Some(before) => Ok(plan_replacement(
            &before.integration,
            configure,
            sealer,
            now,
        )?),
    }
}

fn plan_creation(
    configure: &Configure,
    sealer: Active<'_>,
    now: Timestamp,
) -> Result<Planned, ConfigureError> {
    let external_id = configure
        .external_id
        .as_ref()
        .ok_or(ConfigureError::ExternalIdRequired)?;
    let integration_id = IntegrationId(Uuid::now_v7());
    let sealed = sealer.seal(external_id, integration_id);
    Ok(Planned {
        integration: Integration {
            organization_id: configure.organization_id.clone(),
            integration_id,
            stream_arn: configure.stream_arn.clone(),
            role_arn: configure.role_arn.clone(),
            external_id: sealed?,
            external_id_hint: external_id.hint().into(),
            external_id_set_at: now,
            previous: None,
            version: 1,
            created_at: now,
            updated_at: now,
        },
        claim: sealer.claim(external_id, &configure.organization_id)?,
        previous_claim: None,
        changed: None,
        issued_only: configure.issued_only,
        actor: configure.actor.clone(),
    })
}

fn plan_replacement(
    before: &Integration,
    configure: &Configure,
    sealer: Active<'_>,
    now: Timestamp,
) -> Result<Planned, StoreError> {
    let stored = match sealer.open(&before.external_id, before.integration_id) {
        // A given one replaces what nobody can decrypt any more.
        Err(StoreError::Sealing) if configure.external_id.is_some() => None,
        opened => Some(opened?),
    };
    let external_id = configure.external_id.clone().or_else(|| stored.clone());
    let external_id = external_id.ok_or(StoreError::Sealing)?;
    let is_stored = |stored: &ExternalId| stored.expose() == external_id.expose();
    let is_new_external_id = !stored.as_ref().is_some_and(is_stored);
    let sealed = sealer.seal(&external_id, before.integration_id);
    let previous = match (stored, is_new_external_id, configure.keep_previous) {
        (Some(stored), true, true) => Some(keep(before, stored, &external_id, sealer, now)?),
        (_, true, _) => None,
        (_, false, _) => open_previous(before, sealer)?,
    };
    let previous = match previous {
        None => None,
        Some((mut previous, clear)) => {
            // All of a row is under one key.
            previous.external_id = sealer.seal(&clear, before.integration_id)?;
            Some((previous, sealer.claim(&clear, &before.organization_id)?))
        }
    };
    let (previous, previous_claim) = previous.unzip();
    let differences = [
        (
            "kinesis_stream_arn",
            before.stream_arn != configure.stream_arn,
        ),
        ("role_arn", before.role_arn != configure.role_arn),
        ("external_id", is_new_external_id),
    ];
    let changed = differences.into_iter().filter(|(_, differs)| *differs);
    Ok(Planned {
        integration: Integration {
            organization_id: before.organization_id.clone(),
            integration_id: before.integration_id,
            stream_arn: configure.stream_arn.clone(),
            role_arn: configure.role_arn.clone(),
            external_id: sealed?,
            external_id_hint: external_id.hint().into(),
            external_id_set_at: match is_new_external_id {
                true => now,
                false => before.external_id_set_at,
            },
            previous,
            version: before.version + 1,
            created_at: before.created_at,
            updated_at: now,
        },
        claim: sealer.claim(&external_id, &before.organization_id)?,
        previous_claim,
        changed: Some(changed.map(|(field, _)| field).collect()),
        // One that was configured before the policy changed may be kept.
        issued_only: configure.issued_only && is_new_external_id,
        actor: configure.actor.clone(),
    })
}

/// Returns the external ID that may be used besides a new one. If the stored one has not worked
/// yet, that is the one before it, for as long as before: a caller that corrects a wrong external
/// ID must not lose the one that works.
fn keep(
    before: &Integration,
    stored: ExternalId,
    new: &ExternalId,
    sealer: Active<'_>,
    now: Timestamp,
) -> Result<(PreviousExternalId, ExternalId), StoreError> {
    if before.previous_at(now).is_some()
        && let Some((previous, clear)) = open_previous(before, sealer)?
        && clear.expose() != new.expose()
    {
        return Ok((previous, clear));
    }
    let previous = PreviousExternalId {
        external_id: before.external_id.clone(),
        hint: before.external_id_hint.clone(),
        until: now + PREVIOUS_VALID,
    };
    Ok((previous, stored))
}

/// Returns the previous external ID, encrypted and in clear. One that cannot be decrypted is of no
/// use, and is given up.
fn open_previous(
    before: &Integration,
    sealer: Active<'_>,
) -> Result<Option<(PreviousExternalId, ExternalId)>, StoreError> {
    let Some(previous) = &before.previous else {
        return Ok(None);
    };
    match sealer.open(&previous.external_id, before.integration_id) {
        Err(StoreError::Sealing) => Ok(None),
        clear => Ok(Some((previous.clone(), clear?))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        domain::{
            arn::{RoleArn, StreamArn},
            audit::Actor,
            organization::OrganizationId,
            status::{Stall, StatusDetail},
        },
        store::secret::{Keyring, Sealer},
    };

    fn configure(external_id: Option<&str>) -> Configure {
        let parse = |text: &str| ExternalId::parse(text.into()).unwrap();
        Configure {
            organization_id: OrganizationId::new("acme").unwrap(),
            stream_arn: StreamArn::parse("arn:aws:kinesis:us-east-1:222222222222:stream/events")
                .unwrap(),
            role_arn: RoleArn::parse("arn:aws:iam::222222222222:role/relay").unwrap(),
            external_id: external_id.map(parse),
            keep_previous: true,
            issued_only: true,
            etag: None,
            actor: Actor::named("test"),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn stored(planned: Planned) -> Registered {
        Registered {
            status: Arc::new(StatusDetail::unknown(planned.integration.created_at)),
            stall: Stall::default(),
            partition: 0,
            revision: 1,
            status_revision: 1,
            integration: Arc::new(planned.integration),
        }
    }

    #[test]
    fn a_corrected_external_id_does_not_replace_the_previous_one() {
        let sealer = Sealer::new(&Keyring::of(&[7; 32])).unwrap();
        let make = |existing: Option<&Registered>, external_id, now| {
            plan(
                existing,
                &configure(external_id),
                sealer.with_first(),
                at(now),
            )
            .unwrap()
        };
        let acme = OrganizationId::new("acme").unwrap();
        let print = |text: &str| {
            let external_id = ExternalId::parse(text.into()).unwrap();
            let claim = sealer.with_first().claim(&external_id, &acme);
            Some(claim.unwrap().fingerprint)
        };
        let previous = |planned: &Planned| Some(planned.previous_claim.clone()?.fingerprint);
        let works = stored(make(None, Some("works"), 0));
        let wrong = make(Some(&works), Some("wrong"), 1);
        assert_eq!(previous(&wrong), print("works"));
        assert!(wrong.issued_only);
        let wrong = stored(wrong);
        let right = make(Some(&wrong), Some("right"), 2);
        assert_eq!(previous(&right), print("works"));
        let until = right.integration.previous.as_ref().map(|one| one.until);
        assert_eq!(until, Some(at(1) + PREVIOUS_VALID));
        // It is not kept beyond its time.
        let week = PREVIOUS_VALID.as_secs() as i64;
        let late = make(Some(&wrong), Some("right"), 1 + week);
        assert_eq!(previous(&late), print("wrong"));
        // Back to the one that works: the wrong one is the previous one.
        let back = make(Some(&wrong), Some("works"), 3);
        assert_eq!(previous(&back), print("wrong"));
    }

    #[test]
    fn the_stored_external_id_is_kept_if_none_is_given() {
        let sealer = Sealer::new(&Keyring::of(&[7; 32])).unwrap();
        let refused = plan(None, &configure(None), sealer.with_first(), at(0));
        assert!(matches!(refused, Err(ConfigureError::ExternalIdRequired)));
        let created = plan(None, &configure(Some("works")), sealer.with_first(), at(0)).unwrap();
        let fingerprint = created.claim.fingerprint.clone();
        let created = stored(created);
        let mut next = configure(None);
        next.etag = Some(created.integration.etag());
        let same = plan(Some(&created), &next, sealer.with_first(), at(1)).unwrap();
        assert_eq!(same.claim.fingerprint, fingerprint);
        assert_eq!(same.changed, Some(Vec::new()));
        assert!(!same.issued_only, "a stored external ID may be kept");
        assert_eq!(same.integration.external_id_set_at, at(0));
        let same = stored(same);
        let refused = plan(Some(&same), &next, sealer.with_first(), at(2));
        assert!(matches!(refused, Err(ConfigureError::EtagMismatch)));
    }
}
