//! What the tracker's configuration says that the operator's tool needs: read from the same
//! file, environment and defaults, without linking the tracker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use torrust_tracker_maintenance::catalogue::{Backup, Catalogue};
use torrust_tracker_maintenance::config::{Address, Error, Settings, Source};
use torrust_tracker_maintenance::disk::Disk;

use crate::exit::{Exit, Failure};

/// Prefix of the tracker's environment variables, and its default file.
const PREFIX: &str = "TORRUST_TRACKER_CONFIG";
const DEFAULT_PATH: &str = "./config/tracker.toml";

/// `core.database` of a configuration that does not mention it (torrust-tracker 3.0.0).
const DEFAULT_DRIVER: &str = "sqlite3";
const DEFAULT_DATABASE: &str = "./storage/tracker/lib/database/sqlite3.db";

/// Options of every command.
#[derive(clap::Args)]
pub struct Options {
    /// The tracker's configuration file [default: as the tracker, from the environment].
    #[arg(long, value_name = "PATH", global = true)]
    config: Option<PathBuf>,
    /// The tracker's readiness endpoint [default: from the configuration].
    #[arg(long, value_name = "IP:PORT", global = true)]
    endpoint: Option<SocketAddr>,
}

/// Where to look things up. Nothing has been read yet: a command that needs only the
/// endpoint works without a configuration if it was told one.
#[derive(Debug)]
pub struct Configuration {
    source: Source,
    endpoint: Option<SocketAddr>,
}

impl From<Options> for Configuration {
    fn from(options: Options) -> Self {
        let path = options.config.as_deref();
        Self {
            source: Source::from_env(PREFIX, Path::new(DEFAULT_PATH), path),
            endpoint: options.endpoint,
        }
    }
}

impl Configuration {
    /// What it is called in messages.
    pub fn describe(&self) -> String {
        self.source.describe()
    }

    /// The `[maintenance]` table, if it is there and enabled.
    pub fn maintenance(&self) -> Result<Option<Settings>, Error> {
        self.source.maintenance()
    }

    /// The `[maintenance]` table of a command that is about nothing else.
    pub fn settings(&self) -> Result<Settings, Failure> {
        self.maintenance()?.ok_or_else(|| {
            let message = format!(
                "[maintenance] is absent or disabled in {}: \
                 add the table with enabled = true and a window, or name another file with --config",
                self.describe()
            );
            Failure::new(Exit::Usage, "disabled", message)
        })
    }

    /// Where the tracker answers.
    pub fn endpoint(&self) -> Result<SocketAddr, Failure> {
        if let Some(endpoint) = self.endpoint {
            return Ok(reachable(endpoint));
        }
        let readiness = self.settings()?.readiness.ok_or_else(|| {
            let message = format!(
                "maintenance.readiness is disabled in {}: enable it, or give --endpoint",
                self.describe()
            );
            Failure::new(Exit::Usage, "no_endpoint", message)
        })?;
        match readiness.bind_address {
            Address::Tcp(address) => Ok(reachable(address)),
            Address::Unix(path) => {
                let message = format!(
                    "the endpoint is the Unix domain socket {}, which this version of this program \
                     does not reach: use curl --unix-socket",
                    path.display()
                );
                Err(Failure::new(Exit::Usage, "no_endpoint", message))
            }
        }
    }

    /// What is written under a key, or overridden; `None`: it is absent or not of that type.
    pub fn value<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Failure> {
        Ok(self.source.figment()?.extract_inner(key).ok())
    }

    /// Whether anything at all is written under a key.
    pub fn has(&self, key: &str) -> Result<bool, Failure> {
        Ok(self.source.figment()?.find_value(key).is_ok())
    }

    /// The tracker's database. Of one that is not a file only the driver is told: its
    /// connection string may hold a password.
    pub fn database(&self) -> Result<Result<PathBuf, String>, Failure> {
        let figment = self.source.figment()?;
        let text = |key: &str, default: &str| {
            figment
                .extract_inner(key)
                .unwrap_or_else(|_| default.to_owned())
        };
        let driver = text("core.database.driver", DEFAULT_DRIVER);
        if driver != DEFAULT_DRIVER {
            return Ok(Err(driver));
        }
        Ok(Ok(text("core.database.path", DEFAULT_DATABASE).into()))
    }

    /// The backups there are, for reading.
    pub fn catalogue(&self) -> Result<Catalogue, Failure> {
        let directory = self.settings()?.backup.directory;
        if !directory.exists() {
            let message = format!(
                "there is no {} yet (maintenance.backup.directory): \
                 the tracker creates it when it starts",
                directory.display()
            );
            return Err(Failure::new(Exit::NotApplicable, "no_backup", message));
        }
        Ok(Catalogue::read_only(Disk::default(), &directory)?)
    }

    /// The newest good backup, if the configuration leads to one. For what is nice to know.
    pub fn newest_backup(&self) -> Option<Backup> {
        let backups = self.catalogue().ok()?.backups().ok()?;
        backups
            .into_iter()
            .find(|backup| !backup.notes.is_damaged())
    }
}

/// An address that means "every one of this machine" is reached through loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}
