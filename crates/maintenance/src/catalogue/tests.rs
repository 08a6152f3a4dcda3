#![expect(
    clippy::disallowed_methods,
    reason = "tests damage files behind the seam's back"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use chrono::TimeDelta;
use tempfile::TempDir;

use super::testing::{manifest, memory_dir, time};
use super::*;
use crate::config::Compression;
use crate::disk::Loss;
use crate::excerpt::Partial;
use crate::snapshot::Watch;
use crate::verify;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const ZSTD: Compression = Compression::Zstd(3);

/// A catalogue's directory, and one to stash in on the same file system.
struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Self {
        let root = memory_dir();
        fs::create_dir(root.path().join("stash")).expect("a fresh directory");
        Self { root }
    }

    fn directory(&self) -> PathBuf {
        self.root.path().join("backups")
    }

    fn open(&self, disk: &Disk) -> Result<Catalogue, Error> {
        Catalogue::open(disk.clone(), &self.directory())
    }

    fn catalogue(&self) -> Catalogue {
        self.open(&Disk::default()).expect("a catalogue")
    }

    fn crashing_at(&self, n: usize, loss: Loss) -> Disk {
        Disk::crashing_at(n, loss, &self.root.path().join("stash")).expect("a stash")
    }

    /// Names under which something stands, temporary ones too.
    fn names(&self) -> Vec<String> {
        let listed = Disk::default().list(&self.directory()).unwrap_or_default();
        listed
            .iter()
            .map(|name| name.to_string_lossy().into_owned())
            .filter(|name| name != LOCK)
            .collect()
    }
}

fn owner() -> Owner {
    Owner::this("a test", time())
}

fn prune(catalogue: &Catalogue, keep: &Keep, just_verified: &BackupId) -> Result<Pruned, Error> {
    catalogue.lock(&owner())?.prune(keep, just_verified)
}

/// What a run does with a draft, on a database of a few bytes.
fn publish(
    catalogue: &Catalogue,
    began: DateTime<Utc>,
) -> Result<Backup, Box<dyn std::error::Error>> {
    let draft = catalogue.begin(began)?;
    let disk = &catalogue.disk;
    disk.create(&draft.raw_path())?
        .fill(format!("database of {began}").as_bytes())?;
    let artifact = verify::compress(
        &draft.raw_path(),
        &draft.artifact_path(&ZSTD),
        ZSTD,
        disk,
        &Watch::default(),
    )?;
    let manifest = manifest(draft.id(), artifact);
    Ok(draft.publish(&manifest)?)
}

/// One backup a night, oldest first, the last one on the night of [`time`].
fn nights(catalogue: &Catalogue, count: i32) -> Vec<BackupId> {
    (0..count)
        .rev()
        .map(|ago| {
            let began = time() - TimeDelta::days(ago.into());
            publish(catalogue, began).expect("a backup").manifest.id
        })
        .collect()
}

fn keep_last(last: usize) -> Keep {
    Keep {
        last,
        daily: 0,
        weekly: 0,
        monthly: 0,
    }
}

fn id(name: &str) -> BackupId {
    name.parse().expect(name)
}

/// Invariants 4 and 5 of the catalogue, read from the disk as it is: under every final
/// name is a whole and verified backup, and `older` are among them. A sweep then leaves no
/// temporary name.
fn check_invariants(bench: &Bench, older: &[BackupId], case: &str) -> BTreeSet<BackupId> {
    let disk = Disk::default();
    let watch = Watch::default();
    let mut good = BTreeSet::new();
    if bench.directory().exists() {
        let catalogue = Catalogue::read_only(disk.clone(), &bench.directory()).expect(case);
        for entry in catalogue.list().expect(case) {
            let Entry::Good(backup) = entry else {
                panic!("{case}: {entry:?}");
            };
            verify::backup(&backup, None, bench.root.path(), &disk, &watch).expect(case);
            good.insert(backup.manifest.id);
        }
    }
    for id in older {
        assert!(good.contains(id), "{case}: {id} is lost");
    }
    let catalogue = bench.catalogue();
    let names: BTreeSet<_> = good.iter().map(ToString::to_string).collect();
    assert_eq!(
        bench.names(),
        names.into_iter().collect::<Vec<_>>(),
        "{case}: more is left after a sweep"
    );
    publish(&catalogue, time() + TimeDelta::days(1)).expect(case);
    good
}

