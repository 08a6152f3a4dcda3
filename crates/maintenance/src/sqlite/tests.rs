#![expect(
    clippy::disallowed_methods,
    reason = "tests handle files as no other code here may"
)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::config::JournalMode;

/// A tracker-shaped database of 1,000 rows in a directory of its own.
pub(crate) struct Fixture {
    pub(crate) directory: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) database: Database,
    /// The service's connection.
    service: Connection,
}

impl Fixture {
    pub(crate) fn wal() -> Self {
        Self::new("PRAGMA journal_mode = WAL")
    }

    pub(crate) fn rollback() -> Self {
        Self::new("PRAGMA journal_mode = DELETE")
    }

    /// `setup` runs before the first page is written.
    pub(crate) fn new(setup: &str) -> Self {
        Self::new_in(TempDir::new().expect("a temporary directory"), setup)
    }

    pub(crate) fn new_in(directory: TempDir, setup: &str) -> Self {
        let path = directory
            .path()
            .canonicalize()
            .expect("it exists")
            .join("tracker.db");
        let service = Connection::open(&path).expect("it can be made");
        let make = "CREATE TABLE torrents (id INTEGER PRIMARY KEY AUTOINCREMENT,
                      info_hash TEXT NOT NULL UNIQUE, completed INTEGER DEFAULT 0 NOT NULL)";
        service.execute_batch(setup).expect("a valid pragma");
        service.execute_batch(make).expect("an empty database");
        service.execute_batch(&insert(1000)).expect("new rows");
        let database = Database::open(&path).expect("it is a database");
        // The pool fills in the background, which reads, which on a rollback journal keeps
        // a writer that does not wait from its commit.
        while database.pool.state().idle_connections < CONNECTIONS {
            thread::yield_now();
        }
        Self {
            directory,
            path,
            database,
            service,
        }
    }

    pub(crate) fn sql(&self, sql: &str) {
        self.try_sql(sql).expect("the statement is good");
    }

    /// As the service would; waits for no lock.
    pub(crate) fn try_sql(&self, sql: &str) -> Result<(), rusqlite::Error> {
        self.service.busy_timeout(Duration::ZERO)?;
        self.service.execute_batch(sql)
    }

    pub(crate) fn number(&self, sql: &str) -> i64 {
        let number = self.service.query_row(sql, [], |row| row.get(0));
        number.expect("a query for one number")
    }

    pub(crate) fn rows(&self) -> i64 {
        self.number("SELECT count(*) FROM torrents")
    }

    pub(crate) fn dump(&self) -> Vec<(i64, String)> {
        let mut statement = self
            .service
            .prepare("SELECT id, info_hash FROM torrents ORDER BY id")
            .expect("the table exists");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
        rows.and_then(Iterator::collect).expect("rows")
    }

    pub(crate) fn pin(&self) -> Pin {
        self.database
            .pin(Duration::from_secs(20), &Watch::default())
            .expect("nobody is in the way")
    }

    /// The database's bytes, read by another process, which cannot harm our locks.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let cat = Command::new("cat").arg(&self.path).output();
        cat.expect("cat can be run").stdout
    }

    /// That nobody holds the write lock, nor a lock that keeps a writer from the file.
    pub(crate) fn assert_writable(&self) {
        self.sql(
            "BEGIN IMMEDIATE; UPDATE torrents SET completed = completed + 1 WHERE id = 1; COMMIT",
        );
    }
}

/// A statement that adds rows with new info hashes.
pub(crate) fn insert(rows: u32) -> String {
    format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO torrents (info_hash) SELECT lower(hex(randomblob(20))) FROM n"
    )
}

