//! The seam to the file system: the only module that creates, renames and removes files.
//!
//! Everything a run, a prune or a restore does to a disk passes one counter in here, so a
//! test can let the n-th operation fail ([`Disk::failing_at`]) or the machine go down
//! before it ([`Disk::crashing_at`]), for every n there is, and then look at what is left.
//! That costs one relaxed atomic add per operation and is always compiled in, because the
//! end-to-end tests use it too.
//!
//! Two rules are kept here so that nobody has to remember them. A file is opened only if
//! it is a regular one and not the live database, and nothing of that is created, replaced
//! or removed, whatever a configuration names by mistake ([`Disk::guarding`]). And
//! unfinished work
//! lives in a directory its owner holds a lock on ([`Claim`]), so that a sweep can tell
//! what a dead process left from what a living one is still writing.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the module the others are sent to"
)]

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt as _, fchown,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{Advice, CWD, IFlags, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::geteuid;

pub use self::claim::Claim;
pub use self::direct::{Aligned, Direct};
pub use self::fault::Loss;
use self::fault::{Fault, Seam};
use self::guard::Guard;
pub use self::lock::{Hold, Lock};
pub use self::steady::Steady;

mod claim;
mod direct;
mod fault;
mod guard;
mod lock;
mod steady;

/// Symbolic links in a row before they are taken for a circle, as in Linux.
const LINKS: u32 = 40;

/// Bytes that are read or written at a time by what has time, so that a service's sync waits
/// behind no more than that: on a device of 1 GB/s an eighth of a millisecond. See
/// [`File::by_requests`].
pub const REQUEST: usize = 128 << 10;

/// Bytes that are given back at a time by [`Disk::remove_gradually`].
const PIECE: u64 = 32 << 20;

/// What others have between two of these pieces: a commit of a database takes less.
const BETWEEN_PIECES: Duration = Duration::from_millis(10);

/// A handle on the file system; clones share the operation counter and the fault.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    seam: Arc<Seam>,
    guarded: Option<Arc<Guard>>,
    readers: Readers,
    inherits: bool,
}

/// Who may read what is created, beside its owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Readers {
    Nobody,
    #[default]
    Group,
    Everybody,
}

impl Readers {
    /// The mode of a file.
    fn mode(self) -> u32 {
        match self {
            Self::Nobody => 0o600,
            Self::Group => 0o640,
            Self::Everybody => 0o644,
        }
    }
}

/// What could not be done, to which file, and why.
#[derive(Debug, thiserror::Error)]
#[error("could not {doing} {}: {source}{}", .path.display(), self.tip())]
pub struct Error {
    /// The operation, as it reads after "could not".
    pub doing: &'static str,
    /// The file or directory it was for.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl Error {
    /// An error of doing something else to a file of this module.
    #[must_use]
    pub fn new(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self {
            doing,
            path,
            source,
        }
    }

    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some("free space or choose another directory")
            }
            io::ErrorKind::PermissionDenied => {
                Some("check the owner and the mode, or choose another directory")
            }
            io::ErrorKind::ReadOnlyFilesystem => {
                Some("mount it read-write or choose another directory")
            }
            _ => None,
        }
    }

    /// Whether [`File::share`] is just not possible between these two files, and nothing is
    /// wrong: another file system, one that cannot, or a sandbox that does not let it.
    #[must_use]
    pub fn is_unshareable(&self) -> bool {
        matches!(
            Errno::from_io_error(&self.source),
            Some(
                Errno::OPNOTSUPP
                    | Errno::XDEV
                    | Errno::INVAL
                    | Errno::NOTTY
                    | Errno::NOSYS
                    | Errno::PERM
            )
        )
    }

    fn tip(&self) -> String {
        self.hint()
            .map(|hint| format!(" ({hint})"))
            .unwrap_or_default()
    }
}

impl Disk {
    /// For tests: the operation with index `n`, counted from 0, fails as on a full disk;
    /// a failing write leaves half of its bytes. Everything else works.
    #[must_use]
    pub fn failing_at(n: usize) -> Self {
        Self::with_fault(Fault::Fail { at: n, once: true })
    }

    /// For tests: as [`Self::failing_at`], and so does every operation after that one.
    #[cfg(test)]
    pub(crate) fn failing_from(n: usize) -> Self {
        Self::with_fault(Fault::Fail { at: n, once: false })
    }

