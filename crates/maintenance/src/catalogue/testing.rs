//! Backups for the tests of this crate.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use tempfile::TempDir;

use super::{Artifact, BackupId, MANIFEST_FORMAT, Manifest};
use crate::config::Depth;
use crate::snapshot::Way;

/// A temporary directory where a sync costs nothing, if the machine has one: thousands are
/// called for by tests that let every operation fail in turn.
pub(crate) fn memory_dir() -> TempDir {
    tempfile::tempdir_in(Path::new("/dev/shm"))
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}

/// A night's beginning, with a fraction of a second as real ones have.
pub(crate) fn time() -> DateTime<Utc> {
    let night = Utc.with_ymd_and_hms(2026, 11, 22, 3, 0, 0);
    night.single().expect("a valid time") + TimeDelta::milliseconds(250)
}

/// A manifest for a backup of this name.
pub(crate) fn manifest(id: &BackupId, database: Artifact) -> Manifest {
    let began = id.second() + TimeDelta::milliseconds(250);
    Manifest {
        format: MANIFEST_FORMAT,
        id: id.clone(),
        run: serde_json::from_str("\"20261122T030000Z-abcd\"").expect("a run's id"),
        began,
        pinned: began + TimeDelta::milliseconds(20),
        published: began + TimeDelta::seconds(2),
        service: "a service 1.2.3".to_owned(),
        library: crate::VERSION.to_owned(),
        sqlite: "3.53.2".to_owned(),
        driver: "sqlite3".to_owned(),
        source: "/data/tracker.db".into(),
        journal_mode: "wal".to_owned(),
        read_mark_zero: Some(false),
        page_size: 4096,
        page_count: 7,
        method: Way::File,
        pause_ms: 4.25,
        copy_seconds: 0.5,
        rested_seconds: 0.1,
        wal_growth: Some(0),
        bandwidth: None,
        dump: None,
        database,
        compression_level: Some(3),
        partial: None,
        files: None,
        rows: BTreeMap::from([("torrents".to_owned(), 3)]),
        verified: Depth::Quick,
        verify_seconds: Some(0.25),
        warnings: Vec::new(),
    }
}
