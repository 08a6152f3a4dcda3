//! What the world may know: the payload of the status `watch` channel, of
//! `GET /api/v1/status` and of the operator's tool. Field names are a contract; see
//! `docs/api.md`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::catalogue::{Backup, BackupId, Manifest};
use crate::config::Depth;
use crate::consumption::Consumption;
use crate::gate::{Counters, Door, Gate, Request};
use crate::hook::Hook;
use crate::latency::Distribution;
use crate::lease::{Holder, Terms};
use crate::remote::Uploads;
use crate::schedule::Interval;
use crate::snapshot::{Progress, Watch};
use crate::switch::Order;
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
    /// When the driver was started; `null` from versions before it was said.
    #[serde(default)]
    pub started: Option<DateTime<Utc>>,
    /// The newest good backup of this process's catalogue; `null` if there is none, and where
    /// a sidecar takes them.
    #[serde(default)]
    pub backup: Option<BackupStatus>,
    /// Who copies.
    #[serde(default)]
    pub taken_by: Taker,
    /// The longest the gate may be closed, in seconds: `gate.hold_for`.
    #[serde(default)]
    pub hold_for_seconds: f64,
    /// What has been counted since the start.
    #[serde(default)]
    pub totals: Totals,
    /// Who is told how runs end, and whether that worked; `null`: nobody is to be told.
    #[serde(default)]
    pub notify: Option<NotifyStatus>,
    /// How often each of the operator's commands has failed since the start; those that are
    /// not configured are left out.
    #[serde(default)]
    pub hooks_failed: BTreeMap<Hook, u64>,
    /// The second place of the backups; `null` if there is none.
    #[serde(default)]
    pub remote: Option<RemoteStatus>,
    /// What was answered since the start, and how long that took.
    #[serde(default)]
    pub traffic: Traffic,
    /// What the service's process has taken of the machine.
    #[serde(default)]
    pub process: Consumption,
}

/// What was answered since the start, as seen when the status was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// At the UDP door.
    pub udp: DoorTraffic,
    /// At the HTTP door.
    pub http: DoorTraffic,
}

/// What was answered at a door.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DoorTraffic {
    /// Announces, by how long it took from arrival to answer.
    pub announces: Distribution,
    /// Scrapes.
    pub scrapes: Distribution,
    /// Seconds spent on executing what is stored, and on making it durable. What was done at
    /// the same time counts each for itself.
    pub database_seconds: f64,
}

impl Traffic {
    /// Reads the gate's counters.
    #[must_use]
    pub fn of(gate: &Gate) -> Self {
        let at = |door| {
            let counters = gate.counters(door);
            DoorTraffic {
                announces: counters.answered(Request::Announce),
                scrapes: counters.answered(Request::Scrape),
                database_seconds: counters.spent().as_secs_f64(),
            }
        };
        Self {
            udp: at(Door::Udp),
            http: at(Door::Http),
        }
    }
}

/// A published backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupStatus {
    /// Its id.
    pub id: BackupId,
    /// The instant it shows.
    pub pinned: DateTime<Utc>,
    /// When it was published.
    pub published: DateTime<Utc>,
    /// When it last passed a check: before it was published, or since, as far as known here.
    pub verified: DateTime<Utc>,
    /// The structural check it passed.
    pub verify: Depth,
    /// Bytes of the database in it, unpacked.
    pub raw_bytes: u64,
    /// Bytes it takes on the disk.
    pub stored_bytes: u64,
    /// Seconds from ready to the durable raw copy.
    pub copy_seconds: f64,
    /// Seconds its run took in all.
    pub seconds: f64,
    /// Milliseconds the gate was closed for it.
    pub pause_ms: f64,
}

impl BackupStatus {
    /// Of one that was just published.
    #[must_use]
    pub fn published(manifest: &Manifest) -> Self {
        let took = manifest.published - manifest.began;
        Self {
            id: manifest.id.clone(),
            pinned: manifest.pinned,
            published: manifest.published,
            verified: manifest.published,
            verify: manifest.verified,
            raw_bytes: manifest.database.raw_bytes,
            stored_bytes: manifest.stored_bytes(),
            copy_seconds: manifest.copy_seconds,
            seconds: took.to_std().unwrap_or_default().as_secs_f64(),
            pause_ms: manifest.pause_ms,
        }
    }

    /// Of one that was found, with what was learned of it since.
    #[must_use]
    pub fn found(
        Backup {
            manifest, notes, ..
        }: &Backup,
    ) -> Self {
        let published = Self::published(manifest);
        let checks = notes.checks.iter().filter(|check| check.depth.is_some());
        let last = checks.map(|check| check.at).max();
        Self {
            verified: published.verified.max(last.unwrap_or(published.verified)),
            ..published
        }
    }
}

