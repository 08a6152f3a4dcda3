//! The highest rate at which a tracker that does nothing else answers every request.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::generator::{Generator, Kind, MOST, Plan, Summary};
use crate::tracker::Tracker;

/// Rates that are tried, as parts of 1,000 of the highest.
const STEPS: [u32; 14] = [
    1_000, 750, 560, 420, 320, 240, 180, 135, 100, 75, 50, 25, 12, 6,
];

/// A tracker that answers later than this at the 99th of 100 has a queue that grows.
pub const PROMPT_MS: f64 = 500.0;

/// Answers are waited for after each try, so that the next begins with no queue: the tracker
/// drops an announce that has waited for the database for 5 s.
pub(super) const GRACE: Duration = Duration::from_secs(7);

/// A rate this many times what the tracker has just answered is not tried.
const HOPELESS: f64 = 1.5;

/// One rate, tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Try {
    /// UDP requests per second.
    pub udp_per_second: u32,
    /// HTTP requests per second.
    pub http_per_second: u32,
    /// What came of it, without the first second.
    pub all: Summary,
    /// The same of the announces over UDP.
    pub announces: Summary,
    /// Answers that the kernel dropped before the generator read them, in all of the try.
    pub dropped: u64,
}

/// What a try has shown of the tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every request was answered, and promptly.
    Held,
    /// Not every one, or not promptly.
    NotHeld,
    /// Nothing: requests left late, or the generator lost answers.
    Unknown,
}

impl Try {
    /// What it has shown.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let prompt = self.announces.p99_ms.is_some_and(|p99| p99 < PROMPT_MS);
        if self.all.late() || self.dropped > 0 {
            Verdict::Unknown
        } else if self.all.counts.failed() == 0 && prompt {
            Verdict::Held
        } else {
            Verdict::NotHeld
        }
    }
}

/// The highest rate that was held; `None` if none was.
#[must_use]
pub fn held(tries: &[Try]) -> Option<&Try> {
    let held = tries.iter().filter(|one| one.verdict() == Verdict::Held);
    held.max_by_key(|one| one.udp_per_second)
}

/// What all tries together have shown: where none was held, what the lowest did.
#[must_use]
pub fn shown(tries: &[Try]) -> Verdict {
    if held(tries).is_some() {
        return Verdict::Held;
    }
    tries.last().map_or(Verdict::Unknown, Try::verdict)
}

/// Tries rates from the highest down until one is held; all that were tried. Each takes so
/// many `seconds`. Rates far above what the tracker answered at the one before are left out,
/// and those above [`MOST`] UDP requests a second.
///
/// # Errors
/// When the tracker cannot be reached.
pub async fn search(tracker: &Tracker, highest: &Plan, seconds: u64) -> Result<Vec<Try>> {
    let mut tries: Vec<Try> = Vec::new();
    for step in STEPS {
        let plan = part(highest, step);
        if hopeless(tries.last(), &plan) && Some(&step) != STEPS.last() {
            continue;
        }
        let one = attempt(tracker, plan, seconds).await?;
        let verdict = one.verdict();
        eprintln!(
            "  {} UDP + {} HTTP requests a second: {} failed, p99 {:.1} ms{}",
            one.udp_per_second,
            one.http_per_second,
            one.all.counts.failed(),
            one.announces.p99_ms.unwrap_or(f64::NAN),
            match verdict {
                Verdict::Held => ": held",
                Verdict::NotHeld => "",
                Verdict::Unknown => ": the generator was the limit",
            },
        );
        tries.push(one);
        if verdict == Verdict::Held {
            break;
        }
    }
    Ok(tries)
}

/// So many thousandths of the rates of a plan, one at least.
fn part(highest: &Plan, thousandths: u32) -> Plan {
    // No more than the rate itself.
    let part = |rate: u32| {
        let part = u64::from(rate) * u64::from(thousandths) / 1_000;
        u32::try_from(part).unwrap_or(rate).max(1)
    };
    Plan {
        udp_per_second: part(highest.udp_per_second.min(MOST)),
        http_per_second: part(highest.http_per_second),
        ..*highest
    }
}

/// Whether the try before says that this cannot be held. One that shows nothing says nothing.
fn hopeless(before: Option<&Try>, plan: &Plan) -> bool {
    let planned = f64::from(plan.udp_per_second + plan.http_per_second);
    before
        .filter(|one| one.verdict() == Verdict::NotHeld)
        .is_some_and(|one| planned > one.all.answered_per_second * HOPELESS)
}

