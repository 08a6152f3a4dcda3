//! The pin: a read transaction under which no byte of the database file changes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::reader::{Lent, PinHandle, Reader};
use super::wal::{Checkpoint, Mode};
use super::{Database, Deadline, Error, Facts, Held, Interrupts, Journal, Pooled};
use crate::snapshot::Watch;

/// How long a statement waits for a lock before it is asked whether to go on.
const SLICE: Duration = Duration::from_millis(20);

/// Why a database could not be pinned. Either way nothing is held.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// Somebody was in the way; the next attempt may well succeed.
    #[error("the database could not be pinned: {0}; trying again may help")]
    Busy(String),
    /// Trying again will not help.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// While this lives, the database file is byte for byte the snapshot of
/// [`Pin::connection`], and nobody writes to it. Dropping it ends that, and does nothing
/// more; [`Pin::release`] also takes care of the log that grew meanwhile. Another thread
/// can end it through a [`Pin::handle`].
pub struct Pin {
    /// The file as pinned.
    pub facts: Facts,
    /// When: every commit before this instant is in the file.
    pub taken: DateTime<Utc>,
    /// Whether the snapshot is on read mark 0 (the file alone) rather than on a later one
    /// of the log. Both hold the file still, but on mark 0 every commit past
    /// `wal_autocheckpoint` sorts the whole log before it is refused the checkpoint.
    /// `None`: rollback journal, or another process checkpointed at that very moment.
    pub read_mark_zero: Option<bool>,
    pub(super) reader: Reader,
    pub(super) database: Database,
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pin")
            .field("facts", &self.facts)
            .field("taken", &self.taken)
            .field("read_mark_zero", &self.read_mark_zero)
            .finish_non_exhaustive()
    }
}

impl Pin {
    /// Borrows the connection that has the snapshot. `None` when the pin was ended by its
    /// handle, or the connection is borrowed already.
    #[must_use]
    pub fn connection(&self) -> Option<Lent<'_>> {
        self.reader.lend()
    }

    /// For the thread that sees to the deadline: ends the pin wherever it is.
    #[must_use]
    pub fn handle(&self) -> PinHandle {
        self.reader.handle()
    }

    /// Whether it still pins: `false` from the moment its handle was told to end it. What
    /// was read of the file before this said `true` is the snapshot.
    #[must_use]
    pub fn stands(&self) -> bool {
        self.reader.stands()
    }

    /// The pinned file, links resolved.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.facts.path
    }
}

impl Database {
    /// Flushes the write-ahead log into the file and pins it; on a rollback journal, pins
    /// it. One attempt, over within `limit` but for the time a disk hangs in a single
    /// call. However it ends, the write lock is gone when it returns.
    ///
    /// Commits that are not to wait for it must not be under way: the caller closes its
    /// gate and drains before.
    ///
    /// # Errors
    ///
    /// [`PinError::Busy`] when another reader, writer or checkpointer was in the way,
    /// [`PinError::Failed`] otherwise.
    pub fn pin(&self, limit: Duration, watch: &Watch) -> Result<Pin, PinError> {
        let attempt = Attempt::new(self, limit, watch);
        let connection = attempt.connection()?;
        let journal = attempt.patiently("read", || Journal::of(&connection))?;
        let pinned = match journal {
            Journal::Wal => attempt.flush_and_pin(connection)?,
            _ if journal.survives_a_crash() => Pinned {
                reader: attempt.read(connection)?,
                // Nobody can commit any more.
                taken: now(),
                read_mark_zero: None,
            },
            _ => {
                let path = self.path.clone();
                return Err(Error::Unsafe { path, journal }.into());
            }
        };
        let Pinned {
            reader,
            taken,
            read_mark_zero,
        } = pinned;
        let facts = self.facts_in(&reader)?;
        if facts.journal.blocks_writers() != journal.blocks_writers() {
            return Err(PinError::Busy("its journal mode was changed".into()));
        }
        Ok(Pin {
            facts,
            taken,
            read_mark_zero,
            reader: Reader::new(reader),
            database: self.clone(),
        })
    }
}