    /// For tests: the machine goes down just before the operation with index `n`, counted
    /// from 0. What was not synced is lost as `loss` says, in the real directories, and
    /// every operation from then on fails.
    ///
    /// `stash` is an existing directory of the test on the same file system; what has been
    /// removed is kept there, to come back when its directory was never synced. Of file
    /// contents only what was written through this seam is lost, not what `SQLite` wrote.
    ///
    /// # Errors
    ///
    /// If `stash` cannot be opened.
    pub fn crashing_at(n: usize, loss: Loss, stash: &Path) -> Result<Self, Error> {
        let fault =
            Fault::crash(n, loss, stash).map_err(|source| Error::new("open", stash, source))?;
        Ok(Self::with_fault(fault))
    }

    /// For tests: somebody else does this to `path` just before the operation with index
    /// `n`, counted from 0. Everything works.
    #[cfg(test)]
    pub(crate) fn meanwhile(n: usize, action: fn(&Path), path: &Path) -> Self {
        let path = path.to_owned();
        Self::with_fault(Fault::Meanwhile {
            at: n,
            action,
            path,
        })
    }

    fn with_fault(fault: Fault) -> Self {
        let seam = Arc::new(Seam::new(fault));
        Self {
            seam,
            ..Self::default()
        }
    }

    /// The same disk, creating files with mode 0600 and directories with 0700: for what
    /// holds secrets.
    #[must_use]
    pub fn private(&self) -> Self {
        Self {
            readers: Readers::Nobody,
            ..self.clone()
        }
    }

    /// The same disk, creating files with mode 0644, whatever the umask is: for what another
    /// user is to read and holds no secrets.
    #[must_use]
    pub fn public(&self) -> Self {
        Self {
            readers: Readers::Everybody,
            ..self.clone()
        }
    }

    /// The same disk, on which a file that root creates belongs to whom its directory belongs
    /// to: for what the one who works in that directory is to read and replace, whoever wrote it.
    /// Where the file system does not let root do so, it stays root's.
    #[must_use]
    pub fn inheriting(&self) -> Self {
        Self {
            inherits: true,
            ..self.clone()
        }
    }

    /// The same disk, refusing to open, create, replace or remove `database` or a file
    /// `SQLite` keeps beside it, under whatever name or link: closing any descriptor of
    /// such a file drops the POSIX locks of every `SQLite` connection this process has to
    /// it (<https://www.sqlite.org/howtocorrupt.html>, section 2.2), and one taken from
    /// beside a database takes commits along (the same, section 4.2). Links are resolved
    /// here and now; the files need not exist yet.
    #[must_use]
    pub fn guarding(mut self, database: &Path) -> Self {
        self.guarded = Some(Arc::new(Guard::new(database)));
        self
    }

