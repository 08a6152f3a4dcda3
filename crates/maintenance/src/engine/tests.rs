//! Real databases, a real catalogue, and a disk that fails at every operation there is.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::Instant;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::catalogue::{Artifact, Backup, BackupId, Owner, testing};
use crate::config::{Depth, Source};
use crate::driver::{Command, Driver, Handles, Parts};
use crate::gate::Gate;
use crate::schedule::Schedule;
use crate::verify;
use crate::window::{Outcome, Rules, RunId, Trigger};

mod sidecar;

/// A database with some rows, and room for backups beside it.
struct Bench {
    directory: TempDir,
    settings: Settings,
    opened: OnceCell<Database>,
}

impl Bench {
    fn new(journal: &str, more: &str) -> Self {
        let directory = testing::memory_dir();
        let backups = directory.path().join("backups");
        let settings = Source::text(format!(
            "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n\
             [maintenance.backup]\ndirectory = \"{}\"\nkeep = {{ last = 2 }}\n{more}",
            backups.display()
        ));
        let settings = settings.maintenance().expect("valid").expect("enabled");
        let opened = OnceCell::new();
        let bench = Self {
            directory,
            settings,
            opened,
        };
        bench
            .writer()
            .execute_batch(&format!(
                "PRAGMA journal_mode = {journal};
                 CREATE TABLE torrents (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
                 INSERT INTO torrents SELECT i, printf('%040d', i) FROM n;"
            ))
            .expect("a database");
        bench
    }

    fn database(&self) -> PathBuf {
        self.directory.path().join("tracker.db")
    }

    fn writer(&self) -> Connection {
        let connection = Connection::open(self.database()).expect("opens");
        // The pool opens connections beside; a lock that was left behind stays longer.
        connection
            .busy_timeout(Duration::from_secs(2))
            .expect("set");
        connection
    }

    /// What a service would notice of a lock that was left behind.
    fn write(&self) {
        self.writer()
            .execute(
                "INSERT INTO torrents (info_hash) VALUES (hex(randomblob(20)))",
                [],
            )
            .expect("nobody is in the way");
    }

    fn catalogue(&self, disk: &Disk) -> Result<Catalogue, crate::catalogue::Error> {
        Catalogue::open(disk.clone(), &self.settings.backup.directory)
    }

    fn engine(&self, disk: &Disk) -> Result<BackupEngine, Failure> {
        let catalogue = self
            .catalogue(disk)
            .map_err(|error| Failure::other(&error))?;
        let database = self
            .opened
            .get_or_init(|| Database::open(&self.database()).expect("a database"));
        let service = "a service 1.0".to_owned();
        Ok(BackupEngine::new(
            database.clone(),
            catalogue,
            disk.clone(),
            &self.settings,
            service,
        )
        .expect("readable"))
    }

    /// Back to two backups, so that every case begins alike. What stays.
    fn pruned(&self, backups: &[BackupId]) -> Vec<BackupId> {
        let catalogue = self.catalogue(&Disk::default()).expect("opens");
        let locked = catalogue
            .lock(&Owner::this("a test", DateTime::UNIX_EPOCH))
            .expect("nobody has it");
        locked
            .prune(&self.settings.backup.keep, &backups[0])
            .expect("prunes");
        backups[..2].to_vec()
    }

    /// The good backups, each read back to the last row. Looked at as a start would: what
    /// is temporary is swept first, and nothing temporary is left.
    fn backups(&self) -> Vec<BackupId> {
        let disk = Disk::default();
        let catalogue = self.catalogue(&disk).expect("opens on a disk that works");
        for name in disk.list(catalogue.directory()).expect("lists") {
            let name = name.to_string_lossy();
            assert!(
                !name.starts_with('.') || name == ".lock",
                "left behind: {name}"
            );
        }
        let scratch = testing::memory_dir();
        let check = |backup: Backup| {
            let watch = Watch::default();
            verify::backup(&backup, Some(Depth::Full), scratch.path(), &disk, &watch)
                .unwrap_or_else(|error| panic!("a bad backup is listed: {error}"));
            backup.manifest.id
        };
        catalogue
            .backups()
            .expect("lists")
            .into_iter()
            .map(check)
            .collect()
    }
}

fn run(second: u32) -> Run {
    let began = DateTime::from_timestamp(1_795_000_000 + i64::from(second), 0).expect("a time");
    Run {
        id: RunId::new(began),
        trigger: Trigger::Operator,
        began,
        #[expect(clippy::disallowed_methods, reason = "a test may look at the clock")]
        ends: Instant::now() + Duration::from_secs(60),
        attempt: 1,
    }
}

/// All that the driver has an engine do, in its order.
fn back_up(engine: &BackupEngine, run: &Run) -> Result<Published, Failure> {
    let watch = Watch::default();
    let (_, draft) = engine.prepare(run, &watch)?;
    let draft = draft.expect("the tracker copies");
    let pin = loop {
        match engine.pin(run, Duration::from_secs(5), &watch) {
            Ok(pin) => break pin,
            // The pool opens connections beside, which read for a moment.
            Err(NotPinned::Busy(_)) => {}
            Err(NotPinned::Failed(failure)) => return Err(failure),
        }
    };
    let copied = engine.copy(run, &draft, &pin, &watch);
    drop(pin);
    engine.finish(run, draft, copied?, Pauses::default(), &watch)
}

#[test]
fn whatever_operation_of_a_run_fails_older_backups_stay_and_nothing_bad_is_listed() {
    for (journal, compression) in [("wal", "zstd"), ("delete", "zstd"), ("wal", "none")] {
        let bench = Bench::new(journal, &format!("compression = \"{compression}\"\n"));
        let healthy = Disk::default();
        for second in 0..2 {
            back_up(&bench.engine(&healthy).expect("starts"), &run(second)).expect("a backup");
        }
        let mut cases = 0;
        let mut before = bench.backups();
        for n in 0.. {
            let disk = Disk::failing_at(n);
            let attempt = run(10 + u32::try_from(n).expect("few operations"));
            let outcome = bench
                .engine(&disk)
                .and_then(|engine| back_up(&engine, &attempt));
            bench.write();
            let after = bench.backups();
            match outcome {
                Ok(published) => {
                    assert_eq!(
                        after[0], published.backup,
                        "the newest is the one published"
                    );
                    assert!(after.len() >= before.len().min(2), "{before:?} {after:?}");
                }
                // Of what was published although the last sync failed nothing is claimed,
                // but it is whole, or `backups` would not have listed it.
                Err(_) => assert!(
                    before.iter().all(|id| after.contains(id)),
                    "{before:?} {after:?}"
                ),
            }
            before = bench.pruned(&after);
            if disk.operations() <= n {
                break;
            }
            cases += 1;
        }
        println!("{journal}, {compression}: {cases} operations failed, one at a time");
        assert!(cases > 20, "a run has more operations than {cases}");
    }
}

#[test]
fn a_corrupt_page_is_found_before_the_backup_has_a_name() {
    let bench = Bench::new("delete", "verify = \"full\"\n");
    {
        let writer = bench.writer();
        writer
            .execute_batch(
                "PRAGMA writable_schema = ON;
                 UPDATE sqlite_schema SET rootpage = 2 WHERE name LIKE 'sqlite_autoindex%';",
            )
            .expect("damages the schema");
    }
    let engine = bench.engine(&Disk::default()).expect("starts");
    let failure = back_up(&engine, &run(0)).expect_err("damaged");
    assert_eq!(failure.cause, Cause::Verification, "{failure:?}");
    drop(engine);
    assert!(bench.backups().is_empty());
}

#[test]
fn a_disk_without_room_refuses_the_run_before_anything_waits() {
    let bench = Bench::new("wal", "");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let failure = engine
        .check_room(u64::MAX)
        .expect_err("no disk is that large");
    assert!(
        failure.message.contains("free space"),
        "{}",
        failure.message
    );
    assert!(engine.check_room(1).is_ok());
}

/// The log's file never shrinks by itself: one that was long already is no reason to give
/// up, one that grows under the pin is.
#[test]
fn the_log_may_be_long_but_may_not_grow_past_its_limit_under_the_pin() {
    let bench = Bench::new("wal", "wal_limit = \"1MiB\"\n");
    let writer = bench.writer();
    writer
        .pragma_update(None, "wal_autocheckpoint", 0)
        .expect("set");
    let grow = || {
        writer
            .execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
                 INSERT INTO torrents (info_hash) SELECT hex(randomblob(20)) FROM n;",
            )
            .expect("writes");
    };
    grow();
    let engine = bench.engine(&Disk::default()).expect("starts");
    assert!(engine.database.wal_bytes().expect("told") > 1 << 20);
    let watch = Watch::default();
    let (_, draft) = engine.prepare(&run(0), &watch).expect("prepared");
    let pin = engine
        .pin(&run(0), Duration::from_secs(5), &watch)
        .expect("pinned");
    assert_eq!(engine.pinned_too_long(), None);
    grow();
    let failure = engine.pinned_too_long().expect("it grew");
    assert_eq!(failure.cause, Cause::WalLimit);
    assert!(failure.message.contains("wal_limit"), "{}", failure.message);
    drop((pin, draft));
}

