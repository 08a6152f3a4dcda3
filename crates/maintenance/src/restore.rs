//! Putting a backup back in place: plan, look, execute.
//!
//! ```text
//!  plan      where to · what is there · who uses it · is there room    (changes nothing)
//!  execute   hold ─ unpack beside ─ verify ─ settle the old ─ keep it aside ─ swap ─ sync
//! ```
//!
//! **At every instant the target is a whole database**, the old one or the new one, so
//! that a service started at the wrong moment, or after a power cut, finds no half and no
//! empty file. The new one is unpacked beside the target and verified there: checksums,
//! structure, row counts. The old one gets a second name, under which it is kept, and then
//! the new one is renamed over it.
//!
//! **What `SQLite` keeps beside a database** belongs to the old one. Left in place, a
//! `-wal` or a `-journal` would be played into the new one and wreck it; removed too early,
//! the old one would be broken. So before anything is swapped, `SQLite` itself brings the
//! old database to rest (a hot journal is rolled back, a log is checkpointed), after which
//! the one file is all there is. Only if it cannot, because the old one is damaged, and only
//! by force, are those files kept aside as they are and taken away first.
//!
//! **Nobody may use the database meanwhile.** A service linked with this library holds a
//! lock file beside it for life ([`hold`]). Others are found by their POSIX locks: in WAL
//! mode always, on a rollback journal only while they are in a transaction. Such a database
//! is therefore replaced only by force; the operator knows what is running.
//!
//! What fails before the swap leaves the target as it was; a swap that fails puts back what it
//! took away, and says what is where should that fail as well. What a power cut leaves beside
//! it, `.<name>.restoring` or a second name of the database in place, the next restore removes.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SecondsFormat, Utc};
use rusqlite::{Connection, OpenFlags};
use rustix::io::Errno;
use serde::Serialize;

use crate::catalogue::{Backup, Foreign};
use crate::config::Depth;
use crate::disk::{self, Disk, File, Lock};
use crate::excerpt::Partial;
use crate::snapshot::Watch;
use crate::verify::{self, Report};

/// The files `SQLite` keeps beside a database that hold part of it.
const PARTS: [&str; 2] = ["-wal", "-journal"];
/// The index of a `-wal`; made anew whenever it is missing.
const INDEX: &str = "-shm";
/// What follows the name of a database in that of one that was kept aside, before the time.
const REPLACED: &str = ".replaced-";
/// How a database file begins.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Room beyond the database itself, for the file system's own.
const MARGIN: u64 = 1 << 20;

/// What can be restored.
#[derive(Debug, Clone)]
pub enum Source {
    /// A backup from the catalogue.
    Backup(Box<Backup>),
    /// A database in the catalogue's directory that was not made here. It has no manifest
    /// to be compared with: its structure is all that is verified.
    Foreign(Foreign),
}

impl From<Backup> for Source {
    fn from(backup: Backup) -> Self {
        Self::Backup(Box::new(backup))
    }
}

impl From<Foreign> for Source {
    fn from(foreign: Foreign) -> Self {
        Self::Foreign(foreign)
    }
}

/// What a restore would do.
#[derive(Debug, Serialize)]
pub struct RestorePlan {
    /// The backup's id, or the name of the file that was not made here.
    pub source: String,
    /// The instant the backup shows. Of a file that was not made here, when it was last
    /// written to, which is later; `None` if that cannot be told.
    pub pinned: Option<DateTime<Utc>>,
    /// The file it becomes, with links resolved.
    pub target: PathBuf,
    /// The name the present database is kept under, if there is one.
    pub kept_as: Option<PathBuf>,
    /// Names that look like kept databases and are those of the present one, or of its log or
    /// journal: a restore that was cut off between keeping and replacing has left them. They are
    /// removed, because whoever took one for an old database would work on the present one.
    pub second_names: Vec<PathBuf>,
    /// Bytes of the restored database; of one that was not made here, at least.
    pub bytes: u64,
    /// What speaks against it.
    pub objections: Vec<Objection>,
    /// Whether a part of the database will do.
    #[serde(skip)]
    partial: bool,
    #[serde(skip)]
    from: Source,
    /// Keeps others away from the present database while the plan lives.
    #[serde(skip)]
    present: Option<File>,
}

