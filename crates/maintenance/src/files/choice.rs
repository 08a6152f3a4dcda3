//! Which files are stored. Directories are listed and metadata is read; no file is opened.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use super::pattern::{Expansion, is_pattern};
use super::reach::{Bounds, Reach};
use super::{Error, LeftOut, MOST, Reserved, Why, member};
use crate::config;
use crate::disk::{self, Disk};
use crate::snapshot::Watch;

/// A star stands for part of one name; hidden files are files.
const MATCH: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// What is to be stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// By path.
    pub files: Vec<Chosen>,
    /// What was wanted and is not among them.
    pub left_out: Vec<LeftOut>,
}

/// A file to be stored, as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Where it is: absolute, its directory without links. If it is a link itself, what it
    /// leads to is stored under this name.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

impl Choice {
    /// Bytes of all of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Bytes they take while they are stored: as an archive, and that once more compressed.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.bytes().saturating_mul(2)
    }
}

/// Looks for what the configuration wants. Whether something may be missing is for
/// [`super::check_missing`] to say.
///
/// # Errors
///
/// [`Error::TooLarge`], [`Error::TooMany`] and [`Error::TooFar`], as soon as that is seen; if a
/// pattern cannot be looked for, or `watch` is cancelled.
pub fn choose(
    wanted: &config::Files,
    reserved: &Reserved,
    disk: &Disk,
    watch: &Watch,
) -> Result<Choice, Error> {
    choose_within(Bounds::OF_A_SEARCH, wanted, reserved, disk, watch)
}

pub(super) fn choose_within(
    bounds: Bounds,
    wanted: &config::Files,
    reserved: &Reserved,
    disk: &Disk,
    watch: &Watch,
) -> Result<Choice, Error> {
    let mut search = Search {
        rules: Rules::new(wanted),
        reserved,
        reach: Reach::new(bounds, watch),
        disk,
        files: BTreeMap::new(),
        bytes: 0,
        left_out: Vec::new(),
        entered: BTreeSet::new(),
    };
    for path in wanted.configuration.iter().chain(&wanted.wanted) {
        // What is there by this very name is meant, whatever a pattern could make of it.
        let found = if fs::symlink_metadata(path).is_ok() {
            [path.clone()].into()
        } else if is_pattern(path) {
            search.expand(path)?
        } else {
            BTreeSet::new()
        };
        if found.is_empty() {
            search.leave_out(path, Why::Missing);
        }
        for path in found {
            search.visit(&path, &mut Vec::new())?;
        }
    }
    let files = search.files.into_iter();
    Ok(Choice {
        files: files.map(|(path, bytes)| Chosen { path, bytes }).collect(),
        left_out: search.left_out,
    })
}

/// What is decided from names and sizes alone.
#[derive(Debug)]
struct Rules {
    /// Patterns of a name, at any place.
    names: Vec<Pattern>,
    /// Patterns of a whole path.
    paths: Vec<Pattern>,
    limit: u64,
}

impl Rules {
    fn new(wanted: &config::Files) -> Self {
        let patterns = wanted.exclude.iter().cloned();
        let (paths, names) = patterns.partition(|pattern| pattern.as_str().contains('/'));
        Self {
            names,
            paths: paths_from_root(paths),
            limit: wanted.limit,
        }
    }

    /// Whether it is left out on purpose. `stored_as` is the path it would be stored under,
    /// `found` the one it was found by.
    fn excludes(&self, stored_as: &Path, found: &Path) -> bool {
        let found_as = std::path::absolute(found).unwrap_or_else(|_| found.to_owned());
        let name = stored_as.file_name().map(Path::new);
        let named =
            |pattern: &Pattern| name.is_some_and(|name| pattern.matches_path_with(name, MATCH));
        let at = |pattern: &Pattern| {
            [stored_as, found_as.as_path()]
                .iter()
                .any(|path| pattern.matches_path_with(path, MATCH))
        };
        self.names.iter().any(named) || self.paths.iter().any(at)
    }

    /// Whether these are still few and small enough.
    fn admit(&self, files: &BTreeMap<PathBuf, u64>, bytes: u64) -> Result<(), Error> {
        if files.len() > MOST {
            let among = files.keys().next_back().cloned().unwrap_or_default();
            return Err(Error::TooMany { among });
        }
        if bytes <= self.limit {
            return Ok(());
        }
        let largest = files.iter().max_by_key(|(_, bytes)| **bytes);
        let (largest, bytes) = largest.map(|(path, bytes)| (path.clone(), *bytes)).unzip();
        Err(Error::TooLarge {
            limit: self.limit,
            largest: largest.unwrap_or_default(),
            bytes: bytes.unwrap_or_default(),
        })
    }
}

