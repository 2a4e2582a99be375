//! Decision about a Configure: what it stores, given the integration that exists.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Configure, ConfigureError, StoreError,
    ports::{Planned, Registered},
    secret::Sealer,
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
    sealer: &Sealer,
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
    sealer: &Sealer,
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
        fingerprint: sealer.fingerprint(external_id),
        previous_fingerprint: None,
        changed: None,
        issued_only: configure.issued_only,
        caller: configure.caller.clone(),
    })
}

fn plan_replacement(
    before: &Integration,
    configure: &Configure,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<Planned, StoreError> {
    let stored = sealer.open(&before.external_id, before.integration_id)?;
    let external_id = configure
        .external_id
        .clone()
        .unwrap_or_else(|| stored.clone());
    let is_new_external_id = stored.expose() != external_id.expose();
    let sealed = sealer.seal(&external_id, before.integration_id);
    let previous = match (is_new_external_id, configure.keep_previous) {
        (true, true) => Some(keep(before, stored, &external_id, sealer, now)?),
        (true, false) => None,
        (false, _) => open_previous(before, sealer)?,
    };
    let (previous, previous_fingerprint) = previous
        .map(|(previous, clear)| (previous, sealer.fingerprint(&clear)))
        .unzip();
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
        fingerprint: sealer.fingerprint(&external_id),
        previous_fingerprint,
        changed: Some(changed.map(|(field, _)| field).collect()),
        // One that was configured before the policy changed may be kept.
        issued_only: configure.issued_only && is_new_external_id,
        caller: configure.caller.clone(),
    })
}

/// Returns the external ID that may be used besides a new one. If the stored one has not worked
/// yet, that is the one before it, for as long as before: a caller that corrects a wrong external
/// ID must not lose the one that works.
fn keep(
    before: &Integration,
    stored: ExternalId,
    new: &ExternalId,
    sealer: &Sealer,
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

/// Returns the previous external ID, encrypted and in clear.
fn open_previous(
    before: &Integration,
    sealer: &Sealer,
) -> Result<Option<(PreviousExternalId, ExternalId)>, StoreError> {
    let Some(previous) = &before.previous else {
        return Ok(None);
    };
    let clear = sealer.open(&previous.external_id, before.integration_id)?;
    Ok(Some((previous.clone(), clear)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        domain::{
            arn::{RoleArn, StreamArn},
            organization::OrganizationId,
            status::{Stall, StatusDetail},
        },
        store::secret::MasterKey,
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
            caller: "test".into(),
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
        let sealer = Sealer::new(&MasterKey::from_bytes(&[7; 32])).unwrap();
        let make = |existing: Option<&Registered>, external_id, now| {
            plan(existing, &configure(external_id), &sealer, at(now)).unwrap()
        };
        let print = |text: &str| sealer.fingerprint(&ExternalId::parse(text.into()).unwrap());
        let works = stored(make(None, Some("works"), 0));
        let wrong = make(Some(&works), Some("wrong"), 1);
        assert_eq!(wrong.previous_fingerprint, Some(print("works")));
        assert!(wrong.issued_only);
        let wrong = stored(wrong);
        let right = make(Some(&wrong), Some("right"), 2);
        assert_eq!(right.previous_fingerprint, Some(print("works")));
        let until = right.integration.previous.as_ref().map(|one| one.until);
        assert_eq!(until, Some(at(1) + PREVIOUS_VALID));
        // It is not kept beyond its time.
        let week = PREVIOUS_VALID.as_secs() as i64;
        let late = make(Some(&wrong), Some("right"), 1 + week);
        assert_eq!(late.previous_fingerprint, Some(print("wrong")));
        // Back to the one that works: the wrong one is the previous one.
        let back = make(Some(&wrong), Some("works"), 3);
        assert_eq!(back.previous_fingerprint, Some(print("wrong")));
    }

    #[test]
    fn the_stored_external_id_is_kept_if_none_is_given() {
        let sealer = Sealer::new(&MasterKey::from_bytes(&[7; 32])).unwrap();
        let refused = plan(None, &configure(None), &sealer, at(0));
        assert!(matches!(refused, Err(ConfigureError::ExternalIdRequired)));
        let created = plan(None, &configure(Some("works")), &sealer, at(0)).unwrap();
        let fingerprint = created.fingerprint.clone();
        let created = stored(created);
        let mut next = configure(None);
        next.etag = Some(created.integration.etag());
        let same = plan(Some(&created), &next, &sealer, at(1)).unwrap();
        assert_eq!(same.fingerprint, fingerprint);
        assert_eq!(same.changed, Some(Vec::new()));
        assert!(!same.issued_only, "a stored external ID may be kept");
        assert_eq!(same.integration.external_id_set_at, at(0));
        let same = stored(same);
        let refused = plan(Some(&same), &next, &sealer, at(2));
        assert!(matches!(refused, Err(ConfigureError::EtagMismatch)));
    }
}
