//! `run`: a backup now, window or not.

use std::time::Duration;

use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::{sleep, timeout};
use torrust_tracker_maintenance::config::{Announces, Settings};
use torrust_tracker_maintenance::disk::{Disk, parent};
use torrust_tracker_maintenance::engine;
use torrust_tracker_maintenance::maintenance::rules;
use torrust_tracker_maintenance::snapshot::{self, Way};
use torrust_tracker_maintenance::status::{RunReport, Status};
use torrust_tracker_maintenance::window::{Pause, RunId};

use crate::client::{Client, block_on};
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::status::{outcome, progress, result};
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
            return Ok(Forecast::of(configuration, &status)?.answer(&status, now));
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
        let report = block_on(wait(&client, &run, &Show::new(json)))?;
        Ok(ended(&report))
    }
}

/// Asks until the run has ended.
async fn wait(client: &Client, run: &RunId, show: &Show) -> Result<RunReport, Failure> {
    let mut missing = 0;
    loop {
        let status = answer(client, run).await?;
        if let Some(report) = status.runs.iter().find(|report| report.id == *run) {
            show.end();
            return Ok(report.clone());
        }
        if status
            .run
            .as_ref()
            .is_some_and(|current| current.id == *run)
        {
            missing = 0;
            show.status(&status);
        } else {
            missing += 1;
        }
        if missing > MISSING_AT_MOST {
            let why = format!("the tracker no longer knows of run {run}: it was restarted");
            return Err(lost(&why));
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

/// Progress on standard error: a line that changes on a terminal, else a line a phase.
struct Show {
    bar: ProgressBar,
    last: std::cell::Cell<String>,
    quiet: bool,
}

impl Show {
    fn new(quiet: bool) -> Self {
        let bar = if quiet {
            ProgressBar::hidden()
        } else {
            ProgressBar::new_spinner()
        };
        if let Ok(style) = ProgressStyle::with_template("{elapsed} {msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            last: std::cell::Cell::default(),
            quiet,
        }
    }

    fn status(&self, status: &Status) {
        let phase = status.state.to_string();
        let detail = status
            .run
            .as_ref()
            .and_then(|run| run.progress.as_ref())
            .map(progress);
        self.bar
            .set_message(detail.unwrap_or_else(|| phase.clone()));
        self.bar.tick();
        let news = self.last.replace(phase.clone()) != phase;
        if news && self.bar.is_hidden() && !self.quiet {
            eprintln!("{phase}");
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// What a run would do, by the engine's own reckoning.
struct Forecast {
    /// The rate of the copy is an assumption.
    unmeasured: bool,
    hold_for: Duration,
    /// What a copy may take of it.
    held_at_most: Duration,
    database_bytes: Option<u64>,
    /// What the run costs; `None` if the database cannot be measured.
    cost: Option<engine::Forecast>,
    held: bool,
    free_bytes: Option<u64>,
}

impl Forecast {
    fn of(configuration: &Configuration, status: &Status) -> Result<Self, Failure> {
        let settings: Settings = configuration.settings()?;
        let earlier = configuration
            .catalogue()
            .and_then(|catalogue| Ok(catalogue.backups()?))
            .unwrap_or_default();
        let earlier: Vec<_> = earlier.iter().map(|backup| &backup.manifest).collect();
        // From metadata: the file is the tracker's.
        let path = &status.database.path;
        let database_bytes = path.metadata().ok().map(|metadata| metadata.len());
        let blocks_writers = status.database.journal_mode != "wal";
        let Settings {
            announces, backup, ..
        } = &settings;
        let disk = Disk::default();
        // Where this user may not try it, the last run did.
        let clones = snapshot::can_clone(path, &backup.directory, &disk)
            || earlier
                .first()
                .is_some_and(|last| last.method == Way::Clone);
        let room = if backup.directory.is_dir() {
            &backup.directory
        } else {
            parent(&backup.directory)
        };
        Ok(Self {
            unmeasured: earlier.is_empty(),
            hold_for: settings.gate.hold_for,
            held_at_most: rules(&settings)
                .held_at_most()
                .min(settings.schedule.duration()),
            database_bytes,
            held: blocks_writers || *announces == Announces::Pause,
            cost: database_bytes.map(|bytes| {
                let known = engine::Known {
                    bytes,
                    blocks_writers,
                    clones,
                    announces: *announces,
                    backup,
                    earlier: &earlier,
                };
                known.forecast()
            }),
            free_bytes: disk.free_bytes(room).ok(),
        })
    }

    /// How the database would be got hold of, in the room there is.
    fn way(&self) -> Option<Way> {
        let cost = self.cost?;
        self.free_bytes
            .map_or(Some(cost.way), |free| cost.way_with(free))
    }

    /// Why the tracker would not close its gate for this run.
    fn objection(&self) -> Option<String> {
        let cost = self.cost?;
        if let Pause::UntilCopied(copy) = cost.pause
            && copy > self.held_at_most
        {
            return Some(format!(
                "would not fit: announces would have to wait for the copy, about {}, longer than \
                 gate.hold_for ({}); use journal_mode = \"wal\", or a file system that clones \
                 files (XFS, btrfs) for both the database and the backups",
                units::seconds(copy),
                units::duration(self.hold_for)
            ));
        }
        if self.way().is_some() {
            return None;
        }
        Some(format!(
            "would fail: {} are free and about {} are needed while a backup is made; free space \
             or choose another backup.directory",
            units::bytes(self.free_bytes?),
            units::bytes(cost.streamed_room.unwrap_or(cost.room))
        ))
    }

    fn answer(&self, status: &Status, now: DateTime<Utc>) -> Answer {
        let (exit, verdict) = match (&status.run, self.objection()) {
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
        let unknown = || "unknown".to_owned();
        let basis = if self.unmeasured {
            "reckoned with an ordinary disk, as there is no earlier backup"
        } else {
            "at the rate of earlier backups"
        };
        let way = self.way();
        let copy = match (self.cost, way) {
            (Some(cost), Some(Way::Stream)) if cost.way == Way::Stream => format!(
                "streamed into the compressor and encrypted, so that there is no copy that others \
                 can read: about {}, {basis}",
                units::seconds(cost.copy)
            ),
            (Some(_), Some(Way::Stream)) => {
                "streamed into the compressor, as there is no room for a raw copy".to_owned()
            }
            (Some(cost), way) => {
                let copy = units::seconds(cost.copy);
                format!("method {}: about {copy}, {basis}", way.unwrap_or(cost.way))
            }
            (None, _) => unknown(),
        };
        let check = self.cost.map_or_else(unknown, |cost| {
            format!("about {}", units::seconds(cost.check))
        });
        let announces = if self.held {
            "wait until the copy ends"
        } else {
            "wait for milliseconds, then flow during the copy"
        };
        let lines = [
            ("run", verdict.clone()),
            ("announces", announces.to_owned()),
            (
                "database",
                format!(
                    "{}, {}, journal mode {}",
                    status.database.path.display(),
                    self.database_bytes.map_or_else(unknown, units::bytes),
                    status.database.journal_mode
                ),
            ),
            ("copy", copy),
            ("check", check),
            (
                "room",
                format!(
                    "{} free, about {} needed while the backup is made",
                    self.free_bytes.map_or_else(unknown, units::bytes),
                    self.cost
                        .map_or_else(unknown, |cost| units::bytes(cost.room)),
                ),
            ),
        ];
        Answer {
            exit,
            text: lines
                .map(|(name, what)| format!("{name:<11}{what}"))
                .join("\n"),
            json: json!({
                "would_begin": exit == Exit::Done,
                "verdict": verdict,
                "announces": if self.held { "held" } else { "served" },
                "database_bytes": self.database_bytes,
                "method": way,
                "copy_seconds": self.cost.map(|cost| cost.copy.as_secs_f64()),
                "verify_seconds": self.cost.map(|cost| cost.check.as_secs_f64()),
                "free_bytes": self.free_bytes,
                "needed_bytes": self.cost.map(|cost| cost.room),
            }),
        }
    }
}
