//! Runs whose backups are encrypted: what lies on the disk meanwhile, and afterwards.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::encryption::testing::{recipient, somebody};

/// How every database begins, and a row of each of ours.
const MAGIC: &[u8] = b"SQLite format 3";

impl Bench {
    fn encrypted(journal: &str, more: &str) -> Self {
        let (identities, _) = somebody();
        let recipients = format!("recipients = [\"{}\"]\n", recipient(&identities));
        let mut bench = Self::new(journal, &format!("{recipients}{more}"));
        bench.identities = Some(identities);
        bench
    }

    /// The files below the directory of the backups that anybody could read as a database or
    /// as the archive of files, with their modes.
    fn in_plain(&self) -> BTreeSet<(String, u32)> {
        let disk = Disk::default();
        let backups = &self.settings.backup.directory;
        let mut found = BTreeSet::new();
        for name in disk.list(backups).expect("lists") {
            let directory = backups.join(name);
            if !directory.is_dir() {
                continue;
            }
            for name in disk.list(&directory).expect("lists") {
                let path = directory.join(&name);
                let bytes = disk.read(&path, 1 << 30).expect("reads");
                let shows = |secret: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
                let name = name.to_string_lossy().into_owned();
                let is_zstd = bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
                if shows(MAGIC) || is_zstd || name == "files.tar" {
                    let mode = path.metadata().expect("it is there").permissions().mode();
                    found.insert((name, mode & 0o777));
                }
            }
        }
        found
    }
}

/// Up to the raw copy, if there is one; then the rest. What could be read in between.
fn looked_at(bench: &Bench) -> (Published, BTreeSet<(String, u32)>) {
    let engine = bench.engine(&Disk::default()).expect("starts");
    let (watch, run) = (Watch::default(), run(0));
    let (_, draft) = engine.prepare(&run, &watch).expect("there is room");
    let draft = draft.expect("the tracker copies");
    let pin = loop {
        match engine.pin(&run, Duration::from_secs(5), &watch) {
            Ok(pin) => break pin,
            Err(NotPinned::Busy(_)) => {}
            Err(NotPinned::Failed(failure)) => panic!("{failure:?}"),
        }
    };
    let copied = engine.copy(&run, &draft, &pin, &watch);
    drop(pin);
    let meanwhile = bench.in_plain();
    let published = engine.finish(
        &run,
        draft,
        copied.expect("copied"),
        Pauses::default(),
        &watch,
    );
    (published.expect("published"), meanwhile)
}

#[test]
fn nothing_in_plain_is_written_where_announces_flow() {
    for more in [
        "files = [\"{etc}\"]\n",
        "compression = \"none\"\n",
        "verify = \"full\"\n",
    ] {
        let bench = Bench::encrypted("wal", more);
        let (published, meanwhile) = looked_at(&bench);
        assert_eq!(meanwhile, BTreeSet::new(), "{more}");
        assert_eq!(bench.in_plain(), BTreeSet::new(), "{more}");
        let manifest = bench.newest();
        assert_eq!(manifest.method, Way::Stream);
        let warned = published
            .warnings
            .iter()
            .any(|told| told.contains("quick_check only"));
        assert_eq!(
            warned,
            more.starts_with("verify"),
            "{:?}",
            published.warnings
        );
        let encrypted = manifest.encrypted().expect("it says so");
        assert_eq!(encrypted.recipients, 1);
        assert!(
            manifest
                .artifacts()
                .all(|artifact| artifact.encrypted.is_some())
        );
        let name = &manifest.database.name;
        assert_eq!(Path::new(name).extension(), Some("age".as_ref()), "{name}");
        assert_eq!(bench.backups(), [manifest.id]);
    }
}

#[test]
fn where_a_copy_in_plain_must_be_it_is_its_owners_and_goes_with_the_run() {
    for (journal, more, way) in [
        ("delete", "", Way::File),
        ("delete", "compression = \"none\"\n", Way::File),
        ("wal", "method = \"file\"\n", Way::File),
        ("wal", "method = \"pages\"\n", Way::Pages),
        ("wal", "tables = [\"torrents\"]\n", Way::File),
    ] {
        let bench = Bench::encrypted(journal, more);
        let (_, meanwhile) = looked_at(&bench);
        let expected = ("database.sqlite3.raw".to_owned(), 0o600);
        assert_eq!(meanwhile, [expected].into(), "{journal} {more}");
        assert_eq!(bench.in_plain(), BTreeSet::new(), "{journal} {more}");
        let manifest = bench.newest();
        assert_eq!(manifest.method, way, "{journal} {more}");
        assert_eq!(bench.backups(), [manifest.id]);
    }
}

