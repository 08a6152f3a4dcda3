//! The status as Prometheus reads it, in its text format (version 0.0.4). Nothing is counted
//! here: every figure is one of the [`Status`], which `GET /api/v1/status` has as well.
//!
//! Pauses are no histogram. There is one a night, and a histogram answers how many of many;
//! what alerts and people ask is how long the last one was, and how long all were together.
//! Latencies are one: there are thousands a second, of which nobody asks for the last, but how
//! many took how long; and only histograms of several doors and trackers can be put together.
//!
//! A figure that is not known is left out, never 0: no backup is not a backup of no bytes.
//! Counters are there from the start, so that the first failure is an increase.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::consumption::Consumption;
use crate::latency::Distribution;
use crate::status::{
    DatabaseStatus, GateStatus, PerDoor, RemoteStatus, RunReport, Status, Taker, Traffic,
};
use crate::window::{Cause, Outcome, Phase};

/// What [`render`] renders.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The status in Prometheus' text format.
#[must_use]
pub fn render(status: &Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(metrics(status))));
    let mut text = String::new();
    // Only a writer can fail, and a text does not.
    let encoded = prometheus_client::encoding::text::encode(&mut text, &registry);
    debug_assert!(encoded.is_ok());
    classic(&text)
}

/// One name, and all that is said under it.
#[derive(Debug, Clone, PartialEq)]
struct Metric {
    /// Without the `_total` of a counter.
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    labels: Vec<(&'static str, String)>,
    value: Value,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(f64),
    Distribution(Distribution),
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Distribution> for Value {
    fn from(distribution: Distribution) -> Self {
        Self::Distribution(distribution)
    }
}

impl Metric {
    fn gauge(name: &'static str, help: &'static str, value: impl Into<Option<f64>>) -> Self {
        Self::plain(name, help, Kind::Gauge, value.into())
    }

    fn counter(name: &'static str, help: &'static str, value: f64) -> Self {
        Self::plain(name, help, Kind::Counter, Some(value))
    }

    fn plain(name: &'static str, help: &'static str, kind: Kind, value: Option<f64>) -> Self {
        let sample = |value: f64| Sample {
            labels: Vec::new(),
            value: value.into(),
        };
        Self {
            name,
            help,
            kind,
            samples: value.into_iter().map(sample).collect(),
        }
    }

    fn labelled<const N: usize>(
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: [&'static str; N],
        samples: impl IntoIterator<Item = ([String; N], impl Into<Value>)>,
    ) -> Self {
        let samples = samples.into_iter().map(|(values, value)| Sample {
            labels: labels
                .into_iter()
                .zip(values.map(|value| escaped(&value)))
                .collect(),
            value: value.into(),
        });
        Self {
            name,
            help,
            kind,
            samples: samples.collect(),
        }
    }
}

/// All there is to say, in the order of the documentation.
fn metrics(status: &Status) -> Vec<Metric> {
    let mut metrics = of_the_service(status);
    metrics.extend(of_the_gate(&status.gate, status.hold_for_seconds));
    metrics.extend(of_runs(status));
    metrics.extend(of_the_backup(status));
    metrics.extend(of_those_told(status));
    metrics.extend(of_uploads(status.remote.as_ref()));
    metrics.extend(of_traffic(&status.traffic));
    metrics.extend(of_the_database(&status.database));
    metrics.extend(of_the_process(&status.process));
    metrics.retain(|metric| !metric.samples.is_empty());
    metrics
}

fn of_the_service(status: &Status) -> Vec<Metric> {
    let version = [status.version.clone(), status.service.clone()];
    vec![
        Metric::labelled(
            "torrust_maintenance_build_info",
            "Version of the library and of the service it is linked into, always 1",
            Kind::Gauge,
            ["version", "service"],
            [(version, 1.0)],
        ),
        Metric::gauge(
            "torrust_maintenance_start_timestamp_seconds",
            "When the maintenance driver was started",
            status.started.map(timestamp),
        ),
        Metric::gauge(
            "torrust_maintenance_driver_alive",
            "Whether the driver runs; if not there are no more backups until the service is restarted",
            flag(status.alive),
        ),
        Metric::labelled(
            "torrust_maintenance_state",
            "Where the window stands: 1 for the current state, 0 for the others",
            Kind::Gauge,
            ["state"],
            Phase::ALL.map(|phase| ([phase.name().to_owned()], flag(status.state == phase))),
        ),
        Metric::gauge(
            "torrust_maintenance_next_window_timestamp_seconds",
            "When the next window begins",
            status.next.map(|next| timestamp(next.begins)),
        ),
    ]
}

/// Nothing is told where there is no second place.
fn of_uploads(remote: Option<&RemoteStatus>) -> Vec<Metric> {
    let Some(remote) = remote else {
        return Vec::new();
    };
    vec![
        Metric::gauge(
            "torrust_maintenance_upload_behind",
            "Backups that should be in the second place and are not, as far as is known",
            number(remote.behind),
        ),
        Metric::gauge(
            "torrust_maintenance_upload_behind_seconds",
            "How long ago the oldest of these was published, 0 while none is missing",
            remote.behind_since_seconds.unwrap_or(0.0),
        ),
        Metric::gauge(
            "torrust_maintenance_upload_failing",
            "Whether the last attempt to upload failed",
            flag(remote.failure.is_some()),
        ),
        Metric::gauge(
            "torrust_maintenance_upload_failing_seconds",
            "How long ago the first of those failed that have failed in a row, 0 while none has",
            remote.failing_since_seconds.unwrap_or(0.0),
        ),
        Metric::gauge(
            "torrust_maintenance_upload_last_success_timestamp_seconds",
            "When the newest backup that is in the second place was uploaded",
            remote.last_uploaded.map(timestamp),
        ),
        Metric::gauge(
            "torrust_maintenance_upload_broken",
            "Backups that are broken in the second place and could not be replaced",
            number(remote.broken.len() as u64),
        ),
        Metric::counter(
            "torrust_maintenance_upload_replaced",
            "Backups that were broken in the second place and were replaced",
            number(remote.replaced),
        ),
    ]
}

fn of_traffic(traffic: &Traffic) -> Vec<Metric> {
    let doors = [("udp", &traffic.udp), ("http", &traffic.http)];
    let answered = doors.iter().flat_map(|(door, at)| {
        [("announce", &at.announces), ("scrape", &at.scrapes)].map(|(request, took)| {
            let labels = [(*door).to_owned(), request.to_owned()];
            (labels, took.classic())
        })
    });
    // A status from before it was measured has no buckets.
    let answered = answered.filter(|(_, took)| !took.buckets.is_empty());
    let spent = doors.map(|(door, at)| ([door.to_owned()], at.database_seconds));
    vec![
        Metric::labelled(
            "torrust_maintenance_request_duration_seconds",
            "How long requests took, from their arrival to their answer",
            Kind::Histogram,
            ["door", "request"],
            answered,
        ),
        Metric::labelled(
            "torrust_maintenance_database_seconds",
            "Seconds spent on executing what is stored, and on making it durable",
            Kind::Counter,
            ["door"],
            spent,
        ),
    ]
}

fn of_the_database(database: &DatabaseStatus) -> Vec<Metric> {
    vec![
        Metric::gauge(
            "torrust_maintenance_wal_bytes",
            "Bytes of the write-ahead log's file; not there without one",
            database.wal_bytes.map(number),
        ),
        Metric::labelled(
            "torrust_maintenance_journal_mode",
            "The database's journal mode: always 1, the mode is the label",
            Kind::Gauge,
            ["mode"],
            [([database.journal_mode.clone()], 1.0)],
        ),
    ]
}

/// Under the names that every Prometheus client has for them, where there are such.
fn of_the_process(process: &Consumption) -> Vec<Metric> {
    let counter = |name, help, value: Option<f64>| Metric::plain(name, help, Kind::Counter, value);
    vec![
        counter(
            "process_cpu_seconds",
            "Seconds of processor time, the kernel's for the process included",
            process.cpu_seconds,
        ),
        Metric::gauge(
            "process_resident_memory_bytes",
            "Bytes of memory the process has resident",
            process.resident_bytes.map(number),
        ),
        counter(
            "torrust_maintenance_written_bytes",
            "Bytes the process caused to be written to a disk",
            process.written_bytes.map(number),
        ),
    ]
}

fn of_the_gate(gate: &GateStatus, hold_for_seconds: f64) -> Vec<Metric> {
    let per_door = |name, help, kind, PerDoor { udp, http }| {
        let samples = [("udp", udp), ("http", http)];
        let samples = samples.map(|(door, count)| ([door.to_owned()], number(count)));
        Metric::labelled(name, help, kind, ["door"], samples)
    };
    vec![
        Metric::gauge(
            "torrust_maintenance_gate_closed",
            "Whether announces wait at this moment",
            flag(!gate.open),
        ),
        Metric::gauge(
            "torrust_maintenance_gate_closed_seconds",
            "For how long they have, 0 while the gate is open",
            seconds(gate.closed_for_ms.unwrap_or(0.0)),
        ),
        Metric::gauge(
            "torrust_maintenance_gate_hold_limit_seconds",
            "The longest the gate may be closed, gate.hold_for",
            (hold_for_seconds > 0.0).then_some(hold_for_seconds),
        ),
        Metric::counter(
            "torrust_maintenance_gate_forced_open",
            "How often the watchdog had to open the gate; anything but 0 is a defect",
            number(gate.forced_open),
        ),
        per_door(
            "torrust_maintenance_requests_held",
            "Requests waiting at this moment",
            Kind::Gauge,
            gate.held,
        ),
        per_door(
            "torrust_maintenance_requests_released",
            "Requests that waited and went on",
            Kind::Counter,
            gate.released,
        ),
        per_door(
            "torrust_maintenance_requests_merged",
            "Resends merged with a waiting request",
            Kind::Counter,
            gate.merged,
        ),
        per_door(
            "torrust_maintenance_requests_turned_away",
            "Requests refused or dropped because too many were waiting, or for too long",
            Kind::Counter,
            gate.turned_away,
        ),
        per_door(
            "torrust_maintenance_requests_unconfirmed",
            "Requests executed of which it is not certain that what they wrote is stored",
            Kind::Counter,
            gate.unconfirmed,
        ),
    ]
}

fn of_runs(status: &Status) -> Vec<Metric> {
    let totals = &status.totals;
    let ended = Outcome::KINDS.map(|kind| {
        let count = totals.runs.get(kind).copied().unwrap_or(0);
        ([kind.to_owned(), "none".to_owned()], number(count))
    });
    let failed = Cause::ALL.map(|cause| {
        let count = totals.failed.get(cause.name()).copied().unwrap_or(0);
        (
            ["failed".to_owned(), cause.name().to_owned()],
            number(count),
        )
    });
    let last = status.runs.first();
    let of_last = |figure: fn(&RunReport) -> f64| last.map(figure);
    let now = status.run.as_ref().and_then(|run| run.wal_bytes);
    let pinned = now.or_else(|| last?.wal_bytes);
    vec![
        Metric::labelled(
            "torrust_maintenance_runs",
            "Runs that have ended, by outcome and, of failures, by cause",
            Kind::Counter,
            ["outcome", "cause"],
            ended.into_iter().chain(failed),
        ),
        Metric::counter(
            "torrust_maintenance_windows_missed",
            "Windows that came and went without a run",
            number(totals.missed),
        ),
        Metric::counter(
            "torrust_maintenance_pause_seconds",
            "Seconds the gate was closed, all runs together",
            seconds(totals.pause_ms),
        ),
        Metric::gauge(
            "torrust_maintenance_last_run_end_timestamp_seconds",
            "When the last run ended, however it did",
            of_last(|run| timestamp(run.ended)),
        ),
        Metric::gauge(
            "torrust_maintenance_last_run_failed",
            "Whether the last run was anything but done",
            of_last(|run| flag(run.outcome != Outcome::Done)),
        ),
        Metric::gauge(
            "torrust_maintenance_last_run_duration_seconds",
            "Seconds the last run took",
            of_last(|run| span(run.began, run.ended)),
        ),
        Metric::gauge(
            "torrust_maintenance_last_run_pause_seconds",
            "Seconds the gate was closed in the last run, all closures together",
            of_last(|run| seconds(run.pause_ms)),
        ),
        Metric::gauge(
            "torrust_maintenance_last_run_longest_pause_seconds",
            "Seconds of the longest closure of the last run",
            of_last(|run| seconds(run.longest_pause_ms)),
        ),
        Metric::gauge(
            "torrust_maintenance_last_run_pause_limit_seconds",
            "Seconds after which a closure of the last run was given up; not there without one",
            last.and_then(|run| run.pause_limit_ms).map(seconds),
        ),
        Metric::gauge(
            "torrust_maintenance_pinned_wal_bytes",
            "Bytes the write-ahead log has grown by under the pin, or had under the last one",
            pinned.map(number),
        ),
    ]
}

fn of_the_backup(status: &Status) -> Vec<Metric> {
    let backup = status.backup.as_ref();
    // What a sidecar has is in no catalogue of this process.
    let by_sidecar = status
        .runs
        .iter()
        .find(|run| status.taken_by == Taker::Sidecar && run.outcome == Outcome::Done)
        .map(|run| run.ended);
    let success = backup.map(|backup| backup.published).max(by_sidecar);
    vec![
        Metric::gauge(
            "torrust_maintenance_last_success_timestamp_seconds",
            "When the newest good backup was published, or a sidecar last had its copy",
            success.map(timestamp),
        ),
        Metric::gauge(
            "torrust_maintenance_backup_pinned_timestamp_seconds",
            "The instant the newest good backup shows",
            backup.map(|backup| timestamp(backup.pinned)),
        ),
        Metric::gauge(
            "torrust_maintenance_backup_verified_timestamp_seconds",
            "When the newest good backup last passed a check",
            backup.map(|backup| timestamp(backup.verified)),
        ),
        Metric::gauge(
            "torrust_maintenance_backup_database_bytes",
            "Bytes of the database in the newest good backup, unpacked",
            backup.map(|backup| number(backup.raw_bytes)),
        ),
        Metric::gauge(
            "torrust_maintenance_backup_stored_bytes",
            "Bytes the newest good backup takes on the disk",
            backup.map(|backup| number(backup.stored_bytes)),
        ),
        Metric::gauge(
            "torrust_maintenance_backup_compression_ratio",
            "How many times as large its database is as what is stored of it",
            backup.map(|backup| number(backup.raw_bytes) / number(backup.stored_bytes.max(1))),
        ),
        Metric::gauge(
            "torrust_maintenance_backup_duration_seconds",
            "Seconds from the beginning of its run until it was published",
            backup.map(|backup| backup.seconds),
        ),
        Metric::gauge(
            "torrust_maintenance_backup_copy_duration_seconds",
            "Seconds of these from ready to the durable raw copy",
            backup.map(|backup| backup.copy_seconds),
        ),
    ]
}

fn of_those_told(status: &Status) -> Vec<Metric> {
    let notify = status.notify.as_ref();
    let channels = || {
        let channels = notify.map(|notify| {
            [
                ("webhook", notify.webhook.as_ref()),
                ("heartbeat", notify.heartbeat.as_ref()),
            ]
        });
        let channels = channels.into_iter().flatten();
        channels.filter_map(|(name, channel)| Some((name.to_owned(), channel?)))
    };
    let notices = channels().flat_map(|(name, channel)| {
        [
            ([name.clone(), "delivered".to_owned()], channel.delivered),
            ([name.clone(), "failed".to_owned()], channel.failed),
            ([name, "dropped".to_owned()], channel.dropped),
        ]
    });
    vec![
        Metric::labelled(
            "torrust_maintenance_notices",
            "Notices delivered, given up, and dropped for newer ones",
            Kind::Counter,
            ["channel", "result"],
            notices.map(|(labels, count)| (labels, number(count))),
        ),
        Metric::labelled(
            "torrust_maintenance_notices_waiting",
            "Notices that could not be delivered yet and are tried again",
            Kind::Gauge,
            ["channel"],
            channels().map(|(name, channel)| ([name], number(channel.waiting))),
        ),
        Metric::labelled(
            "torrust_maintenance_notify_failing",
            "Whether nothing gets through: several attempts failed, or the last notice was given up",
            Kind::Gauge,
            ["channel"],
            channels().map(|(name, channel)| ([name], flag(channel.failing.is_some()))),
        ),
        Metric::labelled(
            "torrust_maintenance_hook_failures",
            "How often a hook has failed",
            Kind::Counter,
            ["hook"],
            status
                .hooks_failed
                .iter()
                .map(|(hook, count)| ([hook.name().to_owned()], number(*count))),
        ),
    ]
}

/// As it stands between quotes: the encoder writes a label's value as it is.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "exact up to nine quadrillion; Prometheus has no other numbers"
)]
fn number(count: u64) -> f64 {
    count as f64
}

fn seconds(milliseconds: f64) -> f64 {
    milliseconds / 1000.0
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds of this millennium are exact"
)]
fn timestamp(at: DateTime<Utc>) -> f64 {
    at.timestamp_millis() as f64 / 1000.0
}

