//! Archives that were not made here, and restores that go wrong.

use super::*;
use crate::disk::Loss;

fn entry(path: &str, contents: &str) -> StoredFile {
    use sha2::{Digest as _, Sha256};
    StoredFile {
        path: path.into(),
        bytes: contents.len() as u64,
        sha256: format!("{:x}", Sha256::digest(contents)),
        mode: 0o644,
    }
}

/// A member as it is given, whatever it is.
fn forge(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &[u8],
    kind: tar::EntryType,
    link: &str,
    contents: &str,
) {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(contents.len() as u64);
    header.set_cksum();
    tar.append(&header, contents.as_bytes()).expect("memory");
}

/// What is wrong is found by whoever only verifies, too, and nothing is left behind.
#[test]
fn hostile_archives_restore_nothing() -> Outcome {
    use tar::EntryType as Kind;
    let regular = Kind::Regular;
    let good = || vec![entry("/e/a", "aa"), entry("/e/b", "bb")];
    type Members<'a> = Vec<(&'a [u8], Kind, &'a str, &'a str)>;
    let cases: Vec<(&str, Members<'_>, Vec<StoredFile>, &str)> = vec![
        (
            "good",
            vec![(b"e/a", regular, "", "aa"), (b"e/b", regular, "", "bb")],
            good(),
            "",
        ),
        (
            "parent",
            vec![(b"../a", regular, "", "aa"), (b"e/b", regular, "", "bb")],
            good(),
            "where /e/a is listed",
        ),
        (
            "absolute",
            vec![(b"/e/a", regular, "", "aa"), (b"e/b", regular, "", "bb")],
            good(),
            "where /e/a is listed",
        ),
        (
            "dotted",
            vec![(b"e/./a", regular, "", "aa"), (b"e/b", regular, "", "bb")],
            good(),
            "where /e/a is listed",
        ),
        (
            "symlink",
            vec![
                (b"e/a", Kind::Symlink, "/etc/passwd", ""),
                (b"e/b", regular, "", "bb"),
            ],
            good(),
            "not a regular file",
        ),
        (
            "through a link",
            vec![
                (b"e", Kind::Symlink, "/tmp", ""),
                (b"e/a", regular, "", "aa"),
                (b"e/b", regular, "", "bb"),
            ],
            good(),
            "where /e/a is listed",
        ),
        (
            "hard link",
            vec![
                (b"e/a", Kind::Link, "/etc/passwd", "aa"),
                (b"e/b", regular, "", "bb"),
            ],
            good(),
            "not a regular file",
        ),
        (
            "device",
            vec![(b"e/a", Kind::Char, "", "aa"), (b"e/b", regular, "", "bb")],
            good(),
            "not a regular file",
        ),
        (
            "pipe",
            vec![(b"e/a", Kind::Fifo, "", "aa"), (b"e/b", regular, "", "bb")],
            good(),
            "not a regular file",
        ),
        (
            "directory",
            vec![
                (b"e/a", Kind::Directory, "", "aa"),
                (b"e/b", regular, "", "bb"),
            ],
            good(),
            "not a regular file",
        ),
        (
            "sparse",
            vec![
                (b"e/a", Kind::GNUSparse, "", "aa"),
                (b"e/b", regular, "", "bb"),
            ],
            good(),
            "",
        ),
        (
            "twice",
            vec![(b"e/a", regular, "", "aa"), (b"e/a", regular, "", "aa")],
            good(),
            "where /e/b is listed",
        ),
        (
            "more",
            vec![
                (b"e/a", regular, "", "aa"),
                (b"e/b", regular, "", "bb"),
                (b"e/c", regular, "", "cc"),
            ],
            good(),
            "more in it",
        ),
        (
            "fewer",
            vec![(b"e/a", regular, "", "aa")],
            good(),
            "/e/b is not in it",
        ),
        (
            "longer",
            vec![(b"e/a", regular, "", "aaa"), (b"e/b", regular, "", "bb")],
            good(),
            "has 3 bytes in it, not 2",
        ),
        (
            "other",
            vec![(b"e/a", regular, "", "xx"), (b"e/b", regular, "", "bb")],
            good(),
            "is not as it was",
        ),
        (
            "listed outside",
            vec![(b"../a", regular, "", "aa")],
            vec![entry("/../a", "aa")],
            "no path to a file",
        ),
        (
            "listed relative",
            vec![(b"a", regular, "", "aa")],
            vec![entry("a", "aa")],
            "no path to a file",
        ),
        (
            "listed root",
            vec![(b"a", regular, "", "aa")],
            vec![entry("/", "aa")],
            "no path to a file",
        ),
        (
            "listed with dots",
            vec![(b"e/a", regular, "", "aa")],
            vec![entry("/e/./a", "aa")],
            "no path to a file",
        ),
        (
            "listed twice",
            vec![(b"e/a", regular, "", "aa"), (b"e/a", regular, "", "aa")],
            vec![entry("/e/a", "aa"), entry("/e/a", "aa")],
            "twice",
        ),
        (
            "listed huge",
            vec![(b"e/a", regular, "", "aa")],
            vec![
                StoredFile {
                    bytes: u64::MAX,
                    ..entry("/e/a", "aa")
                },
                StoredFile {
                    bytes: u64::MAX,
                    ..entry("/e/b", "bb")
                },
            ],
            "another size",
        ),
    ];
    for (case, members, entries, finding) in cases {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, link, contents) in members {
            forge(&mut tar, name, kind, link, contents);
        }
        let bench = Bench::new();
        let backup = bench.forged(&tar.into_inner()?, entries);
        let to = Destination::Directory(bench.path("out/new"));
        let restored = bench.restore(&backup, &to, &Disk::default());
        if case == "good" {
            assert_eq!(restored?.files.len(), 2);
            continue;
        }
        let error = restored.expect_err(case);
        assert!(
            matches!(error, Error::Verify(verify::Error::Corrupt { .. })),
            "{case}: {error}"
        );
        assert!(error.to_string().contains(finding), "{case}: {error}");
        assert_eq!(bench.below("out"), [""; 0], "{case}");
        let verified = verify::backup(
            &backup,
            None,
            &backup.dir,
            &Disk::default(),
            &Watch::default(),
        );
        let found = verified.expect_err(case).to_string();
        assert!(found.contains(finding), "{case}: {found}");
    }
    Ok(())
}

