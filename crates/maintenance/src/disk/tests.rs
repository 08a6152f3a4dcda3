#![expect(
    clippy::disallowed_methods,
    reason = "tests look at files behind the seam's back"
)]

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A directory to work in and one to stash in, on one file system.
struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(root.path().join("work")).expect("a fresh directory");
        fs::create_dir(root.path().join("stash")).expect("a fresh directory");
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join("work").join(name)
    }

    fn crashing_at(&self, n: usize, loss: Loss) -> Disk {
        Disk::crashing_at(n, loss, &self.root.path().join("stash")).expect("a stash")
    }

    fn names(&self) -> Vec<String> {
        let listed = Disk::default().list(&self.path("")).expect("a directory");
        listed
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }
}

#[test]
fn an_atomic_write_leaves_the_old_or_the_new_whatever_operation_fails() {
    let mut cases = 0;
    for n in 0.. {
        let bench = Bench::new();
        let path = bench.path("file");
        fs::write(&path, "old").expect("a writable directory");
        let disk = Disk::failing_at(n);
        let result = disk.write_atomically(&path, b"new contents");
        let found = fs::read_to_string(&path).expect("the file is always there");
        assert!(found == "old" || found == "new contents", "{n}: {found}");
        assert_eq!(bench.names(), ["file"], "{n}: a temporary file is left");
        cases += 1;
        if disk.operations() <= n {
            assert!(result.is_ok() && found == "new contents");
            break;
        }
        assert!(result.is_err(), "{n}");
    }
    println!("{cases} cases");
    assert!(cases > 4);
}

#[test]
fn an_atomic_write_leaves_the_old_or_the_new_wherever_the_machine_goes_down() {
    let mut cases = 0;
    for loss in Loss::ALL {
        for n in 0.. {
            let bench = Bench::new();
            let path = bench.path("file");
            fs::write(&path, "old").expect("a writable directory");
            let disk = bench.crashing_at(n, loss);
            let result = disk.write_atomically(&path, b"new contents");
            let found = fs::read_to_string(&path).expect("the file is always there");
            assert!(
                found == "old" || found == "new contents",
                "{loss:?} {n}: {found}"
            );
            // What is left over is no obstacle to the next write.
            Disk::default()
                .write_atomically(&path, b"newer")
                .expect("the disk is well again");
            assert_eq!(bench.names(), ["file"], "{loss:?} {n}");
            cases += 1;
            if result.is_ok() {
                assert_eq!(found, "new contents");
                assert_eq!(disk.operations(), n);
                break;
            }
        }
    }
    println!("{cases} cases");
}

