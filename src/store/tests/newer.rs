//! Databases of versions to come.

use sea_orm::Database;

use super::*;

#[tokio::test]
async fn a_database_of_a_newer_version_is_not_served() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), 0).await.close().await;
    let file = folder.path().join("siem-relay.sqlite");
    let db = Database::connect(format!("sqlite://{}", file.display()))
        .await
        .unwrap();
    let later = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_later', 1)";
    db.execute_unprepared(later).await.unwrap();
    db.close().await.unwrap();
    let key = MasterKey::from_hex(KEY).unwrap();
    let error = Store::open(options(folder.path(), 0), key).await.err();
    assert!(
        matches!(&error, Some(OpenError::Newer { migration, .. }) if migration == "m9999_later")
    );
}
