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

/// A member as it is given, whatever it is: `<type flag>:<name>:<contents, or where it
/// leads>` (POSIX.1-1988: 0 a file, 1 a hard link, 2 a symbolic link, 3 a device, 5 a
/// directory, 6 a pipe).
fn forge(tar: &mut tar::Builder<Vec<u8>>, member: &str) {
    let [kind, name, contents] = [0, 1, 2].map(|n| member.splitn(3, ':').nth(n).expect(member));
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(tar::EntryType::new(kind.as_bytes()[0]));
    let contents = if ["1", "2"].contains(&kind) {
        header.set_link_name(contents).expect("short");
        ""
    } else {
        contents
    };
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_size(contents.len() as u64);
    header.set_cksum();
    tar.append(&header, contents.as_bytes()).expect("memory");
}

fn archive(members: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for member in members.split_whitespace() {
        forge(&mut tar, member);
    }
    tar.into_inner().expect("memory")
}

/// What is wrong is found by whoever only verifies, too, and nothing is left behind.
#[test]
fn hostile_archives_restore_nothing() {
    const LISTED: &[(&str, &str)] = &[("/e/a", "aa"), ("/e/b", "bb")];
    const ELSE: &str = "where /e/a is listed";
    const OTHER: &str = "/e/a is not a regular file";
    const PATH: &str = "no path to a file";
    for (members, listed, finding) in [
        ("0:e/a:aa 0:e/b:bb", LISTED, None),
        ("0:../a:aa 0:e/b:bb", LISTED, Some(ELSE)),
        ("0:e/../../a:aa 0:e/b:bb", LISTED, Some(ELSE)),
        ("0:/e/a:aa 0:e/b:bb", LISTED, Some(ELSE)),
        ("0:e/./a:aa 0:e/b:bb", LISTED, Some(ELSE)),
        ("2:e:/tmp 0:e/a:aa 0:e/b:bb", LISTED, Some(ELSE)),
        ("5:e: 0:e/a:aa 0:e/b:bb", LISTED, Some(ELSE)),
        ("2:e/a:/etc/passwd 0:e/b:bb", LISTED, Some(OTHER)),
        ("1:e/a:/etc/passwd 0:e/b:bb", LISTED, Some(OTHER)),
        ("3:e/a:aa 0:e/b:bb", LISTED, Some(OTHER)),
        ("5:e/a:aa 0:e/b:bb", LISTED, Some(OTHER)),
        ("6:e/a:aa 0:e/b:bb", LISTED, Some(OTHER)),
        ("7:e/a:aa 0:e/b:bb", LISTED, Some(OTHER)),
        ("S:e/a:aa 0:e/b:bb", LISTED, Some("")),
        ("0:e/a:aa 0:e/a:aa", LISTED, Some("where /e/b is listed")),
        ("0:e/b:bb 0:e/a:aa", LISTED, Some(ELSE)),
        ("0:e/a:aa 0:e/b:bb 0:e/c:cc", LISTED, Some("more in it")),
        ("0:e/a:aa", LISTED, Some("/e/b is not in it")),
        ("0:e/a:aaa 0:e/b:bb", LISTED, Some("3 bytes in it, not 2")),
        ("0:e/a:xx 0:e/b:bb", LISTED, Some("is not as it was")),
        ("0:../a:aa", &[("/../a", "aa")], Some(PATH)),
        ("0:a:aa", &[("a", "aa")], Some(PATH)),
        ("0:a:aa", &[("/", "aa")], Some(PATH)),
        ("0:e/a:aa", &[("/e/./a", "aa")], Some(PATH)),
        ("0:e/a:aa", &[("/e//a", "aa")], Some(PATH)),
        ("0:e/a:aa", &[("/e/a/", "aa")], Some(PATH)),
        ("0:e/a:aa 0:e/a:aa", &[("/e/a", "aa"); 2], Some("twice")),
        ("0:e:aa 0:e/a:aa", &[("/e", "aa"), ("/e/a", "aa")], Some("")),
    ] {
        let bench = Bench::new();
        let entries = listed.iter().map(|(path, contents)| entry(path, contents));
        let backup = bench.forged(&archive(members), entries.collect());
        let restored = refused(&bench, &backup, members, finding);
        assert_eq!(restored, finding.map_or(2, |_| 0), "{members}");
    }
}