/// Drives the model of a power cut itself: were it too kind, the tests above and those of
/// the catalogue would show nothing.
#[test]
fn a_power_cut_takes_what_was_not_synced_and_nothing_else() -> Outcome {
    for loss in Loss::ALL {
        let names = matches!(loss, Loss::Names | Loss::Everything);
        let contents = matches!(loss, Loss::Contents | Loss::Everything);
        let bench = Bench::new();
        fs::write(bench.path("removed"), "r")?;
        fs::write(bench.path("replaced"), "before")?;
        fs::create_dir(bench.path("emptied"))?;
        fs::write(bench.path("emptied/inner"), "i")?;

        let disk = bench.crashing_at(24, loss);
        let mut kept = disk.create(&bench.path("kept"))?; // 0
        kept.write_all(b"synced")?; // 1
        kept.sync_data()?; // 2
        kept.write_all(b" not")?; // 3
        disk.create_dir(&bench.path("dir"))?; // 4
        disk.create(&bench.path("dir/durable"))?.fill(b"d")?; // 5, 6, 7
        disk.sync_dir(&bench.path("dir"))?; // 8
        disk.sync_dir(&bench.path(""))?; // 9
        disk.create(&bench.path("dir/volatile"))?; // 10
        disk.rename(&bench.path("dir"), &bench.path("renamed"))?; // 11
        disk.remove_file(&bench.path("removed"))?; // 12
        disk.create(&bench.path("new"))?.fill(b"after")?; // 13, 14, 15
        disk.rename(&bench.path("new"), &bench.path("replaced"))?; // 16
        disk.remove_dir_all(&bench.path("emptied"))?; // 17, 18, 19
        while disk.operations() < 24 {
            disk.list(&bench.path(""))?;
        }
        assert!(disk.list(&bench.path("")).is_err());

        let expected: &[&str] = if names {
            &["dir", "emptied", "kept", "removed", "replaced"]
        } else {
            &["kept", "renamed", "replaced"]
        };
        assert_eq!(bench.names(), expected, "{loss:?}");
        let text = |name: &str| fs::read_to_string(bench.path(name));
        assert_eq!(
            text("kept")?,
            if contents { "synced" } else { "synced not" }
        );
        assert_eq!(text("replaced")?, if names { "before" } else { "after" });
        let dir = if names { "dir" } else { "renamed" };
        assert_eq!(text(&format!("{dir}/durable"))?, "d");
        assert_eq!(
            fs::exists(bench.path(&format!("{dir}/volatile")))?,
            !names,
            "{loss:?}"
        );
        if names {
            assert_eq!(text("emptied/inner")?, "i");
        }
        assert!(
            disk.rename(&bench.path("kept"), &bench.path("x")).is_err(),
            "a machine that is down does nothing more"
        );
    }
    Ok(())
}

#[test]
fn a_synced_rename_keeps_a_directory_whose_entries_are_still_volatile() -> Outcome {
    let bench = Bench::new();
    let disk = bench.crashing_at(5, Loss::Names);
    disk.create_dir(&bench.path("a"))?;
    disk.create(&bench.path("a/inner"))?;
    disk.rename(&bench.path("a"), &bench.path("b"))?;
    disk.sync_dir(&bench.path(""))?;
    disk.list(&bench.path("b"))?;
    assert!(disk.list(&bench.path("b")).is_err());
    assert_eq!(bench.names(), ["b"]);
    assert!(!fs::exists(bench.path("b/inner"))?);
    Ok(())
}

#[test]
fn a_failing_write_leaves_half_of_it() -> Outcome {
    let bench = Bench::new();
    let mut file = Disk::failing_at(1).create(&bench.path("file"))?;
    let error = file.fill(b"12345678").expect_err("the write fails");
    assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(fs::read_to_string(bench.path("file"))?, "1234");
    Ok(())
}

#[test]
fn an_error_says_what_was_done_to_what_and_what_to_do() {
    let path = Path::new("/data/backups/file");
    let shown = |kind: io::ErrorKind| Error::new("create", path, kind.into()).to_string();
    assert_eq!(
        shown(io::ErrorKind::StorageFull),
        "could not create /data/backups/file: no storage space \
         (free space or choose another directory)"
    );
    assert_eq!(
        shown(io::ErrorKind::NotFound),
        "could not create /data/backups/file: entity not found"
    );
}

#[test]
fn the_guarded_database_is_refused_under_any_name() -> Outcome {
    let bench = Bench::new();
    let database = bench.path("tracker.db");
    for suffix in guard::SUFFIXES {
        fs::write(bench.path(&format!("tracker.db{suffix}")), "live")?;
    }
    fs::write(bench.path("other"), "fine")?;
    symlink(&database, bench.path("symlink"))?;
    fs::hard_link(bench.path("tracker.db-shm"), bench.path("hardlink"))?;
    let disk = Disk::default().guarding(&database);
    for name in [
        "tracker.db",
        "tracker.db-wal",
        "tracker.db-shm",
        "tracker.db-journal",
        "symlink",
        "hardlink",
    ] {
        let error = disk
            .clone()
            .open(&bench.path(name))
            .expect_err("a live database");
        assert!(error.to_string().contains("would drop its locks"), "{name}");
    }
    assert_eq!(disk.read(&bench.path("other"), 4)?, b"fine");
    Ok(())
}

