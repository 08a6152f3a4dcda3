//! `evaluate-wal` on a tracker under load: baseline, switch, comparison, decision; killed in the
//! middle, it goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::announce::{Torrent, scraped};
use end_to_end::http1::Pool;
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::{PATIENCE, binaries, database, until};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use crate::support::{MIB, alone, nothing_lost};

/// Ten slices of a second, those that are left out, and a run.
const WITHIN: Duration = Duration::from_secs(120);

/// Every figure of the table; whether a rollback journal has it.
const FIGURES: [(&str, bool); 10] = [
    ("announce p99, ms", true),
    ("turned away or unconfirmed, of 1,000 requests", true),
    ("announce p50, ms", true),
    ("scrape p99, ms", true),
    ("processor, ms for 1,000 answers", true),
    ("database, ms for 1,000 announces", true),
    ("memory, MB", true),
    ("written to disk, bytes an announce", true),
    ("write-ahead log, MB", false),
    ("requests/s", true),
];

fn state(tracker: &Tracker) -> PathBuf {
    tracker.setup().home().join("evaluation.json")
}

fn evaluate(tracker: &Tracker) -> Result<Child> {
    Command::new(binaries::path(binaries::TOOL)?)
        .arg("--config")
        .arg(tracker.setup().file())
        .args(["--endpoint", &tracker.endpoint()?.0.to_string(), "--json"])
        .args(["evaluate-wal", "--now", "--slice", "1s"])
        .args(["--baseline", "5s", "--comparison", "5s", "--state"])
        .arg(state(tracker))
        .current_dir(tracker.setup().home())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting the tool")
}

/// What is kept, if anything is.
fn kept(state: &Path) -> Result<Option<Value>> {
    match fs::read(state) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn slices(kept: &Value, side: &str) -> usize {
    kept[side]["slices"].as_array().map_or(0, Vec::len)
}

/// Waits until so many slices of a side are kept, and kills the tool.
async fn killed_after(tracker: &Tracker, side: &str, wanted: usize) -> Result<usize> {
    let mut tool = evaluate(tracker)?;
    until(&format!("{wanted} slices {side}"), WITHIN, async || {
        if let Some(status) = tool.try_wait()? {
            anyhow::bail!("the tool has ended: {status}");
        }
        let kept = kept(&state(tracker))?;
        Ok(kept.filter(|kept| slices(kept, side) >= wanted))
    })
    .await?;
    tool.kill().await?;
    let kept = kept(&state(tracker))?.context("it was there")?;
    Ok(slices(&kept, side))
}

async fn ended(tool: Child) -> Result<Output> {
    let output = timeout(WITHIN, tool.wait_with_output());
    output
        .await
        .context("the tool does not end")?
        .context("waiting for it")
}

/// Fifty scrapes a second, each of which must be answered.
fn scraping(tracker: &Tracker) -> JoinHandle<Result<()>> {
    let pool = Pool::new(tracker.addresses.http);
    tokio::spawn(async move {
        let mut due = interval(Duration::from_millis(20));
        for torrent in (0..).map(Torrent) {
            due.tick().await;
            let answer = pool.get(&torrent.http_scrape()).await?;
            scraped(&answer).map_err(anyhow::Error::msg)?;
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_with_a_decision_also_when_it_is_killed_in_the_middle() -> Result<()> {
    let _alone = alone().await;
    let setup = Setup::new()?.set("maintenance", "journal_mode", "\"keep\"");
    database::make(&setup.database(), 10 * MIB, "delete")?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let plan = Plan {
        udp_per_second: 300,
        // By themselves enough for a slice.
        http_per_second: 200,
        sockets: 16,
        torrents: 500,
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(500, PATIENCE).await?;
    let scraping = scraping(&tracker);

    let before = killed_after(&tracker, "before", 2).await?;
    ensure!((2..5).contains(&before), "{before} slices of the baseline");
    let after = killed_after(&tracker, "after", 2).await?;
    ensure!((2..5).contains(&after), "{after} slices of the comparison");
    let output = ended(evaluate(&tracker)?).await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let found: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{}: {said}", output.status))?;

    assert_eq!(found["phase"], "decided", "{found:#}");
    for side in ["before", "after"] {
        assert_eq!(found[side]["slices"], 5, "{found:#}");
    }
    let decision = &found["evaluation"]["decision"];
    let code = match decision.as_str() {
        Some("keep") => 0,
        Some("revert") => 6,
        _ => anyhow::bail!("no decision: {found:#}"),
    };
    assert_eq!(output.status.code(), Some(code), "{said}");
    println!("{decision}: {}", found["evaluation"]["because"]);
    let differences = found["evaluation"]["differences"].as_array();
    let differences = differences.context("the table")?;
    assert_eq!(differences.len(), FIGURES.len(), "{found:#}");
    for ((name, has_before), one) in FIGURES.into_iter().zip(differences) {
        assert_eq!(one["name"], name);
        assert!(one["after"].is_number(), "{one}");
        assert_eq!(one["before"].is_number(), has_before, "{one}");
    }

    // The switch is real, and nobody noticed it.
    let status = endpoint.status().await?;
    assert_eq!(status["database"]["journal_mode"], "wal", "{status:#}");
    assert!(status["database"]["wal_bytes"].is_number(), "{status:#}");
    if scraping.is_finished() {
        return scraping.await?.context("a scrape was not answered");
    }
    scraping.abort();
    nothing_lost(&load.stop(PATIENCE).await?);

    // What was decided is told again, and nothing is measured for it.
    let again = ended(evaluate(&tracker)?).await?;
    assert_eq!(again.status.code(), Some(code));
    let again: Value = serde_json::from_slice(&again.stdout)?;
    assert_eq!(again["evaluation"], found["evaluation"]);
    Ok(())
}
