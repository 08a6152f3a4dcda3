//! The lock, and what its holder may do.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::catalogue::notes::{PROTECTED, VERIFIED};
use crate::config::Depth;

fn check(depth: Option<Depth>, findings: &[&str]) -> Check {
    Check {
        at: time() + TimeDelta::days(2),
        depth,
        seconds: 0.5,
        findings: findings.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_second_writer_is_told_of_the_first() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let ids = nights(&catalogue, 2);
    let first = catalogue.lock(&owner())?;
    let error = bench.catalogue().lock(&owner()).expect_err("it is held");
    let process = std::process::id();
    assert!(
        error
            .to_string()
            .contains(&format!("changed by `a test`, process {process} on ")),
        "{error}"
    );
    assert!(
        error.to_string().contains("since 2026-11-22T03:00:00Z"),
        "{error}"
    );
    let Error::Busy {
        owner: Some(found), ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(found, owner());
    assert!(!found.host.is_empty());
    assert_eq!(catalogue.backups()?.len(), 2, "reading needs no lock");
    publish(&catalogue, time() + TimeDelta::days(1))?;

    first.delete(&ids[0], false)?;
    drop(first);
    catalogue.lock(&owner())?;
    assert!(
        !catalogue
            .list()?
            .iter()
            .any(|entry| matches!(entry, Entry::Foreign(_))),
        "the lock file is not listed"
    );
    Ok(())
}

#[test]
fn an_owner_that_cannot_be_read_is_another_process() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let _held = catalogue.lock(&owner())?;
    for inscription in ["", "{", "\u{0}"] {
        fs::write(bench.directory().join(LOCK), inscription)?;
        let error = catalogue.lock(&owner()).expect_err("it is held");
        assert!(matches!(error, Error::Busy { owner: None, .. }), "{error}");
        assert!(
            error.to_string().contains("changed by another process"),
            "{error}"
        );
    }
    Ok(())
}

/// Not a test of its own: the other process of [`the_lock_of_a_dead_owner_is_free`].
#[test]
fn other_process() {
    let Some(directory) = std::env::var_os("CATALOGUE_TEST_DIRECTORY") else {
        return;
    };
    let catalogue = Catalogue::open(Disk::default(), Path::new(&directory)).expect("a catalogue");
    let _held = catalogue.lock(&owner()).expect("nobody else has it");
    println!("\nlocked");
    let _ = io::stdin().read_line(&mut String::new());
}

#[test]
fn the_lock_of_a_dead_owner_is_free() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let mut other = Command::new(std::env::current_exe()?)
        .args([
            "--exact",
            "catalogue::tests::locking::other_process",
            "--nocapture",
        ])
        .env("CATALOGUE_TEST_DIRECTORY", bench.directory())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(other.stdout.take().expect("it is piped"));
    assert!(
        output
            .lines()
            .any(|line| line.is_ok_and(|line| line == "locked"))
    );
    let error = catalogue.lock(&owner()).expect_err("it is held");
    let process = format!("process {} on ", other.id());
    assert!(error.to_string().contains(&process), "{error}");

    other.kill()?;
    other.wait()?;
    let held = catalogue.lock(&owner())?;
    let error = catalogue.lock(&owner()).expect_err("it is held again");
    let process = format!("process {} on ", std::process::id());
    assert!(error.to_string().contains(&process), "{error}");
    drop(held);
    Ok(())
}

#[test]
fn waiting_for_the_lock_ends_with_it_with_the_limit_or_with_the_watch() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let watch = Watch::default();
    let hour = Duration::from_secs(3600);
    let held = catalogue.lock(&owner())?;
    let busy = |result: Result<Locked<'_>, Error>| matches!(result, Err(Error::Busy { .. }));
    assert!(busy(catalogue.lock_within(
        Duration::from_millis(1),
        &owner(),
        &watch
    )));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| catalogue.lock_within(hour, &owner(), &watch).is_ok());
        drop(held);
        assert!(waiting.join().expect("it only waits"));
    });
    let _held = catalogue.lock(&owner())?;
    watch.cancel("the service stops");
    assert!(busy(catalogue.lock_within(hour, &owner(), &watch)));
    Ok(())
}

