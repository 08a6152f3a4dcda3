//! `docs/window.md` and its drawings, from what was measured.

use anyhow::Result;

use super::verdict::{none_held, verdicts};
use super::{Case, Interruption, LOOK, Outcome, Phase, Repeated};
use crate::experiment::Document;
use crate::experiment::prose::{self, DISTURBED, Table, bytes, count, digits, ms};
use crate::generator::{Report, Summary};
use crate::plot;

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
    let rates = outcome.rates.iter();
    let tried = rates.map(|rate| (rate.journal.as_str(), rate.tries.as_slice()));
    let mut parts = vec![
        prose::head("A maintenance window under load", &outcome.command, &date),
        "A tracker is under load at one rate all along; in the middle of it, it makes a backup. \
         Beside it, the procedure that a window replaces: stop the tracker, `cp`, start it \
         again.\n\n"
            .to_owned(),
        prose::machine(&outcome.machine),
        format!("{}\n\n", prose::took(outcome.seconds)),
        prose::list(&amiss(outcome)),
        "## In short\n\n".to_owned(),
        short(outcome),
        outcome.repeated.as_ref().map_or_else(String::new, in_turn),
        "\n## The rate\n\nFound on a database of 30 MB. ".to_owned(),
        prose::rates("journal", tried),
        format!(
            "\n## What happened\n\nLatencies are of the requests that were answered. A request \
             belongs to the second it was planned for, whenever its answer came. The status of \
             the tracker is asked for every {} ms in all phases of a window, and peers are \
             counted in seconds between the phases; where the tracker was stopped they are \
             counted as soon as it answers.\n\n",
            LOOK.as_millis()
        ),
    ];
    parts.extend(outcome.cases.iter().map(of_case));
    prose::page(&parts.concat())
}

/// What could not be measured, and what must not be.
fn amiss(outcome: &Outcome) -> Vec<String> {
    let mut said = Vec::new();
    for rate in &outcome.rates {
        let none = none_held(rate);
        said.extend(none.map(|none| format!("**{none}: nothing was measured in it.**")));
    }
    for lost in &outcome.lost {
        said.push(format!("**{}: not measured:** {}", lost.what, lost.why));
    }
    for case in &outcome.cases {
        let flaws = case.flaws.iter();
        said.extend(flaws.map(|flaw| format!("**{}: {flaw}**", title(case))));
    }
    said
}

/// Requests the tracker failed: an answer that the generator did not read is none of them.
fn failed(report: &Report) -> u64 {
    let failed = report.all.counts.failed();
    failed.saturating_sub(report.health.dropped)
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{} s", digits(value)))
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{} ms", digits(value)))
}

/// A number of peers; a dash where there was no tracker to ask.
fn peers(value: Option<i64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| count(value.unsigned_abs()))
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
        let (paused, done) = match &case.interruption {
            Interruption::Window {
                pause_ms,
                backup_seconds,
                ..
            } => (milliseconds(*pause_ms), seconds(*backup_seconds)),
            Interruption::Stop {
                stop_seconds,
                copy_seconds,
                start_seconds,
            } => (
                start_seconds.map_or_else(
                    || "**for good**".to_owned(),
                    |start| seconds(Some(stop_seconds + copy_seconds + start)),
                ),
                seconds(Some(stop_seconds + copy_seconds)),
            ),
        };
        let rate = case.report.plan.udp_per_second + case.report.plan.http_per_second;
        let [before, after] = case.peers.map(peers);
        table.row(&[
            procedure(case).to_owned(),
            bytes(case.bytes),
            count(rate.into()),
            count(failed(&case.report)),
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
        let (paused, done) = (ms(window.pause_ms), ms(window.backup_seconds));
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
        prose::list(&said_in_turn(repeated)),
    )
}

