//! What a run does to a MySQL or MariaDB database: the driver's [`Engine`] with real parts.
//!
//! ```text
//!  prepare   programs · tables and engines · files · room · how long would announces wait? · rehearsal · draft
//!  pin       the dump begins, up to its first table
//!  copy      its text, counted, summed and compressed, durable
//!  release   the program has ended
//!  finish    read back, rows counted again · publish · prune
//! ```
//!
//! Which tables there are is looked at in every run: a MyISAM table that was made since the
//! last one keeps the gate closed in this one, and says so.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::dump::Consistency;
use super::process::Handle;
use super::{Address, Client, Dump, Error, Rows, forecast};
use crate::catalogue::{Artifact, Catalogue, Draft};
use crate::config::{self, Announces, Compression, Settings};
use crate::disk::Disk;
use crate::driver::{Engine, LOG_TARGET, NotPinned, Pauses, Pinned, Published};
use crate::engine::room;
use crate::priority::{self, Work};
use crate::publication::{self, DumpMade, Publisher};
use crate::snapshot::{Pace, Watch};
use crate::verify::{self, Encoding};
use crate::window::{Cause, Failure, Pause, Run};

/// How long a rehearsal may take; the gate is open.
const REHEARSE_WITHIN: Duration = Duration::from_secs(60);

/// A run on a MySQL or MariaDB database, with a catalogue to publish to.
#[derive(Debug)]
pub struct DumpEngine {
    address: Address,
    catalogue: Catalogue,
    disk: Disk,
    backup: config::Backup,
    announces: Announces,
    service: String,
    /// What this run was prepared for.
    planned: Mutex<Option<Planned>>,
    /// The dump that runs, to be ended from outside should it hang.
    running: Mutex<Option<Handle>>,
}

#[derive(Debug, Clone)]
struct Planned {
    client: Client,
    server: String,
    consistency: Consistency,
    /// What is told of it, though it is good.
    warning: Option<String>,
}

/// A dump that has its snapshot, or its locks. Dropped, it is ended.
#[derive(Debug)]
pub struct DumpPin {
    dump: Mutex<Dump>,
    taken: DateTime<Utc>,
    planned: Planned,
}

/// A dump that is on the disk.
#[derive(Debug)]
pub struct Dumped {
    artifact: Artifact,
    rows: Rows,
    seconds: f64,
    pinned: DateTime<Utc>,
    planned: Planned,
}

impl DumpEngine {
    /// An engine for the database at `address`, as the settings say. Asks it nothing yet.
    #[must_use]
    pub fn new(
        address: Address,
        catalogue: Catalogue,
        disk: Disk,
        settings: &Settings,
        service: String,
    ) -> Self {
        Self {
            address,
            catalogue,
            disk,
            backup: settings.backup.clone(),
            announces: settings.announces,
            service,
            planned: Mutex::default(),
            running: Mutex::default(),
        }
    }

    fn publisher(&self) -> Publisher<'_> {
        Publisher {
            catalogue: &self.catalogue,
            disk: &self.disk,
            backup: &self.backup,
            service: &self.service,
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Handle>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self) -> MutexGuard<'_, Option<Planned>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the disk has room for so many bytes, and what a run leaves of it.
    fn check_room(&self, bytes: u64) -> Result<(), Failure> {
        let directory = self.catalogue.directory();
        let space = self
            .disk
            .space(directory)
            .map_err(|error| Failure::other(&error))?;
        let needed = bytes.saturating_add(room::reserve(space));
        if space.free >= needed {
            return Ok(());
        }
        Err(Failure {
            cause: Cause::NoRoom,
            message: format!(
                "{} has {} free and a dump needs about {} there (with the other files and a \
                 reserve); free space (`torrust-maintenance prune` removes what backup.keep does \
                 not keep), keep fewer backups or choose another directory",
                directory.display(),
                bytesize::ByteSize(space.free),
                bytesize::ByteSize(needed),
            ),
        })
    }

    /// Streams the dump into its artifact.
    fn store(
        &self,
        draft: &Draft,
        dump: &mut Dump,
        watch: &Watch,
    ) -> Result<(Artifact, Rows, f64), Failure> {
        let still = || Ok(());
        let pace = Pace::new(self.backup.bandwidth, &still, watch);
        let keep = |done| pace.keep(done).map_err(std::io::Error::other);
        let path = draft.dump_path(&self.backup.compression);
        let source = PathBuf::from(self.address.to_string());
        watch.begin("dumping", None);
        let mut text = dump.text(&keep, watch);
        let encoding = Encoding::patient(self.backup.compression).sealed(draft.seal());
        let disk = &draft.disk(&self.disk);
        let stored = verify::compress_from(&mut text, &source, None, &path, encoding, disk, watch);
        // That the dump failed says more than that its text ended.
        let rows = text.rows().map_err(failed)?;
        let artifact = stored.map_err(publication::unverified)?;
        let rows = rows.ok_or_else(|| Failure {
            cause: Cause::Other,
            message: "the dump was not read to its end; this is a defect, please report it".into(),
        })?;
        Ok((artifact, rows, pace.seconds()))
    }
}

impl Engine for DumpEngine {
    type Draft = Draft;
    type Pin = DumpPin;
    type Copy = Dumped;

