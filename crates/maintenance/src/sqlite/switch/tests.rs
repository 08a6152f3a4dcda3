use std::process::Command;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::sqlite::CONNECTIONS;
use crate::sqlite::tests::{Fixture, OtherProcess, insert};

const LIMIT: Duration = Duration::from_secs(20);

fn switched(fixture: &Fixture) -> Duration {
    fixture
        .database
        .switch_to_wal(LIMIT, &Watch::default())
        .expect("all others are idle")
}

fn mode(fixture: &Fixture) -> Journal {
    fixture.database.facts().expect("facts").journal
}

#[test]
fn idle_connections_are_not_in_the_way_and_follow() {
    let fixture = Fixture::rollback();
    let mut other = OtherProcess::open(&fixture.path);
    assert_eq!(other.sql("SELECT count(*) FROM torrents"), "1000");
    assert_eq!(mode(&fixture), Journal::Delete);
    assert!(switched(&fixture) <= LIMIT);
    assert_eq!(mode(&fixture), Journal::Wal);
    // Those of the service and of another process write to the log, and read what the other did.
    fixture.sql(&insert(10));
    assert_eq!(other.sql("SELECT count(*) FROM torrents"), "1010");
    assert_eq!(other.sql(&insert(5)), "ok");
    assert_eq!(fixture.rows(), 1015);
    assert!(fixture.database.wal_bytes().expect("metadata") > 0);
    // Again, there is nothing to do.
    switched(&fixture);
    assert_eq!(fixture.rows(), 1015);
    other.close();
}

/// Each of the pool's own has found out only when it has read, and a pin takes three.
#[test]
fn the_first_pin_after_it_is_one_of_wal() {
    let fixture = Fixture::rollback();
    switched(&fixture);
    let pin = fixture.pin();
    assert_eq!(pin.facts.journal, Journal::Wal);
    let before = fixture.bytes();
    fixture.sql(&insert(100));
    assert!(fixture.bytes() == before, "the file changed under the pin");
    assert_eq!(fixture.rows(), 1100);
    drop(pin);
    fixture.assert_writable();
}

#[test]
fn every_connection_of_the_pool_is_as_it_was_made() {
    let fixture = Fixture::rollback();
    switched(&fixture);
    let all: Vec<Pooled> = (0..CONNECTIONS)
        .map(|_| fixture.database.pool.get().expect("none is in use"))
        .collect();
    for connection in &all {
        assert_eq!(Journal::of(connection).expect("readable"), Journal::Wal);
        for (pragma, value) in [("synchronous", 1), ("wal_autocheckpoint", 0)] {
            let found: i64 = connection
                .query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0))
                .expect("a pragma");
            assert_eq!(found, value, "{pragma}");
        }
    }
}

#[test]
fn a_reader_of_another_process_is_in_the_way_until_it_ends() {
    let fixture = Fixture::rollback();
    let mut other = OtherProcess::open(&fixture.path);
    other.sql("BEGIN");
    assert_eq!(other.sql("SELECT count(*) FROM torrents"), "1000");
    let watch = Watch::default();
    let limit = Duration::from_millis(100);
    for _ in 0..2 {
        let refused = fixture.database.switch_to_wal(limit, &watch);
        let Err(PinError::Busy(why)) = refused else {
            panic!("{refused:?}");
        };
        let path = fixture.path.display();
        assert!(why.contains(&format!("`fuser -v {path}`")), "{why}");
        assert_eq!(mode(&fixture), Journal::Delete);
        // Nothing is held: others may read.
        assert_eq!(fixture.rows(), 1000);
    }
    other.sql("COMMIT");
    fixture.assert_writable();
    switched(&fixture);
    assert_eq!(mode(&fixture), Journal::Wal);
}

#[test]
fn a_watch_that_is_cancelled_ends_the_wait() {
    let fixture = Fixture::rollback();
    let mut other = OtherProcess::open(&fixture.path);
    other.sql("BEGIN");
    other.sql("SELECT count(*) FROM torrents");
    let watch = Watch::default();
    watch.cancel("deadline");
    let refused = fixture.database.switch_to_wal(LIMIT, &watch);
    assert!(
        matches!(&refused, Err(PinError::Failed(Error::Cancelled(why))) if why == "deadline"),
        "{refused:?}"
    );
    other.sql("COMMIT");
    fixture.assert_writable();
}

/// What a process that is killed leaves is what lies there, beside connections that are open.
#[test]
fn killed_after_it_the_database_is_whole_and_in_wal() {
    let fixture = Fixture::rollback();
    let left = TempDir::new().expect("a temporary directory");
    for (rows, name) in [(1000, "before-a-commit"), (1100, "after-one")] {
        if rows > 1000 {
            fixture.sql(&insert(100));
        } else {
            switched(&fixture);
        }
        let to = left.path().join(name);
        let copied = Command::new("cp")
            .arg("-r")
            .arg(fixture.directory.path())
            .arg(&to)
            .status();
        assert!(copied.expect("cp can be run").success());
        assert!(!to.join("tracker.db-journal").exists());
        let found = Connection::open(to.join("tracker.db")).expect("a database");
        let text = |sql: &str| -> String {
            let text = found.query_row(sql, [], |row| row.get(0));
            text.expect("readable")
        };
        assert_eq!(text("PRAGMA integrity_check"), "ok");
        assert_eq!(text("PRAGMA journal_mode"), "wal");
        let count = text("SELECT CAST(count(*) AS TEXT) FROM torrents");
        assert_eq!(count, rows.to_string());
    }
}
