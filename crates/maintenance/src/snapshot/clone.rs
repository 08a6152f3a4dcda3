//! A clone of the pinned file, where the file system copies on write (XFS, btrfs).
//!
//! It takes the file's extents instead of its bytes, so it is done in the blink of an eye
//! whatever the size, and the pin with it: on a rollback journal announces wait no longer
//! than in WAL. What is written to the database from then on goes to new blocks, and the
//! clone keeps the old ones.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use super::sync::Syncer;
use super::{Error, Pace};
use crate::disk::{self, Disk};

/// Bytes of the file that is cloned to see whether that works; more than btrfs keeps
/// within its tree instead of in blocks.
const TRIED: usize = 64 << 10;

/// Whether a file of the database's directory can be cloned into `directory`. Tried with
/// two files of our own, which have no names and so leave nothing behind; the database is
/// not touched.
#[must_use]
pub fn possible(database: &Path, directory: &Path, disk: &Disk) -> bool {
    let tried = || {
        let mut source = disk.create_unnamed(disk::parent(database))?;
        let written = source.write_all(&vec![1; TRIED]);
        written.map_err(|error| disk::Error::new("write", source.path(), error))?;
        disk.create_unnamed(directory)?.share(&source)
    };
    tried()
        .inspect_err(|error| tracing::debug!(%error, "no clones"))
        .is_ok()
}

/// Makes the new file `target` a clone of the pinned `source` and syncs it. `false` if
/// that is not possible between the two; nothing was written then.
pub(super) fn copy(
    source: &'static File,
    bytes: u64,
    target: &disk::File,
    disk: &Disk,
    pace: &Pace<'_>,
) -> Result<bool, Error> {
    pace.go_on()?;
    match target.share(source) {
        Ok(()) => {}
        Err(error) if error.is_unshareable() => {
            tracing::debug!(%error, "no clone: the bytes are copied");
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    Syncer::of(disk.open(target.path())?, pace.watch)?.finish()?;
    pace.watch.advance(bytes);
    Ok(true)
}
