//! What became of every request: by kind, by the second it was planned for, and how late.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Significant decimal digits a histogram keeps of a latency.
const DIGITS: u8 = 3;

/// A request that leaves later than this after its planned instant was not sent as planned.
pub const LATE_MS: f64 = 5.0;

/// Lateness is in a latency, which counts from the planned instant: past this part of it, the
/// latency says more of the generator than of the tracker.
const BLUR: f64 = 0.25;

/// Longer latencies count as this long: an hour, in microseconds.
const LONGEST: u64 = 3_600_000_000;

/// What was asked, and by which door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// BEP 15, action 0.
    UdpConnect,
    /// BEP 15, action 1.
    UdpAnnounce,
    /// BEP 15, action 2.
    UdpScrape,
    /// BEP 3.
    HttpAnnounce,
    /// BEP 48.
    HttpScrape,
}

impl Kind {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::UdpConnect,
        Self::UdpAnnounce,
        Self::UdpScrape,
        Self::HttpAnnounce,
        Self::HttpScrape,
    ];

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UdpConnect => "UDP connect",
            Self::UdpAnnounce => "UDP announce",
            Self::UdpScrape => "UDP scrape",
            Self::HttpAnnounce => "HTTP announce",
            Self::HttpScrape => "HTTP scrape",
        }
    }
}

/// How requests ended: each that was sent is exactly one of answered, refused with an
/// error, and unanswered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Sent.
    pub sent: u64,
    /// With what was asked for.
    pub answered: u64,
    /// With an error; or it could not be sent, or the connection broke.
    pub errors: u64,
    /// Not at all.
    pub unanswered: u64,
}

impl Counts {
    /// Sent, and not answered as they should be.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors + self.unanswered
    }

    /// Whether every request is accounted for, once.
    #[must_use]
    pub fn add_up(&self) -> bool {
        self.sent == self.answered + self.errors + self.unanswered
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.errors += other.errors;
        self.unanswered += other.unanswered;
    }
}

/// Requests of some seconds together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How they ended.
    #[serde(flatten)]
    pub counts: Counts,
    /// Answered, by the second.
    pub answered_per_second: f64,
    /// Milliseconds from the planned instant to the answer that half of the answered
    /// requests did not exceed; `None` if none was answered.
    pub p50_ms: Option<f64>,
    /// The same of 99 in 100.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
    /// Milliseconds after its planned instant that 99 in 100 requests had left; `None` if none
    /// was sent.
    pub late_p99_ms: Option<f64>,
}

impl Summary {
    /// Whether the requests did not leave as planned: the generator or the machine did not
    /// keep up, so that what came of them says nothing of the tracker.
    #[must_use]
    pub fn late(&self) -> bool {
        self.late_p99_ms.is_some_and(|late| late > LATE_MS)
    }

    /// Whether more than a quarter of the longest latencies may be lateness of the generator.
    #[must_use]
    pub fn blurred(&self) -> bool {
        let both = self.late_p99_ms.zip(self.p99_ms);
        both.is_some_and(|(late, latency)| late > latency * BLUR)
    }
}

/// One kind in one second.
#[derive(Debug, Clone)]
struct Cell {
    counts: Counts,
    /// Microseconds from the planned instant to the answer.
    latencies: Histogram<u32>,
    /// Microseconds from the planned instant to the sending.
    lateness: Histogram<u32>,
}

