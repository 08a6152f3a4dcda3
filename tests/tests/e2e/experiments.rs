//! Each experiment measures, accounts for what it sent, and makes its documents of the
//! result and of nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use end_to_end::binaries;
use end_to_end::experiment::wal::Mode::{Committed, Durable, Rollback};
use end_to_end::experiment::{Judgement, rates, read, wal, window};
use end_to_end::generator::Report;
use end_to_end::tracker::Setup;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{A_RUN, alone};

/// Runs an experiment to its end; its exit code and what it says. On a machine that does
/// something else meanwhile it may find that something does not hold (1), or is not known (3).
async fn run(
    program: &str,
    arguments: &str,
    paths: &[(&str, &Path)],
) -> Result<(Option<i32>, String)> {
    let mut command = Command::new(binaries::path(program)?);
    command.args(arguments.split(' ')).kill_on_drop(true);
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    let output = timeout(2 * A_RUN, command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    ensure!(matches!(code, Some(0 | 1 | 3)), "{program}: {said}");
    Ok((code, said))
}

/// The exit code is what the program says of the outcome it has written.
fn says_what_it_judged(judgement: &Judgement, code: Option<i32>, said: &str) {
    assert_eq!(code, Some(judgement.exit_code().into()), "{said}");
    for line in judgement.lines() {
        assert!(said.contains(&line), "{line} in {said}");
    }
}

/// Every file below a directory, by its path in it.
fn files(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy();
        if path.is_dir() {
            let below = files(&path)?;
            found.extend(
                below
                    .into_iter()
                    .map(|(file, text)| (format!("{name}/{file}"), text)),
            );
        } else {
            found.insert(name.into_owned(), fs::read_to_string(&path)?);
        }
    }
    Ok(found)
}

/// The documents an experiment writes of a result it has written itself.
async fn written_again(program: &str, result: &Path) -> Result<BTreeMap<String, String>> {
    let docs = tempfile::tempdir()?;
    let paths = [("--from", result), ("--docs", docs.path())];
    run(program, "--write-docs", &paths).await?;
    files(docs.path())
}

/// Changes one figure of a result.
fn change(result: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut value: Value = serde_json::from_slice(&fs::read(result)?)?;
    change(&mut value);
    Ok(fs::write(result, value.to_string())?)
}

/// Every drawing the page shows has been written, and no other.
fn drawings_are_those_of_the_page(files: &BTreeMap<String, String>, page: &str) {
    let text = &files[page];
    let drawings: Vec<_> = files.keys().filter(|name| *name != page).collect();
    assert!(!drawings.is_empty());
    assert_eq!(text.matches("![").count(), drawings.len(), "{drawings:?}");
    for drawing in drawings {
        assert!(text.contains(&format!("({drawing})")), "{drawing}");
        assert!(files[drawing].starts_with("<svg"), "{drawing}");
    }
}

