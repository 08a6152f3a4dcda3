//! Whether the generator itself was what limited a measurement.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tally::{Kind, LATE_MS, Tally};
use crate::usage::{Processors, Turns};

/// A thread this busy has no room for more.
const BUSY: f64 = 0.9;

/// What the generator itself could and could not do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// Requests sent, by the second.
    pub sent_per_second: f64,
    /// Milliseconds after its planned instant that half of the requests had left.
    pub late_p50_ms: f64,
    /// The same of 99 in 100.
    pub late_p99_ms: f64,
    /// The latest.
    pub late_max_ms: f64,
    /// Processors this process kept busy, on average.
    pub processors: f64,
    /// Processors everything on the machine kept busy, on average.
    pub machine: f64,
    /// Of the time of the load, the share the UDP thread was running.
    pub running: f64,
    /// And the share it wanted to, but waited for a processor.
    pub waiting: f64,
    /// UDP answers the kernel dropped because the thread did not read them in time. They
    /// count as unanswered.
    pub dropped: u64,
    /// Why the load was not what was planned; empty if it was.
    pub limits: Vec<String>,
}

impl Health {
    pub(super) fn of(
        tally: &Tally,
        length: Duration,
        cpu: Duration,
        turns: Option<Turns>,
        dropped: u64,
        machine: Processors,
    ) -> Self {
        let length = length.as_secs_f64().max(f64::MIN_POSITIVE);
        let turns = turns.unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let sent = tally.total(&Kind::ALL).counts.sent as f64;
        let mut health = Self {
            sent_per_second: sent / length,
            late_p50_ms: tally.lateness_ms(0.5),
            late_p99_ms: tally.lateness_ms(0.99),
            late_max_ms: tally.lateness_ms(1.0),
            processors: cpu.as_secs_f64() / length,
            machine: machine.busy.as_secs_f64() / length,
            running: turns.ran.as_secs_f64() / length,
            waiting: turns.waited.as_secs_f64() / length,
            dropped,
            limits: Vec::new(),
        };
        health.limits = health.judged();
        health
    }

    fn judged(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if self.late_p99_ms > LATE_MS {
            limits.push(format!(
                "1 request in 100 left {:.1} ms or more after its planned instant",
                self.late_p99_ms
            ));
        }
        if self.running > BUSY {
            limits.push(format!(
                "the thread that sends was running {:.0} % of the time",
                self.running * 100.0
            ));
        }
        if self.dropped > 0 {
            limits.push(format!(
                "{} answers were dropped because they were not read in time",
                self.dropped
            ));
        }
        limits
    }

    /// Whether the figures are of the tracker, and not of the generator.
    #[must_use]
    pub fn kept_up(&self) -> bool {
        self.limits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(late: Duration, ran: Duration, dropped: u64) -> Health {
        let mut tally = Tally::default();
        for second in 0..10 {
            tally.sent(Kind::UdpAnnounce, Duration::from_secs(second), late);
        }
        let turns = Turns {
            ran,
            waited: Duration::ZERO,
        };
        let ten = Duration::from_secs(10);
        let machine = Processors {
            busy: 2 * ten,
            all: 2 * ten,
        };
        Health::of(&tally, ten, ran, Some(turns), dropped, machine)
    }

    #[test]
    fn each_limit_is_told_and_none_when_there_is_none() {
        let (ms, seconds) = (Duration::from_millis, Duration::from_secs);
        let good = of(ms(1), seconds(5), 0);
        assert!(good.kept_up(), "{good:?}");
        assert!((good.sent_per_second - 1.0).abs() < 1e-9);
        assert!((good.running - 0.5).abs() < 1e-9 && (good.machine - 2.0).abs() < 1e-9);
        for (limited, word) in [
            (of(ms(20), seconds(5), 0), "planned instant"),
            (of(ms(1), ms(9_900), 0), "99 %"),
            (of(ms(1), seconds(5), 3), "3 answers"),
        ] {
            assert_eq!(limited.limits.len(), 1, "{limited:?}");
            assert!(limited.limits[0].contains(word), "{limited:?}");
        }
    }
}
