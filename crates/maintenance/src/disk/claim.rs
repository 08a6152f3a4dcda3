//! Unfinished work, and how to tell the living from the dead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::{Disk, Error, is_dir, parent};

/// A directory of unfinished work. Its owner holds a lock (`flock`) on it, which is how
/// [`Disk::sweep`] tells the living from the dead; dropped, it takes the directory along.
#[derive(Debug)]
pub struct Claim {
    disk: Disk,
    path: PathBuf,
    lock: Option<fs::File>,
}

impl Claim {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory its final name; it stays when the claim is dropped.
    ///
    /// # Errors
    ///
    /// If it cannot be renamed, or the rename not be made durable. The directory is then
    /// removed as that of any unfinished work, under either name.
    pub fn promote(mut self, to: &Path) -> Result<(), Error> {
        self.disk.rename(&self.path, to)?;
        if let Err(error) = self.disk.sync_dir(parent(to)) {
            // A name that a power cut could take back promises nothing: take it back here.
            // If that fails too, the set under the final name is at least a whole one.
            if self.disk.rename(to, &self.path).is_err() {
                self.path.clear();
            }
            return Err(error);
        }
        self.path.clear();
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        // A copy that was given up may be as large as the database.
        if let Err(error) = self.disk.remove_dir_gradually(&self.path) {
            tracing::warn!("unfinished work stays until the next sweep: {error}");
        }
    }
}

impl Disk {
    /// Creates a directory for unfinished work, locked while the returned value lives.
    ///
    /// # Errors
    ///
    /// As the operating system says; `path` must not exist.
    pub fn claim(&self, path: &Path) -> Result<Claim, Error> {
        self.create_dir(path)?;
        let mut claim = Claim {
            disk: self.clone(),
            path: path.to_owned(),
            lock: None,
        };
        claim.lock = self.lock_dir(path)?;
        if claim.lock.is_none() {
            // Whoever swept it between the two steps is about to remove it.
            claim.path.clear();
            let taken = io::Error::from(io::ErrorKind::ResourceBusy);
            return Err(Error::new("lock", path, taken));
        }
        Ok(claim)
    }

    /// Removes unfinished work, a [`Claim`]'s directory or a single file, unless its owner
    /// is alive. Says whether it is gone.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn sweep(&self, path: &Path) -> Result<bool, Error> {
        if !is_dir(path).map_err(|source| Error::new("sweep", path, source))? {
            return self.remove_file(path).map(|()| true);
        }
        let Some(_lock) = self.lock_dir(path)? else {
            return Ok(false);
        };
        self.remove_dir_all(path).map(|()| true)
    }

    /// The lock ends with the descriptor, so with the process, however it ends.
    pub(super) fn lock_dir(&self, path: &Path) -> Result<Option<fs::File>, Error> {
        self.step("lock", path, || {
            self.check_identity(path)?;
            let directory = fs::File::open(path)?;
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(Some(directory)),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }
}
