//! How long requests took: counted without a lock in buckets of fixed bounds, and read as plain
//! figures, which can be taken apart and put together again.
//!
//! ```text
//!   record ─▶ Latencies (atomics) ─▶ read ─▶ Distribution ─▶ status ─▶ a reader's memory
//!                                                  │                        │
//!                                                  └──────── since ◀────────┘
//!                                                              │
//!                                                          quantile
//! ```
//!
//! Recording costs two relaxed additions. Those who read meanwhile may see a request in one of
//! the two and not yet in the other, which among thousands is nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets in microseconds, inclusive. One more bucket has none.
const BOUNDS: [u32; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// How many requests took how long. On cache lines of its own: what others write beside it
/// costs whoever records nothing, and the other way round.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Latencies {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// Of all together; enough for 584 years.
    nanoseconds: AtomicU64,
}

/// What was recorded up to some moment, or between two.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// Requests.
    pub count: u64,
    /// Seconds they took, all together.
    pub seconds: f64,
    /// By how long each took, shortest first. None at all: the version of whoever told this did
    /// not measure it.
    pub buckets: Vec<Bucket>,
}

/// Requests that took longer than the bucket before allows, and no longer than this one does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// The most they took, in seconds, inclusive; `null`: there is no bound.
    pub le: Option<f64>,
    /// How many did. Not those of the buckets before.
    pub count: u64,
}

