//! Other files a backup holds: which, how they are stored, and how they come back.
//!
//! ```text
//!  choose   paths · patterns · directories ─▶ looked at, not opened ─▶ files, and what is left out
//!  store    files ─▶ tar ─▶ zstd ─▶ read back and compared               (files.tar.zst, mode 0600)
//!  restore  a plan, then: read, compared, written beside, renamed
//! ```
//!
//! **The database is not among them**, nor what `SQLite` keeps beside it, nor the backups
//! themselves: opening and closing the one in the service would drop its locks, and the
//! others would grow with every run. They are known by device and inode, so by whatever
//! link, pattern or directory they are reached, from metadata alone and before anything is
//! opened. Nor is anything opened that is not a regular file.
//!
//! **A member is whole.** A file that changes while it is read is taken back out of the
//! archive and read again, and left out if it does not keep still; one that vanishes is left
//! out. What is left out is told, or fails the run, as `backup.missing_files` says.
//!
//! **What comes back stays where it belongs.** The manifest has a list of what is in the
//! archive. A reader goes by both: a member that is not the next of the list, with that
//! path, size and checksum, is damage, and so is anything that is not a regular file. So
//! there is no link to be followed, no `..`, and nothing twice.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};

pub use self::choice::{Choice, Chosen, choose};
pub use self::reach::Bound;
pub use self::reader::check;
pub use self::reserved::Reserved;
pub use self::restored::{Destination, FilesPlan, Objection, PlannedFile, Restored, plan};
pub use self::writer::{Stored, store};
use crate::config::Missing;
use crate::{disk, verify};

mod choice;
mod pattern;
mod reach;
mod reader;
mod reserved;
mod restored;
mod writer;

/// Most files an archive has. A slip of a pattern finds more.
const MOST: usize = 10_000;

/// What was left out that is told one by one; of the rest only the number is.
const TOLD: usize = 10;

/// Something that was wanted and is not stored, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The path or the pattern.
    pub path: PathBuf,
    /// What speaks against it.
    pub why: Why,
}

/// Why something is not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// There is nothing of this name, or nothing that fits the pattern.
    Missing,
    /// It could not be read.
    Unreadable(String),
    /// It was written to whenever it was read.
    Changing,
    /// Its name is not UTF-8, which a manifest must be.
    Unnameable,
    /// It is a pipe, a socket or a device.
    Special,
    /// It is the database, or something else that is never stored.
    Reserved(&'static str),
}

impl Why {
    /// What has gone since it was seen is missing like what never was there.
    fn unreadable(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            _ => Self::Unreadable(error.to_string()),
        }
    }

    /// Whether it was wanted and should have been there.
    fn is_missing(&self) -> bool {
        match self {
            Self::Missing | Self::Unreadable(_) | Self::Changing | Self::Unnameable => true,
            Self::Special | Self::Reserved(_) => false,
        }
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.why {
            Why::Missing => write!(f, "there is no {path}"),
            Why::Unreadable(why) => write!(f, "{path} cannot be read: {why}"),
            Why::Changing => write!(f, "{path} is written to all the time"),
            Why::Unnameable => write!(f, "the name of {path} is not UTF-8"),
            Why::Special => write!(f, "{path} is not a regular file"),
            Why::Reserved(what) => write!(f, "{path} is {what}"),
        }
    }
}

