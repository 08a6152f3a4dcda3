#![expect(
    clippy::disallowed_methods,
    reason = "tests set files up and look at them behind the seam's back"
)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::process::{Command, Stdio};

use chrono::TimeDelta;
use tempfile::TempDir;

use super::*;
use crate::catalogue::Catalogue;
use crate::catalogue::testing::{manifest, memory_dir, time};
use crate::config::Compression;
use crate::disk::Loss;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Rows of the backup and of the database that is in place.
const NEW: i64 = 300;
const OLD: i64 = 7;

/// A backup of [`NEW`] rows, a directory to restore to, and one to stash in.
struct Bench {
    root: TempDir,
    backup: Backup,
}

impl Bench {
    fn new() -> Self {
        Self::of(NEW, Compression::Zstd(3))
    }

    fn of(rows: i64, compression: Compression) -> Self {
        let root = memory_dir();
        for name in ["data", "stash"] {
            fs::create_dir(root.path().join(name)).expect("a fresh directory");
        }
        let disk = Disk::default();
        let catalogue =
            Catalogue::open(disk.clone(), &root.path().join("backups")).expect("a catalogue");
        let draft = catalogue.begin(time()).expect("a draft");
        database(&draft.raw_path(), rows);
        let artifact = verify::compress(
            &draft.raw_path(),
            &draft.artifact_path(&compression),
            compression,
            &disk,
            &Watch::default(),
        )
        .expect("an artifact");
        let mut manifest = manifest(draft.id(), artifact);
        manifest.rows = [("t".to_owned(), rows.cast_unsigned())].into();
        let backup = draft.publish(&manifest).expect("a backup");
        Self { root, backup }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.root.path().join("data").join(name)
    }

    fn target(&self) -> PathBuf {
        self.data("tracker.db")
    }

    fn names(&self) -> Vec<String> {
        let names = Disk::default().list(&self.data("")).expect("a directory");
        names
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name != "tracker.db.lock")
            .collect()
    }

    fn plan(&self, disk: &Disk) -> Result<RestorePlan, Error> {
        plan(self.backup.clone(), &self.target(), time(), disk)
    }

    fn restore(&self, force: bool, disk: &Disk) -> Result<Restored, Error> {
        self.plan(disk)?
            .execute(force, Depth::Quick, disk, &Watch::default())
    }

    fn objections(&self) -> Vec<Objection> {
        self.plan(&Disk::default()).expect("a plan").objections
    }
}

const KEPT: &str = "tracker.db.replaced-20261122T030000Z";

/// A database of this many rows on a rollback journal.
fn database(path: &Path, rows: i64) {
    let connection = Connection::open(path).expect("a fresh database");
    connection
        .execute_batch("PRAGMA page_size = 512; CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT);")
        .expect("a fresh table");
    insert(&connection, rows);
}

fn insert(connection: &Connection, rows: i64) {
    connection
        .execute_batch(&format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
             INSERT INTO t (b) SELECT printf('%040d', i) FROM n;"
        ))
        .expect("rows are inserted");
}

fn rows(path: &Path) -> i64 {
    let connection = Connection::open(path).expect("a database");
    let sound: String = connection
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("a check");
    assert_eq!(sound, "ok", "{}", path.display());
    connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .expect("a count")
}

/// The state a killed process leaves: [`OLD`] rows, most of them in the log.
fn wal_database(path: &Path) {
    let live = path.with_file_name("live.db");
    database(&live, 1);
    let connection = Connection::open(&live).expect("a database");
    let wal = connection.query_row("PRAGMA journal_mode = wal", [], |row| row.get(0));
    assert_eq!(wal, Ok("wal".to_owned()));
    insert(&connection, OLD - 1);
    for suffix in ["", "-wal", "-shm"] {
        fs::copy(beside(&live, "", suffix), beside(path, "", suffix)).expect("a copy");
    }
    drop(connection);
    fs::remove_file(live).expect("it is there");
}

/// The state a process killed in a transaction leaves: the file half changed, the way back
/// in its journal. [`OLD`] rows were committed.
fn database_with_hot_journal(path: &Path) {
    let live = path.with_file_name("live.db");
    database(&live, OLD);
    let connection = Connection::open(&live).expect("a database");
    connection
        .execute_batch("PRAGMA cache_size = 1; BEGIN;")
        .expect("a transaction");
    insert(&connection, 1000);
    for suffix in ["", "-journal"] {
        fs::copy(beside(&live, "", suffix), beside(path, "", suffix)).expect("a copy");
    }
    drop(connection);
    fs::remove_file(live).expect("it is there");
}

fn set_written(path: &Path, at: DateTime<Utc>) {
    fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(at.into()))
        .expect("its time can be set");
}

/// Long before the backup was taken.
fn set_old(path: &Path) {
    set_written(path, time() - TimeDelta::days(1));
}

#[test]
fn a_backup_is_restored_where_nothing_is() -> Outcome {
    let bench = Bench::new();
    let disk = Disk::default();
    let plan = bench.plan(&disk)?;
    assert_eq!(
        (plan.objections.as_slice(), &plan.kept_as),
        (&[][..], &None)
    );
    assert_eq!(plan.bytes, bench.backup.manifest.database.raw_bytes);
    assert_eq!(bench.names(), [""; 0], "a plan changes nothing");
    assert!(!bench.data("tracker.db.lock").exists());

    let restored = plan.execute(false, Depth::Full, &disk, &Watch::default())?;
    assert_eq!(restored.target, bench.target());
    assert_eq!(restored.report.rows["t"], 300);
    assert_eq!(bench.names(), ["tracker.db"]);
    assert_eq!(rows(&bench.target()), NEW);
    Ok(())
}

