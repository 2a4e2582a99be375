use proptest::prelude::*;

use super::*;

const SMALL: u64 = 24 * MIB;

fn disk(free_bytes: u64, pages: u64, free_pages: u64) -> Disk {
    Disk {
        free_bytes,
        pages,
        free_pages,
        database_file_bytes: pages * PAGE_BYTES,
        wal_file_bytes: 0,
    }
}

#[test]
fn a_large_disk_is_used_but_for_the_reserve_and_the_write_ahead_log() {
    let allotment = Allotment::of(1 << 40, 64 * MIB, PAGE_BYTES);
    let room = allotment.room(&disk(1 << 39, 0, 0));
    assert_eq!(room, (1 << 39) - 64 * MIB - allotment.wal_file_bytes());
}

#[test]
fn a_small_disk_holds_events_too() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    assert_eq!(allotment.reserve, 3 * MIB);
    assert!(allotment.room(&disk(SMALL, 0, 0)) > REQUEST_BYTES);
}

#[test]
fn what_the_log_has_not_written_back_yet_counts() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    let mut behind = disk(SMALL / 2, 1000, 0);
    let whole = allotment.room(&behind);
    behind.database_file_bytes -= 10 * PAGE_BYTES;
    assert_eq!(
        allotment.room(&behind),
        whole.saturating_sub(10 * PAGE_BYTES)
    );
}

#[test]
fn a_length_of_the_write_ahead_log_is_not_asked_for_twice() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    let whole = allotment.room(&disk(SMALL, 0, 0));
    let written = Disk {
        wal_file_bytes: MIB,
        ..disk(SMALL - MIB, 0, 0)
    };
    assert_eq!(allotment.room(&written), whole);
}

#[test]
fn free_disk_that_others_took_is_not_made_up_for_by_free_pages() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    let free = allotment.wal_file_bytes() + allotment.reserve / 2;
    assert!(allotment.room(&disk(free, 1000, 900)) > 0);
    assert_eq!(allotment.room(&disk(free - 1, 1000, 900)), 0);
}

proptest! {
    /// Whatever was taken, and however much beyond it was written: what is delivered
    /// makes room.
    #[test]
    fn a_disk_that_was_filled_has_room_once_it_is_drained(
        size in 16 * MIB..(1 << 36),
        reserve in MIB..(1 << 33),
        beyond in 0.0..0.5,
    ) {
        let allotment = Allotment::of(size, reserve, PAGE_BYTES);
        let room = allotment.room(&disk(size, 0, 0));
        prop_assert!(room > MIB);
        let beyond = (allotment.reserve as f64 * beyond) as u64;
        let pages = (room + beyond) / PAGE_BYTES;
        let full = disk(size - pages * PAGE_BYTES, pages, 0);
        prop_assert!(allotment.room(&full) < PAGE_BYTES);
        let drained = Disk { free_pages: pages, ..full };
prop_assert!(allotment.room(&drained) + PAGE_BYTES >= room);
    }
}

#[test]
fn how_events_of_integrations_are_mixed_makes_no_difference() {
    let segments = |keys: &[i64]| {
        let mut segments = Segments::default();
        for key in keys {
            let pushed: Result<(), ()> = segments.push(IntegrationKey(*key), |out| {
                out.resize(out.len() + 9000, b'x');
                Ok(())
            });
            pushed.unwrap();
        }
        appended_bytes(&segments, PAGE_BYTES)
    };
    let each = 2 * 9004 + ROW_BYTES + PAGE_BYTES;
    assert_eq!(segments(&[1, 1, 2, 2]), 2 * each);
    assert_eq!(segments(&[1, 2, 1, 2]), 2 * each);
}

/// As measured with bytes that cannot be compressed.
#[test]
fn a_row_takes_no_more_than_is_said() {
    for (page, bytes, taken) in [
        (4096, 2008, 2101),
        (4096, 2028, 4155),
        (4096, 2048, 4155),
        (16384, 8172, 16441),
        (16384, 8192, 16441),
    ] {
        assert!(row_bytes(bytes, page) >= taken, "{bytes} of {page}");
    }
}
