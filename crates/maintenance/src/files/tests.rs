#![expect(
    clippy::disallowed_methods,
    reason = "tests set files up and look at them behind the seam's back"
)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use glob::Pattern;
use rusqlite::Connection;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use super::*;
use crate::catalogue::testing::{manifest, memory_dir, time};
use crate::catalogue::{Backup, Catalogue, Draft, StoredFile, StoredFiles};
use crate::config::{self, Compression};
use crate::disk::Disk;
use crate::snapshot::Watch;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const ZSTD: Compression = Compression::Zstd(3);

/// A directory of files, a database and backups beside it.
struct Bench {
    root: TempDir,
}

impl Bench {
    fn new() -> Self {
        let root = memory_dir();
        for name in ["etc", "data", "data/backups", "stash", "out"] {
            fs::create_dir(root.path().join(name)).expect("a fresh directory");
        }
        let bench = Self { root };
        for name in [
            "data/tracker.db",
            "data/tracker.db-wal",
            "data/tracker.db-shm",
        ] {
            bench.write(name, name);
        }
        bench.write("data/tracker.db-journal", "journal");
        bench.write("data/tracker.db.lock", "");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        let root = self.root.path().canonicalize().expect("it exists");
        root.join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(disk::parent(&path)).expect("a writable directory");
        fs::write(path, contents).expect("a writable directory");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn wanted(&self, patterns: &[&str]) -> config::Files {
        config::Files {
            wanted: patterns.iter().map(|pattern| self.path(pattern)).collect(),
            config_file: true,
            configuration: None,
            exclude: Vec::new(),
            missing: Missing::Warn,
            limit: 1 << 20,
        }
    }

    fn reserved(&self) -> Reserved {
        Reserved::of(&self.path("data/tracker.db"), &self.path("data/backups"))
    }

    fn choose(&self, wanted: &config::Files) -> Result<Choice, Error> {
        let (disk, watch) = (Disk::default(), Watch::default());
        choose(wanted, &self.reserved(), &disk, &watch)
    }

    /// Names of what is chosen, and what is left out with the reason.
    fn chosen(&self, wanted: &config::Files) -> (Vec<String>, Vec<String>) {
        let choice = self.choose(wanted).expect("a choice");
        let root = self.path("");
        let name = |path: &Path| {
            path.strip_prefix(&root)
                .expect("ours")
                .display()
                .to_string()
        };
        let root = format!("{}/", root.display().to_string().trim_end_matches('/'));
        (
            choice.files.iter().map(|file| name(&file.path)).collect(),
            choice
                .left_out
                .iter()
                .map(|left| left.to_string().replace(&root, ""))
                .collect(),
        )
    }

    fn catalogue(&self) -> Catalogue {
        Catalogue::open(Disk::default(), &self.path("data/backups")).expect("a catalogue")
    }

    fn store(&self, draft: &Draft, choice: Choice, disk: &Disk) -> Result<Stored, Error> {
        let watch = Watch::default();
        store(choice, 1 << 20, &self.reserved(), draft, ZSTD, disk, &watch)
    }

    /// A published backup with the files that these patterns fit.
    fn backup(&self, patterns: &[&str]) -> Backup {
        let draft = self.catalogue().begin(time()).expect("a draft");
        let choice = self.choose(&self.wanted(patterns)).expect("a choice");
        let stored = self
            .store(&draft, choice, &Disk::default())
            .expect("stored");
        publish(draft, stored.files)
    }

    /// A published backup with this archive, which its manifest describes as `entries`.
    fn forged(&self, tar: &[u8], entries: Vec<StoredFile>) -> Backup {
        let draft = self.catalogue().begin(time()).expect("a draft");
        let disk = Disk::default();
        let path = draft.tar_path();
        fs::write(&path, tar).expect("a writable directory");
        let watch = Watch::default();
        let artifact = verify::compress(&path, &draft.files_path(), ZSTD, &disk, &watch);
        let artifact = artifact.expect("compressed");
        publish(draft, Some(StoredFiles { artifact, entries }))
    }

    fn plan(&self, backup: &Backup, to: &Destination, disk: &Disk) -> Result<FilesPlan, Error> {
        plan(backup, to, &self.reserved(), time(), disk)
    }

    fn restore(&self, backup: &Backup, to: &Destination, disk: &Disk) -> Result<Restored, Error> {
        self.plan(backup, to, disk)?
            .execute(disk, &Watch::default())
    }

    /// Everything below a directory, temporary names too.
    fn below(&self, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![self.path(name)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).expect("a directory") {
                let path = entry.expect("an entry").path();
                let name = path.strip_prefix(self.path(name)).expect("below");
                found.push(name.display().to_string());
                if path.symlink_metadata().expect("it exists").is_dir() {
                    directories.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

fn publish(draft: Draft, files: Option<StoredFiles>) -> Backup {
    let (disk, watch) = (Disk::default(), Watch::default());
    let (raw, to) = (draft.raw_path(), draft.artifact_path(&ZSTD));
    fs::write(&raw, "a database").expect("a writable directory");
    let database = verify::compress(&raw, &to, ZSTD, &disk, &watch).expect("compressed");
    let mut manifest = manifest(draft.id(), database);
    manifest.files = files;
    draft.publish(&manifest).expect("published")
}

fn patterns(patterns: &[&str]) -> Vec<Pattern> {
    let patterns = patterns.iter();
    patterns
        .map(|pattern| Pattern::new(pattern).expect("a pattern"))
        .collect()
}

#[test]
fn paths_patterns_and_directories_are_found() -> Outcome {
    let bench = Bench::new();
    for name in [
        "etc/a.toml",
        "etc/b.toml",
        "etc/.hidden",
        "etc/tls/key.pem",
        "etc/tls/x/y",
        "etc/[a].toml",
    ] {
        bench.write(name, name);
    }
    symlink("a.toml", bench.path("etc/link.toml"))?;
    symlink("tls/x", bench.path("etc/away"))?;
    symlink("..", bench.path("etc/tls/up"))?;
    for (wanted, found) in [
        (&["etc/a.toml"][..], &["etc/a.toml"][..]),
        (
            &["etc/a.toml", "etc/*.toml", "etc/./a.toml"],
            &["etc/[a].toml", "etc/a.toml", "etc/b.toml", "etc/link.toml"],
        ),
        (&["etc/[a].toml"], &["etc/[a].toml"]),
        (&["etc/[b].toml"], &["etc/b.toml"]),
        (&["etc/**/y"], &["etc/tls/x/y"]),
        (
            &["etc/tls"],
            &[
                "etc/.hidden",
                "etc/[a].toml",
                "etc/a.toml",
                "etc/b.toml",
                "etc/link.toml",
                "etc/tls/key.pem",
                "etc/tls/x/y",
            ],
        ),
        (&["etc/away"], &["etc/away/y"]),
    ] {
        // Through a link a directory is another name; its own is what is kept.
        let found: Vec<_> = found
            .iter()
            .map(|name| name.replace("away", "tls/x"))
            .collect();
        assert_eq!(
            bench.chosen(&bench.wanted(wanted)),
            (found, vec![]),
            "{wanted:?}"
        );
    }
    Ok(())
}

#[test]
fn what_is_excluded_is_left_out_without_a_word() {
    let bench = Bench::new();
    for name in [
        "etc/a.toml",
        "etc/tls/a.key",
        "etc/tls/b.pem",
        "etc/tls/deep/c.key",
    ] {
        bench.write(name, name);
    }
    let inside = |pattern: &str| bench.path(pattern).display().to_string();
    let (one, all) = (inside("etc/tls/*"), inside("etc/**/*.key"));
    for (exclude, left) in [
        (&["*.key"][..], &["etc/a.toml", "etc/tls/b.pem"][..]),
        (&["tls"], &["etc/a.toml"]),
        (&["a.*"], &["etc/tls/b.pem", "etc/tls/deep/c.key"]),
        (&[&one], &["etc/a.toml"]),
        (&[&all], &["etc/a.toml", "etc/tls/b.pem"]),
        (&["*"], &[]),
    ] {
        let wanted = config::Files {
            exclude: patterns(exclude),
            ..bench.wanted(&["etc"])
        };
        let left: Vec<_> = left.iter().map(ToString::to_string).collect();
        assert_eq!(bench.chosen(&wanted), (left, vec![]), "{exclude:?}");
    }
}

#[test]
fn relative_patterns_are_of_the_working_directory() {
    let here = std::env::current_dir().expect("there is one");
    let wanted = |exclude: &str| config::Files {
        wanted: vec!["src/files/tests.rs".into(), "./src/files.rs".into()],
        exclude: patterns(&[exclude]),
        ..Bench::new().wanted(&[])
    };
    let bench = Bench::new();
    for (exclude, left) in [
        ("./src/files/*", "src/files.rs"),
        ("src/*.rs", "src/files/tests.rs"),
    ] {
        let choice = bench.choose(&wanted(exclude)).expect("a choice");
        let paths: Vec<_> = choice.files.iter().map(|file| file.path.clone()).collect();
        assert_eq!(paths, [here.join(left)], "{exclude}");
    }
}

/// By whatever way they are reached, and with a lock of this process on the database that
/// would be gone had it been opened and closed.
#[test]
fn the_database_and_the_backups_are_never_opened() -> Outcome {
    let bench = Bench::new();
    let database = bench.path("data/tracker.db");
    for suffix in ["", "-wal", "-shm", "-journal"] {
        fs::remove_file(bench.path(&format!("data/tracker.db{suffix}")))?;
    }
    let connection = Connection::open(&database)?;
    connection
        .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (a); BEGIN; SELECT * FROM t;")?;
    let inode = fs::metadata(&database)?.ino();
    let of_ours = format!(":{inode} ");
    let is_locked = || {
        // The list is read in pieces while others change it, so one reading may miss a lock;
        // no reading shows one that is gone.
        (0..100).any(|_| {
            let locks = fs::read_to_string("/proc/locks").expect("Linux");
            locks.contains(&of_ours)
        })
    };
    assert!(is_locked(), "SQLite locks the database in WAL mode");

    bench.write("data/backups/20261122T030000Z/manifest.json", "{}");
    bench.write("etc/a", "a");
    symlink("../data/tracker.db", bench.path("etc/link"))?;
    symlink("../data", bench.path("etc/directory"))?;
    symlink("../data/backups/20261122T030000Z", bench.path("etc/backup"))?;
    fs::hard_link(&database, bench.path("etc/hard"))?;
    fs::hard_link(
        bench.path("data/tracker.db-shm"),
        bench.path("etc/hard-shm"),
    )?;
    bench.write("data/kept", "kept");
    for (wanted, found, left_out) in [
        (&["data/tracker.db"][..], &[][..], 1),
        (&["etc/../data/tracker.db"], &[], 1),
        (&["data/tracker.db*"], &[], 4),
        (&["data"], &["data/kept"], 5),
        (&["data/**/*"], &["data/kept"], 7),
        (&["etc/link", "etc/hard", "etc/hard-shm"], &[], 3),
        (&["data/backups"], &[], 1),
        (&["data/backups/20261122T030000Z/manifest.json"], &[], 1),
        (&["etc/backup"], &[], 1),
        (&["etc"], &["data/kept", "etc/a"], 9),
    ] {
        let wanted = bench.wanted(wanted);
        let choice = bench.choose(&wanted)?;
        let (names, told) = bench.chosen(&wanted);
        assert_eq!(names, found, "{wanted:?}");
        assert_eq!(told.len(), left_out, "{wanted:?}: {told:?}");
        assert!(check_reserved(&choice.left_out).is_err());
        assert!(check_missing(&choice.left_out, Missing::Error).is_ok());
        let draft = bench.catalogue().begin(time())?;
        let stored = bench.store(&draft, choice, &Disk::default().guarding(&database))?;
        let stored = stored.files.map_or(0, |files| files.entries.len());
        assert_eq!(stored, found.len());
        assert!(is_locked(), "{wanted:?}");
    }
    // What became the database after it was chosen is not opened either.
    let choice = bench.choose(&bench.wanted(&["etc/a"]))?;
    fs::remove_file(bench.path("etc/a"))?;
    fs::hard_link(&database, bench.path("etc/a"))?;
    let draft = bench.catalogue().begin(time())?;
    let stored = bench.store(&draft, choice, &Disk::default())?;
    assert_eq!((stored.files, stored.left_out.len()), (None, 1));
    assert!(is_locked());
    Ok(())
}

#[test]
fn what_is_no_regular_file_is_not_opened() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    // Opening it would wait for somebody to write.
    mknodat(CWD, bench.path("etc/pipe"), FileType::Fifo, Mode::RUSR, 0)?;
    let _socket = UnixListener::bind(bench.path("etc/socket"))?;
    symlink("/dev/zero", bench.path("etc/zero"))?;
    let (found, told) = bench.chosen(&bench.wanted(&["etc"]));
    assert_eq!(found, ["etc/a"]);
    assert_eq!(
        told,
        [
            "etc/pipe is not a regular file",
            "etc/socket is not a regular file",
            "etc/zero is not a regular file",
        ]
    );
    Ok(())
}

#[test]
fn what_is_missing_is_told_or_is_an_error() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    symlink("nowhere", bench.path("etc/dangling"))?;
    let odd = bench.path("etc").join(OsStr::from_bytes(b"\xff"));
    fs::write(&odd, "x")?;
    let wanted = bench.wanted(&["etc", "etc/none", "etc/*.none", "none/a"]);
    let (found, told) = bench.chosen(&wanted);
    assert_eq!(found, ["etc/a"]);
    assert_eq!(
        told,
        [
            "there is no etc/dangling",
            "the name of etc/\u{fffd} is not UTF-8",
            "there is no etc/none",
            "there is no etc/*.none",
            "there is no none/a",
        ]
    );
    let left_out = bench.choose(&wanted)?.left_out;
    assert!(check_missing(&left_out, Missing::Warn).is_ok());
    let error = check_missing(&left_out, Missing::Error).expect_err("missing");
    assert!(error.to_string().contains("missing_files"), "{error}");
    assert!(check_reserved(&left_out).is_ok());
    assert_eq!(warning(&[]), None);
    let many: Vec<_> = (0..25)
        .map(|n| LeftOut {
            path: format!("/{n:02}").into(),
            why: Why::Missing,
        })
        .collect();
    let told = warning(&many).expect("a warning");
    assert!(told.ends_with("there is no /09; and 15 more"), "{told}");
    Ok(())
}

#[test]
fn a_slip_of_a_pattern_does_not_store_the_world() {
    let bench = Bench::new();
    bench.write("etc/a", vec![b'a'; 700_000]);
    bench.write("etc/b", vec![b'b'; 348_576]);
    assert_eq!(bench.chosen(&bench.wanted(&["etc", "etc/a"])).0.len(), 2);
    bench.write("etc/c", "1");
    let error = bench
        .choose(&bench.wanted(&["etc"]))
        .expect_err("too large");
    let told = error.to_string();
    assert!(told.contains("more than 1.0 MiB together"), "{told}");
    assert!(told.contains("etc/a alone 683.6 KiB"), "{told}");
    assert!(told.contains("files_limit"), "{told}");

    let bench = Bench::new();
    for n in 0..=MOST {
        bench.write(&format!("etc/{n}"), "");
    }
    let error = bench.choose(&bench.wanted(&["etc"])).expect_err("too many");
    assert!(matches!(error, Error::TooMany { .. }), "{error}");
}

#[test]
fn a_file_that_grew_beyond_the_limit_since_is_not_stored() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    let choice = bench.choose(&bench.wanted(&["etc"]))?;
    bench.write("etc/a", vec![0; (1 << 20) + 1]);
    let draft = bench.catalogue().begin(time())?;
    let error = bench
        .store(&draft, choice, &Disk::default())
        .expect_err("too large");
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    Ok(())
}

/// Names of every length around what a header holds, and contents around what a block does.
#[test]
fn what_is_stored_comes_back_as_it_was() -> Outcome {
    let bench = Bench::new();
    let mut names = Vec::new();
    for length in [1, 99, 100, 101, 155, 255] {
        names.push(format!("etc/{}", "n".repeat(length)));
        names.push(format!(
            "etc/{}/{}/file",
            "d".repeat(length),
            "e".repeat(length)
        ));
    }
    for bytes in [0, 1, 511, 512, 513, 100_000] {
        names.push(format!("etc/of-{bytes}"));
        bench.write(&format!("etc/of-{bytes}"), vec![b'x'; bytes]);
    }
    for (n, name) in names.iter().enumerate() {
        if !bench.path(name).exists() {
            bench.write(name, name);
        }
        let path = bench.path(name);
        let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + n as u64);
        fs::File::options()
            .write(true)
            .open(&path)?
            .set_modified(written)?;
        fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o400 + 0o111 * [0, 1, 2][n % 3]),
        )?;
    }
    let backup = bench.backup(&["etc"]);
    let stored = backup.manifest.files.clone().ok_or("files")?;
    assert_eq!(stored.artifact.name, "files.tar.zst");
    let archive = backup.dir.join("files.tar.zst");
    assert_eq!(fs::metadata(&archive)?.mode() & 0o7777, 0o600);
    assert!(!backup.dir.join("files.tar").exists());
    assert_eq!(bench.catalogue().get(&backup.manifest.id)?, backup);
    verify::backup(
        &backup,
        None,
        &backup.dir,
        &Disk::default(),
        &Watch::default(),
    )?;

    let to = Destination::Directory(bench.path("out/new"));
    let restored = bench.restore(&backup, &to, &Disk::default())?;
    assert_eq!(restored.files.len(), names.len());
    assert_eq!(restored.not_given_back, 0, "they are this user's");
    for name in &names {
        let (before, after) = (bench.path(name), below_out(&bench, name));
        assert_eq!(fs::read(&before)?, fs::read(&after)?, "{name}");
        let seen = |path: &Path| {
            let found = fs::metadata(path).expect("it exists");
            (found.mode(), found.uid(), found.gid(), found.mtime())
        };
        assert_eq!(seen(&before), seen(&after), "{name}");
    }
    assert_eq!(fs::metadata(bench.path("out/new"))?.mode() & 0o777, 0o700);
    Ok(())
}

