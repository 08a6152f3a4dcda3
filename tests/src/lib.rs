//! What the end-to-end tests are written with: the real binaries as child processes, a
//! UDP client, two load generators that account for every request, databases to order, and
//! the experiments.
//!
//! Nothing here waits by sleeping: it waits for a log line, a reply, a status or an exit,
//! each with a deadline that fails the test saying what did not come. Only an experiment
//! lets a load last for as long as it was told to.

#![expect(
    clippy::disallowed_methods,
    reason = "a harness reads clocks and writes files; it never has a live database open by descriptor"
)]

pub mod announce;
pub mod backups;
pub mod binaries;
pub mod completions;
pub mod database;
pub mod endpoint;
pub mod experiment;
pub mod generator;
pub mod http1;
pub mod load;
pub mod mariadb;
pub mod pace;
pub mod plot;
pub mod power;
pub mod proxy;
pub mod receiver;
pub mod s3;
pub mod session;
pub mod sidecar;
pub mod speed;
pub mod tracker;
pub mod udp;
pub mod usage;

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long anything that should happen at once may take on a busy machine before it
/// counts as not happening.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asked again this often while a state is awaited: short against a pinned copy, long
/// against what one answer costs the tracker.
const ASK_EVERY: Duration = Duration::from_millis(5);

/// Asks until there is an answer.
///
/// # Errors
/// When asking fails, or none came `within` this time.
pub async fn until<T>(
    what: &str,
    within: Duration,
    ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    until_asking(ASK_EVERY, what, within, ask).await
}

/// As [`until`], asking no more often than `every` so long: where what is measured must not
/// bear it.
///
/// # Errors
/// When asking fails, or none came `within` this time.
pub async fn until_asking<T>(
    every: Duration,
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let asking = async {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            if let Some(answer) = ask().await? {
                return Ok(answer);
            }
        }
    };
    timeout(within, asking)
        .await
        .with_context(|| format!("{within:?} were not enough for {what}"))?
}

/// Whether the long soaks run in full (`./tests/run --full`) or shortened.
#[must_use]
pub fn soak_in_full() -> bool {
    std::env::var_os("SOAK").is_some_and(|soak| soak == "full")
}
