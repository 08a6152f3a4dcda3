//! What became of every announce.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::announce::{Announce, Event, Torrent};
use crate::completions::{Completion, Completions};

/// By which door an announce came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// BEP 15.
    Udp,
    /// BEP 3.
    Http,
}

/// How an announce ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With a list of peers.
    Answered,
    /// With an error, this one.
    Refused(String),
    /// Not at all, within the time given when the load was stopped.
    Unanswered,
}

/// One announce and what became of it.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was announced.
    pub announce: Announce,
    /// How it travelled.
    pub door: Door,
    /// Just before it was sent.
    pub sent: DateTime<Utc>,
    /// Just after its answer was read; when the load ended, if there was none.
    pub ended: DateTime<Utc>,
    /// From the one to the other, on the monotonic clock.
    pub latency: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// Counts while the load runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent so far.
    pub sent: usize,
    /// Answered so far.
    pub answered: usize,
    /// Refused so far.
    pub refused: usize,
}

impl Counts {
    /// Sent and neither answered nor refused yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.sent - self.answered - self.refused
    }
}

/// Every announce of a load that has ended.
#[derive(Debug, Clone)]
pub struct Account {
    /// In no order.
    pub records: Vec<Record>,
}

impl Account {
    /// How many were sent.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.records.len()
    }

    /// How many were answered.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.records
            .iter()
            .filter(|record| record.outcome == Outcome::Answered)
            .count()
    }

    /// How often each way of not being answered occurred; empty when all were.
    #[must_use]
    pub fn failures(&self) -> BTreeMap<String, usize> {
        let mut failures = BTreeMap::new();
        for record in &self.records {
            let name = match &record.outcome {
                Outcome::Answered => continue,
                Outcome::Refused(why) => format!("{:?}: {why}", record.door),
                Outcome::Unanswered => format!("{:?}: unanswered", record.door),
            };
            *failures.entry(name).or_default() += 1;
        }
        failures
    }

    /// The latency that this share (0.0 to 1.0) of the answered announces of a door did
    /// not exceed; `None` when none was answered.
    #[must_use]
    pub fn latency(&self, door: Door, share: f64) -> Option<Duration> {
        let mut all: Vec<Duration> = self
            .records
            .iter()
            .filter(|record| record.door == door && record.outcome == Outcome::Answered)
            .map(|record| record.latency)
            .collect();
        all.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = (share * all.len().saturating_sub(1) as f64).round() as usize;
        all.get(index).copied()
    }

    /// Of each torrent, the completions whose answers had been read by then: a tracker has
    /// committed them before.
    #[must_use]
    pub fn completions_answered_by(&self, instant: DateTime<Utc>) -> HashMap<Torrent, u32> {
        self.completions().acknowledged_by(instant)
    }

    /// Of each torrent, the completions sent by then: a tracker cannot have seen more.
    #[must_use]
    pub fn completions_sent_by(&self, instant: DateTime<Utc>) -> HashMap<Torrent, u32> {
        self.completions().sent_by(instant)
    }

    /// The completions among them: what a backup must show, and may.
    #[must_use]
    pub fn completions(&self) -> Completions {
        let completed = |record: &&Record| record.announce.event == Event::Completed;
        let one = |record: &Record| Completion {
            torrent: record.announce.torrent,
            sent: record.sent,
            acknowledged: (record.outcome == Outcome::Answered).then_some(record.ended),
        };
        Completions(self.records.iter().filter(completed).map(one).collect())
    }
}
