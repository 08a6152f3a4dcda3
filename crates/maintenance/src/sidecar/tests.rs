//! Real databases that another process holds still, and a disk that fails at every
//! operation there is.

#![expect(
    clippy::disallowed_methods,
    reason = "tests handle files as no other code here may"
)]

use std::ffi::OsString;
use std::os::unix::fs::symlink;

use ioprio::{BePriorityLevel, Class};
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::catalogue::{Backup, Catalogue, testing};
use crate::config::{self, IoPriority};
use crate::priority;
use crate::sqlite::tests::{OtherProcess, insert};
use crate::verify;
use crate::window::Cause;

/// A database that this process has not open, in a directory of its own.
struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new(journal: &str) -> Self {
        let directory = testing::memory_dir();
        let bench = Self { directory };
        let connection = Connection::open(bench.database()).expect("a new database");
        connection
            .execute_batch(&format!(
                "PRAGMA journal_mode = {journal};
                 CREATE TABLE torrents (id INTEGER PRIMARY KEY AUTOINCREMENT,
                   info_hash TEXT NOT NULL UNIQUE, completed INTEGER DEFAULT 0 NOT NULL);
                 {}",
                insert(500)
            ))
            .expect("an empty database");
        // Nothing is left in a log, and no lock of ours can be lost.
        connection.close().expect("nothing is under way");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn database(&self) -> PathBuf {
        self.path("tracker.db")
    }

    /// As the service that holds the file still describes it.
    fn offer(&self) -> Offer {
        let header = sqlite::inspect(&self.database()).expect("a database");
        let found = fs::metadata(self.database()).expect("it exists");
        Offer {
            run: RunId::new(testing::time()),
            began: testing::time(),
            pinned: testing::time(),
            journal: header.journal,
            pause: Duration::from_millis(3),
            file: PinnedFile {
                device: found.dev(),
                inode: found.ino(),
                page_size: header.page_size,
                page_count: header.page_count,
                bytes: found.len(),
                modified: PinnedFile::modified_of(&found),
            },
        }
    }

    fn take(&self, disk: &Disk, watch: &Watch) -> Result<(Catalogue, Taken), Failure> {
        let catalogue = Catalogue::open(disk.clone(), &self.path("backups"))
            .map_err(|error| Failure::other(&error))?;
        let backup = config::Backup::default();
        let database = self.database();
        let taken = take(
            &self.offer(),
            Origin::Path(&database),
            &publisher(&catalogue, disk, &backup),
            watch,
        )?;
        Ok((catalogue, taken))
    }

    fn temporary(&self) -> Vec<OsString> {
        let names = Disk::default()
            .list(&self.path("backups"))
            .expect("it is there");
        let hidden = |name: &OsString| name.to_string_lossy().starts_with('.');
        names
            .into_iter()
            .filter(|name| hidden(name) && name != ".lock")
            .collect()
    }
}

/// What has the name of a backup is one.
fn read_back(backup: &Backup) {
    let watch = Watch::default();
    let read = verify::backup(backup, None, Path::new("unused"), &Disk::default(), &watch);
    read.expect("what has its final name is whole");
}

fn publisher<'a>(
    catalogue: &'a Catalogue,
    disk: &'a Disk,
    backup: &'a config::Backup,
) -> Publisher<'a> {
    Publisher {
        catalogue,
        disk,
        backup,
        service: "a sidecar 1.0",
    }
}