#[test]
fn the_guarded_database_is_never_created_replaced_or_removed() -> Outcome {
    let bench = Bench::new();
    fs::create_dir(bench.path("real"))?;
    symlink("real", bench.path("linked"))?;
    let database = bench.path("real/tracker.db");
    symlink("real/tracker.db", bench.path("configured.db"))?;
    // Guarded before there is a file, through a link that leads nowhere yet.
    let disk = Disk::default().guarding(&bench.path("configured.db"));
    fs::write(bench.path("other"), "other")?;
    let everything_is_refused = |path: &Path| {
        let other = bench.path("other");
        let refusals = [
            disk.create(path).map(drop),
            disk.create_dir(path),
            disk.rename(path, &bench.path("away")),
            disk.rename(&other, path),
            disk.link(&other, path),
            disk.link(path, &bench.path("away")),
            disk.remove_file(path),
            disk.write_atomically(path, b"x"),
        ];
        for refused in refusals {
            let error = refused.expect_err("a live database").to_string();
            assert!(error.contains("has open as a database"), "{error}");
        }
    };
    for exists in [false, true] {
        for suffix in guard::SUFFIXES {
            for name in ["real/tracker.db", "linked/tracker.db", "configured.db"] {
                everything_is_refused(&bench.path(&format!("{name}{suffix}")));
            }
        }
        if !exists {
            for suffix in guard::SUFFIXES {
                fs::write(bench.path(&format!("real/tracker.db{suffix}")), "live")?;
            }
        }
    }
    fs::hard_link(&database, bench.path("hardlink"))?;
    everything_is_refused(&bench.path("hardlink"));
    assert!(disk.remove_dir_all(&bench.path("real")).is_err());
    assert_eq!(fs::read_to_string(&database)?, "live");
    assert_eq!(fs::read_dir(bench.path("real"))?.count(), 4);

    // A link to it is only a link; other names in its directory are free.
    symlink(&database, bench.path("link"))?;
    disk.remove_file(&bench.path("link"))?;
    disk.write_atomically(&bench.path("real/tracker.db.lock"), b"x")?;
    disk.write_atomically(&bench.path("other"), b"x")?;
    Ok(())
}

#[test]
fn a_path_is_resolved_to_where_the_file_is_or_would_be() -> Outcome {
    let bench = Bench::new();
    let real = bench.path("real").canonicalize().unwrap_or_default();
    assert_eq!(real, PathBuf::new());
    fs::create_dir(bench.path("real"))?;
    symlink("real", bench.path("linked"))?;
    symlink("linked/b", bench.path("to-b"))?;
    symlink("circle", bench.path("circle"))?;
    let real = bench.path("real").canonicalize()?;
    for (path, expected) in [("linked/a", "a"), ("to-b", "b"), ("real/c", "c")] {
        for _ in 0..2 {
            assert_eq!(resolve(&bench.path(path))?, real.join(expected), "{path}");
            fs::write(bench.path(path), "now it exists")?;
        }
    }
    assert!(resolve(&bench.path("circle")).is_err());
    assert!(resolve(&bench.path("missing/a")).is_err());
    Ok(())
}

#[test]
fn what_is_created_has_the_mode_of_its_readers() -> Outcome {
    let bench = Bench::new();
    let disk = Disk::default();
    // What the umask of whoever runs this takes away is not known.
    for (disk, most, least) in [
        (disk.clone(), 0o640, 0o600),
        (disk.private(), 0o600, 0o600),
        // Whatever the umask is.
        (disk.public(), 0o644, 0o644),
    ] {
        let path = bench.path("file");
        disk.write_atomically(&path, b"contents")?;
        let mode = fs::metadata(&path)?.mode() & 0o777;
        assert_eq!((mode & !most, mode & least), (0, least), "{mode:o}");
    }
    Ok(())
}

