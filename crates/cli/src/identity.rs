//! What opens an encrypted backup.

use std::path::PathBuf;

use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::encryption::{Error, Identities};

use crate::exit::{Exit, Failure};

/// Options of commands that open backups.
#[derive(clap::Args)]
pub struct Options {
    /// A file with the age identity of a recipient, as `age-keygen` writes it; `-`: standard
    /// input. May be given several times.
    #[arg(long = "identity", short, value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl Options {
    /// All that were given; `None` if none was.
    pub fn read(&self) -> Result<Option<Identities>, Failure> {
        Ok(Identities::read(&self.files, &Disk::default())?)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(Exit::Usage, "encryption", error.to_string())
    }
}
