//! Tables of the registry, and their rows as values of the domain. Times are microseconds since
//! the Unix epoch.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

use super::copy::partition_of;
use crate::{
    domain::{
        arn::{RoleArn, StreamArn},
        integration::{Integration, IntegrationId, PreviousExternalId, SealedExternalId},
        organization::OrganizationId,
        status::{Reason, Stall, Status, StatusDetail},
    },
    store::{
        error::StoreError,
        ports::{Claim, Planned, Registered, Reseal, Tombstone},
    },
};

/// Facts about the database itself.
pub(super) mod meta {
    use sea_orm::entity::prelude::*;

    /// Name of the row with the newest revision.
    pub const REVISION: &str = "revision";
    /// Name of the row with the revision up to which deletions are forgotten.
    pub const TOMBSTONE_FLOOR: &str = "tombstone_floor";
    /// Name of the row with the ids of the keys of external IDs: see `keys`. Versions with a single
    /// key compare it with theirs.
    pub const KEYS: &str = "external_id_key_check";
    /// Name of the row with the number of ids that refusals in the audit have taken.
    pub const AUDIT_REFUSALS: &str = "audit_refusals";
    /// Name of the row with the resume token up to which the receiver of notifications has every
    /// status.
    pub const NOTIFIED_TO: &str = "notified_to";

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "meta")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub name: String,
        pub value: String,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Integrations with their status.
pub(super) mod integration {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "integration")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub integration_key: i64,
        #[sea_orm(unique)]
        pub organization_id: String,
        #[sea_orm(unique)]
        pub integration_id: String,
        pub partition: i32,
        pub stream_arn: String,
        pub role_arn: String,
        pub external_id_sealed: Vec<u8>,
        pub external_id_key_id: String,
        #[sea_orm(unique)]
        pub external_id_hmac: Vec<u8>,
        pub external_id_hint: String,
        pub external_id_set_at: i64,
        pub previous_external_id_sealed: Option<Vec<u8>>,
        #[sea_orm(indexed)]
        pub previous_external_id_hmac: Option<Vec<u8>>,
        pub previous_external_id_hint: Option<String>,
        pub previous_external_id_until: Option<i64>,
        pub version: i64,
        pub created_at: i64,
        pub updated_at: i64,
        #[sea_orm(indexed)]
        pub revision: i64,
        pub status_revision: i64,
        pub status: String,
        pub reason: Option<String>,
        pub status_since: i64,
        pub next_retry_at: Option<i64>,
        pub aws_error_code: Option<String>,
        pub aws_request_id: Option<String>,
        pub stall_since: Option<i64>,
        pub stall_until: Option<i64>,
        pub observed_began_at: Option<i64>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// External IDs that were issued to an organization; no other may use them.
pub(super) mod issued_external_id {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "issued_external_id")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub external_id_hmac: Vec<u8>,
        #[sea_orm(indexed)]
        pub organization_id: String,
        pub issued_at: i64,
        /// None in rows of versions that had no rotation of keys.
        pub external_id_sealed: Option<Vec<u8>>,
        /// None stands for the key that was active before the first rotation.
        pub external_id_key_id: Option<String>,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// Deletions, for status streams that resume from before them.
pub(super) mod tombstone {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "tombstone")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub revision: i64,
        pub organization_id: String,
        pub integration_id: String,
        pub deleted_at: i64,
    }

    #[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// A time as it is stored.
pub(super) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// A time without what is not stored of it.
pub(super) fn whole_micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

/// Error of a value that this version cannot read.
fn unreadable(column: &str) -> StoreError {
    StoreError::Corrupt(format!("the stored {column} cannot be read"))
}

fn time(micros: i64, column: &str) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|_| unreadable(column))
}

fn optional_time(micros: Option<i64>, column: &str) -> Result<Option<Timestamp>, StoreError> {
    micros.map(|micros| time(micros, column)).transpose()
}

fn number<T, U: TryFrom<T>>(value: T, column: &str) -> Result<U, StoreError> {
    U::try_from(value).map_err(|_| unreadable(column))
}

fn named<T: Copy>(
    all: &[T],
    name: fn(T) -> &'static str,
    text: &str,
    column: &str,
) -> Result<T, StoreError> {
    let found = all.iter().copied().find(|value| name(*value) == text);
    found.ok_or_else(|| unreadable(column))
}

fn organization(text: &str) -> Result<OrganizationId, StoreError> {
    OrganizationId::new(text).map_err(|_| unreadable("organization_id"))
}

