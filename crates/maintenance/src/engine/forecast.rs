//! Pure: what a run is going to cost, reckoned by what earlier ones did.

use std::time::Duration;

use crate::catalogue::{Artifact, Manifest};
use crate::config::{self, Announces, Compression, Method, TakenBy};
use crate::snapshot::Way;
use crate::verify;
use crate::window::Pause;

/// Bytes a second a copy is expected to reach before one has been measured: what a plain
/// virtual disk gives. Too low an estimate refuses a run that would have fitted, which is
/// said; too high a one closes the gate for nothing.
const UNMEASURED_COPY: f64 = 150e6;

/// The same of a clone, whose time goes by the number of extents: what a file in small
/// pieces gives.
const UNMEASURED_CLONE: f64 = 2e9;

/// The same of a stream: zstd at its lowest level on two threads, then `quick_check`.
const UNMEASURED_STREAM: f64 = 60e6;

/// Bytes a second the log is expected to grow by until that has been measured: 2,000 commits
/// of five pages.
const UNMEASURED_LOG: f64 = 40e6;

/// How much more the log may grow by than it did: one night is busier than the other.
const BUSIER: f64 = 1.5;

/// Seconds of a pin in which the log's growth tells how it goes on.
const LONG: f64 = 1.0;

/// Of the database's size, what a compressed copy or dump, or an excerpt in both its forms, is
/// reckoned to take until one is known.
pub(crate) const UNMEASURED_RATIO: f64 = 0.6;

/// How much larger an artifact is that was compressed in a hurry, under the pin.
const HURRIED: f64 = 1.15;

/// Of the database's size, what the service may write anew while a clone of it exists: the
/// clone keeps the old blocks, so these take room.
const REWRITTEN: f64 = 0.125;

/// Databases of fewer bytes are not measured by.
pub(super) const TELLING: u64 = 16 << 20;

/// How many of the last backups are measured by.
pub(crate) const RECENT: usize = 5;

/// Bytes for the manifest and the file system's own.
pub(crate) const SLACK: u64 = 1 << 20;

/// What there is to reckon with.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Bytes of the database.
    pub bytes: u64,
    /// Whether it is on a rollback journal, where a pin keeps writers out.
    pub blocks_writers: bool,
    /// Whether the file can be cloned to where the backups are
    /// ([`can_clone`](crate::snapshot::can_clone)).
    pub clones: bool,
    /// Whether the database's log, which grows while the database is pinned, is on the file
    /// system of the backups.
    pub shares: bool,
    /// What is configured of announces ...
    pub announces: Announces,
    /// ... and of backups.
    pub backup: &'a config::Backup,
    /// Manifests of earlier backups, newest first.
    pub earlier: &'a [&'a Manifest],
}

/// What a run is reckoned to cost, before it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forecast {
    /// How the database will be got hold of, if there is [`Forecast::room`] for it.
    pub way: Way,
    /// For how long announces have to wait.
    pub pause: Pause,
    /// How long that takes, whether announces wait for it or not.
    pub copy: Taking,
    /// How long the structural check takes, for which nobody waits.
    pub check: Duration,
    /// Bytes needed in the catalogue's directory while the backup is made.
    pub room: u64,
    /// What it costs if the file is streamed into the compressor; `None` where it cannot be.
    pub streamed: Option<Streaming>,
}

/// How long it takes to get hold of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taking {
    /// So long.
    pub time: Duration,
    /// What that goes by.
    pub basis: Basis,
}

/// What a forecast of time goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The rate of earlier backups.
    Measured,
    /// `backup.bandwidth`, which allows no more.
    Limited,
    /// What an ordinary disk gives, as there is no earlier backup.
    Assumed,
}

/// What a run costs that streams the file into the compressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    /// How long the file is pinned. Announces flow meanwhile.
    pub copy: Taking,
    /// Bytes needed in the catalogue's directory.
    pub room: u64,
}