#[test]
fn a_backup_is_published_whole_and_read_back() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let backup = publish(&catalogue, time())?;
    assert_eq!(backup.dir, bench.directory().join("20261122T030000Z"));
    assert_eq!(
        Disk::default().list(&backup.dir)?,
        ["SHA256SUMS", "database.sqlite3.zst", "manifest.json"]
    );
    assert_eq!(catalogue.get(&backup.manifest.id)?, backup);
    assert_eq!(catalogue.list()?, [Entry::Good(backup.clone())]);

    let json = fs::read_to_string(backup.dir.join(MANIFEST))?;
    assert!(json.starts_with("{\n  \"format\": 1,\n  \"id\": \"20261122T030000Z\","));
    assert!(json.ends_with("}\n"));
    let mode = |path: &Path| fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    assert_eq!(mode(&backup.dir)? & 0o027, 0, "others may not look into it");
    assert_eq!(mode(&backup.dir.join(MANIFEST))? & 0o037, 0);
    Ok(())
}

#[test]
fn the_checksums_are_those_sha256sum_checks() -> Outcome {
    let bench = Bench::new();
    let backup = publish(&bench.catalogue(), time())?;
    let checked = std::process::Command::new("sha256sum")
        .args(["--check", "--strict", SUMS])
        .current_dir(&backup.dir)
        .output()?;
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(
        String::from_utf8(checked.stdout)?,
        "manifest.json: OK\ndatabase.sqlite3.zst: OK\n"
    );
    Ok(())
}

#[test]
fn backups_of_one_second_have_names_of_their_own() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    publish(&catalogue, time())?;
    let one = catalogue.begin(time())?;
    let other = catalogue.begin(time())?;
    assert_eq!(one.id(), &id("20261122T030000Z-2"));
    assert_eq!(other.id(), &id("20261122T030000Z-3"));
    drop((one, other));
    assert_eq!(bench.names(), ["20261122T030000Z"]);

    // What comes later sorts after what came before, though a name is free again.
    let second = publish(&catalogue, time())?;
    catalogue.remove(&id("20261122T030000Z"))?;
    assert_eq!(second.manifest.id, id("20261122T030000Z-2"));
    assert_eq!(catalogue.begin(time())?.id(), &id("20261122T030000Z-3"));
    Ok(())
}

