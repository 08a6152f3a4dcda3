//! The machine an experiment ran on, as a reader needs to know it to compare.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How many flushes are timed.
const FLUSHES: usize = 200;

/// Written before each.
const BLOCK: [u8; 4096] = [0x5a; 4096];

/// A machine, and the directory that was worked in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its processors, as they name themselves.
    pub processor: String,
    /// How many.
    pub processors: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Type of the file system of the directory.
    pub file_system: String,
    /// Microseconds that half of the flushes (`fdatasync` after 4 KiB) did not exceed.
    pub flush_us: u64,
    /// How the programs were built.
    pub build: String,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// When proc is not mounted or the directory cannot be written to.
    pub fn this(directory: &Path) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
        let memory = read("/proc/meminfo")?;
        let kilobytes: u64 = memory
            .split_whitespace()
            .nth(1)
            .context("MemTotal in meminfo")?
            .parse()?;
        let build = if cfg!(debug_assertions) {
            "dev profile: optimised little, with debug assertions"
        } else {
            "release profile"
        };
        Ok(Self {
            processor: field(&read("/proc/cpuinfo")?, "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            processors: std::thread::available_parallelism()?.get(),
            memory: kilobytes * 1024,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(&read("/proc/mounts")?, &directory.canonicalize()?)
                .unwrap_or_else(|| "unknown".to_owned()),
            flush_us: flush(directory)?,
            build: build.to_owned(),
        })
    }
}

/// The first value of a name in `name : value` lines.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// Of the mount nearest above a path. Of two on one place the later hides the earlier.
fn file_system(mounts: &str, path: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (Path::new(fields.next()?), fields.next()?);
        path.starts_with(place)
            .then(|| (place.components().count(), kind.to_owned()))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// Median time of a flush in a directory, in microseconds.
fn flush(directory: &Path) -> Result<u64> {
    let path = directory.join(".flushes");
    let mut file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
    let mut times = Vec::with_capacity(FLUSHES);
    for _ in 0..FLUSHES {
        file.write_all(&BLOCK)?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(u64::try_from(median(&times).as_micros())?)
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::experiment) fn machine() -> Machine {
        Machine {
            processor: "a processor".to_owned(),
            processors: 2,
            memory: 1_000_000_000,
            kernel: "6".to_owned(),
            file_system: "ext4".to_owned(),
            flush_us: 100,
            build: "release profile".to_owned(),
        }
    }

    #[test]
    fn the_nearest_mount_is_the_file_system() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\n/dev/b /srv xfs rw 0 0\n\
            /dev/c /srv btrfs rw 0 0\n";
        for (path, kind) in [
            ("/home/x", "ext4"),
            ("/dev/shm/x", "tmpfs"),
            ("/srv", "btrfs"),
            ("/srvx", "ext4"),
        ] {
            assert_eq!(file_system(mounts, Path::new(path)).as_deref(), Some(kind));
        }
    }

    #[test]
    fn this_machine_can_be_described() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let machine = Machine::this(directory.path())?;
        assert!(machine.processors > 0 && machine.memory > 0 && !machine.kernel.is_empty());
        assert_eq!(fs::read_dir(directory.path())?.count(), 0);
        Ok(())
    }
}