#[test]
fn the_present_database_is_kept_aside_with_what_was_in_its_log() -> Outcome {
    let bench = Bench::new();
    wal_database(&bench.target());
    fs::set_permissions(bench.target(), fs::Permissions::from_mode(0o604))?;
    let restored = bench.restore(true, &Disk::default())?;
    assert_eq!(restored.kept_as, Some(bench.data(KEPT)));
    assert_eq!(bench.names(), ["tracker.db", KEPT]);
    assert_eq!(rows(&bench.target()), NEW);
    assert_eq!(rows(&bench.data(KEPT)), OLD);
    let mode = fs::metadata(bench.target())?.permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o604,
        "it has the mode of the one it replaces"
    );
    Ok(())
}

#[test]
fn the_present_database_is_kept_aside_without_its_unfinished_transaction() -> Outcome {
    let bench = Bench::new();
    database_with_hot_journal(&bench.target());
    bench.restore(true, &Disk::default())?;
    assert_eq!(bench.names(), ["tracker.db", KEPT]);
    assert_eq!(rows(&bench.target()), NEW);
    assert_eq!(rows(&bench.data(KEPT)), OLD);
    Ok(())
}

#[test]
fn a_log_without_a_database_is_not_played_into_the_new_one() -> Outcome {
    let bench = Bench::new();
    wal_database(&bench.target());
    fs::remove_file(bench.target())?;
    bench.restore(false, &Disk::default())?;
    assert_eq!(bench.names(), ["tracker.db"]);
    assert_eq!(rows(&bench.target()), NEW);
    Ok(())
}

#[test]
fn a_damaged_database_is_kept_aside_as_it_is_by_force_only() -> Outcome {
    let bench = Bench::new();
    wal_database(&bench.target());
    let wal = bench.data("tracker.db-wal");
    let mut damaged = fs::read(bench.target())?;
    damaged[100..].fill(0xa5);
    fs::write(bench.target(), &damaged)?;
    fs::remove_file(&wal)?;
    fs::write(&wal, "not a log")?;
    set_old(&bench.target());
    set_old(&wal);
    let error = bench.restore(false, &Disk::default()).expect_err("damaged");
    assert!(matches!(error, Error::Unsettled { .. }), "{error}");
    assert_eq!(fs::read(bench.target())?, damaged);
    assert_eq!(fs::read_to_string(&wal)?, "not a log");
    assert!(!bench.names().iter().any(|name| name.starts_with(KEPT)));

    bench.restore(true, &Disk::default())?;
    assert_eq!(rows(&bench.target()), NEW);
    assert_eq!(fs::read(bench.data(KEPT))?, damaged);
    assert_eq!(
        fs::read_to_string(bench.data(&format!("{KEPT}-wal")))?,
        "not a log"
    );
    Ok(())
}

#[test]
fn what_is_there_decides_what_speaks_against_it() -> Outcome {
    let bench = Bench::new();
    database(&bench.target(), OLD);
    set_old(&bench.target());
    assert_eq!(bench.objections(), [Objection::UsersUnseen]);

    let written = bench.backup.manifest.pinned + TimeDelta::seconds(1);
    set_written(&bench.target(), written);
    assert_eq!(
        bench.objections(),
        [Objection::UsersUnseen, Objection::Newer { written }]
    );
    set_written(&bench.target(), bench.backup.manifest.pinned);
    assert_eq!(bench.objections(), [Objection::UsersUnseen]);

    fs::remove_file(bench.target())?;
    wal_database(&bench.target());
    set_old(&bench.target());
    set_old(&bench.data("tracker.db-wal"));
    assert_eq!(bench.objections(), []);
    set_written(&bench.data("tracker.db-wal"), written);
    assert_eq!(bench.objections(), [Objection::Newer { written }]);

    for contents in ["x", "SQLite format 4\0 and so on, and so forth"] {
        fs::write(bench.target(), contents)?;
        set_old(&bench.target());
        set_old(&bench.data("tracker.db-wal"));
        assert_eq!(bench.objections(), [Objection::NotADatabase]);
    }
    Ok(())
}

#[test]
fn objections_stand_unless_they_yield_to_force() -> Outcome {
    let written = time();
    for (objection, yields) in [
        (Objection::InUse, false),
        (Objection::NoRoom { needed: 2, free: 1 }, false),
        (Objection::UsersUnseen, true),
        (Objection::Newer { written }, true),
        (Objection::NotADatabase, true),
        (Objection::Partial { of: part() }, false),
        (Objection::NoLinks, false),
        (Objection::NotOwner { user: 1, group: 2 }, false),
    ] {
        let bench = Bench::new();
        let disk = Disk::default();
        for force in [false, true] {
            let mut plan = bench.plan(&disk)?;
            plan.objections = vec![objection.clone()];
            let restored = plan.execute(force, Depth::Quick, &disk, &Watch::default());
            if force && yields {
                assert_eq!(restored?.report.rows["t"], 300);
            } else {
                let error = restored.expect_err("it stands").to_string();
                assert!(error.contains(" is not replaced: "), "{error}");
                assert_eq!(bench.names(), [""; 0]);
            }
        }
    }
    Ok(())
}

