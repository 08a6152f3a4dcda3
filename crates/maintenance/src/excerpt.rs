//! Part of a database, as a database of its own.
//!
//! ```text
//!  copy (read only, cannot change) ── tables · indexes ──▶ new file
//!                                  ── the rows wanted ───▶
//!                                  ── sequences · triggers · views ──▶ synced
//! ```
//!
//! Every table, index, trigger and view of the source is there, so a service can work on an
//! excerpt at once; only rows are left out. Page size, encoding, user version, application
//! id, auto-vacuum and journal mode are the source's, and so are the sequences: an id that
//! was given out once is not given out again. What `ANALYZE` has found is left out, since it
//! is of the whole.
//!
//! Triggers come after the rows, lest they fire. Indexes come before them: a whole table is
//! then copied index by index in order, as `VACUUM` does, and of a chosen few rows each is
//! put in its place, so that nothing is ever sorted in memory or in a temporary file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, Row};
use serde::{Deserialize, Serialize};

use crate::disk::{self, Disk};
use crate::priority;
use crate::snapshot::Watch;
use crate::sqlite::{self, Database, Journal};
use crate::verify::immutable_uri;

/// The table, and the counter in it, that [`Partial::completed_only`] is about.
pub const TORRENTS: &str = "torrents";
const COMPLETED: &str = "completed";

/// Where `AUTOINCREMENT` keeps its counters (<https://www.sqlite.org/autoinc.html>).
const SEQUENCES: &str = "sqlite_sequence";

/// Names of tables that are not `SQLite`'s own.
const OF_THE_SERVICE: &str = "name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";

/// Virtual machine instructions between two looks at the watch.
const INSTRUCTIONS: i32 = 10_000;

/// Which rows of a database an excerpt has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// The tables whose rows it has; `None`: all.
    pub tables: Option<BTreeSet<String>>,
    /// Whether of `torrents` it has only the rows with `completed` above 0.
    pub completed_only: bool,
}

/// Why there is no excerpt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tables were named that are not there.
    #[error(
        "backup.tables names {}, and the database has {}; correct the names",
        list(.unknown), list(.present)
    )]
    UnknownTables {
        /// What was named and is not there.
        unknown: Vec<String>,
        /// What is there.
        present: Vec<String>,
    },
    /// There is nothing that could be completed.
    #[error(
        "backup.completed_only is set, and the database has no table {TORRENTS} with a column \
         {COMPLETED}; remove that key"
    )]
    NoCounters,
    /// The excerpt has not the rows that were counted.
    #[error(
        "of table {table} {taken} rows were taken where {counted} were counted: the copy does not \
         read alike twice"
    )]
    Miscounted {
        /// The table.
        table: String,
        /// Rows the source counts.
        counted: u64,
        /// Rows of the excerpt.
        taken: u64,
    },
    /// The database in service could not be asked.
    #[error(transparent)]
    Database(#[from] sqlite::Error),
    /// It was asked to end before it was done.
    #[error("the excerpt was given up: {why}")]
    Cancelled {
        /// Why it was asked to.
        why: String,
    },
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// `SQLite` could not read the one or write the other.
    #[error("could not take an excerpt of {}: {source}", .path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
}

/// Takes an excerpt of the database `source`, which nobody writes to, into the new file
/// `to`, and makes it durable. Says how many rows of each table the source has of those that
/// were wanted; the rows of the excerpt are yet to be compared with them
/// ([`compare`]). `journal` is the source's journal mode.
///
/// # Errors
///
/// As [`Error`] says. What was written of `to` is left and not to be trusted.
pub fn take(
    source: &Path,
    to: &Path,
    partial: &Partial,
    journal: Journal,
    disk: &Disk,
    watch: &Watch,
) -> Result<BTreeMap<String, u64>, Error> {
    watch.begin("taking an excerpt", None);
    // Made here and not by SQLite: it must be new, and its mode is the disk's to decide.
    drop(disk.create(to)?);
    let failed = |error| classify(source, error, watch);
    let connection = open(source, to, watch).map_err(failed)?;
    let present = tables(&connection, "source").map_err(failed)?;
    check_names(&connection, partial, &present, "source").map_err(|error| match error {
        Unfit::Named(error) => error,
        Unfit::Sqlite(error) => failed(error),
    })?;
    let counted = fill(&connection, partial, &present).map_err(failed)?;
    finish(connection, journal).map_err(failed)?;
    disk.sync_file(to)?;
    Ok(counted)
}

/// Whether an excerpt has the rows that were counted.
///
/// # Errors
///
/// [`Error::Miscounted`].
pub fn compare(
    counted: &BTreeMap<String, u64>,
    taken: &BTreeMap<String, u64>,
) -> Result<(), Error> {
    let rows = |of: &BTreeMap<String, u64>, table| of.get(table).copied().unwrap_or(0);
    let differs = counted
        .keys()
        .chain(taken.keys())
        .find(|table| rows(counted, *table) != rows(taken, *table));
    match differs {
        None => Ok(()),
        Some(table) => Err(Error::Miscounted {
            table: table.clone(),
            counted: rows(counted, table),
            taken: rows(taken, table),
        }),
    }
}

