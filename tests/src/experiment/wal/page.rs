//! `docs/wal.md` and its drawings, from what was measured.

use anyhow::Result;
use torrust_tracker_maintenance::evaluation::{Decision, Evaluation, Weight};

use super::figures::{FAILURES, OfRound};
use super::{Measured, Mode, Outcome};
use crate::experiment::capacity::{self, Verdict};
use crate::experiment::prose::{self, DISTURBED, Table, bytes, count, digits, ms};
use crate::experiment::{Document, FULL};
use crate::generator::MOST;
use crate::plot;

const WAL_PAYS: &str = "WAL rather than the rollback journal";

/// Before what follows for the default configuration.
const FOLLOWS: &str = "`config/tracker.toml` follows:";

/// What each mode is, and what it promises of an announce that was answered.
const MODES: [(Mode, &str, &str); 4] = [
    (
        Mode::Rollback,
        "`journal_mode = \"delete\"`; `synchronous = FULL`: each commit syncs journal and database",
        "survives a power failure",
    ),
    (
        Mode::Durable,
        "`journal_mode = \"wal\"`, `acknowledge = \"durable\"`; `synchronous = NORMAL`, and the \
         tracker syncs the log once for all announces it is about to answer",
        "survives a power failure",
    ),
    (
        Mode::Committed,
        "`journal_mode = \"wal\"`, `acknowledge = \"committed\"`; `synchronous = NORMAL`, synced \
         when the log is moved into the database",
        "survives the end of the process; a power failure takes the last ones",
    ),
    (
        Mode::Full,
        "`journal_mode = \"wal\"`; `synchronous = FULL`: each commit syncs the log. Takes a \
         tracker built with `LIBSQLITE3_FLAGS=`",
        "survives a power failure",
    ),
];

/// The page and one drawing a mode.
///
/// # Errors
/// When a drawing cannot be made.
pub fn document(outcome: &Outcome) -> Result<Document> {
    let mut drawings = Vec::new();
    for measured in &outcome.modes {
        let Some(report) = &measured.report else {
            continue;
        };
        let drawn = plot::svg(measured.mode.name(), &report.panels(), &report.marks)?;
        drawings.push((file(measured.mode), drawn));
    }
    Ok(Document {
        name: "wal",
        text: text(outcome),
        drawings,
    })
}

fn text(outcome: &Outcome) -> String {
    let date = outcome.date.format("%Y-%m-%d %H:%M UTC").to_string();
    let modes = outcome.modes.iter();
    let tried = modes.map(|one| (one.mode.name(), one.tries.as_slice()));
    let parts = [
        prose::head(
            "Rollback journal or write-ahead log",
            &outcome.command,
            &date,
        ),
        "The tracker writes to its database at every announce that changes a swarm. This \
         compares the journal modes it can do so in.\n\n"
            .to_owned(),
        prose::machine(&outcome.machine),
        format!(
            "Database: {}, `persistent_torrent_completed_stat = true`. {}\n\n",
            bytes(outcome.bytes),
            prose::took(outcome.seconds)
        ),
        prose::list(&amiss(outcome)),
        format!("## Decision\n\n{}", decision(outcome)),
        format!("## The modes\n\n{}", modes_in_words(&outcome.modes)),
        format!(
            "## 1. Baseline, and 3. comparison\n\n{} The table has the median of the rounds, and \
             the least and the most of them. *At most*: what a tracker answers of more than it \
             holds, the same for every mode: three times the highest rate that one of them \
             holds, but no more than {} UDP requests a second, which the generator is meant for; \
             *or more*: in a round it answered all that was offered. Where the generator was the \
             limit nothing is entered.\n\n{}",
            at_what(outcome),
            count(MOST.into()),
            comparison(&outcome.modes)
        ),
        format!("\n### The highest rate\n\n{}", prose::rates("mode", tried)),
        format!("\n### Calls that sync\n\n{}", syncs(&outcome.modes)),
        format!(
            "## 2. The switch\n\n`maintenance.journal_mode = \"wal\"` and a restart (or the next \
             window); `\"delete\"` and a restart to go back. {}The mode is stored in the file: \
             nothing else has to be set.\n\n",
            outcome.switch.map_or_else(String::new, |switch| format!(
                "A start took {} s, with the switch to WAL {} s, with the switch back {} s. ",
                digits(switch.plain),
                digits(switch.to_wal),
                digits(switch.back)
            ))
        ),
        format!("## 4. The rule\n\n{}", rule(outcome)),
        not_measured(outcome),
        drawings(&outcome.modes),
    ];
    prose::page(&parts.concat())
}