/// Relative patterns are of the working directory, as relative paths are.
fn paths_from_root(patterns: Vec<Pattern>) -> Vec<Pattern> {
    let absolute = |pattern: Pattern| {
        let path = std::path::absolute(pattern.as_str()).ok()?;
        // The directory they are relative to is a name, not a pattern.
        let relative = Path::new(pattern.as_str()).is_relative();
        if !relative {
            return Some(pattern);
        }
        let here = std::env::current_dir().ok()?;
        let rest = path.strip_prefix(&here).ok()?;
        let here = Pattern::escape(&here.to_string_lossy());
        Pattern::new(&Path::new(&here).join(rest).to_string_lossy()).ok()
    };
    patterns.into_iter().filter_map(absolute).collect()
}

struct Search<'a> {
    rules: Rules,
    reserved: &'a Reserved,
    reach: Reach<'a>,
    disk: &'a Disk,
    files: BTreeMap<PathBuf, u64>,
    /// Of all of them.
    bytes: u64,
    left_out: Vec<LeftOut>,
    /// The directories, under the names they are stored by.
    entered: BTreeSet<PathBuf>,
}

impl Search<'_> {
    /// What fits a pattern. What is excluded is not looked into on the way.
    fn expand(&mut self, pattern: &Path) -> Result<BTreeSet<PathBuf>, Error> {
        let Self {
            rules, reach, disk, ..
        } = self;
        let excluded = |directory: &Path| {
            stored_as(directory).is_ok_and(|stored_as| rules.excludes(&stored_as, directory))
        };
        let (found, left_out) = Expansion::new(reach, disk, &excluded).of(pattern)?;
        self.left_out.extend(left_out);
        Ok(found)
    }

    /// Looks at one path; at all that is in it if it is a directory. `above` are the
    /// directories it was reached through, which a link may lead back to.
    fn visit(&mut self, path: &Path, above: &mut Vec<(u64, u64)>) -> Result<(), Error> {
        let (stored_as, found) =
            match stored_as(path).and_then(|name| Ok((name, fs::metadata(path)?))) {
                Ok(seen) => seen,
                Err(error) => {
                    self.leave_out(path, Why::unreadable(&error));
                    return Ok(());
                }
            };
        if self.rules.excludes(&stored_as, path) {
            return Ok(());
        }
        if let Some(what) = self.reserved.find(path) {
            self.leave_out(path, Why::Reserved(what));
            return Ok(());
        }
        if found.is_dir() {
            // `**` fits a directory and each of those in it: what is in one is looked at once.
            if !self.entered.insert(stored_as) {
                return Ok(());
            }
            self.enter(path, &found, above)
        } else if !found.is_file() {
            self.leave_out(path, Why::Special);
            Ok(())
        } else if member(&stored_as).is_none() {
            self.leave_out(path, Why::Unnameable);
            Ok(())
        } else {
            // By two patterns, perhaps.
            let before = self.files.insert(stored_as, found.len());
            self.bytes = self.bytes - before.unwrap_or(0) + found.len();
            self.rules.admit(&self.files, self.bytes)
        }
    }

    fn enter(
        &mut self,
        path: &Path,
        found: &Metadata,
        above: &mut Vec<(u64, u64)>,
    ) -> Result<(), Error> {
        let identity = (found.dev(), found.ino());
        if above.contains(&identity) {
            return Ok(());
        }
        let names = match self.disk.list(path) {
            Ok(names) => names,
            Err(error) => {
                self.leave_out(path, Why::unreadable(&error.source));
                return Ok(());
            }
        };
        self.reach.enter(path, names.len(), above.len())?;
        above.push(identity);
        for name in names {
            self.visit(&path.join(name), above)?;
        }
        above.pop();
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: Why) {
        let path = path.to_owned();
        self.left_out.push(LeftOut { path, why });
    }
}

/// The path with links in its directory resolved, but not the last one: what is configured
/// under a link is found under that again.
fn stored_as(path: &Path) -> io::Result<PathBuf> {
    match path.file_name() {
        Some(name) => Ok(fs::canonicalize(disk::parent(path))?.join(name)),
        // `..` and `/` have no name of their own.
        None => fs::canonicalize(path),
    }
}
