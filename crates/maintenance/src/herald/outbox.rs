//! Pure: what waits to be delivered to one receiver, bounded in number and in time.
//!
//! A receiver that is down for an hour is to hear of a failure when it is back, and what it is
//! told first is the newest. Where there is no room the oldest goes, and what has waited for too
//! long.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What waits, oldest first.
#[derive(Debug)]
pub(super) struct Outbox<T> {
    waiting: VecDeque<Waiting<T>>,
    /// How many wait at most.
    room: usize,
    /// For how long.
    keeps_for: Duration,
    /// The number of the next.
    next: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    number: u64,
    since: Instant,
    what: T,
}

impl<T: Clone> Outbox<T> {
    /// An empty one that holds so many, at least one, each for so long.
    pub(super) fn new(room: usize, keeps_for: Duration) -> Self {
        Self {
            waiting: VecDeque::new(),
            room: room.max(1),
            keeps_for,
            next: 0,
        }
    }

    /// Adds the newest; whether the oldest had to make room for it.
    pub(super) fn put(&mut self, what: T, now: Instant) -> bool {
        let is_full = self.waiting.len() >= self.room;
        if is_full {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting {
            number: self.next,
            since: now,
            what,
        });
        self.next += 1;
        is_full
    }

    /// What is to be delivered next, and the number it has here.
    pub(super) fn newest(&self) -> Option<(u64, T)> {
        let newest = self.waiting.back()?;
        Some((newest.number, newest.what.clone()))
    }

    /// Takes out what was delivered, or never will be; it may have had to make room already.
    pub(super) fn remove(&mut self, number: u64) {
        self.waiting.retain(|waiting| waiting.number != number);
    }

    /// Takes out what has waited for too long; how many these were.
    pub(super) fn expire(&mut self, now: Instant) -> usize {
        let before = self.waiting.len();
        let keeps_for = self.keeps_for;
        self.waiting
            .retain(|waiting| now.saturating_duration_since(waiting.since) < keeps_for);
        before - self.waiting.len()
    }

    /// Takes out everything; how many these were.
    pub(super) fn empty(&mut self) -> usize {
        std::mem::take(&mut self.waiting).len()
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "an instant can be had of the clock alone"
)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn the_newest_comes_first_and_the_oldest_makes_room() {
        let now = Instant::now();
        let mut outbox = Outbox::new(3, HOUR);
        assert_eq!(outbox.newest(), None);
        let displaced: Vec<bool> = "abcde".chars().map(|what| outbox.put(what, now)).collect();
        assert_eq!(displaced, [false, false, false, true, true]);
        assert_eq!(outbox.len(), 3);
        let mut order = String::new();
        while let Some((number, what)) = outbox.newest() {
            order.push(what);
            outbox.remove(number);
        }
        assert_eq!(order, "edc");
    }

    #[test]
    fn what_had_to_make_room_while_it_was_delivered_takes_nobody_with_it() {
        let now = Instant::now();
        let mut outbox = Outbox::new(1, HOUR);
        outbox.put('a', now);
        let (delivered, _) = outbox.newest().expect("one waits");
        outbox.put('b', now);
        outbox.remove(delivered);
        assert_eq!(outbox.newest().map(|(_, what)| what), Some('b'));
    }

    #[test]
    fn what_waits_for_too_long_goes() {
        let began = Instant::now();
        let mut outbox = Outbox::new(9, HOUR);
        outbox.put('a', began);
        outbox.put('b', began + HOUR / 2);
        assert_eq!(outbox.expire(began + HOUR.mul_f64(0.999)), 0);
        assert_eq!(outbox.expire(began + HOUR), 1);
        assert_eq!(outbox.newest().map(|(_, what)| what), Some('b'));
        // The clock of a machine that slept may seem to go back.
        assert_eq!(outbox.expire(began), 0);
        assert_eq!(outbox.empty(), 1);
        assert_eq!(outbox.len(), 0);
    }

    #[test]
    fn there_is_always_room_for_one() {
        let mut outbox = Outbox::new(0, HOUR);
        assert!(!outbox.put('a', Instant::now()));
        assert_eq!(outbox.len(), 1);
    }
}