/// What went wrong, which mode held no rate, and which rounds count for nothing.
fn amiss(outcome: &Outcome) -> Vec<String> {
    let flaws = outcome.flaws.iter();
    let mut said: Vec<String> = flaws.map(|flaw| format!("**{flaw}**")).collect();
    for measured in &outcome.modes {
        let name = measured.mode.name();
        match capacity::shown(&measured.tries) {
            Verdict::Held => {}
            Verdict::NotHeld => said.push(format!(
                "**{name}: no rate was held**, so that it was not measured"
            )),
            Verdict::Unknown => said.push(format!(
                "**{name}: no rate is known to be held**, so that it was not measured"
            )),
        }
        for (number, round) in measured.rounds.iter().enumerate() {
            let name = format!("{name}, round {}", number + 1);
            if round.limited() {
                said.push(format!(
                    "**{name}: the generator was the limit**: 1 request in 100 left {} ms or more \
                     late, {} answers were not read in time. The round counts for nothing",
                    ms(round.all.late_p99_ms),
                    count(round.dropped)
                ));
            } else {
                said.extend(prose::blurred(&name, &round.announces));
            }
            if round.most.announces.is_none() {
                said.push(format!(
                    "**{name}: what it answers at most is not known**, as the generator was the \
                     limit when {} UDP requests a second were offered",
                    count(round.most.offered.into())
                ));
            }
        }
        if let Some(round) = measured.rounds.iter().find(|round| round.most.spare) {
            said.push(format!(
                "**{name}: all of {} UDP requests a second were answered**, so that it can answer \
                 more than was seen. Where that leaves open which of two modes answers more at \
                 most, it is not known",
                count(round.most.offered.into())
            ));
        }
    }
    said
}

/// At which rate the rounds were measured, and who holds it.
fn at_what(outcome: &Outcome) -> String {
    let Some(rate) = outcome.rate else {
        return "No mode held a rate: nothing was measured.".to_owned();
    };
    let [udp, http] = rate.map(|rate| count(rate.into()));
    let rounds = outcome.modes.iter().map(|mode| mode.rounds.len()).max();
    let held = outcome
        .modes
        .iter()
        .filter(|one| capacity::held(&one.tries).is_some());
    let names: Vec<&str> = held.map(|one| one.mode.name()).collect();
    let who = if names.len() == outcome.modes.len() {
        "every mode holds".to_owned()
    } else {
        format!("these hold: {}", names.join("; "))
    };
    format!(
        "{udp} UDP and {http} HTTP requests a second, which {who}. {} rounds of each mode, in \
         turn, forth and back.",
        rounds.unwrap_or_default()
    )
}

