//! What a catalogue remembers of the places it was uploaded to: who it is there, and what was
//! seen there last. Beside the backups, so that it goes where they go.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Error, There};
use crate::catalogue::{self, BackupId, Catalogue, SMALL_FILE};
use crate::snapshot::Watch;

/// How long it is waited for somebody who removes or notes something.
const LOCKED_FOR: Duration = Duration::from_secs(5);

/// Who uploads: a random number that a catalogue was given once. It tells trackers apart whose
/// hosts, directories and configurations have the same names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance(String);

impl Instance {
    fn random() -> Self {
        Self(format!("{:032x}", fastrand::u128(..)))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All a catalogue remembers, of one of its places at hand.
#[derive(Debug)]
pub(super) struct Ledger {
    catalogue: Catalogue,
    place: String,
    book: Book,
}

/// As it stands in the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Book {
    instance: Instance,
    /// By what the place is called.
    places: BTreeMap<String, Seen>,
}

/// A place that is this catalogue's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Seen {
    /// What was there when last looked at.
    pub(super) there: There,
    /// When the newest backup that is there was uploaded.
    pub(super) last_uploaded: Option<DateTime<Utc>>,
    /// What came of reading a backup back again.
    pub(super) checks: BTreeMap<BackupId, Check>,
}

/// A backup was read back again, some time after it was uploaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Check {
    pub(super) at: DateTime<Utc>,
    /// What is wrong with it; `None`: nothing.
    pub(super) finding: Option<String>,
}

impl Ledger {
    /// That of a catalogue; `None` if it never uploaded anything.
    pub(super) fn read(catalogue: &Catalogue, place: &str) -> Result<Option<Self>, Error> {
        let path = catalogue.ledger_path();
        if !path.exists() {
            return Ok(None);
        }
        let json = catalogue.disk().read(&path, SMALL_FILE)?;
        let book = serde_json::from_slice(&json).map_err(|error| Error::Ledger {
            path,
            why: error.to_string(),
        })?;
        Ok(Some(Self {
            catalogue: catalogue.clone(),
            place: place.to_owned(),
            book,
        }))
    }

    /// That of a catalogue, which is given an identity if it has none.
    pub(super) fn open(
        catalogue: &Catalogue,
        place: &str,
        now: DateTime<Utc>,
        watch: &Watch,
    ) -> Result<Self, Error> {
        if let Some(ledger) = Self::read(catalogue, place)? {
            return Ok(ledger);
        }
        // The service and the operator's tool may both be the first: one identity must come of it.
        let owner = catalogue::Owner::this("upload", now);
        let _locked = catalogue.lock_within(LOCKED_FOR, &owner, watch)?;
        if let Some(ledger) = Self::read(catalogue, place)? {
            return Ok(ledger);
        }
        let book = Book {
            instance: Instance::random(),
            places: BTreeMap::new(),
        };
        let ledger = Self {
            catalogue: catalogue.clone(),
            place: place.to_owned(),
            book,
        };
        ledger.write()?;
        Ok(ledger)
    }

    pub(super) fn instance(&self) -> &Instance {
        &self.book.instance
    }

    /// What was seen of the place; `None` if it was never this catalogue's.
    pub(super) fn seen(&self) -> Option<&Seen> {
        self.book.places.get(&self.place)
    }

    /// Notes what is seen of the place, and with that that it is this catalogue's. Written only
    /// if that is new.
    pub(super) fn note(&mut self, seen: Seen) -> Result<(), Error> {
        if self.seen() == Some(&seen) {
            return Ok(());
        }
        self.book.places.insert(self.place.clone(), seen);
        self.write()
    }

    fn write(&self) -> Result<(), Error> {
        let json = serde_json::to_vec(&self.book).unwrap_or_default();
        // Nothing in it is secret, and the tool may be used by another user than the service is.
        let disk = self.catalogue.disk().public();
        Ok(disk.write_atomically(&self.catalogue.ledger_path(), &json)?)
    }
}
