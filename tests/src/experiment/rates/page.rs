//! `docs/rates.md` and its drawings, from what was measured.

use anyhow::Result;
use torrust_tracker_maintenance::evaluation::median;

use super::case::{Case, Storage};
use super::verdict::{Asker, Holds, Verdict, verdicts};
use super::{CONNECT, CONNECT_EVERY, GRACE, Latencies, Measured, Outcome, Round, TIMES};
use crate::experiment::Document;
use crate::experiment::prose::{self, DISTURBED, Table, count, digits, spread};
use crate::plot::{self, Bar};

/// How upstream's tracker is built, if not by the command itself.
const APART: &str = "LIBSQLITE3_FLAGS= cargo install --locked torrust-tracker@3.0.0 \
                     --bin torrust-tracker --root target/upstream";

/// The page, and a drawing for what is in memory and for what is stored.
///
/// # Errors
/// When a drawing cannot be made.
pub fn document(outcome: &Outcome) -> Result<Document> {
    let mut drawings = Vec::new();
    for drawing in Drawing::ALL {
        let bars = drawing.bars(outcome);
        if !bars.is_empty() {
            drawings.push((drawing.file(), plot::bars(drawing.title(), &bars)?));
        }
    }
    Ok(Document {
        name: "rates",
        text: text(outcome),
        drawings,
    })
}

fn text(outcome: &Outcome) -> String {
    let date = outcome.date.format("%Y-%m-%d %H:%M UTC").to_string();
    let parts = [
        prose::head(
            "How fast announces are answered, beside upstream",
            &outcome.command,
            &date,
        ),
        "This tracker and upstream's, in the same configurations, in turn on one machine: \
         announces a second, processor time for each, and latency.\n\n"
            .to_owned(),
        prose::machine(&outcome.machine),
        format!(
            "The databases were on that file system. {}\n\n",
            prose::took(outcome.seconds)
        ),
        prose::list(&flaws(outcome)),
        must(outcome),
        compared(outcome),
        rates(outcome),
        latencies(outcome),
        DURABILITY.to_owned(),
        bounds(outcome),
        remarks(outcome),
    ];
    prose::page(&parts.concat())
}

/// What went wrong.
fn flaws(outcome: &Outcome) -> Vec<String> {
    let flaws = outcome.flaws.iter();
    flaws.map(|flaw| format!("**{flaw}**")).collect()
}

fn must(outcome: &Outcome) -> String {
    let all = verdicts(outcome);
    let mut table = Table::new(&["what", "must be", "seen", ""]).left();
    for verdict in &all {
        table.row(&[
            verdict.what.clone(),
            verdict.must.clone(),
            verdict.seen.clone(),
            verdict.to_string(),
        ]);
    }
    format!(
        "## What must hold\n\n{}\n\n{}\n\
         A ratio is of announces answered a second, of both trackers in the same round. Shown \
         and judged is the median of the rounds; in brackets the least and the most of them. \
         Where our own load could not send much more than was answered, or did not read all \
         answers, a tracker could have answered more: what that leaves open is not judged. \
         *Connect*: judged is the median of the rounds. *No worse*: each half of a round's \
         moderate load has a p99 of its own, two figures a round. Ours is worse if the medians \
         of the figures differ by more than a tenth of upstream's, and by more than three times \
         what the figures of one tracker differ by among themselves (their median deviation \
         from their median), and, of fewer than six figures, if no figure of one lies among \
         those of the other. Medians that differ by more than a tenth, but by no more than \
         that, do not tell.\n\n",
        summary(&all),
        table.text()
    )
}

/// How many requirements are met.
fn summary(all: &[Verdict]) -> String {
    let with = |wanted: fn(Holds) -> bool| all.iter().filter(|one| wanted(one.holds)).count();
    let asked = with(|holds| holds != Holds::NotAsked);
    let met = with(|holds| holds == Holds::Met);
    let not_met = with(|holds| holds == Holds::NotMet);
    let untold = with(|holds| matches!(holds, Holds::Untold(_)));
    let mut text = format!("Of {asked} requirements {met} are met");
    if not_met > 0 {
        text = format!("{text}, **{not_met} not**");
    }
    if untold > 0 {
        text = format!("{text}, and of {untold} it cannot be told");
    }
    text + "."
}

