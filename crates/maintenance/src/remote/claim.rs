//! Whose a place is. In it lies an object that names the catalogue it belongs to:
//!
//! ```text
//!  <prefix>/owner.json     who uploads here
//!          /<id>/...       what
//! ```
//!
//! Two trackers that were given the same prefix would each take the other's backups for their
//! own, and remove them by rules of their own; so the second is refused. And a directory whose
//! volume is not mounted is an empty one, which lacks the object: so nothing is written below a
//! mount point.

use std::fmt;
use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::ledger::{Instance, Ledger, Seen};
use super::store::Kind;
use super::{Entry, Error, Remote, is_same, place};
use crate::catalogue::{Backup, Catalogue};
use crate::snapshot::Watch;

/// The name of the object.
pub(super) const OWNER: &str = "owner.json";

/// What the object says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Who uploads there.
    pub instance: Instance,
    /// The machine it was on when it said so.
    pub host: String,
    /// The directory of its catalogue there.
    pub directory: PathBuf,
    /// When it said so.
    pub since: DateTime<Utc>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            instance,
            host,
            directory,
            since,
        } = self;
        let since = since.to_rfc3339_opts(SecondsFormat::Secs, true);
        let directory = directory.display();
        write!(f, "{instance} ({directory} on {host}, {since})")
    }
}

/// Whose a place is, as the object in it and the catalogue's own memory tell.
#[derive(Debug, PartialEq, Eq)]
enum Whose {
    Ours,
    /// Nobody's, as far as that tells.
    Free,
    /// It was ours, and is not what it was: the object is gone.
    Other,
    /// Of this one.
    Theirs(Owner),
}

/// Decides whose a place is. `was_ours`: it was so when last looked at. A bucket may be emptied,
/// and then is begun anew; a directory that is empty all at once is another directory.
fn whose(found: Option<&Owner>, ours: &Instance, was_ours: bool, is_directory: bool) -> Whose {
    match found {
        Some(owner) if owner.instance == *ours => Whose::Ours,
        Some(owner) => Whose::Theirs(owner.clone()),
        None if was_ours && is_directory => Whose::Other,
        None => Whose::Free,
    }
}

impl Remote {
    /// Makes sure that the place is this catalogue's, and says what is there. One that is
    /// nobody's becomes it, unless there are backups in it that are none of those here.
    pub(super) async fn claim(
        &self,
        catalogue: &Catalogue,
        here: &[Backup],
        now: DateTime<Utc>,
        watch: &Watch,
    ) -> Result<(Ledger, Vec<Entry>), Error> {
        let mut ledger = Ledger::open(catalogue, &place(&self.settings), now, watch)?;
        let was_ours = ledger.seen().is_some();
        let found = self.owner().await?;
        let is_free = self.check_whose(found.as_ref(), &ledger, catalogue, now)?;
        let entries = self.list().await?;
        if is_free {
            let strangers = entries
                .iter()
                .filter(|entry| {
                    matches!(entry, Entry::Complete(there)
                    if !here.iter().any(|here| is_same(&here.manifest, &there.manifest)))
                })
                .count();
            if strangers > 0 && !was_ours {
                return Err(Error::Strangers {
                    at: self.at().to_owned(),
                    count: strangers,
                });
            }
            self.sign(&this(&ledger, catalogue, now)).await?;
        } else {
            // What is listed is of the place whose owner was read.
            self.check_mounted().await?;
        }
        if !was_ours {
            ledger.note(Seen::default())?;
        }
        Ok((ledger, entries))
    }

    /// That a directory is still the one that was used. A pass may take hours, and a volume go
    /// meanwhile; what is in a bucket goes nowhere.
    pub(super) async fn check_mounted(&self) -> Result<(), Error> {
        match self.store.kind() {
            Kind::Directory(directory) if self.owner().await?.is_none() => {
                Err(Error::NotMounted(directory.clone()))
            }
            Kind::Directory(_) | Kind::Parts(_) => Ok(()),
        }
    }

