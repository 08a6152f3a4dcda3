//! The secret that whoever changes something must know.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::disk::{self, Disk};

/// The environment variable a token may come in. It wins over the file, as every override
/// does.
pub const VARIABLE: &str = "TORRUST_TRACKER_MAINTENANCE_TOKEN";

/// Fewest characters of a token: what 12 random bytes are in Base64.
pub const SHORTEST: usize = 16;

/// More bytes than a file with a token has.
const FILE_LIMIT: u64 = 16 << 10;

/// A token, as a digest: the text is not kept, cannot be logged, and whatever is compared
/// with it has the same length.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

/// Why there is no token although one was configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("maintenance.readiness.token_file: {0}")]
    Disk(#[from] disk::Error),
    /// What is there is no token.
    #[error(
        "{origin} holds no token: one has at least {SHORTEST} characters of printable \
         ASCII, and no space; make one with `openssl rand -base64 32`"
    )]
    Unfit {
        /// The file or the variable.
        origin: String,
    },
}

impl Token {
    /// The token in the environment, else the one in the first line of the file; `None` if
    /// neither is configured. `variable` is the value of [`VARIABLE`].
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or there is no token in what is configured.
    pub fn find(
        variable: Option<&OsStr>,
        file: Option<&Path>,
        disk: &Disk,
    ) -> Result<Option<Self>, Error> {
        let unfit = |origin: String| Error::Unfit { origin };
        if let Some(value) = variable {
            let token = value.to_str().and_then(|text| Self::parse(text.trim()));
            return token.map(Some).ok_or_else(|| unfit(VARIABLE.to_owned()));
        }
        let Some(path) = file else { return Ok(None) };
        let contents = disk.read(path, FILE_LIMIT)?;
        let first = String::from_utf8_lossy(&contents);
        let token = Self::parse(first.lines().next().unwrap_or_default().trim());
        let origin = || format!("{} (maintenance.readiness.token_file)", path.display());
        token.map(Some).ok_or_else(|| unfit(origin()))
    }

    /// What can stand after `Bearer` in a header and is long enough.
    fn parse(text: &str) -> Option<Self> {
        let fits = text.len() >= SHORTEST && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| Self(digest(text)))
    }

    /// Whether this is the token. Takes as long whatever of it is wrong.
    #[must_use]
    pub fn is(&self, offered: &str) -> bool {
        self.0.ct_eq(&digest(offered)).into()
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The file with the token, if others than its owner and its group can read it.
#[must_use]
pub fn readable_by_others(file: Option<&Path>) -> Option<PathBuf> {
    let file = file?;
    let mode = fs::metadata(file).ok()?.permissions().mode();
    (mode & 0o004 != 0).then(|| file.to_owned())
}

#[cfg(test)]
mod tests;
