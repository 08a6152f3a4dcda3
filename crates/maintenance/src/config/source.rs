//! Where a configuration comes from: the text in an environment variable, else a file, and
//! over either what single environment variables override.

use std::fmt;
use std::path::{Path, PathBuf};

use figment::providers::{Env, Format, Toml};
use figment::{Figment, Provider};

use super::{File, Problems, Settings};

/// A configuration that can be read, as often as need be: a file is read each time.
///
/// A service that has its own conventions makes one of [`Source::text`] or
/// [`Source::file`]. [`Source::from_env`] has the Torrust tracker's.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    document: Document,
    /// Prefix of the environment variables that override single keys.
    overrides: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
enum Document {
    Text {
        toml: String,
        named_by: String,
    },
    File {
        path: PathBuf,
        /// Where it is. A relative path is looked for from the working directory upwards.
        found: Option<PathBuf>,
        named_by: String,
    },
}

impl Source {
    /// A whole configuration as TOML.
    #[must_use]
    pub fn text(toml: impl Into<String>) -> Self {
        Self {
            document: Document::Text {
                toml: toml.into(),
                named_by: "the text given".to_owned(),
            },
            overrides: None,
        }
    }

    /// A file. A relative path is looked for in the working directory and then in those
    /// above it, as `figment` does.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self {
            document: Document::file(path.into(), "the path given".to_owned()),
            overrides: None,
        }
    }

    /// What the environment says, by the Torrust tracker's rules with `prefix` for its
    /// `TORRUST_TRACKER_CONFIG`. The first of these that there is:
    ///
    /// 1. the file `explicit`, from a command line;
    /// 2. the text in `<prefix>_TOML`;
    /// 3. the file in `<prefix>_TOML_PATH`;
    /// 4. the file `default_path`.
    ///
    /// Over it, `<prefix>_OVERRIDE_<KEY>` sets one key, in capitals and with `__` between
    /// tables: `.._OVERRIDE_MAINTENANCE__GATE__HOLD_FOR=60s`.
    #[must_use]
    pub fn from_env(prefix: &str, default_path: &Path, explicit: Option<&Path>) -> Self {
        Self::from_variables(prefix, default_path, explicit, |name| {
            std::env::var(name).ok()
        })
    }

    fn from_variables(
        prefix: &str,
        default_path: &Path,
        explicit: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let text_name = format!("{prefix}_TOML");
        let path_name = format!("{prefix}_TOML_PATH");
        let document = if let Some(path) = explicit {
            Document::file(path.to_owned(), "the command line".to_owned())
        } else if let Some(toml) = variable(&text_name) {
            Document::Text {
                toml,
                named_by: format!("the environment variable {text_name}"),
            }
        } else if let Some(path) = variable(&path_name) {
            Document::file(path.into(), format!("the environment variable {path_name}"))
        } else {
            let named_by = format!("default, since {path_name} is not set");
            Document::file(default_path.to_owned(), named_by)
        };
        Self {
            document,
            overrides: Some(format!("{prefix}_OVERRIDE_")),
        }
    }

    /// The file, if it is one: where it was found, else as it was named.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.document {
            Document::Text { .. } => None,
            Document::File { path, found, .. } => Some(found.as_ref().unwrap_or(path)),
        }
    }

    /// What to call it in a message. Never its content, which may hold secrets.
    #[must_use]
    pub fn describe(&self) -> String {
        match (&self.document, self.path()) {
            (Document::Text { named_by, .. }, _) => named_by.clone(),
            (Document::File { path, .. }, found) => found.unwrap_or(path).display().to_string(),
        }
    }

    /// The whole configuration, for the service to extract its own tables from. Reading and
    /// parsing happen then.
    ///
    /// # Errors
    ///
    /// [`Error::NoFile`]. (`figment` by itself takes a missing file for an empty one.)
    pub fn figment(&self) -> Result<Figment, Error> {
        let document = match &self.document {
            Document::Text { toml, .. } => Toml::string(toml),
            Document::File {
                path,
                found,
                named_by,
            } => Toml::file_exact(found.as_ref().ok_or_else(|| Error::NoFile {
                path: path.clone(),
                named_by: named_by.clone(),
            })?),
        };
        let figment = Figment::from(document);
        Ok(match &self.overrides {
            Some(prefix) => figment.merge(Env::prefixed(prefix).split("__")),
            None => figment,
        })
    }

    /// The checked `[maintenance]` table; `None` if it is absent or disabled.
    ///
    /// # Errors
    ///
    /// [`Error::NoFile`], [`Error::Unreadable`], or [`Error::Refused`] with all that is
    /// wrong with the table, also with a disabled one.
    pub fn maintenance(&self) -> Result<Option<Settings>, Error> {
        let file = File::find_in(&self.figment()?).map_err(|error| Error::Unreadable {
            from: self.describe(),
            reason: without_excerpt(&error.to_string()),
        })?;
        let Some(file) = file else { return Ok(None) };
        let settings = Settings::check(&file).map_err(|problems| Error::Refused {
            from: self.describe(),
            problems,
        })?;
        Ok(settings.map(|mut settings| {
            settings.backup.files.read_from(self.path());
            settings
        }))
    }
}

impl Document {
    fn file(path: PathBuf, named_by: String) -> Self {
        let found = Toml::file(&path).metadata().source;
        let found = found.and_then(|source| source.file_path().map(Path::to_owned));
        Self::File {
            path,
            found,
            named_by,
        }
    }
}

/// A message of the TOML parser on one line, without the line of the file it quotes (`7 | ..`,
/// framed by `  | ..`), which may hold a secret.
fn without_excerpt(message: &str) -> String {
    let quoted = |line: &str| {
        let gutter = line.trim_start_matches(|c: char| c == ' ' || c.is_ascii_digit());
        gutter.starts_with('|')
    };
    let lines: Vec<&str> = message.lines().filter(|line| !quoted(line)).collect();
    lines.join("; ")
}

/// Without the content, which may hold secrets.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Source").field(&self.describe()).finish()
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not there, or is not a file.
    #[error(
        "there is no configuration file {} ({named_by}): create it, or name another",
        .path.display()
    )]
    NoFile {
        /// As it was named.
        path: PathBuf,
        /// Who named it.
        named_by: String,
    },
    /// It cannot be read, or is not TOML.
    #[error("the configuration in {from} cannot be read: {reason}")]
    Unreadable {
        /// [`Source::describe`].
        from: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The `[maintenance]` table is wrong.
    #[error("the configuration in {from} cannot be used:\n{problems}")]
    Refused {
        /// [`Source::describe`].
        from: String,
        /// All that is wrong.
        problems: Problems,
    },
}

#[cfg(test)]
mod tests;
