//! Who announces what next: torrents of unequal popularity, and peers that start, complete,
//! come back and leave. Pure: the same seed and the same answers make the same load.
//!
//! ```text
//!   started ─▶ leecher ── completed ─▶ seeder ── regular ─▶ seeder
//!                 │                      │
//!                 └────── stopped ───────┴─▶ gone
//! ```
//!
//! What happens is drawn first, by [`Mix`], so that it is the same from the first second to
//! the last; then the torrent, by popularity, among those where it can happen. Where it
//! can happen nowhere that is looked at, somebody starts instead.
//!
//! A peer has one announce in flight, and a torrent one completion: two at a time may be
//! stored in either order, and then the counter in the database is not the number of
//! completions acknowledged. A torrent whose completion was not answered completes no more,
//! for the same reason.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::announce::{Announce, Event, Torrent};

/// Torrents looked at before somebody starts instead.
const LOOKS: u32 = 16;

/// A peer not heard of for longer is not used again. A tracker forgets peers after
/// `max_peer_timeout` (900 s by default), and counts no completion of one it has forgotten.
const FRESH: Duration = Duration::from_secs(600);

/// How often what happens, relative to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// A new peer.
    pub started: u32,
    /// A leecher becomes a seeder.
    pub completed: u32,
    /// A seeder says that it is still there.
    pub regular: u32,
    /// A peer leaves.
    pub stopped: u32,
}

impl Default for Mix {
    /// Slightly more peers come than say that they leave: a part of them just vanishes.
    fn default() -> Self {
        Self {
            started: 15,
            completed: 10,
            regular: 65,
            stopped: 10,
        }
    }
}

impl Mix {
    fn draw(&self, random: &mut fastrand::Rng) -> Event {
        let mut left = random.u32(..(self.started + self.completed + self.regular + self.stopped));
        for (weight, event) in [
            (self.started, Event::Started),
            (self.completed, Event::Completed),
            (self.regular, Event::None),
        ] {
            if left < weight {
                return event;
            }
            left -= weight;
        }
        Event::Stopped
    }
}

/// How many of some requests are of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(f64);

impl Share {
    /// So many in a hundred, at most all.
    #[must_use]
    pub fn percent(percent: u32) -> Self {
        Self(f64::from(percent.min(100)) / 100.0)
    }

    /// As a part of 1.
    #[must_use]
    pub fn part(self) -> f64 {
        self.0
    }

    pub(super) fn draw(self, random: &mut fastrand::Rng) -> bool {
        random.f64() < self.0
    }
}

/// Torrents by popularity: the n-th is asked for 1/n times as often as the first (Zipf's
/// law with exponent 1).
struct Popularity {
    /// Of each, the share of it and of all before it.
    up_to: Vec<f64>,
}

impl Popularity {
    fn new(torrents: u32) -> Self {
        let mut sum = 0.0;
        let up_to = (1..=torrents)
            .map(|rank| {
                sum += 1.0 / f64::from(rank);
                sum
            })
            .collect();
        Self { up_to }
    }

    fn draw(&self, random: &mut fastrand::Rng) -> usize {
        let last = self.up_to.len() - 1;
        let point = random.f64() * self.up_to[last];
        self.up_to
            .partition_point(|up_to| *up_to <= point)
            .min(last)
    }
}

/// A peer that has no announce in flight.
#[derive(Debug, Clone, Copy)]
struct Idle {
    peer: u32,
    /// When its last announce was answered, from the beginning.
    heard: Duration,
}

#[derive(Debug, Default)]
struct Swarm {
    leechers: Vec<Idle>,
    seeders: Vec<Idle>,
    /// A completion is in flight, or one was not answered.
    completing: bool,
}

/// All torrents of a load and the peers that are not being answered at the moment.
pub struct Swarms {
    /// The first torrent's number; the others follow.
    first: u32,
    torrents: Vec<Swarm>,
    popularity: Popularity,
    mix: Mix,
    random: fastrand::Rng,
    next_peer: u32,
}

