//! Makes what has been committed durable: one sync (of the write-ahead log, or of the directory
//! a rollback journal was removed from) for everything that was committed before it, so that a
//! service answers only what a power failure cannot take back, and does not pay for a sync at
//! every commit.
//!
//! ```text
//!   commit a ─┐                    commit d ─┐
//!   commit b ─┼─▶ fdatasync(-wal) ─▶ answers ┼─▶ fdatasync(-wal) ─▶ answers
//!   commit c ─┘    (meanwhile: d, e)  e ─────┘
//! ```
//!
//! With `synchronous = NORMAL`, `SQLite` does not sync the log when it commits. It is meant
//! to be the default of the connections of a service that is built with
//! `LIBSQLITE3_FLAGS=SQLITE_DEFAULT_WAL_SYNCHRONOUS=1` (see `.cargo/config.toml`). Where
//! it is `FULL`, every commit syncs for itself and there is nothing left to do here, which
//! is found out and not assumed.
//!
//! # Why one sync of the log is enough
//!
//! Called after a commit, [`Durability::sync`] finds it in one of three places.
//!
//! - **In the log.** Its frames were written to the file before the commit returned, behind
//!   all earlier ones. The sync makes durable all that was written to the file, by whatever
//!   connection and descriptor. Recovery reads from the beginning up to the last commit
//!   whose checksums follow from the one before; that beginning is a header which
//!   `SQLite` has synced before it wrote the first frame (`walFrames`, `syncHeader`).
//! - **In the database file**, because a checkpoint moved it. Under `NORMAL` a checkpoint
//!   syncs the log before the first page is written, and the database before the log may be
//!   begun anew. So it was durable all the time, first in the one and then in both.
//! - **In the database file, and its frames overwritten**, since the log was begun anew
//!   after that checkpoint. As before: the database had been synced first. Commits that
//!   came later are in the log, whose file is the same: it is begun anew in place, and
//!   cut, but not replaced.
//!
//! # On a rollback journal
//!
//! There is no log, and with `FULL`, the default there, journal and database are synced at every
//! commit. But what commits is the removal of the journal, and when that reaches the disk is left
//! to the file system: where it did not, the journal is there again after a power failure, and
//! takes the commit back. (`EXTRA` would sync the directory at every commit.) So what is synced
//! here is the directory, once for many commits as well.
//!
//! A log that comes while this lives, because the database was taken over to WAL, is there before
//! the first commit to it is, and so is found by the sync that follows. Every connection has the
//! level of the new mode from its next transaction on, unless it was told another (`lockBtree`,
//! `setDefaultSyncFlag`).
//!
//! # Which file
//!
//! The log's file goes when the last connection closes, and the next one makes another. The
//! connection kept here prevents it: in WAL mode a connection has a shared lock on the
//! database for as long as it lives, and whoever removes the log needs an exclusive one.
//! All the same its device and inode are compared before every sync, from metadata. A new
//! one is opened, and its directory synced, as a file without a name is lost whatever
//! is in it. A log that has been in use and is gone is an error.
//!
//! Its descriptor may be closed, unlike those of the database and of the `-shm`: closing one
//! drops the process's POSIX locks on that file, and `SQLite` locks nothing in the log.
//!
//! # When nothing was written
//!
//! Most requests change nothing that is stored, and even a sync with nothing to do makes
//! the disk flush its cache. `PRAGMA data_version` on the kept connection tells whether
//! anybody committed since the last sync began.
//!
//! # When a sync fails
//!
//! The kernel may have dropped what it could not write, reports that once, and a second sync
//! of the same file would succeed without it. Whatever is behind the hole in the log, synced
//! or not, would not survive. So from then on every sync fails, until a checkpoint has moved
//! the whole log into the database, has synced that, and the log can be begun anew. It is
//! tried at every sync; while a backup has the file pinned it cannot succeed.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::watch;

use crate::disk::parent;

/// How long a checkpoint after a failed sync waits for others.
const IN_THE_WAY: Duration = Duration::from_millis(100);

/// `PRAGMA synchronous`: every commit syncs the log from here on.
const FULL: i64 = 2;

