//! The raw copy: the pinned database, byte for byte, durable on disk, before the pin goes.
//!
//! ```text
//!   pin ── database file ──┬─ clone ──▶ FICLONE ─────────────▶ raw ──▶ synced
//!                          ├─ file ───▶ read_at ─▶ write past the cache ─▶ SHA-256
//!                          │                            └─▶ raw ──▶ synced as it grows
//!                          ├─ pages ──▶ backup API ─────────▶ raw ──▶ synced at the end
//!                          └─ stream ─▶ read_at ──▶ zstd ──▶ artifact, for want of room
//! ```
//!
//! `file` reads the database file itself, which the pin holds still, as fast as the disk
//! goes where announces wait for it, else with rests ([`Leisure`]). Where database and copy lie on one file system that copies on write, a clone takes
//! its place, in milliseconds. `pages` asks `SQLite` for page after page: slower by half,
//! but it depends on nothing except that the pinned connection sees its snapshot. All show
//! the same database; `pages` may count up the schema and change counters in the header.
//! [`stream()`] makes no copy; what that costs is said there.
//!
//! [`copy_beside`] is `file` in another process than the one that holds the pin, a sidecar:
//! it can see that the file changed, but not that the pin broke, so whoever holds the pin
//! has to say afterwards whether it stood.
//!
//! # What fails, and what is left then
//!
//! The pin is released on every way out, a panic included: [`copy`] owns it. A copy that is
//! cancelled ends after the chunk it is at; a sync that is under way is left to end by
//! itself. If the pin is ended under a copy ([`PinHandle::end`]), the copy fails, even had
//! it read everything: what it read may be of different times. What was
//! written so far stays at the given path, which belongs to a draft that removes itself.
//! A copy that returns `Ok` has been synced; its directory entry is the draft's concern.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::Method;
use crate::disk::{self, Disk};
#[cfg(doc)]
use crate::sqlite::PinHandle;
use crate::sqlite::{self, Pin};
use crate::verify;

mod clone;
mod ease;
mod file;
mod pages;
mod stream;
mod sync;
mod watch;

use ease::Ease;

#[cfg(test)]
mod tests;

pub use clone::possible as can_clone;
pub use stream::{Streamed, stream};
pub use watch::{Progress, Watch};

/// Bytes read and written at once by a copy that hurries, and so the most between two looks at
/// the watch. At ease it is [`disk::REQUEST`].
const CHUNK: usize = 1 << 20;

/// What a copy may take of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second that are read; `None`: as many as can be had.
    pub bandwidth: Option<u64>,
    /// For as long as what the copy may take its time, because writers go on. `None`: it hurries
    /// from the beginning.
    pub leisure: Option<Leisure>,
}

/// What a copy may take its time with: it leaves half of the time it writes to those who commit
/// to the same disk, until either is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leisure {
    /// Bytes the write-ahead log may grow by.
    pub log_growth: u64,
    /// The time.
    pub until: Instant,
}

/// A finished, durable raw copy.
#[derive(Debug, Clone, PartialEq)]
pub struct RawCopy {
    /// Where it is.
    pub path: PathBuf,
    /// Its size: exactly the pinned pages.
    pub bytes: u64,
    /// SHA-256 of what was read, in lower-case hex. `None` where nothing was read in
    /// order: for [`Way::Pages`] and [`Way::Clone`].
    pub sha256: Option<String>,
    /// How it was made.
    pub method: Way,
    /// Seconds from the call until it was durable.
    pub seconds: f64,
    /// Seconds of these it left the disk to others.
    pub rested: f64,
}

