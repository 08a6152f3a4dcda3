#![expect(
    clippy::disallowed_methods,
    reason = "tests damage files behind the seam's back"
)]

use std::fs;
use std::io::{self, Read};

use rusqlite::Connection;
use sha2::{Digest, Sha256};

use super::*;
use crate::catalogue::testing::{manifest, memory_dir, time};
use crate::catalogue::{Artifact, Catalogue};
use crate::config::Compression;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A database in the shape of a tracker's, and a table whose name needs quoting. Pages are
/// small, so that a few rows already make pages of every kind.
fn database(path: &Path, rows: u32) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    connection.execute_batch(&format!(
        "PRAGMA page_size = 512; \
         CREATE TABLE torrents (id INTEGER PRIMARY KEY AUTOINCREMENT, \
             info_hash TEXT NOT NULL UNIQUE, completed INTEGER DEFAULT 0 NOT NULL); \
         CREATE TABLE \"odd \"\"name\" (a) ; \
         INSERT INTO \"odd \"\"name\" VALUES (1), (2); \
         CREATE VIEW every AS SELECT * FROM torrents; \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
             INSERT INTO torrents (info_hash, completed) \
             SELECT printf('%040x', i * 7919), i % 5 FROM n;"
    ))
}

fn rows(torrents: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([
        ("odd \"name".to_owned(), 2),
        ("sqlite_sequence".to_owned(), 1),
        ("torrents".to_owned(), torrents),
    ])
}

fn findings<T: std::fmt::Debug>(result: Result<T, Error>) -> Vec<String> {
    match result {
        Err(Error::Corrupt { findings, .. }) => findings,
        other => panic!("damage was expected, not {other:?}"),
    }
}

/// A published backup and the directory it is in.
fn published(root: &Path, rows: u32, compression: Compression) -> Backup {
    let catalogue = Catalogue::open(Disk::default(), &root.join("backups")).expect("a catalogue");
    let draft = catalogue.begin(time()).expect("a draft");
    database(&draft.raw_path(), rows).expect("a database");
    let (disk, watch) = (Disk::default(), Watch::default());
    let report = structure(&draft.raw_path(), Depth::Full, &watch).expect("a sound database");
    let artifact = compress(
        &draft.raw_path(),
        &draft.artifact_path(&compression),
        compression,
        &disk,
        &watch,
    )
    .expect("an artifact");
    let mut manifest = manifest(draft.id(), artifact);
    manifest.rows = report.rows;
    draft.publish(&manifest).expect("a backup")
}

#[test]
fn a_sound_database_passes_and_its_rows_are_counted() -> Outcome {
    let root = memory_dir();
    let path = root.path().join("50% odd?#.db");
    database(&path, 5000)?;
    for depth in [Depth::Quick, Depth::Full] {
        let report = structure(&path, depth, &Watch::default())?;
        assert_eq!(report.depth, depth);
        assert_eq!(report.rows, rows(5000));
    }
    assert_eq!(
        Disk::default().list(root.path())?,
        ["50% odd?#.db"],
        "a check leaves nothing beside the file"
    );
    Ok(())
}

#[test]
fn the_copy_of_a_wal_database_is_read_without_a_wal() -> Outcome {
    let root = memory_dir();
    let (live, copy) = (root.path().join("live.db"), root.path().join("copy.db"));
    let connection = Connection::open(&live)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.execute_batch("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2), (3);")?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(connection);
    fs::copy(&live, &copy)?;
    assert_eq!(fs::read(&copy)?[18..20], [2, 2], "it says it has a WAL");
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o400))?;

    let report = structure(&copy, Depth::Full, &Watch::default())?;
    assert_eq!(report.rows["t"], 3);
    assert!(!root.path().join("copy.db-shm").exists());
    Ok(())
}

#[test]
fn damage_to_the_structure_is_found() -> Outcome {
    let root = memory_dir();
    let sound = root.path().join("sound.db");
    database(&sound, 5000)?;
    let bytes = fs::read(&sound)?;
    let damaged = root.path().join("damaged.db");
    let check = |bytes: &[u8]| {
        fs::write(&damaged, bytes).expect("a writable directory");
        findings(structure(&damaged, Depth::Quick, &Watch::default()))
    };

    assert_eq!(check(b""), ["it is empty"]);
    check(b"not a database, but long enough that a header could be in it.");
    check(&bytes[..bytes.len() - 512]);
    check(&bytes[..bytes.len() / 2]);
    for page in 1..bytes.len() / 512 {
        let mut bytes = bytes.clone();
        bytes[page * 512..(page + 1) * 512].fill(0xa5);
        let findings = check(&bytes);
        assert!(!findings.is_empty() && findings.len() <= 100, "{page}");
    }
    Ok(())
}

