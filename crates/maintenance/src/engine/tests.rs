//! Real databases, a real catalogue, and a disk that fails at every operation there is.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ioprio::{BePriorityLevel, Class};
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::catalogue::{Backup, BackupId, Manifest, Owner, testing};
use crate::config::{Depth, Source};
use crate::disk::Loss;
use crate::disk::testing::{Elsewhere, Volume};
use crate::driver::{Command, Driver, Handles, Parts};
use crate::encryption::Identities;
use crate::excerpt::Partial;
use crate::gate::Gate;
use crate::schedule::Schedule;
use crate::status::PerDoor;
use crate::verify;
use crate::window::{Outcome, Rules, RunId, Trigger};

mod encryption;
mod sidecar;
mod switch;

/// A database with some rows, and room for backups beside it.
struct Bench {
    directory: TempDir,
    settings: Settings,
    opened: OnceCell<Database>,
    /// What opens its backups.
    identities: Option<Identities>,
}

impl Bench {
    fn new(journal: &str, more: &str) -> Self {
        let directory = testing::memory_dir();
        let backups = directory.path().join("backups");
        Self::with(directory, &backups, journal, 500, more)
    }

    /// With the database in `directory` and the backups elsewhere.
    fn with(directory: TempDir, backups: &Path, journal: &str, rows: u32, more: &str) -> Self {
        let etc = directory.path().join("etc");
        let disk = Disk::default();
        disk.create_dir(&etc).expect("a fresh directory");
        for name in ["a.toml", "b.toml"] {
            let file = disk.create(&etc.join(name));
            file.and_then(|mut file| file.fill(name.as_bytes()))
                .expect("a fresh directory");
        }
        let more = more.replace("{etc}", &etc.display().to_string());
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
            identities: None,
        };
        bench
            .writer()
            .execute_batch(&format!(
                "PRAGMA journal_mode = {journal};
                 CREATE TABLE torrents (id INTEGER PRIMARY KEY, info_hash TEXT NOT NULL UNIQUE);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
                 INSERT INTO torrents SELECT i, printf('%040d', i) FROM n;"
            ))
            .expect("a database");
        bench
    }

    /// A directory for a disk that crashes to keep things in.
    fn stash(&self) -> TempDir {
        TempDir::new_in(self.directory.path()).expect("room for a directory")
    }

    fn newest(&self) -> Manifest {
        let catalogue = self.catalogue(&Disk::default()).expect("opens");
        let mut backups = catalogue.backups().expect("lists");
        backups.remove(0).manifest
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

    /// What a pin that was left behind keeps from being done: it stops no writer in WAL mode,
    /// but the log grows for ever.
    fn empty_log(&self) {
        let busy: i64 = self
            .writer()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .expect("a checkpoint");
        assert_eq!(busy, 0, "something is still pinned");
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
        let owner = Owner::this("a test", DateTime::UNIX_EPOCH);
        // As in `swept`, it may take a moment until nobody has it.
        let locked = catalogue
            .lock_within(Duration::from_secs(20), &owner, &Watch::default())
            .expect("nobody has it");
        locked
            .prune(&self.settings.backup.keep, &backups[0])
            .expect("prunes");
        backups[..2].to_vec()
    }

    /// What is temporary and was left behind, swept as a start would. A process that
    /// another test is about to start has its share of a lock until it is another program;
    /// so a draft that seems to be alive is looked at again.
    fn swept(&self) -> Vec<String> {
        let mut left = Vec::new();
        for _ in 0..20_000 {
            let disk = Disk::default();
            let catalogue = self.catalogue(&disk).expect("opens on a disk that works");
            let names = disk.list(catalogue.directory()).expect("lists");
            let names = names.iter().map(|name| name.to_string_lossy().into_owned());
            left = names
                .filter(|name| name.starts_with('.') && name != ".lock")
                .collect();
            if left.is_empty() {
                break;
            }
            std::thread::yield_now();
        }
        left
    }

    /// The good backups, each read back to the last row. Looked at as a start would: what
    /// is temporary is swept first, and nothing temporary is left.
    fn backups(&self) -> Vec<BackupId> {
        assert_eq!(self.swept(), Vec::<String>::new(), "left behind");
        let disk = Disk::default();
        let catalogue = self.catalogue(&disk).expect("opens on a disk that works");
        let scratch = testing::memory_dir();
        let check = |backup: Backup| {
            let watch = Watch::default();
            let backup = backup.opened_with(self.identities.clone());
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
        to_wal: false,
    }
}

/// All that the driver has an engine do, in its order.
fn back_up(engine: &BackupEngine, run: &Run) -> Result<Published, Failure> {
    let watch = Watch::default();
    let (_, draft) = engine.prepare(run, &watch)?;
    let draft = draft.expect("the tracker copies");
    let pin = pinned(engine, run, &watch)?;
    let copied = engine.copy(run, &draft, &pin, &watch);
    drop(pin);
    engine.finish(run, draft, copied?, Pauses::default(), &watch)
}

/// Tries again, as the driver does: the pool opens connections beside, which read for a moment.
fn pinned(engine: &BackupEngine, run: &Run, watch: &Watch) -> Result<Pin, Failure> {
    loop {
        match engine.pin(run, Duration::from_secs(5), watch) {
            Ok(pin) => return Ok(pin),
            Err(NotPinned::Busy(_)) => {}
            Err(NotPinned::Failed(failure)) => return Err(failure),
        }
    }
}

/// The benches on which runs fail and crash, and how each gets hold of its database.
fn benches() -> Vec<(&'static str, Way, Bench)> {
    let plain = |journal, compression: &str| {
        Bench::new(journal, &format!("compression = \"{compression}\"\n"))
    };
    let part = |journal, compression: &str| {
        let part = "files = [\"{etc}\"]\ntables = [\"torrents\"]\n";
        Bench::new(journal, &format!("compression = \"{compression}\"\n{part}"))
    };
    vec![
        ("wal, zstd", Way::File, plain("wal", "zstd")),
        ("rollback journal, zstd", Way::File, plain("delete", "zstd")),
        ("wal, uncompressed", Way::File, plain("wal", "none")),
        ("wal, a part and files", Way::File, part("wal", "zstd")),
        (
            "rollback journal, uncompressed, a part and files",
            Way::File,
            part("delete", "none"),
        ),
        (
            "wal, pages",
            Way::Pages,
            Bench::new("wal", "method = \"pages\"\n"),
        ),
    ]
}

/// That what a run was claimed to have done is done, and that older backups stay else.
fn check(outcome: &Result<Published, Failure>, before: &[BackupId], after: &[BackupId]) {
    match outcome {
        Ok(published) => {
            assert_eq!(
                after[0], published.backup,
                "the newest is the one published"
            );
            assert!(after.len() >= before.len().min(2), "{before:?} {after:?}");
        }
        // Of what was published although the last sync failed nothing is claimed, but it
        // is whole, or `Bench::backups` would not have listed it.
        Err(_) => assert!(
            before.iter().all(|id| after.contains(id)),
            "{before:?} {after:?}"
        ),
    }
}

fn back_up_twice(bench: &Bench) {
    let engine = bench.engine(&Disk::default()).expect("starts");
    for second in 0..2 {
        back_up(&engine, &run(second)).expect("a backup");
    }
}

/// A run, and that whatever came of it nothing is held when it has ended. That is looked for
/// while the engine lives: with it would go what it has forgotten to give back.
fn attempted(bench: &Bench, disk: &Disk, attempt: &Run) -> Result<Published, Failure> {
    let engine = bench.engine(disk);
    let outcome = match &engine {
        Ok(engine) => back_up(engine, attempt),
        Err(failure) => Err(failure.clone()),
    };
    bench.write();
    bench.empty_log();
    drop(engine);
    outcome
}

/// Lets every operation of a run fail in turn.
fn fail_everywhere(what: &str, way: Way, bench: &Bench) {
    let mut cases = 0;
    let mut before = bench.backups();
    for n in 0.. {
        let disk = Disk::failing_at(n);
        let attempt = run(10 + u32::try_from(n).expect("few operations"));
        let outcome = attempted(bench, &disk, &attempt);
        let after = bench.backups();
        check(&outcome, &before, &after);
        before = bench.pruned(&after);
        if disk.operations() <= n {
            outcome.expect("nothing failed");
            assert_eq!(bench.newest().method, way, "{what}");
            break;
        }
        cases += 1;
    }
    println!("{what}: {cases} operations failed, one at a time");
    assert!(cases > 20, "a run has more operations than {cases}");
}

#[test]
fn whatever_operation_of_a_run_fails_older_backups_stay_and_nothing_bad_is_listed() {
    for (what, way, bench) in benches() {
        back_up_twice(&bench);
        fail_everywhere(what, way, &bench);
    }
}

/// Lets the machine go down before every operation of a run in turn, and says how often.
fn crash_everywhere(what: &str, way: Way, bench: &Bench, losses: &[Loss]) -> usize {
    let mut before = bench.backups();
    let mut second = 10_000;
    let mut cases = 0;
    for &loss in losses {
        for n in 0.. {
            let stash = bench.stash();
            let disk = Disk::crashing_at(n, loss, stash.path()).expect("a stash");
            second += 1;
            let outcome = attempted(bench, &disk, &run(second));
            let after = bench.backups();
            check(&outcome, &before, &after);
            before = bench.pruned(&after);
            if disk.operations() <= n {
                outcome.expect("nothing failed");
                assert_eq!(bench.newest().method, way, "{what}");
                break;
            }
            cases += 1;
        }
    }
    println!("{what}: the machine went down {cases} times");
    assert!(
        cases > 20 * losses.len(),
        "a run has more operations than {cases}"
    );
    cases
}

/// It takes what was not synced with it: bytes, names, both or neither.
#[test]
fn wherever_the_machine_goes_down_older_backups_stay_and_nothing_bad_is_listed() {
    let mut all = 0;
    // What SQLite writes itself is not lost with the rest, so `pages` would show nothing.
    for (what, way, bench) in benches()
        .into_iter()
        .filter(|(_, way, _)| *way == Way::File)
    {
        back_up_twice(&bench);
        all += crash_everywhere(what, way, &bench, &Loss::ALL);
    }
    println!("{all} crashes");
}

#[test]
fn a_run_that_clones_leaves_as_little() {
    let volume = Volume::xfs();
    let backups = volume.directory();
    let bench = Bench::with(
        volume.directory(),
        &backups.path().join("b"),
        "delete",
        500,
        "",
    );
    back_up_twice(&bench);
    let what = "rollback journal, cloned";
    fail_everywhere(what, Way::Clone, &bench);
    crash_everywhere(what, Way::Clone, &bench, &[Loss::Everything]);
}

/// A directory of backups with as much room as a test leaves, and a database of 1.04 MB
/// that hardly compresses.
struct Cramped {
    bench: Bench,
    backups: Volume,
}

/// Bytes that are enough for its artifact, but not for a copy beside it.
const ENOUGH: u64 = 2_400_000;

impl Cramped {
    fn new(journal: &str, more: &str) -> Self {
        let backups = Volume::memory(8 << 20);
        let directory = testing::memory_dir();
        let bench = Bench::with(directory, &backups.path().join("b"), journal, 1, more);
        bench
            .writer()
            .execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
                 INSERT INTO torrents (info_hash) SELECT randomblob(40) FROM n;",
            )
            .expect("writes");
        Self { bench, backups }
    }

    /// Fills the rest.
    fn leave(&self, bytes: u64) {
        let disk = Disk::default();
        let filler = self.backups.path().join("filler");
        if filler.exists() {
            disk.remove_file(&filler).expect("ours");
        }
        let free = disk.free_bytes(self.backups.path()).expect("told");
        let rest = usize::try_from(free - bytes).expect("a few megabytes");
        let mut filler = disk.create(&filler).expect("a new file");
        filler.fill(&vec![0; rest]).expect("room");
    }

    fn left_behind(&self) -> Vec<String> {
        let names = Disk::default().list(&self.backups.path().join("b"));
        let names = names.expect("a directory").into_iter();
        let names = names.map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name != ".lock").collect()
    }
}

