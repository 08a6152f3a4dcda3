//! What is compared: two trackers, each in the configurations an operator can choose.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// The tracker of this workspace.
    Ours,
    /// Upstream's.
    Upstream,
}

/// Where announces end up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// In memory alone: `persistent_torrent_completed_stat = false`.
    Memory,
    /// In a database on a rollback journal, too: what upstream sets up.
    Rollback,
    /// In a database in WAL mode, too.
    Wal,
}

impl Storage {
    /// Whether announces are written to the database.
    #[must_use]
    pub fn persists(self) -> bool {
        self != Self::Memory
    }

    /// The journal mode of the database, as `SQLite` calls it.
    #[must_use]
    pub fn journal(self) -> &'static str {
        match self {
            Self::Memory | Self::Rollback => "delete",
            Self::Wal => "wal",
        }
    }
}

/// From which level on the tracker logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Threshold {
    /// Errors alone.
    Error,
    /// Upstream's default.
    Info,
}

impl Threshold {
    /// As it is configured.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Info => "info",
        }
    }
}

/// One configuration of one of the two trackers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Whose.
    pub program: Program,
    /// Where announces end up.
    pub storage: Storage,
    /// What is logged.
    pub threshold: Threshold,
}

impl Case {
    /// All that are measured, in the order of a round: those that are compared come close
    /// together.
    pub const ALL: [Self; 8] = [
        Self::new(Program::Upstream, Storage::Memory, Threshold::Error),
        Self::new(Program::Ours, Storage::Memory, Threshold::Error),
        Self::new(Program::Upstream, Storage::Memory, Threshold::Info),
        Self::new(Program::Ours, Storage::Memory, Threshold::Info),
        Self::new(Program::Upstream, Storage::Rollback, Threshold::Error),
        Self::new(Program::Upstream, Storage::Wal, Threshold::Error),
        Self::new(Program::Ours, Storage::Wal, Threshold::Error),
        Self::new(Program::Ours, Storage::Rollback, Threshold::Error),
    ];

    /// One of them.
    #[must_use]
    pub const fn new(program: Program, storage: Storage, threshold: Threshold) -> Self {
        Self {
            program,
            storage,
            threshold,
        }
    }

    /// The same configuration of upstream's tracker.
    #[must_use]
    pub fn of_upstream(self) -> Self {
        Self {
            program: Program::Upstream,
            ..self
        }
    }
}

/// `ours, memory, error`; `upstream, stored, WAL`. What is stored is measured at one
/// threshold only.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = match self.program {
            Program::Ours => "ours",
            Program::Upstream => "upstream",
        };
        match self.storage {
            Storage::Memory => write!(f, "{program}, memory, {}", self.threshold.name()),
            Storage::Rollback => write!(f, "{program}, stored, rollback"),
            Storage::Wal => write!(f, "{program}, stored, WAL"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own_and_one_of_upstream_to_be_compared_with() {
        let names: BTreeSet<String> = Case::ALL.iter().map(Case::to_string).collect();
        assert_eq!(names.len(), Case::ALL.len());
        for case in Case::ALL {
            assert!(Case::ALL.contains(&case.of_upstream()), "{case}");
        }
        assert!(names.contains("ours, memory, info") && names.contains("upstream, stored, WAL"));
    }
}
