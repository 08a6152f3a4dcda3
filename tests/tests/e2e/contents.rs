//! What a backup holds besides, or instead of, the whole database.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{backups, binaries, database};

use crate::support::{MIB, beside_others};

/// The tool, at the endpoint of a tracker: its configuration has port 0.
fn tool(tracker: &Tracker, arguments: &[&str]) -> Result<Output> {
    Command::new(binaries::path(binaries::TOOL)?)
        .arg("--config")
        .arg(tracker.setup().file())
        .args(["--endpoint", &tracker.endpoint()?.0.to_string()])
        .args(arguments)
        .current_dir(tracker.setup().home())
        .output()
        .context("starting the tool")
}

fn done(tracker: &Tracker, arguments: &[&str]) -> Result<String> {
    let output = tool(tracker, arguments)?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{arguments:?}: {told}");
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_backup_is_one_a_tracker_serves_on() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?.set("maintenance.backup", "completed_only", "true");
    let rows = database::make(&setup.database(), 8 * MIB, "wal")?;
    let tracker = setup.start().await?;
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    for event in [Event::Started, Event::Completed] {
        let torrent = Torrent(1);
        client
            .announce(Announce {
                torrent,
                peer: 1,
                event,
            })
            .await?;
    }
    done(&tracker, &["run"])?;
    assert!(done(&tracker, &["list"])?.contains("PARTIAL"));
    done(&tracker, &["verify", "--full"])?;

    let backup = backups::only(&tracker.setup().backups())?;
    assert_eq!(backup.manifest["partial"]["completed_only"], true);
    // Of those made, every seventh was never completed; one more is the announced one.
    let wanted = rows - rows.div_ceil(7) + 1;
    assert_eq!(database::count(&backup.database, "torrents")?, wanted);
    assert_eq!(backup.manifest["rows"]["torrents"], wanted);

    let elsewhere = Setup::new()?.set("maintenance", "load_completed", "true");
    let target = elsewhere.database();
    let to = ["restore", "--to", target.to_str().context("UTF-8")?];
    let refused = tool(&tracker, &to)?;
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert!(!target.exists());
    done(&tracker, &[&to[..], &["--partial"]].concat())?;
    let tracker = elsewhere.start().await?;
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    assert_eq!(
        client.scrape(Torrent(1)).await?,
        [0, 1, 0],
        "seeders, completed, leechers"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_in_use_is_in_every_backup() -> Result<()> {
    let _beside = beside_others().await;
    let tracker = Setup::new()?.start().await?;
    done(&tracker, &["run"])?;
    let published = backups::published(&tracker.setup().backups())?;
    let archive = published.first().context("a backup")?.join("files.tar.zst");
    assert_eq!(fs::metadata(&archive)?.mode() & 0o777, 0o600);
    done(&tracker, &["restore", "--files", "--files-to", "restored"])?;
    let file = tracker.setup().file().canonicalize()?;
    let restored = tracker.setup().home().join("restored");
    let restored = restored.join(file.strip_prefix("/")?);
    assert_eq!(fs::read(restored)?, fs::read(&file)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_or_cannot_be_stored_is_refused_at_the_start() -> Result<()> {
    let _beside = beside_others().await;
    for (key, value, told) in [
        ("files", "[\"{database}\"]", "is the database"),
        ("tables", "[\"torrent\"]", "backup.tables names torrent"),
    ] {
        let setup = Setup::new()?;
        database::make(&setup.database(), MIB, "wal")?;
        let value = value.replace("{database}", &setup.database().display().to_string());
        let setup = setup.set("maintenance.backup", key, &value);
        let (status, output) = setup.start_refused().await?;
        assert!(!status.success(), "{key}: {status}: {output}");
        assert!(output.contains(told), "{key}: {output}");
        assert!(!output.contains("panicked at"), "{key}: {output}");
    }
    Ok(())
}