impl Cell {
    fn new() -> Self {
        Self {
            counts: Counts::default(),
            latencies: histogram(),
            lateness: histogram(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        add(&mut self.latencies, &other.latencies);
        add(&mut self.lateness, &other.lateness);
    }
}

/// An empty histogram that grows with what is put in.
pub(super) fn histogram() -> Histogram<u32> {
    Histogram::new(DIGITS).expect("three digits are between none and five")
}

fn add(to: &mut Histogram<u32>, other: &Histogram<u32>) {
    to.add(other)
        .expect("a histogram that grows takes what another holds");
}

/// The counts and latencies of a load.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// By second; each kind's cell is made when there is something to put in.
    seconds: Vec<[Option<Box<Cell>>; Kind::ALL.len()]>,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    fn cell(&mut self, kind: Kind, planned: Duration) -> &mut Cell {
        let second = usize::try_from(planned.as_secs()).expect("a load ends before memory does");
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, Default::default);
        }
        self.seconds[second][kind as usize].get_or_insert_with(|| Box::new(Cell::new()))
    }

    /// A request was sent, this long after the instant it was planned for.
    pub fn sent(&mut self, kind: Kind, planned: Duration, late: Duration) {
        let cell = self.cell(kind, planned);
        cell.counts.sent += 1;
        record(&mut cell.lateness, late);
    }

    /// Its answer came, this long after the planned instant.
    pub fn answered(&mut self, kind: Kind, planned: Duration, latency: Duration) {
        let cell = self.cell(kind, planned);
        cell.counts.answered += 1;
        record(&mut cell.latencies, latency);
    }

    /// It ended with this error.
    pub fn error(&mut self, kind: Kind, planned: Duration, what: &str) {
        self.cell(kind, planned).counts.errors += 1;
        *self
            .errors
            .entry(format!("{}: {what}", kind.name()))
            .or_default() += 1;
    }

    /// No answer came, and none is waited for any more.
    pub fn unanswered(&mut self, kind: Kind, planned: Duration) {
        self.cell(kind, planned).counts.unanswered += 1;
    }

    /// Takes in what another counted of the same seconds.
    pub fn merge(&mut self, other: Self) {
        if self.seconds.len() < other.seconds.len() {
            self.seconds
                .resize_with(other.seconds.len(), Default::default);
        }
        for (mine, theirs) in self.seconds.iter_mut().zip(other.seconds) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                match (mine, theirs) {
                    (Some(mine), Some(theirs)) => mine.add(&theirs),
                    (mine @ None, theirs) => *mine = theirs,
                    (Some(_), None) => {}
                }
            }
        }
        for (what, count) in other.errors {
            *self.errors.entry(what).or_default() += count;
        }
    }

    /// How many seconds there are, the last perhaps not whole.
    #[must_use]
    pub fn seconds(&self) -> usize {
        self.seconds.len()
    }

    /// These kinds in these seconds, together.
    #[must_use]
    pub fn over(&self, kinds: &[Kind], seconds: Range<usize>) -> Summary {
        let span = seconds.end.min(self.seconds.len());
        let seconds = seconds.start.min(span)..span;
        let mut sum = Cell::new();
        let length = seconds.len();
        for second in &self.seconds[seconds] {
            for kind in kinds {
                if let Some(cell) = &second[*kind as usize] {
                    sum.add(cell);
                }
            }
        }
        let of = |histogram: &Histogram<u32>, share: f64| {
            let found = histogram.value_at_quantile(share);
            (!histogram.is_empty()).then(|| milliseconds(found))
        };
        let latency = |share: f64| of(&sum.latencies, share);
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let answered_per_second = sum.counts.answered as f64 / length.max(1) as f64;
        Summary {
            counts: sum.counts,
            answered_per_second,
            p50_ms: latency(0.5),
            p99_ms: latency(0.99),
            max_ms: latency(1.0),
            late_p99_ms: of(&sum.lateness, 0.99),
        }
    }

    /// Everything of these kinds.
    #[must_use]
    pub fn total(&self, kinds: &[Kind]) -> Summary {
        self.over(kinds, 0..self.seconds.len())
    }

    /// How often each error came.
    #[must_use]
    pub fn errors(&self) -> &BTreeMap<String, u64> {
        &self.errors
    }

    /// Milliseconds after its planned instant that this share (0 to 1) of the requests had
    /// left.
    #[must_use]
    pub fn lateness_ms(&self, share: f64) -> f64 {
        let mut all = histogram();
        for cell in self.seconds.iter().flatten().flatten() {
            add(&mut all, &cell.lateness);
        }
        milliseconds(all.value_at_quantile(share))
    }
}

fn record(to: &mut Histogram<u32>, duration: Duration) {
    let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    to.record(microseconds.min(LONGEST))
        .expect("a histogram that grows takes an hour");
}

