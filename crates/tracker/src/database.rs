//! The tracker's database: what must hold before upstream opens it, whose own answer to
//! most of it is a panic.

use std::path::Path;

use anyhow::Context as _;
use torrust_tracker::core::Tracker;
use torrust_tracker::core::services::statistics::setup;
use torrust_tracker::core::statistics::{EventSender, Repo};
use torrust_tracker_configuration::Core;
use torrust_tracker_maintenance::disk::parent;
use torrust_tracker_maintenance::sqlite::{self, inspect};

/// Older ones can corrupt a database when its write-ahead log is reset while another
/// connection checkpoints (fixed in 3.51.3). As `sqlite3_libversion_number` counts.
const OLDEST_SQLITE: i32 = 3_051_003;

/// Refuses to run on a SQLite library that is too old.
///
/// # Errors
///
/// When it is, which is a matter of how this binary was built.
pub fn check_library() -> anyhow::Result<()> {
    let linked = rusqlite::version_number();
    anyhow::ensure!(
        linked >= OLDEST_SQLITE,
        "this binary is linked with SQLite {}, which can corrupt a database in WAL mode; \
         build it with the committed Cargo.lock, which brings 3.51.3 or newer",
        rusqlite::version(),
    );
    Ok(())
}

/// Checks that the database can be opened or created. Creates nothing, and changes nothing:
/// it only looks at the header of the file, because a connection that closes as the last
/// one checkpoints the write-ahead log into it. To be called before this process has a
/// connection to the database, whose locks the end of a plain descriptor would drop.
///
/// # Errors
///
/// When the directory is missing or what is there is not an SQLite database.
pub fn check_file(path: &Path) -> anyhow::Result<()> {
    let directory = parent(path);
    anyhow::ensure!(
        directory.is_dir(),
        "core.database.path = {}: there is no directory {}; create it (`mkdir -p`) and let \
         the user of this process write to it",
        path.display(),
        directory.display(),
    );
    match inspect(path) {
        Ok(_) | Err(sqlite::Error::Missing { .. }) => Ok(()),
        Err(error) => Err(error).context("core.database.path"),
    }
}

/// Opens the database and creates what is missing of it, as upstream does. Blocks.
///
/// # Errors
///
/// When the database cannot be opened.
///
/// # Panics
///
/// In upstream, when its tables cannot be created.
pub fn open(core: &Core, statistics: Option<Statistics>) -> anyhow::Result<Tracker> {
    let (sender, repository) = statistics.unwrap_or_else(|| (None, Repo::new()));
    Tracker::new(core, sender, repository).context("could not open the database")
}

/// Where a tracker counts what it does.
pub type Statistics = (Option<Box<dyn EventSender>>, Repo);

/// As configured. Needs an async runtime, in which the counting task is spawned.
pub fn statistics(core: &Core) -> Statistics {
    setup::factory(core.tracker_usage_statistics)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "the tests make the files")]
mod tests {
    use super::*;

    #[test]
    fn the_linked_library_is_new_enough() {
        check_library().expect("the lock file sees to it");
    }

    #[test]
    fn a_missing_directory_is_named_and_not_created() {
        let directory = tempfile::tempdir().expect("a directory");
        let missing = directory.path().join("missing");
        let error = check_file(&missing.join("sqlite3.db")).expect_err("no directory");
        assert!(
            error.to_string().contains(&missing.display().to_string()),
            "{error}"
        );
        assert!(!missing.exists());
    }

    #[test]
    fn a_missing_file_is_left_for_upstream_to_create() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sqlite3.db");
        check_file(&path).expect("will be created");
        assert!(!path.exists());
        check_file(Path::new("sqlite3.db")).expect("in the working directory");
    }

    #[test]
    fn a_file_that_is_something_else_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sqlite3.db");
        for content in [&[b'x'; 4_096][..], b"x", b"SQLite format 3\0"] {
            std::fs::write(&path, content).expect("content");
            let error = check_file(&path).expect_err("not a database");
            let error = format!("{error:#}");
            assert!(error.contains(&path.display().to_string()), "{error}");
            assert!(error.contains("not an SQLite database"), "{error}");
        }
        let error = check_file(directory.path()).expect_err("a directory");
        assert!(format!("{error:#}").contains("regular file"), "{error:#}");
    }

    #[test]
    fn an_empty_file_is_a_database() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        check_file(file.path()).expect("nothing has been written to it yet");
    }

    /// A tracker that was killed leaves a log, which is for the first connection to
    /// recover and not for a check to move into the file.
    #[test]
    fn a_write_ahead_log_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let writer = rusqlite::Connection::open(path("live.db")).expect("a database");
        writer
            .execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (x)")
            .expect("a table");
        for suffix in ["", "-wal"] {
            let from = path(&format!("live.db{suffix}"));
            std::fs::copy(from, path(&format!("killed.db{suffix}"))).expect("a copy");
        }
        let read = || {
            ["killed.db", "killed.db-wal"].map(|name| std::fs::read(path(name)).expect("a file"))
        };
        let before = read();
        check_file(&path("killed.db")).expect("a database");
        assert_eq!(before, read());
    }
}
