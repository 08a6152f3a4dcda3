//! `docs/wal.md` and its drawings, from what was measured.

use anyhow::Result;
use torrust_tracker_maintenance::evaluation::{Decision, Evaluation, Weight};

use super::{Measured, Mode, Outcome, Round};
use crate::experiment::Document;
use crate::experiment::prose::{self, DISTURBED, Table, bytes, count, digits, ms};
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
        let report = &measured.report;
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
    let [udp, http] = outcome.rate.map(|rate| count(rate.into()));
    let rounds = outcome.modes.iter().map(|mode| mode.rounds.len()).max();
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
            "Database: {}, `persistent_torrent_completed_stat = true`. The measurement took {} \
             min.\n\n",
            bytes(outcome.bytes),
            digits(outcome.seconds / 60.0)
        ),
        format!("## Decision\n\n{}", decision(outcome)),
        format!("## The modes\n\n{}", modes_in_words(&outcome.modes)),
        format!(
            "## 1. Baseline, and 3. comparison\n\n{udp} UDP and {http} HTTP requests a second, \
             which every mode holds; {} rounds of each mode, in turn. The table has the median \
             of the rounds, and the least and the most of them. *At most*: what a tracker answers \
             when three times the rate it holds is offered.\n\n{}",
            rounds.unwrap_or_default(),
            comparison(&outcome.modes)
        ),
        format!("\n### The highest rate\n\n{}", prose::rates("mode", tried)),
        format!("\n### Calls that sync\n\n{}", syncs(&outcome.modes)),
        format!(
            "## 2. The switch\n\n`maintenance.journal_mode = \"wal\"` and a restart (or the next \
             window); `\"delete\"` and a restart to go back. A start took {} s, with the switch \
             to WAL {} s, with the switch back {} s. The mode is stored in the file: nothing \
             else has to be set.\n\n",
            digits(outcome.switch.plain),
            digits(outcome.switch.to_wal),
            digits(outcome.switch.back)
        ),
        format!("## 4. The rule\n\n{}", rule(outcome)),
        not_measured(outcome),
        drawings(&outcome.modes),
    ];
    prose::page(&parts.concat())
}

fn decision(outcome: &Outcome) -> String {
    let of = |evaluation: &Evaluation, keep: &str, revert: &str| {
        let what = match evaluation.decision {
            Decision::Keep => keep,
            Decision::Revert => revert,
            Decision::Undecided => "Undecided",
        };
        format!("**{what}** ({}).", evaluation.because)
    };
    let journal = of(&outcome.to_wal, WAL_PAYS, "Stay with the rollback journal");
    let answers = of(
        &outcome.to_committed,
        "Answers that wait for no sync are no worse under load",
        "Answers that wait for no sync are worse under load",
    );
    let full = outcome.from_full.as_ref().map(|evaluation| {
        of(
            evaluation,
            "One sync for many answers rather than one at each commit",
            "A sync at each commit is better",
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

type Value = fn(&Round) -> Option<f64>;

fn comparison(modes: &[Measured]) -> String {
    let rows: [(&str, Value); 13] = [
        ("UDP announces/s at most", |round| Some(round.at_most)),
        ("answered/s", |round| Some(round.all.answered_per_second)),
        ("failed", |round| Some(whole(round.all.counts.failed()))),
        ("announce p50, ms", |round| round.announces.p50_ms),
        ("announce p99, ms", |round| round.announces.p99_ms),
        ("announce max, ms", |round| round.announces.max_ms),
        ("scrape p50, ms", |round| round.scrapes.p50_ms),
        ("scrape p99, ms", |round| round.scrapes.p99_ms),
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
    for (name, value) in rows {
        let mut cells = vec![name.to_owned()];
        cells.extend(modes.iter().map(|measured| {
            let values: Vec<f64> = measured.rounds.iter().filter_map(value).collect();
            prose::spread(&values)
        }));
        table.row(&cells);
    }
    table.text().to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn whole(value: u64) -> f64 {
    value as f64
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
        "A difference counts if the medians differ by more than a tenth and by more than three \
         times what the rounds of one mode differ by (*noise*). Go back if a figure that decides \
         is worse; else keep, whether anything is better or not: a backup pauses announces for \
         less (see [window.md](window.md)).\n\n{}{}{}",
        part("From the rollback journal to WAL, durable", &outcome.to_wal),
        part("From durable to committed", &outcome.to_committed),
        full.map_or_else(String::new, |full| part("From FULL to durable", full))
    )
}

fn not_measured(outcome: &Outcome) -> String {
    let mut missing = vec![
        "the time a single database operation takes: the latency of an announce contains it, \
         that of a scrape does not"
            .to_owned(),
        "a power failure: that is [a test](testing.md), `durable`".to_owned(),
    ];
    if outcome.from_full.is_none() {
        missing.push(
            "WAL with `synchronous = FULL`. Give a tracker built with `LIBSQLITE3_FLAGS=` as \
             `--full PATH`"
                .to_owned(),
        );
    }
    let rounds = outcome.modes.iter().flat_map(|mode| &mode.rounds);
    let others = rounds.clone().map(|round| round.others).fold(0.0, f64::max);
    if others > DISTURBED {
        missing.push(format!(
            "an undisturbed machine: something else kept up to {} processors busy",
            digits(others)
        ));
    }
    if rounds.clone().all(|round| round.flushes.is_none()) {
        missing.push("flushes of the disk: this one counts none".to_owned());
    }
    let limits = outcome
        .modes
        .iter()
        .flat_map(|one| &one.report.health.limits);
    missing.extend(limits.map(|limit| format!("**the load as planned:** {limit}")));
    format!("## Not measured\n\n{}", prose::list(&missing))
}

fn drawings(modes: &[Measured]) -> String {
    let one = |measured: &Measured| {
        let (name, file) = (measured.mode.name(), file(measured.mode));
        format!("![{name}](wal/{file})\n\n")
    };
    let drawn: String = modes.iter().map(one).collect();
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
mod tests {
    use std::fs;

    use super::*;
    use crate::experiment::docs;

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
