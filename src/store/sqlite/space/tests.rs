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
    let capacity = allotment.capacity(&disk(1 << 39, 0, 0));
    assert_eq!(capacity, (1 << 39) - 64 * MIB - allotment.wal_file_bytes());
}

#[test]
fn a_small_disk_holds_events_too() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    assert_eq!(allotment.reserve, 3 * MIB);
    assert!(allotment.capacity(&disk(SMALL, 0, 0)) > REQUEST_BYTES);
}

#[test]
fn pages_that_are_not_written_back_count() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    let mut behind = disk(SMALL / 2, 1000, 0);
    let whole = allotment.capacity(&behind);
    behind.database_file_bytes -= 10 * PAGE_BYTES;
    assert_eq!(
        allotment.capacity(&behind),
        whole.saturating_sub(10 * PAGE_BYTES)
    );
}

#[test]
fn the_write_ahead_log_is_not_counted_twice() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    let whole = allotment.capacity(&disk(SMALL, 0, 0));
    let written = Disk {
        wal_file_bytes: MIB,
        ..disk(SMALL - MIB, 0, 0)
    };
    assert_eq!(allotment.capacity(&written), whole);
}

#[test]
fn free_pages_do_not_replace_free_disk() {
    let allotment = Allotment::of(SMALL, 64 * MIB, PAGE_BYTES);
    let free = allotment.wal_file_bytes() + allotment.reserve / 2;
    assert!(allotment.capacity(&disk(free, 1000, 900)) > 0);
    assert_eq!(allotment.capacity(&disk(free - 1, 1000, 900)), 0);
}

proptest! {
    /// Deliveries free space, whatever was taken, and however much was written beyond it.
    #[test]
    fn a_disk_that_was_filled_has_capacity_once_it_is_drained(
        size in 16 * MIB..(1 << 36),
        reserve in MIB..(1 << 33),
        beyond in 0.0..0.5,
    ) {
        let allotment = Allotment::of(size, reserve, PAGE_BYTES);
        let capacity = allotment.capacity(&disk(size, 0, 0));
        prop_assert!(capacity > MIB);
        let beyond = (allotment.reserve as f64 * beyond) as u64;
        let pages = (capacity + beyond) / PAGE_BYTES;
        let full = disk(size - pages * PAGE_BYTES, pages, 0);
        prop_assert!(allotment.capacity(&full) < PAGE_BYTES);
        let drained = Disk { free_pages: pages, ..full };
prop_assert!(allotment.capacity(&drained) + PAGE_BYTES >= capacity);
    }
}

/// Measured with incompressible bytes.
#[test]
fn a_row_takes_no_more_than_computed() {
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
