//! A backup taken under load and put back by the tool is one a tracker serves on, and what it
//! serves is what the manifest counts.

use anyhow::{Context, Result, ensure};
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::backups::Backup;
use end_to_end::load::{Account, Plan};
use end_to_end::tracker::{Setup, TOKEN, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{backups, database, http1, session};
use serde_json::Value;

use crate::support::{
    A_RUN, MIB, alone, beside_others, complete, done, nothing_lost, printed, tool,
};

/// UDP announces a second.
const RATE: u32 = 800;

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_taken_under_load_is_restored_and_served() -> Result<()> {
    let _alone = alone().await;
    // The copy takes two seconds, for the load to go on beside it.
    let setup = Setup::new()?.set("maintenance.backup", "bandwidth", "\"20MiB\"");
    database::make(&setup.database(), 40 * MIB, "wal")?;
    let tracker = setup.start().await?;
    let plan = Plan {
        udp_per_second: RATE,
        http_per_second: 20,
        ..Plan::default()
    };
    let session = session::hold(&tracker, plan, 1, A_RUN).await?;
    nothing_lost(&session.account);
    let backup = backups::only(&setup.backups())?;
    assert_eq!(backup.manifest["partial"], Value::Null);
    flowed(&backup, &session.account)?;

    let elsewhere = Setup::new()?.set("maintenance", "load_completed", "true");
    restore(&tracker, &elsewhere)?;
    counts_equal(&elsewhere, &backup)?;
    let counters = database::completed(&elsewhere.database())?;
    let completions = session.account.completions();
    completions.shown(&counters, backup.pinned()?)?;
    served(&elsewhere.start().await?, &backup.manifest).await
}

/// At least 500 UDP announces were answered in each second of the copy.
fn flowed(backup: &Backup, account: &Account) -> Result<()> {
    let (from, to) = (backup.pinned()?, backup.copied_until()?);
    let answered = account
        .records
        .iter()
        .filter(|record| record.sent > from && record.ended < to)
        .count();
    let seconds = (to - from).to_std()?.as_secs_f64();
    println!("{answered} announces were answered in the {seconds:.1} s of the copy");
    ensure!(seconds > 1.0, "the copy took {seconds} s");
    let rate = f64::from(u32::try_from(answered)?) / seconds;
    ensure!(rate >= 500.0, "{rate:.0} announces a second");
    Ok(())
}

/// Has the tool put the newest backup of a tracker, which serves on, in place of the database of
/// another, which is not there yet.
fn restore(of: &Tracker, to: &Setup) -> Result<()> {
    let to = to.database();
    let to = to.to_str().context("a path in UTF-8")?;
    printed(&tool(of.setup(), &["restore", "--full", "--to", to])?)?;
    Ok(())
}

/// The night it is for: the tracker is dead, and its log lies beside the database.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_of_a_killed_tracker_is_replaced_and_kept_with_its_log() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?.set("maintenance", "load_completed", "true");
    database::make(&setup.database(), 4 * MIB, "wal")?;
    let mut tracker = setup.start().await?;
    complete(&tracker, Torrent(1)).await?;
    done(tracker.endpoint()?).await?;
    let backup = backups::only(&tracker.setup().backups())?;
    let later = Torrent(9_999_999);
    complete(&tracker, later).await?;

    // Not under a tracker that runs, whatever is said.
    let refused = tool(tracker.setup(), &["restore", "--force"])?;
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    tracker.kill().await?;
    let setup = tracker.setup().clone();
    let wal = setup.database().with_extension("db-wal");
    ensure!(wal.metadata()?.len() > 0, "its log was not left behind");

    // It is newer than the backup, which is said before it is replaced.
    let newer = tool(&setup, &["restore"])?;
    assert_eq!(newer.status.code(), Some(3), "{newer:?}");
    let restored = printed(&tool(&setup, &["restore", "--full", "--force"])?)?;
    counts_equal(&setup, &backup)?;
    let kept = restored["restored"]["kept_as"].as_str();
    let kept = kept.with_context(|| format!("{restored:#}"))?;
    // What was only in the log is in what is kept.
    let counters = database::completed(kept.as_ref())?;
    assert_eq!(counters.get(&later), Some(&1), "{counters:?}");
    assert_eq!(database::completed(&setup.database())?.get(&later), None);

    served(&setup.start().await?, &backup.manifest).await
}

/// The restored database is sound and has, table by table, what the manifest says.
fn counts_equal(restored: &Setup, backup: &Backup) -> Result<()> {
    database::check(&restored.database())?;
    let tables = backup.manifest["rows"].as_object().context("rows")?;
    ensure!(tables.contains_key("torrents"), "{tables:?}");
    for (table, rows) in tables {
        let found = database::count(&restored.database(), table)?;
        assert_eq!(*rows, found, "{table}");
    }
    Ok(())
}

/// The tracker has all torrents and counters in memory, and answers with them.
async fn served(tracker: &Tracker, manifest: &Value) -> Result<()> {
    let path = tracker.setup().database();
    let stats = format!("/api/v1/stats?token={TOKEN}");
    let stats = http1::get(tracker.addresses.api, &stats).await?.json()?;
    assert_eq!(stats["torrents"], manifest["rows"]["torrents"], "{stats:#}");
    let sum = "SELECT sum(completed) FROM torrents";
    let completed: i64 = database::open(&path)?.query_row(sum, [], |row| row.get(0))?;
    assert_eq!(stats["completed"], completed, "{stats:#}");

    let counters = database::completed(&path)?;
    ensure!(
        counters.values().any(|counter| *counter > 0),
        "{counters:?}"
    );
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    // One by one: of several, upstream answers in the order of a hash map.
    for (torrent, counter) in counters {
        let expected = [0, i32::try_from(counter)?, 0];
        assert_eq!(client.scrape(torrent).await?, expected, "{torrent:?}");
    }
    let answer = client
        .announce(Announce {
            torrent: Torrent(1),
            peer: 1,
            event: Event::Started,
        })
        .await?;
    assert!(matches!(answer, Response::AnnounceIpv4(_)), "{answer:?}");
    Ok(())
}