#[test]
fn what_is_missing_is_an_error_but_no_damage() {
    let root = memory_dir();
    let missing = root.path().join("missing.db");
    let result = structure(&missing, Depth::Quick, &Watch::default());
    assert!(matches!(result, Err(Error::Sqlite { .. })), "{result:?}");
    assert!(!missing.exists());
}

#[test]
fn everything_long_can_be_given_up() -> Outcome {
    let root = memory_dir();
    let (raw, stored) = (root.path().join("raw"), root.path().join("raw.zst"));
    database(&raw, 5000)?;
    let disk = Disk::default();
    let artifact = compress(
        &raw,
        &stored,
        Compression::Zstd(3),
        &disk,
        &Watch::default(),
    )?;

    let watch = Watch::default();
    watch.cancel("the window is over");
    let again = root.path().join("again.zst");
    for result in [
        structure(&raw, Depth::Full, &watch).map(drop),
        compress(&raw, &again, Compression::Zstd(3), &disk, &watch).map(drop),
        super::artifact(&stored, &artifact, None, &disk, &watch),
    ] {
        let error = result.expect_err("it was cancelled");
        assert_eq!(
            error.to_string(),
            "verification was given up: the window is over"
        );
    }
    Ok(())
}

#[test]
fn an_artifact_is_the_database_and_says_so() -> Outcome {
    for level in [1, 3, 10, 19] {
        let root = memory_dir();
        let (raw, stored) = (root.path().join("raw"), root.path().join("db.zst"));
        database(&raw, 20_000)?;
        let (disk, watch) = (Disk::default(), Watch::default());
        let artifact = compress(&raw, &stored, Compression::Zstd(level), &disk, &watch)?;

        let (raw, stored_bytes) = (fs::read(&raw)?, fs::read(&stored)?);
        assert_eq!(artifact.name, "db.zst");
        assert_eq!(artifact.raw_bytes, raw.len() as u64);
        assert_eq!(artifact.raw_sha256, format!("{:x}", Sha256::digest(&raw)));
        assert_eq!(artifact.stored_bytes, stored_bytes.len() as u64);
        assert_eq!(
            artifact.stored_sha256,
            format!("{:x}", Sha256::digest(&stored_bytes))
        );
        assert!(artifact.stored_bytes < artifact.raw_bytes);
        // RFC 8878, 3.1.1.1.1: the frame states the content's size and has a checksum.
        assert_eq!(stored_bytes[..4], [0x28, 0xb5, 0x2f, 0xfd]);
        assert_eq!(
            zstd::zstd_safe::get_frame_content_size(&stored_bytes).ok(),
            Some(Some(raw.len() as u64))
        );
        assert_eq!(stored_bytes[4] & 0b100, 0b100);

        super::artifact(&stored, &artifact, None, &disk, &watch)?;
        let to = root.path().join("unpacked");
        unpack(&stored, &artifact, None, &to, &disk, &watch)?;
        assert_eq!(fs::read(&to)?, raw);
        let done = watch.progress().expect("it says how far it is");
        assert_eq!((done.done, done.total), (raw.len() as u64, Some(done.done)));
    }
    Ok(())
}

#[test]
fn an_uncompressed_artifact_is_the_raw_copy_renamed() -> Outcome {
    let root = memory_dir();
    let (raw, stored) = (root.path().join("raw"), root.path().join("db"));
    database(&raw, 100)?;
    let bytes = fs::read(&raw)?;
    let (disk, watch) = (Disk::default(), Watch::default());
    let artifact = compress(&raw, &stored, Compression::None, &disk, &watch)?;
    assert!(!raw.exists());
    assert_eq!(fs::read(&stored)?, bytes);
    assert_eq!(artifact.stored_sha256, artifact.raw_sha256);
    super::artifact(&stored, &artifact, None, &disk, &watch)?;
    Ok(())
}

/// Invariant: whatever byte of whatever file of a backup changes, verification objects.
#[test]
fn every_flipped_byte_of_a_backup_is_found() -> Outcome {
    for compression in [Compression::Zstd(3), Compression::None] {
        let root = memory_dir();
        let backup = published(root.path(), 20, compression);
        let verify = || {
            let (disk, watch) = (Disk::default(), Watch::default());
            super::backup(&backup, None, root.path(), &disk, &watch)
        };
        assert_eq!(verify()?, None);
        let mut flipped = 0;
        for name in [backup.manifest.database.name.as_str(), MANIFEST, SUMS] {
            let path = backup.dir.join(name);
            let sound = fs::read(&path)?;
            for index in 0..sound.len() {
                let mut damaged = sound.clone();
                damaged[index] ^= 1 << (index % 8);
                fs::write(&path, &damaged)?;
                findings(verify());
                flipped += 1;
            }
            fs::write(&path, &sound)?;
        }
        assert_eq!(verify()?, None);
        println!("{flipped} bytes flipped");
    }
    Ok(())
}