fn compared(outcome: &Outcome) -> String {
    let Outcome {
        loads,
        plan,
        sqlite,
        tester,
        ..
    } = outcome;
    let upstream = if outcome.upstream_given {
        format!(
            "The command was given the program; it is as upstream's users have it if it was \
             built by `{APART}`."
        )
    } else {
        "The command has built it so.".to_owned()
    };
    let percent = |share: f64| format!("{:.0}", share * 100.0);
    let mix = plan.mix;
    let of_all = f64::from(mix.started + mix.completed + mix.regular + mix.stopped).max(1.0);
    let mixed = |part: u32| percent(f64::from(part) / of_all);
    format!(
        "## What was compared, and how\n\n\
         - **Upstream** is the program of the published crate torrust-tracker 3.0.0, with its own \
         lock file (SQLite 3.46; ours has {sqlite}) and its own release profile, which, as ours, \
         optimises across crates. {upstream}\n\
         - **The configuration** is the same for both: no statistics of usage, torrents without \
         peers stay, no `[maintenance]`, so that the gate is there and open. *Memory*: \
         `persistent_torrent_completed_stat = false`, at two log thresholds. *Stored*: `true`, at \
         the threshold `error`, with the database on a rollback journal, as upstream sets it up, \
         or in WAL mode.\n\
         - **{} rounds**: each case once, then each again, so that what changes on the machine \
         meanwhile changes for all. For each of the three loads a tracker is started anew, on an \
         empty database.\n\
         - **The public tester**, `aquatic_udp_load_test` {tester}, for {} s: as many connects as \
         announces, and few scrapes, as fast as answers come. Beside it a client connects every \
         {} ms, whatever comes back; a connect that is not answered within {} s counts as so \
         long.\n\
         - **Our own load**, the one of `announce_load`, for {} s at a rate that waits for nobody: \
         {TIMES} times what the public tester was answered. {} % are connects, {} % of the rest \
         scrapes. Of the announces {} % start, {} % complete, {} % come back and {} % leave, as \
         far as there is a peer that can: one that has had no answer announces nothing else, so \
         the more a tracker leaves unanswered, the more of the announces are those of new peers, \
         which change what is stored. Counted is what is answered before the end.\n\
         - **The moderate load**: {} announces a second for {} s, each of which changes its \
         swarm, at a rate that waits for nobody. One that is not answered counts as long as it \
         was waited for, {} s at least.\n\n",
        loads.rounds,
        loads.tester_seconds,
        CONNECT_EVERY.as_millis(),
        CONNECT.as_secs(),
        loads.own_seconds,
        percent(plan.connects.part()),
        percent(plan.scrapes.part()),
        mixed(mix.started),
        mixed(mix.completed),
        mixed(mix.regular),
        mixed(mix.stopped),
        count(loads.moderate.into()),
        loads.own_seconds,
        GRACE.as_secs(),
    )
}

type Value = fn(&Round) -> Option<f64>;

/// A row a case, of each column the median of the rounds, the least and the most.
fn table(cases: &[Measured], columns: &[(&str, Value)]) -> String {
    let mut names = vec!["case"];
    names.extend(columns.iter().map(|(name, _)| *name));
    let mut table = Table::new(&names);
    for measured in cases {
        let mut cells = vec![measured.case.to_string()];
        cells.extend(columns.iter().map(|(_, value)| {
            let values: Vec<f64> = measured.rounds.iter().filter_map(value).collect();
            spread(&values)
        }));
        table.row(&cells);
    }
    table.text().to_owned()
}

