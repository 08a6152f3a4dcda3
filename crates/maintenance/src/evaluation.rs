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
//!
//! Rounds of an experiment are alike ([`evaluate`]); slices of a service that people use are not
//! ([`evaluate_paired`]): at night less is asked than in the evening, which is neither noise nor a
//! difference. So a slice is compared with those *before* at its time of day:
//!
//! ```text
//!   before ──▶ what is usual at each time of day ──┬──▶ before, to what is usual ── noise
//!                                                  └──▶ after, to what is usual ─── the change
//! ```
//!
//! Sides that share too few hours are not compared, nor are sides that were asked for much more
//! or less than each other.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

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

/// Seconds of a day, after which what people do comes again.
const DAY: u32 = 86_400;

/// Into parts of so many seconds a day is divided to tell what is usual at each.
const PART: u32 = 300;

/// Seconds: what is no further from a time of day is of that time. Slices that are longer than
/// twice this are of it if they reach it.
const NEAR: u32 = 1_800;

/// Where the sides were asked for so many times as much as each other, it is told; further on the
/// figures are not those of the change.
const ASKED_ALIKE: f64 = 1.1;
const ASKED_TOO_UNLIKE: f64 = 4.0 / 3.0;

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
    /// What the slices after were of those before at the same time of day: 2 is twice as much.
    /// `None`: it was not paired, or something in it was 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// What follows.
    pub verdict: Verdict,
}

/// A value of a slice of a service's day.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Taken {
    /// The middle of the slice, in seconds since midnight, UTC.
    pub at: u32,
    /// What it was.
    pub value: f64,
    /// What it counts for where all are put together: requests, say.
    pub of: f64,
}

/// How one figure is made of a side's slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// The one in the middle: a slice that was disturbed is not to be seen.
    Median,
    /// All together, each by what it counts for: of what is to be never, every slice in which it
    /// was counts.
    Pooled,
}

/// One figure, as measured on both sides of a change at times of day.
#[derive(Debug, Clone, PartialEq)]
pub struct Paired {
    /// What it is, with its unit.
    pub name: String,
    /// Which way it is good.
    pub good: Good,
    /// What it counts for.
    pub weight: Weight,
    /// In its own unit: a difference that is no larger is none. 0 where any counts.
    pub least: f64,
    /// How it is made of the slices.
    pub reading: Reading,
    /// Of each slice before the change.
    pub before: Vec<Taken>,
    /// Of each slice after it.
    pub after: Vec<Taken>,
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
    /// What is to be known besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
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
    decide(figures.iter().map(Figure::compare).collect())
}

/// Compares each figure with what it was before at the same time of day, and decides. `asked`
/// says how much was asked for in each slice, as a rate; it is the last of the differences, and
/// not judged. `slice` is how long slices are to be.
#[must_use]
pub fn evaluate_paired(figures: &[Paired], asked: &Paired, slice: Duration) -> Evaluation {
    let near = near(slice);
    let all = figures.iter().chain([asked]);
    let mut found = decide(all.map(|figure| figure.compare(near)).collect());
    let affected = figures.iter().filter_map(Paired::affected);
    found.remarks.extend(affected);
    let undecided = |found: &mut Evaluation, because: String| {
        found.decision = Decision::Undecided;
        found.because = because;
    };
    if asked.is_apart(near) {
        let because = "not comparable: the sides were measured at other times of day, of which \
                       they share too few";
        undecided(&mut found, because.to_owned());
        return found;
    }
    let ratio = found.differences.last().and_then(|asked| asked.ratio);
    if let Some(ratio) = ratio
        && ratio.max(ratio.recip()) > ASKED_ALIKE
    {
        let unlike =
            format!("at the same time of day {ratio:.2} times as much was asked after as before");
        if ratio.max(ratio.recip()) > ASKED_TOO_UNLIKE {
            undecided(&mut found, format!("not comparable: {unlike}"));
        } else {
            found.remarks.push(unlike);
        }
    }
    found
}