/// Bytes of the `-shm` file this process has locked for reading, but for the one (128)
/// that every connection holds.
pub(crate) fn shm_locks(path: &Path) -> Vec<u64> {
    let shm = format!("{}-shm", path.display());
    let inode = fs::metadata(shm).expect("a WAL database in use").ino();
    let locks = fs::read_to_string("/proc/locks").expect("Linux has it");
    let mut bytes = Vec::new();
    for line in locks.lines() {
        // 1: POSIX  ADVISORY  READ 4242 fe:00:123456 124 124
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, "POSIX", _, "READ", pid, file, first, last] = fields[..]
            && pid == std::process::id().to_string()
            && file.ends_with(&format!(":{inode}"))
            && let (Ok(first), Ok(last)) = (first.parse::<u64>(), last.parse::<u64>())
        {
            bytes.extend((first..=last).filter(|byte| *byte < 128));
        }
    }
    bytes
}

/// Another process with a connection to the database: this test binary, run again.
pub(crate) struct OtherProcess(Child);

const OTHER_PROCESS: &str = "MAINTENANCE_TEST_DATABASE";

impl OtherProcess {
    pub(crate) fn open(path: &Path) -> Self {
        let child = Command::new(std::env::current_exe().expect("a running program has a file"))
            .args(["sqlite::tests::other_process", "--exact", "--nocapture"])
            .env(OTHER_PROCESS, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        Self(child.expect("it ran before"))
    }

    /// What the statement answered: its first column, `ok`, or `error: ..`.
    pub(crate) fn sql(&mut self, sql: &str) -> String {
        let line = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let stdin = self.0.stdin.as_mut().expect("it is piped");
        writeln!(stdin, "{line}").expect("it listens");
        let stdout = self.0.stdout.as_mut().expect("it is piped");
        // Byte by byte would do: nothing may be read ahead and lost with the reader.
        for line in BufReader::with_capacity(1, stdout).lines() {
            if let Some(answer) = line.expect("text").strip_prefix('@') {
                return answer.to_owned();
            }
        }
        panic!("the other process ended")
    }

    /// Closes its connection and exits, as dropping it does; that this went well is
    /// asserted.
    pub(crate) fn close(mut self) {
        assert!(self.end().success());
    }

    fn end(&mut self) -> std::process::ExitStatus {
        drop(self.0.stdin.take());
        if let Some(mut stdout) = self.0.stdout.take() {
            // To the end, or the test harness over there cannot write its summary.
            io::copy(&mut stdout, &mut io::sink()).expect("a pipe");
        }
        self.0.wait().expect("it was started")
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        self.end();
    }
}

/// Not a test unless run by [`OtherProcess`]: executes a statement a line.
#[test]
fn other_process() {
    let Some(path) = std::env::var_os(OTHER_PROCESS) else {
        return;
    };
    let connection = Connection::open(path).expect("the database exists");
    connection.busy_timeout(Duration::ZERO).expect("a number");
    for line in io::stdin().lines() {
        let answer = connection
            .prepare(&line.expect("text"))
            .and_then(|mut statement| {
                let mut rows = statement.query([])?;
                let first = match rows.next()? {
                    Some(row) => match row.get_ref(0)? {
                        rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                        other => other.as_str().unwrap_or("?").to_owned(),
                    },
                    None => "ok".to_owned(),
                };
                while rows.next()?.is_some() {}
                Ok(first)
            })
            .unwrap_or_else(|error| format!("error: {error}"));
        // On a line of its own, whatever the test harness printed before.
        println!("\n@{answer}");
    }
}

#[test]
fn sqlite_has_no_wal_reset_bug() {
    // https://www.sqlite.org/wal.html, "The WAL-Reset Bug": fixed in 3.51.3.
    assert!(rusqlite::version_number() >= 3_051_003);
}

#[test]
fn opening_what_is_no_database_says_what_it_is() {
    let directory = TempDir::new().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);

    let missing = Database::open(&at("none.db"));
    assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
    assert!(!at("none.db").exists(), "looking made it");

    let folder = Database::open(directory.path());
    assert!(matches!(folder, Err(Error::NotAFile { .. })), "{folder:?}");