/// What must hold, what was found, and what speaks against the figures.
fn said_in_turn(repeated: &Repeated) -> Vec<String> {
    let verdicts = verdicts(repeated);
    let mut said: Vec<String> = verdicts.iter().map(super::Verdict::sentence).collect();
    for (number, window) in repeated.windows.iter().enumerate() {
        let name = format!("window {}", number + 1);
        let flaw = window.flaw.iter();
        said.extend(flaw.map(|flaw| format!("**In {name}: {flaw}**")));
        said.extend(prose::blurred(&name, &window.announces));
    }
    let before = format!("the {} s before", repeated.seconds);
    said.extend(prose::blurred(&before, &repeated.before));
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
        } => {
            let times = format!(
                "The gate was closed for {}; the raw copy took {}, the whole run {}",
                milliseconds(*pause_ms),
                seconds(*copy_seconds),
                seconds(*backup_seconds)
            );
            let stored = stored.map_or_else(
                || ". There is no backup to look at.".to_owned(),
                |stored| format!("; the backup is {}.", bytes(stored)),
            );
            let shown = shown.map_or_else(String::new, |shown| {
                format!(
                    " It holds {} completions of the load: all {} that were acknowledged before \
                     its instant, and none of those sent after ({} were sent before).",
                    count(shown.found.into()),
                    count(shown.acknowledged.into()),
                    count(shown.sent.into()),
                )
            });
            format!("{times}{stored}{shown}")
        }
        Interruption::Stop {
            stop_seconds,
            copy_seconds,
            start_seconds,
        } => {
            let [before, after] = case.peers.map(peers);
            let times = format!(
                "SIGTERM to exit {} s, `cp` {} s",
                digits(*stop_seconds),
                digits(*copy_seconds)
            );
            start_seconds.map_or_else(
                || format!("{times}. It did not start again."),
                |start| {
                    format!(
                        "{times}, start to the first answer {} s. Of the {before} peers before, \
                         {after} were known when it answered again.",
                        digits(start)
                    )
                },
            )
        }
    }
}

