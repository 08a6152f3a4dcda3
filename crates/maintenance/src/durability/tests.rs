//! On real databases; what is replaced is the call that syncs, to count it, to hold it up
//! and to let it fail. A test's syncs run on the threads that it starts, which is how each
//! has its own counts.

#![expect(
    clippy::disallowed_methods,
    reason = "tests handle files as no other code here may"
)]

use std::cell::Cell;
use std::sync::Barrier;
use std::thread;

use tempfile::TempDir;

use super::*;

thread_local! {
    static SYNCS: Cell<usize> = const { Cell::new(0) };
    static DISK_FAILS: Cell<bool> = const { Cell::new(false) };
}

fn count(file: &File) -> io::Result<()> {
    SYNCS.set(SYNCS.get() + 1);
    if DISK_FAILS.get() {
        return Err(io::Error::from_raw_os_error(5));
    }
    file.sync_data()
}

/// A service with its database.
struct Service {
    directory: TempDir,
    connection: Connection,
}

impl Service {
    fn new(journal: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let connection =
            Connection::open(directory.path().join("service.db")).expect("it can be made");
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode = {journal}; CREATE TABLE facts (fact INTEGER)"
            ))
            .expect("an empty database");
        Self {
            directory,
            connection,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("service.db")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("service.db-wal")
    }

    fn commit(&self, fact: i64) {
        self.connection
            .execute("INSERT INTO facts VALUES (?1)", [fact])
            .expect("nobody else writes");
    }

    fn durability(&self) -> Durability {
        Durability::with(&self.path(), count).expect("it exists")
    }
}

/// What the claim is built on: without it the syncs counted here would be superfluous.
#[test]
fn commits_of_a_service_do_not_sync_the_log() {
    let service = Service::new("WAL");
    let level: i64 = service
        .connection
        .query_row("PRAGMA synchronous", [], |row| row.get(0))
        .expect("a pragma");
    assert_eq!(level, 1, "see .cargo/config.toml");
    let level: i64 = Service::new("DELETE")
        .connection
        .query_row("PRAGMA synchronous", [], |row| row.get(0))
        .expect("a pragma");
    assert_eq!(level, FULL, "a rollback journal is synced at every commit");
}

#[test]
fn only_what_was_committed_since_costs_a_sync() {
    let service = Service::new("WAL");
    service.commit(1);
    let durability = service.durability();
    let mut syncs = Vec::new();
    for commits in [0, 0, 1, 0, 3, 0] {
        (0..commits).for_each(|fact| service.commit(fact));
        durability.sync().expect("the disk is good");
        syncs.push(SYNCS.get());
    }
    // The first, as it is not known who committed what before.
    assert_eq!(syncs, [1, 1, 2, 2, 3, 3]);
}

#[test]
fn a_rollback_journal_is_removed_for_good_and_there_is_no_log() {
    let service = Service::new("DELETE");
    let durability = service.durability();
    let durable = || lock(&durability.shared.log).durable;
    service.commit(1);
    durability.sync().expect("the disk is good");
    let first = durable().expect("the directory is synced");
    service.commit(2);
    durability.sync().expect("the disk is good");
    assert_ne!(durable(), Some(first), "it is synced again");
    assert_eq!(SYNCS.get(), 0);
}

/// Where the directory cannot be synced nothing is known to be durable.
#[test]
fn a_directory_that_cannot_be_synced_is_an_error() {
    let service = Service::new("DELETE");
    let durability = service.durability();
    service.commit(1);
    let nowhere = service.directory.path().join("gone/service.db-wal");
    lock(&durability.shared.log).path = nowhere;
    let error = durability.sync().expect_err("there is no such directory");
    assert!(error.to_string().contains("gone"), "{error}");
    assert_eq!(lock(&durability.shared.log).durable, None);
}

#[test]
fn a_database_that_goes_over_to_a_log_is_synced_from_then_on() {
    let service = Service::new("DELETE");
    let durability = service.durability();
    durability.sync().expect("the disk is good");
    service
        .connection
        .execute_batch("PRAGMA journal_mode = WAL")
        .expect("the kept connection is idle");
    service.commit(1);
    durability.sync().expect("the disk is good");
    assert_eq!(SYNCS.get(), 1);
}