impl Known<'_> {
    /// What a run costs.
    #[must_use]
    pub fn forecast(&self) -> Forecast {
        let Self { bytes, backup, .. } = *self;
        let way = match backup.method {
            Method::Pages => Way::Pages,
            Method::Auto | Method::File if self.clones => Way::Clone,
            Method::Auto | Method::File => Way::File,
        };
        let waits = self.waits();
        // An excerpt is taken from a raw copy.
        let can_stream = !waits && way != Way::Pages && backup.partial.is_none();
        // A clone has no blocks of its own, a copy would be a second one that can be read.
        let way = match (way, backup.method) {
            (Way::File, Method::Auto) if can_stream && backup.encryption.is_wanted() => Way::Stream,
            (way, _) => way,
        };
        let copy = self.copy(way);
        let streamed = self.copy(Way::Stream);
        let as_it_is = backup.compression == Compression::None
            && backup.partial.is_none()
            && !backup.encryption.is_wanted();
        let (room, streamed_room) = if as_it_is {
            // The raw copy becomes the artifact. A clone does too, and will own more and
            // more of its blocks: it must not be the database that then finds no room.
            (bytes, None)
        } else {
            let made = share(bytes, self.ratio());
            let raw = match way {
                Way::Clone => share(bytes, REWRITTEN),
                Way::Stream => 0,
                Way::File | Way::Pages | Way::Dump => bytes,
            };
            let hurried = share(made, HURRIED).saturating_add(SLACK);
            (raw.saturating_add(made), can_stream.then_some(hurried))
        };
        Forecast {
            way,
            pause: if waits {
                Pause::UntilCopied(copy.time)
            } else {
                // How fast a sidecar's tools copy is not known, nor who holds them back.
                let taken_here = backup.taken_by == TakenBy::Tracker;
                Pause::UntilPinned(copy.known().filter(|_| taken_here))
            },
            copy,
            check: verify::expected(bytes, backup.verify, self.earlier),
            room: room
                .saturating_add(SLACK)
                .saturating_add(self.log(copy.time)),
            streamed: streamed_room.map(|room| Streaming {
                copy: streamed,
                room: room.saturating_add(self.log(streamed.time)),
            }),
        }
    }

    /// Whether announces wait until the database is copied.
    fn waits(&self) -> bool {
        self.blocks_writers || self.announces == Announces::Pause
    }

    /// How long it takes to get hold of the database.
    fn copy(&self, way: Way) -> Taking {
        let measured = self.measured(way).or_else(|| {
            // What `auto` falls back to is slower, if anything.
            (way == Way::File)
                .then(|| self.measured(Way::Pages))
                .flatten()
        });
        let assumed = match way {
            Way::Clone => UNMEASURED_CLONE,
            // A dump is reckoned by its own engine.
            Way::Stream | Way::Dump => UNMEASURED_STREAM,
            Way::File | Way::Pages => UNMEASURED_COPY,
        };
        let (rate, basis) =
            measured.map_or((assumed, Basis::Assumed), |rate| (rate, Basis::Measured));
        // Of a clone no byte is read that could be counted.
        let limit = self.backup.bandwidth.filter(|_| way != Way::Clone);
        let (rate, basis) = match limit.map(as_rate) {
            Some(limit) if limit < rate => (limit, Basis::Limited),
            _ => (rate, basis),
        };
        let time = Duration::try_from_secs_f64(as_rate(self.bytes) / rate);
        Taking {
            time: time.unwrap_or(Duration::MAX),
            basis,
        }
    }

    /// Bytes a second: the best of the last few that went this way, since the rate of one says
    /// nothing of another's. The best, because one slow night must not keep the next run from
    /// beginning, and with it from measuring anew.
    fn measured(&self, way: Way) -> Option<f64> {
        let telling = |earlier: &&&Manifest| {
            earlier.method == way
                // What took no time says nothing about a larger database.
                && earlier.copied_bytes() >= TELLING
                // One that was slowed down on purpose says nothing about the disk.
                && (earlier.bandwidth.is_none() || way == Way::Clone)
        };
        // As fast as it is when it hurries.
        let rate = |earlier: &&Manifest| {
            let seconds = earlier.copy_seconds - earlier.rested_seconds;
            as_rate(earlier.copied_bytes()) / seconds.max(0.001)
        };
        let recent = self.earlier.iter().filter(telling).take(RECENT);
        recent.map(rate).reduce(f64::max)
    }

    /// Bytes the log takes of the same room while the database is pinned, for so long: as fast
    /// as it grew in the busiest of the last few runs, and never past the limit.
    fn log(&self, pinned: Duration) -> u64 {
        if self.waits() || !self.shares {
            return 0;
        }
        let rate = |earlier: &&Manifest| {
            let grown = earlier
                .wal_growth
                .filter(|_| earlier.copy_seconds >= LONG)?;
            Some(as_rate(grown) / earlier.copy_seconds)
        };
        let recent = self.earlier.iter().filter_map(rate).take(RECENT);
        let rate = recent
            .reduce(f64::max)
            .map_or(UNMEASURED_LOG, |rate| rate * BUSIER);
        as_bytes(rate * pinned.as_secs_f64()).min(self.backup.wal_limit)
    }

    /// Of its bytes, those that what is made of a raw copy takes beside it: compressed, or
    /// an excerpt in both its forms.
    fn ratio(&self) -> f64 {
        let alike = |last: &&&Manifest| last.partial == self.backup.partial;
        let unmeasured = match (self.backup.compression, &self.backup.partial) {
            // Encrypted alone: a little more than it was.
            (Compression::None, None) => 1.001,
            _ => UNMEASURED_RATIO,
        };
        self.earlier.iter().find(alike).map_or(unmeasured, |last| {
            let Artifact {
                raw_bytes,
                stored_bytes,
                ..
            } = last.database;
            let made = match (self.backup.compression, &last.partial) {
                (_, None) => stored_bytes,
                (Compression::None, Some(_)) => raw_bytes,
                (Compression::Zstd(_), Some(_)) => raw_bytes + stored_bytes,
            };
            as_rate(made) / as_rate(last.copied_bytes().max(1))
        })
    }
}