/// Whoever changes a mode in a manifest that was published is found out by its checksum; one
/// that was published with another mode than the archive's, by the archive.
#[test]
fn only_the_mode_that_was_stored_is_given() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    fs::set_permissions(bench.path("etc/a"), fs::Permissions::from_mode(0o600))?;
    let backup = bench.backup(&["etc"]);
    let path = backup.dir.join("manifest.json");
    let manifest = fs::read_to_string(&path)?;
    let [stored, wider] = [0o600, 0o604].map(|mode| format!("\"mode\": {mode}"));
    assert_eq!(manifest.matches(&stored).count(), 1, "{manifest}");
    fs::write(&path, manifest.replace(&stored, &wider))?;
    let backup = bench.catalogue().get(&backup.manifest.id)?;
    for to in destinations(&bench).map(|(to, _)| to) {
        let error = bench.plan(&backup, &to, &Disk::default()).map(drop);
        let error = error.expect_err("it was changed").to_string();
        assert!(error.contains("one of the two has changed"), "{error}");
    }

    let bench = Bench::new();
    let listed = StoredFile {
        mode: 0o646,
        ..entry("/e/a", "aa")
    };
    let backup = bench.forged(&archive("0:e/a:aa"), vec![listed]);
    let finding = Some("/e/a has mode 644 in it, not 646");
    refused(&bench, &backup, "another mode", finding);
    Ok(())
}

/// How many files are restored; if there is to be a finding, that it is this one.
fn refused(bench: &Bench, backup: &Backup, case: &str, finding: Option<&str>) -> usize {
    let (disk, watch) = (Disk::default(), Watch::default());
    let to = Destination::Directory(bench.path("out/new"));
    let restored = bench.restore(backup, &to, &disk);
    let Some(finding) = finding else {
        return restored.expect(case).files.len();
    };
    let error = restored.expect_err(case).to_string();
    assert!(error.contains(finding), "{case}: {error}");
    assert_eq!(bench.below("out"), [""; 0], "{case}");
    if case.contains("0:e:") {
        // Sound by itself: it is for the file system to say that both cannot be.
        return 0;
    }
    let verified = verify::backup(backup, None, &backup.dir, &disk, &watch);
    assert!(
        matches!(verified, Err(verify::Error::Corrupt { .. })),
        "{case}"
    );
    0
}

#[test]
fn sizes_beyond_all_bounds_are_refused_as_they_are_listed() {
    let huge = |path| StoredFile {
        bytes: u64::MAX,
        ..entry(path, "aa")
    };
    for entries in [vec![huge("/e/a")], vec![huge("/e/a"), huge("/e/b")]] {
        let bench = Bench::new();
        let backup = bench.forged(&archive("0:e/a:aa"), entries);
        refused(&bench, &backup, "huge", Some("another size"));
    }
}

/// A name is read into memory before anybody can say that it is too long.
#[test]
fn a_name_of_gigabytes_is_not_read() {
    let name = "n".repeat(1 << 20);
    let bench = Bench::new();
    let members = format!("L:././@LongLink:{name} 0:e/a:aa");
    let backup = bench.forged(&archive(&members), vec![entry("/e/a", "aa")]);
    refused(&bench, &backup, "a long name", Some("another size"));
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

/// The link before its file in the archive, and after it.
#[test]
fn a_link_that_was_stored_with_its_file_is_restored_as_one() -> Outcome {
    for (link, real) in [("etc/a", "etc/b"), ("etc/b", "etc/a")] {
        let bench = Bench::new();
        bench.write(real, "then");
        symlink(bench.path(real), bench.path(link))?;
        let backup = bench.backup(&["etc"]);
        bench.write(real, "now");
        let restored = bench.restore(&backup, &Destination::Originals, &Disk::default())?;
        assert_eq!(restored.files, [bench.path(real)]);
        assert_eq!(restored.kept, [bench.path(&format!("{real}{KEPT}"))]);
        assert_eq!(bench.read(real), "then");
        assert_eq!(bench.read(&format!("{real}{KEPT}")), "now");
        assert!(bench.path(link).is_symlink());
        assert_eq!(bench.below("etc").len(), 3, "nothing temporary");
        // Into a directory they are two, for there is no link in an archive.
        let to = Destination::Directory(bench.path("out/new"));
        assert_eq!(
            bench.restore(&backup, &to, &Disk::default())?.files.len(),
            2
        );
    }
    Ok(())
}

#[test]
fn files_that_were_two_are_not_made_one() -> Outcome {
    for other in ["another", "one"] {
        let bench = Bench::new();
        bench.write("etc/a", "one");
        bench.write("etc/b", other);
        fs::set_permissions(bench.path("etc/a"), fs::Permissions::from_mode(0o600))?;
        fs::set_permissions(bench.path("etc/b"), fs::Permissions::from_mode(0o644))?;
        let backup = bench.backup(&["etc"]);
        fs::remove_file(bench.path("etc/b"))?;
        symlink("a", bench.path("etc/b"))?;
        let disk = Disk::default();
        let plan = bench.plan(&backup, &Destination::Originals, &disk)?;
        let [path, second] = ["etc/a", "etc/b"].map(|name| bench.path(name));
        let stored = [path.clone(), second];
        assert_eq!(plan.objections, [Objection::Ambiguous { path, stored }]);
        let before = bench.below("");
        let error = plan.execute(&disk, &Watch::default()).expect_err("two");
        assert!(matches!(error, Error::Refused(_)), "{error}");
        assert_eq!(bench.below(""), before);
    }
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