/// As if it had come between two looks of an earlier sync: one at its commits, one at the file.
#[test]
fn a_log_that_no_sync_has_seen_is_synced_though_its_commits_are_known() {
    let service = Service::new("DELETE");
    let durability = service.durability();
    service
        .connection
        .execute_batch("PRAGMA journal_mode = WAL")
        .expect("the kept connection is idle");
    service.commit(1);
    let mut log = lock(&durability.shared.log);
    log.durable = data_version(&log.connection).ok();
    drop(log);
    durability.sync().expect("the disk is good");
    assert_eq!(SYNCS.get(), 1);
    durability.sync().expect("nothing to do");
    assert_eq!(SYNCS.get(), 1);
}

/// The service's own connections live longer than the journal mode, and another switches it.
#[test]
fn connections_that_were_there_before_follow_to_the_log() {
    let service = Service::new("DELETE");
    let durability = service.durability();
    let level = || -> i64 {
        let level = service
            .connection
            .query_row("PRAGMA synchronous", [], |row| row.get(0));
        level.expect("a pragma")
    };
    service.commit(1);
    durability.sync().expect("the disk is good");
    assert_eq!((level(), SYNCS.get()), (FULL, 0));
    let other = Connection::open(service.path()).expect("the database");
    other
        .execute_batch("PRAGMA journal_mode = WAL")
        .expect("all others are idle");
    for syncs in 1..=3 {
        service.commit(2);
        durability.sync().expect("the disk is good");
        assert_eq!((level(), SYNCS.get()), (1, syncs));
    }
    drop(other);
    durability.sync().expect("nothing was committed since");
    assert_eq!(SYNCS.get(), 3);
}

/// What it would have to read for is whether a sync can be spared.
#[test]
fn a_log_that_has_come_is_synced_though_the_kept_connection_cannot_read() {
    let service = Service::new("DELETE");
    let durability = service.durability();
    durability.sync().expect("the disk is good");
    service
        .connection
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL")
        .expect("the kept connection is idle");
    for syncs in 1..=2 {
        service.commit(1);
        durability.sync().expect("the disk is good");
        assert_eq!(SYNCS.get(), syncs);
    }
}

#[test]
fn commits_that_sync_for_themselves_are_left_alone() {
    let service = Service::new("WAL");
    let durability = service.durability();
    lock(&durability.shared.log)
        .connection
        .pragma_update(None, "synchronous", FULL)
        .expect("a level");
    service.commit(1);
    durability.sync().expect("the disk is good");
    assert_eq!(SYNCS.get(), 0);
}

/// The service's connections come and go. Were the kept one not there, the last to go would
/// remove the log, and its syncs would be of a file without a name.
#[test]
fn the_log_stays_the_same_file_whoever_leaves() {
    let service = Service::new("WAL");
    let durability = service.durability();
    service.commit(1);
    durability.sync().expect("the disk is good");
    let before = fs::metadata(service.log()).expect("a log").ino();
    let Service {
        directory,
        connection,
    } = service;
    drop(connection);
    let path = directory.path().join("service.db");
    let connection = Connection::open(&path).expect("the database");
    connection
        .execute_batch("INSERT INTO facts VALUES (2)")
        .expect("nobody else writes");
    durability.sync().expect("the disk is good");
    assert_eq!(SYNCS.get(), 2);
    let after = fs::metadata(directory.path().join("service.db-wal")).expect("a log");
    assert_eq!(after.ino(), before);
}

#[test]
fn a_log_that_is_gone_is_an_error() {
    let service = Service::new("WAL");
    service.commit(1);
    let durability = service.durability();
    durability.sync().expect("the disk is good");
    fs::remove_file(service.log()).expect("it is there");
    service.commit(2);
    let error = durability
        .sync()
        .expect_err("nobody will ever find that commit");
    assert!(matches!(*error, Error::Vanished { .. }), "{error}");
}

