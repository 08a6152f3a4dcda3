//! A window that ends before the copy does: one that cannot fit is not begun, one that comes to a
//! halt is given up, and the next is done.

use anyhow::Result;
use end_to_end::tracker::Setup;
use end_to_end::{PATIENCE, database};
use rustix::process::Signal;

use crate::support::{
    A_RUN, MIB, all_good, answered, beside_others, brief, done, failed_cleanly, kind,
    nothing_temporary, ready,
};
use crate::volume::Volume;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_would_outlast_its_window_is_not_begun() -> Result<()> {
    let _beside = beside_others().await;
    let roomy = Setup::new()?;
    let slow = brief(&roomy, 2).set("maintenance.backup", "bandwidth", "\"64KiB\"");
    database::make(&roomy.database(), MIB, "wal")?;
    let mut tracker = roomy.start().await?;
    done(tracker.endpoint()?).await?;
    tracker.signal(Signal::TERM)?;
    tracker.exited(PATIENCE).await?;

    let mut tracker = slow.start().await?;
    let run = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&run), "would_not_fit", "{run:#}");
    assert_eq!(run["pause_ms"], 0.0, "{run:#}");
    let message = failed_cleanly(&tracker, &run, 1).await?;
    assert!(message.contains("raise backup.bandwidth"), "{message}");
    tracker.signal(Signal::TERM)?;
    tracker.exited(PATIENCE).await?;

    let tracker = roomy.start().await?;
    done(tracker.endpoint()?).await?;
    assert_eq!(all_good(&roomy)?, 2);
    Ok(())
}

/// As the disk of a network may: nothing that waits for it comes back, and no run that is given
/// up waits for that.
async fn a_disk_hangs_in_the_middle_of_a_copy(journal: &str) -> Result<()> {
    let _beside = beside_others().await;
    // The copy takes two seconds.
    let setup = brief(&Setup::new()?, 5).set("maintenance.backup", "bandwidth", "\"5MiB\"");
    let volume = Volume::xfs(&setup.backups())?;
    database::make(&setup.database(), 10 * MIB, journal)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let run = endpoint.start_run().await?;
    ready(endpoint).await?;
    volume.freeze()?;
    let run = endpoint.ended(&run, A_RUN).await?;
    assert_eq!(kind(&run), "deadline", "{run:#}");
    assert_eq!(run["outcome"]["phase"], "copying", "{run:#}");
    answered(&tracker).await?;
    let status = endpoint.status().await?;
    assert_eq!(status["gate"]["open"], true, "{status:#}");

    volume.thaw()?;
    // Beside a thread that may still come back none begins.
    end_to_end::until("the thread to come back", PATIENCE, async || {
        let answer = endpoint.post_run().await?.json()?;
        let stuck = answer["error"] == "stuck" || answer["error"] == "too_soon";
        Ok((!stuck).then_some(()))
    })
    .await?;
    let again = endpoint.until("the run to end", A_RUN, |status| {
        status["run"].is_null()
            && status["runs"]
                .as_array()
                .is_some_and(|runs| runs.len() == 2)
    });
    let status = again.await?;
    assert_eq!(kind(&status["runs"][0]), "done", "{status:#}");
    nothing_temporary(&setup)?;
    assert_eq!(all_good(&setup)?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_holds_no_announce_up() -> Result<()> {
    a_disk_hangs_in_the_middle_of_a_copy("wal").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_does_not_keep_the_gate_closed() -> Result<()> {
    a_disk_hangs_in_the_middle_of_a_copy("delete").await
}
