//! What must hold of windows in turn, and of a whole outcome: judged by what was measured.
//! Pure.

use torrust_tracker_maintenance::evaluation::median;

use super::{Outcome, Rate, Repeated};
use crate::experiment::Judgement;
use crate::experiment::capacity::{self, Verdict as Shown};
use crate::experiment::prose::{count, digits};

/// What must hold of windows in turn: no announce fails, half of the pauses are shorter, and
/// the 99th of 100 announces takes no more than so many times what it took before.
const PAUSE_MS: f64 = 50.0;
const TIMES: f64 = 2.0;

/// Whether something that must hold does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// It does.
    Yes,
    /// It does not, or nothing was measured that could have shown it.
    No,
    /// The generator was the limit.
    Unknown,
}

impl Holds {
    fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    /// As a page says it: what speaks against the tracker or the figures is in bold.
    fn word(self) -> &'static str {
        match self {
            Self::Yes => "holds",
            Self::No => "**does not hold**",
            Self::Unknown => "**is not known**",
        }
    }
}

/// Something that must hold, and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    what: String,
    /// Whether it does.
    pub holds: Holds,
    found: String,
}

impl Verdict {
    /// A sentence of Markdown.
    #[must_use]
    pub fn sentence(&self) -> String {
        format!("{}: {}, {}.", self.what, self.holds.word(), self.found)
    }

    fn plain(&self) -> String {
        format!("{}: {}", self.what, self.found)
    }
}

/// What must hold of windows in turn.
#[must_use]
pub fn verdicts(repeated: &Repeated) -> Vec<Verdict> {
    vec![
        all_done(repeated),
        none_fails(repeated),
        pause(repeated),
        p99(repeated),
    ]
}

fn all_done(repeated: &Repeated) -> Verdict {
    let all = repeated.windows.len();
    let flawed = repeated.windows.iter().filter(|one| one.flaw.is_some());
    let flawed = flawed.count();
    Verdict {
        what: "Every run is done".to_owned(),
        holds: Holds::of(flawed == 0 && all > 0),
        found: format!("{} of {all} are", all - flawed),
    }
}

fn none_fails(repeated: &Repeated) -> Verdict {
    let counts = &repeated.during.counts;
    let (sent, failed) = (counts.sent, counts.failed());
    // Which requests these were is not known; perhaps all that failed.
    let dropped = repeated.report.health.dropped;
    let mut found = format!("{} failed of {}", count(failed), count(sent));
    let holds = if failed > 0 && failed <= dropped {
        found = format!(
            "{found}, and the generator has not read {} answers of the whole load",
            count(dropped)
        );
        Holds::Unknown
    } else {
        Holds::of(failed == 0 && sent > 0)
    };
    Verdict {
        what: "No announce fails".to_owned(),
        holds,
        found,
    }
}

fn pause(repeated: &Repeated) -> Verdict {
    let windows = repeated.windows.iter();
    let pauses: Vec<f64> = windows.filter_map(|one| one.pause_ms).collect();
    let pause = median(&pauses);
    Verdict {
        what: format!("The median pause is below {PAUSE_MS} ms"),
        holds: Holds::of(pause.is_some_and(|pause| pause < PAUSE_MS)),
        found: pause.map_or_else(
            || "none was measured".to_owned(),
            |pause| format!("it is {} ms", digits(pause)),
        ),
    }
}

fn p99(repeated: &Repeated) -> Verdict {
    let (before, during) = (&repeated.before, &repeated.during);
    let times = during
        .p99_ms
        .zip(before.p99_ms)
        .map(|(during, before)| during / before);
    let within = times.is_some_and(|times| times <= TIMES);
    // Lateness makes a latency longer, never shorter: before, it hides that it became longer;
    // meanwhile, it may be all that became longer.
    let unknown = times.is_some() && (before.blurred() || (!within && during.blurred()));
    let mut found = times.map_or_else(
        || "none was measured".to_owned(),
        |times| format!("it is {} times as long", digits(times)),
    );
    if unknown {
        found += ", and the generator's own lateness has a part in that";
    }
    Verdict {
        what: format!("The p99 of announces is within {TIMES} times that of before"),
        holds: if unknown {
            Holds::Unknown
        } else {
            Holds::of(within)
        },
        found,
    }
}

/// Whether everything that must hold does.
#[must_use]
pub fn judge(outcome: &Outcome) -> Judgement {
    let mut judgement = Judgement::default();
    for lost in &outcome.lost {
        let said = format!("{}: not measured: {}", lost.what, lost.why);
        judgement.broken.push(said);
    }
    for rate in &outcome.rates {
        let Some(said) = none_held(rate) else {
            continue;
        };
        if capacity::shown(&rate.tries) == Shown::Unknown {
            judgement.unknown.push(said);
        } else {
            judgement.broken.push(said);
        }
    }
    for case in &outcome.cases {
        let flaws = case.flaws.iter();
        let what = format!("{}, {} MB", case.journal, case.bytes / 1_000_000);
        let said = flaws.map(|flaw| format!("{what}: {flaw}"));
        judgement.broken.extend(said);
    }
    for verdict in outcome.repeated.iter().flat_map(verdicts) {
        match verdict.holds {
            Holds::Yes => {}
            Holds::No => judgement.broken.push(verdict.plain()),
            Holds::Unknown => judgement.unknown.push(verdict.plain()),
        }
    }
    judgement
}

