//! Who writes to the tracker's database: one at a time, in the order in which they ask.
//!
//! `SQLite` lets one write at a time as well. But whom it lets wait sleeps, for up to 100 ms, and
//! then looks whether the lock is free; beside a thread that writes without a pause it may not
//! hit such a moment in 5 s, and gives up. Upstream drops that error of an announce, and
//! answers. (Seen of an HTTP announce on a rollback journal, beside some 1,400 UDP announces a
//! second.) So whoever executes what may write has a [`Turn`] meanwhile.
//!
//! Whoever writes from elsewhere, another process, still has the lock of `SQLite` to itself for as
//! long as it likes. What upstream fails to store then is found out and made good, or not
//! acknowledged ([`Turn::is_stored`]).

mod ledger;

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};
use torrust_tracker::core::Tracker;
use torrust_tracker_maintenance::durability::Durability;
use torrust_tracker_maintenance::gate::Counters;
use torrust_tracker_primitives::info_hash::InfoHash;

use ledger::Entry;
pub use ledger::Ledger;

/// Requests over HTTP that may wait for a turn before the UDP thread gets its own: few, as each
/// has a whole turn for itself, or a handful of connections would keep UDP from writing.
pub const PLACES: usize = 4;

/// How the services of one process write to its database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    ledger: Arc<Mutex<Option<Ledger>>>,
    /// Places among those that wait for a turn, for requests that come one by one.
    places: Arc<Semaphore>,
    /// `None`: answers do not wait for the disk.
    durability: Option<Durability>,
}

/// The only one of the process until it is dropped.
#[derive(Debug)]
pub struct Turn<'w> {
    ledger: MutexGuard<'w, Option<Ledger>>,
    _place: Option<SemaphorePermit<'w>>,
}

impl Writer {
    /// One for all services. `None` for what cannot be had: without a ledger nothing is looked
    /// at after it was written, without durability answers do not wait for the disk.
    pub fn new(ledger: Option<Ledger>, durability: Option<Durability>) -> Self {
        Self {
            ledger: Arc::new(Mutex::new(ledger)),
            places: Arc::new(Semaphore::new(PLACES)),
            durability,
        }
    }

    /// What answers to writes wait for.
    pub fn durability(&self) -> Option<&Durability> {
        self.durability.as_ref()
    }

    /// For one request: waits for those that have asked before.
    pub async fn turn(&self) -> Turn<'_> {
        let place = self.places.acquire().await.expect("nobody closes it");
        Turn {
            ledger: self.ledger.lock().await,
            _place: Some(place),
        }
    }

    /// For many requests, of a thread that may block: waits for [`PLACES`] others at most.
    pub fn blocking_turn(&self) -> Turn<'_> {
        Turn {
            ledger: self.ledger.blocking_lock(),
            _place: None,
        }
    }
}

impl Turn<'_> {
    /// Whether this many completed downloads of a torrent are in the database, or are now. If
    /// not, that is counted and logged, and the request that told of the last one must not be
    /// acknowledged. Blocks.
    pub fn is_stored(&self, torrent: InfoHash, completed: u32, counters: &Counters) -> bool {
        let Some(ledger) = self.ledger.as_ref() else {
            return true;
        };
        if completed == 0 {
            return true;
        }
        match ledger.confirm(&torrent.to_hex_string(), completed) {
            Ok(Entry::Stored) => true,
            Ok(Entry::Mended) => {
                tracing::warn!(%torrent, completed, "a counter was not stored at first");
                true
            }
            Err(error) => {
                counters.leave_unconfirmed(1);
                // The first says what is wrong; after that they only need not be forgotten.
                let unconfirmed = counters.unconfirmed();
                if unconfirmed.is_power_of_two() {
                    tracing::error!(%torrent, completed, %error, unconfirmed, "a counter could not be stored; the announce is not acknowledged");
                }
                false
            }
        }
    }
}

/// Counts what executing a request takes that writes, until it is dropped.
#[derive(Debug)]
pub struct Spending<'c> {
    counters: &'c Counters,
    since: Instant,
}

impl<'c> Spending<'c> {
    /// From now on.
    #[expect(clippy::disallowed_methods, reason = "this is when it begins")]
    pub fn begin(counters: &'c Counters) -> Self {
        Self {
            counters,
            since: Instant::now(),
        }
    }
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        self.counters.spend(self.since.elapsed());
    }
}

/// Completed downloads of a torrent, as the tracker counts them in memory.
pub async fn completed(tracker: &Tracker, torrent: InfoHash) -> u32 {
    let scrape = tracker.scrape(&vec![torrent]).await;
    let stats = scrape.files.get(&torrent);
    stats.map_or(0, |stats| stats.downloaded)
}
