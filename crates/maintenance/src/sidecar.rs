//! A sidecar's part: another process, often another user in another container, that takes
//! the backup of a database the service holds still for it.
//!
//! ```text
//!  offer ─ same file? ─┬─ take ───── draft with a raw copy ──┐           ┌─▶ publish (check, compress, ..)
//!                      │                                     ├─ verdict ─┤
//!                      └─ staging ── whatever a command wrote ┘          └─▶ removed
//! ```
//!
//! The sidecar has no locks on the database and needs none: it reads one file with plain
//! reads, which needs no write access and no `-shm`. What makes the result good is the
//! *verdict*: the service's word, asked for after the last byte was read, that the file was
//! still throughout. Until then everything stands under a temporary name that removes
//! itself, and if the sidecar is killed the next one removes it.
//!
//! A path may lead to another file here than there: a volume mounted elsewhere, a copy of
//! yesterday, a link. [`Offer::check`] compares what is found with what the service says
//! of its file, by metadata and header. The device is not compared: it may differ between
//! containers that share a volume.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::catalogue::Draft;
use crate::config::{self, Announces, Method};
use crate::disk::{self, Claim, Disk};
use crate::driver::Published;
use crate::engine::{Known, room};
use crate::priority::{self, Work};
use crate::publication::{Made, Publisher};
use crate::snapshot::{self, Limits, RawCopy, Watch};
use crate::sqlite::{self, Facts, Journal, Pin};
use crate::status::PinnedFile;
use crate::window::{Cause, Failure, RunId};

/// How the name of a staging directory ends; it begins with a dot.
const STAGING: &str = ".staging";

/// What a service offers: a run, and the file that is held still for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The run.
    pub run: RunId,
    /// When it began.
    pub began: DateTime<Utc>,
    /// The instant the file shows.
    pub pinned: DateTime<Utc>,
    /// The database's journal mode.
    pub journal: Journal,
    /// How long announces had to wait until then.
    pub pause: Duration,
    /// The file.
    pub file: PinnedFile,
}

/// The file found is not the one that is held still.
#[derive(Debug, thiserror::Error)]
pub enum WrongFile {
    /// It cannot be looked at, or is no database.
    #[error(transparent)]
    Unreadable(#[from] sqlite::Error),
    /// It is another one.
    #[error(
        "{} is not the database the service holds still: {}; name the right one with \
         --database, and mount its directory, not a copy of it", path.display(), differences.join(", ")
    )]
    Other {
        /// Where it was looked for.
        path: PathBuf,
        /// In what it differs.
        differences: Vec<String>,
    },
}

impl Offer {
    /// That the file at `path` is the one offered. Reads its header with a descriptor of its
    /// own, so **never in the process that has the database open** (see
    /// [`sqlite::inspect`]).
    ///
    /// # Errors
    ///
    /// With everything in which it differs.
    pub fn check(&self, path: &Path) -> Result<(), WrongFile> {
        let expected = &self.file;
        let header = sqlite::inspect(path)?;
        let found = fs::metadata(path).map_err(|source| sqlite::Error::Io {
            doing: "look at",
            path: path.into(),
            source,
        })?;
        let differences: Vec<_> = [
            ("inode", found.ino(), expected.inode),
            ("size", found.len(), expected.bytes),
            (
                "page size",
                u64::from(header.page_size),
                u64::from(expected.page_size),
            ),
            ("page count", header.page_count, expected.page_count),
        ]
        .into_iter()
        .filter(|(_, here, there)| here != there)
        .map(|(what, here, there)| format!("{what} {here}, not {there}"))
        .chain(self.of_another_time(&found))
        .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(WrongFile::Other {
            path: path.into(),
            differences,
        })
    }
}

impl Offer {
    /// Whether it was written to at another time: a snapshot of the file system shows a file
    /// of the same number, and often of the same size.
    fn of_another_time(&self, found: &fs::Metadata) -> Option<String> {
        let (here, there) = (PinnedFile::modified_of(found), self.file.modified);
        (here != there).then(|| {
            format!(
                "last written {} s {} it was (a snapshot of another time?)",
                Duration::from_nanos(here.abs_diff(there)).as_secs_f64(),
                if here < there { "before" } else { "after" }
            )
        })
    }
}

