//! What a run does to a SQLite database: the driver's [`Engine`] with real parts.
//!
//! ```text
//!  prepare   facts · room on the disk · how long would announces wait? · draft · PASSIVE checkpoint
//!  pin       the recipe of `sqlite`
//!  copy      raw copy, durable
//!  release   the pin ends, the log is shrunk; beside what follows
//!  finish    structure and rows of the copy · compress · read back · publish · prune
//! ```
//!
//! Where a sidecar copies (`backup.taken_by`), there is no draft, and the pin is watched
//! instead of read from: [`Engine::broken`].
//!
//! What makes a copy a backup is [`crate::publication`]'s.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::catalogue::{Catalogue, Draft, Manifest};
use crate::config::{self, Announces, Compression, Settings, TakenBy};
use crate::disk::Disk;
use crate::driver::{Engine, LOG_TARGET, NotPinned, Pauses, Pinned, Published};
use crate::publication::{Made, Publisher};
use crate::snapshot::{self, RawCopy, Watch};
use crate::sqlite::{self, Database, Facts, Pin, PinError, PinHandle, Seal};
use crate::status::PinnedFile;
use crate::window::{Cause, Failure, Pause, Run};

/// Bytes a second a copy is expected to reach before one has been measured: what a plain
/// virtual disk gives. Too low an estimate refuses a run that would have fitted, which is
/// said; too high a one closes the gate for nothing.
const UNMEASURED_RATE: f64 = 150e6;

/// Of the database's size, what a compressed copy is reckoned to take until one is known.
const UNMEASURED_RATIO: f64 = 0.6;

/// Copies smaller than this many bytes are not measured by.
const TELLING: u64 = 16 << 20;

/// How many of the last backups are measured by.
const RECENT: usize = 5;

/// Bytes for the manifest and the file system's own.
const SLACK: u64 = 1 << 20;

/// A run on a SQLite database, with a catalogue to publish to.
#[derive(Debug)]
pub struct BackupEngine {
    database: Database,
    catalogue: Catalogue,
    disk: Disk,
    backup: config::Backup,
    announces: Announces,
    service: String,
    last_facts: Mutex<Facts>,
    /// Bytes the write-ahead log's file had when the pin was taken.
    wal_at_pin: AtomicU64,
    /// The last pin, to be ended from outside should the copy hang.
    pinned: Mutex<Option<PinHandle>>,
    /// The last pin and its file, as they are to be found while a sidecar copies.
    sealed: Mutex<Option<Seal>>,
    /// The release of the last pin, which gives way to the next run.
    releasing: Mutex<Watch>,
}

/// What a run is reckoned to cost, before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// For how long announces have to wait.
    pub pause: Pause,
    /// Bytes needed in the catalogue's directory while the backup is made.
    pub room: u64,
}

/// The raw copy and what was pinned.
#[derive(Debug)]
pub struct Copied {
    raw: RawCopy,
    facts: Facts,
    pinned: DateTime<Utc>,
    read_mark_zero: Option<bool>,
}

