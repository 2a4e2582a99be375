//! Where chunks lie, case by case.

use super::*;
use crate::domain::gap::Marked;

#[tokio::test]
async fn a_request_of_many_integrations_is_one_row_until_it_is_delivered() {
    let mut run = Run::new(1 << 20).await;
    run.append((0..4).map(|which| (which, 3)).collect()).await;
    assert_eq!(rows_of(&run.store, "pack").await, 1);
    assert_eq!(rows_of(&run.store, "chunk").await, 0);
    assert!(run.send(1).await);
    run.answer(1, 0, u64::MAX, true).await;
    assert_eq!(rows_of(&run.store, "pack_done").await, 1);
    run.drain().await;
    for table in ["chunk", "pack", "pack_done"] {
        assert_eq!(rows_of(&run.store, table).await, 0, "{table}");
    }
    run.store.close().await;
}

#[tokio::test]
async fn what_leaves_memory_unread_becomes_few_rows() {
    let mut run = Run::new(8 * 4 * SEGMENT_BYTES).await;
    for _ in 0..8 {
        run.append((0..4).map(|which| (which, 2)).collect()).await;
    }
    // A half stays, and of the other all of one integration is one.
    assert!(rows_of(&run.store, "chunk").await <= 8);
    run.drain().await;
    run.store.close().await;
}

/// What lies in a pack of which nothing can be read is told to be lost, and nothing else is.
#[tokio::test]
async fn a_damaged_pack_is_set_aside() {
    let mut run = Run::new(1 << 20).await;
    for _ in 0..2 {
        run.append((0..ORGANIZATIONS.len()).map(|which| (which, 3)).collect())
            .await;
    }
    let spoil = "UPDATE pack SET payload = X'0400' WHERE pack_id = (SELECT MIN(pack_id) FROM pack)";
    run.store.reader.execute_unprepared(spoil).await.unwrap();
    let copy = run.left_behind();
    run.store.close().await;
    let store = open(copy.path(), 0).await;
    assert_eq!(rows_of(&store, "damaged_pack").await, 1);
    for organization in ORGANIZATIONS {
        let snapshot = store.find(organization).unwrap();
        assert_eq!(snapshot.progress.pending(), 6);
        let key = snapshot.integration.key;
        let Err(StoreError::Damaged { chunk_id }) = store.read_log(key, 1, 1 << 20).await else {
            panic!("it was read");
        };
        let ask = GiveUp {
            key,
            what: What::Damaged(chunk_id),
            in_flight: Vec::new(),
        };
        assert_eq!(store.give_up(ask).await.unwrap().expired, 3);
        let chunks = store.read_log(key, 1, 1 << 20).await.unwrap();
        assert_eq!(chunks.last().map(|chunk| chunk.first_sequence), Some(4));
    }
    store.close().await;
}

#[tokio::test]
async fn a_pack_whose_owners_cannot_be_told_is_not_served() {
    let mut run = Run::new(1 << 20).await;
    run.append(vec![(0, 3), (1, 3)]).await;
    let spoil = "UPDATE pack SET outline = X'01'";
    run.store.reader.execute_unprepared(spoil).await.unwrap();
    let copy = run.left_behind();
    run.store.close().await;
    let again = Store::open(options(copy.path(), 0), MasterKey::from_hex(KEY).unwrap()).await;
    assert!(matches!(again.err(), Some(OpenError::Damaged { .. })));
}

/// What AWS refuses of a pack has a row before a gap takes its place, and the rest stays.
#[tokio::test]
async fn what_is_refused_of_a_pack_is_told() {
    let mut run = Run::new(1 << 20).await;
    run.append((0..4).map(|which| (which, 3)).collect()).await;
    let key = run.key(2);
    let chunks = run.store.read_log(key, 1, 1 << 20).await.unwrap();
    let refused = Marked {
        chunk_id: chunks[0].id,
        events: vec![0b010],
        bytes: EVENT_BYTES,
    };
    let ask = GiveUp {
        key,
        what: What::Refused(vec![refused]),
        in_flight: Vec::new(),
    };
    assert_eq!(run.store.give_up(ask).await.unwrap().expired, 1);
    assert_eq!(rows_of(&run.store, "chunk").await, 1);
    run.all[2].pending.remove(&2);
    run.all[2].expired.insert(2);
    run.restart(true, 0).await;
    run.drain().await;
    run.store.close().await;
}

/// What waits for customers that take nothing goes to disk once it was waited for in vain.
#[tokio::test]
async fn what_presses_the_tail_leaves_it() {
    let most = 64 * SEGMENT_BYTES;
    let mut run = Run::new(most).await;
    let tail = Arc::clone(&run.store.tail);
    let key = run.store.key_of(ORGANIZATIONS[0]);
    let is_behind = || tail.is_behind(key.into_iter());
    for _ in 0..6 {
        run.append((0..4).map(|which| (which, 2)).collect()).await;
    }
    assert!(!is_behind() && tail.packed_bytes() == 48 * SEGMENT_BYTES);
    run.append(vec![(0, 2), (1, 2)]).await;
    assert!(is_behind() && tail.packed_bytes() == 52 * SEGMENT_BYTES);
    tail.press(true);
    run.append(vec![(0, 2), (1, 2)]).await;
    run.settled(0).await;
    assert!(!tail.is_pressed() && tail.packed_bytes() <= most / 2);
    run.drain().await;
    run.store.close().await;
}

#[tokio::test]
async fn nothing_of_a_deleted_integration_stays_in_a_pack() {
    let run = &mut Run::new(1 << 20).await;
    run.append((0..4).map(|which| (which, 3)).collect()).await;
    for which in 0..4 {
        assert_eq!(rows_of(&run.store, "pack").await, 1);
        run.delete_and_create(which).await;
    }
    assert_eq!(rows_of(&run.store, "pack").await, 0);
    run.store.close().await;
}

/// As on a disk that has no room for rows.
#[tokio::test]
async fn what_can_get_no_row_stays_where_it_is() {
    let mut run = Run::new(8 * 4 * SEGMENT_BYTES).await;
    let forbid = "CREATE TRIGGER no_row BEFORE INSERT ON chunk \
        BEGIN SELECT RAISE(ABORT, 'no room'); END";
    run.store.reader.execute_unprepared(forbid).await.unwrap();
    for _ in 0..6 {
        run.append((0..4).map(|which| (which, 2)).collect()).await;
    }
    assert_eq!(rows_of(&run.store, "chunk").await, 0);
    assert!(rows_of(&run.store, "pack").await > 0);
    for which in 0..2 {
        assert!(run.send(which).await);
        run.answer(which, 0, u64::MAX, true).await;
    }
    run.check().await;
    let allow = "DROP TRIGGER no_row";
    run.store.reader.execute_unprepared(allow).await.unwrap();
    run.append(vec![(2, 1), (3, 1)]).await;
    run.drain().await;
    run.store.close().await;
}
