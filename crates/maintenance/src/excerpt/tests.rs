use rusqlite::types::Value;
use tempfile::TempDir;

use super::*;
use crate::catalogue::testing::memory_dir;
use crate::config::Depth;
use crate::verify;

/// A tracker's database (torrust-tracker 3.0.0), with what else a database may have.
const SCHEMA: &str = "
    CREATE TABLE whitelist (id INTEGER PRIMARY KEY AUTOINCREMENT, info_hash TEXT NOT NULL UNIQUE);
    CREATE TABLE torrents (id INTEGER PRIMARY KEY AUTOINCREMENT,
        info_hash TEXT NOT NULL UNIQUE, completed INTEGER DEFAULT 0 NOT NULL);
    CREATE TABLE keys (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,
        valid_until INTEGER);
    CREATE TABLE \"odd \"\"name\" (a INTEGER, twice INTEGER AS (a * 2) STORED, b TEXT) STRICT;
    CREATE TABLE by_key (k TEXT PRIMARY KEY, v BLOB) WITHOUT ROWID;
    CREATE TABLE fired (what TEXT);
    CREATE INDEX by_completed ON torrents (completed) WHERE completed > 1;
    CREATE VIEW popular AS SELECT info_hash FROM torrents WHERE completed > 5;
    CREATE TRIGGER noted AFTER INSERT ON keys BEGIN INSERT INTO fired VALUES ('yes'); END;
    CREATE VIRTUAL TABLE words USING fts5(word);";

const ROWS: &str = "
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
        INSERT INTO torrents (info_hash, completed)
        SELECT printf('%040d', i * 7919 % 10007), max(0, i % 10 - 6) FROM n;
    DELETE FROM torrents WHERE id > 990;
    INSERT INTO whitelist (info_hash) VALUES ('a'), ('b');
    INSERT INTO keys (key) VALUES ('k');
    INSERT INTO \"odd \"\"name\" (a, b) VALUES (1, 'x'), (2, NULL);
    INSERT INTO by_key VALUES ('p', x'00'), ('q', NULL);
    INSERT INTO words VALUES ('tracker');
    ANALYZE;";

struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new(first: &str) -> Self {
        let bench = Self {
            directory: memory_dir(),
        };
        let connection = bench.connect("source.db");
        for part in [first, SCHEMA, ROWS] {
            connection.execute_batch(part).expect("valid SQL");
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self, name: &str) -> Connection {
        Connection::open(self.path(name)).expect("a database")
    }

    fn take(&self, partial: &Partial, journal: Journal, disk: &Disk) -> Result<Taken, Error> {
        let (source, to) = (self.path("source.db"), self.path("excerpt.db"));
        take(&source, &to, partial, journal, disk, &Watch::default())
    }
}

type Taken = BTreeMap<String, u64>;

fn partial(tables: Option<&[&str]>, completed_only: bool) -> Partial {
    let tables = tables.map(|tables| tables.iter().map(ToString::to_string).collect());
    Partial {
        tables,
        completed_only,
    }
}

fn all(connection: &Connection, query: &str) -> Vec<Vec<Value>> {
    let mut statement = connection.prepare(query).expect(query);
    let columns = statement.column_count();
    let row = |row: &Row<'_>| (0..columns).map(|column| row.get(column)).collect();
    let rows = statement.query_map([], row).expect(query);
    rows.collect::<rusqlite::Result<_>>().expect(query)
}

const STRUCTURE: &str = "SELECT type, name, tbl_name, sql FROM sqlite_schema
    WHERE name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\' ORDER BY type, name";