    /// How many operations there have been, failed ones included.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.seam.operations()
    }

    /// Creates one directory (mode 0750, or [`Self::private`]). Its parent must exist, it must not.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn create_dir(&self, path: &Path) -> Result<(), Error> {
        self.step("create directory", path, || {
            self.check_name(path)?;
            let mode = match self.readers {
                Readers::Nobody => 0o700,
                Readers::Group | Readers::Everybody => 0o750,
            };
            DirBuilder::new().mode(mode).create(path)?;
            self.seam.created(path)
        })
    }

    /// Creates a directory and those above it that are missing, durably.
    ///
    /// # Errors
    ///
    /// As [`Self::create_dir`].
    pub fn create_dirs(&self, path: &Path) -> Result<(), Error> {
        if path.is_dir() {
            return Ok(());
        }
        self.create_dirs(parent(path))?;
        self.create_dir(path)?;
        self.sync_dir(parent(path))
    }

    /// Creates a file (mode 0640, [`Self::private`] or [`Self::public`]) for writing and reading back. It must
    /// not exist.
    ///
    /// # Errors
    ///
    /// As the operating system says; also under a name of the guarded database.
    pub fn create(&self, path: &Path) -> Result<File, Error> {
        let inner = self.step("create", path, || {
            self.check_name(path)?;
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(self.readers.mode())
                .open(path)?;
            self.seam.created(path)?;
            if self.readers == Readers::Everybody {
                file.set_permissions(fs::Permissions::from_mode(self.readers.mode()))?;
            }
            if self.inherits
                && geteuid().is_root()
                && let Ok(owner) = fs::metadata(parent(path))
            {
                // New, so nobody can have made it a link to something of root's.
                let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
            }
            self.seam.begun(&file)?;
            Ok(file)
        })?;
        Ok(self.file(path, inner))
    }

    /// Makes a file without a name in a directory (`O_TMPFILE`), for trying things out:
    /// whatever happens, nothing of it is left.
    ///
    /// # Errors
    ///
    /// As the operating system says; some file systems have no such files.
    pub fn create_unnamed(&self, directory: &Path) -> Result<File, Error> {
        let unnamed = i32::try_from(OFlags::TMPFILE.bits()).unwrap_or_default();
        let inner = self.step("create a file in", directory, || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(unnamed)
                .mode(0o640)
                .open(directory)
        })?;
        Ok(self.file(directory, inner))
    }

    /// Opens a regular file for reading. Never for a live database, see [`Self::guarding`].
    ///
    /// # Errors
    ///
    /// As the operating system says; also for a directory, a pipe or a device, and for the
    /// guarded database.
    pub fn open(&self, path: &Path) -> Result<File, Error> {
        let inner = self.step("open", path, || {
            self.check_openable(path)?;
            let options = OFlags::NONBLOCK.bits().cast_signed();
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(options)
                .open(path)?;
            // What was opened need not be what was looked at: a pipe must not have been
            // waited for, and the database not be closed again.
            let opened = file.metadata()?;
            if let Some(Err(live)) = self.guarded.as_ref().map(|guard| guard.check(&opened)) {
                std::mem::forget(file);
                return Err(live);
            }
            check_regular(&opened)?;
            Ok(file)
        })?;
        Ok(self.file(path, inner))
    }

    /// The contents of a small file.
    ///
    /// # Errors
    ///
    /// As [`Self::open`]; also if the file is longer than `limit` bytes.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
        let file = self.open(path)?;
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|source| Error::new("read", path, source))?;
        if bytes.len() as u64 > limit {
            let long = io::Error::other(format!("it is longer than {limit} bytes"));
            return Err(Error::new("read", path, long));
        }
        Ok(bytes)
    }

    /// Renames, replacing `to` if it is a file.
    ///
    /// # Errors
    ///
    /// As the operating system says, and for the guarded database under either name; a
    /// directory is never replaced unless it is empty.
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.step("rename", from, || {
            self.check_name(from)?;
            self.check_name(to)?;
            let replaced = self.seam.set_aside(to)?;
            fs::rename(from, to)?;
            self.seam.renamed(from, to, replaced)
        })
    }

    /// Renames to a name that must not exist: whoever has made it meanwhile keeps it.
    ///
    /// # Errors
    ///
    /// As the operating system says, [`io::ErrorKind::AlreadyExists`] for one, and for the
    /// guarded database under either name.
    pub fn rename_new(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let renamed = self.step("rename", from, || {
            self.check_name(from)?;
            self.check_name(to)?;
            match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
                // The file system, NFS for one, or the kernel has no such rename.
                Err(Errno::INVAL | Errno::NOSYS) => return Ok(false),
                renamed => renamed?,
            }
            self.seam.renamed(from, to, None)?;
            Ok(true)
        })?;
        if renamed {
            return Ok(());
        }
        self.link(from, to)?;
        self.remove_file(from)
    }

    /// Gives a file a second name (a hard link). It must not exist.
    ///
    /// # Errors
    ///
    /// As the operating system says; some file systems have no hard links.
    pub fn link(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.step("link", from, || {
            self.check_name(from)?;
            self.check_name(to)?;
            fs::hard_link(from, to)?;
            self.seam.created(to)
        })
    }

    /// Removes a file or a symbolic link.
    ///
    /// # Errors
    ///
    /// As the operating system says; also for the guarded database.
    pub fn remove_file(&self, path: &Path) -> Result<(), Error> {
        self.step("remove", path, || {
            self.check_name(path)?;
            let kept = self.seam.set_aside(path)?;
            fs::remove_file(path)?;
            self.seam.removed(path, kept)
        })
    }

    /// Removes a large file that nobody else reads, from its end to its beginning. To give
    /// back gigabytes at once is one transaction of the file system, which also has to tell
    /// the device if it is mounted with `discard`; every `fsync` on the same file system,
    /// the service's own among them, waits for it.
    ///
    /// # Errors
    ///
    /// As [`Self::remove_file`]. On one, part of the contents may be gone.
    pub fn remove_gradually(&self, path: &Path) -> Result<(), Error> {
        self.remove_in_pieces(path, PIECE)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "leaves the disk to others; what is removed is not waited for by anybody"
    )]
    fn remove_in_pieces(&self, path: &Path, piece: u64) -> Result<(), Error> {
        let found = self.step("look at", path, || fs::symlink_metadata(path))?;
        if found.is_file() && found.len() > piece {
            let file = self.step("open", path, || {
                self.check_openable(path)?;
                let options = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
                OpenOptions::new()
                    .write(true)
                    .custom_flags(options)
                    .open(path)
            })?;
            let mut left = found.len();
            while left > piece {
                left -= piece;
                self.step("shorten", path, || file.set_len(left))?;
                std::thread::sleep(BETWEEN_PIECES);
            }
        }
        self.remove_file(path)
    }

    /// Removes a directory and everything in it; follows no symbolic link. Each entry is
    /// an operation of its own: on an error part of it is gone.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn remove_dir_all(&self, path: &Path) -> Result<(), Error> {
        self.remove_dir_by(path, Self::remove_file)
    }

    /// The same of a directory that nobody else reads from, whose large files go as in
    /// [`Self::remove_gradually`].
    fn remove_dir_gradually(&self, path: &Path) -> Result<(), Error> {
        self.remove_dir_by(path, Self::remove_gradually)
    }

    fn remove_dir_by(
        &self,
        path: &Path,
        remove_file: fn(&Self, &Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for name in self.list(path)? {
            let entry = path.join(name);
            if is_dir(&entry).map_err(|source| Error::new("remove", &entry, source))? {
                self.remove_dir_by(&entry, remove_file)?;
            } else {
                remove_file(self, &entry)?;
            }
        }
        self.step("remove", path, || {
            if !self.seam.stash_dir(path)? {
                fs::remove_dir(path)?;
            }
            Ok(())
        })
    }

    /// Makes what was created, renamed and removed in a directory durable.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn sync_dir(&self, path: &Path) -> Result<(), Error> {
        self.step("sync directory", path, || {
            self.check_identity(path)?;
            let directory = fs::File::open(path)?;
            directory.sync_all()?;
            self.seam.dir_synced(&directory)
        })
    }

    /// Makes a file durable that something else has written, `SQLite` for one.
    ///
    /// # Errors
    ///
    /// As [`Self::open`] and [`File::sync_all`].
    pub fn sync_file(&self, path: &Path) -> Result<(), Error> {
        self.open(path)?
            .sync_all()
            .map_err(|source| Error::new("sync", path, source))
    }

    /// The names in a directory, sorted.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn list(&self, path: &Path) -> Result<Vec<OsString>, Error> {
        self.step("list", path, || {
            let mut names = fs::read_dir(path)?
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect::<io::Result<Vec<_>>>()?;
            names.sort();
            Ok(names)
        })
    }

    /// Puts a whole file in place or none of it: written beside under a temporary name
    /// ([`temporary_of`]), synced, renamed over `path`, the directory synced.
    ///
    /// # Errors
    ///
    /// As the operating system says, and for the guarded database. `path` then has its old contents; only when the last
    /// sync failed it has the new ones, which a power cut may still undo.
    pub fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let temporary = temporary_of(path);
        let written = self
            .create_over(&temporary)
            .and_then(|mut file| file.fill(bytes))
            .and_then(|()| self.rename(&temporary, path));
        if written.is_err() {
            // The write's own error says more than that of tidying up after it.
            let _ = self.remove_file(&temporary);
        }
        written?;
        self.sync_dir(parent(path))
    }

    /// Creates a file in place of what a process that died has left under its name.
    fn create_over(&self, path: &Path) -> Result<File, Error> {
        match self.create(path) {
            Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => {
                self.remove_file(path)?;
                self.create(path)
            }
            result => result,
        }
    }

    /// Bytes an unprivileged process may still write to the file system `path` is on
    /// (`f_bavail` of POSIX `statvfs`).
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn free_bytes(&self, path: &Path) -> Result<u64, Error> {
        Ok(self.space(path)?.free)
    }

    /// As [`space`].
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn space(&self, path: &Path) -> Result<Space, Error> {
        self.step("measure free space at", path, || space(path))
    }

    fn check_openable(&self, path: &Path) -> io::Result<()> {
        check_regular(&fs::metadata(path)?)?;
        self.check_identity(path)
    }

    /// That opening `path` is not opening the guarded database.
    fn check_identity(&self, path: &Path) -> io::Result<()> {
        self.guarded
            .as_ref()
            .map_or(Ok(()), |guard| guard.check_identity(path))
    }

    /// That what has, or would have, the name `path` is not part of the guarded database.
    fn check_name(&self, path: &Path) -> io::Result<()> {
        self.guarded
            .as_ref()
            .map_or(Ok(()), |guard| guard.check_name(path))
    }

    fn file(&self, path: &Path, inner: fs::File) -> File {
        File {
            inner,
            path: path.to_owned(),
            seam: Arc::clone(&self.seam),
            next: None,
        }
    }

    fn step<T>(
        &self,
        doing: &'static str,
        path: &Path,
        action: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, Error> {
        self.seam
            .count()
            .and_then(|()| action())
            .map_err(|source| Error::new(doing, path, source))
    }
}

