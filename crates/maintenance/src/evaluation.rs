//! Whether a change of the journal mode pays: figures of before and after, compared, and
//! the rule that decides. Pure.
//!
//! Each figure is taken many times on either side, in slices of equal length, because a
//! machine is never twice as fast as itself: what two slices of the *same* side differ by
//! is noise, and a difference between the sides that is no larger means nothing. Of a few
//! slices the noise is not known well: then the sides must be apart altogether, too.
//!
//! ```text
//!   figures of before ─┐                 ┌─ something essential is worse ─▶ revert
//!                      ├─▶ differences ──┼─ something is better ──────────▶ keep
//!   figures of after ──┘                 └─ nothing differs ──────────────▶ keep
//! ```
//!
//! The last line is no mistake: nothing is lost by keeping what is no worse. What is gained
//! all the same whoever asks knows: of WAL, that readers and writers do not wait for each
//! other, and that a backup pauses announces for milliseconds instead of for as long as it
//! copies.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A difference below this part of the value before is none, however steady the figures.
const NEGLIGIBLE: f64 = 0.10;

/// Times the spread of the slices that a difference must exceed. For figures that are
/// spread normally, 3 median deviations are 2 standard deviations.
const CLEAR: f64 = 3.0;

/// From as many slices a side on, their spread alone tells the noise. Of fewer it is small by
/// chance too often: with three or four, one evaluation in seven found something worse where
/// nothing was.
const MANY: usize = 6;

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Good {
    /// As latencies and costs are.
    Low,
    /// As rates are.
    High,
    /// As what was asked is: it is shown beside the others, and not judged.
    Neither,
}

/// What a figure that got worse means for the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// It alone is a reason to go back.
    Essential,
    /// It is told.
    Told,
}

/// One figure, as measured in each slice of both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: String,
    /// Which way it is good.
    pub good: Good,
    /// What it counts for.
    pub weight: Weight,
    /// In its own unit: a difference that is no larger is none. 0 where any counts.
    #[serde(default)]
    pub least: f64,
    /// Of each slice before the change.
    pub before: Vec<f64>,
    /// Of each slice after it.
    pub after: Vec<f64>,
}

/// Fewest slices of a side: of one alone it is not known how far it is from itself.
const SLICES: usize = 2;

/// What a comparison has shown of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Clearly better.
    Better,
    /// No difference that is larger than the noise.
    Same,
    /// Clearly worse.
    Worse,
    /// One side has not been measured, or once only.
    Unknown,
    /// It is good neither way.
    NotJudged,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Better => "better",
            Self::Same => "same",
            Self::Worse => "worse",
            Self::Unknown => "not known",
            Self::NotJudged => "not judged",
        })
    }
}

/// A figure, compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// What was compared.
    pub name: String,
    /// What it counts for.
    pub weight: Weight,
    /// The median of the slices before.
    pub before: Option<f64>,
    /// The median of the slices after.
    pub after: Option<f64>,
    /// The least the medians must differ by for the difference to be one.
    pub noise: f64,
    /// What follows.
    pub verdict: Verdict,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Keep the change.
    Keep,
    /// Go back.
    Revert,
    /// Too little was measured to say.
    Undecided,
}

/// A decision and what led to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Of each figure, in the order given.
    pub differences: Vec<Difference>,
    /// What to do.
    pub decision: Decision,
    /// Why, in a sentence.
    pub because: String,
}

impl Evaluation {
    /// Whether it is kept though nothing is better: the reason is another then.
    #[must_use]
    pub fn is_even(&self) -> bool {
        let better = |one: &Difference| one.verdict == Verdict::Better;
        self.decision == Decision::Keep && !self.differences.iter().any(better)
    }
}

/// Compares each figure and decides.
#[must_use]
pub fn evaluate(figures: &[Figure]) -> Evaluation {
    let differences: Vec<Difference> = figures.iter().map(Figure::compare).collect();
    let with = |verdict: Verdict, weight: Option<Weight>| -> Vec<&str> {
        let wanted = |one: &&Difference| {
            one.verdict == verdict && weight.is_none_or(|weight| one.weight == weight)
        };
        let found = differences.iter().filter(wanted);
        found.map(|one| one.name.as_str()).collect()
    };
    let essential = differences
        .iter()
        .any(|one| one.weight == Weight::Essential);
    let unknown = with(Verdict::Unknown, Some(Weight::Essential));
    let worse = with(Verdict::Worse, Some(Weight::Essential));
    let better = with(Verdict::Better, None);
    let (decision, because) = if !worse.is_empty() {
        (Decision::Revert, format!("worse: {}", worse.join("; ")))
    } else if !unknown.is_empty() || !essential {
        let missing = if essential {
            unknown.join("; ")
        } else {
            "anything that decides".to_owned()
        };
        (Decision::Undecided, format!("not measured: {missing}"))
    } else if better.is_empty() {
        (Decision::Keep, "no clear difference".to_owned())
    } else {
        (Decision::Keep, format!("better: {}", better.join("; ")))
    };
    Evaluation {
        differences,
        decision,
        because,
    }
}