#[test]
fn where_there_is_no_room_for_a_copy_the_file_is_streamed() {
    let cramped = Cramped::new("wal", "verify = \"full\"\n");
    cramped.leave(ENOUGH);
    let bench = &cramped.bench;
    let engine = bench.engine(&Disk::default()).expect("starts");
    let published = back_up(&engine, &run(0)).expect("there is room for an artifact");
    let [warning] = &published.warnings[..] else {
        panic!("{:?}", published.warnings);
    };
    assert!(warning.contains("no room for a raw copy"), "{warning}");
    assert!(warning.contains("verify --full"), "{warning}");

    let manifest = bench.newest();
    assert_eq!(manifest.method, Way::Stream);
    assert_eq!(manifest.compression_level, Some(1));
    assert_eq!(
        manifest.verified,
        Depth::Quick,
        "what it was, not what was asked for"
    );
    assert!(manifest.verify_seconds.is_some());
    assert_eq!(manifest.warnings, published.warnings);
    assert_eq!(manifest.rows["torrents"], 10_001);
    assert_eq!(bench.backups(), [manifest.id]);
    bench.write();
}

#[test]
fn a_run_that_streams_leaves_as_little_when_it_fails() {
    let cramped = Cramped::new("wal", "");
    let bench = &cramped.bench;
    for second in 0..2 {
        cramped.leave(ENOUGH);
        let engine = bench.engine(&Disk::default()).expect("starts");
        back_up(&engine, &run(second)).expect("a backup");
    }
    cramped.leave(ENOUGH);
    let what = "wal, streamed";
    fail_everywhere(what, Way::Stream, bench);
    cramped.leave(ENOUGH);
    crash_everywhere(what, Way::Stream, bench, &[Loss::Everything]);
}