fn decision(outcome: &Outcome) -> String {
    // Kept without a difference, for a reason of its own.
    let of = |evaluation: &Evaluation, keep: &str, revert: &str, even: &str| {
        let what = match evaluation.decision {
            Decision::Keep => keep,
            Decision::Revert => revert,
            Decision::Undecided => "Undecided",
        };
        let even = if evaluation.is_even() { even } else { "" };
        format!("**{what}** ({}{even}).", evaluation.because)
    };
    let journal = of(
        &outcome.to_wal,
        WAL_PAYS,
        "Stay with the rollback journal",
        ", and in WAL a backup pauses announces for less, see [window.md](window.md)",
    );
    let answers = of(
        &outcome.to_committed,
        "Answers that wait for no sync are no worse under load",
        "Answers that wait for no sync are worse under load",
        "",
    );
    let full = outcome.from_full.as_ref().map(|evaluation| {
        of(
            evaluation,
            "One sync for many answers rather than one at each commit",
            "A sync at each commit is better",
            ", and it is what the tracker is built for",
        )
    });
    let mut parts = vec![
        journal,
        format!(
            "{answers} They promise less, so the default is `acknowledge = \"durable\"` whatever \
             they gain."
        ),
    ];
    parts.extend(full);
    let journal = match outcome.to_wal.decision {
        Decision::Keep => "wal",
        Decision::Revert | Decision::Undecided => "keep",
    };
    format!(
        "{}{FOLLOWS} `journal_mode = \"{journal}\"`, `acknowledge = \"durable\"`.\n\n",
        prose::list(&parts)
    )
}

fn modes_in_words(measured: &[Measured]) -> String {
    let mut table = Table::new(&["mode", "how", "an announce that was answered"]);
    for (mode, how, promise) in MODES {
        if measured.iter().any(|one| one.mode == mode) {
            table.row(&[mode.name().to_owned(), how.to_owned(), promise.to_owned()]);
        }
    }
    format!(
        "{}\nThe database stays consistent in all of them. What is synced survives if the disk \
         keeps what it has confirmed.\n\n",
        table.text()
    )
}

