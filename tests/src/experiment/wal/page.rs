//! `docs/wal.md` and its drawings, from what was measured.

use anyhow::Result;
use torrust_tracker_maintenance::evaluation::{Decision, Evaluation, Weight, median};

use super::{Measured, Mode, Outcome, Round};
use crate::experiment::Document;
use crate::experiment::prose::{self, Table, bytes, count, digits, ms};
use crate::plot;

/// Others that keep more than this of a processor busy have a part in the figures.
const DISTURBED: f64 = 0.2;

/// How NORMAL is had.
const NORMAL: &str = "NORMAL takes a tracker built with \
                      `LIBSQLITE3_FLAGS=-DSQLITE_DEFAULT_WAL_SYNCHRONOUS=1`.";

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
        format!(
            "## 1. Baseline, and 3. comparison\n\n{udp} UDP and {http} HTTP requests a second, \
             which every mode holds; {} rounds of each mode, in turn. The table has the median \
             of the rounds, and the least and the most of them. *At most*: what a tracker answers \
             when three times the rate it holds is offered. {}\n\n{}",
            rounds.unwrap_or_default(),
            outcome.to_normal.as_ref().map_or("", |_| NORMAL),
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
        format!("**{what}** ({}).\n\n", evaluation.because)
    };
    let first = of(
        &outcome.to_wal,
        "WAL rather than the rollback journal",
        "Stay with the rollback journal",
    );
    let second = outcome.to_normal.as_ref().map(|evaluation| {
        let head = of(
            evaluation,
            "NORMAL is no worse than FULL under load",
            "FULL rather than NORMAL",
        );
        format!("{head}But NORMAL promises less:\n\n")
    });
    format!(
        "{first}{}- FULL, in either mode: an announce that was answered survives a power failure, if the \
         disk keeps what it has confirmed.\n\
         - NORMAL, in WAL: an announce that was answered survives a crash of the tracker, but the \
         last of them not a power failure. The database stays consistent.\n\n",
        second.unwrap_or_default()
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
        cells.extend(modes.iter().map(|measured| spread(&measured.rounds, value)));
        table.row(&cells);
    }
    table.text().to_owned()
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn whole(value: u64) -> f64 {
    value as f64
}

/// `median (least to most)`.
fn spread(rounds: &[Round], value: Value) -> String {
    let mut values: Vec<f64> = rounds.iter().filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    match (median(&values), values.as_slice()) {
        (Some(middle), [least, .., most]) => {
            format!(
                "{} ({} to {})",
                digits(middle),
                digits(*least),
                digits(*most)
            )
        }
        (Some(only), _) => digits(only),
        (None, _) => "-".to_owned(),
    }
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
    let normal = outcome.to_normal.as_ref();
    format!(
        "A difference counts if the medians differ by more than a tenth and by more than three \
         times what the rounds of one mode differ by (*noise*). Go back if a figure that decides \
         is worse; else keep, whether anything is better or not: a backup pauses announces for \
         less (see [window.md](window.md)).\n\n{}{}",
        part("From the rollback journal to WAL, FULL", &outcome.to_wal),
        normal.map_or_else(String::new, |normal| part("From FULL to NORMAL", normal))
    )
}

fn not_measured(outcome: &Outcome) -> String {
    let mut missing = vec![
        "the time a single database operation takes: the tracker does not tell; the latency of \
         an announce contains it, that of a scrape does not"
            .to_owned(),
        "a power failure".to_owned(),
    ];
    if outcome.to_normal.is_none() {
        missing.push(format!(
            "`synchronous = NORMAL`. {NORMAL} Give such a one as `--normal PATH`"
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
        Mode::WalFull => "wal-full",
        Mode::WalNormal => "wal-normal",
    };
    format!("{name}.svg")
}
