//! What is known of a slice of time: the difference between two readings of the status, as
//! figures of so many requests. Pure.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Timelike as _, Utc};
use serde::{Deserialize, Serialize};
use torrust_tracker_maintenance::evaluation::{Good, Paired, Reading, Taken, Weight};
use torrust_tracker_maintenance::latency::Distribution;
use torrust_tracker_maintenance::status::{PerDoor, Status, Traffic};

/// Fewest announces of a slice: of fewer the slowest in a hundred is one that happened to be.
pub const FEWEST: u64 = 100;

/// Of 1,000: a difference that is no larger is none.
const FEWEST_REFUSED: f64 = 0.1;

/// Figures of one slice. `None`: not known, or there was nothing to measure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    pub began: DateTime<Utc>,
    pub seconds: f64,
    /// Answered, as are scrapes.
    pub announces: u64,
    pub scrapes: u64,
    /// These, and what was turned away or is not certainly stored.
    pub asked: u64,
    pub announce_p50_ms: Option<f64>,
    pub announce_p99_ms: Option<f64>,
    pub scrape_p99_ms: Option<f64>,
    /// Turned away, or executed and not confirmed, of 1,000 requests.
    pub refused: f64,
    /// Of 1,000 answers.
    pub cpu_ms: Option<f64>,
    /// Of 1,000 announces.
    pub database_ms: f64,
    pub resident_mb: Option<f64>,
    /// Of an announce.
    pub written_bytes: Option<f64>,
    pub wal_mb: Option<f64>,
}

/// Why a slice counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOut {
    /// Counters began anew.
    Restart,
    /// Announces were held, and the disk was read.
    Run,
    /// It is of neither side.
    JournalMode,
    /// [`FEWEST`].
    TooQuiet,
    /// The tracker did not answer when it should have ended.
    TooLong,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restart => "the tracker was restarted in it",
            Self::Run => "a run took place in it",
            Self::JournalMode => "the journal mode changed in it",
            Self::TooQuiet => "it had fewer than 100 announces",
            Self::TooLong => "it became too long, since the tracker did not answer",
        })
    }
}

impl LeftOut {
    /// What to choose where it happens again and again.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Restart => "find out why the tracker is restarted so often",
            Self::Run => {
                "half a slice must be free of runs: begin anew with a shorter --slice and another \
                 --state, or let windows be further apart"
            }
            Self::JournalMode => "find out who changes the journal mode",
            Self::TooQuiet => "begin anew with a longer --slice and another --state",
            Self::TooLong => "find out why the tracker does not answer at its endpoint",
        }
    }
}

impl Slice {
    /// What lies between two readings, the second of which is so much younger.
    pub fn between(
        earlier: &Status,
        later: &Status,
        began: DateTime<Utc>,
        length: Duration,
    ) -> Result<Self, LeftOut> {
        if earlier.started != later.started {
            return Err(LeftOut::Restart);
        }
        if had_run(earlier, later) {
            return Err(LeftOut::Run);
        }
        if earlier.database.journal_mode != later.database.journal_mode {
            return Err(LeftOut::JournalMode);
        }
        let slice = Self::of(earlier, later, began, length).ok_or(LeftOut::Restart)?;
        if slice.announces < FEWEST {
            return Err(LeftOut::TooQuiet);
        }
        Ok(slice)
    }

