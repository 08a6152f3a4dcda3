//! `run`: a backup now, window or not.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tokio::time::{sleep, timeout};
use torrust_tracker_maintenance::status::{RunReport, Status};
use torrust_tracker_maintenance::switch::WAL;
use torrust_tracker_maintenance::window::RunId;

use crate::client::{Client, block_on};
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::forecast::Forecast;
use crate::progress::Show;
use crate::status::{outcome, result};
use crate::units;

/// How often the tracker is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long a tracker that has begun a run may give no answer. A busy machine needs a
/// moment now and then, and one that was restarted is soon there to say that it knows
/// nothing of the run.
const GONE_AFTER: Duration = Duration::from_secs(5);
/// How often in a row a run may be missing from the status before it is taken for lost. A
/// run that was just accepted is published a moment later.
const MISSING_AT_MOST: u32 = 20;

/// Start a backup now and wait for it to end.
#[derive(clap::Args)]
pub struct Arguments {
    /// Say what would happen; start nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait: exit as soon as the run has begun.
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
}

impl Arguments {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let client = configuration.client()?;
        if self.dry_run {
            let status = block_on(client.status())?;
            return would(configuration, &status, now);
        }
        let run = block_on(client.start())?;
        if self.no_wait {
            return Ok(Answer {
                exit: Exit::Done,
                text: format!(
                    "run {run} has begun; `torrust-maintenance status` shows how far it is"
                ),
                json: json!({ "run": run }),
            });
        }
        let show = Show::new(json);
        let report = block_on(wait(&client, &run, &show));
        show.end();
        Ok(ended(&report?))
    }
}

/// Asks until the run has ended, and shows how far it is.
async fn wait(client: &Client, run: &RunId, show: &Show) -> Result<RunReport, Failure> {
    let mut due = show.ticks();
    let mut missing = 0;
    loop {
        let status = answer(client, run).await?;
        if let Some(report) = status.runs.iter().find(|report| report.id == *run) {
            return Ok(report.clone());
        }
        let current = status.run.as_ref().filter(|current| current.id == *run);
        missing = if current.is_some() { 0 } else { missing + 1 };
        if missing > MISSING_AT_MOST {
            let why = format!("the tracker no longer knows of run {run}: it was restarted");
            return Err(lost(&why));
        }
        tokio::select! {
            biased;
            _ = due.tick() => {
                if let Some(current) = current {
                    show.phase(status.state, current.progress.as_ref());
                }
            }
            () = std::future::ready(()) => {}
        }
        sleep(ASK_EVERY).await;
    }
}

/// Asks until there is an answer: the run has begun, so that there was a tracker is known.
async fn answer(client: &Client, run: &RunId) -> Result<Status, Failure> {
    let mut why = "it does not answer".to_owned();
    let asking = async {
        loop {
            match client.status().await {
                Ok(status) => break status,
                Err(error) => why = error.to_string(),
            }
            sleep(ASK_EVERY).await;
        }
    };
    timeout(GONE_AFTER, asking)
        .await
        .map_err(|_| lost(&format!("the tracker went away during run {run}: {why}")))
}

/// The run was begun, so this is a failure of it and not "there is no tracker".
fn lost(why: &str) -> Failure {
    let message = format!("{why}; a run does not survive its tracker, so start another");
    Failure::new(Exit::Failed, "lost", message)
}

/// What would happen.
fn would(
    configuration: &Configuration,
    status: &Status,
    now: DateTime<Utc>,
) -> Result<Answer, Failure> {
    let settings = configuration.settings()?;
    let database = &status.database;
    let found = &database.journal_mode;
    // A run that is to switch it is reckoned with what it is then.
    let (mode, as_it_will_be) = match database.switch {
        Some(_) => (WAL, format!("{found}, to {WAL} in that run")),
        None => (found.as_str(), found.clone()),
    };
    let forecast = Forecast::of(configuration, &settings, &database.path, mode);
    let (exit, verdict) = match (&status.run, forecast.objection()) {
        (Some(run), _) => (
            Exit::Busy,
            format!(
                "refused: run {} is in progress ({}), began {}",
                run.id,
                status.state,
                units::ago(run.began, now)
            ),
        ),
        (None, Some(objection)) => (Exit::Failed, objection),
        (None, None) => (Exit::Done, "would begin now".to_owned()),
    };
    let path = database.path.display();
    let lines = [
        ("run", verdict.clone()),
        ("announces", forecast.announces().to_owned()),
        (
            "database",
            format!("{path}, {}, journal mode {as_it_will_be}", forecast.size()),
        ),
        ("copy", forecast.copy()),
        ("check", forecast.check()),
        ("room", forecast.room()),
    ];
    let mut json = forecast.json();
    json["would_begin"] = json!(exit == Exit::Done);
    json["verdict"] = json!(verdict);
    Ok(Answer {
        exit,
        text: lines
            .map(|(name, what)| format!("{name:<11}{what}"))
            .join("\n"),
        json,
    })
}

fn ended(report: &RunReport) -> Answer {
    let took = units::span(report.ended - report.began);
    let pause = units::milliseconds(report.pause_ms);
    Answer {
        exit: (&report.outcome).into(),
        text: format!(
            "run {} {}: {}\ntook {took}; announces were held for {pause}, at most {} at a time",
            report.id,
            outcome(&report.outcome),
            result(report),
            units::milliseconds(report.longest_pause_ms),
        ),
        json: json!(report),
    }
}
