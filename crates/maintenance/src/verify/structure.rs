//! The structural check of a database that nobody writes to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Error, Report};
use crate::catalogue::Manifest;
use crate::config::Depth;
use crate::disk;
use crate::priority;
use crate::snapshot::Watch;

/// What a watch is told is being done. How far that is cannot be told: `SQLite` counts
/// neither pages nor bytes for us.
pub(crate) const CHECKING: &str = "checking";
/// Findings after which `SQLite` stops looking.
const MOST_FINDINGS: u32 = 100;
/// Steps of `SQLite` between two looks at the watch, at each of which others may have the
/// processor: pages while it walks the trees, about a millisecond, instructions after that. To
/// count the rows of a table is one step.
const STEPS: i32 = 100;

/// Bytes a second of `quick_check` and of `integrity_check` until they were measured: those
/// of the machine the figures of the documentation are of.
const UNMEASURED_QUICK: f64 = 420e6;
const UNMEASURED_FULL: f64 = 21e6;
/// Databases of fewer bytes are not measured by.
const TELLING: u64 = 16 << 20;

/// How long a check of a database of so many bytes takes, by the last of the `earlier`
/// backups (newest first) that went as deep.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub fn expected(bytes: u64, depth: Depth, earlier: &[&Manifest]) -> Duration {
    let measured = |earlier: &&Manifest| {
        let raw = earlier.database.raw_bytes;
        let telling = raw >= TELLING && earlier.verified == depth;
        let seconds = earlier.verify_seconds.filter(|_| telling)?;
        Some(raw as f64 / seconds.max(0.001))
    };
    let rate = earlier.iter().find_map(measured).unwrap_or(match depth {
        Depth::Quick => UNMEASURED_QUICK,
        Depth::Full => UNMEASURED_FULL,
    });
    Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(Duration::MAX)
}

/// Checks the structure of a database and counts the rows of its tables. Only for a copy:
/// the file is opened as one that cannot change, without locks and without a WAL beside
/// it, so also the copy of a WAL database can be read, and in a read-only directory
/// (<https://www.sqlite.org/uri.html>, `immutable`).
///
/// # Errors
///
/// [`Error::Corrupt`] with what `quick_check` or `integrity_check` objects to; or if the
/// file cannot be read, or `watch` is cancelled.
pub fn structure(path: &Path, depth: Depth, watch: &Watch) -> Result<Report, Error> {
    if let Ok(metadata) = path.metadata() {
        watch.expect(CHECKING, expected(metadata.len(), depth, &[]));
    }
    report(path, depth, watch, || {
        // Neither a copy that was just made nor one that was just unpacked is in the cache.
        disk::read_ahead(path, || watch.cancelled().is_some());
        let checked = check(path, depth, watch);
        // What comes next reads it once and in order, and does not need it there: the pages of
        // the database in service do.
        disk::forget_cached(path);
        checked
    })
}

/// As [`structure`], with `quick_check`, on a connection to the database `path` that has a
/// read transaction open: of the snapshot it sees. It is given back as it was. The file is
/// live, so nothing here may open it by its path: closing that would drop SQLite's locks.
pub(crate) fn structure_of(
    connection: &Connection,
    path: &Path,
    watch: &Watch,
) -> Result<Report, Error> {
    let depth = Depth::Quick;
    report(path, depth, watch, || {
        let checked = end_with(connection, watch).and_then(|()| sound(connection, depth));
        connection.progress_handler(0, None::<fn() -> bool>)?;
        checked
    })
}

fn report(
    path: &Path,
    depth: Depth,
    watch: &Watch,
    check: impl FnOnce() -> Result<BTreeMap<String, u64>, Failure>,
) -> Result<Report, Error> {
    #[expect(
        clippy::disallowed_methods,
        reason = "measures how long the check takes; decides nothing"
    )]
    let begun = Instant::now();
    watch.begin(CHECKING, None);
    let rows = check().map_err(|failure| match failure {
        Failure::Findings(findings) => Error::Corrupt {
            path: path.to_owned(),
            findings,
        },
        Failure::Sqlite(source) => classify(path, source, watch),
    })?;
    Ok(Report {
        depth,
        rows,
        seconds: begun.elapsed().as_secs_f64(),
    })
}

