//! `docs/window.md` and its drawings, from what was measured.

use anyhow::Result;

use torrust_tracker_maintenance::evaluation::median;

use super::{Case, Interruption, Outcome, Phase, Repeated};
use crate::experiment::Document;
use crate::experiment::prose::{self, DISTURBED, Table, bytes, count, digits, ms};
use crate::generator::Summary;
use crate::plot;

/// What must hold of windows in turn: no announce fails, half of the pauses are shorter, and
/// the 99th of 100 announces takes no more than so many times what it took before.
const PAUSE_MS: f64 = 50.0;
const TIMES: f64 = 2.0;

/// The drawing of windows in turn.
const IN_TURN: &str = "in-turn.svg";

/// The page and one drawing a case.
///
/// # Errors
/// When a drawing cannot be made.
pub fn document(outcome: &Outcome) -> Result<Document> {
    let mut drawings = Vec::new();
    for case in &outcome.cases {
        let drawn = plot::svg(&title(case), &case.report.panels(), &case.report.marks)?;
        drawings.push((file(case), drawn));
    }
    if let Some(repeated) = &outcome.repeated {
        let report = &repeated.report;
        let drawn = plot::svg("Windows in turn", &report.panels(), &report.marks)?;
        drawings.push((IN_TURN.to_owned(), drawn));
    }
    Ok(Document {
        name: "window",
        text: text(outcome),
        drawings,
    })
}

fn text(outcome: &Outcome) -> String {
    let date = outcome.date.format("%Y-%m-%d %H:%M UTC").to_string();
    let minutes = digits(outcome.seconds / 60.0);
    let rates = outcome.rates.iter();
    let tried = rates.map(|rate| (rate.journal.as_str(), rate.tries.as_slice()));
    let mut parts = vec![
        prose::head("A maintenance window under load", &outcome.command, &date),
        "A tracker is under load at one rate all along; in the middle of it, it makes a backup. \
         Beside it, the procedure that a window replaces: stop the tracker, `cp`, start it \
         again.\n\n"
            .to_owned(),
        prose::machine(&outcome.machine),
        format!("The measurement took {minutes} min.\n\n## In short\n\n"),
        short(outcome),
        outcome.repeated.as_ref().map_or_else(String::new, in_turn),
        "\n## The rate\n\nFound on a database of 30 MB. ".to_owned(),
        prose::rates("journal", tried),
        "\n## What happened\n\nLatencies are of the requests that were answered. A request \
         belongs to the second it was planned for, whenever its answer came.\n\n"
            .to_owned(),
    ];
    parts.extend(outcome.cases.iter().map(of_case));
    prose::page(&parts.concat())
}

fn short(outcome: &Outcome) -> String {
    let mut table = Table::new(&[
        "what",
        "database",
        "requests/s",
        "failed",
        "announces paused",
        "backup done after",
        "p99 before, ms",
        "p99 during, ms",
        "peers before",
        "peers after",
    ]);
    for case in &outcome.cases {
        let p99 = |name: &str| ms(phase(case, name).and_then(|phase| phase.announces.p99_ms));
        let failed = case.report.all.counts.failed();
        let (paused, done) = match &case.interruption {
            Interruption::Window {
                pause_ms,
                backup_seconds,
                ..
            } => (
                format!("{} ms", digits(*pause_ms)),
                format!("{} s", digits(*backup_seconds)),
            ),
            Interruption::Stop {
                stop_seconds,
                copy_seconds,
                start_seconds,
            } => (
                format!("{} s", digits(stop_seconds + copy_seconds + start_seconds)),
                format!("{} s", digits(stop_seconds + copy_seconds)),
            ),
        };
        let rate = case.report.plan.udp_per_second + case.report.plan.http_per_second;
        let [before, after] = case.peers.map(|peers| count(peers.unsigned_abs()));
        table.row(&[
            procedure(case).to_owned(),
            bytes(case.bytes),
            count(rate.into()),
            count(failed),
            paused,
            done,
            p99("before"),
            p99("during"),
            before,
            after,
        ]);
    }
    format!(
        "{}\n*Peers* are counted by scraping every torrent that is announced over UDP, just \
         before and just after: a tracker keeps its peers in memory. *Backup done*: for a \
         window verified, compressed and published; for `cp` the end of `cp`, which checks and \
         syncs nothing.\n",
        table.text()
    )
}