/// Why files were not stored, or not restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They are larger than is allowed.
    #[error(
        "the files to be stored have more than {} together, {} alone {}; make the patterns of \
         backup.files narrower, add to backup.exclude, or raise backup.files_limit",
        bytesize::ByteSize(*.limit), .largest.display(), bytesize::ByteSize(*.bytes)
    )]
    TooLarge {
        /// `backup.files_limit`.
        limit: u64,
        /// The largest of those looked at.
        largest: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// There are too many.
    #[error(
        "there are more than {MOST} files to be stored, among them {}; make the patterns of \
         backup.files narrower, or add to backup.exclude", .among.display()
    )]
    TooMany {
        /// One of them.
        among: PathBuf,
    },
    /// The search for them leads too far.
    #[error(
        "the search for the files to be stored was given up in {}, as {bound}: a link may lead to a \
         tree of directories that is not meant; make the patterns of backup.files narrower, or add \
         to backup.exclude what it should not go into", .at.display()
    )]
    TooFar {
        /// What was met.
        bound: Bound,
        /// Where.
        at: PathBuf,
    },
    /// Some are missing, and `backup.missing_files` says that this is an error.
    #[error(
        "files that are to be stored are not to be had: {}; correct backup.files, or set \
         backup.missing_files = \"warn\"", told(.0)
    )]
    Missing(Vec<LeftOut>),
    /// What is never stored is named.
    #[error(
        "backup.files takes what it must not: {}; name others, or add it to backup.exclude",
        told(.0)
    )]
    Reserved(Vec<LeftOut>),
    /// It was asked to end before it was done.
    #[error("storing the files was given up: {why}")]
    Cancelled {
        /// Why it was asked to.
        why: String,
    },
    /// The backup holds none.
    #[error("backup {0} holds no files besides the database")]
    None(crate::catalogue::BackupId),
    /// Nothing was restored, because of this.
    #[error("the files were not restored: {}", listed(.0))]
    Refused(Vec<Objection>),
    /// The directory to restore to cannot be one.
    #[error("files cannot be restored to {}: {why}", .path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// What is wrong and how to mend it.
        why: &'static str,
    },
    /// Some were replaced, and then it went wrong.
    #[error(
        "only {replaced} of {of} files were restored, the former ones are kept aside: {source}; \
         put that right and restore again"
    )]
    Incomplete {
        /// How many were.
        replaced: usize,
        /// How many there are.
        of: usize,
        /// What went wrong.
        source: disk::Error,
    },
    /// What was stored is not good, or could not be read.
    #[error(transparent)]
    Verify(#[from] verify::Error),
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] disk::Error),
}

/// Whether what was left out is an error, as `missing_files` says.
///
/// # Errors
///
/// [`Error::Missing`].
pub fn check_missing(left_out: &[LeftOut], missing: Missing) -> Result<(), Error> {
    let absent = left_out.iter().filter(|left| left.why.is_missing());
    let absent: Vec<_> = absent.cloned().collect();
    match missing {
        Missing::Error if !absent.is_empty() => Err(Error::Missing(absent)),
        _ => Ok(()),
    }
}

/// Whether the configuration names nothing that is never stored.
///
/// # Errors
///
/// [`Error::Reserved`].
pub fn check_reserved(left_out: &[LeftOut]) -> Result<(), Error> {
    let is_reserved = |left: &&LeftOut| matches!(left.why, Why::Reserved(_));
    let reserved: Vec<_> = left_out.iter().filter(is_reserved).cloned().collect();
    if reserved.is_empty() {
        return Ok(());
    }
    Err(Error::Reserved(reserved))
}

/// What to say of a backup that holds all but these.
#[must_use]
pub fn warning(left_out: &[LeftOut]) -> Option<String> {
    (!left_out.is_empty()).then(|| format!("left out of the files: {}", told(left_out)))
}

fn told(left_out: &[LeftOut]) -> String {
    let first: BTreeSet<_> = left_out.iter().map(ToString::to_string).collect();
    let more = first.len().saturating_sub(TOLD);
    let mut told: Vec<_> = first.into_iter().take(TOLD).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told.join("; ")
}

fn listed(objections: &[Objection]) -> String {
    let objections: Vec<_> = objections.iter().map(ToString::to_string).collect();
    objections.join("; ")
}

/// The name of a file in the archive: its path without the leading slash. `None` for what
/// is not, letter by letter, a path from the root through names alone.
fn member(path: &Path) -> Option<&Path> {
    let member = path.strip_prefix("/").ok()?;
    let through_names = member
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    // Components leave out what does not matter: `a//b`, `a/./b`, `a/`.
    let plainly: PathBuf = path.components().collect();
    let is_plain = plainly.as_os_str() == path.as_os_str();
    let name = path.to_str()?;
    let is_name = !member.as_os_str().is_empty() && !name.contains('\0');
    (through_names && is_plain && is_name).then_some(member)
}

#[cfg(test)]
mod tests;
