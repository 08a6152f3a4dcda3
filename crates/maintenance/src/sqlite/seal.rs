//! Whether a pinned file is still what it was when it was pinned, from the outside.
//!
//! A pin keeps out whoever keeps to SQLite's locks. What does not (a program that opens the
//! file with `nolock=1` or `immutable=1`, a restore by `cp`, a file system that tells its
//! hosts apart) shows in the file's metadata, and with a sidecar's copy at stake that is
//! looked at. The time of the last change (`ctime`) is looked at as well as that of the last
//! write, which whoever writes can set back. A write in the same tick of the file system's
//! clock as the flush before the pin, which leaves the size as it is, does not show; the tick
//! is 10 ms at most on Linux.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{Error, Pin, PinHandle};
use crate::status::PinnedFile;

/// A pin and the metadata of its file, as they were to begin with.
#[derive(Debug)]
pub struct Seal {
    path: PathBuf,
    handle: PinHandle,
    file: Metadata,
}

/// What a write changes, and what tells one file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Metadata {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    /// Of the file's attributes, its contents included: seconds and nanoseconds.
    changed: (i64, i64),
}

impl Seal {
    /// Seals what is pinned. To be called as soon as it is.
    ///
    /// # Errors
    ///
    /// When the file system does not tell what the file is, or it is another.
    pub fn of(pin: &Pin) -> Result<Self, Error> {
        let path = pin.facts.path.clone();
        let file = match fs::metadata(&path) {
            Ok(found) => Metadata::from(&found),
            Err(source) => {
                let doing = "see what is";
                return Err(Error::Io {
                    doing,
                    path,
                    source,
                });
            }
        };
        if (file.device, file.inode) != (pin.facts.device, pin.facts.inode) {
            return Err(Error::Replaced { path });
        }
        let handle = pin.handle();
        Ok(Self { path, handle, file })
    }

    /// Bytes of the file when it was sealed.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.file.bytes
    }

    /// When the file was last written to before it was sealed: nanoseconds since 1970.
    #[must_use]
    pub fn modified(&self) -> i64 {
        self.file.modified
    }

    /// What has broken, if anything has.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        let path = self.path.display();
        if !self.handle.stands() {
            return Some(format!(
                "SQLite ended the transaction that kept {path} still; the disk may have failed"
            ));
        }
        let now = match fs::metadata(&self.path) {
            Ok(found) => Metadata::from(&found),
            Err(error) => return Some(format!("{path} cannot be looked at any more: {error}")),
        };
        let changes = self.file.changes(&now);
        (!changes.is_empty()).then(|| {
            format!(
                "{path} changed while it was pinned ({changes}): another program wrote to it \
                 or replaced it without regard to SQLite's locks; find out which"
            )
        })
    }
}

impl Metadata {
    fn changes(&self, now: &Self) -> String {
        let mut changes = String::new();
        let mut note = |what: &str, before: u64, after: u64| {
            if before != after {
                // Writing to a text cannot fail.
                let _ = write!(changes, "{what} {before} became {after}, ");
            }
        };
        note("device", self.device, now.device);
        note("inode", self.inode, now.inode);
        note("size", self.bytes, now.bytes);
        if self.modified != now.modified {
            changes.push_str("it was written to, ");
        } else if self.changed != now.changed {
            changes.push_str("its attributes were changed, or the time of a write set back, ");
        }
        changes.truncate(changes.trim_end_matches(", ").len());
        changes
    }
}

impl From<&fs::Metadata> for Metadata {
    fn from(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: PinnedFile::modified_of(metadata),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests;