fn decide(differences: Vec<Difference>) -> Evaluation {
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
        remarks: Vec::new(),
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
            ratio: None,
            verdict,
        }
    }
}

impl Paired {
    fn compare(&self, near: u32) -> Difference {
        let (before, after) = self.shared(near);
        let blank = Difference {
            name: self.name.clone(),
            weight: self.weight,
            before: self.read(&self.before),
            after: self.read(&self.after),
            noise: self.least,
            ratio: None,
            verdict: match self.good {
                Good::Neither => Verdict::NotJudged,
                Good::Low | Good::High => Verdict::Unknown,
            },
        };
        if before.len() < SLICES || after.len() < SLICES {
            return blank;
        }
        let compared = match self.reading {
            Reading::Median => self.by_time_of_day(&before, &after, near),
            Reading::Pooled => self.together(&before, &after),
        };
        let Some(Change {
            by,
            noise,
            in_unit,
            ratio,
        }) = compared
        else {
            return blank;
        };
        Difference {
            before: self.read(&before),
            after: self.read(&after),
            noise: in_unit,
            ratio,
            verdict: match self.good {
                Good::Neither => Verdict::NotJudged,
                Good::Low => verdict(-by, noise),
                Good::High => verdict(by, noise),
            },
            ..blank
        }
    }

    /// How far both sides are from what was usual before, as ratios where there are any: what
    /// takes three milliseconds more in the evening takes one more at night.
    fn by_time_of_day(&self, before: &[Taken], after: &[Taken], near: u32) -> Option<Change> {
        let usual = rhythm(before, near);
        let has_ratios = before.iter().chain(after).all(|one| one.value > 0.0);
        let strays = |side: &[Taken]| -> Vec<f64> {
            let each = side.iter().filter_map(|one| {
                let usual = *usual.get(&part(one.at))?;
                Some(if has_ratios {
                    (one.value / usual).ln()
                } else {
                    one.value - usual
                })
            });
            each.collect()
        };
        let (from, to) = (strays(before), strays(after));
        let by = median(&to)? - median(&from)?;
        let middle = self.read(before)?.abs();
        let least = if has_ratios {
            // Of the middle; no ratio is below 0.
            (1.0 + NEGLIGIBLE.max(self.least / middle)).ln()
        } else {
            (middle * NEGLIGIBLE).max(self.least)
        };
        let spread = deviation(&from).max(deviation(&to));
        let noise = least.max(spread * CLEAR).max(reach(&from, &to));
        Some(Change {
            by,
            noise,
            in_unit: if has_ratios {
                middle * noise.exp_m1()
            } else {
                noise
            },
            ratio: has_ratios.then(|| by.exp()),
        })
    }

    /// What one slice alone makes of it is noise: it happens once.
    fn together(&self, before: &[Taken], after: &[Taken]) -> Option<Change> {
        let (from, to) = (pool(before)?, pool(after)?);
        let higher = if from > to { before } else { after };
        let without = pool(&without_the_highest(higher));
        let one_alone = without.map_or(0.0, |without| from.max(to) - without);
        let noise = (from * NEGLIGIBLE).max(self.least).max(one_alone);
        Some(Change {
            by: to - from,
            noise,
            in_unit: noise,
            ratio: (from > 0.0 && to > 0.0).then(|| to / from),
        })
    }

    /// The slices of each side of whose time of day the other side has some, too.
    fn shared(&self, near: u32) -> (Vec<Taken>, Vec<Taken>) {
        let (before, after) = (finite(&self.before), finite(&self.after));
        let (at_before, at_after) = (rhythm(&before, near), rhythm(&after, near));
        let has = |times: &BTreeMap<u32, f64>, one: &Taken| times.contains_key(&part(one.at));
        let of_before = before.into_iter().filter(|one| has(&at_after, one));
        let of_after = after.into_iter().filter(|one| has(&at_before, one));
        (of_before.collect(), of_after.collect())
    }