fn span(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    let span: Duration = (to - from).to_std().unwrap_or_default();
    span.as_secs_f64()
}

/// Hands ready figures to the encoder, which wants to collect them itself.
#[derive(Debug)]
struct Metrics(Vec<Metric>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in &self.0 {
            let kind = match metric.kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Counter => MetricType::Counter,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut of_metric = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for Sample { labels, value } in &metric.samples {
                let mut of_sample = of_metric.encode_family(labels)?;
                match (value, metric.kind) {
                    (Value::Number(number), Kind::Counter) => {
                        ConstCounter::new(*number).encode(of_sample)?;
                    }
                    (Value::Number(number), Kind::Gauge | Kind::Histogram) => {
                        ConstGauge::new(*number).encode(of_sample)?;
                    }
                    (
                        Value::Distribution(Distribution {
                            seconds,
                            count,
                            buckets,
                        }),
                        _,
                    ) => {
                        // What has no bound is the largest number there.
                        let bound = |le: Option<f64>| le.unwrap_or(f64::MAX);
                        let buckets: Vec<_> = buckets
                            .iter()
                            .map(|bucket| (bound(bucket.le), bucket.count))
                            .collect();
                        of_sample
                            .encode_histogram::<NoLabelSet>(*seconds, *count, &buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// `OpenMetrics`, which the encoder writes, as the older text format, which every Prometheus
/// and `promtool` read: the header of a counter has the name of its samples, and there is no
/// mark at the end.
fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len() + 1024);
    let mut lines = open.lines().filter(|line| *line != "# EOF").peekable();
    while let Some(line) = lines.next() {
        let counter = |header: &str| header.starts_with("# TYPE ") && header.ends_with(" counter");
        let of_counter = counter(line) || lines.peek().is_some_and(|next| counter(next));
        match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
            ["#", what @ ("HELP" | "TYPE"), name, rest] if of_counter => {
                text.extend(["# ", what, " ", name, "_total ", rest]);
            }
            // What has no labels has none to enclose.
            _ => text.push_str(&line.replacen("{} ", " ", 1)),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests;
