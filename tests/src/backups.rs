//! The catalogue as an operator sees it: directories, manifests, `zstd -d`.
//!
//! It does not use the library's own reader: a backup must be good to someone who has
//! only the files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::announce::hex;
use crate::database;

/// One published backup, unpacked and checked.
#[derive(Debug)]
pub struct Backup {
    /// `manifest.json`.
    pub manifest: Value,
    /// The database inside, unpacked.
    pub database: PathBuf,
    _unpacked: TempDir,
}

impl Backup {
    /// Unpacks and checks a backup: sizes and checksums of the manifest, and the structure
    /// of the database.
    ///
    /// # Errors
    /// When anything is wrong with it.
    pub fn open(directory: &Path) -> Result<Self> {
        let backup = Self::unpack(directory)?;
        database::check(&backup.database)?;
        Ok(backup)
    }

    /// As [`Backup::open`], but for the structure, whose check takes a minute a gigabyte.
    ///
    /// # Errors
    /// When a size or a checksum is wrong.
    pub fn unpack(directory: &Path) -> Result<Self> {
        let manifest = fs::read(directory.join("manifest.json"))
            .with_context(|| format!("the manifest of {}", directory.display()))?;
        let manifest: Value = serde_json::from_slice(&manifest)?;
        let stated = &manifest["database"];
        let name = stated["name"].as_str().context("the artifact's name")?;
        let artifact = directory.join(name);
        let unpacked = TempDir::with_prefix("unpacked-")?;
        let database = unpacked.path().join("database.sqlite3");
        match stated["compression"].as_str() {
            Some("zstd") => database::unpack(&artifact, &database)?,
            Some("none") => drop(fs::copy(&artifact, &database)?),
            other => anyhow::bail!("compression {other:?}"),
        }
        ensure!(
            stated["stored_sha256"] == sha256(&artifact)?,
            "{name}: not the checksum of the manifest"
        );
        ensure!(
            stated["raw_sha256"] == sha256(&database)?,
            "{name}: not the checksum of what was read"
        );
        ensure!(
            stated["raw_bytes"] == fs::metadata(&database)?.len(),
            "{name}: not the size of what was read"
        );
        Ok(Self {
            manifest,
            database,
            _unpacked: unpacked,
        })
    }

    /// The instant the backup shows.
    ///
    /// # Errors
    /// When the manifest does not say.
    pub fn pinned(&self) -> Result<DateTime<Utc>> {
        Ok(self.manifest["pinned"]
            .as_str()
            .context("pinned in the manifest")?
            .parse()?)
    }

    /// How long the copy took, from ready until it was durable.
    ///
    /// # Errors
    /// When the manifest does not say.
    pub fn copied_until(&self) -> Result<DateTime<Utc>> {
        let seconds = self.manifest["copy_seconds"]
            .as_f64()
            .context("copy_seconds in the manifest")?;
        Ok(self.pinned()? + std::time::Duration::try_from_secs_f64(seconds)?)
    }
}

/// The directories of all published backups, oldest first.
///
/// # Errors
/// When the catalogue cannot be listed.
pub fn published(catalogue: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = entries(catalogue)?
        .into_iter()
        .filter(|path| !is_hidden(path) && path.is_dir())
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// The only backup there is.
///
/// # Errors
/// When there is none or more, or it is not good.
pub fn only(catalogue: &Path) -> Result<Backup> {
    match published(catalogue)?.as_slice() {
        [one] => Backup::open(one),
        all => anyhow::bail!("one backup was expected, there are {all:?}"),
    }
}

/// Temporary names, which a run that has ended must not leave.
///
/// # Errors
/// When the catalogue cannot be listed.
pub fn leftovers(catalogue: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(catalogue)?
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|end| end == "partial" || end == "removing" || end == "tmp")
        })
        .collect())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(directory)
        .with_context(|| format!("listing {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect()
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// SHA-256 of a file, as lower-case hexadecimal digits.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    let mut file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    std::io::copy(&mut file, &mut hash)?;
    Ok(hex(&hash.finalize()))
}
