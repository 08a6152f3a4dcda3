//! The announces that wait, shared between the thread that receives and the one that
//! executes. The order is [`Hold`]'s; here is what is concurrent about it.
//!
//! The lock is held for a push or a pop, never while an announce is executed. Whether the
//! gate is open is asked under the lock, so that an announce that saw the closed gate has
//! moved all earlier ones behind the backlog before it is queued itself.
//!
//! An executor enters with a [`Pass`], takes announces one after the other and says when it
//! is done with all of them ([`Turn`]). Until then the queue is not idle, so that whoever
//! would pass by an empty queue does not overtake what has been taken from it.
//!
//! # Too late
//!
//! A database that takes fewer announces than arrive would, with a bound in number alone,
//! answer every one of them late: after as long as it takes to go through the whole queue.
//! So an announce that has waited [`PATIENCE`] at an open gate is dropped and counted with
//! those turned away, and what the database can do is spent on answers somebody waits for.
//! libtorrent gives a tracker 10 s before it counts a failure, others send again after 15 s
//! (BEP 15), so one that is dropped is either given up or on its way again.
//!
//! The time that the gate is closed does not count: what it catches is held, and what is
//! held is never dropped for its age. Waiting is then the very promise.

use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aquatic_udp_protocol::common::PeerId;
use aquatic_udp_protocol::{AnnounceEventBytes, AnnounceRequest, InfoHash};
use tokio::runtime::Handle;
use torrust_tracker_maintenance::gate::{Counters, Door, Gate, Pass};
use torrust_tracker_maintenance::hold::{Arrival, Batch, Bounds, Hold};

/// Announces of each kind (fresh, held) that are taken at once. A gate that closes waits for
/// all of them, and one may wait 5 s for a lock in the database.
const AT_ONCE: usize = 1;

/// How long an announce may wait at an open gate and still be worth executing.
const PATIENCE: Duration = Duration::from_secs(5);

/// An announce whose connection id was valid on arrival.
#[derive(Debug, Clone, Copy)]
pub struct Announce {
    /// Whence it came, and where the answer goes.
    pub from: SocketAddr,
    /// The packet.
    pub request: AnnounceRequest,
    /// When it came.
    pub arrived: Instant,
}

/// Whose announces keep their order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Peer {
    address: SocketAddr,
    torrent: InfoHash,
    id: PeerId,
}

/// The queue of one UDP tracker.
pub struct Queue {
    gate: Gate,
    state: Mutex<State>,
    /// Something arrived at an empty queue, or nothing will any more.
    changed: Condvar,
}

struct State {
    hold: Hold<Peer, AnnounceEventBytes, Announce>,
    /// Somebody has a [`Turn`].
    taken: bool,
    finished: bool,
}

/// A pass of the gate and what is taken under it, by one executor at a time.
pub struct Turn<'q> {
    queue: &'q Queue,
    pass: Pass<'q>,
}

