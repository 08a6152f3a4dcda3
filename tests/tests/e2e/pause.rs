//! `announces = "pause"`: from ready until the copy ends no announce is processed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::{TOKEN, Tracker};
use end_to_end::{PATIENCE, backups, database, http1, until};
use http::Method;
use serde_json::Value;

use crate::support::{
    beside_others, is_ready, none_answered_between, nothing_lost, paused_for_two_seconds, ready,
    shows_its_instant,
};

/// Announces handled, as the tracker's own statistics count them, and rows written.
async fn processed(tracker: &Tracker) -> Result<(u64, u64)> {
    let path = format!("/api/v1/stats?token={TOKEN}");
    let stats = http1::get(tracker.addresses.api, &path).await?.json()?;
    let counter = |name: &str| {
        stats[name]
            .as_u64()
            .with_context(|| format!("{name} in {stats}"))
    };
    let handled = counter("udp4_announces_handled")? + counter("tcp4_announces_handled")?;
    Ok((
        handled,
        database::count(&tracker.setup().database(), "torrents")?,
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_announce_is_processed_from_ready_until_the_copy_ends() -> Result<()> {
    let _beside = beside_others().await;
    let setup = paused_for_two_seconds()?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    // Every announce would write a row: no torrent is used twice.
    let plan = Plan {
        udp_per_second: 100,
        http_per_second: 20,
        sockets: 8,
        torrents: 100,
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(300, PATIENCE).await?;

    let run = endpoint.start_run().await?;
    ready(endpoint).await?;
    // The statistics are counted by a task of its own, a moment after the answer.
    let before = until(
        "all that was answered to be counted",
        PATIENCE,
        async || {
            let processed = processed(&tracker).await?;
            Ok((processed.0 == load.counts().answered as u64).then_some(processed))
        },
    );
    let before = before.await?;
    let sent = load.counts().sent;
    load.until(PATIENCE, |counts| counts.sent >= sent + 60)
        .await?;
    let after = processed(&tracker).await?;
    let still = endpoint.status().await?;
    ensure!(
        is_ready(&still) && still["run"]["id"] == run.as_str(),
        "ready ended too early to tell: {still:#}"
    );
    assert_eq!(before, after);

    endpoint.ended(&run, PATIENCE).await?;
    load.answered_more(100, PATIENCE).await?;
    let account = load.stop(PATIENCE).await?;
    nothing_lost(&account);
    let backup = backups::only(&setup.backups())?;
    shows_its_instant(&backup, &account)?;
    none_answered_between(&account, backup.pinned()?, backup.copied_until()?);
    assert!(processed(&tracker).await? > after);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_writes_wait_and_rest_reads_do_not() -> Result<()> {
    let _beside = beside_others().await;
    let setup = paused_for_two_seconds()?;
    let tracker = setup.start().await?;
    let (endpoint, api, database) = (tracker.endpoint()?, tracker.addresses.api, setup.database());

    let run = endpoint.start_run().await?;
    ready(endpoint).await?;
    let hash = "0123456789abcdef0123456789abcdef01234567";
    let writes = [
        format!("/api/v1/whitelist/{hash}?token={TOKEN}"),
        format!("/api/v1/key/60?token={TOKEN}"),
    ]
    .map(|path| tokio::spawn(async move { http1::send_json(api, Method::POST, &path, "").await }));
    let held = |status: &Value| status["gate"]["held"]["http"] == 2;
    endpoint
        .until("two REST writes held", PATIENCE, held)
        .await?;
    for read in ["stats", "torrents", "whitelist/reload"] {
        let path = format!("/api/v1/{read}?token={TOKEN}");
        let answer = tokio::time::timeout(Duration::from_secs(1), http1::get(api, &path)).await??;
        assert_eq!(answer.status, 200, "{read}");
    }
    assert_eq!(database::count(&database, "whitelist")?, 0);
    ensure!(
        is_ready(&endpoint.status().await?),
        "ready ended too early to tell"
    );

    for write in writes {
        assert_eq!(write.await??.status, 200);
    }
    endpoint.ended(&run, PATIENCE).await?;
    assert_eq!(database::count(&database, "whitelist")?, 1);
    assert_eq!(database::count(&database, "keys")?, 1);
    // The backup shows the instant before them.
    let backup = backups::only(&setup.backups())?;
    assert_eq!(database::count(&backup.database, "whitelist")?, 0);
    Ok(())
}