#[test]
fn a_file_held_still_by_another_process_becomes_a_backup() {
    for journal in ["WAL", "DELETE"] {
        let bench = Bench::new(journal);
        let (disk, watch) = (Disk::default(), Watch::default());
        let mut holder = OtherProcess::open(&bench.database());
        assert_eq!(holder.sql("BEGIN"), "ok");
        assert_eq!(holder.sql("SELECT count(*) FROM torrents"), "500");
        let (catalogue, taken) = bench.take(&disk, &watch).expect("nothing fails");
        assert!(
            catalogue.backups().expect("it is read").is_empty(),
            "not before the verdict"
        );
        let offer = bench.offer();
        assert_eq!(taken.extent().0, offer.file.bytes);
        let backup = config::Backup::default();
        let published = taken
            .publish(&publisher(&catalogue, &disk, &backup), &watch)
            .expect("it is sound");
        let backup = catalogue.get(&published.backup).expect("it was published");
        let manifest = &backup.manifest;
        assert_eq!(manifest.rows.get("torrents"), Some(&500));
        assert_eq!(manifest.journal_mode, journal.to_lowercase());
        assert_eq!(
            (manifest.began, manifest.pinned),
            (offer.began, offer.pinned)
        );
        assert_eq!(manifest.source, bench.database());
        read_back(&backup);
        assert_eq!(bench.temporary(), [] as [&str; 0]);
    }
}

#[test]
fn a_copy_of_a_file_that_changes_is_given_up() {
    let changes: [fn(&Bench); 3] = [
        |bench| {
            let mut writer = OtherProcess::open(&bench.database());
            assert_eq!(writer.sql("DELETE FROM torrents WHERE id % 2"), "ok");
            writer.close();
        },
        |bench| {
            fs::copy(bench.database(), bench.path("other.db")).expect("there is room");
            fs::rename(bench.path("other.db"), bench.database()).expect("the same directory");
        },
        |bench| fs::remove_file(bench.database()).expect("it is there"),
    ];
    for change in changes {
        let bench = Bench::new("DELETE");
        let bytes = bench.offer().file.bytes;
        // So slow that the change falls into it whatever else the machine does.
        let slow = Some(1);
        let (disk, watch) = (Disk::default(), Watch::default());
        let (raw, path) = (bench.path("raw"), bench.database());
        let copied = std::thread::scope(|scope| {
            let copying =
                scope.spawn(|| snapshot::copy_beside(&path, bytes, &raw, &disk, slow, &watch));
            while watch.progress().is_none_or(|progress| progress.done == 0) {
                std::thread::yield_now();
            }
            change(&bench);
            copying.join().expect("no panic")
        });
        let gone = matches!(
            &copied,
            Err(snapshot::Error::Io {
                doing: "look at",
                ..
            })
        );
        assert!(
            gone || matches!(copied, Err(snapshot::Error::Changed { .. })),
            "{copied:?}"
        );
    }
}

#[test]
fn a_copy_that_is_given_up_leaves_nothing() {
    let bench = Bench::new("WAL");
    let watch = Watch::default();
    watch.cancel("the lease was lost");
    let failure = bench
        .take(&Disk::default(), &watch)
        .expect_err("it was cancelled");
    assert!(
        failure.message.contains("the lease was lost"),
        "{failure:?}"
    );
    assert_eq!(bench.temporary(), [] as [&str; 0]);
    // So does one that nobody publishes.
    let taken = bench
        .take(&Disk::default(), &Watch::default())
        .expect("nothing fails");
    assert_eq!(bench.temporary().len(), 1);
    drop(taken);
    assert_eq!(bench.temporary(), [] as [&str; 0]);
}

type Change = fn(&mut PinnedFile);

