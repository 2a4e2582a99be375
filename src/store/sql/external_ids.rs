//! Ownership of external IDs: an organization owns those that it uses, that it may use until
//! their successor works, and that were issued to it.

use jiff::Timestamp;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbErr, EntityTrait, ExprTrait, QueryFilter, QueryOrder,
    QuerySelect,
};

use super::entities::{integration, issued_external_id, micros};
use crate::{domain::organization::OrganizationId, store::error::ConfigureError};

/// Issued external IDs that an organization may have; beyond that the oldest is forgotten.
const MAX_ISSUED: u64 = 10;

/// Returns the reason that an organization may not use an external ID, if there is one.
pub(super) async fn refusal(
    db: &impl ConnectionTrait,
    organization_id: &OrganizationId,
    fingerprint: &[u8],
    issued_only: bool,
) -> Result<Option<ConfigureError>, DbErr> {
    use integration::Column::{ExternalIdHmac, OrganizationId, PreviousExternalIdHmac};
    let used = ExternalIdHmac.eq(fingerprint);
    let users: Vec<String> = integration::Entity::find()
        .select_only()
        .column(OrganizationId)
        .filter(used.or(PreviousExternalIdHmac.eq(fingerprint)))
        .into_tuple()
        .all(db)
        .await?;
    let issued: Vec<String> = issued_external_id::Entity::find_by_id(fingerprint.to_vec())
        .select_only()
        .column(issued_external_id::Column::OrganizationId)
        .into_tuple()
        .all(db)
        .await?;
    let mut owners = users.iter().chain(&issued);
    Ok(if owners.any(|owner| owner != organization_id.as_str()) {
        Some(ConfigureError::ExternalIdInUse)
    } else if issued_only && issued.is_empty() {
        Some(ConfigureError::ExternalIdNotIssued)
    } else {
        None
    })
}

/// Reserves an external ID for an organization.
pub(super) async fn issue(
    tx: &impl ConnectionTrait,
    organization_id: &OrganizationId,
    fingerprint: &[u8],
    now: Timestamp,
) -> Result<(), DbErr> {
    use issued_external_id::{ActiveModel, Column, Entity, Model};
    let row = Model {
        external_id_hmac: fingerprint.to_vec(),
        organization_id: organization_id.as_str().to_owned(),
        issued_at: micros(now),
    };
    Entity::insert(ActiveModel::from(row))
        .exec_without_returning(tx)
        .await?;
    let of_organization = Column::OrganizationId.eq(organization_id.as_str());
    let oldest_kept: Option<i64> = Entity::find()
        .select_only()
        .column(Column::IssuedAt)
        .filter(of_organization.clone())
        .order_by_desc(Column::IssuedAt)
        .offset(MAX_ISSUED - 1)
        .limit(1)
        .into_tuple()
        .one(tx)
        .await?;
    if let Some(oldest_kept) = oldest_kept {
        Entity::delete_many()
            .filter(of_organization)
            .filter(Column::IssuedAt.lt(oldest_kept))
            .exec(tx)
            .await?;
    }
    Ok(())
}