#[test]
fn every_truncation_and_everything_appended_is_found() -> Outcome {
    let root = memory_dir();
    let backup = published(root.path(), 20, Compression::Zstd(3));
    let (disk, watch) = (Disk::default(), Watch::default());
    let verify = || super::backup(&backup, None, root.path(), &disk, &watch);
    for name in [backup.manifest.database.name.as_str(), MANIFEST, SUMS] {
        let path = backup.dir.join(name);
        let sound = fs::read(&path)?;
        for length in 0..sound.len() {
            fs::write(&path, &sound[..length])?;
            findings(verify());
        }
        // A skippable frame (RFC 8878, 3.1.2) is nothing to a decoder.
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7].as_slice();
        for extra in [b"\n".as_slice(), skippable, &sound] {
            fs::write(&path, [&sound, extra].concat())?;
            findings(verify());
        }
        fs::write(&path, &sound)?;
    }
    verify()?;
    Ok(())
}

/// The size in the manifest is checked first; these have it right, or it is not looked at.
#[test]
fn a_frame_that_is_not_the_one_that_was_stored_is_found() -> Outcome {
    let root = memory_dir();
    let (disk, watch) = (Disk::default(), Watch::default());
    let stored = root.path().join("db.zst");
    let check = |bytes: &[u8], raw_bytes: u64, compression: &str| {
        fs::write(&stored, bytes).expect("a writable directory");
        let expected = Artifact {
            name: "db.zst".to_owned(),
            stored_bytes: bytes.len() as u64,
            stored_sha256: format!("{:x}", Sha256::digest(bytes)),
            raw_bytes,
            raw_sha256: format!("{:x}", Sha256::digest([0; 1000])),
            compression: compression.to_owned(),
            encrypted: None,
        };
        artifact(&stored, &expected, None, &disk, &watch)
    };
    let frame = zstd::encode_all([0; 1000].as_slice(), 3)?;
    check(&frame, 1000, "zstd")?;

    let longer = zstd::encode_all([0; 1001].as_slice(), 3)?;
    let found = findings(check(&longer, 1000, "zstd"));
    assert!(found[0].contains("1001 bytes, not 1000"), "{found:?}");
    let bomb = zstd::encode_all(io::repeat(0).take(64 << 20), 3)?;
    let found = findings(check(&bomb, 1000, "zstd"));
    assert!(found[0].contains("1001 bytes, not 1000"), "{found:?}");
    let two = [frame.as_slice(), &frame].concat();
    findings(check(&two, 1000, "zstd"));
    findings(check(&two, 2000, "zstd"));
    let found = findings(check(&frame, 1000, "lzma"));
    assert!(found[0].contains("`lzma` is unknown"), "{found:?}");
    findings(check(b"wrong magic", 1000, "zstd"));
    findings(check(&frame[..frame.len() - 1], 1000, "zstd"));
    Ok(())
}

#[test]
fn a_deep_verification_unpacks_checks_and_counts() -> Outcome {
    for compression in [Compression::Zstd(3), Compression::None] {
        let root = memory_dir();
        let mut backup = published(root.path(), 500, compression);
        let scratch = root.path().join("scratch");
        fs::create_dir(&scratch)?;
        let (disk, watch) = (Disk::default(), Watch::default());
        let report = super::backup(&backup, Some(Depth::Full), &scratch, &disk, &watch)?
            .expect("a depth was given");
        assert_eq!(report.rows, rows(500));

        backup.manifest.rows.insert("torrents".to_owned(), 501);
        backup.manifest.rows.remove("sqlite_sequence");
        let wrong = super::backup(&backup, Some(Depth::Quick), &scratch, &disk, &watch);
        assert_eq!(
            findings(wrong),
            [
                "table sqlite_sequence: none in the manifest, 1 rows in the database",
                "table torrents: 501 rows in the manifest, 500 rows in the database"
            ]
        );
        assert_eq!(disk.list(&scratch)?, [""; 0]);
    }
    Ok(())
}

