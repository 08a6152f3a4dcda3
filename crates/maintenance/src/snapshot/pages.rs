//! Method `pages`: [`SQLite`'s online backup](https://www.sqlite.org/backup.html) from the
//! pinned connection.
//!
//! The API starts again from page 1 whenever the source changed between two steps. It
//! notices when a step begins a read transaction; the pinned connection has one already,
//! so it never starts again, whatever writers do.

use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::sync::Syncer;
use super::{CHUNK, Error, Pace};
use crate::disk::Disk;
use crate::sqlite::Pin;

/// Copies to the new file `raw` and syncs it.
pub(super) fn copy(pin: &Pin, raw: &Path, disk: &Disk, pace: &Pace<'_>) -> Result<(), Error> {
    // Made here and not by SQLite: it must be new, and its mode is the disk's to decide.
    drop(disk.create(raw)?);
    let failed = |doing| {
        move |source| Error::Sqlite {
            doing,
            path: raw.to_owned(),
            source,
        }
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(raw, flags).map_err(failed("open"))?;
    // Nobody else knows the file, and a copy that is not finished is thrown away: no
    // journal, no locks in between, and one sync at the end, which is ours.
    target
        .execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;",
        )
        .map_err(failed("set up"))?;
    fill(pin, &mut target, pace, failed("copy the database to"))?;
    target
        .close()
        .map_err(|(_, source)| failed("close")(source))?;

    Syncer::of(disk.open(raw)?, pace.watch)?.finish()
}

fn fill(
    pin: &Pin,
    target: &mut Connection,
    pace: &Pace<'_>,
    failed: impl Fn(rusqlite::Error) -> Error,
) -> Result<(), Error> {
    let page_size = u64::from(pin.facts.page_size);
    let step = i32::try_from(CHUNK / pin.facts.page_size as usize).unwrap_or(1);
    // Lent for as long as the backup goes on: who ends the pin meanwhile waits for a step.
    let source = pin.connection().ok_or(Error::Ended)?;
    let backup = Backup::new(&source, target).map_err(&failed)?;
    let mut done = 0;
    loop {
        let result = backup.step(step).map_err(&failed)?;
        let progress = backup.progress();
        let pages = u64::try_from(progress.pagecount - progress.remaining).unwrap_or(0);
        let bytes = pages * page_size;
        pace.advance(bytes.saturating_sub(done), bytes)?;
        done = bytes;
        match result {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            // The source is in a read transaction and the target is ours alone.
            _ => return Err(failed(busy())),
        }
    }
}

fn busy() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None)
}
