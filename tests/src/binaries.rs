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
/// The tracker as upstream publishes it.
pub const UPSTREAM_PACKAGE: &str = "torrust-tracker@3.0.0";

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

/// Upstream's tracker as its own users install it: the published package, with the dependencies
/// and the profile it comes with, and without what `.cargo/config.toml` compiles into `SQLite`
/// for ours. Built once, below the target directory.
///
/// # Errors
/// When it cannot be built.
pub fn upstream_apart() -> Result<PathBuf> {
    let programs = directory()?;
    let target = programs.parent().context("a target directory")?;
    let root = target.join("upstream");
    eprintln!("installing {UPSTREAM_PACKAGE}; the first time that takes minutes");
    let mut install = cargo();
    install
        .args(["install", "--locked", UPSTREAM_PACKAGE, "--bin", TRACKER])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(root.join("target"))
        // To nothing: what is not set, cargo sets.
        .env("LIBSQLITE3_FLAGS", "");
    finish(install, "upstream's tracker")?;
    Ok(root.join("bin").join(TRACKER))
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
    let workspace = workspace()?;
    let changed = newest(&workspace.join("crates"))?.max(modified(&workspace.join("Cargo.lock"))?);
    let fresh = [TRACKER, TOOL]
        .iter()
        .all(|name| modified(&directory.join(name)).is_ok_and(|built| built >= changed));
    if fresh {
        return Ok(());
    }
    // The same selection as in `tests/run`: another would resolve other features and
    // build half the tree again.
    let mut build = cargo_build(directory)?;
    build.args(["--workspace", "--all-targets"]);
    finish(build, "the programs under test")
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A build in the profile of this program, into the directory it lies in: with another
/// `CARGO_TARGET_DIR` cargo would choose another, and the old programs would be tested.
fn cargo_build(programs: &Path) -> Result<Command> {
    let target = programs.parent().context("a target directory")?;
    let mut build = cargo();
    build
        .args(["build", "--locked"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(workspace()?);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    Ok(build)
}

fn finish(mut build: Command, what: &str) -> Result<()> {
    let status = build.status().context("starting cargo")?;
    if !status.success() {
        bail!("cargo could not build {what}: {status}");
    }
    Ok(())
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace above this package")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever `CARGO_TARGET_DIR` is when an experiment runs.
    #[test]
    fn what_is_built_is_built_where_it_is_looked_for() -> Result<()> {
        let build = cargo_build(Path::new("/elsewhere/target/release"))?;
        let arguments: Vec<_> = build.get_args().collect();
        let given = arguments
            .windows(2)
            .find(|pair| pair[0] == "--target-dir")
            .context("a target directory")?;
        assert_eq!(given[1], "/elsewhere/target");
        Ok(())
    }
}