impl Swarms {
    /// Torrents that nobody has announced yet, with the numbers in `torrents`. Loads whose
    /// numbers are apart can run at the same time.
    ///
    /// # Panics
    /// Without torrents, or with a mix of nothing.
    #[must_use]
    pub fn new(torrents: std::ops::Range<u32>, mix: Mix, seed: u64) -> Self {
        assert!(!torrents.is_empty(), "a load has torrents");
        Self {
            first: torrents.start,
            torrents: torrents.clone().map(|_| Swarm::default()).collect(),
            popularity: Popularity::new(torrents.end - torrents.start),
            mix,
            random: fastrand::Rng::with_seed(seed),
            next_peer: 0,
        }
    }

    /// A torrent to scrape.
    pub fn scraped(&mut self) -> Torrent {
        let index = self.popularity.draw(&mut self.random);
        self.torrent(index)
    }

    /// The next announce, to be handed back to [`Swarms::ended`].
    pub fn next(&mut self, now: Duration) -> Announce {
        let event = self.mix.draw(&mut self.random);
        for _ in 0..LOOKS {
            let index = self.popularity.draw(&mut self.random);
            if let Some(peer) = self.peer_for(event, index, now) {
                return Announce {
                    torrent: self.torrent(index),
                    peer,
                    event,
                };
            }
        }
        let index = self.popularity.draw(&mut self.random);
        Announce {
            torrent: self.torrent(index),
            peer: self.new_peer(),
            event: Event::Started,
        }
    }

    fn torrent(&self, index: usize) -> Torrent {
        Torrent(self.first + u32::try_from(index).expect("there are no more torrents than u32"))
    }

    fn new_peer(&mut self) -> u32 {
        self.next_peer += 1;
        self.next_peer
    }

    fn peer_for(&mut self, event: Event, index: usize, now: Duration) -> Option<u32> {
        let swarm = &mut self.torrents[index];
        let idle = match event {
            Event::Started => return Some(self.new_peer()),
            Event::Completed if swarm.completing => return None,
            Event::Completed => &mut swarm.leechers,
            Event::Stopped if swarm.seeders.is_empty() => &mut swarm.leechers,
            Event::None | Event::Stopped => &mut swarm.seeders,
        };
        let any = (!idle.is_empty()).then(|| self.random.usize(..idle.len()))?;
        let found = idle.swap_remove(any);
        if now.saturating_sub(found.heard) > FRESH {
            return None;
        }
        if event == Event::Completed {
            swarm.completing = true;
        }
        Some(found.peer)
    }