fn milliseconds(microseconds: u64) -> f64 {
    Duration::from_micros(microseconds).as_secs_f64() * 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn each_request_belongs_to_the_second_it_was_planned_for() {
        let mut tally = Tally::default();
        for planned in [ms(999), ms(1_000), ms(1_001)] {
            tally.sent(Kind::UdpAnnounce, planned, ms(0));
        }
        // The answer to the first comes two seconds later, in a second of its own.
        tally.answered(Kind::UdpAnnounce, ms(999), 2 * SECOND);
        tally.answered(Kind::UdpAnnounce, ms(1_000), ms(1));
        tally.unanswered(Kind::UdpAnnounce, ms(1_001));

        let first = tally.over(&[Kind::UdpAnnounce], 0..1);
        assert_eq!((first.counts.sent, first.counts.answered), (1, 1));
        assert!(first.max_ms.is_some_and(|max| max >= 2_000.0), "{first:?}");
        let second = tally.over(&[Kind::UdpAnnounce], 1..2);
        assert_eq!((second.counts.sent, second.counts.failed()), (2, 1));
        assert!(second.max_ms.is_some_and(|max| max < 1.1), "{second:?}");
        assert!(tally.total(&Kind::ALL).counts.add_up());
        assert_eq!(tally.over(&[Kind::HttpScrape], 0..9), Summary::default());
    }

    #[test]
    fn merging_loses_nothing_whichever_is_longer() {
        let one = |seconds: &[u64]| {
            let mut tally = Tally::default();
            for second in seconds {
                let planned = Duration::from_secs(*second);
                tally.sent(Kind::UdpConnect, planned, ms(3));
                tally.error(Kind::UdpConnect, planned, "no");
            }
            tally
        };
        for (mine, theirs) in [([0, 1], [5, 0]), ([5, 0], [0, 1])] {
            let mut tally = one(&mine);
            tally.merge(one(&theirs));
            let total = tally.total(&Kind::ALL);
            assert_eq!((total.counts.sent, total.counts.errors), (4, 4));
            assert_eq!(tally.over(&Kind::ALL, 0..1).counts.sent, 2);
            assert_eq!(tally.seconds(), 6);
            assert_eq!(tally.errors()["UDP connect: no"], 4);
            assert!((2.9..3.1).contains(&tally.lateness_ms(1.0)));
        }
    }

    #[test]
    fn a_second_in_which_requests_left_late_is_told_from_the_others() {
        let mut tally = Tally::default();
        for second in 0..3 {
            for request in 0..100 {
                let planned = ms(second * 1_000 + request);
                let late = if second == 1 { ms(20) } else { ms(0) };
                tally.sent(Kind::UdpAnnounce, planned, late);
                tally.answered(Kind::UdpAnnounce, planned, ms(40));
            }
        }
        let over = |seconds| tally.over(&Kind::ALL, seconds);
        for (seconds, late) in [(0..1, false), (1..2, true), (2..3, false), (0..3, true)] {
            let found = over(seconds.clone());
            assert_eq!((found.late(), found.blurred()), (late, late), "{seconds:?}");
        }
        assert!((tally.lateness_ms(1.0) - 20.0).abs() < 0.1);
    }

    /// What is late is flagged by the part of the latency it is, not by its length alone.
    #[test]
    fn lateness_blurs_short_latencies_and_not_long_ones() {
        let of = |late, latency| Summary {
            late_p99_ms: late,
            p99_ms: latency,
            ..Summary::default()
        };
        assert!(of(Some(1.0), Some(2.0)).blurred());
        assert!(!of(Some(1.0), Some(4.0)).blurred());
        assert!(!of(Some(4.9), Some(100.0)).blurred());
        for unknown in [of(None, Some(1.0)), of(Some(1.0), None), of(None, None)] {
            assert!(!unknown.blurred());
        }
        assert!(of(Some(5.1), None).late() && !of(Some(5.0), None).late());
    }

    #[test]
    fn quantiles_are_of_the_answered() {
        let mut tally = Tally::default();
        for latency in 1..=100 {
            tally.sent(Kind::UdpAnnounce, SECOND, ms(0));
            tally.answered(Kind::UdpAnnounce, SECOND, ms(latency));
        }
        let found = tally.total(&[Kind::UdpAnnounce]);
        let near = |found: Option<f64>, wanted: f64| {
            found.is_some_and(|found| (found - wanted).abs() / wanted < 0.002)
        };
        assert!(near(found.p50_ms, 50.0), "{found:?}");
        assert!(near(found.p99_ms, 99.0), "{found:?}");
        assert!(near(found.max_ms, 100.0), "{found:?}");
    }
}