#[test]
fn after_a_failed_sync_nothing_is_durable_until_the_log_is_begun_anew() {
    let service = Service::new("WAL");
    let durability = service.durability();
    service.commit(1);
    DISK_FAILS.set(true);
    let error = durability.sync().expect_err("the disk fails");
    assert!(error.to_string().contains("service.db-wal"), "{error}");
    DISK_FAILS.set(false);

    // Somebody who reads keeps the log from being begun anew.
    let reader = Connection::open(service.path()).expect("the database");
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM facts")
        .expect("a snapshot");
    let error = durability.sync().expect_err("with a hole in the log");
    assert!(matches!(*error, Error::Suspect { .. }), "{error}");
    service.commit(2);
    durability.sync().expect_err("and behind the hole as well");

    reader.execute_batch("ROLLBACK").expect("a transaction");
    durability.sync().expect("all of it is in the database now");
    service.commit(3);
    durability.sync().expect("all is well");
    // What was in the log while it was suspect is found without it.
    let copy = service.directory.path().join("copy.db");
    fs::copy(service.path(), &copy).expect("room for a copy");
    let facts: i64 = Connection::open(copy)
        .expect("a database")
        .query_row("SELECT count(*) FROM facts", [], |row| row.get(0))
        .expect("a table");
    assert_eq!(facts, 2);
}

#[tokio::test]
async fn failures_are_told_with_their_number() {
    let service = Service::new("WAL");
    let durability = service.durability();
    let mut failures = durability.failures();
    service.commit(1);
    DISK_FAILS.set(true);
    durability.sync().expect_err("the disk fails");
    durability.sync().expect_err("and goes on failing");
    let (count, error) = failures.next().await.expect("it is still there");
    assert_eq!(count, 2, "of two at once the newest");
    assert!(error.to_string().contains("power failure"), "{error}");
    drop(durability);
    assert!(failures.next().await.is_none());
}

#[test]
fn what_is_missing_or_no_database_is_named() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("service.db");
    let error = Durability::open(&path).expect_err("there is no file");
    assert!(error.to_string().contains("service.db"), "{error}");
    fs::write(&path, [b'x'; 4_096]).expect("content");
    let error = Durability::open(&path).expect_err("no database");
    assert!(error.to_string().contains("not a database"), "{error}");
}

/// Ten commit while a sync is in progress, each on a thread of its own or as a task; one
/// more sync is enough for all, and none is content with the one that had begun.
#[test]
fn many_wait_for_one_sync_and_none_for_one_that_began_too_early() {
    static SYNCS: Mutex<usize> = Mutex::new(0);
    static BEGAN: Barrier = Barrier::new(2);
    static END: Barrier = Barrier::new(2);
    fn held_up(file: &File) -> io::Result<()> {
        let mut syncs = lock(&SYNCS);
        *syncs += 1;
        if *syncs == 1 {
            BEGAN.wait();
            END.wait();
        }
        file.sync_data()
    }

    let service = Service::new("WAL");
    let durability = Durability::with(&service.path(), held_up).expect("it exists");
    service.commit(0);
    let first = thread::spawn({
        let durability = durability.clone();
        move || durability.sync().expect("the disk is good")
    });
    BEGAN.wait();
    service.commit(1);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let tasks: Vec<_> = (0..5)
        .map(|_| {
            let durability = durability.clone();
            runtime.spawn(async move { durability.synced().await.expect("the disk is good") })
        })
        .collect();
    let threads: Vec<_> = (0..5)
        .map(|_| {
            let durability = durability.clone();
            thread::spawn(move || durability.sync().expect("the disk is good"))
        })
        .collect();
    END.wait();
    first.join().expect("it does not panic");
    for thread in threads {
        thread.join().expect("it does not panic");
    }
    for task in tasks {
        runtime.block_on(task).expect("it does not panic");
    }
    // Once for the first and once for all others: whoever comes late finds nothing to do.
    assert_eq!(*lock(&SYNCS), 2);
}
