//! What must hold, and whether it does, from what was measured. Pure.
//!
//! A ratio is of two cases in the same round, so that a machine whose speed drifts does not
//! decide; the median of the rounds is judged, and it is said where single rounds disagree.
//! *Worse* asks for a difference that is larger than the figures of one tracker differ by
//! among themselves: the rule of [`evaluate`]. *No worse* is what does not differ; a difference
//! that the figures are too far from each other to show is neither.

use std::fmt;

use torrust_tracker_maintenance::evaluation::{
    self, Difference, Figure, Good, Weight, evaluate, median,
};

use super::case::{Case, Program, Storage, Threshold};
use super::gate::{Entering, THREADS};
use super::{Outcome, Round};
use crate::experiment::Judgement;
use crate::experiment::prose::{digits, ms, spread};

/// Milliseconds that 99 of 100 connects must not reach while the tracker is saturated.
const CONNECT_MS: f64 = 5.0;

/// Nanoseconds that a pass of the open gate must not reach, if nobody else enters.
const PASS_NS: f64 = 50.0;

/// Times as long that a pass may take while many threads enter: one word of memory goes from
/// processor to processor.
const CROWDED: f64 = 10.0;

/// A difference of medians up to this part of upstream's is none. One that is larger, and
/// smaller than the noise, may be one.
const ALIKE: f64 = 0.10;

/// Why it is not told which it is.
const HIDDEN: &str = "the medians differ by more than a tenth, but not by more than the noise";

/// Who asked for more than the tracker could answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// The public tester.
    Tester,
    /// Our own load.
    Own,
}

impl Asker {
    /// In words.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tester => "public tester",
            Self::Own => "own load",
        }
    }

    /// Announces answered per second.
    pub(super) fn rate(self, round: &Round) -> f64 {
        match self {
            Self::Tester => round.tester.announces,
            Self::Own => round.own.announces_per_second(),
        }
    }

    /// Whether in most rounds this load could have been answered more than it was.
    pub(super) fn is_the_bound(self, rounds: &[Round]) -> bool {
        let bound = |round: &&Round| round.own.is_bound_by_the_load();
        self == Self::Own && 2 * rounds.iter().filter(bound).count() > rounds.len()
    }
}

/// Two cases whose rates are compared.
struct Ratio {
    ours: Case,
    theirs: Case,
    /// Times theirs that ours must be at least; `None`: it is told.
    must: Option<f64>,
    /// Times theirs that are aimed at.
    aim: Option<f64>,
}

static RATIOS: [Ratio; 5] = [
    Ratio {
        ours: ours(Storage::Memory, Threshold::Error),
        theirs: theirs(Storage::Memory, Threshold::Error),
        must: Some(2.0),
        aim: None,
    },
    Ratio {
        ours: ours(Storage::Memory, Threshold::Info),
        theirs: theirs(Storage::Memory, Threshold::Info),
        must: Some(2.0),
        aim: None,
    },
    Ratio {
        ours: ours(Storage::Wal, Threshold::Error),
        theirs: theirs(Storage::Rollback, Threshold::Error),
        must: Some(8.0),
        aim: Some(15.0),
    },
    Ratio {
        ours: ours(Storage::Wal, Threshold::Error),
        theirs: theirs(Storage::Wal, Threshold::Error),
        must: Some(2.5),
        aim: None,
    },
    Ratio {
        ours: ours(Storage::Rollback, Threshold::Error),
        theirs: theirs(Storage::Rollback, Threshold::Error),
        must: None,
        aim: None,
    },
];

const fn ours(storage: Storage, threshold: Threshold) -> Case {
    Case::new(Program::Ours, storage, threshold)
}

const fn theirs(storage: Storage, threshold: Threshold) -> Case {
    Case::new(Program::Upstream, storage, threshold)
}

/// Whether a requirement is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    /// It is.
    Met,
    /// It is not.
    NotMet,
    /// What was measured does not say, for this reason.
    Untold(&'static str),
    /// There is none.
    NotAsked,
}

