use serde_json::{Value, json};

use super::*;

fn now() -> DateTime<Utc> {
    "2026-11-22T08:48:00Z".parse().expect("a time")
}

fn status(change: impl FnOnce(&mut Value)) -> Status {
    let none = json!({ "udp": 0, "http": 0 });
    let mut status = json!({
        "version": "0.1.0",
        "service": "torrust-tracker 3.0.0",
        "alive": true,
        "state": "serving",
        "ready": false,
        "gate": {
            "open": true, "closed_for_ms": null, "held": none,
            "released": { "udp": 5321, "http": 12 }, "merged": { "udp": 4, "http": 0 },
            "turned_away": none, "forced_open": 0,
        },
        "next": { "begins": "2026-11-23T03:00:00Z", "ends": "2026-11-23T03:05:00Z" },
        "run": null,
        "runs": [
            {
                "id": "20261122T030000Z-abcd", "trigger": "schedule",
                "began": "2026-11-22T03:00:00Z", "ended": "2026-11-22T03:02:05Z",
                "outcome": { "kind": "done" }, "pause_ms": 12.34, "longest_pause_ms": 12.34,
                "backup": "20261122T030000Z", "warnings": ["it shrank"],
            },
            {
                "id": "20261121T030000Z-efgh", "trigger": "operator",
                "began": "2026-11-21T03:00:00Z", "ended": "2026-11-21T03:05:00Z",
                "outcome": { "kind": "deadline", "phase": "copying", "message": "the window ended" },
                "pause_ms": 0.0, "longest_pause_ms": 0.0, "backup": null, "warnings": [],
            },
        ],
        "database": { "path": "./db/sqlite3.db", "journal_mode": "wal" },
    });
    change(&mut status);
    serde_json::from_value(status).expect("a status")
}

#[test]
fn a_switch_is_announced_and_what_kept_it_from_being_made_is_told() {
    let line = |switch: Value| {
        let status = status(|status| {
            let mode = json!({ "path": "./db/sqlite3.db", "journal_mode": "delete" });
            status["database"] = mode;
            status["database"]["switch"] = switch;
        });
        database(&status.database)
    };
    let ordered = "2026-11-22T08:00:00Z";
    assert_eq!(line(Value::Null), "./db/sqlite3.db, journal mode delete");
    assert_eq!(
        line(json!({ "ordered": ordered, "failed": null })),
        "./db/sqlite3.db, journal mode delete, to WAL in the next run"
    );
    let failed = json!({ "run": "20261122T030000Z-abcd", "reason": "somebody reads" });
    assert_eq!(
        line(json!({ "ordered": ordered, "failed": failed })),
        "./db/sqlite3.db, journal mode delete, to WAL in the next run\n           NOT SWITCHED in \
         run 20261122T030000Z-abcd: somebody reads"
    );
    let done = status(|status| status["runs"][0]["switched_to"] = "wal".into());
    let screen = screen(&done, None, now());
    assert!(
        screen.contains("20261122T030000Z; to journal mode wal"),
        "{screen}"
    );
}

#[test]
fn what_is_not_certain_to_be_stored_is_told() {
    let status = status(|status| {
        status["gate"]["unconfirmed"] = json!({ "udp": 3, "http": 1 });
    });
    let screen = screen(&status, None, now());
    let told = "0 HTTP; executed, and NOT CERTAIN TO BE STORED: 3 UDP, 1 HTTP\n";
    assert!(screen.contains(told), "{screen}");
}

#[test]
fn a_quiet_night() {
    assert_eq!(
        screen(&status(|_| {}), None, now()),
        "\
service    torrust-tracker 3.0.0, maintenance 0.1.0
announces  flow
run        none
next       2026-11-23 03:00 UTC, in 18 h 12 min, for 5 min
backup     20261122T030000Z, 5 h 48 min ago
database   ./db/sqlite3.db, journal mode wal
gate       since start: 5321 UDP, 12 HTTP held and answered; 4 UDP resends merged; turned away: 0 UDP, 0 HTTP

ENDED (UTC)          BY        OUTCOME      TOOK    PAUSE  BACKUP OR REASON
2026-11-22 03:02:05  schedule  done      2 min 5 s  12.3 ms  20261122T030000Z; warning: it shrank
2026-11-21 03:05:00  operator  DEADLINE      5 min   0.0 ms  while copying: the window ended"
            .replace("OUTCOME      TOOK    PAUSE", "OUTCOME        TOOK    PAUSE")
    );
}

