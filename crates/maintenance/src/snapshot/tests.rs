#![expect(
    clippy::disallowed_methods,
    reason = "tests handle files as no other code here may"
)]

use std::fs;
use std::thread;

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::*;
use crate::catalogue::testing::memory_dir;
use crate::config::Compression;
use crate::disk::testing::Volume;
use crate::sqlite::tests::{Fixture, OtherProcess, insert};

const BOTH: [Method; 2] = [Method::File, Method::Pages];
const JOURNALS: [&str; 2] = ["PRAGMA journal_mode = WAL", "PRAGMA journal_mode = DELETE"];

/// A database where there are no clones, for the tests of the other methods: in memory, or
/// the disk would decide what is tested.
fn fixture(set_up: &str) -> Fixture {
    Fixture::new_in(memory_dir(), set_up)
}

fn wal() -> Fixture {
    fixture(JOURNALS[0])
}

fn rollback() -> Fixture {
    fixture(JOURNALS[1])
}

fn way(method: Method) -> Way {
    match method {
        Method::Pages => Way::Pages,
        Method::Auto | Method::File => Way::File,
    }
}

/// So many bytes a second.
fn by(bandwidth: u64) -> Limits {
    Limits {
        bandwidth: Some(bandwidth),
        ..Limits::default()
    }
}

fn run(fixture: &Fixture, pin: Pin, method: Method, name: &str) -> Result<RawCopy, Error> {
    let raw = fixture.directory.path().join(name);
    copy(
        pin,
        method,
        &raw,
        &Disk::default(),
        Limits::default(),
        &Watch::default(),
    )
}

/// That the copy is a sound database, and how many rows it has.
fn rows(copy: &RawCopy) -> i64 {
    assert_eq!(
        fs::metadata(&copy.path).expect("it exists").len(),
        copy.bytes
    );
    let database = Connection::open(&copy.path).expect("a database");
    let check: String = database
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("an answer");
    assert_eq!(check, "ok");
    let rows = database.query_row("SELECT count(*) FROM torrents", [], |row| row.get(0));
    rows.expect("the table")
}

#[test]
fn a_copy_is_the_pinned_database_whatever_writers_do() {
    for method in BOTH {
        let fixture = wal();
        // More than a few chunks, and a last one that is not full.
        fixture.sql(&insert(60_000));
        let pin = fixture.pin();
        let expected = fixture.rows();
        let before = fixture.bytes();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let writer = thread::spawn({
            let path = fixture.path.clone();
            let mut other = OtherProcess::open(&path);
            move || {
                let here = Connection::open(path).expect("the database exists");
                while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                    here.execute_batch(&insert(50)).expect("a commit");
                    other.sql(&insert(50));
                    other
                        .sql("DELETE FROM torrents WHERE id IN (SELECT id FROM torrents LIMIT 10)");
                    other.sql("PRAGMA wal_checkpoint(TRUNCATE)");
                }
                other.sql("VACUUM");
                other.close();
            }
        });
        let raw = fixture.directory.path().join("raw");
        let watch = Watch::default();
        let copied = copy_pinned(
            &pin,
            method,
            &raw,
            &Disk::default(),
            Limits::default(),
            &watch,
        );
        drop(stop);
        writer.join().expect("every commit went through");
        assert!(fixture.bytes() == before, "the file changed under the pin");
        pin.release(&watch);

        let copied = copied.expect("nothing fails");
        assert_eq!(copied.method, way(method));
        assert_eq!(copied.bytes, before.len() as u64);
        let progress = watch.progress().expect("it copied");
        assert_eq!(
            (progress.done, progress.total),
            (copied.bytes, Some(copied.bytes))
        );
        let read = fs::read(&raw).expect("it exists");
        match &copied.sha256 {
            Some(sum) => {
                assert!(read == before, "bytes of the copy differ");
                assert_eq!(*sum, format!("{:x}", Sha256::digest(&before)));
            }
            None => assert_eq!(method, Method::Pages),
        }
        assert_eq!(rows(&copied), expected);
    }
}

/// All of it happens in the middle of the copy: one that was done before is done again,
/// slower.
#[test]
fn a_second_process_that_checkpoints_vacuums_and_closes_changes_no_byte() {
    for (set_up, writes) in [("WAL", true), ("DELETE", false)] {
        for method in BOTH {
            let mut bandwidth = 16 << 20;
            while !copied_beside_a_second_process(set_up, writes, method, bandwidth) {
                bandwidth /= 2;
            }
        }
    }
}

