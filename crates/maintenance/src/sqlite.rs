//! The extension's own connections to the service's database: what it is, holding its
//! file still, and letting go again.
//!
//! ```text
//!            gate open            gate closed, drained             gate open (WAL)
//!  W ─ one frame ──────┬─ BEGIN IMMEDIATE ──────────── ROLLBACK
//!  R                   │        └─ BEGIN; SELECT ─────────┼─────────────────── ROLLBACK
//!  C ─ PASSIVE ────────┘               └─ NOOP, PASSIVE ──┘    (copy)           └─ PASSIVE ..
//!                                           accepted iff busy = 0 and log = checkpointed
//! ```
//!
//! In WAL mode only a checkpoint writes the database file. W holds the write lock, so
//! the log cannot grow; R takes its snapshot at the log's end; C moves the whole log into
//! the file. When C says that all of it was moved, every frame R can see is in the file,
//! and a later checkpoint may neither pass R's mark nor restart the log: the file is
//! exactly R's snapshot and no byte of it changes while R lives ([WAL format, "Readers"
//! and "Checkpoints"](https://www.sqlite.org/walformat.html)). W is needed for
//! milliseconds; writers go on for as long as R lives, into the log.
//!
//! On a rollback journal R's SHARED lock keeps every writer from the file
//! ([Locking, 3.0](https://www.sqlite.org/lockingv3.html)), so the pin is R alone, and
//! writers wait for its end.
//!
//! # What fails, and what is left then
//!
//! - Another checkpointer or an older reader is in the way: [`PinError::Busy`]. Nothing is
//!   held; the caller opens its gate and tries again.
//! - The write lock, a connection or the flush is not to be had within the limit, or the
//!   watch is cancelled: the statement is interrupted, and W is rolled back *before* the
//!   flush is waited for. Even a disk that hangs in `fsync` does not hold the write lock
//!   beyond the limit.
//! - The pin has to end while a copy that hangs has it: [`PinHandle::end`] rolls R back from
//!   another thread, and that copy fails should it ever go on.
//! - A rollback fails, or a thread panics with a transaction open: the pool asks
//!   [`Connection::is_autocommit`] and closes the connection, which ends the transaction.
//! - The path names another file than at the start: [`Error::Replaced`]. Nothing is
//!   pinned, because the service may be writing to either.
//!
//! # What this module never does
//!
//! It never opens and closes the database, its `-wal`, `-shm` or `-journal` except
//! through `SQLite`: `close` of *any* descriptor of a file drops all POSIX locks the
//! process has on it ([How to corrupt, 2.2](https://www.sqlite.org/howtocorrupt.html)).
//! Sizes and identities come from metadata; `kept` has the one descriptor that is
//! opened to be read, and never closed. [`inspect`] is for before the first connection.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use r2d2::PooledConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, ErrorCode, InterruptHandle, MAIN_DB, OpenFlags};

use crate::snapshot::Watch;

mod header;
mod journal;
pub(crate) mod kept;
mod pin;
mod probe;
mod reader;
mod seal;
mod switch;
mod wal;

#[cfg(test)]
pub(crate) mod tests;

pub use header::{Header, inspect};
pub use journal::{Journal, set_journal_mode};
pub use pin::{Pin, PinError};
pub(crate) use probe::try_wal;
pub use reader::{Lent, PinHandle};
pub use seal::Seal;

/// W, R and C; two that may be shrinking the log an earlier run left; and one more so that
/// [`Database::facts`] answers while they are in use.
const CONNECTIONS: u32 = 6;

