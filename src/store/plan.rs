//! What a Configure makes of what there is.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    StoreError,
    command::{Configure, ConfigureError},
    secret::Sealer,
};
use crate::domain::{
    external_id::ExternalId,
    integration::{Integration, IntegrationKey, PreviousExternalId, Snapshot},
};

/// How long a previous external ID serves at the most.
const PREVIOUS_SERVES: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a Configure makes of what there is.
pub(super) struct Plan {
    pub(super) integration: Integration,
    /// In clear, to find it again.
    pub(super) external_id: ExternalId,
    /// The fingerprint of the one before, where it goes on serving.
    pub(super) previous_fingerprint: Option<Vec<u8>>,
    /// The fields that differ from before; None where it is created.
    pub(super) changed: Option<Vec<&'static str>>,
    pub(super) issued_only: bool,
    pub(super) caller: Box<str>,
}

/// Decides what a Configure makes, and whether it may.
pub(super) fn plan(
    existing: Option<&Snapshot>,
    configure: Configure,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<Plan, ConfigureError> {
    let current_etag = existing.map(|snapshot| snapshot.integration.etag());
    if configure.etag.is_some() && configure.etag != current_etag {
        return Err(ConfigureError::EtagMismatch);
    }
    match existing {
        None => plan_creation(configure, sealer, now),
        Some(before) => plan_replacement(&before.integration, configure, sealer, now),
    }
}

fn plan_creation(
    configure: Configure,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<Plan, ConfigureError> {
    let external_id = configure
        .external_id
        .ok_or(ConfigureError::ExternalIdRequired)?;
    let integration_id = Uuid::now_v7();
    let sealed = sealer.seal(&external_id, integration_id);
    Ok(Plan {
        integration: Integration {
            // Numbered when it is stored.
            key: IntegrationKey::UNSTORED,
            organization_id: configure.organization_id,
            integration_id,
            stream_arn: configure.stream_arn,
            role_arn: configure.role_arn,
            external_id: sealed.map_err(|_| StoreError::Sealing)?,
            external_id_hint: external_id.hint().into(),
            external_id_set_at: now,
            previous: None,
            version: 1,
            created_at: now,
            updated_at: now,
        },
        external_id,
        previous_fingerprint: None,
        changed: None,
        issued_only: configure.issued_only,
        caller: configure.caller,
    })
}

fn plan_replacement(
    before: &Integration,
    configure: Configure,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<Plan, ConfigureError> {
    let stored = sealer
        .open(&before.external_id, before.integration_id)
        .map_err(|_| StoreError::Sealing)?;
    let external_id = configure.external_id.unwrap_or_else(|| stored.clone());
    let new_external_id = stored.expose() != external_id.expose();
    let sealed = sealer.seal(&external_id, before.integration_id);
    let previous = match (new_external_id, configure.keep_previous) {
        (true, true) => Some(kept(before, stored, &external_id, sealer, now)?),
        (true, false) => None,
        (false, _) => opened_previous(before, sealer)?,
    };
    let (previous, previous_fingerprint) = match previous {
        Some((previous, clear)) => (Some(previous), Some(sealer.fingerprint(&clear))),
        None => (None, None),
    };
    let differences = [
        (
            "kinesis_stream_arn",
            before.stream_arn != configure.stream_arn,
        ),
        ("role_arn", before.role_arn != configure.role_arn),
        ("external_id", new_external_id),
    ];
    let changed = differences.into_iter().filter(|(_, differs)| *differs);
    Ok(Plan {
        integration: Integration {
            key: before.key,
            organization_id: before.organization_id.clone(),
            integration_id: before.integration_id,
            stream_arn: configure.stream_arn,
            role_arn: configure.role_arn,
            external_id: sealed.map_err(|_| StoreError::Sealing)?,
            external_id_hint: external_id.hint().into(),
            external_id_set_at: match new_external_id {
                true => now,
                false => before.external_id_set_at,
            },
            previous,
            version: before.version + 1,
            created_at: before.created_at,
            updated_at: now,
        },
        external_id,
        previous_fingerprint,
        // One that was configured before the policy changed may stay.
        issued_only: configure.issued_only && new_external_id,
        changed: Some(changed.map(|(field, _)| field).collect()),
        caller: configure.caller,
    })
}

/// The external ID that goes on serving beside a new one. While the stored one has not
/// worked, that is the one before it, for as long as it would have served: whoever
/// corrects a wrong external ID must not lose the one that works.
fn kept(
    before: &Integration,
    stored: ExternalId,
    new: &ExternalId,
    sealer: &Sealer,
    now: Timestamp,
) -> Result<(PreviousExternalId, ExternalId), StoreError> {
    if before.previous_at(now).is_some()
        && let Some((previous, clear)) = opened_previous(before, sealer)?
        && clear.expose() != new.expose()
    {
        return Ok((previous, clear));
    }
    let previous = PreviousExternalId {
        external_id: before.external_id.clone(),
        hint: before.external_id_hint.clone(),
        until: now + PREVIOUS_SERVES,
    };
    Ok((previous, stored))
}

/// The external ID before, sealed and in clear.
fn opened_previous(
    before: &Integration,
    sealer: &Sealer,
) -> Result<Option<(PreviousExternalId, ExternalId)>, StoreError> {
    let Some(previous) = &before.previous else {
        return Ok(None);
    };
    let clear = sealer
        .open(&previous.external_id, before.integration_id)
        .map_err(|_| StoreError::Sealing)?;
    Ok(Some((previous.clone(), clear)))
}
