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

use tokio::sync::{Mutex, MutexGuard};
use torrust_tracker::core::Tracker;
use torrust_tracker_maintenance::durability::Durability;
use torrust_tracker_maintenance::gate::Counters;
use torrust_tracker_primitives::info_hash::InfoHash;

use ledger::Entry;
pub use ledger::Ledger;

/// How the services of one process write to its database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    ledger: Arc<Mutex<Option<Ledger>>>,
    /// `None`: answers do not wait for the disk.
    durability: Option<Durability>,
}

/// The only one of the process until it is dropped.
#[derive(Debug)]
pub struct Turn<'w>(MutexGuard<'w, Option<Ledger>>);

impl Writer {
    /// One for all services. `None` for what cannot be had: without a ledger nothing is looked
    /// at after it was written, without durability answers do not wait for the disk.
    pub fn new(ledger: Option<Ledger>, durability: Option<Durability>) -> Self {
        Self {
            ledger: Arc::new(Mutex::new(ledger)),
            durability,
        }
    }

    /// What answers to writes wait for.
    pub fn durability(&self) -> Option<&Durability> {
        self.durability.as_ref()
    }

    /// Waits for those that have asked before.
    pub async fn turn(&self) -> Turn<'_> {
        Turn(self.ledger.lock().await)
    }

    /// As [`Writer::turn`], of a thread that may block.
    pub fn blocking_turn(&self) -> Turn<'_> {
        Turn(self.ledger.blocking_lock())
    }
}

impl Turn<'_> {
    /// Whether this many completed downloads of a torrent are in the database, or are now. If
    /// not, that is counted and logged, and the request that told of the last one must not be
    /// acknowledged. Blocks.
    pub fn is_stored(&self, torrent: InfoHash, completed: u32, counters: &Counters) -> bool {
        let Some(ledger) = self.0.as_ref() else {
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

/// Completed downloads of a torrent, as the tracker counts them in memory.
pub async fn completed(tracker: &Tracker, torrent: InfoHash) -> u32 {
    let scrape = tracker.scrape(&vec![torrent]).await;
    let stats = scrape.files.get(&torrent);
    stats.map_or(0, |stats| stats.downloaded)
}