/// A name is read into memory before anybody can say that it is too long.
#[test]
fn a_name_of_gigabytes_is_not_read() -> Outcome {
    let mut tar = tar::Builder::new(Vec::new());
    forge(
        &mut tar,
        b"././@LongLink",
        tar::EntryType::GNULongName,
        "",
        &"n".repeat(1 << 20),
    );
    forge(&mut tar, b"e/a", tar::EntryType::Regular, "", "aa");
    let bench = Bench::new();
    let backup = bench.forged(&tar.into_inner()?, vec![entry("/e/a", "aa")]);
    let to = Destination::Directory(bench.path("out/new"));
    let error = bench
        .restore(&backup, &to, &Disk::default())
        .expect_err("forged");
    assert!(error.to_string().contains("another size"), "{error}");
    Ok(())
}

#[test]
fn what_is_in_the_way_is_said_before_anything_is_done() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    bench.write("etc/b", "b");
    let backup = bench.backup(&["etc"]);
    let disk = Disk::default();
    let objections = |to: &Destination| bench.plan(&backup, to, &disk).expect("a plan").objections;
    let directory = |name: &str| Destination::Directory(bench.path(name));
    assert_eq!(objections(&directory("out/new")), []);
    assert_eq!(objections(&Destination::Originals), []);
    let path = bench.path("out");
    assert_eq!(objections(&directory("out")), [Objection::Exists { path }]);
    for nowhere in [directory("none/new"), Destination::Directory("/".into())] {
        let error = bench.plan(&backup, &nowhere, &disk).expect_err("no place");
        assert!(matches!(error, Error::Unusable { .. }), "{error}");
    }
    fs::remove_file(bench.path("etc/a"))?;
    fs::create_dir(bench.path("etc/a"))?;
    fs::remove_file(bench.path("etc/b"))?;
    fs::hard_link(bench.path("data/tracker.db"), bench.path("etc/b"))?;
    let plan = bench.plan(&backup, &Destination::Originals, &disk)?;
    assert_eq!(plan.objections.len(), 2, "{:?}", plan.objections);
    let before = bench.below("");
    let error = plan
        .execute(&disk, &Watch::default())
        .expect_err("in the way");
    assert!(
        error.to_string().contains("etc/b is the database"),
        "{error}"
    );
    assert_eq!(bench.below(""), before);

    let without = publish(bench.catalogue().begin(time())?, None);
    let error = bench
        .plan(&without, &Destination::Originals, &disk)
        .expect_err("none");
    assert!(
        error
            .to_string()
            .ends_with("holds no files besides the database"),
        "{error}"
    );
    Ok(())
}

