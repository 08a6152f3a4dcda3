//! Tracker and sidecar as two users, as in two containers: the sidecar may read the database
//! and nothing more, through a mount that nobody may write to.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use end_to_end::announce::Torrent;
use end_to_end::sidecar::Beside;
use end_to_end::tracker::Setup;
use end_to_end::{backups, binaries, database};
use tempfile::TempDir;

use crate::sidecar::{CP, setup, started};
use crate::support::{A_RUN, MIB, beside_others, complete, kind};

/// Numbers that no user of the machine has.
const TRACKER: u32 = 62_001;
const SIDECAR: u32 = 62_002;
/// The group that may read the database: the tracker's files are of it, the sidecar is in it.
const READERS: u32 = 62_010;
/// One that may not.
const STRANGERS: u32 = 62_011;

/// A directory seen elsewhere, for reading only, as a volume in another container.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn mount(from: &Path, at: PathBuf) -> Result<Self> {
        let mount = |arguments: &[&std::ffi::OsStr]| -> Result<()> {
            let output = Command::new("mount").args(arguments).output()?;
            ensure!(
                output.status.success(),
                "mounting is not permitted (run the tests as root): {}",
                String::from_utf8_lossy(&output.stderr)
            );
            Ok(())
        };
        fs::create_dir(&at)?;
        mount(&["--bind".as_ref(), from.as_os_str(), at.as_os_str()])?;
        let mounted = Self(at);
        mount(&[
            "-o".as_ref(),
            "remount,bind,ro".as_ref(),
            mounted.0.as_os_str(),
        ])?;
        Ok(mounted)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.0.display());
        }
    }
}

/// The tool where any user may run it, and a home for the sidecar.
fn sidecars_home() -> Result<(TempDir, PathBuf)> {
    let home = TempDir::with_prefix("sidecar-")?;
    let program = home.path().join("torrust-maintenance");
    fs::copy(binaries::path(binaries::TOOL)?, &program)?;
    fs::create_dir(home.path().join("copies"))?;
    for path in [home.path(), &program, &home.path().join("copies")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        chown(path, Some(SIDECAR), Some(READERS)).context("run the tests as root")?;
    }
    Ok((home, program))
}

/// The tracker's own user, and a database that the group may read.
fn of_two_users(setup: Setup) -> Result<Setup> {
    let setup = setup.run_as(TRACKER, READERS)?;
    fs::set_permissions(setup.database(), fs::Permissions::from_mode(0o640))?;
    Ok(setup)
}

/// A directory of the tracker's that the group has this part in. Its path is short, as that of a
/// socket must be (unix(7), 108 bytes).
fn shared(mode: u32) -> Result<TempDir> {
    let shared = TempDir::with_prefix_in("shared-", "/tmp")?;
    chown(shared.path(), Some(TRACKER), Some(READERS)).context("run the tests as root")?;
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(mode))?;
    Ok(shared)
}