/// A comparison, what it must show, and what it does.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    /// What is compared.
    pub(super) what: String,
    /// What must come out; a dash where nothing must.
    pub(super) must: String,
    /// What came out.
    pub(super) seen: String,
    /// What follows.
    pub(super) holds: Holds,
    /// How many rounds show it each for itself, and of how many; `None` where rounds are
    /// not judged one by one.
    pub(super) alone: Option<(usize, usize)>,
    /// Whether what is aimed at was reached as well; `None` without an aim.
    pub(super) aim: Option<bool>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.holds, self.alone) {
            (Holds::NotAsked, _) => return f.write_str("no requirement"),
            (Holds::Untold(why), _) => return write!(f, "cannot be told: {why}"),
            (Holds::Met, Some((some, all))) if some < all => {
                write!(f, "met, in {some} of {all} rounds by itself")?;
            }
            (Holds::Met, _) => f.write_str("met")?,
            (Holds::NotMet, Some((some, all))) if some > 0 => {
                write!(f, "**not met**, in {some} of {all} rounds it is")?;
            }
            (Holds::NotMet, _) => f.write_str("**not met**")?,
        }
        match self.aim {
            Some(true) => f.write_str("; so is the aim"),
            Some(false) => f.write_str("; the aim is not"),
            None => Ok(()),
        }
    }
}

/// Everything that must hold, and what is compared without that.
pub(super) fn verdicts(outcome: &Outcome) -> Vec<Verdict> {
    let of_ours = || {
        let cases = Case::ALL.into_iter();
        cases.filter(|case| case.program == Program::Ours)
    };
    let by = |asker: Asker| RATIOS.iter().map(move |one| ratio(outcome, one, asker));
    let mut all: Vec<Verdict> = by(Asker::Tester).chain(by(Asker::Own)).collect();
    all.extend(of_ours().map(|case| connects(outcome, case)));
    all.extend(of_ours().map(|case| announces(outcome, case)));
    all.extend(outcome.entering.iter().flat_map(entering));
    all
}

/// Whether all that must hold does, and nothing went wrong. What was left out cannot be told.
#[must_use]
pub fn judge(outcome: &Outcome) -> Judgement {
    let mut judgement = Judgement {
        broken: outcome.flaws.clone(),
        unknown: Vec::new(),
    };
    for verdict in verdicts(outcome) {
        let Verdict {
            what,
            must,
            seen,
            holds,
            ..
        } = verdict;
        match holds {
            Holds::Met | Holds::NotAsked => {}
            Holds::NotMet => judgement
                .broken
                .push(format!("{what}: {must}; it is {seen}")),
            Holds::Untold(why) => judgement.unknown.push(format!("{what}: {why}")),
        }
    }
    judgement
}

/// A pass of the open gate, for one thread and for many at once.
fn entering(found: &Entering) -> [Verdict; 2] {
    let (alone, together) = (median(&found.alone), median(&found.together));
    let verdict = |who: String, must: String, seen: &[f64], holds: Option<bool>| Verdict {
        what: format!("a pass of the open gate: {who}"),
        must,
        seen: format!("{} ns", spread(seen)),
        holds: match holds {
            Some(true) => Holds::Met,
            Some(false) => Holds::NotMet,
            None => Holds::Untold("not measured"),
        },
        alone: None,
        aim: None,
    };
    let times = together
        .zip(alone)
        .map(|(together, alone)| together / alone);
    [
        verdict(
            "one thread".to_owned(),
            format!("below {PASS_NS} ns"),
            &found.alone,
            alone.map(|pass| pass < PASS_NS),
        ),
        verdict(
            format!("{THREADS} threads at once"),
            format!("at most {CROWDED} times that of one thread"),
            &found.together,
            times.map(|times| times <= CROWDED),
        ),
    ]
}