/// How long a statement waits for another's lock where the caller gave no limit.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no file, or a directory of the path is missing.
    #[error("there is no database at {}: create it or correct the path", path.display())]
    Missing {
        /// The path as configured.
        path: PathBuf,
    },
    /// A directory, socket, pipe or device.
    #[error("{} is no regular file, so it cannot be an SQLite database: correct the path", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// `SQLITE_NOTADB`.
    #[error("{} is not an SQLite database (or it is encrypted): correct the path", path.display())]
    NotADatabase {
        /// The path.
        path: PathBuf,
    },
    /// Pinning needs the write lock, and SQLite opened the file for reading only.
    #[error(
        "{} cannot be written: give this process write permission for it and its directory",
        path.display()
    )]
    ReadOnly {
        /// The path.
        path: PathBuf,
    },
    /// The path names another file than when it was opened.
    #[error(
        "{} was replaced by another file while it was in use: restart the service so that it opens the new one",
        path.display()
    )]
    Replaced {
        /// The path.
        path: PathBuf,
    },
    /// A journal mode that cannot be pinned or rolled back safely.
    #[error(
        "{} has journal mode {journal}, under which a crash corrupts it: use \"wal\" or \"delete\"",
        path.display()
    )]
    Unsafe {
        /// The path.
        path: PathBuf,
        /// `memory` or `off`.
        journal: Journal,
    },
    /// All pooled connections are taken, or no new one could be opened.
    #[error(
        "no connection to {} within {waited:?} ({why}): another run or a stuck statement has them",
        path.display()
    )]
    Exhausted {
        /// The path.
        path: PathBuf,
        /// How long it was waited.
        waited: Duration,
        /// What the pool said.
        why: String,
    },
    /// The journal mode can be changed only while nobody else has the file open.
    #[error(
        "could not set journal mode {wanted} on {}: another process has it open; stop that first",
        path.display()
    )]
    InUse {
        /// The path.
        path: PathBuf,
        /// The mode asked for.
        wanted: Journal,
    },
    /// SQLite kept another mode than asked for.
    #[error(
        "could not set journal mode {wanted} on {}: SQLite keeps {kept}; WAL needs a local file system with shared memory",
        path.display()
    )]
    ModeRefused {
        /// The path.
        path: PathBuf,
        /// The mode asked for.
        wanted: Journal,
        /// The mode it has.
        kept: Journal,
    },
    /// The watch was cancelled.
    #[error("given up: {0}")]
    Cancelled(String),
    /// Anything else SQLite said.
    #[error("could not {doing} {}: {source}", path.display())]
    Sqlite {
        /// The verb.
        doing: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Anything else the file system said.
    #[error("could not {doing} {}: {source}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What a database file is, as one transaction saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The file, links resolved.
    pub path: PathBuf,
    /// Its journal mode.
    pub journal: Journal,
    /// Bytes in a page: a power of two, 512 to 65536.
    pub page_size: u32,
    /// Pages in the database; 0 for a file nothing was written to yet.
    pub page_count: u64,
    /// The file system it lies on, from metadata.
    pub device: u64,
    /// Its number there, from metadata.
    pub inode: u64,
}

impl Facts {
    /// Bytes of the database: pages times page size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.page_count * u64::from(self.page_size)
    }
}

/// A database file and a small pool of connections to it. Clones share the pool.
#[derive(Debug, Clone)]
pub struct Database {
    path: PathBuf,
    identity: Identity,
    pool: r2d2::Pool<Manager>,
}

/// Device and inode: what a path named at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A connection of the pool, returned on drop.
type Pooled = PooledConnection<Manager>;

impl Database {
    /// Opens the pool on a file that exists. That it is a database is checked by reading
    /// its schema.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::NotAFile`], [`Error::NotADatabase`],
    /// [`Error::ReadOnly`], and what SQLite or the file system say otherwise.
    pub fn open(path: &Path) -> Result<Self, Error> {
        // `-wal` and `-shm` lie beside the file itself, not beside a link to it.
        let path = fs::canonicalize(path).map_err(|source| missing_or_io(path, source))?;
        let identity = Identity::of(&path)?;
        let manager = Manager::new(&path);
        // The pool hides why a connection could not be made, so the first one is made here.
        let failed = |source| open_error(&path, source);
        let first = r2d2::ManageConnection::connect(&manager).map_err(failed)?;
        look(&first).map_err(failed)?;
        if first.is_readonly(MAIN_DB).map_err(failed)? {
            return Err(Error::ReadOnly { path });
        }
        let pool = r2d2::Pool::builder()
            .max_size(CONNECTIONS)
            // Made in the background and then kept: opening one reads the schema, which
            // the pause should not pay for, and in WAL mode an open connection also keeps
            // other processes from taking the file back to a rollback journal.
            .idle_timeout(None)
            .max_lifetime(None)
            .connection_timeout(PATIENCE)
            // The library returns errors: `get_timeout` hands on the last one.
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .build_unchecked(manager);
        Ok(Self {
            path,
            identity,
            pool,
        })
    }