#[test]
fn an_entry_that_cannot_be_read_is_listed_with_the_reason() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let good = publish(&catalogue, time())?;
    let directory = bench.directory();
    let other = |name: &str| -> io::Result<PathBuf> {
        let dir = directory.join(name);
        fs::create_dir(&dir)?;
        for file in [MANIFEST, SUMS, "database.sqlite3.zst"] {
            fs::copy(good.dir.join(file), dir.join(file))?;
        }
        Ok(dir)
    };
    let edited = |name: &str, from: &str, to: &str| -> io::Result<()> {
        let path = other(name)?.join(MANIFEST);
        let json = fs::read_to_string(&path)?.replace("20261122T030000Z", name);
        let json = json.replace("2026-11-22T03:00:00", "2026-11-21T03:00:00");
        assert!(json.contains(from), "{from}");
        fs::write(path, json.replace(from, to))
    };
    fs::create_dir(directory.join("20261121T030000Z"))?;
    other("20261121T030000Z-2")?;
    edited("20261121T030000Z-3", "\"format\": 1,", "\"format\": 2,")?;
    edited("20261121T030000Z-4", "\"format\": 1,", "\"format\": 0,")?;
    edited("20261121T030000Z-5", "database.sqlite3.zst", "../x")?;
    edited(
        "20261121T030000Z-6",
        "\"began\": \"2026",
        "\"began\": \"2025",
    )?;
    edited("20261121T030000Z-7", "\"raw_sha256\"", "\"sha\"")?;
    edited(
        "20261121T030000Z-8",
        "{\n  \"format\"",
        "{\n  \"unknown\": [], \"format\"",
    )?;
    edited("20261121T030000Z-9", "", "")?;
    fs::write(
        directory.join("20261121T030000Z-9/database.sqlite3.zst"),
        "short",
    )?;
    edited("20261121T030000Z-10", "", "")?;
    fs::remove_file(directory.join("20261121T030000Z-10/database.sqlite3.zst"))?;
    edited("20261121T030000Z-11", "database.sqlite3.zst", "..")?;
    fs::write(directory.join("20261121T030000Z-12"), "a file")?;
    symlink(&good.dir, directory.join("20261121T030000Z-13"))?;
    fs::create_dir(directory.join(".20261120T030000Z.partial"))?;

    let why = |number: &str, begin: &str| {
        let name = format!("20261121T030000Z{number}");
        let broken = catalogue.get(&id(&name)).expect_err(&name);
        let (flaw, told) = match number {
            "-3" => (Flaw::Newer, "cannot be read"),
            _ => (Flaw::Damaged, "is broken"),
        };
        assert!(
            matches!(&broken, Error::Broken { flaw: found, .. } if *found == flaw),
            "{broken:?}"
        );
        let (broken, begin) = (broken.to_string(), format!("backup {name} {told}: {begin}"));
        assert!(broken.starts_with(&begin), "{broken}");
    };
    why("", "could not open ");
    why("-2", "its manifest is that of 20261122T030000Z");
    why("-3", "written by a newer version (manifest format 2, this");
    why("-4", "manifest format 0 has never existed");
    why("-5", "`../x` is not a plain file name");
    why("-6", "its manifest says it began 2025-11-21T03:00:00.250");
    why("-7", "manifest.json does not parse: ");
    why("-9", "database.sqlite3.zst has 5 bytes, not ");
    why("-10", "database.sqlite3.zst: No such file");
    why("-11", "`..` is not a plain file name");
    why("-12", "it is not a directory");
    why("-13", "it is not a directory");

    let listed = catalogue.list()?;
    let states: Vec<_> = listed
        .iter()
        .map(|entry| match entry {
            Entry::Good(backup) => format!("{}", backup.manifest.id),
            Entry::Broken { name, .. } => format!("{name}!"),
            Entry::Foreign(foreign) => format!("{}?", foreign.name),
        })
        .collect();
    let mut expected = vec!["20261122T030000Z".to_owned()];
    expected.extend((2..=13).rev().map(|nth| match nth {
        8 => "20261121T030000Z-8".to_owned(),
        nth => format!("20261121T030000Z-{nth}!"),
    }));
    expected.push("20261121T030000Z!".to_owned());
    assert_eq!(states, expected);
    Ok(())
}

/// Too many open files, the wrong user, a device that fails: nothing is known of the backup.
#[test]
fn what_cannot_be_read_is_not_called_broken() -> Outcome {
    let bench = Bench::new();
    let backup = publish(&bench.catalogue(), time())?;
    let id = &backup.manifest.id;
    for n in 0.. {
        let disk = Disk::failing_at(n);
        let found = Catalogue::read_only(disk.clone(), &bench.directory())?.get(id);
        if disk.operations() <= n {
            assert_eq!(found?, backup);
            assert!(n > 1, "a manifest is opened and read");
            break;
        }
        let error = found.expect_err("it could not be read");
        assert!(
            matches!(
                error,
                Error::Broken {
                    flaw: Flaw::Unreadable,
                    ..
                }
            ),
            "{n}: {error:?}"
        );
    }
    Ok(())
}