    /// `None`: a counter is lower than it was.
    fn of(
        earlier: &Status,
        later: &Status,
        began: DateTime<Utc>,
        length: Duration,
    ) -> Option<Self> {
        let (before, after) = (&earlier.traffic, &later.traffic);
        let announces = announces(after)?.since(&announces(before)?)?;
        let scrapes = scrapes(after)?.since(&scrapes(before)?)?;
        let refused = refused(later).checked_sub(refused(earlier))?;
        let answered = announces.count + scrapes.count;
        let asked = answered + refused;
        let database = grown(
            Some(database_seconds(before)),
            Some(database_seconds(after)),
        )?;
        let (then, now) = (&earlier.process, &later.process);
        let written = now.written_bytes.zip(then.written_bytes);
        let written = written.and_then(|(now, then)| now.checked_sub(then));
        let ms = |seconds: f64| seconds * 1e3;
        let thousands = |count: u64| number(count.max(1)) / 1e3;
        let megabytes = |bytes: u64| number(bytes) / 1e6;
        Some(Self {
            began,
            seconds: length.as_secs_f64(),
            announces: announces.count,
            scrapes: scrapes.count,
            asked,
            announce_p50_ms: announces.quantile(0.5).map(ms),
            announce_p99_ms: announces.quantile(0.99).map(ms),
            scrape_p99_ms: scrapes.quantile(0.99).map(ms),
            refused: number(refused) / thousands(asked),
            cpu_ms: grown(then.cpu_seconds, now.cpu_seconds)
                .map(|cpu| ms(cpu) / thousands(answered)),
            database_ms: ms(database) / thousands(announces.count),
            resident_mb: now.resident_bytes.map(megabytes),
            written_bytes: written.map(|bytes| number(bytes) / number(announces.count.max(1))),
            wal_mb: later.database.wal_bytes.map(megabytes),
        })
    }

    /// The time of day of its middle, in seconds.
    fn time_of_day(&self) -> u32 {
        let half = Duration::try_from_secs_f64(self.seconds / 2.0).unwrap_or_default();
        (self.began + half).num_seconds_from_midnight()
    }