impl Latencies {
    /// So many requests took this long each.
    pub fn record(&self, took: Duration, how_many: u64) {
        let shorter = |bound: &u32| Duration::from_micros(u64::from(*bound)) < took;
        let bucket = BOUNDS.partition_point(shorter);
        self.buckets[bucket].fetch_add(how_many, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let nanoseconds = nanoseconds.saturating_mul(how_many);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// What was recorded so far.
    #[must_use]
    pub fn read(&self) -> Distribution {
        let bounds = BOUNDS.map(|bound| Some(f64::from(bound) / 1e6));
        let bounds = bounds.into_iter().chain([None]);
        let buckets = bounds.zip(&self.buckets).map(|(le, count)| Bucket {
            le,
            count: count.load(Ordering::Relaxed),
        });
        let took = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        Distribution::of(buckets.collect(), took.as_secs_f64())
    }
}

impl Distribution {
    fn of(buckets: Vec<Bucket>, seconds: f64) -> Self {
        Self {
            count: buckets.iter().map(|bucket| bucket.count).sum(),
            seconds,
            buckets,
        }
    }

    /// What came since an earlier reading of the same counters; `None`: they have begun anew
    /// since, or have other bounds.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let buckets = self.with(earlier, u64::checked_sub)?;
        let seconds = self.seconds - earlier.seconds;
        (seconds >= 0.0).then(|| Self::of(buckets, seconds))
    }

    /// Both together; `None`: they have other bounds.
    #[must_use]
    pub fn and(&self, other: &Self) -> Option<Self> {
        let buckets = self.with(other, u64::checked_add)?;
        Some(Self::of(buckets, self.seconds + other.seconds))
    }

    fn with(&self, other: &Self, each: fn(u64, u64) -> Option<u64>) -> Option<Vec<Bucket>> {
        if self.buckets.len() != other.buckets.len() {
            return None;
        }
        let pairs = self.buckets.iter().zip(&other.buckets);
        pairs
            .map(|(one, other)| {
                let count = each(one.count, other.count).filter(|_| one.le == other.le)?;
                Some(Bucket { count, ..*one })
            })
            .collect()
    }

    /// How long the part `q` (0 to 1) of the requests took at most, in seconds, as Prometheus
    /// reckons it: between the bounds of a bucket requests are taken to lie evenly, and what is
    /// above the last bound is told as that. `None` of no requests.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q.clamp(0.0, 1.0) * number(self.count);
        let (mut below, mut from) = (0, 0.0);
        for bucket in &self.buckets {
            let up_to = below + bucket.count;
            if bucket.count > 0 && number(up_to) >= rank {
                let part = (rank - number(below)) / number(bucket.count);
                return Some(bucket.le.map_or(from, |le| from + (le - from) * part));
            }
            below = up_to;
            from = bucket.le.unwrap_or(from);
        }
        None
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to nine quadrillion requests"
)]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(requests: &[(u64, u64)]) -> Latencies {
        let latencies = Latencies::default();
        for (microseconds, how_many) in requests {
            latencies.record(Duration::from_micros(*microseconds), *how_many);
        }
        latencies
    }

    /// The buckets that are not empty.
    fn counts(distribution: &Distribution) -> Vec<(Option<f64>, u64)> {
        let buckets = distribution.buckets.iter();
        buckets
            .filter(|bucket| bucket.count > 0)
            .map(|bucket| (bucket.le, bucket.count))
            .collect()
    }

    fn close(found: Option<f64>, wanted: f64) -> bool {
        found.is_some_and(|found| (found - wanted).abs() < 1e-12)
    }

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        for (microseconds, le) in [
            (0, Some(0.0001)),
            (100, Some(0.0001)),
            (101, Some(0.000_25)),
            (1_000, Some(0.001)),
            (10_000_000, Some(10.0)),
            (10_000_001, None),
        ] {
            let read = recorded(&[(microseconds, 3)]).read();
            assert_eq!(counts(&read), [(le, 3)], "{microseconds}");
            assert_eq!(read.count, 3);
        }
        let just_above = Latencies::default();
        just_above.record(Duration::from_nanos(100_001), 1);
        assert_eq!(counts(&just_above.read()), [(Some(0.000_25), 1)]);
    }

    #[test]
    fn the_bounds_are_a_contract() {
        let read = Latencies::default().read();
        let bounds: Vec<Option<f64>> = read.buckets.iter().map(|bucket| bucket.le).collect();
        let wanted = [
            0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            2.5, 5.0, 10.0,
        ];
        let wanted: Vec<Option<f64>> = wanted.map(Some).into_iter().chain([None]).collect();
        assert_eq!(bounds, wanted);
    }

    #[test]
    fn seconds_are_those_of_all_requests() {
        let read = recorded(&[(500, 4), (2_000_000, 1)]).read();
        assert!(close(Some(read.seconds), 2.002), "{read:?}");
        let absurd = Latencies::default();
        absurd.record(Duration::MAX, u64::MAX);
        assert_eq!(absurd.read().count, u64::MAX);
    }

    #[test]
    fn what_lies_between_two_readings_is_had_unless_the_counters_began_anew() {
        let latencies = recorded(&[(300, 10), (3_000, 1)]);
        let earlier = latencies.read();
        latencies.record(Duration::from_millis(3), 5);
        let later = latencies.read();
        let between = later.since(&earlier).expect("the same counters");
        assert_eq!(counts(&between), [(Some(0.005), 5)]);
        assert_eq!(between.count, 5);
        assert!(close(Some(between.seconds), 0.015), "{between:?}");
        // A restart, though there are more requests in all by now.
        assert_eq!(recorded(&[(300, 900)]).read().since(&later), None);
        assert_eq!(Distribution::default().since(&later), None);
        assert_eq!(later.since(&Distribution::default()), None);
        let both = between.and(&earlier).expect("the same bounds");
        assert_eq!(both.buckets, later.buckets);
        let mut other_bounds = later.clone();
        other_bounds.buckets[0].le = Some(0.5);
        assert_eq!(later.and(&other_bounds), None);
        assert_eq!(later.since(&other_bounds), None);
    }

    /// As `histogram_quantile` of Prometheus has it.
    #[test]
    fn quantiles_lie_evenly_within_a_bucket() {
        // 50 up to 0.1 ms, 50 from there to 0.25 ms.
        let read = recorded(&[(50, 50), (200, 50)]).read();
        for (q, wanted) in [
            (0.0, 0.0),
            (0.25, 0.000_05),
            (0.5, 0.0001),
            (0.75, 0.000_175),
            (1.0, 0.000_25),
            (2.0, 0.000_25),
        ] {
            assert!(
                close(read.quantile(q), wanted),
                "{q}: {:?}",
                read.quantile(q)
            );
        }
        // Empty buckets in between count for nothing.
        let read = recorded(&[(50, 1), (900_000, 1)]).read();
        assert!(close(read.quantile(0.5), 0.0001));
        assert!(close(read.quantile(0.75), 0.75));
        // Of what is above the last bound it is known that it is.
        let read = recorded(&[(20_000_000, 7)]).read();
        assert!(close(read.quantile(0.5), 10.0));
        assert_eq!(Latencies::default().read().quantile(0.99), None);
        assert_eq!(Distribution::default().quantile(0.99), None);
        assert_eq!(read.quantile(f64::NAN), None);
    }

    #[test]
    fn it_survives_the_way_through_json() {
        let read = recorded(&[(123, 4), (99_000_000, 1)]).read();
        let text = serde_json::to_string(&read).expect("it is plain");
        let back: Distribution = serde_json::from_str(&text).expect("as it was written");
        assert_eq!(back, read);
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let latencies = Latencies::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for microseconds in 0..10_000 {
                        latencies.record(Duration::from_micros(microseconds), 1);
                    }
                });
            }
        });
        assert_eq!(latencies.read().count, 40_000);
    }
}