fn manifest(raw_bytes: u64, copy_seconds: f64, bandwidth: Option<u64>) -> Manifest {
    let id = BackupId::try_from("20261122T030000Z".to_owned()).expect("an id");
    let artifact = Artifact {
        name: "database.sqlite3.zst".into(),
        stored_bytes: raw_bytes / 3,
        stored_sha256: String::new(),
        raw_bytes,
        raw_sha256: String::new(),
        compression: "zstd".into(),
    };
    let mut manifest = testing::manifest(&id, artifact);
    manifest.copy_seconds = copy_seconds;
    manifest.bandwidth = bandwidth;
    manifest
}

#[test]
fn a_pause_is_reckoned_by_the_best_of_the_last_copies() {
    const GB: u64 = 1_000_000_000;
    let bench = Bench::new("delete", "");
    let pause = |announces, blocks, earlier: &[&Manifest]| {
        Forecast::of(17 * GB, blocks, announces, &bench.settings.backup, earlier).pause
    };
    let seconds = |pause| match pause {
        Pause::UntilCopied(estimate) => estimate.as_secs_f64(),
        Pause::UntilPinned => 0.0,
    };
    assert_eq!(pause(Announces::Auto, false, &[]), Pause::UntilPinned);
    let never_measured = seconds(pause(Announces::Auto, true, &[]));
    assert!((113.0..114.0).contains(&never_measured), "{never_measured}");

    let (slow, fast) = (manifest(GB, 10.0, None), manifest(GB, 2.0, None));
    let throttled = manifest(GB, 100.0, Some(10_000_000));
    let tiny = manifest(1_000, 1.0, None);
    let earlier = [&throttled, &tiny, &slow, &fast];
    assert!((seconds(pause(Announces::Auto, true, &earlier)) - 34.0).abs() < 0.1);
    assert!((seconds(pause(Announces::Pause, false, &earlier)) - 34.0).abs() < 0.1);
    let only_throttled = seconds(pause(Announces::Auto, true, &[&throttled]));
    assert!((113.0..114.0).contains(&only_throttled), "{only_throttled}");
}