    for (name, bytes) in [("short", &b"hello"[..]), ("long", &[7; 9000][..])] {
        fs::write(at(name), bytes).expect("a writable directory");
        let text = Database::open(&at(name));
        assert!(matches!(text, Err(Error::NotADatabase { .. })), "{text:?}");
        assert_eq!(fs::read(at(name)).expect("still there"), bytes);
    }

    fs::write(at("empty"), b"").expect("a writable directory");
    let empty = Database::open(&at("empty")).expect("SQLite takes it for a new database");
    assert_eq!(empty.facts().expect("facts").page_count, 0);
}

const NOBODY: &str = "MAINTENANCE_TEST_AS_NOBODY";

/// Permissions do not bind root, so the part that matters runs as nobody.
#[test]
fn a_file_without_permission_says_so() {
    if let Some(directory) = std::env::var_os(NOBODY) {
        let directory = PathBuf::from(directory);
        let unwritable = Database::open(&directory.join("unwritable.db"));
        assert!(
            matches!(unwritable, Err(Error::ReadOnly { .. })),
            "{unwritable:?}"
        );
        let secret = Database::open(&directory.join("secret.db"));
        assert!(
            matches!(&secret, Err(Error::Sqlite { doing: "open", .. })),
            "{secret:?}"
        );
        return;
    }
    let directory = TempDir::new().expect("a temporary directory");
    let mode = |path: &Path, mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(path, permissions).expect("it is ours");
    };
    for (name, bits) in [("unwritable.db", 0o444), ("secret.db", 0o000)] {
        let path = directory.path().join(name);
        Connection::open(&path)
            .and_then(|database| database.execute_batch("CREATE TABLE t (a)"))
            .expect("a database");
        mode(&path, bits);
    }
    mode(directory.path(), 0o755);
    let mut again = Command::new(std::env::current_exe().expect("a running program has a file"));
    again
        .args([
            "sqlite::tests::a_file_without_permission_says_so",
            "--exact",
        ])
        .env(NOBODY, directory.path());
    if rustix::process::geteuid().is_root() {
        std::os::unix::process::CommandExt::uid(&mut again, 65534);
    }
    let output = again
        .output()
        .expect("nobody may run what lies in the target directory");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_link_is_followed_to_the_file_the_log_lies_beside() {
    let fixture = Fixture::wal();
    let link = fixture.directory.path().join("link.db");
    std::os::unix::fs::symlink(&fixture.path, &link).expect("links can be made");
    let database = Database::open(&link).expect("a database");
    assert_eq!(database.path(), fixture.path);
    assert_eq!(
        database.wal_bytes().expect("metadata"),
        fixture.database.wal_bytes().expect("metadata")
    );
    assert!(database.wal_bytes().expect("metadata") > 0);
}

#[test]
fn facts_are_those_of_the_file() {
    let fixture = Fixture::wal();
    fixture.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let facts = fixture.database.facts().expect("facts");
    let metadata = fs::metadata(&fixture.path).expect("it exists");
    assert_eq!(facts.journal, Journal::Wal);
    assert_eq!(facts.bytes(), metadata.len());
    assert_eq!(Identity::from(&metadata), fixture.database.identity);
    let rollback = Fixture::rollback();
    let facts = rollback.database.facts().expect("facts");
    assert!(facts.journal.blocks_writers());
    assert_eq!(rollback.database.wal_bytes().expect("metadata"), 0);
}