/// What speaks against a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Objection {
    /// A process has the database open.
    InUse,
    /// On a rollback journal an idle user of the database cannot be seen.
    UsersUnseen,
    /// The database was written to after the backup was taken.
    Newer {
        /// When it last was.
        written: DateTime<Utc>,
    },
    /// There is not enough room beside the target.
    NoRoom {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// What is there is not a database.
    NotADatabase,
    /// The file system has no hard links, by which the present database is kept.
    NoLinks,
    /// Whoever restores cannot give the new database to the owner of the present one.
    NotOwner {
        /// That owner.
        user: u32,
        /// The group of the present one.
        group: u32,
    },
    /// The backup is not of the whole database: the rows that it does not have are lost.
    Partial {
        /// Which part it is of.
        of: Partial,
    },
}

impl Objection {
    /// Whether the operator may overrule it.
    #[must_use]
    pub fn yields_to_force(&self) -> bool {
        match self {
            // Force is about what is in the place of the backup, not about the backup.
            Self::InUse
            | Self::NoRoom { .. }
            | Self::Partial { .. }
            | Self::NoLinks
            | Self::NotOwner { .. } => false,
            Self::UsersUnseen | Self::Newer { .. } | Self::NotADatabase => true,
        }
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str("a process has it open; stop that first"),
            Self::UsersUnseen => f.write_str(
                "it is on a rollback journal, where a service that has it open cannot be seen; \
                 make sure that none is running, then use --force",
            ),
            Self::Newer { written } => write!(
                f,
                "it was written to at {}, after the backup was taken; to lose what came since \
                 (the present database is kept aside), use --force",
                written.to_rfc3339_opts(SecondsFormat::Secs, true)
            ),
            Self::NoRoom { needed, free } => write!(
                f,
                "{needed} bytes are needed beside it and {free} are free; free space"
            ),
            Self::NotADatabase => f.write_str(
                "what is there is not an SQLite database; to replace it (it is kept aside), \
                 use --force",
            ),
            Self::NoLinks => f.write_str(
                "its file system has no hard links, so what is there cannot be kept aside while \
                 there is always a whole database; move it away first, with its -wal and \
                 -journal if there are any, or restore to another file system with --to",
            ),
            Self::NotOwner { user, group } => write!(
                f,
                "it belongs to user {user} and group {group}, to whom the new one cannot be \
                 given; restore as that user or as root, or to another file with --to"
            ),
            Self::Partial { of } => write!(
                f,
                "the backup is PARTIAL, of {of}: all other rows are not in it, and the database it \
                 becomes is without them; if that is what you want, use --partial"
            ),
        }
    }
}

/// A restore that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Restored {
    /// The restored database.
    pub target: PathBuf,
    /// Where the former one is, if there was one.
    pub kept_as: Option<PathBuf>,
    /// What was verified before the swap.
    pub report: Report,
}

/// Why nothing was restored. The target is as it was, but for [`Error::Apart`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan has objections that were not, or cannot be, overruled.
    #[error("{} is not replaced: {}", .target.display(), list(.objections))]
    Refused {
        /// The target.
        target: PathBuf,
        /// What speaks against it.
        objections: Vec<Objection>,
    },
    /// The target cannot be one.
    #[error("{} cannot be restored to: {why}", .path.display())]
    Unusable {
        /// The target.
        path: PathBuf,
        /// What is wrong and how to mend it.
        why: &'static str,
    },
    /// The backup is not good.
    #[error(transparent)]
    Verify(#[from] verify::Error),
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The swap failed, and what `SQLite` keeps beside the present database, which was taken
    /// away for it, could not be put back.
    #[error(
        "{} was not replaced: {source}. It is still there, but without what SQLite keeps beside \
         it, which could not be put back ({why}). Nothing is lost: before anything opens it, {}{}",
        .target.display(), moves(.parts), also(.kept_as.as_deref())
    )]
    Apart {
        /// The present database.
        target: PathBuf,
        /// A second name of it, if it has one.
        kept_as: Option<PathBuf>,
        /// Where its parts belong, and where they are.
        parts: Vec<(PathBuf, PathBuf)>,
        /// Why it was not replaced.
        source: Box<Self>,
        /// Why they were not put back.
        why: String,
    },
    /// The present database could not be brought to rest.
    #[error(
        "{} has a log or a journal that SQLite cannot take back ({source}); to keep its files \
         aside as they are, use --force", .path.display()
    )]
    Unsettled {
        /// The present database.
        path: PathBuf,
        /// What `SQLite` said.
        source: rusqlite::Error,
    },
}

