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

/// Announces from one measurement of memory to the next, without a window.
const STRETCH: usize = 5_000;

/// Windows before anything is measured: after as many memory was seen to grow no more.
const WARM: usize = 24;

/// What memory may grow by beyond what as many announces, of new peers all, have cost without
/// windows: an allocator keeps what it was given once.
const SLACK: f64 = 12e6;

/// What a process has of what can leak.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident: u64,
    descriptors: usize,
    threads: usize,
    answered: usize,
}

impl Held {
    fn by(tracker: &Tracker, load: &Load) -> Result<Self> {
        let process = tracker.pid()?.as_raw_nonzero().get();
        let entries = |what: &str| -> Result<usize> {
            Ok(fs::read_dir(format!("/proc/{process}/{what}"))?.count())
        };
        Ok(Self {
            resident: Usage::of(u32::try_from(process)?)?.resident,
            descriptors: entries("fd")?,
            threads: entries("task")?,
            answered: load.counts().answered,
        })
    }

    /// Bytes that memory has grown by since, for each announce.
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    fn grown_since(self, earlier: Self) -> (f64, f64) {
        let bytes = self.resident as f64 - earlier.resident as f64;
        (bytes, (self.answered - earlier.answered) as f64)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_back_to_back_fail_nowhere_and_nothing_grows() -> Result<()> {
    let _alone = alone().await;
    let windows = if soak_in_full() { 200 } else { 24 };
    let keep = "{ last = 3, daily = 0, weekly = 0, monthly = 0 }";
    let setup = Setup::new()?.set("maintenance.backup", "keep", keep);
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let plan = Plan {
        udp_per_second: 1_000,
        http_per_second: 50,
        sockets: 16,
        torrents: 300,
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    // What is made once is made: an arena of the allocator for each thread that ever worked.
    for _ in 0..WARM {
        done(endpoint).await?;
    }
    let first = Held::by(&tracker, &load)?;
    load.answered_more(STRETCH, PATIENCE).await?;
    let begun = Held::by(&tracker, &load)?;

    let mut shown: Vec<(DateTime<Utc>, HashMap<Torrent, u32>)> = Vec::new();
    for window in 0..windows {
        let run = done(endpoint)
            .await
            .with_context(|| format!("window {window}"))?;
        let id = run["backup"].as_str().context("a backup")?;
        let backup = Backup::open(&setup.backups().join(id))?;
        assert_eq!(backup.manifest["run"], run["id"], "window {window}");
        shown.push((backup.pinned()?, database::completed(&backup.database)?));
    }
    let ended = Held::by(&tracker, &load)?;
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

    let (without, announces) = begun.grown_since(first);
    let each = without.max(0.0) / announces;
    let (grown, announces) = ended.grown_since(begun);
    println!(
        "{windows} windows, {announces} announces: {:.1} MB more, {:.1} MB of them for the peers; \
         {begun:?}, then {ended:?}",
        grown / 1e6,
        each * announces / 1e6
    );
    ensure!(
        grown <= each * announces + SLACK,
        "memory grew by {grown} bytes"
    );
    ensure!(
        ended.descriptors <= begun.descriptors + 2,
        "descriptors: {begun:?}, {ended:?}"
    );
    ensure!(
        ended.threads <= begun.threads + 2,
        "threads: {begun:?}, {ended:?}"
    );
    Ok(())
}
