//! What several modules assert or wait for.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::backups::{self, Backup};
use end_to_end::endpoint::Endpoint;
use end_to_end::load::Account;
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{PATIENCE, binaries, database};
use serde_json::Value;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::encryption::Identities;

/// A run of these tests takes at most this long, copying slowed down included.
pub const A_RUN: Duration = Duration::from_secs(60);

pub const MIB: u64 = 1024 * 1024;

/// Tests run side by side; one that measures under load runs alone.
static MACHINE: RwLock<()> = RwLock::const_new(());

pub async fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

pub async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

/// A key that age's own tests have made public.
pub const IDENTITY: &str =
    "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";

/// A file with [`IDENTITY`] in this directory, and whom a backup is to be encrypted for so that it
/// opens it.
pub fn identity_in(directory: &Path) -> Result<(PathBuf, String)> {
    let path = directory.join("key.txt");
    std::fs::write(&path, format!("{IDENTITY}\n"))?;
    let identities = Identities::read(std::slice::from_ref(&path), &Disk::default())?;
    let recipients = identities.context("one identity")?.recipients();
    let recipient = recipients.first().context("one recipient")?.to_string();
    Ok((path, recipient))
}

/// The second place has all that it should have; the status then.
pub async fn uploaded(tracker: &Tracker) -> Result<Value> {
    let endpoint = tracker.endpoint()?;
    let caught_up = |status: &Value| {
        let remote = &status["remote"];
        remote["behind"] == 0 && remote["failure"].is_null() && !remote["last_uploaded"].is_null()
    };
    endpoint.until("the upload", A_RUN, caught_up).await
}

/// The tool, on the configuration file of a setup, for programs.
pub fn tool(setup: &Setup, arguments: &[&str]) -> Result<Output> {
    Command::new(binaries::path(binaries::TOOL)?)
        .arg("--config")
        .arg(setup.file())
        .arg("--json")
        .args(arguments)
        .current_dir(setup.home())
        .output()
        .context("starting the tool")
}

/// Waits until it is another second: backups of two trackers that begin in the same one have the
/// same name.
pub async fn next_second() -> Result<()> {
    let now = Utc::now().timestamp();
    let is_over = async || Ok((Utc::now().timestamp() > now).then_some(()));
    end_to_end::until("the next second", PATIENCE, is_over).await
}

/// The JSON that a program printed, which must have ended well.
pub fn printed(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}

/// A peer is announced that has all of the torrent.
pub async fn complete(tracker: &Tracker, torrent: Torrent) -> Result<()> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    for event in [Event::Started, Event::Completed] {
        let announce = Announce {
            torrent,
            peer: 1,
            event,
        };
        client.announce(announce).await?;
    }
    Ok(())
}

/// An announce is answered.
pub async fn answered(tracker: &Tracker) -> Result<()> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    client
        .announce(Announce {
            torrent: Torrent(1),
            peer: 1,
            event: Event::Started,
        })
        .await?;
    Ok(())
}

/// The same, with a window of so many seconds, as one that an operator starts has; none is due
/// for half a day.
pub fn brief(setup: &Setup, seconds: u32) -> Setup {
    let line = (Utc::now() + TimeDelta::hours(12)).format("\"%M %H * * *\"");
    setup
        .clone()
        .unset("maintenance", "window")
        .set("maintenance", "schedule", &line.to_string())
        .set("maintenance", "duration", &format!("\"{seconds}s\""))
}

/// A tracker whose announces stay held for about two seconds of every run: processing is
/// paused until a copy slowed down by `bandwidth` ends.
pub fn paused_for_two_seconds() -> Result<Setup> {
    let setup = Setup::new()?
        .set("maintenance", "announces", "\"pause\"")
        .set("maintenance.backup", "bandwidth", "\"10MiB\"");
    database::make(&setup.database(), 20 * MIB, "wal")?;
    Ok(setup)
}

pub fn is_ready(status: &Value) -> bool {
    status["ready"] == true
}

/// The status while the file may be copied.
pub async fn ready(endpoint: Endpoint) -> Result<Value> {
    endpoint.until("ready", A_RUN, is_ready).await
}

/// How a run ended: `done`, `failed`, `would_not_fit`, ...
pub fn kind(run: &Value) -> &str {
    run["outcome"]["kind"].as_str().unwrap_or("none")
}

/// Starts a run, which must be done; its entry.
pub async fn done(endpoint: Endpoint) -> Result<Value> {
    let run = endpoint.run(A_RUN).await?;
    ensure!(kind(&run) == "done", "a run was not done: {run:#}");
    Ok(run)
}

/// After a run that failed: the gate is open, status and log say why, nothing temporary is
/// left and this many backups are there, each good. The message.
pub async fn failed_cleanly(tracker: &Tracker, run: &Value, good: usize) -> Result<String> {
    let message = run["outcome"]["message"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(!message.is_empty(), "the outcome says why: {run:#}");
    let first = message.lines().next().unwrap_or_default();
    assert!(tracker.log.says(first), "the log says why: {first}");
    let status = tracker.endpoint()?.status().await?;
    assert_eq!(status["gate"]["open"], true, "{status:#}");
    assert_eq!(status["ready"], false, "{status:#}");
    nothing_temporary(tracker.setup())?;
    assert_eq!(all_good(tracker.setup())?, good);
    Ok(message)
}

/// No temporary file is left, and no touch-file.
pub fn nothing_temporary(setup: &Setup) -> Result<()> {
    assert_eq!(backups::leftovers(&setup.backups())?, Vec::<PathBuf>::new());
    assert!(!setup.touch_file().exists(), "a touch-file is left");
    Ok(())
}

/// How many backups are published, each of which must be good.
pub fn all_good(setup: &Setup) -> Result<usize> {
    let published = backups::published(&setup.backups())?;
    for directory in &published {
        Backup::open(directory)?;
    }
    Ok(published.len())
}

/// Every announce of the load was answered, none with an error.
pub fn nothing_lost(account: &Account) {
    assert_eq!(account.failures(), [].into(), "of {} sent", account.sent());
    assert_eq!(account.sent(), account.answered());
    assert!(account.sent() > 0);
}

/// The backup shows the instant it says: every completion acknowledged before, and none
/// sent after.
pub fn shows_its_instant(backup: &Backup, account: &Account) -> Result<()> {
    account
        .completions()
        .shown(&database::completed(&backup.database)?, backup.pinned()?)?;
    Ok(())
}

/// No announce sent between these instants was answered before the second. One sent before
/// the first may have been answered before, and its answer read late.
pub fn none_answered_between(account: &Account, from: DateTime<Utc>, to: DateTime<Utc>) {
    let sent = || {
        let records = account.records.iter();
        records.filter(|record| record.sent > from && record.sent < to)
    };
    assert!(sent().count() > 0, "announces were sent meanwhile");
    let answered = sent().filter(|record| record.ended < to).count();
    assert_eq!(
        answered, 0,
        "announces answered while none was to be processed"
    );
}