/// Windows one after the other, and whether what must hold does.
fn in_turn(repeated: &Repeated) -> String {
    let mut table = Table::new(&[
        "window",
        "paused, ms",
        "backup done after, s",
        "announces",
        "failed",
        "p50, ms",
        "p99, ms",
        "max, ms",
    ]);
    let mut row = |name: String, paused: String, done: String, announces: &Summary| {
        table.row(&[
            name,
            paused,
            done,
            count(announces.counts.sent),
            count(announces.counts.failed()),
            ms(announces.p50_ms),
            ms(announces.p99_ms),
            ms(announces.max_ms),
        ]);
    };
    let none = || "-".to_owned();
    let before = format!("{} s before", repeated.seconds);
    row(before, none(), none(), &repeated.before);
    for (number, window) in repeated.windows.iter().enumerate() {
        let (paused, done) = (digits(window.pause_ms), digits(window.backup_seconds));
        row((number + 1).to_string(), paused, done, &window.announces);
    }
    row("all windows".to_owned(), none(), none(), &repeated.during);
    let plan = &repeated.report.plan;
    format!(
        "\n## Windows in turn\n\n{}, WAL, {} UDP and {} HTTP requests a second, {} windows one \
         after the other.\n\n{}\n{}\n![Windows in turn](window/{IN_TURN})\n\n",
        bytes(repeated.bytes),
        count(plan.udp_per_second.into()),
        count(plan.http_per_second.into()),
        repeated.windows.len(),
        table.text(),
        prose::list(&verdicts(repeated)),
    )
}

/// What must hold, what was found, and whether it does.
fn verdicts(repeated: &Repeated) -> Vec<String> {
    let says = |holds: bool| if holds { "holds" } else { "**does not hold**" };
    let failed = repeated.during.counts.failed();
    let mut said = vec![format!(
        "No announce fails: {}, {} failed of {}.",
        says(failed == 0),
        count(failed),
        count(repeated.during.counts.sent)
    )];
    let pauses: Vec<f64> = repeated.windows.iter().map(|one| one.pause_ms).collect();
    let pause = median(&pauses).unwrap_or(f64::NAN);
    said.push(format!(
        "The median pause is below {PAUSE_MS} ms: {}, it is {} ms.",
        says(pause < PAUSE_MS),
        digits(pause)
    ));
    let times = repeated
        .during
        .p99_ms
        .zip(repeated.before.p99_ms)
        .map_or(f64::NAN, |(during, before)| during / before);
    said.push(format!(
        "The p99 of announces is within {TIMES} times that of before: {}, it is {} times as long.",
        says(times <= TIMES),
        digits(times)
    ));
    let limits = repeated.report.health.limits.iter();
    said.extend(limits.map(|limit| format!("**The load was not as planned:** {limit}")));
    said
}

fn of_case(case: &Case) -> String {
    let mut table = Table::new(&[
        "phase",
        "s",
        "sent",
        "answered",
        "errors",
        "unanswered",
        "answered/s",
        "announces: p50 ms",
        "p99 ms",
        "max ms",
        "tracker, CPUs",
        "others, CPUs",
    ]);
    for phase in &case.phases {
        table.row(&of_phase(phase));
    }
    let (title, file) = (title(case), file(case));
    let (happened, remarks) = (happened(case), remarks(case));
    format!(
        "### {title}\n\n{}\n{happened}\n\n{remarks}![{title}](window/{file})\n\n",
        table.text()
    )
}

fn happened(case: &Case) -> String {
    match &case.interruption {
        Interruption::Window {
            pause_ms,
            copy_seconds,
            backup_seconds,
            stored,
            shown,
        } => format!(
            "The gate was closed for {} ms; the raw copy took {} s, the whole run {} s; the \
             backup is {}. It holds {} completions of the load: all {} that were acknowledged \
             before its instant, and none of those sent after ({} were sent before).",
            digits(*pause_ms),
            digits(*copy_seconds),
            digits(*backup_seconds),
            bytes(*stored),
            count(shown.found.into()),
            count(shown.acknowledged.into()),
            count(shown.sent.into()),
        ),
        Interruption::Stop {
            stop_seconds,
            copy_seconds,
            start_seconds,
        } => format!(
            "SIGTERM to exit {} s, `cp` {} s, start to the first answer {} s. Of the {} peers \
             before, {} were known when it answered again.",
            digits(*stop_seconds),
            digits(*copy_seconds),
            digits(*start_seconds),
            count(case.peers[0].unsigned_abs()),
            count(case.peers[1].unsigned_abs()),
        ),
    }
}

