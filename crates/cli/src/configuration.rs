//! What the tracker's configuration says that the operator's tool needs: read from the same
//! file, environment and defaults, without linking the tracker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use torrust_tracker_maintenance::catalogue::{Backup, Catalogue};
use torrust_tracker_maintenance::config::{Address, Error, Settings, Source};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::mysql::{self, Address as ServerAddress, Password};
use torrust_tracker_maintenance::readiness::token;

use crate::client::{Client, Endpoint, Token};
use crate::exit::{Exit, Failure};

/// Prefix of the tracker's environment variables, and its default file.
const PREFIX: &str = "TORRUST_TRACKER_CONFIG";
const DEFAULT_PATH: &str = "./config/tracker.toml";

/// `core.database` of a configuration that does not mention it (torrust-tracker 3.0.0).
const DEFAULT_DRIVER: &str = "sqlite3";
const DEFAULT_DATABASE: &str = "./storage/tracker/lib/database/sqlite3.db";

/// More bytes than a file with a token has.
const TOKEN_LIMIT: u64 = 4096;

/// Options of every command.
#[derive(clap::Args)]
pub struct Options {
    /// The tracker's configuration file [default: as the tracker, from the environment].
    #[arg(long, value_name = "PATH", global = true)]
    config: Option<PathBuf>,
    /// The tracker's readiness endpoint [default: from the configuration].
    #[arg(long, value_name = "HOST:PORT | URL | unix:PATH", global = true)]
    endpoint: Option<Endpoint>,
    /// A file whose first line is the endpoint's token [default: the environment variable
    /// `TORRUST_TRACKER_MAINTENANCE_TOKEN`, else from the configuration].
    #[arg(long, value_name = "PATH", global = true)]
    token_file: Option<PathBuf>,
}

/// Where to look things up. Nothing has been read yet: a command that needs only the
/// endpoint works without a configuration if it was told one.
#[derive(Debug)]
pub struct Configuration {
    source: Source,
    /// As it was given on the command line.
    path: Option<PathBuf>,
    endpoint: Option<Endpoint>,
    token_file: Option<PathBuf>,
}

impl From<Options> for Configuration {
    fn from(options: Options) -> Self {
        let path = options.config.as_deref();
        Self {
            source: Source::from_env(PREFIX, Path::new(DEFAULT_PATH), path),
            path: options.config,
            endpoint: options.endpoint,
            token_file: options.token_file,
        }
    }
}

impl Configuration {
    /// The options it was made of, to be typed again.
    pub fn given(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let options = [
            ("--config", self.path.as_ref().map(path)),
            (
                "--endpoint",
                self.endpoint.as_ref().map(Endpoint::to_string),
            ),
            ("--token-file", self.token_file.as_ref().map(path)),
        ];
        let given = options
            .into_iter()
            .filter_map(|(name, value)| Some([name.to_owned(), value?]));
        given.flatten().collect()
    }

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
    pub fn endpoint(&self) -> Result<Endpoint, Failure> {
        match &self.endpoint {
            Some(endpoint) => Ok(reachable(endpoint.clone())),
            None => self.configured_endpoint(),
        }
    }

    fn configured_endpoint(&self) -> Result<Endpoint, Failure> {
        let readiness = self.settings()?.readiness.ok_or_else(|| {
            let message = format!(
                "maintenance.readiness is disabled in {}: enable it, or give --endpoint",
                self.describe()
            );
            Failure::new(Exit::Usage, "no_endpoint", message)
        })?;
        Ok(match readiness.bind_address {
            Address::Tcp(address) => reachable(Endpoint::Tcp(address.to_string())),
            Address::Unix(path) => Endpoint::Unix(path),
        })
    }

    /// The tracker, for a command that starts or ends something.
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(Client::new(self.endpoint()?, self.token()?))
    }

    /// The endpoint's token, if there is one: of the command line, of the environment, else
    /// of the tracker's configuration. That one is for the configured endpoint alone: whoever
    /// listens at another is not to learn it.
    fn token(&self) -> Result<Option<Token>, Failure> {
        let configured = || {
            let settings = self.maintenance().ok().flatten()?;
            let file = settings.readiness?.token_file?;
            (self.endpoint().ok()? == self.configured_endpoint().ok()?).then_some(file)
        };
        let (token, named_by) = if let Some(path) = &self.token_file {
            (read_token(path)?, path.display().to_string())
        } else if let Ok(token) = std::env::var(token::VARIABLE) {
            (token.trim().to_owned(), token::VARIABLE.to_owned())
        } else if let Some(path) = configured() {
            (read_token(&path)?, path.display().to_string())
        } else {
            return Ok(None);
        };
        let usable = Some(token).filter(|token| !token.is_empty());
        let token = usable.and_then(|token| Token::new(&token));
        token.map(Some).ok_or_else(|| {
            let message = format!(
                "the token in {named_by} is empty or has characters that no header may have: \
                 write it on the first line, as the tracker has it"
            );
            Failure::new(Exit::Usage, "token", message)
        })
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

    /// The tracker's database if it is one of a server, with the password.
    pub fn server(&self) -> Result<Option<ServerAddress>, Failure> {
        let driver: Option<String> = self.value("core.database.driver")?;
        if driver.as_deref() != Some(mysql::DRIVER) {
            return Ok(None);
        }
        let url: Option<String> = self.value("core.database.path")?;
        let address = url.unwrap_or_default().parse::<ServerAddress>();
        address.map(Some).map_err(|error| {
            let message = format!("core.database.path {error}");
            Failure::new(Exit::Usage, "configuration", message)
        })
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

fn read_token(path: &Path) -> Result<String, Failure> {
    Ok(first_line(path, "token")?.trim().to_owned())
}

/// The password on the first line of a file.
pub fn read_password(path: &Path) -> Result<Password, Failure> {
    let line = first_line(path, "password")?;
    Password::first_line(&line).ok_or_else(|| {
        let message = format!(
            "the first line of {} is empty: write the password",
            path.display()
        );
        Failure::new(Exit::Usage, "password", message)
    })
}

/// The first line of a small file, in which there should be `what`.
fn first_line(path: &Path, what: &'static str) -> Result<String, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        let message = format!("the {what} cannot be read: {why}");
        Failure::new(Exit::Usage, what, message)
    };
    let read = Disk::default().read(path, TOKEN_LIMIT);
    let text = String::from_utf8(read.map_err(|error| failed(&error))?);
    let text = text.map_err(|_| failed(&format!("{} is not text", path.display())))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// An address that means "every one of this machine" is reached through loopback.
fn reachable(endpoint: Endpoint) -> Endpoint {
    let Endpoint::Tcp(authority) = &endpoint else {
        return endpoint;
    };
    match authority.parse::<SocketAddr>() {
        Ok(mut address) if address.ip().is_unspecified() => {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
            Endpoint::Tcp(address.to_string())
        }
        _ => endpoint,
    }
}