#[test]
fn journal_modes_are_applied_and_reported() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("tracker.db");
    for (mode, journal) in [
        (JournalMode::Keep, Journal::Delete),
        (JournalMode::Wal, Journal::Wal),
        (JournalMode::Keep, Journal::Wal),
        (JournalMode::Wal, Journal::Wal),
        (JournalMode::Delete, Journal::Delete),
        (JournalMode::Keep, Journal::Delete),
    ] {
        let found = set_journal_mode(&path, mode).expect("nobody else has it");
        assert_eq!(found, journal, "{mode:?}");
        assert!(path.exists());
    }
    let missing = set_journal_mode(&directory.path().join("no/tracker.db"), JournalMode::Wal);
    assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
    let folder = set_journal_mode(directory.path(), JournalMode::Wal);
    assert!(matches!(folder, Err(Error::NotAFile { .. })), "{folder:?}");
    fs::write(directory.path().join("text"), "hello").expect("a writable directory");
    let text = set_journal_mode(&directory.path().join("text"), JournalMode::Wal);
    assert!(matches!(text, Err(Error::NotADatabase { .. })), "{text:?}");
}

#[test]
fn wal_is_not_left_while_another_has_the_file_open() {
    let fixture = Fixture::wal();
    let refused = set_journal_mode(&fixture.path, JournalMode::Delete);
    assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
    fixture.assert_writable();
    assert_eq!(
        fixture.database.facts().expect("facts").journal,
        Journal::Wal
    );
}

#[test]
fn only_journals_that_survive_a_crash_are_pinned() {
    for journal in [
        Journal::Wal,
        Journal::Delete,
        Journal::Truncate,
        Journal::Persist,
    ] {
        assert!(journal.survives_a_crash());
    }
    for journal in [Journal::Memory, Journal::Off] {
        assert!(!journal.survives_a_crash());
    }
}

#[test]
fn in_wal_writers_go_on_under_the_pin_and_it_sees_none_of_it() {
    let fixture = Fixture::wal();
    let pin = fixture.pin();
    let before = fixture.bytes();
    assert_eq!(before.len() as u64, pin.facts.bytes());
    fixture.sql(&insert(500));
    fixture.sql("DELETE FROM torrents WHERE id % 3 = 0");
    let seen: i64 = pin
        .connection()
        .expect("nobody ended it")
        .query_row("SELECT count(*) FROM torrents", [], |row| row.get(0))
        .expect("a snapshot");
    assert_eq!(seen, 1000);
    assert!(fixture.bytes() == before, "the file changed under the pin");
    drop(pin);
    fixture.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    assert!(
        fixture.bytes() != before,
        "the checkpoint was held back for good"
    );
}

