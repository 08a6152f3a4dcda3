//! Pure: how long announces have to wait for a copy, reckoned by how long they had to.
//!
//! A sidecar's tools, and the disk it writes to, are not known here, and its backups are not
//! looked at. Of a copy of our own the manifests tell, but not of one that was given up. What is
//! known is how long the gate was closed for the copies of this process's life. After a restart
//! that is learned anew.

use std::collections::VecDeque;
use std::time::Duration;

use super::forecast::{RECENT, TELLING, as_rate};

/// So many copies that were not done in time, and none that was, and the next is not expected
/// to be. One slow night must not keep the next run from beginning.
const HOPELESS: usize = 2;

/// After so many runs that did not begin for it one is tried again: the disk may be another.
const TRY_AGAIN: u32 = 6;

/// Beyond the time in which a copy was not done, what it is reckoned to need: it is not known.
const UNDONE: u32 = 2;

/// The copies of late, newest first.
#[derive(Debug, Default)]
pub(super) struct Pace {
    recent: VecDeque<Held>,
    refused: u32,
}

/// For how long announces were held for one.
#[derive(Debug, Clone, Copy)]
struct Held {
    bytes: u64,
    time: Duration,
    done: bool,
}

impl Pace {
    /// A database of so many bytes was copied, or not, while announces were held for this time.
    pub(super) fn learn(&mut self, bytes: u64, time: Duration, done: bool) {
        // What took no time says nothing about a larger database.
        if bytes >= TELLING {
            self.recent.push_front(Held { bytes, time, done });
            self.recent.truncate(RECENT);
        }
    }

    /// How long it will take; `None`: there is nothing to go by. Where copies were never done in
    /// time, announces were held for them in vain, which is not to be every night; now and then
    /// one is tried all the same.
    pub(super) fn expect(&mut self, bytes: u64) -> Option<Duration> {
        let done = self.recent.iter().filter(|held| held.done);
        if let Some(best) = done.map(|held| held.scaled_to(bytes)).min() {
            return Some(best);
        }
        if self.recent.len() < HOPELESS {
            return None;
        }
        if self.refused == TRY_AGAIN {
            *self = Self::default();
            return None;
        }
        self.refused += 1;
        let longest = self.recent.iter().map(|held| held.scaled_to(bytes)).max()?;
        Some(longest.saturating_mul(UNDONE))
    }
}

impl Held {
    fn scaled_to(self, bytes: u64) -> Duration {
        let seconds = self.time.as_secs_f64() * as_rate(bytes) / as_rate(self.bytes.max(1));
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests;