/// Reads the id of an integration.
pub(super) fn integration_id(text: &str) -> Result<IntegrationId, StoreError> {
    let id = Uuid::parse_str(text).map_err(|_| unreadable("integration_id"))?;
    Ok(IntegrationId(id))
}

impl integration::Model {
    /// The row of a new integration, without key and revisions.
    pub(super) fn new(planned: Planned, partitions: u32) -> Self {
        let id = planned.integration.integration_id;
        let created_at = planned.integration.created_at;
        let mut row = Self {
            integration_key: 0,
            organization_id: planned.integration.organization_id.as_str().to_owned(),
            integration_id: id.to_string(),
            partition: partition_of(id, partitions) as i32,
            stream_arn: String::new(),
            role_arn: String::new(),
            external_id_sealed: Vec::new(),
            external_id_key_id: String::new(),
            external_id_hmac: Vec::new(),
            external_id_hint: String::new(),
            external_id_set_at: 0,
            previous_external_id_sealed: None,
            previous_external_id_hmac: None,
            previous_external_id_hint: None,
            previous_external_id_until: None,
            version: 0,
            created_at: micros(created_at),
            updated_at: 0,
            revision: 0,
            status_revision: 0,
            status: String::new(),
            reason: None,
            status_since: 0,
            next_retry_at: None,
            aws_error_code: None,
            aws_request_id: None,
            stall_since: None,
            stall_until: None,
            observed_began_at: None,
        };
        row.set_configuration(planned);
        row.set_status(&StatusDetail::unknown(created_at), Stall::default());
        row
    }

    /// Replaces the configuration. Its observations are yet to come.
    pub(super) fn set_configuration(&mut self, planned: Planned) {
        let integration = planned.integration;
        self.stream_arn = integration.stream_arn.as_str().to_owned();
        self.role_arn = integration.role_arn.as_str().to_owned();
        self.external_id_sealed = integration.external_id.bytes.into();
        self.external_id_key_id = integration.external_id.key_id.into();
        self.external_id_hmac = planned.claim.fingerprint;
        self.external_id_hint = integration.external_id_hint.into();
        self.external_id_set_at = micros(integration.external_id_set_at);
        let previous = integration.previous;
        self.previous_external_id_until = previous.as_ref().map(|one| micros(one.until));
        self.previous_external_id_hmac = planned.previous_claim.map(|claim| claim.fingerprint);
        (
            self.previous_external_id_sealed,
            self.previous_external_id_hint,
        ) = previous
            .map(|one| (one.external_id.bytes.into(), one.hint.into()))
            .unzip();
        self.version = integration.version as i64;
        self.updated_at = micros(integration.updated_at);
        self.observed_began_at = None;
    }

    /// Forgets the previous external ID.
    pub(super) fn clear_previous(&mut self) {
        self.previous_external_id_sealed = None;
        self.previous_external_id_hmac = None;
        self.previous_external_id_hint = None;
        self.previous_external_id_until = None;
    }

    /// The status, without the times of the last attempt and the last delivery, which the ledger
    /// keeps.
    pub(super) fn status(&self) -> Result<StatusDetail, StoreError> {
        let reason = self.reason.as_deref();
        Ok(StatusDetail {
            status: named(&Status::ALL, Status::as_str, &self.status, "status")?,
            reason: reason
                .map(|text| named(&Reason::ALL, Reason::as_str, text, "reason"))
                .transpose()?,
            since: time(self.status_since, "status_since")?,
            last_attempt: None,
            last_delivery: None,
            next_retry: optional_time(self.next_retry_at, "next_retry_at")?,
            aws_error_code: self.aws_error_code.as_deref().map(Into::into),
            aws_request_id: self.aws_request_id.as_deref().map(Into::into),
        })
    }

    /// The period without a delivery.
    pub(super) fn stall(&self) -> Result<Stall, StoreError> {
        let since = optional_time(self.stall_since, "stall_since")?;
        let until = optional_time(self.stall_until, "stall_until")?;
        Ok(Stall::new(since.zip(until)))
    }

    /// Replaces the status.
    pub(super) fn set_status(&mut self, status: &StatusDetail, stall: Stall) {
        self.status = status.status.as_str().to_owned();
        self.reason = status.reason.map(|reason| reason.as_str().to_owned());
        self.status_since = micros(status.since);
        self.next_retry_at = status.next_retry.map(micros);
        self.aws_error_code = status.aws_error_code.as_deref().map(str::to_owned);
        self.aws_request_id = status.aws_request_id.as_deref().map(str::to_owned);
        (self.stall_since, self.stall_until) = stall
            .span()
            .map(|(since, until)| (micros(since), micros(until)))
            .unzip();
    }

