//! How much of the log one read takes.

use super::*;

async fn read(store: &Store, key: IntegrationKey, from: u64, most_bytes: usize) -> Vec<usize> {
    let chunks = store.read_log(key, from, most_bytes).await.unwrap();
    chunks.iter().map(|chunk| chunk.entries.len()).collect()
}

#[tokio::test]
async fn takes_what_is_within_the_bytes_and_at_least_one_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    assert_eq!(read(&store, key, 1, usize::MAX / 2).await, [0; 0]);
    for count in [3, 1, 2] {
        assert!(append(&store, "acme", count).await);
    }
    let bytes = |events: usize| events * SEGMENT_BYTES;
    assert_eq!(read(&store, key, 1, 1).await, [3]);
    assert_eq!(read(&store, key, 1, bytes(4) - 1).await, [3]);
    assert_eq!(read(&store, key, 1, bytes(4)).await, [3, 1]);
    assert_eq!(read(&store, key, 1, bytes(6)).await, [3, 1, 2]);
    assert_eq!(read(&store, key, 4, bytes(6)).await, [1, 2]);
    store.close().await;
}

#[tokio::test]
async fn takes_many_small_chunks_at_once_but_not_all_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 0).await;
    store.configure(configuration("acme")).await.unwrap();
    let key = store.key_of("acme").unwrap();
    for _ in 0..600 {
        assert!(append(&store, "acme", 1).await);
    }
    assert_eq!(read(&store, key, 1, 1 << 20).await.len(), 512);
    assert_eq!(read(&store, key, 550, 1 << 20).await.len(), 51);
    assert_eq!(read(&store, key, 1, 10 * SEGMENT_BYTES).await.len(), 10);
    // Beyond 64 chunks it is all or nothing, by the bodies alone.
    let within = 200 * SEGMENT_BYTES;
    assert_eq!(read(&store, key, 1, within).await.len(), 64);
    store.close().await;
}