/// Tells every later [`RestorePlan::execute`] that a service uses this database, until the
/// value is dropped or the process ends. For a service to call before it opens the file,
/// and keep for life; `None`: another process does already, or a restore is under way.
///
/// The lock file, `<database>.lock`, lies beside the file itself, not beside a link to it;
/// created by root, it belongs to whom the database belongs to, or else its directory.
///
/// # Errors
///
/// If the lock file cannot be created.
pub fn hold(database: &Path, disk: &Disk) -> Result<Option<Lock>, disk::Error> {
    let database = disk::resolve(database)
        .map_err(|source| disk::Error::new("find the directory of", database, source))?;
    let like = if database.exists() {
        &database
    } else {
        disk::parent(&database)
    };
    disk.lock_file(&beside(&database, "", ".lock"), like)
}

/// Looks at what is to be restored and at what is at `target`, which is kept from others as long as
/// the plan lives. `now` names the file the present database is kept under. Nothing is changed; what
/// a swap needs of the file system is tried with an empty file beside the target.
///
/// # Errors
///
/// If there is no directory for the target, it is no file, or cannot be looked at, or what
/// is to be restored is no database. That a restore should not be done is no error but an
/// objection in the plan.
pub fn plan(
    from: impl Into<Source>,
    target: &Path,
    now: DateTime<Utc>,
    disk: &Disk,
) -> Result<RestorePlan, Error> {
    let from = from.into();
    let target = resolve(target)?;
    let mut objections = Vec::new();
    let (source, pinned, bytes) = match &from {
        Source::Backup(backup) => {
            let manifest = &backup.manifest;
            if manifest.is_dump() {
                return Err(Error::Unusable {
                    path: target,
                    why: "the backup is a dump, of which a server makes a database",
                });
            }
            objections.extend(manifest.partial.clone().map(|of| Objection::Partial { of }));
            let bytes = manifest.database.raw_bytes;
            (manifest.id.to_string(), Some(manifest.pinned), bytes)
        }
        Source::Foreign(foreign) => {
            let bytes = verify::unpacked_size(foreign, disk)?;
            (foreign.name.clone(), foreign.written, bytes)
        }
    };
    let exists = target.exists();
    let present = exists.then(|| disk.lock_database(&target)).transpose()?;
    let in_use = matches!(present, Some(None)) || is_held(&target, disk)?;
    if in_use {
        objections.push(Objection::InUse);
    }
    let mut present = present.flatten();
    if let Some(file) = &mut present {
        objections.extend(header(file)?);
    }
    let written = last_written(&target).filter(|written| Some(*written) > pinned);
    if let Some(written) = written {
        objections.push(Objection::Newer { written });
    }
    if exists {
        objections.extend(rehearse(&target, disk));
    }
    let needed = bytes.saturating_add(MARGIN);
    let free = disk.free_bytes(disk::parent(&target))?;
    if free < needed {
        objections.push(Objection::NoRoom { needed, free });
    }
    Ok(RestorePlan {
        source,
        pinned,
        second_names: second_names(&target, disk)?,
        kept_as: exists.then(|| aside(&target, now)),
        bytes,
        target,
        objections,
        partial: false,
        from,
        present,
    })
}

impl RestorePlan {
    /// Has a partial backup restored as well: the operator knows what is missing then.
    #[must_use]
    pub fn accept_partial(self) -> Self {
        Self {
            partial: true,
            ..self
        }
    }

    /// The objections that are not overruled, in the order they were found.
    #[must_use]
    pub fn standing(&self, force: bool) -> Vec<Objection> {
        let stands = |objection: &&Objection| match objection {
            Objection::Partial { .. } => !self.partial,
            other => !force || !other.yields_to_force(),
        };
        self.objections.iter().filter(stands).cloned().collect()
    }