#[test]
fn a_lock_file_made_by_root_belongs_to_whom_the_database_belongs_to() -> Outcome {
    let bench = Bench::new();
    let (lock, like) = (bench.path("db.lock"), bench.path("db"));
    fs::write(&like, "")?;
    let root = geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&like, Some(4242), Some(4343))?;
    }
    let disk = Disk::default();
    let held = disk.lock_file(&lock, &like)?;
    assert!(held.is_some());
    assert!(disk.lock_file(&lock, &like)?.is_none());
    let (of_lock, of_like) = (fs::metadata(&lock)?, fs::metadata(&like)?);
    assert_eq!(
        (of_lock.uid(), of_lock.gid()),
        (of_like.uid(), of_like.gid())
    );
    assert_eq!(of_lock.mode() & 0o777 & !0o640, 0, "no more than 0640");

    // What somebody else put there is neither followed nor given away.
    symlink(&like, bench.path("link.lock"))?;
    assert!(disk.lock_file(&bench.path("link.lock"), &like).is_err());
    fs::write(bench.path("old.lock"), "")?;
    let before = fs::metadata(bench.path("old.lock"))?.uid();
    assert!(disk.lock_file(&bench.path("old.lock"), &like)?.is_some());
    assert_eq!(fs::metadata(bench.path("old.lock"))?.uid(), before);
    Ok(())
}

#[test]
fn only_regular_files_are_opened_and_only_short_ones_read_whole() -> Outcome {
    let bench = Bench::new();
    let disk = Disk::default();
    assert!(disk.open(&bench.path("")).is_err());
    assert!(disk.open(Path::new("/dev/zero")).is_err());
    fs::write(bench.path("long"), "12345")?;
    assert!(disk.read(&bench.path("long"), 4).is_err());
    assert_eq!(disk.read(&bench.path("long"), 5)?, b"12345");
    Ok(())
}

#[test]
fn what_is_removed_in_pieces_is_gone_whatever_its_size() -> Outcome {
    let bench = Bench::new();
    let (disk, path) = (Disk::default(), bench.path("file"));
    // Empty, shorter than a piece, of one, of some and a bit.
    for bytes in [0, 99, 100, 101, 1_000] {
        fs::write(&path, vec![1; bytes])?;
        let before = disk.operations();
        disk.remove_in_pieces(&path, 100)?;
        assert!(!path.exists());
        // A look and the removal; more than a piece is opened, and shortened to one.
        let pieces = bytes.saturating_sub(1) / 100;
        let operations = 2 + if pieces > 0 { 1 + pieces } else { 0 };
        assert_eq!(disk.operations() - before, operations, "{bytes} bytes");
    }
    Ok(())
}

#[test]
fn unfinished_work_is_removed_in_pieces() -> Outcome {
    let bench = Bench::new();
    let disk = Disk::default();
    let operations = |pieces: u64| -> Result<usize, Box<dyn std::error::Error>> {
        let claim = disk.claim(&bench.path("work"))?;
        fs::File::create(claim.path().join("copy"))?.set_len(pieces * PIECE)?;
        let before = disk.operations();
        drop(claim);
        assert!(!bench.path("work").exists());
        Ok(disk.operations() - before)
    };
    // It is opened, too.
    assert_eq!(operations(4)?, operations(1)? + 1 + 3);
    Ok(())
}

#[test]
fn only_the_name_of_a_link_is_removed_in_pieces() -> Outcome {
    let bench = Bench::new();
    let (target, link) = (bench.path("target"), bench.path("link"));
    fs::write(&target, vec![1; 1_000])?;
    symlink(&target, &link)?;
    Disk::default().remove_in_pieces(&link, 100)?;
    assert!(!link.exists());
    assert_eq!(fs::read(&target)?.len(), 1_000);
    Ok(())
}