/// What has been counted since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Ended runs by the name of their outcome's kind, but for failures.
    pub runs: BTreeMap<String, u64>,
    /// Runs that failed, by the name of the cause.
    pub failed: BTreeMap<String, u64>,
    /// Windows that came and went without a run.
    pub missed: u64,
    /// Milliseconds the gate was closed, all runs together.
    pub pause_ms: f64,
}

impl Totals {
    /// Counts a run that has ended.
    pub(crate) fn count(&mut self, outcome: &Outcome, pause_ms: f64) {
        let (counts, name) = match outcome.cause() {
            Some(cause) => (&mut self.failed, cause.name()),
            None => (&mut self.runs, outcome.kind()),
        };
        *counts.entry(name.to_owned()).or_default() += 1;
        self.pause_ms += pause_ms;
    }
}

/// Who is told how runs end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NotifyStatus {
    /// The webhook.
    pub webhook: Option<ChannelStatus>,
    /// The heartbeat, of either kind.
    pub heartbeat: Option<ChannelStatus>,
}

/// One way of telling somebody.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChannelStatus {
    /// Scheme and host of the address; the rest may be a secret.
    pub target: String,
    /// Notices delivered since the start.
    pub delivered: u64,
    /// Notices given up since the start: refused, or not delivered in a day.
    pub failed: u64,
    /// Notices that could not be delivered yet; they are tried again.
    #[serde(default)]
    pub waiting: u64,
    /// Notices that could not be delivered and were dropped for newer ones, since the start.
    #[serde(default)]
    pub dropped: u64,
    /// When the last was delivered.
    pub last_delivered: Option<DateTime<Utc>>,
    /// Why nothing gets through: several attempts in a row have failed, or the last notice was
    /// given up; `null` once another was delivered.
    pub failing: Option<NotDelivered>,
}

/// A notice that was not delivered, so far or for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotDelivered {
    /// When.
    pub at: DateTime<Utc>,
    /// Why, and what to do.
    pub reason: String,
}

/// What is known of what goes on beside the driver, as [`crate::herald`] tells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) notify: Option<NotifyStatus>,
    pub(crate) hooks_failed: BTreeMap<Hook, u64>,
    /// What there is to add to the warnings of runs that have ended.
    pub(crate) remarks: Vec<(RunId, String)>,
}

/// How far the uploads to the second place of the backups are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RemoteStatus {
    /// How many backups should be there and are not, as far as is known.
    pub behind: u64,
    /// Seconds since the oldest of these was published.
    pub behind_since_seconds: Option<f64>,
    /// When the newest that is there was uploaded; `null`: none is, or it could not be asked.
    pub last_uploaded: Option<DateTime<Utc>>,
    /// Why the last attempt failed; `null` if it did not. It is made again.
    pub failure: Option<String>,
    /// Seconds since the first of the attempts that have failed in a row.
    #[serde(default)]
    pub failing_since_seconds: Option<f64>,
    /// What is broken there and could not be replaced by the backup here.
    #[serde(default)]
    pub broken: Vec<BrokenThere>,
    /// How many broken ones were replaced since the start.
    #[serde(default)]
    pub replaced: u64,
}

/// A backup in the second place that is none any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenThere {
    /// Its name.
    pub id: BackupId,
    /// What is wrong with it.
    pub why: String,
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
    /// The sidecar that copies.
    pub lease: Option<LeaseStatus>,
    /// Bytes the write-ahead log has grown by under the pin; `null` without one.
    #[serde(default)]
    pub wal_bytes: Option<u64>,
}

/// The lease on the run in progress, as of the moment it was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Who has it.
    pub holder: Holder,
    /// Seconds until it ends unless it is renewed.
    pub expires_seconds: f64,
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
    /// Milliseconds after which a closure of this run was given up: for the flush, or for a whole
    /// copy if announces waited for that; `null` if the gate never closed.
    #[serde(default)]
    pub pause_limit_ms: Option<f64>,
    /// The backup it published.
    pub backup: Option<BackupId>,
    /// The sidecar that came for it.
    pub sidecar: Option<SidecarReport>,
    /// What to look at though it succeeded.
    pub warnings: Vec<String>,
    /// Bytes the write-ahead log had grown by when last looked at under the pin; `null` if
    /// there was none.
    #[serde(default)]
    pub wal_bytes: Option<u64>,
    /// The journal mode the database went over to in this run; `null` if it stayed in the one it
    /// had.
    #[serde(default)]
    pub switched_to: Option<String>,
}

