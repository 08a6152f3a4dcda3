use super::*;
use crate::sqlite::tests::{Fixture, shm_locks};

#[test]
fn the_read_mark_follows_from_what_was_in_the_file() {
    let at = |log, done| Checkpoint {
        busy: false,
        log,
        done,
    };
    assert_eq!(on_mark_zero(at(0, 0), at(0, 0)), Some(true));
    assert_eq!(on_mark_zero(at(7, 7), at(7, 7)), Some(true));
    assert_eq!(on_mark_zero(at(7, 6), at(7, 6)), Some(false));
    assert_eq!(on_mark_zero(at(7, 6), at(7, 7)), None);
}

/// `WAL_READ_LOCK(0)` and the four after it, as bytes of the `-shm` file.
const MARK_ZERO: u64 = 123;

#[test]
fn a_frame_just_before_the_pin_keeps_it_off_read_mark_zero() {
    let fixture = Fixture::wal();
    fixture.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let pin = fixture.pin();
    assert_eq!(pin.read_mark_zero, Some(false));
    let locks = shm_locks(&fixture.path);
    assert!(!locks.contains(&MARK_ZERO), "{locks:?}");
    assert!(
        locks.iter().any(|byte| (124..128).contains(byte)),
        "{locks:?}"
    );
}

#[test]
fn without_it_the_pin_is_on_read_mark_zero_and_says_so() {
    let fixture = Fixture::wal();
    fixture.sql("PRAGMA wal_checkpoint(TRUNCATE)");
    let watch = Watch::default();
    let attempt = Attempt {
        database: &fixture.database,
        deadline: Deadline::after(Duration::from_secs(10)),
        watch: &watch,
        interrupts: Interrupts::armed(&watch),
    };
    let mut connections = (0..3).map(|_| {
        let connection = attempt.connection().expect("the pool has enough");
        Journal::of(&connection).expect("it can be read");
        connection
    });
    let mut next = || connections.next().expect("three were made");
    let Pinned {
        reader,
        read_mark_zero,
        ..
    } = attempt
        .flush_under_write_lock(next(), next(), next())
        .expect("nobody is in the way");
    assert_eq!(read_mark_zero, Some(true));
    assert!(shm_locks(&fixture.path).contains(&MARK_ZERO));
    drop(reader);
    assert_eq!(shm_locks(&fixture.path), Vec::<u64>::new());
}

#[test]
fn the_frame_changes_nothing_but_the_log() {
    let fixture = Fixture::wal();
    fixture.sql("PRAGMA user_version = 42");
    let before = fixture.dump();
    drop(fixture.pin());
    assert_eq!(fixture.number("PRAGMA user_version"), 42);
    assert_eq!(fixture.dump(), before);
}

#[test]
fn a_flush_that_hangs_is_left_when_the_watch_is_cancelled_or_the_limit_is_over() {
    let fixture = Fixture::wal();
    for cancel in [true, false] {
        let watch = Watch::default();
        let limit = Duration::from_millis(if cancel { 3_600_000 } else { 10 });
        let attempt = Attempt {
            database: &fixture.database,
            deadline: Deadline::after(limit),
            watch: &watch,
            interrupts: Interrupts::armed(&watch),
        };
        let (let_go, hanging) = mpsc::channel::<()>();
        let other = watch.clone();
        let canceller = cancel.then(|| thread::spawn(move || other.cancel("deadline")));
        let result = attempt.aside(move || {
            let _ = hanging.recv();
            Err(rusqlite::Error::InvalidQuery)
        });
        match result {
            Err(PinError::Failed(Error::Cancelled(why))) if cancel => assert_eq!(why, "deadline"),
            Err(PinError::Busy(why)) if !cancel => assert!(why.contains("10ms"), "{why}"),
            other => panic!("{other:?}"),
        }
        drop(let_go);
        if let Some(canceller) = canceller {
            canceller.join().expect("it only cancels");
        }
    }
}

#[test]
fn a_flush_that_panics_is_no_hang() {
    let fixture = Fixture::wal();
    let watch = Watch::default();
    let attempt = Attempt {
        database: &fixture.database,
        deadline: Deadline::after(Duration::from_secs(3600)),
        watch: &watch,
        interrupts: Interrupts::armed(&watch),
    };
    let result = attempt.aside(|| panic!("on purpose"));
    assert!(matches!(result, Err(PinError::Busy(_))), "{result:?}");
}