fn rates(outcome: &Outcome) -> String {
    let tester = table(
        &outcome.cases,
        &[
            ("announces/s", |round| Some(round.tester.announces)),
            ("all answers/s", |round| Some(round.tester.responses)),
            ("CPU, us an answer", |round| round.tester.processor_us),
            ("connect p50, ms", |round| round.tester.connects.p50_ms),
            ("connect p99, ms", |round| round.tester.connects.p99_ms),
        ],
    );
    let own = table(
        &outcome.cases,
        &[
            ("announces/s", |round| {
                Some(round.own.announces_per_second())
            }),
            ("requests sent/s", |round| Some(round.own.sent_per_second())),
            ("of 100 announces answered", |round| {
                share(round.own.announces.answered, round.own.announces.sent)
            }),
            ("CPU, us an answer", |round| round.own.processor_us),
        ],
    );
    let drawn: Vec<String> = Drawing::ALL
        .into_iter()
        .filter(|drawing| !drawing.bars(outcome).is_empty())
        .map(|drawing| format!("![{}](rates/{})\n\n", drawing.title(), drawing.file()))
        .collect();
    let drawn = drawn.concat();
    format!(
        "## Rates\n\nMedian of the rounds (least to most). By the public tester:\n\n{tester}\n\
         By our own load:\n\n{own}\n{drawn}"
    )
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn share(some: u64, all: u64) -> Option<f64> {
    (all > 0).then(|| 100.0 * some as f64 / all as f64)
}

fn latencies(outcome: &Outcome) -> String {
    let table = table(
        &outcome.cases,
        &[
            ("p50, ms", |round| {
                median(&round.moderate.map(|half| half.p50_ms.unwrap_or(f64::NAN)))
            }),
            ("p99, ms", |round| {
                median(&round.moderate.map(|half| half.p99_ms.unwrap_or(f64::NAN)))
            }),
            ("of 100 answered", |round| {
                let sum = |count: fn(&Latencies) -> usize| {
                    round.moderate.iter().map(count).sum::<usize>() as u64
                };
                share(sum(|half| half.answered), sum(|half| half.sent))
            }),
        ],
    );
    format!(
        "## Latency at {} announces a second\n\nFrom sending to the answer, the middle of both \
         halves of the load; median of the rounds (least to most).\n\n{table}\n",
        count(outcome.loads.moderate.into())
    )
}

/// What an answer is worth, in the cases that store.
const DURABILITY: &str = "## What an answer promises, where announces are stored\n\n\
    - **Upstream, rollback journal and WAL** (`synchronous = FULL`): every announce that changes \
    its swarm is a transaction, which flushes the disk before the announce is answered: in WAL \
    the log, on a rollback journal the journal, then the database. The removal of the journal, \
    with which a transaction ends there, it does not flush: a file system that forgets that takes \
    the last transaction back, though its announce was answered. A write that fails is dropped \
    without a word, and the announce answered.\n\
    - **Ours, WAL**: a transaction for each announce as well, since it is upstream's code that \
    writes, but the commit does not flush. One flush of the log follows for all announces that \
    were executed meanwhile, and then their answers: nothing is acknowledged that a power cut \
    can take back, if the disk keeps what it has confirmed. A completed download that did not \
    reach the database is not acknowledged.\n\
    - **Ours, rollback journal**: SQLite flushes at every commit, as with upstream. The removal \
    of the journal is flushed, too: one flush of the directory follows for all announces that \
    were executed meanwhile, and then their answers. So ours flushes somewhat more than upstream \
    does, and promises what it promises in WAL.\n\
    - **Memory**: nothing is promised, by either.\n\n";

fn bounds(outcome: &Outcome) -> String {
    let table = table(
        &outcome.cases,
        &[
            ("tracker, CPUs", |round| Some(round.own.processors)),
            ("flushes an announce", |round| round.own.flushes),
            ("others, CPUs", |round| Some(round.own.others)),
        ],
    );
    format!(
        "## What bounds it\n\nUnder our own load, whose thread takes up to a processor of the {} \
         there are; so does that of the public tester, which never waits:\n\n{table}\n\
         - **Memory**: the processor time of an answer, above, and how many processors share it. \
         Ours receives, executes and answers in one thread a socket, many packets with one \
         system call; upstream has a task for each packet.\n\
         - **Rollback journal**: flushes, one after the other, and nothing else is stored \
         meanwhile. A flush of 4 KiB takes {} us here.\n\
         - **WAL**: upstream one flush for each announce that is stored; ours one for many, so \
         what is left is SQLite's work for each transaction, which one thread does. Why there \
         is not one transaction for many announces: see \
         [ARCHITECTURE.md](ARCHITECTURE.md#persisted-announces).\n\n",
        outcome.machine.processors, outcome.machine.flush_us
    )
}

/// What speaks against the figures; nothing if nothing does.
fn remarks(outcome: &Outcome) -> String {
    let mut remarks = Vec::new();
    let missing: Vec<String> = Case::ALL
        .into_iter()
        .filter(|case| outcome.measured(*case).is_none())
        .map(|case| format!("*{case}*"))
        .collect();
    if !missing.is_empty() {
        remarks.push(format!("Left out: {}.", missing.join("; ")));
    }
    for measured in &outcome.cases {
        if Asker::Own.is_the_bound(&measured.rounds) {
            remarks.push(format!(
                "*{}*: our own load had no more to send, or did not read all answers; the \
                 tracker can do more than it was seen to do under it.",
                measured.case
            ));
        }
        if measured.rounds.iter().any(is_silent) {
            remarks.push(format!(
                "*{}*: in a round it answered the public tester no announce.",
                measured.case
            ));
        }
    }
    let rounds = outcome.cases.iter().flat_map(|measured| &measured.rounds);
    let others = rounds.clone().map(|round| round.own.others);
    let most = others.fold(0.0, f64::max);
    if most > DISTURBED {
        remarks.push(format!(
            "**Disturbed:** something else on the machine kept up to {} processors busy.",
            digits(most)
        ));
    }
    if rounds.clone().next().is_some() && rounds.clone().all(|round| round.own.flushes.is_none()) {
        remarks.push("This disk does not count its flushes.".to_owned());
    }
    if remarks.is_empty() {
        return String::new();
    }
    format!("## To be considered\n\n{}", prose::list(&remarks))
}

fn is_silent(round: &Round) -> bool {
    round.tester.announces <= 0.0
}

/// Cases on one scale: what is stored is too slow to be seen beside what is not.
#[derive(Debug, Clone, Copy)]
enum Drawing {
    Memory,
    Stored,
}

impl Drawing {
    const ALL: [Self; 2] = [Self::Memory, Self::Stored];

    fn title(self) -> &'static str {
        match self {
            Self::Memory => "Announces a second, in memory, by the public tester",
            Self::Stored => "Announces a second, stored, by the public tester",
        }
    }

    fn file(self) -> String {
        let name = match self {
            Self::Memory => "memory",
            Self::Stored => "stored",
        };
        format!("{name}.svg")
    }

    fn shows(self, case: Case) -> bool {
        match self {
            Self::Memory => case.storage == Storage::Memory,
            Self::Stored => case.storage.persists(),
        }
    }

    fn bars(self, outcome: &Outcome) -> Vec<Bar> {
        let measured = outcome.cases.iter().filter(|one| !one.rounds.is_empty());
        let shown = measured.filter(|one| self.shows(one.case));
        shown
            .map(|measured| {
                let rounds = measured.rounds.iter();
                let rates = rounds.map(|round| Asker::Tester.rate(round)).collect();
                Bar::new(&measured.case.to_string(), rates)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::rates::tests::{OURS, UPSTREAM, outcome, round, rounds};

    fn page(outcome: &Outcome) -> String {
        document(outcome).expect("it can be drawn").text
    }

    /// The row of the table of what must hold that begins with this.
    fn row<'a>(page: &'a str, what: &str) -> &'a str {
        let begins = format!("| {what}");
        let mut found = page.lines().filter(|line| line.starts_with(&begins));
        found.next().expect("there is such a row")
    }

    #[test]
    fn what_is_met_is_said_and_what_is_not_and_how_often() {
        let mut outcome = outcome();
        assert!(page(&outcome).contains("Of 16 requirements 16 are met.\n"));
        assert!(!page(&outcome).contains("## To be considered"));

        *rounds(&mut outcome, OURS) = vec![round(50_000.0, 9.0); 2];
        let worse = page(&outcome);
        assert!(
            worse.contains("Of 16 requirements 13 are met, **3 not**.\n"),
            "{worse}"
        );
        let ratio = row(&worse, "public tester: ours, memory, error");
        assert!(
            ratio.contains("at least 2 times") && ratio.contains("**not met**"),
            "{ratio}"
        );
        assert!(ratio.contains("1.2"), "{ratio}");
        let latency = row(
            &worse,
            "announce p99 at the moderate rate: ours, memory, error",
        );
        assert!(
            latency.contains("| 9 ms;") && latency.contains("**not met**"),
            "{latency}"
        );
        let told = row(&worse, "public tester: ours, stored, rollback");
        assert!(told.contains("| no requirement |"), "{told}");
    }

    #[test]
    fn a_case_that_was_left_out_is_named_and_not_drawn() {
        let mut outcome = outcome();
        outcome
            .cases
            .retain(|measured| measured.case.storage == Storage::Memory);
        let document = document(&outcome).expect("it can be drawn");
        let names: Vec<_> = document
            .drawings
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, ["memory.svg"]);
        let text = document.text;
        assert!(
            text.contains("(rates/memory.svg)") && !text.contains("stored.svg"),
            "{text}"
        );
        assert!(
            text.contains("- Left out: *upstream, stored, rollback*; "),
            "{text}"
        );
        // Four ratios of both loads, and two cases, of which connects and announces.
        assert!(
            text.contains("8 are met, and of 8 it cannot be told."),
            "{text}"
        );

        outcome.cases.clear();
        assert!(page(&outcome).contains("Of 16 requirements 0 are met, and of 16"));
    }

    #[test]
    fn a_tracker_that_answered_nothing_has_no_figures_and_is_named() {
        let mut outcome = outcome();
        let mut silent = round(0.0, 0.5);
        silent.tester.connects.p50_ms = Some(1_000.0);
        silent.tester.connects.p99_ms = Some(1_000.0);
        silent.moderate[0].answered = 0;
        *rounds(&mut outcome, UPSTREAM) = vec![silent; 2];
        let text = page(&outcome);
        assert!(
            text.contains("- *upstream, memory, error*: in a round it answered"),
            "{text}"
        );
        assert!(text.contains("| upstream, memory, error | 0 (0 to 0) | 0 (0 to 0) | - | 1000 "));
        let ratio = row(&text, "public tester: ours, memory, error");
        assert!(
            ratio.contains("cannot be told: upstream answered nothing"),
            "{ratio}"
        );
    }

    #[test]
    fn what_disturbed_the_measurement_is_told() {
        let mut outcome = outcome();
        rounds(&mut outcome, OURS)[0].own.others = 0.75;
        for round in rounds(&mut outcome, OURS) {
            round.own.dropped = round.own.all.answered;
        }
        for measured in &mut outcome.cases {
            for round in &mut measured.rounds {
                round.own.flushes = None;
            }
        }
        outcome.upstream_given = true;
        let text = page(&outcome);
        assert!(text.contains("kept up to 0.75 processors busy"), "{text}");
        assert!(
            text.contains("- *ours, memory, error*: our own load had no more"),
            "{text}"
        );
        assert!(text.contains("does not count its flushes"), "{text}");
        assert!(text.contains("The command was given the program"), "{text}");
    }

    #[test]
    fn what_went_wrong_and_what_took_too_long_is_in_bold() {
        let mut outcome = outcome();
        assert!(page(&outcome).contains("The measurement took 10.0 min.\n"));
        outcome.seconds = 901.0;
        outcome.flaws.push("a case, round 1: no answer".to_owned());
        for measured in &mut outcome.cases {
            if measured.case == OURS {
                measured.rounds.clear();
                measured.failed = vec![0, 1];
            }
        }
        let text = page(&outcome);
        assert!(
            text.contains("- **a case, round 1: no answer**\n"),
            "{text}"
        );
        assert!(text.contains("**That is more than the 15 min"), "{text}");
        // It was not left out.
        assert!(!text.contains("Left out"), "{text}");
    }

    #[test]
    fn everything_measured_shows_in_the_page() {
        let before = page(&outcome());
        let changes: [fn(&mut Round); 10] = [
            |round| round.tester.announces += 7_777.0,
            |round| round.tester.responses += 7_777.0,
            |round| round.tester.processor_us = Some(77.5),
            |round| round.tester.connects.p50_ms = Some(77.5),
            |round| round.tester.connects.p99_ms = Some(77.5),
            |round| round.own.announces.answered += 77_777,
            |round| round.own.processor_us = Some(77.5),
            |round| round.own.processors = 77.5,
            |round| round.moderate[0].p50_ms = Some(77.5),
            |round| round.moderate[1].answered = 775,
        ];
        for (nth, change) in changes.into_iter().enumerate() {
            let mut outcome = outcome();
            rounds(&mut outcome, OURS).iter_mut().for_each(change);
            assert!(page(&outcome) != before, "change {nth}");
        }
    }
}