/// Whether a database has what an excerpt is to be made of. Reads its schema alone.
///
/// # Errors
///
/// [`Error::UnknownTables`], [`Error::NoCounters`]; or if the schema cannot be read.
pub fn check(database: &Database, partial: &Partial) -> Result<(), Error> {
    database.read(|connection| Ok(check_schema(connection, database.path(), partial)))?
}

/// [`check`] on a database of another process, of which the file alone is read, without a
/// lock and as it lies there: what is in a log is not seen.
///
/// # Errors
///
/// As [`check`].
pub fn check_file(path: &Path, partial: &Partial) -> Result<(), Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(immutable_uri(path), flags);
    let connection = opened.map_err(|source| Error::Sqlite {
        path: path.to_owned(),
        source,
    })?;
    check_schema(&connection, path, partial)
}

fn check_schema(connection: &Connection, path: &Path, partial: &Partial) -> Result<(), Error> {
    let failed = |source| Error::Sqlite {
        path: path.to_owned(),
        source,
    };
    let present = tables(connection, "main").map_err(failed)?;
    check_names(connection, partial, &present, "main").map_err(|error| match error {
        Unfit::Named(error) => error,
        Unfit::Sqlite(error) => failed(error),
    })
}

impl Error {
    /// Whether something was read, and it is not what it should be.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Miscounted { .. } => true,
            Self::Sqlite { source, .. } => {
                source.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
            }
            _ => false,
        }
    }
}

impl Partial {
    fn wants(&self, table: &str) -> bool {
        let named = |tables: &BTreeSet<String>| tables.contains(table);
        self.tables.as_ref().is_none_or(named)
    }

    /// What follows the table's name in a query for the rows wanted.
    fn condition(&self, table: &str) -> String {
        if self.completed_only && table == TORRENTS {
            format!(" WHERE {COMPLETED} > 0")
        } else {
            String::new()
        }
    }
}

/// `keys and torrents (completed only)`.
impl fmt::Display for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables.iter().flatten().map(|table| {
            let chosen = self.completed_only && table == TORRENTS;
            format!("{table}{}", if chosen { " (completed only)" } else { "" })
        });
        match &self.tables {
            Some(_) => f.write_str(&list(&tables.collect::<Vec<_>>())),
            None if self.completed_only => {
                write!(f, "all tables, but of {TORRENTS} completed ones only")
            }
            None => f.write_str("all tables"),
        }
    }
}