/// Whether the copy outlasted the other process.
fn copied_beside_a_second_process(
    journal: &str,
    writes: bool,
    method: Method,
    bandwidth: u64,
) -> bool {
    let fixture = Fixture::new(&format!("PRAGMA journal_mode = {journal}"));
    fixture.sql(&insert(60_000));
    let expected = fixture.rows();
    let mut other = OtherProcess::open(&fixture.path);
    other.sql("SELECT count(*) FROM torrents");
    let pin = fixture.pin();
    let before = fixture.bytes();
    let raw = fixture.directory.path().join("raw");
    let watch = Watch::default();
    let (copied, outlasted) = thread::scope(|scope| {
        let copying = scope
            .spawn(|| copy_pinned(&pin, method, &raw, &Disk::default(), by(bandwidth), &watch));
        while watch.progress().is_none_or(|progress| progress.done == 0) {
            thread::yield_now();
        }
        let answers = [
            "DELETE FROM torrents WHERE id % 3 = 0",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "VACUUM",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA journal_mode = DELETE",
        ]
        .map(|sql| other.sql(sql));
        assert_eq!(answers[0] == "ok", writes, "{answers:?}");
        assert_eq!(answers[2] == "ok", writes, "{answers:?}");
        other.close();
        let outlasted = !copying.is_finished();
        (copying.join().expect("no panic"), outlasted)
    });
    let copied = copied.expect("nothing fails");
    assert!(fixture.bytes() == before, "the file changed under the pin");
    if let Some(sum) = &copied.sha256 {
        assert_eq!(*sum, format!("{:x}", Sha256::digest(&before)));
        assert!(
            fs::read(&raw).expect("it exists") == before,
            "the copy differs"
        );
    }
    assert_eq!(rows(&copied), expected);
    pin.release(&watch);
    outlasted
}

#[test]
fn on_a_rollback_journal_a_copy_is_the_same() {
    for method in BOTH {
        let fixture = rollback();
        let copied = run(&fixture, fixture.pin(), method, "raw").expect("nothing fails");
        assert_eq!(rows(&copied), 1000);
        fixture.assert_writable();
    }
}

#[test]
fn the_methods_differ_in_counters_of_the_header_alone() {
    for fixture in [wal(), rollback()] {
        let file = run(&fixture, fixture.pin(), Method::File, "file").expect("nothing fails");
        // A second pin writes a frame: let both see the same file.
        let pin = fixture.pin();
        let pinned = fixture.bytes();
        let pages = run(&fixture, pin, Method::Pages, "pages").expect("nothing fails");
        assert_eq!(file.bytes, pages.bytes);
        let pages = fs::read(&pages.path).expect("it exists");
        // https://www.sqlite.org/fileformat.html, 1.3: change counter at 24, schema cookie
        // at 40, version-valid-for at 92, library version at 96; four bytes each.
        let counters = [24..28, 40..44, 92..96, 96..100];
        let differing: Vec<usize> = (0..pinned.len())
            .filter(|i| pinned[*i] != pages[*i])
            .collect();
        assert!(
            differing
                .iter()
                .all(|i| counters.iter().any(|c| c.contains(i))),
            "{differing:?}"
        );
    }
}

#[test]
fn every_page_size_and_an_empty_database_can_be_copied() {
    for method in BOTH {
        for size in [512, 1024, 65536] {
            let fixture = fixture(&format!(
                "PRAGMA page_size = {size}; PRAGMA journal_mode = WAL"
            ));
            let copied = run(&fixture, fixture.pin(), method, "raw").expect("nothing fails");
            assert_eq!(rows(&copied), 1000);
        }
        let directory = memory_dir();
        let path = directory.path().join("empty.db");
        fs::write(&path, b"").expect("a writable directory");
        let database = sqlite::Database::open(&path).expect("a database nothing was written to");
        let pin = database
            .pin(Duration::from_secs(20), &Watch::default())
            .expect("idle");
        let raw = directory.path().join("raw");
        let copied = copy(
            pin,
            method,
            &raw,
            &Disk::default(),
            Limits::default(),
            &Watch::default(),
        );
        assert_eq!(copied.expect("nothing fails").bytes, 0);
    }
}