#[test]
fn a_protected_backup_is_not_pruned_until_it_is_unprotected() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let ids = nights(&catalogue, 4);
    let locked = catalogue.lock(&owner())?;
    locked.protect(&ids[0], time())?;
    locked.protect(&ids[0], time() + TimeDelta::days(1))?;
    let marker = bench.directory().join(ids[0].to_string()).join(PROTECTED);
    assert_eq!(fs::read_to_string(&marker)?, "2026-11-22T03:00:00Z\n");
    let pruned = locked.prune(&keep_last(1), &ids[3])?;
    assert_eq!(pruned.removed, ids[1..3]);
    assert_eq!(pruned.kept[1].reasons, ["protected"]);

    let kept = locked.delete(&ids[0], false).expect_err("it is protected");
    assert!(kept.to_string().contains("unprotect"), "{kept}");
    locked.unprotect(&ids[0])?;
    locked.unprotect(&ids[0])?;
    assert!(!catalogue.get(&ids[0])?.notes.protected);
    assert_eq!(locked.prune(&keep_last(1), &ids[3])?.removed, ids[..1]);
    let unknown = locked.protect(&ids[0], time());
    assert!(matches!(unknown, Err(Error::Unknown { .. })), "{unknown:?}");
    Ok(())
}

#[test]
fn a_damaged_backup_counts_for_no_rule_and_stays() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let ids = nights(&catalogue, 4);
    let locked = catalogue.lock(&owner())?;
    locked.record(&ids[3], check(None, &["a bit has changed"]))?;
    assert_eq!(catalogue.newest_good()?.as_ref(), Some(&ids[2]));
    let refused = locked.prune(&keep_last(1), &ids[3]).expect_err("damaged");
    assert!(
        refused.to_string().contains("was found damaged"),
        "{refused}"
    );
    let pruned = locked.prune(&keep_last(1), &ids[2])?;
    assert_eq!(pruned.removed, ids[..2]);
    assert_eq!(bench.names(), [ids[2].to_string(), ids[3].to_string()]);

    let kept = locked
        .delete(&ids[2], false)
        .expect_err("the newest good one");
    assert!(matches!(kept, Error::Kept { .. }), "{kept}");
    // A check as deep denies the damage.
    locked.record(&ids[3], check(Some(Depth::Full), &[]))?;
    assert_eq!(catalogue.newest_good()?.as_ref(), Some(&ids[3]));
    locked.delete(&ids[2], false)?;
    Ok(())
}

#[test]
fn what_speaks_for_keeping_a_backup_yields_to_force() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let ids = nights(&catalogue, 4);
    let locked = catalogue.lock(&owner())?;
    let dir = |id: &BackupId| bench.directory().join(id.to_string());
    locked.protect(&ids[0], time())?;
    fs::write(dir(&ids[1]).join(MANIFEST), "{")?;
    fs::remove_dir_all(dir(&ids[2]))?;
    symlink(bench.root.path(), dir(&ids[2]))?;
    for (id, why) in ids.iter().zip([
        "it is protected",
        "it cannot be read (manifest.json",
        "it cannot be read (it is not a directory)",
        "it is the newest good backup",
    ]) {
        let error = locked.delete(id, false).expect_err(why).to_string();
        assert!(error.contains(why) && error.contains("--force"), "{error}");
        locked.delete(id, true)?;
    }
    assert_eq!(bench.names(), [""; 0]);
    assert!(
        bench.root.path().join("stash").exists(),
        "a link is not followed"
    );
    let unknown = locked.delete(&ids[0], true);
    assert!(matches!(unknown, Err(Error::Unknown { .. })), "{unknown:?}");
    Ok(())
}

#[test]
fn checks_are_noted_beside_what_was_published() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let backup = publish(&catalogue, time())?;
    let id = &backup.manifest.id;
    let published = |name: &str| fs::read(backup.dir.join(name));
    let before = (published(MANIFEST)?, published(SUMS)?);
    catalogue
        .lock(&owner())?
        .record(id, check(Some(Depth::Full), &[]))?;
    assert_eq!((published(MANIFEST)?, published(SUMS)?), before);
    let found = catalogue.get(id)?;
    assert_eq!(found.notes.checks, [check(Some(Depth::Full), &[])]);
    let (disk, watch) = (Disk::default(), Watch::default());
    verify::backup(&found, None, &found.dir, &disk, &watch)?;

    Ok(())
}

