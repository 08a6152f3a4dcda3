//! What a run does to a SQLite database: the driver's [`Engine`] with real parts.
//!
//! ```text
//!  prepare   facts · clones? · files · room on the disk · how long would announces wait? · draft · PASSIVE checkpoint
//!  pin       to WAL first, if that was ordered (`switch`); the recipe of `sqlite`
//!  copy      raw copy, durable; or streamed into the compressor, where there is no room for one
//!            or none is to be, because backups are encrypted
//!  release   the pin ends, the log is shrunk; beside what follows
//!  finish    structure and rows of the copy · compress · read back · publish · prune
//! ```
//!
//! Where a sidecar copies (`backup.taken_by`), there is no draft, and the pin is watched
//! instead of read from: [`Engine::broken`].
//!
//! What makes a copy a backup is [`crate::publication`]'s.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use crate::catalogue::{Catalogue, Draft};
use crate::config::{self, Announces, JournalMode, Method, Settings, TakenBy};
use crate::disk::{self, Disk};
use crate::driver::{Engine, LOG_TARGET, NotPinned, Pauses, Pinned, Published};
use crate::excerpt;
use crate::priority::{self, Work};
use crate::publication::{self, Made, Publisher};
use crate::snapshot::{self, Leisure, Limits, RawCopy, Streamed, Watch, Way};
use crate::sqlite::{self, Database, Facts, Journal, Pin, PinError, PinHandle, Seal};
use crate::status::PinnedFile;
use crate::switch::NoSwitch;
use crate::window::{Cause, Failure, Pause, Run, Trigger};

mod estimate;
pub(crate) mod forecast;
mod pace;
pub(crate) mod room;

pub use estimate::{Estimate, Refusal, Subject};
pub use forecast::{Basis, Forecast, Known, Streaming, Taking};
use pace::Pace;

/// What part of the limit to the log's growth, and of what is left of the window, a copy may take
/// its time with: it hurries in time to keep within both.
const LEISURE: u32 = 4;

/// A run on a SQLite database, with a catalogue to publish to.
#[derive(Debug)]
pub struct BackupEngine {
    database: Database,
    catalogue: Catalogue,
    disk: Disk,
    backup: config::Backup,
    announces: Announces,
    /// The journal mode that the next start applies.
    configured: JournalMode,
    service: String,
    last_facts: Mutex<Facts>,
    /// Bytes the write-ahead log's file had when the pin was taken.
    wal_at_pin: AtomicU64,
    /// The last pin, to be ended from outside should the copy hang.
    pinned: Mutex<Option<PinHandle>>,
    /// The last pin and its file, as they are to be found while a sidecar copies.
    sealed: Mutex<Option<Seal>>,
    /// How long announces had to wait for copies.
    pace: Mutex<Pace>,
    /// The release of the last pin, which gives way to the next run.
    releasing: Mutex<Watch>,
    /// Whether the database could not be cloned once, though a file beside it could: then that
    /// is not reckoned with again.
    refused_to_clone: AtomicBool,
}

/// A run that may begin.
#[derive(Debug)]
pub struct Prepared {
    draft: Draft,
    /// How the database is to be got hold of.
    way: Way,
}

/// What was got hold of, and what was pinned.
#[derive(Debug)]
pub struct Copied {
    held: Held,
    facts: Facts,
    pinned: DateTime<Utc>,
    read_mark_zero: Option<bool>,
    /// Bytes the log grew by meanwhile.
    wal_growth: Option<u64>,
}

