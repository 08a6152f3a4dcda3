//! The raw copy: the pinned database, byte for byte, durable on disk, before the pin goes.
//!
//! ```text
//!   pin ── database file ──┬─ file ───▶ read_at 1 MiB ─▶ write past the cache ─▶ SHA-256
//!                          │                            └─▶ raw ──▶ synced as it grows
//!                          └─ pages ──▶ backup API ─────────▶ raw ──▶ synced at the end
//! ```
//!
//! `file` reads the database file itself, which the pin holds still, as fast as the disk
//! goes. `pages` asks `SQLite` for page after page: slower by half, but it depends on
//! nothing except that the pinned connection sees its snapshot. Both show the same
//! database; `pages` may count up the schema and change counters in the header.
//!
//! # What fails, and what is left then
//!
//! The pin is released on every way out, a panic included: [`copy`] owns it. A copy that is
//! cancelled ends after the chunk it is at; a sync that is under way is left to end by
//! itself. If the pin is ended under a copy ([`PinHandle::end`]), the copy fails, even had
//! it read everything: what it read may be of different times. What was
//! written so far stays at the given path, which belongs to a draft that removes itself.
//! A copy that returns `Ok` has been synced; its directory entry is the draft's concern.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Method;
use crate::disk::{self, Disk};
#[cfg(doc)]
use crate::sqlite::PinHandle;
use crate::sqlite::{self, Pin};

mod file;
mod pages;
mod sync;
mod watch;

#[cfg(test)]
mod tests;

pub use watch::{Progress, Watch};

/// Bytes read and written at once, and so the most between two looks at the watch.
const CHUNK: usize = 1 << 20;

/// A finished, durable raw copy.
#[derive(Debug, Clone, PartialEq)]
pub struct RawCopy {
    /// Where it is.
    pub path: PathBuf,
    /// Its size: exactly the pinned pages.
    pub bytes: u64,
    /// SHA-256 of what was read, in lower-case hex. `None` for [`Method::Pages`], which
    /// writes out of order.
    pub sha256: Option<String>,
    /// How it was read: [`Method::File`] or [`Method::Pages`].
    pub method: Method,
    /// Seconds from the call until it was durable.
    pub seconds: f64,
}

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The watch was cancelled.
    #[error("the copy was given up: {0}")]
    Cancelled(String),
    /// The pin was ended by its handle while the copy went on.
    #[error(
        "the pin was ended before the copy was complete: nothing can be made of what was copied"
    )]
    Ended,
    /// The file is not as long as the pages the pin sees, so its bytes alone are not the
    /// database.
    #[error("{} has {found} bytes where its pages are {expected}: use method \"pages\"", path.display())]
    Size {
        /// The database.
        path: PathBuf,
        /// Pages times page size.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The database file cannot be read as it should.
    #[error(transparent)]
    Database(#[from] sqlite::Error),
    /// The copy's file could not be handled.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// Reading or writing failed.
    #[error("could not {doing} {}: {source}", path.display())]
    Io {
        /// The verb.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The backup API failed.
    #[error("could not {doing} {}: {source}", path.display())]
    Sqlite {
        /// The verb.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A helping thread panicked.
    #[error("the thread that was {0} panicked: the copy cannot be trusted")]
    Panicked(&'static str),
}

/// Copies the pinned database to the new file `raw`, makes it durable, and lets go of the
/// pin: as soon as that is done, and on every error. `bandwidth` is in bytes a second.
///
/// # Errors
///
/// As [`Error`] says.
pub fn copy(
    pin: Pin,
    method: Method,
    raw: &Path,
    disk: &Disk,
    bandwidth: Option<u64>,
    watch: &Watch,
) -> Result<RawCopy, Error> {
    let copied = copy_pinned(&pin, method, raw, disk, bandwidth, watch);
    pin.release(watch);
    copied
}

/// As [`copy`], for a caller that has to do something between the end of the copy and the
/// end of the pin: withdraw the word that the file may be read.
///
/// # Errors
///
/// As [`Error`] says.
pub fn copy_pinned(
    pin: &Pin,
    method: Method,
    raw: &Path,
    disk: &Disk,
    bandwidth: Option<u64>,
    watch: &Watch,
) -> Result<RawCopy, Error> {
    let pace = Pace::new(bandwidth, pin, watch);
    let method = match method {
        Method::Auto if file::fits(pin) => Method::File,
        Method::Auto => Method::Pages,
        chosen => chosen,
    };
    watch.begin("copying", Some(pin.facts.bytes()));
    let sha256 = match method {
        Method::Pages => {
            pages::copy(pin, raw, disk, &pace)?;
            None
        }
        _ => Some(file::copy(pin, raw, disk, &pace)?),
    };
    // After the last byte was read, or it says nothing about that one.
    pace.pinned()?;
    Ok(RawCopy {
        path: raw.into(),
        bytes: pin.facts.bytes(),
        sha256,
        method,
        seconds: pace.began.elapsed().as_secs_f64(),
    })
}

/// How often a copy that waits looks whether its pin still stands.
const SLICE: Duration = Duration::from_millis(20);

/// Keeps a copy within its bandwidth, shows its progress and passes on that it is over.
struct Pace<'a> {
    bandwidth: Option<u64>,
    pin: &'a Pin,
    watch: &'a Watch,
    began: Instant,
}

impl<'a> Pace<'a> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a rate is measured where the bytes go by"
    )]
    fn new(bandwidth: Option<u64>, pin: &'a Pin, watch: &'a Watch) -> Self {
        Self {
            bandwidth,
            pin,
            watch,
            began: Instant::now(),
        }
    }

    /// `bytes` more were copied, `done` in all: waits until that is not too fast.
    fn advance(&self, bytes: u64, done: u64) -> Result<(), Error> {
        self.watch.advance(bytes);
        let due = self.due(done).unwrap_or_default();
        loop {
            self.go_on()?;
            let early = due.saturating_sub(self.began.elapsed());
            if early.is_zero() {
                return Ok(());
            }
            self.watch.pause(early.min(SLICE));
        }
    }

    /// How long `done` bytes should have taken.
    fn due(&self, done: u64) -> Option<Duration> {
        let nanoseconds = u128::from(done) * 1_000_000_000 / u128::from(self.bandwidth?.max(1));
        Some(Duration::from_nanos(
            u64::try_from(nanoseconds).unwrap_or(u64::MAX),
        ))
    }

    fn go_on(&self) -> Result<(), Error> {
        match self.watch.cancelled() {
            Some(why) => Err(Error::Cancelled(why)),
            None => self.pinned(),
        }
    }

    fn pinned(&self) -> Result<(), Error> {
        self.pin.stands().then_some(()).ok_or(Error::Ended)
    }
}
