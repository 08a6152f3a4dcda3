//! Who can read a backup: everybody, or those it is encrypted for.
//!
//! The format is age (<https://age-encryption.org/v1>), of X25519 keys: what is stored is
//! `zstd`, then `age`, so `age -d -i key.txt X | zstd -d` is all that a restore by hand takes.
//! Where backups are made there are recipients only, no identity: who takes the machine over
//! can read its database, but no older backup of it.
//!
//! Nothing is published that was not read back. So each run has an identity of its own, made
//! in memory, which is a recipient beside those of the operator ([`Seal`]). It is never
//! written anywhere and gone with the run.
//!
//! Identities are secrets: no [`fmt::Debug`] shows one, and no error quotes a line of theirs.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

use age::x25519;
use age::{DecryptError, Decryptor, Encryptor};

use crate::catalogue::Encrypted;
use crate::config;
use crate::disk::{self, Disk};

/// How the text of an identity begins, in any case of letters.
const SECRET: &str = "age-secret-key-";

/// Longest file of recipients or identities worth reading.
const LONGEST: u64 = 1 << 20;

/// How a file begins that age has encrypted, armored or not.
const ENCRYPTED: [&[u8]; 2] = [
    b"age-encryption.org/",
    b"-----BEGIN AGE ENCRYPTED FILE-----",
];

/// Somebody a backup is encrypted for: `age1...`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(x25519::Recipient);

impl Recipient {
    /// Reads one, or says why it is none. The text is not in the answer: it may be an
    /// identity by mistake.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NotARecipient> {
        if is_secret(text) {
            return Err(NotARecipient::Secret);
        }
        let parsed = text.parse().map_err(|_| NotARecipient::Other)?;
        Ok(Self(parsed))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no [`Recipient`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotARecipient {
    /// It is the other half of the key.
    #[error(
        "is an identity, which must not be on this machine: write its recipient, which \
         `age-keygen -y` prints, and make a new identity if others could read this one"
    )]
    Secret,
    /// It is something else.
    #[error("is not a recipient: write one as `age-keygen` prints it, \"age1...\"")]
    Other,
}

/// Why backups cannot be encrypted, or an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// Standard input cannot be read.
    #[error("could not read identities from standard input: {0}")]
    Input(io::Error),
    /// It is no text.
    #[error("{} is not a text", .0.display())]
    NotText(PathBuf),
    /// A line of a file of recipients is none.
    #[error("line {line} of {} {why}", .path.display())]
    Recipient {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: NotARecipient,
    },
    /// There is nobody in it.
    #[error("there is no recipient in {}: write one a line, or remove backup.recipients_file", .0.display())]
    NoRecipient(PathBuf),
    /// A line of a file of identities is none.
    #[error(
        "line {line} of {} is not an age identity of an X25519 key (AGE-SECRET-KEY-1...)",
        .path.display()
    )]
    Identity {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
    /// The file is encrypted itself.
    #[error(
        "{path} is encrypted itself: decrypt it on the way, \
         `age -d {path} | torrust-maintenance ... --identity -`", path = .0.display()
    )]
    Passphrase(PathBuf),
    /// There is none in it.
    #[error("there is no identity in {}", .0.display())]
    NoIdentity(PathBuf),
}

/// What a run encrypts with, and reads back with.
#[derive(Clone)]
pub struct Seal {
    recipients: Vec<Recipient>,
    own: Identities,
}

impl Seal {
    /// For those the configuration names; `None` if it names nobody: backups are not
    /// encrypted then. The file of recipients is read anew every time.
    ///
    /// # Errors
    ///
    /// If that file cannot be read, or has something else in it.
    pub fn of(wanted: &config::Encryption, disk: &Disk) -> Result<Option<Self>, Error> {
        let mut recipients = wanted.recipients.clone();
        if let Some(path) = &wanted.recipients_file {
            recipients.extend(read_recipients(path, disk)?);
        }
        Ok(Self::for_those(recipients))
    }

    /// For these; `None` if there is nobody.
    #[must_use]
    pub fn for_those(recipients: Vec<Recipient>) -> Option<Self> {
        let own = Identities(vec![x25519::Identity::generate()]);
        (!recipients.is_empty()).then_some(Self { recipients, own })
    }

    /// What opens whatever it has sealed, for as long as the run lives.
    #[must_use]
    pub fn identities(&self) -> &Identities {
        &self.own
    }

    /// What manifests say of it.
    #[must_use]
    pub fn describe(&self) -> Encrypted {
        Encrypted {
            format: Encrypted::FORMAT.to_owned(),
            recipients: self.recipients.len(),
        }
    }