/// How a pinned database was got hold of, as manifests have it. What the operator chose
/// from is [`Method`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A clone of the file, sharing its blocks.
    Clone,
    /// The file was read through a descriptor of our own.
    File,
    /// `SQLite`'s online backup API.
    Pages,
    /// The file was read into the compressor, under the pin: there was no room for a copy.
    Stream,
    /// The server was asked for its rows: there is no file.
    Dump,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clone => "clone",
            Self::File => "file",
            Self::Pages => "pages",
            Self::Stream => "stream",
            Self::Dump => "dump",
        })
    }
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
    /// The file was written to, or replaced, while another process should have held it still.
    #[error(
        "{} changed while it was copied, so nothing can be made of the copy: another process \
         wrote to it, or the service let go of it early",
        path.display()
    )]
    Changed {
        /// The database.
        path: PathBuf,
    },
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
    /// What was streamed could not be stored, or is no sound database.
    #[error(transparent)]
    Stored(#[from] verify::Error),
    /// A helping thread panicked.
    #[error("the thread that was {0} panicked: the copy cannot be trusted")]
    Panicked(&'static str),
}

/// Copies the pinned database to the new file `raw`, makes it durable, and lets go of the
/// pin: as soon as that is done, and on every error.
///
/// # Errors
///
/// As [`Error`] says.
pub fn copy(
    pin: Pin,
    method: Method,
    raw: &Path,
    disk: &Disk,
    limits: Limits,
    watch: &Watch,
) -> Result<RawCopy, Error> {
    let copied = copy_pinned(&pin, method, raw, disk, limits, watch);
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
    limits: Limits,
    watch: &Watch,
) -> Result<RawCopy, Error> {
    let still = still(pin);
    let pace = Pace::new(limits.bandwidth, &still, watch);
    watch.begin("copying", Some(pin.facts.bytes()));
    let source = match method {
        Method::Pages => None,
        Method::File => Some(file::open(pin)?),
        Method::Auto => file::open(pin).ok(),
    };
    let mut rested = Duration::ZERO;
    let (method, sha256) = match source {
        None => {
            pages::copy(pin, raw, disk, &pace)?;
            (Way::Pages, None)
        }
        Some(file) => {
            let target = disk.create(raw)?;
            if clone::copy(file, pin.facts.bytes(), &target, disk, &pace)? {
                (Way::Clone, None)
            } else {
                let ease = limits
                    .leisure
                    .map(|leisure| Ease::begin(file, pin.path(), leisure));
                if ease.is_none() {
                    disk::set_readahead(file, true);
                }
                let source = file::Source {
                    path: pin.path(),
                    bytes: pin.facts.bytes(),
                    ease,
                    read: &|buffer, offset| file.read_exact_at(buffer, offset),
                };
                let made = file::copy(&source, target, disk, &pace)?;
                rested = made.rested;
                (Way::File, Some(made.sha256))
            }
        }
    };
    // After the last byte was read, or it says nothing about that one.
    (pace.still)()?;
    Ok(RawCopy {
        path: raw.into(),
        bytes: pin.facts.bytes(),
        sha256,
        method,
        seconds: pace.began.elapsed().as_secs_f64(),
        rested: rested.as_secs_f64(),
    })
}

/// Clones the pinned database to the new file `raw` and makes it durable, in milliseconds.
/// `None` if it cannot be: the file system refuses, and `raw` is empty then; or, with
/// [`Method::Auto`], the file is longer than its pages.
///
/// # Errors
///
/// As [`Error`] says.
pub fn clone_pinned(
    pin: &Pin,
    method: Method,
    raw: &Path,
    disk: &Disk,
    watch: &Watch,
) -> Result<Option<RawCopy>, Error> {
    let still = still(pin);
    let pace = Pace::new(None, &still, watch);
    let bytes = pin.facts.bytes();
    watch.begin("cloning", Some(bytes));
    let file = match file::open(pin) {
        Err(error @ Error::Size { .. }) if method == Method::Auto => {
            tracing::debug!(%error, "no clone");
            return Ok(None);
        }
        file => file?,
    };
    let target = disk.create(raw)?;
    if !clone::copy(file, bytes, &target, disk, &pace)? {
        return Ok(None);
    }
    (pace.still)()?;
    Ok(Some(RawCopy {
        path: raw.into(),
        bytes,
        sha256: None,
        method: Way::Clone,
        seconds: pace.began.elapsed().as_secs_f64(),
        rested: 0.0,
    }))
}

/// Copies a database file that another process holds still to the new file `raw`, and makes
/// it durable, hurrying: of who writes meanwhile only that process knows. `bytes` is what its
/// pages take, as that process says, `bandwidth` is in bytes a second. The copy is good only if that process says afterwards that the file was still
/// throughout.
///
/// **Never in the process that has the database open**: the descriptor that is closed here
/// would take the locks of its connections along.
///
/// # Errors
///
/// As [`Error`] says; [`Error::Changed`] as soon as the file's metadata show a change.
pub fn copy_beside(
    path: &Path,
    bytes: u64,
    raw: &Path,
    disk: &Disk,
    bandwidth: Option<u64>,
    watch: &Watch,
) -> Result<RawCopy, Error> {
    let file = disk.open(path)?;
    let before = Stamp::of(path)?;
    if before.bytes != bytes {
        return Err(Error::Size {
            path: path.into(),
            expected: bytes,
            found: before.bytes,
        });
    }
    let changed = || Error::Changed { path: path.into() };
    let still = || {
        (Stamp::of(path)? == before)
            .then_some(())
            .ok_or_else(changed)
    };
    let pace = Pace::new(bandwidth, &still, watch);
    watch.begin("copying", Some(bytes));
    let source = file::Source {
        path,
        bytes,
        ease: None,
        read: &|buffer, offset| file.read_exact_at(buffer, offset),
    };
    let sha256 = file::copy(&source, disk.create(raw)?, disk, &pace)?.sha256;
    // After the last byte was read, or it says nothing about that one.
    still()?;
    Ok(RawCopy {
        path: raw.into(),
        bytes,
        sha256: Some(sha256),
        method: Way::File,
        seconds: pace.began.elapsed().as_secs_f64(),
        rested: 0.0,
    })
}

/// What of a file changes when it is written to or replaced, from metadata.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    written: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, Error> {
        let found = fs::metadata(path).map_err(|source| Error::Io {
            doing: "look at",
            path: path.into(),
            source,
        })?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            written: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// Fails once a file is no longer held still. Each thread of a copy asks.
pub(crate) type Still<'a> = dyn Fn() -> Result<(), Error> + Sync + 'a;

/// Whether the pin stands.
fn still(pin: &Pin) -> impl Fn() -> Result<(), Error> + Sync {
    || pin.stands().then_some(()).ok_or(Error::Ended)
}

/// How often a copy that waits looks whether its pin still stands.
const SLICE: Duration = Duration::from_millis(20);

/// Keeps a copy within its bandwidth, shows its progress and passes on that it is over.
pub(crate) struct Pace<'a> {
    bandwidth: Option<u64>,
    /// Whether the file is still held still.
    still: &'a Still<'a>,
    watch: &'a Watch,
    began: Instant,
}

impl<'a> Pace<'a> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a rate is measured where the bytes go by"
    )]
    pub(crate) fn new(bandwidth: Option<u64>, still: &'a Still<'a>, watch: &'a Watch) -> Self {
        Self {
            bandwidth,
            still,
            watch,
            began: Instant::now(),
        }
    }

    /// `bytes` more were copied, `done` in all: waits until that is not too fast.
    fn advance(&self, bytes: u64, done: u64) -> Result<(), Error> {
        self.watch.advance(bytes);
        self.keep(done)
    }

    /// Waits until `done` bytes in all are not too fast.
    pub(crate) fn keep(&self, done: u64) -> Result<(), Error> {
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

    /// Seconds since it began.
    pub(crate) fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
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
            None => (self.still)(),
        }
    }
}