/// Which of what the operating system says speaks against the restore, and which would only
/// speak against trying.
#[test]
fn what_cannot_be_done_beside_the_target_is_an_objection() {
    let failed = |errno: Errno| disk::Error::new("link", Path::new("x"), errno.into());
    for (errno, has_no_links) in [
        (Errno::PERM, true),
        (Errno::OPNOTSUPP, true),
        (Errno::NOSYS, true),
        (Errno::NOSPC, false),
        (Errno::IO, false),
        (Errno::ROFS, false),
        (Errno::EXIST, false),
    ] {
        assert_eq!(has_no_links_by(&failed(errno)), has_no_links, "{errno}");
    }
    for (errno, cannot_give) in [
        (Errno::PERM, true),
        (Errno::ACCESS, true),
        // A user that is not there in a container.
        (Errno::INVAL, true),
        (Errno::OPNOTSUPP, true),
        (Errno::NOSPC, false),
        (Errno::IO, false),
        (Errno::NOENT, false),
    ] {
        assert_eq!(cannot_give_by(&failed(errno)), cannot_give, "{errno}");
    }
}

#[test]
fn what_is_tried_beside_the_target_leaves_nothing() -> Outcome {
    let bench = Bench::new();
    database(&bench.target(), OLD);
    let left = [".tracker.db.trying", ".tracker.db.trying-link"].map(|name| bench.data(name));
    for n in 0.. {
        // What one that died has left is no trouble.
        for name in &left {
            fs::write(name, "x")?;
        }
        let disk = Disk::failing_at(n);
        let objections = rehearse(&bench.target(), &disk);
        // A full disk is for what then needs the room to tell.
        assert_eq!(objections, [], "operation {n}");
        if disk.operations() <= n {
            assert!(n > 5, "both are removed, made and removed again");
            break;
        }
        assert_eq!(rehearse(&bench.target(), &Disk::default()), []);
        assert_eq!(bench.names(), ["tracker.db"], "operation {n}");
    }
    assert_eq!(bench.names(), ["tracker.db"]);
    Ok(())
}

fn part() -> Partial {
    Partial {
        tables: None,
        completed_only: true,
    }
}

#[test]
fn a_partial_backup_is_restored_only_where_a_part_will_do() -> Outcome {
    let mut bench = Bench::new();
    let disk = Disk::default();
    bench.backup.manifest.partial = Some(part());
    // As it would have been published.
    republish(&bench.backup)?;
    for force in [false, true] {
        let error = bench
            .restore(force, &disk)
            .expect_err("partial")
            .to_string();
        assert!(error.contains("PARTIAL"), "{error}");
        assert!(error.contains("use --partial"), "{error}");
        assert_eq!(bench.names(), [""; 0]);
    }
    let plan = bench.plan(&disk)?.accept_partial();
    assert_eq!(plan.standing(false), []);
    assert_eq!(
        plan.objections,
        [Objection::Partial { of: part() }],
        "it is still said"
    );
    plan.execute(false, Depth::Quick, &disk, &Watch::default())?;
    assert_eq!(rows(&bench.target()), NEW);

    // It overrules nothing else.
    set_written(
        &bench.target(),
        bench.backup.manifest.pinned + TimeDelta::seconds(1),
    );
    let standing = bench.plan(&disk)?.accept_partial().standing(false);
    assert!(standing.contains(&Objection::UsersUnseen), "{standing:?}");
    Ok(())
}

fn republish(backup: &Backup) -> Outcome {
    let mut json = serde_json::to_vec_pretty(&backup.manifest)?;
    json.push(b'\n');
    fs::write(backup.dir.join("manifest.json"), &json)?;
    let sums = crate::catalogue::sums(&json, &backup.manifest);
    Ok(fs::write(backup.dir.join("SHA256SUMS"), sums)?)
}

#[test]
fn a_backup_that_does_not_fit_is_refused() {
    let mut bench = Bench::new();
    bench.backup.manifest.database.raw_bytes = 1 << 60;
    let objections = bench.objections();
    assert!(
        matches!(objections.as_slice(), [Objection::NoRoom { needed, .. }] if *needed > 1 << 60),
        "{objections:?}"
    );
}

#[test]
fn a_service_that_holds_the_database_is_never_overruled() -> Outcome {
    let bench = Bench::new();
    let disk = Disk::default();
    let plan = bench.plan(&disk)?;
    let held = hold(&bench.target(), &disk)?.expect("nobody else holds it");
    assert!(hold(&bench.target(), &disk)?.is_none());
    assert_eq!(bench.objections(), [Objection::InUse]);
    // Also one that started after the plan was made.
    let error = plan
        .execute(true, Depth::Quick, &disk, &Watch::default())
        .expect_err("it is held");
    assert!(error.to_string().contains("stop that first"), "{error}");
    drop(held);
    assert_eq!(bench.objections(), []);
    Ok(())
}

