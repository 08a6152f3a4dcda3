//! Descriptors of live databases: one per file, opened once per process, never closed.
//!
//! Opening and reading a database beside `SQLite` is harmless; *closing* any descriptor of
//! it drops all POSIX locks the process has on the file, and with them the pin
//! ([How to corrupt, 2.2](https://www.sqlite.org/howtocorrupt.html)). So what is opened
//! here is leaked, on every path. There is one per database file, and while it is open its
//! inode number cannot be given to another file.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::{Error, Identity};

static KEPT: Mutex<BTreeMap<Identity, &'static File>> = Mutex::new(BTreeMap::new());

/// The descriptor, for reading at offsets and for `fdatasync`, of the regular file at
/// `path`, which must be the one with this identity.
///
/// # Errors
///
/// [`Error::Replaced`] when the path names another file, [`Error::NotAFile`] when it is
/// not a regular one, and what the file system says.
pub(crate) fn descriptor(path: &Path, identity: Identity) -> Result<&'static File, Error> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    // From metadata: a pipe would block in `open`, a device may act on it.
    let named = Identity::of(path)?;
    let replaced = || Error::Replaced { path: path.into() };
    if named != identity {
        return Err(replaced());
    }
    if let Some(file) = kept.get(&identity) {
        return Ok(file);
    }
    let failed = |source| Error::Io {
        doing: "open",
        path: path.into(),
        source,
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "leaked in the same line, so it is never closed"
    )]
    let file: &'static File = Box::leak(Box::new(File::open(path).map_err(failed)?));
    // What was opened need not be what the metadata was of.
    let opened = Identity::from(&file.metadata().map_err(failed)?);
    kept.entry(opened).or_insert(file);
    if opened == identity {
        Ok(file)
    } else {
        Err(replaced())
    }
}