#[test]
fn a_driver_that_broke_is_not_a_quiet_night() {
    let screen = screen(
        &status(|status| status["alive"] = json!(false)),
        None,
        now(),
    );
    assert!(
        screen.contains("NEVER: the maintenance driver broke"),
        "{screen}"
    );
}

#[test]
fn who_has_the_lease_is_said() {
    let status = status(|status| {
        status["state"] = json!("leased");
        status["run"] = json!({
            "id": "20261122T084755Z-wxyz", "trigger": "schedule",
            "began": "2026-11-22T08:47:55Z", "attempt": 1, "progress": null,
            "lease": { "holder": "vault-1", "expires_seconds": 30.6 },
        });
    });
    let screen = screen(&status, None, now());
    let expected = "\
run        20261122T084755Z-wxyz (schedule): leased, began 5 s ago
           sidecar vault-1, its lease runs out in 31 s unless renewed
";
    assert!(screen.contains(expected), "{screen}");
}

#[test]
fn in_the_middle_of_a_run() {
    let status = status(|status| {
        status["state"] = json!("copying");
        status["gate"]["closed_for_ms"] = json!(1234.5);
        status["gate"]["open"] = json!(false);
        status["gate"]["held"] = json!({ "udp": 40, "http": 2 });
        status["gate"]["forced_open"] = json!(1);
        status["run"] = json!({
            "id": "20261122T084755Z-wxyz", "trigger": "operator",
            "began": "2026-11-22T08:47:55Z", "attempt": 2,
            "progress": { "doing": "copying", "done": 4_000_000_000_u64, "total": 16_000_000_000_u64, "seconds": 5.0 },
        });
        status["runs"] = json!([]);
        status["next"] = json!(null);
    });
    assert_eq!(
        screen(&status, None, now()),
        "\
service    torrust-tracker 3.0.0, maintenance 0.1.0
announces  HELD for 1.23 s now: 40 UDP, 2 HTTP wait
WARNING    the watchdog had to open the gate 1 times: a defect, please report it with the log
run        20261122T084755Z-wxyz (operator): copying, attempt 2, began 5 s ago
           copying: 4.0 GB of 16.0 GB, 25 %, 800 MB/s, 15 s left
next       no window is ever due
backup     NONE that is known of; `torrust-maintenance run` makes one
database   ./db/sqlite3.db, journal mode wal
gate       since start: 5321 UDP, 12 HTTP held and answered; 4 UDP resends merged; turned away: 0 UDP, 0 HTTP

no run has ended since the service started"
    );
}

#[test]
fn progress_promises_nothing_it_cannot_know() {
    let at = |done, total, seconds, expected| {
        progress(&Progress {
            doing: "copying".to_owned(),
            done,
            total,
            seconds,
            expected,
        })
    };
    let shown = |done, total, seconds| at(done, total, seconds, None);
    let expected = |seconds| at(0, None, seconds, Some(800.0));
    assert_eq!(
        expected(50.0),
        "copying: 50 s so far, about 12 min 30 s left"
    );
    assert_eq!(
        expected(900.0),
        "copying: 900 s so far, longer than the 13 min 20 s expected"
    );
    assert_eq!(shown(5_000, None, 3.0), "copying: 5.0 kB");
    assert_eq!(shown(0, Some(1000), 3.0), "copying: 0 B of 1.0 kB, 0 %");
    assert_eq!(shown(0, Some(0), 0.0), "copying: 0 s so far");
    assert_eq!(
        shown(999, Some(1000), 0.1),
        "copying: 999 B of 1.0 kB, 99 %"
    );
    assert_eq!(
        shown(2000, Some(1000), 9.0),
        "copying: 2.0 kB of 1.0 kB, 100 %, 222 B/s, 0 s left"
    );
}

#[test]
fn who_is_told_is_shown_and_who_is_not() {
    let channel = |failing: Value| {
        json!({
            "target": "https://hooks.example.org", "delivered": 3, "failed": 1, "dropped": 4,
            "waiting": if failing.is_null() { 0 } else { 2 },
            "last_delivered": null, "failing": failing,
        })
    };
    let why = json!({ "at": "2026-11-22T03:00:00Z", "reason": "it answered 404" });
    let status = status(|status| {
        status["notify"] = json!({ "webhook": channel(why), "heartbeat": channel(Value::Null) });
    });
    let screen = screen(&status, None, now());
    for line in [
        "notify     webhook https://hooks.example.org: 3 delivered, 5 not, 2 tried again; \
         FAILING: it answered 404",
        "notify     heartbeat https://hooks.example.org: 3 delivered, 5 not",
    ] {
        assert!(screen.lines().any(|shown| shown == line), "{screen}");
    }
}
