//! Rollback journal: the gate stays closed until the copy ends; everything but announces
//! is answered all along; a copy that would take too long does not begin.

use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{DateTime, Utc};
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::Setup;
use end_to_end::udp::UdpClient;
use end_to_end::{PATIENCE, backups, database, http1};

use crate::support::{
    MIB, alone, beside_others, done, failed_cleanly, kind, none_answered_between, nothing_lost,
    shows_its_instant,
};
use crate::volume::Volume;

#[tokio::test(flavor = "multi_thread")]
async fn announces_are_held_and_all_else_is_answered_while_300_mb_are_copied() -> Result<()> {
    let _alone = alone().await;
    // Slowed down to about two seconds, so that who waits for the copy is told from who
    // waits for the machine.
    let setup = Setup::new()?
        .set("maintenance", "journal_mode", "\"delete\"")
        .set("maintenance.backup", "bandwidth", "\"150MiB\"");
    database::make(&setup.database(), 300 * MIB, "delete")?;
    let tracker = setup.start().await?;
    let (endpoint, addresses) = (tracker.endpoint()?, tracker.addresses);

    let plan = Plan {
        udp_per_second: 200,
        http_per_second: 20,
        sockets: 16,
        torrents: 200,
    };
    let load = Load::start(plan, addresses.udp, addresses.http).await?;
    load.answered_more(600, PATIENCE).await?;
    let mut client = UdpClient::connect(addresses.udp).await?;
    client
        .announce(Announce {
            torrent: Torrent(1),
            peer: 9_000,
            event: Event::Started,
        })
        .await?;

    // One of each after the other for as long as the run lasts.
    let mut asked: Vec<(DateTime<Utc>, DateTime<Utc>, Duration)> = Vec::new();
    let running = done(endpoint);
    tokio::pin!(running);
    loop {
        let (from, clock) = (Utc::now(), Instant::now());
        client.reconnect().await?;
        client.scrape(Torrent(1)).await?;
        assert_eq!(
            http1::get(addresses.http, "/health_check").await?.status,
            200
        );
        assert_eq!(
            http1::get(addresses.health, "/health_check").await?.status,
            200
        );
        asked.push((from, Utc::now(), clock.elapsed()));
        if let Ok(run) = tokio::time::timeout(Duration::from_millis(1), &mut running).await {
            run?;
            break;
        }
    }
    load.answered_more(200, PATIENCE).await?;
    let account = load.stop(PATIENCE).await?;

    nothing_lost(&account);
    let backup = backups::only(&setup.backups())?;
    shows_its_instant(&backup, &account)?;
    let (pinned, copied) = (backup.pinned()?, backup.copied_until()?);
    none_answered_between(&account, pinned, copied);
    let copying = (copied - pinned).to_std()?;
    let meanwhile: Vec<_> = asked
        .iter()
        .filter(|(from, to, _)| *from > pinned && *to < copied)
        .collect();
    assert!(
        meanwhile.len() >= 3,
        "{} rounds were answered while copying for {copying:?}",
        meanwhile.len()
    );
    let slowest = asked
        .iter()
        .map(|(_, _, took)| *took)
        .max()
        .unwrap_or_default();
    assert!(
        slowest < copying / 2,
        "a round took {slowest:?}, the copy {copying:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_would_not_fit_does_not_begin() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?
        .set("maintenance", "journal_mode", "\"delete\"")
        .set("maintenance.gate", "hold_for", "\"2s\"")
        .set("maintenance.backup", "bandwidth", "\"1MiB\"");
    database::make(&setup.database(), 20 * MIB, "delete")?;
    let tracker = setup.start().await?;

    let run = tracker.endpoint()?.run(PATIENCE).await?;
    assert_eq!(kind(&run), "would_not_fit", "{run:#}");
    let message = failed_cleanly(&tracker, &run, 0).await?;
    assert!(
        message.to_lowercase().contains("wal"),
        "the remedy is named: {message}"
    );
    assert_eq!(
        run["pause_ms"].as_f64(),
        Some(0.0),
        "the gate did not close: {run:#}"
    );
    Ok(())
}

/// On a file system that clones files, size does not matter: what would take 200 s to copy
/// takes a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_fits_where_a_copy_would_not() -> Result<()> {
    let _beside = beside_others().await;
    let home = tempfile::tempdir()?;
    let _volume = Volume::xfs(home.path())?;
    let setup = Setup::new_in(home.path())?
        .set("maintenance", "journal_mode", "\"delete\"")
        .set("maintenance.gate", "hold_for", "\"5s\"")
        .set("maintenance.backup", "bandwidth", "\"1MiB\"");
    database::make(&setup.database(), 200 * MIB, "delete")?;
    // As SQLite would have; a clone waits for what is not on the device yet.
    std::fs::File::open(setup.database())?.sync_all()?;
    let tracker = setup.start().await?;

    let run = done(tracker.endpoint()?).await?;
    let pause = run["pause_ms"].as_f64().unwrap_or(f64::MAX);
    assert!(pause < 4_500.0, "{run:#}");
    let backup = backups::only(&setup.backups())?;
    assert_eq!(backup.manifest["method"], "clone");
    assert_eq!(backup.manifest["journal_mode"], "delete");
    println!("200 MB on a rollback journal: announces were held for {pause:.1} ms");
    Ok(())
}
