//! What two journal modes are compared by, from what was measured of both. Pure.

use std::slice;

use torrust_tracker_maintenance::evaluation::{Figure, Good, Verdict, Weight, evaluate, median};

use super::{Measured, Round};

/// Failures of 1,000 requests that are none: one in ten thousand is no difference between two
/// journal modes, however steady it is.
pub(super) const FAILURES: f64 = 0.1;

/// A figure of a round, if it has it.
pub(super) type OfRound = fn(&Round) -> Option<f64>;

/// What decides, and what is told.
pub(super) fn figures(before: &Measured, after: &Measured) -> Vec<Figure> {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let failed: OfRound = |round| {
        Some(round.all.counts.failed() as f64 * 1_000.0 / round.all.counts.sent.max(1) as f64)
    };
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    let resident: OfRound = |round| Some(round.resident as f64 / 1e6);
    let rows: [(&str, Weight, f64, OfRound); 9] = [
        (
            "requests that failed, of 1,000",
            Weight::Essential,
            FAILURES,
            failed,
        ),
        ("announce p99, ms", Weight::Essential, 0.0, |round| {
            round.announces.p99_ms
        }),
        ("announce p50, ms", Weight::Told, 0.0, |round| {
            round.announces.p50_ms
        }),
        ("scrape p99, ms", Weight::Told, 0.0, |round| {
            round.scrapes.p99_ms
        }),
        (
            "database time, ms for 1,000 announces",
            Weight::Told,
            0.0,
            |round| round.database_ms,
        ),
        (
            "tracker CPU, ms for 1,000 answers",
            Weight::Told,
            0.0,
            |round| Some(round.cpu_ms),
        ),
        ("tracker memory, MB", Weight::Told, 0.0, resident),
        (
            "written to disk, bytes an announce",
            Weight::Told,
            0.0,
            |round| Some(round.written),
        ),
        (
            "flushes of the disk, an announce",
            Weight::Told,
            0.0,
            |round| round.flushes,
        ),
    ];
    let mut figures: Vec<Figure> = rows
        .into_iter()
        .map(|(name, weight, least, value)| Figure {
            name: name.to_owned(),
            good: Good::Low,
            weight,
            least,
            before: before.values(value),
            after: after.values(value),
        })
        .collect();
    figures.push(at_most(before, after));
    figures
}

/// What is answered at most. A mode that has answered all it was offered can do more than what
/// was seen: what that leaves open has one figure a side, and so is not known by the rule.
fn at_most(before: &Measured, after: &Measured) -> Figure {
    let mut figure = Figure {
        name: "UDP announces/s at most".to_owned(),
        good: Good::High,
        weight: Weight::Essential,
        least: 0.0,
        before: before.at_most(),
        after: after.at_most(),
    };
    let seen = evaluate(slice::from_ref(&figure)).differences[0].verdict;
    let told = match (before.spares(), after.spares()) {
        (false, false) => true,
        // Better with what was seen, so with more all the more.
        (false, true) => seen == Verdict::Better,
        (true, false) => seen == Verdict::Worse,
        (true, true) => false,
    };
    if !told {
        for side in [&mut figure.before, &mut figure.after] {
            *side = median(side).into_iter().collect();
        }
    }
    figure
}

#[cfg(test)]
mod tests {
    use torrust_tracker_maintenance::evaluation::Decision;

    use super::super::Mode;
    use super::super::page::tests::{measured, round};
    use super::*;
    use crate::generator::LATE_MS;

    /// Better, alike and worse, each with either side having answered all it was offered.
    #[test]
    fn what_could_be_more_is_judged_only_where_that_changes_nothing() {
        use Verdict::{Better, Same, Unknown, Worse};
        for (after, wanted) in [
            (9_000.0, [Better, Better, Unknown, Unknown]),
            (2_000.0, [Same, Unknown, Unknown, Unknown]),
            (500.0, [Worse, Unknown, Worse, Unknown]),
        ] {
            let spares = [(false, false), (false, true), (true, false), (true, true)];
            for (spare, wanted) in spares.into_iter().zip(wanted) {
                let side = |mode, announces, spare| {
                    let mut side = measured(mode, 4, 1.0);
                    for round in &mut side.rounds {
                        round.most.announces = Some(announces);
                    }
                    // One is enough.
                    side.rounds[1].most.spare = spare;
                    side
                };
                let before = side(Mode::Rollback, 2_000.0, spare.0);
                let found = evaluate(&figures(&before, &side(Mode::Durable, after, spare.1)));
                let most = found.differences.last().expect("it is the last");
                assert_eq!(most.verdict, wanted, "{after}, {spare:?}");
                assert_eq!((most.before, most.after), (Some(2_000.0), Some(after)));
                let open = wanted == Unknown;
                assert_eq!(found.decision == Decision::Undecided, open, "{found:#?}");
            }
        }
    }

    /// Round by round: what is left of four decides while two are left, and only then.
    #[test]
    fn a_round_of_which_the_generator_was_the_limit_counts_for_nothing() {
        for limited in 0..=4 {
            let mut after = measured(Mode::Durable, 4, 1.0);
            for round in &mut after.rounds[..limited] {
                round.dropped = 1;
                // It would be worse.
                round.announces.p99_ms = Some(1_000.0);
            }
            let before = measured(Mode::Rollback, 4, 10.0);
            let found = evaluate(&figures(&before, &after)).decision;
            let wanted = if limited <= 2 {
                Decision::Keep
            } else {
                Decision::Undecided
            };
            assert_eq!(found, wanted, "{limited}");
        }
        let mut late = round(1.0);
        assert!(!late.limited());
        late.all.late_p99_ms = Some(LATE_MS + 0.1);
        assert!(late.limited());
    }

    #[test]
    fn one_failure_in_ten_thousand_decides_nothing() {
        for (failed, wanted) in [(1, Decision::Keep), (20, Decision::Revert)] {
            let mut after = measured(Mode::Durable, 4, 1.0);
            for round in &mut after.rounds {
                round.all.counts.unanswered = failed;
                round.all.counts.answered = 10_000 - failed;
            }
            let before = measured(Mode::Rollback, 4, 1.0);
            let found = evaluate(&figures(&before, &after));
            assert_eq!(found.decision, wanted, "{failed}: {found:#?}");
        }
    }
}
