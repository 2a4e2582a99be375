//! Maps and sets with a quick hash. Their keys are ours, or those of our own publishers:
//! nobody has a reason to make them collide.

use foldhash::fast::RandomState;

/// A map with a quick hash. `default()` makes an empty one.
pub type Map<K, V> = std::collections::HashMap<K, V, RandomState>;

/// An empty map with room for so many.
pub fn with_room<K, V>(entries: usize) -> Map<K, V> {
    Map::with_capacity_and_hasher(entries, RandomState::default())
}

/// A set with a quick hash. `default()` makes an empty one.
pub type Set<K> = std::collections::HashSet<K, RandomState>;
