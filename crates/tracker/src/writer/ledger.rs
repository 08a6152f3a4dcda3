//! Looks whether a completed download has reached the database.
//!
//! Upstream stores a torrent's counter inside of its core and drops the error of a write that
//! failed: a lock that somebody held for 5 s, a full disk, a file that may not be written. It
//! says so nowhere, so this asks the database itself. Only what would be missed is looked at:
//! the counter of a torrent that has just been told of a completion. Everything else upstream
//! writes with an announce is the same counter once more.
//!
//! A counter that lags behind is stored again from here, with upstream's own statement, and
//! raised only: somebody else may have completed meanwhile. A second failure is the caller's.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

/// How long a lock is waited for. Upstream's own write has waited for seconds before.
const PATIENCE: Duration = Duration::from_millis(100);

/// A connection to look, and to mend.
#[derive(Debug)]
pub struct Ledger {
    connection: Connection,
}

/// What became of a write of upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It is there.
    Stored,
    /// It was lost, and is there now.
    Mended,
}

impl Ledger {
    /// Opens a database that exists. Blocks.
    ///
    /// # Errors
    ///
    /// When it cannot be opened.
    pub fn open(database: &Path) -> rusqlite::Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(database, flags)?;
        connection.busy_timeout(PATIENCE)?;
        Ok(Self { connection })
    }

    /// Sees to it that the counter of a torrent, by its info hash in hexadecimal digits, is at
    /// least this. Blocks.
    ///
    /// # Errors
    ///
    /// When it cannot be looked at, or is behind and cannot be stored.
    pub fn confirm(&self, torrent: &str, completed: u32) -> rusqlite::Result<Entry> {
        let stored: Option<u32> = self
            .connection
            .prepare_cached("SELECT completed FROM torrents WHERE info_hash = ?1")?
            .query_row([torrent], |row| row.get(0))
            .optional()?;
        if stored.is_some_and(|stored| stored >= completed) {
            return Ok(Entry::Stored);
        }
        self.connection
            .prepare_cached(
                "INSERT INTO torrents (info_hash, completed) VALUES (?1, ?2) ON CONFLICT(info_hash) \
                 DO UPDATE SET completed = max(completed, excluded.completed)",
            )?
            .execute((torrent, completed))?;
        Ok(Entry::Mended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TORRENT: &str = "3b245504cf5f11bbdbe1201cea6a6bf45aee1bc0";

    #[test]
    fn a_counter_is_mended_and_never_lowered() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sqlite3.db");
        let mut core = torrust_tracker_configuration::Core::default();
        core.database.path = path.display().to_string();
        crate::database::open(&core, None).expect("upstream's tables");
        let ledger = Ledger::open(&path).expect("a database");
        let confirm = |completed| {
            ledger
                .confirm(TORRENT, completed)
                .expect("nobody else writes")
        };
        assert_eq!(
            [1, 1, 0].map(confirm),
            [Entry::Mended, Entry::Stored, Entry::Stored]
        );
        assert_eq!(
            [7, 3, 7].map(confirm),
            [Entry::Mended, Entry::Stored, Entry::Stored]
        );

        let lock = Connection::open(&path).expect("a database");
        lock.execute_batch("BEGIN IMMEDIATE")
            .expect("nobody else writes");
        assert_eq!(
            confirm(7),
            Entry::Stored,
            "a reader does not wait for a writer"
        );
        ledger.confirm(TORRENT, 8).expect_err("the lock is had");
        lock.execute_batch("ROLLBACK").expect("a transaction");
        assert_eq!(confirm(8), Entry::Mended);
    }
}
