//! The order in which the announces of one UDP server wait and go on.
//!
//! ```text
//!                 gate open, peer has nothing held
//!             ┌──────────────────────────────────────▶ fresh ────┐
//!   arrive ───┤                                          │       ├──▶ take: n of each
//!             └──────────────────────────────────────▶ backlog ──┘
//!                 gate closed, or peer has a           ▲ │
//!                 held announce                        └─┘ close: fresh goes behind
//! ```
//!
//! While the gate is open an announce waits in `fresh` for the executor, a moment. While
//! it is closed announces wait in `backlog`. When it opens again the backlog is released
//! beside the new arrivals: a turn takes as many of the one as of the other, so each has
//! half of what the database can do for as long as it needs it. To serve the backlog
//! first would leave new arrivals unanswered for as long as it lasts; to serve it last
//! would, on a busy tracker, never serve it. Turns are short (64 of each, say), so that
//! none waits long for a turn to end.
//!
//! # Order
//!
//! All announces of one peer (address, info hash and peer id) wait in one of the two
//! queues, never in both:
//!
//! - on arrival a peer with something in the backlog goes to the backlog, open or not;
//! - nothing enters `fresh` while the gate is closed, and closing empties it.
//!
//! Both queues are first in, first out, hence no announce overtakes another of its peer.
//! Closing moves `fresh` *behind* the backlog, which therefore keeps the order too. An
//! arrival at a closed gate does so itself: it must not matter whether the thread that
//! receives learns of the closure before the one that executes.
//!
//! # Resends
//!
//! A client that waits too long sends again: rtorrent the same packet, aria2 one with a
//! new transaction id, after which it ignores an answer to the old one. If the newest
//! waiting announce of the peer is held and has the same event, a resend takes its place
//! in the queue: one entry in the database, one answer, to the transaction the client
//! listens for. Another event is another fact (`started`, `completed` and `stopped` each
//! count) and waits its own turn. Announces that arrived at an open gate are not merged
//! among each other: every one is answered, as it would be without a gate.
//!
//! # Bounds
//!
//! Both queues are bounded and what exceeds the bound is handed back. Only closing may
//! exceed it, by what was accepted before: [`Bounds::queued`] at most. A resend that is
//! merged needs no room. The memory of a large backlog is given back once it is empty.
//!
//! Nothing here reads a clock, locks or waits. The service shares it between the thread
//! that receives and the one that executes, as it sees fit; see `docs/linking.md`.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::gate::Pass;

/// Room that an empty queue keeps for the next arrivals.
const SPARE: usize = 1_024;

/// Announces that wait: for the gate, or for the executor. `K` names a peer and torrent,
/// `E` is the announced event, `T` the request with all that is needed to answer it.
#[derive(Debug)]
pub struct Hold<K, E, T> {
    bounds: Bounds,
    fresh: VecDeque<Waiting<K, E, T>>,
    backlog: VecDeque<Waiting<K, E, T>>,
    /// Ticket of the newest announce that each peer has in the backlog.
    newest: HashMap<K, usize>,
    /// Ticket of the front of the backlog; tickets count up, one for each place behind it.
    front: usize,
}

/// How many announces may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// For a closed gate, or behind those that did.
    pub held: usize,
    /// For the executor while the gate is open.
    pub queued: usize,
}

/// What became of an announce on its arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival<T> {
    /// Waits for the executor.
    Queued,
    /// Waits for the gate, or behind an announce of its peer that does.
    Held,
    /// Took the place of this one, which needs no answer any more.
    Merged(T),
    /// Found no room. UDP clients are best left without an answer: they send again.
    TurnedAway(T),
}

/// The next requests to execute: each list in its order; between the lists there is none
/// to keep, as no peer is in both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch<T> {
    /// Arrived while the gate was open.
    pub fresh: Vec<T>,
    /// Were held. What expires while waiting (a connection id) is to be renewed.
    pub held: Vec<T>,
}

#[derive(Debug)]
struct Waiting<K, E, T> {
    key: K,
    event: E,
    request: T,
}

impl<K: Hash + Eq + Clone, E: PartialEq, T> Hold<K, E, T> {
    /// An empty hold.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            fresh: VecDeque::new(),
            backlog: VecDeque::new(),
            newest: HashMap::new(),
            front: 0,
        }
    }

    /// Takes a request in. `open` is what the gate said after the request was received;
    /// when it was closed, call [`Hold::close`] first to learn how many it caught.
    pub fn arrive(&mut self, key: K, event: E, request: T, open: bool) -> Arrival<T> {
        if !open {
            self.close();
        }
        let waiting = Waiting {
            key,
            event,
            request,
        };
        match self.newest.get(&waiting.key) {
            Some(ticket) => {
                let newest = &mut self.backlog[ticket.wrapping_sub(self.front)];
                if newest.event == waiting.event {
                    return Arrival::Merged(std::mem::replace(newest, waiting).request);
                }
            }
            None if open => return self.queue(waiting),
            None => {}
        }
        if self.backlog.len() >= self.bounds.held {
            return Arrival::TurnedAway(waiting.request);
        }
        self.hold(waiting);
        Arrival::Held
    }

    /// The gate has closed: what waited for the executor is held too, behind the backlog.
    /// Returns how many these were. Costs nothing when called again.
    pub fn close(&mut self) -> usize {
        let caught = self.fresh.len();
        while let Some(waiting) = self.fresh.pop_front() {
            self.hold(waiting);
        }
        caught
    }

    /// Up to `n` fresh and up to `n` held requests. They are to be executed under the
    /// pass given: without one nothing can be taken, so a drained gate means that what is
    /// left waits here. Two requests of one peer are to be executed in the order of their
    /// list, also across batches.
    pub fn take(&mut self, _pass: &Pass<'_>, n: usize) -> Batch<T> {
        let fresh = self.fresh.drain(..n.min(self.fresh.len()));
        let fresh = fresh.map(|waiting| waiting.request).collect();
        let held = std::iter::from_fn(|| self.release()).take(n).collect();
        self.give_back();
        Batch { fresh, held }
    }

    /// How many are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.backlog.len()
    }

    /// How many wait for the executor and arrived while the gate was open.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.fresh.len()
    }

    /// Whether there is nothing to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.backlog.is_empty()
    }

    fn queue(&mut self, waiting: Waiting<K, E, T>) -> Arrival<T> {
        if self.fresh.len() >= self.bounds.queued {
            return Arrival::TurnedAway(waiting.request);
        }
        self.fresh.push_back(waiting);
        Arrival::Queued
    }

    fn hold(&mut self, waiting: Waiting<K, E, T>) {
        let ticket = self.front.wrapping_add(self.backlog.len());
        self.newest.insert(waiting.key.clone(), ticket);
        self.backlog.push_back(waiting);
    }

    fn release(&mut self) -> Option<T> {
        let Waiting { key, request, .. } = self.backlog.pop_front()?;
        if self.newest.get(&key) == Some(&self.front) {
            self.newest.remove(&key);
        }
        self.front = self.front.wrapping_add(1);
        Some(request)
    }

    /// Only of empty queues: there is nothing to move then, and to grow again costs no
    /// more than the arrivals that make it necessary.
    fn give_back(&mut self) {
        if self.fresh.is_empty() {
            self.fresh.shrink_to(SPARE);
        }
        if self.backlog.is_empty() {
            self.backlog.shrink_to(SPARE);
            self.newest.shrink_to(SPARE);
        }
    }
}

impl<T> Batch<T> {
    /// How many requests it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fresh.len() + self.held.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.held.is_empty()
    }
}

#[cfg(test)]
mod tests;