    /// Encrypts the external IDs anew. Returns the claims on them.
    pub(super) fn reseal(&mut self, reseal: &dyn Reseal) -> Result<Vec<Claim>, StoreError> {
        let organization_id = organization(&self.organization_id)?;
        let id = integration_id(&self.integration_id)?;
        let key_id: Box<str> = self.external_id_key_id.as_str().into();
        let anew = |bytes: &[u8]| {
            let (key_id, bytes) = (key_id.clone(), bytes.into());
            reseal.of_integration(&organization_id, id, &SealedExternalId { key_id, bytes })
        };
        let (sealed, claim) = anew(&self.external_id_sealed)?;
        let previous = self.previous_external_id_sealed.as_deref();
        let previous = previous.map(anew).transpose()?;
        self.external_id_key_id = sealed.key_id.into();
        self.external_id_sealed = sealed.bytes.into();
        self.external_id_hmac.clone_from(&claim.fingerprint);
        let mut claims = vec![claim];
        if let Some((sealed, claim)) = previous {
            self.previous_external_id_sealed = Some(sealed.bytes.into());
            self.previous_external_id_hmac = Some(claim.fingerprint.clone());
            claims.push(claim);
        }
        Ok(claims)
    }

    fn previous(&self) -> Result<Option<PreviousExternalId>, StoreError> {
        let until = optional_time(
            self.previous_external_id_until,
            "previous_external_id_until",
        )?;
        let (Some(sealed), Some(until)) = (&self.previous_external_id_sealed, until) else {
            return Ok(None);
        };
        Ok(Some(PreviousExternalId {
            external_id: SealedExternalId {
                key_id: self.external_id_key_id.as_str().into(),
                bytes: sealed.as_slice().into(),
            },
            hint: self
                .previous_external_id_hint
                .as_deref()
                .unwrap_or("")
                .into(),
            until,
        }))
    }
}

impl issued_external_id::Model {
    /// Encrypts the external ID anew. Returns the claim on it; None if only its hash is known.
    pub(super) fn reseal(&self, reseal: &dyn Reseal) -> Result<Option<Claim>, StoreError> {
        let (Some(key_id), Some(bytes)) = (&self.external_id_key_id, &self.external_id_sealed)
        else {
            return Ok(None);
        };
        let sealed = SealedExternalId {
            key_id: key_id.as_str().into(),
            bytes: bytes.as_slice().into(),
        };
        let organization_id = organization(&self.organization_id)?;
        reseal.issued(&organization_id, &sealed).map(Some)
    }
}

impl TryFrom<integration::Model> for Registered {
    type Error = StoreError;

    fn try_from(row: integration::Model) -> Result<Self, StoreError> {
        Ok(Self {
            status: Arc::new(row.status()?),
            stall: row.stall()?,
            partition: number(row.partition, "partition")?,
            revision: number(row.revision, "revision")?,
            status_revision: number(row.status_revision, "status_revision")?,
            integration: Arc::new(Integration {
                previous: row.previous()?,
                organization_id: organization(&row.organization_id)?,
                integration_id: integration_id(&row.integration_id)?,
                stream_arn: StreamArn::parse(&row.stream_arn)
                    .map_err(|_| unreadable("stream_arn"))?,
                role_arn: RoleArn::parse(&row.role_arn).map_err(|_| unreadable("role_arn"))?,
                external_id: SealedExternalId {
                    key_id: row.external_id_key_id.into(),
                    bytes: row.external_id_sealed.into(),
                },
                external_id_hint: row.external_id_hint.into(),
                external_id_set_at: time(row.external_id_set_at, "external_id_set_at")?,
                version: number(row.version, "version")?,
                created_at: time(row.created_at, "created_at")?,
                updated_at: time(row.updated_at, "updated_at")?,
            }),
        })
    }
}

impl TryFrom<tombstone::Model> for Tombstone {
    type Error = StoreError;

    fn try_from(row: tombstone::Model) -> Result<Self, StoreError> {
        Ok(Self {
            revision: number(row.revision, "revision")?,
            organization_id: organization(&row.organization_id)?,
            integration_id: integration_id(&row.integration_id)?,
            deleted_at: time(row.deleted_at, "deleted_at")?,
        })
    }
}