    /// The file, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file is now, read in one transaction.
    ///
    /// # Errors
    ///
    /// As [`Error`] says; waits at most 5 s for a connection and as long for a lock.
    pub fn facts(&self) -> Result<Facts, Error> {
        let connection = self.connection(&Deadline::after(PATIENCE))?;
        let reader = Held::begin(connection).map_err(|e| self.error("read", e))?;
        reader.look().map_err(|e| self.error("read", e))?;
        self.facts_in(&reader)
    }

    /// Reads something in one transaction.
    ///
    /// # Errors
    ///
    /// As [`Self::facts`].
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, rusqlite::Error>,
    ) -> Result<T, Error> {
        let connection = self.connection(&Deadline::after(PATIENCE))?;
        let reader = Held::begin(connection).map_err(|e| self.error("read", e))?;
        read(&reader).map_err(|e| self.error("read", e))
    }

    /// Bytes of the write-ahead log's file; 0 if there is none. From metadata alone.
    ///
    /// # Errors
    ///
    /// When the file system does not tell.
    pub fn wal_bytes(&self) -> Result<u64, Error> {
        let mut name = self.path.clone().into_os_string();
        name.push("-wal");
        match fs::metadata(&name) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(Error::Io {
                doing: "see the size of",
                path: name.into(),
                source,
            }),
        }
    }

    /// The facts as the reader's transaction sees them.
    fn facts_in(&self, reader: &Connection) -> Result<Facts, Error> {
        let number = |sql| {
            reader
                .query_row(sql, [], |row| row.get::<_, u32>(0))
                .map_err(|e| self.error("read", e))
        };
        let page_size = number("PRAGMA page_size")?;
        let page_count = u64::from(number("PRAGMA page_count")?);
        let journal = Journal::of(reader).map_err(|e| self.error("read", e))?;
        if Identity::of(&self.path)? != self.identity {
            return Err(Error::Replaced {
                path: self.path.clone(),
            });
        }
        Ok(Facts {
            path: self.path.clone(),
            journal,
            page_size,
            page_count,
            device: self.identity.device,
            inode: self.identity.inode,
        })
    }

    /// A connection that waits for locks until the deadline and no longer.
    fn connection(&self, deadline: &Deadline) -> Result<Pooled, Error> {
        let connection = self
            .pool
            .get_timeout(deadline.remaining())
            .map_err(|error| Error::Exhausted {
                path: self.path.clone(),
                waited: deadline.limit,
                why: error.to_string(),
            })?;
        connection
            .busy_timeout(deadline.remaining())
            .map_err(|e| self.error("set the busy timeout of", e))?;
        Ok(connection)
    }

    fn error(&self, doing: &'static str, source: rusqlite::Error) -> Error {
        Error::Sqlite {
            doing,
            path: self.path.clone(),
            source,
        }
    }
}

impl Identity {
    /// Of the regular file at `path`, from metadata.
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path).map_err(|source| missing_or_io(path, source))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile { path: path.into() });
        }
        Ok(Self::from(&metadata))
    }
}

