use serde_json::Value;
use torrust_tracker_maintenance::catalogue::{BackupId, Check, Flaw, Manifest, Notes};

use super::*;

fn now() -> DateTime<Utc> {
    "2026-11-22T12:00:00Z".parse().expect("a time")
}

fn arguments() -> Arguments {
    Arguments {
        max_age: Duration::from_secs(26 * 3600),
        min_size: Percent(50),
    }
}

/// A backup of this many days ago, at 03:00 UTC, of a database of so many bytes.
fn backup(days_ago: i64, bytes: u64) -> Entry {
    let pinned: DateTime<Utc> = "2026-11-22T03:00:00Z".parse().expect("a time");
    let pinned = pinned - TimeDelta::days(days_ago);
    let id = pinned.format("%Y%m%dT%H%M%SZ").to_string();
    let manifest = json!({
        "format": 1, "id": id, "run": "20261122T030000Z-abcd", "began": pinned,
        "pinned": pinned, "published": pinned, "service": "s", "library": "l", "sqlite": "3",
        "driver": "sqlite3", "source": "/db", "journal_mode": "wal", "read_mark_zero": null,
        "page_size": 4096, "page_count": 1, "method": "pages", "pause_ms": 2.5,
        "copy_seconds": 1.0,
        "database": {
            "name": "database.sqlite3.zst", "stored_bytes": 10, "stored_sha256": "",
            "raw_bytes": bytes, "raw_sha256": "", "compression": "zstd",
        },
        "rows": {}, "verified": "quick",
    });
    let manifest: Manifest = serde_json::from_value(manifest).expect("a manifest");
    Entry::Good(Backup {
        dir: "/backups".into(),
        manifest,
        notes: Notes::default(),
        identities: None,
    })
}

fn damaged(mut entry: Entry) -> Entry {
    if let Entry::Good(backup) = &mut entry {
        backup.notes.checks.push(Check {
            at: now(),
            depth: None,
            seconds: 1.0,
            findings: vec!["a byte is wrong".to_owned()],
        });
    }
    entry
}

fn in_doubt(mut entry: Entry) -> Entry {
    if let Entry::Good(backup) = &mut entry {
        backup.notes.unreadable = Some("permission denied".to_owned());
    }
    entry
}

fn tracker(change: impl FnOnce(&mut Value)) -> Status {
    let none = json!({ "udp": 0, "http": 0 });
    let mut status = json!({
        "version": "0.1.0", "service": "s", "alive": true, "state": "serving", "ready": false,
        "gate": {
            "open": true, "closed_for_ms": null, "held": none, "released": none,
            "merged": none, "turned_away": none, "forced_open": 0,
        },
        "next": null, "run": null, "runs": [],
        "database": { "path": "/db", "journal_mode": "wal" }, "hold_for_seconds": 90.0,
    });
    change(&mut status);
    serde_json::from_value(status).expect("a status")
}

fn judge(entries: &[Entry], tracker: Option<&Status>) -> (u8, String) {
    let report = arguments().judge(entries, tracker, now());
    (report.verdict().code(), report.line())
}

#[test]
fn a_recent_backup_of_the_usual_size_is_ok() {
    let entries = [backup(0, 900), backup(1, 1000), backup(2, 1100)];
    let (code, line) = judge(&entries, Some(&tracker(|_| {})));
    assert_eq!(code, 0);
    assert_eq!(
        line,
        "OK: backup 20261122T030000Z is 9 h old, 900 B unpacked | age=32400s;;93600 \
         pause=0.002500s size=900B;;500: stored=10B"
    );
}