#[test]
fn on_a_rollback_journal_writers_wait_for_the_pin() {
    let fixture = Fixture::rollback();
    let pin = fixture.pin();
    assert_eq!(pin.read_mark_zero, None);
    let before = fixture.bytes();
    let refused = fixture
        .try_sql("DELETE FROM torrents")
        .expect_err("it is pinned");
    assert_eq!(refused.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    assert!(fixture.bytes() == before, "the file changed under the pin");
    pin.release(&Watch::default());
    fixture.assert_writable();
}

#[test]
fn nothing_another_process_does_changes_a_byte() {
    for fixture in [Fixture::wal(), Fixture::rollback()] {
        let mut other = OtherProcess::open(&fixture.path);
        assert_eq!(other.sql("SELECT count(*) FROM torrents"), "1000");
        let pin = fixture.pin();
        let before = fixture.bytes();
        let wal = pin.facts.journal == Journal::Wal;
        // Answers differ; that none is a panic and some succeed in WAL is enough here.
        let answers = [
            insert(2000).as_str(),
            "DELETE FROM torrents WHERE id % 2 = 0",
            "PRAGMA wal_checkpoint(PASSIVE)",
            "PRAGMA wal_checkpoint(FULL)",
            "PRAGMA wal_checkpoint(RESTART)",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "VACUUM",
            "PRAGMA mmap_size = 1073741824",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA locking_mode = EXCLUSIVE",
            "UPDATE torrents SET completed = 1",
        ]
        .map(|sql| other.sql(sql));
        assert_eq!(answers[0] == "ok", wal, "{answers:?}");
        assert!(fixture.bytes() == before, "{answers:?}");
        other.close();
        assert!(fixture.bytes() == before, "its close changed the file");
        drop(pin);
        fixture.assert_writable();
    }
}

#[test]
fn an_older_reader_is_busy_and_then_not() {
    let fixture = Fixture::wal();
    let mut other = OtherProcess::open(&fixture.path);
    other.sql("BEGIN");
    other.sql("SELECT count(*) FROM torrents");
    fixture.sql(&insert(100));
    let watch = Watch::default();
    let busy = fixture.database.pin(Duration::from_secs(20), &watch);
    let Err(PinError::Busy(why)) = busy else {
        panic!("{busy:?}");
    };
    assert!(why.contains("older reader"), "{why}");
    fixture.assert_writable();
    other.sql("COMMIT");
    let pin = fixture
        .database
        .pin(Duration::from_secs(20), &watch)
        .expect("it is gone");
    assert_eq!(fixture.bytes().len() as u64, pin.facts.bytes());
}

#[test]
fn a_writer_in_the_way_is_waited_for_within_the_limit() {
    for fixture in [Fixture::wal(), Fixture::rollback()] {
        let mut other = OtherProcess::open(&fixture.path);
        let limit = Duration::from_millis(100);
        other.sql("BEGIN EXCLUSIVE");
        // With WAL, EXCLUSIVE is the write lock.
        let began = Instant::now();
        let busy = fixture.database.pin(limit, &Watch::default());
        assert!(matches!(busy, Err(PinError::Busy(_))), "{busy:?}");
        assert!(began.elapsed() >= limit);
        other.sql("COMMIT");
        drop(fixture.pin());
        fixture.assert_writable();
    }
}

#[test]
fn a_cancelled_watch_ends_the_wait_for_a_lock() {
    let fixture = Fixture::wal();
    let mut other = OtherProcess::open(&fixture.path);
    other.sql("BEGIN IMMEDIATE");
    let watch = Watch::default();
    let database = fixture.database.clone();
    let pinning = thread::spawn({
        let watch = watch.clone();
        move || database.pin(Duration::from_secs(3600), &watch)
    });
    watch.cancel("the deadline passed");
    let result = pinning.join().expect("no panic");
    assert!(
        matches!(&result, Err(PinError::Failed(Error::Cancelled(why))) if why == "the deadline passed"),
        "{result:?}"
    );
    other.sql("ROLLBACK");
    fixture.assert_writable();
}

#[test]
fn a_connection_with_a_transaction_never_goes_back_to_the_pool() {
    let fixture = Fixture::wal();
    let connection = fixture
        .database
        .connection(&Deadline::after(PATIENCE))
        .expect("the pool is idle");
    connection
        .execute_batch("BEGIN IMMEDIATE")
        .expect("it is free");
    assert!(fixture.try_sql("BEGIN IMMEDIATE").is_err());
    drop(connection);
    fixture.assert_writable();
    let all: Vec<Pooled> = (0..CONNECTIONS)
        .map(|_| {
            fixture
                .database
                .connection(&Deadline::after(PATIENCE))
                .expect("one of the pool")
        })
        .collect();
    assert!(all.iter().all(|connection| connection.is_autocommit()));
}

fn all_but(fixture: &Fixture, left: u32) -> Vec<Pooled> {
    let connection = |_| fixture.database.connection(&Deadline::after(PATIENCE));
    (left..CONNECTIONS)
        .map(connection)
        .collect::<Result<_, _>>()
        .expect("the pool is idle")
}

#[test]
fn an_exhausted_pool_is_busy_within_the_limit() {
    let fixture = Fixture::wal();
    let limit = Duration::from_millis(50);
    for left in 0..3 {
        let taken = all_but(&fixture, left);
        let began = Instant::now();
        let refused = fixture.database.pin(limit, &Watch::default());
        let Err(PinError::Busy(why)) = refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains("within 50ms"), "{why}");
        assert!(began.elapsed() >= limit);
        fixture.assert_writable();
        drop(taken);
    }
    let _taken = all_but(&fixture, 3);
    drop(fixture.pin());
}

