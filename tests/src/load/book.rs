//! The announces in flight and the torrents nobody is announcing.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use super::account::{Account, Counts, Door, Outcome, Record};
use crate::announce::{Announce, Event, Torrent};

/// Every announce of the load, and the torrents nobody is announcing.
pub(super) struct Book {
    pages: Mutex<Pages>,
    pub(super) counts: watch::Sender<Counts>,
    transaction: AtomicI32,
}

struct Pages {
    idle: VecDeque<Step>,
    torrents: u32,
    at_least: u32,
    /// Peers of each torrent; after the last its script begins again.
    peers: u32,
    next: u64,
    open: HashMap<u64, Sent>,
    records: Vec<Record>,
}

/// Where a torrent's script stands: this many announces have been answered, of a script of this
/// many peers.
#[derive(Debug, Clone, Copy)]
struct Step {
    torrent: Torrent,
    answered: u32,
    peers: u32,
}

impl Step {
    fn announce(self) -> Announce {
        let event = if self.answered.is_multiple_of(2) {
            Event::Started
        } else {
            Event::Completed
        };
        Announce {
            torrent: self.torrent,
            peer: self.answered / 2 % self.peers,
            event,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    step: Step,
    door: Door,
    at: DateTime<Utc>,
    clock: Instant,
}

impl Sent {
    fn record(&self, outcome: Outcome) -> Record {
        Record {
            announce: self.step.announce(),
            door: self.door,
            sent: self.at,
            ended: Utc::now(),
            latency: self.clock.elapsed(),
            outcome,
        }
    }
}

impl Book {
    /// An empty one. Torrents are made, not used again, until there are `at_least` so many; each
    /// has so many `peers`, one after the other and then again.
    pub(super) fn new(at_least: u32, peers: u32) -> Self {
        Self {
            pages: Mutex::new(Pages {
                idle: VecDeque::new(),
                torrents: 0,
                at_least,
                peers: peers.max(1),
                next: 0,
                open: HashMap::new(),
                records: Vec::new(),
            }),
            counts: watch::Sender::default(),
            transaction: AtomicI32::new(fastrand::i32(..)),
        }
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No two requests of a load share a transaction id.
    pub(super) fn next_transaction(&self) -> i32 {
        self.transaction.fetch_add(1, Ordering::Relaxed)
    }

    /// Enters an announce that is about to be sent; its number in the book.
    pub(super) fn send(&self, door: Door) -> (u64, Announce) {
        let mut pages = self.pages();
        let enough = pages.torrents >= pages.at_least;
        let step = enough
            .then(|| pages.idle.pop_front())
            .flatten()
            .unwrap_or_else(|| {
                pages.torrents += 1;
                Step {
                    torrent: Torrent(pages.torrents),
                    answered: 0,
                    peers: pages.peers,
                }
            });
        let number = pages.next;
        pages.next += 1;
        pages.open.insert(
            number,
            Sent {
                step,
                door,
                at: Utc::now(),
                clock: Instant::now(),
            },
        );
        drop(pages);
        self.counts.send_modify(|counts| counts.sent += 1);
        (number, step.announce())
    }

    /// Enters how an announce ended.
    pub(super) fn end(&self, number: u64, outcome: Outcome) {
        let mut pages = self.pages();
        let Some(sent) = pages.open.remove(&number) else {
            return;
        };
        let answered = outcome == Outcome::Answered;
        pages.records.push(sent.record(outcome));
        if answered {
            pages.idle.push_back(Step {
                answered: sent.step.answered + 1,
                ..sent.step
            });
        }
        drop(pages);
        self.counts.send_modify(|counts| {
            if answered {
                counts.answered += 1;
            } else {
                counts.refused += 1;
            }
        });
    }

    /// What is still open was not answered.
    pub(super) fn close(&self) -> Account {
        let mut pages = self.pages();
        let mut records = std::mem::take(&mut pages.records);
        records.extend(
            pages
                .open
                .drain()
                .map(|(_, sent)| sent.record(Outcome::Unanswered)),
        );
        Account { records }
    }
}
