//! A window that ends before the copy does: the run is given up, and the next one is done.

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use end_to_end::tracker::Setup;
use end_to_end::{PATIENCE, database};
use rustix::process::Signal;

use crate::support::{A_RUN, MIB, all_good, beside_others, done, failed_cleanly, kind};

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_outlasts_its_window_is_given_up() -> Result<()> {
    let _beside = beside_others().await;
    let roomy = Setup::new()?;
    // What an operator starts lasts as long as a window; none is due for half a day.
    let line = (Utc::now() + TimeDelta::hours(12)).format("\"%M %H * * *\"");
    let brief = roomy
        .clone()
        .unset("maintenance", "window")
        .set("maintenance", "schedule", &line.to_string())
        .set("maintenance", "duration", "\"2s\"")
        .set("maintenance.backup", "bandwidth", "\"64KiB\"");
    database::make(&roomy.database(), MIB, "wal")?;
    let mut tracker = roomy.start().await?;
    done(tracker.endpoint()?).await?;
    tracker.signal(Signal::TERM)?;
    tracker.exited(PATIENCE).await?;

    let mut tracker = brief.start().await?;
    let run = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&run), "deadline", "{run:#}");
    assert_eq!(run["outcome"]["phase"], "copying", "{run:#}");
    let message = failed_cleanly(&tracker, &run, 1).await?;
    assert!(message.contains("lengthen the window"), "{message}");
    tracker.signal(Signal::TERM)?;
    tracker.exited(PATIENCE).await?;

    let tracker = roomy.start().await?;
    done(tracker.endpoint()?).await?;
    assert_eq!(all_good(&roomy)?, 2);
    Ok(())
}