    /// An announce was answered; or it was not, and its peer is not used again.
    pub fn ended(&mut self, announce: Announce, answered: bool, now: Duration) {
        let index = announce
            .torrent
            .0
            .checked_sub(self.first)
            .expect("an announce of these torrents");
        let swarm = &mut self.torrents[index as usize];
        if !answered {
            return;
        }
        let idle = Idle {
            peer: announce.peer,
            heard: now,
        };
        match announce.event {
            Event::Started => swarm.leechers.push(idle),
            Event::Completed => {
                swarm.completing = false;
                swarm.seeders.push(idle);
            }
            Event::None => swarm.seeders.push(idle),
            Event::Stopped => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn event(announce: &Announce) -> usize {
        match announce.event {
            Event::Started => 0,
            Event::Completed => 1,
            Event::None => 2,
            Event::Stopped => 3,
        }
    }

    #[test]
    fn the_mix_is_the_same_from_the_first_thousands_on() {
        let mut swarms = Swarms::new(0..10_000, Mix::default(), 1);
        let mut counts = [[0; 4]; 5];
        for row in &mut counts {
            for _ in 0..10_000 {
                let announce = swarms.next(Duration::ZERO);
                row[event(&announce)] += 1;
                swarms.ended(announce, true, Duration::ZERO);
            }
        }
        for row in counts {
            for (count, percent) in row.iter().zip([15, 10, 65, 10]) {
                let wanted = percent * 100;
                assert!((wanted - 300..wanted + 300).contains(count), "{counts:?}");
            }
        }
    }

    #[test]
    fn the_first_torrent_is_twice_as_popular_as_the_second() {
        let mut swarms = Swarms::new(7..1_007, Mix::default(), 2);
        let mut asked: HashMap<Torrent, f64> = HashMap::new();
        for _ in 0..200_000 {
            *asked.entry(swarms.scraped()).or_default() += 1.0;
        }
        let ratio = |a, b| asked[&Torrent(a)] / asked[&Torrent(b)];
        assert!((1.9..2.1).contains(&ratio(7, 8)), "{}", ratio(7, 8));
        assert!((9.0..11.0).contains(&ratio(7, 16)), "{}", ratio(7, 16));
        let last = asked.keys().map(|torrent| torrent.0).max();
        assert!(last.is_some_and(|last| (900..1_007).contains(&last)));
    }

    /// Answers come late and in any order, some never: never two completions of a torrent
    /// in flight, never two announces of a peer, and every completion is of a peer that the
    /// tracker knows as a leecher.
    #[test]
    fn whatever_the_answers_completions_can_be_counted() {
        let mut swarms = Swarms::new(0..50, Mix::default(), 3);
        let mut random = fastrand::Rng::with_seed(4);
        let mut open: Vec<Announce> = Vec::new();
        let mut leechers: HashSet<(Torrent, u32)> = HashSet::new();
        let mut lost: HashSet<Torrent> = HashSet::new();
        let mut completions = 0;
        for _ in 0..50_000 {
            let announce = swarms.next(Duration::ZERO);
            let peer = (announce.torrent, announce.peer);
            for other in &open {
                assert_ne!((other.torrent, other.peer), peer, "one announce a peer");
                assert!(
                    announce.event != Event::Completed
                        || other.event != Event::Completed
                        || other.torrent != announce.torrent,
                    "one completion a torrent"
                );
            }
            if announce.event == Event::Completed {
                completions += 1;
                assert!(leechers.contains(&peer), "completed before it started");
                assert!(!lost.contains(&announce.torrent), "its count is not known");
            }
            open.push(announce);
            while open.len() > random.usize(..40) {
                let ended = open.swap_remove(random.usize(..open.len()));
                let answered = random.u32(..10_000) != 0;
                let peer = (ended.torrent, ended.peer);
                match ended.event {
                    Event::Started if answered => drop(leechers.insert(peer)),
                    Event::Completed if !answered => drop(lost.insert(ended.torrent)),
                    _ => {}
                }
                if ended.event != Event::Started {
                    leechers.remove(&peer);
                }
                swarms.ended(ended, answered, Duration::ZERO);
            }
        }
        assert!(completions > 1_000, "{completions}");
        assert!(!lost.is_empty());
    }

    #[test]
    fn a_peer_the_tracker_may_have_forgotten_is_not_used_again() {
        let mut swarms = Swarms::new(0..1, Mix::default(), 5);
        for _ in 0..100 {
            let announce = swarms.next(Duration::ZERO);
            swarms.ended(announce, true, Duration::ZERO);
        }
        let known = swarms.next_peer;
        for _ in 0..100 {
            let announce = swarms.next(FRESH + Duration::from_secs(1));
            assert!(announce.peer > known, "{announce:?}");
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_load() {
        let load = |seed| {
            let mut swarms = Swarms::new(0..100, Mix::default(), seed);
            (0..1_000)
                .map(|_| {
                    let announce = swarms.next(Duration::ZERO);
                    swarms.ended(announce, true, Duration::ZERO);
                    announce
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(load(1), load(1));
        assert_ne!(load(1), load(2));
    }
}
