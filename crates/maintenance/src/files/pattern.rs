//! The paths that a pattern fits: `*`, `?` and `[..]` within a name, and `**` for directories of
//! any depth, also none. Directories are listed, links to them followed; nothing is opened.
//!
//! A directory that is excluded, or that it is in already by way of a link, is not entered.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};

use super::reach::Reach;
use super::{Error, LeftOut, Why};
use crate::disk::{self, Disk};

/// One name of a path.
#[derive(Debug)]
enum Part {
    /// This very one.
    Named(OsString),
    /// Any that fits.
    Like(Pattern),
    /// `**`.
    AnyDepth,
}

/// A search for what a pattern fits.
pub(super) struct Expansion<'a, 'b> {
    reach: &'a mut Reach<'b>,
    disk: &'a Disk,
    /// Whether a directory is left out on purpose.
    excluded: &'a dyn Fn(&Path) -> bool,
    /// Directories that should have been listed, and could not be.
    left_out: Vec<LeftOut>,
    found: BTreeSet<PathBuf>,
    /// The directories it is in, which a link may lead back to.
    above: Vec<(u64, u64)>,
}

/// Whether a path is to be taken for a pattern if there is nothing of its very name.
pub(super) fn is_pattern(path: &Path) -> bool {
    is_special(path.as_os_str())
}

impl<'a, 'b> Expansion<'a, 'b> {
    pub(super) fn new(
        reach: &'a mut Reach<'b>,
        disk: &'a Disk,
        excluded: &'a dyn Fn(&Path) -> bool,
    ) -> Self {
        Self {
            reach,
            disk,
            excluded,
            left_out: Vec::new(),
            found: BTreeSet::new(),
            above: Vec::new(),
        }
    }

    /// The paths there are, in order, and the directories that could not be looked into
    /// though this user may.
    ///
    /// # Errors
    ///
    /// If it is no pattern, leads too far, or the search is cancelled.
    pub(super) fn of(mut self, pattern: &Path) -> Result<(BTreeSet<PathBuf>, Vec<LeftOut>), Error> {
        let (start, parts) = parts(pattern)
            .map_err(|error| disk::Error::new("look for", pattern, io::Error::other(error)))?;
        self.below(&start, &parts)?;
        Ok((self.found, self.left_out))
    }

    /// Finds what `parts` fit in a directory.
    fn below(&mut self, directory: &Path, parts: &[Part]) -> Result<(), Error> {
        match parts {
            [] => {
                self.found.insert(directory.to_owned());
                Ok(())
            }
            [Part::Named(name), rest @ ..] => {
                let path = directory.join(name);
                if rest.is_empty() && path.symlink_metadata().is_err() {
                    return Ok(());
                }
                self.below(&path, rest)
            }
            [Part::Like(pattern), rest @ ..] => {
                let is_like = |name: &OsStr| {
                    pattern.matches_with(&name.to_string_lossy(), MatchOptions::new())
                };
                for name in self.list(directory)? {
                    let path = directory.join(&name);
                    if is_like(&name) && (rest.is_empty() || !(self.excluded)(&path)) {
                        self.below(&path, rest)?;
                    }
                }
                Ok(())
            }
            [Part::AnyDepth, rest @ ..] => self.at_any_depth(directory, parts, rest),
        }
    }

    /// Finds what `rest` fits in a directory, and in all below it. With nothing left to fit
    /// that is the directories below.
    fn at_any_depth(
        &mut self,
        directory: &Path,
        parts: &[Part],
        rest: &[Part],
    ) -> Result<(), Error> {
        let Some(identity) = identity(directory) else {
            return Ok(());
        };
        if self.above.contains(&identity) {
            return Ok(());
        }
        self.above.push(identity);
        if !rest.is_empty() {
            self.below(directory, rest)?;
        }
        for name in self.list(directory)? {
            let path = directory.join(name);
            if path.is_dir() && !(self.excluded)(&path) {
                if rest.is_empty() {
                    self.found.insert(path.clone());
                }
                self.below(&path, parts)?;
            }
        }
        self.above.pop();
        Ok(())
    }

    /// The names in what may be a directory. What is none, and what this user may not look
    /// into, has none.
    fn list(&mut self, directory: &Path) -> Result<Vec<OsString>, Error> {
        let here = listed(directory);
        if !here.is_dir() {
            return Ok(Vec::new());
        }
        let names = match self.disk.list(here) {
            Ok(names) => names,
            Err(error) => {
                let passed_over = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];
                if !passed_over.contains(&error.source.kind()) {
                    self.left_out.push(LeftOut {
                        path: here.to_owned(),
                        why: Why::unreadable(&error.source),
                    });
                }
                return Ok(Vec::new());
            }
        };
        self.reach.enter(here, names.len(), self.above.len())?;
        Ok(names)
    }
}

/// Where a pattern begins, and what is to fit from there on.
fn parts(pattern: &Path) -> Result<(PathBuf, Vec<Part>), glob::PatternError> {
    let mut start = PathBuf::new();
    let mut parts = Vec::new();
    for component in pattern.components() {
        let name = component.as_os_str();
        match component {
            Component::Prefix(_) | Component::RootDir => start.push(name),
            Component::CurDir => {}
            _ if name == "**" => {
                // Twice is as once.
                if !matches!(parts.last(), Some(Part::AnyDepth)) {
                    parts.push(Part::AnyDepth);
                }
            }
            _ if is_special(name) => parts.push(Part::Like(Pattern::new(&name.to_string_lossy())?)),
            _ => parts.push(Part::Named(name.to_owned())),
        }
    }
    Ok((start, parts))
}

fn is_special(name: &OsStr) -> bool {
    name.to_string_lossy().contains(['*', '?', '['])
}

/// The beginning of a relative path has no name of its own.
fn listed(directory: &Path) -> &Path {
    if directory.as_os_str().is_empty() {
        return Path::new(".");
    }
    directory
}

/// Of the directory behind a path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::metadata(listed(path)).ok()?;
    found.is_dir().then(|| (found.dev(), found.ino()))
}
