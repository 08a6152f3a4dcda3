//! What was measured on, from what the system says of itself.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A machine and its programs. No names of hosts, people or paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, as it calls itself.
    pub processor: String,
    /// How many of them this process may use.
    pub processors: usize,
    /// Whether it has instructions for SHA-256.
    pub sha_instructions: bool,
    /// Main memory, in bytes.
    pub memory: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Type of the file system the database lies on, and how it is mounted.
    pub file_system: String,
    /// `SQLite`, as linked.
    pub sqlite: String,
    /// The command lines that are compared with.
    pub programs: Vec<String>,
    /// `release` or `dev`.
    pub build: String,
}

impl Machine {
    /// This one, with the file system of `directory`.
    ///
    /// # Errors
    /// When the system does not say, or a program is missing.
    pub fn of(directory: &Path) -> Result<Self> {
        let processor = read("/proc/cpuinfo")?;
        let value = |key: &str| field(&processor, key).unwrap_or_default();
        let memory = read("/proc/meminfo")?;
        let kibibytes: u64 = field(&memory, "MemTotal")
            .and_then(|total| total.split(' ').next()?.parse().ok())
            .context("MemTotal of /proc/meminfo")?;
        Ok(Self {
            processor: value("model name"),
            processors: std::thread::available_parallelism()?.get(),
            sha_instructions: value("flags").split(' ').any(|flag| flag == "sha_ni"),
            memory: kibibytes * 1024,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            file_system: file_system(&read("/proc/self/mountinfo")?, directory)?,
            sqlite: rusqlite::version().to_owned(),
            programs: ["cp", "sqlite3", "zstd"]
                .into_iter()
                .map(version)
                .collect::<Result<_>>()?,
            build: if cfg!(debug_assertions) {
                "dev"
            } else {
                "release"
            }
            .to_owned(),
        })
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

/// The value of the first line `key : value`.
fn field(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_owned())
    })
}

/// Type and options of the mount that has the directory's device (proc(5),
/// `/proc/[pid]/mountinfo`: the third field is the device, what follows a dash the type).
fn file_system(mounts: &str, directory: &Path) -> Result<String> {
    let device = fs::metadata(directory)?.dev();
    let device = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    mounts
        .lines()
        .find_map(|line| {
            let (mount, of) = line.split_once(" - ")?;
            let mut of = of.split(' ');
            let (kind, options) = (of.next()?, of.nth(1)?);
            (mount.split(' ').nth(2)? == device).then(|| format!("{kind} ({options})"))
        })
        // btrfs gives its files another device than its mount.
        .or_else(|| Some("unknown".to_owned()))
        .context("a file system")
}

/// The first line of what a program says of its version.
fn version(program: &str) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.lines().next().unwrap_or_default();
    let words: Vec<_> = said
        .split(' ')
        // sqlite3 adds the hash of its source.
        .filter(|word| word.len() < 40)
        .collect();
    let said = words.join(" ").replace('*', "");
    Ok(if said.contains(program) {
        said.trim().to_owned()
    } else {
        format!("{program} {}", said.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_what_it_is() -> Result<()> {
        let machine = Machine::of(&std::env::temp_dir())?;
        assert!(machine.processors > 0 && machine.memory > 1 << 20);
        assert!(machine.programs[1].starts_with("sqlite3 3."), "{machine:?}");
        assert!(!machine.kernel.is_empty() && !machine.file_system.is_empty());
        Ok(())
    }
}