/// The forecast goes by the last backup; a database may compress worse all of a sudden.
#[test]
fn a_stream_that_fills_the_disk_leaves_nothing() {
    let cramped = Cramped::new("wal", "");
    cramped.leave(ENOUGH);
    let bench = &cramped.bench;
    let writer = bench.writer();
    writer
        .execute_batch("UPDATE torrents SET info_hash = printf('%060d', id)")
        .expect("writes");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let first = back_up(&engine, &run(0)).expect("of nothing but digits there is little");
    assert_eq!(bench.newest().method, Way::Stream);

    writer
        .execute_batch("UPDATE torrents SET info_hash = randomblob(150)")
        .expect("writes");
    let failure = back_up(&engine, &run(1)).expect_err("random bytes are all there");
    assert!(failure.message.contains("space"), "{failure:?}");
    assert_eq!(cramped.left_behind(), [first.backup.to_string()]);
    bench.write();
}

#[test]
fn without_room_for_either_a_run_is_refused_and_told_what_would_help() {
    for (journal, more, helps) in [
        ("wal", "", "streamed into the compressor it still needs"),
        ("delete", "", "journal_mode = \"wal\""),
        ("wal", "compression = \"none\"\n", "compression = \"zstd\""),
        ("wal", "method = \"pages\"\n", "method = \"auto\""),
        // An excerpt is taken from a raw copy: nothing needs less room.
        ("wal", "tables = [\"torrents\"]\n", ""),
        ("delete", "tables = [\"torrents\"]\n", ""),
    ] {
        let cramped = Cramped::new(journal, more);
        let streamable = helps.starts_with("streamed");
        cramped.leave(if streamable { 1_500_000 } else { 2_000_000 });
        let bench = &cramped.bench;
        let engine = bench.engine(&Disk::default()).expect("starts");
        let failure = back_up(&engine, &run(0)).expect_err("there is no room");
        assert!(failure.message.contains(helps), "{failure:?}");
        let advises = failure.message.contains("reserve; ");
        assert_eq!(advises, !helps.is_empty(), "{failure:?}");
        assert!(failure.message.contains("free space"), "{failure:?}");
        bench.write();
        assert!(bench.backups().is_empty());
    }
}

