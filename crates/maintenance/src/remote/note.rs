//! How far the upload of one file is, so that the next start can go on.

use serde::{Deserialize, Serialize};

use crate::catalogue::{Artifact, BackupId, Catalogue, SMALL_FILE};
use crate::disk;

/// How far the upload of a file is: one a backup, as its files are uploaded one after the
/// other. Beside the backups, written by rename after every part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Where to.
    pub(super) remote: String,
    /// The file's name.
    pub(super) name: String,
    /// Its SHA-256, lower-case hex.
    pub(super) sha256: String,
    /// Bytes of a part; the last one may have fewer.
    pub(super) part_bytes: u64,
    /// What the server calls the upload.
    pub(super) upload: String,
    /// What it calls the parts it has, in their order.
    pub(super) parts: Vec<String>,
}

impl Note {
    /// Whether it is of this file, on its way to this place, in such parts.
    pub(super) fn is_of(&self, artifact: &Artifact, remote: &str, part_bytes: u64) -> bool {
        self.remote == remote
            && self.name == artifact.name
            && self.sha256 == artifact.stored_sha256
            && self.part_bytes == part_bytes
    }

    /// The note of a backup; `None` if there is none, or it cannot be read: then the file is
    /// uploaded from its beginning.
    pub(super) fn read(catalogue: &Catalogue, id: &BackupId) -> Option<Self> {
        let path = catalogue.upload_path(id);
        let json = path
            .exists()
            .then(|| catalogue.disk().read(&path, SMALL_FILE).ok())??;
        serde_json::from_slice(&json).ok()
    }

    pub(super) fn write(&self, catalogue: &Catalogue, id: &BackupId) -> Result<(), disk::Error> {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let path = catalogue.upload_path(id);
        catalogue.disk().private().write_atomically(&path, &json)
    }

    pub(super) fn remove(catalogue: &Catalogue, id: &BackupId) -> Result<(), disk::Error> {
        let path = catalogue.upload_path(id);
        if path.exists() {
            catalogue.disk().remove_file(&path)?;
        }
        Ok(())
    }
}