/// An open file whose reads, writes and syncs are operations of its [`Disk`].
#[derive(Debug)]
pub struct File {
    inner: fs::File,
    path: PathBuf,
    seam: Arc<Seam>,
    /// Where the next read begins, of a file that is read by requests.
    next: Option<u64>,
}

impl File {
    /// The path it was opened or created under.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn size(&self) -> Result<u64, Error> {
        self.seam
            .count()
            .and_then(|()| self.inner.metadata())
            .map(|metadata| metadata.len())
            .map_err(|source| Error::new("measure", &self.path, source))
    }

    /// What it is, of the file that was opened, whatever its name leads to by now.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn metadata(&self) -> Result<Metadata, Error> {
        self.seam
            .count()
            .and_then(|()| self.inner.metadata())
            .map_err(|source| Error::new("look at", &self.path, source))
    }

    /// Takes away what was written from the byte `length` on; writing goes on there.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn truncate(&mut self, length: u64) -> Result<(), Error> {
        self.seam
            .count()
            .and_then(|()| self.inner.set_len(length))
            .and_then(|()| self.inner.seek(SeekFrom::Start(length)))
            .map(drop)
            .map_err(|source| Error::new("shorten", &self.path, source))
    }

    /// Gives a new file what it had when it was stored, and says whether it has its owner:
    /// only root may give a file to somebody else. To be called after the last write.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn set_attributes(&self, attributes: &Attributes) -> Result<bool, Error> {
        self.seam
            .count()
            .and_then(|()| {
                let mine = self.inner.metadata()?;
                let owned = attributes.owner == Some((mine.uid(), mine.gid()))
                    || attributes.owner.is_some_and(|(user, group)| {
                        fchown(&self.inner, Some(user), Some(group)).is_ok()
                    });
                let mode = fs::Permissions::from_mode(attributes.mode & 0o777);
                self.inner.set_permissions(mode)?;
                let modified = Duration::from_secs(attributes.modified);
                self.inner.set_modified(SystemTime::UNIX_EPOCH + modified)?;
                Ok(owned)
            })
            .map_err(|source| Error::new("set the mode and the time of", &self.path, source))
    }

    /// Fills the buffer from this offset on, wherever the file is at.
    ///
    /// # Errors
    ///
    /// As the operating system says; also if the file ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.seam.count()?;
        self.inner.read_exact_at(buffer, offset)
    }

    /// Makes the contents durable (`fdatasync`).
    ///
    /// # Errors
    ///
    /// As the operating system says. What was written before may then be lost for good: a
    /// later success means nothing.
    pub fn sync_data(&self) -> io::Result<()> {
        self.seam.count()?;
        self.inner.sync_data()?;
        self.seam.synced(&self.inner)
    }

    /// Makes contents and metadata durable (`fsync`).
    ///
    /// # Errors
    ///
    /// As [`Self::sync_data`].
    pub fn sync_all(&self) -> io::Result<()> {
        self.seam.count()?;
        self.inner.sync_all()?;
        self.seam.synced(&self.inner)
    }

    /// Writes all of a new file and makes it durable.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn fill(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write_all(bytes)
            .and_then(|()| self.sync_all())
            .map_err(|source| Error::new("write", &self.path, source))
    }

    /// Makes this new file a clone of another: it shares the blocks, and a block that is
    /// written to on either side becomes two (Linux, `FICLONE`). Quick, and the source is as
    /// if it had been read. The clone is not durable yet.
    ///
    /// # Errors
    ///
    /// As the operating system says; [`Error::is_unshareable`] tells where there are no
    /// clones from what went wrong.
    pub fn share(&self, source: impl AsFd) -> Result<(), Error> {
        self.seam
            .count()
            .and_then(|()| {
                // Between a file that btrfs copies on write and one it does not, there are
                // no clones. Elsewhere the flags say nothing, or cannot be read.
                let flags = rustix::fs::ioctl_getflags(&source).unwrap_or(IFlags::empty());
                if flags.contains(IFlags::NOCOW) {
                    rustix::fs::ioctl_setflags(&self.inner, IFlags::NOCOW)?;
                }
                Ok(rustix::fs::ioctl_ficlone(&self.inner, source)?)
            })
            .map_err(|source| Error::new("clone into", &self.path, source))
    }

    /// Gives it the owner and the mode of another file.
    ///
    /// # Errors
    ///
    /// As the operating system says; only root may give a file to somebody else.
    pub fn adopt(&self, like: &Path) -> Result<(), Error> {
        self.seam
            .count()
            .and_then(|()| fs::metadata(like))
            .and_then(|like| {
                let mine = self.inner.metadata()?;
                if (mine.uid(), mine.gid()) != (like.uid(), like.gid()) {
                    fchown(&self.inner, Some(like.uid()), Some(like.gid()))?;
                }
                self.inner.set_permissions(like.permissions())
            })
            .map_err(|source| Error::new("set the owner and the mode of", &self.path, source))
    }

    /// The same file, to be read in order, at most [`REQUEST`] bytes at a time: the kernel reads what it
    /// is asked for (`POSIX_FADV_RANDOM`, `posix_fadvise(2)`), and is asked for one request
    /// ahead of what was read.
    ///
    /// By itself it would read ahead of who reads in order by as much at once as the device was
    /// set up for (`read_ahead_kb`): megabytes, and a service's sync waits behind each of them,
    /// whatever the priority is. Advice only: a refusal changes nothing.
    #[must_use]
    pub fn by_requests(mut self) -> Self {
        set_readahead(&self.inner, false);
        self.next = Some(0);
        self
    }

    /// Asks the kernel to drop this file's pages from its cache: so that a read-back comes
    /// from the device, and so that a backup does not push out the pages of the database
    /// in service. Advice only: what is not synced stays, and a refusal changes nothing.
    pub fn forget_cached(&self) {
        let _ = rustix::fs::fadvise(&self.inner, 0, None, Advice::DontNeed);
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// What a file is besides its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions. What is above them (setuid and so on) is not given back to anybody.
    pub mode: u32,
    /// User and group, as numbers; `None`: not known.
    pub owner: Option<(u32, u32)>,
    /// When it was last written to, in seconds since 1970 (UTC).
    pub modified: u64,
}