/// With announces held for as long as it takes, only what is quick is done.
#[test]
fn nothing_is_streamed_while_announces_wait() {
    let settings = Source::text(
        "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\nannounces = \"pause\"\n",
    );
    let settings = settings.maintenance().expect("valid").expect("enabled");
    for blocks_writers in [false, true] {
        let forecast = Known {
            bytes: 1 << 30,
            blocks_writers,
            clones: false,
            shares: false,
            announces: settings.announces,
            backup: &settings.backup,
            earlier: &[],
        }
        .forecast();
        assert_eq!(forecast.streamed, None);
    }
}

#[test]
fn a_rollback_journal_is_cloned_and_the_clone_is_checked_as_a_copy_is() {
    for (volume, compression) in Volume::copying_on_write().into_iter().zip(["zstd", "none"]) {
        let more = format!("compression = \"{compression}\"\n");
        let home = volume.directory();
        let backups = home.path().join("b");
        let bench = Bench::with(volume.directory(), &backups, "delete", 500, &more);
        let engine = bench.engine(&Disk::default()).expect("starts");
        let attempt = run(0);
        let (pause, prepared) = engine.prepare(&attempt, &Watch::default()).expect("fits");
        let prepared = prepared.expect("this process copies");
        assert!(matches!(pause, Pause::UntilCopied(_)));
        assert_eq!(prepared.way, Way::Clone);
        drop(prepared);
        back_up(&engine, &attempt).expect("a backup");
        let manifest = bench.newest();
        assert_eq!(manifest.method, Way::Clone);
        assert_eq!(bench.backups(), [manifest.id]);
        assert!(!engine.refused_to_clone.load(Ordering::Relaxed));
    }
}

