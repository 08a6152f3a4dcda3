//! Journal modes, and setting one before the service opens the file.

use std::fmt;
use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use super::{Error, PATIENCE, look, open_error, try_wal};
use crate::config::JournalMode;
use crate::disk::Disk;

/// A journal mode, as [`PRAGMA journal_mode`](https://www.sqlite.org/pragma.html#pragma_journal_mode)
/// names it. WAL is a property of the file; the others are each connection's own, so of a
/// file that is not WAL a connection can only say its own default, `delete`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Journal {
    /// Write-ahead log: readers and a writer go on side by side.
    Wal,
    /// Rollback journal, deleted at commit.
    Delete,
    /// Rollback journal, truncated at commit.
    Truncate,
    /// Rollback journal, its header zeroed at commit.
    Persist,
    /// Rollback journal in memory: a crash in a commit corrupts the file.
    Memory,
    /// No journal: a crash in a commit corrupts the file.
    Off,
}

impl Journal {
    const ALL: [Self; 6] = [
        Self::Wal,
        Self::Delete,
        Self::Truncate,
        Self::Persist,
        Self::Memory,
        Self::Off,
    ];

    /// Whether a reader keeps writers from committing: everything but WAL.
    #[must_use]
    pub fn blocks_writers(self) -> bool {
        self != Self::Wal
    }

    /// Whether a pin may be taken on it: not where a rollback needs memory that is lost.
    pub(super) fn survives_a_crash(self) -> bool {
        !matches!(self, Self::Memory | Self::Off)
    }

    /// The name SQLite has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Persist => "persist",
            Self::Memory => "memory",
            Self::Off => "off",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|journal| journal.name() == name)
    }

    /// The mode the file has. Of what others have changed a connection knows only what it found
    /// when it read last, so it reads first.
    pub(super) fn of(connection: &Connection) -> Result<Self, rusqlite::Error> {
        look(connection)?;
        connection.query_row("PRAGMA journal_mode", [], Self::from_row)
    }

    /// Sets it, and says which mode there is then.
    pub(super) fn set(self, connection: &Connection) -> Result<Self, rusqlite::Error> {
        let mut statement = connection.prepare(&format!("PRAGMA journal_mode = {self}"))?;
        let mut rows = statement.query([])?;
        let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        let kept = Self::from_row(row)?;
        // It commits only after it has answered.
        while rows.next()?.is_some() {}
        Ok(kept)
    }

    fn from_row(row: &rusqlite::Row<'_>) -> Result<Self, rusqlite::Error> {
        let name = row.get_ref(0)?.as_str()?;
        Self::named(name).ok_or(rusqlite::Error::InvalidQuery)
    }
}

impl fmt::Display for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Applies a configured journal mode, before anybody opens the file, and says which mode
/// it has. A missing file is created empty, as the service itself would.
///
/// To WAL works beside idle connections of others. Back to a rollback journal works only
/// when nobody else has the file open, because in WAL mode even an idle connection holds
/// a lock on it.
///
/// # Errors
///
/// [`Error::Missing`] when the directory does not exist; [`Error::InUse`] when others
/// have the file open; [`Error::ModeRefused`] when SQLite keeps another mode, as on file
/// systems without shared memory; [`Error::NotADatabase`] and the like.
pub fn set_journal_mode(path: &Path, mode: JournalMode) -> Result<Journal, Error> {
    if path.is_dir() {
        return Err(Error::NotAFile { path: path.into() });
    }
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(Error::Missing { path: path.into() });
    }
    let failed = |source| open_error(path, source);
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(PATIENCE).map_err(failed)?;
    let found = Journal::of(&connection).map_err(failed)?;
    let wanted = match mode {
        JournalMode::Keep => return Ok(found),
        JournalMode::Wal => Journal::Wal,
        JournalMode::Delete => Journal::Delete,
    };
    if wanted == Journal::Wal && found != Journal::Wal {
        try_wal(path, found, &Disk::default())?;
    }
    let kept = wanted
        .set(&connection)
        .map_err(|source| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::InUse {
                path: path.into(),
                wanted,
            },
            _ => open_error(path, source),
        })?;
    if kept == wanted {
        Ok(kept)
    } else {
        Err(Error::ModeRefused {
            path: path.into(),
            wanted,
            kept,
        })
    }
}