impl Taking {
    /// The time, unless it is a guess.
    fn known(self) -> Option<Duration> {
        (self.basis != Basis::Assumed).then_some(self.time)
    }
}

impl Forecast {
    /// For how long announces have to wait if the database is got hold of `way`, which is what
    /// [`Forecast::way_with`] said.
    #[must_use]
    pub fn pause_of(&self, way: Way) -> Pause {
        match self.streamed {
            Some(streamed) if way == Way::Stream && self.way != way => {
                Pause::UntilPinned(streamed.copy.known())
            }
            _ => self.pause,
        }
    }

    /// The same with so many bytes more that are stored beside the database.
    #[must_use]
    pub fn beside(self, bytes: u64) -> Self {
        let more = |room: u64| room.saturating_add(bytes);
        Self {
            room: more(self.room),
            streamed: self.streamed.map(|streamed| Streaming {
                room: more(streamed.room),
                ..streamed
            }),
            ..self
        }
    }

    /// How a run gets hold of the database where so many bytes are free: as it would, or,
    /// should there be no room for that, streamed. `None`: not at all.
    #[must_use]
    pub fn way_with(&self, free: u64) -> Option<Way> {
        if free >= self.room {
            return Some(self.way);
        }
        self.streamed
            .filter(|streamed| free >= streamed.room)
            .map(|_| Way::Stream)
    }

    /// What most of [`Forecast::room`] is for.
    pub(super) fn what_room_is_for(&self) -> &'static str {
        match self.way {
            Way::Stream => "the encrypted copy",
            _ => "the raw copy and the compressed one",
        }
    }

    /// How less room would do, as the rest of a sentence that names [`Forecast::room`].
    pub(super) fn with_less_room(&self, backup: &config::Backup) -> String {
        if self.way == Way::Stream {
            return String::new();
        }
        if backup.partial.is_some() {
            // An excerpt is taken from a raw copy, so nothing is streamed; and what takes the
            // room are those two, whether or not the excerpt is compressed afterwards.
            return String::new();
        }
        match (self.streamed, backup.compression, self.pause) {
            (Some(streamed), ..) => {
                let room = bytesize::ByteSize(streamed.room);
                format!("; streamed into the compressor it still needs {room}")
            }
            (None, Compression::None, _) => r#"; compression = "zstd" needs less"#.to_owned(),
            (None, _, Pause::UntilCopied(_)) => {
                let method = if backup.method == Method::Pages {
                    r#"method = "auto", "#
                } else {
                    ""
                };
                format!(
                    "; with {method}journal_mode = \"wal\" and announces = \"auto\" room for the \
                     latter will do"
                )
            }
            (None, _, Pause::UntilPinned(_)) => {
                r#"; with method = "auto" room for the latter will do"#.to_owned()
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
pub(crate) fn as_rate(bytes: u64) -> f64 {
    bytes as f64
}

fn share(bytes: u64, of: f64) -> u64 {
    as_bytes(as_rate(bytes) * of)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
pub(crate) fn as_bytes(bytes: f64) -> u64 {
    bytes as u64
}

#[cfg(test)]
mod tests;