/// What became of a sidecar's copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidecarReport {
    /// Who it was; `touch-file` if it took no lease.
    pub holder: Holder,
    /// Whether no byte of the file changed until it had finished.
    pub held_throughout: bool,
    /// Why it has no copy, in its words; or why the file did not hold.
    pub reason: Option<String>,
}

/// What may be copied: the body of a 200 of `GET /ready`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Always `true`.
    pub ready: bool,
    /// The run that holds the pin.
    pub run: RunId,
    /// The file, as the service's configuration names it.
    pub database: PathBuf,
    /// [`crate::readiness::DRIVER`].
    pub driver: String,
    /// Who copies.
    pub taken_by: Taker,
    /// What there is to be copied.
    pub copy: CopyOf,
    /// What happens to announces meanwhile.
    pub announces: Meanwhile,
    /// How long a lease lasts unless it is renewed; `null` if the service copies.
    pub ttl_seconds: Option<f64>,
    /// How long the run can still be claimed; `null` if it cannot be.
    pub claim_within_seconds: Option<f64>,
    /// When the pin ends whatever is renewed, by the wall clock: for people.
    pub deadline: DateTime<Utc>,
    /// How long that is from now: for programs.
    pub deadline_seconds: f64,
    /// Who has the lease.
    pub lease: Option<LeaseStatus>,
    /// What the file is, by whatever path it is seen.
    pub file: PinnedFile,
    /// The instant the file shows: every commit before is in it, none after.
    pub pinned: DateTime<Utc>,
    /// When the run began.
    pub began: DateTime<Utc>,
    /// The database's journal mode.
    pub journal_mode: String,
    /// Milliseconds the gate has been closed for this run so far.
    pub pause_ms: f64,
}

/// Who copies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taker {
    /// The service.
    #[default]
    Tracker,
    /// Another process, with a lease.
    Sidecar,
}

/// What there is to be copied. Either way the main file alone is the whole database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CopyOf {
    /// A file that is pinned while the service goes on writing to the log beside it.
    PinnedFile,
    /// A file that is pinned while nobody writes.
    PausedDatabase,
}

/// What happens to announces while the file is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meanwhile {
    /// They are answered.
    Flowing,
    /// They wait.
    Held,
}

/// What a pinned file is, by metadata and by what SQLite says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedFile {
    /// The file system it lies on. Two containers may see one file under two numbers.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Bytes in a page.
    pub page_size: u32,
    /// Pages of the database.
    pub page_count: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// When it was last written to, in nanoseconds since 1970: a snapshot of yesterday's file
    /// has its inode, and often its size. As a decimal text in JSON, whose numbers are not
    /// trusted beyond 53 bits.
    #[serde(with = "decimal")]
    pub modified: i64,
}

impl PinnedFile {
    /// [`Self::modified`] of what is found of a file.
    #[must_use]
    pub fn modified_of(found: &fs::Metadata) -> i64 {
        found
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(found.mtime_nsec())
    }
}

/// A number as its decimal digits in a text.
mod decimal {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde calls"
    )]
    pub(super) fn serialize<S: Serializer>(number: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let digits = std::borrow::Cow::<'de, str>::deserialize(from)?;
        digits.parse().map_err(D::Error::custom)
    }
}

/// The database the windows are for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Path as configured.
    pub path: PathBuf,
    /// Journal mode found at the start or by the last run.
    pub journal_mode: String,
    /// The order to go over to WAL in the next run; `null` if there is none.
    #[serde(default)]
    pub switch: Option<Order>,
    /// Why such an order would be refused, whatever mode it is in; `null`: it would not be.
    #[serde(default)]
    pub not_switchable: Option<String>,
    /// Bytes of the write-ahead log's file at this moment; `null` if there is none.
    #[serde(default)]
    pub wal_bytes: Option<u64>,
}

/// By its metadata: closing a descriptor of it is for SQLite alone. It lies beside the file itself,
/// not beside a link to it.
fn wal_bytes(database: &Path) -> Option<u64> {
    let mut log = fs::canonicalize(database).ok()?.into_os_string();
    log.push("-wal");
    Some(fs::metadata(log).ok()?.len())
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
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Seconds from `now` to `until`.
fn seconds_left(until: Instant, now: Instant) -> f64 {
    until.saturating_duration_since(now).as_secs_f64()
}

#[expect(
    clippy::disallowed_methods,
    reason = "how much time is left is told as of the moment it is asked for; nothing is decided by it"
)]
fn now() -> Instant {
    // The driver's clock, see there.
    tokio::time::Instant::now().into_std()
}