impl Read for File {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.seam.count()?;
        let most = match self.next {
            Some(_) => buffer.len().min(REQUEST),
            None => buffer.len(),
        };
        let read = self.inner.read(&mut buffer[..most])?;
        if let Some(next) = &mut self.next {
            *next += read as u64;
            will_read(&self.inner, *next);
        }
        Ok(read)
    }
}

impl Write for File {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.seam.count() {
            if self.seam.tears_writes() {
                self.inner.write_all(&buffer[..buffer.len() / 2])?;
            }
            return Err(error);
        }
        self.inner.write(buffer)
    }

    /// Nothing is buffered on this side of the kernel.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for File {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.seam.count()?;
        let found = self.inner.seek(position)?;
        self.next = self.next.map(|_| found);
        Ok(found)
    }
}

/// Reads a file from its beginning to its end, for the kernel to have it in its cache when
/// somebody reads it here and there, as `SQLite` does: on a disk, and on most devices, that
/// is many times slower than in one go. Never for a live database. An aid and no operation:
/// what cannot be read is for the one who then needs it to report.
///
/// It reads by requests, see [`File::by_requests`], and leaves alone what is too large to stay in
/// the cache: that would push out the pages of the database in service, and its own beginning
/// before its end is reached. `SQLite` reads that with the kernel's readahead.
pub fn read_ahead(path: &Path, is_enough: impl Fn() -> bool) {
    let Some(mut file) = regular(path) else {
        return;
    };
    let bytes = file.metadata().map_or(0, |file| file.len());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if !is_worth_caching(bytes, available(&memory)) {
        return;
    }
    set_readahead(&file, false);
    let mut buffer = vec![0; REQUEST];
    while !is_enough() {
        if !file.read(&mut buffer).is_ok_and(|read| read > 0) {
            return;
        }
    }
}