enum Failure {
    Findings(Vec<String>),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn check(path: &Path, depth: Depth, watch: &Watch) -> Result<BTreeMap<String, u64>, Failure> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(immutable_uri(path), flags)?;

    // An interrupt ends the statements that run and is forgotten with the last of them.
    // This one runs all along, so that none is lost between two of the others.
    let mut anchor = connection.prepare("SELECT 1 UNION ALL SELECT 2")?;
    let mut anchor = anchor.query([])?;
    anchor.next()?;
    let interrupt = connection.get_interrupt_handle();
    watch.on_cancel(move || interrupt.interrupt());
    end_with(&connection, watch)?;
    sound(&connection, depth)
}

/// Has statements end when the watch is cancelled.
fn end_with(connection: &Connection, watch: &Watch) -> Result<(), Failure> {
    let watched = watch.clone();
    let looked = move || {
        priority::give_way();
        watched.cancelled().is_some()
    };
    Ok(connection.progress_handler(STEPS, Some(looked))?)
}

/// The rows of a database that is sound.
fn sound(connection: &Connection, depth: Depth) -> Result<BTreeMap<String, u64>, Failure> {
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    if pages == 0 {
        // A file of no length is a sound and empty database to SQLite.
        return Err(Failure::Findings(vec!["it is empty".to_owned()]));
    }
    let findings = findings(connection, depth)?;
    if !findings.is_empty() {
        return Err(Failure::Findings(findings));
    }
    Ok(rows(connection)?)
}

fn findings(connection: &Connection, depth: Depth) -> rusqlite::Result<Vec<String>> {
    let pragma = match depth {
        Depth::Quick => "quick_check",
        Depth::Full => "integrity_check",
    };
    let mut check = connection.prepare(&format!("PRAGMA {pragma}({MOST_FINDINGS})"))?;
    let lines = check.query_map([], |row| row.get::<_, String>(0))?;
    let mut findings = lines.collect::<rusqlite::Result<Vec<_>>>()?;
    findings.retain(|line| line != "ok");
    Ok(findings)
}

/// Rows of every table that has any storage; virtual tables have none of their own.
fn rows(connection: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    let mut tables = connection
        .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage > 0")?;
    let names = tables.query_map([], |row| row.get::<_, String>(0))?;
    names
        .map(|name| {
            let name = name?;
            let quoted = name.replace('"', "\"\"");
            let count = format!("SELECT count(*) FROM main.\"{quoted}\"");
            let rows: i64 = connection.query_row(&count, [], |row| row.get(0))?;
            Ok((name, rows.cast_unsigned()))
        })
        .collect()
}

fn classify(path: &Path, source: rusqlite::Error, watch: &Watch) -> Error {
    match (source.sqlite_error_code(), watch.cancelled()) {
        (Some(ErrorCode::OperationInterrupted), Some(why)) => Error::Cancelled { why },
        (Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase), _) => {
            Error::corrupt(path, source.to_string())
        }
        _ => Error::Sqlite {
            path: path.to_owned(),
            source,
        },
    }
}

/// The path as a URI, in which `?`, `#` and `%` have meanings of their own.
pub(crate) fn immutable_uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    if path.is_absolute() {
        // Without an empty authority, a path that begins with two slashes would name a host.
        uri.push_str("//");
    }
    for &byte in OsStr::as_bytes(path.as_os_str()) {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            write!(uri, "%{byte:02X}").expect("a string takes everything");
        }
    }
    uri.push_str("?mode=ro&immutable=1");
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_any_bytes_becomes_a_uri() {
        let immutable = |path: &str| format!("{path}?mode=ro&immutable=1");
        for (path, expected) in [
            ("/data/tracker.db", "file:///data/tracker.db"),
            ("//data/tracker.db", "file:////data/tracker.db"),
            ("data/a b.db", "file:data/a%20b.db"),
            ("/50%/what?/#1", "file:///50%25/what%3F/%231"),
            ("/ü", "file:///%C3%BC"),
        ] {
            assert_eq!(immutable_uri(Path::new(path)), immutable(expected));
        }
        let bytes = OsStr::from_bytes(b"/\xff");
        assert_eq!(immutable_uri(Path::new(bytes)), immutable("file:///%FF"));
    }
}
