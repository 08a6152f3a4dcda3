//! What a load has found, as a file another program can read.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{ANNOUNCES, Found, Health, Kind, Mark, Plan, Summary};
use crate::completions::Acknowledged;
use crate::plot::{Line, Panel, Scale};

/// One second of a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// From the beginning.
    pub second: usize,
    /// Everything that was planned for it.
    pub all: Summary,
    /// The announces planned for it, of both doors.
    pub announces: Summary,
    /// Each kind that was planned for it.
    #[serde(default)]
    pub kinds: BTreeMap<Kind, Summary>,
}

/// A load, accounted for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was to be sent.
    pub plan: Plan,
    /// Everything together.
    pub all: Summary,
    /// Each kind that was sent.
    pub kinds: BTreeMap<Kind, Summary>,
    /// How often each error came.
    pub errors: BTreeMap<String, u64>,
    /// By the second.
    pub series: Vec<Second>,
    /// What happened meanwhile.
    pub marks: Vec<Mark>,
    /// The announces that say a peer has completed.
    pub completions: Acknowledged,
    /// What the generator itself could not do.
    pub health: Health,
}

impl Report {
    /// Of a load that has ended.
    #[must_use]
    pub fn new(plan: Plan, found: &Found, marks: Vec<Mark>) -> Self {
        let tally = &found.tally;
        let kinds = |seconds: Range<usize>| -> BTreeMap<Kind, Summary> {
            Kind::ALL
                .into_iter()
                .map(|kind| (kind, tally.over(&[kind], seconds.clone())))
                .filter(|(_, summary)| summary.counts.sent > 0)
                .collect()
        };
        let series = (0..tally.seconds())
            .map(|second| Second {
                second,
                all: tally.over(&Kind::ALL, second..second + 1),
                announces: tally.over(&ANNOUNCES, second..second + 1),
                kinds: kinds(second..second + 1),
            })
            .collect();
        Self {
            plan,
            all: tally.total(&Kind::ALL),
            kinds: kinds(0..tally.seconds()),
            errors: tally.errors().clone(),
            series,
            marks,
            completions: found.completions.counts(),
            health: found.health.clone(),
        }
    }

    /// The rate and the latencies over time, but for the last second, which is not whole.
    #[must_use]
    pub fn panels(&self) -> Vec<Panel> {
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let points = |value: &dyn Fn(&Second) -> Option<f64>| -> Vec<(f64, f64)> {
            let whole = self.series.len().saturating_sub(1);
            self.series[..whole]
                .iter()
                .filter_map(|second| Some((second.second as f64 + 0.5, value(second)?)))
                .collect()
        };
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let rate = Panel {
            title: "requests a second".to_owned(),
            scale: Scale::Linear,
            lines: vec![
                Line::new(
                    "sent",
                    points(&|second| Some(second.all.counts.sent as f64)),
                ),
                Line::new(
                    "answered",
                    points(&|second| Some(second.all.counts.answered as f64)),
                ),
                Line::new(
                    "failed",
                    points(&|second| Some(second.all.counts.failed() as f64)),
                ),
            ],
        };
        let latency = Panel {
            title: "announces: milliseconds from the planned instant to the answer".to_owned(),
            scale: Scale::Logarithmic,
            lines: vec![
                Line::new("p50", points(&|second| second.announces.p50_ms)),
                Line::new("p99", points(&|second| second.announces.p99_ms)),
                Line::new("max", points(&|second| second.announces.max_ms)),
            ],
        };
        vec![rate, latency]
    }
}