#[test]
fn a_backup_that_shares_its_blocks_with_the_database_says_so() {
    let volume = Volume::xfs();
    for (more, shares) in [
        ("compression = \"none\"\n", true),
        ("compression = \"zstd\"\n", false),
        // What is stored is an excerpt of the clone.
        ("compression = \"none\"\ntables = [\"torrents\"]\n", false),
        ("compression = \"none\"\nmethod = \"pages\"\n", false),
    ] {
        let home = volume.directory();
        let backups = home.path().join("b");
        let bench = Bench::with(volume.directory(), &backups, "wal", 500, more);
        let engine = bench.engine(&Disk::default()).expect("starts");
        let published = back_up(&engine, &run(0)).expect("a backup");
        let manifest = bench.newest();
        let cloned = !more.contains("pages");
        assert_eq!(manifest.method == Way::Clone, cloned, "{more}");
        assert_eq!(manifest.warnings, published.warnings, "{more}");
        let told = |warning: &String| warning.contains("shares its blocks with the database");
        assert_eq!(published.warnings.iter().any(told), shares, "{more}");
        assert_eq!(published.warnings.len(), usize::from(shares), "{more}");
    }
}

#[test]
fn a_copy_that_is_not_what_was_read_is_no_backup() {
    let bench = Bench::new("wal", "");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let (watch, attempt) = (Watch::default(), run(0));
    let (_, prepared) = engine.prepare(&attempt, &watch).expect("fits");
    let prepared = prepared.expect("this process copies");
    let pin = pinned(&engine, &attempt, &watch).expect("a pin");
    let mut copied = engine
        .copy(&attempt, &prepared, &pin, &watch)
        .expect("copied");
    drop(pin);
    let Held::Raw(raw) = &mut copied.held else {
        panic!("{copied:?}");
    };
    let read = raw.sha256.as_mut().expect("it was read in order");
    let last = if read.ends_with('0') { "1" } else { "0" };
    read.replace_range(63.., last);
    let failure = engine
        .finish(&attempt, prepared, copied, Pauses::default(), &watch)
        .expect_err("it differs");
    assert_eq!(failure.cause, Cause::Verification, "{failure:?}");
    assert!(bench.backups().is_empty());
}

#[test]
fn a_clone_that_was_refused_is_not_reckoned_with_again() {
    let volume = Volume::xfs();
    let home = volume.directory();
    let bench = Bench::with(
        volume.directory(),
        &home.path().join("b"),
        "delete",
        500,
        "",
    );
    let engine = bench.engine(&Disk::default()).expect("starts");
    let facts = engine.facts().expect("readable");
    let way = || {
        let estimate = engine.estimate(&facts, Trigger::Schedule, &Watch::default());
        estimate.expect("told").forecast.way
    };
    assert_eq!(way(), Way::Clone);
    engine.refused_to_clone.store(true, Ordering::Relaxed);
    assert_eq!(way(), Way::File);
}

/// The directory's file system clones files, but the database is of another one, as a file that
/// is mounted into a container is.
#[test]
fn a_clone_that_is_refused_ends_the_run_and_the_next_one_reckons_with_a_copy() {
    let volume = Volume::xfs();
    let home = volume.directory();
    let bench = Bench::with(
        volume.directory(),
        &home.path().join("b"),
        "delete",
        500,
        "",
    );
    let _elsewhere = Elsewhere::of(&bench.database());
    let engine = bench.engine(&Disk::default()).expect("starts");
    let way = |second| {
        let prepared = engine.prepare(&run(second), &Watch::default());
        prepared.expect("fits").1.expect("this process copies").way
    };
    assert_eq!(way(0), Way::Clone);
    let failure = back_up(&engine, &run(1)).expect_err("it is on another file system");
    assert_eq!(failure, not_cloned(&bench.database()));
    bench.write();
    assert_eq!(bench.backups(), []);

    assert_eq!(way(2), Way::File);
    let published = back_up(&engine, &run(3)).expect("it is copied");
    assert_eq!(bench.newest().method, Way::File);
    assert_eq!(bench.backups(), [published.backup]);
}