#[test]
fn a_failing_disk_is_no_damage_and_leaves_no_scratch_file() -> Outcome {
    let root = memory_dir();
    let backup = published(root.path(), 500, Compression::Zstd(3));
    let scratch = root.path().join("scratch");
    fs::create_dir(&scratch)?;
    let mut cases = 0;
    for n in 0.. {
        let disk = Disk::failing_at(n);
        let watch = Watch::default();
        let result = super::backup(&backup, Some(Depth::Quick), &scratch, &disk, &watch);
        if disk.operations() <= n {
            result?;
            break;
        }
        assert!(matches!(result, Err(Error::Disk(_))), "{n}: {result:?}");
        cases += 1;
        // Only when removing itself fails is the file left, and the error says so.
        if let [left] = Disk::default().list(&scratch)?.as_slice() {
            let error = result.expect_err("it failed").to_string();
            assert!(error.starts_with("could not remove "), "{error}");
            fs::remove_file(scratch.join(left))?;
        }
    }
    println!("{cases} cases");
    assert!(cases > 10);
    Ok(())
}

/// A database that was not made here, as it is and compressed, in the catalogue's directory.
fn foreign_databases(root: &Path) -> Catalogue {
    let directory = root.join("backups");
    let catalogue = Catalogue::open(Disk::default(), &directory).expect("a catalogue");
    database(&directory.join("plain.db"), 5000).expect("a database");
    let bytes = fs::read(directory.join("plain.db")).expect("it is there");
    fs::write(directory.join("packed.db.gz"), gzipped(&bytes)).expect("a writable directory");
    catalogue
}

/// As `gzip` does it, and twice, since `cat a.gz b.gz` is one file to it.
fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let (one, other) = bytes.split_at(bytes.len() / 3);
    [one, other].map(gzip).concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    io::Write::write_all(&mut encoder, bytes)
        .and_then(|()| encoder.finish())
        .expect("memory takes everything")
}

#[test]
fn databases_that_were_not_made_here_are_checked_where_they_are() -> Outcome {
    let root = memory_dir();
    let catalogue = foreign_databases(root.path());
    let (disk, watch) = (Disk::default(), Watch::default());
    let size = fs::metadata(root.path().join("backups/plain.db"))?.len();
    for name in ["plain.db", "packed.db.gz"] {
        let found = catalogue.foreign(name)?;
        assert_eq!(unpacked_size(&found, &disk)?, size, "{name}");
        let scratch = catalogue.scratch_for_foreign()?;
        let report = foreign(&found, Depth::Full, scratch.path(), &disk, &watch)?;
        assert_eq!(report.rows, rows(5000), "{name}");
        assert_eq!(disk.list(scratch.path())?, [""; 0], "{name}");
    }
    assert_eq!(
        disk.list(catalogue.directory())?,
        ["packed.db.gz", "plain.db"]
    );
    Ok(())
}

#[test]
fn damage_to_a_database_that_was_not_made_here_is_found() -> Outcome {
    let root = memory_dir();
    let catalogue = foreign_databases(root.path());
    let path = |name: &str| root.path().join("backups").join(name);
    let (plain, packed) = (fs::read(path("plain.db"))?, fs::read(path("packed.db.gz"))?);
    let mut torn = plain.clone();
    torn[2000..9000].fill(0xa5);
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 4;
    let (disk, watch) = (Disk::default(), Watch::default());
    for (name, bytes, expected) in [
        ("plain.db", b"".to_vec(), "it is empty"),
        ("plain.db", plain[..99].to_vec(), "not an SQLite database"),
        (
            "plain.db",
            [b"x", &plain[..]].concat(),
            "not an SQLite database",
        ),
        ("plain.db", plain[..plain.len() / 2].to_vec(), ""),
        ("plain.db", torn.clone(), ""),
        ("packed.db.gz", b"".to_vec(), ""),
        ("packed.db.gz", gzip(b""), "it is empty"),
        ("packed.db.gz", plain, "does not decompress"),
        (
            "packed.db.gz",
            packed[..packed.len() - 9].to_vec(),
            "does not decompress",
        ),
        ("packed.db.gz", flipped, "does not decompress"),
        (
            "packed.db.gz",
            [&packed[..], b"more"].concat(),
            "does not decompress",
        ),
        ("packed.db.gz", gzip(&torn), ""),
        ("packed.db.gz", gzip(b"a text"), "not an SQLite database"),
    ] {
        fs::write(path(name), &bytes)?;
        let found = catalogue.foreign(name)?;
        let scratch = catalogue.scratch_for_foreign()?;
        let checked = foreign(&found, Depth::Quick, scratch.path(), &disk, &watch);
        let findings = findings(checked).join("; ");
        assert!(findings.contains(expected), "{expected}: {findings}");
        assert_eq!(disk.list(scratch.path())?, [""; 0], "{expected}");
    }
    Ok(())
}