#[test]
fn a_cancelled_watch_ends_the_wait_for_a_connection() {
    let fixture = Fixture::wal();
    let _taken = all_but(&fixture, 1);
    let watch = Watch::default();
    let database = fixture.database.clone();
    let pinning = thread::spawn({
        let watch = watch.clone();
        move || database.pin(Duration::from_secs(3600), &watch)
    });
    watch.cancel("the deadline passed");
    let result = pinning.join().expect("no panic");
    assert!(
        matches!(result, Err(PinError::Failed(Error::Cancelled(_)))),
        "{result:?}"
    );
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_handle_ends_a_pin_that_lies_in_a_stuck_thread() {
    for fixture in [Fixture::wal(), Fixture::rollback()] {
        let pin = fixture.pin();
        let handle = pin.handle();
        let (go_on, stuck) = std::sync::mpsc::channel::<()>();
        let owner = thread::spawn(move || {
            let _ = stuck.recv();
            assert!(!pin.stands());
            assert!(pin.connection().is_none());
            pin.release(&Watch::default());
        });
        assert!(handle.clone().end(Duration::ZERO));
        fixture.assert_writable();
        assert_eq!(fixture.database.pool.state().idle_connections, CONNECTIONS);
        drop(go_on);
        owner.join().expect("what is left of the pin is harmless");
        assert!(handle.end(Duration::ZERO), "a second time");
        drop(fixture.pin());
    }
}

#[test]
fn a_handle_interrupts_whoever_uses_the_connection() {
    let fixture = Fixture::rollback();
    let pin = fixture.pin();
    let handle = pin.handle();
    let (begun, running) = std::sync::mpsc::channel();
    let owner = thread::spawn(move || {
        let reader = pin.connection().expect("it stands");
        begun.send(()).expect("somebody waits");
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
                       SELECT count(*) FROM n";
        loop {
            // An interrupt between two statements is lost; the handle does not rely on it.
            let counted = reader.query_row(endless, [], |row| row.get::<_, i64>(0));
            if counted.is_err() {
                return;
            }
        }
    });
    running.recv().expect("it begins");
    while !handle.end(Duration::from_millis(10)) {}
    owner.join().expect("no panic");
    fixture.assert_writable();
}

#[test]
fn a_connection_that_comes_back_late_ends_the_pin_then() {
    let fixture = Fixture::rollback();
    let pin = fixture.pin();
    let handle = pin.handle();
    let reader = pin.connection().expect("it stands");
    assert!(pin.connection().is_none(), "it is lent already");
    assert!(!handle.end(Duration::ZERO));
    assert!(!pin.stands());
    assert!(fixture.try_sql("DELETE FROM torrents").is_err());
    let waiting = thread::spawn(move || handle.end(SOON));
    drop(reader);
    assert!(waiting.join().expect("no panic"));
    fixture.assert_writable();
    assert!(pin.connection().is_none());
}

#[test]
fn a_connection_that_comes_back_in_time_pins_on() {
    let fixture = Fixture::rollback();
    let pin = fixture.pin();
    drop(pin.connection().expect("it stands"));
    assert!(pin.stands());
    assert!(fixture.try_sql("DELETE FROM torrents").is_err());
    let handle = pin.handle();
    drop(pin);
    assert!(handle.end(Duration::ZERO), "it outlives the pin");
    fixture.assert_writable();
}

#[test]
fn what_was_committed_before_the_pin_was_taken_is_in_the_file() {
    let fixture = Fixture::wal();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = thread::spawn({
        let path = fixture.path.clone();
        move || {
            let connection = Connection::open(path).expect("the database exists");
            connection.busy_timeout(Duration::ZERO).expect("a number");
            // As fast as can be: to catch the instant in which the lock is let go.
            connection
                .execute_batch("PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0")
                .expect("valid pragmas");
            let mut commit = connection.prepare(&insert(1)).expect("the table exists");
            let mut commits = Vec::new();
            while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                // Busy is busy: the next one, at once.
                if commit.execute([]).is_ok() {
                    commits.push((connection.last_insert_rowid(), chrono::Utc::now()));
                }
            }
            commits
        }
    });
    let mut pins = Vec::new();
    while pins.len() < 100 {
        // Writing goes on, which can be in the way.
        if let Ok(pin) = fixture.database.pin(SOON, &Watch::default()) {
            let reader = pin.connection().expect("it stands");
            let newest = reader.query_row("SELECT max(id) FROM torrents", [], |row| row.get(0));
            pins.push((pin.taken, newest.expect("rows")));
        }
    }
    drop(stop);
    let commits = writer.join().expect("no panic");
    for (taken, newest) in pins {
        let missing = commits
            .iter()
            .find(|(id, committed): &&(i64, _)| *id > newest && *committed < taken);
        assert_eq!(missing, None, "taken {taken}, newest {newest}");
    }
}

