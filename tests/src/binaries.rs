//! Where the programs under test are, built when they are missing or older than their source.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};

/// The tracker with the maintenance window linked in.
pub const TRACKER: &str = "torrust-tracker";
/// The operator's tool.
pub const TOOL: &str = "torrust-maintenance";
/// The tracker as upstream starts it.
pub const UPSTREAM: &str = "upstream_tracker";

/// Path of a program of this workspace, `name` being one of the constants above or one of
/// upstream's clients.
///
/// # Errors
/// When it has to be built and cannot be.
pub fn path(name: &str) -> Result<PathBuf> {
    let directory = directory()?;
    // Cargo itself builds this package's own programs before its tests.
    if [TRACKER, TOOL].contains(&name) {
        static BUILT: OnceLock<Result<(), String>> = OnceLock::new();
        BUILT
            .get_or_init(|| build_if_stale(&directory).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    let path = directory.join(name);
    ensure!(path.exists(), "{} was not built", path.display());
    Ok(path)
}

/// Cargo puts test binaries into `deps`, below the directory of the programs.
fn directory() -> Result<PathBuf> {
    let this = std::env::current_exe().context("finding the running test binary")?;
    let parent = this
        .parent()
        .context("the test binary lies in a directory")?;
    Ok(match parent.parent() {
        Some(programs) if parent.ends_with("deps") => programs.to_owned(),
        _ => parent.to_owned(),
    })
}

/// `cargo test -p end-to-end` builds neither program, and an old one would be tested in
/// silence.
fn build_if_stale(directory: &Path) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace above this package")?;
    let changed = newest(&workspace.join("crates"))?.max(modified(&workspace.join("Cargo.lock"))?);
    let fresh = [TRACKER, TOOL]
        .iter()
        .all(|name| modified(&directory.join(name)).is_ok_and(|built| built >= changed));
    if fresh {
        return Ok(());
    }
    // The same selection as in `tests/run`: another would resolve other features and
    // build half the tree again.
    let profile = (!cfg!(debug_assertions)).then_some("--release");
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--workspace", "--all-targets"])
        .args(profile)
        .current_dir(workspace)
        .status()
        .context("starting cargo build")?;
    if !status.success() {
        bail!("cargo build of the programs under test: {status}");
    }
    Ok(())
}

fn modified(path: &Path) -> Result<SystemTime> {
    let metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(metadata.modified()?)
}

/// Modification time of the newest file below `directory`.
fn newest(directory: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?
    {
        let path = entry?.path();
        newest = newest.max(if path.is_dir() {
            self::newest(&path)?
        } else {
            modified(&path)?
        });
    }
    Ok(newest)
}