fn comparison(modes: &[Measured]) -> String {
    let rows: [(&str, OfRound); 13] = [
        ("answered/s", |round| Some(round.all.answered_per_second)),
        ("failed", |round| Some(whole(round.all.counts.failed()))),
        ("announce p50, ms", |round| round.announces.p50_ms),
        ("announce p99, ms", |round| round.announces.p99_ms),
        ("announce max, ms", |round| round.announces.max_ms),
        ("scrape p50, ms", |round| round.scrapes.p50_ms),
        ("scrape p99, ms", |round| round.scrapes.p99_ms),
        ("database time, ms for 1,000 announces", |round| {
            round.database_ms
        }),
        ("tracker CPU, ms for 1,000 answers", |round| {
            Some(round.cpu_ms)
        }),
        ("tracker memory, MB", |round| {
            Some(whole(round.resident) / 1e6)
        }),
        ("written to disk, bytes an announce", |round| {
            Some(round.written)
        }),
        ("flushes of the disk, an announce", |round| round.flushes),
        ("largest write-ahead log, MB", |round| {
            Some(whole(round.log) / 1e6)
        }),
    ];
    let mut columns = vec![""];
    columns.extend(modes.iter().map(|measured| measured.mode.name()));
    let mut table = Table::new(&columns);
    let mut most = vec!["UDP announces/s at most".to_owned()];
    most.extend(modes.iter().map(at_most));
    table.row(&most);
    for (name, value) in rows {
        let mut cells = vec![name.to_owned()];
        cells.extend(
            modes
                .iter()
                .map(|measured| prose::spread(&measured.values(value))),
        );
        table.row(&cells);
    }
    table.text().to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn whole(value: u64) -> f64 {
    value as f64
}

/// What was answered at most; that it could be more where a round answered all.
fn at_most(measured: &Measured) -> String {
    let more = if measured.spares() { " or more" } else { "" };
    format!("{}{more}", prose::spread(&measured.at_most()))
}

fn syncs(modes: &[Measured]) -> String {
    let mut table = Table::new(&["mode", "calls", "announces answered", "calls an announce"]);
    for measured in modes {
        let Some(syncs) = measured.syncs else {
            continue;
        };
        table.row(&[
            measured.mode.name().to_owned(),
            count(syncs.calls),
            count(syncs.announces),
            digits(whole(syncs.calls) / whole(syncs.announces.max(1))),
        ]);
    }
    format!(
        "`fsync` and `fdatasync` as `strace -c` counts them in some seconds of load. Tracing \
         slows them down, so this is no part of the comparison. A mode that is missing could \
         not be traced.\n\n{}\n",
        table.text()
    )
}

fn rule(outcome: &Outcome) -> String {
    let part = |title: &str, evaluation: &Evaluation| {
        let mut table = Table::new(&["figure", "before", "after", "noise", "", "decides"]);
        for one in &evaluation.differences {
            table.row(&[
                one.name.clone(),
                ms(one.before),
                ms(one.after),
                digits(one.noise),
                one.verdict.to_string(),
                match one.weight {
                    Weight::Essential => "yes",
                    Weight::Told => "",
                }
                .to_owned(),
            ]);
        }
        format!("### {title}\n\n{}\n", table.text())
    };
    let full = outcome.from_full.as_ref();
    format!(
        "A difference counts if the medians differ by more than *noise*, which is the largest of: \
         a tenth of the median before; three times the median deviation (how far half of the \
         rounds of a mode are at most from their median) of the mode where it is larger; where \
         a mode has fewer than six rounds, what the medians must differ by for no round of one \
         mode to be among those of the other; of requests that failed, {FAILURES} of 1,000. Of a \
         mode that answered all it was offered, what it answers at most is more than was seen; \
         where that decides, it is not known. Go \
         back if a figure that decides is worse; stay undecided if one is not known; else keep, \
         whether anything is better or not.\n\n{}{}{}",
        part("From the rollback journal to WAL, durable", &outcome.to_wal),
        part("From durable to committed", &outcome.to_committed),
        full.map_or_else(String::new, |full| part("From FULL to durable", full))
    )
}

fn not_measured(outcome: &Outcome) -> String {
    let mut missing = vec!["a power failure: that is [a test](testing.md), `durable`".to_owned()];
    if outcome.from_full.is_none() {
        missing.push(format!(
            "WAL with `synchronous = FULL`. Give a tracker built with `LIBSQLITE3_FLAGS=` as \
             `--full {FULL}`"
        ));
    }
    let rounds = outcome.modes.iter().flat_map(|mode| &mode.rounds);
    let others = rounds.clone().map(|round| round.others).fold(0.0, f64::max);
    if others > DISTURBED {
        missing.push(format!(
            "an undisturbed machine: something else kept up to {} processors busy",
            digits(others)
        ));
    }
    if rounds.clone().all(|round| round.database_ms.is_none()) {
        missing.push(
            "the time in the database, which this tracker does not tell: the latency of an \
             announce contains it, that of a scrape does not"
                .to_owned(),
        );
    }
    if rounds.clone().all(|round| round.flushes.is_none()) {
        missing.push("flushes of the disk: this one counts none".to_owned());
    }
    let limits = outcome
        .modes
        .iter()
        .filter_map(|one| one.report.as_ref())
        .flat_map(|report| &report.health.limits);
    missing.extend(limits.map(|limit| format!("**the load as planned:** {limit}")));
    format!("## Not measured\n\n{}", prose::list(&missing))
}

fn drawings(modes: &[Measured]) -> String {
    let one = |measured: &Measured| {
        let (name, file) = (measured.mode.name(), file(measured.mode));
        format!("![{name}](wal/{file})\n\n")
    };
    let drawn = modes.iter().filter(|measured| measured.report.is_some());
    let drawn: String = drawn.map(one).collect();
    format!("## The last round of each mode\n\n{drawn}")
}

fn file(mode: Mode) -> String {
    let name = match mode {
        Mode::Rollback => "rollback",
        Mode::Durable => "durable",
        Mode::Committed => "committed",
        Mode::Full => "full",
    };
    format!("{name}.svg")
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use chrono::DateTime;
    use torrust_tracker_maintenance::evaluation::evaluate;

    use super::*;
    use crate::experiment::capacity::tests::tried;
    use crate::experiment::docs;
    use crate::experiment::machine::tests::machine;
    use crate::experiment::wal::figures::figures;
    use crate::experiment::wal::{Round, Saturation, Switch};
    use crate::generator::{LATE_MS, Report, Summary};

    /// 10,000 requests, all answered, 99 in 100 announces in so many milliseconds.
    pub(in crate::experiment::wal) fn round(p99_ms: f64) -> Round {
        let mut all = Summary::default();
        all.counts.sent = 10_000;
        all.counts.answered = 10_000;
        all.answered_per_second = 1_000.0;
        all.p50_ms = Some(0.5);
        all.p99_ms = Some(p99_ms);
        all.late_p99_ms = Some(0.01);
        Round {
            all,
            announces: all,
            scrapes: all,
            cpu_ms: 10.0,
            resident: 50_000_000,
            written: 100.0,
            flushes: Some(0.1),
            log: 4_000_000,
            others: 0.0,
            database_ms: Some(20.0),
            dropped: 0,
            most: Saturation {
                offered: 3_000,
                announces: Some(2_000.0),
                spare: false,
            },
        }
    }

    pub(in crate::experiment::wal) fn measured(mode: Mode, rounds: usize, p99_ms: f64) -> Measured {
        Measured {
            mode,
            tries: vec![tried(1_000, 1_000, 1.0, 0.0)],
            rounds: vec![round(p99_ms); rounds],
            syncs: None,
            report: (rounds > 0).then(Report::default),
        }
    }

    /// Of three modes, decided anew.
    fn of(modes: &[Measured; 3]) -> Outcome {
        let [rollback, durable, committed] = modes;
        Outcome {
            command: "a command".to_owned(),
            date: DateTime::UNIX_EPOCH,
            seconds: 600.0,
            machine: machine(),
            bytes: 300_000_000,
            rate: Some([600, 6]),
            switch: Some(Switch {
                plain: 1.0,
                to_wal: 1.5,
                back: 2.0,
            }),
            to_wal: evaluate(&figures(rollback, durable)),
            to_committed: evaluate(&figures(durable, committed)),
            from_full: None,
            modes: modes.to_vec(),
            flaws: Vec::new(),
        }
    }

    /// WAL is ten times as quick, and all was measured.
    pub(in crate::experiment::wal) fn outcome() -> Outcome {
        of(&[
            measured(Mode::Rollback, 4, 10.0),
            measured(Mode::Durable, 4, 1.0),
            measured(Mode::Committed, 4, 1.0),
        ])
    }

    fn has(page: &str, wanted: &[&str]) {
        for wanted in wanted {
            assert!(page.contains(wanted), "{wanted} in {page}");
        }
    }

    #[test]
    fn a_difference_is_told_and_what_follows_from_it() {
        let page = text(&outcome());
        has(
            &page,
            &[
                "**WAL rather than the rollback journal** (better: announce p99, ms; scrape p99, ms).",
                "no worse under load** (no clear difference).",
                "`journal_mode = \"wal\"`, `acknowledge",
                "which every mode holds. 4 rounds of each mode",
                "| database time, ms for 1,000 announces | 20.0 (20.0 to 20.0) |",
                "| UDP announces/s at most | 2000 (2000 to 2000) |",
                "with the switch back 2 s.",
            ],
        );
        assert!(!page.contains("the time in the database, which"), "{page}");
        assert!(
            !page.contains("**The") && !page.contains("not known**"),
            "{page}"
        );
    }

    #[test]
    fn without_a_difference_wal_is_kept_for_the_pause_and_the_others_are_not() {
        let even = [Mode::Rollback, Mode::Durable, Mode::Committed];
        let page = text(&of(&even.map(|mode| measured(mode, 4, 1.0))));
        assert_eq!(
            page.matches("pauses announces for less").count(),
            1,
            "{page}"
        );
        has(
            &page,
            &["journal** (no clear difference, and in WAL a backup"],
        );
    }

    #[test]
    fn what_is_worse_is_not_followed() {
        let page = text(&of(&[
            measured(Mode::Rollback, 4, 1.0),
            measured(Mode::Durable, 4, 10.0),
            measured(Mode::Committed, 4, 10.0),
        ]));
        has(
            &page,
            &[
                "**Stay with the rollback journal** (worse: announce p99, ms).",
                "`journal_mode = \"keep\"`",
            ],
        );
    }

    #[test]
    fn a_mode_that_holds_no_rate_is_not_measured_and_the_page_says_so() {
        let mut rollback = measured(Mode::Rollback, 0, 1.0);
        rollback.tries = vec![tried(72, 900, 1.0, 0.0)];
        let page = text(&of(&[
            rollback,
            measured(Mode::Durable, 4, 1.0),
            measured(Mode::Committed, 4, 1.0),
        ]));
        has(
            &page,
            &[
                "**rollback journal: no rate was held**",
                "which these hold: WAL, durable; WAL, committed.",
                "**Undecided** (not measured:",
                "`journal_mode = \"keep\"`",
            ],
        );
        assert!(!page.contains("every mode holds"));
        assert!(!page.contains("rollback.svg"), "{page}");

        let mut none = of(
            &[Mode::Rollback, Mode::Durable, Mode::Committed].map(|mode| {
                let mut none = measured(mode, 0, 1.0);
                none.tries.clear();
                none
            }),
        );
        none.rate = None;
        none.switch = None;
        none.flaws
            .push("the switch: not measured: no room".to_owned());
        has(
            &text(&none),
            &[
                "No mode held a rate: nothing was measured.",
                "**the switch: not measured: no room**",
            ],
        );
    }

    #[test]
    fn where_the_generator_was_the_limit_the_page_says_so_and_enters_nothing() {
        let mut limited = outcome();
        let durable = &mut limited.modes[1];
        durable.rounds[2].all.late_p99_ms = Some(LATE_MS + 5.0);
        durable.rounds[2].announces.p99_ms = Some(777.0);
        durable.rounds[3].most.announces = None;
        durable.rounds[0].announces.late_p99_ms = Some(0.5);
        limited.modes[2].rounds[0].most.spare = true;
        let page = text(&limited);
        has(
            &page,
            &[
                "**WAL, durable, round 3: the generator was the limit**",
                "**WAL, durable, round 4: what it answers at most is not known**",
                "lateness:** in WAL, durable, round 1, 1 request",
                "| 2000 (2000 to 2000) or more |",
                "**WAL, committed: all of 3,000 UDP requests a second were answered**",
            ],
        );
        assert!(!page.contains("777"), "{page}");
    }

    #[test]
    fn what_the_tracker_does_not_tell_is_said_to_be_missing() {
        let mut silent = outcome();
        for round in silent.modes.iter_mut().flat_map(|one| &mut one.rounds) {
            round.database_ms = None;
        }
        has(
            &text(&silent),
            &["the time in the database, which this tracker does not tell"],
        );
    }

    /// The page is written by a command, the configuration by hand.
    #[test]
    fn the_default_configuration_is_what_follows_from_the_page() {
        let page = fs::read_to_string(docs().join("wal.md")).expect("the page");
        let line = page.lines().find(|line| line.starts_with(FOLLOWS));
        let line = line.expect("what follows for the configuration");
        let configuration = docs().join("../config/tracker.toml");
        let configuration = fs::read_to_string(configuration).expect("the configuration");
        let settings: Vec<_> = line.split('`').skip(3).step_by(2).collect();
        assert_eq!(settings.len(), 2, "{line}");
        for setting in settings {
            let set = |line: &str| line.starts_with(setting);
            assert!(configuration.lines().any(set), "{setting} in tracker.toml");
        }
    }
}