/// Somebody else's, made before each operation there is: right after the plan, during the
/// unpacking, just before the new one is put in place.
#[test]
fn a_database_made_after_the_plan_is_not_overwritten() -> Outcome {
    let mut refused = 0;
    for n in 0.. {
        let bench = Bench::new();
        let plan = bench.plan(&Disk::default())?;
        let make = |target: &Path| {
            if !target.exists() {
                database(target, OLD);
                fs::write(beside(target, "", ".made"), "").expect("a writable directory");
            }
        };
        let disk = Disk::meanwhile(n, make, &bench.target());
        let result = plan.execute(true, Depth::Quick, &disk, &Watch::default());
        if !beside(&bench.target(), "", ".made").exists() {
            // The new one was in place by then.
            assert_eq!(result?.kept_as, None, "{n}");
            assert_eq!(rows(&bench.target()), NEW, "{n}");
            break;
        }
        assert!(
            matches!(result, Err(Error::Refused { .. })),
            "{n}: {result:?}"
        );
        assert_eq!(rows(&bench.target()), OLD, "{n}");
        assert_eq!(bench.names(), ["tracker.db", "tracker.db.made"], "{n}");
        refused += 1;
    }
    assert!(refused > 10, "only {refused} operations");
    Ok(())
}

/// Not a test of its own: what [`another_process_in_wal_mode_is_found`] runs as another
/// process, since a process cannot see its own POSIX locks.
#[test]
fn other_process() {
    let Some(path) = std::env::var_os("RESTORE_TEST_DATABASE") else {
        return;
    };
    let connection = Connection::open(path).expect("a database");
    let _rows: i64 = connection
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .expect("a count");
    println!("\nidle");
    let _ = io::stdin().read_line(&mut String::new());
}

#[test]
fn another_process_in_wal_mode_is_found() -> Outcome {
    let bench = Bench::new();
    wal_database(&bench.target());
    let mut other = Command::new(std::env::current_exe()?)
        .args(["--exact", "restore::tests::other_process", "--nocapture"])
        .env("RESTORE_TEST_DATABASE", bench.target())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = BufReader::new(other.stdout.take().expect("it is piped"));
    let idle = output
        .by_ref()
        .lines()
        .any(|line| line.is_ok_and(|line| line == "idle"));
    assert!(idle, "it has the database open");
    assert!(bench.objections().contains(&Objection::InUse));
    let error = bench.restore(true, &Disk::default()).expect_err("in use");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    drop(other.stdin.take());
    assert!(other.wait()?.success());
    assert!(!bench.objections().contains(&Objection::InUse));
    Ok(())
}

#[test]
fn a_link_is_followed_and_stays() -> Outcome {
    let bench = Bench::new();
    fs::create_dir(bench.data("deeper"))?;
    database(&bench.data("deeper/real.db"), OLD);
    symlink("deeper/real.db", bench.target())?;
    let restored = bench.restore(true, &Disk::default())?;
    assert_eq!(
        restored.target,
        bench.data("deeper/real.db").canonicalize()?
    );
    assert!(fs::symlink_metadata(bench.target())?.is_symlink());
    assert_eq!(rows(&bench.target()), NEW);
    Ok(())
}

#[test]
fn a_lock_made_by_root_belongs_to_the_owner_of_the_database_or_its_directory() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let bench = Bench::new();
    let disk = Disk::default();
    let owner = |path: &Path| fs::metadata(path).map(|found| (found.uid(), found.gid()));
    chown(bench.data(""), Some(4242), Some(4343))?;
    drop(hold(&bench.data("new.db"), &disk)?);
    assert_eq!(owner(&bench.data("new.db.lock"))?, (4242, 4343));
    database(&bench.target(), OLD);
    chown(bench.target(), Some(4444), Some(4545))?;
    drop(hold(&bench.target(), &disk)?);
    assert_eq!(owner(&bench.data("tracker.db.lock"))?, (4444, 4545));
    Ok(())
}

/// A service that is not root has to open it.
#[test]
fn what_root_restores_belongs_to_the_owner_of_what_was_there_or_of_its_directory() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let described = |path: &Path| {
        let found = fs::metadata(path)?;
        Ok::<_, io::Error>((found.uid(), found.gid(), found.mode() & 0o777))
    };
    for source in ["backup", "plain.db", "packed.db.gz"] {
        let bench = Bench::new();
        let from: Source = if source == "backup" {
            bench.backup.clone().into()
        } else {
            foreign(&bench, source).into()
        };
        let disk = Disk::default();
        let restore = || {
            let plan = plan(from.clone(), &bench.target(), time(), &disk)?;
            plan.execute(true, Depth::Quick, &disk, &Watch::default())
        };
        chown(bench.data(""), Some(4242), Some(4343))?;
        restore()?;
        assert_eq!(described(&bench.target())?, (4242, 4343, 0o640), "{source}");

        chown(bench.target(), Some(4444), Some(4545))?;
        fs::set_permissions(bench.target(), fs::Permissions::from_mode(0o604))?;
        restore()?;
        assert_eq!(described(&bench.target())?, (4444, 4545, 0o604), "{source}");
    }
    Ok(())
}