#[test]
fn another_file_is_told_from_the_right_one() {
    let bench = Bench::new("WAL");
    let right = bench.offer();
    right.check(&bench.database()).expect("it is the one");
    symlink(bench.database(), bench.path("link.db")).expect("a new name");
    right
        .check(&bench.path("link.db"))
        .expect("it leads to the one");

    fs::copy(bench.database(), bench.path("copy.db")).expect("there is room");
    let copy = right
        .check(&bench.path("copy.db"))
        .expect_err("a copy is not the file");
    assert!(copy.to_string().contains("inode"), "{copy}");
    // Each fact by itself is enough, and all of them are told.
    let each: [(&str, Change); 5] = [
        ("inode", |file| file.inode += 1),
        ("size", |file| file.bytes += 1),
        ("page size", |file| file.page_size *= 2),
        ("page count", |file| file.page_count += 1),
        ("last written", |file| file.modified += 1),
    ];
    let mut other = right.clone();
    for (what, change) in each {
        let mut wrong = right.clone();
        change(&mut wrong.file);
        change(&mut other.file);
        let error = wrong.check(&bench.database()).expect_err(what);
        let differences = match &error {
            WrongFile::Other { differences, .. } => differences.len(),
            WrongFile::Unreadable(_) => 0,
        };
        assert_eq!(differences, 1, "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
    let error = other
        .check(&bench.database())
        .expect_err("nothing is right");
    assert!(
        each.iter()
            .all(|(what, _)| error.to_string().contains(what)),
        "{error}"
    );
    for wrong in ["none.db", ""] {
        let error = right.check(&bench.path(wrong)).expect_err("no file");
        assert!(matches!(error, WrongFile::Unreadable(_)), "{error}");
    }
}

#[test]
fn a_copy_of_another_length_than_offered_is_refused() {
    let bench = Bench::new("WAL");
    let (disk, watch) = (Disk::default(), Watch::default());
    let bytes = bench.offer().file.bytes + 4096;
    let raw = bench.path("raw");
    let copied = snapshot::copy_beside(&bench.database(), bytes, &raw, &disk, None, &watch);
    assert!(
        matches!(copied, Err(snapshot::Error::Size { .. })),
        "{copied:?}"
    );
}

#[test]
fn a_lack_of_room_is_told_before_anything_is_copied() {
    let bench = Bench::new("WAL");
    let disk = Disk::default();
    let catalogue = Catalogue::open(disk.clone(), &bench.path("backups")).expect("a directory");
    let backup = config::Backup::default();
    let mut offer = bench.offer();
    offer.file.bytes = 1 << 60;
    let database = bench.database();
    let publisher = publisher(&catalogue, &disk, &backup);
    let failure = take(
        &offer,
        Origin::Path(&database),
        &publisher,
        &Watch::default(),
    );
    let failure = failure.expect_err("no disk is so large");
    assert!(failure.message.contains("free space"), "{failure:?}");
    assert_eq!(failure.cause, Cause::NoRoom);
    assert_eq!(bench.temporary(), [] as [&str; 0]);
}

#[test]
fn whatever_operation_fails_nothing_is_published_but_whole_backups() {
    let bench = Bench::new("WAL");
    let backup = config::Backup::default();
    let mut cases = 0;
    for n in 0.. {
        let (failing, watch) = (Disk::failing_at(n), Watch::default());
        let published = bench.take(&failing, &watch).and_then(|(catalogue, taken)| {
            taken.publish(&publisher(&catalogue, &failing, &backup), &watch)
        });
        let catalogue = Catalogue::open(Disk::default(), &bench.path("backups")).expect("mended");
        for entry in catalogue.backups().expect("it is read") {
            read_back(&entry);
        }
        assert_eq!(bench.temporary(), [] as [&str; 0], "operation {n}");
        // Every case begins alike: what is listed is read, which are operations too.
        fs::remove_dir_all(bench.path("backups")).expect("it is ours");
        cases = n;
        if failing.operations() <= n {
            published.expect("nothing failed");
            break;
        }
    }
    println!("{cases} operations");
    assert!(cases > 30, "only {cases} operations were tried");
}

#[test]
fn the_copy_is_ranked_behind_the_service() {
    let lowest = Class::BestEffort(BePriorityLevel::lowest());
    let before = priority::tests::mine();
    for (io_priority, ranked) in [
        (IoPriority::Low, Some(lowest)),
        (IoPriority::Normal, before.0),
    ] {
        let bench = Bench::new("WAL");
        let disk = Disk::default();
        let catalogue = Catalogue::open(disk.clone(), &bench.path("backups")).expect("a directory");
        let backup = config::Backup {
            io_priority,
            ..config::Backup::default()
        };
        let (offer, database) = (bench.offer(), bench.database());
        let copying = std::thread::scope(|scope| {
            let copying = scope.spawn(|| {
                let publisher = publisher(&catalogue, &disk, &backup);
                let origin = Origin::Path(&database);
                take(&offer, origin, &publisher, &Watch::default()).expect("nothing fails");
                priority::tests::mine()
            });
            copying.join().expect("no panic")
        });
        assert_eq!(copying, (ranked, before.1), "{io_priority:?}");
    }
    assert_eq!(priority::tests::mine(), before);
}

/// What a command may leave: files, directories, links that lead nowhere or elsewhere.
fn fill(staging: &Path, elsewhere: &Path) {
    fs::create_dir_all(staging.join("a/b")).expect("a new directory");
    fs::write(staging.join("database.sqlite3"), vec![7; 100_000]).expect("there is room");
    fs::write(staging.join("a/b/c"), "c").expect("there is room");
    symlink(elsewhere, staging.join("link")).expect("a new name");
    symlink("nowhere", staging.join("a/dangling")).expect("a new name");
}

#[test]
fn staging_is_promoted_whole_or_not_at_all() {
    let directory = testing::memory_dir();
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, "not ours").expect("there is room");
    let at = directory.path().join("copies");
    fs::create_dir(&at).expect("a new directory");
    let mut last = None;
    for n in 0.. {
        let disk = Disk::failing_at(n);
        let run = RunId::new(testing::time());
        let promoted = Staging::begin(&disk, &at, &run).and_then(|staging| {
            assert!(staging.is_empty()?);
            fill(staging.path(), &elsewhere);
            assert!(!staging.is_empty()?);
            staging.promote()
        });
        // What a failing removal left is the next one's to remove.
        sweep(&Disk::default(), &at).expect("nothing lives there");
        let names = Disk::default().list(&at).expect("it is there");
        let whole: Vec<OsString> = promoted.iter().map(|_| run.as_str().into()).collect();
        assert_eq!(names, whole, "operation {n}");
        if let Ok(promoted) = promoted {
            assert_eq!(promoted, at.join(run.as_str()));
            assert_eq!(fs::read(promoted.join("a/b/c")).expect("it is there"), b"c");
            assert!(fs::symlink_metadata(promoted.join("a/dangling")).is_ok());
            fs::remove_dir_all(promoted).expect("it is ours");
            last = Some(n);
            break;
        }
    }
    assert!(last.is_some_and(|operations| operations > 8), "{last:?}");
    assert_eq!(fs::read(&elsewhere).expect("it is there"), b"not ours");
}

#[test]
fn a_sweep_leaves_the_living_and_the_foreign_alone() {
    let directory = testing::memory_dir();
    let (disk, run) = (Disk::default(), RunId::new(testing::time()));
    let living = Staging::begin(&disk, directory.path(), &run).expect("a new directory");
    let dead = directory.path().join(".20261121T030000Z-abcd.staging");
    fs::create_dir(&dead).expect("a new directory");
    fs::write(dead.join("part"), "of a copy").expect("there is room");
    for foreign in ["staging", ".profile", "a.staging"] {
        fs::write(directory.path().join(foreign), "").expect("there is room");
    }
    sweep(&disk, directory.path()).expect("nothing fails");
    assert!(!dead.exists());
    assert!(living.path().exists());
    assert_eq!(disk.list(directory.path()).expect("it is there").len(), 4);
    drop(living);
    assert_eq!(disk.list(directory.path()).expect("it is there").len(), 3);
}

#[test]
fn only_plain_ids_stand_in_names() {
    let run = RunId::new(testing::time());
    assert_eq!(RunId::parse(run.as_str()), Some(run));
    for id in [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "a b",
        "ä",
        "a\0",
        &"a".repeat(65),
    ] {
        assert_eq!(RunId::parse(id), None, "{id}");
    }
}