fn ratio(outcome: &Outcome, ratio: &Ratio, asker: Asker) -> Verdict {
    let (ours, theirs) = (outcome.rounds(ratio.ours), outcome.rounds(ratio.theirs));
    let pairs = outcome.pairs(ratio.ours, ratio.theirs);
    let each: Vec<f64> = pairs
        .iter()
        .map(|(ours, theirs)| (asker.rate(ours), asker.rate(theirs)))
        .filter(|(_, theirs)| *theirs > 0.0)
        .map(|(ours, theirs)| ours / theirs)
        .collect();
    let silent = each.len() < pairs.len();
    let middle = median(&each).filter(|_| !silent);
    // Of a load that could not send more, what is seen of ours is the least it can be, and of
    // upstream the same, so that the ratio is the most.
    let at_least = asker.is_the_bound(ours);
    let at_most = asker.is_the_bound(theirs);
    let holds = match (ratio.must, middle) {
        (None, _) => Holds::NotAsked,
        (_, None) if silent => Holds::Untold("upstream answered nothing"),
        (_, None) => Holds::Untold("not measured"),
        (Some(must), Some(seen)) => match (seen >= must, at_least, at_most) {
            (true, _, false) => Holds::Met,
            (false, false, _) => Holds::NotMet,
            (true, _, true) | (false, true, _) => {
                Holds::Untold("the load had no more to send, or did not read all answers")
            }
        },
    };
    let judged = [Holds::Met, Holds::NotMet].contains(&holds);
    let reaches = |must: f64| each.iter().filter(|seen| **seen >= must).count();
    Verdict {
        what: format!(
            "{}: {} in terms of {}",
            asker.name(),
            ratio.ours,
            ratio.theirs
        ),
        must: must(ratio),
        seen: seen(&each, at_least, at_most),
        holds,
        alone: ratio
            .must
            .filter(|_| judged)
            .map(|must| (reaches(must), each.len())),
        aim: ratio
            .aim
            .zip(middle)
            .filter(|_| holds == Holds::Met)
            .map(|(aim, seen)| seen >= aim),
    }
}

fn must(ratio: &Ratio) -> String {
    match (ratio.must, ratio.aim) {
        (Some(must), Some(aim)) => {
            format!("at least {must} times, aiming at {aim}")
        }
        (Some(must), None) => format!("at least {must} times"),
        (None, _) => "-".to_owned(),
    }
}

/// The median of the ratios, and the least and the most of them.
fn seen(each: &[f64], at_least: bool, at_most: bool) -> String {
    let Some(middle) = median(each) else {
        return "-".to_owned();
    };
    let bound = match (at_least, at_most) {
        (true, false) => "at least ",
        (false, true) => "at most ",
        (false, false) | (true, true) => "",
    };
    let least = each.iter().copied().fold(f64::MAX, f64::min);
    let most = each.iter().copied().fold(0.0, f64::max);
    format!(
        "{bound}{} ({} to {})",
        digits(middle),
        digits(least),
        digits(most)
    )
}

/// Connects while the public tester saturates the tracker.
fn connects(outcome: &Outcome, case: Case) -> Verdict {
    let rounds = outcome.rounds(case).iter();
    let each: Vec<f64> = rounds
        .filter_map(|round| round.tester.connects.p99_ms)
        .collect();
    let middle = median(&each);
    let below = each.iter().filter(|p99| **p99 < CONNECT_MS).count();
    Verdict {
        what: format!("connect p99 while saturated: {case}"),
        must: format!("below {CONNECT_MS} ms"),
        seen: format!("{} ms", ms(middle)),
        holds: match middle {
            None => Holds::Untold("not measured"),
            Some(p99) if p99 < CONNECT_MS => Holds::Met,
            Some(_) => Holds::NotMet,
        },
        alone: middle.map(|_| (below, each.len())),
        aim: None,
    }
}

