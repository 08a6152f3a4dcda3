//! Checkpoints of the write-ahead log.

use std::fs::File;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::pin::append_one_frame;
use super::{Database, Deadline, Error, Held, Interrupts, Journal, PATIENCE, Pin, Pooled, kept};
use crate::snapshot::Watch;

/// A log that need not be shrunk: four times what `wal_autocheckpoint` lets grow unless
/// set (1,000 pages of 4 KiB).
const SHORT: u64 = 16 << 20;

/// Bytes cut off the log's file at once: some 7 ms of the write lock on ext4.
const STEP: u64 = 16 << 20;

/// How long the end of a pin waits for the write lock.
const HAND_OVER: Duration = Duration::from_millis(50);

/// How long a checkpoint has to begin: it is a few system calls away.
const HEAD_START: Duration = Duration::from_millis(1);

/// How often the file is synced while a long log is moved into it.
const SYNC_EVERY: Duration = Duration::from_millis(20);

/// Frames of the log that are left to the service's own checkpoints
/// (`wal_autocheckpoint` unless set).
const BACKLOG: i64 = 1000;

/// Checkpoints in a row that go after new frames. Each has a fraction of the one before
/// to do, unless the service writes as fast as the disk can.
const ROUNDS: u32 = 10;

/// How long a step of shrinking waits for readers, with the write lock in hand.
const IN_THE_WAY: Duration = Duration::from_millis(5);

/// Pause after a step of shrinking, in terms of how long it had the write lock.
const SHARE: u32 = 9;

/// Fruitless steps in a row after which shrinking is given up.
const ATTEMPTS: u32 = 50;

/// What `PRAGMA wal_checkpoint` is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing but count (since 3.51.0).
    Noop,
    /// Move what can be moved without waiting for anybody.
    Passive,
    /// Move all, under the write lock, so that the next commit begins the log anew.
    Restart,
}

/// What it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Another checkpoint was running, or somebody was in the way of a thorough one.
    pub(super) busy: bool,
    /// Frames in the log; -1: not known, or the file has no log.
    pub(super) log: i64,
    /// How many of them are in the file.
    pub(super) done: i64,
}

impl Checkpoint {
    pub(super) fn run(connection: &Connection, mode: Mode) -> Result<Self, rusqlite::Error> {
        let sql = match mode {
            Mode::Noop => "PRAGMA wal_checkpoint(NOOP)",
            Mode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
            Mode::Restart => "PRAGMA wal_checkpoint(RESTART)",
        };
        connection.query_row(sql, [], |row| {
            Ok(Self {
                busy: row.get(0)?,
                log: row.get(1)?,
                done: row.get(2)?,
            })
        })
    }

    /// Whether every frame there was is in the file.
    pub(super) fn is_complete(self) -> bool {
        !self.busy && self.log >= 0 && self.log == self.done
    }

    /// Why it is not complete.
    pub(super) fn obstacle(self) -> String {
        let Self { busy, log, done } = self;
        if busy {
            "another checkpoint was running".into()
        } else if log < 0 {
            "it left WAL mode".into()
        } else {
            format!("an older reader let only {done} of {log} log frames into the file")
        }
    }
}

impl Database {
    /// Moves what the log has into the file, waiting for nobody, so that little is left
    /// to do once the gate is closed. Nothing to do on a rollback journal.
    ///
    /// # Errors
    ///
    /// As [`Error`] says. Others being in the way is not an error.
    pub fn checkpoint_before(&self) -> Result<(), Error> {
        let connection = self.connection(&Deadline::after(PATIENCE))?;
        let failed = |e| self.error("checkpoint", e);
        if Journal::of(&connection).map_err(failed)? == Journal::Wal {
            self.drain(&connection, None, &Watch::default())
                .map_err(failed)?;
        }
        Ok(())
    }
}

impl Pin {
    /// Ends the pin and, when the log grew long under it, moves the log into the file at
    /// once, without waiting for anybody. Takes as long as that takes: the time of
    /// writing the log once more.
    ///
    /// Merely dropping the pin leaves that work to the next commit of the service, whose
    /// `wal_autocheckpoint` is overdue: with 900 MB of log, one commit of a second.
    ///
    /// Nothing here can fail that matters: the pin ends in any case, and whatever is left
    /// of the log meets [`Database::shrink_wal`]. When the watch is cancelled, at once or
    /// meanwhile, the pin ends and the rest is left, but for a sync that is under way.
    pub fn release(self, watch: &Watch) {
        let grown = self.database.wal_bytes().unwrap_or(0) > SHORT;
        if grown && !self.facts.journal.blocks_writers() && watch.cancelled().is_none() {
            hand_over(&self, watch);
        }
    }
}

/// Lets go of a pin so that *our* checkpoint is the next to run. The write lock keeps
/// commits away, and with them their checkpoints, until ours has begun; one that began
/// cannot be joined by another (`WAL_CKPT_LOCK`).
fn hand_over(pin: &Pin, watch: &Watch) {
    // Its handle may have ended it.
    let Some(reader) = pin.connection() else {
        return;
    };
    // Without it the next commit may be a slow one, which is no reason to keep the pin.
    let write_lock = pin
        .database
        .connection(&Deadline::after(HAND_OVER))
        .ok()
        .and_then(|w| w.execute_batch("BEGIN IMMEDIATE").ok().map(|()| Held(w)));
    if let Some(c) = reader.into_ended() {
        let interrupts = Interrupts::armed(watch);
        interrupts.add(&c);
        // What it cannot do is for the next one, or for `shrink_wal`, to do or to report.
        let _ = pin.database.drain(&c, write_lock, watch);
    }
}