    /// Whether either side has another for less than half of its slices. One that was measured
    /// for less of the day than the other is judged by what it has.
    fn is_apart(&self, near: u32) -> bool {
        let (before, after) = self.shared(near);
        let few = |shared: &[Taken], all: &[Taken]| shared.len() * 2 < all.len();
        few(&before, &self.before) && few(&after, &self.after)
    }

    fn read(&self, side: &[Taken]) -> Option<f64> {
        match self.reading {
            Reading::Median => {
                let values: Vec<f64> = side.iter().map(|one| one.value).collect();
                median(&values)
            }
            Reading::Pooled => pool(&finite(side)),
        }
    }

    /// Of what should never be: in how many slices it was.
    fn affected(&self) -> Option<String> {
        let some = |side: &[Taken]| side.iter().filter(|one| one.value > 0.0).count();
        let (before, after) = (some(&self.before), some(&self.after));
        (self.reading == Reading::Pooled && before + after > 0).then(|| {
            format!(
                "{}: in {before} of {} slices before, in {after} of {} after",
                self.name,
                self.before.len(),
                self.after.len()
            )
        })
    }
}

/// By how much a figure has changed.
struct Change {
    /// Upwards. As the logarithm of a ratio, or in the figure's unit, as the noise is.
    by: f64,
    noise: f64,
    /// The noise, in the figure's unit.
    in_unit: f64,
    ratio: Option<f64>,
}

/// How far from a time of day a slice may be, in seconds. One of a day is of all times.
fn near(slice: Duration) -> u32 {
    let half = u32::try_from(slice.as_secs() / 2).unwrap_or(DAY);
    half.clamp(NEAR, DAY / 2) + PART / 2
}

fn part(at: u32) -> u32 {
    at % DAY / PART
}

/// What is usual at each part of the day: the median of what was near it. Parts that nothing was
/// near are left out.
fn rhythm(side: &[Taken], near: u32) -> BTreeMap<u32, f64> {
    let parts = (0..DAY / PART).filter_map(|part| {
        let middle = part * PART + PART / 2;
        let is_near = |one: &&Taken| {
            let apart = (one.at % DAY).abs_diff(middle);
            apart.min(DAY - apart) <= near
        };
        let values: Vec<f64> = side.iter().filter(is_near).map(|one| one.value).collect();
        Some((part, median(&values)?))
    });
    parts.collect()
}

fn finite(side: &[Taken]) -> Vec<Taken> {
    let sound = |one: &&Taken| one.value.is_finite();
    side.iter().filter(sound).copied().collect()
}

/// All together, each by what it counts for; `None` of nothing.
fn pool(side: &[Taken]) -> Option<f64> {
    let of: f64 = side.iter().map(|one| one.of).sum();
    let sum: f64 = side.iter().map(|one| one.value * one.of).sum();
    (of > 0.0).then(|| sum / of)
}

