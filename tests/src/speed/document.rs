//! A report as text: a line while it is made, a page when it is done.

use std::fmt::Write as _;

use super::method::Method;
use super::summary::{Seen, Speed, Summary, Writers, mebibytes};
use super::writer::Home;
use super::{Report, Sample};

/// What stands for a figure there is none of.
const NONE: &str = "—";

impl Method {
    /// As it is called in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "no copy",
            Self::Cp => "`cp`, `sync`",
            Self::CommandLine => "`sqlite3 .backup`",
            Self::VacuumInto => "`sqlite3 VACUUM INTO`",
            Self::Pages => "`pages`",
            Self::File => "`file`",
            Self::FileZstd => "`file`, zstd",
            Self::FileHeld => "`file`, 20 s",
            Self::ZstdD => "`zstd -d`, `sync`",
            Self::Restore => "`restore`",
        }
    }
}

impl Home {
    /// As it is called in a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Process => "of another process",
            Self::Thread => "of the same process",
        }
    }
}

/// One measurement, for whoever waits for the rest.
#[must_use]
pub fn line(sample: &Sample) -> String {
    let Sample {
        round,
        method,
        rate,
        home,
        timing,
    } = sample;
    let took = match timing.seconds {
        Some(seconds) => format!("{seconds:.2} s"),
        None if *method == Method::Alone => "nothing to time".to_owned(),
        None => "no end".to_owned(),
    };
    let mut line = format!("round {round}: {}, {rate} commits/s", method.name());
    if let Some(commits) = &timing.commits {
        let _ = write!(
            line,
            " {}: {took}; worst commit (ms) before {:.1}, pinning {:.1}, beside {:.1}, \
             after {:.1}, later {:.1}; {:.0}/s before, {:.0}/s beside, {:.0}/s after",
            home.name(),
            commits.before.max_ms,
            commits.pinning.max_ms,
            commits.beside.max_ms,
            commits.after.max_ms,
            commits.later.max_ms,
            commits.before.rate(),
            commits.beside.rate(),
            commits.after.rate(),
        );
    } else {
        let _ = write!(line, ": {took}");
    }
    if let Some(published) = timing.published {
        let _ = write!(line, "; published after {published:.1} s");
    }
    if let (Some(log), Some(shrunk)) = (timing.log, timing.shrunk) {
        let _ = write!(line, "; log {} cut after {shrunk:.1} s", mebibytes(log));
    }
    line
}

/// The tables alone.
#[must_use]
pub fn tables(report: &Report) -> String {
    let summary = Summary::of(report);
    [
        verdicts(&summary),
        speeds(&summary),
        writers(&summary),
        costs(&summary),
    ]
    .concat()
}

/// `docs/performance.md`.
#[must_use]
pub fn page(report: &Report) -> String {
    let summary = Summary::of(report);
    [
        head(report),
        verdicts(&summary),
        speeds(&summary),
        writers(&summary),
        costs(&summary),
        TAIL.to_owned(),
    ]
    .concat()
}

fn head(report: &Report) -> String {
    let machine = &report.machine;
    let sha = if machine.sha_instructions {
        "with instructions for SHA-256"
    } else {
        "without instructions for SHA-256"
    };
    format!(
        "# Performance\n\n\
         Written by the command below; every figure is of that one session. Ratios travel to \
         other machines, seconds do not.\n\n\
         ```console\n{}\n```\n\n\
         | measured on | |\n|---|---|\n\
         | date | {} |\n\
         | processor | {} × {}, {sha} |\n\
         | memory | {} |\n\
         | kernel | {} |\n\
         | file system | {} |\n\
         | SQLite, linked | {} |\n\
         | compared with | {} |\n\
         | build | {} |\n\
         | database | {} MB, shaped as the tracker's, random info-hashes, WAL |\n\
         | rounds of what has a limit; the rest is measured once | {} |\n\n",
        report.command,
        report.date.format("%Y-%m-%d"),
        machine.processors,
        machine.processor,
        mebibytes(machine.memory),
        machine.kernel,
        machine.file_system,
        machine.sqlite,
        machine.programs.join("; "),
        machine.build,
        report.megabytes,
        report.rounds,
    )
}

fn verdicts(summary: &Summary) -> String {
    if summary.verdicts.is_empty() {
        return String::new();
    }
    let mut text = "## What must hold\n\n| what | seen | it holds |\n|---|---|---|\n".to_owned();
    for verdict in &summary.verdicts {
        let holds = match verdict.holds {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "cannot be told: this machine stalls by itself",
        };
        let _ = writeln!(text, "| {} | {} | {holds} |", verdict.what, verdict.seen);
    }
    text + "\n"
}

fn speeds(summary: &Summary) -> String {
    if summary.speeds.is_empty() {
        return String::new();
    }
    let mut text = "## How fast\n\n\
        Until the copy is durable: of a run, from ready to the synced raw copy; of a program, \
        from its start to the end of `sync`. Medians of the rounds; *against* is the speed in \
        terms of `cp` and `sync` in the same round, of `restore` in terms of `zstd -d`. \
        *Published*: from ready until the backup is checked, compressed, read back and has its \
        name.\n\n\
        | commits/s beside | method | s | MB/s | against | published, s |\n\
        |---:|---|---:|---:|---:|---:|\n"
        .to_owned();
    for speed in &summary.speeds {
        let Speed {
            method,
            rate,
            rounds,
            ended,
            ..
        } = *speed;
        let seconds = match speed.seconds {
            Some(seconds) if ended == rounds => format!("{seconds:.2}"),
            Some(seconds) => format!("{seconds:.2} ({ended} of {rounds} ended)"),
            None => "does not end".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {rate} | {} | {seconds} | {} | {} | {} |",
            method.name(),
            figure(speed.megabytes_per_second, 0),
            figure(speed.against, 2),
            figure(speed.published, 1),
        );
    }
    text + "\n"
}