/// What failed, and what speaks against the figures; empty if nothing.
fn remarks(case: &Case) -> String {
    let mut remarks = Vec::new();
    for (error, times) in &case.report.errors {
        remarks.push(format!("{} x {error}", count(*times)));
    }
    if case.dropped_at_tracker > 0 {
        remarks.push(format!(
            "{} datagrams were dropped at the full buffer of the tracker's socket",
            count(case.dropped_at_tracker)
        ));
    }
    for limit in &case.report.health.limits {
        remarks.push(format!("**The load was not as planned:** {limit}"));
    }
    let others = case.phases.iter().map(|phase| phase.others);
    let most = others.fold(0.0, f64::max);
    if most > DISTURBED {
        remarks.push(format!(
            "**Disturbed:** something else on the machine kept up to {} processors busy",
            digits(most)
        ));
    }
    prose::list(&remarks)
}

fn of_phase(phase: &Phase) -> Vec<String> {
    let counts = &phase.all.counts;
    vec![
        phase.name.clone(),
        phase.seconds.to_string(),
        count(counts.sent),
        count(counts.answered),
        count(counts.errors),
        count(counts.unanswered),
        digits(phase.all.answered_per_second),
        ms(phase.announces.p50_ms),
        ms(phase.announces.p99_ms),
        ms(phase.announces.max_ms),
        phase.tracker.map_or_else(|| "-".to_owned(), digits),
        digits(phase.others),
    ]
}

fn phase<'a>(case: &'a Case, name: &str) -> Option<&'a Phase> {
    case.phases.iter().find(|phase| phase.name == name)
}

fn procedure(case: &Case) -> &'static str {
    match (&case.interruption, case.journal.as_str()) {
        (Interruption::Window { .. }, "wal") => "window, WAL",
        (Interruption::Window { .. }, _) => "window, rollback journal",
        (Interruption::Stop { .. }, _) => "stop, `cp`, start",
    }
}

fn title(case: &Case) -> String {
    format!(
        "{}, {}",
        bytes(case.bytes),
        procedure(case).replace('`', "")
    )
}

fn file(case: &Case) -> String {
    let what = match case.interruption {
        Interruption::Window { .. } => case.journal.as_str(),
        Interruption::Stop { .. } => "stop",
    };
    format!("{what}-{}-mb.svg", case.bytes / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::window::Window;
    use crate::generator::Report;

    fn announces(sent: u64, answered: u64, p99_ms: f64) -> Summary {
        let mut summary = Summary::default();
        summary.counts.sent = sent;
        summary.counts.answered = answered;
        summary.counts.unanswered = sent - answered;
        summary.p99_ms = Some(p99_ms);
        summary
    }

    fn repeated(during: Summary, pauses: &[f64]) -> Repeated {
        let window = |pause_ms: &f64| Window {
            pause_ms: *pause_ms,
            backup_seconds: 1.0,
            announces: Summary::default(),
        };
        Repeated {
            bytes: 1,
            seconds: 60,
            before: announces(100, 100, 2.0),
            during,
            windows: pauses.iter().map(window).collect(),
            report: Report::default(),
        }
    }

    #[test]
    fn what_must_hold_is_judged_one_by_one() {
        let holds = |during, pauses| -> Vec<bool> {
            let said = verdicts(&repeated(during, pauses));
            said.iter().map(|one| one.contains(": holds,")).collect()
        };
        let well = announces(100, 100, 4.0);
        assert_eq!(holds(well, &[1.0, 2.0, 900.0]), [true; 3]);
        assert_eq!(holds(well, &[50.0, 50.0]), [true, false, true]);
        assert_eq!(holds(announces(100, 99, 4.0), &[1.0]), [false, true, true]);
        assert_eq!(holds(announces(100, 100, 4.1), &[1.0]), [true, true, false]);
        // Nothing was measured, so nothing holds.
        let nothing = Summary {
            p99_ms: None,
            ..well
        };
        assert_eq!(holds(nothing, &[]), [true, false, false]);
    }
}