#[test]
fn auto_reads_the_file_unless_it_is_not_as_long_as_its_pages() {
    let fixture = rollback();
    let copied = run(&fixture, fixture.pin(), Method::Auto, "first").expect("nothing fails");
    assert_eq!(copied.method, Way::File);

    // By another process, which cannot harm our locks.
    let longer = std::process::Command::new("truncate")
        .args(["--size", "+8192"])
        .arg(&fixture.path)
        .status()
        .expect("truncate can be run");
    assert!(longer.success());
    let refused = run(&fixture, fixture.pin(), Method::File, "second");
    assert!(
        matches!(refused, Err(Error::Size { expected, found, .. }) if found == expected + 8192),
        "{refused:?}"
    );
    let copied = run(&fixture, fixture.pin(), Method::Auto, "third").expect("nothing fails");
    assert_eq!(copied.method, Way::Pages);
    assert_eq!(rows(&copied), 1000);
}

#[test]
fn cancelling_in_the_middle_ends_the_copy_and_the_pin() {
    for method in BOTH {
        let fixture = rollback();
        fixture.sql(&insert(60_000));
        let pin = fixture.pin();
        let watch = Watch::default();
        let copying = thread::spawn({
            let watch = watch.clone();
            let raw = fixture.directory.path().join("raw");
            // Years for the second chunk: only the watch can end this.
            move || copy(pin, method, &raw, &Disk::default(), by(1), &watch)
        });
        while watch.progress().is_none_or(|progress| progress.done == 0) {
            thread::yield_now();
        }
        watch.cancel("the window ended");
        let result = copying.join().expect("no panic");
        assert!(
            matches!(&result, Err(Error::Cancelled(why)) if why == "the window ended"),
            "{result:?}"
        );
        fixture.assert_writable();
    }
}

#[test]
fn a_pin_that_is_ended_under_a_copy_is_gone_at_once_and_the_copy_fails() {
    for method in BOTH {
        let fixture = rollback();
        fixture.sql(&insert(60_000));
        let pin = fixture.pin();
        let handle = pin.handle();
        let watch = Watch::default();
        let copying = thread::spawn({
            let watch = watch.clone();
            let raw = fixture.directory.path().join("raw");
            // Years for the second chunk, and nobody cancels the watch.
            move || copy(pin, method, &raw, &Disk::default(), by(1), &watch)
        });
        while watch.progress().is_none_or(|progress| progress.done == 0) {
            thread::yield_now();
        }
        assert!(handle.end(Duration::from_secs(20)));
        fixture.assert_writable();
        let result = copying.join().expect("no panic");
        assert!(matches!(result, Err(Error::Ended)), "{result:?}");
    }
}

#[test]
fn nothing_is_copied_from_a_pin_that_was_ended() {
    for method in [Method::Auto, Method::File, Method::Pages] {
        for set_up in JOURNALS {
            let fixture = fixture(set_up);
            let pin = fixture.pin();
            assert!(pin.handle().end(Duration::ZERO));
            let result = run(&fixture, pin, method, "raw");
            assert!(matches!(result, Err(Error::Ended)), "{result:?}");
            fixture.assert_writable();
        }
    }
}

#[test]
fn a_target_that_exists_is_not_touched_and_the_pin_ends() {
    for method in BOTH {
        let fixture = rollback();
        let raw = fixture.directory.path().join("raw");
        fs::write(&raw, "precious").expect("a writable directory");
        let refused = run(&fixture, fixture.pin(), method, "raw");
        assert!(matches!(refused, Err(Error::Disk(_))), "{refused:?}");
        assert_eq!(fs::read_to_string(&raw).expect("still there"), "precious");
        fixture.assert_writable();
    }
}

#[test]
fn a_bandwidth_says_when_bytes_are_due() {
    let watch = Watch::default();
    let held = || Ok(());
    let pace = |bandwidth| Pace::new(bandwidth, &held, &watch);
    assert_eq!(pace(None).due(1 << 40), None);
    assert_eq!(
        pace(Some(1000)).due(2500),
        Some(Duration::from_millis(2500))
    );
    assert_eq!(pace(Some(0)).due(3), Some(Duration::from_secs(3)));
    assert_eq!(
        pace(Some(1)).due(u64::MAX),
        Some(Duration::from_nanos(u64::MAX))
    );
}

