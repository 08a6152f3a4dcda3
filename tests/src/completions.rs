//! When completions were sent and acknowledged, and so what a backup must show and may.
//!
//! A load has one completion in flight per torrent. So for any instant it is known how many
//! completions of a torrent a database must have at least (acknowledged before) and can
//! have at most (sent before).

use std::collections::HashMap;

use anyhow::{Result, ensure};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::announce::Torrent;

/// One completion of a torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Of which torrent.
    pub torrent: Torrent,
    /// Just before it was sent.
    pub sent: DateTime<Utc>,
    /// Just after its answer was read; `None` if no answer came, or an error.
    pub acknowledged: Option<DateTime<Utc>>,
}

/// The completions of a load, in no order.
#[derive(Debug, Clone, Default)]
pub struct Completions(pub Vec<Completion>);

/// How many there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledged {
    /// Sent.
    pub sent: usize,
    /// And acknowledged.
    pub acknowledged: usize,
}

/// What was found of a database that shows its instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Completions acknowledged before the instant; every one is in the database.
    pub acknowledged: u32,
    /// Completions in the database.
    pub found: u32,
    /// Completions sent before the instant.
    pub sent: u32,
}

impl Completions {
    /// How many there are.
    #[must_use]
    pub fn counts(&self) -> Acknowledged {
        let acknowledged = |one: &&Completion| one.acknowledged.is_some();
        Acknowledged {
            sent: self.0.len(),
            acknowledged: self.0.iter().filter(acknowledged).count(),
        }
    }

    /// Of each torrent, the completions acknowledged by then: a tracker has committed them
    /// before.
    #[must_use]
    pub fn acknowledged_by(&self, instant: DateTime<Utc>) -> HashMap<Torrent, u32> {
        self.count(|one| one.acknowledged.is_some_and(|then| then <= instant))
    }

    /// Of each torrent, the completions sent by then: a tracker cannot have seen more.
    #[must_use]
    pub fn sent_by(&self, instant: DateTime<Utc>) -> HashMap<Torrent, u32> {
        self.count(|one| one.sent <= instant)
    }

    fn count(&self, counted: impl Fn(&Completion) -> bool) -> HashMap<Torrent, u32> {
        let mut counts = HashMap::new();
        for one in self.0.iter().filter(|one| counted(one)) {
            *counts.entry(one.torrent).or_default() += 1;
        }
        counts
    }

    /// Whether these counters of a database show the instant: every completion
    /// acknowledged before, and none sent after.
    ///
    /// # Errors
    /// When a counter does not, or nothing was acknowledged before, so that nothing could
    /// have been missing.
    pub fn shown(&self, counters: &HashMap<Torrent, u32>, instant: DateTime<Utc>) -> Result<Shown> {
        let (least, most) = (self.acknowledged_by(instant), self.sent_by(instant));
        ensure!(
            !least.is_empty(),
            "no completion was acknowledged before {instant}"
        );
        for (torrent, least) in &least {
            let found = counters.get(torrent).copied().unwrap_or(0);
            ensure!(
                found >= *least,
                "{torrent:?}: {least} completions acknowledged before {instant}, {found} in the database"
            );
        }
        for (torrent, found) in counters {
            let most = most.get(torrent).copied().unwrap_or(0);
            ensure!(
                *found <= most,
                "{torrent:?}: {most} completions sent before {instant}, {found} in the database"
            );
        }
        Ok(Shown {
            acknowledged: least.values().sum(),
            found: counters.values().sum(),
            sent: most.values().sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(second, 0).expect("a small number of seconds")
    }

    /// Torrent 1 completes at 10 to 11 and at 20 to 21; torrent 2 at 15, without an answer.
    fn book() -> Completions {
        let one = |torrent, sent, acknowledged: Option<i64>| Completion {
            torrent: Torrent(torrent),
            sent: at(sent),
            acknowledged: acknowledged.map(at),
        };
        Completions(vec![
            one(1, 10, Some(11)),
            one(1, 20, Some(21)),
            one(2, 15, None),
        ])
    }

    #[test]
    fn a_database_lies_between_what_was_acknowledged_and_what_was_sent() {
        let counters = |first, second| {
            let both = [(Torrent(1), first), (Torrent(2), second)];
            both.into_iter().filter(|(_, count)| *count > 0).collect()
        };
        // At 20 s: one of torrent 1 at least, two at most; of torrent 2 none or one.
        for first in 0..=3 {
            for second in 0..=2 {
                let good = (1..=2).contains(&first) && second <= 1;
                let shown = book().shown(&counters(first, second), at(20));
                assert_eq!(shown.is_ok(), good, "{first}, {second}: {shown:?}");
            }
        }
    }

    #[test]
    fn an_instant_before_any_answer_proves_nothing() {
        assert!(book().shown(&HashMap::new(), at(10)).is_err());
    }
}
