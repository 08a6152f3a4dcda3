//! `manifest.json`: what a backup is, how it was made and what was checked. Written once;
//! what is learned later (verifications, protection) goes beside it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::BackupId;
use super::flaw::Unread;
use crate::config::Depth;
use crate::excerpt::Partial;
use crate::mysql::{self, Consistency};
use crate::snapshot::Way;
use crate::window::RunId;

/// Version of the manifest this library writes and the newest it reads. It grows when an
/// older reader would misunderstand; a field more is no reason, readers ignore those.
pub const MANIFEST_FORMAT: u32 = 1;

/// `manifest.json`: what a backup is, how it was made and what was checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`] at writing.
    pub format: u32,
    /// The backup's own id.
    pub id: BackupId,
    /// The run that made it.
    pub run: RunId,
    /// When the run began.
    pub began: DateTime<Utc>,
    /// The instant the backup shows: the pin was taken.
    pub pinned: DateTime<Utc>,
    /// When it was published.
    pub published: DateTime<Utc>,
    /// The service and its version, as the binary states them.
    pub service: String,
    /// Version of this library.
    pub library: String,
    /// `SQLite` version linked.
    pub sqlite: String,
    /// Database driver, `sqlite3` or `mysql`.
    #[serde(default = "sqlite3")]
    pub driver: String,
    /// Path of the database that was copied; of a server its address, without the password.
    pub source: PathBuf,
    /// Journal mode found: `wal`, `delete`, `truncate` or `persist`; `none` of a server.
    pub journal_mode: String,
    /// Whether the pin was on read mark 0, where every writer pays while it lasts.
    /// `None`: rollback journal, or it could not be told.
    pub read_mark_zero: Option<bool>,
    /// Bytes in a page; 0 of a server.
    pub page_size: u32,
    /// Pages of the database that was copied; an excerpt of it has fewer.
    pub page_count: u64,
    /// How it was read.
    pub method: Way,
    /// Milliseconds the gate was closed, all closures of the run together.
    pub pause_ms: f64,
    /// Seconds from ready to the durable raw copy; where there is none, to the end of the
    /// work under the pin.
    pub copy_seconds: f64,
    /// Seconds of these the copy left the disk to those who write.
    #[serde(default)]
    pub rested_seconds: f64,
    /// Bytes the write-ahead log's file grew by while the database was pinned; `None`: there is
    /// no log, or it was not looked at.
    #[serde(default)]
    pub wal_growth: Option<u64>,
    /// Bytes a second the copy was limited to, if it was.
    #[serde(default)]
    pub bandwidth: Option<u64>,
    /// How it was dumped, if it is of a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<DumpOf>,
    /// The stored file.
    pub database: Artifact,
    /// zstd's level; `None` if it is stored as it is, or was stored before levels were noted.
    #[serde(default)]
    pub compression_level: Option<i32>,
    /// Which part of the database it is; `None`: all of it.
    #[serde(default)]
    pub partial: Option<Partial>,
    /// The other files stored with it, if there are any.
    #[serde(default)]
    pub files: Option<StoredFiles>,
    /// Rows of each table.
    pub rows: BTreeMap<String, u64>,
    /// The structural check it passed before it was published.
    pub verified: Depth,
    /// Seconds that check took; `None` if it was made before they were noted.
    #[serde(default)]
    pub verify_seconds: Option<f64>,
    /// What the operator should look at, though the backup is good.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// How a server was dumped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpOf {
    /// What the dump program says of itself.
    pub client: String,
    /// The server's version.
    pub server: String,
    /// How all tables are of one instant.
    pub consistent_by: Consistency,
}

/// One stored file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Name inside the backup's directory, `database.sqlite3.zst`.
    pub name: String,
    /// Bytes as stored.
    pub stored_bytes: u64,
    /// SHA-256 of the stored bytes, lower-case hex.
    pub stored_sha256: String,
    /// Bytes of what is inside: the database, or the archive of files.
    pub raw_bytes: u64,
    /// SHA-256 of what is inside, lower-case hex.
    pub raw_sha256: String,
    /// `zstd` or `none`.
    pub compression: String,
    /// How it is encrypted, after it was compressed; `None`: it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<Encrypted>,
}

/// How a stored file is encrypted. Who can open it is not said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encrypted {
    /// [`Encrypted::FORMAT`].
    pub format: String,
    /// How many recipients the operator has named. In the file there is one more: the run
    /// that made it, whose identity was never stored.
    pub recipients: usize,
}