async fn attempt(tracker: &Tracker, plan: Plan, seconds: u64) -> Result<Try> {
    let addresses = tracker.addresses;
    let generator = Generator::start(plan, addresses.udp, addresses.http, GRACE).await?;
    generator.until(Duration::from_secs(1 + seconds)).await?;
    let found = generator.stop().await?;
    let measured = 1..found.tally.seconds();
    Ok(Try {
        udp_per_second: plan.udp_per_second,
        http_per_second: plan.http_per_second,
        all: found.tally.over(&Kind::ALL, measured.clone()),
        announces: found.tally.over(&[Kind::UdpAnnounce], measured),
        dropped: found.health.dropped,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::generator::LATE_MS;

    /// A rate at which this many of 1,000 requests were answered, in so many milliseconds.
    pub(in crate::experiment) fn tried(
        udp_per_second: u32,
        answered: u64,
        p99_ms: f64,
        late_ms: f64,
    ) -> Try {
        let mut all = Summary::default();
        all.counts.sent = 1_000;
        all.counts.answered = answered;
        all.counts.unanswered = 1_000 - answered;
        all.answered_per_second = 500.0;
        all.p99_ms = Some(p99_ms);
        all.late_p99_ms = Some(late_ms);
        Try {
            udp_per_second,
            http_per_second: 10,
            all,
            announces: all,
            dropped: 0,
        }
    }

    /// Every combination of what failed, how slow, how late and what was dropped.
    #[test]
    fn where_the_generator_was_the_limit_nothing_is_known() {
        for answered in [1_000, 999] {
            for p99 in [1.0, PROMPT_MS] {
                for late in [LATE_MS, LATE_MS + 1.0] {
                    for dropped in [0, 1] {
                        let one = Try {
                            dropped,
                            ..tried(100, answered, p99, late)
                        };
                        let wanted = if late > LATE_MS || dropped > 0 {
                            Verdict::Unknown
                        } else if answered == 1_000 && p99 < PROMPT_MS {
                            Verdict::Held
                        } else {
                            Verdict::NotHeld
                        };
                        assert_eq!(one.verdict(), wanted, "{one:#?}");
                    }
                }
            }
        }
        // Nothing was answered, so nothing was prompt.
        let mut nothing = tried(100, 1_000, 1.0, 0.0);
        nothing.announces = Summary::default();
        assert_eq!(nothing.verdict(), Verdict::NotHeld);
    }

    #[test]
    fn the_lowest_rate_is_not_held_because_it_is_the_last() {
        let (good, bad) = (tried(50, 1_000, 1.0, 0.0), tried(100, 900, 1.0, 0.0));
        let late = tried(200, 1_000, 1.0, 2.0 * LATE_MS);
        assert_eq!(held(&[]), None);
        assert_eq!(held(&[late.clone(), bad.clone()]), None);
        let all = [late, bad, good.clone()];
        assert_eq!(held(&all), Some(&good));
        let [late, bad, _] = all;
        assert_eq!(shown(&[late.clone(), bad.clone()]), Verdict::NotHeld);
        assert_eq!(shown(&[bad.clone(), late]), Verdict::Unknown);
        assert_eq!(shown(&[bad, good]), Verdict::Held);
        assert_eq!(shown(&[]), Verdict::Unknown);
    }

    #[test]
    fn no_more_is_offered_than_the_generator_is_meant_for() {
        let highest = Plan {
            udp_per_second: 10 * MOST,
            http_per_second: 200,
            ..Plan::default()
        };
        let first = part(&highest, 1_000);
        assert_eq!((first.udp_per_second, first.http_per_second), (MOST, 200));
        let last = part(&highest, 6);
        assert_eq!((last.udp_per_second, last.http_per_second), (120, 1));
    }

    #[test]
    fn rates_are_left_out_only_on_the_word_of_a_try_that_shows_something() {
        let plan = Plan {
            udp_per_second: 800,
            http_per_second: 1,
            ..Plan::default()
        };
        // 500 a second were answered.
        assert!(!hopeless(None, &plan));
        assert!(hopeless(Some(&tried(1_000, 500, 1.0, 0.0)), &plan));
        let late = tried(1_000, 500, 1.0, 2.0 * LATE_MS);
        assert!(!hopeless(Some(&late), &plan));
        let lower = Plan {
            udp_per_second: 700,
            ..plan
        };
        assert!(!hopeless(Some(&tried(1_000, 500, 1.0, 0.0)), &lower));
    }
}