#[test]
fn what_other_programs_left_is_listed_and_never_touched() -> Outcome {
    let bench = Bench::new();
    let directory = bench.directory();
    fs::create_dir(&directory)?;
    fs::write(directory.join("tracker_backup_20261101_030000.db"), "12345")?;
    fs::write(directory.join("sqlite_20261101_030000.db.gz"), "123")?;
    fs::write(directory.join(".hidden"), "")?;
    fs::write(directory.join(".x.partial"), "1")?;
    fs::create_dir(directory.join("20261122"))?;
    let catalogue = bench.catalogue();
    let ids = nights(&catalogue, 3);
    prune(&catalogue, &keep_last(0), &ids[2])?;
    let listed = catalogue.list()?;
    let foreign: Vec<_> = listed[1..]
        .iter()
        .map(|entry| match entry {
            Entry::Foreign(foreign) => (foreign.name.as_str(), foreign.bytes, foreign.form),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        foreign,
        [
            (".hidden", 0, None),
            (".x.partial", 1, None),
            ("20261122", 0, None),
            ("sqlite_20261101_030000.db.gz", 3, Some(Form::Gzip)),
            ("tracker_backup_20261101_030000.db", 5, Some(Form::Plain)),
        ]
    );
    Ok(())
}

#[test]
fn a_draft_is_published_only_with_its_own_manifest() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let sound = publish(&catalogue, time())?.manifest;
    let refused = |change: &dyn Fn(&mut Manifest), expected: &str| {
        let draft = catalogue.begin(time()).expect("a draft");
        fs::write(draft.artifact_path(&ZSTD), "stored").expect("a writable directory");
        let mut manifest = manifest(draft.id(), sound.database.clone());
        manifest.database.stored_bytes = 6;
        change(&mut manifest);
        let error = draft.publish(&manifest).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(bench.names(), ["20261122T030000Z"]);
    };
    refused(
        &|manifest| manifest.id = id("20261122T030000Z"),
        "the manifest is that of 20261122T030000Z",
    );
    refused(
        &|manifest| manifest.began += TimeDelta::seconds(1),
        "the manifest says it began",
    );
    refused(
        &|manifest| manifest.database.stored_bytes += 1,
        "has 6 bytes, not 7",
    );
    refused(
        &|manifest| manifest.database.name = "other.zst".to_owned(),
        "No such file",
    );
    refused(&|manifest| manifest.format = 2, "newer version");
    refused(&|manifest| manifest.pause_ms = f64::NAN, "does not parse");
    Ok(())
}

#[test]
fn a_catalogue_for_reading_creates_and_removes_nothing() -> Outcome {
    let bench = Bench::new();
    let read_only = || Catalogue::read_only(Disk::default(), &bench.directory());
    assert!(matches!(read_only(), Err(Error::Unusable { .. })));
    assert!(!bench.directory().exists());

    let ids = nights(&bench.catalogue(), 2);
    let leftover = bench.directory().join(".20261120T030000Z.partial");
    fs::create_dir(&leftover)?;
    let catalogue = read_only()?;
    assert_eq!(catalogue.backups()?.len(), 2);
    for refused in [
        catalogue.begin(time()).map(drop),
        catalogue.lock(&owner()).map(drop),
        catalogue.sweep().map(drop),
        catalogue.scratch(&ids[0]).map(drop),
        catalogue.scratch_for_foreign().map(drop),
    ] {
        assert!(matches!(refused, Err(Error::ReadOnly { .. })));
    }
    assert!(leftover.exists());
    Ok(())
}

#[test]
fn a_place_that_cannot_hold_backups_is_refused_with_the_reason() -> Outcome {
    let bench = Bench::new();
    let nowhere = bench.root.path().join("missing/backups");
    let error = Catalogue::open(Disk::default(), &nowhere).expect_err("no parent");
    assert!(error.to_string().contains("does not exist"), "{error}");
    assert!(!bench.root.path().join("missing").exists());

    fs::write(bench.directory(), "a file")?;
    let error = bench.open(&Disk::default()).expect_err("a file");
    assert!(error.to_string().contains("is not a directory"), "{error}");
    Ok(())
}

#[test]
fn an_unknown_backup_is_named() {
    let bench = Bench::new();
    let error = bench
        .catalogue()
        .get(&id("20261122T030000Z"))
        .expect_err("there is none");
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
    assert!(
        error
            .to_string()
            .starts_with("there is no backup 20261122T030000Z in ")
    );
}

#[test]
fn a_sweep_leaves_a_living_draft_alone() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let draft = catalogue.begin(time())?;
    let scratch = catalogue.scratch(draft.id())?;
    fs::create_dir(bench.directory().join(".20261120T030000Z.partial"))?;
    fs::create_dir(bench.directory().join(".20261120T030000Z.removing"))?;
    fs::write(bench.directory().join(".1.probe"), "")?;
    assert_eq!(bench.catalogue().list()?, []);
    assert!(draft.dir().exists() && scratch.path().exists());
    assert_eq!(bench.names().len(), 2);
    drop((draft, scratch));
    assert_eq!(bench.names(), [""; 0]);
    Ok(())
}