    /// Carries it out. `force` overrules the objections that yield to it.
    ///
    /// # Errors
    ///
    /// If an objection stands, the backup does not verify, the present database cannot be
    /// brought to rest, or the file system refuses. The target is then as it was, unless it is
    /// [`Error::Apart`]; only when the very last sync failed it is the restored one, which a
    /// power cut may still undo.
    pub fn execute(
        self,
        force: bool,
        depth: Depth,
        disk: &Disk,
        watch: &Watch,
    ) -> Result<Restored, Error> {
        let objections = self.standing(force);
        if !objections.is_empty() {
            return Err(self.refused(objections));
        }
        let Some(_held) = hold(&self.target, disk)? else {
            return Err(self.refused(vec![Objection::InUse]));
        };
        self.check_unmade()?;
        self.remove_second_names(disk)?;

        let restoring = beside(&self.target, ".", ".restoring");
        if restoring.exists() {
            disk.remove_file(&restoring)?;
        }
        let swapped = self
            .unpack(&restoring, depth, disk, watch)
            .and_then(|report| {
                self.swap(&restoring, force, disk)?;
                Ok(report)
            });
        if swapped.is_err() && restoring.exists() {
            // The cause says more than that of tidying up after it.
            let _ = disk.remove_file(&restoring);
        }
        Ok(Restored {
            report: swapped?,
            target: self.target,
            kept_as: self.kept_as,
        })
    }

    /// Only those that still are: a name is not what it was when somebody has used it since.
    fn remove_second_names(&self, disk: &Disk) -> Result<(), disk::Error> {
        for name in &self.second_names {
            if is_second_name(name, &self.target) {
                disk.remove_file(name)?;
            }
        }
        match self.second_names.as_slice() {
            [] => Ok(()),
            _ => disk.sync_dir(disk::parent(&self.target)),
        }
    }

    /// The new database, durable and verified, under a temporary name.
    fn unpack(
        &self,
        restoring: &Path,
        depth: Depth,
        disk: &Disk,
        watch: &Watch,
    ) -> Result<Report, Error> {
        // With none to be like, it is for whom the directory belongs to: what root restores a
        // service that is not root has to open.
        let new_disk = if self.present.is_some() {
            disk.clone()
        } else {
            disk.inheriting()
        };
        let report = match &self.from {
            Source::Backup(backup) => {
                verify::unpack_checked(backup, restoring, depth, &new_disk, watch)?
            }
            Source::Foreign(foreign) => {
                verify::unpack_foreign(foreign, restoring, depth, &new_disk, watch)?
            }
        };
        if self.present.is_some() {
            let new = disk.open(restoring)?;
            new.adopt(&self.target)?;
            new.sync_all()
                .map_err(|source| disk::Error::new("sync", restoring, source))?;
        }
        Ok(report)
    }

    /// Keeps the present database aside, if there is one, and puts the new one in its place.
    fn swap(&self, restoring: &Path, force: bool, disk: &Disk) -> Result<(), Error> {
        let parts = match (&self.present, &self.kept_as) {
            (Some(present), Some(kept_as)) => self.bring_to_rest(present, kept_as, force, disk)?,
            _ => Parts::default(),
        };
        let directory = disk::parent(&self.target);
        let placed = if let Some(kept_as) = &self.kept_as {
            disk.link(&self.target, kept_as)
                .and_then(|()| disk.sync_dir(directory))
                .and_then(|()| remove_parts(&self.target, disk))
                .and_then(|()| disk.sync_dir(directory))
                .and_then(|()| disk.rename(restoring, &self.target))
        } else {
            // Unpacking takes long, and the parts of what was made meanwhile are not those
            // of nothing.
            self.check_unmade()?;
            remove_parts(&self.target, disk)
                .and_then(|()| disk.sync_dir(directory))
                .and_then(|()| disk.rename_new(restoring, &self.target))
        };
        placed.map_err(|error| match (&self.kept_as, error.source.kind()) {
            (None, io::ErrorKind::AlreadyExists) => self.refused(vec![Objection::InUse]),
            (None, _) => error.into(),
            (Some(kept_as), _) => self.put_back(&parts, Some(kept_as), error.into(), disk),
        })?;
        Ok(disk.sync_dir(directory)?)
    }

    /// Leaves the present database, which is still in place, as it was found. `source` is why
    /// it was not replaced; what is returned, the trouble there is then.
    fn put_back(&self, parts: &Parts, kept_as: Option<&Path>, source: Error, disk: &Disk) -> Error {
        match parts.give_back(disk) {
            Err(error) if !parts.away().is_empty() => {
                self.apart(parts, kept_as, source, error.to_string())
            }
            _ => {
                // A rename that was reported as failed may have happened (NFS): then this is the
                // only name the old database has.
                if let Some(kept_as) = kept_as.filter(|kept_as| are_one(kept_as, &self.target)) {
                    // Of no use any more, and the cause says more than that of tidying up.
                    let _ = disk.remove_file(kept_as);
                }
                source
            }
        }
    }