/// Every combination of what a file can be, each compared with its source.
#[test]
fn an_excerpt_is_the_source_without_some_rows() {
    let mut cases = 0;
    for page_size in [512, 4096, 65_536] {
        for encoding in ["UTF-8", "UTF-16le", "UTF-16be"] {
            for journal in [Journal::Wal, Journal::Delete] {
                for auto_vacuum in 0..=2 {
                    let bench = Bench::new(&format!(
                        "PRAGMA page_size = {page_size}; PRAGMA encoding = '{encoding}';
                         PRAGMA auto_vacuum = {auto_vacuum}; PRAGMA journal_mode = {journal};
                         PRAGMA user_version = 17; PRAGMA application_id = 4711;"
                    ));
                    let wanted = partial(Some(&["torrents", "odd \"name", "by_key"]), true);
                    let counted = bench
                        .take(&wanted, journal, &Disk::default())
                        .expect("an excerpt");
                    check_excerpt(&bench, &counted, journal);
                    cases += 1;
                }
            }
        }
    }
    println!("{cases} kinds of file");
}

fn check_excerpt(bench: &Bench, counted: &Taken, journal: Journal) {
    for suffix in ["-wal", "-shm", "-journal"] {
        assert!(!bench.path(&format!("excerpt.db{suffix}")).exists());
    }
    let header = sqlite::inspect(&bench.path("excerpt.db")).expect("a database");
    assert_eq!(header.journal, journal);
    let excerpt_path = bench.path("excerpt.db");
    let report = verify::structure(&excerpt_path, Depth::Full, &Watch::default());
    let rows = report.expect("sound").rows;
    compare(counted, &rows).expect("the rows that were counted");
    assert_eq!(
        rows.get("torrents"),
        Some(&297),
        "3 of 10, less those deleted"
    );
    for (table, expected) in [("whitelist", 0), ("keys", 0), ("fired", 0), ("by_key", 2)] {
        assert_eq!(rows.get(table), Some(&expected), "{table}");
    }

    let (source, excerpt) = (bench.connect("source.db"), bench.connect("excerpt.db"));
    for (query, of_source) in [
        (STRUCTURE, STRUCTURE),
        (
            "SELECT * FROM torrents ORDER BY id",
            "SELECT * FROM torrents WHERE completed > 0 ORDER BY id",
        ),
        (
            "SELECT * FROM \"odd \"\"name\" ORDER BY a",
            "SELECT * FROM \"odd \"\"name\" ORDER BY a",
        ),
        ("SELECT * FROM by_key", "SELECT * FROM by_key"),
        (
            "SELECT * FROM sqlite_sequence ORDER BY name",
            "SELECT * FROM sqlite_sequence ORDER BY name",
        ),
        ("PRAGMA page_size", "PRAGMA page_size"),
        ("PRAGMA encoding", "PRAGMA encoding"),
        ("PRAGMA auto_vacuum", "PRAGMA auto_vacuum"),
        ("PRAGMA user_version", "PRAGMA user_version"),
        ("PRAGMA application_id", "PRAGMA application_id"),
        ("PRAGMA journal_mode", "PRAGMA journal_mode"),
        ("SELECT * FROM popular", "SELECT * FROM popular"),
    ] {
        assert_eq!(all(&excerpt, query), all(&source, of_source), "{query}");
    }
    // A service goes on with it: ids are not given out again, triggers fire.
    excerpt
        .execute_batch(
            "INSERT INTO torrents (info_hash) VALUES ('new'); INSERT INTO keys (key) VALUES ('k');",
        )
        .expect("it can be written to");
    let newest = all(&excerpt, "SELECT max(id) FROM torrents");
    assert_eq!(newest, [[Value::Integer(1001)]]);
    assert_eq!(
        all(&excerpt, "SELECT count(*) FROM fired"),
        [[Value::Integer(1)]]
    );
}

#[test]
fn without_names_all_tables_are_whole() {
    let bench = Bench::new("");
    let counted = bench
        .take(&partial(None, true), Journal::Delete, &Disk::default())
        .expect("an excerpt");
    for (table, rows) in [
        ("torrents", 297),
        ("whitelist", 2),
        ("keys", 1),
        ("fired", 1),
    ] {
        assert_eq!(counted.get(table), Some(&rows), "{table}");
    }
    let excerpt = bench.connect("excerpt.db");
    let found = all(
        &excerpt,
        "SELECT word FROM words WHERE words MATCH 'tracker'",
    );
    assert_eq!(found.len(), 1, "a virtual table has its rows in others");
}