#[derive(Debug)]
enum Held {
    Raw(RawCopy),
    Streamed(Streamed),
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
            configured: settings.journal_mode,
            service,
            last_facts: Mutex::new(facts),
            wal_at_pin: AtomicU64::new(0),
            pinned: Mutex::default(),
            sealed: Mutex::default(),
            pace: Mutex::default(),
            releasing: Mutex::default(),
            refused_to_clone: AtomicBool::new(false),
        })
    }

    /// What a run on this database costs.
    fn estimate(
        &self,
        facts: &Facts,
        trigger: Trigger,
        watch: &Watch,
    ) -> Result<Estimate, Failure> {
        let taken_here = self.backup.taken_by == TakenBy::Tracker;
        let earlier = if taken_here {
            self.catalogue
                .backups()
                .map_err(|error| Failure::other(&error))?
        } else {
            // A sidecar's catalogue may be where this process does not see it, or on a volume
            // that hangs.
            Vec::new()
        };
        let earlier: Vec<_> = earlier.iter().map(|backup| &backup.manifest).collect();
        // A sidecar brings tools of its own, and a clone is no promise of theirs.
        let clones = taken_here
            && self.backup.method != Method::Pages
            && !self.refused_to_clone.load(Ordering::Relaxed)
            && snapshot::can_clone(&facts.path, self.catalogue.directory(), &self.disk);
        let subject = Subject {
            database: &facts.path,
            bytes: facts.bytes(),
            journal: facts.journal,
            clones,
            announces: self.announces,
            backup: &self.backup,
            earlier: &earlier,
        };
        let mut estimate = subject.estimate(&self.disk, watch).map_err(refused)?;
        let forecast = &mut estimate.forecast;
        // Who begins one by hand knows why: the sidecar is back, the disk another.
        if trigger != Trigger::Operator
            && let Pause::UntilCopied(_) = forecast.pause
            && let Some(learned) = self.pace().expect(facts.bytes())
        {
            // Of our own copies only those are learned from that were not done in time: what the
            // manifests say is then the least.
            let time = if taken_here {
                learned.max(forecast.copy.time)
            } else {
                learned
            };
            forecast.copy.time = time;
            forecast.pause = Pause::UntilCopied(time);
        }
        Ok(estimate)
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publisher(&self) -> Publisher<'_> {
        Publisher {
            catalogue: &self.catalogue,
            disk: &self.disk,
            backup: &self.backup,
            service: &self.service,
        }
    }

    /// What a run that copies and publishes itself begins with. Refuses one the disk has no
    /// room for, before anything waits for it.
    fn begin(&self, run: &Run, estimate: &Estimate) -> Result<Prepared, Failure> {
        let way = estimate.way().map_err(refused)?;
        if let Some(partial) = &self.backup.partial {
            excerpt::check(&self.database, partial).map_err(|error| Failure::other(&error))?;
        }
        let seal = self.publisher().seal()?;
        let draft = self
            .catalogue
            .begin(run.began)
            .map_err(|error| Failure::other(&error))?
            .sealed(seal);
        Ok(Prepared { draft, way })
    }

    /// Where a run takes room: for the backup, and for the log that grows under the pin.
    fn places(&self, facts: &Facts) -> Vec<PathBuf> {
        let catalogue = self.catalogue.directory().to_owned();
        let log = beside_database(facts);
        [catalogue].into_iter().chain(log).collect()
    }

    /// Bytes the log's file grew by since the pin was taken. It never shrinks by itself, so what
    /// counts is not how long it is.
    fn wal_growth(&self) -> Option<u64> {
        let before = self.wal_at_pin.load(Ordering::Relaxed);
        Some(self.database.wal_bytes().ok()?.saturating_sub(before))
    }

    /// What a copy may take its time with; `None` where announces wait for it.
    #[expect(
        clippy::disallowed_methods,
        reason = "a part of what is left until a deadline the window has set"
    )]
    fn leisure(&self, run: &Run, pin: &Pin) -> Option<Leisure> {
        let waits = pin.facts.journal.blocks_writers() || self.announces == Announces::Pause;
        let now = Instant::now();
        (!waits).then(|| Leisure {
            log_growth: self.backup.wal_limit / u64::from(LEISURE),
            until: now + run.ends.saturating_duration_since(now) / LEISURE,
        })
    }

    /// Takes the database over to WAL, as was ordered, and says how much of the limit is left.
    fn switch(&self, limit: Duration, watch: &Watch) -> Result<Duration, NotPinned> {
        let left = self
            .database
            .switch_to_wal(limit, watch)
            .map_err(not_pinned)?;
        // Said at once: whatever becomes of the run, that is done.
        self.last_facts().journal = Journal::Wal;
        Ok(left)
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

    fn last_facts(&self) -> MutexGuard<'_, Facts> {
        self.last_facts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, facts: &Facts) {
        *self.last_facts() = facts.clone();
    }
}