/// How often a log that is being replaced is looked for before that is an error.
const ATTEMPTS: usize = 3;

/// Why something is not known to be durable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kept connection could not be opened or used.
    #[error("could not {doing} {}: {source}", path.display())]
    Sqlite {
        /// What was attempted.
        doing: &'static str,
        /// The database.
        path: PathBuf,
        /// What `SQLite` said.
        source: rusqlite::Error,
    },
    /// The log or its directory could not be found, opened or synced.
    #[error("could not {doing} {}: {source}; what was committed last may not survive a power failure", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The log, or its directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It was in use, and is gone or keeps changing.
    #[error("{} was removed or replaced while in use: restart the service", path.display())]
    Vanished {
        /// The log.
        path: PathBuf,
    },
    /// A sync has failed earlier, and not all of the log is in the database yet.
    #[error(
        "an earlier sync of {} failed, and it could not be begun anew yet: somebody reads \
         from it, a backup for one; if this goes on, check the disk and restart the service",
        path.display()
    )]
    Suspect {
        /// The log.
        path: PathBuf,
    },
}

/// Makes commits durable, many at once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Durability {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    turns: Mutex<Turns>,
    /// A sync has ended.
    ended: Condvar,
    /// The newest sync that has ended, for those who wait without a thread.
    outcome: watch::Sender<Outcome>,
}

/// Syncs are numbered. What was committed before the call is made durable by the next one
/// that begins; the one in progress may have begun too early.
#[derive(Debug, Default)]
struct Turns {
    begun: u64,
    running: bool,
    /// A thread that will sync for [`Durability::synced`] has not begun yet.
    called: bool,
}

#[derive(Debug, Clone, Default)]
struct Outcome {
    number: u64,
    /// How many syncs have failed until then.
    failures: u64,
    failed: Option<Arc<Error>>,
}

/// Hears of syncs that fail.
#[derive(Debug)]
pub struct Failures(watch::Receiver<Outcome>);

impl Failures {
    /// Waits for a sync that fails: how many have, since the start, and why this one did. Of
    /// those that fail meanwhile the newest is told. `None`: there will be no more.
    pub async fn next(&mut self) -> Option<(u64, Arc<Error>)> {
        loop {
            self.0.changed().await.ok()?;
            let outcome = self.0.borrow_and_update();
            if let Some(error) = &outcome.failed {
                return Some((outcome.failures, Arc::clone(error)));
            }
        }
    }
}

impl Durability {
    /// Opens a connection to a database that exists and keeps it for as long as this
    /// lives. Blocks.
    ///
    /// # Errors
    ///
    /// When the database cannot be found or read.
    pub fn open(database: &Path) -> Result<Self, Error> {
        Self::with(database, File::sync_data)
    }

    /// As [`Durability::open`], with what syncs the log: `fdatasync`, unless a test has to hold
    /// it up or let it fail.
    pub(crate) fn with(database: &Path, sync: fn(&File) -> io::Result<()>) -> Result<Self, Error> {
        Ok(Self {
            shared: Arc::new(Shared {
                log: Mutex::new(Log::open(database, sync)?),
                turns: Mutex::default(),
                ended: Condvar::new(),
                outcome: watch::Sender::default(),
            }),
        })
    }

    /// Returns when everything that was committed before the call is durable. Blocks for a
    /// sync of the disk, or two if one is in progress.
    ///
    /// # Errors
    ///
    /// When that is not known to be so. Shared by all who waited for the same sync.
    pub fn sync(&self) -> Result<(), Arc<Error>> {
        self.shared.sync(lock(&self.shared.turns))
    }

