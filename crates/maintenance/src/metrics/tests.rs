#![expect(
    clippy::disallowed_methods,
    reason = "the tests read files of the repository"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::*;

/// A status with everything in it that can be.
fn status() -> Status {
    let per_door = |udp: u64, http: u64| json!({ "udp": udp, "http": http });
    let time = "2026-11-22T03:00:00Z";
    let channel = json!({
        "target": "https://hooks.example.org", "delivered": 3, "failed": 1, "waiting": 2, "dropped": 4,
        "last_delivered": time, "failing": { "at": time, "reason": "it hung" },
    });
    let run = |id: &str, outcome: Value| {
        json!({
            "id": id, "trigger": "schedule", "began": time, "ended": "2026-11-22T03:00:09.5Z",
            "outcome": outcome, "pause_ms": 12.5, "longest_pause_ms": 7.5, "pause_limit_ms": 3500.0, "backup": null,
            "sidecar": null, "warnings": [], "wal_bytes": 4096,
        })
    };
    let took = |fast: u64, slow: u64| {
        json!({
            "count": fast + slow, "seconds": 1.5,
            "buckets": [{ "le": 0.0001, "count": fast }, { "le": 10.0, "count": 0 }, { "le": null, "count": slow }],
        })
    };
    let status = json!({
        "version": "0.1.0", "service": "service \"1\"", "alive": true, "state": "finishing",
        "ready": false,
        "gate": {
            "open": false, "closed_for_ms": 250.0, "held": per_door(1, 2),
            "released": per_door(3, 4), "merged": per_door(5, 0),
            "turned_away": per_door(6, 7), "unconfirmed": per_door(0, 8), "forced_open": 9,
        },
        "next": { "begins": time, "ends": "2026-11-22T03:05:00Z" },
        "run": null,
        "runs": [
            run("b", json!({ "kind": "deadline", "phase": "copying", "message": "late" })),
            run("a", json!({ "kind": "done" })),
        ],
        "database": { "path": "/var/lib/db", "journal_mode": "wal", "wal_bytes": 8192 },
        "traffic": {
            "udp": { "announces": took(70, 7), "scrapes": took(6, 0), "database_seconds": 2.25 },
            "http": { "announces": took(5, 1), "scrapes": took(0, 0), "database_seconds": 0.5 },
        },
        "process": { "cpu_seconds": 12.5, "resident_bytes": 50_000_000, "written_bytes": 123 },
        "started": "2026-11-21T00:00:00Z",
        "backup": {
            "id": "20261122T030000Z", "pinned": time, "published": "2026-11-22T03:00:09Z",
            "verified": "2026-11-22T03:00:09Z", "verify": "quick", "raw_bytes": 4000,
            "stored_bytes": 1000, "copy_seconds": 1.5, "seconds": 9.0, "pause_ms": 7.5,
        },
        "taken_by": "tracker", "hold_for_seconds": 90.0,
        "totals": {
            "runs": { "done": 2, "deadline": 1 }, "failed": { "verification": 4 },
            "missed": 5, "pause_ms": 1500.0,
        },
        "notify": { "webhook": channel, "heartbeat": null },
        "hooks_failed": { "before": 0, "after": 2 },
        "remote": {
            "behind": 2, "behind_since_seconds": 3600.5, "last_uploaded": time,
            "failure": "it is full", "failing_since_seconds": 60.0, "replaced": 3,
            "broken": [{ "id": "20261122T030000Z", "why": "it is gone" }],
        },
    });
    serde_json::from_value(status).expect("a status")
}

/// The samples, by name and labels.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