/// Until it is done in time, or some nights have passed.
#[test]
fn a_copy_that_was_not_done_in_time_is_expected_to_take_too_long_again() {
    let directory = testing::memory_dir();
    let backups = directory.path().join("backups");
    let bench = Bench::with(directory, &backups, "delete", 200_000, "");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let estimate_of = |trigger, second| {
        let run = Run {
            trigger,
            ..run(second)
        };
        let prepared = engine.prepare(&run, &Watch::default());
        match prepared.expect("there is room").0 {
            Pause::UntilCopied(estimate) => estimate,
            Pause::UntilPinned(_) => panic!("it is on a rollback journal"),
        }
    };
    let estimate = |second| estimate_of(Trigger::Schedule, second);
    let before = estimate(0);
    let held = Duration::from_secs(10);
    engine.held_for_copy(held, false);
    assert!(before < held && estimate(1) < held, "one slow night");
    engine.held_for_copy(held, false);
    assert!(estimate(2) > held);
    let by_hand = estimate_of(Trigger::Operator, 2);
    assert!(by_hand < held, "who begins one by hand knows why");
    back_up(&engine, &run(3)).expect("the disk is a better one by now");
    assert!(estimate(4) < held);
}

#[test]
fn a_manifest_says_by_how_much_the_log_grew_under_the_pin() {
    for (journal, grows) in [("wal", true), ("delete", false)] {
        let bench = Bench::new(journal, "");
        let engine = bench.engine(&Disk::default()).expect("starts");
        let (watch, attempt) = (Watch::default(), run(0));
        let (_, prepared) = engine.prepare(&attempt, &watch).expect("fits");
        let prepared = prepared.expect("this process copies");
        let pin = pinned(&engine, &attempt, &watch).expect("a pin");
        if grows {
            bench
                .writer()
                .execute_batch("UPDATE torrents SET info_hash = hex(randomblob(20))")
                .expect("writes");
        }
        let copied = engine
            .copy(&attempt, &prepared, &pin, &watch)
            .expect("copied");
        drop(pin);
        engine
            .finish(&attempt, prepared, copied, Pauses::default(), &watch)
            .expect("a backup");
        let grown = bench.newest().wal_growth;
        assert_eq!(
            grown.map(|bytes| bytes > 20_000),
            grows.then_some(true),
            "{grown:?}"
        );
    }
}

/// What takes the room is the copy itself, beyond what was reckoned, or somebody else.
#[test]
fn a_run_that_comes_near_the_end_of_the_disk_is_given_up() {
    for streamed in [false, true] {
        // A quarter of a minute for all of it.
        let cramped = Cramped::new("wal", "bandwidth = \"64KiB\"\n");
        let bench = &cramped.bench;
        let engine = bench.engine(&Disk::default()).expect("starts");
        if streamed {
            cramped.leave(ENOUGH);
        }
        let (watch, attempt) = (Watch::default(), run(0));
        let (_, prepared) = engine.prepare(&attempt, &watch).expect("there is room");
        let prepared = prepared.expect("this process copies");
        let way = if streamed { Way::Stream } else { Way::File };
        assert_eq!(prepared.way, way);
        let pin = pinned(&engine, &attempt, &watch).expect("a pin");
        if !streamed {
            cramped.leave(pin.facts.bytes() + NEARLY_NOTHING);
        }
        let copied = std::thread::scope(|scope| {
            let copying = scope.spawn(|| engine.copy(&attempt, &prepared, &pin, &watch));
            if streamed {
                while watch.progress().is_none_or(|progress| progress.done == 0) {
                    std::thread::yield_now();
                }
                cramped.leave(NEARLY_NOTHING);
            }
            copying.join().expect("no panic")
        });
        let failure = copied.expect_err("it would have filled the disk");
        assert_eq!(failure.cause, Cause::NoRoom, "{way}: {failure:?}");
        assert!(failure.message.contains("free space"), "{failure:?}");
        drop((prepared, pin));
        assert_eq!(cramped.left_behind(), [""; 0]);
        bench.write();
    }
}

