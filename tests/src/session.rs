//! One session: a load, a number of runs in the middle of it, and what both report.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::PATIENCE;
use crate::load::{Account, Load, Plan};
use crate::tracker::Tracker;

/// What a session reports.
#[derive(Debug)]
pub struct Session {
    /// The entry of each run, in their order.
    pub runs: Vec<Value>,
    /// Every announce.
    pub account: Account,
}

/// Announces by `plan` for some seconds, has `runs` runs done, each followed by a second
/// more of announces, and accounts for all. A run may take `each` so long.
///
/// # Errors
/// When a run is not done, or the tracker does not keep up.
pub async fn hold(tracker: &Tracker, plan: Plan, runs: usize, each: Duration) -> Result<Session> {
    let endpoint = tracker.endpoint()?;
    let a_second = (plan.udp_per_second + plan.http_per_second) as usize;
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(2 * a_second, PATIENCE).await?;
    let mut done = Vec::new();
    for _ in 0..runs {
        let run = endpoint.run(each).await?;
        ensure!(
            run["outcome"]["kind"] == "done",
            "a run was not done: {run:#}"
        );
        done.push(run);
        load.answered_more(a_second, PATIENCE).await?;
    }
    let account = load.stop(PATIENCE).await?;
    Ok(Session {
        runs: done,
        account,
    })
}

/// Milliseconds the gate was closed in a run.
///
/// # Errors
/// When its entry does not say.
pub fn pause_ms(run: &Value) -> Result<f64> {
    run["pause_ms"].as_f64().context("pause_ms of a run")
}