    fn prepare(&self, run: &Run, watch: &Watch) -> Result<(Pause, Option<Draft>), Failure> {
        *self.planned() = None;
        let program = self.backup.dump_program.as_deref();
        let client = Client::find(self.address.clone(), program).map_err(failed)?;
        let survey = client.survey(watch).map_err(failed)?;
        let (consistency, warning) = match survey.without_snapshot() {
            None => (Consistency::Snapshot, None),
            Some(tables) => (Consistency::Locks, Some(locked(&tables))),
        };
        if let Some(warning) = &warning {
            tracing::warn!(target: LOG_TARGET, run = %run.id, "{warning}");
        }
        let backups = self
            .catalogue
            .backups()
            .map_err(|error| Failure::other(&error))?;
        let earlier: Vec<_> = backups.iter().map(|backup| &backup.manifest).collect();
        let cost = forecast::forecast(survey.bytes(), &self.backup, &earlier);
        let (files, _) = self.publisher().choose_files(Path::new(""), watch)?;
        self.check_room(cost.room.saturating_add(files.room()))?;
        Dump::rehearse(&client, consistency, REHEARSE_WITHIN, watch).map_err(failed)?;
        let waits = consistency == Consistency::Locks || self.announces == Announces::Pause;
        let seal = self.publisher().seal()?;
        let draft = self
            .catalogue
            .begin(run.began)
            .map_err(|error| Failure::other(&error))?
            .sealed(seal);
        *self.planned() = Some(Planned {
            client,
            server: survey.server,
            consistency,
            warning,
        });
        let pause = if waits {
            Pause::UntilCopied(cost.takes)
        } else {
            Pause::UntilPinned(None)
        };
        Ok((pause, Some(draft)))
    }

    fn pin(&self, _run: &Run, limit: Duration, watch: &Watch) -> Result<DumpPin, NotPinned> {
        let not_pinned = |error: Error| match error {
            // Somebody's lock may be gone at the next attempt.
            Error::Silent { .. } => NotPinned::Busy(error.to_string()),
            error => NotPinned::Failed(failed(error)),
        };
        let planned = self.planned().clone().ok_or_else(|| {
            NotPinned::Failed(Failure::other(
                &"there is no dump to begin: nothing was prepared",
            ))
        })?;
        let mut dump = Dump::start(&planned.client, planned.consistency).map_err(not_pinned)?;
        *self.running() = Some(dump.handle());
        dump.until_pinned(limit, watch).map_err(not_pinned)?;
        Ok(DumpPin {
            dump: Mutex::new(dump),
            taken: now(),
            planned,
        })
    }

    fn describe(&self, pin: &DumpPin) -> Pinned {
        Pinned {
            file: None,
            taken: pin.taken,
        }
    }

    /// There is no file that could change. A dump that loses its server fails by itself.
    fn broken(&self) -> Option<Failure> {
        None
    }

    fn copy(
        &self,
        _run: &Run,
        draft: &Draft,
        pin: &DumpPin,
        watch: &Watch,
    ) -> Result<Dumped, Failure> {
        priority::of_disk(Work::Writing, self.backup.io_priority);
        let mut dump = pin.dump.lock().unwrap_or_else(PoisonError::into_inner);
        let (artifact, rows, seconds) =
            (self.publisher()).leaving_reserve(watch, || self.store(draft, &mut dump, watch))?;
        Ok(Dumped {
            artifact,
            rows,
            seconds,
            pinned: pin.taken,
            planned: pin.planned.clone(),
        })
    }

    fn release(&self, pin: DumpPin) {
        drop(pin);
    }

    fn finish(
        &self,
        run: &Run,
        draft: Draft,
        dumped: Dumped,
        pauses: Pauses,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        let Dumped {
            artifact,
            rows,
            seconds,
            pinned,
            planned,
        } = dumped;
        priority::of_processor();
        let made = DumpMade {
            run: run.id.clone(),
            began: run.began,
            pinned,
            pause: pauses.total,
            source: self.address.to_string(),
            client: planned.client.version().to_owned(),
            server: planned.server,
            consistent_by: planned.consistency,
            artifact,
            level: match self.backup.compression {
                Compression::None => None,
                Compression::Zstd(level) => Some(level),
            },
            rows,
            seconds,
            warnings: planned.warning.into_iter().collect(),
        };
        let publisher = self.publisher();
        publisher.leaving_reserve(watch, || publisher.publish_dump(draft, made, watch))
    }

    fn pinned_too_long(&self) -> Option<Failure> {
        None
    }

    fn end_pin(&self, within: Duration) -> bool {
        // With its connection the server ends its transaction and its locks.
        let handle = self.running().take();
        handle.is_some_and(|handle| handle.end(within))
    }

    fn journal_mode(&self) -> String {
        "none".to_owned()
    }
}

/// What is said where a snapshot cannot be had.
fn locked(tables: &str) -> String {
    format!(
        "tables without transactions have no snapshot, so all tables are locked and announces \
         wait until the dump has ended: {tables}; ALTER TABLE ... ENGINE=InnoDB lets them flow"
    )
}

#[expect(clippy::needless_pass_by_value, reason = "handed to `map_err`")]
fn failed(error: Error) -> Failure {
    Failure::other(&error)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the instant of the snapshot is only known here"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}
