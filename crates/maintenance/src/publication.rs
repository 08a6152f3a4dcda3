//! From a raw copy to a backup under its final name.
//!
//! ```text
//!  structure and rows of the copy · compress · read back · publish by rename · prune
//! ```
//!
//! Nothing has its final name before it has been read back and compared, and nothing old
//! is removed before something newer has its final name. A failure up to publishing
//! leaves the catalogue as it was; one after it, of pruning, is a warning, because the
//! backup is good.
//!
//! Whoever made the copy calls this: the engine in the service itself, or a sidecar once
//! it was told that the file was held still throughout.

use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::catalogue::{Artifact, Backup, Catalogue, Draft, MANIFEST_FORMAT, Manifest, Owner};
use crate::config::{self, Compression, Depth};
use crate::disk::Disk;
use crate::driver::Published;
use crate::priority::{self, Work};
use crate::snapshot::{RawCopy, Streamed, Watch, Way};
use crate::sqlite::Facts;
use crate::status::milliseconds;
use crate::verify::{self, Report};
use crate::window::{Cause, Failure, RunId};

/// A database that shrank by more than half since the last backup is worth a look.
const SHRUNK: f64 = 0.5;

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
}

/// An artifact, and how it came to be.
struct Stored {
    artifact: Artifact,
    level: Option<i32>,
    method: Way,
    seconds: f64,
    report: Report,
    warnings: Vec<String>,
}

impl Publisher<'_> {
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
            ..
        } = *self.backup;
        self.works(Work::Reading);
        let read = match (raw.method, compression) {
            // Nothing was read under the pin that it could be compared with, so it is read
            // once more than a copy. What is stored as it is will be read twice anyway.
            (Way::Clone, Compression::Zstd(_)) => Some(self.sum(raw, watch)?),
            _ => raw.sha256.clone(),
        };
        watch.expect(verify::CHECKING, self.expected(raw.bytes)?);
        let report = verify::structure(&raw.path, depth, watch).map_err(unverified)?;
        self.works(Work::Writing);
        let path = draft.artifact_path(&compression);
        let artifact = verify::compress(&raw.path, &path, compression, self.disk, watch)
            .map_err(unverified)?;
        if read.is_some_and(|read| read != artifact.raw_sha256) {
            return Err(unreliable(&raw.path));
        }
        let stored = Stored {
            artifact,
            level: match compression {
                Compression::None => None,
                Compression::Zstd(level) => Some(level),
            },
            method: raw.method,
            seconds: raw.seconds,
            report,
            warnings: Vec::new(),
        };
        self.conclude(draft, &path, stored, made, watch)
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
        let path = draft.artifact_path(&self.backup.compression);
        let Streamed {
            artifact,
            level,
            report,
            seconds,
        } = streamed;
        let mut warning = format!(
            "there was no room for a raw copy of {}, so the file was pinned while it was \
             compressed, at level {level}; free space, or the log grows with every such run",
            bytesize::ByteSize(artifact.raw_bytes),
        );
        if self.backup.verify == Depth::Full {
            warning.push_str(
                "; without a copy it was checked with quick_check only: `torrust-maintenance \
                 verify --full` does the rest where there is room",
            );
        }
        let stored = Stored {
            artifact,
            level: Some(level),
            method: Way::Stream,
            seconds,
            report,
            warnings: vec![warning],
        };
        self.conclude(draft, &path, stored, made, watch)
    }

    /// What is left to do once there is an artifact.
    fn conclude(
        &self,
        draft: Draft,
        path: &Path,
        stored: Stored,
        made: Made,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        self.works(Work::Reading);
        verify::artifact(path, &stored.artifact, self.disk, watch).map_err(unverified)?;
        self.works(Work::Writing);

        let Stored {
            artifact,
            level,
            method,
            seconds,
            report,
            mut warnings,
        } = stored;
        let last = self.earlier()?.into_iter().next();
        warnings.extend(last.and_then(|last| shrunk(&last.manifest, artifact.raw_bytes)));
        let Made {
            run,
            began,
            pinned,
            facts,
            read_mark_zero,
            pause,
        } = made;
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
            driver: "sqlite3".into(),
            source: facts.path,
            journal_mode: facts.journal.to_string(),
            read_mark_zero,
            page_size: facts.page_size,
            page_count: facts.page_count,
            method,
            pause_ms: milliseconds(pause),
            copy_seconds: seconds,
            bandwidth: self.backup.bandwidth,
            database: artifact,
            compression_level: level,
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
            backup: manifest.id,
            warnings,
        })
    }

    /// What this thread is about to do to the disk.
    fn works(&self, work: Work) {
        priority::of_disk(work, self.backup.io_priority);
    }

    fn sum(&self, raw: &RawCopy, watch: &Watch) -> Result<String, Failure> {
        let sum = verify::checksum(&raw.path, self.disk, watch).map_err(unverified)?;
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
fn unreliable(path: &Path) -> Failure {
    Failure {
        cause: Cause::Verification,
        message: format!(
            "{} does not read back as it was written: the disk or the memory is at fault; check \
             both before you trust older backups on this disk",
            path.display()
        ),
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