    /// As [`Durability::sync`], without blocking the thread: at most one thread for blocking
    /// calls of the current runtime is busy for all who wait.
    ///
    /// # Errors
    ///
    /// As [`Durability::sync`].
    ///
    /// # Panics
    ///
    /// Outside of an async runtime.
    pub async fn synced(&self) -> Result<(), Arc<Error>> {
        let mut outcomes = self.shared.outcome.subscribe();
        let mine = {
            let mut turns = lock(&self.shared.turns);
            if !turns.called {
                turns.called = true;
                let shared = Arc::clone(&self.shared);
                tokio::task::spawn_blocking(move || {
                    let mut turns = lock(&shared.turns);
                    turns.called = false;
                    // Those who wait are told through the channel.
                    let _ = shared.sync(turns);
                });
            }
            turns.begun + 1
        };
        let outcome = outcomes.wait_for(|outcome| outcome.number >= mine).await;
        let outcome = outcome.expect("the sender is in what is borrowed here");
        outcome.failed.clone().map_or(Ok(()), Err)
    }

    /// For whoever tells the operator.
    #[must_use]
    pub fn failures(&self) -> Failures {
        Failures(self.shared.outcome.subscribe())
    }
}

impl Shared {
    /// Leads the next sync, or waits for whoever does.
    fn sync(&self, mut turns: MutexGuard<'_, Turns>) -> Result<(), Arc<Error>> {
        let mine = turns.begun + 1;
        while turns.running {
            turns = self
                .ended
                .wait(turns)
                .unwrap_or_else(PoisonError::into_inner);
            let outcome = self.outcome.borrow();
            if outcome.number >= mine {
                // A later one is as good: after a failure none succeeds before all is well.
                return outcome.failed.clone().map_or(Ok(()), Err);
            }
        }
        turns.begun += 1;
        turns.running = true;
        let number = turns.begun;
        drop(turns);
        let synced = lock(&self.log).sync().map_err(Arc::new);
        // Before the next may begin, or outcomes could come out of order.
        self.outcome.send_modify(|outcome| {
            outcome.number = number;
            outcome.failed = synced.as_ref().err().cloned();
            outcome.failures += u64::from(synced.is_err());
        });
        lock(&self.turns).running = false;
        self.ended.notify_all();
        synced
    }
}

/// The log of one database and what is known about it.
#[derive(Debug)]
struct Log {
    /// Keeps the log's file where it is, and tells whether anybody has committed.
    connection: Connection,
    database: PathBuf,
    path: PathBuf,
    file: Option<Kept>,
    /// Everything up to this `data_version` is durable.
    durable: Option<i64>,
    /// A sync has failed, and the log has not been begun anew since.
    suspect: bool,
    /// How the file is synced: `fdatasync`, unless a test wants it to fail.
    sync: fn(&File) -> io::Result<()>,
}

/// The log's file.
#[derive(Debug)]
struct Kept {
    file: File,
    device: u64,
    inode: u64,
}

impl Kept {
    fn is(&self, metadata: &Metadata) -> bool {
        (self.device, self.inode) == (metadata.dev(), metadata.ino())
    }
}

impl Log {
    fn open(database: &Path, sync: fn(&File) -> io::Result<()>) -> Result<Self, Error> {
        // `SQLite` has the log beside the file itself, not beside a link to it.
        let database = fs::canonicalize(database).map_err(|source| Error::Io {
            doing: "find",
            path: database.into(),
            source,
        })?;
        let mut path = database.clone().into_os_string();
        path.push("-wal");
        let failed = |source| Error::Sqlite {
            doing: "open",
            path: database.clone(),
            source,
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&database, flags).map_err(failed)?;
        connection.busy_timeout(IN_THE_WAY).map_err(failed)?;
        // A first read, from which on it holds its lock if there is a log.
        data_version(&connection).map_err(failed)?;
        connection.busy_timeout(Duration::ZERO).map_err(failed)?;
        Ok(Self {
            connection,
            path: path.into(),
            database,
            file: None,
            durable: None,
            suspect: false,
            sync,
        })
    }