fn without_the_highest(side: &[Taken]) -> Vec<Taken> {
    let share = |one: &Taken| one.value * one.of;
    let highest = side
        .iter()
        .enumerate()
        .max_by(|(_, one), (_, other)| share(one).total_cmp(&share(other)))
        .map(|(index, _)| index);
    let others = side.iter().enumerate();
    let others = others.filter(|(index, _)| Some(*index) != highest);
    others.map(|(_, one)| *one).collect()
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

    /// Seconds between the slices of the tests: an hour.
    const HOUR: Duration = Duration::from_secs(3_600);

    /// What people do: little at night, most in the evening; 6 ms, and 4 more or less.
    fn of_the_day(hour: u32) -> f64 {
        let turn = f64::from(hour % 24) / 24.0 * std::f64::consts::TAU;
        6.0 + 4.0 * turn.sin()
    }

    /// A slice every hour, each a little off in its own way.
    fn hourly(hours: std::ops::Range<u32>, value: impl Fn(u32) -> f64) -> Vec<Taken> {
        let slices = hours.map(|hour| Taken {
            at: (hour * 3_600 + 1_800) % DAY,
            value: value(hour) * (1.0 + 0.01 * f64::from(hour * 7 % 5)),
            of: 1_000.0,
        });
        slices.collect()
    }

    fn paired(good: Good, before: Vec<Taken>, after: Vec<Taken>) -> Paired {
        Paired {
            name: "a figure".to_owned(),
            good,
            weight: Weight::Essential,
            least: 0.0,
            reading: Reading::Median,
            before,
            after,
        }
    }

    fn evenly(slices: u32) -> Paired {
        let steady = || hourly(0..slices, |_| 100.0);
        paired(Good::Neither, steady(), steady())
    }

    #[test]
    fn the_rhythm_of_the_day_is_no_noise() {
        use Verdict::{Better, Same, Worse};
        for (times, wanted) in [
            (1.0, Same),
            (1.05, Same),
            (1.5, Worse),
            (2.0, Worse),
            (10.0, Worse),
            (0.5, Better),
        ] {
            // It begins at another hour, as it will.
            let before = hourly(0..168, of_the_day);
            let after = hourly(171..339, |hour| times * of_the_day(hour));
            let plain = |side: &[Taken]| -> Vec<f64> { side.iter().map(|one| one.value).collect() };
            if times < 3.0 {
                let rounds = found(Good::Low, &plain(&before), &plain(&after));
                assert_eq!(rounds, Same, "{times}: of rounds it would be noise");
            }
            let figure = paired(Good::Low, before, after);
            let difference = figure.compare(near(HOUR));
            assert_eq!(difference.verdict, wanted, "{times}: {difference:?}");
            let ratio = difference.ratio.expect("nothing is 0");
            assert!((ratio / times - 1.0).abs() < 0.03, "{times}: {ratio}");
            assert_eq!(
                evaluate_paired(&[figure], &evenly(168), HOUR).decision,
                if wanted == Worse {
                    Decision::Revert
                } else {
                    Decision::Keep
                }
            );
        }
    }

    /// What is not the rhythm is noise as before.
    #[test]
    fn what_strays_at_one_time_of_day_is_noise() {
        // Of a week each day at its own height, in no order.
        let wild = |hour: u32| 2.0 * f64::from(1 + hour / 24 * 3 % 7);
        let figure = paired(
            Good::Low,
            hourly(0..168, wild),
            hourly(168..336, |hour| 1.5 * wild(hour)),
        );
        assert_eq!(figure.compare(near(HOUR)).verdict, Verdict::Same);
    }

    #[test]
    fn night_is_not_compared_with_day() {
        let found = |before: std::ops::Range<u32>, after: std::ops::Range<u32>| {
            let of = |good, value: fn(u32) -> f64| {
                paired(
                    good,
                    hourly(before.clone(), value),
                    hourly(after.clone(), value),
                )
            };
            let asked = of(Good::Neither, |_| 100.0);
            evaluate_paired(&[of(Good::Low, of_the_day)], &asked, HOUR)
        };
        // Eight hours of the morning, eight of the evening; and with one in common.
        for after in [36..44, 31..39] {
            let found = found(0..8, after);
            assert_eq!(found.decision, Decision::Undecided);
            assert!(found.because.contains("times of day"), "{found:#?}");
        }
        assert_eq!(found(0..8, 24..32).decision, Decision::Keep);
        // An evening after a week is compared with the evenings of the week.
        assert_eq!(found(0..168, 186..192).decision, Decision::Keep);
        // Over midnight.
        assert_eq!(found(22..26, 46..50).decision, Decision::Keep);
    }

    /// Seconds after one another are of the same time of day, whatever the clock says.
    #[test]
    fn short_slices_are_compared_across_the_hour_and_across_midnight() {
        for noon in [43_200, 0] {
            let taken = |from: u32, value: f64| -> Vec<Taken> {
                let slices = (0..5).map(|second| Taken {
                    at: (noon + DAY + second - from) % DAY,
                    value,
                    of: 1.0,
                });
                slices.collect()
            };
            let figure = paired(Good::Low, taken(5, 10.0), taken(0, 20.0));
            let found = figure.compare(near(Duration::from_secs(1)));
            assert_eq!(found.verdict, Verdict::Worse, "{noon}: {found:?}");
            assert_eq!((found.before, found.after), (Some(10.0), Some(20.0)));
        }
        // A day is of all times.
        let days = |value: f64, at: u32| vec![Taken { at, value, of: 1.0 }; 7];
        let figure = paired(Good::Low, days(10.0, 0), days(20.0, DAY / 2));
        assert_eq!(
            figure.compare(near(Duration::from_secs(86_400))).verdict,
            Verdict::Worse
        );
    }

    #[test]
    fn what_is_to_be_never_counts_wherever_it_was() {
        let bad = |slices: u32, of: u32| {
            hourly(
                0..of,
                move |slice| if slice % 5 < slices { 5.0 } else { 0.0 },
            )
        };
        let pooled = |before, after| Paired {
            least: 0.1,
            reading: Reading::Pooled,
            ..paired(Good::Low, before, after)
        };
        let found =
            |figure: &Paired| evaluate_paired(std::slice::from_ref(figure), &evenly(50), HOUR);
        // Two of five: the median of them is 0.
        let figure = pooled(bad(0, 50), bad(2, 50));
        let worse = found(&figure);
        assert_eq!(worse.decision, Decision::Revert, "{worse:#?}");
        let told = "a figure: in 0 of 50 slices before, in 20 of 50 after";
        assert_eq!(worse.remarks, [told]);
        let better = found(&pooled(bad(2, 50), bad(0, 50)));
        assert_eq!(better.differences[0].verdict, Verdict::Better);
        // Once, however bad, is once.
        let mut once = bad(0, 50);
        once[7].value = 500.0;
        let same = found(&pooled(bad(0, 50), once));
        assert_eq!(same.differences[0].verdict, Verdict::Same, "{same:#?}");
        assert_eq!(same.remarks.len(), 1);
        assert_eq!(found(&pooled(bad(0, 50), bad(0, 50))).remarks.len(), 0);
    }

    #[test]
    fn what_was_asked_for_unlike_is_told_and_then_not_compared() {
        let figure = paired(
            Good::Low,
            hourly(0..48, of_the_day),
            hourly(48..96, of_the_day),
        );
        for (times, remarks, decision) in [
            (1.0, 0, Decision::Keep),
            (1.05, 0, Decision::Keep),
            (1.2, 1, Decision::Keep),
            (0.8, 1, Decision::Keep),
            (1.5, 0, Decision::Undecided),
            (0.5, 0, Decision::Undecided),
        ] {
            let asked = paired(
                Good::Neither,
                hourly(0..48, |hour| 100.0 * of_the_day(hour)),
                hourly(48..96, |hour| times * 100.0 * of_the_day(hour)),
            );
            let found = evaluate_paired(std::slice::from_ref(&figure), &asked, HOUR);
            assert_eq!(found.decision, decision, "{times}: {found:#?}");
            assert_eq!(found.remarks.len(), remarks, "{times}: {found:#?}");
            let undecided = decision == Decision::Undecided;
            assert_eq!(found.because.contains("asked"), undecided, "{found:#?}");
        }
    }

    /// One slice of a side tells nothing, and 0 has no ratio.
    #[test]
    fn what_is_missing_or_nothing_is_not_known_or_the_same() {
        let figure = |before, after| paired(Good::Low, before, after).compare(near(HOUR));
        let none = || hourly(0..48, |_| 0.0);
        let some = || hourly(0..48, |_| 3.0);
        assert_eq!(figure(some(), Vec::new()).verdict, Verdict::Unknown);
        assert_eq!(
            figure(Vec::new(), some()).after,
            figure(some(), some()).after
        );
        assert_eq!(
            figure(some(), some()[..1].to_vec()).verdict,
            Verdict::Unknown
        );
        let alike = figure(none(), none());
        assert_eq!((alike.verdict, alike.ratio), (Verdict::Same, None));
        assert_eq!(figure(none(), some()).verdict, Verdict::Worse);
    }
}