fn writers(summary: &Summary) -> String {
    if summary.writers.is_empty() {
        return String::new();
    }
    let mut text = "## What writers meet\n\n\
        Commits as the tracker makes them, each of a torrent it has not seen, each synced \
        (`synchronous = FULL`), at a steady rate that does not wait for a slow one. Of another \
        process, or of the process that copies, as the tracker's own are. Milliseconds: median, \
        99th percentile, worst of all rounds. *No copy* is the same writer for as long with \
        nothing beside it: what the machine and its own checkpoints do. *Pinning* is when the \
        gate of a tracker is closed and nobody commits. After it the 10 s from the end of the \
        pin, with the checks and the compression of the copy beside.\n\n\
        | commits/s | copy | writer | reached before, beside | before | pinning | beside | 10 s \
        after | log, MB | cut after, s |\n\
        |---:|---|---|---:|---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for writers in &summary.writers {
        let Writers {
            method,
            rate,
            home,
            before,
            pinning,
            beside,
            after,
            ..
        } = writers;
        let _ = writeln!(
            text,
            "| {rate} | {} | {} | {:.0}, {:.0} | {} | {} | {} | {} | {} | {} |",
            method.name(),
            home.name(),
            before.reached,
            beside.reached,
            latency(before),
            latency(pinning),
            latency(beside),
            latency(after),
            figure(writers.log_megabytes, 0),
            figure(writers.shrunk, 1),
        );
    }
    text + "\n"
}

fn costs(summary: &Summary) -> String {
    if summary.pauses.is_empty() {
        return String::new();
    }
    let mut text = "## What a run costs its process\n\n\
        Of a service with the library linked in, 200 commits/s through its gate, started anew \
        for every run. *Pause*: the gate closed. *Memory*: the peak during the run less what \
        the process had before.\n\n\
        | database, MB | runs | pause, median, ms | worst | memory, zstd | uncompressed |\n\
        |---:|---:|---:|---:|---:|---:|\n"
        .to_owned();
    for (pause, memory) in summary.pauses.iter().zip(&summary.memory) {
        let bytes = |bytes: Option<u64>| bytes.map_or(NONE.to_owned(), mebibytes);
        let _ = writeln!(
            text,
            "| {} | {} | {:.2} | {:.2} | {} | {} |",
            pause.megabytes,
            pause.runs,
            pause.median_ms,
            pause.worst_ms,
            bytes(memory.compressed),
            bytes(memory.uncompressed),
        );
    }
    text + "\n"
}

fn figure(value: Option<f64>, digits: usize) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.digits$}"))
}

fn latency(seen: &Seen) -> String {
    if seen.count == 0 {
        return NONE.to_owned();
    }
    let mut text = format!(
        "{:.2} / {:.1} / {:.1}",
        seen.p50_ms, seen.p99_ms, seen.worst_ms
    );
    if seen.refused > 0 {
        let _ = write!(text, ", {} refused", seen.refused);
    }
    text
}

/// What the figures mean; none of it depends on them.
const TAIL: &str = "## What they mean\n\n\
    - **`cp`** of a database in use is no backup; it is how fast the disk takes a copy, and so \
    what `file` is measured by. Its sync comes at the end, in one piece, and every commit on the \
    same disk waits for it; `file` syncs as it goes.\n\
    - **`.backup`** starts again whenever another process has committed, so beside a steady \
    writer it never gets to the end.\n\
    - **`VACUUM INTO`** ends, but takes processor time for every row, and the log grows all the \
    while.\n\
    - **`pages`** asks SQLite for page after page of the pinned snapshot. It is the way out \
    where the file itself cannot be read.\n\
    - **`file`, 20 s** is slowed down, for the log to grow as it does under a database ten times \
    the size: what is moved and cut when the pin ends is that much longer.\n\
    - **Published** is later than durable by checking the structure, compressing and reading \
    back, none of which holds the pin or the gate.\n\
    - **`restore`** does more than `zstd -d`: checksums, structure and row counts, before the \
    database has its name.\n";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speed::summary::tests::report;

    #[test]
    fn a_page_has_every_table_and_no_figure_that_is_not_in_the_report() {
        let report = report();
        let page = page(&report);
        for part in [
            "| yes |",
            "| 200 | `file` | 2.40 | 703 | 1.25 | 30.0 |",
            "| 200 | `sqlite3 .backup` | does not end | — | — | — |",
            "| 200 | `file` | of another process | 200, 200 | 0.10 / 1.0 / 2.0 | — | \
             0.10 / 1.0 / 40.0 | 0.10 / 1.0 / 40.0 | 40 | 0.5 |",
            "| 3000 | 2 | 1.60 | 2.00 | 12.0 MiB | 4.0 MiB |",
            "| date | 1970-01-01 |",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        assert!(page.contains(&tables(&report)));
    }
}
