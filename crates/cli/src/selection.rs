//! Which backup is meant.

use std::convert::Infallible;
use std::str::FromStr;

use torrust_tracker_maintenance::catalogue::{Backup, BackupId, Catalogue, Foreign};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::encryption::Identities;
use torrust_tracker_maintenance::restore::Source;
use torrust_tracker_maintenance::verify;

use crate::exit::{Exit, Failure};

/// As it is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// `latest`: the newest that is good as far as is known.
    Latest,
    Id(BackupId),
    /// The name of a file in the directory that was not made here.
    Foreign(String),
}

impl FromStr for Selection {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Self, Infallible> {
        Ok(match (name, name.parse()) {
            ("latest", _) => Self::Latest,
            (_, Ok(id)) => Self::Id(id),
            (name, Err(_)) => Self::Foreign(name.to_owned()),
        })
    }
}

/// What was found under a name.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Selected {
    Backup(Backup),
    Foreign(Foreign),
}

impl Selection {
    /// Of the newest it is for `partial` to say whether it may be a partial one even though
    /// there is a full one.
    pub fn find(&self, catalogue: &Catalogue, partial: bool) -> Result<Selected, Failure> {
        let id = match self {
            Self::Latest if partial => &newest(catalogue)?,
            Self::Latest => &latest(catalogue)?,
            Self::Id(id) => id,
            Self::Foreign(name) => return Ok(Selected::Foreign(catalogue.foreign(name)?)),
        };
        Ok(Selected::Backup(catalogue.get(id)?))
    }
}

impl Selected {
    /// The same, to be opened with these: said at once if they do not, before anything else is
    /// looked at.
    pub fn opened_with(self, identities: Option<Identities>) -> Result<Self, Failure> {
        Ok(match self {
            Self::Backup(backup) => {
                let backup = backup.opened_with(identities);
                verify::check_opens(&backup, &Disk::default())?;
                Self::Backup(backup)
            }
            foreign @ Self::Foreign(_) => foreign,
        })
    }
}

impl From<Selected> for Source {
    fn from(selected: Selected) -> Self {
        match selected {
            Selected::Backup(backup) => backup.into(),
            Selected::Foreign(foreign) => foreign.into(),
        }
    }
}

/// The newest full backup that is good as far as is known; a partial one if there is no
/// other.
fn latest(catalogue: &Catalogue) -> Result<BackupId, Failure> {
    let latest = catalogue.newest_good()?;
    latest.ok_or_else(|| none(catalogue))
}

/// The newest backup that is good as far as is known, full or partial.
fn newest(catalogue: &Catalogue) -> Result<BackupId, Failure> {
    let newest = [catalogue.newest_of(true)?, catalogue.newest_of(false)?];
    let newest = newest.into_iter().flatten().max();
    newest.ok_or_else(|| none(catalogue))
}

fn none(catalogue: &Catalogue) -> Failure {
    let message = format!(
        "there is no good backup in {}: `torrust-maintenance run` makes one",
        catalogue.directory().display()
    );
    Failure::new(Exit::NotApplicable, "no_backup", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let id = "20261122T030000Z-2";
        for (name, selection) in [
            ("latest", Selection::Latest),
            (id, Selection::Id(id.parse().expect("an id"))),
            ("Latest", Selection::Foreign("Latest".to_owned())),
            ("x.db.gz", Selection::Foreign("x.db.gz".to_owned())),
        ] {
            assert_eq!(name.parse(), Ok(selection));
        }
    }
}
