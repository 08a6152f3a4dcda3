//! The `completed` counters, loaded at start if the operator asks for it.
//!
//! Upstream 3.0.0 writes them when `persistent_torrent_completed_stat` is set, but never
//! reads them back: after a restart the first announce of a torrent finds no counter in
//! memory and overwrites the one in the database with 0. A backup of them is worth
//! something only if they are loaded.
//!
//! Loaded torrents have no peers. Upstream's cleanup removes such torrents from memory
//! when `remove_peerless_torrents` is set, with one exception: those with a counter above
//! 0, if `persistent_torrent_completed_stat` is set. So with that setting what is loaded
//! stays, and takes its memory for as long as the process lives; without it, the first
//! cleanup removes it all, and the load was for nothing.

use std::path::Path;

use anyhow::Context as _;
use rusqlite::{Connection, OpenFlags};
use torrust_tracker::core::Tracker;

/// What a loaded torrent takes, in bytes: 8 million were seen to take 1.3 GB, which
/// includes the list that upstream reads them into first.
const BYTES_PER_TORRENT: u64 = 165;

/// Loads the counters, unless they would take more than `limit` bytes of memory. Blocks.
///
/// # Errors
///
/// When they would, or the database cannot be read.
pub fn load(tracker: &Tracker, database: &Path, limit: u64) -> anyhow::Result<()> {
    let torrents = count(database)
        .with_context(|| format!("could not count the torrents in {}", database.display()))?;
    let estimate = within(torrents.unsigned_abs(), limit)?;
    tracker
        .load_torrents_from_database()
        .context("could not load the completed counters")?;
    tracing::info!(
        "Loaded the completed counters of {torrents} torrents, about {} of memory",
        mebibytes(estimate)
    );
    Ok(())
}

/// The exact number: ids are no measure, as every announce of a known torrent uses one up.
/// Reads the index on info hashes, a fraction of what the load will read.
fn count(database: &Path) -> rusqlite::Result<i64> {
    let connection = Connection::open_with_flags(
        database,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    connection.query_row("SELECT count(*) FROM torrents", [], |row| row.get(0))
}

/// The estimated bytes, if they are at most `limit`.
fn within(torrents: u64, limit: u64) -> anyhow::Result<u64> {
    let estimate = torrents.saturating_mul(BYTES_PER_TORRENT);
    anyhow::ensure!(
        estimate <= limit,
        "loading the completed counters of {torrents} torrents would take about {} of memory, \
         and maintenance.load_completed_limit is {}; raise it, or set maintenance.load_completed \
         = false",
        mebibytes(estimate),
        mebibytes(limit),
    );
    Ok(estimate)
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_case_is_estimated_as_measured() {
        let estimate = within(8_000_000, u64::MAX).expect("no limit");
        assert!(
            (1_300_000_000..1_400_000_000).contains(&estimate),
            "{estimate}"
        );
    }

    #[test]
    fn the_limit_itself_is_allowed_and_one_torrent_more_is_not() {
        let limit = 1_000 * BYTES_PER_TORRENT;
        assert_eq!(within(1_000, limit).expect("just fits"), limit);
        let error = within(1_001, limit).expect_err("one too many").to_string();
        assert!(error.contains("1001 torrents"), "{error}");
        assert!(error.contains("load_completed_limit"), "{error}");
    }

    #[test]
    fn an_estimate_never_overflows() {
        assert!(within(u64::MAX, u64::MAX - 1).is_err());
    }

    #[test]
    fn counters_are_counted_and_loaded_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sqlite3.db");
        let mut core = torrust_tracker_configuration::Core::default();
        core.database.path = path.display().to_string();
        let open = || crate::database::open(&core, None).expect("a tracker");
        let tracker = open();
        let hash = "3b245504cf5f11bbdbe1201cea6a6bf45aee1bc0";
        let connection = Connection::open(&path).expect("the tracker's database");
        connection
            .execute(
                "INSERT INTO torrents (info_hash, completed) VALUES (?1, 7)",
                [hash],
            )
            .expect("a row");
        assert_eq!(count(&path).expect("a table"), 1);
        load(&tracker, &path, 10 * BYTES_PER_TORRENT).expect("within the limit");
        let metadata = tracker.get_torrents_metrics();
        assert_eq!((metadata.torrents, metadata.downloaded), (1, 7));
        let refused = open();
        load(&refused, &path, BYTES_PER_TORRENT - 1).expect_err("above the limit");
        assert_eq!(refused.get_torrents_metrics().torrents, 0);
    }
}
