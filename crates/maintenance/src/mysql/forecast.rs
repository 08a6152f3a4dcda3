//! Pure: what a dump is going to cost, reckoned by what earlier ones did.

use std::time::Duration;

use super::DRIVER;
use crate::catalogue::Manifest;
use crate::config::{Backup, Compression};
use crate::engine::forecast::{RECENT, SLACK, UNMEASURED_RATIO, as_bytes, as_rate};

/// Bytes a second a dump is expected to reach before one has been measured: what a server
/// on a plain virtual machine gives. Too high an estimate would close the gate for nothing.
const UNMEASURED: f64 = 20e6;

/// How much longer than the server's own figure for the rows, which is an estimate, a dump
/// may be.
const LONGER: f64 = 1.5;

/// What a dump is reckoned to cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forecast {
    /// How long it takes.
    pub(super) takes: Duration,
    /// Bytes it takes in the catalogue's directory.
    pub(super) room: u64,
}

/// Of a database whose rows have `bytes`; `earlier` are manifests, newest first.
pub(super) fn forecast(bytes: u64, backup: &Backup, earlier: &[&Manifest]) -> Forecast {
    let dumps = || earlier.iter().filter(|manifest| manifest.driver == DRIVER);
    let rate = dumps()
        .filter(|manifest| manifest.bandwidth.is_none())
        .take(RECENT)
        .map(|manifest| as_rate(manifest.database.raw_bytes) / manifest.copy_seconds.max(0.001))
        // The best: one slow night must not keep the next run from beginning.
        .reduce(f64::max)
        .unwrap_or(UNMEASURED);
    let rate = backup
        .bandwidth
        .map_or(rate, |limit| rate.min(as_rate(limit)));
    let text = as_rate(bytes) * LONGER;
    let ratio = match backup.compression {
        Compression::None => 1.0,
        Compression::Zstd(_) => dumps()
            .find(|manifest| manifest.database.compression == "zstd")
            .map_or(UNMEASURED_RATIO, |manifest| {
                let stored = &manifest.database;
                as_rate(stored.stored_bytes) / as_rate(stored.raw_bytes.max(1))
            }),
    };
    Forecast {
        takes: Duration::try_from_secs_f64(text / rate.max(1.0)).unwrap_or(Duration::MAX),
        room: as_bytes(text * ratio).saturating_add(SLACK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::{Artifact, BackupId, testing};

    fn manifest(driver: &str, raw: u64, stored: u64, seconds: f64) -> Manifest {
        let id: BackupId = "20261122T030000Z".parse().expect("an id");
        let artifact = Artifact {
            name: "database.sql.zst".into(),
            stored_bytes: stored,
            stored_sha256: String::new(),
            raw_bytes: raw,
            raw_sha256: String::new(),
            compression: "zstd".into(),
            encrypted: None,
        };
        Manifest {
            driver: driver.into(),
            copy_seconds: seconds,
            bandwidth: None,
            ..testing::manifest(&id, artifact)
        }
    }

    #[test]
    fn the_best_of_earlier_dumps_counts_and_no_copy_does() {
        let backup = Backup::default();
        let unmeasured = forecast(40_000_000, &backup, &[]);
        assert_eq!(unmeasured.takes, Duration::from_secs(3));
        assert_eq!(unmeasured.room, 36_000_000 + SLACK);
        let copy = manifest("sqlite3", 1_000_000_000, 1_000_000, 1.0);
        assert_eq!(forecast(40_000_000, &backup, &[&copy]), unmeasured);
        let dumps = [
            manifest(DRIVER, 10_000_000, 1_000_000, 1.0),
            manifest(DRIVER, 60_000_000, 1_000_000, 1.0),
        ];
        let measured = forecast(40_000_000, &backup, &[&copy, &dumps[0], &dumps[1]]);
        assert_eq!(measured.takes, Duration::from_secs(1));
        assert_eq!(measured.room, 6_000_000 + SLACK);
    }

    #[test]
    fn a_limit_and_no_compression_are_reckoned_with() {
        let backup = Backup {
            bandwidth: Some(1_000_000),
            compression: Compression::None,
            ..Backup::default()
        };
        let slow = forecast(2_000_000, &backup, &[]);
        assert_eq!(slow.takes, Duration::from_secs(3));
        assert_eq!(slow.room, 3_000_000 + SLACK);
    }
}