#[test]
fn pruning_removes_what_the_policy_drops_oldest_first() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let ids = nights(&catalogue, 5);
    let planned = catalogue.plan(&keep_last(2))?;
    assert_eq!(planned.iter().filter(|decision| decision.keep).count(), 2);
    let pruned = prune(&catalogue, &keep_last(2), &ids[4])?;
    assert_eq!(pruned.removed, ids[..3]);
    let kept: Vec<_> = pruned.kept.iter().map(|decision| &decision.id).collect();
    assert_eq!(kept, [&ids[4], &ids[3]]);
    assert_eq!(
        bench.names(),
        [ids[3].to_string(), ids[4].to_string()],
        "nothing else is left"
    );
    Ok(())
}

#[test]
fn nothing_is_pruned_unless_the_newest_is_the_one_just_verified() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let ids = nights(&catalogue, 3);
    let refused = |just_verified: &BackupId, expected: &str| {
        let before = bench.names();
        let error = prune(&catalogue, &keep_last(0), just_verified)
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(bench.names(), before);
    };
    refused(&ids[1], "20261122T030000Z is newer");
    refused(&id("20261123T030000Z"), "there is no backup");
    fs::write(
        bench
            .directory()
            .join(ids[2].to_string())
            .join("database.sqlite3.zst"),
        "damaged",
    )?;
    refused(&ids[2], "is broken");
    // A newer one that is broken stands in the way of nothing, and stays.
    prune(&catalogue, &keep_last(0), &ids[1])?;
    assert_eq!(bench.names(), [ids[1].to_string(), ids[2].to_string()]);
    Ok(())
}

/// One of `alternating` is full, the next partial, beginning with a full one.
fn alternating(catalogue: &Catalogue, count: i32) -> Vec<BackupId> {
    let publish = |nth: i32| {
        let draft = catalogue.begin(time() + TimeDelta::days(nth.into()))?;
        let disk = &catalogue.disk;
        disk.create(&draft.raw_path())?.fill(b"database")?;
        let (raw, to) = (draft.raw_path(), draft.artifact_path(&ZSTD));
        let artifact = verify::compress(&raw, &to, ZSTD, disk, &Watch::default())?;
        let mut manifest = manifest(draft.id(), artifact);
        manifest.partial = (nth % 2 == 1).then_some(Partial {
            tables: None,
            completed_only: true,
        });
        Ok(draft.publish(&manifest)?.manifest.id)
    };
    let ids = (0..count).map(publish);
    ids.collect::<Result<_, Box<dyn std::error::Error>>>()
        .expect("backups")
}

#[test]
fn full_and_partial_backups_do_not_stand_in_for_each_other() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let ids = alternating(&catalogue, 6);
    let (full, partial) = (&ids[4], &ids[5]);
    assert_eq!(catalogue.newest_good()?.as_ref(), Some(full));
    assert_eq!(catalogue.newest_of(false)?.as_ref(), Some(partial));
    // Neither is removed on the strength of the other.
    let pruned = prune(&catalogue, &keep_last(0), partial)?;
    assert_eq!(pruned.removed, [ids[1].clone(), ids[3].clone()]);
    let pruned = prune(&catalogue, &keep_last(0), full)?;
    assert_eq!(pruned.removed, [ids[0].clone(), ids[2].clone()]);
    assert_eq!(bench.names(), [full.to_string(), partial.to_string()]);
    // The newest of each kind is spared.
    for (id, why) in [(full, "newest good"), (partial, "newest partial")] {
        let error = catalogue.lock(&owner())?.delete(id, false).expect_err(why);
        assert!(error.to_string().contains(why), "{error}");
    }
    catalogue.lock(&owner())?.delete(full, true)?;
    assert_eq!(catalogue.newest_good()?.as_ref(), Some(partial));
    Ok(())
}

#[test]
fn a_manifest_of_a_version_without_files_and_parts_is_read() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let backup = publish(&catalogue, time())?;
    let path = backup.dir.join(MANIFEST);
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    let fields = json.as_object_mut().ok_or("an object")?;
    assert!(fields.remove("partial").is_some() && fields.remove("files").is_some());
    fs::write(&path, serde_json::to_vec(&json)?)?;
    assert_eq!(
        catalogue.get(&backup.manifest.id)?.manifest,
        backup.manifest
    );
    Ok(())
}

