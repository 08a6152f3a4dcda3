//! What the tracker, the load and the machine used between two instants.

use std::time::Duration;

use anyhow::Result;

use crate::generator::Clock;
use crate::tracker::Tracker;
use crate::usage::{Processors, Usage};

/// The counters of an instant.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    at: Duration,
    process: u32,
    tracker: Usage,
    this: Usage,
    machine: Processors,
}

/// What was used between two readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    /// Processor time of the tracker; `None` if it was another process then.
    pub tracker: Option<Duration>,
    /// Processors the tracker kept busy, on average.
    pub processors: Option<f64>,
    /// Processors that something else than the tracker and this process kept busy.
    pub others: f64,
    /// Bytes the tracker caused to be written to a disk; 0 if it was another process then.
    pub written: u64,
}

impl Reading {
    /// Of now.
    ///
    /// # Errors
    /// When the tracker has exited.
    pub fn now(clock: &Clock, tracker: &Tracker) -> Result<Self> {
        let process = u32::try_from(tracker.pid()?.as_raw_nonzero().get())?;
        Ok(Self {
            at: clock.elapsed(),
            process,
            tracker: Usage::of(process)?,
            this: Usage::of_this()?,
            machine: Processors::now()?,
        })
    }

    /// Bytes of memory the tracker had resident.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.tracker.resident
    }

    /// What was used from an earlier reading to this.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Spent {
        let length = self.at.saturating_sub(earlier.at).as_secs_f64();
        let part = |spent: Duration| spent.as_secs_f64() / length.max(f64::MIN_POSITIVE);
        let tracker = (self.process == earlier.process)
            .then(|| self.tracker.cpu.saturating_sub(earlier.tracker.cpu));
        let known = self.this.cpu.saturating_sub(earlier.this.cpu) + tracker.unwrap_or_default();
        let busy = self.machine.since(earlier.machine).busy;
        Spent {
            tracker,
            processors: tracker.map(part),
            others: part(busy.saturating_sub(known)),
            written: self.tracker.written.saturating_sub(earlier.tracker.written),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(second: u64, process: u32, cpu: u64, this: u64, busy: u64) -> Reading {
        let used = |cpu| Usage {
            cpu: Duration::from_secs(cpu),
            written: cpu,
            ..Usage::default()
        };
        Reading {
            at: Duration::from_secs(second),
            process,
            tracker: used(cpu),
            this: used(this),
            machine: Processors {
                busy: Duration::from_secs(busy),
                all: Duration::from_secs(2 * second),
            },
        }
    }

    #[test]
    fn what_is_neither_the_trackers_nor_ours_is_of_others() {
        let spent = reading(20, 7, 15, 8, 30).since(&reading(10, 7, 10, 5, 12));
        assert_eq!(spent.tracker, Some(Duration::from_secs(5)));
        assert_eq!(spent.processors, Some(0.5));
        assert!((spent.others - 1.0).abs() < 1e-9, "{spent:?}");
        assert_eq!(spent.written, 5);
    }

    #[test]
    fn of_another_process_nothing_is_said() {
        let spent = reading(20, 8, 1, 8, 30).since(&reading(10, 7, 10, 5, 12));
        assert_eq!((spent.tracker, spent.processors), (None, None));
        assert_eq!(spent.written, 0);
    }
}