impl BackupEngine {
    /// An engine for `database`, as the settings say.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn new(
        database: Database,
        catalogue: Catalogue,
        disk: Disk,
        settings: &Settings,
        service: String,
    ) -> Result<Self, sqlite::Error> {
        let facts = database.facts()?;
        Ok(Self {
            database,
            catalogue,
            disk,
            backup: settings.backup.clone(),
            announces: settings.announces,
            service,
            last_facts: Mutex::new(facts),
            wal_at_pin: AtomicU64::new(0),
            pinned: Mutex::default(),
            sealed: Mutex::default(),
            releasing: Mutex::default(),
        })
    }

    /// What a run on this database costs.
    fn forecast(&self, facts: &Facts) -> Result<Forecast, Failure> {
        let blocks_writers = facts.journal.blocks_writers();
        if self.announces == Announces::Serve && blocks_writers {
            return Err(Failure {
                cause: Cause::Other,
                message: format!(
                    "announces = \"serve\" needs a database in WAL mode, and {} is in journal mode \
                     {}; set journal_mode = \"wal\" or announces = \"auto\"",
                    facts.path.display(),
                    facts.journal
                ),
            });
        }
        let earlier = match (self.catalogue.backups(), self.backup.taken_by) {
            (Ok(earlier), _) => earlier,
            // A sidecar's catalogue may be where this process does not see it.
            (Err(_), TakenBy::Sidecar) => Vec::new(),
            (Err(error), TakenBy::Tracker) => return Err(Failure::other(&error)),
        };
        let earlier: Vec<_> = earlier.iter().map(|backup| &backup.manifest).collect();
        Ok(Forecast::of(
            facts.bytes(),
            blocks_writers,
            self.announces,
            &self.backup,
            &earlier,
        ))
    }

    /// Refuses a run the disk has no room for, before anything waits for it.
    fn check_room(&self, needed: u64) -> Result<(), Failure> {
        let directory = self.catalogue.directory();
        let free = self
            .disk
            .free_bytes(directory)
            .map_err(|error| Failure::other(&error))?;
        if free >= needed {
            return Ok(());
        }
        Err(Failure {
            cause: Cause::Other,
            message: format!(
                "{} has {} free and a backup needs about {} there while it is made (the raw copy \
                 and the compressed one); free space, keep fewer backups or choose another \
                 directory",
                directory.display(),
                bytesize::ByteSize(free),
                bytesize::ByteSize(needed)
            ),
        })
    }

    fn facts(&self) -> Result<Facts, Failure> {
        let facts = self
            .database
            .facts()
            .map_err(|error| Failure::other(&error))?;
        self.remember(&facts);
        Ok(facts)
    }

    fn releasing(&self) -> MutexGuard<'_, Watch> {
        self.releasing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn sealed(&self) -> MutexGuard<'_, Option<Seal>> {
        self.sealed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pinned(&self) -> MutexGuard<'_, Option<PinHandle>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, facts: &Facts) {
        *self
            .last_facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = facts.clone();
    }
}

impl Engine for BackupEngine {
    type Draft = Draft;
    type Pin = Pin;
    type Copy = Copied;

    fn prepare(&self, run: &Run, _watch: &Watch) -> Result<(Pause, Option<Draft>), Failure> {
        // Its connections and the disk are needed now; the log can be shrunk after this run.
        self.releasing().cancel("another run begins");
        let facts = self.facts()?;
        let Forecast { pause, room } = self.forecast(&facts)?;
        let draft = match self.backup.taken_by {
            TakenBy::Sidecar => None,
            TakenBy::Tracker => {
                self.check_room(room)?;
                let draft = self.catalogue.begin(run.began);
                Some(draft.map_err(|error| Failure::other(&error))?)
            }
        };
        // What is checkpointed now need not be while the gate is closed.
        self.database
            .checkpoint_before()
            .map_err(|error| Failure::other(&error))?;
        Ok((pause, draft))
    }

    fn pin(&self, _run: &Run, limit: Duration, watch: &Watch) -> Result<Pin, NotPinned> {
        *self.pinned() = None;
        *self.sealed() = None;
        let pin = self
            .database
            .pin(limit, watch)
            .map_err(|error| match error {
                PinError::Busy(why) => NotPinned::Busy(why),
                PinError::Failed(error) => NotPinned::Failed(Failure::other(&error)),
            })?;
        let seal = Seal::of(&pin).map_err(|error| NotPinned::Failed(Failure::other(&error)))?;
        *self.sealed() = Some(seal);
        *self.pinned() = Some(pin.handle());
        self.remember(&pin.facts);
        let wal = self.database.wal_bytes().unwrap_or(0);
        self.wal_at_pin.store(wal, Ordering::Relaxed);
        Ok(pin)
    }

    fn describe(&self, pin: &Pin) -> Pinned {
        let sealed = self.sealed();
        let facts = &pin.facts;
        Pinned {
            file: PinnedFile {
                device: facts.device,
                inode: facts.inode,
                page_size: facts.page_size,
                page_count: facts.page_count,
                bytes: sealed.as_ref().map_or(facts.bytes(), Seal::bytes),
            },
            taken: pin.taken,
        }
    }

    fn broken(&self) -> Option<Failure> {
        let why = match self.sealed().as_ref() {
            Some(seal) => seal.broken()?,
            None => "nothing is pinned".to_owned(),
        };
        Some(Failure {
            cause: Cause::BrokenPin,
            message: format!("{why}; what was copied cannot be trusted"),
        })
    }

