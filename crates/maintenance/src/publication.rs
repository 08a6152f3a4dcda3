//! From a raw copy to a backup under its final name.
//!
//! ```text
//!  other files · structure and rows of the copy · (an excerpt of it) · compress · (encrypt)
//!  · read back · publish by rename · prune
//! ```
//!
//! Nothing has its final name before it has been read back and compared, and nothing old
//! is removed before something newer has its final name. A failure up to publishing
//! leaves the catalogue as it was; one after it, of pruning, is a warning, because the
//! backup is good.
//!
//! A dump of a server is stored already; of it there are the other files to store, and all from
//! reading back.
//!
//! Whoever made the copy calls this: the engine in the service itself, or a sidecar once
//! it was told that the file was held still throughout.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::catalogue::{
    Artifact, Backup, Catalogue, Draft, DumpOf, MANIFEST_FORMAT, Manifest, Owner, StoredFiles,
};
use crate::config::{self, Compression, Depth, Method};
use crate::disk::Disk;
use crate::driver::Published;
use crate::encryption::Seal;
use crate::engine::room;
use crate::excerpt::{self, Partial};
use crate::files::{self, Choice, Reserved};
use crate::mysql::{self, Consistency, Rows};
use crate::priority::{self, Work};
use crate::snapshot::{RawCopy, Streamed, Watch, Way};
use crate::sqlite::Facts;
use crate::status::{BackupStatus, milliseconds};
use crate::verify::{self, Report};
use crate::window::{Cause, Failure, RunId};

/// A database that shrank by more than half since the last backup is worth a look.
const SHRUNK: f64 = 0.5;

/// What is said of a clone that is stored as it is.
const SHARED: &str = "the backup is a clone and shares its blocks with the database, so where the \
     disk goes bad both are lost; set compression = \"zstd\" for one with blocks of its own, or \
     have it uploaded";

/// How long a run waits for the operator's tool to leave the catalogue alone before it
/// goes without pruning. That tool holds on to it while it removes or notes something.
const PRUNE_WITHIN: Duration = Duration::from_secs(60);

/// Where backups are published, and by which rules.
#[derive(Debug, Clone, Copy)]
pub struct Publisher<'a> {
    /// Where to.
    pub catalogue: &'a Catalogue,
    /// What files are made and removed with.
    pub disk: &'a Disk,
    /// Compression, depth of the check, retention.
    pub backup: &'a config::Backup,
    /// The service and its version, for manifests and locks.
    pub service: &'a str,
}

/// How a raw copy came to be.
#[derive(Debug, Clone)]
pub struct Made {
    /// The run it was made in.
    pub run: RunId,
    /// When the run began.
    pub began: DateTime<Utc>,
    /// The instant the copy shows: the pin was taken.
    pub pinned: DateTime<Utc>,
    /// The database, as it was pinned.
    pub facts: Facts,
    /// Whether the pin was on read mark 0; `None`: not in WAL mode, or not known.
    pub read_mark_zero: Option<bool>,
    /// How long announces waited, all closures of the run together.
    pub pause: Duration,
    /// Bytes the log grew by under the pin; `None`: there is none, or it was not looked at.
    pub wal_growth: Option<u64>,
}

/// A stored dump, and how it came to be.
#[derive(Debug, Clone)]
pub struct DumpMade {
    /// The run it was made in.
    pub run: RunId,
    /// When the run began.
    pub began: DateTime<Utc>,
    /// The instant it shows.
    pub pinned: DateTime<Utc>,
    /// How long announces waited, all closures of the run together.
    pub pause: Duration,
    /// The database, without the password.
    pub source: String,
    /// What the dump program says of itself.
    pub client: String,
    /// The server's version.
    pub server: String,
    /// How all tables are of one instant.
    pub consistent_by: Consistency,
    /// What was stored.
    pub artifact: Artifact,
    /// zstd's level, if it is compressed.
    pub level: Option<i32>,
    /// Rows of each table, as they were counted on the way.
    pub rows: Rows,
    /// Seconds until it was durable.
    pub seconds: f64,
    /// What to look at though it is good.
    pub warnings: Vec<String>,
}

/// What a manifest says of where a backup is from.
struct Origin {
    run: RunId,
    began: DateTime<Utc>,
    pinned: DateTime<Utc>,
    pause: Duration,
    driver: &'static str,
    source: PathBuf,
    journal_mode: String,
    read_mark_zero: Option<bool>,
    page_size: u32,
    page_count: u64,
    wal_growth: Option<u64>,
    dump: Option<DumpOf>,
}