#[test]
fn a_panic_under_the_pin_ends_it() {
    let fixture = Fixture::rollback();
    let pin = fixture.pin();
    let panicked = thread::spawn(move || {
        let _pin = pin;
        panic!("on purpose");
    });
    panicked.join().expect_err("it panics");
    fixture.assert_writable();
}

#[test]
fn two_hundred_pins_leave_no_descriptor_behind() {
    for fixture in [Fixture::wal(), Fixture::rollback()] {
        drop(fixture.pin());
        let all: Vec<Pooled> = (0..CONNECTIONS)
            .map(|_| {
                fixture
                    .database
                    .connection(&Deadline::after(PATIENCE))
                    .expect("one of the pool")
            })
            .collect();
        drop(all);
        let descriptors = || {
            let all = fs::read_dir("/proc/self/fd").expect("Linux has it");
            // Of this database alone: other tests run beside.
            all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
                .filter(|target| target.starts_with(fixture.path.parent().expect("a directory")))
                .count()
        };
        let before = descriptors();
        for _ in 0..200 {
            drop(fixture.pin());
        }
        assert_eq!(descriptors(), before);
    }
}

#[test]
fn a_file_put_in_its_place_is_not_taken_for_it() {
    let fixture = Fixture::wal();
    let other = fixture.directory.path().join("other.db");
    Connection::open(&other)
        .and_then(|other| other.execute_batch("CREATE TABLE t (a)"))
        .expect("another database");
    fs::rename(&other, &fixture.path).expect("same directory");
    let refused = fixture
        .database
        .pin(Duration::from_secs(20), &Watch::default());
    assert!(
        matches!(refused, Err(PinError::Failed(Error::Replaced { .. }))),
        "{refused:?}"
    );
}

#[test]
fn a_kept_descriptor_is_one_per_file_and_only_of_that_file() {
    let fixture = Fixture::wal();
    let identity = fixture.database.identity;
    let first = kept::descriptor(&fixture.path, identity).expect("it exists");
    let second = kept::descriptor(&fixture.path, identity).expect("it exists");
    assert!(std::ptr::eq(first, second));
    let wrong = Identity {
        inode: identity.inode + 1,
        ..identity
    };
    let refused = kept::descriptor(&fixture.path, wrong);
    assert!(
        matches!(refused, Err(Error::Replaced { .. })),
        "{refused:?}"
    );
    let folder = kept::descriptor(fixture.directory.path(), identity);
    assert!(matches!(folder, Err(Error::NotAFile { .. })), "{folder:?}");
}

