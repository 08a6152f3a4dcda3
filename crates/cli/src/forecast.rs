//! What a run would do and cost if it began now, by the engine's own reckoning.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use torrust_tracker_maintenance::config::{Announces, Settings, TakenBy};
use torrust_tracker_maintenance::disk::{self, Disk};
use torrust_tracker_maintenance::engine::{self, Basis, Estimate, Refusal, Subject, Taking};
use torrust_tracker_maintenance::maintenance::rules;
use torrust_tracker_maintenance::snapshot::{self, Watch, Way};
use torrust_tracker_maintenance::sqlite::Journal;
use torrust_tracker_maintenance::window::Pause;

use crate::configuration::Configuration;
use crate::units;

/// What a run would do.
pub struct Forecast {
    hold_for: Duration,
    /// What a copy may take of it.
    held_at_most: Duration,
    /// How long the window lasts.
    window: Duration,
    database_bytes: Option<u64>,
    /// Whether announces wait for the copy.
    held: bool,
    /// `None` if the database cannot be measured.
    estimate: Option<Result<Estimate, Refusal>>,
}

impl Forecast {
    /// Of the tracker with these settings and this database, whose journal mode is told by
    /// its name.
    pub fn of(
        configuration: &Configuration,
        settings: &Settings,
        database: &Path,
        journal: &str,
    ) -> Self {
        let Settings {
            announces, backup, ..
        } = settings;
        let disk = Disk::default();
        let earlier = match backup.taken_by {
            TakenBy::Tracker => configuration
                .catalogue()
                .and_then(|catalogue| Ok(catalogue.backups()?))
                .unwrap_or_default(),
            TakenBy::Sidecar => Vec::new(),
        };
        let earlier: Vec<_> = earlier.iter().map(|backup| &backup.manifest).collect();
        let database = disk::resolve(database).unwrap_or_else(|_| database.to_owned());
        // From metadata: the file is the tracker's.
        let database_bytes = database.metadata().ok().map(|metadata| metadata.len());
        // Of what is not known it is the careful guess.
        let journal = Journal::named(journal).unwrap_or(Journal::Delete);
        // Where this user may not try it, the last run did.
        let clones = backup.taken_by == TakenBy::Tracker
            && (snapshot::can_clone(&database, &backup.directory, &disk)
                || earlier
                    .first()
                    .is_some_and(|last| last.method == Way::Clone));
        let estimate = database_bytes.map(|bytes| {
            let subject = Subject {
                database: &database,
                bytes,
                journal,
                clones,
                announces: *announces,
                backup,
                earlier: &earlier,
            };
            subject.estimate(&disk, &Watch::default())
        });
        Self {
            hold_for: settings.gate.hold_for,
            held_at_most: rules(settings)
                .held_at_most()
                .min(settings.schedule.duration()),
            window: settings.schedule.duration(),
            database_bytes,
            held: journal.blocks_writers() || *announces == Announces::Pause,
            estimate,
        }
    }

    fn estimate(&self) -> Option<&Estimate> {
        self.estimate.as_ref()?.as_ref().ok()
    }

    fn cost(&self) -> Option<&engine::Forecast> {
        self.estimate().map(|estimate| &estimate.forecast)
    }

    /// How the database would be got hold of, in the room there is.
    fn way(&self) -> Option<Way> {
        self.estimate()?.way().ok()
    }

    /// Why the tracker would not close its gate for this run.
    pub fn objection(&self) -> Option<String> {
        let estimate = match self.estimate.as_ref()? {
            Ok(estimate) => estimate,
            Err(refusal) => return Some(format!("would fail: {refusal}")),
        };
        if let Pause::UntilCopied(copy) = estimate.forecast.pause
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
        let way = match estimate.way() {
            Ok(way) => way,
            Err(refusal) => return Some(format!("would fail: {refusal}")),
        };
        if let Pause::UntilPinned(Some(copy)) = estimate.forecast.pause_of(way)
            && copy > self.window
        {
            return Some(format!(
                "would not fit: copying the database takes about {}, longer than the window ({}); \
                 lengthen the window, or raise backup.bandwidth if that is what holds the copy back",
                units::seconds(copy),
                units::duration(self.window)
            ));
        }
        None
    }

    /// What becomes of announces.
    pub fn announces(&self) -> &'static str {
        if self.held {
            "wait until the copy ends"
        } else {
            "wait for milliseconds, then flow during the copy"
        }
    }

    /// How large the database is.
    pub fn size(&self) -> String {
        self.database_bytes.map_or_else(unknown, units::bytes)
    }

    /// How it would be copied, and how long that takes.
    pub fn copy(&self) -> String {
        let about = |copy: Taking| {
            let basis = match copy.basis {
                Basis::Measured => "at the rate of earlier backups",
                Basis::Limited => "as backup.bandwidth allows",
                Basis::Assumed => {
                    "reckoned with an ordinary disk, as there is no earlier backup of this kind"
                }
            };
            format!("about {}, {basis}", units::seconds(copy.time))
        };
        match (self.cost(), self.way()) {
            (Some(cost), Some(Way::Stream)) if cost.way == Way::Stream => format!(
                "streamed into the compressor and encrypted, so that there is no copy that others \
                 can read: {}",
                about(cost.copy)
            ),
            (Some(cost), Some(Way::Stream)) => {
                let copy = cost.streamed.map_or(cost.copy, |streamed| streamed.copy);
                format!(
                    "streamed into the compressor, as there is no room for a raw copy: {}",
                    about(copy)
                )
            }
            (Some(cost), way) => {
                format!("method {}: {}", way.unwrap_or(cost.way), about(cost.copy))
            }
            (None, _) => unknown(),
        }
    }

    /// How long the structural check takes.
    pub fn check(&self) -> String {
        self.cost().map_or_else(unknown, |cost| {
            format!("about {}", units::seconds(cost.check))
        })
    }

    /// What there is for backups, and what one needs.
    pub fn room(&self) -> String {
        let Some(Estimate { forecast, free, .. }) = self.estimate() else {
            return unknown();
        };
        match free {
            Some(free) => format!(
                "{} free, about {} needed while the backup is made",
                units::bytes(*free),
                units::bytes(forecast.room)
            ),
            None => "a sidecar's affair".to_owned(),
        }
    }

    /// All of it, for programs.
    pub fn json(&self) -> Value {
        let cost = self.cost();
        let free = self.estimate().and_then(|estimate| estimate.free);
        json!({
            "announces": if self.held { "held" } else { "served" },
            "database_bytes": self.database_bytes,
            "method": self.way(),
            "copy_seconds": cost.map(|cost| cost.copy.time.as_secs_f64()),
            "verify_seconds": cost.map(|cost| cost.check.as_secs_f64()),
            "free_bytes": free,
            "needed_bytes": free.and(cost).map(|cost| cost.room),
        })
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}
