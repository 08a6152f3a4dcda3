//! A second process opens, writes, checkpoints and closes while a run is on, as an
//! operator's cron job may. Had the tracker opened and closed the file by a plain
//! descriptor, its locks would be gone, and this process would write under the pin.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use end_to_end::tracker::Setup;
use end_to_end::{backups, database};

use crate::support::{A_RUN, MIB, beside_others, done, failed_cleanly, is_ready, kind, ready};

/// All that makes another process write the database file itself, and not only its WAL.
/// The checkpoint would wait for the copy if it were let.
const WRITES: &str = "
    DELETE FROM torrents WHERE id % 3 = 0;
    INSERT INTO whitelist (info_hash) VALUES (hex(randomblob(20)));
    VACUUM;
    PRAGMA busy_timeout = 50;
    PRAGMA wal_checkpoint(TRUNCATE);";

/// The file is copied for about four seconds.
fn setup(journal: &str) -> Result<(Setup, u64)> {
    let setup = Setup::new()?
        .set("maintenance", "journal_mode", &format!("\"{journal}\""))
        .set("maintenance.backup", "bandwidth", "\"5MiB\"");
    let rows = database::make(&setup.database(), 20 * MIB, journal)?;
    Ok((setup, rows))
}

async fn no_byte_changes(
    journal: &str,
    write: impl Fn(PathBuf) -> Result<()> + Send + 'static,
) -> Result<()> {
    let _beside = beside_others().await;
    let (setup, rows) = setup(journal)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    // A first run, so that whatever the tracker does with descriptors it has done.
    done(endpoint).await?;

    let run = endpoint.start_run().await?;
    ready(endpoint).await?;
    let before = backups::sha256(&setup.database())?;
    let path = setup.database();
    tokio::task::spawn_blocking(move || write(path)).await??;
    let after = backups::sha256(&setup.database())?;
    let still = endpoint.status().await?;
    ensure!(
        is_ready(&still) && still["run"]["id"] == run.as_str(),
        "ready ended too early to tell: {still:#}"
    );
    assert_eq!(
        before, after,
        "a byte of the file changed while ready was signalled"
    );

    let ended = endpoint.ended(&run, A_RUN).await?;
    assert_eq!(kind(&ended), "done", "{ended:#}");
    for directory in backups::published(&setup.backups())? {
        let backup = backups::Backup::open(&directory)?;
        assert_eq!(database::count(&backup.database, "torrents")?, rows);
        assert_eq!(database::count(&backup.database, "whitelist")?, 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn in_wal_another_process_writes_and_changes_no_byte_of_the_file() -> Result<()> {
    no_byte_changes("wal", |path| {
        database::command_line(&path, WRITES)?;
        assert_eq!(database::count(&path, "whitelist")?, 1, "it did write");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_rollback_journal_another_process_cannot_write() -> Result<()> {
    no_byte_changes("delete", |path| {
        for writes in [WRITES, "VACUUM;"] {
            // No timeout: it would wait for the copy.
            let writes = format!("PRAGMA busy_timeout = 0; {writes}");
            let Err(error) = database::command_line(&path, &writes) else {
                panic!("another process wrote under the pin")
            };
            assert!(format!("{error:#}").contains("locked"), "{error:#}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_keeps_its_lock_fails_the_run_and_not_the_tracker() -> Result<()> {
    let _beside = beside_others().await;
    let (setup, _) = setup("wal")?;
    let tracker = setup
        .set("maintenance.gate", "hold_for", "\"2s\"")
        .start()
        .await?;
    let endpoint = tracker.endpoint()?;
    let writer = database::open(&tracker.setup().database())?;
    writer.execute_batch("BEGIN IMMEDIATE")?;

    let run = endpoint.run(A_RUN).await?;
    assert_ne!(kind(&run), "done", "{run:#}");
    failed_cleanly(&tracker, &run, 0).await?;
    let longest = run["longest_pause_ms"].as_f64().unwrap_or(f64::INFINITY);
    assert!(
        longest < 3_000.0,
        "hold_for is 2 s, the gate was closed for {longest} ms"
    );

    writer.execute_batch("ROLLBACK")?;
    drop(writer);
    done(endpoint).await?;
    Ok(())
}
