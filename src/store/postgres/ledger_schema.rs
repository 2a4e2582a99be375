//! Tables of ledger and ownership. Times are microseconds since the Unix epoch.
//!
//! Columns that a settlement changes are in pages that are half empty and in no index, so that an
//! update writes the row alone, and its earlier version is removed without a vacuum (heap-only
//! tuples).

/// The tables.
pub(super) const TABLES: &[&str] = &[
    // Instances that run. `renewal` rises with each renewal of the lease; `renewed_at` is for the
    // balance only, and never decides whether a lease has lapsed.
    "CREATE TABLE instance (
        instance_id TEXT PRIMARY KEY,
        renewal BIGINT NOT NULL,
        confirmed BIGINT NOT NULL,
        renewed_at BIGINT NOT NULL
    ) WITH (fillfactor = 50)",
    // `epoch` rises with every owner. A partition without an owner is free. `backlog_bytes` is
    // what the backlogs of its integrations take.
    "CREATE TABLE partition (
        partition INTEGER PRIMARY KEY,
        epoch BIGINT NOT NULL DEFAULT 0,
        owner TEXT,
        anchor_position BIGINT,
        anchor_entry_id BYTEA,
        backlog_bytes BIGINT NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50)",
    // One row for each integration that had events. Its partition never changes.
    "CREATE TABLE progress (
        partition INTEGER NOT NULL,
        integration_id UUID NOT NULL,
        next_sequence BIGINT NOT NULL,
        position BIGINT NOT NULL,
        settled BYTEA NOT NULL,
        accepted BIGINT NOT NULL,
        delivered BIGINT NOT NULL,
        expired BIGINT NOT NULL,
        pending_bytes BIGINT NOT NULL,
        last_attempt_at BIGINT,
        last_delivery_at BIGINT,
        PRIMARY KEY (partition, integration_id)
    ) WITH (fillfactor = 50)",
    // `accepted` is a bitmap of the settled events, as in the other engines.
    "CREATE TABLE backlog (
        integration_id UUID NOT NULL,
        first_sequence BIGINT NOT NULL,
        event_count INTEGER NOT NULL,
        accepted_at BIGINT NOT NULL,
        accepted BYTEA,
        gaps TEXT,
        pending_bytes BIGINT NOT NULL,
        payload BYTEA NOT NULL,
        PRIMARY KEY (integration_id, first_sequence)
    )",
    // Payloads are compressed already.
    "ALTER TABLE backlog ALTER COLUMN payload SET STORAGE EXTERNAL",
    // Chunks that could not be read, set aside.
    "CREATE TABLE damaged_chunk (
        integration_id UUID NOT NULL,
        first_sequence BIGINT NOT NULL,
        organization_id TEXT NOT NULL,
        event_count INTEGER NOT NULL,
        accepted_at BIGINT NOT NULL,
        set_aside_at BIGINT NOT NULL,
        accepted BYTEA,
        payload BYTEA NOT NULL,
        PRIMARY KEY (integration_id, first_sequence)
    )",
    "ALTER TABLE damaged_chunk ALTER COLUMN payload SET STORAGE EXTERNAL",
];