impl From<&fs::Metadata> for Identity {
    fn from(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

fn missing_or_io(path: &Path, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::NotFound {
        Error::Missing { path: path.into() }
    } else {
        Error::Io {
            doing: "find",
            path: path.into(),
            source,
        }
    }
}

/// Reads something that every database has.
fn look(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
}

/// What the first use of a file says about it.
fn open_error(path: &Path, source: rusqlite::Error) -> Error {
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => Error::NotADatabase { path: path.into() },
        Some(ErrorCode::ReadOnly) => Error::ReadOnly { path: path.into() },
        _ => Error::Sqlite {
            doing: "open",
            path: path.into(),
            source,
        },
    }
}

/// Makes connections as `r2d2_sqlite` does, but never takes one back that has a
/// transaction open: it would keep a lock that nobody remembers.
#[derive(Debug)]
struct Manager(SqliteConnectionManager);

impl Manager {
    fn new(path: &Path) -> Self {
        // Never CREATE: a database that vanished must be an error, not an empty backup.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let manager = SqliteConnectionManager::file(path)
            .with_flags(flags)
            .with_init(|connection| {
                connection.busy_timeout(PATIENCE)?;
                // A checkpoint of ours happens where we say, not in a commit.
                connection.pragma_update(None, "wal_autocheckpoint", 0)?;
                // The least under which a checkpoint syncs the log before, and the
                // database after, it copies (`PRAGMA synchronous`: "NORMAL .. WAL mode").
                connection.pragma_update(None, "synchronous", "NORMAL")
            });
        Self(manager)
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = Connection;
    type Error = rusqlite::Error;

    fn connect(&self) -> Result<Connection, rusqlite::Error> {
        self.0.connect()
    }

    fn is_valid(&self, connection: &mut Connection) -> Result<(), rusqlite::Error> {
        self.0.is_valid(connection)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        !connection.is_autocommit()
    }
}

/// A connection with a transaction, rolled back on drop.
#[derive(Debug)]
struct Held(Pooled);

impl Held {
    /// Begins. That alone takes neither snapshot nor lock; [`Held::look`] does.
    fn begin(connection: Pooled) -> Result<Self, rusqlite::Error> {
        connection.execute_batch("BEGIN")?;
        Ok(Self(connection))
    }

    /// Reads, and so takes the snapshot.
    fn look(&self) -> Result<(), rusqlite::Error> {
        look(self)
    }

    /// Lets go, and says whether that went well; drop does the rest if not.
    fn end(&self) -> Result<(), rusqlite::Error> {
        self.execute_batch("ROLLBACK")
    }
}

impl std::ops::Deref for Held {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if !self.is_autocommit()
            && let Err(error) = self.end()
        {
            // The pool finds the transaction still open and closes the connection.
            tracing::warn!(%error, "could not roll back a transaction: its connection is closed");
        }
    }
}

/// When a bounded call has to be over.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    limit: Duration,
    at: Option<Instant>,
}

impl Deadline {
    #[expect(
        clippy::disallowed_methods,
        reason = "a limit on blocking calls is measured where they block"
    )]
    fn after(limit: Duration) -> Self {
        Self {
            limit,
            // `None`: so far away that the clock cannot express it.
            at: Instant::now().checked_add(limit),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a limit on blocking calls is measured where they block"
    )]
    fn remaining(&self) -> Duration {
        match self.at {
            Some(at) => at.saturating_duration_since(Instant::now()),
            None => self.limit,
        }
        // What `sqlite3_busy_timeout` takes, in milliseconds, is an `int`.
        .min(Duration::from_secs(24 * 3600))
    }
}

/// Connections whose statements end when a watch is cancelled, for as long as this lives.
#[derive(Default)]
struct Interrupts(Arc<Mutex<Vec<InterruptHandle>>>);

impl Interrupts {
    fn armed(watch: &Watch) -> Self {
        let interrupts = Self::default();
        let connections = Arc::downgrade(&interrupts.0);
        watch.on_cancel(move || {
            if let Some(connections) = connections.upgrade() {
                interrupt(&connections);
            }
        });
        interrupts
    }

    fn add(&self, connection: &Connection) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection.get_interrupt_handle());
    }

    fn fire(&self) {
        interrupt(&self.0);
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // Under the lock, so that no connection is interrupted once it is back in the pool.
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }
}

fn interrupt(connections: &Mutex<Vec<InterruptHandle>>) {
    for connection in &*connections.lock().unwrap_or_else(PoisonError::into_inner) {
        connection.interrupt();
    }
}