    /// Whether it is nobody's; an error if it is not for this catalogue.
    fn check_whose(
        &self,
        found: Option<&Owner>,
        ledger: &Ledger,
        catalogue: &Catalogue,
        now: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let was_ours = ledger.seen().is_some();
        let directory = match self.store.kind() {
            Kind::Directory(directory) => Some(directory),
            Kind::Parts(_) => None,
        };
        match whose(found, ledger.instance(), was_ours, directory.is_some()) {
            Whose::Ours => Ok(false),
            Whose::Free => Ok(true),
            Whose::Other => Err(Error::NotMounted(directory.cloned().unwrap_or_default())),
            Whose::Theirs(theirs) => Err(Error::NotOurs {
                at: self.at().to_owned(),
                theirs: Box::new(theirs),
                ours: Box::new(this(ledger, catalogue, now)),
            }),
        }
    }

    /// Makes the place this catalogue's, whosever it was; says whose. For the operator, who
    /// knows that whoever that was is gone, or that the volume is another one now.
    ///
    /// # Errors
    ///
    /// If it cannot be read or written, here or there.
    pub async fn take_over(
        &self,
        catalogue: &Catalogue,
        now: DateTime<Utc>,
        watch: &Watch,
    ) -> Result<Option<Owner>, Error> {
        let mut ledger = Ledger::open(catalogue, &place(&self.settings), now, watch)?;
        // One that cannot be read is written anew all the same.
        let found = self.owner().await.ok().flatten();
        if found
            .as_ref()
            .is_some_and(|owner| owner.instance == *ledger.instance())
        {
            return Ok(None);
        }
        self.sign(&this(&ledger, catalogue, now)).await?;
        ledger.note(Seen::default())?;
        Ok(found)
    }

    /// What the object says; `None` if there is none.
    async fn owner(&self) -> Result<Option<Owner>, Error> {
        let Some(json) = self.store.read_owner().await? else {
            return Ok(None);
        };
        let owner = serde_json::from_slice(&json).map_err(|error| Error::Differs {
            object: self.store.owner(),
            why: format!(
                "it does not say whose the place is ({error}); `torrust-maintenance upload \
                 --take-over` writes it anew"
            ),
        })?;
        Ok(Some(owner))
    }

    async fn sign(&self, owner: &Owner) -> Result<(), Error> {
        let json = format!("{:#}\n", serde_json::json!(owner));
        match self.store.kind() {
            Kind::Parts(_) => self.store.write_owner(json.into()).await?,
            Kind::Directory(directory) => {
                let to = directory.join(OWNER);
                self.disk.public().write_atomically(&to, json.as_bytes())?;
            }
        }
        // Somebody else may have had the same idea.
        match self.owner().await? {
            Some(found) if found == *owner => Ok(()),
            found => Err(Error::Differs {
                object: self.store.owner(),
                why: match found {
                    Some(found) => format!("it is of {found}"),
                    None => "it is not there".to_owned(),
                },
            }),
        }
    }
}

fn this(ledger: &Ledger, catalogue: &Catalogue, now: DateTime<Utc>) -> Owner {
    Owner {
        instance: ledger.instance().clone(),
        host: crate::host(),
        directory: std::path::absolute(catalogue.directory())
            .unwrap_or_else(|_| catalogue.directory().to_owned()),
        since: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::testing::time;

    fn instance(name: &str) -> Instance {
        serde_json::from_value(serde_json::json!(name)).expect("a text")
    }

    fn owner(name: &str) -> Owner {
        Owner {
            instance: instance(name),
            host: "host".to_owned(),
            directory: "/backups".into(),
            since: time(),
        }
    }

    #[test]
    fn a_place_is_ours_if_it_says_so_and_free_only_if_it_says_nothing() {
        let ours = instance("a");
        for was_ours in [false, true] {
            for is_directory in [false, true] {
                let whose = |found: Option<&Owner>| whose(found, &ours, was_ours, is_directory);
                assert_eq!(whose(Some(&owner("a"))), Whose::Ours);
                assert_eq!(whose(Some(&owner("b"))), Whose::Theirs(owner("b")));
                let expected = if was_ours && is_directory {
                    Whose::Other
                } else {
                    Whose::Free
                };
                assert_eq!(whose(None), expected, "{was_ours} {is_directory}");
            }
        }
    }

    #[test]
    fn an_owner_names_itself() {
        assert_eq!(
            owner("a1").to_string(),
            format!(
                "a1 (/backups on host, {})",
                time().to_rfc3339_opts(SecondsFormat::Secs, true)
            )
        );
    }
}