/// Where a copy is made from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// The file at this path, which another process holds still.
    Path(&'a Path),
    /// A pin of this process's own, where no service runs that could hold the file still.
    Pin(&'a Pin),
}

/// A copy that is durable, but not yet known to be good.
#[derive(Debug)]
pub struct Taken {
    draft: Draft,
    raw: RawCopy,
    made: Made,
}

/// Copies the offered database into a draft of the publisher's catalogue. To be called on a
/// thread of its own: what it does to the disk from then on comes after the service's, as
/// `io_priority` says.
///
/// # Errors
///
/// When there is no room, the draft cannot be made, or the copy fails. Nothing is left.
pub fn take(
    offer: &Offer,
    from: Origin<'_>,
    publisher: &Publisher<'_>,
    watch: &Watch,
) -> Result<Taken, Failure> {
    check_room(offer, publisher)?;
    let seal = publisher.seal()?;
    let draft = publisher
        .catalogue
        .begin(offer.began)
        .map_err(|error| Failure::other(&error))?
        .sealed(seal);
    let (disk, bandwidth) = (&draft.disk(publisher.disk), publisher.backup.bandwidth);
    priority::of_disk(Work::Writing, publisher.backup.io_priority);
    let raw = draft.raw_path();
    let (facts, read_mark_zero) = match from {
        Origin::Path(path) => {
            let device = fs::metadata(path).map_or(0, |found| found.dev());
            (offer.facts(path, device), None)
        }
        Origin::Pin(pin) => (pin.facts.clone(), pin.read_mark_zero),
    };
    let bytes = offer.file.bytes;
    // Whatever else is there: the service writes to the same file system, perhaps.
    let raw = publisher.leaving_reserve(watch, || {
        let copied = match from {
            Origin::Path(path) => snapshot::copy_beside(path, bytes, &raw, disk, bandwidth, watch),
            Origin::Pin(pin) => {
                let limits = Limits {
                    bandwidth,
                    leisure: None,
                };
                snapshot::copy_pinned(pin, Method::Auto, &raw, disk, limits, watch)
            }
        };
        copied.map_err(|error| Failure::other(&error))
    })?;
    Ok(Taken {
        draft,
        raw,
        made: Made {
            run: offer.run.clone(),
            began: offer.began,
            pinned: offer.pinned,
            facts,
            read_mark_zero,
            pause: offer.pause,
            // The service's, which it watches itself.
            wal_growth: None,
        },
    })
}

impl Taken {
    /// Bytes copied, and in how many seconds.
    #[must_use]
    pub fn extent(&self) -> (u64, f64) {
        (self.raw.bytes, self.raw.seconds)
    }

    /// Verifies it, and publishes it as a backup: for a sidecar that was told that the file
    /// was still throughout. Without this call it is removed when dropped.
    ///
    /// # Errors
    ///
    /// As [`Publisher::publish`].
    pub fn publish(self, publisher: &Publisher<'_>, watch: &Watch) -> Result<Published, Failure> {
        publisher.leaving_reserve(watch, || {
            publisher.publish(self.draft, &self.raw, self.made, watch)
        })
    }
}

impl Offer {
    fn facts(&self, path: &Path, device: u64) -> Facts {
        Facts {
            path: path.to_owned(),
            journal: self.journal,
            page_size: self.file.page_size,
            page_count: self.file.page_count,
            device,
            inode: self.file.inode,
        }
    }
}

/// Bytes that have to be free in the catalogue's directory to take and publish a backup of a
/// database of this size, what a run leaves of its file system among them.
///
/// # Errors
///
/// When the catalogue cannot be read, or the file system not be asked.
pub fn needed(bytes: u64, publisher: &Publisher<'_>) -> Result<u64, Failure> {
    let earlier = publisher
        .catalogue
        .backups()
        .map_err(|error| Failure::other(&error))?;
    let earlier: Vec<_> = earlier.iter().map(|backup| &backup.manifest).collect();
    // What it reads is good only if it is told so afterwards: it always makes a copy.
    let backup = &config::Backup {
        method: Method::File,
        ..publisher.backup.clone()
    };
    let known = Known {
        bytes,
        blocks_writers: false,
        clones: false,
        shares: false,
        announces: Announces::Auto,
        backup,
        earlier: &earlier,
    };
    let directory = publisher.catalogue.directory();
    let space = publisher.disk.space(directory);
    let space = space.map_err(|error| Failure::other(&error))?;
    Ok(known.forecast().room.saturating_add(room::reserve(space)))
}

/// That there is room in the catalogue's directory for a backup of the offered database.
///
/// # Errors
///
/// When there is not, with how much is needed; when that cannot be found out.
pub fn check_room(offer: &Offer, publisher: &Publisher<'_>) -> Result<(), Failure> {
    let needed = needed(offer.file.bytes, publisher)?;
    let directory = publisher.catalogue.directory();
    let free = publisher
        .disk
        .free_bytes(directory)
        .map_err(|error| Failure::other(&error))?;
    if free >= needed {
        return Ok(());
    }
    Err(Failure {
        cause: Cause::NoRoom,
        message: format!(
            "{} has {} free and a backup needs about {} there while it is made (with a reserve); \
             free space, keep fewer backups or choose another directory",
            directory.display(),
            bytesize::ByteSize(free),
            bytesize::ByteSize(needed)
        ),
    })
}

/// A directory for what a command of the operator's makes of the offered database. It has a
/// temporary name until it is promoted; dropped before, it is removed.
#[derive(Debug)]
pub struct Staging {
    disk: Disk,
    claim: Claim,
    destination: PathBuf,
}

impl Staging {
    /// Creates one in `directory`, for this run.
    ///
    /// # Errors
    ///
    /// If it cannot be created.
    pub fn begin(disk: &Disk, directory: &Path, run: &RunId) -> Result<Self, disk::Error> {
        let claim = disk.claim(&directory.join(format!(".{run}{STAGING}")))?;
        Ok(Self {
            disk: disk.clone(),
            claim,
            destination: directory.join(run.as_str()),
        })
    }

    /// Where the command may write.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.claim.path()
    }

    /// Whether the command left nothing there.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn is_empty(&self) -> Result<bool, disk::Error> {
        Ok(self.disk.list(self.path())?.is_empty())
    }

    /// Makes everything in it durable and gives it its final name, the run's id, which is
    /// returned: for a sidecar that was told that the file was still throughout.
    ///
    /// # Errors
    ///
    /// If it cannot be synced or renamed. It is removed then.
    pub fn promote(self) -> Result<PathBuf, disk::Error> {
        sync_tree(&self.disk, self.path())?;
        self.claim.promote(&self.destination)?;
        Ok(self.destination)
    }
}

/// Removes the staging directories of sidecars that died; those of living ones stay.
///
/// # Errors
///
/// If the directory cannot be read, or one of them not be removed.
pub fn sweep(disk: &Disk, directory: &Path) -> Result<(), disk::Error> {
    for name in disk.list(directory)? {
        let is_staging = name
            .to_str()
            .is_some_and(|name| name.starts_with('.') && name.ends_with(STAGING));
        if is_staging {
            disk.sweep(&directory.join(name))?;
        }
    }
    Ok(())
}

/// Files first, then the directory they are in. Links are left alone: what they lead to is
/// not ours.
fn sync_tree(disk: &Disk, directory: &Path) -> Result<(), disk::Error> {
    for name in disk.list(directory)? {
        let path = directory.join(name);
        let found = fs::symlink_metadata(&path)
            .map_err(|source| disk::Error::new("look at", &path, source))?;
        if found.is_dir() {
            sync_tree(disk, &path)?;
        } else if found.is_file() {
            disk.sync_file(&path)?;
        }
    }
    disk.sync_dir(directory)
}

#[cfg(test)]
mod tests;