#[test]
fn a_clone_stands_for_a_copy_as_it_has_no_blocks_of_its_own() {
    let volume = Volume::xfs();
    let backups = volume.directory();
    let (identities, _) = somebody();
    let recipients = format!("recipients = [\"{}\"]\n", recipient(&identities));
    let at = backups.path().join("b");
    let mut bench = Bench::with(volume.directory(), &at, "wal", 500, &recipients);
    bench.identities = Some(identities);
    looked_at(&bench);
    assert_eq!(bench.in_plain(), BTreeSet::new());
    assert_eq!(bench.newest().method, Way::Clone);
    assert_eq!(bench.backups().len(), 1);
}

#[test]
fn an_encrypted_run_leaves_as_little_when_it_fails() {
    for (what, journal, way) in [
        ("wal, encrypted", "wal", Way::Stream),
        ("rollback journal, encrypted", "delete", Way::File),
    ] {
        let bench = Bench::encrypted(journal, "files = [\"{etc}\"]\n");
        back_up_twice(&bench);
        fail_everywhere(what, way, &bench);
        crash_everywhere(what, way, &bench, &[Loss::Everything]);
        assert_eq!(bench.in_plain(), BTreeSet::new(), "{what}");
    }
}

#[test]
fn without_an_identity_checksums_are_all_that_is_verified() {
    let bench = Bench::encrypted("wal", "files = [\"{etc}\"]\n");
    back_up(&bench.engine(&Disk::default()).expect("starts"), &run(0)).expect("a backup");
    let (disk, watch, scratch) = (Disk::default(), Watch::default(), testing::memory_dir());
    let backup = || {
        let catalogue = bench.catalogue(&disk).expect("opens");
        catalogue.backups().expect("lists").remove(0)
    };
    let look =
        |backup: &Backup, depth| verify::backup(backup, depth, scratch.path(), &disk, &watch);

    assert_eq!(
        look(&backup(), None).expect("the checksums are right"),
        None
    );
    let (stranger, _) = somebody();
    for (identities, given) in [(None, 0), (Some(stranger), 1)] {
        let backup = backup().opened_with(identities);
        for result in [
            look(&backup, Some(Depth::Quick)).map(drop),
            verify::check_opens(&backup, &disk),
        ] {
            match result {
                Err(verify::Error::Closed {
                    recipients: 1,
                    given: told,
                    ..
                }) => {
                    assert_eq!(told, given);
                }
                other => panic!("it is closed, not {other:?}"),
            }
        }
    }
    let own = backup().opened_with(bench.identities.clone());
    verify::check_opens(&own, &disk).expect("it opens");
    let report = look(&own, Some(Depth::Full))
        .expect("it is good")
        .expect("a report");
    assert_eq!(report.rows["torrents"], 500);

    // Each byte counts, the first ones too, which say for whom it is.
    for artifact in backup().manifest.artifacts() {
        let path = backup().dir.join(&artifact.name);
        let bytes = disk.read(&path, 1 << 30).expect("reads");
        let places = (0..bytes.len()).step_by(bytes.len() / 60 + 1);
        for at in places.chain([bytes.len() - 1]) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            disk.write_atomically(&path, &damaged).expect("writes");
            for identities in [None, bench.identities.clone()] {
                let found = look(&backup().opened_with(identities), None);
                let is_damage = matches!(found, Err(verify::Error::Corrupt { .. }));
                assert!(is_damage, "byte {at} of {}: {found:?}", artifact.name);
            }
        }
        disk.write_atomically(&path, &bytes).expect("writes");
    }
}

#[test]
fn a_file_of_recipients_that_is_gone_fails_the_run_and_nothing_is_published() {
    let (identities, _) = somebody();
    let directory = testing::memory_dir();
    let file = directory.path().join("recipients.txt");
    let disk = Disk::default();
    let write = |text: &str| {
        disk.write_atomically(&file, text.as_bytes())
            .expect("writes");
    };
    write(&format!("{}\n", recipient(&identities)));
    let more = format!("recipients_file = \"{}\"\n", file.display());
    let mut bench = Bench::new("wal", &more);
    bench.identities = Some(identities);
    let engine = bench.engine(&disk).expect("starts");
    back_up(&engine, &run(0)).expect("a backup");
    for text in ["", "age1nobody\n"] {
        write(text);
        let failure = back_up(&engine, &run(1)).expect_err("nobody to encrypt for");
        assert!(failure.message.contains("recipients.txt"), "{failure:?}");
        assert_eq!(bench.backups().len(), 1);
    }
}
