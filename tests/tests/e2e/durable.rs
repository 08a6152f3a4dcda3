//! What is acknowledged lasts, whatever ends the process.

use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::Setup;
use end_to_end::{PATIENCE, database, soak_in_full};

use crate::support::alone;

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_under_load_loses_no_acknowledged_completion() -> Result<()> {
    let _alone = alone().await;
    let plan = Plan {
        udp_per_second: 1_000,
        http_per_second: 100,
        sockets: 16,
        torrents: 300,
    };
    let mut acknowledged = 0;
    for round in 0..if soak_in_full() { 100 } else { 10 } {
        let journal = if round % 2 == 0 { "wal" } else { "delete" };
        let setup = Setup::new()?.set("maintenance", "journal_mode", &format!("\"{journal}\""));
        let mut tracker = setup.start().await?;
        let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(50, PATIENCE).await?;
        // The load is the clock.
        let sent = load.counts().sent + fastrand::usize(..600);
        load.until(PATIENCE, |counts| counts.sent >= sent).await?;
        tracker.kill().await?;
        let account = load.stop(Duration::from_millis(100)).await?;

        let stored = database::completed(&setup.database())?;
        for (torrent, completed) in account.completions_answered_by(Utc::now()) {
            let stored = stored.get(&torrent).copied().unwrap_or(0);
            assert!(
                stored >= completed,
                "round {round}, {journal}, {torrent:?}: {stored} of {completed}"
            );
            acknowledged += completed;
        }
    }
    assert!(acknowledged > 0, "nothing that could have been lost");
    Ok(())
}