#[test]
fn a_service_and_a_restore_mean_the_same_file_by_whatever_link() -> Outcome {
    let bench = Bench::new();
    let disk = Disk::default();
    fs::create_dir(bench.data("deeper"))?;
    symlink("deeper", bench.data("linked"))?;
    symlink("deeper/real.db", bench.target())?;
    for exists in [false, true] {
        if exists {
            database(&bench.data("deeper/real.db"), OLD);
        }
        for service in ["tracker.db", "linked/real.db", "deeper/real.db"] {
            let held = hold(&bench.data(service), &disk)?.expect("nobody else holds it");
            for target in ["linked/real.db", "deeper/real.db"] {
                let plan = plan(bench.backup.clone(), &bench.data(target), time(), &disk)?;
                assert!(
                    plan.objections.contains(&Objection::InUse),
                    "{service} {target}"
                );
            }
            drop(held);
        }
    }
    assert_eq!(bench.names(), ["deeper", "linked", "tracker.db"]);
    Ok(())
}

#[test]
fn a_target_that_cannot_be_one_is_refused_with_the_reason() -> Outcome {
    let bench = Bench::new();
    symlink("nothing", bench.data("dangling"))?;
    for (target, expected) in [
        (bench.data(""), "it is not a file"),
        (bench.data("dangling"), "it is a link to nothing"),
        (bench.data("missing/tracker.db"), "does not exist"),
        (PathBuf::from("/"), "it is not a file"),
        (bench.data(".."), "it is not a file"),
    ] {
        let result = plan(bench.backup.clone(), &target, time(), &Disk::default());
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}

#[test]
fn a_damaged_backup_changes_nothing() -> Outcome {
    let bench = Bench::new();
    database(&bench.target(), OLD);
    let before = fs::read(bench.target())?;
    let stored = bench.backup.dir.join("database.sqlite3.zst");
    let sound = fs::read(&stored)?;
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 4;
    for damaged in [&flipped[..], &sound[..sound.len() - 1], b"wrong magic", b""] {
        fs::write(&stored, damaged)?;
        let error = bench.restore(true, &Disk::default()).expect_err("damaged");
        assert!(
            matches!(error, Error::Verify(verify::Error::Corrupt { .. })),
            "{error}"
        );
        assert_eq!(bench.names(), ["tracker.db"]);
        assert_eq!(fs::read(bench.target())?, before);
    }
    Ok(())
}

#[test]
fn a_restore_that_is_cancelled_changes_nothing() -> Outcome {
    let bench = Bench::new();
    database(&bench.target(), OLD);
    let disk = Disk::default();
    let watch = Watch::default();
    watch.cancel("the operator pressed Ctrl-C");
    let cancelled = bench
        .plan(&disk)?
        .execute(true, Depth::Quick, &disk, &watch);
    assert!(matches!(
        cancelled,
        Err(Error::Verify(verify::Error::Cancelled { .. }))
    ));
    assert_eq!(bench.names(), ["tracker.db"]);
    assert_eq!(rows(&bench.target()), OLD);
    Ok(())
}

#[test]
fn names_aside_are_never_used_twice() -> Outcome {
    let bench = Bench::new();
    for (nth, expected) in [(1, KEPT.to_owned()), (2, format!("{KEPT}-2"))] {
        wal_database(&bench.target());
        let restored = bench.restore(true, &Disk::default())?;
        assert_eq!(restored.kept_as, Some(bench.data(&expected)), "{nth}");
    }
    assert_eq!(
        bench.names(),
        [
            "tracker.db".to_owned(),
            KEPT.to_owned(),
            format!("{KEPT}-2")
        ]
    );
    Ok(())
}

/// After whatever went wrong: in place is the old database or the new one, whole; if it is
/// the new one, the old one is whole beside it; and the next restore works.
fn check_invariants(bench: &Bench, case: &str) -> bool {
    let found = rows(&bench.target());
    let restored = match found {
        NEW => true,
        OLD => false,
        other => panic!("{case}: {other} rows"),
    };
    if restored {
        assert_eq!(rows(&bench.data(KEPT)), OLD, "{case}");
    }
    bench.restore(true, &Disk::default()).expect(case);
    assert_eq!(rows(&bench.target()), NEW, "{case}");
    let kept = bench.names();
    assert!(
        kept.iter().all(|name| name.starts_with("tracker.db")),
        "{case}: {kept:?}"
    );
    restored
}

#[test]
fn whatever_operation_of_a_restore_fails_a_whole_database_is_in_place() {
    let mut cases = 0;
    for set_up in [wal_database, database_with_hot_journal] {
        for n in 0.. {
            let bench = Bench::new();
            set_up(&bench.target());
            let disk = Disk::failing_at(n);
            let restored = bench.restore(true, &disk);
            let case = format!("operation {n}");
            if disk.operations() <= n {
                assert!(restored.is_ok());
                break;
            }
            let left = bench.names();
            let new_in_place = check_invariants(&bench, &case);
            if let (Err(error), false) = (restored, new_in_place) {
                // Only if removing a second name fails is it left, beside the first.
                let tidy = left.iter().all(|name| !name.contains("replaced"));
                let error = error.to_string();
                assert!(
                    tidy || error.starts_with("could not remove "),
                    "{case}: {error}, and {left:?} is left"
                );
                assert!(left.iter().all(|name| name.starts_with("tracker.db")));
            }
            cases += 1;
        }
    }
    println!("restoring on a failing disk: {cases} cases");
    assert!(cases > 40, "{cases}");
}

#[test]
fn wherever_the_machine_goes_down_in_a_restore_a_whole_database_is_in_place() {
    let mut cases = 0;
    for loss in Loss::ALL {
        for n in 0.. {
            let bench = Bench::new();
            wal_database(&bench.target());
            let stash = bench.root.path().join("stash");
            let disk = Disk::crashing_at(n, loss, &stash).expect("a stash");
            let restored = bench.restore(true, &disk);
            let done = disk.operations() <= n;
            if done {
                // What was reported as done is there after a power cut at any later time.
                disk.list(&bench.data("")).expect_err("it goes down now");
            }
            let case = format!("{loss:?} before operation {n}");
            let new_in_place = check_invariants(&bench, &case);
            assert!(restored.is_err() || new_in_place, "{case}");
            cases += 1;
            if done {
                break;
            }
        }
    }
    println!("restoring on a crashing machine: {cases} cases");
}

/// What a power cut between keeping and replacing leaves: names of old databases that are
/// those of the one in place.
#[test]
fn second_names_of_the_database_in_place_are_told_and_removed() -> Outcome {
    let bench = Bench::new();
    wal_database(&bench.target());
    let [kept, kept_wal, old, other] = [
        "tracker.db.replaced-20261121T030000Z",
        "tracker.db.replaced-20261121T030000Z-wal",
        "tracker.db.replaced-20261120T030000Z",
        "tracker.db.copy",
    ]
    .map(|name| bench.data(name));
    fs::hard_link(bench.target(), &kept)?;
    fs::hard_link(bench.data("tracker.db-wal"), &kept_wal)?;
    fs::hard_link(bench.target(), &other)?;
    database(&old, 1);
    let disk = Disk::default();
    let before = bench.names();
    let plan = bench.plan(&disk)?;
    assert_eq!(plan.second_names, [kept.clone(), kept_wal.clone()]);
    assert_eq!(bench.names(), before, "a plan changes nothing");

    plan.execute(true, Depth::Quick, &disk, &Watch::default())?;
    assert!(!kept.exists() && !kept_wal.exists());
    assert_eq!(rows(&bench.target()), NEW);
    assert_eq!(rows(&bench.data(KEPT)), OLD);
    assert_eq!(rows(&old), 1);
    // Somebody else's.
    assert!(other.exists());
    assert_eq!(bench.plan(&disk)?.second_names, Vec::<PathBuf>::new());
    Ok(())
}

/// One that has become a database of its own since the plan stays.
#[test]
fn only_a_second_name_is_removed() -> Outcome {
    let bench = Bench::new();
    database(&bench.target(), OLD);
    let kept = bench.data("tracker.db.replaced-20261121T030000Z");
    fs::hard_link(bench.target(), &kept)?;
    let disk = Disk::default();
    let plan = bench.plan(&disk)?;
    assert_eq!(plan.second_names, std::slice::from_ref(&kept));
    fs::remove_file(&kept)?;
    database(&kept, 1);
    plan.execute(true, Depth::Quick, &disk, &Watch::default())?;
    assert_eq!(rows(&kept), 1);
    Ok(())
}

#[test]
fn wherever_the_machine_goes_down_the_next_restore_leaves_no_second_name() {
    for n in 0.. {
        let bench = Bench::new();
        wal_database(&bench.target());
        let stash = bench.root.path().join("stash");
        let disk = Disk::crashing_at(n, Loss::Nothing, &stash).expect("a stash");
        let first = bench.restore(true, &disk);
        let case = format!("operation {n}");
        bench.restore(true, &Disk::default()).expect(&case);
        let files: Vec<_> = bench.names().iter().map(|name| bench.data(name)).collect();
        for (nth, one) in files.iter().enumerate() {
            let mut others = files[nth + 1..].iter();
            assert!(
                others.all(|other| !are_one(one, other)),
                "{case}: {files:?}"
            );
        }
        if disk.operations() <= n {
            first.expect("nothing failed");
            break;
        }
    }
}

/// A database that SQLite can make nothing of, with its log.
fn damaged(bench: &Bench) -> Outcome {
    wal_database(&bench.target());
    let mut bytes = fs::read(bench.target())?;
    bytes[100..].fill(0xa5);
    fs::write(bench.target(), bytes)?;
    fs::write(bench.data("tracker.db-wal"), "not a log")?;
    Ok(())
}

/// A damaged database is kept as it is, in several files, so the swap takes some away before
/// it can put the new one in place. Whatever fails, alone or with all that comes after it: they
/// are where they were, or kept with the new one in place, or where the error says.
#[test]
fn a_swap_that_fails_leaves_a_damaged_database_as_it_was_or_says_what_is_where() -> Outcome {
    let mut apart = 0;
    for fail in [Disk::failing_at, Disk::failing_from] {
        for n in 0.. {
            let bench = Bench::new();
            damaged(&bench)?;
            let before = fs::read(bench.target())?;
            let disk = fail(n);
            let restored = bench.restore(true, &disk);
            let case = format!("operation {n}: {restored:?}");
            let wal = bench.data("tracker.db-wal");
            let kept_wal = bench.data(&format!("{KEPT}-wal"));
            let new_in_place = fs::read(bench.target())? != before;
            match &restored {
                _ if new_in_place => {
                    assert_eq!(fs::read(bench.data(KEPT))?, before, "{case}");
                    assert_eq!(fs::read_to_string(&kept_wal)?, "not a log", "{case}");
                    assert!(!wal.exists(), "{case}");
                }
                Err(error @ Error::Apart { parts, kept_as, .. }) => {
                    apart += 1;
                    assert_eq!(*parts, [(wal.clone(), kept_wal.clone())], "{case}");
                    let told = error.to_string();
                    let rename = format!("rename {} to {}", kept_wal.display(), wal.display());
                    assert!(told.contains(&rename), "{told}");
                    // It can be done, and is all there is to do.
                    assert_eq!(fs::read_to_string(&kept_wal)?, "not a log", "{case}");
                    fs::rename(kept_wal, &wal)?;
                    if let Some(kept_as) = kept_as {
                        let remove = format!("{} is a second name", kept_as.display());
                        assert!(told.contains(&remove), "{told}");
                        fs::remove_file(kept_as)?;
                    }
                    assert!(!bench.data(KEPT).exists(), "{case}");
                }
                _ => assert_eq!(fs::read_to_string(&wal)?, "not a log", "{case}"),
            }
            if !new_in_place {
                bench.restore(true, &Disk::default()).expect(&case);
            }
            assert_eq!(rows(&bench.target()), NEW, "{case}");
            if disk.operations() <= n {
                restored?;
                break;
            }
        }
    }
    println!("what belongs to a damaged database was taken apart in {apart} cases");
    assert!(apart > 0);
    Ok(())
}

/// The directory of backups with a database that was not made here, of [`OLD`] rows.
fn foreign(bench: &Bench, name: &str) -> Foreign {
    let directory = bench.root.path().join("backups");
    let plain = directory.join("plain.db");
    database(&plain, OLD);
    if name != "plain.db" {
        let packed = fs::File::create(directory.join(name)).expect("a writable directory");
        let mut encoder = flate2::write::GzEncoder::new(packed, flate2::Compression::fast());
        let mut bytes = fs::File::open(&plain).expect("it is there");
        io::copy(&mut bytes, &mut encoder).expect("a copy");
        encoder.finish().expect("a writable file");
        fs::remove_file(plain).expect("it is there");
    }
    let catalogue = Catalogue::open(Disk::default(), &directory).expect("a catalogue");
    catalogue.foreign(name).expect("it is there")
}

#[test]
fn a_database_that_was_not_made_here_is_restored() -> Outcome {
    for name in ["plain.db", "packed.db.gz"] {
        let bench = Bench::new();
        let (disk, watch) = (Disk::default(), Watch::default());
        let source = foreign(&bench, name);
        set_written(&source.path, time());
        let source = Foreign {
            written: Some(time()),
            ..source
        };
        wal_database(&bench.target());
        set_written(&bench.target(), time() - TimeDelta::days(1));
        set_old(&bench.data("tracker.db-wal"));
        let made = plan(source.clone(), &bench.target(), time(), &disk)?;
        assert_eq!((made.source.as_str(), made.pinned), (name, Some(time())));
        assert_eq!(made.standing(false), []);
        let restored = made.execute(false, Depth::Full, &disk, &watch)?;
        assert_eq!(restored.report.rows["t"], OLD.cast_unsigned());
        assert_eq!(bench.names(), ["tracker.db", KEPT]);
        assert!(source.path.exists(), "the source stays");
    }
    Ok(())
}

#[test]
fn whatever_operation_of_restoring_a_foreign_database_fails_a_whole_one_is_in_place() {
    let mut cases = 0;
    for n in 0.. {
        let bench = Bench::new();
        let source = foreign(&bench, "packed.db.gz");
        let disk = Disk::failing_at(n);
        let restored = plan(source, &bench.target(), time(), &disk)
            .and_then(|plan| plan.execute(false, Depth::Quick, &disk, &Watch::default()));
        if disk.operations() <= n {
            assert!(restored.is_ok());
            break;
        }
        if bench.target().exists() {
            assert_eq!(rows(&bench.target()), OLD, "operation {n}");
        } else {
            assert!(restored.is_err(), "operation {n}");
        }
        cases += 1;
    }
    println!("restoring a foreign database on a failing disk: {cases} cases");
    assert!(cases > 10, "{cases}");
}

#[test]
fn a_target_on_another_file_system_is_restored_to() -> Outcome {
    let bench = Bench::new();
    // The catalogue is in memory, or else this is.
    let disk = Volume::mount("size=16m");
    let target = disk.path().join("tracker.db");
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    assert_ne!(device(disk.path())?, device(&bench.backup.dir)?);
    database(&target, OLD);
    let plan = plan(bench.backup.clone(), &target, time(), &Disk::default())?;
    let restored = plan.execute(true, Depth::Quick, &Disk::default(), &Watch::default())?;
    assert_eq!(rows(&restored.target), NEW);
    assert_eq!(rows(&restored.kept_as.expect("there was one")), OLD);
    Ok(())
}

/// A small file system in memory, mounted as long as this lives.
struct Volume(TempDir);

impl Volume {
    fn mount(options: &str) -> Self {
        let at = tempfile::tempdir().expect("a temporary directory");
        let volume = Self(at);
        volume.run(&["-t", "tmpfs", "-o", options, "none"]);
        volume
    }

    fn remount(&self, options: &str) {
        self.run(&["-o", &format!("remount,{options}")]);
    }

    fn run(&self, arguments: &[&str]) {
        let mut mount = Command::new("mount");
        let output = mount.args(arguments).arg(self.path()).output();
        let output = output.expect("mount can be run");
        assert!(
            output.status.success(),
            "a file system that is full, or cannot be written to, has to be mounted, and that is \
             not permitted (run the tests as root): {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path().display());
        }
    }
}

#[test]
fn a_disk_without_room_is_an_objection_and_one_that_fills_up_an_error() -> Outcome {
    let bench = Bench::of(10_000, Compression::Zstd(3));
    let bytes = bench.backup.manifest.database.raw_bytes;
    let volume = Volume::mount("size=4m");
    let target = volume.path().join("tracker.db");
    database(&target, OLD);
    let before = fs::read(&target)?;
    let disk = Disk::default();
    let plan = || plan(bench.backup.clone(), &target, time(), &disk);
    let enough = plan()?;
    assert!(
        !enough
            .objections
            .iter()
            .any(|o| matches!(o, Objection::NoRoom { .. }))
    );

    // Somebody else takes the room after the plan was made.
    let filler = volume.path().join("filler");
    let free = disk.free_bytes(volume.path())?;
    fs::write(&filler, vec![1; usize::try_from(free - bytes / 2)?])?;
    let failed = enough.execute(true, Depth::Quick, &disk, &Watch::default());
    let error = failed.expect_err("it is full").to_string();
    assert!(error.contains("free space or choose another"), "{error}");
    let names = disk.list(volume.path())?;
    assert_eq!(names, ["filler", "tracker.db", "tracker.db.lock"]);
    assert_eq!(fs::read(&target)?, before);

    // Looked at again it speaks against the restore, and force does not help.
    let objections = plan()?.standing(true);
    assert!(
        matches!(objections.as_slice(), [Objection::NoRoom { needed, free }] if free < needed),
        "{objections:?}"
    );
    Ok(())
}

#[test]
fn a_target_that_is_read_only_is_named_and_left_alone() -> Outcome {
    let bench = Bench::new();
    let volume = Volume::mount("size=16m");
    let target = volume.path().join("tracker.db");
    database(&target, OLD);
    let before = fs::read(&target)?;
    let disk = Disk::default();
    // What a disk with errors becomes.
    volume.remount("ro");
    let failed = plan(bench.backup.clone(), &target, time(), &disk)
        .and_then(|plan| plan.execute(true, Depth::Quick, &disk, &Watch::default()));
    let error = failed
        .expect_err("nothing can be written there")
        .to_string();
    assert!(
        error.contains("tracker.db") && error.contains("mount it read-write"),
        "{error}"
    );
    assert_eq!(disk.list(volume.path())?, ["tracker.db"]);
    assert_eq!(fs::read(&target)?, before);
    Ok(())
}

/// How many bytes of an artifact are flipped, one at a time.
const FLIPS: u64 = 1_000;

/// Flips each of [`FLIPS`] random bytes of an artifact of about half a megabyte: neither is
/// it ever taken for sound nor does anything of it get into place.
fn whatever_byte_is_flipped_nothing_is_swapped_in(compression: Compression) -> Outcome {
    let bench = Bench::of(10_000, compression);
    database(&bench.target(), OLD);
    let before = fs::read(bench.target())?;
    let artifact = bench.backup.dir.join(&bench.backup.manifest.database.name);
    let length = fs::metadata(&artifact)?.len();
    let file = fs::File::options().read(true).write(true).open(&artifact)?;
    let (disk, watch) = (Disk::default(), Watch::default());
    let mut random = fastrand::Rng::with_seed(1_000);
    for flip in 0..FLIPS {
        let at = random.u64(..length);
        let mut sound = [0];
        file.read_exact_at(&mut sound, at)?;
        let flipped = sound[0] ^ random.u8(1..);
        file.write_all_at(&[flipped], at)?;
        let case = format!("flip {flip}: byte {at} of {length} is {flipped:#x}");

        let verified = verify::backup(&bench.backup, None, bench.root.path(), &disk, &watch);
        assert!(
            matches!(verified, Err(verify::Error::Corrupt { .. })),
            "{case}: {verified:?}"
        );
        let restored = bench.restore(true, &disk);
        assert!(
            matches!(restored, Err(Error::Verify(verify::Error::Corrupt { .. }))),
            "{case}: {restored:?}"
        );
        assert_eq!(bench.names(), ["tracker.db"], "{case}");
        assert!(fs::read(bench.target())? == before, "{case}");
        file.write_all_at(&sound, at)?;
    }
    println!("{FLIPS} of {length} bytes flipped, {compression:?}");
    // It was each of them, and not the artifact.
    bench.restore(true, &disk)?;
    assert_eq!(rows(&bench.target()), 10_000);
    Ok(())
}

#[test]
fn whatever_byte_of_a_compressed_artifact_is_flipped_nothing_is_swapped_in() -> Outcome {
    whatever_byte_is_flipped_nothing_is_swapped_in(Compression::Zstd(3))
}

#[test]
fn whatever_byte_of_an_uncompressed_artifact_is_flipped_nothing_is_swapped_in() -> Outcome {
    whatever_byte_is_flipped_nothing_is_swapped_in(Compression::None)
}