/// The new file as `main`, with all that has to be settled before it has any page, and the
/// source beside it.
fn open(source: &Path, to: &Path, watch: &Watch) -> rusqlite::Result<Connection> {
    let uri = immutable_uri(source);
    let flags = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let like = Connection::open_with_flags(&uri, flags | OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let number = |pragma: &str| like.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let encoding: String = like.pragma_query_value(None, "encoding", |row| row.get(0))?;

    let connection = Connection::open_with_flags(to, flags | OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let watched = watch.clone();
    let looked = move || {
        priority::give_way();
        watched.cancelled().is_some()
    };
    connection.progress_handler(INSTRUCTIONS, Some(looked))?;
    // Nobody else knows the file, and one that is not finished is thrown away: no journal
    // and one sync at the end, which is ours. What the source has was allowed there.
    connection.execute_batch(&format!(
        "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
         PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;
         PRAGMA cache_size = -8192;
         PRAGMA page_size = {}; PRAGMA encoding = '{encoding}'; PRAGMA auto_vacuum = {};",
        number("page_size")?,
        number("auto_vacuum")?,
    ))?;
    connection.execute("ATTACH ?1 AS source", [uri])?;
    connection.execute_batch(&format!(
        "PRAGMA main.user_version = {}; PRAGMA main.application_id = {};",
        number("user_version")?,
        number("application_id")?,
    ))?;
    Ok(connection)
}

/// The tables with rows of their own, and whether each is a service's to write to. The
/// others are the shadow tables of virtual ones, which are broken without their rows.
fn tables(connection: &Connection, schema: &str) -> rusqlite::Result<BTreeMap<String, bool>> {
    let query = format!(
        "SELECT name, type = 'table' FROM pragma_table_list
         WHERE schema = ?1 AND type IN ('table', 'shadow') AND {OF_THE_SERVICE}"
    );
    let mut statement = connection.prepare(&query)?;
    let tables = statement.query_map([schema], |row| Ok((row.get(0)?, row.get(1)?)))?;
    tables.collect()
}

enum Unfit {
    Named(Error),
    Sqlite(rusqlite::Error),
}

fn check_names(
    connection: &Connection,
    partial: &Partial,
    present: &BTreeMap<String, bool>,
    schema: &str,
) -> Result<(), Unfit> {
    let can_be_named = |table: &&String| present.get(*table) == Some(&true);
    let named = partial.tables.iter().flatten();
    let unknown: Vec<_> = named
        .filter(|table| !can_be_named(table))
        .cloned()
        .collect();
    if !unknown.is_empty() {
        let present = present.keys().filter(can_be_named).cloned().collect();
        return Err(Unfit::Named(Error::UnknownTables { unknown, present }));
    }
    let counters = "SELECT count(*) FROM pragma_table_info(?1, ?2) WHERE name = ?3";
    let counters: i64 = connection
        .query_row(counters, [TORRENTS, schema, COMPLETED], |row| row.get(0))
        .map_err(Unfit::Sqlite)?;
    if partial.completed_only && counters == 0 {
        return Err(Unfit::Named(Error::NoCounters));
    }
    Ok(())
}

/// Everything but what makes it a file of its own. Says how many rows the source counts.
fn fill(
    connection: &Connection,
    partial: &Partial,
    tables: &BTreeMap<String, bool>,
) -> rusqlite::Result<BTreeMap<String, u64>> {
    connection.execute_batch("BEGIN")?;
    let structure = format!(
        "SELECT sql FROM source.sqlite_schema
         WHERE (type = 'table' AND rootpage > 0 AND {OF_THE_SERVICE})
             OR (type = 'index' AND sql IS NOT NULL)
         ORDER BY type = 'index', rowid"
    );
    for statement in texts(connection, &structure)? {
        connection.execute_batch(&statement)?;
    }
    let mut counted = BTreeMap::new();
    for (table, can_be_named) in tables {
        let rows = if !can_be_named || partial.wants(table) {
            copy_rows(connection, table, &partial.condition(table))?
        } else {
            0
        };
        counted.insert(table.clone(), rows);
    }
    let has_sequences = "SELECT count(*) FROM main.sqlite_schema WHERE name = ?1";
    if connection.query_row(has_sequences, [SEQUENCES], |row| row.get::<_, i64>(0))? > 0 {
        connection.execute_batch(&format!("DELETE FROM main.{SEQUENCES}"))?;
        counted.insert(SEQUENCES.to_owned(), copy_rows(connection, SEQUENCES, "")?);
    }
    // Their definitions as they are, as VACUUM takes them over: they have no pages.
    connection.execute_batch(
        "PRAGMA writable_schema = ON;
         INSERT INTO main.sqlite_schema
             SELECT type, name, tbl_name, 0, sql FROM source.sqlite_schema
             WHERE type IN ('trigger', 'view') OR (type = 'table' AND rootpage = 0);
         PRAGMA writable_schema = OFF;
         COMMIT",
    )?;
    Ok(counted)
}

fn copy_rows(connection: &Connection, table: &str, condition: &str) -> rusqlite::Result<u64> {
    let quoted = quoted(table);
    let mut columns = connection
        .prepare("SELECT name, hidden FROM pragma_table_xinfo(?1, 'source') ORDER BY cid")?;
    let column = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
    let columns = columns
        .query_map([table], column)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    // Generated columns are read but cannot be written. Only `*` is copied page by page.
    let (into, from) = if columns.iter().all(|(_, hidden)| *hidden == 0) {
        (String::new(), "*".to_owned())
    } else {
        let stored = columns.iter().filter(|(_, hidden)| *hidden == 0);
        let names: Vec<_> = stored.map(|(name, _)| self::quoted(name)).collect();
        (format!(" ({})", names.join(", ")), names.join(", "))
    };
    connection.execute_batch(&format!(
        "INSERT INTO main.{quoted}{into} SELECT {from} FROM source.{quoted}{condition}"
    ))?;
    let count = format!("SELECT count(*) FROM source.{quoted}{condition}");
    let rows: i64 = connection.query_row(&count, [], |row| row.get(0))?;
    Ok(rows.cast_unsigned())
}

/// Says in the header how it is to be opened, and lets go of it.
fn finish(connection: Connection, journal: Journal) -> rusqlite::Result<()> {
    connection.execute_batch("DETACH source")?;
    if journal == Journal::Wal {
        // Locked exclusively there is no shared index, and closing takes the log along.
        connection.query_row("PRAGMA main.journal_mode = WAL", [], |_| Ok(()))?;
    }
    connection.close().map_err(|(_, error)| error)
}

fn texts(connection: &Connection, query: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare(query)?;
    let texts = statement.query_map([], |row| row.get(0))?;
    texts.collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [some @ .., last] => format!("{} and {last}", some.join(", ")),
    }
}

fn classify(path: &Path, source: rusqlite::Error, watch: &Watch) -> Error {
    match (source.sqlite_error_code(), watch.cancelled()) {
        (Some(ErrorCode::OperationInterrupted), Some(why)) => Error::Cancelled { why },
        _ => Error::Sqlite {
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(test)]
mod tests;