    /// Encrypts what is written from here on.
    pub(crate) fn writer<W: Write>(&self, to: W) -> io::Result<age::stream::StreamWriter<W>> {
        let own: Vec<_> = self.own.0.iter().map(x25519::Identity::to_public).collect();
        let recipients = self.recipients.iter().map(|recipient| &recipient.0);
        let all = recipients.chain(&own);
        Encryptor::with_recipients(all.map(|recipient| recipient as &dyn age::Recipient))
            .map_err(io::Error::other)?
            .wrap_output(to)
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seal").field(&self.recipients).finish()
    }
}

/// What opens backups.
#[derive(Clone)]
pub struct Identities(Vec<x25519::Identity>);

/// Why a file stays closed.
#[derive(Debug)]
pub(crate) enum Closed {
    /// It is for others.
    ForOthers,
    /// It cannot be read, or is not what it should be.
    Unreadable(io::Error),
}

impl Identities {
    /// Those in these files, each as `age-keygen` writes it; `-` is standard input, for one
    /// that is itself kept encrypted.
    ///
    /// # Errors
    ///
    /// If one cannot be read, or has something else in it. No error quotes a line.
    pub fn read(paths: &[PathBuf], disk: &Disk) -> Result<Option<Self>, Error> {
        let mut identities = Vec::new();
        for path in paths {
            let bytes = if path == Path::new("-") {
                let mut bytes = Vec::new();
                let input = io::stdin().lock().take(LONGEST);
                { input }.read_to_end(&mut bytes).map_err(Error::Input)?;
                bytes
            } else {
                disk.read(path, LONGEST)?
            };
            identities.extend(Self::parse(path, &bytes)?);
        }
        Ok((!identities.is_empty()).then_some(Self(identities)))
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<x25519::Identity>, Error> {
        if ENCRYPTED.iter().any(|begins| bytes.starts_with(begins)) {
            return Err(Error::Passphrase(path.to_owned()));
        }
        let mut identities = Vec::new();
        for (line, text) in lines(path, bytes)? {
            let identity = text.parse().map_err(|_| Error::Identity {
                path: path.to_owned(),
                line,
            })?;
            identities.push(identity);
        }
        if identities.is_empty() {
            return Err(Error::NoIdentity(path.to_owned()));
        }
        Ok(identities)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Whom they belong to.
    #[must_use]
    pub fn recipients(&self) -> Vec<Recipient> {
        let of = |identity: &x25519::Identity| Recipient(identity.to_public());
        self.0.iter().map(of).collect()
    }

    /// Decrypts what is read from here on. It is authentic as far as it has been read.
    pub(crate) fn open<R: BufRead>(&self, from: R) -> Result<impl Read + use<R>, Closed> {
        let identities = self.0.iter().map(|identity| identity as &dyn age::Identity);
        let opened = Decryptor::new_buffered(from).and_then(|file| file.decrypt(identities));
        opened.map_err(|error| match error {
            DecryptError::NoMatchingKeys => Closed::ForOthers,
            DecryptError::Io(error) => Closed::Unreadable(error),
            error => Closed::Unreadable(io::Error::new(io::ErrorKind::InvalidData, error)),
        })
    }
}

impl PartialEq for Identities {
    fn eq(&self, other: &Self) -> bool {
        self.recipients() == other.recipients()
    }
}

/// Whose they are, and nothing of what they are.
impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identities")
            .field(&self.recipients())
            .finish()
    }
}

/// Whether a text is, or was meant to be, an identity.
#[must_use]
pub(crate) fn is_secret(text: &str) -> bool {
    text.to_ascii_lowercase().contains(SECRET)
}

/// One a line; blank lines and those that begin with `#` are left out, as age does.
fn read_recipients(path: &Path, disk: &Disk) -> Result<Vec<Recipient>, Error> {
    let bytes = disk.read(path, LONGEST)?;
    let recipients = lines(path, &bytes)?.into_iter().map(|(line, text)| {
        Recipient::parse(text).map_err(|why| Error::Recipient {
            path: path.to_owned(),
            line,
            why,
        })
    });
    let recipients: Vec<_> = recipients.collect::<Result<_, _>>()?;
    if recipients.is_empty() {
        return Err(Error::NoRecipient(path.to_owned()));
    }
    Ok(recipients)
}

fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(usize, &'a str)>, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::NotText(path.to_owned()))?;
    let lines = (1..).zip(text.lines().map(str::trim));
    Ok(lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .collect())
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