/// Reads the status as of now: what the driver published, with the gate, the progress of the
/// running job and what the process takes read at this moment. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    published: watch::Receiver<Published>,
    gate: Gate,
    /// `None`: nobody is told and nothing called.
    told: Option<watch::Receiver<Told>>,
    /// `None`: nothing is uploaded.
    uploads: Option<Uploads>,
}

/// What was told of runs goes to what they are reported with.
fn add(told: &Told, status: &mut Status) {
    status.notify.clone_from(&told.notify);
    status.hooks_failed.clone_from(&told.hooks_failed);
    for (id, remark) in &told.remarks {
        if let Some(run) = status.runs.iter_mut().find(|run| run.id == *id) {
            run.warnings.push(remark.clone());
        }
    }
}

/// What the driver sends through the channel.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    pub(crate) status: Status,
    pub(crate) job: Option<Watch>,
    pub(crate) offer: Option<Offer>,
}

/// What is ready, in instants of the monotonic clock where it is about time that is left.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    pub(crate) copy: CopyOf,
    pub(crate) terms: Option<Terms>,
    pub(crate) claim_until: Option<Instant>,
    pub(crate) until: Instant,
    pub(crate) deadline: DateTime<Utc>,
    pub(crate) lease: Option<(Holder, Instant)>,
    pub(crate) file: PinnedFile,
    pub(crate) pinned: DateTime<Utc>,
    /// Closures that are over.
    pub(crate) pause: Duration,
}

impl Offer {
    fn lease(&self, now: Instant) -> Option<LeaseStatus> {
        let (holder, until) = self.lease.as_ref()?;
        Some(LeaseStatus {
            holder: holder.clone(),
            expires_seconds: seconds_left(*until, now),
        })
    }
}

impl Reader {
    pub(crate) fn new(published: watch::Receiver<Published>, gate: Gate) -> Self {
        Self {
            published,
            gate,
            told: None,
            uploads: None,
        }
    }

    /// Adds what is told beside the driver.
    pub(crate) fn with(self, told: watch::Receiver<Told>) -> Self {
        Self {
            told: Some(told),
            ..self
        }
    }

    /// Adds what is uploaded.
    pub(crate) fn with_uploads(self, uploads: Uploads) -> Self {
        Self {
            uploads: Some(uploads),
            ..self
        }
    }

    /// The status as of now.
    #[must_use]
    pub fn now(&self) -> Status {
        let Published {
            mut status,
            job,
            offer,
        } = self.published.borrow().clone();
        status.gate = GateStatus::of(&self.gate);
        status.traffic = Traffic::of(&self.gate);
        status.process = Consumption::now();
        status.database.wal_bytes = wal_bytes(&status.database.path);
        status.remote = self.uploads.as_ref().map(Uploads::status);
        if let Some(run) = &mut status.run {
            run.progress = job.and_then(|job| job.progress());
            run.lease = offer.and_then(|offer| offer.lease(now()));
        }
        if let Some(told) = &self.told {
            add(&told.borrow(), &mut status);
        }
        status
    }

    /// What may be copied as of now; `None` if nothing may.
    #[must_use]
    pub fn ready(&self) -> Option<Ready> {
        let Published { status, offer, .. } = self.published.borrow().clone();
        let (run, offer) = status.run.filter(|_| status.ready).zip(offer)?;
        let now = now();
        let closed_for = self.gate.closed_for();
        let (announces, so_far) = match offer.copy {
            CopyOf::PinnedFile => (Meanwhile::Flowing, Duration::ZERO),
            CopyOf::PausedDatabase => (Meanwhile::Held, closed_for.unwrap_or_default()),
        };
        Some(Ready {
            ready: true,
            run: run.id,
            database: status.database.path,
            driver: crate::readiness::DRIVER.to_owned(),
            taken_by: offer.terms.map_or(Taker::Tracker, |_| Taker::Sidecar),
            copy: offer.copy,
            announces,
            ttl_seconds: offer.terms.map(|terms| terms.ttl.as_secs_f64()),
            claim_within_seconds: offer.claim_until.map(|until| seconds_left(until, now)),
            deadline: offer.deadline,
            deadline_seconds: seconds_left(offer.until, now),
            lease: offer.lease(now),
            file: offer.file,
            pinned: offer.pinned,
            began: run.began,
            journal_mode: status.database.journal_mode,
            pause_ms: milliseconds(offer.pause + so_far),
        })
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
