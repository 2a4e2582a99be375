//! What a lane keeps between its turns.

use super::{key, lanes, load};

/// A thousand that are refused while the writer is busy elsewhere must not keep a thousand
/// requests' events until their refusals are recorded.
#[test]
fn what_was_refused_leaves_memory_before_that_is_recorded() {
    let mut lanes = lanes(1, false);
    let key = key(0);
    let lane = lanes.get(key).unwrap();
    load(lane, 10);
    lane.unsettled = 1;
    let bytes = lane.delivery.bytes();
    lanes.loaded_bytes = bytes;

    // An event that was accepted would be read as one that waits.
    lanes.get(key).unwrap().unsaved = 1;
    lanes.unload(key);
    assert_eq!(
        (lanes.loaded_bytes, lanes.get(key).unwrap().cursor),
        (bytes, 11)
    );

    lanes.get(key).unwrap().unsaved = 0;
    lanes.unload(key);
    assert_eq!((lanes.loaded_bytes, lanes.get(key).unwrap().cursor), (0, 1));
    lanes.close_if_done(key, 1);
    assert!(lanes.get(key).is_some(), "its refusal is not recorded yet");
}
