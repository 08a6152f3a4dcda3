//! How far a search goes before it is given up: a link may lead to a tree of directories that
//! nobody meant, or back to where it is.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Error;
use crate::snapshot::Watch;

/// What a search keeps to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Most names that are looked at.
    pub(super) names: usize,
    /// Most directories below each other.
    pub(super) depth: usize,
    /// The longest it takes.
    pub(super) time: Duration,
}

impl Bounds {
    /// Ten times the names, and several times the depth, of what anybody stores; and a time in
    /// which a disk that works gives as many names.
    pub(super) const OF_A_SEARCH: Self = Self {
        names: 100_000,
        depth: 40,
        time: Duration::from_secs(30),
    };
}

/// Which bound was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// So many names were looked at.
    Names(usize),
    /// So many directories are below each other.
    Depth(usize),
    /// It took so long.
    Time(Duration),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Names(names) => write!(f, "{names} names were looked at"),
            Self::Depth(depth) => write!(f, "{depth} directories are below each other"),
            Self::Time(time) => write!(f, "{time:?} passed"),
        }
    }
}

/// What is left of the bounds of one search, whatever it looks for.
#[derive(Debug)]
pub(super) struct Reach<'a> {
    bounds: Bounds,
    names: usize,
    began: Instant,
    watch: &'a Watch,
}

impl<'a> Reach<'a> {
    #[expect(
        clippy::disallowed_methods,
        reason = "how long a search takes is measured where it is made"
    )]
    pub(super) fn new(bounds: Bounds, watch: &'a Watch) -> Self {
        Self {
            bounds,
            names: 0,
            began: Instant::now(),
            watch,
        }
    }

    /// That the search may go on in a directory with so many names, which is the `depth`th
    /// below the first.
    pub(super) fn enter(
        &mut self,
        directory: &Path,
        names: usize,
        depth: usize,
    ) -> Result<(), Error> {
        if let Some(why) = self.watch.cancelled() {
            return Err(Error::Cancelled { why });
        }
        self.names += names;
        let Bounds {
            names,
            depth: deepest,
            time,
        } = self.bounds;
        let bound = if self.names > names {
            Bound::Names(names)
        } else if depth > deepest {
            Bound::Depth(deepest)
        } else if self.began.elapsed() > time {
            Bound::Time(time)
        } else {
            return Ok(());
        };
        Err(Error::TooFar {
            bound,
            at: directory.to_owned(),
        })
    }
}
