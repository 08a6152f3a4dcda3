//! What the world may know: the payload of the status `watch` channel, of
//! `GET /api/v1/status` and of the operator's tool. Field names are a contract; see
//! `docs/api.md`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::catalogue::BackupId;
use crate::gate::{Counters, Door, Gate};
use crate::schedule::Interval;
use crate::snapshot::{Progress, Watch};
use crate::window::{Outcome, Phase, RunId, Trigger};

/// How many ended runs a status carries.
pub const RUNS_KEPT: usize = 20;

/// Everything there is to say at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this library.
    pub version: String,
    /// The service it is linked into, with its version.
    pub service: String,
    /// Whether the driver runs. `false`: it broke; announces flow, but there are no more
    /// backups until the service is restarted.
    pub alive: bool,
    /// Where the window stands.
    pub state: Phase,
    /// Whether the database may be copied at this moment.
    pub ready: bool,
    /// The gate.
    pub gate: GateStatus,
    /// The next window; `null` if the schedule has none.
    pub next: Option<Interval>,
    /// The run in progress.
    pub run: Option<RunStatus>,
    /// Ended runs, newest first, at most [`RUNS_KEPT`].
    pub runs: Vec<RunReport>,
    /// The database the windows are for.
    pub database: DatabaseStatus,
}

/// The gate, as seen when the status was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GateStatus {
    /// Whether announces pass.
    pub open: bool,
    /// Milliseconds since it closed; `null` while open.
    pub closed_for_ms: Option<f64>,
    /// Requests waiting at this moment.
    pub held: PerDoor,
    /// Requests that waited and went on, since the start.
    pub released: PerDoor,
    /// Resends merged with a waiting request, since the start.
    pub merged: PerDoor,
    /// Requests refused or dropped because too many were waiting, or because they had waited
    /// for too long at an open gate, since the start.
    pub turned_away: PerDoor,
    /// Requests executed and not answered as done, because it is not certain that what they
    /// wrote is stored, since the start. Anything but 0 is a defect of the disk.
    #[serde(default)]
    pub unconfirmed: PerDoor,
    /// How often the watchdog had to open the gate. Anything but 0 is a defect.
    pub forced_open: u64,
}

/// A count for each door.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PerDoor {
    /// UDP announces.
    pub udp: u64,
    /// HTTP announces and REST writes.
    pub http: u64,
}

/// The run in progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Its id.
    pub id: RunId,
    /// Who asked for it.
    pub trigger: Trigger,
    /// When it began.
    pub began: DateTime<Utc>,
    /// Which attempt at the pin this is, from 1.
    pub attempt: u32,
    /// What it is doing, if that takes long enough to show.
    pub progress: Option<Progress>,
}

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// Its id.
    pub id: RunId,
    /// Who asked for it.
    pub trigger: Trigger,
    /// When it began.
    pub began: DateTime<Utc>,
    /// When it ended.
    pub ended: DateTime<Utc>,
    /// How it ended.
    pub outcome: Outcome,
    /// Milliseconds the gate was closed, all closures together.
    pub pause_ms: f64,
    /// Milliseconds of the longest closure.
    pub longest_pause_ms: f64,
    /// The backup it published.
    pub backup: Option<BackupId>,
    /// What to look at though it succeeded.
    pub warnings: Vec<String>,
}

/// The database the windows are for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Path as configured.
    pub path: PathBuf,
    /// Journal mode found at the start or by the last run.
    pub journal_mode: String,
}

impl GateStatus {
    /// Reads the gate and its counters.
    #[must_use]
    pub fn of(gate: &Gate) -> Self {
        let each = |read: fn(&Counters) -> u64| PerDoor {
            udp: read(gate.counters(Door::Udp)),
            http: read(gate.counters(Door::Http)),
        };
        let closed_for = gate.closed_for();
        Self {
            open: closed_for.is_none(),
            closed_for_ms: closed_for.map(milliseconds),
            held: each(Counters::held),
            released: each(Counters::released),
            merged: each(Counters::merged),
            turned_away: each(Counters::turned_away),
            unconfirmed: each(Counters::unconfirmed),
            forced_open: gate.forced(),
        }
    }
}

/// A duration as the fractional milliseconds that statuses and manifests carry.
#[must_use]
pub fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Reads the status as of now: what the driver published, with the gate and the
/// progress of the running job read at this moment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    published: watch::Receiver<Published>,
    gate: Gate,
}

/// What the driver sends through the channel.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) status: Status,
    pub(crate) job: Option<Watch>,
}

impl Reader {
    pub(crate) fn new(published: watch::Receiver<Published>, gate: Gate) -> Self {
        Self { published, gate }
    }

    /// The status as of now.
    #[must_use]
    pub fn now(&self) -> Status {
        let Published { mut status, job } = self.published.borrow().clone();
        status.gate = GateStatus::of(&self.gate);
        if let (Some(run), Some(job)) = (&mut status.run, job) {
            run.progress = job.progress();
        }
        status
    }

    /// Waits until `wanted` is true of the published status and returns that status.
    /// Counters of the gate and progress do not wake it. `None` when the driver is gone and
    /// it never will be.
    pub async fn wait_for(&mut self, mut wanted: impl FnMut(&Status) -> bool) -> Option<Status> {
        let status = self
            .published
            .wait_for(|published| wanted(&published.status))
            .await;
        status.ok().map(|published| published.status.clone())
    }
}