impl Encrypted {
    /// The first line of such a file, which names its format.
    pub const FORMAT: &str = "age-encryption.org/v1";
}

/// Files other than the database, in one archive (tar, POSIX.1-1988 with GNU's long names).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFiles {
    /// The stored archive.
    pub artifact: Artifact,
    /// What is in it, in its order.
    pub entries: Vec<StoredFile>,
}

/// One file of the archive. Owner and time are in the archive alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    /// Where it was: absolute, its directory without links. In the archive it has this path
    /// without the leading slash.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its contents, lower-case hex.
    pub sha256: String,
    /// Its permissions (`0o640` and so on), as a number.
    pub mode: u32,
}

impl Manifest {
    /// Whether it is of the whole database. Only such a backup stands in for a full one.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.partial.is_none()
    }

    /// Whether it is SQL that a server makes a database of, not a database.
    #[must_use]
    pub fn is_dump(&self) -> bool {
        self.driver == mysql::DRIVER
    }

    /// Bytes that were copied from the database: what [`Self::copy_seconds`] was taken for.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        match self.partial {
            None => self.database.raw_bytes,
            Some(_) => self.page_count * u64::from(self.page_size),
        }
    }

    /// The stored files that a backup consists of, besides what describes it.
    pub fn artifacts(&self) -> impl Iterator<Item = &Artifact> {
        let files = self.files.iter().map(|files| &files.artifact);
        std::iter::once(&self.database).chain(files)
    }

    /// How the backup is encrypted, if it is.
    #[must_use]
    pub fn encrypted(&self) -> Option<&Encrypted> {
        self.artifacts()
            .find_map(|artifact| artifact.encrypted.as_ref())
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.artifacts().map(|artifact| artifact.stored_bytes).sum()
    }

    /// Reads a manifest, or says what is wrong with it.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, Unread> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(json)
            .map_err(|error| format!("manifest.json does not parse: {error}"))?;
        match format {
            MANIFEST_FORMAT => Ok(serde_json::from_slice(json)
                .map_err(|error| format!("manifest.json does not parse: {error}"))?),
            newer if newer > MANIFEST_FORMAT => Err(Unread::newer(format!(
                "written by a newer version (manifest format {newer}, this one reads up to \
                 {MANIFEST_FORMAT}): use that version"
            ))),
            unknown => Err(format!("manifest format {unknown} has never existed").into()),
        }
    }

    /// As it is stored: JSON for people, one line's end at its end.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }
}

/// The driver of manifests that do not name it.
fn sqlite3() -> String {
    "sqlite3".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::testing;

    #[test]
    fn what_older_versions_did_not_write_is_not_missed() -> Result<(), Box<dyn std::error::Error>> {
        let id = BackupId::try_from("20261122T030000Z".to_owned())?;
        let artifact = Artifact {
            name: "database.sqlite3.zst".into(),
            stored_bytes: 1,
            stored_sha256: String::new(),
            raw_bytes: 2,
            raw_sha256: String::new(),
            compression: "zstd".into(),
            encrypted: None,
        };
        let written = testing::manifest(&id, artifact);
        let mut json = serde_json::to_value(&written)?;
        let fields = json.as_object_mut().ok_or("a table")?;
        for since in [
            "driver",
            "bandwidth",
            "rested_seconds",
            "wal_growth",
            "compression_level",
            "verify_seconds",
            "warnings",
        ] {
            assert!(fields.remove(since).is_some(), "{since}");
        }
        let read = Manifest::parse(&serde_json::to_vec(&json)?)?;
        let expected = Manifest {
            bandwidth: None,
            rested_seconds: 0.0,
            wal_growth: None,
            compression_level: None,
            verify_seconds: None,
            warnings: Vec::new(),
            ..written
        };
        assert_eq!(read, expected);
        Ok(())
    }

    #[test]
    fn every_way_there_is_reads_back_as_it_is_shown() -> serde_json::Result<()> {
        for way in [Way::Clone, Way::File, Way::Pages, Way::Stream, Way::Dump] {
            assert_eq!(serde_json::to_value(way)?, way.to_string());
            assert_eq!(serde_json::from_value::<Way>(way.to_string().into())?, way);
        }
        Ok(())
    }
}
