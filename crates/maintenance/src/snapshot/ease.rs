//! How long a copy has time for others: those who write to the same disk while the pin holds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Leisure;
use crate::disk;

/// A device that took longer for one write was busy, or asleep.
const REST_AT_MOST: Duration = Duration::from_millis(100);

/// That writers go on while the file is copied, and every commit of theirs is synced to the
/// disk the copy is written to, perhaps. A copy as fast as it can takes the disk for itself, and
/// they wait: so it goes by small requests, and rests after each write for as long as that took.
///
/// But what they commit stays in the log until the copy is made, and a log that grows too much
/// ends the run, as does the end of the window. So that is for as long as there is leisure; then
/// the copy hurries, and does not begin to rest again.
#[derive(Debug)]
pub(super) struct Ease<'a> {
    /// The database, which is read ahead of once the copy hurries.
    file: &'a File,
    log: PathBuf,
    /// Its size when the copy began.
    before: u64,
    leisure: Leisure,
    is_over: AtomicBool,
}

impl<'a> Ease<'a> {
    /// For a copy of the database at `path`, with links resolved, from its descriptor.
    pub(super) fn begin(file: &'a File, path: &Path, leisure: Leisure) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        let log = PathBuf::from(log);
        disk::set_readahead(file, false);
        Self {
            file,
            before: size(&log).unwrap_or(0),
            log,
            leisure,
            is_over: AtomicBool::new(false),
        }
    }

    /// Whether there is still time, as far as it was last looked.
    pub(super) fn lasts(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    /// How long the disk is left to others after a write that took so long. Looks whether there
    /// is time.
    pub(super) fn rest(&self, took: Duration, now: Instant) -> Duration {
        // A log that cannot be looked at may be of any size.
        let grown = size(&self.log).map(|bytes| bytes.saturating_sub(self.before));
        let has_time =
            grown.is_some_and(|grown| grown < self.leisure.log_growth) && now < self.leisure.until;
        if self.lasts() && !has_time {
            self.is_over.store(true, Ordering::Relaxed);
            disk::set_readahead(self.file, true);
        }
        if self.lasts() {
            took.min(REST_AT_MOST)
        } else {
            Duration::ZERO
        }
    }
}

/// Bytes of a file, from its metadata: it is one that must not be opened.
fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.len())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a clock, and what SQLite does")]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(1);

    #[test]
    fn it_rests_until_the_log_has_grown_and_never_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, log) = (directory.path().join("db"), directory.path().join("db-wal"));
        let grown = |bytes: usize| fs::write(&log, vec![0; bytes]).expect("it is written");
        fs::write(&path, b"").expect("it is written");
        let file = File::open(&path).expect("it is there");
        let now = Instant::now();
        let leisure = |log_growth| Leisure {
            log_growth,
            until: now + Duration::from_secs(1),
        };
        grown(50);
        let ease = Ease::begin(&file, &path, leisure(100));
        for (bytes, rest) in [
            (50, TOOK),
            (149, TOOK),
            (150, Duration::ZERO),
            (50, Duration::ZERO),
        ] {
            grown(bytes);
            assert_eq!(ease.rest(TOOK, now), rest, "{bytes}");
            assert_eq!(ease.lasts(), rest == TOOK, "{bytes}");
        }
        let none = Ease::begin(&file, &path, leisure(0));
        assert_eq!(none.rest(TOOK, now), Duration::ZERO);
        // Nobody knows how large a log is that is not there to be looked at.
        let unknown = Ease::begin(&file, &path, leisure(100));
        fs::remove_file(&log).expect("it is there");
        assert_eq!(unknown.rest(TOOK, now), Duration::ZERO);
    }

    #[test]
    fn it_rests_until_the_time_is_short_and_no_longer_than_a_disk_may_need() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("db");
        fs::write(&path, b"").expect("it is written");
        fs::write(directory.path().join("db-wal"), b"").expect("it is written");
        let file = File::open(&path).expect("it is there");
        let now = Instant::now();
        let until = now + Duration::from_secs(1);
        let leisure = Leisure {
            log_growth: 1,
            until,
        };
        let ease = Ease::begin(&file, &path, leisure);
        assert_eq!(ease.rest(Duration::from_secs(60), now), REST_AT_MOST);
        assert_eq!(ease.rest(TOOK, until), Duration::ZERO);
        assert!(!ease.lasts());
    }
}