impl Figure {
    fn compare(&self) -> Difference {
        let (before, after) = (median(&self.before), median(&self.after));
        let noise = before.map_or(self.least, |before| {
            let spread = deviation(&self.before).max(deviation(&self.after));
            (before.abs() * NEGLIGIBLE)
                .max(spread * CLEAR)
                .max(self.least)
                .max(reach(&self.before, &self.after))
        });
        let enough = |side: &[f64]| side.iter().filter(|value| value.is_finite()).count() >= SLICES;
        let both = before
            .zip(after)
            .filter(|_| enough(&self.before) && enough(&self.after));
        let verdict = match (self.good, both) {
            (Good::Neither, _) => Verdict::NotJudged,
            (Good::Low, Some((before, after))) => verdict(before - after, noise),
            (Good::High, Some((before, after))) => verdict(after - before, noise),
            (_, None) => Verdict::Unknown,
        };
        Difference {
            name: self.name.clone(),
            weight: self.weight,
            before,
            after,
            noise,
            verdict,
        }
    }
}

/// Of a figure that got so much better, or by a negative gain worse.
fn verdict(gain: f64, noise: f64) -> Verdict {
    if gain > noise {
        Verdict::Better
    } else if -gain > noise {
        Verdict::Worse
    } else {
        Verdict::Same
    }
}

/// The middle of the values, or of the two in the middle; `None` of none. What is no number
/// is left out.
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values
        .iter()
        .copied()
        .filter(|value| value.is_finite())
        .collect();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) {
        sorted[sorted.len() / 2 - 1].midpoint(upper)
    } else {
        upper
    })
}

/// What the medians of two sides must differ by for the sides not to overlap: how far each
/// reaches from its median towards the other. 0 where both have many values.
fn reach(before: &[f64], after: &[f64]) -> f64 {
    let finite = |side: &[f64]| -> Vec<f64> {
        let numbers = side.iter().copied().filter(|value| value.is_finite());
        numbers.collect()
    };
    let (before, after) = (finite(before), finite(after));
    let (Some(from), Some(to)) = (median(&before), median(&after)) else {
        return 0.0;
    };
    if before.len().min(after.len()) >= MANY {
        return 0.0;
    }
    let down = |side: &[f64], middle: f64| {
        let least = side.iter().copied().fold(middle, f64::min);
        middle - least
    };
    let up = |side: &[f64], middle: f64| {
        let most = side.iter().copied().fold(middle, f64::max);
        most - middle
    };
    if from < to {
        up(&before, from) + down(&after, to)
    } else {
        down(&before, from) + up(&after, to)
    }
}