impl Engine for BackupEngine {
    type Draft = Prepared;
    type Pin = Pin;
    type Copy = Copied;

    fn prepare(&self, run: &Run, watch: &Watch) -> Result<(Pause, Option<Prepared>), Failure> {
        // Its connections and the disk are needed now; the log can be shrunk after this run.
        self.releasing().cancel("another run begins");
        let mut facts = self.facts()?;
        if run.to_wal && facts.journal != Journal::Wal {
            // On the database itself it would be found out too late.
            sqlite::try_wal(&facts.path, facts.journal, &self.disk)
                .map_err(|error| Failure::other(&error))?;
            // As it will be when it is copied, or what cannot be held for the copy could never go
            // over to what need not be.
            facts.journal = Journal::Wal;
        }
        let estimate = self.estimate(&facts, run.trigger, watch)?;
        let prepared = match self.backup.taken_by {
            TakenBy::Sidecar => None,
            TakenBy::Tracker => Some(self.begin(run, &estimate)?),
        };
        let forecast = &estimate.forecast;
        let way = prepared.as_ref().map_or(forecast.way, |it| it.way);
        // What is checkpointed now need not be while the gate is closed.
        self.database
            .checkpoint_before()
            .map_err(|error| Failure::other(&error))?;
        Ok((forecast.pause_of(way), prepared))
    }

