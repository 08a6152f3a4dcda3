//! Whether a database, an artifact or a whole backup is what it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use self::artifact::{Encoding, checksum, compress_from, read_into};
pub use self::artifact::{artifact, compress, store, unpack};
pub(crate) use self::artifact::{opened, opens};
pub(crate) use self::dump::dump;
pub use self::foreign::{foreign, unpack_foreign, unpacked_size};
pub(crate) use self::structure::{CHECKING, immutable_uri, structure_of};
pub use self::structure::{expected, structure};
use crate::catalogue::{self, Backup, MANIFEST, SUMS};
use crate::config::Depth;
use crate::disk::{self, Disk};
use crate::files;
use crate::snapshot::Watch;

mod artifact;
mod dump;
mod foreign;
mod structure;

/// What a check has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// How deep it went.
    pub depth: Depth,
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Why something could not be verified, or what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was read, and it is not what it should be.
    #[error("{} is damaged: {}", .path.display(), .findings.join("; "))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; at most 100 findings.
        findings: Vec<String>,
    },
    /// It is encrypted, and nothing that was given opens it.
    #[error(
        "{} is encrypted for {recipients} recipient{}, and {}: name a file with an identity of \
         one of them with --identity",
        .path.display(),
        if *.recipients == 1 { "" } else { "s" },
        match .given {
            0 => "no identity was given".to_owned(),
            1 => "the identity given is of none of them".to_owned(),
            given => format!("the {given} identities given are of none of them"),
        }
    )]
    Closed {
        /// The file.
        path: PathBuf,
        /// How many it is encrypted for.
        recipients: usize,
        /// How many identities were tried.
        given: usize,
    },
    /// It was asked to end before it was done.
    #[error("verification was given up: {why}")]
    Cancelled {
        /// Why it was asked to.
        why: String,
    },
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// `SQLite` could not read it, for a reason other than damage.
    #[error("could not check {}: {source}", .path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What it said.
        source: rusqlite::Error,
    },
}

impl Error {
    pub(crate) fn corrupt(path: &Path, finding: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            findings: vec![finding.into()],
        }
    }
}

/// Verifies a whole backup: that manifest and checksums are those that were published,
/// that the artifacts are; and with a depth, that the database inside is sound and its
/// tables have the rows the manifest says. One that is encrypted is opened with what it
/// brings along ([`Backup::opened_with`]); without that, and without a depth, the checksums
/// of what is stored are compared and no others.
///
/// A dump of a server that can be opened is read and its rows are counted at any depth; there is
/// no structure of it to be checked without a server.
///
/// For that the database is unpacked into the directory `scratch`, as
/// `<id>.unpacked.sqlite3`, and removed again; one stored uncompressed is checked in place.
///
/// # Errors
///
/// [`Error::Corrupt`] with what is wrong; [`Error::Closed`]; or if it cannot be read,
/// `scratch` not be written, or `watch` is cancelled.
pub fn backup(
    backup: &Backup,
    depth: Option<Depth>,
    scratch: &Path,
    disk: &Disk,
    watch: &Watch,
) -> Result<Option<Report>, Error> {
    let expected = &backup.manifest.database;
    let stored = backup.dir.join(&expected.name);
    let identities = backup.identities.as_ref();
    if let Some(stored) = &backup.manifest.files {
        let path = backup.dir.join(&stored.artifact.name);
        files::check(&path, stored, identities, disk, watch)?;
    }
    match depth {
        _ if backup.manifest.is_dump() => {
            published(backup, disk)?;
            if expected.encrypted.is_some() && identities.is_none() && depth.is_none() {
                artifact(&stored, expected, None, disk, watch)?;
                return Ok(None);
            }
            let rows = &backup.manifest.rows;
            dump(&stored, expected, rows, identities, disk, watch).map(Some)
        }
        None => {
            published(backup, disk)?;
            artifact(&stored, expected, identities, disk, watch)?;
            Ok(None)
        }
        Some(depth) if expected.compression == "none" && expected.encrypted.is_none() => {
            published(backup, disk)?;
            artifact(&stored, expected, identities, disk, watch)?;
            database(&stored, backup, depth, watch).map(Some)
        }
        Some(depth) => {
            let unpacked = scratch.join(format!("{}.unpacked.sqlite3", backup.manifest.id));
            let checked = unpack_checked(backup, &unpacked, depth, disk, watch);
            if unpacked.exists() {
                let removed = disk.remove_file(&unpacked);
                // A finding is worth more than the trouble of tidying up after it.
                return checked.and_then(|report| Ok(removed.map(|()| Some(report))?));
            }
            checked.map(Some)
        }
    }
}

/// Unpacks the database of a backup into the new file `to` and verifies everything there
/// is to verify on the way: what was published, the artifact, the structure, the rows.
///
/// # Errors
///
/// As [`backup`]. What was written of `to` is left and not to be trusted.
pub fn unpack_checked(
    backup: &Backup,
    to: &Path,
    depth: Depth,
    disk: &Disk,
    watch: &Watch,
) -> Result<Report, Error> {
    let expected = &backup.manifest.database;
    published(backup, disk)?;
    let (stored, identities) = (backup.dir.join(&expected.name), backup.identities.as_ref());
    unpack(&stored, expected, identities, to, disk, watch)?;
    database(to, backup, depth, watch)
}

/// That a backup can be opened with what it brings along. Reads the first bytes of its files.
///
/// # Errors
///
/// [`Error::Closed`]; or if it cannot be read.
pub fn check_opens(backup: &Backup, disk: &Disk) -> Result<(), Error> {
    let identities = backup.identities.as_ref();
    for artifact in backup.manifest.artifacts() {
        opens(&backup.dir.join(&artifact.name), artifact, identities, disk)?;
    }
    Ok(())
}

/// Whether an unpacked database is sound and has the rows its manifest says.
fn database(path: &Path, backup: &Backup, depth: Depth, watch: &Watch) -> Result<Report, Error> {
    let report = structure(path, depth, watch)?;
    if report.rows == backup.manifest.rows {
        return Ok(report);
    }
    Err(Error::Corrupt {
        path: path.to_owned(),
        findings: differing_rows(&backup.manifest.rows, &report.rows),
    })
}

/// Manifest and checksums, if they are, byte for byte, those that were published.
///
/// # Errors
///
/// [`Error::Corrupt`]; or if they cannot be read.
pub(crate) fn published(backup: &Backup, disk: &Disk) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (manifest, sums) = (backup.dir.join(MANIFEST), backup.dir.join(SUMS));
    let json = disk.read(&manifest, catalogue::SMALL_FILE)?;
    let found = disk.read(&sums, catalogue::SMALL_FILE)?;
    if found != catalogue::sums(&json, &backup.manifest).as_bytes() {
        let finding = format!("it does not agree with {MANIFEST}; one of the two has changed");
        return Err(Error::corrupt(&sums, finding));
    }
    Ok((json, found))
}

/// Where two counts of rows differ, that of the manifest and that of the database.
pub(crate) fn differing_rows(
    expected: &BTreeMap<String, u64>,
    found: &BTreeMap<String, u64>,
) -> Vec<String> {
    let rows = |count: Option<&u64>| match count {
        Some(rows) => format!("{rows} rows"),
        None => "none".to_owned(),
    };
    let tables: BTreeSet<_> = expected.keys().chain(found.keys()).collect();
    tables
        .into_iter()
        .filter(|table| expected.get(*table) != found.get(*table))
        .map(|table| {
            format!(
                "table {table}: {} in the manifest, {} in the database",
                rows(expected.get(table)),
                rows(found.get(table))
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
