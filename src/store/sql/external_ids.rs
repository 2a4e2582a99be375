//! Ownership of external IDs: an organization owns those that it uses, that it may use until
//! their successor works, and that were issued to it and are not used yet. The last ones lapse.

use jiff::Timestamp;
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, DbErr, EntityTrait, ExprTrait, QueryFilter,
    QuerySelect, sea_query::Expr,
};

use super::{
    entities::{integration, issued_external_id, micros},
    statement,
};
use crate::{
    domain::organization::OrganizationId,
    store::{
        error::ConfigureError,
        ports::{Claim, ISSUED_VALID, MAX_ISSUED},
    },
};

/// Time in microseconds at or before which an external ID was issued that has lapsed.
fn lapsed(now: Timestamp) -> i64 {
    micros(now) - ISSUED_VALID.as_micros() as i64
}

/// Returns the reason that an organization may not use an external ID, if there is one.
pub(super) async fn refusal(
    db: &impl ConnectionTrait,
    organization_id: &OrganizationId,
    claim: &Claim,
    issued_only: bool,
    now: Timestamp,
) -> Result<Option<ConfigureError>, DbErr> {
    let fingerprints = claim.fingerprints();
    let users = users(db, &fingerprints).await?;
    let issued: Vec<String> = issued_external_id::Entity::find()
        .select_only()
        .column(issued_external_id::Column::OrganizationId)
        .filter(issued_external_id::Column::ExternalIdHmac.is_in(fingerprints))
        .filter(issued_external_id::Column::IssuedAt.gt(lapsed(now)))
        .into_tuple()
        .all(db)
        .await?;
    let mut owners = users.iter().chain(&issued);
    Ok(if owners.any(|owner| owner != organization_id.as_str()) {
        Some(ConfigureError::ExternalIdInUse)
    } else if issued_only && issued.is_empty() && users.is_empty() {
        Some(ConfigureError::ExternalIdNotIssued)
    } else {
        None
    })
}

/// Organizations that use an external ID, also as the previous one. `fingerprints` are its hashes
/// under all keys.
async fn users(db: &impl ConnectionTrait, fingerprints: &[Vec<u8>]) -> Result<Vec<String>, DbErr> {
    use integration::Column::{ExternalIdHmac, OrganizationId, PreviousExternalIdHmac};
    let used = ExternalIdHmac.is_in(fingerprints.to_vec());
    integration::Entity::find()
        .select_only()
        .column(OrganizationId)
        .filter(used.or(PreviousExternalIdHmac.is_in(fingerprints.to_vec())))
        .into_tuple()
        .all(db)
        .await
}

/// Reserves an external ID for an organization. Returns false if it has [`MAX_ISSUED`] already.
/// The caller prevents that others issue at the same time.
pub(super) async fn issue(
    tx: &impl ConnectionTrait,
    organization_id: &OrganizationId,
    claim: Claim,
    now: Timestamp,
) -> Result<bool, DbErr> {
    use issued_external_id::{ActiveModel, Column, Entity, Model};
    let of_organization = Column::OrganizationId.eq(organization_id.as_str());
    Entity::delete_many()
        .filter(of_organization.clone())
        .filter(Column::IssuedAt.lte(lapsed(now)))
        .exec(tx)
        .await?;
    let issued: Vec<Vec<u8>> = Entity::find()
        .select_only()
        .column(Column::ExternalIdHmac)
        .filter(of_organization)
        .limit(10 * MAX_ISSUED)
        .into_tuple()
        .all(tx)
        .await?;
    let mut unused = 0;
    for fingerprint in issued {
        // Earlier versions kept those that were configured.
        unused += u64::from(users(tx, &[fingerprint]).await?.is_empty());
    }
    if unused >= MAX_ISSUED {
        return Ok(false);
    }
    let row = Model {
        external_id_hmac: claim.fingerprint,
        organization_id: organization_id.as_str().to_owned(),
        issued_at: micros(now),
        external_id_sealed: Some(claim.sealed.bytes.into()),
        external_id_key_id: Some(claim.sealed.key_id.into()),
    };
    Entity::insert(ActiveModel::from(row))
        .exec_without_returning(tx)
        .await?;
    Ok(true)
}

/// Stores an issued external ID that is stored under another key under that of a claim.
pub(super) async fn move_issued(tx: &impl ConnectionTrait, claim: &Claim) -> Result<(), DbErr> {
    use issued_external_id::{Column, Entity};
    if claim.others.is_empty() {
        return Ok(());
    }
    Entity::update_many()
        .col_expr(
            Column::ExternalIdHmac,
            Expr::value(claim.fingerprint.clone()),
        )
        .col_expr(
            Column::ExternalIdSealed,
            Expr::value(claim.sealed.bytes.to_vec()),
        )
        .col_expr(Column::ExternalIdKeyId, Expr::value(&*claim.sealed.key_id))
        .filter(Column::ExternalIdHmac.is_in(claim.others.clone()))
        .exec(tx)
        .await
        .map(drop)
}

/// Ends the reservation of an external ID, because its organization uses it.
pub(super) async fn configured(tx: &impl ConnectionTrait, claim: &Claim) -> Result<(), DbErr> {
    let is_it = issued_external_id::Column::ExternalIdHmac.is_in(claim.fingerprints());
    let reserved = issued_external_id::Entity::delete_many().filter(is_it);
    reserved.exec(tx).await.map(drop)
}

/// Ends all reservations of an organization. Returns their number.
pub(super) async fn release(
    tx: &impl ConnectionTrait,
    organization_id: &OrganizationId,
) -> Result<u64, DbErr> {
    let of_organization = issued_external_id::Column::OrganizationId.eq(organization_id.as_str());
    let released = issued_external_id::Entity::delete_many().filter(of_organization);
    Ok(released.exec(tx).await?.rows_affected)
}

/// Forgets at most `limit` reservations that have lapsed. Returns their number.
pub(super) async fn forget_lapsed(
    tx: &impl ConnectionTrait,
    now: Timestamp,
    limit: u64,
) -> Result<u64, DbErr> {
    // Those that another transaction holds are about to be removed, or re-sealed for the next call.
    let lock = match tx.get_database_backend() {
        DbBackend::Postgres => "FOR UPDATE SKIP LOCKED",
        _ => "",
    };
    let sql = format!(
        "DELETE FROM issued_external_id WHERE external_id_hmac IN \
        (SELECT external_id_hmac FROM issued_external_id WHERE issued_at <= $1 LIMIT {limit} {lock})"
    );
    let forget = statement(tx, &sql, [lapsed(now).into()]);
    Ok(tx.execute_raw(forget).await?.rows_affected())
}

/// Names the key of at most `limit` reservations without one. Returns their number.
pub(super) async fn name_key(
    tx: &impl ConnectionTrait,
    key: &str,
    limit: u64,
) -> Result<u64, DbErr> {
    let sql = format!(
        "UPDATE issued_external_id SET external_id_key_id = $1 WHERE external_id_hmac IN \
        (SELECT external_id_hmac FROM issued_external_id WHERE external_id_key_id IS NULL LIMIT {limit})"
    );
    let name = statement(tx, &sql, [key.into()]);
    Ok(tx.execute_raw(name).await?.rows_affected())
}