/// Whether the kernel is to read ahead of who reads in order, as it does unless it is told.
pub(crate) fn set_readahead(file: &fs::File, ahead: bool) {
    let advice = if ahead {
        Advice::Normal
    } else {
        Advice::Random
    };
    let _ = rustix::fs::fadvise(file, 0, None, advice);
}

/// Asks the kernel for the request at this offset, without waiting for it.
pub(crate) fn will_read(file: &fs::File, offset: u64) {
    let _ = rustix::fs::fadvise(
        file,
        offset,
        NonZeroU64::new(REQUEST as u64),
        Advice::WillNeed,
    );
}

/// Asks the kernel to drop a file's pages from its cache, as [`File::forget_cached`], after
/// something else has read it, `SQLite` for one. Never for a live database. No operation.
pub fn forget_cached(path: &Path) {
    if let Some(file) = regular(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
    }
}

/// Opened for reading, if it is a regular file and can be.
fn regular(path: &Path) -> Option<fs::File> {
    let is_regular = fs::symlink_metadata(path).is_ok_and(|file| file.is_file());
    is_regular.then(|| fs::File::open(path).ok()).flatten()
}

/// Whether a file of so many bytes is to be in the cache, of the bytes that are available for
/// it and everybody else; `None`: that is not known.
fn is_worth_caching(bytes: u64, available: Option<u64>) -> bool {
    available.is_none_or(|available| bytes <= available / 2)
}

