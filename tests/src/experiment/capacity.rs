//! The highest rate at which a tracker that does nothing else answers every request.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::generator::{Generator, Kind, Plan, Summary};
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
    /// Why the load was not what was planned.
    pub limits: Vec<String>,
}

impl Try {
    /// Whether every request was answered, and promptly.
    #[must_use]
    pub fn held(&self) -> bool {
        self.all.counts.failed() == 0 && self.announces.p99_ms.is_some_and(|p99| p99 < PROMPT_MS)
    }
}

/// Tries rates from the highest down until one is held; all that were tried, the one that
/// held last; where none is, the last is the lowest. Each takes so many `seconds`. Rates far
/// above what the tracker answered at the one before are left out.
///
/// # Errors
/// When the tracker cannot be reached.
pub async fn search(tracker: &Tracker, highest: &Plan, seconds: u64) -> Result<Vec<Try>> {
    let mut tries = Vec::new();
    for step in STEPS {
        let part = |rate: u32| (u64::from(rate) * u64::from(step) / 1_000).max(1);
        let plan = Plan {
            udp_per_second: u32::try_from(part(highest.udp_per_second))?,
            http_per_second: u32::try_from(part(highest.http_per_second))?,
            ..*highest
        };
        let planned = f64::from(plan.udp_per_second + plan.http_per_second);
        let answered = tries.last().map(|one: &Try| one.all.answered_per_second);
        let hopeless = answered.is_some_and(|answered| planned > answered * HOPELESS);
        if hopeless && Some(&step) != STEPS.last() {
            continue;
        }
        let one = attempt(tracker, plan, seconds).await?;
        eprintln!(
            "  {} UDP + {} HTTP requests a second: {} failed, p99 {:.1} ms{}",
            one.udp_per_second,
            one.http_per_second,
            one.all.counts.failed(),
            one.announces.p99_ms.unwrap_or(f64::NAN),
            if one.held() { ": held" } else { "" },
        );
        let held = one.held();
        tries.push(one);
        if held {
            return Ok(tries);
        }
    }
    Ok(tries)
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
        limits: found.health.limits,
    })
}
