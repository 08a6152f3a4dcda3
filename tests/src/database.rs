//! Databases with the tracker's own tables, of any size, quickly; and what is in one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags, Transaction};
use tempfile::TempDir;

use crate::announce::{Torrent, hex};

/// The tables as torrust-tracker 3.0.0 creates them (`core/databases/sqlite.rs`).
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS whitelist (
        id INTEGER PRIMARY KEY AUTOINCREMENT, info_hash TEXT NOT NULL UNIQUE);
    CREATE TABLE IF NOT EXISTS keys (
        id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, valid_until INTEGER);
    CREATE TABLE IF NOT EXISTS torrents (
        id INTEGER PRIMARY KEY AUTOINCREMENT, info_hash TEXT NOT NULL UNIQUE,
        completed INTEGER DEFAULT 0 NOT NULL);";

/// Rows inserted per transaction: the size is looked at after each.
const BATCH: i64 = 50_000;

/// Makes a database of at least `bytes` (and little more) at `path`, in journal mode
/// `journal`; returns how many torrents it has. Their info-hashes are no [`Torrent`]'s.
///
/// # Errors
/// When there is a file already or it cannot be written.
pub fn make(path: &Path, bytes: u64, journal: &str) -> Result<u64> {
    let in_order = |transaction: &Transaction<'_>, rows: i64| {
        transaction.execute(
            "WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n LIMIT ?2)
             INSERT INTO torrents (info_hash, completed) SELECT printf('f1%038x', i), i % 7 FROM n",
            [rows, BATCH],
        )?;
        Ok(())
    };
    fill(path, bytes, journal, in_order)
}

/// As [`make`], with info-hashes as they come in the field: each unlike the last, so that
/// neither zstd nor the index finds an order in them. Takes several times as long, and the
/// size of the database in memory.
///
/// # Errors
/// When there is a file already or it cannot be written.
pub fn make_random(path: &Path, bytes: u64, journal: &str) -> Result<u64> {
    let mut random = fastrand::Rng::with_seed(3);
    let any = |transaction: &Transaction<'_>, rows: i64| {
        let mut insert = transaction
            .prepare_cached("INSERT INTO torrents (info_hash, completed) VALUES (?1, ?2)")?;
        for row in rows..rows + BATCH {
            let info_hash: [u8; 20] = std::array::from_fn(|_| random.u8(..));
            insert.execute((hex(&info_hash), row % 7))?;
        }
        Ok(())
    };
    fill(path, bytes, journal, any)
}