    fn pin(&self, run: &Run, limit: Duration, watch: &Watch) -> Result<Pin, NotPinned> {
        *self.pinned() = None;
        *self.sealed() = None;
        let limit = if run.to_wal {
            self.switch(limit, watch)?
        } else {
            limit
        };
        let pin = self.database.pin(limit, watch).map_err(not_pinned)?;
        if run.to_wal && pin.facts.journal.blocks_writers() {
            // The gate would open, and no announce could write.
            let why = "another program took the database out of WAL mode again";
            return Err(NotPinned::Busy(why.to_owned()));
        }
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
            file: Some(PinnedFile {
                device: facts.device,
                inode: facts.inode,
                page_size: facts.page_size,
                page_count: facts.page_count,
                bytes: sealed.as_ref().map_or(facts.bytes(), Seal::bytes),
                modified: sealed.as_ref().map_or(0, Seal::modified),
            }),
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

    fn held_for_copy(&self, held: Duration, done: bool) {
        let bytes = self.last_facts().bytes();
        self.pace().learn(bytes, held, done);
    }

    fn copy(
        &self,
        run: &Run,
        prepared: &Prepared,
        pin: &Pin,
        watch: &Watch,
    ) -> Result<Copied, Failure> {
        let Prepared { draft, way } = prepared;
        let config::Backup {
            method,
            bandwidth,
            io_priority,
            ..
        } = self.backup;
        priority::of_disk(Work::Writing, io_priority);
        let raw = draft.raw_path();
        let disk = &draft.disk(&self.disk);
        let taken = || match way {
            Way::Stream => {
                let compression = self.backup.compression;
                let artifact = draft.artifact_path(&compression);
                let seal = draft.seal();
                snapshot::stream(pin, &artifact, compression, seal, disk, bandwidth, watch)
                    .map(Held::Streamed)
                    .map_err(failed)
            }
            // Room and pause were reckoned for a clone, so a copy must not take its place.
            Way::Clone => {
                let cloned = snapshot::clone_pinned(pin, method, &raw, disk, watch);
                cloned.map_err(failed)?.map(Held::Raw).ok_or_else(|| {
                    self.refused_to_clone.store(true, Ordering::Relaxed);
                    not_cloned(pin.path())
                })
            }
            Way::File | Way::Pages | Way::Dump => {
                let limits = Limits {
                    bandwidth,
                    leisure: self.leisure(run, pin),
                };
                snapshot::copy_pinned(pin, method, &raw, disk, limits, watch)
                    .map(Held::Raw)
                    .map_err(failed)
            }
        };
        let held = room::leaving_reserves(self.places(&pin.facts), watch, taken)?;
        // It can be done; the manifest will tell how fast.
        *self.pace() = Pace::default();
        let in_wal = !pin.facts.journal.blocks_writers();
        Ok(Copied {
            held,
            facts: pin.facts.clone(),
            pinned: pin.taken,
            read_mark_zero: pin.read_mark_zero,
            wal_growth: self.wal_growth().filter(|_| in_wal),
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
        Prepared { draft, .. }: Prepared,
        copied: Copied,
        pauses: Pauses,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        let Copied {
            held,
            facts,
            pinned,
            read_mark_zero,
            wal_growth,
        } = copied;
        let made = Made {
            run: run.id.clone(),
            began: run.began,
            pinned,
            facts,
            read_mark_zero,
            pause: pauses.total,
            wal_growth,
        };
        let publisher = self.publisher();
        priority::of_processor();
        // The log does not grow any more.
        publisher.leaving_reserve(watch, || match held {
            Held::Raw(raw) => publisher.publish(draft, &raw, made, watch),
            Held::Streamed(streamed) => publisher.publish_streamed(draft, streamed, made, watch),
        })
    }

    fn grown_under_pin(&self) -> Option<u64> {
        self.wal_growth()
    }

    fn pinned_too_long(&self) -> Option<Failure> {
        let grown = self.wal_growth()?;
        let limit = self.backup.wal_limit;
        if grown <= limit {
            // Of what a sidecar does to it no thread of this process keeps count.
            return match self.backup.taken_by {
                TakenBy::Sidecar => room::shortage(&beside_database(&self.last_facts())),
                TakenBy::Tracker => None,
            };
        }
        Some(Failure {
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
        self.last_facts().journal.to_string()
    }

    fn can_switch(&self) -> Result<(), NoSwitch> {
        match self.configured {
            JournalMode::Delete => Err(NoSwitch::Configured),
            JournalMode::Keep | JournalMode::Wal => Ok(()),
        }
    }
}

/// Where the log grows under a pin, if there is one.
fn beside_database(facts: &Facts) -> Vec<PathBuf> {
    let in_wal = !facts.journal.blocks_writers();
    let directory = in_wal.then(|| disk::parent(&facts.path).to_owned());
    directory.into_iter().collect()
}

fn not_pinned(error: PinError) -> NotPinned {
    match error {
        PinError::Busy(why) => NotPinned::Busy(why),
        PinError::Failed(error) => NotPinned::Failed(Failure::other(&error)),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "handed to `map_err`")]
fn refused(refusal: Refusal) -> Failure {
    Failure {
        cause: match refusal {
            Refusal::NoRoom { .. } | Refusal::NoRoomForLog { .. } => Cause::NoRoom,
            _ => Cause::Other,
        },
        message: refusal.to_string(),
    }
}

fn not_cloned(path: &Path) -> Failure {
    Failure {
        cause: Cause::Other,
        message: format!(
            "a file beside {} could be cloned, but not that one, and there was no room or time set \
             aside for a copy; the next run reckons with a copy",
            path.display()
        ),
    }
}

/// A damaged database is told apart, as it is when a copy of it is checked.
fn failed(error: snapshot::Error) -> Failure {
    match error {
        snapshot::Error::Stored(error) => publication::unverified(error),
        error => Failure::other(&error),
    }
}

#[cfg(test)]
mod tests;