/// Announces at the moderate rate, beside those of upstream's tracker in the same
/// configuration.
fn announces(outcome: &Outcome, case: Case) -> Verdict {
    let rounds = |case: Case| outcome.rounds(case);
    let p99 = |case: Case| -> Vec<f64> {
        let halves = rounds(case).iter().flat_map(|round| &round.moderate);
        halves.filter_map(|half| half.p99_ms).collect()
    };
    let what = format!("announce p99 at the moderate rate: {case}");
    let compared = evaluate(&[Figure {
        name: what.clone(),
        good: Good::Low,
        weight: Weight::Essential,
        least: 0.0,
        before: p99(case.of_upstream()),
        after: p99(case),
    }]);
    let difference = &compared.differences[0];
    let fewest = rounds(case).len().min(rounds(case.of_upstream()).len());
    Verdict {
        what,
        must: "no worse than upstream's".to_owned(),
        seen: format!(
            "{} ms; upstream's {} ms; less than {} ms apart is no clear difference",
            ms(difference.after),
            ms(difference.before),
            digits(difference.noise)
        ),
        holds: match difference.verdict {
            _ if fewest == 1 => Holds::Untold("one round does not show its noise"),
            evaluation::Verdict::Better => Holds::Met,
            evaluation::Verdict::Worse => Holds::NotMet,
            evaluation::Verdict::Same if alike(difference) => Holds::Met,
            evaluation::Verdict::Same => Holds::Untold(HIDDEN),
            evaluation::Verdict::Unknown | evaluation::Verdict::NotJudged => {
                Holds::Untold("not measured")
            }
        },
        alone: None,
        aim: None,
    }
}

