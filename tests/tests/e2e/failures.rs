//! A run that fails leaves the gate open, says why, leaves nothing temporary and every
//! older backup as it was; the next one is done.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use end_to_end::backups::{self, Backup};
use end_to_end::database;
use end_to_end::tracker::Setup;

use crate::support::{A_RUN, MIB, all_good, answered, beside_others, done, failed_cleanly, kind};
use crate::volume::Volume;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?;
    database::make(&setup.database(), 20 * MIB, "wal")?;
    let _disk = Volume::in_memory(&setup.backups(), 48 * MIB)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    done(endpoint).await?;

    let leave = |name: &str, bytes: u64| -> Result<()> {
        let free = rustix::fs::statvfs(setup.backups())?;
        let room = (free.f_bavail * free.f_frsize).saturating_sub(bytes);
        fs::write(setup.backups().join(name), vec![1; usize::try_from(room)?])?;
        Ok(())
    };
    // Room for half of a raw copy: the file is streamed into the compressor instead.
    leave("filler", 10 * MIB)?;
    let run = done(endpoint).await?;
    let warning = run["warnings"][0].as_str().unwrap_or_default();
    assert!(warning.contains("no room for a raw copy"), "{run:#}");
    let mut published = backups::published(&setup.backups())?;
    let newest = published.pop().context("it was published")?;
    assert_eq!(Backup::open(&newest)?.manifest["method"], "stream");
    assert_eq!(all_good(&setup)?, 2);

    // Room for nothing.
    leave("more", 64 * 1024)?;
    let run = endpoint.run(A_RUN).await?;
    let message = failed_cleanly(&tracker, &run, all_good(&setup)?).await?;
    assert!(
        message.contains("space") || message.contains("room"),
        "{message}"
    );

    fs::remove_file(setup.backups().join("filler"))?;
    done(endpoint).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_gone() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    done(endpoint).await?;

    // A file in its place cannot be written into by anybody, root included.
    let aside = setup.home().join("aside");
    fs::rename(setup.backups(), &aside)?;
    fs::write(setup.backups(), "in the way")?;
    let run = endpoint.run(A_RUN).await?;
    assert_eq!(kind(&run), "failed", "{run:#}");
    fs::remove_file(setup.backups())?;
    fs::rename(&aside, setup.backups())?;
    let message = failed_cleanly(&tracker, &run, 1).await?;
    assert!(message.contains("backups"), "it says where: {message}");

    done(endpoint).await?;
    assert_eq!(all_good(&setup)?, 2);
    Ok(())
}

/// Overwrites the cell pointers of a leaf of the torrents table (SQLite file format, 1.6).
fn corrupt(path: &Path) -> Result<()> {
    const PAGE: usize = 4096;
    const TABLE_LEAF: u8 = 0x0d;
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let middle = file.metadata()?.len() / PAGE as u64 / 2;
    let mut page = [0; PAGE];
    for number in middle.. {
        file.seek(SeekFrom::Start(number * PAGE as u64))?;
        file.read_exact(&mut page)
            .context("a table leaf in the second half")?;
        if page[0] == TABLE_LEAF {
            file.seek(SeekFrom::Start(number * PAGE as u64 + 8))?;
            file.write_all(&[0xff; 40])?;
            return Ok(());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_page() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?;
    database::make(&setup.database(), 10 * MIB, "wal")?;
    let mut tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    tracker.signal(rustix::process::Signal::TERM)?;
    tracker.exited(A_RUN).await?;
    corrupt(&setup.database())?;

    let tracker = setup.start().await?;
    let run = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&run), "failed", "{run:#}");
    failed_cleanly(&tracker, &run, 1).await?;
    // It serves on, as it would without a backup.
    answered(&tracker).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_beside_another_is_refused_with_the_reason() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?.set("maintenance.backup", "bandwidth", "\"10MiB\"");
    database::make(&setup.database(), 10 * MIB, "wal")?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let first = endpoint.start_run().await?;
    let answer = endpoint.post_run().await?;
    ensure!(answer.status == 409, "{answer:?}");
    let body = answer.json()?.to_string();
    assert!(body.contains(&first), "it names the run in its way: {body}");
    assert_eq!(kind(&endpoint.ended(&first, A_RUN).await?), "done");
    assert_eq!(all_good(&setup)?, 1);
    Ok(())
}