    fn copy(&self, _run: &Run, draft: &Draft, pin: &Pin, watch: &Watch) -> Result<Copied, Failure> {
        let facts = pin.facts.clone();
        let pinned = pin.taken;
        let read_mark_zero = pin.read_mark_zero;
        let config::Backup {
            method, bandwidth, ..
        } = self.backup;
        let raw =
            snapshot::copy_pinned(pin, method, &draft.raw_path(), &self.disk, bandwidth, watch)
                .map_err(|error| Failure::other(&error))?;
        Ok(Copied {
            raw,
            facts,
            pinned,
            read_mark_zero,
        })
    }

    fn release(&self, pin: Pin) {
        let watch = Watch::default();
        *self.releasing() = watch.clone();
        pin.release(&watch);
        if let Err(error) = self.database.shrink_wal(&watch) {
            tracing::warn!(
                target: LOG_TARGET,
                "The write-ahead log was not shrunk: {error}; it is reused, and shrunk after a \
                 later run"
            );
        }
    }

    fn finish(
        &self,
        run: &Run,
        draft: Draft,
        copied: Copied,
        pauses: Pauses,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        let Copied {
            raw,
            facts,
            pinned,
            read_mark_zero,
        } = copied;
        let made = Made {
            run: run.id.clone(),
            began: run.began,
            pinned,
            facts,
            read_mark_zero,
            pause: pauses.total,
        };
        Publisher {
            catalogue: &self.catalogue,
            disk: &self.disk,
            backup: &self.backup,
            service: &self.service,
        }
        .publish(draft, &raw, made, watch)
    }

    fn pinned_too_long(&self) -> Option<Failure> {
        // The log's file never shrinks by itself, so what counts is by how much it grew.
        let before = self.wal_at_pin.load(Ordering::Relaxed);
        let grown = self.database.wal_bytes().ok()?.saturating_sub(before);
        let limit = self.backup.wal_limit;
        (grown > limit).then(|| Failure {
            cause: Cause::WalLimit,
            message: format!(
                "the write-ahead log grew by {} while the file was pinned, past \
                 backup.wal_limit = {}; raise the limit if the disk has room, or make the copy \
                 faster",
                bytesize::ByteSize(grown),
                bytesize::ByteSize(limit)
            ),
        })
    }

    fn end_pin(&self, within: Duration) -> bool {
        let handle = self.pinned().take();
        // Without a handle it is not known what a pin that hangs may hold.
        handle.is_some_and(|handle| handle.end(within))
    }

    fn journal_mode(&self) -> String {
        let facts = self
            .last_facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        facts.journal.to_string()
    }
}

impl Forecast {
    /// Of a run on `bytes` of database. `earlier` are the manifests of earlier backups,
    /// newest first: what was measured then is the best there is to reckon with.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate"
    )]
    pub fn of(
        bytes: u64,
        blocks_writers: bool,
        announces: Announces,
        backup: &config::Backup,
        earlier: &[&Manifest],
    ) -> Self {
        let pause = if blocks_writers || announces == Announces::Pause {
            let rate = measured_rate(earlier);
            let rate = backup
                .bandwidth
                .map_or(rate, |limit| rate.min(limit as f64));
            Pause::UntilCopied(Duration::from_secs_f64(bytes as f64 / rate))
        } else {
            Pause::UntilPinned
        };
        let ratio = match backup.compression {
            Compression::None => 0.0, // the raw copy becomes the artifact
            Compression::Zstd(_) => earlier.first().map_or(UNMEASURED_RATIO, |last| {
                last.database.stored_bytes as f64 / last.database.raw_bytes.max(1) as f64
            }),
        };
        let room = bytes + (bytes as f64 * ratio) as u64 + SLACK;
        Self { pause, room }
    }
}

/// Bytes a second: the best of the last few copies. The best, because one slow night must
/// not keep the next run from beginning, and with it from measuring anew.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn measured_rate(earlier: &[&Manifest]) -> f64 {
    earlier
        .iter()
        // A copy that took no time says nothing about a larger one, and one that was
        // slowed down on purpose nothing about what the disk can do.
        .filter(|manifest| manifest.database.raw_bytes >= TELLING && manifest.bandwidth.is_none())
        .take(RECENT)
        .map(|manifest| manifest.database.raw_bytes as f64 / manifest.copy_seconds.max(0.001))
        .reduce(f64::max)
        .unwrap_or(UNMEASURED_RATE)
}

#[cfg(test)]
mod tests;