/// What an attempt comes to.
struct Pinned {
    reader: Held,
    taken: DateTime<Utc>,
    read_mark_zero: Option<bool>,
}

/// One try at a pin, or at what comes before it.
pub(super) struct Attempt<'a> {
    database: &'a Database,
    deadline: Deadline,
    watch: &'a Watch,
    interrupts: Interrupts,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(database: &'a Database, limit: Duration, watch: &'a Watch) -> Self {
        Self {
            database,
            deadline: Deadline::after(limit),
            watch,
            interrupts: Interrupts::armed(watch),
        }
    }
}

impl Attempt<'_> {
    /// How much of its limit is left.
    pub(super) fn left(&self) -> Duration {
        self.deadline.remaining()
    }

    /// R: a snapshot of the newest commit. On a rollback journal that is SHARED, and all.
    fn read(&self, connection: Pooled) -> Result<Held, PinError> {
        let reader = Held::begin(connection).map_err(|e| self.error("read", e))?;
        self.patiently("read", || reader.look())?;
        Ok(reader)
    }

    /// One frame, and then W, R and C, as the module's diagram has them.
    fn flush_and_pin(&self, r: Pooled) -> Result<Pinned, PinError> {
        let w = self.connection()?;
        let c = self.connection()?;
        // A connection that never read does not know yet that the file has a log.
        Journal::of(&c).map_err(|e| self.error("read", e))?;
        self.patiently("write to", || append_one_frame(&w))?;
        self.flush_under_write_lock(r, w, c)
    }

    fn flush_under_write_lock(&self, r: Pooled, w: Pooled, c: Pooled) -> Result<Pinned, PinError> {
        self.patiently("lock", || w.execute_batch("BEGIN IMMEDIATE"))?;
        // Rolled back on drop: on every way out of here.
        let write_lock = Held(w);
        let before = Checkpoint::run(&c, Mode::Noop).map_err(|e| self.error("look at", e))?;
        let reader = self.read(r)?;
        let after = Checkpoint::run(&c, Mode::Noop).map_err(|e| self.error("look at", e))?;
        let flushed = self.flush(c);
        // Before others can commit again: what they commit is later, and not in the file.
        let taken = now();
        write_lock.end().map_err(|e| self.error("unlock", e))?;
        let flushed = flushed?;

        if flushed.is_complete() {
            Ok(Pinned {
                reader,
                taken,
                read_mark_zero: on_mark_zero(before, after),
            })
        } else {
            Err(PinError::Busy(flushed.obstacle()))
        }
    }

    /// C moves the log into the file, and syncs both.
    fn flush(&self, c: Pooled) -> Result<Checkpoint, PinError> {
        self.aside(move || {
            let checkpoint = Checkpoint::run(&c, Mode::Passive);
            // Back in the pool first: whoever gets the result may ask for it.
            drop(c);
            checkpoint
        })
    }

    /// Flushes on a thread of its own and waits for it until the deadline has passed or the
    /// watch is cancelled: the caller holds the write lock and must be able to let go of it
    /// then, though the disk should hang.
    fn aside(
        &self,
        flush: impl FnOnce() -> Result<Checkpoint, rusqlite::Error> + Send + 'static,
    ) -> Result<Checkpoint, PinError> {
        let (sender, result) = mpsc::channel();
        // The thread has the one strong reference: should it panic, the channel hangs up.
        let sender = Arc::new(sender);
        let cancelled = Arc::downgrade(&sender);
        self.watch.on_cancel(move || {
            if let Some(sender) = cancelled.upgrade() {
                let _ = sender.send(None);
            }
        });
        thread::Builder::new()
            .name("flush".into())
            .spawn(move || {
                // Nobody listens once the deadline has passed.
                let _ = sender.send(Some(flush()));
            })
            .map_err(|source| Error::Io {
                doing: "start a thread to flush",
                path: self.database.path.clone(),
                source,
            })?;
        match result.recv_timeout(self.deadline.remaining()) {
            Ok(Some(checkpoint)) => checkpoint.map_err(|e| self.error("flush", e)),
            // The watch has interrupted the connections itself.
            Ok(None) => {
                let why = self.watch.cancelled().unwrap_or_default();
                Err(Error::Cancelled(why).into())
            }
            Err(RecvTimeoutError::Timeout) => {
                self.interrupts.fire();
                let limit = self.deadline.limit;
                Err(PinError::Busy(format!(
                    "flushing took longer than {limit:?}"
                )))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(PinError::Busy("the thread that flushes panicked".into()))
            }
        }
    }

    /// Tries until it is not busy, the deadline has passed or the watch is cancelled:
    /// SQLite's own wait for a lock ends on its timeout alone, not when interrupted.
    pub(super) fn patiently<T>(
        &self,
        doing: &'static str,
        mut statement: impl FnMut() -> Result<T, rusqlite::Error>,
    ) -> Result<T, PinError> {
        loop {
            let result = statement().map_err(|e| self.error(doing, e));
            let over = self.deadline.remaining().is_zero();
            if over || !matches!(result, Err(PinError::Busy(_))) {
                return result;
            }
        }
    }

    /// A connection that is interrupted with the attempt and waits for locks in slices.
    /// It is waited for in slices too. That there is none to be had is a matter of time:
    /// what another run left to do has them.
    pub(super) fn connection(&self) -> Result<Pooled, PinError> {
        loop {
            if let Some(why) = self.watch.cancelled() {
                return Err(Error::Cancelled(why).into());
            }
            let slice = self.deadline.remaining().min(SLICE);
            match self.database.connection(&Deadline::after(slice)) {
                Ok(connection) => {
                    connection
                        .busy_timeout(self.deadline.remaining().min(SLICE))
                        .map_err(|e| self.error("set the busy timeout of", e))?;
                    self.interrupts.add(&connection);
                    return Ok(connection);
                }
                Err(Error::Exhausted { path, why, .. }) if self.deadline.remaining().is_zero() => {
                    let waited = self.deadline.limit;
                    let exhausted = Error::Exhausted { path, waited, why };
                    return Err(PinError::Busy(exhausted.to_string()));
                }
                Err(Error::Exhausted { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What a failed statement means for the attempt.
    pub(super) fn error(&self, doing: &'static str, source: rusqlite::Error) -> PinError {
        if let Some(why) = self.watch.cancelled() {
            return Error::Cancelled(why).into();
        }
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                PinError::Busy(format!("could not {doing} it: {source}"))
            }
            _ => self.database.error(doing, source).into(),
        }
    }
}

/// Commits a frame that changes nothing, so that the log has one that is not in the file
/// when R begins: R then takes a read mark above 0, where writers do not pay for it.
pub(super) fn append_one_frame(w: &Connection) -> Result<(), rusqlite::Error> {
    // Read and written under one lock: another's new value is not to be undone.
    let transaction = Transaction::new_unchecked(w, TransactionBehavior::Immediate)?;
    let version: i32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}

/// Which read mark R took, from what was in the file before and after it began. The write
/// lock is held throughout, so the log's length stands and what is in the file only grows.
///
/// A reader takes mark 0 if and only if the whole log is in the file
/// (`walTryBeginRead`). If it was before R began, R is on 0. If it was not even after R
/// began, R is not. Between the two somebody checkpointed just then, and it cannot be told.
fn on_mark_zero(before: Checkpoint, after: Checkpoint) -> Option<bool> {
    if before.is_complete() {
        Some(true)
    } else if after.is_complete() {
        None
    } else {
        Some(false)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the instant a pin was taken is known only here"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests;
