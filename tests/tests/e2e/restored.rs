//! A backup taken under load and put back by the tool is one a tracker serves on, and what it
//! serves is what the manifest counts.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::backups::Backup;
use end_to_end::load::{Account, Plan};
use end_to_end::tracker::{Setup, TOKEN, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{backups, binaries, database, http1, session};
use serde_json::Value;

use crate::support::{A_RUN, MIB, alone, nothing_lost};

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
    let output = Command::new(binaries::path(binaries::TOOL)?)
        .arg("--config")
        .arg(of.setup().file())
        .args(["restore", "--full", "--to"])
        .arg(to.database())
        .current_dir(of.setup().home())
        .output()
        .context("starting the tool")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {told}", output.status);
    Ok(())
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