impl From<Made> for Origin {
    fn from(made: Made) -> Self {
        Self {
            run: made.run,
            began: made.began,
            pinned: made.pinned,
            pause: made.pause,
            driver: "sqlite3",
            journal_mode: made.facts.journal.to_string(),
            page_size: made.facts.page_size,
            page_count: made.facts.page_count,
            source: made.facts.path,
            read_mark_zero: made.read_mark_zero,
            wal_growth: made.wal_growth,
            dump: None,
        }
    }
}

/// An artifact, and how it came to be.
struct Stored {
    artifact: Artifact,
    level: Option<i32>,
    files: Option<StoredFiles>,
    method: Way,
    seconds: f64,
    rested: f64,
    report: Report,
    warnings: Vec<String>,
}

impl Publisher<'_> {
    /// Does a part of a run, and gives it up before it fills the file system of the backups.
    ///
    /// # Errors
    ///
    /// As `part`; that there is too little room left.
    pub(crate) fn leaving_reserve<T>(
        &self,
        watch: &Watch,
        part: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let places = vec![self.catalogue.directory().to_owned()];
        room::leaving_reserves(places, watch, part)
    }

    /// Verifies, compresses, reads back, publishes, and then prunes what retention no
    /// longer keeps.
    ///
    /// # Errors
    ///
    /// When the copy is not sound or a step fails: then nothing was published and nothing
    /// older removed.
    pub fn publish(
        &self,
        draft: Draft,
        raw: &RawCopy,
        made: Made,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        let config::Backup {
            compression,
            verify: depth,
            ref partial,
            ..
        } = *self.backup;
        let mut warnings = Vec::new();
        let files = self.store_files(&draft, &made.facts.path, &mut warnings, watch)?;
        self.works(Work::Reading);
        // What is stored as it is will be read twice anyway.
        let as_it_is =
            compression == Compression::None && partial.is_none() && draft.seal().is_none();
        if as_it_is && raw.method == Way::Clone {
            warnings.push(SHARED.to_owned());
        }
        let read = match raw.method {
            // Nothing was summed under the pin that it could be compared with, so it is read
            // once more than a copy.
            Way::Clone | Way::Pages if !as_it_is => Some(self.sum(&raw.path, watch)?),
            _ => raw.sha256.clone(),
        };
        watch.expect(verify::CHECKING, self.expected(raw.bytes)?);
        let mut report = verify::structure(&raw.path, depth, watch).map_err(unverified)?;
        self.works(Work::Writing);
        let path = draft.artifact_path(&compression);
        let compress = |database: &Path| {
            let seal = draft.seal();
            verify::store(database, &path, compression, seal, self.disk, watch)
        };
        let artifact = if let Some(partial) = partial {
            check_read(raw, read, &self.sum(&raw.path, watch)?)?;
            let excerpt;
            (excerpt, report) = self.excerpt(&draft, raw, partial, &made.facts, watch)?;
            compress(&excerpt).map_err(unverified)?
        } else {
            let artifact = compress(&raw.path).map_err(unverified)?;
            check_read(raw, read, &artifact.raw_sha256)?;
            artifact
        };
        if draft.seal().is_some() {
            // What anybody could read lies there no longer than it is needed.
            draft
                .remove_unpublished()
                .map_err(|error| Failure::other(&error))?;
        }
        let stored = Stored {
            artifact,
            level: match compression {
                Compression::None => None,
                Compression::Zstd(level) => Some(level),
            },
            files,
            method: raw.method,
            seconds: raw.seconds,
            rested: raw.rested,
            report,
            warnings,
        };
        self.conclude(draft, &path, stored, made.into(), watch)
    }

    /// As [`Publisher::publish`], of what was compressed and checked under the pin.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn publish_streamed(
        &self,
        draft: Draft,
        streamed: Streamed,
        made: Made,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        let mut warnings = Vec::new();
        let files = self.store_files(&draft, &made.facts.path, &mut warnings, watch)?;
        let path = draft.artifact_path(&self.backup.compression);
        let Streamed {
            artifact,
            level,
            report,
            seconds,
        } = streamed;
        let by_choice = draft.seal().is_some() && self.backup.method == Method::Auto;
        let mut told = Vec::new();
        if !by_choice {
            told.push(format!(
                "there was no room for a raw copy of {}, so the file was pinned while it was \
                 compressed; free space, or the log grows with every such run",
                bytesize::ByteSize(artifact.raw_bytes),
            ));
        }
        if self.backup.verify == Depth::Full {
            let why = if by_choice {
                "of an encrypted backup there is no raw copy unless method = \"file\", so"
            } else {
                "without a copy"
            };
            told.push(format!(
                "{why} it was checked with quick_check only: `torrust-maintenance verify --full` \
                 does the rest where there is room"
            ));
        }
        if !told.is_empty() {
            warnings.push(told.join("; "));
        }
        let stored = Stored {
            artifact,
            level,
            files,
            method: Way::Stream,
            seconds,
            rested: 0.0,
            report,
            warnings,
        };
        self.conclude(draft, &path, stored, made.into(), watch)
    }

    /// As [`Publisher::publish`], of a dump that is in the draft already.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn publish_dump(
        &self,
        draft: Draft,
        made: DumpMade,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        let mut warnings = made.warnings;
        // There is no file of the database that could be among them.
        let files = self.store_files(&draft, Path::new(""), &mut warnings, watch)?;
        let path = draft.dump_path(&self.backup.compression);
        let stored = Stored {
            artifact: made.artifact,
            level: made.level,
            files,
            method: Way::Dump,
            seconds: made.seconds,
            rested: 0.0,
            report: Report {
                depth: Depth::Quick,
                rows: made.rows,
                seconds: 0.0,
            },
            warnings,
        };
        let origin = Origin {
            run: made.run,
            began: made.began,
            pinned: made.pinned,
            pause: made.pause,
            driver: mysql::DRIVER,
            source: made.source.into(),
            journal_mode: "none".to_owned(),
            read_mark_zero: None,
            page_size: 0,
            page_count: 0,
            wal_growth: None,
            dump: Some(DumpOf {
                client: made.client,
                server: made.server,
                consistent_by: made.consistent_by,
            }),
        };
        self.conclude(draft, &path, stored, origin, watch)
    }

    /// What is left to do once there is an artifact.
    fn conclude(
        &self,
        draft: Draft,
        path: &Path,
        stored: Stored,
        origin: Origin,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        self.works(Work::Reading);
        let mut stored = stored;
        let identities = draft.seal().map(Seal::identities);
        let checked = if origin.dump.is_none() {
            verify::artifact(path, &stored.artifact, identities, self.disk, watch)
        } else {
            let (artifact, rows) = (&stored.artifact, &stored.report.rows);
            let report = verify::dump(path, artifact, rows, identities, self.disk, watch);
            report.map(|report| stored.report = report)
        };
        checked.map_err(unverified)?;
        self.works(Work::Writing);

        let Stored {
            artifact,
            level,
            files,
            method,
            seconds,
            rested,
            report,
            mut warnings,
        } = stored;
        // Of the same part of the database: others are of another size.
        let last = self
            .earlier()?
            .into_iter()
            .filter(|last| last.manifest.driver == origin.driver)
            .find(|last| last.manifest.partial == self.backup.partial);
        warnings.extend(last.and_then(|last| shrunk(&last.manifest, artifact.raw_bytes)));
        let Origin {
            run,
            began,
            pinned,
            pause,
            driver,
            source,
            journal_mode,
            read_mark_zero,
            page_size,
            page_count,
            dump,
            wal_growth,
        } = origin;
        let owner = Owner::this(format!("{}, run {run}", self.service), now());
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            id: draft.id().clone(),
            run,
            began,
            pinned,
            published: now(),
            service: self.service.to_owned(),
            library: crate::VERSION.into(),
            sqlite: rusqlite::version().into(),
            driver: driver.into(),
            source,
            journal_mode,
            read_mark_zero,
            page_size,
            page_count,
            method,
            pause_ms: milliseconds(pause),
            copy_seconds: seconds,
            rested_seconds: rested,
            wal_growth,
            bandwidth: self.backup.bandwidth,
            dump,
            database: artifact,
            compression_level: level,
            partial: self.backup.partial.clone(),
            files,
            rows: report.rows,
            verified: report.depth,
            verify_seconds: Some(report.seconds),
            warnings: warnings.clone(),
        };
        let Backup { manifest, .. } = draft
            .publish(&manifest)
            .map_err(|error| Failure::other(&error))?;
        let pruned = self
            .catalogue
            .lock_within(PRUNE_WITHIN, &owner, watch)
            .and_then(|locked| locked.prune(&self.backup.keep, &manifest.id));
        if let Err(error) = pruned {
            warnings.push(format!("older backups were not pruned: {error}"));
        }
        Ok(Published {
            made: Some(BackupStatus::published(&manifest)),
            backup: manifest.id,
            warnings,
        })
    }

    /// What this thread is about to do to the disk.
    fn works(&self, work: Work) {
        priority::of_disk(work, self.backup.io_priority);
    }

    fn sum(&self, path: &Path, watch: &Watch) -> Result<String, Failure> {
        let sum = verify::checksum(path, self.disk, watch).map_err(unverified)?;
        Ok(sum.sha256)
    }

    /// How long the structural check takes.
    fn expected(&self, bytes: u64) -> Result<Duration, Failure> {
        let earlier = self.earlier()?;
        let earlier: Vec<_> = earlier.iter().map(|backup| &backup.manifest).collect();
        Ok(verify::expected(bytes, self.backup.verify, &earlier))
    }

    /// The backups there are, newest first.
    fn earlier(&self) -> Result<Vec<Backup>, Failure> {
        self.catalogue
            .backups()
            .map_err(|error| Failure::other(&error))
    }

    /// What this run encrypts with, if backups are to be encrypted.
    ///
    /// # Errors
    ///
    /// As [`Seal::of`].
    pub fn seal(&self) -> Result<Option<Seal>, Failure> {
        Seal::of(&self.backup.encryption, self.disk).map_err(|error| Failure::other(&error))
    }

    /// What is to be stored besides the database, as of now. What cannot be, though it
    /// should, is an error if `missing_files` says so.
    pub(crate) fn choose_files(
        &self,
        database: &Path,
        watch: &Watch,
    ) -> Result<(Choice, Reserved), Failure> {
        let wanted = &self.backup.files;
        let reserved = Reserved::of(database, self.catalogue.directory());
        let choice = files::choose(wanted, &reserved, self.disk, watch).map_err(not_stored)?;
        files::check_missing(&choice.left_out, wanted.missing).map_err(not_stored)?;
        Ok((choice, reserved))
    }

    fn store_files(
        &self,
        draft: &Draft,
        database: &Path,
        warnings: &mut Vec<String>,
        watch: &Watch,
    ) -> Result<Option<StoredFiles>, Failure> {
        let config::Files { missing, limit, .. } = self.backup.files;
        let (choice, reserved) = self.choose_files(database, watch)?;
        let compression = self.backup.compression;
        let stored = files::store(
            choice,
            limit,
            &reserved,
            draft,
            compression,
            self.disk,
            watch,
        )
        .map_err(not_stored)?;
        files::check_missing(&stored.left_out, missing).map_err(not_stored)?;
        warnings.extend(files::warning(&stored.left_out));
        Ok(stored.files)
    }

    /// Takes an excerpt of the copy, which is not needed any more then, and checks it like
    /// the copy itself.
    fn excerpt(
        &self,
        draft: &Draft,
        raw: &RawCopy,
        partial: &Partial,
        facts: &Facts,
        watch: &Watch,
    ) -> Result<(PathBuf, Report), Failure> {
        let path = draft.excerpt_path();
        let disk = &draft.disk(self.disk);
        let counted = excerpt::take(&raw.path, &path, partial, facts.journal, disk, watch)
            .map_err(|error| not_taken(&error))?;
        let report = verify::structure(&path, self.backup.verify, watch).map_err(unverified)?;
        excerpt::compare(&counted, &report.rows).map_err(|error| not_taken(&error))?;
        self.disk
            .remove_gradually(&raw.path)
            .map_err(|error| Failure::other(&error))?;
        Ok((path, report))
    }
}