fn fill(
    path: &Path,
    bytes: u64,
    journal: &str,
    mut insert: impl FnMut(&Transaction<'_>, i64) -> Result<()>,
) -> Result<u64> {
    ensure!(!path.exists(), "{} exists", path.display());
    let mut connection = Connection::open(path)?;
    // A database that is lost with the machine is made again: no flush, no journal. The
    // cache has room for all of it, as an index is filled from everywhere.
    connection.execute_batch(&format!(
        "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF; PRAGMA cache_size = -{};",
        (bytes + bytes / 4) / 1024 + 65_536
    ))?;
    connection.execute_batch(TABLES)?;
    let mut rows = 0;
    while size(&connection)? < bytes {
        let transaction = connection.transaction()?;
        insert(&transaction, rows)?;
        transaction.commit()?;
        rows += BATCH;
    }
    set_journal_mode(&connection, journal)?;
    Ok(rows.try_into()?)
}

fn set_journal_mode(connection: &Connection, journal: &str) -> Result<()> {
    let set: String =
        connection.query_row(&format!("PRAGMA journal_mode = {journal}"), [], |row| {
            row.get(0)
        })?;
    ensure!(
        set == journal,
        "journal mode {journal} asked for, {set} set"
    );
    Ok(())
}

/// Databases as [`make`] makes them, each size made once and then copied: for those who need
/// several large ones.
#[derive(Debug)]
pub struct Seeds(TempDir);

impl Seeds {
    /// Keeps what it copies from below a directory, until it is dropped.
    ///
    /// # Errors
    /// When that cannot be written to.
    pub fn new(directory: &Path) -> Result<Self> {
        Ok(Self(tempfile::tempdir_in(directory)?))
    }

    /// As [`make`], but for what it returns: how many bytes it has. It is on the disk then.
    ///
    /// # Errors
    /// As [`make`].
    pub fn plant(&self, path: &Path, bytes: u64, journal: &str) -> Result<u64> {
        ensure!(!path.exists(), "{} exists", path.display());
        let seed = self.0.path().join(format!("{bytes}.db"));
        if !seed.exists() {
            make(&seed, bytes, "delete")?;
        }
        fs::copy(&seed, path)?;
        set_journal_mode(&open(path)?, journal)?;
        let file = File::open(path)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}

fn size(connection: &Connection) -> Result<u64> {
    let pages: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    let page: i64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    Ok((pages * page).try_into()?)
}

/// Opens a live database, or any other, to read it as another process would.
///
/// # Errors
/// When it cannot be opened.
pub fn open(path: &Path) -> Result<Connection> {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .with_context(|| format!("opening {}", path.display()))
}

/// `PRAGMA integrity_check` of a database nobody writes to.
///
/// # Errors
/// With what it found.
pub fn check(path: &Path) -> Result<()> {
    let connection = open(path)?;
    let found: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(found == "ok", "{}: {found}", path.display());
    Ok(())
}

/// The `completed` counter of each of the test's own torrents that has a row.
///
/// # Errors
/// When the database cannot be read.
pub fn completed(path: &Path) -> Result<HashMap<Torrent, u32>> {
    let connection = open(path)?;
    // What every torrent of a test has in common, see `Torrent::info_hash`.
    let common = &Torrent(0).hex()[8..32];
    let mut select = connection
        .prepare("SELECT info_hash, completed FROM torrents WHERE substr(info_hash, 9, 24) = ?1")?;
    let rows = select.query_map([common], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?))
    })?;
    let mut found = HashMap::new();
    for row in rows {
        let (hash, count) = row?;
        // The last four bytes are the number.
        let number = hash
            .get(32..)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let torrent = Torrent(number.with_context(|| format!("no torrent of the test: {hash}"))?);
        ensure!(torrent.hex() == hash, "no torrent of the test: {hash}");
        found.insert(torrent, count);
    }
    Ok(found)
}

/// Rows of one table.
///
/// # Errors
/// When the database cannot be read.
pub fn count(path: &Path, table: &str) -> Result<u64> {
    let select = format!("SELECT count(*) FROM {table}");
    let rows: i64 = open(path)?.query_row(&select, [], |row| row.get(0))?;
    Ok(rows.try_into()?)
}

/// All rows of one table, by its first column, as the sqlite3 command line prints them.
///
/// # Errors
/// When the database cannot be read.
pub fn rows(path: &Path, table: &str) -> Result<Vec<String>> {
    let rows = command_line(path, &format!("SELECT * FROM {table} ORDER BY 1"))?;
    Ok(rows.lines().map(str::to_owned).collect())
}

/// Runs the sqlite3 command line on a database: truly another process, which opens,
/// writes, checkpoints and closes as an operator's would.
///
/// # Errors
/// When it cannot be started or reports an error.
pub fn command_line(path: &Path, sql: &str) -> Result<String> {
    let output = Command::new("sqlite3")
        .args(["-bail", "-cmd", ".timeout 10000"])
        .arg(path)
        .arg(sql)
        .output()
        .context("starting sqlite3")?;
    ensure!(
        output.status.success(),
        "sqlite3: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Unpacks a zstd artifact to `to`.
///
/// # Errors
/// When it is not one, or `to` cannot be written.
pub fn unpack(artifact: &Path, to: &Path) -> Result<()> {
    let packed = File::open(artifact).with_context(|| format!("opening {}", artifact.display()))?;
    zstd::stream::copy_decode(packed, File::create(to)?)
        .with_context(|| format!("unpacking {}", artifact.display()))
}
