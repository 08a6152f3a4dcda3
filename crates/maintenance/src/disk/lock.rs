//! Locks on files: who uses a database, and whether anybody does.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, fcntl_lock, flock};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::{Disk, Error, File};

/// A lock file held (`flock`) until dropped, and no longer than the process lives. The
/// file stays: removing it could take it from under the next holder.
#[derive(Debug)]
pub struct Lock {
    file: fs::File,
}

impl Lock {
    /// Writes into the lock file what others are to read of its holder. For their messages
    /// only: a disk that is full must not keep anybody from removing what fills it, so a
    /// failure leaves the file empty and is no error.
    pub fn inscribe(&self, text: &str) {
        if self.file.set_len(0).is_ok() && self.file.write_all_at(text.as_bytes(), 0).is_err() {
            let _ = self.file.set_len(0);
        }
    }
}

/// A hold (`flock`) on a directory until dropped, and no longer than the process lives. It keeps
/// nobody from anything but from taking it, too.
#[derive(Debug)]
pub struct Hold {
    _directory: fs::File,
}

impl Disk {
    /// Takes hold of a directory; `None` if somebody else has. Nothing is written.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn hold_dir(&self, path: &Path) -> Result<Option<Hold>, Error> {
        let directory = self.lock_dir(path)?;
        Ok(directory.map(|directory| Hold {
            _directory: directory,
        }))
    }

    /// Takes a lock file; `None` if somebody else has it. Where there is none it is created
    /// (mode 0640), and by root with the owner and the group of `like`, so that a start as
    /// root does not lock out the user the service otherwise runs as.
    ///
    /// # Errors
    ///
    /// If it cannot be opened or created; also if it is a symbolic link.
    pub fn lock_file(&self, path: &Path, like: &Path) -> Result<Option<Lock>, Error> {
        self.step("lock", path, || {
            self.check_name(path)?;
            let file = match lock_options().create_new(true).open(path) {
                // New, so nobody can have made it a link to something of root's.
                Ok(file) if geteuid().is_root() => {
                    let like = fs::metadata(like)?;
                    fchown(&file, Some(like.uid()), Some(like.gid()))?;
                    file
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    lock_options().open(path)?
                }
                created => created?,
            };
            let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
            Ok(taken(locked)?.then_some(Lock { file }))
        })
    }

    /// Opens a database file with an exclusive POSIX lock on all of it; `None` if another
    /// process has any lock there. So it finds every process that uses the database in WAL
    /// mode, since those hold a shared lock for the life of a connection, and on a rollback
    /// journal every process in a transaction
    /// (<https://www.sqlite.org/lockingv3.html>). Nobody else can begin to use the database
    /// until the file is dropped.
    ///
    /// # Errors
    ///
    /// If it cannot be opened for writing; also for a guarded one, as [`Self::open`].
    pub fn lock_database(&self, path: &Path) -> Result<Option<File>, Error> {
        let inner = self.step("lock", path, || {
            self.check_openable(path)?;
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            let locked = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
            Ok(taken(locked)?.then_some(file))
        })?;
        Ok(inner.map(|inner| self.file(path, inner)))
    }
}

impl File {
    /// Takes the lock of [`Disk::lock_database`] again, which is lost when `SQLite` closes
    /// the database in this process. Says whether nobody else got in between.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn lock_again(&self) -> Result<bool, Error> {
        self.seam
            .count()
            .and_then(|()| {
                taken(fcntl_lock(
                    &self.inner,
                    FlockOperation::NonBlockingLockExclusive,
                ))
            })
            .map_err(|source| Error::new("lock", &self.path, source))
    }
}

fn lock_options() -> OpenOptions {
    let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.write(true).mode(0o640).custom_flags(no_follow);
    options
}

/// Whether the lock was taken; POSIX leaves open which of the two says that it was not.
fn taken(locked: rustix::io::Result<()>) -> io::Result<bool> {
    match locked {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