fn not_stored(error: files::Error) -> Failure {
    match error {
        files::Error::Verify(error) => unverified(error),
        error => Failure::other(&error),
    }
}

fn not_taken(error: &excerpt::Error) -> Failure {
    Failure {
        cause: if error.is_damage() {
            Cause::Verification
        } else {
            Cause::Other
        },
        message: error.to_string(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "handed to `map_err`")]
pub(crate) fn unverified(error: verify::Error) -> Failure {
    Failure {
        cause: match error {
            verify::Error::Corrupt { .. } => Cause::Verification,
            _ => Cause::Other,
        },
        message: error.to_string(),
    }
}

/// A copy must be what was read from the pinned file, byte for byte; a clone, which shares
/// the blocks of that file, what it was when it was read before.
fn check_read(raw: &RawCopy, read: Option<String>, found: &str) -> Result<(), Failure> {
    match read {
        Some(read) if read != found => Err(Failure {
            cause: Cause::Verification,
            message: format!(
                "{} does not read back as it was written: the disk or the memory is at fault; \
                 check both before you trust older backups on this disk",
                raw.path.display()
            ),
        }),
        _ => Ok(()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio to tell a human")]
fn shrunk(last: &Manifest, bytes: u64) -> Option<String> {
    let before = last.database.raw_bytes;
    ((bytes as f64) < before as f64 * SHRUNK).then(|| {
        format!(
            "the database is {}, less than half of the {} of backup {}; if nobody deleted that \
             much, find out why before the older backups are pruned",
            bytesize::ByteSize(bytes),
            bytesize::ByteSize(before),
            last.id
        )
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the instant of publishing is only known here"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}
