//! The generator accounts for every request, and what it writes is what it found.

use anyhow::{Context, Result};
use end_to_end::generator::{Kind, Report};
use end_to_end::tracker::{Setup, TOKEN, Tracker};
use end_to_end::{PATIENCE, binaries, http1, until};
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{A_RUN, alone, done};

/// Runs the program beside whatever else is done meanwhile; its report and its plot.
async fn load(tracker: &Tracker, arguments: &[&str]) -> Result<(Report, String)> {
    let home = tracker.setup().home();
    let (json, plot) = (home.join("load.json"), home.join("load.svg"));
    let addresses = tracker.addresses;
    let mut command = Command::new(binaries::path("announce_load")?);
    command
        .args(["--udp", &addresses.udp.to_string()])
        .args(["--http", &addresses.http.to_string()])
        .args(["--endpoint", &tracker.endpoint()?.0.to_string()])
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .arg("--plot")
        .arg(&plot)
        .kill_on_drop(true);
    let output = timeout(A_RUN, command.output()).await??;
    let report = std::fs::read(&json)
        .with_context(|| format!("no report: {}", String::from_utf8_lossy(&output.stderr)))?;
    let report: Report = serde_json::from_slice(&report)?;
    let good = report.health.kept_up() && report.all.counts.failed() == 0;
    assert_eq!(output.status.success(), good, "{output:?}");
    Ok((report, std::fs::read_to_string(plot)?))
}

/// Waits until announces have come by each door.
async fn announced(tracker: &Tracker) -> Result<()> {
    let stats = format!("/api/v1/stats?token={TOKEN}");
    until("announces", PATIENCE, async || {
        let stats = http1::get(tracker.addresses.api, &stats).await?.json()?;
        let some = |name: &str| stats[name].as_u64() > Some(50);
        let both = some("udp4_announces_handled") && some("tcp4_announces_handled");
        Ok(both.then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_accounted_for_while_a_run_goes_on() -> Result<()> {
    let _alone = alone().await;
    let tracker = Setup::new()?.start().await?;
    let rates = ["--udp-rate", "500", "--http-rate", "50", "--seconds", "3"];
    let running = async {
        announced(&tracker).await?;
        done(tracker.endpoint()?).await
    };
    let (loaded, run) = tokio::join!(load(&tracker, &rates), running);
    let ((report, plot), run) = (loaded?, run?);

    assert!(report.all.counts.add_up(), "{report:#?}");
    assert_eq!(report.all.counts.failed(), 0, "{:?}", report.errors);
    // What was planned was sent, each kind of it, and each second of it.
    assert!(
        (1_600..=1_800).contains(&report.all.counts.sent),
        "{:?}",
        report.all
    );
    let kinds = report.kinds.values().map(|summary| summary.counts.sent);
    assert_eq!(kinds.sum::<u64>(), report.all.counts.sent);
    for kind in Kind::ALL {
        let summary = report.kinds.get(&kind).with_context(|| kind.name())?;
        assert!(summary.counts.add_up() && summary.p99_ms >= summary.p50_ms);
    }
    let seconds = report.series.iter().map(|second| second.all.counts.sent);
    assert_eq!(seconds.sum::<u64>(), report.all.counts.sent);
    for second in &report.series {
        let kinds = second.kinds.values().map(|summary| summary.counts.sent);
        assert_eq!(kinds.sum::<u64>(), second.all.counts.sent, "{second:?}");
    }
    assert!(report.completions.sent > 0);
    assert_eq!(report.completions.sent, report.completions.acknowledged);
    // What was marked is what the run says of itself.
    let pause = run["pause_ms"].as_f64().context("a pause")?;
    let ended = format!("run ended: gate closed for {pause:.1} ms in all");
    let marks: Vec<&str> = report.marks.iter().map(|mark| mark.what.as_str()).collect();
    assert!(marks.contains(&ended.as_str()), "{marks:?}");
    assert!(plot.contains(&ended), "the plot has the marks");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_never_answered_is_told_apart_from_what_is_refused() -> Result<()> {
    let _alone = alone().await;
    let tracker = Setup::new()?.start().await?;
    let rates = "--udp-rate 200 --http-rate 100 --seconds 3 --grace 0";
    let rates: Vec<&str> = rates.split(' ').collect();
    // Some announces by each door, and then nothing listens any more.
    let ending = async {
        announced(&tracker).await?;
        tracker.signal(Signal::KILL)
    };
    let (loaded, ended) = tokio::join!(load(&tracker, &rates), ending);
    let (report, _) = loaded?;
    ended?;

    assert!(report.all.counts.add_up(), "{report:#?}");
    let udp = report.kinds[&Kind::UdpAnnounce].counts;
    let http = report.kinds[&Kind::HttpAnnounce].counts;
    assert!(udp.answered > 0 && http.answered > 0, "{report:#?}");
    assert!(udp.unanswered > 0, "{udp:?}: a closed port is silent");
    assert!(http.errors > 0 && http.unanswered == 0, "{http:?}");
    let told: u64 = report.errors.values().sum();
    assert_eq!(told, report.all.counts.errors);
    Ok(())
}
