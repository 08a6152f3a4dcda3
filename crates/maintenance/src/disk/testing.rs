//! File systems of their own for the tests of this crate: real ones, made in a file and
//! mounted.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::catalogue::testing::memory_dir;

/// What `mkfs.xfs` insists on, and more than any test fills.
const SIZE: &str = "512M";

/// A file system, mounted for as long as this lives.
pub(crate) struct Volume {
    mounted: PathBuf,
    /// The mount point and the file the file system is in.
    _home: TempDir,
}

impl Volume {
    /// Both that copy on write.
    pub(crate) fn copying_on_write() -> [Self; 2] {
        [Self::xfs(), Self::btrfs()]
    }

    pub(crate) fn xfs() -> Self {
        Self::formatted(&["mkfs.xfs", "-q", "-m", "reflink=1"])
    }

    pub(crate) fn btrfs() -> Self {
        Self::formatted(&["mkfs.btrfs", "-q"])
    }

    /// One in memory, with so much room.
    pub(crate) fn memory(bytes: u64) -> Self {
        let size = format!("size={bytes}");
        Self::mount(["-t", "tmpfs", "-o", &size, "none"].map(OsStr::new), home())
    }

    fn formatted(mkfs: &[&str]) -> Self {
        let home = home();
        let image = home.path().join("image");
        run("truncate", &["--size", SIZE].map(OsStr::new), &image);
        let arguments: Vec<_> = mkfs[1..].iter().map(OsStr::new).collect();
        run(mkfs[0], &arguments, &image);
        Self::mount(
            ["-o", "loop"]
                .map(OsStr::new)
                .into_iter()
                .chain([image.as_os_str()]),
            home,
        )
    }

    fn mount<'a>(what: impl IntoIterator<Item = &'a OsStr>, home: TempDir) -> Self {
        let mounted = home.path().join("mounted");
        run("mkdir", &[], &mounted);
        run("mount", &what.into_iter().collect::<Vec<_>>(), &mounted);
        Self {
            mounted,
            _home: home,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.mounted
    }

    /// A directory on it.
    pub(crate) fn directory(&self) -> TempDir {
        TempDir::new_in(&self.mounted).expect("room for a directory")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        unmount(&self.mounted);
    }
}

/// A file that is on another file system than its directory, for as long as this lives.
pub(crate) struct Elsewhere {
    at: PathBuf,
    /// Where it is.
    _home: TempDir,
}

impl Elsewhere {
    /// Mounts a copy of a file, which is in memory, over it.
    pub(crate) fn of(at: &Path) -> Self {
        let home = memory_dir();
        let copy = home.path().join("copy");
        run("cp", &[at.as_os_str()], &copy);
        run("mount", &[OsStr::new("--bind"), copy.as_os_str()], at);
        Self {
            at: at.to_owned(),
            _home: home,
        }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// A database on it that was copied stays open as long as this process; then the mount goes
/// from sight now, and the rest with the process.
fn unmount(mounted: &Path) {
    let unmounted = ["-q", "-l"].iter().any(|how| {
        let unmount = Command::new("umount").arg(how).arg(mounted).output();
        unmount.is_ok_and(|output| output.status.success())
    });
    if !unmounted {
        eprintln!("{} stays mounted", mounted.display());
    }
}

fn home() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn run(program: &str, arguments: &[&OsStr], last: &Path) {
    let output = Command::new(program).args(arguments).arg(last).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{program} cannot be run ({error}): ./tests/run installs what tests need")
    });
    assert!(
        output.status.success(),
        "the tests of clones and of full disks need file systems of their own, and {program} \
         does not give one (run the tests as root): {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
