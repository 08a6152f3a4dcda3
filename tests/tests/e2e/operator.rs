//! What an operator does: check, run, look, verify, and restore by hand with the commands
//! every machine has.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{backups, binaries, database};

use crate::support::{beside_others, printed};

/// The tool, at the endpoint of a tracker: its configuration has port 0.
fn tool(tracker: &Tracker, arguments: &[&str]) -> Result<Output> {
    Command::new(binaries::path(binaries::TOOL)?)
        .arg("--config")
        .arg(tracker.setup().file())
        .args(["--endpoint", &tracker.endpoint()?.0.to_string(), "--json"])
        .args(arguments)
        .current_dir(tracker.setup().home())
        .output()
        .context("starting the tool")
}

fn by_hand(directory: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()?;
    ensure!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_backup_with_the_tool_and_a_restore_without_it() -> Result<()> {
    let _beside = beside_others().await;
    let mut tracker = Setup::new()?.start().await?;
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    for event in [Event::Started, Event::Completed] {
        client
            .announce(Announce {
                torrent: Torrent(1),
                peer: 1,
                event,
            })
            .await?;
    }

    printed(&tool(&tracker, &["check"])?)?;
    printed(&tool(&tracker, &["run"])?)?;
    let status = printed(&tool(&tracker, &["status"])?)?;
    assert!(status.to_string().contains("\"done\""), "{status:#}");
    let [directory] = backups::published(&tracker.setup().backups())?
        .try_into()
        .map_err(|all| anyhow::anyhow!("one backup was expected: {all:?}"))?;
    let id = directory
        .file_name()
        .context("a backup's id")?
        .to_string_lossy()
        .into_owned();
    let list = printed(&tool(&tracker, &["list"])?)?;
    assert!(list.to_string().contains(&id), "{list:#}");
    printed(&tool(&tracker, &["verify", "--full", &id])?)?;

    // The tracker is gone, and so is its tool.
    tracker.kill().await?;
    let status = tool(&tracker, &["status"])?.status;
    assert_eq!(status.code(), Some(3), "not applicable: no tracker runs");
    let setup = Setup::new()?.set("maintenance", "load_completed", "true");
    by_hand(
        &directory,
        "sha256sum",
        &["--check", "--quiet", "SHA256SUMS"],
    )?;
    let restored = setup.database();
    let restored = restored.to_str().context("a path in UTF-8")?;
    by_hand(
        &directory,
        "zstd",
        &["-q", "-d", "database.sqlite3.zst", "-o", restored],
    )?;
    database::check(&setup.database())?;
    let tracker = setup.start().await?;
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    assert_eq!(
        client.scrape(Torrent(1)).await?,
        [0, 1, 0],
        "seeders, completed, leechers"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_finds_a_damaged_backup() -> Result<()> {
    let _beside = beside_others().await;
    let tracker = Setup::new()?.start().await?;
    printed(&tool(&tracker, &["run"])?)?;
    let published = backups::published(&tracker.setup().backups())?;
    let artifact = published
        .first()
        .context("a backup")?
        .join("database.sqlite3.zst");
    let mut bytes = fs::read(&artifact)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&artifact, bytes)?;
    assert_eq!(
        tool(&tracker, &["verify"])?.status.code(),
        Some(6),
        "verification failed"
    );
    assert_eq!(
        tool(&tracker, &["verify", "20000101T000000Z"])?
            .status
            .code(),
        Some(2),
        "no such backup"
    );
    Ok(())
}