#[test]
fn every_figure_is_that_of_the_status() {
    let samples = samples(&render(&status()));
    for (name, value) in [
        (
            "build_info{version=\"0.1.0\",service=\"service \\\"1\\\"\"}",
            1.0,
        ),
        ("start_timestamp_seconds", 1_795_219_200.0),
        ("driver_alive", 1.0),
        ("state{state=\"finishing\"}", 1.0),
        ("state{state=\"serving\"}", 0.0),
        ("next_window_timestamp_seconds", 1_795_316_400.0),
        ("gate_closed", 1.0),
        ("gate_closed_seconds", 0.25),
        ("gate_hold_limit_seconds", 90.0),
        ("gate_forced_open_total", 9.0),
        ("requests_held{door=\"http\"}", 2.0),
        ("requests_released_total{door=\"udp\"}", 3.0),
        ("requests_merged_total{door=\"udp\"}", 5.0),
        ("requests_turned_away_total{door=\"http\"}", 7.0),
        ("requests_unconfirmed_total{door=\"http\"}", 8.0),
        ("runs_total{outcome=\"done\",cause=\"none\"}", 2.0),
        ("runs_total{outcome=\"deadline\",cause=\"none\"}", 1.0),
        ("runs_total{outcome=\"aborted\",cause=\"none\"}", 0.0),
        ("runs_total{outcome=\"failed\",cause=\"verification\"}", 4.0),
        ("runs_total{outcome=\"failed\",cause=\"hook\"}", 0.0),
        ("windows_missed_total", 5.0),
        ("pause_seconds_total", 1.5),
        ("last_run_end_timestamp_seconds", 1_795_316_409.5),
        ("last_run_failed", 1.0),
        ("last_run_duration_seconds", 9.5),
        ("last_run_pause_seconds", 0.0125),
        ("last_run_longest_pause_seconds", 0.0075),
        ("last_run_pause_limit_seconds", 3.5),
        ("pinned_wal_bytes", 4096.0),
        ("last_success_timestamp_seconds", 1_795_316_409.0),
        ("backup_pinned_timestamp_seconds", 1_795_316_400.0),
        ("backup_verified_timestamp_seconds", 1_795_316_409.0),
        ("backup_database_bytes", 4000.0),
        ("backup_stored_bytes", 1000.0),
        ("backup_compression_ratio", 4.0),
        ("backup_duration_seconds", 9.0),
        ("backup_copy_duration_seconds", 1.5),
        (
            "notices_total{channel=\"webhook\",result=\"delivered\"}",
            3.0,
        ),
        ("notices_total{channel=\"webhook\",result=\"failed\"}", 1.0),
        ("notices_total{channel=\"webhook\",result=\"dropped\"}", 4.0),
        ("notices_waiting{channel=\"webhook\"}", 2.0),
        ("notify_failing{channel=\"webhook\"}", 1.0),
        ("hook_failures_total{hook=\"after\"}", 2.0),
        ("upload_behind", 2.0),
        ("upload_behind_seconds", 3600.5),
        ("upload_failing", 1.0),
        ("upload_failing_seconds", 60.0),
        ("upload_last_success_timestamp_seconds", 1_795_316_400.0),
        ("upload_broken", 1.0),
        ("upload_replaced_total", 3.0),
        ("database_seconds_total{door=\"udp\"}", 2.25),
        ("database_seconds_total{door=\"http\"}", 0.5),
        ("wal_bytes", 8192.0),
        ("journal_mode{mode=\"wal\"}", 1.0),
        ("written_bytes_total", 123.0),
    ] {
        let found = samples.get(&format!("torrust_maintenance_{name}"));
        assert_eq!(found, Some(&value), "{name} of {samples:#?}");
    }
    for (name, value) in [
        ("process_cpu_seconds_total", 12.5),
        ("process_resident_memory_bytes", 50_000_000.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} of {samples:#?}");
    }
    // Of each door's announces and scrapes three buckets, the sum and the count.
    let of_latency = |name: &&String| name.contains("request_duration_seconds");
    assert_eq!(samples.keys().filter(of_latency).count(), 4 * 5);
    assert_eq!(samples.len(), 81 + 4 * 5, "no other: {samples:#?}");
}

/// Buckets count those before them, as Prometheus has it, and end with all.
#[test]
fn latencies_are_a_histogram() {
    let samples = samples(&render(&status()));
    let of = |suffix: &str, labels: [&str; 3]| {
        let name = format!("torrust_maintenance_request_duration_seconds_{suffix}");
        let named = |sample: &&String| {
            let rest = sample.strip_prefix(&name);
            rest.is_some_and(|rest| labels.iter().all(|label| rest.contains(label)))
        };
        let found: Vec<&String> = samples.keys().filter(named).collect();
        assert_eq!(found.len(), 1, "{suffix} {labels:?}: {samples:#?}");
        Some(samples[found[0]])
    };
    for (door, request, [fast, all]) in [
        ("udp", "announce", [70.0, 77.0]),
        ("udp", "scrape", [6.0, 6.0]),
        ("http", "announce", [5.0, 6.0]),
        ("http", "scrape", [0.0, 0.0]),
    ] {
        let (door, request) = (format!("door=\"{door}\""), format!("request=\"{request}\""));
        let bucket = |le| of("bucket", [&door, &request, le]);
        assert_eq!(
            ["le=\"0.0001\"", "le=\"10.0\"", "le=\"+Inf\""].map(bucket),
            [fast, fast, all].map(Some)
        );
        assert_eq!(of("count", [&door, &request, ""]), Some(all));
        assert_eq!(of("sum", [&door, &request, ""]), Some(1.5));
    }
}

/// Of the status' many buckets Prometheus is told the classic ones, and the counts at their bounds
/// are exact.
#[test]
fn the_histogram_has_the_classic_bounds() {
    let latencies = crate::latency::Latencies::default();
    for microseconds in [30, 100, 101, 240, 10_000_000, 10_000_001] {
        latencies.record(Duration::from_micros(microseconds), 1);
    }
    let mut status = status();
    status.traffic.udp.announces = latencies.read();
    let samples = samples(&render(&status));
    let of = |le: &str| {
        let mut named = samples.iter().filter(|(name, _)| {
            let parts = ["_bucket", "door=\"udp\"", "request=\"announce\"", le];
            parts.iter().all(|part| name.contains(part))
        });
        let found = named.next().map(|(_, count)| *count);
        assert_eq!(named.next(), None, "{le}");
        found
    };
    for (le, count) in [
        ("le=\"0.0001\"", 2.0),
        ("le=\"0.00025\"", 4.0),
        ("le=\"5.0\"", 4.0),
        ("le=\"10.0\"", 5.0),
        ("le=\"+Inf\"", 6.0),
    ] {
        assert_eq!(of(le), Some(count), "{le}: {samples:#?}");
    }
    let of_all = samples.keys().filter(|name| {
        name.contains("_bucket") && name.contains("\"udp\"") && name.contains("\"announce\"")
    });
    assert_eq!(of_all.count(), 17);
}

#[test]
fn what_is_not_known_is_left_out() {
    let mut status = status();
    status.runs.clear();
    status.backup = None;
    status.next = None;
    status.notify = None;
    status.hooks_failed.clear();
    status.remote = None;
    status.database.wal_bytes = None;
    // As a version has it that did not measure this, on a machine that does not tell that.
    status.traffic = Traffic::default();
    status.process = Consumption::default();
    let text = render(&status);
    assert!(!text.contains("process_"), "{text}");
    for absent in [
        "last_",
        "backup_",
        "next_",
        "notices",
        "notify",
        "hook_",
        "pinned_",
        "upload_",
        "request_duration",
        "wal_bytes",
        "written_",
    ] {
        let name = format!("torrust_maintenance_{absent}");
        assert!(!text.contains(&name), "{absent} in {text}");
    }
}

#[test]
fn where_all_is_uploaded_there_is_no_lag() {
    let mut status = status();
    status.remote = Some(RemoteStatus::default());
    let samples = samples(&render(&status));
    for (name, value) in [
        ("behind", Some(0.0)),
        ("behind_seconds", Some(0.0)),
        ("failing", Some(0.0)),
        ("failing_seconds", Some(0.0)),
        ("broken", Some(0.0)),
        ("replaced_total", Some(0.0)),
        // Nothing ever was.
        ("last_success_timestamp_seconds", None),
    ] {
        let found = samples.get(&format!("torrust_maintenance_upload_{name}"));
        assert_eq!(found.copied(), value, "{name}");
    }
}

#[test]
fn a_sidecars_copy_is_a_success_where_a_sidecar_copies() {
    let name = "torrust_maintenance_last_success_timestamp_seconds";
    let mut status = status();
    status.backup = None;
    assert_eq!(samples(&render(&status)).get(name), None);
    status.taken_by = Taker::Sidecar;
    let success = samples(&render(&status)).get(name).copied();
    assert_eq!(success, Some(1_795_316_409.5));
}

/// As the text format has it: of each name first what it is, and then all its samples.
#[test]
fn each_name_is_described_before_its_samples() {
    let text = render(&status());
    let mut described = BTreeMap::new();
    let mut current = "";
    let of_histogram = |name: &str, described: &BTreeMap<&str, &str>, current: &str| {
        let suffix = name.strip_prefix(current).unwrap_or_default();
        described.get(current) == Some(&"histogram")
            && ["_bucket", "_sum", "_count"].contains(&suffix)
    };
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help");
            assert_eq!(described.insert(name, ""), None, "{name} is there twice");
            assert!(help.len() > 10, "{line}");
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert_eq!(name, current);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            described.insert(name, kind);
        } else {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert!(
                name == current || of_histogram(name, &described, current),
                "{line}"
            );
            assert!(!line.contains("{}"), "{line}");
        }
    }
    assert!(described.values().all(|kind| !kind.is_empty()));
}

/// What alerts and dashboard ask for. That it is in an answer of a real tracker, too, is for
/// the end-to-end tests to see.
#[test]
fn alerts_dashboard_and_documentation_name_what_there_is() {
    let text = render(&status());
    let known: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let histograms: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" histogram"))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in [
        "config/prometheus/alerts.yml",
        "config/prometheus/alerts.test.yml",
        "config/grafana/maintenance.json",
        "docs/monitoring.md",
    ] {
        let contents = std::fs::read_to_string(root.join(file)).expect(file);
        let named = named(&contents);
        assert!(named.len() > 5, "{file} names few: {named:?}");
        for name in named {
            let mut suffixes = ["_bucket", "_sum", "_count"].iter();
            let whole = suffixes.find_map(|suffix| name.strip_suffix(suffix));
            assert!(
                known.contains(name) || whole.is_some_and(|whole| histograms.contains(whole)),
                "{file}: there is no {name}"
            );
        }
    }
    let documented = std::fs::read_to_string(root.join("docs/monitoring.md")).expect("it is there");
    for name in known {
        assert!(documented.contains(name), "docs/monitoring.md: not {name}");
    }
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("torrust_maintenance_"))
        .collect()
}