#[test]
fn reading_ahead_ends_with_the_file_and_when_told_to_and_at_once_at_what_is_none() -> Outcome {
    let bench = Bench::new();
    let never = || -> bool { panic!("it reads what is no regular file") };
    read_ahead(Path::new("/dev/zero"), never);
    read_ahead(&bench.path(""), never);
    read_ahead(&bench.path("missing"), never);
    fs::write(bench.path("file"), vec![1; 3 * REQUEST + 1])?;
    for enough in [1, 3, 5, 6] {
        let asked = std::cell::Cell::new(0);
        read_ahead(&bench.path("file"), || {
            asked.set(asked.get() + 1);
            asked.get() == enough
        });
        // Four times there is something to read, and a fifth nothing more.
        assert_eq!(asked.get(), enough.min(5));
    }
    Ok(())
}

#[test]
fn what_is_larger_than_half_of_the_available_memory_is_not_read_ahead() {
    let meminfo = "MemTotal:       24689764 kB\nMemFree:          511 kB\n\
                   MemAvailable:    2048 kB\nBuffers:          100 kB\n";
    assert_eq!(available(meminfo), Some(2 << 20));
    for unknown in [
        "",
        "MemTotal: 1 kB",
        "MemAvailable: 1",
        "MemAvailable: x kB",
        "MemAvailable: 18446744073709551615 kB",
    ] {
        assert_eq!(available(unknown), None, "{unknown}");
    }
    for (bytes, available, worth) in [
        (0, Some(0), true),
        (1, Some(1), false),
        (1 << 20, Some(2 << 20), true),
        ((1 << 20) + 1, Some(2 << 20), false),
        (u64::MAX, Some(u64::MAX), false),
        // As before anybody asked.
        (u64::MAX, None, true),
    ] {
        assert_eq!(is_worth_caching(bytes, available), worth, "{bytes}");
    }
}

#[test]
fn only_a_regular_file_is_forgotten() -> Outcome {
    let bench = Bench::new();
    fs::write(bench.path("file"), "x")?;
    symlink(bench.path("file"), bench.path("link"))?;
    assert!(regular(&bench.path("file")).is_some());
    for other in ["", "link", "missing"] {
        assert!(regular(&bench.path(other)).is_none(), "{other}");
    }
    forget_cached(&bench.path("file"));
    forget_cached(&bench.path("missing"));
    assert_eq!(fs::read_to_string(bench.path("file"))?, "x");
    Ok(())
}

#[test]
fn a_sweep_takes_the_work_of_the_dead_and_leaves_that_of_the_living() -> Outcome {
    let bench = Bench::new();
    let disk = Disk::default();
    let claim = disk.claim(&bench.path("living"))?;
    fs::write(claim.path().join("work"), "w")?;
    fs::create_dir_all(bench.path("dead/deeper"))?;
    fs::write(bench.path("dead/deeper/work"), "w")?;
    symlink(claim.path(), bench.path("dead/link"))?;
    fs::write(bench.path("file"), "w")?;

    assert!(!disk.sweep(&bench.path("living"))?);
    assert!(disk.sweep(&bench.path("dead"))?);
    assert!(disk.sweep(&bench.path("file"))?);
    assert_eq!(bench.names(), ["living"]);
    assert!(fs::exists(bench.path("living/work"))?);
    drop(claim);
    assert_eq!(bench.names(), [""; 0]);
    Ok(())
}

#[test]
fn a_claim_is_kept_under_its_final_name_or_removed() {
    for n in 0.. {
        let bench = Bench::new();
        let disk = Disk::failing_at(n);
        let result = disk
            .claim(&bench.path("partial"))
            .and_then(|claim| claim.promote(&bench.path("final")));
        if disk.operations() <= n {
            assert!(result.is_ok());
            assert_eq!(bench.names(), ["final"]);
            break;
        }
        assert!(result.is_err());
        assert_eq!(bench.names(), [""; 0], "{n}");
    }
}

#[test]
fn free_space_is_that_of_the_file_system() -> Outcome {
    let bench = Bench::new();
    assert!(Disk::default().free_bytes(&bench.path(""))? > 0);
    assert!(Disk::default().free_bytes(&bench.path("missing")).is_err());
    Ok(())
}
