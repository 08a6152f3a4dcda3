//! The live database, under every name it has and every name `SQLite` may yet give it.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{parent, resolve};

/// What `SQLite` puts beside a database file of the same name.
pub(super) const SUFFIXES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// Names of a database and of what is, or will be, beside it. Links to directories are
/// resolved in all of them.
#[derive(Debug)]
pub(super) struct Guard {
    names: Vec<PathBuf>,
}

impl Guard {
    /// Guards the path as it was configured, and the file it leads to.
    pub(super) fn new(database: &Path) -> Self {
        let configured = in_its_directory(database).unwrap_or_else(|| database.to_owned());
        let file = resolve(database).unwrap_or_else(|_| configured.clone());
        let with_suffix = |database: &PathBuf, suffix| {
            let mut name = database.clone().into_os_string();
            name.push(suffix);
            PathBuf::from(name)
        };
        let names = SUFFIXES
            .iter()
            .flat_map(|suffix| [&file, &configured].map(|name| with_suffix(name, suffix)))
            .collect();
        Self { names }
    }

    /// That the file `path` leads to is not one of them.
    pub(super) fn check_identity(&self, path: &Path) -> io::Result<()> {
        match fs::metadata(path) {
            Ok(found) => self.check(&found),
            // What does not exist cannot be opened either.
            Err(_) => Ok(()),
        }
    }

    /// That neither the name `path` nor the file of that name, though not one a link of
    /// that name leads to, is one of them.
    pub(super) fn check_name(&self, path: &Path) -> io::Result<()> {
        if let Some(name) = in_its_directory(path)
            && self.names.contains(&name)
        {
            return Err(refused(&name));
        }
        match fs::symlink_metadata(path) {
            Ok(found) => self.check(&found),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn check(&self, found: &Metadata) -> io::Result<()> {
        let identity = |of: &Metadata| (of.dev(), of.ino());
        let live = |name: &&PathBuf| {
            fs::metadata(name).is_ok_and(|live| identity(&live) == identity(found))
        };
        match self.names.iter().find(live) {
            Some(name) => Err(refused(name)),
            None => Ok(()),
        }
    }
}

/// The path with links to its directory resolved; `None` if that does not exist.
fn in_its_directory(path: &Path) -> Option<PathBuf> {
    let directory = fs::canonicalize(parent(path)).ok()?;
    Some(directory.join(path.file_name()?))
}

fn refused(name: &Path) -> io::Error {
    io::Error::other(format!(
        "it is {}, which this process has open as a database; closing a second descriptor \
         would drop its locks, and removing or replacing it would lose what is in it",
        name.display()
    ))
}