#[test]
fn what_it_finds_is_told_by_its_code() {
    let good = || vec![backup(0, 900), backup(1, 1000)];
    let many = |newest| {
        let mut entries = vec![backup(0, newest)];
        entries.extend((1..=9).map(|day| backup(day, 1000)));
        entries
    };
    let broken = |flaw| Entry::Broken {
        name: BackupId::try_from("20261122T040000Z".to_owned()).expect("an id"),
        flaw,
        why: "no manifest".to_owned(),
    };
    for (what, entries, code, says) in [
        ("one alone", vec![backup(0, 1)], 0, "9 h old"),
        ("none", vec![], 2, "there is no good backup"),
        ("old", vec![backup(2, 900)], 2, "older than 1 d 2 h"),
        (
            "of the future",
            vec![backup(-1, 900)],
            3,
            "the clocks are wrong",
        ),
        ("half as large", many(500), 0, "500 B"),
        (
            "less than half",
            many(499),
            2,
            "less than 50% of the usual 1.0 kB",
        ),
        ("empty", many(0), 2, "0 B"),
        ("damaged", vec![damaged(backup(0, 900))], 2, "found damaged"),
        (
            "the newest damaged",
            vec![damaged(backup(0, 900)), backup(1, 900)],
            2,
            "older than",
        ),
        (
            "the newest in doubt",
            vec![in_doubt(backup(0, 900)), backup(1, 900)],
            2,
            "20261122T030000Z may have been found damaged: permission denied",
        ),
        (
            "an old one in doubt",
            vec![backup(0, 900), in_doubt(backup(1, 900))],
            0,
            "9 h old",
        ),
        (
            "an old one damaged",
            vec![backup(0, 900), damaged(backup(1, 900))],
            0,
            "9 h old",
        ),
        (
            "a newer one broken",
            [vec![broken(Flaw::Damaged)], good()].concat(),
            1,
            "20261122T040000Z is no good: no manifest",
        ),
        (
            "a newer one that cannot be read",
            [vec![broken(Flaw::Unreadable)], good()].concat(),
            1,
            "20261122T040000Z cannot be read: no manifest",
        ),
    ] {
        let (found, line) = judge(&entries, None);
        assert_eq!(found, code, "{what}: {line}");
        assert!(line.contains(says), "{what}: {line}");
        assert_eq!(line.lines().count(), 1, "{what}: {line}");
    }
}

#[test]
fn what_the_tracker_says_counts_if_it_answers() {
    type Change = Box<dyn FnOnce(&mut Value)>;
    let entries = [backup(0, 900), backup(1, 1000)];
    let failed = json!([{
        "id": "20261122T110000Z-abcd", "trigger": "operator",
        "began": "2026-11-22T11:00:00Z", "ended": "2026-11-22T11:00:01Z",
        "outcome": {
            "kind": "failed", "phase": "preparing", "cause": "hook", "message": "a | b\nc",
        },
        "pause_ms": 0.0, "longest_pause_ms": 0.0, "backup": null, "sidecar": null,
        "warnings": [],
    }]);
    let failing = json!({
        "webhook": null,
        "heartbeat": {
            "target": "https://hc.example.org", "delivered": 0, "failed": 1,
            "last_delivered": null,
            "failing": { "at": "2026-11-22T03:00:00Z", "reason": "it hung" },
        },
    });
    let changes: [(u8, &str, Change); 4] = [
        (
            1,
            "20261122T110000Z-abcd, made no backup: while preparing: a   b c",
            Box::new(|status| status["runs"] = failed),
        ),
        (
            1,
            "the heartbeat is not reached: it hung",
            Box::new(|status| status["notify"] = failing),
        ),
        (
            2,
            "announces have waited for 91 s",
            Box::new(|status| status["gate"]["closed_for_ms"] = json!(91_000.0)),
        ),
        (
            2,
            "the maintenance driver broke",
            Box::new(|status| status["alive"] = json!(false)),
        ),
    ];
    for (code, says, change) in changes {
        let (found, line) = judge(&entries, Some(&tracker(change)));
        assert_eq!(found, code, "{line}");
        let (_, message) = line.split_once(": ").expect("a state");
        let first = message.split("; ").next().expect("a message");
        assert!(first.contains(says), "what counts comes first: {line}");
    }
}

