//! A tracker's status as a test wants it to be.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use torrust_tracker_maintenance::status::Status;

/// What a tracker says of itself, to be changed.
#[derive(Debug, Clone)]
pub struct Played(Value);

impl Played {
    /// One that has answered nothing yet.
    pub fn new(journal_mode: &str) -> Self {
        let none = json!({ "udp": 0, "http": 0 });
        let took = json!({
            "count": 0, "seconds": 0.0,
            "buckets": [{ "le": 0.001, "count": 0 }, { "le": 0.01, "count": 0 }, { "le": null, "count": 0 }],
        });
        let door = json!({ "announces": took, "scrapes": took, "database_seconds": 0.0 });
        Self(json!({
            "version": "0.1.0", "service": "torrust-tracker 3.0.0", "alive": true,
            "state": "serving", "ready": false,
            "gate": {
                "open": true, "closed_for_ms": null, "held": none, "released": none,
                "merged": none, "turned_away": none, "unconfirmed": none, "forced_open": 0,
            },
            "next": { "begins": "2026-11-23T03:00:00Z", "ends": "2026-11-23T03:05:00Z" },
            "run": null, "runs": [],
            "database": { "path": "./sqlite3.db", "journal_mode": journal_mode, "wal_bytes": null },
            "started": "2026-11-21T00:00:00Z",
            "traffic": { "udp": door, "http": door },
            "process": { "cpu_seconds": 1.0, "resident_bytes": 50_000_000, "written_bytes": 1_000_000 },
        }))
    }

    pub fn change(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.0);
    }

    /// Answers so many: nine announces of ten within a millisecond, the others within ten;
    /// scrapes within a millisecond.
    pub fn announce(&mut self, announces: u64, scrapes: u64) {
        let slow = announces / 10;
        self.answer("announces", 0, announces - slow);
        self.answer("announces", 1, slow);
        self.answer("scrapes", 0, scrapes);
    }

    fn answer(&mut self, request: &str, bucket: usize, more: u64) {
        let took = &mut self.0["traffic"]["udp"][request];
        for count in ["/count", &format!("/buckets/{bucket}/count")] {
            let count = took.pointer_mut(count).expect("it is there");
            *count = json!(count.as_u64().expect("a count") + more);
        }
    }

    /// As a tracker does that is started again: its counters begin anew.
    pub fn restart(&mut self, at: &str) {
        let journal_mode = self.0["database"]["journal_mode"].clone();
        *self = Self::new(journal_mode.as_str().expect("a mode"));
        self.0["started"] = json!(at);
    }

    pub fn status(&self) -> Status {
        serde_json::from_value(self.0.clone()).expect("a status")
    }
}

/// A run in progress.
pub fn run() -> Value {
    json!({
        "id": "20261122T030000Z-abcd", "trigger": "schedule", "began": "2026-11-22T03:00:00Z",
        "attempt": 1, "progress": null, "lease": null,
    })
}

/// One that has ended.
pub fn ended(id: &str) -> Value {
    json!({
        "id": id, "trigger": "schedule", "began": "2026-11-22T03:00:00Z",
        "ended": "2026-11-22T03:02:05Z", "outcome": { "kind": "done" }, "pause_ms": 12.5,
        "longest_pause_ms": 12.5, "backup": null, "sidecar": null, "warnings": [],
    })
}

pub fn began() -> DateTime<Utc> {
    "2026-11-22T00:00:00Z".parse().expect("a time")
}
