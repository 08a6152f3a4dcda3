//! The second place of the backups, as the commands use it.

use std::path::Path;

use torrust_tracker_maintenance::catalogue::{Backup, BackupId};
use torrust_tracker_maintenance::disk::{self, Claim, Disk};
use torrust_tracker_maintenance::remote::{Error, Remote};

use crate::client::block_on;
use crate::configuration::Configuration;
use crate::exit::{Exit, Failure};
use crate::progress::watched;
use crate::selection::Selection;

/// Where backups are, if not in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Place {
    /// `[maintenance.remote]`.
    Remote,
}

/// A backup that was downloaded, in a directory that goes with this.
#[derive(Debug)]
pub struct Downloaded {
    pub backup: Backup,
    _directory: Claim,
}

/// What `[maintenance.remote]` says.
pub fn open(configuration: &Configuration) -> Result<Remote, Failure> {
    let settings = configuration.settings()?.remote.ok_or_else(|| {
        let message = format!(
            "there is no [maintenance.remote] in {}: add it, or name another file with --config",
            configuration.describe()
        );
        Failure::new(Exit::Usage, "no_remote", message)
    })?;
    Ok(Remote::open(&settings, &Disk::default())?)
}

/// What there is to be known of a backup without downloading it.
pub fn peek(remote: &Remote, selection: &Selection, partial: bool) -> Result<Backup, Failure> {
    block_on(async {
        let id = find(remote, selection, partial).await?;
        Ok(remote.peek(&id).await?)
    })
}

/// Downloads a backup into a directory below this one.
pub fn download(
    remote: &Remote,
    selection: &Selection,
    partial: bool,
    below: &Path,
    json: bool,
) -> Result<Downloaded, Failure> {
    let disk = Disk::default().private();
    watched(json, |watch| {
        block_on(async {
            let id = find(remote, selection, partial).await?;
            let path = below.join(format!(".{id}.downloading"));
            if path.exists() {
                // What a former attempt has left; it says so if one is still at it.
                disk.sweep(&path)?;
            }
            let directory = disk.claim(&path)?;
            let backup = remote.download(&id, directory.path(), watch).await?;
            Ok(Downloaded {
                backup,
                _directory: directory,
            })
        })
    })
}

async fn find(remote: &Remote, selection: &Selection, partial: bool) -> Result<BackupId, Failure> {
    match selection {
        Selection::Id(id) => Ok(id.clone()),
        Selection::Latest => remote.newest(partial).await?.ok_or_else(|| {
            let message = format!(
                "there is no backup in {}: `torrust-maintenance upload` uploads what is here",
                remote.at()
            );
            Failure::new(Exit::NotApplicable, "no_backup", message)
        }),
        Selection::Foreign(name) => {
            let message = format!(
                "{name} is no id of a backup, and there are none but backups in {}: \
                 `torrust-maintenance list --remote` shows them",
                remote.at()
            );
            Err(Failure::new(Exit::Usage, "unknown_backup", message))
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let (exit, code) = match error {
            Error::Secret(_) | Error::NoSecret(_) | Error::Unusable(_) | Error::NoDirectory(_) => {
                (Exit::Usage, "configuration")
            }
            Error::NotMounted(_)
            | Error::NotOurs { .. }
            | Error::Strangers { .. }
            | Error::Ledger { .. } => (Exit::Usage, "remote_not_ours"),
            Error::Refused { .. } => (Exit::Usage, "remote_refused"),
            Error::Archived { .. } => (Exit::Failed, "remote_archived"),
            Error::Unknown { .. } => (Exit::Usage, "unknown_backup"),
            Error::Failed { .. } => (Exit::Failed, "remote_failed"),
            Error::Differs { .. } | Error::Broken { .. } | Error::Odd { .. } => {
                (Exit::Verification, "remote_damaged")
            }
            Error::NoRoom { .. } => (Exit::Failed, "no_room"),
            Error::Busy(_) => (Exit::Busy, "busy"),
            Error::Cancelled(_) => (Exit::Failed, "interrupted"),
            Error::Verify(error) => return Self::from(error),
            Error::Catalogue(error) => return Self::from(error),
            Error::Disk(error) => return Self::from(error),
        };
        Self::new(exit, code, message)
    }
}

impl From<disk::Error> for Failure {
    fn from(error: disk::Error) -> Self {
        Self::new(Exit::Failed, "disk", error.to_string())
    }
}