/// That no rate was held, if so.
pub(super) fn none_held(rate: &Rate) -> Option<String> {
    let none = capacity::shown(&rate.tries) != Shown::Held;
    none.then(|| format!("No rate was held with journal mode `{}`", rate.journal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::capacity::tests::tried;
    use crate::experiment::window::page::tests::{announces, outcome, repeated};
    use crate::experiment::window::{Lost, Window};
    use crate::generator::Summary;

    use Holds::{No, Unknown, Yes};

    fn holds(repeated: &Repeated) -> Vec<Holds> {
        verdicts(repeated).iter().map(|one| one.holds).collect()
    }

    #[test]
    fn what_must_hold_is_judged_one_by_one() {
        let found = |during, pauses: &[f64]| holds(&repeated(during, pauses));
        let well = announces(100, 100, 4.0);
        assert_eq!(found(well, &[1.0, 2.0, 900.0]), [Yes; 4]);
        assert_eq!(found(well, &[50.0, 50.0]), [Yes, Yes, No, Yes]);
        let failed = announces(100, 99, 4.0);
        assert_eq!(found(failed, &[1.0]), [Yes, No, Yes, Yes]);
        let slow = announces(100, 100, 4.1);
        assert_eq!(found(slow, &[1.0]), [Yes, Yes, Yes, No]);
        // Nothing was measured, so nothing holds.
        assert_eq!(found(Summary::default(), &[]), [No; 4]);
    }

    #[test]
    fn a_window_with_a_flaw_is_not_made_good_by_the_others() {
        let mut one = repeated(announces(100, 100, 4.0), &[1.0, 2.0]);
        one.windows.push(Window {
            pause_ms: None,
            backup_seconds: None,
            flaw: Some("a run did not end".to_owned()),
            announces: Summary::default(),
        });
        assert_eq!(holds(&one), [No, Yes, Yes, Yes]);
        let said = verdicts(&one)[0].sentence();
        assert_eq!(said, "Every run is done: **does not hold**, 2 of 3 are.");
    }

    #[test]
    fn what_the_generator_lost_is_no_failure_of_the_tracker_and_no_proof() {
        for (answered, dropped, wanted) in [
            (100, 0, Yes),
            (100, 5, Yes),
            (95, 5, Unknown),
            (95, 4, No),
            (95, 0, No),
        ] {
            let mut one = repeated(announces(100, answered, 4.0), &[1.0]);
            one.report.health.dropped = dropped;
            assert_eq!(holds(&one)[1], wanted, "{answered}, {dropped}");
        }
    }

    /// Late or not, before and during, within and not.
    #[test]
    fn lateness_before_hides_a_difference_and_during_makes_one() {
        for (before, during, p99_ms, wanted) in [
            (0.1, 0.1, 4.0, Yes),
            (0.1, 0.1, 5.0, No),
            // Longer by the lateness at most, and still within.
            (0.1, 3.0, 4.0, Yes),
            (0.1, 3.0, 5.0, Unknown),
            (1.0, 0.1, 4.0, Unknown),
            (1.0, 0.1, 5.0, Unknown),
        ] {
            let mut one = repeated(announces(100, 100, p99_ms), &[1.0]);
            one.before.late_p99_ms = Some(before);
            one.during.late_p99_ms = Some(during);
            assert_eq!(holds(&one)[3], wanted, "{before}, {during}, {p99_ms}");
        }
    }

    #[test]
    fn a_program_says_what_does_not_hold_and_what_is_not_known() {
        let met = outcome();
        assert_eq!(judge(&met), Judgement::default());

        let mut flawed = outcome();
        flawed.cases[0].flaws.push("a run was not done".to_owned());
        assert_eq!(judge(&flawed).broken.len(), 1);

        let mut lost = outcome();
        lost.lost.push(Lost {
            what: "wal: a window".to_owned(),
            why: "no room".to_owned(),
        });
        assert!(judge(&lost).broken[0].contains("no room"));

        let mut missed = outcome();
        missed.repeated = Some(repeated(announces(100, 99, 4.0), &[60.0]));
        assert_eq!(judge(&missed).broken.len(), 2);

        // No rate was held, and the lowest says whose fault that was.
        for (late, code) in [(0.0, 1), (99.0, 3)] {
            let mut none = outcome();
            none.rates[0].tries = vec![tried(12, 900, 1.0, late)];
            assert_eq!(judge(&none).exit_code(), code, "{late}");
        }
    }
}