/// Bytes that can be had without swapping, by what `/proc/meminfo` says (proc(5), in units of
/// 1,024 bytes).
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What a file system has room for (POSIX `statvfs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes an unprivileged process may still write (`f_bavail`).
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The room on the file system `path` is on. No operation: for whoever looks again and again
/// beside a run. Where the volume is a network's, it may take for ever.
///
/// # Errors
///
/// As the operating system says.
pub fn space(path: &Path) -> io::Result<Space> {
    let file_system = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(file_system.f_frsize);
    Ok(Space {
        free: bytes(file_system.f_bavail),
        total: bytes(file_system.f_blocks),
    })
}

/// Whether two paths are on one file system, as far as can be told: subvolumes of btrfs say
/// that they are not.
#[must_use]
pub fn share_file_system(one: &Path, other: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|found| found.dev());
    device(one).is_some() && device(one) == device(other)
}

/// The directory a path is in; `.` for a bare name.
#[must_use]
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Where [`Disk::write_atomically`] prepares a file: beside it, hidden.
#[must_use]
pub fn temporary_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    path.with_file_name(name)
}

/// The path with links resolved, of a file that need not exist, in a directory that must:
/// the name under which it would be created.
///
/// # Errors
///
/// As the operating system says.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match (fs::canonicalize(&path), path.file_name()) {
            (Err(error), Some(name)) if error.kind() == io::ErrorKind::NotFound => {
                match fs::read_link(&path) {
                    Ok(target) => path = parent(&path).join(target),
                    Err(_) => return Ok(fs::canonicalize(parent(&path))?.join(name)),
                }
            }
            (resolved, _) => return resolved,
        }
    }
    Err(Errno::LOOP.into())
}

fn check_regular(found: &Metadata) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    Err(io::Error::other("it is not a regular file"))
}

fn is_dir(path: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(path)?.is_dir())
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
