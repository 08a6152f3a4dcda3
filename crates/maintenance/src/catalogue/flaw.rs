//! What keeps a backup from being read as one: damage is not the only thing.

use std::fmt;
use std::io;

use serde::Serialize;

use crate::disk;

/// Why what has the name of a backup cannot be used as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flaw {
    /// It could not be looked at: the owner and the mode, or the device, did not let it. It may
    /// be a good one.
    Unreadable,
    /// A newer version wrote it, and can read it.
    Newer,
    /// It was looked at, and is not what is published.
    Damaged,
}

/// The rest of a sentence about a backup.
impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable | Self::Newer => "cannot be read",
            Self::Damaged => "is broken",
        })
    }
}

/// The flaw of a backup that could not be read, in words too.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Unread {
    pub(crate) flaw: Flaw,
    pub(crate) why: String,
}

impl Unread {
    pub(super) fn newer(why: String) -> Self {
        let flaw = Flaw::Newer;
        Self { flaw, why }
    }

    /// What became of looking at something that a backup has. That it is not there, or is
    /// something else, is found out by looking; of all else that an operating system says
    /// nothing follows for the backup.
    pub(super) fn looking(error: &io::Error, why: String) -> Self {
        use io::ErrorKind::{NotADirectory, NotFound};
        let is_seen = matches!(error.kind(), NotFound | NotADirectory);
        let flaw = if is_seen || error.raw_os_error().is_none() {
            Flaw::Damaged
        } else {
            Flaw::Unreadable
        };
        Self { flaw, why }
    }
}

/// What was read, and is wrong.
impl From<String> for Unread {
    fn from(why: String) -> Self {
        let flaw = Flaw::Damaged;
        Self { flaw, why }
    }
}

impl From<disk::Error> for Unread {
    fn from(error: disk::Error) -> Self {
        Self::looking(&error.source, error.to_string())
    }
}

impl From<Unread> for String {
    fn from(unread: Unread) -> Self {
        unread.why
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn damage_is_only_what_was_seen() {
        for (source, flaw) in [
            (Errno::NOENT.into(), Flaw::Damaged),
            (Errno::NOTDIR.into(), Flaw::Damaged),
            (io::Error::other("it is not a regular file"), Flaw::Damaged),
            (Errno::ACCESS.into(), Flaw::Unreadable),
            (Errno::PERM.into(), Flaw::Unreadable),
            (Errno::MFILE.into(), Flaw::Unreadable),
            (Errno::NFILE.into(), Flaw::Unreadable),
            (Errno::NOMEM.into(), Flaw::Unreadable),
            (Errno::IO.into(), Flaw::Unreadable),
            (Errno::STALE.into(), Flaw::Unreadable),
        ] {
            let error = disk::Error::new("open", Path::new("manifest.json"), source);
            let told = error.to_string();
            let unread = Unread::from(error);
            assert_eq!((unread.flaw, unread.why.as_str()), (flaw, told.as_str()));
        }
        let read = Unread::from("x".to_owned());
        assert_eq!(read.flaw, Flaw::Damaged);
        assert_eq!(String::from(read), "x");
    }
}
