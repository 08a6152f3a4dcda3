//! What is learned of a backup after it was published: checks, and the operator's wish to
//! keep it. In small files beside the manifest, which never changes, and outside
//! `SHA256SUMS`, which stays true.

use std::fs;
use std::io;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::SMALL_FILE;
use crate::config::Depth;
use crate::disk::Disk;

/// The file with the checks, JSON.
pub(super) const VERIFIED: &str = "verified.json";
/// The file whose presence protects a backup. It says since when.
pub(super) const PROTECTED: &str = "protected";

/// What is known of a backup beyond its manifest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// Whether retention leaves it alone.
    #[serde(skip_deserializing)]
    pub protected: bool,
    /// The last check of each depth, newest first. One that went deeper takes the place of
    /// those before it, since it found out all that they did.
    pub checks: Vec<Check>,
    /// Why it cannot be read what checks have found; they may have found damage.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// One check of a published backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// How deep it went beyond reading every byte back and comparing checksums; `None`: no
    /// deeper.
    pub depth: Option<Depth>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// What is wrong with the backup. Empty: it is good.
    pub findings: Vec<String>,
}

impl Check {
    /// Whether nothing that a former check may have found is lost if only this one is known.
    pub(super) fn is_conclusive(&self) -> bool {
        self.depth == Some(Depth::Full) || !self.findings.is_empty()
    }
}

impl Notes {
    /// Whether they can be read, and no check has found damage.
    #[must_use]
    pub fn are_clean(&self) -> bool {
        self.unreadable.is_none() && !self.is_damaged()
    }

    /// Whether a check has found damage that none as deep has denied since.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.checks.iter().any(|check| !check.findings.is_empty())
    }

    /// The deepest check, and of those the last.
    #[must_use]
    pub fn deepest(&self) -> Option<&Check> {
        self.checks
            .iter()
            .max_by_key(|check| (check.depth, check.at))
    }

    pub(super) fn add(&mut self, check: Check) {
        self.checks.retain(|former| former.depth > check.depth);
        self.checks.insert(0, check);
    }

    /// Reads them, and never fails: a backup can be restored whatever its notes are. Checks
    /// that cannot be read are told; what may be protected is.
    pub(super) fn read(backup: &Path, disk: &Disk) -> Self {
        let is_missing = |name: &str| {
            let found = fs::symlink_metadata(backup.join(name));
            found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let checks = if is_missing(VERIFIED) {
            Self::default()
        } else {
            let json = disk.read(&backup.join(VERIFIED), SMALL_FILE);
            let checks = json.map_err(|error| error.to_string()).and_then(|json| {
                serde_json::from_slice(&json)
                    .map_err(|error| format!("{VERIFIED} does not parse: {error}"))
            });
            checks.unwrap_or_else(|why| Self {
                unreadable: Some(why),
                ..Self::default()
            })
        };
        Self {
            protected: !is_missing(PROTECTED),
            ..checks
        }
    }

    /// As it is stored, without what the other file says.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let checks = serde_json::json!({ "checks": self.checks });
        format!("{checks:#}\n").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::catalogue::testing::time;

    fn check(day: i64, depth: Option<Depth>, findings: &[&str]) -> Check {
        Check {
            at: time() + TimeDelta::days(day),
            depth,
            seconds: 1.5,
            findings: findings.iter().map(ToString::to_string).collect(),
        }
    }

    fn notes(checks: &[Check]) -> Notes {
        let mut notes = Notes::default();
        for check in checks {
            notes.add(check.clone());
        }
        notes
    }

    #[test]
    fn a_deeper_check_replaces_and_a_shallower_one_is_added() {
        let (deep, shallow) = (check(1, Some(Depth::Full), &[]), check(2, None, &[]));
        let both = notes(&[check(0, None, &[]), deep.clone(), shallow.clone()]);
        assert_eq!(both.checks, [shallow, deep.clone()]);
        assert_eq!(both.deepest(), Some(&deep));
        let again = notes(&[deep, check(2, None, &[]), check(3, Some(Depth::Full), &[])]);
        assert_eq!(again.checks, [check(3, Some(Depth::Full), &[])]);
    }

    #[test]
    fn damage_is_denied_only_by_a_check_as_deep() {
        let deep_damage = check(0, Some(Depth::Full), &["a row is missing"]);
        assert!(notes(std::slice::from_ref(&deep_damage)).is_damaged());
        assert!(notes(&[deep_damage.clone(), check(1, None, &[])]).is_damaged());
        assert!(!notes(&[deep_damage, check(1, Some(Depth::Full), &[])]).is_damaged());
        assert!(
            !notes(&[
                check(0, None, &["a bit"]),
                check(1, Some(Depth::Quick), &[])
            ])
            .is_damaged()
        );
        assert!(!Notes::default().is_damaged());
    }

    #[test]
    fn checks_read_back_as_written() -> serde_json::Result<()> {
        let notes = notes(&[check(0, Some(Depth::Full), &["x"]), check(1, None, &[])]);
        assert_eq!(serde_json::from_slice::<Notes>(&notes.to_json())?, notes);
        Ok(())
    }
}