/// Runs a command as the sidecar's user; whether it was good, and what it said.
fn as_sidecar(program: &str, arguments: &[&str]) -> Result<(bool, String)> {
    use std::os::unix::process::CommandExt as _;
    let output = Command::new(program)
        .args(arguments)
        .uid(SIDECAR)
        .gid(READERS)
        .current_dir("/")
        .output()
        .with_context(|| format!("starting {program}"))?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_needs_no_more_than_to_read_one_file() -> Result<()> {
    let _beside = beside_others().await;
    for journal in ["wal", "delete"] {
        let setup = of_two_users(setup(journal, 5 * MIB)?)?;
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let (home, program) = sidecars_home()?;
        let volume = ReadOnly::mount(setup.home(), home.path().join("volume"))?;
        let seen = volume.0.join("sqlite3.db");
        let seen = seen.to_str().context("a plain path")?;

        // What it may do is what it should be able to, and no more.
        assert!(as_sidecar("test", &["-r", seen])?.0);
        for path in [seen, &setup.database().to_string_lossy()] {
            let (written, _) = as_sidecar("sh", &["-c", &format!("echo x >> '{path}'")])?;
            assert!(!written, "{path} can be written to");
        }

        let beside = Beside::new(&setup)?
            .run_as(SIDECAR, READERS, program.clone(), home.path().to_owned())
            .at(endpoint.0)
            .with(["--database", seen, "--once"]);
        for engine in [true, false] {
            let sidecar = if engine {
                beside.clone()
            } else {
                beside.clone().running(CP)
            };
            let mut sidecar = sidecar.start()?;
            sidecar.log.wait_for("waiting").await?;
            let (run, _) = started(endpoint).await?;
            let ended = endpoint.ended(&run, A_RUN).await?;
            ensure!(kind(&ended) == "done", "{ended:#}");
            assert_eq!(sidecar.code(A_RUN).await?, 0);
            let made = if engine {
                backups::Backup::open(&backups::published(&beside.copies())?[0])?
                    .database
                    .clone()
            } else {
                beside.copies().join(&run).join("sqlite3.db")
            };
            if !engine {
                database::check(&made)?;
            }
        }
        drop(volume);
    }
    Ok(())
}

/// What documentation says of a read-only mount: `SQLite` itself cannot open a database in
/// WAL mode there unless its `-shm` is there and may be used, so a tool that opens it fails
/// where a plain copy of the pinned file does not.
#[tokio::test(flavor = "multi_thread")]
async fn sqlite_cannot_open_a_wal_database_on_a_read_only_mount_and_a_copy_need_not() -> Result<()>
{
    let _beside = beside_others().await;
    let setup = of_two_users(setup("wal", MIB)?)?;
    let (home, _) = sidecars_home()?;
    let volume = ReadOnly::mount(setup.home(), home.path().join("volume"))?;
    let seen = volume.0.join("sqlite3.db");
    let seen = seen.to_str().context("a plain path")?;
    let select = "SELECT count(*) FROM torrents";

    // Nobody has it open: there is no -shm, and none can be made.
    assert!(!Path::new(&format!("{seen}-shm")).exists());
    let (opened, said) = as_sidecar("sqlite3", &["-readonly", seen, select])?;
    assert!(!opened, "{said}");
    assert!(
        said.contains("unable to open") || said.contains("readonly"),
        "{said}"
    );
    // That it will not change must be promised, which is true of a pinned file alone.
    let immutable = format!("file:{seen}?immutable=1");
    let (opened, said) = as_sidecar("sqlite3", &[&immutable, select])?;
    assert!(opened, "{said}");

    // A plain copy, where one may write, is a database like any other.
    let copy = home.path().join("copies/copy.db");
    let copy = copy.to_str().context("a plain path")?;
    assert!(as_sidecar("cp", &[seen, copy])?.0);
    let (opened, said) = as_sidecar("sqlite3", &[copy, select])?;
    assert!(opened, "{said}");
    Ok(())
}

/// The same while the tracker runs: SQLite reads, as `-shm` is there, and what is told that the file
/// will not change takes it for what it was at the last checkpoint.
#[tokio::test(flavor = "multi_thread")]
async fn beside_a_tracker_sqlite_reads_on_a_read_only_mount_and_immutable_misleads() -> Result<()> {
    let _beside = beside_others().await;
    let setup = of_two_users(setup("wal", MIB)?)?;
    let tracker = setup.start().await?;
    complete(&tracker, Torrent(1)).await?;
    let (home, _) = sidecars_home()?;
    let volume = ReadOnly::mount(setup.home(), home.path().join("volume"))?;
    let seen = volume.0.join("sqlite3.db");
    let seen = seen.to_str().context("a plain path")?;
    let count = |database: &str| -> Result<i64> {
        let select = "SELECT count(*) FROM torrents";
        let (opened, said) = as_sidecar("sqlite3", &["-readonly", database, select])?;
        ensure!(opened, "{said}");
        Ok(said.trim().parse()?)
    };
    let now = count(seen)?;
    let misled = count(&format!("file:{seen}?immutable=1"))?;
    assert_eq!(misled, now - 1, "the completion is in the log");
    Ok(())
}

/// Tracker and sidecar as two users that share a directory for the files and no connection.
#[tokio::test(flavor = "multi_thread")]
async fn by_files_two_users_need_a_directory_of_their_group() -> Result<()> {
    let _beside = beside_others().await;
    let shared = shared(0o2770)?;
    let touch_file = shared.path().join("ready.json");
    let setup = of_two_users(setup("wal", 5 * MIB)?)?.set(
        "maintenance.readiness",
        "touch_file",
        &format!("{touch_file:?}"),
    );
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let (home, program) = sidecars_home()?;
    let volume = ReadOnly::mount(setup.home(), home.path().join("volume"))?;
    let seen = volume.0.join("sqlite3.db");
    let beside = Beside::new(&setup)?
        .run_as(SIDECAR, READERS, program, home.path().to_owned())
        .with(["--touch-file", touch_file.to_str().context("a plain path")?])
        .with(["--database", seen.to_str().context("a plain path")?])
        .with(["--once"]);
    let mut sidecar = beside.start()?;
    sidecar.log.wait_for("waiting").await?;
    let (run, _) = started(endpoint).await?;
    let ended = endpoint.ended(&run, A_RUN).await?;
    ensure!(kind(&ended) == "done", "{ended:#}");
    assert_eq!(sidecar.code(A_RUN).await?, 0, "{:?}", sidecar.log.lines());
    assert_eq!(backups::only(&beside.copies())?.manifest["run"], run);
    Ok(())
}

/// As compose.yaml and the units have it: a socket in a directory they share, where the group
/// says who may connect; no port, and no token.
#[tokio::test(flavor = "multi_thread")]
async fn over_a_socket_the_group_says_who_may_take_backups() -> Result<()> {
    let _beside = beside_others().await;
    let shared = shared(0o750)?;
    let at = format!("unix:{}/maintenance.sock", shared.path().display());
    let setup = of_two_users(setup("wal", 5 * MIB)?)?.set(
        "maintenance.readiness",
        "bind_address",
        &format!("{at:?}"),
    );
    let tracker = setup.start().await?;
    tracker.log.wait_for(&at).await?;
    let (home, program) = sidecars_home()?;
    let volume = ReadOnly::mount(setup.home(), home.path().join("volume"))?;
    let seen = volume.0.join("sqlite3.db");
    let beside = |group| -> Result<Beside> {
        Ok(Beside::new(&setup)?
            .run_as(SIDECAR, group, program.clone(), home.path().to_owned())
            .at(&at)
            .with(["--database", seen.to_str().context("a plain path")?])
            .with(["--start", "--once"]))
    };

    let mut stranger = beside(STRANGERS)?.start()?;
    assert_eq!(stranger.code(A_RUN).await?, 2);
    ensure!(
        stranger.log.says("group"),
        "it says what would let it in: {:?}",
        stranger.log.lines()
    );
    let mut sidecar = beside(READERS)?.start()?;
    assert_eq!(sidecar.code(A_RUN).await?, 0, "{:?}", sidecar.log.lines());
    let backup = backups::only(&beside(READERS)?.copies())?;
    assert_eq!(backup.manifest["journal_mode"], "wal");
    Ok(())
}