const KEPT: &str = ".replaced-20261122T030000Z";

#[test]
fn originals_are_kept_aside_and_links_stay_links() -> Outcome {
    let bench = Bench::new();
    for name in ["etc/a", "etc/gone/b", "etc/real"] {
        bench.write(name, "then");
    }
    symlink("real", bench.path("etc/link"))?;
    let backup = bench.backup(&["etc/a", "etc/gone", "etc/link"]);
    bench.write("etc/a", "now");
    bench.write("etc/real", "now");
    fs::remove_dir_all(bench.path("etc/gone"))?;
    let restored = bench.restore(&backup, &Destination::Originals, &Disk::default())?;
    assert_eq!(restored.files.len(), 3);
    let kept = ["etc/a", "etc/real"].map(|name| bench.path(&format!("{name}{KEPT}")));
    assert_eq!(restored.kept, kept);
    for name in ["etc/a", "etc/gone/b", "etc/real", "etc/link"] {
        assert_eq!(bench.read(name), "then", "{name}");
    }
    for name in ["etc/a", "etc/real"] {
        assert_eq!(bench.read(&format!("{name}{KEPT}")), "now");
    }
    assert!(bench.path("etc/link").is_symlink());
    let names = bench.below("etc");
    assert_eq!(names.len(), 7, "nothing temporary: {names:?}");
    Ok(())
}

/// A backup of three files, which were changed since.
fn changed() -> (Bench, Backup) {
    let bench = Bench::new();
    for name in ["etc/a", "etc/b", "etc/sub/c"] {
        bench.write(name, "then");
    }
    let backup = bench.backup(&["etc"]);
    for name in ["etc/a", "etc/b"] {
        bench.write(name, "now");
    }
    fs::remove_dir_all(bench.path("etc/sub")).expect("it is there");
    (bench, backup)
}

/// Whole files under every name: the old or the new ones; all of them new if it was done.
fn check_originals(bench: &Bench, done: bool, case: &str) {
    for name in ["etc/a", "etc/b"] {
        let found = bench.read(name);
        assert!(
            found == "then" || found == "now" && !done,
            "{case}: {found}"
        );
        if found == "then" {
            assert_eq!(bench.read(&format!("{name}{KEPT}")), "now", "{case}");
        }
    }
    let new = bench.path("etc/sub/c");
    assert!(new.exists() || !done, "{case}");
    if new.exists() {
        assert_eq!(bench.read("etc/sub/c"), "then", "{case}");
    }
}

fn check_directory(bench: &Bench, done: bool, case: &str) {
    let new = bench.path("out/new");
    assert!(new.exists() || !done, "{case}");
    if new.exists() {
        for name in ["etc/a", "etc/b", "etc/sub/c"] {
            let found = fs::read_to_string(below_out(bench, name)).expect(case);
            assert_eq!(found, "then", "{case}");
        }
    }
}