/// A copy that hangs, as on a disk that does not answer, with a real pin in its hands.
#[derive(Debug)]
struct Hanging {
    engine: BackupEngine,
    copying: std::sync::mpsc::Sender<()>,
    let_go: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Engine for Hanging {
    type Draft = Draft;
    type Pin = Pin;
    type Copy = Copied;

    fn prepare(&self, run: &Run, watch: &Watch) -> Result<(Pause, Option<Draft>), Failure> {
        self.engine.prepare(run, watch)
    }

    fn describe(&self, pin: &Pin) -> Pinned {
        self.engine.describe(pin)
    }

    fn broken(&self) -> Option<Failure> {
        self.engine.broken()
    }

    fn pin(&self, run: &Run, limit: Duration, watch: &Watch) -> Result<Pin, NotPinned> {
        self.engine.pin(run, limit, watch)
    }

    fn copy(&self, _: &Run, _: &Draft, _: &Pin, _: &Watch) -> Result<Copied, Failure> {
        let let_go = self.let_go.lock().expect("unpoisoned");
        // Both ends belong to the test, which may have failed.
        let _ = self.copying.send(());
        let _ = let_go.recv();
        Err(Failure::other(&"let go at last"))
    }

    fn release(&self, pin: Pin) {
        self.engine.release(pin);
    }

    fn end_pin(&self, within: Duration) -> bool {
        self.engine.end_pin(within)
    }

    fn finish(
        &self,
        run: &Run,
        draft: Draft,
        copy: Copied,
        pauses: Pauses,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        self.engine.finish(run, draft, copy, pauses, watch)
    }

    fn pinned_too_long(&self) -> Option<Failure> {
        self.engine.pinned_too_long()
    }

    fn journal_mode(&self) -> String {
        self.engine.journal_mode()
    }
}

/// On a rollback journal the pin keeps writers out, so opening the gate is not enough: at
/// the deadline the pin goes too, though the thread that holds it hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_hangs_keeps_neither_the_gate_nor_the_database() {
    let bench = Bench::new("delete", "");
    let (copying, copies) = std::sync::mpsc::channel();
    let (let_it_go, let_go) = std::sync::mpsc::channel();
    let engine = Hanging {
        engine: bench.engine(&Disk::default()).expect("starts"),
        copying,
        let_go: Mutex::new(let_go),
    };
    let (gate, keeper) = Gate::new().expect("a thread");
    let (
        driver,
        Handles {
            commands,
            mut status,
        },
    ) = Driver::new(Parts {
        engine,
        keeper,
        rules: Rules {
            schedule: Schedule::crontab("0 5 29 2 *", Duration::from_secs(60)).expect("valid"),
            catch_up: false,
            hold_for: Duration::from_millis(800),
            flush_within: Duration::from_millis(800),
            attempts: 1,
            retry_after: Duration::from_millis(1),
            grace: Duration::from_millis(200),
            finish_within: Duration::from_secs(60),
            lease: None,
        },
        served: None,
        touch_file: None,
        service: "a service 1.0".into(),
        database: bench.database(),
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let driver = tokio::spawn(driver.run(async { drop(stopped.await) }));
    let (reply, answer) = tokio::sync::oneshot::channel();
    commands
        .send(Command::Start { reply })
        .await
        .expect("the driver lives");
    answer
        .await
        .expect("it answers")
        .expect("nothing is in the way");

    let ended = status.wait_for(|status| !status.runs.is_empty()).await;
    let report = ended.expect("the driver lives").runs.remove(0);
    copies.recv().expect("the copy had begun");
    assert!(
        matches!(report.outcome, Outcome::Deadline { .. }),
        "{report:?}"
    );
    assert!(gate.is_open());
    assert_eq!(gate.forced(), 0);
    // The thread still hangs, and a service's write gets through.
    bench.write();

    drop(let_it_go);
    drop(stop);
    driver.await.expect("no panic");
}
