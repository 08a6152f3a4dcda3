//! Whether databases in a directory can be in WAL mode, tried on one of our own.
//!
//! WAL needs memory that processes share, and not every file system has it: some that are mounted
//! into a container or a virtual machine have none. `SQLite` finds that out when it opens the log,
//! after it has written the mode into the database, and then no connection can read that
//! database any more, nor take it back. So it is found out on another one.

use std::path::Path;

use rusqlite::Connection;

use super::{Error, Journal};
use crate::disk::{Disk, temporary_of};

/// Makes a database in a directory of its own beside this one, has one connection write to its
/// log and another read from it, and removes it all. What an earlier attempt left goes as well.
///
/// # Errors
///
/// [`Error::ModeRefused`] if that cannot be done there, [`Error::Io`] if nothing can be made
/// there at all.
pub(crate) fn try_wal(database: &Path, kept: Journal, disk: &Disk) -> Result<(), Error> {
    let directory = temporary_of(&database.with_extension("wal-probe"));
    let failed = |doing, error: crate::disk::Error| Error::Io {
        doing,
        path: directory.clone(),
        source: std::io::Error::other(error),
    };
    if directory.exists() {
        disk.remove_dir_all(&directory)
            .map_err(|error| failed("remove", error))?;
    }
    disk.create_dir(&directory)
        .map_err(|error| failed("create", error))?;
    let works = writes_and_reads(&directory.join("probe.db"));
    disk.remove_dir_all(&directory)
        .map_err(|error| failed("remove", error))?;
    if works {
        return Ok(());
    }
    Err(Error::ModeRefused {
        path: database.into(),
        wanted: Journal::Wal,
        kept,
    })
}

/// The connections are closed when this returns.
fn writes_and_reads(probe: &Path) -> bool {
    let tried = || -> rusqlite::Result<bool> {
        let writer = Connection::open(probe)?;
        if Journal::Wal.set(&writer)? != Journal::Wal {
            return Ok(false);
        }
        writer.execute_batch("CREATE TABLE probe (fact); INSERT INTO probe VALUES (7)")?;
        let reader = Connection::open(probe)?;
        let read: i64 = reader.query_row("SELECT fact FROM probe", [], |row| row.get(0))?;
        Ok(read == 7)
    };
    tried().unwrap_or(false)
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "the tests make what is in the way"
)]
mod tests {
    use super::*;

    #[test]
    fn where_a_log_can_be_had_nothing_is_left_of_the_attempt() {
        let directory = tempfile::tempdir().expect("a directory");
        let database = directory.path().join("sqlite3.db");
        let disk = Disk::default();
        let left = temporary_of(&database.with_extension("wal-probe"));
        std::fs::create_dir(&left).expect("what a killed process left");
        std::fs::write(left.join("probe.db-wal"), "old").expect("a file");
        for _ in 0..2 {
            try_wal(&database, Journal::Delete, &disk).expect("a local file system");
            let entries = std::fs::read_dir(directory.path()).expect("a directory");
            assert_eq!(entries.count(), 0);
        }
    }

    /// The name of the shared memory is taken, which is as good as a file system without any.
    #[test]
    fn without_shared_memory_it_does_not_work() {
        let directory = tempfile::tempdir().expect("a directory");
        let probe = directory.path().join("probe.db");
        assert!(writes_and_reads(&probe));
        let probe = directory.path().join("another.db");
        std::fs::create_dir(directory.path().join("another.db-shm")).expect("in the way");
        assert!(!writes_and_reads(&probe));
    }

    #[test]
    fn where_nothing_can_be_made_that_is_the_error() {
        let database = Path::new("/proc/sqlite3.db");
        let error = try_wal(database, Journal::Delete, &Disk::default()).expect_err("no disk");
        assert!(error.to_string().contains("/proc/"), "{error}");
    }
}
