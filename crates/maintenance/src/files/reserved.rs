//! What is never stored as a file: known by device and inode, whatever it is called.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::disk;

/// What `SQLite`, and this library, keep beside a database.
const DATABASE: [(&str, &str); 5] = [
    ("", "the database, which the backup has anyway"),
    ("-wal", "the database's log, which the backup has anyway"),
    ("-shm", "the index of the database's log"),
    ("-journal", "the database's journal"),
    (".lock", "the database's lock file"),
];
const BACKUPS: &str = "in the directory of the backups";

/// A file or a directory, whatever it is called.
type Identity = (u64, u64);

/// What is never stored: a database with what is beside it, and a directory of backups.
#[derive(Debug, Clone)]
pub struct Reserved {
    files: Vec<(Identity, &'static str)>,
    directory: Option<Identity>,
}

impl Reserved {
    /// Looks at what there is now, links resolved, from metadata alone.
    #[must_use]
    pub fn of(database: &Path, backups: &Path) -> Self {
        let resolved = disk::resolve(database).unwrap_or_else(|_| database.to_owned());
        let names = [database, &resolved].into_iter().flat_map(|name| {
            let beside = DATABASE.iter();
            beside.map(move |(suffix, what)| {
                let mut path = name.as_os_str().to_owned();
                path.push(suffix);
                (PathBuf::from(path), *what)
            })
        });
        Self {
            files: names
                .filter_map(|(path, what)| Some((identity(&path)?, what)))
                .collect(),
            directory: identity(backups),
        }
    }

    /// What the thing at `path`, or behind it if it is a link, is of these.
    #[must_use]
    pub fn find(&self, path: &Path) -> Option<&'static str> {
        let found = identity(path)?;
        let file = self.files.iter().find(|(reserved, _)| *reserved == found);
        file.map(|(_, what)| *what).or_else(|| {
            let path = fs::canonicalize(path).ok()?;
            let directory = self.directory?;
            path.ancestors()
                .any(|above| identity(above) == Some(directory))
                .then_some(BACKUPS)
        })
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}