    fn apart(&self, parts: &Parts, kept_as: Option<&Path>, source: Error, why: String) -> Error {
        Error::Apart {
            target: self.target.clone(),
            kept_as: kept_as.filter(|name| name.exists()).map(Path::to_owned),
            parts: parts.away(),
            source: source.into(),
            why,
        }
    }

    /// That nobody has made a database since the plan was where there was none: nobody has
    /// looked at it, and it would not be kept.
    fn check_unmade(&self) -> Result<(), Error> {
        if self.kept_as.is_none() && self.target.symlink_metadata().is_ok() {
            return Err(self.refused(vec![Objection::InUse]));
        }
        Ok(())
    }

    /// Leaves of the present database one file; or by force its parts, with second names
    /// beside `kept_as`, which are returned.
    fn bring_to_rest(
        &self,
        present: &File,
        kept_as: &Path,
        force: bool,
        disk: &Disk,
    ) -> Result<Parts, Error> {
        // First, because SQLite removes these even if it can make nothing of them.
        let mut parts = Parts::keep(&self.target, kept_as, disk)?;
        let settled = settle(&self.target, disk);
        // SQLite has dropped the lock. Whoever got in may go on with its database, into
        // which a journal given back now would be rolled.
        let alone = present.lock_again();
        let settled = match settled {
            Ok(()) => {
                std::mem::take(&mut parts).forget(disk)?;
                Ok(())
            }
            Err(Error::Unsettled { .. }) if force => Ok(()),
            Err(error) => Err(error),
        };
        match (alone, settled) {
            (Ok(true), Ok(())) => Ok(parts),
            (Ok(true), Err(error)) => Err(self.put_back(&parts, None, error, disk)),
            (Ok(false), settled) => {
                let in_use = self.refused(vec![Objection::InUse]);
                let source = settled.err().unwrap_or(in_use);
                Err(self.leave(&parts, source, "another process has opened it", disk))
            }
            (Err(source), _) => {
                let why = "whether another process has opened it is not known";
                Err(self.leave(&parts, source.into(), why, disk))
            }
        }
    }

    /// Leaves a database that somebody may use by now. What its parts were is told, if they have
    /// only their second names: given back they would be taken for those of what it is now.
    fn leave(&self, parts: &Parts, source: Error, why: &str, disk: &Disk) -> Error {
        parts.unlink(disk);
        if parts.away().is_empty() {
            return source;
        }
        self.apart(parts, None, source, why.to_owned())
    }

    fn refused(&self, objections: Vec<Objection>) -> Error {
        Error::Refused {
            target: self.target.clone(),
            objections,
        }
    }
}

/// Second names of what `SQLite` keeps beside a database, with the first ones.
#[derive(Default)]
struct Parts(Vec<(PathBuf, PathBuf)>);

impl Parts {
    fn keep(database: &Path, kept_as: &Path, disk: &Disk) -> Result<Self, disk::Error> {
        let mut parts = Self(Vec::new());
        for suffix in PARTS {
            let (part, kept) = (beside(database, "", suffix), beside(kept_as, "", suffix));
            if part.exists() {
                if let Err(error) = disk.link(&part, &kept) {
                    parts.unlink(disk);
                    return Err(error);
                }
                parts.0.push((part, kept));
            }
        }
        Ok(parts)
    }

    /// Removes the second names of those that have their first one, of which nobody has use
    /// then. One that cannot be removed does no harm: what was the matter says more.
    fn unlink(&self, disk: &Disk) {
        for (_, kept) in self.0.iter().filter(|(part, _)| part.exists()) {
            let _ = disk.remove_file(kept);
        }
    }

    /// Once the database is at rest they say nothing that is not in it. A journal left
    /// beside it would be rolled back into it again.
    fn forget(self, disk: &Disk) -> Result<(), disk::Error> {
        for (_, kept) in &self.0 {
            disk.remove_file(kept)?;
        }
        match self.0.first() {
            Some((_, kept)) => disk.sync_dir(disk::parent(kept)),
            None => Ok(()),
        }
    }

