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
//! The bounds lie eight to the octave, so that a tenth more is seen, and a bucket is found by the
//! first four bits of a duration. Among them are the classic bounds that Prometheus is told, at which
//! the counts are exact: a part of an octave that has one of them within it is two buckets.
//!
//! ```text
//!   65.5        73.7        81.9        90.1        98.3  100   106.5        114.7 .. microseconds
//!     │ bucket    │ bucket    │ bucket    │ bucket    │ b. │ b.   │ bucket      │
//! ```
//!
//! Recording costs two relaxed additions. Those who read meanwhile may see a request in one of
//! the two and not yet in the other, which among thousands is nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the classic buckets in microseconds, inclusive. One more bucket has none.
const CLASSIC: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// An octave has two to the power of this parts, of equal length.
const PARTS_LOG2: u32 = 3;

/// What is no longer than two to the power of this many nanoseconds, 33 µs, is one part; what is
/// longer than two to the power of the other, 17 s, is another.
const FIRST: u32 = 15;
const LAST: u32 = 34;

/// Parts of all octaves, with the two beyond.
const PARTS: usize = ((LAST - FIRST) << PARTS_LOG2) as usize + 2;

/// Each classic bound makes two of one part.
const BUCKETS: usize = PARTS + CLASSIC.len();

/// What is known of buckets before anything is recorded.
static LAYOUT: Layout = Layout::new();

struct Layout {
    parts: [Part; PARTS],
    /// Upper bounds of the buckets in nanoseconds, inclusive. The last bucket has none.
    bounds: [u64; BUCKETS - 1],
}

/// A part of an octave.
#[derive(Clone, Copy)]
struct Part {
    /// Its first bucket.
    bucket: usize,
    /// What is longer than so many nanoseconds is in the next one.
    split: u64,
}

impl Layout {
    const fn new() -> Self {
        let mut parts = [Part {
            bucket: 0,
            split: u64::MAX,
        }; PARTS];
        let mut bounds = [0; BUCKETS - 1];
        let (mut part, mut bucket, mut classic) = (0, 0, 0);
        while part < PARTS {
            let is_last = part + 1 == PARTS;
            let bound = if is_last { u64::MAX } else { bound(part) };
            parts[part].bucket = bucket;
            if classic < CLASSIC.len() && CLASSIC[classic] * 1_000 < bound {
                parts[part].split = CLASSIC[classic] * 1_000;
                bounds[bucket] = parts[part].split;
                bucket += 1;
                classic += 1;
            }
            assert!(classic == CLASSIC.len() || CLASSIC[classic] * 1_000 > bound);
            if !is_last {
                bounds[bucket] = bound;
                bucket += 1;
            }
            part += 1;
        }
        assert!(classic == CLASSIC.len() && bucket + 1 == BUCKETS);
        Self { parts, bounds }
    }

    fn bucket(&self, nanoseconds: u64) -> usize {
        let Part { bucket, split } = self.parts[part(nanoseconds)];
        bucket + usize::from(nanoseconds > split)
    }
}

/// The most nanoseconds of a part that is not the last.
const fn bound(part: usize) -> u64 {
    let per_octave = 1 << PARTS_LOG2;
    let (octave, parts) = (part / per_octave, part % per_octave);
    let begins = 1_u64 << (FIRST as usize + octave);
    begins + ((begins >> PARTS_LOG2) * parts as u64)
}

/// The part that so many nanoseconds are in. By the first bits of one less, since a bound belongs
/// to what is below it.
fn part(nanoseconds: u64) -> usize {
    let one_less = nanoseconds.saturating_sub(1);
    let octave = one_less.checked_ilog2().unwrap_or(0);
    if octave < FIRST {
        return 0;
    }
    if octave >= LAST {
        return PARTS - 1;
    }
    let leading = one_less >> (octave - PARTS_LOG2);
    let within = leading & ((1 << PARTS_LOG2) - 1);
    let before = ((octave - FIRST) << PARTS_LOG2) as usize;
    1 + before + usize::try_from(within).unwrap_or_default()
}

/// How many requests took how long. On cache lines of its own: what others write beside it
/// costs whoever records nothing, and the other way round.
#[derive(Debug)]
#[repr(align(128))]
pub struct Latencies {
    buckets: [AtomicU64; BUCKETS],
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

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            nanoseconds: AtomicU64::new(0),
        }
    }
}

