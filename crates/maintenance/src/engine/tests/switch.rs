//! Real databases that go over to WAL in a run.

use super::*;
use crate::sqlite::set_journal_mode;
use crate::sqlite::tests::OtherProcess;

fn switching(second: u32) -> Run {
    Run {
        to_wal: true,
        ..run(second)
    }
}

fn text(database: &Connection, sql: &str) -> String {
    let text = database.query_row(sql, [], |row| row.get(0));
    text.expect("readable")
}

#[test]
fn a_run_that_is_ordered_to_goes_over_to_wal_and_is_one_of_wal() {
    let bench = Bench::new("delete", "");
    let engine = bench.engine(&Disk::default()).expect("starts");
    engine.can_switch().expect("nothing is configured");
    // The service's, idle.
    let service = bench.writer();
    assert_eq!(text(&service, "PRAGMA journal_mode"), "delete");
    back_up(&engine, &run(0)).expect("a backup");
    assert_eq!(bench.newest().journal_mode, "delete");
    assert_eq!(engine.journal_mode(), "delete");

    back_up(&engine, &switching(1)).expect("a backup");
    assert_eq!(engine.journal_mode(), "wal");
    assert_eq!(bench.newest().journal_mode, "wal");
    bench.write();
    let rows = "SELECT CAST(count(*) AS TEXT) FROM torrents";
    assert_eq!(text(&service, rows), "501");
    assert_eq!(text(&service, "PRAGMA journal_mode"), "wal");
    bench.empty_log();

    // The next one, whatever it was told.
    for (second, run) in [(2, run(2)), (3, switching(3))] {
        back_up(&engine, &run).unwrap_or_else(|error| panic!("run {second}: {error:?}"));
        assert_eq!(bench.newest().journal_mode, "wal");
    }
}

#[test]
fn what_it_costs_is_what_it_costs_in_wal() {
    let bench = Bench::new("delete", "");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let pause = |run: &Run| {
        let prepared = engine.prepare(run, &Watch::default());
        prepared.expect("there is room").0
    };
    assert!(matches!(pause(&run(0)), Pause::UntilCopied(_)));
    assert!(matches!(pause(&switching(1)), Pause::UntilPinned(_)));
    assert_eq!(engine.journal_mode(), "delete", "it was only prepared");
    bench.write();

    // Where there is room for the artifact alone.
    let cramped = Cramped::new("delete", "");
    cramped.leave(ENOUGH);
    let engine = cramped.bench.engine(&Disk::default()).expect("starts");
    let refused = back_up(&engine, &run(0)).expect_err("announces would wait for a stream");
    assert_eq!(refused.cause, Cause::NoRoom, "{refused:?}");
    assert_eq!(engine.journal_mode(), "delete");
    back_up(&engine, &switching(1)).expect("there is room for an artifact");
    assert_eq!(cramped.bench.newest().method, Way::Stream);
    assert_eq!(engine.journal_mode(), "wal");
}

#[test]
fn a_foreign_reader_is_named_and_nothing_is_held_until_it_ends() {
    let bench = Bench::new("delete", "");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let mut other = OtherProcess::open(&bench.database());
    other.sql("BEGIN");
    other.sql("SELECT count(*) FROM torrents");
    let (watch, attempt) = (Watch::default(), switching(0));
    let (_, draft) = engine
        .prepare(&attempt, &watch)
        .expect("it can be reckoned");
    let refused = engine.pin(&attempt, Duration::from_millis(100), &watch);
    let Err(NotPinned::Busy(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(why.contains("fuser -v"), "{why}");
    assert_eq!(engine.journal_mode(), "delete");
    other.sql("COMMIT");
    bench.write();

    let pin = pinned(&engine, &attempt, &watch).expect("nobody is in the way any more");
    assert_eq!(pin.facts.journal, Journal::Wal);
    // Writers are not, either.
    bench.write();
    drop((pin, draft));
    bench.empty_log();
    other.close();
}

#[test]
fn a_run_that_ends_after_the_switch_leaves_the_database_in_wal() {
    let mut bench = Bench::new("delete", "");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let (watch, attempt) = (Watch::default(), switching(0));
    let prepared = engine.prepare(&attempt, &watch).expect("there is room");
    let left = engine.switch(Duration::from_secs(5), &watch);
    assert!(left.expect("nobody is in the way") <= Duration::from_secs(5));
    watch.cancel("the run was given up");
    let given_up = engine.pin(&attempt, Duration::from_secs(5), &watch);
    assert!(
        matches!(given_up, Err(NotPinned::Failed(_))),
        "{given_up:?}"
    );
    assert_eq!(engine.journal_mode(), "wal", "which it is");
    drop((prepared, engine));
    bench.write();

    // And so the next start finds it.
    bench.opened = OnceCell::new();
    let engine = bench.engine(&Disk::default()).expect("starts");
    assert_eq!(engine.journal_mode(), "wal");
    assert_eq!(text(&bench.writer(), "PRAGMA integrity_check"), "ok");
    back_up(&engine, &run(1)).expect("a backup");
    assert_eq!(bench.newest().journal_mode, "wal");
}

#[test]
fn what_the_next_start_would_undo_is_refused() {
    let mut bench = Bench::new("delete", "");
    bench.settings.journal_mode = JournalMode::Delete;
    let engine = bench.engine(&Disk::default()).expect("starts");
    assert_eq!(engine.can_switch(), Err(NoSwitch::Configured));
}

/// For the next case; what has the database open is closed.
fn back_to_a_rollback_journal(bench: &mut Bench) {
    drop(bench.opened.take());
    // The pool may close its last connection a moment later, on a thread of its own.
    for _ in 0..1_000_000 {
        match set_journal_mode(&bench.database(), JournalMode::Delete) {
            Ok(_) => return,
            Err(sqlite::Error::InUse { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("somebody has it open still");
}

#[test]
fn whatever_operation_fails_of_a_run_that_switches_the_database_is_whole() {
    let mut bench = Bench::new("delete", "");
    back_up_twice(&bench);
    let mut cases = 0;
    let mut before = bench.backups();
    for n in 0.. {
        back_to_a_rollback_journal(&mut bench);
        let disk = Disk::failing_at(n);
        let attempt = switching(10 + u32::try_from(n).expect("few operations"));
        let outcome = attempted(&bench, &disk, &attempt);
        let after = bench.backups();
        check(&outcome, &before, &after);
        before = bench.pruned(&after);
        let service = bench.writer();
        assert_eq!(text(&service, "PRAGMA quick_check"), "ok", "{n}");
        let journal = text(&service, "PRAGMA journal_mode");
        assert!(
            journal == "wal" || (outcome.is_err() && journal == "delete"),
            "{n}: {journal}, {outcome:?}"
        );
        if disk.operations() <= n {
            outcome.expect("nothing failed");
            assert_eq!(bench.newest().journal_mode, "wal");
            break;
        }
        cases += 1;
    }
    println!("to WAL: {cases} operations failed, one at a time");
    assert!(cases > 20, "a run has more operations than {cases}");
}