#[test]
fn a_clone_is_the_pinned_database_and_stays_it() {
    for volume in Volume::copying_on_write() {
        for (set_up, method) in [(JOURNALS[0], Method::Auto), (JOURNALS[1], Method::File)] {
            let fixture = Fixture::new_in(volume.directory(), set_up);
            fixture.sql(&insert(60_000));
            let pin = fixture.pin();
            let before = fixture.bytes();
            let raw = fixture.directory.path().join("raw");
            let watch = Watch::default();
            // No byte is read, so none is waited for.
            let copied = copy(pin, method, &raw, &Disk::default(), by(1), &watch);
            let copied = copied.expect("nothing fails");
            assert_eq!((copied.method, &copied.sha256), (Way::Clone, &None));
            assert_eq!(copied.bytes, before.len() as u64);
            let progress = watch.progress().expect("it copied");
            assert_eq!(
                (progress.done, progress.total),
                (copied.bytes, Some(copied.bytes))
            );

            // Every page of the database is written anew.
            fixture.sql("DELETE FROM torrents WHERE id % 2 = 0; VACUUM");
            if set_up == JOURNALS[0] {
                fixture.sql("PRAGMA wal_checkpoint(TRUNCATE)");
            }
            assert!(fixture.bytes() != before);
            assert!(
                fs::read(&raw).expect("it exists") == before,
                "the clone changed"
            );
            assert_eq!(rows(&copied), 61_000);
        }
    }
}

#[test]
fn pages_are_asked_for_where_there_are_clones_too() {
    let volume = Volume::xfs();
    let fixture = Fixture::new_in(volume.directory(), JOURNALS[0]);
    let copied = run(&fixture, fixture.pin(), Method::Pages, "raw").expect("nothing fails");
    assert_eq!(copied.method, Way::Pages);
}

#[test]
fn where_there_is_no_clone_the_bytes_are_copied() {
    let [xfs, btrfs] = Volume::copying_on_write();
    let fixture = Fixture::new_in(xfs.directory(), JOURNALS[1]);
    for other in [btrfs.directory(), memory_dir()] {
        let raw = other.path().join("raw");
        let (disk, watch) = (Disk::default(), Watch::default());
        let copied = copy(
            fixture.pin(),
            Method::Auto,
            &raw,
            &disk,
            Limits::default(),
            &watch,
        );
        let copied = copied.expect("nothing fails");
        assert_eq!(copied.method, Way::File);
        assert!(copied.sha256.is_some());
        assert_eq!(rows(&copied), 1000);
    }
}

/// Which many do for databases on btrfs: the clone must not be copied on write either.
#[test]
fn a_database_that_btrfs_does_not_copy_on_write_is_cloned_too() {
    let volume = Volume::btrfs();
    let directory = volume.directory();
    let changed = std::process::Command::new("chattr")
        .arg("+C")
        .arg(directory.path())
        .status()
        .expect("chattr can be run");
    assert!(changed.success());
    let fixture = Fixture::new_in(directory, JOURNALS[0]);
    fixture.sql(&insert(10_000));
    let backups = volume.directory();
    assert!(can_clone(&fixture.path, backups.path(), &Disk::default()));
    let pin = fixture.pin();
    let before = fixture.bytes();
    let raw = backups.path().join("raw");
    let copied = copy(
        pin,
        Method::Auto,
        &raw,
        &Disk::default(),
        Limits::default(),
        &Watch::default(),
    );
    let copied = copied.expect("nothing fails");
    assert_eq!(copied.method, Way::Clone);
    assert!(fs::read(&raw).expect("it exists") == before);
    assert_eq!(rows(&copied), 11_000);
}

#[test]
fn whether_there_are_clones_is_found_out_without_a_trace() {
    let disk = Disk::default();
    let [xfs, btrfs] = Volume::copying_on_write();
    let memory = memory_dir();
    let places = [xfs.path(), btrfs.path(), memory.path()];
    for (i, home) in places.iter().enumerate() {
        for (j, backups) in places.iter().enumerate() {
            let possible = can_clone(&home.join("tracker.db"), backups, &disk);
            assert_eq!(possible, i == j && i < 2, "{home:?} {backups:?}");
        }
        assert!(disk.list(home).expect("a directory").is_empty());
    }
    assert!(!can_clone(
        Path::new("/nowhere/tracker.db"),
        xfs.path(),
        &disk
    ));
}

/// A clone that has no room, or fails in another way, is not a reason to try what needs
/// more.
#[test]
fn a_clone_that_fails_fails_the_copy() {
    let volume = Volume::xfs();
    let fixture = Fixture::new_in(volume.directory(), JOURNALS[1]);
    // 0 creates the copy; 1 clones.
    let raw = fixture.directory.path().join("raw");
    let (disk, watch) = (Disk::failing_at(1), Watch::default());
    let failed = copy(
        fixture.pin(),
        Method::Auto,
        &raw,
        &disk,
        Limits::default(),
        &watch,
    );
    assert!(
        matches!(&failed, Err(Error::Disk(error)) if error.doing == "clone into"),
        "{failed:?}"
    );
    fixture.assert_writable();
}

