//! A steady rate: how many requests are due, and when each was.

use std::time::Duration;

/// Requests evenly spaced, this many a second, from an instant on.
#[derive(Debug, Clone)]
pub struct Pace {
    per_second: u32,
    passed: u64,
}

impl Pace {
    /// Nothing has left yet. A rate of 0 is never due.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self {
            per_second,
            passed: 0,
        }
    }

    /// When the next request is due, counted from the beginning; `None` if none ever is.
    #[must_use]
    pub fn next(&self) -> Option<Duration> {
        let rate = u64::from(self.per_second);
        if rate == 0 {
            return None;
        }
        let part = (self.passed % rate) * 1_000_000_000 / rate;
        Some(Duration::from_secs(self.passed / rate) + Duration::from_nanos(part))
    }

    /// Takes the next request out if it is due by then; when it was.
    pub fn take(&mut self, elapsed: Duration) -> Option<Duration> {
        let planned = self.next().filter(|planned| *planned <= elapsed)?;
        self.passed += 1;
        Some(planned)
    }

    /// Takes out all that are due by then; how many.
    pub fn take_all(&mut self, elapsed: Duration) -> u64 {
        let rate = u64::from(self.per_second);
        let whole = elapsed.as_secs() * rate;
        let part = u64::from(elapsed.subsec_nanos()) * rate / 1_000_000_000;
        let due = (whole + part).saturating_sub(self.passed);
        self.passed += due;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_as_many_as_the_rate_whatever_the_rate() {
        for rate in [1, 3, 7, 200, 999, 20_000] {
            let mut pace = Pace::new(rate);
            let just_before = Duration::from_secs(2) - Duration::from_nanos(1);
            let mut planned = Vec::new();
            while let Some(instant) = pace.take(just_before) {
                planned.push(instant);
            }
            assert_eq!(planned.len(), 2 * rate as usize);
            assert!(planned.is_sorted());
            assert_eq!(planned[0], Duration::ZERO);
            assert_eq!(planned[rate as usize], Duration::from_secs(1));
        }
    }

    #[test]
    fn what_was_late_is_taken_with_the_instant_it_was_planned_for() {
        let mut pace = Pace::new(10);
        let late = Duration::from_secs(1);
        assert_eq!(pace.take(late), Some(Duration::ZERO));
        assert_eq!(pace.take(late), Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_rate_of_nothing_is_never_due() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.take(Duration::from_secs(9)), None);
        assert_eq!(pace.take_all(Duration::from_secs(9)), 0);
    }

    #[test]
    fn looks_far_apart_lose_none() {
        let mut pace = Pace::new(3);
        let looks = [1, 334, 334, 500, 999, 1_000, 5_000].map(Duration::from_millis);
        let taken: u64 = looks.iter().map(|look| pace.take_all(*look)).sum();
        assert_eq!(taken, 15);
    }
}
