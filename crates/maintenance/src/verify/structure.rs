//! The structural check of a database that nobody writes to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Error, Report};
use crate::config::Depth;
use crate::disk;
use crate::snapshot::Watch;

/// Findings after which `SQLite` stops looking.
const MOST_FINDINGS: u32 = 100;
/// Virtual machine instructions between two looks at the watch.
const INSTRUCTIONS: i32 = 10_000;

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
    #[expect(
        clippy::disallowed_methods,
        reason = "measures how long the check takes; decides nothing"
    )]
    let begun = Instant::now();
    watch.begin("checking", None);
    // Neither a copy that was just made nor one that was just unpacked is in the cache.
    disk::read_ahead(path, || watch.cancelled().is_some());
    let rows = check(path, depth, watch).map_err(|failure| match failure {
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
    let connection = Connection::open_with_flags(uri(path), flags)?;

    // An interrupt ends the statements that run and is forgotten with the last of them.
    // This one runs all along, so that none is lost between two of the others.
    let mut anchor = connection.prepare("SELECT 1 UNION ALL SELECT 2")?;
    let mut anchor = anchor.query([])?;
    anchor.next()?;
    let interrupt = connection.get_interrupt_handle();
    watch.on_cancel(move || interrupt.interrupt());
    let watched = watch.clone();
    connection.progress_handler(INSTRUCTIONS, Some(move || watched.cancelled().is_some()))?;

    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    if pages == 0 {
        // A file of no length is a sound and empty database to SQLite.
        return Err(Failure::Findings(vec!["it is empty".to_owned()]));
    }
    let findings = findings(&connection, depth)?;
    if !findings.is_empty() {
        return Err(Failure::Findings(findings));
    }
    Ok(rows(&connection)?)
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
fn uri(path: &Path) -> String {
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
            assert_eq!(uri(Path::new(path)), immutable(expected));
        }
        let bytes = OsStr::from_bytes(b"/\xff");
        assert_eq!(uri(Path::new(bytes)), immutable("file:///%FF"));
    }
}
