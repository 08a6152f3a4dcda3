//! Window after window under load: none fails, each backup shows its instant, and nothing grows.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use end_to_end::announce::Torrent;
use end_to_end::backups::{self, Backup};
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::usage::Usage;
use end_to_end::{PATIENCE, database, soak_in_full};

use crate::support::{alone, done, nothing_lost, nothing_temporary};

/// Windows before anything is measured. What is made once is made by then: the stack of
/// each thread that ever worked, and every peer there is.
const WARM: usize = 16;

/// Peers of each torrent. They come back again and again, so that the tracker has nothing new to
/// keep: whatever grows is lost.
const PEERS: u32 = 2;

/// Bytes that memory may grow by from the middle of the session to its end, whatever its length:
/// an allocator gets and gives back memory by steps of 128 KiB and more, and a measurement falls
/// between them. A leak of 60 KB a window is more after the twenty windows
/// of the short session, and one of 15 KB after the hundred of the full one.
const STEPS: f64 = 1e6;

/// And for each window between, less than a page.
const EACH: f64 = 4e3;

/// What a process has of what can leak.
///
/// The tasks of its async runtimes are not among it: they can be counted from within alone
/// (`RuntimeMetrics::num_alive_tasks`), and the status says nothing of the process it is in. A
/// request at the door is a task, and that none is left behind its tests assert, which count them
/// (`door/tests.rs`). A task that is left by a window keeps what it waits for: its connection or
/// file, which is a descriptor; the job it waits for, which is a thread; at the least its own
/// memory and its run's.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(tracker: &Tracker) -> Result<Self> {
        let process = tracker.pid()?.as_raw_nonzero().get();
        let entries = |what: &str| -> Result<usize> {
            Ok(fs::read_dir(format!("/proc/{process}/{what}"))?.count())
        };
        Ok(Self {
            resident: Usage::of(u32::try_from(process)?)?.resident,
            descriptors: entries("fd")?,
            threads: entries("task")?,
        })
    }

    /// The least of each that there was after any of these windows. What a run, a connection or
    /// a burst of requests has for a moment is not counted so; what leaks is there after all.
    fn least(of: &[Self]) -> Result<Self> {
        let least = |one: Self, other: &Self| Self {
            resident: one.resident.min(other.resident),
            descriptors: one.descriptors.min(other.descriptors),
            threads: one.threads.min(other.threads),
        };
        let first = *of.first().context("a window")?;
        Ok(of.iter().fold(first, least))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_back_to_back_fail_nowhere_and_nothing_grows() -> Result<()> {
    let _alone = alone().await;
    let windows = if soak_in_full() { 200 } else { 40 };
    let keep = "{ last = 3, daily = 0, weekly = 0, monthly = 0 }";
    // One arena, and thresholds that stay: what is freed goes back, and what a compressor had is
    // no hole that the next one misses. With glibc's defaults memory was seen to go up and down by
    // 5 MB between the middle and the end of the same session.
    let setup = Setup::new()?
        .set("maintenance.backup", "keep", keep)
        .env("MALLOC_ARENA_MAX", "1")
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .env("MALLOC_TRIM_THRESHOLD_", "131072");
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let plan = Plan {
        udp_per_second: 1_000,
        http_per_second: 50,
        sockets: 16,
        torrents: 300,
    };
    let addresses = tracker.addresses;
    let load = Load::start_with_peers(PEERS, plan, addresses.udp, addresses.http).await?;
    for _ in 0..WARM {
        done(endpoint).await?;
    }
    // Each peer has started and completed, and as often again.
    let all = 4 * (PEERS * plan.torrents) as usize;
    load.until(PATIENCE, |counts| counts.answered >= all)
        .await?;

    let mut shown: Vec<(DateTime<Utc>, HashMap<Torrent, u32>)> = Vec::new();
    let mut held = Vec::new();
    for window in 0..windows {
        let run = done(endpoint)
            .await
            .with_context(|| format!("window {window}"))?;
        let id = run["backup"].as_str().context("a backup")?;
        let backup = Backup::open(&setup.backups().join(id))?;
        assert_eq!(backup.manifest["run"], run["id"], "window {window}");
        shown.push((backup.pinned()?, database::completed(&backup.database)?));
        held.push(Held::by(&tracker)?);
    }
    let account = load.stop(PATIENCE).await?;
    nothing_lost(&account);
    for (window, (pinned, counters)) in shown.iter().enumerate() {
        let told = || format!("window {window}");
        account
            .completions()
            .shown(counters, *pinned)
            .with_context(told)?;
    }
    nothing_temporary(&setup)?;
    assert_eq!(backups::published(&setup.backups())?.len(), 3);

    // A quarter of the windows up to the middle, and the last quarter.
    let quarter = windows / 4;
    let middle = Held::least(&held[quarter..2 * quarter])?;
    let ended = Held::least(&held[windows - quarter..])?;
    let between = windows / 2;
    #[expect(clippy::cast_precision_loss, reason = "megabytes, and hundreds")]
    let (grown, may_grow) = (
        ended.resident as f64 - middle.resident as f64,
        STEPS + EACH * between as f64,
    );
    println!(
        "{windows} windows, {} announces: {:.2} MB more in the last {between}; {middle:?}, then {ended:?}",
        account.answered(),
        grown / 1e6
    );
    ensure!(grown <= may_grow, "memory grew by {grown} bytes");
    ensure!(
        ended.descriptors <= middle.descriptors + 2,
        "descriptors: {middle:?}, {ended:?}"
    );
    ensure!(
        ended.threads <= middle.threads + 2,
        "threads: {middle:?}, {ended:?}"
    );
    Ok(())
}