/// Less than a run leaves of eight megabytes.
const NEARLY_NOTHING: u64 = 40_000;

#[test]
fn what_comes_after_the_copy_leaves_the_disk_its_reserve_too() {
    let cramped = Cramped::new("wal", "");
    let bench = &cramped.bench;
    let engine = bench.engine(&Disk::default()).expect("starts");
    let (watch, attempt) = (Watch::default(), run(0));
    let (_, prepared) = engine.prepare(&attempt, &watch).expect("there is room");
    let prepared = prepared.expect("this process copies");
    let pin = pinned(&engine, &attempt, &watch).expect("a pin");
    let copied = engine.copy(&attempt, &prepared, &pin, &watch);
    drop(pin);
    cramped.leave(NEARLY_NOTHING);
    let finished = engine.finish(
        &attempt,
        prepared,
        copied.expect("copied"),
        Pauses::default(),
        &watch,
    );
    let failure = finished.expect_err("it would have filled the disk");
    assert_eq!(failure.cause, Cause::NoRoom, "{failure:?}");
    assert_eq!(cramped.left_behind(), [""; 0]);
}

#[test]
fn announces_that_cannot_be_served_are_told_before_a_run_begins() {
    let mut bench = Bench::new("delete", "");
    bench.settings.announces = Announces::Serve;
    let engine = bench.engine(&Disk::default()).expect("starts");
    let prepared = engine.prepare(&run(0), &Watch::default());
    let failure = prepared.map(drop).expect_err("a rollback journal");
    assert!(
        failure
            .message
            .contains("journal mode delete; set journal_mode = \"wal\""),
        "{failure:?}"
    );
}

#[test]
fn the_threads_of_a_run_are_ranked_behind_the_service() {
    let lowest = Class::BestEffort(BePriorityLevel::lowest());
    for (configured, copying) in [("low", Some(lowest)), ("normal", None)] {
        let bench = Bench::new("wal", &format!("io_priority = \"{configured}\"\n"));
        let engine = bench.engine(&Disk::default()).expect("starts");
        let before = priority::tests::mine();
        let (watch, attempt) = (Watch::default(), run(0));
        let (_, prepared) = engine.prepare(&attempt, &watch).expect("fits");
        let prepared = prepared.expect("this process copies");
        let pin = pinned(&engine, &attempt, &watch).expect("a pin");
        // Each on a thread of its own, as the driver has it.
        let (copied, class) = std::thread::scope(|scope| {
            let copying = scope.spawn(|| {
                let copied = engine.copy(&attempt, &prepared, &pin, &watch);
                (copied, priority::tests::mine())
            });
            copying.join().expect("no panic")
        });
        assert_eq!(
            class,
            (copying.or(before.0), before.1),
            "while it is pinned"
        );
        drop(pin);
        let class = std::thread::scope(|scope| {
            let finishing = scope.spawn(|| {
                let copied = copied.expect("copied");
                engine
                    .finish(&attempt, prepared, copied, Pauses::default(), &watch)
                    .expect("a backup");
                priority::tests::mine()
            });
            finishing.join().expect("no panic")
        });
        assert_eq!(class.0, copying.or(before.0));
        assert!(class.1 > before.1 || before.1 >= 10, "{class:?}");
    }
}