    fn requests_per_second(&self) -> f64 {
        number(self.asked) / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// Whether a run was on at either reading, or ended between the two.
pub fn had_run(earlier: &Status, later: &Status) -> bool {
    let newest = |status: &Status| status.runs.first().map(|run| run.id.clone());
    earlier.run.is_some() || later.run.is_some() || newest(earlier) != newest(later)
}

/// Whether the tracker tells how long requests take: one of an earlier version does not.
pub fn are_told(status: &Status) -> bool {
    !status.traffic.udp.announces.buckets.is_empty()
}

fn announces(traffic: &Traffic) -> Option<Distribution> {
    traffic.udp.announces.and(&traffic.http.announces)
}

fn scrapes(traffic: &Traffic) -> Option<Distribution> {
    traffic.udp.scrapes.and(&traffic.http.scrapes)
}

fn database_seconds(traffic: &Traffic) -> f64 {
    traffic.udp.database_seconds + traffic.http.database_seconds
}

/// What was turned away and what is not certainly stored.
fn refused(status: &Status) -> u64 {
    let both = |PerDoor { udp, http }: PerDoor| udp + http;
    both(status.gate.turned_away) + both(status.gate.unconfirmed)
}

fn grown(earlier: Option<f64>, later: Option<f64>) -> Option<f64> {
    let grown = later? - earlier?;
    (grown >= 0.0).then_some(grown)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and bytes far below nine quadrillion"
)]
fn number(count: u64) -> f64 {
    count as f64
}

/// What decides and what is told; and how much was asked, on which all of that depends.
pub fn figures(before: &[Slice], after: &[Slice]) -> (Vec<Paired>, Paired) {
    use Good::{Low, Neither};
    use Reading::{Median, Pooled};
    use Weight::{Essential, Told};
    type Value = fn(&Slice) -> Option<f64>;
    let taken = |slices: &[Slice], value: Value| -> Vec<Taken> {
        let taken = slices.iter().filter_map(|slice| {
            Some(Taken {
                at: slice.time_of_day(),
                value: value(slice)?,
                of: number(slice.asked),
            })
        });
        taken.collect()
    };
    let figure = |name: &str, weight: Weight, good: Good, reading: Reading, value: Value| Paired {
        name: name.to_owned(),
        good,
        weight,
        least: if reading == Pooled {
            FEWEST_REFUSED
        } else {
            0.0
        },
        reading,
        before: taken(before, value),
        after: taken(after, value),
    };
    let rows: [(&str, Weight, Good, Reading, Value); 9] = [
        ("announce p99, ms", Essential, Low, Median, |slice| {
            slice.announce_p99_ms
        }),
        (
            "turned away or unconfirmed, of 1,000 requests",
            Essential,
            Low,
            Pooled,
            |slice| Some(slice.refused),
        ),
        ("announce p50, ms", Told, Low, Median, |slice| {
            slice.announce_p50_ms
        }),
        ("scrape p99, ms", Told, Low, Median, |slice| {
            slice.scrape_p99_ms
        }),
        (
            "processor, ms for 1,000 answers",
            Told,
            Low,
            Median,
            |slice| slice.cpu_ms,
        ),
        (
            "database, ms for 1,000 announces",
            Told,
            Low,
            Median,
            |slice| Some(slice.database_ms),
        ),
        ("memory, MB", Told, Low, Median, |slice| slice.resident_mb),
        (
            "written to disk, bytes an announce",
            Told,
            Low,
            Median,
            |slice| slice.written_bytes,
        ),
        // On a rollback journal there is none, which is not to its credit.
        ("write-ahead log, MB", Told, Neither, Median, |slice| {
            slice.wal_mb
        }),
    ];
    let rows =
        rows.map(|(name, weight, good, reading, value)| figure(name, weight, good, reading, value));
    let asked = figure("requests/s", Told, Neither, Median, |slice| {
        Some(slice.requests_per_second())
    });
    (rows.into(), asked)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use torrust_tracker_maintenance::evaluation::{Decision, evaluate_paired};

    use super::super::testing::{self, Played};
    use super::*;

    fn slice(earlier: &Played, later: &Played) -> Result<Slice, LeftOut> {
        let length = Duration::from_secs(10);
        Slice::between(&earlier.status(), &later.status(), testing::began(), length)
    }

    fn close(found: Option<f64>, wanted: f64) -> bool {
        found.is_some_and(|found| (found - wanted).abs() < 1e-9 * wanted.abs().max(1.0))
    }

    #[test]
    fn figures_are_of_so_many_requests_and_not_of_the_time() {
        let earlier = Played::new("delete");
        let mut later = earlier.clone();
        later.announce(1_000, 100);
        later.change(|status| {
            status["traffic"]["udp"]["database_seconds"] = json!(2.0);
            status["gate"]["turned_away"] = json!({ "udp": 20, "http": 2 });
            status["gate"]["unconfirmed"] = json!({ "udp": 0, "http": 3 });
            status["process"]["cpu_seconds"] = json!(4.0);
            status["process"]["written_bytes"] = json!(5_000_000);
            status["database"]["wal_bytes"] = json!(4_000_000);
        });
        let found = slice(&earlier, &later).expect("nothing is in the way");
        assert_eq!((found.announces, found.scrapes), (1_000, 100));
        for (name, value, wanted) in [
            ("requests/s", Some(found.requests_per_second()), 112.5),
            // 900 of them up to 1 ms, the others up to 10 ms.
            ("p50", found.announce_p50_ms, 500.0 / 900.0),
            ("p99", found.announce_p99_ms, 1.0 + 9.0 * 90.0 / 100.0),
            ("scrape p99", found.scrape_p99_ms, 0.99),
            ("refused", Some(found.refused), 25.0 / 1.125),
            ("processor", found.cpu_ms, 3_000.0 / 1.1),
            ("database", Some(found.database_ms), 2_000.0),
            ("memory", found.resident_mb, 50.0),
            ("written", found.written_bytes, 4_000.0),
            ("log", found.wal_mb, 4.0),
        ] {
            assert!(close(value, wanted), "{name}: {value:?}, not {wanted}");
        }
        assert_eq!(figures(&[found], &[]).0.len(), 9);
    }

    /// What happened between two looks.
    type Change = dyn Fn(&mut Value);

    #[test]
    fn what_cannot_be_compared_is_left_out() {
        let earlier = Played::new("delete");
        let busy = |change: &dyn Fn(&mut Value)| {
            let mut later = earlier.clone();
            later.announce(1_000, 100);
            later.change(change);
            slice(&earlier, &later).map(|_| ())
        };
        assert_eq!(busy(&|_| {}), Ok(()));
        let changes: [(LeftOut, &Change); 6] = [
            (LeftOut::Restart, &|status| {
                status["started"] = json!("2026-11-22T04:00:00Z");
            }),
            (LeftOut::Restart, &|status| {
                status["traffic"]["http"]["scrapes"]["buckets"] = json!([]);
            }),
            (LeftOut::Restart, &|status| {
                status["traffic"]["udp"]["database_seconds"] = json!(-1.0);
            }),
            (LeftOut::Run, &|status| status["run"] = testing::run()),
            (LeftOut::Run, &|status| {
                status["runs"] = json!([testing::ended("20261122T030000Z-abcd")]);
            }),
            (LeftOut::JournalMode, &|status| {
                status["database"]["journal_mode"] = json!("wal");
            }),
        ];
        for (why, change) in changes {
            assert_eq!(busy(change), Err(why));
        }
        let mut quiet = earlier.clone();
        quiet.announce(99, 0);
        assert_eq!(slice(&earlier, &quiet), Err(LeftOut::TooQuiet));
        quiet.announce(1, 0);
        assert!(slice(&earlier, &quiet).is_ok());
    }

    #[test]
    fn what_a_machine_does_not_tell_is_no_figure() {
        let mut earlier = Played::new("delete");
        earlier.change(|status| status["process"] = json!({}));
        let mut later = earlier.clone();
        later.announce(100, 0);
        let found = slice(&earlier, &later).expect("nothing is in the way");
        let unknown = [
            found.cpu_ms,
            found.resident_mb,
            found.written_bytes,
            found.wal_mb,
        ];
        assert_eq!(unknown, [None; 4]);
        assert!(found.refused.abs() < f64::EPSILON);
    }

    /// A slice of a second at midnight.
    fn a_slice(p99: f64, refused: f64, asked: u64) -> Slice {
        Slice {
            began: testing::began(),
            seconds: 1.0,
            announces: 1_000,
            scrapes: 0,
            asked,
            announce_p50_ms: Some(1.0),
            announce_p99_ms: Some(p99),
            scrape_p99_ms: None,
            refused,
            cpu_ms: Some(1.0),
            database_ms: 1.0,
            resident_mb: Some(1.0),
            written_bytes: Some(1.0),
            wal_mb: None,
        }
    }

    fn decision(before: &[Slice], after: &[Slice]) -> Decision {
        let (figures, asked) = figures(before, after);
        evaluate_paired(&figures, &asked, Duration::from_secs(1)).decision
    }

    #[test]
    fn the_slowest_and_the_refused_decide_where_as_much_was_asked() {
        let twice = |slice: Slice| [slice.clone(), slice];
        let before = a_slice(10.0, 0.0, 1_000);
        for (after, wanted) in [
            (a_slice(5.0, 0.0, 1_000), Decision::Keep),
            (a_slice(20.0, 0.0, 1_000), Decision::Revert),
            (a_slice(5.0, 1.0, 1_000), Decision::Revert),
            (a_slice(10.0, 0.0, 1_250), Decision::Keep),
            (a_slice(5.0, 0.0, 100), Decision::Undecided),
            (a_slice(20.0, 0.0, 1_500), Decision::Undecided),
        ] {
            let found = decision(&twice(before.clone()), &twice(after.clone()));
            assert_eq!(found, wanted, "{after:?}");
        }
        assert_eq!(decision(&[before], &[]), Decision::Undecided);
    }

    /// In four of ten slices some were refused: not in the one in the middle.
    #[test]
    fn what_was_refused_in_some_slices_was_refused() {
        let before = vec![a_slice(10.0, 0.0, 1_000); 10];
        let mut after = before.clone();
        for slice in &mut after[3..7] {
            slice.refused = 2.0;
        }
        assert_eq!(decision(&before, &after), Decision::Revert);
        assert_eq!(decision(&after, &before), Decision::Keep);
    }

    #[test]
    fn a_slice_is_of_the_time_of_its_middle() {
        let mut slice = a_slice(1.0, 0.0, 1);
        slice.seconds = 3_600.0;
        assert_eq!(slice.time_of_day(), 1_800);
        slice.began += chrono::TimeDelta::hours(23);
        slice.seconds = 7_200.0;
        assert_eq!(slice.time_of_day(), 0);
    }
}