/// Where a file of the bench is in the directory `out/new`.
fn below_out(bench: &Bench, name: &str) -> PathBuf {
    let path = bench.path(name);
    bench
        .path("out/new")
        .join(path.strip_prefix("/").expect("absolute"))
}

#[test]
fn whoever_sets_user_ids_does_not_come_back() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    fs::set_permissions(bench.path("etc/a"), fs::Permissions::from_mode(0o6755))?;
    let backup = bench.backup(&["etc"]);
    bench.restore(
        &backup,
        &Destination::Directory(bench.path("out/new")),
        &Disk::default(),
    )?;
    assert_eq!(
        fs::metadata(below_out(&bench, "etc/a"))?.mode() & 0o7777,
        0o755
    );
    Ok(())
}

/// A file of `/proc` is longer than it says, as one that grows while it is read.
#[test]
fn no_member_is_torn_whatever_becomes_of_its_file() -> Outcome {
    let bench = Bench::new();
    for name in ["etc/a", "etc/gone", "etc/z"] {
        bench.write(name, name);
    }
    let mut wanted = bench.wanted(&["etc"]);
    wanted.wanted.push("/proc/self/status".into());
    let choice = bench.choose(&wanted)?;
    assert_eq!(choice.files.len(), 4);
    fs::remove_file(bench.path("etc/gone"))?;
    let draft = bench.catalogue().begin(time())?;
    let stored = bench.store(&draft, choice, &Disk::default())?;
    let why: Vec<_> = stored
        .left_out
        .iter()
        .map(|left| left.why.clone())
        .collect();
    assert_eq!(why.len(), 2, "{:?}", stored.left_out);
    assert!(
        why.contains(&Why::Missing) && why.contains(&Why::Changing),
        "{why:?}"
    );
    assert!(check_missing(&stored.left_out, Missing::Error).is_err());
    let files = stored.files.ok_or("files")?;
    let names: Vec<_> = files
        .entries
        .iter()
        .map(|entry| entry.path.clone())
        .collect();
    assert_eq!(names, [bench.path("etc/a"), bench.path("etc/z")]);
    check(
        &draft.files_path(),
        &files,
        None,
        &Disk::default(),
        &Watch::default(),
    )?;
    Ok(())
}

#[test]
fn storing_ends_when_that_is_asked_for() -> Outcome {
    let bench = Bench::new();
    bench.write("etc/a", "a");
    let choice = bench.choose(&bench.wanted(&["etc"]))?;
    let draft = bench.catalogue().begin(time())?;
    let watch = Watch::default();
    watch.cancel("enough");
    let stored = store(
        choice,
        99,
        &bench.reserved(),
        &draft,
        ZSTD,
        &Disk::default(),
        &watch,
    );
    let error = stored.expect_err("cancelled");
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    Ok(())
}

mod restoring;
mod searching;