fn adds_up(report: &Report) {
    assert!(report.all.counts.add_up(), "{report:#?}");
    assert!(report.all.counts.answered > 0, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_experiment_measures_three_procedures_and_writes_of_them() -> Result<()> {
    let _alone = alone().await;
    let (place, docs) = (Setup::new()?, tempfile::tempdir()?);
    let result = place.home().join("result.json");
    let short = "--megabytes 2 --udp 200 --http 20 --warm-up 2 --around 2 --probe 1 --windows 2 \
                 --windows-megabytes 2 --windows-before 2 --write-docs";
    let paths = [
        ("--directory", place.home()),
        ("--json", &result),
        ("--docs", docs.path()),
    ];
    let (code, said) = run("window_experiment", short, &paths).await?;
    let outcome: window::Outcome =
        read(&result).with_context(|| format!("the experiment said: {said}"))?;
    says_what_it_judged(&window::judge(&outcome), code, &said);

    assert!(outcome.lost.is_empty(), "{:?}", outcome.lost);
    assert_eq!(outcome.cases.len(), 3, "{said}");
    for case in &outcome.cases {
        adds_up(&case.report);
        assert!(case.flaws.is_empty(), "{:?}", case.flaws);
        let names: Vec<_> = case.phases.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["before", "during", "after"]);
        for phase in &case.phases {
            assert!(
                phase.all.counts.add_up() && phase.all.counts.sent > 0,
                "{phase:#?}"
            );
        }
        let [before, after] = case.peers;
        assert!(before > Some(0) && after.is_some(), "{case:#?}");
        let failed = case.report.all.counts.failed();
        match &case.interruption {
            window::Interruption::Window {
                pause_ms, shown, ..
            } => {
                assert_eq!(failed, 0, "{:?}", case.report.errors);
                assert!(*pause_ms > Some(0.0) && after >= before, "{case:#?}");
                let shown = shown.context("a backup that shows its instant")?;
                assert!((shown.acknowledged..=shown.sent).contains(&shown.found));
                let marks = case.report.marks.iter();
                assert!(
                    marks
                        .filter(|mark| mark.what.starts_with("run ended"))
                        .count()
                        == 1
                );
            }
            window::Interruption::Stop { .. } => {
                // It is the other process that answers now, and it knows nobody of before.
                assert!(failed > 0 && after < before, "{case:#?}");
            }
        }
    }
    let repeated = outcome.repeated.context("two windows in turn")?;
    adds_up(&repeated.report);
    assert_eq!(repeated.windows.len(), 2);
    assert_eq!(repeated.during.counts.failed(), 0);
    for window in &repeated.windows {
        assert_eq!(window.flaw, None);
        assert!(window.pause_ms > Some(0.0) && window.announces.counts.answered > 0);
    }
    let written = files(docs.path())?;
    drawings_are_those_of_the_page(&written, "window.md");
    assert_eq!(written_again("window_experiment", &result).await?, written);
    change(&result, |value| {
        value["cases"][0]["interruption"]["pause_ms"] = 12_345.0.into();
    })?;
    let changed = written_again("window_experiment", &result).await?;
    assert!(changed["window.md"].contains("12345 ms"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wal_experiment_measures_both_journal_modes_and_decides() -> Result<()> {
    let _alone = alone().await;
    let (place, docs) = (Setup::new()?, tempfile::tempdir()?);
    let result = place.home().join("result.json");
    let short = "--megabytes 2 --udp 200 --http 20 --warm-up 1 --seconds 2 --rounds 2 --probe 1 \
                 --write-docs";
    let paths = [
        ("--directory", place.home()),
        ("--json", &result),
        ("--docs", docs.path()),
    ];
    let (code, said) = run("wal_experiment", short, &paths).await?;
    let outcome: wal::Outcome =
        read(&result).with_context(|| format!("the experiment said: {said}"))?;
    says_what_it_judged(&wal::judge(&outcome), code, &said);

    let modes: Vec<_> = outcome.modes.iter().map(|one| one.mode).collect();
    assert_eq!(modes, [Rollback, Durable, Committed]);
    assert_eq!(outcome.from_full, None);
    assert!(outcome.flaws.is_empty(), "{:?}", outcome.flaws);
    for measured in &outcome.modes {
        adds_up(measured.report.as_ref().context("a mode held a rate")?);
        assert_eq!(measured.rounds.len(), 2);
        let in_wal = measured.mode != Rollback;
        for round in &measured.rounds {
            assert!(round.all.counts.add_up() && round.announces.counts.answered > 0);
            assert!(round.cpu_ms > 0.0 && round.resident > 0, "{round:#?}");
            assert_eq!(round.log > 0, in_wal, "a log is what WAL has: {round:#?}");
            // Three times what is held, which the highest rate tried here bounds.
            assert!((1..=600).contains(&round.most.offered), "{round:#?}");
            let first = &outcome.modes[0].rounds[0];
            assert_eq!(round.most.offered, first.most.offered, "the same to all");
        }
        if let Some(syncs) = measured.syncs {
            assert!(syncs.announces > 0, "{syncs:?}");
            assert!(syncs.calls > 0 || measured.mode == Committed, "{syncs:?}");
        }
    }
    let written = files(docs.path())?;
    drawings_are_those_of_the_page(&written, "wal.md");
    assert_eq!(written_again("wal_experiment", &result).await?, written);
    change(&result, |value| {
        value["to_wal"]["because"] = "a word of the test".into();
    })?;
    let changed = written_again("wal_experiment", &result).await?;
    assert!(changed["wal.md"].contains("a word of the test"));
    Ok(())
}

/// The public load tester, played: what it says, without a load. The real one would have to be
/// built for the tests; how its words are read is tested beside what reads them.
const TESTER: &str = "#!/bin/sh
if [ \"$1\" = --version ]; then echo 0.9.0; exit; fi
echo 'Peers per info hash:'
echo 'Test ran for 1 seconds'
echo 'Average responses per second: 2500.00'
echo '  - Announce responses: 1234.00'
";

fn tester_in(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("load_test");
    fs::write(&path, TESTER)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rates_experiment_compares_two_trackers_and_writes_of_them() -> Result<()> {
    let _alone = alone().await;
    let (place, docs) = (Setup::new()?, tempfile::tempdir()?);
    let result = place.home().join("result.json");
    // Memory may be mounted so that nothing in it can be executed.
    let programs = tempfile::tempdir()?;
    let tester = tester_in(programs.path())?;
    let (ours, upstream) = (
        binaries::path(binaries::TRACKER)?,
        binaries::path(binaries::UPSTREAM)?,
    );
    let short = "--rounds 2 --seconds 1 --own-seconds 1 --moderate 200 --write-docs";
    let paths = [
        ("--directory", place.home()),
        ("--tracker", &ours),
        ("--upstream", &upstream),
        ("--load-test", &tester),
        ("--only", Path::new("memory, error")),
        ("--json", &result),
        ("--docs", docs.path()),
    ];
    let (code, said) = run("announce_rates", short, &paths).await?;
    let outcome: rates::Outcome =
        read(&result).with_context(|| format!("the experiment said: {said}"))?;
    says_what_it_judged(&rates::judge(&outcome), code, &said);
    // Most was left out: that cannot be told, whatever else holds.
    assert!(code != Some(0), "{said}");
    assert!(outcome.flaws.is_empty(), "{:?}", outcome.flaws);

    let cases: Vec<_> = outcome.cases.iter().map(|one| one.case).collect();
    let names: Vec<_> = cases.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["upstream, memory, error", "ours, memory, error"]);
    for measured in &outcome.cases {
        assert_eq!(measured.rounds.len(), 2);
        for round in &measured.rounds {
            let own = &round.own;
            assert!(own.all.add_up() && own.announces.add_up(), "{own:#?}");
            assert!(own.announces.answered > 0 && own.all.sent > own.announces.sent);
            assert!(own.processors > 0.0 && own.seconds >= 1.0, "{own:#?}");
            // Three times what the tester said it was answered.
            assert_eq!(own.offered, 7_500);
            let connects = &round.tester.connects;
            assert!(connects.answered > 0 && connects.sent >= connects.answered);
            for half in &round.moderate {
                assert!(half.sent >= 100 && half.answered > 0, "{half:?}");
                assert!(half.p50_ms <= half.p99_ms, "{half:?}");
            }
        }
    }
    let written = files(docs.path())?;
    drawings_are_those_of_the_page(&written, "rates.md");
    let page = &written["rates.md"];
    assert!(page.contains("--only 'memory, error'") && page.contains("--upstream PROGRAM"));
    assert!(
        page.contains("Left out: *upstream, memory, info*; "),
        "{page}"
    );
    assert_eq!(written_again("announce_rates", &result).await?, written);
    change(&result, |value| {
        value["cases"][0]["rounds"][0]["tester"]["announces"] = 987_654.0.into();
    })?;
    let changed = written_again("announce_rates", &result).await?;
    assert!(changed["rates.md"].contains("987654"));
    Ok(())
}
