//! Maps and sets with a fast hash that does not resist chosen collisions. Their keys come
//! from this service or from its own publishers, who have no reason to make them collide.

use foldhash::fast::RandomState;

/// A map with a fast hash. `default()` makes an empty one.
pub type Map<K, V> = std::collections::HashMap<K, V, RandomState>;

/// An empty map with capacity for `entries`.
pub fn with_capacity<K, V>(entries: usize) -> Map<K, V> {
    Map::with_capacity_and_hasher(entries, RandomState::default())
}

/// A set with a fast hash. `default()` makes an empty one.
pub type Set<K> = std::collections::HashSet<K, RandomState>;