    fn sync(&mut self) -> Result<(), Error> {
        // Read before anything else, so that what is committed meanwhile counts as not durable, in
        // a log that comes meanwhile as well. Not to know it costs a sync, perhaps in vain; to
        // wait for somebody who commits on a rollback journal would cost more.
        let version = data_version(&self.connection).ok();
        let found = self.find()?;
        let same_log = found.is_none() == self.file.is_none();
        if version.is_some() && version == self.durable && same_log && !self.suspect {
            return Ok(());
        }
        let Some(found) = found else {
            self.sync_directory()?;
            self.durable = version;
            return Ok(());
        };
        // A connection that cannot read does not know of a change of the mode, either, and has the
        // level of the old one: then it is not asked.
        if version.is_none() || !self.commits_sync_themselves()? {
            if self.suspect {
                self.begin_anew()?;
            }
            let sync = self.sync;
            if let Err(source) = sync(self.keep(&found)?) {
                self.suspect = true;
                return Err(self.io("sync", source));
            }
        }
        self.durable = version;
        Ok(())
    }

    /// The log, if the database has one.
    fn find(&self) -> Result<Option<Metadata>, Error> {
        match fs::metadata(&self.path) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.file.is_none() {
                    Ok(None)
                } else {
                    Err(self.vanished())
                }
            }
            Err(source) => Err(self.io("find", source)),
        }
    }

    /// Asked of the kept connection, which has the default of all others.
    fn commits_sync_themselves(&self) -> Result<bool, Error> {
        let level = self
            .connection
            .prepare_cached("PRAGMA synchronous")
            .and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)))
            .map_err(|source| self.sqlite("ask how commits are synced in", source))?;
        Ok(level >= FULL)
    }

    /// Opens the log unless it is the one that is open.
    fn keep(&mut self, found: &Metadata) -> Result<&File, Error> {
        if !self.file.as_ref().is_some_and(|kept| kept.is(found)) {
            self.file = Some(self.open_log()?);
        }
        let kept = self.file.as_ref();
        Ok(&kept.expect("it was opened if it was not open").file)
    }

    /// What names were made and removed beside the database.
    #[expect(
        clippy::disallowed_methods,
        reason = "SQLite has no lock on a directory that closing it could drop"
    )]
    fn sync_directory(&self) -> Result<(), Error> {
        let directory = parent(&self.path);
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|source| Error::Io {
                doing: "sync",
                path: directory.into(),
                source,
            })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "SQLite has no lock on the log's file that closing it could drop"
    )]
    fn open_log(&self) -> Result<Kept, Error> {
        for _ in 0..ATTEMPTS {
            let file = File::open(&self.path).map_err(|source| self.io("open", source))?;
            let opened = file.metadata().map_err(|source| self.io("open", source))?;
            self.sync_directory()?;
            let kept = Kept {
                file,
                device: opened.dev(),
                inode: opened.ino(),
            };
            if self.find()?.is_some_and(|found| kept.is(&found)) {
                return Ok(kept);
            }
        }
        Err(self.vanished())
    }

    /// Moves the whole log into the database, so that nothing has to be read from behind a
    /// hole in it.
    fn begin_anew(&mut self) -> Result<(), Error> {
        let patient = |limit| {
            self.connection
                .busy_timeout(limit)
                .map_err(|source| self.sqlite("wait for others at", source))
        };
        patient(IN_THE_WAY)?;
        let checkpoint = self
            .connection
            .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
                Ok((
                    row.get::<_, bool>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            })
            .map_err(|source| self.sqlite("checkpoint", source));
        patient(Duration::ZERO)?;
        let (busy, log, done) = checkpoint?;
        // -1: this connection has not read since there is a log, and so did nothing.
        if busy || log < 0 || log != done {
            return Err(Error::Suspect {
                path: self.path.clone(),
            });
        }
        self.suspect = false;
        Ok(())
    }

    fn vanished(&self) -> Error {
        Error::Vanished {
            path: self.path.clone(),
        }
    }

    fn io(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }

    fn sqlite(&self, doing: &'static str, source: rusqlite::Error) -> Error {
        Error::Sqlite {
            doing,
            path: self.database.clone(),
            source,
        }
    }
}

/// Changes when another connection commits
/// ([`PRAGMA data_version`](https://www.sqlite.org/pragma.html#pragma_data_version)).
fn data_version(connection: &Connection) -> Result<i64, rusqlite::Error> {
    connection
        .prepare_cached("PRAGMA data_version")?
        .query_row([], |row| row.get(0))
}

/// What is behind these locks is consistent whenever they are free.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