impl Queue {
    /// An empty queue in front of `gate`.
    pub fn new(gate: Gate, bounds: Bounds) -> Self {
        Self {
            gate,
            state: Mutex::new(State {
                hold: Hold::new(bounds),
                taken: false,
                finished: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Takes announces in, or drops what there is no room for.
    pub fn arrive(&self, announces: impl IntoIterator<Item = Announce>) {
        let mut state = self.lock();
        let was_empty = state.hold.is_empty();
        for announce in announces {
            // Asked for each, as a gate may close at any moment.
            let open = self.gate.is_open();
            if !open {
                self.close(&mut state);
            }
            self.take_in(&mut state, announce, open);
        }
        self.wake(state, was_empty);
    }

    /// Takes over what has been taken in by whoever passes by, in the order of its arrival. It
    /// counts as what waited here: a closed gate holds it, however many it holds.
    pub fn take_over(&self, announces: impl IntoIterator<Item = Announce>) {
        let mut state = self.lock();
        let was_empty = state.hold.is_empty();
        for announce in announces {
            self.take_in(&mut state, announce, true);
        }
        if !self.gate.is_open() {
            self.close(&mut state);
        }
        self.wake(state, was_empty);
    }

    fn take_in(&self, state: &mut State, announce: Announce, open: bool) {
        let counters = self.counters();
        let event = announce.request.event;
        match state.hold.arrive(announce.peer(), event, announce, open) {
            Arrival::Queued => {}
            Arrival::Held => counters.hold(),
            Arrival::Merged(_) => counters.merge(),
            Arrival::TurnedAway(_) => counters.turn_away(),
        }
    }

    /// Tells the executor, which waits for nothing but an empty queue.
    fn wake(&self, state: MutexGuard<'_, State>, was_empty: bool) {
        let is_empty = state.hold.is_empty();
        drop(state);
        if was_empty && !is_empty {
            self.changed.notify_one();
        }
    }

    /// A pass for announces that need not wait: the gate is open, nothing waits, and nothing
    /// that has waited is being executed, so there is nothing to overtake. To be asked by
    /// the thread that lets announces arrive, which is the only one that could change that.
    pub fn pass_by(&self) -> Option<Pass<'_>> {
        let state = self.lock();
        let idle = state.hold.is_empty() && !state.taken;
        drop(state);
        if idle { self.gate.try_enter() } else { None }
    }

    /// Nothing arrives any more.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.changed.notify_one();
    }

    /// Blocks until something waits and the gate lets it pass. `None`: nothing will come any
    /// more and everything has been taken.
    pub fn turn(&self, runtime: &Handle) -> Option<Turn<'_>> {
        let mut state = self.lock();
        loop {
            if state.hold.is_empty() {
                if state.finished {
                    return None;
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            } else if let Some(pass) = self.gate.try_enter() {
                state.taken = true;
                return Some(Turn { queue: self, pass });
            } else {
                self.close(&mut state);
                drop(state);
                runtime.block_on(self.gate.opened());
                state = self.lock();
            }
        }
    }

    /// Where what becomes of announces is counted.
    pub fn counters(&self) -> &Counters {
        self.gate.counters(Door::Udp)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.hold.held() + state.hold.queued()
    }

    /// Whether something waits that the gate does not let through.
    pub fn is_blocked(&self) -> bool {
        !self.gate.is_open() && self.len() > 0
    }

    fn close(&self, state: &mut State) {
        let counters = self.counters();
        (0..state.hold.close()).for_each(|_| counters.hold());
    }

    /// The state is consistent whenever the lock is free; a panic elsewhere in a thread
    /// that once held it changes nothing about that.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// The next to execute, in this order: the two lists have no peer in common. Empty when
    /// nothing waits, and when the gate has closed: it waits for this turn's end.
    pub fn take(&self) -> Batch<Announce> {
        let counters = self.queue.counters();
        let mut state = self.queue.lock();
        loop {
            if state.hold.is_empty() || !self.queue.gate.is_open() {
                return Batch {
                    fresh: Vec::new(),
                    held: Vec::new(),
                };
            }
            let mut batch = state.hold.take(&self.pass, AT_ONCE);
            batch.held.iter().for_each(|_| counters.release());
            let now = now();
            batch.fresh.retain(|announce| {
                let in_time = !announce.is_stale(now);
                if !in_time {
                    counters.turn_away();
                }
                in_time
            });
            if !batch.is_empty() {
                return batch;
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.queue.lock().taken = false;
    }
}

/// For [`Announce::is_stale`].
#[expect(
    clippy::disallowed_methods,
    reason = "the wait for something to take has just ended"
)]
pub fn now() -> Instant {
    Instant::now()
}

impl Announce {
    /// Whether nobody waits for its answer any more. In the order of their arrival the old ones
    /// come first, so a queue that fell behind is caught up with at once.
    pub fn is_stale(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.arrived) > PATIENCE
    }

    fn peer(&self) -> Peer {
        Peer {
            address: self.from,
            torrent: self.request.info_hash,
            id: self.request.peer_id,
        }
    }
}