#[test]
fn a_log_that_grew_under_the_pin_is_moved_and_cut_while_others_write() {
    let fixture = Fixture::wal();
    let pin = fixture.pin();
    while fixture.database.wal_bytes().expect("metadata") < 40 << 20 {
        fixture.sql(&insert(20_000));
    }
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = thread::spawn({
        let path = fixture.path.clone();
        move || {
            let connection = Connection::open(path).expect("the database exists");
            let mut commits = 0;
            while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                connection.execute_batch(&insert(1)).expect("a commit");
                commits += 1;
            }
            commits
        }
    });
    let rows = fixture.rows();
    pin.release(&Watch::default());
    fixture
        .database
        .shrink_wal(&Watch::default())
        .expect("no error");
    drop(stop);
    let commits = writer.join().expect("every commit went through");
    assert!(commits > 0);
    assert!(fixture.rows() >= rows);
    assert!(fixture.database.wal_bytes().expect("metadata") <= 24 << 20);
    fixture.assert_writable();
}

#[test]
fn shrinking_gives_way_to_a_cancelled_watch_and_to_a_rollback_journal() {
    let watch = Watch::default();
    watch.cancel("shutting down");
    Fixture::wal()
        .database
        .shrink_wal(&watch)
        .expect("no error");
    let rollback = Fixture::rollback();
    rollback
        .database
        .shrink_wal(&Watch::default())
        .expect("nothing to do");
    rollback
        .database
        .checkpoint_before()
        .expect("nothing to do");
}

#[test]
fn releasing_ends_the_pin_when_cancelled_and_leaves_the_log() {
    let fixture = Fixture::wal();
    let pin = fixture.pin();
    while fixture.database.wal_bytes().expect("metadata") < 20 << 20 {
        fixture.sql(&insert(20_000));
    }
    let before = fixture.bytes();
    let watch = Watch::default();
    watch.cancel("shutting down");
    pin.release(&watch);
    assert!(fixture.bytes() == before, "it moved the log all the same");
    fixture.database.shrink_wal(&watch).expect("no error");
    assert!(fixture.bytes() == before, "it moved the log all the same");
    // The next commit's own checkpoint is not held back.
    fixture.assert_writable();
    assert!(fixture.bytes() != before);
}

#[test]
fn shrinking_holds_no_connection_while_it_waits_for_a_reader() {
    let fixture = Fixture::wal();
    while fixture.database.wal_bytes().expect("metadata") < 20 << 20 {
        fixture.sql("PRAGMA wal_autocheckpoint = 0");
        fixture.sql(&insert(20_000));
    }
    let mut other = OtherProcess::open(&fixture.path);
    other.sql("BEGIN");
    other.sql("SELECT count(*) FROM torrents");
    // A frame the reader does not see: it is in the way from here on.
    fixture.assert_writable();
    let watch = Watch::default();
    let shrinking = thread::spawn({
        let (database, watch) = (fixture.database.clone(), watch.clone());
        move || database.shrink_wal(&watch)
    });
    let is_at_it = || {
        while fixture.database.pool.state().idle_connections == CONNECTIONS {
            assert!(!shrinking.is_finished(), "it gave none back before its end");
            thread::yield_now();
        }
    };
    is_at_it();
    drop(all_but(&fixture, 0));
    is_at_it();
    watch.cancel("a run begins");
    shrinking.join().expect("no panic").expect("no error");
    drop(all_but(&fixture, 0));
    other.sql("COMMIT");
}

#[test]
fn a_checkpoint_before_leaves_nothing_to_flush() {
    let fixture = Fixture::wal();
    fixture.database.checkpoint_before().expect("no error");
    let c = fixture
        .database
        .connection(&Deadline::after(PATIENCE))
        .expect("idle");
    Journal::of(&c).expect("readable");
    let left = wal::Checkpoint::run(&c, wal::Mode::Noop).expect("it only counts");
    assert!(left.is_complete(), "{left:?}");
    assert!(left.log > 0);
}