/// What failed, and what speaks against the figures; empty if nothing.
fn remarks(case: &Case) -> String {
    let flaws = case.flaws.iter();
    let mut remarks: Vec<String> = flaws.map(|flaw| format!("**{flaw}**")).collect();
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
    for phase in &case.phases {
        remarks.extend(prose::blurred(&phase.name, &phase.announces));
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
pub(super) mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::experiment::capacity::tests::tried;
    use crate::experiment::machine::tests::machine;
    use crate::experiment::window::{Backed, Lost, Rate, Window};

    pub(in crate::experiment::window) fn announces(
        sent: u64,
        answered: u64,
        p99_ms: f64,
    ) -> Summary {
        let mut summary = Summary::default();
        summary.counts.sent = sent;
        summary.counts.answered = answered;
        summary.counts.unanswered = sent - answered;
        summary.p99_ms = Some(p99_ms);
        summary
    }

    pub(in crate::experiment::window) fn repeated(during: Summary, pauses: &[f64]) -> Repeated {
        let window = |pause_ms: &f64| Window {
            pause_ms: Some(*pause_ms),
            backup_seconds: Some(1.0),
            flaw: None,
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

    fn case(journal: &str, interruption: Interruption) -> Case {
        let phase = |name: &str| Phase {
            name: name.to_owned(),
            seconds: 12,
            all: announces(100, 100, 2.0),
            announces: announces(100, 100, 2.0),
            tracker: Some(0.5),
            others: 0.0,
        };
        Case {
            bytes: 30_000_000,
            journal: journal.to_owned(),
            phases: ["before", "during", "after"].map(phase).to_vec(),
            interruption,
            peers: [Some(1_000), Some(1_001)],
            flaws: Vec::new(),
            dropped_at_tracker: 0,
            report: Report::default(),
        }
    }

    /// Everything was measured, and all holds.
    pub(in crate::experiment::window) fn outcome() -> Outcome {
        let window = Interruption::Window {
            pause_ms: Some(1.5),
            copy_seconds: Some(0.5),
            backup_seconds: Some(2.5),
            stored: Some(10_000_000),
            shown: Some(Backed {
                acknowledged: 7,
                found: 8,
                sent: 9,
            }),
        };
        let stop = Interruption::Stop {
            stop_seconds: 1.0,
            copy_seconds: 2.0,
            start_seconds: Some(3.0),
        };
        let rate = |journal: &str| Rate {
            journal: journal.to_owned(),
            tries: vec![tried(100, 1_000, 1.0, 0.0)],
        };
        Outcome {
            command: "a command".to_owned(),
            date: DateTime::UNIX_EPOCH,
            seconds: 600.0,
            machine: machine(),
            rates: vec![rate("wal"), rate("delete")],
            cases: vec![case("wal", window), case("delete", stop)],
            repeated: Some(repeated(announces(100, 100, 4.0), &[1.0, 2.0])),
            lost: Vec::new(),
        }
    }

    #[test]
    fn where_all_holds_nothing_is_in_bold() {
        let page = text(&outcome());
        assert!(!page.contains("**"), "{page}");
        for wanted in [
            "1.50 ms",
            "| 6 s | 3 s |",
            "all 7 that were",
            "every 250 ms",
        ] {
            assert!(page.contains(wanted), "{wanted} in {page}");
        }
    }

    #[test]
    fn a_flaw_is_told_in_bold_at_the_head_and_with_its_case_and_the_rest_stays() {
        let mut flawed = outcome();
        let case = &mut flawed.cases[0];
        case.flaws
            .push("a run was not done: would_not_fit".to_owned());
        case.interruption = Interruption::Window {
            pause_ms: None,
            copy_seconds: None,
            backup_seconds: None,
            stored: None,
            shown: None,
        };
        let page = text(&flawed);
        assert_eq!(page.matches("would_not_fit**").count(), 2, "{page}");
        assert!(page.find("would_not_fit") < page.find("## In short"));
        assert!(page.contains("There is no backup to look at."));
        assert!(page.contains("| 6 s | 3 s |"), "the other case");
    }

    #[test]
    fn a_tracker_that_did_not_start_again_has_no_phase_after() {
        let mut flawed = outcome();
        let case = &mut flawed.cases[1];
        case.phases.truncate(1);
        case.peers[1] = None;
        case.interruption = Interruption::Stop {
            stop_seconds: 1.0,
            copy_seconds: 2.0,
            start_seconds: None,
        };
        let page = text(&flawed);
        assert!(page.contains("It did not start again."));
        assert!(page.contains("| **for good** | 3 s |"), "{page}");
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let mut lost = outcome();
        lost.seconds = 1_000.0;
        lost.rates[1].tries = vec![tried(12, 900, 1.0, 0.0)];
        lost.cases.clear();
        lost.repeated = None;
        lost.lost.push(Lost {
            what: "wal: 30 MB, a window".to_owned(),
            why: "no room".to_owned(),
        });
        let page = text(&lost);
        for wanted in [
            "**No rate was held with journal mode `delete`: nothing was measured in it.**",
            "**wal: 30 MB, a window: not measured:** no room",
            "**That is more than the 15 min",
        ] {
            assert!(page.contains(wanted), "{wanted} in {page}");
        }
    }

    #[test]
    fn lateness_of_the_generator_is_flagged_where_it_was() {
        let mut late = outcome();
        late.cases[0].phases[1].announces.late_p99_ms = Some(1.0);
        let repeated = late.repeated.as_mut().expect("windows in turn");
        repeated.windows[1].announces = announces(10, 10, 2.0);
        repeated.windows[1].announces.late_p99_ms = Some(1.9);
        let page = text(&late);
        let flags = page.matches("**The generator's own lateness:**").count();
        assert_eq!(flags, 2, "{page}");
        assert!(page.contains("in during, 1 request in 100 left 1 ms"));
        assert!(page.contains("in window 2, 1 request"));
    }

    #[test]
    fn answers_the_generator_did_not_read_are_no_failures() {
        let mut report = Report {
            all: announces(100, 90, 1.0),
            ..Report::default()
        };
        assert_eq!(failed(&report), 10);
        report.health.dropped = 4;
        assert_eq!(failed(&report), 6);
        report.health.dropped = 40;
        assert_eq!(failed(&report), 0);
    }
}