#[test]
fn uploads_that_fail_or_are_late_are_told_by_the_time_they_are() {
    let hours = |hours: f64| json!(hours * 3600.0);
    let entries = [backup(0, 900), backup(1, 1000)];
    let broken = json!([{ "id": "20261120T030000Z", "why": "it is not there" }]);
    for (what, remote, code, says) in [
        ("all is there", json!({ "behind": 0 }), 0, "9 h old"),
        (
            "on its way",
            json!({ "behind": 1, "behind_since_seconds": hours(5.9) }),
            0,
            "9 h old",
        ),
        (
            "late",
            json!({ "behind": 1, "behind_since_seconds": hours(6.1) }),
            1,
            "1 backup is missing in the second place, for 6 h",
        ),
        (
            "older than may be",
            json!({ "behind": 2, "behind_since_seconds": hours(27.0) }),
            2,
            "2 backups are missing in the second place, the oldest for 1 d 3 h",
        ),
        (
            "failing",
            json!({ "behind": 0, "failure": "it is full", "failing_since_seconds": 30.0 }),
            1,
            "uploads fail: it is full",
        ),
        (
            "failing for long",
            json!({ "behind": 0, "failure": "it is full", "failing_since_seconds": hours(27.0) }),
            2,
            "uploads have failed for 1 d 3 h: it is full",
        ),
        (
            "broken",
            json!({ "behind": 0, "broken": broken }),
            1,
            "backup 20261120T030000Z in the second place is broken: it is not there",
        ),
    ] {
        let mut status = json!({
            "behind": 0, "behind_since_seconds": null, "last_uploaded": null, "failure": null,
        });
        for (key, value) in remote.as_object().expect("an object") {
            status[key] = value.clone();
        }
        let tracker = tracker(|all| all["remote"] = status);
        let (found, line) = judge(&entries, Some(&tracker));
        assert_eq!(found, code, "{what}: {line}");
        let (_, message) = line.split_once(": ").expect("a state");
        assert!(
            message.starts_with(says) || code == 0 && message.contains(says),
            "{what}: {line}"
        );
        assert!(line.contains("upload_lag="), "{what}: {line}");
    }
    let (_, line) = judge(&entries, Some(&tracker(|_| {})));
    assert!(!line.contains("upload"), "there is no second place: {line}");
}

#[test]
fn json_has_what_the_line_has() {
    let report = arguments().judge(&[backup(0, 900), backup(1, 1000)], None, now());
    let json = report.json();
    assert_eq!(json["state"], "ok");
    assert_eq!(json["exit_code"], 0);
    assert_eq!(json["backup"], "20261122T030000Z");
    assert_eq!(json["age_seconds"], 32_400);
    assert_eq!(
        (&json["bytes"], &json["usual_bytes"]),
        (&json!(900), &json!(1000))
    );
    assert_eq!(json["tracker"], "not asked");
}

#[test]
fn the_worst_counts_and_nothing_is_not_ok() {
    assert_eq!(Report::default().verdict(), Verdict::Unknown);
    let mut all = [
        Verdict::Critical,
        Verdict::Ok,
        Verdict::Unknown,
        Verdict::Warning,
    ];
    all.sort_unstable();
    assert_eq!(all.map(Verdict::code), [0, 1, 3, 2]);
}

#[test]
fn percentages() {
    for (text, percent) in [("50%", Some(50)), ("0", Some(0)), ("100%", Some(100))]
        .into_iter()
        .chain([("101%", None), ("-1%", None), ("half", None), ("", None)])
    {
        let parsed: Result<Percent, _> = text.parse();
        assert_eq!(parsed.ok(), percent.map(Percent), "{text}");
    }
    assert_eq!(of_hundred(u64::MAX, Percent(100)), u64::MAX);
    assert_eq!(median(vec![]), None);
    assert_eq!(median(vec![3, 1, 2]), Some(2));
    assert_eq!(median(vec![4, 3, 1, 2]), Some(2));
}