#[test]
fn names_that_are_not_there_are_told_with_those_that_are() {
    let bench = Bench::new("");
    let source = bench.path("source.db");
    let told = |wanted: &Partial| {
        let error = check_file(&source, wanted)
            .expect_err("not there")
            .to_string();
        let taken = bench.take(wanted, Journal::Delete, &Disk::default());
        assert_eq!(taken.expect_err("not there").to_string(), error);
        std::fs::metadata(bench.path("excerpt.db")).expect("begun");
        Disk::default()
            .remove_file(&bench.path("excerpt.db"))
            .expect("it is ours");
        error
    };
    assert_eq!(
        told(&partial(
            Some(&["torrent", "keys", "sqlite_sequence"]),
            false
        )),
        "backup.tables names sqlite_sequence and torrent, and the database has by_key, fired, \
         keys, odd \"name, torrents and whitelist; correct the names"
    );
    bench
        .connect("source.db")
        .execute_batch("ALTER TABLE torrents RENAME COLUMN completed TO done")
        .expect("valid SQL");
    let error = told(&partial(None, true));
    assert!(
        error.contains("no table torrents with a column completed"),
        "{error}"
    );
    assert!(check_file(&source, &partial(Some(&["keys"]), false)).is_ok());
}

#[test]
fn an_excerpt_with_other_rows_than_were_counted_is_told() {
    let rows = |rows: &[(&str, u64)]| -> Taken {
        rows.iter()
            .map(|(table, rows)| ((*table).to_owned(), *rows))
            .collect()
    };
    let counted = rows(&[("a", 3), ("b", 0)]);
    assert!(compare(&counted, &rows(&[("a", 3), ("b", 0)])).is_ok());
    for taken in [
        rows(&[("a", 2), ("b", 0)]),
        rows(&[("a", 3), ("b", 1)]),
        rows(&[("a", 3), ("b", 0), ("c", 1)]),
        rows(&[("b", 0)]),
    ] {
        let error = compare(&counted, &taken).expect_err("they differ");
        assert!(error.is_damage(), "{error}");
    }
}

#[test]
fn damage_in_the_source_is_not_taken_over() {
    use std::os::unix::fs::FileExt as _;
    let bench = Bench::new("PRAGMA page_size = 512;");
    #[expect(
        clippy::disallowed_methods,
        reason = "the test damages a file of its own"
    )]
    let file = std::fs::File::options()
        .write(true)
        .open(bench.path("source.db"))
        .expect("it is ours");
    let length = file.metadata().expect("it exists").len();
    for page in (20..length / 512).step_by(7) {
        file.write_all_at(&[0xa5; 512], page * 512)
            .expect("it is ours");
    }
    let error = bench
        .take(
            &partial(Some(&["torrents"]), false),
            Journal::Delete,
            &Disk::default(),
        )
        .expect_err("damaged");
    assert!(error.is_damage(), "{error}");
}

#[test]
fn it_is_given_up_when_that_is_asked_for() {
    let bench = Bench::new("");
    let watch = Watch::default();
    watch.cancel("enough");
    let (source, to) = (bench.path("source.db"), bench.path("excerpt.db"));
    let wanted = partial(None, true);
    let taken = take(
        &source,
        &to,
        &wanted,
        Journal::Wal,
        &Disk::default(),
        &watch,
    );
    let error = taken.expect_err("cancelled");
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
}

#[test]
fn it_says_what_it_is() {
    for (tables, completed_only, said) in [
        (
            None,
            true,
            "all tables, but of torrents completed ones only",
        ),
        (Some(&["keys"][..]), false, "keys"),
        (
            Some(&["keys", "torrents"]),
            true,
            "keys and torrents (completed only)",
        ),
    ] {
        assert_eq!(partial(tables, completed_only).to_string(), said);
    }
}