/// Full and partial backups of one database: what each has, and what it does not do to the
/// others.
#[test]
fn partial_backups_are_kept_apart_from_full_ones() {
    let mut bench = Bench::new("wal", "compression = \"none\"\n");
    let writer = bench.writer();
    writer
        .execute_batch(
            "CREATE TABLE other (text TEXT);
             INSERT INTO other SELECT info_hash FROM torrents;",
        )
        .expect("valid SQL");
    let publish = |bench: &Bench, second| {
        let engine = bench.engine(&Disk::default()).expect("starts");
        let published = back_up(&engine, &run(second)).expect("a backup");
        let backup = engine
            .catalogue
            .get(&published.backup)
            .expect("it is there");
        (backup.manifest, published.warnings)
    };
    let (_, _) = publish(&bench, 0);
    let (full, _) = publish(&bench, 1);
    bench.settings.backup.partial = Some(Partial {
        tables: Some(["other".to_owned()].into()),
        completed_only: false,
    });
    for second in 2..=4 {
        let (partial, warnings) = publish(&bench, second);
        assert_eq!(partial.partial, bench.settings.backup.partial);
        assert_eq!((partial.rows["other"], partial.rows["torrents"]), (500, 0));
        assert!(partial.database.raw_bytes < full.database.raw_bytes / 2);
        assert_eq!(partial.copied_bytes(), full.database.raw_bytes);
        assert!(
            warnings.is_empty(),
            "it is no smaller than others of its kind: {warnings:?}"
        );
    }
    writer
        .execute_batch("DELETE FROM other")
        .expect("valid SQL");
    let (_, warnings) = publish(&bench, 5);
    assert!(warnings[0].contains("less than half"), "{warnings:?}");
    // `keep` is two of each kind.
    let kinds = |bench: &Bench| {
        let catalogue = bench.catalogue(&Disk::default()).expect("opens");
        let backups = catalogue.backups().expect("lists");
        backups
            .iter()
            .map(|backup| backup.manifest.is_full())
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(&bench), [false, false, true, true]);
    bench.settings.backup.partial = None;
    let (_, warnings) = publish(&bench, 6);
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(kinds(&bench), [true, false, false, true]);
    let catalogue = bench.catalogue(&Disk::default()).expect("opens");
    assert_eq!(
        catalogue.newest_good().expect("lists"),
        catalogue.newest_of(true).expect("lists")
    );
    assert_eq!(bench.backups().len(), 4, "each is good to the last row");
}

#[test]
fn a_part_that_is_not_there_ends_the_run_before_anything_waits() {
    let bench = Bench::new("wal", "tables = [\"torrent\"]\n");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let prepared = engine.prepare(&run(0), &Watch::default());
    let failure = prepared.map(drop).expect_err("no such table");
    assert_eq!(
        failure.message,
        "backup.tables names torrent, and the database has torrents; correct the names"
    );
    drop(engine);
    assert!(bench.backups().is_empty());
}

#[test]
fn files_that_must_be_there_and_are_not_end_the_run_before_anything_waits() {
    let bench = Bench::new(
        "wal",
        "files = [\"{etc}/none\"]\nmissing_files = \"error\"\n",
    );
    let engine = bench.engine(&Disk::default()).expect("starts");
    let prepared = engine.prepare(&run(0), &Watch::default());
    let failure = prepared.map(drop).expect_err("no such file");
    assert!(failure.message.contains("etc/none"), "{}", failure.message);
    drop(engine);
    assert!(bench.backups().is_empty());
}

#[test]
fn files_are_stored_with_the_database_and_what_is_missing_is_told() {
    let bench = Bench::new("wal", "files = [\"{etc}\", \"{etc}/none\"]\n");
    let engine = bench.engine(&Disk::default()).expect("starts");
    let published = back_up(&engine, &run(0)).expect("a backup");
    assert!(
        published.warnings[0].contains("etc/none"),
        "{:?}",
        published.warnings
    );
    let manifest = engine
        .catalogue
        .get(&published.backup)
        .expect("listed")
        .manifest;
    assert_eq!(manifest.warnings, published.warnings);
    let files = manifest.files.expect("files");
    let names: Vec<_> = files
        .entries
        .iter()
        .map(|file| file.path.file_name())
        .collect();
    assert_eq!(names, [Some("a.toml".as_ref()), Some("b.toml".as_ref())]);
    assert_eq!(bench.backups().len(), 1);
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

/// A copy that hangs, as on a disk that does not answer, with a real pin in its hands.
#[derive(Debug)]
struct Hanging {
    engine: BackupEngine,
    copying: std::sync::mpsc::Sender<()>,
    let_go: Mutex<std::sync::mpsc::Receiver<()>>,
}

impl Engine for Hanging {
    type Draft = Prepared;
    type Pin = Pin;
    type Copy = Copied;

    fn prepare(&self, run: &Run, watch: &Watch) -> Result<(Pause, Option<Prepared>), Failure> {
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

    fn copy(&self, _: &Run, _: &Prepared, _: &Pin, _: &Watch) -> Result<Copied, Failure> {
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
        draft: Prepared,
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
    let parts = Parts {
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
        hold_at_most: PerDoor { udp: 1, http: 1 },
        served: None,
        touch_file: None,
        service: "a service 1.0".into(),
        database: bench.database(),
    };
    let (
        driver,
        Handles {
            commands,
            mut status,
        },
    ) = Driver::new(engine, parts);
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