/// They may say that it is damaged.
#[test]
fn a_backup_of_which_notes_cannot_be_read_is_not_taken_for_a_checked_one() -> Outcome {
    for conclusive in [check(Some(Depth::Full), &[]), check(None, &["x"])] {
        for bad in ["", "{", "{\"checks\": 1}", "[]", "a directory"] {
            let bench = Bench::new();
            let catalogue = bench.catalogue();
            let ids = nights(&catalogue, 3);
            let (oldest, newest) = (&ids[0], &ids[2]);
            let file = catalogue.get(oldest)?.dir.join(VERIFIED);
            if bad == "a directory" {
                fs::create_dir(&file)?;
            } else {
                fs::write(&file, bad)?;
            }
            let notes = catalogue.get(oldest)?.notes;
            let why = notes.unreadable.as_deref().ok_or("it is told")?;
            assert!(why.contains(VERIFIED), "{bad}: {why}");
            assert!(!notes.are_clean() && !notes.is_damaged(), "{bad}");
            assert_eq!(notes.deepest(), None);

            // It counts for no rule, and stays; nothing goes on the strength of it.
            let planned = catalogue.plan(&keep_last(0))?;
            assert!(planned.iter().all(|decision| decision.id != *oldest));
            let pruned = prune(&catalogue, &keep_last(0), newest)?;
            assert_eq!(pruned.removed, [ids[1].clone()]);
            let refused = prune(&catalogue, &keep_last(0), oldest);
            assert!(matches!(refused, Err(Error::NotPruned { .. })), "{bad}");

            // What a check has found that went deeper is not lost to one that did not.
            let shallow = catalogue.lock(&owner())?.record(oldest, check(None, &[]));
            assert!(
                matches!(shallow, Err(Error::NotNoted { .. })),
                "{bad}: {shallow:?}"
            );
            if bad == "a directory" {
                fs::remove_dir(&file)?;
                fs::write(&file, "")?;
            }
            let locked = catalogue.lock(&owner())?;
            locked.record(oldest, conclusive.clone())?;
            let notes = catalogue.get(oldest)?.notes;
            assert_eq!(notes.checks, std::slice::from_ref(&conclusive));
            assert_eq!(notes.unreadable, None);
        }
    }
    Ok(())
}

/// Root's checks are of use to the service only if it can read them.
#[test]
fn what_root_notes_belongs_to_whom_the_backup_belongs_to() -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let backup = publish(&catalogue, time())?;
    let id = &backup.manifest.id;
    chown(&backup.dir, Some(4242), Some(4343))?;
    let locked = catalogue.lock(&owner())?;
    locked.record(id, check(None, &[]))?;
    locked.protect(id, time())?;
    for name in [VERIFIED, PROTECTED] {
        let found = fs::metadata(backup.dir.join(name))?;
        assert_eq!((found.uid(), found.gid()), (4242, 4343), "{name}");
        assert_eq!(found.mode() & 0o777, 0o640, "{name}");
    }
    // What was published is as it was.
    let found = fs::metadata(backup.dir.join(MANIFEST))?;
    assert_ne!((found.uid(), found.gid()), (4242, 4343));
    Ok(())
}

#[test]
fn whatever_operation_of_noting_fails_the_backup_is_good() {
    let mut cases = 0;
    for n in 0.. {
        let bench = Bench::new();
        let ids = nights(&bench.catalogue(), 2);
        let disk = Disk::failing_at(n);
        let noted = bench.open(&disk).and_then(|catalogue| {
            let locked = catalogue.lock(&owner())?;
            locked.protect(&ids[0], time())?;
            locked.record(&ids[0], check(None, &[]))?;
            locked.unprotect(&ids[0])
        });
        check_invariants(&bench, &ids, &format!("operation {n}"));
        cases += 1;
        if disk.operations() <= n {
            noted.expect("nothing failed");
            break;
        }
    }
    println!("noting on a failing disk: {cases} cases");
    assert!(cases > 15, "{cases}");
}

#[test]
fn a_foreign_database_is_found_by_its_name_alone() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let put = |name: &str| fs::write(bench.directory().join(name), "x");
    for name in ["a.db", "b.db", "b.db-wal", "c.db", "c.db-wal", "notes.txt"] {
        put(name)?;
    }
    fs::write(bench.directory().join("c.db-wal"), "")?;
    fs::create_dir(bench.directory().join("d.db"))?;
    symlink("a.db", bench.directory().join("e.db"))?;
    for name in ["a.db", "c.db"] {
        let found = catalogue.foreign(name)?;
        assert_eq!((found.form, found.bytes), (Some(Form::Plain), 1));
        assert!(found.written.is_some());
    }
    for (name, expected) in [
        ("b.db", "b.db-wal beside it holds part of it"),
        ("notes.txt", "not a file that is named like a database"),
        ("d.db", "not a file that is named like a database"),
        ("e.db", "not a file that is named like a database"),
        ("missing.db", "there is no backup missing.db in "),
        ("../backups/a.db", "there is no backup ../backups/a.db in "),
        ("", "there is no backup  in "),
        (LOCK, "there is no backup .lock in "),
    ] {
        let error = catalogue.foreign(name).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}