    /// Puts back all that can be, and says what was the first trouble.
    fn give_back(&self, disk: &Disk) -> Result<(), disk::Error> {
        let mut given_back = Ok(());
        for (part, kept) in &self.0 {
            let moved = if part.exists() {
                disk.remove_file(kept)
            } else {
                disk.rename(kept, part)
            };
            given_back = given_back.and(moved);
        }
        given_back
    }

    /// Those that have only their second names.
    fn away(&self) -> Vec<(PathBuf, PathBuf)> {
        let away = self.0.iter().filter(|(part, _)| !part.exists());
        away.cloned().collect()
    }
}

/// With no database these belong to nothing; otherwise they are empty, or kept.
fn remove_parts(database: &Path, disk: &Disk) -> Result<(), disk::Error> {
    for suffix in PARTS.into_iter().chain([INDEX]) {
        let part = beside(database, "", suffix);
        if part.exists() {
            disk.remove_file(&part)?;
        }
    }
    Ok(())
}

/// Has `SQLite` bring everything that belongs to a database into the one file.
fn settle(database: &Path, disk: &Disk) -> Result<(), Error> {
    if !PARTS.iter().any(|part| beside(database, "", part).exists()) {
        return Ok(());
    }
    let unsettled = |source| Error::Unsettled {
        path: database.to_owned(),
        source,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(unsettled)?;
    take_back(&connection).map_err(unsettled)?;
    connection.close().map_err(|(_, error)| unsettled(error))?;
    disk.sync_file(database)?;
    Ok(())
}

/// Closing then removes the log, since nobody else has the database open.
fn take_back(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::ZERO)?;
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    // Rolls a hot journal back, reads a log.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

/// The file behind a link, so that it is replaced and not the link.
fn resolve(target: &Path) -> Result<PathBuf, Error> {
    let unusable = |why| Error::Unusable {
        path: target.to_owned(),
        why,
    };
    match fs::symlink_metadata(target) {
        Ok(_) => {
            let resolved = target
                .canonicalize()
                .map_err(|_| unusable("it is a link to nothing"))?;
            if !resolved.is_file() {
                return Err(unusable("it is not a file"));
            }
            Ok(resolved)
        }
        Err(_) if target.file_name().is_none() => Err(unusable("it is not a file")),
        Err(_) if !disk::parent(target).is_dir() => Err(unusable(
            "the directory it would be in does not exist; create that first",
        )),
        Err(_) => disk::resolve(target).map_err(|_| unusable("its directory cannot be found")),
    }
}

/// Whether a service says that it uses the database. Creates no lock file to find out.
fn is_held(database: &Path, disk: &Disk) -> Result<bool, Error> {
    let lock = beside(database, "", ".lock");
    Ok(lock.exists() && disk.lock_file(&lock, database)?.is_none())
}

/// What the header of the present database has against it
/// (<https://www.sqlite.org/fileformat2.html>, 1.3: the magic, and the write version in byte
/// 18, which is 2 in WAL mode).
fn header(file: &mut File) -> Result<Option<Objection>, disk::Error> {
    let mut header = Vec::new();
    let path = file.path().to_owned();
    file.take(19)
        .read_to_end(&mut header)
        .map_err(|error| disk::Error::new("read", &path, error))?;
    Ok(match header.as_slice() {
        [] => None,
        [.., 2] if header.starts_with(MAGIC) => None,
        [..] if header.starts_with(MAGIC) => Some(Objection::UsersUnseen),
        _ => Some(Objection::NotADatabase),
    })
}

/// When the database, if there is one, or its log was last written to.
fn last_written(database: &Path) -> Option<DateTime<Utc>> {
    if !database.exists() {
        return None;
    }
    ["", "-wal"]
        .iter()
        .filter_map(|suffix| {
            let metadata = fs::metadata(beside(database, "", suffix)).ok()?;
            Some(DateTime::from(metadata.modified().ok()?))
        })
        .max()
}

/// Tries beside the present database what replaces it, with an empty file: that it can be given
/// its owner, and have two names. Better now than when gigabytes have been unpacked. Where no file
/// can be made nothing can be unpacked either, and the first byte of that says so.
fn rehearse(target: &Path, disk: &Disk) -> Vec<Objection> {
    let [trying, link] = [".trying", ".trying-link"].map(|after| beside(target, ".", after));
    // Also what one that was cut off has left.
    let tidy = || {
        for name in [&link, &trying] {
            if name.symlink_metadata().is_ok() {
                // The next one can.
                let _ = disk.remove_file(name);
            }
        }
    };
    tidy();
    let mut objections = Vec::new();
    if let Ok(file) = disk.create(&trying) {
        let given = file.adopt(target);
        if given.is_err_and(|error| cannot_give_by(&error))
            && let Ok(present) = target.metadata()
        {
            let (user, group) = (present.uid(), present.gid());
            objections.push(Objection::NotOwner { user, group });
        }
        let linked = disk.link(&trying, &link);
        if linked.is_err_and(|error| has_no_links_by(&error)) {
            objections.push(Objection::NoLinks);
        }
    }
    tidy();
    objections
}

/// Whether a file cannot be given to somebody, by what the operating system said to it
/// (`fchown(2)`). Other troubles pass, or show again.
fn cannot_give_by(error: &disk::Error) -> bool {
    let errno = Errno::from_io_error(&error.source);
    matches!(
        errno,
        Some(Errno::PERM | Errno::ACCESS | Errno::INVAL | Errno::OPNOTSUPP)
    )
}

/// Whether a file system has no hard links, by what it said to one within a directory
/// (`link(2)`: EPERM; network file systems and FUSE say otherwise).
fn has_no_links_by(error: &disk::Error) -> bool {
    let errno = Errno::from_io_error(&error.source);
    matches!(errno, Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS))
}