type Check = fn(&Bench, bool, &str);

fn destinations(bench: &Bench) -> [(Destination, Check); 2] {
    [
        (
            Destination::Directory(bench.path("out/new")),
            check_directory,
        ),
        (Destination::Originals, check_originals),
    ]
}

#[test]
fn whatever_operation_of_a_restore_fails_no_name_has_half_a_file() {
    for which in 0..2 {
        let mut cases = 0;
        for n in 0.. {
            let (bench, backup) = changed();
            let (to, check) = &destinations(&bench)[which];
            let disk = Disk::failing_at(n);
            let restored = bench.restore(&backup, to, &disk);
            let case = format!("{to:?}, operation {n}");
            check(&bench, restored.is_ok(), &case);
            let replaced = matches!(restored, Err(Error::Incomplete { .. }));
            if restored.is_err() && !replaced && *to == Destination::Originals {
                assert_eq!(bench.read("etc/a"), "now", "{case}");
                assert_eq!(bench.read("etc/b"), "now", "{case}");
            }
            for (directory, name) in ["etc", "out"]
                .iter()
                .flat_map(|of| bench.below(of).into_iter().map(move |name| (of, name)))
            {
                assert!(
                    !name.ends_with(".restoring"),
                    "{case}: {directory}/{name} is left"
                );
            }
            if disk.operations() <= n {
                assert!(restored.is_ok(), "{case}");
                break;
            }
            cases += 1;
        }
        println!("restore of files: {cases} operations failed, one at a time");
        assert!(cases > 25, "{cases}");
    }
}

#[test]
fn wherever_the_machine_goes_down_in_a_restore_no_name_has_half_a_file() {
    let mut cases = 0;
    for which in 0..2 {
        for loss in Loss::ALL {
            for n in 0.. {
                let (bench, backup) = changed();
                let (to, check) = &destinations(&bench)[which];
                let disk = Disk::crashing_at(n, loss, &bench.path("stash")).expect("a stash");
                let restored = bench.restore(&backup, to, &disk);
                let went_down = disk.operations() > n;
                if !went_down {
                    // What was reported as done is there after a power cut at any later time.
                    disk.list(&bench.path("etc")).expect_err("it goes down now");
                }
                let case = format!("{to:?}, {loss:?} before operation {n}");
                check(&bench, restored.is_ok(), &case);
                // What is left over is no obstacle to the next restore.
                if which == 0 && !bench.path("out/new").exists() {
                    bench.restore(&backup, to, &Disk::default()).expect(&case);
                    assert_eq!(
                        fs::read_dir(bench.path("out")).expect("it exists").count(),
                        1
                    );
                }
                if which == 1 {
                    bench.restore(&backup, to, &Disk::default()).expect(&case);
                    assert_eq!(bench.read("etc/a"), "then", "{case}");
                    assert!(
                        !bench
                            .below("etc")
                            .iter()
                            .any(|name| name.ends_with(".restoring"))
                    );
                }
                cases += 1;
                if !went_down {
                    break;
                }
            }
        }
    }
    println!("restore of files on a crashing machine: {cases} cases");
    assert!(cases > 200, "{cases}");
}

#[test]
fn every_flipped_byte_of_an_archive_is_found() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "some contents");
    let backup = bench.backup(&["etc"]);
    let path = backup.dir.join("files.tar.zst");
    let good = fs::read(&path)?;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, bad)?;
        let verified = verify::backup(
            &backup,
            None,
            &backup.dir,
            &Disk::default(),
            &Watch::default(),
        );
        assert!(
            matches!(verified, Err(verify::Error::Corrupt { .. })),
            "byte {at}"
        );
        let to = Destination::Directory(bench.path("out/new"));
        bench
            .restore(&backup, &to, &Disk::default())
            .expect_err("damaged");
        assert_eq!(bench.below("out"), [""; 0]);
    }
    println!("{} bytes flipped", good.len());
    Ok(())
}