impl Latencies {
    /// So many requests took this long each.
    pub fn record(&self, took: Duration, how_many: u64) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = LAYOUT.bucket(nanoseconds);
        self.buckets[bucket].fetch_add(how_many, Ordering::Relaxed);
        let nanoseconds = nanoseconds.saturating_mul(how_many);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// What was recorded so far.
    #[must_use]
    pub fn read(&self) -> Distribution {
        let bounds = LAYOUT.bounds.iter().map(|bound| Some(number(*bound) / 1e9));
        let bounds = bounds.chain([None]);
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

    /// The same in classic buckets, 0.1, 0.25, 0.5 ms and so on to 10 s: enough to be drawn, and few
    /// enough to be kept for years.
    #[must_use]
    pub fn classic(&self) -> Self {
        let is_classic = |bound: f64| {
            let mut bounds = CLASSIC.iter().map(|bound| number(*bound) / 1e6);
            bounds.any(|classic| classic.total_cmp(&bound).is_eq())
        };
        let mut buckets = Vec::new();
        let mut count = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            count += bucket.count;
            let is_last = index + 1 == self.buckets.len();
            if is_last || bucket.le.is_none_or(is_classic) {
                buckets.push(Bucket {
                    le: bucket.le,
                    count: std::mem::take(&mut count),
                });
            }
        }
        Self {
            buckets,
            ..self.clone()
        }
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

    /// The bound of the bucket that so many nanoseconds are in.
    fn bound_of(nanoseconds: u64) -> Option<f64> {
        let latencies = Latencies::default();
        latencies.record(Duration::from_nanos(nanoseconds), 3);
        let read = latencies.read();
        let counts = counts(&read);
        assert_eq!(counts.len(), 1, "{nanoseconds}: {counts:?}");
        assert_eq!((counts[0].1, read.count), (3, 3));
        counts[0].0
    }

    #[test]
    fn every_bound_belongs_to_the_bucket_below_it() {
        let bounds = &LAYOUT.bounds;
        assert!(bounds.is_sorted_by(|one, next| one < next), "{bounds:?}");
        for (index, bound) in bounds.iter().enumerate() {
            let le = |index: usize| bounds.get(index).map(|bound| number(*bound) / 1e9);
            assert_eq!(bound_of(*bound), le(index), "{bound}");
            assert_eq!(bound_of(*bound + 1), le(index + 1), "{bound} and more");
        }
        assert_eq!(bound_of(0), bound_of(32_768));
        assert_eq!(bound_of(u64::MAX), None);
    }

    /// What differs by a tenth lies in other buckets, or in the same one far apart.
    #[test]
    fn the_bounds_are_close_and_reach_from_33_us_to_17_s() {
        let bounds = &LAYOUT.bounds;
        assert_eq!((bounds[0], bounds[bounds.len() - 1]), (1 << 15, 1 << 34));
        for pair in bounds.windows(2) {
            let ratio = number(pair[1]) / number(pair[0]);
            assert!(ratio <= 1.125, "{pair:?}");
        }
    }

    #[test]
    fn the_classic_bounds_are_a_contract_and_exact() {
        let wanted = [
            0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            2.5, 5.0, 10.0,
        ];
        let latencies = Latencies::default();
        for microseconds in CLASSIC {
            latencies.record(Duration::from_micros(microseconds), 1);
            latencies.record(Duration::from_nanos(microseconds * 1_000 + 1), 10);
        }
        let read = latencies.read();
        let classic = read.classic();
        let bounds: Vec<Option<f64>> = classic.buckets.iter().map(|bucket| bucket.le).collect();
        let wanted: Vec<Option<f64>> = wanted.map(Some).into_iter().chain([None]).collect();
        assert_eq!(bounds, wanted);
        let counts: Vec<u64> = classic.buckets.iter().map(|bucket| bucket.count).collect();
        assert_eq!((counts[0], counts[16]), (1, 10));
        assert!(counts[1..16].iter().all(|count| *count == 11), "{counts:?}");
        assert_eq!((classic.count, classic.seconds), (read.count, read.seconds));
        // What is classic stays as it is, and so does what has no buckets.
        assert_eq!(classic.classic(), classic);
        assert_eq!(Distribution::default().classic(), Distribution::default());
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
        // Three milliseconds are in the fourth part of their octave.
        assert_eq!(counts(&between), [(bound_of(3_000_000), 5)]);
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
        let bucket = |le, count| Bucket { le, count };
        let read = Distribution::of(
            vec![bucket(Some(0.0001), 50), bucket(Some(0.000_25), 50)],
            0.0,
        );
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
        let read = recorded(&[(100, 1), (1_000_000, 1)]).read();
        assert!(close(read.quantile(0.5), 0.0001));
        assert!(close(read.quantile(1.0), 1.0));
        // Of what is above the last bound it is known that it is.
        let read = recorded(&[(20_000_000, 7)]).read();
        assert!(close(read.quantile(0.5), 17.179_869_184));
        assert_eq!(Latencies::default().read().quantile(0.99), None);
        assert_eq!(Distribution::default().quantile(0.99), None);
        assert_eq!(read.quantile(f64::NAN), None);
    }

    /// A tenth of what is asked of it is seen.
    #[test]
    fn a_quantile_is_as_near_as_its_bucket() {
        for microseconds in [50, 700, 3_300, 8_000, 48_200, 1_900_000] {
            let read = recorded(&[(microseconds, 1_000)]).read();
            let found = read.quantile(0.99).expect("there are some") * 1e6;
            let ratio = found / number(microseconds);
            assert!((0.875..1.13).contains(&ratio), "{microseconds}: {found}");
        }
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