fn stream_from(fixture: &Fixture, pin: &Pin) -> Result<Streamed, Error> {
    let artifact = fixture.directory.path().join("artifact.zst");
    let (zstd, disk) = (Compression::Zstd(3), Disk::default());
    stream(pin, &artifact, zstd, None, &disk, None, &Watch::default())
}

/// The locks on the database as the kernel lists them, of whichever process.
fn locks(pin: &Pin) -> Vec<String> {
    let inode = format!(":{} ", pin.facts.inode);
    let table = fs::read_to_string("/proc/locks").expect("Linux lists them");
    let ours = table.lines().filter(|line| line.contains(&inode));
    // The first column only numbers the rows.
    ours.filter_map(|line| Some(line.split_once(':')?.1.to_owned()))
        .collect()
}

/// Closing any descriptor of the file drops them, and another process could then take the
/// log away from under this one.
#[test]
fn nothing_that_reads_the_pinned_file_costs_its_locks() {
    let fixture = wal();
    let pin = fixture.pin();
    let before = locks(&pin);
    assert!(!before.is_empty(), "a connection in WAL mode has one");
    stream_from(&fixture, &pin).expect("nothing fails");
    assert_eq!(locks(&pin), before, "after a stream");
    for method in [Method::File, Method::Pages] {
        let raw = fixture.directory.path().join(format!("{method:?}"));
        copy_pinned(
            &pin,
            method,
            &raw,
            &Disk::default(),
            Limits::default(),
            &Watch::default(),
        )
        .expect("nothing fails");
        assert_eq!(locks(&pin), before, "after {method:?}");
    }
}

#[test]
fn a_stream_is_the_pinned_database_whatever_writers_do() {
    let fixture = wal();
    fixture.sql(&insert(60_000));
    let pin = fixture.pin();
    let before = fixture.bytes();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writer = thread::spawn({
        let path = fixture.path.clone();
        move || {
            let here = Connection::open(path).expect("the database exists");
            while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                here.execute_batch(&insert(50)).expect("a commit");
            }
        }
    });
    let streamed = stream_from(&fixture, &pin);
    drop(stop);
    writer.join().expect("every commit went through");
    let streamed = streamed.expect("nothing fails");
    // The connection goes back to the pool as it was: nobody's watch ends its statements.
    pin.release(&Watch::default());
    fixture.database.facts().expect("readable");

    assert_eq!(streamed.artifact.raw_bytes, before.len() as u64);
    assert_eq!(
        streamed.artifact.raw_sha256,
        format!("{:x}", Sha256::digest(&before))
    );
    assert_eq!(streamed.report.rows["torrents"], 61_000);
    let (disk, watch) = (Disk::default(), Watch::default());
    let stored = fixture.directory.path().join(&streamed.artifact.name);
    let unpacked = fixture.directory.path().join("unpacked");
    verify::unpack(&stored, &streamed.artifact, None, &unpacked, &disk, &watch)
        .expect("it is good");
    assert!(fs::read(unpacked).expect("it exists") == before);
}

#[test]
fn a_stream_that_is_cancelled_or_unpinned_ends_so() {
    let fixture = wal();
    fixture.sql(&insert(60_000));
    for end_pin in [false, true] {
        let pin = fixture.pin();
        let handle = pin.handle();
        let watch = Watch::default();
        let streaming = thread::spawn({
            let watch = watch.clone();
            let artifact = fixture.directory.path().join(format!("artifact-{end_pin}"));
            // Years for the second chunk.
            move || {
                let (zstd, disk) = (Compression::Zstd(3), Disk::default());
                stream(&pin, &artifact, zstd, None, &disk, Some(1), &watch)
            }
        });
        while watch.progress().is_none_or(|progress| progress.done == 0) {
            thread::yield_now();
        }
        if end_pin {
            assert!(handle.end(Duration::from_secs(20)));
        } else {
            watch.cancel("the window ended");
        }
        let result = streaming.join().expect("no panic");
        match result {
            Err(Error::Ended) => assert!(end_pin),
            Err(Error::Cancelled(why)) => assert!(!end_pin && why == "the window ended"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_damaged_database_is_found_on_the_pinned_connection() {
    let fixture = wal();
    fixture.sql(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET rootpage = 2 WHERE name LIKE 'sqlite_autoindex%';
         -- Or connections go on with the schema they know.
         PRAGMA schema_version = 1000;",
    );
    let pin = fixture.pin();
    let found = stream_from(&fixture, &pin);
    assert!(
        matches!(found, Err(Error::Stored(verify::Error::Corrupt { .. }))),
        "{found:?}"
    );
}