#[test]
fn stored_files_must_be_there_under_names_of_their_own() -> Outcome {
    let bench = Bench::new();
    let catalogue = bench.catalogue();
    let sound = publish(&catalogue, time())?.manifest.database;
    for (name, bytes, expected) in [
        ("database.sqlite3.zst", 6, "the name of two files"),
        (MANIFEST, 6, "the name of two files"),
        (SUMS, 6, "the name of two files"),
        ("../x", 6, "not a plain file name"),
        ("files.tar.zst", 6, "No such file"),
    ] {
        let draft = catalogue.begin(time())?;
        fs::write(draft.artifact_path(&ZSTD), "stored")?;
        let artifact = |name: &str| Artifact {
            name: name.to_owned(),
            stored_bytes: bytes,
            ..sound.clone()
        };
        let mut manifest = manifest(draft.id(), artifact("database.sqlite3.zst"));
        manifest.files = Some(StoredFiles {
            artifact: artifact(name),
            entries: Vec::new(),
        });
        let error = draft.publish(&manifest).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    Ok(())
}

#[test]
fn whatever_operation_of_publishing_fails_nothing_bad_has_a_final_name() {
    let mut cases = 0;
    for n in 0.. {
        let bench = Bench::new();
        let older = nights(&bench.catalogue(), 3);
        let disk = Disk::failing_at(n);
        let began = time() + TimeDelta::hours(1);
        let published = bench
            .open(&disk)
            .map_err(Into::into)
            .and_then(|catalogue| publish(&catalogue, began));
        let case = format!("operation {n}");
        let good = check_invariants(&bench, &older, &case);
        // The run's word and the catalogue's agree.
        match published {
            Ok(backup) => assert!(good.contains(&backup.manifest.id), "{case}"),
            Err(_) => assert_eq!(good.len(), older.len(), "{case}"),
        }
        cases += 1;
        if disk.operations() <= n {
            break;
        }
    }
    println!("publishing on a failing disk: {cases} cases");
    assert!(cases > 25, "{cases}");
}

#[test]
fn wherever_the_machine_goes_down_in_publishing_nothing_bad_has_a_final_name() {
    let mut cases = 0;
    for loss in Loss::ALL {
        for n in 0.. {
            let bench = Bench::new();
            let older = nights(&bench.catalogue(), 3);
            let disk = bench.crashing_at(n, loss);
            let began = time() + TimeDelta::hours(1);
            let published = bench
                .open(&disk)
                .map_err(Into::into)
                .and_then(|catalogue| publish(&catalogue, began));
            let went_down = disk.operations() > n;
            if !went_down {
                // What was reported as done is there after a power cut at any later time.
                disk.list(&bench.directory()).expect_err("it goes down now");
            }
            let case = format!("{loss:?} before operation {n}");
            let good = check_invariants(&bench, &older, &case);
            if let Ok(backup) = &published {
                assert!(good.contains(&backup.manifest.id), "{case}");
            }
            cases += 1;
            if !went_down {
                assert!(published.is_ok());
                break;
            }
        }
    }
    println!("publishing on a crashing machine: {cases} cases");
}

#[test]
fn whatever_operation_of_pruning_fails_what_stays_is_whole() {
    let mut cases = 0;
    for n in 0.. {
        let bench = Bench::new();
        let ids = nights(&bench.catalogue(), 4);
        let disk = Disk::failing_at(n);
        let pruned = bench
            .open(&disk)
            .and_then(|catalogue| prune(&catalogue, &keep_last(2), &ids[3]));
        let case = format!("operation {n}");
        check_invariants(&bench, &ids[2..], &case);
        cases += 1;
        if disk.operations() <= n {
            assert_eq!(pruned.expect("nothing failed").removed, ids[..2]);
            break;
        }
    }
    println!("pruning on a failing disk: {cases} cases");
    assert!(cases > 25, "{cases}");
}

#[test]
fn wherever_the_machine_goes_down_in_pruning_what_stays_is_whole() {
    let mut cases = 0;
    for loss in Loss::ALL {
        for n in 0.. {
            let bench = Bench::new();
            let ids = nights(&bench.catalogue(), 4);
            let disk = bench.crashing_at(n, loss);
            let pruned = bench
                .open(&disk)
                .and_then(|catalogue| prune(&catalogue, &keep_last(2), &ids[3]));
            let case = format!("{loss:?} before operation {n}");
            check_invariants(&bench, &ids[2..], &case);
            cases += 1;
            if pruned.is_ok() {
                break;
            }
        }
    }
    println!("pruning on a crashing machine: {cases} cases");
}

mod locking;
