//! Changes of integrations within a transaction.

use jiff::Timestamp;
use sea_orm::{DatabaseTransaction, DbErr};

use super::{
    StoreError,
    answers::Answers,
    command::{Command, ConfigureError},
    draft::Draft,
    external_ids, failure,
    gaps::{self, GiveUp, GivenUp},
    integrations,
    packs::unpack_for,
    secret::Sealer,
    tail::Tail,
};

/// Makes one: anything but an append or the end. Errors here are the database's; a refusal is an answer.
pub(super) async fn make(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    answers: &mut Answers,
    (sealer, tail): (&Sealer, &Tail),
    command: Command,
    now: Timestamp,
) -> Result<(), DbErr> {
    match command {
        Command::Configure { configure, reply } => {
            match integrations::configure(tx, draft, sealer, *configure, now).await {
                Ok(stored) => answers.configures.push((reply, stored)),
                Err(ConfigureError::Store(StoreError::Database(error))) => {
                    let told = StoreError::Database(error.clone());
                    let _gone = reply.send(Err(told.into()));
                    return Err(error);
                }
                Err(refused) => {
                    let _gone = reply.send(Err(refused));
                }
            }
        }
        Command::Delete {
            organization_id,
            caller,
            reply,
        } => match integrations::delete(tx, draft, &organization_id, &caller, now).await {
            Ok(deleted) => {
                if let Some(deleted) = &deleted {
                    draft.packs.drop_all_of(deleted.key);
                }
                answers.deletes.push((reply, deleted));
            }
            Err(error) => {
                let _gone = reply.send(Err(StoreError::Database(error.clone())));
                return Err(error);
            }
        },
        Command::RetirePrevious { key, version } => {
            external_ids::retire_previous(tx, draft, key, version, now).await?;
        }
        Command::GiveUp { ask, reply } => match give_up(tx, draft, tail, &ask).await {
            Ok(given_up) => answers.given_up.push((reply, ask.key, given_up)),
            // Nothing was given up yet, and others have no part in it.
            Err(error) if failure::is_unreadable(&error) => {
                let _gone = reply.send(Err(StoreError::Database(error)));
            }
            Err(error) => {
                let _gone = reply.send(Err(StoreError::Database(error.clone())));
                return Err(error);
            }
        },
        Command::Issue {
            organization_id,
            external_id,
            reply,
        } => {
            let issued = external_ids::issue(tx, sealer, &organization_id, &external_id, now);
            if let Err(error) = issued.await {
                let _gone = reply.send(Err(StoreError::Database(error.clone())));
                return Err(error);
            }
            answers.issues.push(reply);
        }
        Command::Append { .. } | Command::Close { .. } => {}
    }
    Ok(())
}

/// What is given up has rows first.
async fn give_up(
    tx: &DatabaseTransaction,
    draft: &mut Draft<'_>,
    tail: &Tail,
    ask: &GiveUp,
) -> Result<GivenUp, DbErr> {
    unpack_for(tx, &mut draft.packs, tail, ask).await?;
    gaps::apply(tx, draft, ask).await
}