impl Database {
    /// Moves the log into the file until no more of it is left than the service's own
    /// checkpoints are used to. Meanwhile another thread lets go of the write lock, if
    /// there is one, as soon as the checkpoint has begun, and syncs the file as it is
    /// written: a checkpoint syncs all it wrote in one go, and one in a commit that comes
    /// just after it syncs what is left. Both are short when the file is never far behind.
    fn drain(
        &self,
        c: &Connection,
        write_lock: Option<Held>,
        watch: &Watch,
    ) -> Result<Checkpoint, rusqlite::Error> {
        let file = kept::descriptor(&self.path, self.identity).ok();
        thread::scope(|scope| {
            // Never sent on: dropping this end is the message.
            let (_ours, ended) = mpsc::sync_channel::<()>(0);
            scope.spawn(move || {
                let _ = ended.recv_timeout(HEAD_START);
                drop(write_lock);
                while ended.recv_timeout(SYNC_EVERY) == Err(RecvTimeoutError::Timeout) {
                    // The checkpoint meets the same error, and is the one to judge it.
                    let _ = file.map(File::sync_data);
                }
            });
            let mut rounds = 0;
            loop {
                let moved = Checkpoint::run(c, Mode::Passive)?;
                rounds += 1;
                // Commits went on meanwhile, so there may be a new backlog, a shorter one.
                let left = Checkpoint::run(c, Mode::Noop)?;
                let short = left.log - left.done <= BACKLOG;
                let over = watch.cancelled().is_some() || rounds == ROUNDS;
                if !moved.is_complete() || short || over {
                    return Ok(moved);
                }
            }
        })
    }

    /// Cuts the write-ahead log's file back to what the service uses, once a pin no longer
    /// needs it, and moves what it still has into the database. In small steps with pauses
    /// in between, in which it has no connection: cutting 900 MB off at once keeps the write
    /// lock for 400 ms. Ends early, and well, when readers stay in the way or there is no
    /// connection to be had, and at once when the watch is cancelled: a long log is used
    /// again from its start, so it costs room and nothing else.
    ///
    /// # Errors
    ///
    /// As [`Error`] says. Others being in the way is not an error;
    /// [`Database::wal_bytes`] says what is left.
    pub fn shrink_wal(&self, watch: &Watch) -> Result<(), Error> {
        let mut attempts = ATTEMPTS;
        while attempts > 0 && watch.cancelled().is_none() {
            let before = self.wal_bytes()?;
            if before <= SHORT {
                break;
            }
            let pause = match self.shrink_step(before, watch) {
                Ok(Some(locked)) => locked * SHARE,
                Ok(None) => break,
                Err(Error::Exhausted { .. }) => Duration::ZERO,
                // The watch has interrupted the statement.
                Err(_) if watch.cancelled().is_some() => break,
                Err(error) => return Err(error),
            };
            if self.wal_bytes()? < before {
                attempts = ATTEMPTS;
            } else {
                attempts -= 1;
            }
            watch.pause(pause.max(IN_THE_WAY));
        }
        Ok(())
    }

    /// Says how long it had the write lock; `None`: there is no log any more.
    fn shrink_step(&self, bytes: u64, watch: &Watch) -> Result<Option<Duration>, Error> {
        let failed = |e| self.error("shrink the log of", e);
        let [c, w] = [self.idle_connection()?, self.idle_connection()?];
        if Journal::of(&c).map_err(failed)? != Journal::Wal {
            return Ok(None);
        }
        for connection in [&c, &w] {
            // Both wait for others with the write lock in hand.
            connection.busy_timeout(IN_THE_WAY).map_err(failed)?;
        }
        let interrupts = Interrupts::armed(watch);
        interrupts.add(&c);
        // The bulk, which keeps nobody waiting; then the rest under the write lock.
        let bulk = self.drain(&c, None, watch).map_err(failed)?;
        let began = now();
        if bulk.is_complete()
            && Checkpoint::run(&c, Mode::Restart)
                .map_err(failed)?
                .is_complete()
        {
            let limit = bytes.saturating_sub(STEP).max(SHORT);
            commit_cutting_to(&w, limit)
                .or_else(busy_is_fine)
                .map_err(failed)?;
        }
        Ok(Some(began.elapsed()))
    }

    /// One that a pin does not want this very moment.
    fn idle_connection(&self) -> Result<Pooled, Error> {
        self.connection(&Deadline::after(HAND_OVER))
    }
}

/// Commits a frame that changes nothing. It is the first of the restarted log, unless
/// somebody else's came first, and its commit cuts the file to `limit` bytes
/// (`PRAGMA journal_size_limit`).
fn commit_cutting_to(w: &Connection, limit: u64) -> Result<(), rusqlite::Error> {
    w.pragma_update(
        None,
        "journal_size_limit",
        i64::try_from(limit).unwrap_or(i64::MAX),
    )?;
    let appended = append_one_frame(w);
    // Off again: a commit of this connection in a pause is not to cut anything.
    w.pragma_update(None, "journal_size_limit", -1)?;
    appended
}

/// Somebody else has the write lock: the next step may get it.
fn busy_is_fine(error: rusqlite::Error) -> Result<(), rusqlite::Error> {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy) => Ok(()),
        _ => Err(error),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long the write lock was held is measured where it is"
)]
fn now() -> Instant {
    Instant::now()
}