/// Whether the medians themselves differ by next to nothing, whatever the noise.
fn alike(difference: &Difference) -> bool {
    let both = difference.before.zip(difference.after);
    both.is_some_and(|(before, after)| (after - before).abs() <= ALIKE * before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::rates::tests::{OURS, UPSTREAM, outcome, round, rounds};

    /// The one verdict whose name contains this.
    fn verdict(outcome: &Outcome, what: &str) -> Verdict {
        let mut found = verdicts(outcome)
            .into_iter()
            .filter(|verdict| verdict.what.contains(what));
        let first = found.next().expect("there is such a verdict");
        assert_eq!(found.next(), None, "{what} is of one");
        first
    }

    const MEMORY: &str = "public tester: ours, memory, error";

    #[test]
    fn everything_that_must_hold_is_judged_and_nothing_else() {
        let all = verdicts(&outcome());
        let not_asked = |verdict: &&Verdict| verdict.holds == Holds::NotAsked;
        let told: Vec<_> = all.iter().filter(not_asked).collect();
        assert!(
            told.len() == 2
                && told
                    .iter()
                    .all(|one| one.what.contains("rollback in terms")),
            "{told:#?}"
        );
        // Two times four ratios, four cases of ours, twice.
        assert_eq!(all.len() - told.len(), 16);
        for verdict in &all {
            assert!(
                [Holds::Met, Holds::NotAsked].contains(&verdict.holds),
                "{verdict:#?}"
            );
        }
    }

    #[test]
    fn the_median_of_the_ratios_is_judged_and_single_rounds_are_told() {
        let table = [
            ([80.0, 90.0, 100.0], "met"),
            ([79.0, 90.0, 100.0], "met, in 2 of 3 rounds by itself"),
            ([10.0, 79.0, 90.0], "**not met**, in 1 of 3 rounds it is"),
            ([10.0, 20.0, 79.0], "**not met**"),
            ([0.0, 0.0, 0.0], "**not met**"),
        ];
        for (rates, told) in table {
            let mut outcome = outcome();
            *rounds(&mut outcome, OURS) = rates.map(|rate| round(rate, 0.5)).to_vec();
            *rounds(&mut outcome, UPSTREAM) = vec![round(40.0, 0.5); 3];
            assert_eq!(verdict(&outcome, MEMORY).to_string(), told, "{rates:?}");
        }
    }

    #[test]
    fn an_aim_is_no_requirement() {
        let against_rollback =
            "public tester: ours, stored, WAL in terms of upstream, stored, rollback";
        let case = ours(Storage::Wal, Threshold::Error);
        for (rate, told) in [
            (16_000.0, "met; so is the aim"),
            (9_000.0, "met; the aim is not"),
            (7_000.0, "**not met**"),
        ] {
            let mut outcome = outcome();
            *rounds(&mut outcome, case) = vec![round(rate, 0.5); 2];
            let found = verdict(&outcome, against_rollback);
            assert_eq!(found.to_string(), told, "{found:#?}");
            assert_eq!(found.must, "at least 8 times, aiming at 15");
        }
    }

    #[test]
    fn a_case_that_was_left_out_leaves_what_needs_it_untold() {
        let mut outcome = outcome();
        outcome.cases.retain(|measured| measured.case == OURS);
        let untold = Holds::Untold("not measured");
        let connect = "connect p99 while saturated: ours, memory, error";
        for verdict in verdicts(&outcome) {
            let told = verdict.what == connect || verdict.holds == Holds::NotAsked;
            assert_eq!(verdict.holds == untold, !told, "{verdict:#?}");
        }
        assert_eq!(verdict(&outcome, MEMORY).seen, "-");
        outcome.cases.clear();
        for verdict in verdicts(&outcome) {
            let untold_or_not_asked = [untold, Holds::NotAsked].contains(&verdict.holds);
            assert!(
                untold_or_not_asked && verdict.alone.is_none(),
                "{verdict:#?}"
            );
        }
    }

    #[test]
    fn a_tracker_that_answers_nothing_is_no_divisor() {
        let mut outcome = outcome();
        *rounds(&mut outcome, UPSTREAM) = vec![round(0.0, 0.5), round(40_000.0, 0.5)];
        for asker in [Asker::Tester, Asker::Own] {
            let what = format!("{}: ours, memory, error", asker.name());
            let found = verdict(&outcome, &what);
            assert_eq!(found.holds, Holds::Untold("upstream answered nothing"));
            assert_eq!((found.alone, found.aim), (None, None));
        }
    }

    /// What the load sent, the tracker answered: it may be able to answer more.
    #[test]
    fn a_load_that_is_the_bound_proves_only_what_it_can() {
        let bound = |outcome: &mut Outcome, case: Case| {
            for round in rounds(outcome, case) {
                round.own.all.sent = round.own.all.answered;
                round.own.all.unanswered = 0;
            }
        };
        let found = |outcome: &Outcome| verdict(outcome, "own load: ours, memory, error");
        let slow = |outcome: &mut Outcome| {
            *rounds(outcome, OURS) = vec![round(60_000.0, 0.5); 2];
        };

        // Ours: 2.5 times is enough, whatever more there is.
        let mut one = outcome();
        bound(&mut one, OURS);
        assert_eq!(found(&one).holds, Holds::Met);
        assert!(
            found(&one).seen.starts_with("at least 2.5"),
            "{:?}",
            found(&one)
        );
        // 1.5 times is not, but it may be more.
        slow(&mut one);
        assert_eq!(found(&one).holds, Holds::NotMet);
        bound(&mut one, OURS);
        assert!(matches!(found(&one).holds, Holds::Untold(_)));

        // Upstream's: 2.5 times may be less; 1.5 times is too little as it is.
        let mut one = outcome();
        bound(&mut one, UPSTREAM);
        assert!(matches!(found(&one).holds, Holds::Untold(_)));
        slow(&mut one);
        assert_eq!(found(&one).holds, Holds::NotMet);
        // The public tester is not our load.
        assert_eq!(verdict(&one, MEMORY).holds, Holds::NotMet);
    }

    #[test]
    fn connects_are_judged_by_the_median_of_the_rounds() {
        for (p99s, told) in [
            ([1.0, 2.0, 4.9], "met"),
            ([1.0, 4.9, 900.0], "met, in 2 of 3 rounds by itself"),
            ([1.0, 5.0, 5.0], "**not met**, in 1 of 3 rounds it is"),
            ([1_000.0; 3], "**not met**"),
        ] {
            let mut outcome = outcome();
            let rounds = rounds(&mut outcome, OURS);
            *rounds = p99s
                .map(|p99| {
                    let mut round = round(100_000.0, 0.5);
                    round.tester.connects.p99_ms = Some(p99);
                    round
                })
                .to_vec();
            let found = verdict(&outcome, "while saturated: ours, memory, error");
            assert_eq!(found.to_string(), told, "{p99s:?}");
        }
    }

    #[test]
    fn a_latency_is_worse_only_beyond_the_noise() {
        let hidden = Holds::Untold(HIDDEN);
        let table: [(&[f64], &[f64], Holds); 8] = [
            (&[0.5, 0.5, 0.5], &[0.3, 0.3, 0.3], Holds::Met),
            (&[0.5, 0.5, 0.5], &[0.54, 0.54, 0.54], Holds::Met),
            (&[0.5, 0.5, 0.5], &[0.6, 0.6, 0.6], Holds::NotMet),
            // As far apart as that, but upstream's are as far from each other: either way.
            (&[0.3, 0.5, 0.7], &[0.6, 0.6, 0.6], hidden),
            (&[0.3, 0.5, 0.7], &[0.4, 0.4, 0.4], hidden),
            // As noisy, and no difference to be hidden.
            (&[0.3, 0.5, 0.7], &[0.3, 0.52, 0.7], Holds::Met),
            (&[], &[0.4], Holds::Untold("not measured")),
            (
                &[0.5],
                &[0.4],
                Holds::Untold("one round does not show its noise"),
            ),
        ];
        for (theirs, ours, holds) in table {
            let mut outcome = outcome();
            let of = |p99s: &[f64]| -> Vec<Round> {
                p99s.iter().map(|p99| round(1_000.0, *p99)).collect()
            };
            *rounds(&mut outcome, UPSTREAM) = of(theirs);
            *rounds(&mut outcome, OURS) = of(ours);
            let found = verdict(&outcome, "moderate rate: ours, memory, error");
            assert_eq!(found.holds, holds, "{found:#?}");
        }
    }

    /// Three rounds are six figures, so that one that strays hides nothing.
    #[test]
    fn both_halves_of_the_moderate_load_count() {
        let mut outcome = outcome();
        *rounds(&mut outcome, UPSTREAM) = vec![round(1_000.0, 0.5); 3];
        let mut ours = vec![round(1_000.0, 0.7); 3];
        ours[1].moderate[0].p99_ms = Some(0.4);
        *rounds(&mut outcome, OURS) = ours;
        let found = verdict(&outcome, "moderate rate: ours, memory, error");
        assert_eq!(found.holds, Holds::NotMet, "{found:#?}");
    }

    /// A round that failed is not compared with another's.
    #[test]
    fn a_ratio_is_of_the_same_round() {
        let mut outcome = outcome();
        *rounds(&mut outcome, OURS) = vec![round(10.0, 0.5), round(300.0, 0.5)];
        *rounds(&mut outcome, UPSTREAM) = vec![round(100.0, 0.5)];
        let theirs = outcome.cases.iter_mut().find(|one| one.case == UPSTREAM);
        theirs.expect("every case was made up").failed = vec![0];
        let found = verdict(&outcome, MEMORY);
        assert_eq!((found.holds, found.alone), (Holds::Met, Some((1, 1))));
        assert_eq!(found.seen, "3 (3 to 3)");
    }

    #[test]
    fn what_does_not_hold_weighs_more_than_what_cannot_be_told() {
        let mut outcome = outcome();
        assert_eq!(judge(&outcome), Judgement::default());

        outcome
            .cases
            .retain(|one| one.case.storage == Storage::Memory);
        let left_out = judge(&outcome);
        assert_eq!((left_out.exit_code(), left_out.unknown.len()), (3, 8));

        *rounds(&mut outcome, OURS) = vec![round(50_000.0, 0.5); 2];
        let slow = judge(&outcome);
        assert_eq!((slow.exit_code(), slow.broken.len()), (1, 2));
        assert!(
            slow.broken[0].starts_with("public tester: ours, memory, error"),
            "{slow:?}"
        );

        let mut flawed = super::super::tests::outcome();
        flawed.flaws.push("a round: not measured".to_owned());
        assert_eq!(judge(&flawed).broken, ["a round: not measured"]);
    }

    #[test]
    fn a_pass_of_the_gate_is_judged_alone_and_in_a_crowd() {
        let holds = |alone: &[f64], together: &[f64]| {
            entering(&Entering {
                alone: alone.to_vec(),
                together: together.to_vec(),
            })
            .map(|verdict| verdict.holds)
        };
        assert_eq!(holds(&[9.0, 10.0, 90.0], &[100.0]), [Holds::Met; 2]);
        assert_eq!(holds(&[50.0], &[501.0]), [Holds::NotMet; 2]);
        let untold = Holds::Untold("not measured");
        assert_eq!(holds(&[], &[]), [untold; 2]);
    }
}