/// The median of how far the values are from their median; 0 of none.
fn deviation(values: &[f64]) -> f64 {
    let Some(middle) = median(values) else {
        return 0.0;
    };
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    median(&distances).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(weight: Weight, good: Good, before: &[f64], after: &[f64]) -> Figure {
        Figure {
            name: "a figure".to_owned(),
            good,
            weight,
            least: 0.0,
            before: before.to_vec(),
            after: after.to_vec(),
        }
    }

    fn found(good: Good, before: &[f64], after: &[f64]) -> Verdict {
        figure(Weight::Told, good, before, after).compare().verdict
    }

    #[test]
    fn a_difference_must_exceed_a_tenth_and_the_noise() {
        use Verdict::{Better, Same, Unknown, Worse};
        let table: &[(&[f64], &[f64], Verdict)] = &[
            (&[10.0, 10.0], &[9.1, 9.1], Same),
            (&[10.0, 10.0], &[8.9, 8.9], Better),
            (&[10.0, 10.0], &[11.1, 11.1], Worse),
            // Half as much, but either side is as far from itself.
            (&[5.0, 10.0, 15.0], &[2.0, 5.0, 9.0], Same),
            // The same medians, steady.
            (&[9.9, 10.0, 10.1], &[4.9, 5.0, 5.1], Better),
            // One slice that was disturbed does not decide.
            (&[10.0, 10.0, 10.0, 500.0], &[10.1, 10.0, 9.9, 10.0], Same),
            (&[0.0, 0.0], &[0.0, 0.0], Same),
            (&[0.0, 0.0], &[1.0, 1.0], Worse),
            (&[], &[1.0, 1.0], Unknown),
            (&[1.0, 1.0], &[], Unknown),
            // How noisy one slice is cannot be known.
            (&[1.0], &[9.0, 9.0], Unknown),
            (&[f64::NAN, 1.0], &[9.0, 9.0], Unknown),
        ];
        for (before, after, wanted) in table {
            assert_eq!(
                found(Good::Low, before, after),
                *wanted,
                "{before:?} {after:?}"
            );
            let mirrored = match wanted {
                Better => Worse,
                Worse => Better,
                other => *other,
            };
            assert_eq!(
                found(Good::High, before, after),
                mirrored,
                "{before:?} {after:?}"
            );
            let shown = found(Good::Neither, before, after);
            assert_eq!(shown, Verdict::NotJudged, "{before:?} {after:?}");
        }
    }

    /// Eight figures that all differ, divided in every way: as chance would. Each division
    /// is as likely as any other where nothing differs.
    #[test]
    fn few_slices_differ_only_where_none_of_one_side_is_among_the_other() {
        for (all, divisions) in [(4_usize, 6), (6, 20), (8, 70), (10, 252)] {
            let (mut seen, mut differ) = (0, Vec::new());
            for chosen in 0..1_u32 << all {
                if chosen.count_ones() as usize != all / 2 {
                    continue;
                }
                seen += 1;
                let (mut before, mut after) = (Vec::new(), Vec::new());
                for index in 0..all {
                    // Each the double of the one before: a difference is never negligible.
                    let value = f64::from(1_u32 << index);
                    if chosen & (1 << index) == 0 {
                        before.push(value);
                    } else {
                        after.push(value);
                    }
                }
                if found(Good::Low, &before, &after) != Verdict::Same {
                    differ.push(chosen);
                }
            }
            assert_eq!(seen, divisions);
            let low_half = (1 << (all / 2)) - 1;
            let apart = [low_half, low_half << (all / 2)];
            let unknown = differ.iter().filter(|one| !apart.contains(one)).count();
            assert_eq!(unknown, 0, "{all} slices: {differ:?}");
        }
        // What is apart and steady differs with two, three, four slices a side.
        for slices in 2..=4 {
            let (low, high) = (vec![10.0; slices], vec![20.0; slices]);
            assert_eq!(found(Good::Low, &low, &high), Verdict::Worse);
            assert_eq!(found(Good::Low, &high, &low), Verdict::Better);
        }
    }

    #[test]
    fn one_that_strays_hides_a_difference_of_few_slices_and_not_of_many() {
        for slices in [5, 6] {
            let low = vec![10.0; slices];
            let mut high = vec![20.0; slices];
            high[0] = 10.0;
            let wanted = if slices < MANY {
                Verdict::Same
            } else {
                Verdict::Worse
            };
            assert_eq!(found(Good::Low, &low, &high), wanted, "{slices}");
            // One that strays the other way is no reason to doubt.
            high[0] = 90.0;
            assert_eq!(found(Good::Low, &low, &high), Verdict::Worse, "{slices}");
        }
    }

    #[test]
    fn a_difference_below_the_least_that_counts_is_none() {
        for (after, wanted) in [
            (0.05, Verdict::Same),
            (0.1, Verdict::Same),
            (0.11, Verdict::Worse),
        ] {
            let mut failures = figure(Weight::Essential, Good::Low, &[0.0; 4], &[after; 4]);
            failures.least = 0.1;
            let found = failures.compare();
            assert_eq!(found.verdict, wanted, "{after}");
            assert!(found.noise >= 0.1);
        }
    }

    #[test]
    fn the_rule_is_total_and_worse_comes_first() {
        let sides: [(&[f64], &[f64]); 4] = [
            (&[10.0, 10.0], &[5.0, 5.0]),
            (&[10.0, 10.0], &[10.0, 10.0]),
            (&[10.0, 10.0], &[20.0, 20.0]),
            (&[10.0, 10.0], &[]),
        ];
        let (better, same, worse, unknown) = (0, 1, 2, 3);
        for essential in 0..4 {
            for told in 0..4 {
                let figures = [(Weight::Essential, essential), (Weight::Told, told)]
                    .map(|(weight, side)| figure(weight, Good::Low, sides[side].0, sides[side].1));
                let found = evaluate(&figures);
                let wanted = if essential == worse {
                    Decision::Revert
                } else if essential == unknown {
                    Decision::Undecided
                } else {
                    Decision::Keep
                };
                assert_eq!(found.decision, wanted, "{found:#?}");
                let says = |word| found.because.starts_with(word);
                if wanted == Decision::Keep {
                    assert_eq!(says("better"), essential == better || told == better);
                    assert_eq!(says("no clear"), essential == same && told != better);
                    assert_eq!(found.is_even(), says("no clear"));
                } else {
                    assert!(!found.is_even());
                }
            }
        }
        assert_eq!(evaluate(&[]).decision, Decision::Undecided);
    }

    /// Twice the requests are neither a reason to keep nor to go back.
    #[test]
    fn what_is_not_judged_decides_nothing() {
        let essential = figure(Weight::Essential, Good::Low, &[1.0, 1.0], &[1.0, 1.0]);
        for (before, after) in [(1.0, 2.0), (2.0, 1.0)] {
            let shown = figure(Weight::Told, Good::Neither, &[before; 3], &[after; 3]);
            let found = evaluate(&[essential.clone(), shown]);
            assert_eq!(found.decision, Decision::Keep);
            assert!(found.because.starts_with("no clear"), "{found:#?}");
            assert_eq!(found.differences[1].after, Some(after));
        }
        let alone = figure(Weight::Essential, Good::Neither, &[1.0, 1.0], &[9.0, 9.0]);
        assert_eq!(evaluate(&[alone]).decision, Decision::Keep);
    }

    #[test]
    fn medians_of_even_and_odd_numbers_of_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
    }
}
