//! From a rollback journal to WAL while the service has the file open.

use std::path::Path;
use std::time::Duration;

use super::pin::{Attempt, PinError};
use super::{Database, Error, Journal, Pooled};
use crate::snapshot::Watch;

impl Database {
    /// Takes the database over to WAL, if it is not in that mode already, and says how much of
    /// the limit is left. For a moment nobody else may be reading or writing it, so the caller
    /// closes its gate and drains before; connections that are idle are not in the way. They, and
    /// those of this pool, find the log when they read next.
    ///
    /// Killed meanwhile or afterwards, it is in the one mode or in the other, and whole.
    ///
    /// # Errors
    ///
    /// [`PinError::Busy`] when somebody was in the way until the limit, [`PinError::Failed`]
    /// otherwise. Either way nothing is held.
    pub fn switch_to_wal(&self, limit: Duration, watch: &Watch) -> Result<Duration, PinError> {
        let attempt = Attempt::new(self, limit, watch);
        let connection = attempt.connection()?;
        let found = attempt.patiently("read", || Journal::of(&connection))?;
        if found != Journal::Wal
            && let Err(error) = switch(&attempt, &connection, self.path())
        {
            // What failed may have come after the commit.
            let found = Journal::of(&connection);
            if !found.is_ok_and(|found| found == Journal::Wal) {
                return Err(error);
            }
        }
        Ok(attempt.left())
    }
}

fn switch(attempt: &Attempt<'_>, connection: &Pooled, path: &Path) -> Result<(), PinError> {
    let set = |level: &str| {
        connection
            .pragma_update(None, "synchronous", level)
            .map_err(|e| attempt.error("set how commits are synced in", e))
    };
    // The mode is changed under a rollback journal. What is committed from then on is in the log,
    // which nobody would look at if a power failure brought that journal back: its removal has
    // to be durable as well.
    set("EXTRA")?;
    let switched = attempt.patiently("switch", || Journal::Wal.set(connection));
    // As `Manager` has it.
    set("NORMAL")?;
    let kept = switched.map_err(|error| match error {
        PinError::Busy(why) => PinError::Busy(in_the_way(path, &why)),
        failed @ PinError::Failed(_) => failed,
    })?;
    // What is said before the commit is not believed; and the log is opened while nobody waits
    // for it.
    let found = match kept {
        Journal::Wal => attempt.patiently("read", || Journal::of(connection))?,
        kept => kept,
    };
    if found == Journal::Wal {
        return Ok(());
    }
    let refused = Error::ModeRefused {
        path: path.into(),
        wanted: Journal::Wal,
        kept: found,
    };
    Err(refused.into())
}

/// Who it is SQLite does not tell.
fn in_the_way(path: &Path, why: &str) -> String {
    let path = path.display();
    format!(
        "the journal mode of {path} can be switched to WAL only while nobody else reads or writes \
         it, and another program did all the while ({why}); `fuser -v {path}` shows which have it \
         open: end its transaction or the program, and the next attempt switches"
    )
}

#[cfg(test)]
mod tests;