/// See [`RestorePlan::second_names`].
fn second_names(target: &Path, disk: &Disk) -> Result<Vec<PathBuf>, disk::Error> {
    let directory = disk::parent(target);
    let begin = beside(target, "", REPLACED);
    let begin = begin.file_name().unwrap_or_default().as_encoded_bytes();
    let names = disk.list(directory)?.into_iter();
    let alike = names.filter(|name| name.as_encoded_bytes().starts_with(begin));
    let alike = alike.map(|name| directory.join(name));
    Ok(alike.filter(|name| is_second_name(name, target)).collect())
}

/// Whether it is one of a database, or of a part of it.
fn is_second_name(name: &Path, database: &Path) -> bool {
    let mut suffixes = PARTS.into_iter().chain([""]);
    suffixes.any(|suffix| are_one(name, &beside(database, "", suffix)))
}

/// A name for the present database that is not taken.
pub(crate) fn aside(target: &Path, now: DateTime<Utc>) -> PathBuf {
    let suffix = now.format("%Y%m%dT%H%M%SZ");
    let suffix = format!("{REPLACED}{suffix}");
    let first = beside(target, "", &suffix);
    let more = (2..=u32::MAX).map(|nth| beside(target, "", &format!("{suffix}-{nth}")));
    std::iter::once(first)
        .chain(more)
        .find(|path| {
            let mut suffixes = PARTS.into_iter().chain([""]);
            !suffixes.any(|suffix| beside(path, "", suffix).exists())
        })
        .expect("fewer than 2^32 restores in one second")
}

/// The path with something before and after its file name.
pub(crate) fn beside(path: &Path, before: &str, after: &str) -> PathBuf {
    let mut name = OsString::from(before);
    name.push(path.file_name().unwrap_or_default());
    name.push(after);
    path.with_file_name(name)
}

/// What puts parts back where they belong.
fn moves(parts: &[(PathBuf, PathBuf)]) -> String {
    let moves = parts
        .iter()
        .map(|(part, kept)| format!("rename {} to {}", kept.display(), part.display()));
    moves.collect::<Vec<_>>().join(" and ")
}

fn also(kept_as: Option<&Path>) -> String {
    kept_as.map_or_else(String::new, |kept_as| {
        format!(
            "; {} is a second name of it, to be removed then",
            kept_as.display()
        )
    })
}

fn list(objections: &[Objection]) -> String {
    let objections: Vec<_> = objections.iter().map(ToString::to_string).collect();
    objections.join("; ")
}

/// Whether two names are of one file.
fn are_one(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| {
        let found = path.symlink_metadata().ok()?;
        Some((found.dev(), found.ino()))
    };
    identity(one).is_some() && identity(one) == identity(other)
}

#[cfg(test)]
mod tests;
